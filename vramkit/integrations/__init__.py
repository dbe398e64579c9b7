"""vramkit inside other frameworks: one file each, which imports its framework when it is used."""

"""The virtual engine: a program is run on the virtual GPU, in a helper process."""

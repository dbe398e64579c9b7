"""Measuring: the verb ``profile``, its two sources, the marks, and one file for each kind of hook. See README.md."""

"""The version of vramkit, for its face, its results and its wheel."""

__version__ = "0.1.0"

"""Tools for those who work on vramkit itself; no part of the library knows them."""

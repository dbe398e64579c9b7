"""One process as a rank of a distributed job, whose other ranks may be absent. See README.md."""

from .place import Place

__all__ = ["Place"]

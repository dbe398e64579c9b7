"""What a verb needs of torch's private names, asked up front. Knows which files of this room look names up."""

from __future__ import annotations

from importlib import import_module

from . import allocator, autograd, cuda_start, dispatch, distributed, fakes, modules, optimizers, pytree, storages
from .names import TABLE, Name, Need, error_of

__all__ = ["FILES", "missing_for", "require"]

FILES = (allocator, autograd, cuda_start, dispatch, distributed, fakes, modules, optimizers, pytree, storages)
"""They look names up when they are imported."""

ONLY_FOR_FAKES = ("operators", "replaced")
"""These too, and it takes longer."""


def require(asked: str, *needs: Need) -> None:
    """Make sure that this torch has what a verb needs, before any of the user's code runs.

    Args:
        asked: what was asked for, as an error's text begins.
        needs: all that the verb will do.

    Raises:
        DeviceError: a name is missing, and nothing takes its place.
    """
    missing = missing_for(*needs)
    if missing:
        raise error_of(asked, missing)


def missing_for(*needs: Need) -> list[Name]:
    """The names that this torch lacks, of those that some needs have and nothing takes the place of."""
    wanted = frozenset(needs)
    if "fake engine" in wanted:
        for each in ONLY_FOR_FAKES:
            import_module(f"{__package__}.{each}")
    return [name for name in TABLE if not name.is_there and not name.has_fallback and name.needs & wanted]

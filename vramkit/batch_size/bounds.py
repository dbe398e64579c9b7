"""Which sizes a search may answer with, on one rank and on all that search together. Knows what ranks have to agree
on; neither how they talk nor how a search goes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from ..errors import UsageError

_T = TypeVar("_T")

MAX_SEARCHED_BATCH = 1 << 30
"""No larger batch is looked at, where nothing else ends the search."""

_EXACT = 1 << 53  # a fraction times this is a whole number, as far as two have to be told apart


class Ranks(Protocol):
    """Others that search at the same time for the same size; see `vramkit.batch_size.ranks.Agreement`."""

    def smallest(self, size: int, /) -> int:
        """The smallest of what all say."""

    def largest(self, size: int, /) -> int:
        """The largest of what all say."""

    def any(self, flag: bool, /) -> bool:
        """Whether any says yes."""

    def same(self, **numbers: int) -> None:
        """Raise the same error on all where they don't say the same."""

    def together(self, attempt: Callable[[], _T], /) -> _T:
        """Run something; where it fails on one, it fails on all."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Which sizes are allowed, and what is asked for."""

    minimum: int
    """A multiple of ``multiple_of``."""
    maximum: int | None
    """A multiple of ``multiple_of``; None: nothing was said."""
    multiple_of: int
    memory_fraction: float
    verify: bool
    """Every size that is returned has to be run."""

    def agreed(self, ranks: Ranks) -> Bounds:
        """Those that hold on every rank.

        Raises:
            UsageError: on all ranks: there are none, or they ask for different things.
        """
        ranks.same(
            multiple_of=self.multiple_of, verify=self.verify, memory_fraction=round(self.memory_fraction * _EXACT)
        )
        minimum = ranks.largest(self.minimum)
        # Also where a rank says nothing: the length of its part of the dataset, which may be shorter elsewhere.
        is_bounded = ranks.any(self.maximum is not None)
        largest = MAX_SEARCHED_BATCH // self.multiple_of * self.multiple_of
        maximum = ranks.smallest(largest if self.maximum is None else self.maximum)
        if is_bounded and maximum < minimum:
            raise UsageError(
                "The largest batch was asked for that fits on every rank",
                f"one allows no size below {minimum}, and one no size above {maximum}",
                "No size is both",
                "Pass bounds that have sizes in common",
            )
        return replace(self, minimum=minimum, maximum=maximum if is_bounded else None)

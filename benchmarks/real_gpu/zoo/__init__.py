"""Programs that use a card's memory in every way that is known to matter, each for a process of its own."""

from __future__ import annotations

from . import attention, convolutions, memory, operators, products, recurrent, training
from .common import Program
from .memory import ENVIRONMENTS

PROGRAMS: dict[str, Program] = {
    # The slowest ones first: they then run beside all others.
    **memory.PROGRAMS,
    **products.PROGRAMS,
    **convolutions.PROGRAMS,
    **attention.PROGRAMS,
    **recurrent.PROGRAMS,
    **operators.PROGRAMS,
    **training.PROGRAMS,
}
"""Each by its name; the name begins with its family."""

__all__ = ["ENVIRONMENTS", "PROGRAMS"]

"""While ``torch.compile`` compiles, and measures variants of kernels, a recording's marks say so; and what came of it.

Knows where torch does that, and tapes. What is taken there and given back belongs to the first run of a program in its
life: the next process finds kernels and choices in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace as with_fields
from typing import Any

from ..allocator import CachingAllocator
from ..attribution.recording import Kind
from ..errors import VramkitError
from ..sizes import format_size
from ..tape.events import OF_MEASURING, Tape
from ..torch_internals import inductor
from ..torch_internals.names import Place
from .handles import replace
from .marks import Marks

_MOST = 400_000  # events that are replayed, in two to four seconds


class Measuring:
    """Lays down marks where compilations and measurements begin and end.

    Args:
        marks: where.
    """

    def __init__(self, marks: Marks) -> None:
        self._marks = marks

    def install(self, stack: ExitStack) -> None:
        """Begin to look; the stack ends it."""

        def compiles(place: Place) -> None:
            plain = vars(place.owner)[place.name]

            def install_callbacks(handler: Any, trigger: object, *args: Any, **kwargs: Any) -> Any:
                around = plain(handler, trigger, *args, **kwargs)
                return self._around(around) if inductor.is_compilation(trigger) else around

            replace(stack, place.owner, place.name, install_callbacks)

        def measures(place: Place) -> None:
            plain = vars(place.owner)[place.name]

            def bench(*args: Any, **kwargs: Any) -> Any:
                with self._marks.around(Kind.MEASURES):
                    return plain(*args, **kwargs)

            replace(stack, place.owner, place.name, bench)

        inductor.when_measuring(stack, compiles, measures)

    @contextmanager
    def _around(self, inner: AbstractContextManager[Any]) -> Iterator[Any]:
        with self._marks.around(Kind.MEASURES), inner as value:
            yield value


def note_of(tape: Tape) -> str:
    """What to say where measuring changed a peak; empty: it did not.

    What it gave back serves later requests, so that without it less may be reserved, or more.

    Args:
        tape: of the recording.
    """
    if OF_MEASURING not in tape.names:
        return ""
    rows = tape.allocations["name"] == tape.names.index(OF_MEASURING)
    peaks = tape.peak_allocated, tape.peak_reserved
    steady = _steady(tape, rows)
    if steady == peaks:
        return ""
    largest = _figure(int(tape.allocations["block"][rows].max()))
    now, then = (
        " and ".join(map(_figure, each, ("allocated", "reserved"))) if each else "others" for each in (peaks, steady)
    )
    return (
        f"torch.compile measured variants of kernels in buffers of its own, the largest of {largest}, and the peaks "
        f"are those of a run that does so: {now}. A process that finds its compiled kernels in the cache reaches "
        f"{then}."
    )


def _figure(size: int, what: str = "") -> str:
    return f"{format_size(size)} ({size:,} B) {what}".rstrip()


def _steady(tape: Tape, rows: Any) -> tuple[int, int] | None:
    """The peaks without some allocations, allocated and reserved; None: they can't be known."""
    if tape.is_window or len(tape.events) > _MOST:
        return None
    table = tape.allocations.copy()
    table["requested"][rows] = 0  # such a request is not made
    found = []
    for each in (tape, with_fields(tape, allocations=table)):
        try:
            replayed = CachingAllocator(conf=tape.alloc_conf, tie_break=tape.tie_break).replay(each)
        except (VramkitError, LookupError, ValueError, OverflowError):  # settings that are not known here
            return None
        if not replayed.fits:
            return None
        found.append((replayed.peak_allocated, replayed.peak_reserved))
    plain, without = found
    return without if plain == (tape.peak_allocated, tape.peak_reserved) else None

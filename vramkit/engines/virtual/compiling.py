"""What is said of ``torch.compile`` beside a prediction: what its measuring took, what it can't choose here, and that
each batch size is compiled. Knows runs; no process.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...sizes import format_size
from .. import Run

CHOSEN_BY_TIME = (
    "With max-autotune torch.compile chooses between cuBLAS's kernels and its own by their times, which only the card "
    "has. Here another one may win: cuBLAS's take a workspace, its own take none."
)
EACH_SIZE_IS_COMPILED = (
    "torch.compile compiles the program for each batch size that is run, as it would on the card. The first one took "
    "{seconds:.0f} s"
)


def left_out(names: Sequence[str]) -> list[str]:
    """What to say of the compiler's settings that can't be sent, by their names; none: nothing."""
    if not names:
        return []
    return [
        f"torch.compile ran without what {', '.join(names)} is set to here: functions and objects in its settings are "
        "not sent to the helper process. What they change in a graph is not in the figures; vramkit run has it."
    ]


def measured_first(first: Run, then: Run) -> str:
    """What to say of a run in which ``torch.compile`` measured kernels; empty: it took no more memory.

    Args:
        first: that run.
        then: the next one, which gives the figures.
    """
    more = first.peak_allocated > then.peak_allocated or first.peak_reserved > then.peak_reserved or first.ran_out
    if then.measured_kernels:
        return (
            "torch.compile measures variants of kernels in each process anew, and keeps no choice: the buffers that it "
            "does so in are in the figures."
        )
    if not more:
        return ""
    return (
        "The figures are of a process that finds its compiled kernels in the cache. One with an empty cache measures "
        "variants of them first, in buffers of their own: it "
        f"reached {format_size(first.peak_allocated)} ({first.peak_allocated:,} B) allocated and "
        f"{format_size(first.peak_reserved)} ({first.peak_reserved:,} B) reserved"
        f"{', and ran out of memory' * first.ran_out}."
    )

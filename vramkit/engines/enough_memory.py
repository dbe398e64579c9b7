"""One batch size on a card, run by an engine, and on the same card with enough memory where that is too small."""

from __future__ import annotations

from ..errors import DoesNotFit, UsageError
from ..gpus import GPU, MAX_MEMORY
from ..sizes import format_size
from . import Run, Session


def enough(session: Session, gpu: GPU, batch_size: int, *, detailed: bool) -> Run:
    """Run a program on a card with as much memory as it needs.

    Raises:
        DoesNotFit: even the largest virtual card is too small.
        UsageError: the program says so itself, whatever the card has.
    """
    run = session.run(gpu, batch_size, unlimited=True, detailed=detailed)
    if run.ran_out:
        rows = f" with batch size {batch_size}" if batch_size else ""
        asked = f"The memory of a program{rows} was to be predicted"
        if run.profile is not None and not run.profile.out_of_memory:
            raise UsageError(
                asked,
                f"it ended with an out-of-memory error at {format_size(run.peak_reserved)}",
                "Torch's allocator served all that was asked for, so something in the program raised that itself",
                "Take out of the step what raises it",
            )
        raise DoesNotFit(
            asked,
            f"it ran out at {format_size(run.peak_reserved)}",
            f"No virtual card is larger than {format_size(MAX_MEMORY)}",
            "Predict a smaller batch or a part of the model",
        )
    return run

"""What collectives read and wrote: which of it is a buffer, and which an activation. Knows no torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..tape.events import Category, Ints
from .context import Contexts
from .kept import Seen


def results_of_collectives(
    seen: Seen,
    context: Contexts,
    category: npt.NDArray[np.uint8],
    zone: Ints,
    outlives: npt.NDArray[np.bool_],
) -> list[int]:
    """The rows of allocations that are no buffers of collectives, though one read or wrote them.

    Tensor parallel layers exchange activations: those are made, exchanged and kept in one pass. A buffer goes when its
    pass does, or serves other passes: a bucket for gradients is made in a forward, and exchanged in backwards.

    Args:
        seen: what looks saw.
        context: of the recording's events.
        category: of each allocation, so far.
        zone: of each allocation.
        outlives: whether it is there when the pass has ended that it was born in.
    """
    # A look has the number of the event that comes next; what came before it is of the same pass.
    return [
        row
        for row, events in seen.exchanged.items()
        if category[row] == Category.COMMUNICATION
        and outlives[row]
        and all(context.zone[event - 1] == zone[row] for event in events)
    ]

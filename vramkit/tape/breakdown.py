"""One moment's memory, divided by what it is for. Knows the categories and the bridge; not where bytes come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import UsageError
from ..sizes import format_size
from .events import Category, Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Where the memory of one device was at one moment, in bytes.

    The parts up to ``outputs`` are what the program asked for. With ``slack`` they are what the allocator counts as
    allocated, with ``cached`` and ``graph_pools`` what it holds of the device, and with ``outside`` what nvidia-smi
    shows::

        parts + slack = allocated;  allocated + cached + graph_pools = reserved;  reserved + outside = used
    """

    parameters: int = 0
    """Bytes of models' parameters."""
    buffers: int = 0
    """Bytes of modules' buffers."""
    gradients: int = 0
    """Bytes of parameters' gradients."""
    optimizer_state: int = 0
    """Bytes that optimizers keep between steps."""
    inputs: int = 0
    """Bytes of the batch, targets included."""
    activations: int = 0
    """Bytes that a forward left for its backward, outputs included."""
    temporaries: int = 0
    """Bytes that are gone when the phase is."""
    workspace: int = 0
    """Bytes that cuBLAS holds for its products."""
    other: int = 0
    """Bytes of everything else."""
    model_copies: int = 0
    """Bytes of copies of models and of optimizers' state that no step trains: averaged weights, checkpoints."""
    datasets: int = 0
    """Bytes of data that lies on the device, and of which a step uses a part."""
    outputs: int = 0
    """Bytes of models' and layers' outputs that the program keeps beyond the step."""
    slack: int = 0
    """Bytes in blocks beyond what was asked for: rounding to 512, and the rest of blocks too small to split off."""
    cached: int = 0
    """Bytes that the allocator holds and has given to nobody."""
    graph_pools: int = 0
    """Bytes that private pools, of CUDA graphs or a ``torch.cuda.MemPool``, hold beside what is allocated in them: free
    to nobody else, and what a graph's replays write to."""
    outside: int = 0
    """Bytes on the device that are not this allocator's: CUDA context, libraries, other processes; 0: not known."""

    @property
    def requested(self) -> int:
        """Bytes that the program asked for: the sum of all categories."""
        return sum(self.of(category) for category in Category)

    @property
    def allocated(self) -> int:
        """Bytes in blocks handed out: ``torch.cuda.memory_allocated()``."""
        return self.requested + self.slack

    @property
    def reserved(self) -> int:
        """Bytes that the allocator holds: ``torch.cuda.memory_reserved()``."""
        return self.allocated + self.cached + self.graph_pools

    @property
    def used(self) -> int:
        """Bytes in use on the device, as nvidia-smi shows; as much as ``reserved`` where ``outside`` is not known."""
        return self.reserved + self.outside

    def of(self, category: Category | str) -> int:
        """Bytes of one category.

        Args:
            category: it, or its name: ``Category.ACTIVATION``, "ACTIVATION" or "activations".

        Raises:
            UsageError: there is no such category.
        """
        size: int = getattr(self, _FIELDS[category_of("The bytes of a category were asked for", category)])
        return size

    def __repr__(self) -> str:
        parts = ", ".join(f"{c.name.lower()} {format_size(self.of(c))}" for c in Category if self.of(c))
        return f"Breakdown(allocated {format_size(self.allocated)}: {parts or 'nothing'})"


def breakdown(parts: list[int], *, slack: int, cached: int, graph_pools: int, outside: int) -> Breakdown:
    """A `Breakdown` from one number of bytes a category, in the order of `Category`."""
    sizes = dict(zip(_FIELDS.values(), parts, strict=True))
    return Breakdown(**sizes, slack=slack, cached=cached, graph_pools=graph_pools, outside=outside)


def category_of(asked: str, given: object) -> Category:
    """A category from what a caller gives: itself, its code, its name, or the name of its field in a `Breakdown`.

    Args:
        asked: what was asked for, as an error's text begins.
        given: it; names in small or capital letters.

    Raises:
        UsageError: there is no such category.
    """
    if isinstance(given, str):
        name = given.lower()
        found = [each for each, field in _FIELDS.items() if name in (each.name.lower(), field)]
    elif isinstance(given, (bool, Phase)):  # which are numbers, too
        found = []
    else:
        found = [each for each in Category if isinstance(given, (int, np.integer)) and each == given]
    if not found:
        raise UsageError(
            asked,
            f"of {given!r:.60}",
            "There is no such category",
            f"Give one of vramkit.Category, or its name: {', '.join(each.name for each in Category)}",
        )
    return found[0]


_FIELDS = {
    Category.PARAMETER: "parameters",
    Category.BUFFER: "buffers",
    Category.GRADIENT: "gradients",
    Category.OPTIMIZER_STATE: "optimizer_state",
    Category.INPUT: "inputs",
    Category.ACTIVATION: "activations",
    Category.TEMPORARY: "temporaries",
    Category.WORKSPACE: "workspace",
    Category.OTHER: "other",
    Category.MODEL_COPY: "model_copies",
    Category.DATASET: "datasets",
    Category.OUTPUT: "outputs",
}
"""Of each category, in their order, the field of a `Breakdown`."""

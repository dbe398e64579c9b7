"""One moment's memory, divided by what it is for. Knows the categories and the bridge; not where bytes come from."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import assert_never

from ..sizes import format_size
from .events import Category


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Where the memory of one device was at one moment, in bytes.

    The parts up to ``other`` are what the program asked for. With ``slack`` they are what the allocator counts as
    allocated, with ``cached`` what it holds of the device, and with ``outside`` what nvidia-smi shows::

        parts + slack = allocated;  allocated + cached = reserved;  reserved + outside = used
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
    slack: int = 0
    """Bytes in blocks beyond what was asked for: rounding to 512, and the rest of blocks too small to split off."""
    cached: int = 0
    """Bytes that the allocator holds and has given to nobody."""
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
        return self.allocated + self.cached

    @property
    def used(self) -> int:
        """Bytes in use on the device, as nvidia-smi shows; as much as ``reserved`` where ``outside`` is not known."""
        return self.reserved + self.outside

    def of(self, category: Category) -> int:
        """Bytes of one category."""
        match category:
            case Category.PARAMETER:
                return self.parameters
            case Category.BUFFER:
                return self.buffers
            case Category.GRADIENT:
                return self.gradients
            case Category.OPTIMIZER_STATE:
                return self.optimizer_state
            case Category.INPUT:
                return self.inputs
            case Category.ACTIVATION:
                return self.activations
            case Category.TEMPORARY:
                return self.temporaries
            case Category.WORKSPACE:
                return self.workspace
            case Category.OTHER:
                return self.other
            case _:
                assert_never(category)

    def __repr__(self) -> str:
        parts = ", ".join(f"{c.name.lower()} {format_size(self.of(c))}" for c in Category if self.of(c))
        return f"Breakdown(allocated {format_size(self.allocated)}: {parts or 'nothing'})"


def breakdown(parts: list[int], *, slack: int, cached: int, outside: int) -> Breakdown:
    """A `Breakdown` from one number of bytes a category, in the order of `Category`."""
    fields = (
        "parameters", "buffers", "gradients", "optimizer_state", "inputs", "activations", "temporaries", "workspace",
        "other",
    )  # fmt: skip
    return Breakdown(**dict(zip(fields, parts, strict=True)), slack=slack, cached=cached, outside=outside)

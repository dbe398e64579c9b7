"""The rows of a layer table: what a run's modules held beside what was counted of them. No torch; formats nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import printable
from ..programs.layer_count import LayerCount, LayerCounts
from ..sizes import format_size
from ..tape.usage import ModuleUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """A layer, with everything inside it. Sizes are bytes, of one training step."""

    name: str
    """Qualified: the model's name, then the path below it."""
    kind: str
    """Name of the class."""
    depth: int
    """How many layers it is inside of; 0: it is a model."""
    calls: int
    """How often a step calls it, recomputations not included."""
    output_shape: tuple[int, ...]
    """Shape of the first tensor that its first call returned; empty: it was not called, or returned none."""
    parameters: int | None
    """Numbers in its parameters; one that several layers share counts where it is met first. None: not known."""
    trainable: int | None
    """How many of them have ``requires_grad``."""
    multiply_adds: int | None
    """Of its calls in a step's forwards, matrix products, convolutions and attention; None: not known."""
    parameter_bytes: int
    """Bytes of its parameters."""
    activations: int
    """Bytes that it made in its forward and that are kept for the backward: the most that was alive at once."""
    gradients: int
    """Bytes of its parameters' gradients."""
    optimizer_state: int
    """Bytes that the optimizer keeps for its parameters on the device."""
    peak: int
    """Highest ``memory_allocated()`` of the whole device while the program was inside it; 0: nothing happened there."""

    def __repr__(self) -> str:
        count = "" if self.parameters is None else f"{self.parameters:,} parameters, "
        return (
            f"LayerRow({printable(self.name)} ({printable(self.kind)}): {count}"
            f"activations {format_size(self.activations)})"
        )


def rows_of(models: Sequence[ModuleUsage], counts: LayerCounts | None, steps: int) -> tuple[LayerRow, ...]:
    """A row for each module, outermost first.

    Args:
        models: what they held.
        counts: of the same models, in the same order. None: nothing was counted.
        steps: training steps that ``models`` saw.
    """
    rows: list[LayerRow] = []
    for number, model in enumerate(models):
        skip = len(model.name) + 1
        own = {} if counts is None else {path: each for (of, path), each in counts.of.items() if of == number}
        rows += _rows(model, 0, {name: own.get(name[skip:]) for name in (each.name for each in model.walk())}, steps)
    return tuple(rows)


def _rows(usage: ModuleUsage, depth: int, own: Mapping[str, LayerCount | None], steps: int) -> list[LayerRow]:
    """The rows of a module and of those inside it; what is not known of one inside counts as none."""
    inside: list[LayerRow] = []
    parts: list[LayerRow] = []
    for child in usage.children:
        below = _rows(child, depth + 1, own, steps)
        parts.append(below[0])
        inside += below
    count = own[usage.name]
    row = LayerRow(
        name=usage.name,
        kind=usage.kind,
        depth=depth,
        calls=usage.calls // max(steps, 1) if count is None else count.calls,
        output_shape=usage.output_shape,
        parameters=None if count is None else count.parameters + sum(each.parameters or 0 for each in parts),
        trainable=None if count is None else count.trainable + sum(each.trainable or 0 for each in parts),
        multiply_adds=None if count is None else count.flops // 2 + sum(each.multiply_adds or 0 for each in parts),
        parameter_bytes=usage.parameters,
        activations=usage.activations,
        gradients=usage.gradients,
        optimizer_state=usage.optimizer_state,
        peak=usage.peak,
    )
    return [row, *inside]

"""What models that came to no training step would need in full: their tensors, gradients, and optimizers' states.

Knows closed forms and which objects are alive; knows no event.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from .. import closed_form
from ..attribution.recording import NO_GRAD, Kind, Mark
from ..sizes import format_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Bytes of everything that is there whatever the batch is."""

    name: str
    """Of the model, or of the first and how many more."""
    held: int
    """Parameters and buffers."""
    on_device: int
    """How much of that lies on a device by now."""
    gradients: int
    optimizers: str
    """Names of the optimizers; empty: there was none."""
    states: int
    """Of the optimizers, or of Adam where there was none."""
    states_made: int
    """How much of that lies on a device by now."""

    def note(self, capacity: int) -> str:
        """It, in sentences.

        Args:
            capacity: bytes of the device; 0: not known.
        """
        told = []
        if self.on_device < self.held:
            told.append(
                f"{format_size(self.on_device)} of the {format_size(self.held)} of {self.name} are on the device."
            )
        if self.states_made and self.states_made < self.states:
            made = format_size(self.states_made)
            told.append(f"{made} of the {format_size(self.states)} of {self.optimizers}'s state were made.")
        parts = [f"{format_size(self.held)} of parameters and buffers", f"{format_size(self.gradients)} of gradients"]
        total = self.held + self.gradients
        if self.optimizers:
            parts.append(f"{format_size(self.states)} of {self.optimizers}'s state")
            total += self.states
        least = f"Training {self.name} takes {' + '.join(parts)} = {format_size(total)}"
        if not self.optimizers:
            least += f" ({format_size(total + self.states)} with Adam's state)"
        there = f"; the device has {format_size(capacity)}" if capacity else ""
        told.append(f"{least}, before any activation{there}.")
        return " ".join(told)


def whole_of(
    models: Iterable[torch.nn.Module],
    optimizers: Iterable[torch.optim.Optimizer],
    marks: Sequence[Mark],
    *,
    failed: bool,
) -> Whole | None:
    """What is needed in full; None: there is nothing to tell, or no closed form.

    It is told where memory ran out before an optimizer had stepped, and where nothing ran at all.

    Args:
        models: that are alive.
        optimizers: that are alive.
        marks: of the recording.
        failed: memory ran out.
    """
    if any(kind is Kind.OPTIMIZER_END and value >= 0 for kind, value, _ in marks):
        return None
    ran = {kind for kind, _, _ in marks}
    only_evaluated = Kind.BACKWARD not in ran and any(kind is Kind.MODE and value & NO_GRAD for kind, value, _ in marks)
    if only_evaluated or (not failed and Kind.ROOT in ran):
        return None
    started = [each for each in models if _on_device(_tensors_of(each))]
    names = [type(each).__name__ for each in started]
    with suppress(Exception):  # a lazy module, LBFGS, or classes that raise what they like
        held = list(started)
        gradients = closed_form.gradients(held)
        if not gradients:
            return None
        own = {id(parameter) for each in held for parameter in each.parameters()}
        used = [each for each in optimizers if _has_any(each, own)]
        states = (
            sum(map(closed_form.optimizer_state, used)) if used else closed_form.optimizer_state(torch.optim.Adam, held)
        )
        return Whole(
            name=names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else ""),
            held=closed_form.parameters(held) + closed_form.buffers(held),
            on_device=_on_device(tensor for each in held for tensor in _tensors_of(each)),
            gradients=gradients,
            optimizers=" and ".join(dict.fromkeys(type(each).__name__ for each in used)),
            states=states,
            states_made=_on_device(
                value
                for each in used
                for state in each.state.values()
                for value in state.values()
                if isinstance(value, torch.Tensor)
            ),
        )
    return None


def _tensors_of(model: torch.nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _on_device(tensors: Iterable[torch.Tensor]) -> int:
    return sum({id(each): each.nbytes for each in tensors if each.is_cuda}.values())


def _has_any(optimizer: torch.optim.Optimizer, parameters: set[int]) -> bool:
    return any(id(each) in parameters for group in optimizer.param_groups for each in group["params"])

"""What a textbook says a training step takes: closed forms for a multilayer perceptron. Knows arithmetic; no torch.

Everything is float32 unless it says otherwise, and counts what the formulas count: no rounding, no workspaces, no
temporaries. ``vramkit demo`` holds it against what is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

FLOAT32 = 4
"""Bytes of one number."""

_STATES = {"sgd": 0, "adam": 2}
"""Numbers that an optimizer keeps for each parameter: Adam two moving averages, plain SGD none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Textbook:
    """One training step of fully connected layers, in bytes.

    ::

        step = Textbook(layers=(784, 128, 10), batch=64, optimizer="adam")
        step.parameters                                   # 407080
    """

    layers: tuple[int, ...]
    """Widths, from the input to the output."""
    batch: int
    """Examples in a batch."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Without momentum, or as in the paper."""

    @property
    def parameter_count(self) -> int:
        """Weights and biases, as numbers."""
        return sum((inputs + 1) * outputs for inputs, outputs in pairwise(self.layers))

    @property
    def parameters(self) -> int:
        """Bytes of the weights and biases."""
        return FLOAT32 * self.parameter_count

    @property
    def gradients(self) -> int:
        """Bytes of one gradient for each parameter."""
        return self.parameters

    @property
    def optimizer_state(self) -> int:
        """Bytes that the optimizer keeps between steps."""
        return _STATES[self.optimizer] * self.parameters

    @property
    def inputs(self) -> int:
        """Bytes of the batch, without its targets."""
        return FLOAT32 * self.batch * self.layers[0]

    @property
    def activations(self) -> int:
        """Bytes of the hidden layers' outputs, kept for the backward."""
        return FLOAT32 * self.batch * sum(self.layers[1:-1])

    @property
    def total(self) -> int:
        """The sum of all of them."""
        return self.parameters + self.gradients + self.optimizer_state + self.inputs + self.activations

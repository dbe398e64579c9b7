"""What cuDNN's recurrent layers and its batch norm take for their own work. Knows sizes; no tensor.

The rules give what cuDNN 9.19 asked for on an H200, of 22,000 problems and in programs. The virtual GPU has the same
ones (``virtual_gpu/native/cudnn_sizes.c``); a test holds them against each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .arithmetic import ceil_div, round_up

GATES = {0: 1, 1: 1, 2: 4, 3: 3}
"""By cuDNN's mode: RNN with ReLU, with tanh, LSTM, GRU."""
_LSTM = 2
_OF_A_LAYER = 8 << 20
"""Bytes for each layer and direction, whatever its size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrent:
    """A recurrent network and the sequences that it is given.

    Its spaces are made of buffers, each rounded up to 32 bytes. A buffer of rows is one for every step of every
    sequence, a state one for every sequence, direction and layer.
    """

    mode: int
    layers: int
    directions: int
    input: int
    hidden: int
    output: int
    """Numbers of a state that are handed on: those of the projection, else ``hidden``."""
    itemsize: int
    dropout: bool
    """Whether there is dropout between layers."""
    steps: int
    batch: int
    rows: int
    """Steps of all sequences together."""
    packed: bool
    persistent: bool
    """Its kernels keep the weights, and more copies of the gates."""

    @property
    def reserve(self) -> int:
        """Bytes that live from the forward of a training to its backward."""
        between, hidden = self.layers - 1, self.hidden * self.directions
        width = {1: 1, 3: 6, 4: 5}[GATES[self.mode]] * hidden
        if self.output != self.hidden:
            width += hidden + self.output * self.directions
        drawn = self.steps * self.batch * hidden  # of padded steps as well, a bit for each
        masks = between * self.directions * _up(ceil_div(drawn, 8)) if self._drops else 0
        return 256 + self._rows(self.layers * width) + self._rows(between * self.output * self.directions) + masks

    def workspace(self, *, training: bool) -> int:
        """Bytes that a pass takes for its own work; in training both passes take the same."""
        space = max(self._forward(), self._backward()) if training else self._forward()
        lengths = 0 if self.packed else _up(8 * self.batch)
        return _OF_A_LAYER * self.layers * self.directions + 256 + _up(self._weights * self.itemsize) + lengths + space

    @property
    def _weights(self) -> int:
        per_gate = self.layers * self.output + self.input + (self.layers - 1) * self.directions * self.output
        projections = self.layers * self.output if self.output != self.hidden else 0
        return self.directions * self.hidden * (GATES[self.mode] * per_gate + projections)

    @property
    def _drops(self) -> bool:
        return self.dropout and self.layers > 1

    def _forward(self) -> int:
        gates, hidden, pairs, is_lstm = GATES[self.mode], self.hidden, self.directions - 1, self.mode == _LSTM
        size = self._rows(gates * self.directions * hidden) + pairs * self._rows(4 * hidden)
        if self.output != hidden:
            size += self._rows(self.directions * hidden)
        if self._drops and not pairs:
            size += self._rows(hidden)
        if self.persistent:
            size += self._rows(4 * gates * hidden) + self._states(((4 if is_lstm else 2) + pairs) * hidden)
        else:
            size += sum(self._states(each * hidden) for each in ((2, 4) if is_lstm else (gates,)))
            size += pairs * self._states(2 * hidden)
        return size + self._copies(1)

    def _backward(self) -> int:
        hidden, pairs, is_lstm = self.hidden, self.directions - 1, self.mode == _LSTM
        widest, is_deep = max(self.input, hidden), self.layers > 1
        size = self._rows((4 if pairs else 1) * widest) + pairs * self._rows((4 if is_deep else 2) * hidden)
        if self.persistent:
            size += self._rows((9 if GATES[self.mode] == 1 else 14) * hidden) + self._states((2 + pairs) * hidden)
            size += 0 if pairs else self._rows((2 if is_deep else 1) * hidden)
        else:
            size += self._states(hidden) + (pairs + is_lstm) * self._states(2 * hidden)
            size += 0 if pairs else _up(self._waiting() * hidden * self.itemsize)
        return size + self._copies(2)

    def _copies(self, number: int) -> int:
        """Of the caller's tensors, in the backward of their gradients too. Packed sequences need none."""
        if self.packed:
            return 0
        states = [self.output, self.output, *[self.hidden] * (2 if self.mode == _LSTM else 0)]
        rows = self._rows(self.input) + self._rows(self.directions * self.output)
        return number * (rows + sum(map(self._states, states)))

    def _waiting(self) -> int:
        """Rows on their way from layer to layer. Layers work on groups of steps: how many a group has was seen of
        batches of 1, 16, 20, 32 and 64.
        """
        if self.layers == 1:
            return self.rows
        steps = 4
        while steps < 32 and 2 * steps * self.batch <= 128:
            steps *= 2
        return min(self.rows, (steps * self.layers + max(steps, 8)) * self.batch)

    def _rows(self, width: int) -> int:
        return _up(self.rows * width * self.itemsize)

    def _states(self, width: int) -> int:
        return _up(self.layers * self.directions * self.batch * width * self.itemsize)


def recurrent(
    shape: Sequence[int],
    itemsize: int,
    *,
    mode: int,
    hidden: int,
    projection: int,
    layers: int,
    batch_first: bool,
    dropout: float,
    bidirectional: bool,
    batch_sizes: Sequence[int],
    persistent: bool = False,
) -> Recurrent:
    """The network of a call of torch's operator.

    Args:
        shape: of the input.
        itemsize: of the input.
        batch_sizes: sequences in each step, where they are packed; else empty.
        persistent: of its kernels.
        mode, hidden, projection, layers, batch_first, dropout, bidirectional: as the operator has them.
    """
    if batch_sizes:
        steps, batch = len(batch_sizes), batch_sizes[0]
    else:
        steps, batch = (shape[1], shape[0]) if batch_first else (shape[0], shape[1])
    return Recurrent(
        mode=mode,
        layers=layers,
        directions=2 if bidirectional else 1,
        input=shape[-1],
        hidden=hidden,
        output=projection or hidden,
        itemsize=itemsize,
        dropout=dropout > 0,
        steps=steps,
        batch=batch,
        rows=math.prod(shape[:-1]),
        packed=bool(batch_sizes),
        persistent=persistent,
    )


def batch_norm(pixels: int, channels: int, itemsize: int, *, backward: bool) -> int:
    """Bytes of the persistent kernels of batch norm, for tensors whose channels lie last: what blocks of rows leave.

    Args:
        pixels: numbers of a channel, of all samples.
        channels: of the tensor.
        itemsize: of the tensor.
        backward: in the backward.
    """
    rows = 96 if backward else 64 if itemsize == 4 else 160
    sums = (512 if backward else 516) * ceil_div(pixels, rows)
    return (1056 if backward else 1072) + ceil_div(channels, 64) * (4 + sums)


def _up(size: int) -> int:
    return round_up(size, 32)

"""Looking up rows and bringing gradients back to them: sorts of indices, and sums of rows that were looked up often."""

from __future__ import annotations

import torch

from ..calls import Call
from .copies import copies
from .table import rule

aten = torch.ops.aten
_FEW_INDICES = 3072
_ROWS_OF_A_PART = 10
_BLOCKS_OF_A_PROCESSOR = 4
_LONG_ROW = 4096
_SCAN = 1279
"""Bytes of cub's scans of some ten thousand numbers."""


def _sort(count: int, most: int) -> int:
    """Bytes that cub's radix sort of pairs takes, of 8 bytes each, where keys are up to ``most``.

    Found for 4,096 to 16,384 keys; its second buffer is most of it. Keys of one byte need one pass and none.
    """
    return 5631 if most <= 256 else 4607 + 1024 * -(-count // 3840) + 16 * count


@rule(aten.embedding_dense_backward)
def embedding_backward(call: Call) -> None:
    """A copy of the gradient unless it is contiguous; for many indices they are sorted, and rows summed in parts."""
    gradient, indices, rows = call.args[:3]
    count = indices.numel()
    with call.holding(*copies(gradient)):
        if count <= _FEW_INDICES:
            call.output()
            return
        all_indices = 8 * count
        segments = min(count, rows)
        parts = count // _ROWS_OF_A_PART + segments
        width, wide = gradient.shape[-1], max(4, gradient.element_size())
        sums: tuple[int, ...] = (wide * parts * width,)
        if _adds_at_once(call, parts, segments, width):
            sums = (8 * parts, 4 * rows * width) if gradient.element_size() < wide else (8 * parts,)
        with call.holding(all_indices, all_indices):
            with call.holding(all_indices):
                call.touch(_sort(count, rows))
            call.output()
            with call.holding(all_indices, 8):
                with call.holding(all_indices):
                    call.touch(_SCAN)
                with call.holding(8 * segments, 8 * segments):
                    call.touch(_SCAN)
                    with call.holding(8, 8 * parts, *sums):
                        pass


def _adds_at_once(call: Call, parts: int, words: int, width: int) -> bool:
    """Whether parts are added to the words' rows at once: where adding them word by word would leave processors idle.

    As in torch's EmbeddingBackwardKernel.cu.
    """
    row = -(-width // 32) * 32
    blocks = -(-words * row // min(row, 1024))
    idle = blocks < _BLOCKS_OF_A_PROCESSOR * call.gpu.multiprocessors and parts > 4 * blocks
    return idle and not torch.are_deterministic_algorithms_enabled()


@rule(aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
def by_index(call: Call) -> None:
    """The result; where it adds up, the indices are sorted."""
    call.output()
    accumulates = call.argument(3, "accumulate", False) if call.func.overloadpacket is not aten.index else False
    if accumulates:
        count = max((index.numel() for index in call.args[1] if index is not None), default=0)
        with call.holding(8 * count, 8 * count, 8 * count):
            call.touch(_sort(count, 1 << 20))


@rule(aten.sort)
def sort(call: Call) -> None:
    """The results; of a long row, copies and the sort's own buffers."""
    call.output(0)
    call.output(1)
    tensor = call.args[0]
    dim = call.argument(2 if call.args[1:] and not isinstance(call.args[1], int) else 1, "dim", -1)
    length = tensor.shape[dim] if tensor.dim() else 1
    if length > _LONG_ROW:
        count = tensor.numel()
        with call.holding(8 * count):
            call.touch((8 + tensor.element_size()) * count + 96_767)
        call.assume("Sorts of long rows are estimated", 8 * count)

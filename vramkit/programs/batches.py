"""Batches: how large one is, and the same at another size. Knows tensors in pytrees and dataclasses; runs nothing."""

from __future__ import annotations

import copy
import mmap
import sys
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeGuard, TypeVar, overload

import torch

from ..errors import UsageError
from ..sizes import format_size
from ..torch_internals import pytree

VALUES_KEPT = 64 << 20
"""Up to this many bytes a tensor of a batch keeps its values. A larger one becomes zeros that take no memory of the
host: values that decide about sizes (lengths, masks, offsets) are in small tensors."""

_BACKED = 128 << 10  # below, a mapping of its own costs more than the memory does
_NO_RESERVE = 0x4000  # MAP_NORESERVE, which Python's mmap names from 3.13 on


@dataclass(frozen=True, slots=True, eq=False)
class Fixed:
    """A tensor of a batch that stays as it is when the batch grows. ``fixed`` makes it."""

    tensor: torch.Tensor


_T = TypeVar("_T")


@overload
def fixed(batch: torch.Tensor) -> Fixed: ...
@overload
def fixed(batch: _T) -> _T: ...
def fixed(batch: object) -> object:
    """Mark a tensor of a batch as having no batch dimension: it is the same at every batch size.

    ::

        vramkit.estimate(model, {"tokens": tokens, "mask": vramkit.fixed(mask)})
        vramkit.estimate(detector, vramkit.fixed((images, targets)), step=step)

    Args:
        batch: a tensor, or a pytree of tensors and dataclasses, of which each tensor is marked: a batch without a size,
            such as a list of images or a graph. The model gets them as they are, without the mark.

    Raises:
        UsageError: there is no tensor in it.
    """
    if isinstance(batch, torch.Tensor):
        return Fixed(batch)
    if not any(isinstance(leaf, torch.Tensor) for _, leaf in leaves_of(batch)):
        raise UsageError(
            "vramkit.fixed was called",
            f"with {type(batch).__name__}, in which no tensor is",
            instead="Pass a tensor or what holds some; whatever is none stays as it is anyway",
        )
    return _mapped(lambda leaf: Fixed(leaf) if isinstance(leaf, torch.Tensor) else leaf, batch)


def leaves_of(batch: object, at: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a batch that is no container, and where it is, as Python would write it behind the batch's name.

    Args:
        batch: a pytree; dataclasses in it are looked into, each one once.
        at: where the batch itself is.
    """
    return _leaves(batch, at, set())


def _leaves(batch: object, at: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    for path, leaf in pytree.tree_flatten_with_path(_as_dict(batch))[0]:
        place = at + pytree.keystr(path)
        if not _is_record(leaf):
            yield place, leaf
        elif id(leaf) not in seen:
            seen.add(id(leaf))
            for name, value in _values(leaf):
                yield from _leaves(value, f"{place}.{name}", seen)


def is_made(batch: object) -> TypeGuard[Callable[[int], Any]]:
    """Whether a batch is a callable ``size -> batch``."""
    return callable(batch) and not isinstance(batch, (torch.Tensor, Mapping))


def batch_size_of(batch: object) -> int:
    """Size of dimension 0 of a batch's tensors; 0: none has one.

    Raises:
        UsageError: they disagree, or it is 0.
    """
    sizes: dict[str, tuple[int, ...]] = {}
    for path, leaf in leaves_of(batch):
        if isinstance(leaf, torch.Tensor) and leaf.dim():
            sizes[path or "the tensor"] = tuple(leaf.shape)
    found = {shape[0] for shape in sizes.values()}
    if len(found) > 1 or 0 in found:
        shown = ", ".join(f"{name}: {'x'.join(map(str, shape))}" for name, shape in list(sizes.items())[:6])
        raise UsageError(
            "A batch was given",
            f"the sizes of dimension 0 are {', '.join(map(str, sorted(found)))} ({shown})",
            "Dimension 0 of every tensor has to be the batch, so that it can be made larger and smaller",
            "Wrap a tensor that has no batch dimension: vramkit.fixed(tensor); a batch without a size, as a whole: "
            "vramkit.fixed(batch). Or give a callable that makes one of any size: size -> batch"
            if len(found) > 1
            else "Give a sample",
        )
    return found.pop() if found else 0


def at_size(batch: object, size: int) -> object:
    """The batch at another size: its rows are repeated. Marks of `fixed` are taken off.

    Args:
        batch: a pytree of tensors on the CPU and dataclasses, or a callable ``size -> batch``.
        size: rows; 0: as it is.
    """
    if is_made(batch):
        return _unwrapped(batch(size))
    return _mapped(lambda leaf: _leaf_at(leaf, size), batch)


def moved(batch: Any, device: str) -> Any:
    """The batch with every tensor on a device, as a training loop does it."""
    return _mapped(lambda leaf: _leaf_on(leaf, device), batch, looks_into=lambda record: not hasattr(record, "to"))


def described(batch: object) -> str:
    """How a model is called with a batch, in short: ``model(f32[64,512])``."""
    if is_made(batch):
        return "model(...) with what the callable makes"
    if isinstance(batch, Mapping):
        return f"model({', '.join(f'{name}={_short(value)}' for name, value in batch.items())})"
    return f"model({', '.join(map(_short, batch if isinstance(batch, (tuple, list)) else [batch]))})"


def _short(value: object) -> str:
    if isinstance(value, Fixed):
        value = value.tensor
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    kind = str(value.dtype).removeprefix("torch.")
    for long, short in (("bfloat", "bf"), ("float", "f"), ("uint", "u"), ("int", "i")):
        if kind.startswith(long):
            kind = short + kind[len(long) :]
            break
    return f"{kind}[{','.join(map(str, value.shape))}]"


def _leaf_at(leaf: Any, size: int) -> Any:
    if isinstance(leaf, Fixed):
        return leaf.tensor
    return _rows(leaf, size) if isinstance(leaf, torch.Tensor) and leaf.dim() and size else leaf


def _leaf_on(leaf: Any, device: str) -> Any:
    move: Callable[[str], Any] | None = getattr(leaf, "to", None)
    return leaf if move is None or isinstance(leaf, type) else move(device)


def _unwrapped(batch: Any) -> Any:
    return _mapped(lambda leaf: leaf.tensor if isinstance(leaf, Fixed) else leaf, batch)


def _mapped(
    change: Callable[[Any], Any], batch: Any, *, looks_into: Callable[[object], bool] = lambda record: True
) -> Any:
    """The batch with every leaf changed; a tokenizer's output stays one, with what a step calls of it.

    Args:
        change: what becomes of a leaf.
        batch: a pytree; dataclasses in it keep their class, and one that is in it twice stays one.
        looks_into: whether a dataclass is changed field by field; else it is a leaf.
    """
    copies: dict[int, Any] = {}

    def replaced(leaf: Any) -> Any:
        if not (_is_record(leaf) and looks_into(leaf)):
            return change(leaf)
        if id(leaf) not in copies:
            copies[id(leaf)] = record = copy.copy(leaf)  # before its fields: they may lead back to it
            for name, value in _values(leaf):
                object.__setattr__(record, name, everywhere(value))  # a frozen one, too
        return copies[id(leaf)]

    def everywhere(part: Any) -> Any:
        changed = pytree.tree_map(replaced, _as_dict(part))
        if isinstance(part, UserDict):
            result = copy.copy(part)
            result.data = changed
            return result
        return changed

    return everywhere(batch)


def _is_record(leaf: object) -> bool:
    """Whether it is a dataclass that holds parts of a batch, and holds them in its fields alone."""
    return is_dataclass(leaf) and not isinstance(leaf, (type, Fixed, Mapping))


def _values(record: Any) -> Iterator[tuple[str, Any]]:
    """The fields of a dataclass that are set, by name."""
    return ((each.name, getattr(record, each.name)) for each in fields(record) if hasattr(record, each.name))


def _as_dict(batch: Any) -> Any:
    """Mappings that pytrees don't know, such as a tokenizer's output, as a dict."""
    return dict(batch) if isinstance(batch, Mapping) and not isinstance(batch, dict) else batch


def _rows(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """The tensor with ``size`` rows and its dimensions in the same order in memory."""
    if size == len(tensor):
        return tensor
    shape = (size, *tensor.shape[1:])
    # Dense strides in the order of the sample's own, so that channels_last stays channels_last.
    strides, step = [0] * len(shape), 1
    for dim in sorted(range(len(shape)), key=lambda dim: (tensor.stride(dim), -dim)):
        strides[dim] = step
        step *= shape[dim]
    keeps_values = step * tensor.element_size() <= VALUES_KEPT
    if keeps_values:
        # Devices are named because of torch.set_default_device.
        rows = torch.arange(size, device=tensor.device) % len(tensor)
        result = torch.empty_strided(shape, strides, dtype=tensor.dtype, device="cpu")
        result.copy_(tensor.detach()[rows])
    else:
        result = torch.empty(0, dtype=tensor.dtype, device="cpu")
        result.set_(unbacked(step * tensor.element_size()), 0, shape, tuple(strides))
    return result.requires_grad_(tensor.requires_grad)


def unbacked(size: int) -> torch.UntypedStorage:
    """Zeros on the host that take memory only where somebody writes.

    Args:
        size: bytes.

    Raises:
        UsageError: no stretch of this process's addresses is that long.
    """
    if size < _BACKED or sys.platform == "win32":
        return torch.zeros(size, dtype=torch.uint8, device="cpu").untyped_storage()
    # Without MAP_NORESERVE Linux refuses what is obviously more than the machine has: a model of 65 billion parameters.
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"One tensor was to have {format_size(size)}",
            why="So many addresses are not free in this process",
            instead="No card is that large: ask for a smaller batch",
        ) from error
    return torch.frombuffer(pages, dtype=torch.uint8).untyped_storage()

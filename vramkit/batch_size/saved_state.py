"""Leave no trace: what a training step changes, noted before and put back after. Knows models, optimizers, scalers and
random generators; runs no step.
"""

from __future__ import annotations

import functools
import inspect
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch

from ..profiling.tensors import parts_of
from ..torch_internals.sharded_state import ShardedState

_Undo = Callable[[], None]
_PLAIN = (dict, list, set, deque)
_DEPTH = 4  # functions in functions, lists of lists: how far a step's surroundings are followed


class Surroundings:
    """What a step may change, as it was when this was made.

    Values go to the host's memory meanwhile, so that the device has as much room as the step will find in training; of
    gradients the device's memory goes there too, until `close`.

    Args:
        models: with their parameters, buffers, modes and every other attribute.
        optimizers: with their states and parameter groups.
        step: the user's; models, optimizers, schedulers and gradient scalers that it reaches count too, and so
            do the variables, lists, dicts, sets and deques of its closure and of the globals that it names.

    Known limitations: objects of other kinds that the step changes stay changed: an iterator that went on, a file that
    was written. So do counters of torch's own: the peaks of ``torch.cuda.memory_stats()``, ``num_ooms``.
    """

    def __init__(
        self,
        models: Iterable[torch.nn.Module],
        optimizers: Iterable[torch.optim.Optimizer],
        step: object = None,
    ) -> None:
        self._notes = _Notes()
        self._undo: list[_Undo] = [*_random_states()]
        holders: dict[int, object] = {id(each): each for each in (*models, *optimizers)}
        if step is not None:
            found = _Reach()
            found.look(step, _DEPTH)
            holders |= found.holders
            self._undo += found.undo
        # Before anything is noted: it is as it is between two steps, when all is in shards.
        self._sharded = ShardedState(each for each in holders.values() if isinstance(each, torch.nn.Module))
        self._parameters: dict[int, torch.Tensor] = {}
        for holder in holders.values():
            for part in holder.modules() if isinstance(holder, torch.nn.Module) else (holder,):
                self._notes.note(vars(part))
                if isinstance(part, torch.nn.Module):
                    self._parameters |= {id(each): each for each in part.parameters(recurse=False)}
                elif isinstance(part, torch.optim.Optimizer):
                    self._parameters |= {id(p): p for group in part.param_groups for p in group["params"]}
        self._gradients = [
            (parameter, parameter.grad) for parameter in self._parameters.values() if parameter.grad is not None
        ]
        self._stored = _Stored(gradient for _, gradient in self._gradients)
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """No parameter has a gradient, as in a process that begins."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def put_back(self) -> None:
        """Set everything but the gradients as it was. Can be called as often as needed."""
        _do_all([self._sharded.put_back, self.drop_gradients, self._notes.restore, *self._undo])

    def close(self) -> None:
        """Set everything as it was, gradients too."""
        _do_all([self.put_back, self._stored.bring_back, self._return_gradients])

    def _return_gradients(self) -> None:
        for parameter, gradient in self._gradients:
            parameter.grad = gradient


def _do_all(actions: Iterable[_Undo]) -> None:
    """Do each, in order, also where one before it fails; that error comes last."""
    with ExitStack() as stack:
        for each in reversed([*actions]):
            stack.callback(each)


class _Notes:
    """Contents of containers and values of tensors; what holds them stays the same object."""

    def __init__(self) -> None:
        self._seen: dict[int, object] = {}  # keeps them alive, so that an id stays one's own
        self._undo: list[_Undo] = []

    def note(self, value: object) -> None:
        """Note a container with all that is in it, or a tensor."""
        if id(value) in self._seen:
            return
        if isinstance(value, torch.Tensor):
            self._seen[id(value)] = value
            self._note_tensor(value)
        elif isinstance(value, (*_PLAIN, tuple)):
            self._seen[id(value)] = value
            if not isinstance(value, tuple):
                self._undo.append(_contents(value))
            children: Iterable[object] = value.values() if isinstance(value, dict) else value
            for child in children:
                self.note(child)

    def _note_tensor(self, tensor: torch.Tensor) -> None:
        if tensor.is_meta or torch.nn.parameter.is_lazy(tensor):
            return
        if hasattr(type(tensor), "__tensor_flatten__"):  # one that is made of others, such as a sharded parameter
            for part in parts_of(tensor):
                self.note(part)
            return
        place = tensor.data  # the same memory, whatever ``tensor.data`` becomes later
        if place.layout is not torch.strided:
            self._undo.append(lambda: _set_data(tensor, place))
            for part in parts_of(place):
                self._note_tensor(part)
            return
        held = place  # every number of it once
        for dim, stride in enumerate(() if place.is_nested else place.stride()):
            if not stride and place.shape[dim]:
                held = held.narrow(dim, 0, 1)
        # A view that is kept beside the whole (flat weights of an RNN, parameters in a bucket) is copied once more:
        # memory of the host's, and the same values.
        kept = held.to("cpu", copy=True)

        def undo() -> None:
            with torch.no_grad():
                if tensor.device != place.device or tensor.data_ptr() != place.data_ptr():
                    tensor.data = place
                held.copy_(kept)

        self._undo.append(undo)

    def restore(self) -> None:
        """Set everything noted as it was."""
        _do_all(self._undo)


def _set_data(tensor: torch.Tensor, data: torch.Tensor) -> None:
    tensor.data = data


def _contents(container: Any) -> _Undo:
    """What sets a dict, list, set or deque to what it holds now."""
    if isinstance(container, dict):
        kept = dict(container)

        def undo() -> None:
            if [*map(id, container)] != [*map(id, kept)]:
                container.clear()  # a key that went and came again is not where it was
            for key, value in kept.items():
                container[key] = value  # a Counter's update would add

    else:
        copied = container.copy()

        def undo() -> None:
            container.clear()
            (container.update if isinstance(container, set) else container.extend)(copied)

    return undo


class _Stored:
    """Tensors whose memory on the device is given back for a while; the tensors stay what they are."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        # Several gradients can be views of one bucket.
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage()
            for gradient in tensors
            for tensor in parts_of(gradient)
            if tensor.layout is torch.strided and tensor.untyped_storage().resizable()
        }
        self._kept = [(storage, storage.nbytes(), _bytes_of(storage).cpu().clone()) for storage in storages.values()]
        for storage in storages.values():
            storage.resize_(0)

    def bring_back(self) -> None:
        """Give them memory again, and their values."""
        for storage, size, kept in self._kept:
            storage.resize_(size)
            _bytes_of(storage).copy_(kept)
        self._kept.clear()


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _random_states() -> Iterator[_Undo]:
    state, own, numpys = torch.get_rng_state(), random.getstate(), np.random.get_state()
    yield lambda: torch.set_rng_state(state)
    yield lambda: random.setstate(own)
    yield lambda: np.random.set_state(numpys)
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # torch's
        device = torch.cuda.current_device()
        on_device = torch.cuda.get_rng_state(device)
        yield lambda: torch.cuda.set_rng_state(on_device, device)


class _Reach:
    """What a function can reach and change: its closure, the globals that it names, its object."""

    def __init__(self) -> None:
        self.holders: dict[int, object] = {}
        """Models, optimizers, schedulers and scalers."""
        self.undo: list[_Undo] = []
        self._seen: set[int] = set()

    def look(self, value: object, depth: int) -> None:
        """Look at a value that the step reaches."""
        if depth < 0 or id(value) in self._seen or isinstance(value, (str, bytes, int, float, torch.Tensor)):
            return
        self._seen.add(id(value))
        if isinstance(value, _HOLDERS):
            self.holders[id(value)] = value
        elif isinstance(value, functools.partial):
            for each in (value.func, *value.args, *value.keywords.values()):
                self.look(each, depth)
        elif isinstance(value, MethodType):
            self.look(value.__func__, depth)
            self._look_at_object(value.__self__, depth)
        elif isinstance(value, FunctionType):
            self._look_at_function(value, depth)
        elif isinstance(value, (*_PLAIN, tuple)):
            if not isinstance(value, tuple):
                self.undo.append(_contents(value))
            for each in [*(value.values() if isinstance(value, dict) else value)]:
                self.look(each, depth - 1)
        elif type(value).__module__.partition(".")[0] not in _NOT_THE_PROGRAMS:
            self._look_at_object(value, depth)

    def _look_at_object(self, value: object, depth: int) -> None:
        if isinstance(value, _HOLDERS):
            self.holders[id(value)] = value
        elif hasattr(value, "__dict__") and not inspect.ismodule(value) and not isinstance(value, type):
            self.undo.append(_contents(vars(value)))
            for each in [*vars(value).values()]:
                self.look(each, depth - 1)

    def _look_at_function(self, function: FunctionType, depth: int) -> None:
        self.look(getattr(function, "__wrapped__", None), depth)  # a decorator's: what it wraps, and then its own
        for cell in function.__closure__ or ():
            if (undo := _cell(cell)) is not None:
                self.undo.append(undo)
                self.look(cell.cell_contents, depth - 1)
        # Caches of torch's own must not be turned back.
        is_torchs = (function.__globals__.get("__name__") or "").partition(".")[0] == "torch"
        names = () if is_torchs else _names(function.__code__)
        found = {name: function.__globals__[name] for name in names if name in function.__globals__}
        self.undo.append(lambda: function.__globals__.update(found))
        for value in (*found.values(), *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            if not inspect.ismodule(value):
                self.look(value, depth - 1)


_NOT_THE_PROGRAMS = {*sys.stdlib_module_names, "torch", "numpy", "vramkit"}
"""Packages whose objects keep their own order."""
_HOLDERS = (
    torch.nn.Module,
    torch.optim.Optimizer,
    torch.optim.lr_scheduler.LRScheduler,
    torch.amp.GradScaler,
)


def _names(code: CodeType) -> set[str]:
    """What a function names outside of its own variables, and the functions that it defines."""
    return set(code.co_names).union(*(_names(each) for each in code.co_consts if isinstance(each, CodeType)))


def _cell(cell: CellType) -> _Undo | None:
    """What sets a variable of a closure as it is now; None: it has no value yet."""
    try:
        value = cell.cell_contents
    except ValueError:
        return None

    def undo() -> None:
        cell.cell_contents = value

    return undo

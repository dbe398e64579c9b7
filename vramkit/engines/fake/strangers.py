"""The user's own models, optimizers and tensors, which a program on fakes could reach by a name: it is refused before
it runs or changes one.

Functions that were sent as names, and imports in a step, find what lies in this process. What was there before the run
is told from what came since by the garbage collector, which `apart` lets look at the latter alone. Knows no operator.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ...errors import UsageError
from ...torch_internals import fakes
from ...torch_internals.operators import schema_of
from ...torch_internals.storages import key_of
from .overlay.patches import by_thread, put
from .random_numbers import draw

_OF_MODULES = ("__call__", "__setattr__", "_apply", "load_state_dict", "requires_grad_", "train", "zero_grad")
_OF_OPTIMIZERS = ("add_param_group", "load_state_dict", "zero_grad")


class Strangers:
    """What of the user's own a run must leave alone.

    Args:
        by_collector: whether it was `apart` that told the collector to look at what is new alone. Else the process had
            done so itself, and everything that the collector looks at now is the user's.
    """

    def __init__(self, *, by_collector: bool) -> None:
        self.refusal: UsageError | None = None
        """What the first one that the program touched was answered with."""
        self._known: set[int] = set()  # ids of models and optimizers that arrived, or were made since
        self._own: set[int] = set()  # storages that the run has made on the host
        # Of the user's models and optimizers, and of storages, by id and address: another thread may let go of some,
        # and the run may get their places.
        self._owners: dict[int, weakref.ref[Any]] | None = None
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        if not by_collector:
            self._find(set())

    def guard(self, stack: ExitStack, arrived: frozenset[int]) -> None:
        """Refuse them until the stack closes.

        Args:
            stack: puts back what was there.
            arrived: ids of the program's models and optimizers.
        """
        self._known |= arrived
        for kind, names in ((torch.nn.Module, _OF_MODULES), (torch.optim.Optimizer, _OF_OPTIMIZERS)):
            for name in names:
                put(stack, kind, name, self._asking(getattr(kind, name)))
            put(stack, kind, "__init__", self._noting(kind.__init__))
        begins = register_optimizer_step_pre_hook(by_thread(self._optimizer_begins, _nothing))
        stack.callback(begins.remove)
        convert = getattr(fakes.CONVERT.owner, fakes.CONVERT.name)

        def from_real_tensor(converter: Any, mode: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if tensor.requires_grad and tensor.is_leaf:
                self._check_tensor(tensor)
            return convert(converter, mode, tensor, *args, **kwargs)

        put(stack, fakes.CONVERT.owner, fakes.CONVERT.name, from_real_tensor)

    def run_on_host(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator of which nothing is fake. Raises: UsageError: it would change a tensor of the user's."""
        names, gives_new = _written_by(func)
        for argument, value in _by_name(func, args, kwargs):
            for tensor in _tensors(value):
                if argument in names or (tensor.requires_grad and tensor.is_leaf):
                    self._check_tensor(tensor)
        result = draw(func, args, kwargs)
        if gives_new and self._owners is None:
            self._own.update(key_of(tensor.untyped_storage()) for tensor in _tensors(result))
        return result

    def _noting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def function(owner: Any, *args: Any, **kwargs: Any) -> None:
            self._known.add(id(owner))
            original(owner, *args, **kwargs)

        return function

    def _asking(self, original: Callable[..., Any]) -> Callable[..., Any]:
        known = self._known

        def function(owner: Any, *args: Any, **kwargs: Any) -> Any:
            if id(owner) not in known:
                self._check_owner(owner)
            return original(owner, *args, **kwargs)

        return function

    def _optimizer_begins(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        if id(optimizer) not in self._known:
            self._check_owner(optimizer)

    def _check_owner(self, owner: Any) -> None:
        if self._owners is None:
            self._find({id(each) for each in gc.get_objects()})
        assert self._owners is not None
        if _is_there(self._owners, id(owner), owner) and _has_state(owner):
            raise self._refused(owner)

    def _check_tensor(self, tensor: torch.Tensor) -> None:
        storage = None if isinstance(tensor, fakes.FakeTensor) else _storage_of(tensor)
        if storage is None or key_of(storage) in self._own:
            return
        if self._owners is None:
            self._find({id(each) for each in gc.get_objects()})
        if _is_there(self._storages, key_of(storage), storage):
            raise self._refused(tensor)

    def _find(self, new: set[int]) -> None:
        """Find what is the user's: all but ``new``, ids of what came with the run."""
        if new:
            gc.unfreeze()
        self._owners = {}
        kinds: dict[type, type | None] = {}
        for each in gc.get_objects():
            kind = type(each)
            if kind not in kinds:
                of = (torch.Tensor, torch.nn.Module, torch.optim.Optimizer)
                kinds[kind] = next((base for base in of if issubclass(kind, base)), None)
            if kinds[kind] is None or id(each) in new:
                continue
            if kinds[kind] is not torch.Tensor:
                self._owners[id(each)] = weakref.ref(each)
            elif (storage := _storage_of(each)) is not None:
                self._storages[key_of(storage)] = weakref.ref(storage)

    def _refused(self, found: Any) -> UsageError:
        error = UsageError(
            "vramkit.estimate was to run a step on fake tensors",
            f"it uses {_described(found)} of this process, and not a copy of it",
            "The step finds it by a name, and only what it refers to by variables was copied. Nothing of it was run or "
            "changed",
            "Pass every model and optimizer that the step uses, and let the step refer to them by variables of the "
            "script, of its module or of the function around it, not by an import in the step",
        )
        self.refusal = self.refusal or error
        return error


def _has_state(owner: Any) -> bool:
    """Whether to use it changes something: a loss or an activation that a module holds for all is no matter."""
    return not isinstance(owner, torch.nn.Module) or next(owner.parameters(), None) is not None


def _is_there(known: Mapping[int, weakref.ref[Any]], key: int, found: object) -> bool:
    ref = known.get(key)
    return ref is not None and ref() is found


def _storage_of(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """None: it has none of its own."""
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)


@cache
def _written_by(operator: Any) -> tuple[frozenset[str], bool]:
    """The arguments that an operator writes to, and whether its results have memory of their own."""
    schema = schema_of(operator)
    written = frozenset(each.name for each in schema.arguments if each.alias_info and each.alias_info.is_write)
    is_view = any(each.alias_info for each in schema.returns)
    return written, not is_view or operator is torch.ops.aten.lift_fresh.default


def _by_name(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    yield from zip((each.name for each in schema_of(operator).arguments), args, strict=False)
    yield from kwargs.items()


def _described(found: Any) -> str:
    kind = type(found).__name__
    shape = f" of shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else ""
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is found:
                return f"{module.__name__}.{name}, the {kind}{shape}"
    return f"the {kind}{shape}"


def _nothing(*args: object, **kwargs: object) -> None:
    pass

"""Programs by value: a model, its batch, optimizer and step as bytes that another process makes the same objects of.

Everything goes into one pickle, so that a step still closes over the very model and optimizer that are sent beside it.
Of tensors only shapes go, never a model's values: parameters and buffers arrive as zeros that take no memory, whatever
device they were on, ``meta`` included, and storages that were shared are shared again. Other tensors keep their values
up to 64 MiB each, because lengths and masks decide about sizes.

An optimizer arrives without its state, as a fresh process has none.
"""

from __future__ import annotations

import importlib
import io
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch.nn.utils import parametrize

from ..errors import UsageError
from ..torch_internals import storages
from ..torch_internals.modules import is_compiled
from . import device_names, hooks, reducers
from .batches import VALUES_KEPT, Fixed, leaves_of
from .program import Program, functions_of
from .unpacking import arrive_on_cuda

INSTALL_CLOUDPICKLE = (
    "Install cloudpickle, which sends lambdas, local functions and a script's own classes: pip install "
    "'vramkit[estimate]'"
)

_OTHERS_NOTE = (
    "The optimizer has none of the model's parameters, which require gradients: was it made for this model, or for a "
    "copy of it?"
)
_DEVICE_NOTE = (
    'A torch.device("cpu") was taken as "cuda": torch finds no CUDA device in this process. Where the CPU is meant, '
    'write .to("cpu") or .cpu().'
)
_KIND = "storage of a tensor"


@dataclass(frozen=True)
class Parcel:
    """A program as bytes."""

    content: bytes
    notes: tuple[str, ...]
    """What had to be assumed, in sentences."""
    move_batch: bool
    """Some tensor of the batch was on a CUDA device: the user's step gets its batch there."""
    by_name: bool
    """Functions and classes were sent by name, because there is no cloudpickle."""
    is_compiled: bool
    """Something in it comes from ``torch.compile``."""


def pack(program: Program, *, apart: bool = False) -> Parcel:
    """Make bytes of a program. Nothing of the user's is changed.

    Args:
        program: what to send.
        apart: it will be opened in this very process, so that functions must not go as names: they would find the
            user's own objects beside them.

    Raises:
        UsageError: something in it can't be sent; the text says which part, and why.
    """
    cloudpickle = _cloudpickle()
    with ExitStack() as stack:
        for function in functions_of(program):
            stack.enter_context(_by_value(function, cloudpickle, always=apart))
        sender = _make_sender(program, cloudpickle)
        says_cpu = not torch.cuda.is_available() and any(map(device_names.is_used, functions_of(program)))
        if says_cpu:
            sender.notes[device_names.NOTE] = None
        if _trains_others(program):
            sender.notes[_OTHERS_NOTE] = None
        sender.notes.update(dict.fromkeys(hooks.notes(program.optimizers)))
        if program.hooks and not _can_be_sent(program, program.hooks, cloudpickle):
            sent = tuple(hook for hook in program.hooks if _can_be_sent(program, hook, cloudpickle))
            sender.notes[hooks.left_out(hook for hook in program.hooks if hook not in sent)] = None
            program = replace(program, hooks=sent)
        try:
            sender.dump((program, says_cpu))
        except Exception as error:  # whatever a user's __getstate__ raises
            raise _refusal(program, cloudpickle, error) from error
    move = any(tensor.device.type == "cuda" for tensor in _tensors_of(program.batch))
    return Parcel(
        sender.file.getvalue(), tuple(sender.notes), move, by_name=cloudpickle is None, is_compiled=sender.is_compiled
    )


def _trains_others(program: Program) -> bool:
    """Whether it has optimizers, and none of them has a parameter of its models, although these are not frozen."""
    own = [parameter for model in program.models.values() for parameter in model.parameters()]
    trained = {id(parameter) for parameter in _trained(program)}
    is_frozen = not any(parameter.requires_grad for parameter in own)
    return bool(trained) and not is_frozen and trained.isdisjoint(map(id, own))


def _trained(program: Program) -> Iterator[torch.Tensor]:
    for optimizer in program.optimizers:
        for group in optimizer.param_groups:
            yield from group["params"]


# -- sending ----------------------------------------------------------------------------------------------------------


def _cloudpickle() -> Any | None:
    """The optional package that sends what has no importable name; None: it is not installed."""
    try:
        return importlib.import_module("cloudpickle")
    except ImportError:
        return None


def _tensors_of(batch: object) -> Iterator[torch.Tensor]:
    for _, leaf in leaves_of(batch):
        tensor = leaf.tensor if isinstance(leaf, Fixed) else leaf
        if isinstance(tensor, torch.Tensor):
            yield tensor


def _make_sender(program: Program, cloudpickle: Any | None) -> Any:
    base: type[Any] = pickle.Pickler if cloudpickle is None else cloudpickle.Pickler
    held = [t for model in program.models.values() for t in (*model.parameters(), *model.buffers())]
    valueless = {_key(tensor) for tensor in held if _is_plain(tensor)}
    moved_anyway = valueless | {_key(tensor) for tensor in _tensors_of(program.batch) if _is_plain(tensor)}
    has_cuda = torch.cuda.is_available()
    # Latents, prompts, an image: what optimizers train and no model has would be on the device if this process had one.
    loose = set() if has_cuda else {_key(p) for p in _trained(program) if _is_plain(p)} - moved_anyway
    valueless |= loose

    class Sender(base):  # type: ignore[misc] # which of the two it is, is known only now
        def __init__(self) -> None:
            self.file = io.BytesIO()
            self.notes: dict[str, None] = {}
            self.is_compiled = False
            self.sent: set[int] = set()
            self.kept: list[object] = []  # a storage's address is its name only as long as it lives
            self.inner: dict[int, object] = {}  # tensors that are a parameter's data, and arrive as that
            super().__init__(self.file, protocol=5)

        def persistent_id(self, value: Any) -> object:
            if not isinstance(value, torch.storage.TypedStorage):
                return None
            storage = storages.untyped(value)
            key = storages.key_of(storage)
            data = None
            if key not in self.sent:
                self.kept.append(storage)
                self.sent.add(key)
                if key not in valueless and storage.device.type == "cpu" and storage.nbytes() <= VALUES_KEPT:
                    data = _bytes_of(storage)
            return _KIND, key, storage.nbytes(), value.dtype, data

        def reducer_override(self, value: Any) -> Any:
            self.is_compiled |= isinstance(value, (types.FunctionType, torch.nn.Module)) and is_compiled(value)
            if isinstance(value, torch.Tensor) and _is_plain(value):
                kind = value.device.type
                if kind == "meta" and type(value) is torch.Tensor:
                    return _rebuild_of(value)
                key = _key(value)
                if ((kind == "cuda" and key not in moved_anyway) or key in loose) and id(value) not in self.inner:
                    function, arguments = value.__reduce_ex__(2)  # type: ignore[no-untyped-call] # torch's
                    if isinstance(value, torch.nn.Parameter):
                        self.inner[id(arguments[0])] = arguments[0]
                    return arrive_on_cuda, (function, *arguments)
            elif isinstance(value, torch.optim.Optimizer):
                return reducers.without_state(value)
            elif isinstance(value, types.CodeType) and cloudpickle is not None:
                # cloudpickle 3.1.3 leaves out where code comes from, and a traceback would show no line of it.
                return reducers.code_from, (value.co_filename, *self.dispatch_table[types.CodeType](value))
            elif reducers.is_module_of_its_own_class(value):  # cloudpickle finds it among those that a function uses
                return importlib.import_module, (value.__name__,)
            elif isinstance(value, torch.nn.Module) and parametrize.is_parametrized(value):
                return reducers.as_parametrized(value)
            elif isinstance(value, torch.device) and value.type == "cpu" and not has_cuda:
                # `device = torch.device("cuda" if torch.cuda.is_available() else "cpu")`, in a step that moves a batch.
                self.notes[_DEVICE_NOTE] = None
                return torch.device, ("cuda",)
            elif isinstance(value, torch.Generator) and value.device.type == "cpu":
                return reducers.as_generator(value)
            elif isinstance(value, torch.amp.GradScaler) and not has_cuda and not value.is_enabled():
                self.notes[
                    "A GradScaler was taken as enabled: torch disables it where it finds no CUDA device, as here."
                ] = None
                return reducers.enabled_scaler, ()
            inherited = getattr(super(), "reducer_override", None)
            return NotImplemented if inherited is None else inherited(value)

    return Sender()


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is one stretch of memory: subclasses bring their own way of being pickled."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and not tensor.is_quantized
    )


def _key(tensor: torch.Tensor) -> int:
    return storages.key_of(tensor.untyped_storage())


def _rebuild_of(tensor: torch.Tensor) -> tuple[Callable[..., object], tuple[object, ...]]:
    """How torch pickles a tensor with a storage. Of ``meta`` it leaves that out, and with it what shares memory."""
    return storages.rebuild_tensor, (
        storages.typed(tensor.untyped_storage(), tensor.dtype),
        tensor.storage_offset(),
        tuple(tensor.size()),
        tensor.stride(),
        tensor.requires_grad,
        OrderedDict(),  # of hooks
    )


def _bytes_of(storage: torch.UntypedStorage) -> bytes:
    if not storage.nbytes():
        return b""
    return torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage).numpy().tobytes()


@contextmanager
def _by_value(function: object, cloudpickle: Any | None, *, always: bool) -> Iterator[None]:
    """Send a function's module by value while this holds, if its functions use models or optimizers that it holds.

    A function of a module that can be imported goes as a name. The other process would then import the module, whose
    code builds a second model there, and the step would train that one.
    """
    module = (
        sys.modules.get(function.__module__) if _is_named(function) and (always or _uses_globals(function)) else None
    )
    if module is None or cloudpickle is None or module.__name__ in cloudpickle.list_registry_pickle_by_value():
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _is_named(function: object) -> TypeGuard[types.FunctionType]:
    """Whether it is a function of a module of the user's that can be imported."""
    if not isinstance(function, types.FunctionType) or function.__module__ in (None, "__main__"):
        return False
    return function.__module__.partition(".")[0] not in ("torch", "torchvision", "vramkit")


def _uses_globals(function: types.FunctionType) -> bool:
    held = (torch.nn.Module, torch.optim.Optimizer)
    return any(isinstance(value, held) for value in function.__globals__.values())


def _refusal(program: Program, cloudpickle: Any | None, error: Exception) -> UsageError:
    """What to say when a program can't be sent."""
    parts: Mapping[str, object] = {
        "model": program.models,
        "batch": program.batch,
        "optimizer": program.make_optimizer or program.optimizers,
        "loss": program.loss,
        "step": program.step,
    }
    part = next((name for name, value in parts.items() if not _can_be_sent(program, value, cloudpickle)), "program")
    hint = (
        INSTALL_CLOUDPICKLE
        if cloudpickle is None
        else "Keep what can't be sent (open files, locks, loggers, iterators of a loader) out of what it uses, or let "
        "the step make it when it runs"
    )
    return UsageError(
        "vramkit.estimate was to run a training step",
        f"its {part} can't be sent: {type(error).__name__}: {error}",
        "The step runs in a process of its own, so that this one stays as it is",
        hint,
    )


def _can_be_sent(program: Program, part: object, cloudpickle: Any | None) -> bool:
    try:
        with _by_value(part, cloudpickle, always=False):
            _make_sender(program, cloudpickle).dump(part)
    except Exception:
        return False
    return True


# -- receiving --------------------------------------------------------------------------------------------------------

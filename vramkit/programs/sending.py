"""How the objects of a program become bytes: what of a tensor is sent, and what goes in place of an object.

Knows tensors, and objects that pickles get wrong; which programs there are and what is refused, `packing` knows.
"""

from __future__ import annotations

import importlib
import io
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle  # type: ignore[import-untyped] # which has none
import torch
from torch.nn.utils import parametrize

from ..torch_internals import storages
from ..torch_internals.modules import chooses_by_time, compiled_by, compiler_of, is_compiled
from . import reducers
from .batches import VALUES_KEPT, Fixed, leaves_of
from .program import Program
from .unpacking import arrive_on_cuda

_DEVICE_NOTE = (
    'A torch.device("cpu") was taken as "cuda": torch finds no CUDA device in this process. Where the CPU is meant, '
    'write .to("cpu") or .cpu().'
)
_SCALER_NOTE = (
    "A GradScaler counts as enabled where the step is seen to work in float16: torch disables it where it finds no "
    "CUDA device, as here."
)
_KIND = "storage of a tensor"


class Sender(cloudpickle.Pickler):  # type: ignore[misc] # which has no types
    """Writes what `unpack` reads.

    Args:
        program: what is sent, or holds it: of its models' tensors only shapes go.
    """

    def __init__(self, program: Program) -> None:
        self.file = io.BytesIO()
        self.notes: dict[str, None] = {}
        """What had to be assumed, in sentences."""
        self.is_compiled = False
        """Something that was sent comes from ``torch.compile``."""
        self.is_autotuned = False
        """And is to choose its kernels by their times (``mode="max-autotune"``)."""
        held = [t for model in program.models.values() for t in (*model.parameters(), *model.buffers())]
        self._has_cuda = torch.cuda.is_available()
        valueless = {_key(tensor) for tensor in held if _is_plain(tensor)}
        self._moved_anyway = valueless | {_key(tensor) for tensor in tensors_of(program.batch) if _is_plain(tensor)}
        # Latents, prompts, an image: what optimizers train and no model has would be on the device if this process had
        # one.
        trained = {_key(parameter) for parameter in trained_by(program) if _is_plain(parameter)}
        self._loose = set() if self._has_cuda else trained - self._moved_anyway
        self._valueless = valueless | self._loose
        self._sent: set[int] = set()
        self._kept: list[object] = []  # a storage's address is its name only as long as it lives
        self._inner: dict[int, object] = {}  # tensors that are a parameter's data, and arrive as that
        super().__init__(self.file, protocol=5)

    def persistent_id(self, value: Any) -> object:
        if not isinstance(value, torch.storage.TypedStorage):
            return None
        storage = storages.untyped(value)
        key = storages.key_of(storage)
        data = None
        if key not in self._sent:
            self._kept.append(storage)
            self._sent.add(key)
            if key not in self._valueless and storage.device.type == "cpu" and storage.nbytes() <= VALUES_KEPT:
                data = _bytes_of(storage)
        return _KIND, key, storage.nbytes(), value.dtype, data

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, (types.FunctionType, torch.nn.Module)) and is_compiled(value):
            self.is_compiled = True
            self.is_autotuned |= chooses_by_time(value)
        if isinstance(value, torch.Tensor) and _is_plain(value):
            kind = value.device.type
            if kind == "meta" and type(value) is torch.Tensor:
                return _rebuild_of(value)
            key = _key(value)
            is_moved = (kind == "cuda" and key not in self._moved_anyway) or key in self._loose
            if is_moved and id(value) not in self._inner:
                function, arguments = value.__reduce_ex__(2)  # type: ignore[no-untyped-call] # torch's
                if isinstance(value, torch.nn.Parameter):
                    self._inner[id(arguments[0])] = arguments[0]
                return arrive_on_cuda, (function, *arguments)
        elif isinstance(value, torch.optim.Optimizer):
            return reducers.without_state(value)
        elif isinstance(value, types.CodeType):
            # cloudpickle 3.1.3 leaves out where code comes from, and a traceback would show no line of it.
            return reducers.code_from, (value.co_filename, *self.dispatch_table[types.CodeType](value))
        elif reducers.is_module_of_its_own_class(value):  # cloudpickle finds it among those that a function uses
            return importlib.import_module, (value.__name__,)
        elif isinstance(value, torch.nn.Module) and parametrize.is_parametrized(value):
            return reducers.as_parametrized(value)
        elif isinstance(value, torch.nn.Module) and (compiled := reducers.as_compiled(value)) is not None:
            return compiled
        elif isinstance(value, types.FunctionType) and (parts := compiled_by(value)) is not None:
            return reducers.compiled_again, parts
        elif (compiler := compiler_of(value)) is not None:
            return reducers.compiler_again, compiler
        elif isinstance(value, torch.device) and value.type == "cpu" and not self._has_cuda:
            # `device = torch.device("cuda" if torch.cuda.is_available() else "cpu")`, in a step that moves a batch.
            self.notes[_DEVICE_NOTE] = None
            return torch.device, ("cuda",)
        elif isinstance(value, torch.Generator) and value.device.type == "cpu":
            return reducers.as_generator(value)
        elif isinstance(value, torch.amp.GradScaler) and not self._has_cuda and not value.is_enabled():
            self.notes[_SCALER_NOTE] = None
            return reducers.HalfScaler, ()
        elif (parts := reducers.as_wrapper(value) or reducers.as_global(value)) is not None:
            return parts
        return super().reducer_override(value)


def tensors_of(batch: object) -> Iterator[torch.Tensor]:
    """Every tensor of a batch."""
    for _, leaf in leaves_of(batch):
        tensor = leaf.tensor if isinstance(leaf, Fixed) else leaf
        if isinstance(tensor, torch.Tensor):
            yield tensor


def trained_by(program: Program) -> Iterator[torch.Tensor]:
    """What a program's optimizers train."""
    for optimizer in program.optimizers:
        for group in optimizer.param_groups:
            yield from group["params"]


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

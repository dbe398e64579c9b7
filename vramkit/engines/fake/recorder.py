"""What a program on fake tensors asks of the device's allocator: a dispatch mode that serves it from a simulated one.

Knows storages, when they are born and when they die. What a kernel takes beside its results is in ``kernels/``, where a
real tensor would be worked on in place in ``in_place.py``.
"""

from __future__ import annotations

import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from ...allocator import Block, DeviceCachingAllocator, SimulatedOutOfMemory
from ...attribution.recording import NO_MODULE, Recording
from ...gpus import GPU, cublas_workspace
from ...profiling.hooks import Hooks
from ...profiling.marks import Marks, padded
from ...profiling.operators import operator_seen
from ...sizes import format_size
from ...torch_internals.dispatch import VIEWS, TorchDispatchMode, below_python, excluding
from ...torch_internals.fakes import FakeTensor
from ...torch_internals.operators import holds_everywhere, local_scalar
from ...torch_internals.storages import key_of
from .in_place import CORRECTIONS, forget_device_questions, note_device_question, taken_apart
from .kernels import check_types, rule_of
from .kernels.call import Call
from .known_values import KnownValues
from .overlay.patches import by_thread
from .random_numbers import draw
from .result_cache import ResultCache

_Storage = torch.UntypedStorage
_DEVICE = torch.ops.prim.device.default


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's
    """Gives every storage on the device a block while it lives.

    It belongs above a ``FakeTensorMode``. An operator of which nothing is fake runs for real: what a program computes
    on the host (lengths, an optimizer's step counters) keeps its values.

    Args:
        allocator: serves the requests, from now on.
        gpu: the card, whose kernels are imitated.
        detailed: keep the history, and lay down marks.
    """

    def __init__(self, allocator: DeviceCachingAllocator, gpu: GPU, *, detailed: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's
        self.allocator = allocator
        self.gpu = gpu
        self.detailed = detailed
        self.marks = Marks(self._place)
        self.hooks = Hooks(self.marks, self.locate, choose=by_thread, locate_held=self.locate)
        self.run_on_host: Callable[..., Any] = draw
        """Runs an operator of which nothing is fake."""
        self.operators: list[str] = []
        """The operator during which each event of the allocator's history happened, or after which."""
        self._operator = ""
        self._seen: list[str] = []  # the same, as a tape names it, with the node of a backward
        self._seen_now = ""
        self._blocks: dict[int, tuple[weakref.ref[_Storage], Block | None, int]] = {}  # and bytes of the storage
        self._positions = [0]
        self._mark_of: list[int] = []
        self._sizes: list[int] = []
        self._results = ResultCache()
        self.known = KnownValues()
        self._check: weakref.ref[torch.Tensor] | None = None  # of values: its result is yes
        self._lock = threading.RLock()
        self._busy = False
        self._waiting: list[Block] = []
        self.assumed: dict[str, int] = {}
        """What is only a bound, and how many bytes at most are in question at a moment."""
        self._remarks: dict[str, None] = {}
        self.workspaces: set[tuple[int, bool]] = set()
        """Bytes of the workspaces that libraries keep, each for the thread that runs forwards (False) or the autograd
        thread (True)."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would wrap the dispatch in two more calls

    # -- operators ----------------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _is_fake(args) and not (kwargs and (_is_fake(kwargs.values()) or _on_device(kwargs.get("device")))):
            if kwargs.get("pin_memory"):
                kwargs = {**kwargs, "pin_memory": False}  # that would ask a driver, and is the host's memory anyway
            with below_python():
                return self.run_on_host(func, args, kwargs)
        if func is _DEVICE:
            note_device_question(args[0])
            return args[0].device
        if func is local_scalar and (twin := self.known.of(args[0])) is not None:
            with below_python():
                return twin.item()
        if func is local_scalar and _is_asked_by_torch():
            kind = args[0].dtype
            if kind is torch.bool:
                return self._check is not None and args[0] is self._check()
            return 0.0 if kind.is_floating_point else 0
        if torch.is_inference_mode_enabled():
            # Without autograd nobody has taken composite operators apart by now. Views in them remember whether what
            # they look at has a gradient: products are computed in another way then.
            with self, excluding(VIEWS, False):
                result = taken_apart(func, args, kwargs)
            if result is not NotImplemented:
                return result
        self._operator = func.__name__
        if self.detailed:
            self._seen_now = operator_seen(func, sys._getframe().f_back)  # noqa: SLF001 - public, whatever its name
        correction = CORRECTIONS.get(func)
        if correction is not None:
            func, args, kwargs = correction(func, args, kwargs)
        forget_device_questions(func)
        check_types(func, args, kwargs)
        result = self.compute(func, args, kwargs)
        found = rule_of(func)
        if found is not None:
            rule, bind = found
            call = Call(self, func, result)
            rule(call, *bind(args, kwargs))
            result = call.result
        if func is holds_everywhere:
            self._check = weakref.ref(result)
        self.known.follow(func, args, kwargs, result)
        self._see(result)
        return result

    def compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operator's result, without its memory."""
        results = self._results.of_each if func.__name__.startswith("_foreach_") else self._results
        return results(func, args, kwargs)

    def _see(self, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            if _is_on_gpu(value):
                self.meet(value)
        elif isinstance(value, (tuple, list)):
            for item in value:
                self._see(item)

    def meet(self, tensor: torch.Tensor, size: int | None = None) -> None:
        """Give a tensor's storage a block, unless it has one.

        Args:
            tensor: on the device.
            size: bytes; None: as the storage says.
        """
        storage = tensor.untyped_storage()
        key, there = key_of(storage), storage.nbytes()
        ref, old, was = self._blocks.get(key, (None, None, 0))
        is_new = ref is None or ref() is not storage
        if is_new or there > was:
            block = self.take(there if size is None else size)
            if not is_new:  # resize_(), or a result that was too small: its old memory goes when the new is there
                self.give(old)
            self._blocks[key] = (weakref.ref(storage, lambda ref: self._died(key, ref)), block, there)

    def _died(self, key: int, ref: weakref.ref[_Storage]) -> None:
        known = self._blocks.get(key)
        if known is not None and known[0] is ref:
            del self._blocks[key]
            self.give(known[1])

    def locate(self, tensor: torch.Tensor) -> int:
        """Where a tensor's memory begins; 0 where the device has none of it."""
        if not isinstance(tensor, FakeTensor) or not _is_on_gpu(tensor):
            return 0
        known = self._blocks.get(key_of(tensor.untyped_storage()))
        return 0 if known is None or known[1] is None else known[1].address

    def data_ptr(self, tensor: torch.Tensor) -> int:
        """``tensor.data_ptr()``, on the device."""
        start = self.locate(tensor)
        return start + int(tensor.storage_offset()) * tensor.element_size() if start else 0

    # -- the allocator ------------------------------------------------------------------------------------------------

    def take(self, size: int) -> Block | None:
        """A block of the device. Raises: torch.OutOfMemoryError."""
        with self._lock:
            self._busy = True
            block = None
            try:
                block = self.allocator.malloc(size)
            except SimulatedOutOfMemory as error:
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {format_size(error.needed)}. {error}"
                ) from error
            finally:
                self._busy = False
                self._note(0 if block is None else block.size)
                self._return_waiting()
            return block

    def take_workspace(self, size: int, *, in_backward: bool) -> None:
        """Take a workspace that a library keeps, unless the thread's handle has one of that size."""
        if (size, in_backward) not in self.workspaces:
            self.workspaces.add((size, in_backward))
            self.take(size)

    def give(self, block: Block | None) -> None:
        """Give a block back; storages die at any moment, also while another one is being served."""
        if block is None:
            return
        with self._lock:
            self._waiting.append(block)
            if not self._busy:
                self._return_waiting()

    def empty_cache(self) -> None:
        """``torch.cuda.empty_cache()``."""
        with self._lock:
            self.allocator.empty_cache()
            self._note()

    def _return_waiting(self) -> None:
        while self._waiting:
            self._busy = True
            self.allocator.free(self._waiting.pop(0))
            self._busy = False
            self._note()

    def _note(self, taken: int = 0) -> None:
        """Remember what was going on at the allocator's last events, of which the very last took so many bytes."""
        if not self.detailed:
            return
        new = len(self.allocator.events) - len(self._mark_of)
        self._mark_of += [len(self.marks.entries)] * new
        self.operators += [self._operator] * new
        self._seen += [self._seen_now] * new
        self._sizes += [0] * new
        if taken:
            self._sizes[-1] = taken

    def _place(self, _number: str) -> None:
        self._positions.append(len(self._mark_of))

    def stop(self) -> None:
        """What happens from now on is not the program's."""
        self.allocator.history = self.detailed = False

    def lives(self) -> str:
        """Which fakes are still there, in short; empty: none."""
        sizes = [block.requested for _, block, _ in list(self._blocks.values()) if block is not None]
        return f"{len(sizes)} tensors of {format_size(sum(sizes))}" if sizes else ""

    def notes(self) -> list[str]:
        """What the result assumes, in sentences."""
        bounds = [f"{what}: up to {format_size(size)} at a moment." for what, size in self.assumed.items() if size]
        return [*self._remarks, *bounds]

    def assume(self, what: str, size: int) -> None:
        """Say in the prediction's notes what is only a bound.

        Args:
            what: a sentence without its full stop.
            size: bytes that are in question in one call of an operator.
        """
        self.assumed[what] = max(self.assumed.get(what, 0), size)

    def remark(self, note: str) -> None:
        """Say something in the prediction's notes, a sentence, once."""
        self._remarks[note] = None

    def recording(self, alloc_conf: str) -> Recording:
        """Everything that was recorded."""
        columns = np.array(self.allocator.events[: len(self._mark_of)], np.int64).reshape(-1, 4)
        action, address, size, stream = columns.T
        return Recording(
            device="cuda:0",
            action=action.astype(np.uint8),
            address=address,
            size=size,
            stream=stream,
            time=np.arange(len(columns)),
            block=np.array(self._sizes, np.int64),
            mark=np.array(self._mark_of, np.int64),
            operator=self._seen,
            at_module=np.full(len(columns), NO_MODULE, np.int32),
            position=np.array(padded(self._positions, len(self.marks.kept) + 1), np.int64),
            alloc_conf=alloc_conf,
            tie_break=self.allocator.tie_break,
            workspace_sizes=frozenset({cublas_workspace(self.gpu), *(size for size, _ in self.workspaces)}),
            outside=self.gpu.context,
            capacity=self.gpu.memory,
        )


def _is_fake(values: Iterable[Any]) -> bool:
    """Whether a fake tensor is among an operator's arguments, which are tensors or flat lists of them."""
    for value in values:
        if isinstance(value, FakeTensor):
            return True
        if isinstance(value, (list, tuple)) and any(isinstance(item, FakeTensor) for item in value):
            return True
    return False


def _is_on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cuda"


def _is_asked_by_torch() -> bool:
    """Whether code of torch's own, such as an optimizer, looks at a value: it gets zero, as on a virtual GPU."""
    frame = inspect.currentframe()
    for _ in range(2):  # to what called the mode: no frame for the autograd thread's C++, which looks for NaN
        frame = frame and frame.f_back
    while frame is not None and frame.f_globals.get("__name__") == FakeTensor.__module__:  # tolist(), for its caller
        frame = frame.f_back
    return frame is None or str(frame.f_globals.get("__name__", "")).startswith("torch.")


def _on_device(device: Any) -> bool:
    """Whether an operator makes something on the device; under the overlay C++ calls it ``meta``."""
    return device is not None and torch.device(device).type in ("cuda", "meta")

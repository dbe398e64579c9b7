"""Collectives of pickled objects, and small tensors from rank to rank, or from one to all, such as shapes. Their values
are what programs go on with, and NCCL's stand-in moves none between processes: so they are handed over in the job's
store, beside the collective, which takes the memory that it takes.
"""

from __future__ import annotations

import inspect
import pickle
from collections import Counter
from collections.abc import Callable, Collection
from functools import wraps
from typing import Any

import torch
from torch import distributed
from torch.distributed import distributed_c10d

from ..errors import UsageError
from ..torch_internals.distributed import default_store, device_of_objects
from ..virtual_gpu import current
from .store import absent

Call = Callable[..., Any]
_SUFFIX = ".objects"  # a name that ends with a number may be that of an id of NCCL's

Values = dict[str, Any]
"""The arguments of a call, by their names."""


_CONSOLIDATING = "ZeroRedundancyOptimizer.consolidate_state_dict"
_SMALL = 4096  # bytes of a tensor that is handed over


class Objects:
    """Takes the place of torch's collectives of objects; and of ``send``, ``recv``, their like that return at once, and
    ``broadcast`` of small tensors.

    Args:
        played: the ranks of the job that are there; None: all of them. Of the others each sends what the rank sends
            that asks.
    """

    def __init__(self, played: Collection[int] | None) -> None:
        self._played = played
        self._done: Counter[str] = Counter()
        self._sent: dict[tuple[object, ...], torch.Tensor] = {}  # to absent ranks
        self._batch: list[Callable[[], None]] | None = None  # what receives of a batch that is begun still take

    def install(self) -> None:
        """Put them in their place, from now on."""
        ways: dict[str, Callable[[Call, Values], Any]] = {
            "broadcast_object_list": self._broadcast,
            "scatter_object_list": self._scatter,
            "all_gather_object": self._gather,
            "gather_object": self._gather,
            "send_object_list": self._send,
            "recv_object_list": self._receive,
            "send": self._send_tensor,
            "recv": self._receive_tensor,
            "isend": self._send_tensor,
            "irecv": self._receive_later,
            "broadcast": self._broadcast_tensor,
            "barrier": self._barrier,
        }
        wrapped = {name: self._wrap(getattr(distributed, name), way) for name, way in ways.items()}
        wrapped["batch_isend_irecv"] = self._batched(distributed.batch_isend_irecv)
        for name, call in wrapped.items():
            setattr(distributed, name, call)
            setattr(distributed_c10d, name, call)

    def _wrap(self, original: Call, way: Callable[[Call, Values], Any]) -> Call:
        signature = inspect.signature(original)

        @wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            values = bound.arguments
            group = values["group"]
            is_member = distributed.is_initialized() and distributed.get_rank(group) >= 0
            if not is_member or (self._played is None and _device(values).type == "cpu"):  # gloo moves its values
                return original(*args, **kwargs)
            return way(original, values)

        return call

    def check_state(self, sender: int) -> None:
        """Raises: UsageError: ``ZeroRedundancyOptimizer`` is to get a part of its state from an absent rank."""
        if not self._is_played(None, sender):
            raise self._absent(_CONSOLIDATING, "a part of its state", sender)

    def refuse_state(self, sender: int) -> None:
        """Raises: UsageError: a part of its state did not arrive."""
        raise UsageError(
            f"{_CONSOLIDATING} was called",
            f"the state of rank {sender} is larger than what is copied to a virtual GPU",
            instead="Let larger copies be made, such as --copy-limit '1 GiB'; the state has to come through whole",
        )

    def _absent(self, asked: str, what: str, sender: int) -> UsageError:
        assert self._played is not None
        found = f"rank {distributed.get_rank()} is to get {what} from rank {sender}, which is not played"
        return absent(f"{asked} was called", found, [*self._played, sender])

    def _is_played(self, group: Any, rank: int) -> bool:
        """Whether a rank of a group is there."""
        return self._played is None or _in_the_world(group, rank) in self._played

    def _check(self, original: Call, values: Values) -> None:
        """Raises: UsageError: whoever sends is absent."""
        group, root = values["group"], _root(values)
        if not self._is_played(group, root):
            raise self._absent(f"torch.distributed.{original.__name__}", "objects", _in_the_world(group, root))

    # -- each process runs the collective as if it were the one that sends ---------------------------------------------

    def _broadcast(self, original: Call, values: Values) -> Any:
        self._check(original, values)
        objects, me, key = values["object_list"], distributed.get_rank(values["group"]), self._key(values, "broadcast")
        if me == _root(values):
            _put(key, list(objects))
        objects[:] = _take(key)
        return original(**{**values, "src": None, "group_src": me})

    def _scatter(self, original: Call, values: Values) -> Any:
        self._check(original, values)
        me, key = distributed.get_rank(values["group"]), self._key(values, "scatter")
        if me == _root(values):
            _put(key, list(values["scatter_object_input_list"]))
        sent = _take(key)
        original(**{**values, "scatter_object_input_list": sent, "src": None, "group_src": me})
        values["scatter_object_output_list"][0] = sent[me]

    def _gather(self, original: Call, values: Values) -> Any:
        group, key = values["group"], self._key(values, "gather")
        _put(f"{key}/{distributed.get_rank(group)}", values["obj"])
        original(**values)
        into = values.get("object_list", values.get("object_gather_list"))
        if into is not None:
            ranks = range(distributed.get_world_size(group))
            into[:] = [_take(f"{key}/{rank}") if self._is_played(group, rank) else values["obj"] for rank in ranks]

    def _send(self, original: Call, values: Values) -> Any:
        to = _root(values, "dst")
        _put(self._key(values, f"{distributed.get_rank(values['group'])} to {to}"), list(values["object_list"]))
        return original(**values)

    def _receive(self, original: Call, values: Values) -> Any:
        self._check(original, values)
        of, device = _root(values), _device(values)
        key = self._key(values, f"{of} to {distributed.get_rank(values['group'])}")
        values["object_list"][:] = objects = _take(key)
        # What torch takes meanwhile: sizes, their sum, bytes. What the sender sent is not there.
        sizes = torch.empty(len(objects), dtype=torch.int64, device=device)
        sizes.sum()
        torch.empty(sum(len(pickle.dumps(each)) for each in objects), dtype=torch.uint8, device=device)
        return of

    def _send_tensor(self, original: Call, values: Values) -> Any:
        work = original(**values)
        tensor, to = values["tensor"], _root(values, "dst")
        if not _is_small(tensor):
            return work
        value = tensor.detach().cpu()
        if self._is_played(values["group"], to):
            _put(self._key(values, f"tensor {distributed.get_rank(values['group'])} to {to}"), value)
        else:
            self._sent[values["group"], to, tensor.shape, tensor.dtype] = value
        return work

    def _receive_tensor(self, original: Call, values: Values) -> Any:
        sender = original(**values)
        self._receiving(values)()
        return sender

    def _receive_later(self, original: Call, values: Values) -> Any:
        work, take = original(**values), self._receiving(values)
        if self._batch is None:
            return _Received(work, [take])
        self._batch.append(take)
        return work

    def _batched(self, original: Call) -> Call:
        """Sends and receives of a batch, which may be one request."""

        @wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            takes: list[Callable[[], None]] = []
            self._batch = takes
            try:
                works = original(*args, **kwargs)
            finally:
                self._batch = None
            return [_Received(works[0], takes), *works[1:]] if works else works

        return call

    def _receiving(self, values: Values) -> Callable[[], None]:
        """What takes the value of a small tensor that is received, once it has to be there."""
        tensor, of, group = values["tensor"], _root(values), values["group"]
        if not _is_small(tensor) or (values["src"] is None and values.get("group_src") is None):
            return lambda: None
        is_played = self._is_played(group, of)
        key = self._key(values, f"tensor {of} to {distributed.get_rank(group)}") if is_played else ""

        def take() -> None:
            value = _take(key) if is_played else self._sent.get((group, of, tensor.shape, tensor.dtype))
            if value is not None:
                tensor.detach().copy_(value)

        return take

    def _broadcast_tensor(self, original: Call, values: Values) -> Any:
        tensor, group, root = values["tensor"], values["group"], _root(values)
        if not _is_small(tensor) or not self._is_played(group, root):  # of a mirror, what is there already
            return original(**values)
        key = self._key(values, "tensor to all")
        if root == distributed.get_rank(group):
            _put(key, tensor.detach().cpu())
            return original(**values)
        work = original(**values)
        tensor.detach().copy_(_take(key))
        return work

    def _barrier(self, original: Call, values: Values) -> Any:
        """Wait for those that are played: what one writes before it, another may read after it."""
        group, key = values["group"], self._key(values, "barrier")
        _put(f"{key}/{distributed.get_rank(group)}", None)
        for rank in range(distributed.get_world_size(group)) if not values["async_op"] else ():
            if self._is_played(group, rank):
                _take(f"{key}/{rank}")
        return original(**values)

    def _key(self, values: Values, what: str) -> str:
        """Of the next such call in a group: every rank of it makes the same calls in the same order."""
        group: Any = distributed.group.WORLD if values["group"] is None else values["group"]
        name = f"vramkit/{group.group_name}/{what}"
        self._done[name] += 1
        return f"{name}/{self._done[name]}"


class _Received:
    """A request whose small tensors are filled when it is waited for: not before, as their sender may be waiting for
    this rank.

    Args:
        work: of torch.
        takes: what fills them.
    """

    def __init__(self, work: Any, takes: list[Callable[[], None]]) -> None:
        self._work = work
        self._takes = takes

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for it."""
        done = self._work.wait(*args, **kwargs)
        takes, self._takes = self._takes, []
        for take in takes:
            take()
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def _device(values: Values) -> torch.device:
    """Where the tensors are that carry objects."""
    if "tensor" in values:
        return torch.device(values["tensor"].device)
    return torch.device(values.get("device") or device_of_objects(values["group"]))


def _is_small(tensor: torch.Tensor) -> bool:
    gpu = current()
    # Bytes are pickled objects, of programs that send them by themselves; larger ones never came to the device.
    most = _SMALL if tensor.dtype != torch.uint8 or gpu is None else gpu.settings.copy_limit
    return tensor.numel() * tensor.element_size() <= most


def _in_the_world(group: Any, rank: int) -> int:
    return rank if group is None else distributed.get_global_rank(group, rank)


def _root(values: Values, name: str = "src") -> int:
    """Who sends or gets, by its number in the group; torch takes either that or its number in the world."""
    in_group, in_world, group = values.get(f"group_{name}"), values[name], values["group"]
    if in_group is not None or in_world is None:
        return in_group or 0
    return int(in_world if group is None else distributed.get_group_rank(group, in_world))


def _put(key: str, value: Any) -> None:
    default_store().set(f"{key}{_SUFFIX}", pickle.dumps(value))


def _take(key: str) -> Any:
    return pickle.loads(default_store().get(f"{key}{_SUFFIX}"))

"""Collectives of pickled objects. Their values are what programs go on with, and NCCL's stand-in moves none between
processes: so they are handed over in the job's store, beside the collective, which takes the memory that it takes.
"""

from __future__ import annotations

import inspect
import pickle
from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import distributed
from torch.distributed import distributed_c10d

from ..torch_internals.distributed import default_store, device_of_objects
from .store import absent

Call = Callable[..., Any]
Values = dict[str, Any]
"""The arguments of a call, by their names."""


class Objects:
    """Takes the place of torch's collectives of objects.

    Args:
        is_alone: the other ranks are absent, and this one's mirrors.
    """

    def __init__(self, *, is_alone: bool) -> None:
        self._is_alone = is_alone
        self._done: Counter[str] = Counter()

    def install(self) -> None:
        """Put them in their place, from now on."""
        if self._is_alone:  # mirrors send what this rank sends, and the collectives say so
            ways: dict[str, Callable[[Call, Values], Any]] = {
                "broadcast_object_list": self._from_here,
                "scatter_object_list": self._from_here,
                "recv_object_list": self._from_here,
            }
        else:
            ways = {
                "broadcast_object_list": self._broadcast,
                "scatter_object_list": self._scatter,
                "all_gather_object": self._gather,
                "gather_object": self._gather,
                "send_object_list": self._send,
                "recv_object_list": self._receive,
            }
        for name, way in ways.items():
            wrapped = self._wrap(getattr(distributed, name), way)
            setattr(distributed, name, wrapped)
            setattr(distributed_c10d, name, wrapped)

    def _wrap(self, original: Call, way: Callable[[Call, Values], Any]) -> Call:
        signature = inspect.signature(original)

        @wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            values = bound.arguments
            group = values["group"]
            is_member = distributed.is_initialized() and distributed.get_rank(group) >= 0
            if not is_member or (not self._is_alone and device_of_objects(group) == "cpu"):  # gloo moves its values
                return original(*args, **kwargs)
            return way(original, values)

        return call

    def _from_here(self, original: Call, values: Values) -> Any:
        me, root = distributed.get_rank(values["group"]), _root(values)
        if me != root:
            raise absent(
                f"torch.distributed.{original.__name__} was called",
                f"rank {me} of its group is to get objects from rank {root}",
            )
        return original(**values)

    # -- of processes that are all there: each runs the collective as if it were the one that sends --------------------

    def _broadcast(self, original: Call, values: Values) -> Any:
        objects, me, key = values["object_list"], distributed.get_rank(values["group"]), self._key(values, "broadcast")
        if me == _root(values):
            _put(key, list(objects))
        objects[:] = _take(key)
        return original(**{**values, "src": None, "group_src": me})

    def _scatter(self, original: Call, values: Values) -> Any:
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
            into[:] = [_take(f"{key}/{rank}") for rank in range(distributed.get_world_size(group))]

    def _send(self, original: Call, values: Values) -> Any:
        to = _root(values, "dst")
        _put(self._key(values, f"{distributed.get_rank(values['group'])} to {to}"), list(values["object_list"]))
        return original(**values)

    def _receive(self, original: Call, values: Values) -> Any:
        of = _root(values)
        key = self._key(values, f"{of} to {distributed.get_rank(values['group'])}")
        values["object_list"][:] = _take(key)
        return of

    def _key(self, values: Values, what: str) -> str:
        """Of the next such call in a group: every rank of it makes the same calls in the same order."""
        group: Any = distributed.group.WORLD if values["group"] is None else values["group"]
        name = f"vramkit/{group.group_name}/{what}"
        self._done[name] += 1
        return f"{name}/{self._done[name]}"


def _root(values: Values, name: str = "src") -> int:
    """Who sends or gets, by its number in the group; torch takes either that or its number in the world."""
    in_group, in_world, group = values.get(f"group_{name}"), values[name], values["group"]
    if in_group is not None or in_world is None:
        return in_group or 0
    return int(in_world if group is None else distributed.get_group_rank(group, in_world))


def _put(key: str, value: Any) -> None:
    default_store().set(key, pickle.dumps(value))


def _take(key: str) -> Any:
    return pickle.loads(default_store().get(key))

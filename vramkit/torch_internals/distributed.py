"""torch's private names of ``torch.distributed``: rendezvous, backends, and what splits a communicator.

Knows where torch keeps them; which ranks there are, ``vramkit.ranks`` knows.
"""

from __future__ import annotations

import inspect
import pickle
import sys
from collections.abc import Callable, Iterator, MutableMapping
from operator import attrgetter
from typing import Any

from torch import distributed
from torch.distributed.distributed_c10d import BackendConfig

from .names import look_up, place_of

Rendezvous = Callable[..., Iterator[tuple[Any, int, int]]]

rendezvous_handlers: MutableMapping[str, Rendezvous] = look_up(
    "torch.distributed.rendezvous._rendezvous_handlers",
    "ranks",
    probe=lambda: attrgetter("_rendezvous_handlers")(sys.modules.get("torch.distributed.rendezvous")),
    fallback={},
)
"""By the scheme of an address: what finds the other processes. The module's name is hidden by a function's."""

_FAKE: Any = look_up("torch._C._distributed_c10d.FakeProcessGroup", "ranks", fallback=None)
_PLUGINS: Any = look_up("torch.distributed.Backend._plugins", "ranks", fallback={})
_register: Callable[[str], object] = look_up(
    "torch.distributed.Backend._ensure_backend_registered", "ranks", versions="2.14", fallback=lambda name: None
)
_SPLIT_SOURCE = place_of("torch.distributed.distributed_c10d._get_split_source", "ranks", fallback=None)
_MIRROR = "vramkit_mirror"

default_store: Callable[[], Any] = look_up("torch.distributed.distributed_c10d._get_default_store", "ranks")
"""The store in which all processes of the job meet."""

device_of_objects: Callable[[Any], str] = look_up("torch.distributed.distributed_c10d._get_object_coll_device", "ranks")
"""On which kind of device a group's collectives of objects run."""


def mirrored(rank: int, size: int) -> Any:
    """A backend of so many ranks whose collectives take what this rank sends for what each of them sends."""
    create, options = getattr(_FAKE, "_create_internal", _FAKE), vars(_FAKE).get("Options")
    return create(rank, size) if options is None else create(rank, size, options())


def mirror_gloo() -> None:
    """Let every group of gloo from now on be a mirrored one."""
    _register("gloo")
    if "GLOO" in _PLUGINS:
        _PLUGINS["GLOO"] = _PLUGINS["GLOO"]._replace(creator_fn=_mirror)
        return
    # 2.13 and older make gloo's groups without looking into the table, so they look for another backend.
    distributed.Backend.register_backend(_MIRROR, _mirror, extended_api=True, devices=["cpu"])
    backends = BackendConfig.get_device_backend_map

    def get_device_backend_map(self: BackendConfig) -> dict[str, Any]:
        return {device: _MIRROR if name == "gloo" else name for device, name in backends(self).items()}

    setattr(BackendConfig, "get_device_backend_map", get_device_backend_map)  # noqa: B010 - it keeps its type


def _mirror(options: Any, *_: object) -> Any:
    return mirrored(options.group_rank, options.group_size)


def checkpoint_alone(module: Any) -> None:
    """Let ``torch.distributed.checkpoint`` save and load this rank's own part, and ask no other rank.

    Args:
        module: it, once it has been imported.
    """
    asking, planning = getattr(module.utils, "_DistWrapper", None), module.default_planner
    if asking is None:
        return
    begin = asking.__init__

    def alone(self: Any, group: Any, use_dist: bool, coordinator_rank: int) -> None:
        begin(self, group, False, coordinator_rank)

    asking.__init__ = alone
    validate = getattr(planning, "_validate_global_plan", None)
    if validate is not None:  # the other ranks' parts are missing from this one's
        good: object = [] if "list" in str(inspect.signature(validate).return_annotation) else True
        planning._validate_global_plan = lambda plan, metadata: good


def before_checkpoint(module: Any, check: Callable[[Any], object]) -> None:
    """Have something looked at before ``torch.distributed.checkpoint`` asks the ranks of a group.

    Args:
        module: it, once it has been imported.
        check: is given the group; None: all ranks.
    """
    asking = getattr(module.utils, "_DistWrapper", None)
    if asking is None:
        return
    begin = asking.__init__

    def checked(self: Any, group: Any, use_dist: bool, coordinator_rank: int) -> None:
        if use_dist:
            check(group)
        begin(self, group, use_dist, coordinator_rank)

    asking.__init__ = checked


def around_consolidating(module: Any, before: Callable[[int], object], lost: Callable[[int], object]) -> None:
    """Have something looked at where ``ZeroRedundancyOptimizer`` gets a part of its state from another rank.

    Args:
        module: ``torch.distributed.optim.zero_redundancy_optimizer``, once it has been imported.
        before: is given the rank that sends, in the job.
        lost: is given it when what came is no state; raises an error.
    """
    send = getattr(module, "_broadcast_object", None)
    if send is None:
        return

    def checked(state: object, src_rank: int, *args: Any, **kwargs: Any) -> object:
        before(src_rank)
        try:
            return send(state, src_rank, *args, **kwargs)
        except (pickle.UnpicklingError, EOFError):
            lost(src_rank)
            raise

    module._broadcast_object = checked


def refuse_nvshmem(module: Any, refuse: Callable[[], object]) -> None:
    """Let ``torch.distributed._symmetric_memory`` say that NVSHMEM is not there: it would end the process.

    Args:
        module: it, once it has been imported.
        refuse: is called where a program chooses it all the same; raises an error.
    """
    choose = getattr(module, "set_backend", None)
    if choose is None:
        return

    def chosen(name: str) -> object:
        if name.upper() == "NVSHMEM":
            refuse()
        return choose(name)

    module.set_backend = chosen
    module.is_nvshmem_available = lambda: False


def tell_splits(tell: Callable[[int], object]) -> None:
    """Say how many ranks a communicator has that is split off another, before NCCL is asked for it.

    Where torch does not say so at that moment, it makes a new communicator instead: the same memory.
    """
    if _SPLIT_SOURCE.owner is not None:
        setattr(_SPLIT_SOURCE.owner, _SPLIT_SOURCE.name, lambda group: None)
    split = getattr(distributed.ProcessGroup, "split_group", None)
    if split is None:
        return

    def told(group: Any, ranks: list[int], *args: Any, **kwargs: Any) -> Any:
        tell(len(ranks))
        try:
            return split(group, ranks, *args, **kwargs)
        finally:
            tell(0)

    setattr(distributed.ProcessGroup, "split_group", told)  # noqa: B010 - it keeps its type

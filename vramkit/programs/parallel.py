"""Data parallelism as a value: how a program's model becomes one of a job's ranks, as a training script would do it.

Knows ``torch.distributed``'s public functions; which rank is played, and that the others are not there, it does not.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

import torch
from torch import nn

from ..counts import check_count
from ..errors import UsageError
from .blocks import repeated_blocks


@dataclass(frozen=True)
class Parallel(ABC):
    """How ranks share a training: `DDP` or `FSDP`."""

    world_size: int
    """Ranks of the job."""

    def __post_init__(self) -> None:
        check_count(self.asked, "world_size", self.world_size)

    @property
    def asked(self) -> str:
        """As an error's text begins."""
        return f"vramkit.{type(self).__name__} was made"

    def parallelized(self, models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Models as they are trained on this rank.

        Args:
            models: on the CPU, or ``meta``.
        """
        from torch import distributed

        if not distributed.is_initialized():
            distributed.init_process_group("nccl")
        return {name: self._one(model) for name, model in models.items()}

    @abstractmethod
    def _one(self, model: nn.Module) -> nn.Module: ...


@dataclass(frozen=True)
class DDP(Parallel):
    """``torch.nn.parallel.DistributedDataParallel``: every rank has the whole model.

    Its script::

        dist.init_process_group("nccl")
        model = DistributedDataParallel(model.to("cuda"), device_ids=[local_rank])
    """

    _: KW_ONLY
    gradient_as_bucket_view: bool = False
    """Gradients lie in the buckets that are reduced, and take no memory beside them."""
    static_graph: bool = False
    """The same parameters are used in every step."""
    find_unused_parameters: bool = False
    bucket_cap_mb: float | None = None
    """MiB of a bucket; None: torch's default."""

    def _one(self, model: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(
            model.to("cuda"),
            device_ids=[int(os.environ["LOCAL_RANK"])],
            bucket_cap_mb=self.bucket_cap_mb,
            find_unused_parameters=self.find_unused_parameters,
            gradient_as_bucket_view=self.gradient_as_bucket_view,
            static_graph=self.static_graph,
        )


@dataclass(frozen=True)
class FSDP(Parallel):
    """FSDP2, ``torch.distributed.fsdp.fully_shard``: every rank has a part of each parameter, gradient and state.

    Each block that the model repeats is sharded, and then what is left. Its script, with the model on the CPU::

        dist.init_process_group("nccl")
        for block in model.blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=..., mp_policy=..., offload_policy=...)
        fully_shard(model, mesh=mesh, reshard_after_forward=..., mp_policy=..., offload_policy=...)
        model.to("cuda")

    Raises:
        UsageError: the ranks can't be that many replicas.
    """

    _: KW_ONLY
    replicas: int = 1
    """Of the sharded model (HSDP): each is sharded over ``world_size / replicas`` ranks that are next to each other."""
    param_dtype: torch.dtype | None = None
    """What the forward and backward compute in, such as ``torch.bfloat16``; None: as the parameters are."""
    reduce_dtype: torch.dtype | None = None
    """What gradients are reduced in; None: as ``param_dtype``."""
    reshard_after_forward: bool | int | None = None
    """See ``fully_shard``; None: all but the root."""
    cpu_offload: bool = False
    """Parameters, gradients and states lie in the machine's memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.asked, "replicas", self.replicas)
        if self.world_size % self.replicas:
            raise UsageError(
                self.asked,
                f"with {self.replicas} replicas of {self.world_size} ranks",
                instead="A replica has as many ranks as any other",
            )

    def _one(self, model: nn.Module) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        if self.replicas == 1:
            mesh = init_device_mesh("cuda", (self.world_size,), mesh_dim_names=("shard",))
        else:
            shape = (self.replicas, self.world_size // self.replicas)
            mesh = init_device_mesh("cuda", shape, mesh_dim_names=("replicate", "shard"))
        for path in (*repeated_blocks(model), ""):
            fully_shard(
                model.get_submodule(path),
                mesh=mesh,
                reshard_after_forward=self.reshard_after_forward,
                mp_policy=MixedPrecisionPolicy(param_dtype=self.param_dtype, reduce_dtype=self.reduce_dtype),
                offload_policy=CPUOffloadPolicy() if self.cpu_offload else OffloadPolicy(),
            )
        return model

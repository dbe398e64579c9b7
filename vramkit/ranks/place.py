"""Which rank of how many a process is, and the environment that ``torchrun`` gives it. Which ranks are played at all.
Knows no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UsageError

GPUS_PER_NODE = 8
"""What most machines for training have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The place of a process in a job."""

    rank: int
    world_size: int
    gpus_per_node: int = GPUS_PER_NODE

    def __post_init__(self) -> None:
        if self.world_size < 1 or self.gpus_per_node < 1:
            raise UsageError(
                f"A job of {self.world_size} ranks was asked for, {self.gpus_per_node} on a node",
                instead="Both are at least 1",
            )
        if not 0 <= self.rank < self.world_size:
            raise UsageError(
                f"Rank {self.rank} was asked for",
                f"of a world of {self.world_size}",
                instead=f"Ranks are 0 to {self.world_size - 1}",
            )

    @property
    def node(self) -> int:
        """The number of its machine."""
        return self.rank // self.gpus_per_node

    @property
    def local_rank(self) -> int:
        """Its number on its machine, which is that of its GPU."""
        return self.rank % self.gpus_per_node

    @property
    def local_world_size(self) -> int:
        """Ranks on its machine."""
        return min(self.gpus_per_node, self.world_size - self.node * self.gpus_per_node)

    def environment(self, port: int) -> dict[str, str]:
        """The variables that ``torchrun`` sets.

        Args:
            port: of the machine's own address, at which ranks that are there meet.
        """
        nodes = -(-self.world_size // self.gpus_per_node)
        values: dict[str, object] = {
            "RANK": self.rank,
            "WORLD_SIZE": self.world_size,
            "LOCAL_RANK": self.local_rank,
            "LOCAL_WORLD_SIZE": self.local_world_size,
            "GROUP_RANK": self.node,
            "GROUP_WORLD_SIZE": nodes,
            "ROLE_NAME": "default",
            "ROLE_RANK": self.rank,
            "ROLE_WORLD_SIZE": self.world_size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TORCHELASTIC_RUN_ID": "vramkit",
            "TORCHELASTIC_RESTART_COUNT": 0,
            "TORCHELASTIC_MAX_RESTARTS": 0,
        }
        return {name: str(value) for name, value in values.items()}

    @staticmethod
    def of(environment: Mapping[str, str]) -> Place | None:
        """The place that a launcher gave this process; None: none, or what it says makes no sense."""
        try:
            return Place(
                rank=int(environment["RANK"]),
                world_size=int(environment["WORLD_SIZE"]),
                gpus_per_node=max(1, int(environment.get("LOCAL_WORLD_SIZE", GPUS_PER_NODE))),
            )
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job of which only some ranks are played, at the same time. The others are their mirrors."""

    world_size: int
    played: tuple[int, ...]
    """The ranks that are there, this one among them."""
    meeting: str = ""
    """The path of a file in which they meet."""

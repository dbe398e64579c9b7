"""Several ranks that search together: what one finds out, all know before any goes on. Knows process groups; knows
nothing of memory, and how a search goes is not its business.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from typing_extensions import Self

from ..errors import UsageError, VramkitError
from ..torch_internals.sharded_state import unheard

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_T = TypeVar("_T")
_PATIENCE = timedelta(minutes=30)
"""For which a message of another rank is waited for. torch's groups on a CPU wait as long."""
_exchanges: Counter[tuple[int, ...]] = Counter()
"""How many there were among the same ranks: each has a key of its own in the store."""
_ASKED = "vramkit.auto_batch_size was called for several ranks"


class Agreement:
    """What the ranks of a group agree on. Of ``None`` there is one rank, which agrees with itself.

    ::

        with Agreement(group) as ranks:
            size = ranks.smallest(predicted_here)           # the smallest of all ranks
            trial = ranks.together(lambda: run(size))   # an error on one rank ends it on all
            if ranks.any(trial.ran_out):                # one ran out: none fits
                ...

    Every rank has to make the same calls in the same order; what decides about the next call must have been agreed on.
    The messages go through the store of the job: they can't meet a collective of the step in which another rank still
    is, and take nothing from the GPU. A group of gloo's would find its members by a name, which torch before 2.14 gives
    again to the next group of the same ranks: that one then looks for the first one's sockets.

    Args:
        group: ranks that train together, ``torch.distributed.group.WORLD`` for all; None: this process is alone.

    Raises:
        UsageError: torch.distributed was not set up, it is no group, or this process is not in it.

    Known limitations: where the step itself waits for other ranks (tensor parallelism, FSDP1, an all-reduce among
    replicas of shards, a collective of the user's), a rank that runs out leaves the others waiting until the step's own
    group times out; then all get that error. `apart` takes what DistributedDataParallel and ``fully_shard`` send out of
    the step, so that it does not.
    """

    def __init__(self, group: ProcessGroup | None) -> None:
        self._ranks: list[int] | None = None
        if group is None:
            return
        if not dist.is_available() or not dist.is_initialized():
            raise UsageError(
                _ASKED,
                "torch.distributed was not set up",
                "Then there is one rank only",
                "Call torch.distributed.init_process_group(...) before, or leave group= out",
            )
        if not isinstance(group, dist.ProcessGroup):
            raise UsageError(
                _ASKED, f"the group is {group!r:.60}", instead="Pass a process group: torch.distributed.group.WORLD"
            )
        from ..torch_internals.distributed import default_store

        self._ranks = dist.get_process_group_ranks(group)
        self._store = default_store()
        self._me = dist.get_rank()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ranks = None

    @property
    def is_first(self) -> bool:
        """Whether this rank is the one that speaks for all, on a terminal for instance."""
        return self._ranks is None or self._me == self._ranks[0]

    def smallest(self, size: int) -> int:
        """The smallest of what the ranks give."""
        return int(min(self._exchanged(size).values()))

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes."""
        return any(self._exchanged(flag).values())

    def largest(self, size: int) -> int:
        """The largest of what the ranks give."""
        return int(max(self._exchanged(size).values()))

    def same(self, **numbers: int) -> None:
        """Make sure that every rank gives the same.

        Args:
            numbers: by the name of the argument that they stand for.

        Raises:
            UsageError: on every rank, with the same text: at least one differs.
        """
        differ = [name for name, number in numbers.items() if self.smallest(number) != self.largest(number)]
        if differ:
            raise UsageError(
                _ASKED,
                f"{' and '.join(differ)} {'is' if len(differ) == 1 else 'are'} not the same on all of them",
                "They search for one size together",
                "Pass the same on every rank",
            )

    def together(self, attempt: Callable[[], _T]) -> _T:
        """Run something on every rank; where it fails on one, none goes on.

        Args:
            attempt: what to run. Running out of memory is a result and not an error: let it return that.

        Returns:
            What it returned on this rank.

        Raises:
            VramkitError: it failed on another rank; the text says which and how. What fails on this one is raised as
                it is, when the others know.
        """
        if self._ranks is None:
            return attempt()
        try:
            result = attempt()
        except BaseException as error:
            self._exchanged(f"{type(error).__name__}: {error}")
            raise
        failed = {rank: text for rank, text in self._exchanged(None).items() if text is not None}
        if failed:
            rank, text = next(iter(failed.items()))
            others = f", and {len(failed) - 1} more" * (len(failed) > 1)
            raise VramkitError(
                _ASKED,
                f"rank {rank}{others} failed with {text:.400}",
                "No rank can go on without it",
                f"See the traceback of rank {rank}",
            )
        return result

    @contextmanager
    def apart(self, models: Iterable[torch.nn.Module]) -> Iterator[None]:
        """While a step runs, no rank waits for what another one sends to DistributedDataParallel or ``fully_shard``.

        DistributedDataParallel exchanges no gradients. Its buckets stay where they are, and gradients that would lie in
        them get memory of their own: what is measured is as much as in training, or more. ``fully_shard`` takes the
        same memory as ever, and for the parts of other ranks this one's own.

        Args:
            models: those of the step; others are left alone.
        """
        if self._ranks is None:
            yield
            return
        from torch.nn.parallel import DistributedDataParallel

        models = [*models]
        parallel = [model for model in models if isinstance(model, DistributedDataParallel)]
        pending = [model.require_forward_param_sync for model in parallel]
        try:
            with unheard(models), ExitStack() as stack:
                for model in parallel:
                    # Else its forward broadcasts buffers, and a rank that failed before it is waited for.
                    model.require_forward_param_sync = False
                    stack.enter_context(model.no_sync())
                yield
        finally:
            for model, before in zip(parallel, pending, strict=True):
                model.require_forward_param_sync = before

    def _exchanged(self, said: Any) -> dict[int, Any]:
        """What every rank says, by its number in the whole world: what JSON can say."""
        if self._ranks is None:
            return {0: said}
        members = tuple(self._ranks)
        _exchanges[members] += 1
        key = f"vramkit/{'_'.join(map(str, members))}/{_exchanges[members]}"
        self._store.set(f"{key}/{self._me}", json.dumps(said))
        if not self.is_first:
            return dict(zip(members, self._read(f"{key}/all"), strict=True))
        everything = {rank: said if rank == self._me else self._read(f"{key}/{rank}") for rank in members}
        self._store.set(f"{key}/all", json.dumps(list(everything.values())))
        return everything

    def _read(self, key: str) -> Any:
        self._store.wait([key], _PATIENCE)
        return json.loads(self._store.get(key))

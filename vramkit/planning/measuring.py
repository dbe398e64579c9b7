"""Runs a program with some changes, on a card and where that is too small with enough memory, and counts what its step
does. Knows sessions and changes; chooses neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ..allocator import AllocatorConf
from ..engines import Session
from ..engines.enough_memory import enough
from ..errors import DoesNotFit, VramkitError
from ..gpus import GPU
from ..programs.layer_count import StepCount
from ..scaling.largest import Largest
from ..sizes import format_size
from .beside import beside
from .changes import ALL, Change
from .draft import Draft
from .facts import Facts
from .search import Outcome

_SHARE = 4
"""What is free on the host has to be so many times what a change may put there: others need some, too."""


def available_memory() -> int | None:
    """Bytes of the host's memory that are free or could be; None: nobody says."""
    try:
        with open("/proc/meminfo") as lines:
            sizes = dict(line.split(":", 1) for line in lines)
        return int(sizes["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return None


class Measuring:
    """Runs of one program at one batch size on one card.

    Args:
        session: of the program as it is.
        gpu: the card.
        batch_size: 0: the batch as it was given.
        facts: of the program.
        alloc_conf: text of ``PYTORCH_CUDA_ALLOC_CONF``.
        count: how many runs there may be at a time.
    """

    def __init__(
        self, session: Session, gpu: GPU, batch_size: int, facts: Facts, alloc_conf: str, count: int = 1
    ) -> None:
        self._session, self._gpu, self._batch_size, self._facts = session, gpu, batch_size, facts
        self._conf = alloc_conf
        self._at_a_time = count
        self._idle = [{alloc_conf: session}]  # by their settings, those that share what runs them
        self._counts: dict[tuple[Change, ...], StepCount] = {}
        self._whole = 0
        self.notes: tuple[str, ...] = ()
        """What had to be assumed of the program as it is, once that has run."""

    def draft(self, changes: Iterable[Change]) -> Draft:
        """The program's code with some changes."""
        draft = Draft(self._facts)
        for change in changes:
            change.write(draft)
        return draft

    def run(self, changes: tuple[Change, ...]) -> Outcome:
        """Run the program with some changes.

        Raises:
            VramkitError: it does not run as it is.
        """
        try:
            if missing := self._missing_on_host(changes):
                return Outcome(changes=changes, failure=missing)
            with self._changed(changes) as session:
                return self._run(session, changes)
        except VramkitError as error:
            if not changes:
                raise
            return Outcome(changes=changes, failure=" ".join(str(error).split()))

    def count(self, changes: tuple[Change, ...]) -> StepCount:
        """What a step does with some changes; those that compute nothing else don't count."""
        return self.count_all([changes])[0]

    def count_all(self, several: Iterable[tuple[Change, ...]]) -> list[StepCount]:
        """See `count`; of each of several."""
        computing = [tuple(each for each in changes if each.computes) for changes in several]
        missing = [each for each in dict.fromkeys(computing) if each not in self._counts]
        self._counts.update(zip(missing, beside(self._at_a_time, self._count, missing), strict=True))
        return [self._counts[each] for each in computing]

    def largest_batch_sizes(self, several: Iterable[tuple[Change, ...]]) -> list[int | None]:
        """The largest batch with which each changed program fits; 0: none does. None: at some size it does not run."""
        return beside(self._at_a_time, self._largest_batch_size, several)

    def _count(self, changes: tuple[Change, ...]) -> StepCount:
        with self._changed(changes) as session:
            return session.count_step(self._gpu, self._batch_size)

    def _largest_batch_size(self, changes: tuple[Change, ...]) -> int | None:
        try:
            with self._changed(changes) as session:
                return Largest(session, self._gpu).run(self._batch_size)
        except DoesNotFit:
            return 0
        except VramkitError:
            return None

    @contextmanager
    def _changed(self, changes: tuple[Change, ...]) -> Iterator[Session]:
        """A session of the changed program that nobody else runs meanwhile."""
        try:
            own = self._idle.pop()
        except IndexError:
            own = {self._conf: self._session.apart()}
        try:
            session = own[self._conf]
            if changes:
                draft = self.draft(changes)
                conf = ",".join(filter(None, [self._conf, draft.alloc_conf]))
                if conf not in own:
                    own[conf] = session.rewritten(draft.rewrite(), conf)
                session = own[conf].rewritten(draft.rewrite())
            yield session
        finally:
            self._idle.append(own)

    def _missing_on_host(self, changes: tuple[Change, ...]) -> str:
        """Why this machine can't hold what some changes put on the host; empty: it can.

        Such memory is really written, whatever the engine: a card of 80 GB is imitated on a laptop, its host is not.
        """
        needed = sum(self._whole if each.host_bytes == ALL else each.host_bytes for each in changes)
        if not needed or (available := available_memory()) is None or needed <= available // _SHARE:
            return ""
        return (
            f"To run it, this machine would have to hold up to {format_size(needed)} in its own memory, of which "
            f"{format_size(available)} are free. Plan it on a machine with {format_size(_SHARE * needed)}."
        )

    def _run(self, session: Session, changes: tuple[Change, ...]) -> Outcome:
        room = self._gpu.memory - self._gpu.context
        run = enough(session, self._gpu, self._batch_size, detailed=False)
        fits = run.peak_reserved <= room and self._is_sure()
        # A card that is smaller than what is reserved may do: torch gives back what it has cached before it fails.
        if not fits and run.peak_allocated <= room:
            on_card = session.run(self._gpu, self._batch_size, detailed=False)
            fits, run = not on_card.ran_out, run if on_card.ran_out else on_card
        if not changes:
            self._whole, self.notes = run.peak_allocated, run.notes
        return Outcome(changes=changes, peak_allocated=run.peak_allocated, peak_reserved=run.peak_reserved, fits=fits)

    def _is_sure(self) -> bool:
        """Whether an allocator that finds enough memory does as on a card that has so much."""
        conf = AllocatorConf.parse(self._conf)
        is_whole = conf.large_segment_size == AllocatorConf().large_segment_size
        return is_whole and not conf.looks_at_capacity

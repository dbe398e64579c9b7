"""``vramkit.replay_lengths``: a training whose batches differ in length, over thousands of steps.

Knows estimates, and the ways to run such a training; what a step asks for at a length that was not run, and how steps
are served in a row, `vramkit.scaling` knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..allocator import AllocatorConf, DeviceCachingAllocator
from ..counts import check_count
from ..engines import Session
from ..engines.enough_memory import enough
from ..errors import UsageError, shown
from ..gpus import GPU
from ..reports.layout import counted
from ..scaling.largest import MAX_PREDICTED_BATCH
from ..scaling.lengths import NotAlikeError, Piece, course_of, pieces_of
from ..scaling.lines import evenness
from ..scaling.replays import conf_of
from ..scaling.requests import Families, Requests, requests_of
from ..sizes import format_size
from ..tape.events import Ints, Tape
from .result import Estimate

_ASKED = "vramkit.replay_lengths was called"
_MAX_RUNS = 12
_Pieces = tuple[Piece, Piece, Piece]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LengthCourse:
    """What the allocator came to over all steps, in one way of running them."""

    name: str
    """Which way: ``"as given"``, ``"expandable_segments"``, ``"longest first"`` (a step of the longest length goes
    before the others, which is one step more), ``"in buckets of 64"``."""
    allocated: Ints
    """Highest ``memory_allocated()`` in each step, bytes; shape ``(steps,)``."""
    reserved: Ints
    """Highest ``memory_reserved()`` in each step, bytes; shape ``(steps,)``."""
    failed_step: int
    """The step, from 0, that the card has no memory for, after which there are none; -1: there is none."""

    @property
    def fits(self) -> bool:
        """Whether every step ran on the card."""
        return self.failed_step < 0

    @property
    def peak_allocated(self) -> int:
        """Highest ``memory_allocated()``, bytes."""
        return int(self.allocated.max(initial=0))

    @property
    def peak_reserved(self) -> int:
        """Highest ``memory_reserved()``, bytes."""
        return int(self.reserved.max(initial=0))

    @property
    def peak_step(self) -> int:
        """The first step, from 0, in which ``peak_reserved`` was reached."""
        return int(self.reserved.argmax()) if len(self.reserved) else 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LengthReplay:
    """A training whose batches differ in length: what `vramkit.replay_lengths` returns.

    ::

        replay.course.peak_reserved, replay.course.peak_step
        print(replay)
    """

    gpu: GPU
    steps: int
    """How many there are."""
    course: LengthCourse
    """As the lengths were given."""
    others: tuple[LengthCourse, ...]
    """What else could be done: expandable segments, the longest batch first, lengths padded to buckets."""
    runs: tuple[int, ...]
    """The lengths that were run; every other one's requests were read off lines between these."""
    uncertain: tuple[tuple[int, int], ...] = ()
    """Stretches of lengths between two runs where lasting requests lie on no line, and figures are near, not exact."""
    margin: int = 0
    """The most bytes by which a passing request of a run, mostly a kernel's workspace, was off what lines through the
    runs before it said; 0: none was. At lengths that were not run, peaks can be off by about as much."""

    def report(self) -> str:
        """The ways of running it, a line each."""
        runs = counted(len(self.runs), "length")
        lines = [
            f"vramkit: {counted(self.steps, 'step')} on {self.gpu.product}, from runs of {runs}",
            f"{'':24}{'most reserved':>15}{'in step':>10}{'most allocated':>16}",
        ]
        for each in (self.course, *self.others):
            end = "" if each.fits else f"  RUNS OUT in step {each.failed_step + 1:,}"
            lines.append(
                f"  {each.name:22}{format_size(each.peak_reserved):>15}{each.peak_step + 1:>10,}"
                f"{format_size(each.peak_allocated):>16}{end}"
            )
        if self.margin:
            lines.append(
                f"Workspaces that pass within an operator were up to {format_size(self.margin)} off their lines."
            )
        for low, high in self.uncertain:
            lines.append(f"Between lengths {low:,} and {high:,} requests lie on no line: figures are near, not exact.")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.report()

    def __repr__(self) -> str:
        return f"LengthReplay({counted(self.steps, 'step')}: at most {format_size(self.course.peak_reserved)} reserved)"


def replay_lengths(estimate: Estimate, lengths: Iterable[int], *, bucket: int = 64) -> LengthReplay:
    """Follow torch's allocator over a training whose batches differ in length: the most it reserves, and when.

    ::

        estimate = vramkit.estimate(model, lambda length: tokens(32, length), batch_size=128, optimizer=..., gpu="t4")
        print(vramkit.replay_lengths(estimate, [len(batch) for batch in loader]))

    Memory that was cached for one length often does not serve the next, so reserved memory grows for thousands of
    steps, and a run ends at step 40,000. Here the shortest and the longest length are run, and some between them until
    a run's lasting requests are what lines through the others had said; then a step of each length is served by the
    simulated allocator, one after the other.

    Args:
        estimate: of a program whose batch is a callable ``length -> batch``, of at least three steps. Its "batch size"
            is the length; what the rows of a batch are, the callable decides.
        lengths: of the batches, in the order of the steps.
        bucket: lengths are padded to multiples of this in the last row of the answer.

    Returns:
        The course of reserved memory, and what expandable segments, the longest batch first, or buckets would change.

    Raises:
        UsageError: no estimate, or one that comes from a file; no lengths, or one that is none; or a program whose
            steps leave more and more behind.

    Known limitations: exact where every request is affine in the length. Attention that keeps a score for each two
    positions is not: there requests between two runs are interpolated (``uncertain``). Nor are workspaces of some
    kernels, such as that of the sum for a bias's gradient; ``margin`` says how far those of the runs were off.
    Values that a training meets later, such as a gradient scaler's skipped step, are not seen.
    """
    if not isinstance(estimate, Estimate):
        raise UsageError(
            _ASKED,
            f"with {shown(estimate)}",
            instead="Give what vramkit.estimate(model, lambda length: batch, ...) returns",
        )
    asked = [check_count(_ASKED, "a length", length, maximum=MAX_PREDICTED_BATCH) for length in lengths]
    if not asked:
        raise UsageError(_ASKED, "with no lengths", instead="Give one for each step")
    bucket = check_count(_ASKED, "bucket", bucket)
    session = estimate._session  # noqa: SLF001 - the estimate's own room
    if session is None or not estimate.batch_size:
        raise UsageError(
            _ASKED,
            "the estimate can't run its program at other lengths",
            "It comes from a file or another process, or its batch has no size",
            "Call vramkit.estimate(model, lambda length: batch, batch_size=length, ...) in this process",
        )
    padded = [-(-length // bucket) * bucket for length in asked]
    probes = _Probes(session, estimate.gpu)
    try:
        probes.fill(sorted({*asked, *padded}))
        pieces = {length: pieces_of(probes.tape_at(length)) for length in {*asked, *padded}}
        _check_alike(pieces)
    except NotAlikeError as error:
        raise UsageError(_ASKED, f"the program's steps are not alike: {error}", instead=error.instead) from error
    conf = conf_of(probes.tape)
    expandable = AllocatorConf.parse("expandable_segments:True")
    ways: list[tuple[str, AllocatorConf, Sequence[int]]] = [
        ("as given", conf, asked),
        ("longest first", conf, [max(asked), *asked]),
        (f"in buckets of {bucket}", conf, padded),
    ]
    if not conf.expandable_segments:
        ways.insert(1, ("expandable_segments", expandable, asked))
    first, *others = (_course(name, pieces, steps, estimate.gpu, way, probes.tape) for name, way, steps in ways)
    return LengthReplay(
        gpu=estimate.gpu,
        steps=len(asked),
        course=first,
        others=tuple(others),
        runs=tuple(sorted(probes.runs)),
        uncertain=tuple(probes.uncertain),
        margin=probes.margin,
    )


def _off(requests: Requests, said: Requests) -> int:
    """The most bytes by which a passing request is off what was said; all of one that was not there at all."""
    places = max(requests.place.max(initial=0), said.place.max(initial=0)) + 1
    counts = [np.bincount(each.place, minlength=places) for each in (requests, said)]
    is_there = counts[0] == counts[1]
    sizes = [each.tape.allocations["requested"][each.passing] for each in (requests, said)]
    both = [size[is_there[each.place]] for size, each in zip(sizes, (requests, said), strict=True)]
    alone = [size[~is_there[each.place]] for size, each in zip(sizes, (requests, said), strict=True)]
    return int(max(np.abs(both[0] - both[1]).max(initial=0), *(size.max(initial=0) for size in alone)))


def _course(
    name: str, pieces: Mapping[int, _Pieces], lengths: Sequence[int], gpu: GPU, conf: AllocatorConf, tape: Tape
) -> LengthCourse:
    allocator = DeviceCachingAllocator(gpu.memory, conf, context=gpu.context, tie_break=tape.tie_break)
    found = course_of(pieces, lengths, allocator)
    return LengthCourse(name=name, allocated=found.allocated, reserved=found.reserved, failed_step=found.failed)


def _check_alike(pieces: Mapping[int, _Pieces]) -> None:
    for kind in range(3):
        if len({len(each[kind].leaves) for each in pieces.values()}) > 1:
            raise NotAlikeError("at some lengths it leaves more tensors for the next step than at others")


@dataclass
class _Probes:
    """Runs of a program at some lengths, until lines between them say what all others ask for."""

    session: Session
    gpu: GPU
    families: Families = field(default_factory=Families)
    runs: dict[int, Tape] = field(default_factory=dict)
    uncertain: list[tuple[int, int]] = field(default_factory=list)
    margin: int = 0

    @property
    def tape(self) -> Tape:
        """Any of the runs'."""
        return next(iter(self.runs.values()))

    def fill(self, lengths: Sequence[int]) -> None:
        """Run what has to be run; the lengths rise."""
        self._run(lengths[0])
        if len(lengths) > 1:
            self._run(lengths[-1])
            self._between(lengths)
        joined: list[tuple[int, int]] = []
        for low, high in self.uncertain:
            if joined and joined[-1][1] == low:
                low = joined.pop()[0]
            joined.append((low, high))
        self.uncertain = joined

    def tape_at(self, length: int) -> Tape:
        """What a length asks for."""
        if length in self.runs:
            return self.runs[length]
        family = self.families.nearest(length)
        if family is None:
            raise NotAlikeError("no two of its lengths ask for the same things in the same order")
        return family.at(length)

    def _run(self, length: int) -> bool:
        """Run a length; whether its lasting requests are what the runs before it had said."""
        run = enough(self.session, self.gpu, length, detailed=True)
        assert run.profile is not None
        requests = requests_of(length, run.profile.tape)
        family = self.families.nearest(length)
        said = None if family is None else requests_of(length, family.at(length))
        self.families.add(requests)
        self.runs[length] = requests.tape
        if said is None or said.pattern != requests.pattern:
            return False
        sizes, foreseen = (each.tape.allocations["requested"] for each in (requests, said))
        if not np.array_equal(sizes[requests.lasting], foreseen[said.lasting]):
            return False
        self.margin = max(self.margin, _off(requests, said))
        return True

    def _between(self, lengths: Sequence[int]) -> None:
        """Look between two lengths that were run."""
        first, *inner, last = lengths
        if not inner:
            return
        if len(self.runs) >= _MAX_RUNS:
            self.uncertain.append((first, last))
            return
        # What kernels round up to a power of two lies on a line at multiples of it alone: an odd length shows that.
        middle = (first + last) / 2
        odd = [length for length in inner if evenness(length) == min(map(evenness, inner))]
        probe = min(odd, key=lambda length: abs(length - middle))
        if not self._run(probe):
            place = lengths.index(probe)
            self._between(lengths[: place + 1])
            self._between(lengths[place:])

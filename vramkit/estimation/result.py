"""``Estimate``: what a prediction comes to, and what can be asked of it afterwards. Knows sessions; needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from typing import Any, ClassVar, cast, get_args

from typing_extensions import deprecated

from .. import gpus
from ..counts import check_count
from ..engines import EngineName, Run, Session
from ..engines.enough_memory import enough
from ..errors import UsageError, VramkitError, printable, shown
from ..gpus import GPU
from ..programs.sizeless import without_size
from ..reports.html.prediction import Prediction
from ..results import archive, document
from ..results.checks import DamagedError, integer, items, record, text
from ..results.readable import ReadableResult, write_page
from ..scaling.largest import MAX_PREDICTED_BATCH, Largest
from ..scaling.replays import allocator_of, replayed
from ..scaling.rows import BatchSizeRow, Rows
from ..sizes import format_size
from ..tape.breakdown import Breakdown
from ..tape.events import Phase, Tape
from ..tape.memory import MemoryResult, OutOfMemory

_TIMES_A_QUARTER = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Estimate(ReadableResult):
    """What a training program's memory will be on a card: what ``vramkit.estimate`` returns.

    ::

        estimate = vramkit.estimate(model, batch, optimizer=torch.optim.AdamW, gpu="a100-40gb")
        estimate.peak_reserved
        estimate.fits("t4")
        estimate.largest_batch_size()

    Everything that a measured ``Profile`` shows is here too. Where the program does not fit the card, the figures are
    of the same card with enough memory, ``failure`` says where the card's own ran out, and ``fits()`` is False.

    Known limitations: values are zeros where the virtual engine ran, so a size that depends on values on the device
    (``nonzero``, a boolean mask, expert routing) is that of zeros. The context (``outside``) is assumed; see `GPU`.
    A copy in another process (pickled), and what ``vramkit.load`` makes of a saved one, has the figures, and can't run
    the program again.
    """

    origin: ClassVar[str] = "predicted"

    engine: EngineName
    """What made the prediction: "virtual" ran the step on the virtual GPU, "fake" on fake tensors."""
    gpu: GPU
    """The card."""
    batch_size: int
    """Rows of the batch; 0: it has no dimension 0."""
    failure: OutOfMemory | None = None
    """Where the card's own memory ran out; None: it did not."""
    _session: Session | None = field(default=None, repr=False, compare=False)
    """Runs the program again; None in a copy that was pickled or saved."""

    def fits(self, gpu: str | int | GPU | None = None) -> bool:
        """Whether the program runs to its end on a card, the CUDA context counted.

        It is run on that card: one of another generation may choose other kernels, with other workspaces, and torch's
        allocator gives back what it has cached before it gives up, so a card can be smaller than ``peak_reserved``.

        Args:
            gpu: as for ``vramkit.estimate``; None: this estimate's.

        Raises:
            UsageError: an unknown GPU, or a pickled copy and another card than its own.
        """
        card = self.gpu if gpu is None else gpus.find(gpu)
        if card == self.gpu:
            return self.failure is None
        return not self._runner("fits() on another card").run(card, self.batch_size, detailed=False).ran_out

    def at(self, batch_size: int) -> Estimate:
        """The same program with another batch size.

        Args:
            batch_size: rows. The sample batch's are repeated; a callable makes the batch.

        Raises:
            UsageError: no size, a batch that has none, or the program fails at that size.
        """
        size = self._checked("at()", batch_size)
        if size == self.batch_size:
            return self
        return predict(self._runner("at()"), self.gpu, size)

    def batch_sizes(self, sizes: Iterable[int], gpu: str | int | GPU | None = None) -> tuple[BatchSizeRow, ...]:
        """What each of some batch sizes needs.

        ::

            for row in estimate.batch_sizes([64, 256, 1024]):
                print(row.batch_size, row.peak_reserved, row.fits)

        The smallest and the largest are run, and one between them. If everything that this one asks for lies on the
        line between the two others, the rest are read off it and served by the simulated allocator, in milliseconds;
        where it does not, it is asked of each half, and in the end each size is run.

        Args:
            sizes: rows of the batch.
            gpu: as for ``vramkit.estimate``; None: this estimate's.

        Returns:
            A row for each, in the order given; ``was_run`` says which were run.

        Raises:
            UsageError: as for ``at``.
            DoesNotFit: a size needs more than the largest virtual card has, 4 TiB.
        """
        asked = [self._checked("batch_sizes()", size) for size in sizes]
        card = self.gpu if gpu is None else gpus.find(gpu)
        rows = Rows(self._runner("batch_sizes()"), card)
        if card == self.gpu:
            rows.know(self.batch_size, self.tape, fits=self.failure is None)
        rows.fill(asked)
        return tuple(rows.rows[size] for size in asked)

    def largest_batch_size(self, gpu: str | int | GPU | None = None) -> int:
        """The largest batch with which the program runs to its end on a card.

        That size was run and ran to its end, and the next one was run and did not. Which sizes are worth a run, the
        simulated allocator says, from what two or three of them asked for.

        Args:
            gpu: as for ``vramkit.estimate``; None: this estimate's.

        Returns:
            Rows; at most 2**24, for a program whose memory does not grow with its batch.

        Raises:
            DoesNotFit: not even one row does.
            UsageError: as for ``at``.
        """
        card = self.gpu if gpu is None else gpus.find(gpu)
        session = self._runner("largest_batch_size()")
        start = self._checked("largest_batch_size()", self.batch_size or 1)
        search = Largest(session, card)
        if card == self.gpu and self.failure is None:
            search.know(start, self.tape)
        return search.run(start)

    @deprecated(
        "Estimate.max_batch_size(gpu) is Estimate.largest_batch_size(gpu) now: max_batch_size is a number elsewhere"
    )
    def max_batch_size(self, gpu: str | int | GPU | None = None) -> int:
        """The old name of ``largest_batch_size``."""
        return self.largest_batch_size(gpu)

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything but the program to one file; `vramkit.load` opens it."""
        archive.save(self, path, _particulars(self))

    def to_dict(self) -> dict[str, Any]:
        """As a profile's, and what was predicted for which card."""
        prediction = {
            "engine": self.engine,
            "gpu": {**asdict(self.gpu), "capability": list(self.gpu.capability)},
            "batch_size": self.batch_size or None,
            "fits": self.fits(),
            "failure": None if self.failure is None else document.failure(self.failure),
        }
        return {**super().to_dict(), **prediction}

    def to_html(
        self,
        path: str | PathLike[str],
        *,
        beside: ReadableResult | None = None,
        batch_sizes: Iterable[int] | None = None,
    ) -> None:
        """Write everything as one web page, as a profile's, with what other batch sizes need beside the known cards.

        ::

            estimate.to_html("report.html", batch_sizes=[64, 256, 1024])

        Args:
            path: of the file; ``.html`` is usual. An existing file is replaced.
            beside: another result, whose figures are shown beside this one's.
            batch_sizes: which other sizes, as for ``batch_sizes``: some of them are run. None: powers of two times this
                estimate's, from a quarter to eight times, as far as the program can be run again. Empty: none.

        Raises:
            UsageError, DoesNotFit: as for ``batch_sizes``, of sizes that were given.
            OSError: the file can't be written.
        """
        curve, why = self._curve(batch_sizes)
        prediction = Prediction(
            engine=self.engine,
            gpu=self.gpu,
            batch_size=self.batch_size,
            verdict=self._verdict(),
            fits=self.failure is None,
            curve=curve,
            why_no_curve=why,
        )
        write_page(self, path, self.report(), prediction=prediction, beside=beside)

    def _curve(self, asked: Iterable[int] | None) -> tuple[tuple[BatchSizeRow, ...], str]:
        """What rising batch sizes need; or why nobody knows."""
        if asked is None and not self.batch_size:
            return (), ""
        around = (self.batch_size * times // 4 for times in _TIMES_A_QUARTER)
        sizes = [min(max(size, 1), MAX_PREDICTED_BATCH) for size in around] if asked is None else [*asked]
        if not sizes:
            return (), ""
        try:
            rows = self.batch_sizes(sizes)
        except VramkitError as error:
            if asked is not None:
                raise
            return (), f"What other batch sizes need is not known. {error}"
        return tuple(sorted({row.batch_size: row for row in rows}.values(), key=lambda row: row.batch_size)), ""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    def report(self) -> str:
        """As a profile's report; the first line says that this is a prediction, the last whether it fits."""
        first, newline, rest = super().report().partition("\n")
        first = first.replace("vramkit: memory", f"vramkit: predicted memory ({self.engine} engine)", 1)
        return f"{first}{newline}{rest}\n\n{self._verdict()}"

    def _verdict(self) -> str:
        needed = self.peak_reserved + self.gpu.context
        sizes = f"{format_size(needed)} at most, of {format_size(self.gpu.memory)}"
        if self.failure is None:
            return f"Fits {self.gpu.product}: reserved and CUDA context are {sizes}."
        module = f" of {printable(self.failure.module)}" if self.failure.module else ""
        phase = self.failure.phase
        place = "outside of the steps' phases" if phase is Phase.OUTSIDE else f"in the {phase.name.lower()}{module}"
        return (
            f"DOES NOT FIT {self.gpu.product}: reserved and CUDA context would be {sizes}.\n"
            f"It runs out when {format_size(self.failure.requested)} are asked for {place}."
        )

    def _runner(self, what: str) -> Session:
        if self._session is None:
            raise UsageError(
                f"{what} of an estimate was called",
                "the estimate comes from another process, or from a file",
                "it has the figures, and not the program",
                "Call vramkit.estimate(...) again",
            )
        return self._session

    def _checked(self, what: str, size: int) -> int:
        size = check_count(f"{what} of an estimate was called", "batch_size", size, maximum=MAX_PREDICTED_BATCH)
        if not self.batch_size:
            raise without_size(f"An estimate for batch size {size} was asked for")
        return size


def _particulars(estimate: Estimate) -> dict[str, Any]:
    """What an estimate has and a profile has not, as JSON can carry it."""
    shared = {each.name for each in fields(MemoryResult)} | {"_session"}
    own = {each.name: getattr(estimate, each.name) for each in fields(Estimate) if each.name not in shared}
    failure = None if estimate.failure is None else asdict(estimate.failure)
    return {**own, "gpu": asdict(estimate.gpu), "failure": failure}


def restored(saved: MemoryResult, particulars: Mapping[str, object]) -> Estimate:
    """An estimate from a file.

    Args:
        saved: what it shares with a profile, checked.
        particulars: the rest, as `Estimate.save` wrote it or anyone else did.

    Raises:
        KeyError: something is missing.
        DamagedError: something is not what it can be.
    """
    failure = particulars["failure"]
    return Estimate(
        **{each.name: getattr(saved, each.name) for each in fields(MemoryResult)},
        engine=_engine(particulars["engine"]),
        gpu=_gpu(record(particulars["gpu"], "the card")),
        batch_size=integer(particulars["batch_size"], "the batch size"),
        failure=None if failure is None else _failure(record(failure, "the failure")),
    )


def _engine(saved: object) -> EngineName:
    engine = text(saved, "the engine")
    if engine not in get_args(EngineName):
        raise DamagedError(f"the engine can't be {shown(engine)}")
    return cast(EngineName, engine)


def _gpu(saved: Mapping[str, object]) -> GPU:
    figures = {each.name for each in fields(GPU)} - {"name", "product", "capability"}
    major, minor = items(saved["capability"], "the card's capability")
    try:
        return GPU(
            name=text(saved["name"], "the card's name"),
            product=text(saved["product"], "the card's name"),
            capability=(integer(major, "the card's capability"), integer(minor, "the card's capability")),
            **{name: integer(saved[name], f"the card's {name}") for name in figures},
        )
    except UsageError as error:
        raise DamagedError(str(error)) from error


def _failure(saved: Mapping[str, object]) -> OutOfMemory:
    parts = {"graph_pools": 0, **record(saved["breakdown"], "the failure's breakdown")}  # older files lack it
    return OutOfMemory(
        event=integer(saved["event"], "the failure's event", minimum=-1),
        requested=integer(saved["requested"], "the request that failed"),
        phase=Phase(integer(saved["phase"], "the failure's phase", maximum=max(Phase))),
        module=text(saved["module"], "the failure's module"),
        device_free=integer(saved.get("device_free", 0), "what the device had free"),
        breakdown=Breakdown(
            **{each.name: integer(parts[each.name], f"the failure's {each.name}") for each in fields(Breakdown)}
        ),
    )


def predict(session: Session, gpu: GPU, batch_size: int) -> Estimate:
    """Run a program on a card, and where that is too small, on the same card with enough memory.

    Raises:
        DoesNotFit: even the largest virtual card is too small.
    """
    run = session.run(gpu, batch_size)
    failure = None
    if run.ran_out:
        assert run.profile is not None
        failures = run.profile.out_of_memory
        # Without an event the failure was beside the allocator: an error that a program raised itself.
        failure = failures[-1] if failures else _somewhere(run)
        run = enough(session, gpu, batch_size, detailed=True)
    profile = run.profile
    assert profile is not None
    return Estimate(
        tape=profile.tape,
        device_name=gpu.product,
        capacity=gpu.memory,
        outside=gpu.context,
        nccl=profile.nccl,
        versions=profile.versions,
        notes=(*profile.notes, *run.notes, *_of_other_addresses(profile.tape, gpu)),
        engine=session.engine,
        gpu=gpu,
        batch_size=batch_size,
        failure=failure,
        _session=session,
    )


def _of_other_addresses(tape: Tape, gpu: GPU) -> list[str]:
    """What would be reserved if the driver placed segments the other way round, where that matters."""
    if tape.tie_break == "age":
        return []
    falling, rising = (
        replayed(tape, allocator_of(tape, gpu.memory, context=gpu.context, address_order=order)).reserved
        for order in ("falling", "rising")
    )
    if falling != tape.peak_reserved or falling == rising:
        return []
    return [
        "Of equally large free blocks this torch takes the one with the lowest address. It was assumed that the driver "
        f"places segments downwards; upwards, {format_size(rising)} would be reserved at most."
    ]


def _somewhere(run: Run) -> OutOfMemory:
    assert run.profile is not None
    return OutOfMemory(event=-1, requested=0, phase=Phase.OUTSIDE, module="", breakdown=run.profile.final)

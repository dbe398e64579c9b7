"""``Estimate``: what a prediction comes to, and what can be asked of it afterwards. Knows sessions; needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from typing import Any

from . import archive, gpus
from .breakdown import Breakdown
from .engines import EngineName, Run, Session
from .errors import DoesNotFit, UsageError
from .events import Phase
from .gpus import GPU
from .result import MemoryResult, OutOfMemory
from .sizes import format_size
from .virtual_gpu._handle import MAX_MEMORY

LARGEST_BATCH = 1 << 24
"""No larger batch is tried: a program whose memory does not grow with its batch would never stop fitting."""

_IDLE_NOTE = "No forward, backward or optimizer step used the GPU: does the step use the very model that was passed?"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSizeRow:
    """What one batch size needs."""

    batch_size: int
    peak_allocated: int
    """Highest ``memory_allocated()``, bytes."""
    peak_reserved: int
    """Highest ``memory_reserved()``, bytes."""
    used: int
    """``peak_reserved`` and the CUDA context, bytes: what ``nvidia-smi`` would show at most."""
    capacity: int
    """Bytes of the card."""
    fits: bool
    """The program ran to its end on the card. Where False, the figures are of the same card with enough memory."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Estimate(MemoryResult):
    """What a training program's memory will be on a card: what ``vramkit.estimate`` returns.

    ::

        estimate = vramkit.estimate(model, batch, optimizer=torch.optim.AdamW, gpu="a100-40gb")
        estimate.peak_reserved
        estimate.fits("t4")
        estimate.max_batch_size()

    Everything that a measured ``Profile`` shows is here too. Where the program does not fit the card, the figures are
    of the same card with enough memory, ``failure`` says where the card's own ran out, and ``fits()`` is False.

    Known limitations: values are zeros where the virtual engine ran, so a size that depends on values on the device
    (``nonzero``, a boolean mask, expert routing) is that of zeros. The context (``outside``) is assumed; see `GPU`.
    A copy in another process (pickled), and what ``vramkit.load`` makes of a saved one, has the figures, and can't run
    the program again.
    """

    engine: EngineName
    """What made the prediction: "virtual" ran the step on the virtual GPU, "fake" on fake tensors."""
    gpu: GPU
    """The card."""
    batch_size: int
    """Rows of the batch; 0: it has no dimension 0."""
    failure: OutOfMemory | None = None
    """Where the card's own memory ran out; None: it did not."""
    session: Session | None = field(default=None, repr=False, compare=False)
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
        return not self._session("fits() on another card").run(card, self.batch_size, detailed=False).ran_out

    def at(self, batch_size: int) -> Estimate:
        """The same program with another batch size.

        Args:
            batch_size: rows. The sample batch's are repeated; a callable makes the batch.

        Raises:
            UsageError: no size, a batch that has none, or the program fails at that size.
        """
        session = self._session("at()")
        return predict(session, self.gpu, self._checked(batch_size))

    def batch_sizes(self, sizes: Iterable[int]) -> tuple[BatchSizeRow, ...]:
        """What each of some batch sizes needs.

        ::

            for row in estimate.batch_sizes([64, 256, 1024]):
                print(row.batch_size, row.peak_reserved, row.fits)

        Args:
            sizes: rows of the batch.

        Returns:
            A row for each, in the order given. Each size was run.

        Raises:
            UsageError: as for ``at``.
        """
        session = self._session("batch_sizes()")
        return tuple(_row(session, self.gpu, self._checked(size)) for size in sizes)

    def max_batch_size(self, gpu: str | int | GPU | None = None) -> int:
        """The largest batch with which the program runs to its end on a card.

        That size was run and ran to its end, and the next one was run and did not. Between them the search goes by the
        line through the sizes that were run already.

        Args:
            gpu: as for ``vramkit.estimate``; None: this estimate's.

        Returns:
            Rows; at most 2**24, for a program whose memory does not grow with its batch.

        Raises:
            DoesNotFit: not even one row does.
            UsageError: as for ``at``.
        """
        card = self.gpu if gpu is None else gpus.find(gpu)
        session = self._session("max_batch_size()")
        return _Search(session, card).run(self._checked(self.batch_size or 1))

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything but the program to one file; `vramkit.load` opens it."""
        archive.save(self, path, _particulars(self))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "session": None}

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
        module = f" of {self.failure.module}" if self.failure.module else ""
        phase = self.failure.phase
        place = "outside of the steps' phases" if phase is Phase.OUTSIDE else f"in the {phase.name.lower()}{module}"
        return (
            f"DOES NOT FIT {self.gpu.product}: reserved and CUDA context would be {sizes}.\n"
            f"It runs out when {format_size(self.failure.requested)} are asked for {place}."
        )

    def _session(self, what: str) -> Session:
        if self.session is None:
            raise UsageError(
                f"{what} of an estimate was called",
                "the estimate comes from another process, or from a file",
                "it has the figures, and not the program",
                "Call vramkit.estimate(...) again",
            )
        return self.session

    def _checked(self, size: int) -> int:
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= LARGEST_BATCH:
            raise UsageError(
                "A batch size was expected", f"got {size!r}", instead=f"Give a whole number, 1 to {LARGEST_BATCH}"
            )
        if not self.batch_size:
            raise UsageError(
                f"An estimate for batch size {size} was asked for",
                "no tensor of the batch has a dimension 0",
                "so nothing says how it grows",
                "Give a batch whose tensors begin with the batch dimension, or a callable size -> batch",
            )
        return size


def _particulars(estimate: Estimate) -> dict[str, Any]:
    """What an estimate has and a profile has not, as JSON can carry it."""
    shared = {each.name for each in fields(MemoryResult)} | {"session"}
    own = {each.name: getattr(estimate, each.name) for each in fields(Estimate) if each.name not in shared}
    failure = None if estimate.failure is None else asdict(estimate.failure)
    return {**own, "gpu": asdict(estimate.gpu), "failure": failure}


def restored(saved: MemoryResult, particulars: dict[str, Any]) -> Estimate:
    """An estimate from a file. Raises: anything, if the file is damaged."""
    own = dict(particulars)
    gpu, failure = own.pop("gpu"), own.pop("failure")
    if failure is not None:
        breakdown, phase = Breakdown(**failure.pop("breakdown")), Phase(failure.pop("phase"))
        failure = OutOfMemory(breakdown=breakdown, phase=phase, **failure)
    return Estimate(
        **{each.name: getattr(saved, each.name) for each in fields(MemoryResult)},
        gpu=GPU(**{**gpu, "capability": tuple(gpu["capability"])}),
        failure=failure,
        **own,
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
        run = _enough(session, gpu, batch_size, detailed=True)
    profile = run.profile
    assert profile is not None
    idle = not (profile.tape.events["phase"] != Phase.OUTSIDE).any()
    return Estimate(
        tape=profile.tape,
        device_name=gpu.product,
        capacity=gpu.memory,
        outside=gpu.context,
        versions=profile.versions,
        notes=(*profile.notes, *run.notes, *[_IDLE_NOTE] * idle),
        engine=session.engine,
        gpu=gpu,
        batch_size=batch_size,
        failure=failure,
        session=session,
    )


def _somewhere(run: Run) -> OutOfMemory:
    assert run.profile is not None
    return OutOfMemory(event=-1, requested=0, phase=Phase.OUTSIDE, module="", breakdown=run.profile.final)


def _enough(session: Session, gpu: GPU, batch_size: int, *, detailed: bool) -> Run:
    run = session.run(gpu, batch_size, unlimited=True, detailed=detailed)
    if run.ran_out:
        rows = f" with batch size {batch_size}" if batch_size else ""
        raise DoesNotFit(
            f"The memory of a program{rows} was to be predicted",
            f"it ran out at {format_size(run.peak_reserved)}",
            f"No virtual card is larger than {format_size(MAX_MEMORY)}",
            "Predict a smaller batch or a part of the model",
        )
    return run


def _row(session: Session, gpu: GPU, batch_size: int) -> BatchSizeRow:
    run = session.run(gpu, batch_size, detailed=False)
    fits = not run.ran_out
    if not fits:
        run = _enough(session, gpu, batch_size, detailed=False)
    return BatchSizeRow(
        batch_size=batch_size,
        peak_allocated=run.peak_allocated,
        peak_reserved=run.peak_reserved,
        used=run.peak_reserved + gpu.context,
        capacity=gpu.memory,
        fits=fits,
    )


class _Search:
    """The largest batch that fits: one that was seen to fit, where the next was seen not to.

    It assumes that what fits does so at every smaller size, and that reserved memory grows roughly with the batch. The
    second only costs runs where it is wrong; the first is wrong where a smaller batch chooses a kernel with a larger
    workspace, and then the answer is one of several.
    """

    def __init__(self, session: Session, gpu: GPU) -> None:
        self._session = session
        self._gpu = gpu
        self._reserved: dict[int, int] = {}  # batch size -> peak reserved bytes, of those that fit
        self._low = 0  # this fits, or is 0
        self._high = LARGEST_BATCH + 1  # this does not, or is not allowed

    def run(self, start: int) -> int:
        """Search from a size that may or may not fit."""
        size = start
        while True:
            fits = self._try(size)
            guess = self._guess()
            # Large strides until the line through two sizes says that the end is near: sizes close to each other tell
            # nothing, because segments are of 2 MiB and more.
            if self._high <= LARGEST_BATCH and (self._low or self._high == 1):
                self._close_in(guess)
                break
            if fits and (guess <= 4 * size or size == LARGEST_BATCH):
                self._close_in(guess)
                break
            size = min(4 * size, LARGEST_BATCH) if fits else max(1, size // 4)
        if not self._low:
            raise DoesNotFit(
                f"The largest batch that fits {self._gpu} was asked for",
                "one row runs out of memory",
                instead="Choose a larger card, or make the model or a row smaller",
            )
        return self._low

    def _close_in(self, guess: int) -> None:
        """From a guess one step, then in longer and longer strides, to the other side of the end; then in halves."""
        if self._high - self._low < 2:
            return
        guess = min(max(guess, self._low + 1), self._high - 1)
        # Segments of 2 MiB and more let a line through small batches miss the end of large ones by about a thousandth.
        stride, longer = 1, max(2, guess >> 11)
        if self._try(guess):
            while self._low + stride < self._high and self._try(self._low + stride):
                stride, longer = longer, 2 * longer
        else:
            while self._high - stride > self._low and not self._try(self._high - stride):
                stride, longer = longer, 2 * longer
        while self._high - self._low > 1:
            self._try((self._low + self._high) // 2)

    def _try(self, size: int) -> bool:
        run = self._session.run(self._gpu, size, detailed=False)
        if run.ran_out:
            self._high = size
            return False
        self._low = size
        self._reserved[size] = run.peak_reserved
        return True

    def _guess(self) -> int:
        """Where the line through the two largest sizes that fit reaches the card's memory."""
        if len(self._reserved) < 2:
            return (self._low + self._high) // 2
        (first, lower), (second, upper) = sorted(self._reserved.items())[-2:]
        slope = (upper - lower) / (second - first)
        room = self._gpu.memory - self._gpu.context - upper
        return LARGEST_BATCH if slope <= 0 else min(LARGEST_BATCH, second + int(room / slope))

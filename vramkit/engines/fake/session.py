"""The fake engine: a program on fake tensors, run in this process on a copy of it. Makes sessions and runs of them.

Knows what a run comes to and what is told of one that fails. What operators do there, the recorder knows.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from typing import Literal

import torch

from ..._version import __version__
from ...allocator import AllocatorConf, DeviceCachingAllocator
from ...allocator.conf import alloc_conf_of_process
from ...errors import DeviceError, UsageError
from ...gpus import GPU
from ...out_of_memory import is_out_of_memory
from ...profiling.profiler import is_measuring
from ...profiling.settling import tape_of
from ...programs import settings
from ...programs.batches import described
from ...programs.counting import LayerCounter, StepCounter
from ...programs.failed import Failed
from ...programs.failures import StepTraceback, batch_moved, failure_of, more_telling, step_failed
from ...programs.layer_count import LayerCounts, StepCount
from ...programs.packing import Parcel, pack
from ...programs.program import Program, Rewrite
from ...programs.training import Training
from ...programs.unpacking import Opened, unpack
from ...programs.use import check_use
from ...results.profile import Profile
from ...torch_internals.fakes import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from ...torch_internals.versions import TIE_BREAK
from .. import Run
from .in_place import counts_of_the_only_holder
from .isolation import apart, cuda_for_fakes
from .overlay.backward import let_go_of_graphs
from .random_numbers import OwnDraws
from .receiving import classes_of_its_own, move_to_cuda, receiver_of
from .recorder import Recorder
from .strangers import Strangers

_COMPILED = (
    "What torch.compile would compile ran as it is written: fused kernels keep less, and compiling takes memory, too."
)
_VIRTUAL = 'Use engine="virtual", where values are zeros and every kernel is real'


def open_session(program: Program, alloc_conf: str | None, *, instead_of: DeviceError | None = None) -> FakeSession:
    """Make a program ready to run on fake tensors.

    Args:
        program: is copied; what it becomes later does not count.
        alloc_conf: text of ``PYTORCH_CUDA_ALLOC_CONF``; None: as in the environment.
        instead_of: why the virtual engine, which would have been preferred, can't be here.

    Raises:
        UsageError: the program can't be copied.
    """
    if alloc_conf is None:
        alloc_conf = alloc_conf_of_process()
    notes: tuple[str, ...] = ()
    if instead_of is not None:
        why = " ".join(str(instead_of).split())
        notes = (f"The fake engine made this prediction. The virtual one, which is exact, can't be here: {why}",)
    with apart(), OwnDraws():  # type: ignore[no-untyped-call] # torch's
        parcel = pack(program, apart=True)
    return FakeSession(
        parcel,
        gives_batch=program.step is not None,
        called=described(program.batch),
        alloc_conf=alloc_conf,
        notes=notes,
    )


class FakeSession:
    """One program, ready to run on fake tensors as if on any card.

    Args:
        parcel: the program.
        gives_batch: it has a step of its own, which is given the batch.
        called: how the plain step calls the model, for the text of an error.
        alloc_conf: as in ``PYTORCH_CUDA_ALLOC_CONF``.
        notes: what every run of it says.
    """

    engine: Literal["fake"] = "fake"

    def __init__(
        self, parcel: Parcel, *, gives_batch: bool, called: str, alloc_conf: str, notes: tuple[str, ...] = ()
    ) -> None:
        self._parcel = parcel
        self._gives_batch = gives_batch
        self._move_batch = parcel.move_batch
        self._called = "" if gives_batch else called
        self._conf = AllocatorConf.parse(alloc_conf)
        self._conf_text = alloc_conf
        self._notes = (*parcel.notes, *notes, *[_COMPILED] * parcel.is_compiled)
        self._settings = settings.read()
        self._rewrite: Rewrite | None = None

    def apart(self) -> FakeSession:
        """See `Session.apart`. Fakes replace parts of torch in this process."""
        return self

    def rewritten(self, rewrite: Rewrite, alloc_conf: str | None = None) -> FakeSession:
        """See `Session.rewritten`."""
        other = copy(self)
        vars(other).update(_rewrite=rewrite)
        if alloc_conf is not None:
            vars(other).update(_conf=AllocatorConf.parse(alloc_conf), _conf_text=alloc_conf)
        return other

    def run(self, gpu: GPU, batch_size: int, *, unlimited: bool = False, detailed: bool = True) -> Run:
        """See `Session.run`."""
        return self.record(gpu, batch_size, unlimited=unlimited, detailed=detailed)[0]

    def count_layers(self, gpu: GPU, batch_size: int) -> LayerCounts:
        """See `Session.count_layers`."""
        counted: list[LayerCounts] = []
        self.record(gpu, batch_size, unlimited=True, detailed=False, count=counted.append)
        return counted[-1]

    def count_step(self, gpu: GPU, batch_size: int) -> StepCount:
        """See `Session.count_step`. Where fakes have no device of their own, nobody sees what is copied."""
        counter = StepCounter(sees_copies=torch.cuda.is_available())
        self.record(gpu, batch_size, unlimited=True, detailed=False, count=counter)
        return counter.count()

    def record(
        self,
        gpu: GPU,
        batch_size: int,
        *,
        unlimited: bool = False,
        detailed: bool = True,
        count: Callable[[LayerCounts], object] | StepCounter | None = None,
    ) -> tuple[Run, Recorder]:
        """As `run`, with what was recorded.

        Args:
            gpu, batch_size, unlimited, detailed: as of `run`.
            count: is told what is in the program's layers, and only one step runs then; or counts a step.
        """
        if is_measuring():
            raise UsageError(
                "vramkit.estimate was asked for the fake engine",
                "a vramkit.profile is measuring in this process",
                "It would take the prediction's step for the program's own",
                'Estimate before the profile, or use engine="virtual"',
            )
        with _lock:
            answer = self._attempt(gpu, batch_size, unlimited, detailed, count)
            if isinstance(answer, Failed) and answer.step and self._gives_batch and not self._move_batch:
                self._move_batch = True
                again = self._attempt(gpu, batch_size, unlimited, detailed, count)
                if isinstance(again, Failed):
                    self._move_batch = False
                    answer = more_telling(answer, again)
                else:
                    self._notes, answer = (*self._notes, batch_moved(answer)), again
        if isinstance(answer, Failed):
            raise self._error(answer) from StepTraceback("on fake tensors", answer.traceback)
        ran_out, recorder = answer
        run = Run(
            ran_out=ran_out,
            peak_allocated=recorder.allocator.peak_allocated_bytes,
            peak_reserved=recorder.allocator.peak_reserved_bytes,
            profile=self._profile(gpu, recorder) if detailed else None,
            notes=(*self._notes, *recorder.notes()),
        )
        if self._gives_batch and run.profile is not None and not ran_out:
            check_use(run.profile.tape, self._parcel.models)
        return run, recorder

    def _attempt(
        self,
        gpu: GPU,
        batch_size: int,
        unlimited: bool,
        detailed: bool,
        count: Callable[[LayerCounts], object] | StepCounter | None,
    ) -> tuple[bool, Recorder] | Failed:
        """Whether the program ran out of memory, and what it asked for; or how it failed."""
        capacity = None if unlimited else gpu.memory
        allocator = DeviceCachingAllocator(
            capacity, self._conf, context=gpu.context, tie_break=TIE_BREAK, history=detailed
        )
        recorder = Recorder(allocator, gpu, detailed=detailed)
        froze_itself = gc.get_freeze_count() > 0
        with apart():
            strangers = Strangers(by_collector=not froze_itself)
            settings.apply(self._settings)
            counts_of_the_only_holder()
            mode = FakeTensorMode(allow_non_fake_inputs=True)
            mode.cache_enabled = False  # it would hold storages; what it is for, `ResultCache` does
            try:
                with classes_of_its_own(), OwnDraws():  # type: ignore[no-untyped-call] # torch's
                    opened = unpack(self._parcel.content, receiver_of(mode))
            except Exception as error:
                return failure_of("unpack a copy of the program", error)
            answer = self._train(opened, batch_size, mode, recorder, strangers, count)
            del opened
            if recorder.lives():
                let_go_of_graphs()
                gc.collect()
        if strangers.refusal is not None:
            raise strangers.refusal
        if recorder.lives() and not isinstance(answer, Failed):
            return Failed(doing="leave nothing behind", kind="", text=recorder.lives(), traceback="")
        return answer

    def _train(
        self,
        opened: Opened,
        batch_size: int,
        mode: FakeTensorMode,
        recorder: Recorder,
        strangers: Strangers,
        count: Callable[[LayerCounts], object] | StepCounter | None,
    ) -> tuple[bool, Recorder] | Failed:
        program = replace(opened.program, rewrite=self._rewrite)
        if count is not None:
            program = replace(program, steps=StepCounter.STEPS if isinstance(count, StepCounter) else 1)
        training = Training(program, batch_size, self._move_batch)
        hooks = recorder.hooks if recorder.detailed else None

        def arrive() -> None:
            for tensor in opened.on_cuda:
                move_to_cuda(tensor)

        if hooks is not None:
            hooks.add_models(opened.program.models)
            hooks.add_optimizers(opened.program.optimizers)
        with ExitStack() as stack:
            stack.enter_context(cuda_for_fakes(recorder))
            strangers.guard(stack, opened.owners)
            recorder.run_on_host = strangers.run_on_host
            stack.enter_context(mode)
            stack.enter_context(recorder)
            if hooks is not None:
                stack.callback(recorder.stop)
                hooks.install(stack)
                stack.callback(hooks.finish)
            after_step = _nothing if hooks is None else hooks.step
            if isinstance(count, StepCounter):
                after_step = stack.enter_context(count).after_step
            elif count is not None:
                counter = stack.enter_context(LayerCounter(program.models))
                stack.callback(lambda: count(counter.counts()))
            try:
                training.run(arrive, after_step)
            except BaseException as error:  # sys.exit() in a step is a failure like any other
                if isinstance(error, KeyboardInterrupt):
                    raise
                if not is_out_of_memory(error):
                    return failure_of(training.doing, error)
                return True, recorder
        return False, recorder

    def _error(self, failure: Failed) -> UsageError:
        asked = f"vramkit.estimate was to {failure.doing} on fake tensors"
        if not failure.kind:
            return UsageError(
                asked,
                f"{failure.text} outlive it",
                "Something beside the step's copy keeps them, such as a module's cache, and would hand them out",
                'Use engine="virtual", which runs in a process of its own',
            )
        if failure.kind in _VALUES:
            return UsageError(
                asked,
                f"it looks at a value that only the GPU would know: {failure.text}",
                "Fake tensors have shapes, and no values",
                f"Take what looks at it (.item(), .numpy(), nonzero, a boolean mask) out of the step. {_VIRTUAL}",
            )
        if failure.kind in _NO_KERNEL and "sparse" in failure.text.lower():
            return UsageError(
                asked,
                failure.text.partition("\n")[0],
                "Fake tensors do not follow sparse ones, or their gradients",
                _VIRTUAL,
            )
        if failure.kind in _NO_KERNEL:
            return UsageError(
                asked,
                failure.text.partition("\n")[0],
                "Nothing says what this operator's results look like",
                f"Describe it with torch.library.register_fake. {_VIRTUAL}",
            )
        return step_failed(failure, self._called)

    def _profile(self, gpu: GPU, recorder: Recorder) -> Profile:
        marks = recorder.marks
        recording = recorder.recording(self._conf_text)
        return Profile(
            tape=tape_of(recording, marks, recorder.hooks.modules, recorder.hooks.trained_by()),
            device_name=gpu.product,
            capacity=gpu.memory,
            outside=gpu.context,
            versions={"torch": torch.__version__, "vramkit": __version__, "python": sys.version.split()[0]},
        )


_VALUES = {DataDependentOutputException.__name__, DynamicOutputShapeException.__name__}
_NO_KERNEL = {UnsupportedOperatorException.__name__, NotImplementedError.__name__}
_lock = threading.RLock()  # parts of torch are replaced while a program runs


def _nothing() -> None:
    pass

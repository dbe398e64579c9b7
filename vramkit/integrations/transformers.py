"""vramkit in a ``Trainer`` of transformers: some steps measured, logged and written as a page.

Knows the Trainer's events; needs transformers, which is imported with this module. Its batch size is found in
``trainer_batch_size``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from os import PathLike
from typing import Any

from transformers import Trainer, TrainerCallback

from ..errors import UsageError
from ..results.profile import Profile
from .measured_steps import ASKED, MeasuredSteps
from .trainer_batch_size import fit_batch_size

__all__ = ["MemoryCallback", "fit_batch_size"]


class MemoryCallback(TrainerCallback):  # type: ignore[misc] # type checkers don't look into transformers here
    """Measures the GPU memory of a ``Trainer``'s steps.

    ::

        from vramkit.integrations.transformers import MemoryCallback
        trainer.add_callback(MemoryCallback(trainer, html="memory.html"))
        trainer.train()

    The first steps of a training are measured. When they have ended, their figures go to the Trainer's own log
    (TensorBoard, W&B, MLflow, ``state.log_history``) as ``memory/peak_allocated`` and so on, in bytes, and the page is
    written. If the training ends before, the page is of what came until then; an exception for lack of memory has the
    report as a note.

    Args:
        trainer: the Trainer, or one that is made of it (TRL's). Its ``train`` is wrapped, so that an exception is seen.
        steps: how many optimizer steps to measure, from the first on.
        html: where the page goes; None: nowhere. Of several ranks, the others than the first add their number.
        stacks: record lines of source, as `vramkit.profile` does.

    Raises:
        UsageError: ``steps`` is no number of steps, or ``trainer`` is no Trainer.
    """

    def __init__(
        self, trainer: Any, *, steps: int = 3, html: str | PathLike[str] | None = None, stacks: bool = False
    ) -> None:
        if not isinstance(trainer, Trainer):
            raise UsageError(
                ASKED,
                f"of {type(trainer).__name__}, which does not train",
                instead="Pass the Trainer: trainer.add_callback(MemoryCallback(trainer))",
            )
        self._measured = MeasuredSteps(steps=steps, html=html, stacks=stacks)
        # Not a subclass's log: TRL's adds what it has averaged since the last, and begins anew.
        self._log: Callable[[dict[str, float]], None] = partial(Trainer.log, trainer)
        train = trainer.train

        def measured(*args: Any, **kwargs: Any) -> Any:
            try:
                result = train(*args, **kwargs)
            except BaseException as error:
                self._measured.end(error)
                raise
            self._measured.end()
            return result

        trainer.train = measured

    @property
    def result(self) -> Profile:
        """The `Profile` of the measured steps.

        Raises:
            UsageError: they have not ended.
        """
        return self._measured.result

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Begin to measure; anew where a training begins again, with a smaller batch for instance."""
        self._measured.begin(others.get("model"), state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """End a step, and after the last one the measurement."""
        if figures := self._measured.step_ended(state.global_step):
            should_log = control.should_log  # a log that is written resets it, and this step's loss is still to come
            self._log(figures)
            control.should_log = should_log

"""vramkit in a ``Trainer`` of transformers: some steps measured, logged and written as a page.

Knows the Trainer's events; needs transformers, which is imported with this module.
"""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

from transformers import TrainerCallback

from ..counts import check_count
from ..errors import UsageError
from ..profiling.profiler import profile
from ..results.profile import Profile

_ASKED = "A MemoryCallback was made"


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
        html: where the page goes; None: nowhere.
        stacks: record lines of source, as `vramkit.profile` does.

    Raises:
        UsageError: ``steps`` is no number of steps, or ``trainer`` is no Trainer.
    """

    def __init__(
        self, trainer: Any, *, steps: int = 3, html: str | PathLike[str] | None = None, stacks: bool = False
    ) -> None:
        if not hasattr(trainer, "train") or not hasattr(trainer, "log"):
            raise UsageError(
                _ASKED,
                f"of {type(trainer).__name__}, which does not train",
                instead="Pass the Trainer: trainer.add_callback(MemoryCallback(trainer))",
            )
        self._steps = check_count(_ASKED, "steps", steps)
        self._html = html
        self._stacks = stacks
        self._log: Callable[[dict[str, float]], None] = trainer.log
        self._measuring: profile | None = None
        self._result: Profile | None = None
        train = trainer.train

        def measured(*args: Any, **kwargs: Any) -> Any:
            try:
                result = train(*args, **kwargs)
            except BaseException as error:
                self._end(error)
                raise
            self._end()
            return result

        trainer.train = measured

    @property
    def result(self) -> Profile:
        """The `Profile` of the measured steps.

        Raises:
            UsageError: they have not ended.
        """
        if self._result is None:
            raise UsageError(
                "The result of a MemoryCallback was read",
                "its steps have not ended",
                instead="Call trainer.train() first",
            )
        return self._result

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Begin to measure; anew where a training begins again, with a smaller batch for instance."""
        self._end()
        self._end_after = state.global_step + self._steps
        self._measuring = profile(others.get("model"), stacks=self._stacks)
        self._measuring.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """End a step, and after the last one the measurement."""
        if self._measuring is not None and state.global_step >= self._end_after:
            self._end()
            should_log = (
                control.should_log
            )  # which a log that is written resets: the loss of this step is still to come
            self._log({f"memory/{name}": value for name, value in self.result.metrics().items()})
            control.should_log = should_log

    def _end(self, error: BaseException | None = None) -> None:
        measuring, self._measuring = self._measuring, None
        if measuring is None:
            return
        measuring.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        self._result = measuring.result
        if self._html is not None:
            self._result.to_html(self._html)

"""vramkit in a ``Trainer`` of Lightning: some steps measured, logged and written as a page.

Knows the Trainer's events; needs lightning or pytorch_lightning, which is imported with this module.
"""

from __future__ import annotations

from os import PathLike
from typing import Any

from ..results.profile import Profile
from .measured_steps import MeasuredSteps

try:
    from lightning.pytorch import Callback
except ImportError:
    from pytorch_lightning import Callback


class MemoryCallback(Callback):  # type: ignore[misc] # type checkers don't look into Lightning here
    """Measures the GPU memory of a Lightning ``Trainer``'s steps.

    ::

        from vramkit.integrations.lightning import MemoryCallback
        trainer = lightning.Trainer(callbacks=[MemoryCallback(html="memory.html")])
        trainer.fit(module, loader)

    The first steps of a training are measured. When they have ended, their figures go to the Trainer's loggers
    (TensorBoard, W&B, MLflow) as ``memory/peak_allocated`` and so on, in bytes, and the page is written. If the
    training ends before, the page is of what came until then; an exception for lack of memory has the report as a
    note.

    Args:
        steps: how many optimizer steps to measure, from the first on.
        html: where the page goes; None: nowhere.
        stacks: record lines of source, as `vramkit.profile` does.

    Raises:
        UsageError: ``steps`` is no number of steps.
    """

    def __init__(self, *, steps: int = 3, html: str | PathLike[str] | None = None, stacks: bool = False) -> None:
        self._measured = MeasuredSteps(steps=steps, html=html, stacks=stacks)

    @property
    def result(self) -> Profile:
        """The `Profile` of the measured steps.

        Raises:
            UsageError: they have not ended.
        """
        return self._measured.result

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to measure: the module is on its device, and the sanity check is over."""
        self._measured.begin(pl_module, trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the measurement after the last step."""
        if figures := self._measured.step_ended(trainer.global_step):
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End the measurement of a training that has fewer steps."""
        self._measured.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End the measurement of a training that fails."""
        self._measured.end(exception)

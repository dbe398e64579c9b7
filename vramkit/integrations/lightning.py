"""vramkit in a ``Trainer`` of Lightning: some steps measured, logged and written as a page; its batch size predicted.

Knows the Trainer's events, and how its own finder runs a trial; needs lightning or pytorch_lightning, which is imported
with this module.
"""

from __future__ import annotations

from os import PathLike
from typing import Any
from unittest.mock import patch

from ..batch_size.auto import auto_batch_size
from ..batch_size.result import BatchSizeResult
from ..results.profile import Profile
from .measured_steps import MeasuredSteps

try:
    from lightning.pytorch import Callback
    from lightning.pytorch.callbacks import BatchSizeFinder as LightningsFinder
    from lightning.pytorch.tuner import batch_size_scaling as scaling
    from lightning.pytorch.utilities.parsing import lightning_setattr
except ImportError:
    from pytorch_lightning import Callback
    from pytorch_lightning.callbacks import BatchSizeFinder as LightningsFinder
    from pytorch_lightning.tuner import batch_size_scaling as scaling
    from pytorch_lightning.utilities.parsing import lightning_setattr


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
        html: where the page goes; None: nowhere. Of several ranks, the others than the first add their number.
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


class BatchSizeFinder(LightningsFinder):  # type: ignore[misc] # as above
    """Lightning's ``BatchSizeFinder``, which predicts where that one doubles until memory runs out.

    ::

        from vramkit.integrations.lightning import BatchSizeFinder      # in place of Lightning's
        trainer = lightning.Trainer(callbacks=[BatchSizeFinder()])
        trainer.fit(module)                     # module.batch_size is the largest that fits

    `vramkit.auto_batch_size`, whose trials are the Trainer's own loop: its precision, accumulation and strategy, with
    batches of the module's own loader, as Lightning's finder runs it. It keeps what a search changes in a checkpoint.

    Args:
        mode, init_val, max_trials, margin: as Lightning's takes them, and not needed.
        steps_per_trial: optimizer steps of a trial.
        batch_arg_name: the attribute of the module or data module that is set.
        max_val: no larger size, and none above the length of the data set.
        memory_fraction: part of the memory that the batch may reserve.
        multiple_of: only such sizes.

    On another device than a GPU, Lightning's own search runs.

    Known limitations: the rows are those that the loader gives first; of rows of several lengths the longest may not be
    among them.
    """

    def __init__(
        self,
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
        *,
        memory_fraction: float = 0.8,
        multiple_of: int = 1,
    ) -> None:
        super().__init__("power", steps_per_trial, init_val, max_trials, batch_arg_name)
        self._max = max_val
        self._bounds: dict[str, Any] = {"memory_fraction": memory_fraction, "multiple_of": multiple_of}
        self.found: BatchSizeResult | None = None
        """The answer, when the search has ended on a GPU."""

    def scale_batch_size(self, trainer: Any, pl_module: Any) -> None:
        """Find the size, and set it.

        Raises:
            DoesNotFit: not even the smallest size does.
        """
        if trainer.strategy.root_device.type != "cuda":
            super().scale_batch_size(trainer, pl_module)
            return
        # What comes before the search and after it is Lightning's: a checkpoint, quiet loggers, its loops as they were.
        with patch.object(scaling, "_run_power_scaling", self._predict):
            super().scale_batch_size(trainer, pl_module)

    def _predict(
        self, trainer: Any, new_size: int, batch_arg_name: str, max_trials: int, params: dict[str, Any], *others: object
    ) -> int:
        module = trainer.lightning_module
        trial = _Trial(trainer, batch_arg_name, params)
        self.found = auto_batch_size(
            module,
            lambda size: size,
            optimizer=[*trainer.optimizers] or None,
            step=trial,
            steps=1,  # which is a whole loop
            max_batch_size=min(self._max, _length(trainer) or self._max),
            **self._bounds,
        )
        trial.set(self.found.batch_size)
        return self.found.batch_size


class _Trial:
    """A run of the Trainer's loop. No function: a search looks at what those reach, and puts it back."""

    def __init__(self, trainer: Any, name: str, params: dict[str, Any]) -> None:
        self._trainer = trainer
        self._name = name
        self._params = params

    def set(self, size: int) -> None:
        """Have the loaders give batches of a size."""
        lightning_setattr(self._trainer.lightning_module, self._name, size)
        scaling._reset_dataloaders(self._trainer)  # noqa: SLF001 - Lightning's own finder is made of these

    def __call__(self, size: int) -> None:
        self.set(size)
        scaling._reset_progress(self._trainer)  # noqa: SLF001
        scaling._try_loop_run(self._trainer, self._params)  # noqa: SLF001


def _length(trainer: Any) -> int | None:
    """Rows of the data set; None: it has no length."""
    loop = trainer._active_loop  # noqa: SLF001 - training, validation, ...: as above
    loop.setup_data()
    try:
        return int(loop._combined_loader._dataset_length())  # noqa: SLF001
    except NotImplementedError:
        return None

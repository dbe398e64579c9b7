"""The first steps of a training, measured: what the callbacks of all frameworks share. Knows no framework."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..counts import check_count
from ..errors import UsageError
from ..profiling.profiler import profile
from ..results.profile import Profile

ASKED = "A MemoryCallback was made"


class MeasuredSteps:
    """Measures from where a training begins until some steps have ended, or it has.

    Args:
        steps: how many optimizer steps.
        html: where the page goes; None: nowhere.
        stacks: record lines of source, as `vramkit.profile` does.

    Raises:
        UsageError: ``steps`` is no number of steps.
    """

    def __init__(self, *, steps: int, html: str | PathLike[str] | None, stacks: bool) -> None:
        self._steps = check_count(ASKED, "steps", steps)
        self._html = html
        self._stacks = stacks
        self._measuring: profile | None = None
        self._result: Profile | None = None
        self._end_after = 0

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
                instead="Train first",
            )
        return self._result

    def begin(self, model: Any, step: int) -> None:
        """Begin to measure; anew where a training begins again, with a smaller batch for instance.

        Args:
            model: what trains.
            step: how many optimizer steps have ended.
        """
        self.end()
        measuring = profile(model, stacks=self._stacks)
        measuring.__enter__()
        self._measuring, self._end_after = measuring, step + self._steps

    def step_ended(self, step: int) -> dict[str, float]:
        """Note that so many optimizer steps have ended. Returns: what to log, after the last that is measured."""
        if self._measuring is None or step < self._end_after:
            return {}
        self.end()
        return {f"memory/{name}": value for name, value in self.result.metrics().items()}

    def end(self, error: BaseException | None = None) -> None:
        """End the measurement if it goes on, and write the page.

        Args:
            error: what ended the training; for lack of memory it gets the report as a note.
        """
        measuring, self._measuring = self._measuring, None
        if measuring is None:
            return
        measuring.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        self._result = measuring.result
        if self._html is not None:
            self._result.to_html(_of_this_rank(Path(self._html)))


def _of_this_rank(path: Path) -> Path:
    """Where a rank's page goes: as it was said for the first, and with its number for the others."""
    distributed = torch.distributed
    rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
    return path.with_stem(f"{path.stem}-rank{rank}") if rank else path

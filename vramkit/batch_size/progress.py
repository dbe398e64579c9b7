"""What a search shows while it runs: a line on a terminal, and each trial to whoever asked. Knows trials and text;
knows no device.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from typing_extensions import Self

from ..sizes import format_size
from .trial import Trial

_PATIENCE = 3.0  # seconds: a search that takes less shows nothing
_CLEAR = "\r\x1b[K"


class Line:
    """A line that each text replaces, and that is gone at the end.

    Args:
        shown: there is a terminal to show it on.
        stream: the terminal; None: the standard error stream.
        patience: seconds before anything is shown.
    """

    def __init__(self, shown: bool, *, stream: TextIO | None = None, patience: float = _PATIENCE) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._shown, self._patience = shown, patience
        self._began = time.perf_counter()
        self._wrote = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._wrote:
            self._stream.write(_CLEAR)
            self._stream.flush()

    def show(self, text: str) -> None:
        """Show a text in place of the last one."""
        if self._shown and time.perf_counter() - self._began >= self._patience:
            self._wrote = True
            self._stream.write(f"{_CLEAR}{text}")
            self._stream.flush()


class Progress(Line):
    """A line for every trial.

    Args:
        shown, stream, patience: as of `Line`.
        on_trial: called with each trial.
    """

    def __init__(
        self,
        shown: bool,
        on_trial: Callable[[Trial], object] | None = None,
        *,
        stream: TextIO | None = None,
        patience: float = _PATIENCE,
    ) -> None:
        super().__init__(shown, stream=stream, patience=patience)
        self._on_trial = on_trial
        self._count = 0

    def __call__(self, trial: Trial) -> None:
        """Show a trial."""
        self._count += 1
        if self._on_trial is not None:
            self._on_trial(trial)
        what = "fits" if trial.fits else "does not fit"
        self.show(
            f"vramkit: batch size {trial.batch_size:,} {what}, {format_size(trial.peak_reserved)} reserved "
            f"(trial {self._count}, {trial.seconds:.1f} s)"
        )

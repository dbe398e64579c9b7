"""What a script may take: the options, and what is said of a run that took more. Knows results; runs nothing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from ..results.profile import Profile


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to ``vramkit run``."""
    parser.add_argument(
        "--limit",
        metavar="SIZE",
        help="exit with 1 if a process reserves more than this on a device, such as '11 GiB', without the CUDA context",
    )
    parser.add_argument(
        "--baseline",
        metavar="FILE",
        help="exit with 1 if the fullest process's peak grew since the run that --save FILE wrote",
    )
    parser.add_argument("--tolerance", metavar="LIMIT", help="by how much it may grow: '2%%', '64 MiB' (default: 1%%)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a run is held against."""

    limit: str | None
    baseline: Profile | None
    tolerance: str

    def exceeded(self, measured: Sequence[Profile]) -> list[str]:
        """What to say of a run that takes more; empty: it does not.

        Args:
            measured: the processes' profiles, the fullest first.
        """
        from ..gate.verdicts import grown, over_limit

        found = [over_limit(each, self.limit) for each in measured] if self.limit is not None else []
        if self.baseline is not None and measured:
            found.append(grown(self.baseline, measured[0], self.tolerance))
        return [text for text in found if text]


def limits_of(options: argparse.Namespace) -> Limits:
    """What the options ask for.

    Raises:
        UsageError: one can't be meant; SnapshotError: the baseline can't be read.
    """
    if options.limit is None and options.baseline is None and options.tolerance is None:
        return Limits(limit=None, baseline=None, tolerance="")
    if options.baseline is None and options.tolerance is not None:
        raise UsageError("--tolerance was given", "with no --baseline", instead="Add the file that --save wrote before")
    from ..comparison.result import compare
    from ..gate.baselines import open_baseline
    from ..gate.verdicts import TOLERANCE
    from ..sizes import parse_size

    if options.limit is not None:
        parse_size(options.limit)
    baseline = None if options.baseline is None else open_baseline(Path(options.baseline))
    tolerance = TOLERANCE if options.tolerance is None else options.tolerance
    if baseline is not None:
        try:
            compare(baseline, baseline).exceeds(tolerance)  # now rather than after the run
        except UsageError:
            raise UsageError(
                "--tolerance was given", f"got {tolerance!r}", instead="Write a part such as '2%', or a size: '64 MiB'"
            ) from None
    return Limits(limit=options.limit, baseline=baseline, tolerance=tolerance)

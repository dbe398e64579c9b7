"""What would help most, computed from a profile by rules. Knows results; formats no tables.

A rule says which bytes a change would take away, and the tape says what that saves: the peak without those bytes,
wherever it then is. So a change that only moves the peak to another moment is credited with the difference and no
more. Each figure is for its change alone, and about right: what else the change does (other kernels, other
temporaries) the tape can't show. Where the tape does not say what a change saves, it has no figure.
"""

from __future__ import annotations

from dataclasses import replace

from ..tape.memory import MemoryResult
from .moment import Moment
from .rules import RULES, Advice
from .scene import Scene

_WORTH = 50
"""A change is mentioned if it could save at least one part in this many of what was allocated."""
_CAUSES = 3


def advise(result: MemoryResult, moment: Moment, limit: int = 4) -> list[Advice]:
    """What would lower a peak, or let an allocation succeed that failed: what nothing needs first, and of each kind the
    most helpful first.

    Args:
        result: a profile or an estimate.
        moment: of it: the peak, or the failure.
        limit: how many changes, at most, beside what nothing needs and what is reserved only.
    """
    scene = Scene(result, moment)
    minimum = max(1, moment.breakdown.allocated // _WORTH)
    found = sorted((each for rule in RULES for each in rule(scene)), key=lambda each: -each.saves)
    found = [each for each in found if each.saves >= minimum]
    causes = [each for each in found if each.is_cause]
    changes = [each for each in found if not each.is_cause and not each.of_reserved]
    told = causes[: max(1, min(limit, _CAUSES))] + changes[:limit] + [each for each in found if each.of_reserved]
    return [_with_peaks(scene, each) for each in told]


def _with_peaks(scene: Scene, advice: Advice) -> Advice:
    """What the peaks would be, where the tape proves it. After a failure nobody knows what would have come."""
    if advice.edit is None or not advice.is_computed or scene.moment.failed or not scene.on_gpu:
        return replace(advice, edit=None)
    peaks = scene.replays.edited(advice.edit)
    if peaks is None:
        return replace(advice, edit=None)
    return replace(advice, edit=None, peak_allocated=peaks.allocated, peak_reserved=peaks.reserved)

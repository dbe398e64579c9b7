"""What would help most, computed from a profile by rules. Knows results; formats no tables.

A rule says which bytes a change would take away, and the tape says what that saves: the peak without those bytes,
wherever it then is. So a change that only moves the peak to another moment is credited with the difference and no
more. Each figure is for its change alone, and about right: what else the change does (other kernels, other
temporaries) the tape can't show. Only what is said of reserved memory is a bound.
"""

from __future__ import annotations

from ..tape.memory import MemoryResult
from .evaluation_rules import EVALUATION_RULES
from .moment import Moment
from .rules import RULES, Advice
from .scene import Scene

_WORTH = 50
"""A change is mentioned if it could save at least one part in this many of what was allocated."""


def advise(result: MemoryResult, moment: Moment, limit: int = 4) -> list[Advice]:
    """What would lower a peak, or let an allocation succeed that failed, most helpful first.

    Args:
        result: a profile or an estimate.
        moment: of it: the peak, or the failure.
        limit: how many, at most.
    """
    scene = Scene(result, moment)
    found = [advice for rule in (*RULES, *EVALUATION_RULES) for advice in rule(scene)]
    minimum = max(1, moment.breakdown.allocated // _WORTH)
    found = [each for each in found if each.saves >= minimum]
    return sorted(found, key=lambda each: (each.of_reserved, -each.saves))[:limit]

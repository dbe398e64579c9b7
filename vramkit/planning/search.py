"""Which changes are run together: those that could be the cheapest way to fit, and few others. Knows families of
changes and what a run came to; runs nothing itself.

It assumes that a stronger form of a change takes no more memory than a milder one, and that another change added to
some takes no more either. Where that is wrong, what was run is true all the same, and something cheaper may not have
been run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from .changes import Change, Family, LeftOut, Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a program with some changes came to."""

    changes: tuple[Change, ...]
    peak_allocated: int = 0
    peak_reserved: int = 0
    fits: bool = False
    failure: str = ""
    """Why it does not run; empty: it does."""


Chosen = dict[Family, Change]

_WORTH = 0.99
"""Of two ways to do the same the first is taken, unless the other reserves less than this of what it does."""
_NOT_NEEDED = "Not needed: something that does less to the training fits. everything=True (--everything) runs it too."


class Search:
    """Runs changes alone, and then those together that may be the cheapest to fit.

    Args:
        families: from the cheapest on.
        measure: runs a program with some changes.
        each_of: calls a function with each of some families, and returns the answers in their order; it may make
            several calls at a time.
        room: bytes of the card that a program can reserve.
    """

    def __init__(
        self,
        families: Sequence[Family],
        measure: Callable[[tuple[Change, ...]], Outcome],
        each_of: Callable[[Callable[[Family], LeftOut | None], Iterable[Family]], Iterable[LeftOut | None]] = map,
        *,
        room: int,
    ) -> None:
        self._families = families
        self._measure = measure
        self._each_of = each_of
        self._room = room
        self._alone: Chosen = {}  # those that ran; in the mildest form that fits, else in the strongest
        self._found: dict[tuple[Change, ...], Outcome] = {}
        self.left_out: list[LeftOut] = []
        """Changes that did not run."""

    def run(self, *, everything: bool) -> list[Outcome]:
        """Everything that was run and ran: the program as it is, then single changes, then several.

        Args:
            everything: run changes alone even where something that does less to the training fits.
        """
        plain = self._try({})
        found = plain.fits
        for severity in Severity:
            is_needed = not found or severity <= Severity.PRECISION
            families = [each for each in self._families if _severity(each) is severity]
            if is_needed or everything:
                run_alone = partial(self._run_alone, mildest=not plain.fits)
                self.left_out += filter(None, self._each_of(run_alone, families))
            else:
                self.left_out += [LeftOut(name=each.changes[-1].name, reason=_NOT_NEEDED) for each in families]
            if is_needed and not plain.fits:
                found |= self._together(severity)
        order = {change: place for place, change in enumerate(each for one in self._families for each in one.changes)}
        ran = [each for each in self._found.values() if not each.failure]
        return sorted(ran, key=lambda each: (len(each.changes), [order[change] for change in each.changes]))

    def _run_alone(self, family: Family, *, mildest: bool) -> LeftOut | None:
        if mildest and (found := self._few_passes(family)) is not None:
            self._alone[family] = found
            return None
        alone = self._try({family: family.changes[-1]})
        if alone.failure:
            return LeftOut(name=family.changes[-1].name, reason=alone.failure)
        self._alone[family] = self._mildest({}, family) if alone.fits and mildest else family.changes[-1]
        return None

    def _few_passes(self, family: Family) -> Change | None:
        """The mildest form of a change that fits; of one whose strong forms take long, as they are many passes. None:
        of another change, or where none of the forms up to the strongest fits, or should: it tells.
        """
        first, strongest = family.changes[0], family.changes[-1]
        if not 1 < first.passes < strongest.passes:
            return None
        tried = self._try({family: first})
        if tried.failure:
            return None
        # A share of what the plain program reserves goes with the number of passes.
        plain = self._try({}).peak_reserved
        share = max(0, plain - tried.peak_reserved) * first.passes // (first.passes - 1)
        enough = [each for each in family.changes if plain - share + share // each.passes <= self._room]
        place = family.changes.index(enough[0]) if enough else len(family.changes) - 1

        def fits(place: int) -> bool:
            return self._try({family: family.changes[place]}).fits

        while not fits(place):
            place += 1
            if place == len(family.changes):
                return None
        while place > 0 and fits(place - 1):
            place -= 1
        return family.changes[place]

    def _together(self, severity: Severity) -> bool:
        """Run changes of a severity together with those that do less. Returns: whether some fit."""
        chosen = self._strongest(severity)
        return any(_severity(family) is severity for family in chosen) and self._least(chosen, severity)

    def _strongest(self, severity: Severity) -> Chosen:
        """What goes together up to a severity, as strong as it has to be: where a change fits alone, nothing dearer."""
        slots: dict[str, Family] = {}
        chosen: Chosen = {}
        enough = False
        for family in sorted(self._alone, key=self._dearness):
            change = self._alone[family]
            is_asked_for = _severity(family) is severity > Severity.SAME
            if _severity(family) > severity or (enough and not is_asked_for):
                continue
            rival = slots.get(family.slot)
            if rival is not None:
                saves = self._reserved(family) < _WORTH * self._reserved(rival)
                if _severity(family) is _severity(rival) and not saves:
                    continue
                del chosen[rival]
            slots[family.slot], chosen[family] = family, change
            enough |= self._try({family: change}).fits
        return chosen

    def _dearness(self, family: Family) -> tuple[Severity, int]:
        return _severity(family), self._families.index(family)

    def _reserved(self, family: Family) -> int:
        return self._try({family: self._alone[family]}).peak_reserved

    def _least(self, chosen: Chosen, severity: Severity) -> bool:
        """Take changes away from some that fit together, the dearest first, as long as the rest fits.

        Returns:
            Whether they fit.
        """
        chosen = self._running(chosen)
        if not self._try(chosen).fits:
            return False
        for family in sorted(chosen, key=self._dearness, reverse=True):
            rest = {each: change for each, change in chosen.items() if each is not family}
            is_last = severity > Severity.SAME and not any(_severity(each) is severity for each in rest)
            if not is_last and self._try(rest).fits:
                chosen = rest
            elif rest:  # else it was looked for when it ran alone
                chosen = rest | {family: self._mildest(rest, family, chosen[family])}
        return True

    def _running(self, chosen: Chosen) -> Chosen:
        """Of some changes those that run together."""
        while chosen and self._try(chosen).failure:
            without = [{each: chosen[each] for each in chosen if each is not family} for family in reversed(chosen)]
            chosen = next((each for each in without if not self._try(each).failure), without[0])
        return chosen

    def _mildest(self, rest: Chosen, family: Family, upto: Change | None = None) -> Change:
        """The mildest form of a change that fits beside others; one does: its strongest, or ``upto``."""
        low, high = 0, len(family.changes) - 1 if upto is None else family.changes.index(upto)
        while low < high:
            middle = (low + high) // 2
            if self._try(rest | {family: family.changes[middle]}).fits:
                high = middle
            else:
                low = middle + 1
        return family.changes[high]

    def _try(self, chosen: Chosen) -> Outcome:
        changes = tuple(chosen[family] for family in self._families if family in chosen)
        if changes not in self._found:
            self._found[changes] = self._measure(changes)
        return self._found[changes]


def _severity(family: Family) -> Severity:
    return family.changes[-1].severity

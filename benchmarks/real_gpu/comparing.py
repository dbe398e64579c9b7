"""Two recordings of one program, event by event: what is the same, and what is not where. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby

from .recording import Event, Record, events, parts


@dataclass(frozen=True, slots=True)
class Difference:
    """What the card has at a place where its twin has something else, or nothing."""

    part: str
    card: tuple[str, ...]
    """Of each event its action's letter, and its bytes; or how the part failed."""
    twin: tuple[str, ...]

    def __str__(self) -> str:
        def shown(items: tuple[str, ...]) -> str:
            return (" ".join(items[:8]) or "nothing") + f" … ({len(items)})" * (len(items) > 8)

        return f"{self.part}: card {shown(self.card)}, twin {shown(self.twin)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A program on both."""

    verdict: str
    """"equal"; "order of frees" (nothing else differs); "places" (the same blocks, elsewhere); "segments" (the same
    requests, other segments); "requests"; or "not compared".
    """
    events: int
    """Of the card."""
    parts: int
    equal_parts: int
    """In which the same blocks are requested and given back."""
    differences: tuple[Difference, ...]
    moved: int
    """Blocks that lie in another segment, or elsewhere in it."""


def compare(card: Record, twin: Record) -> Comparison:
    """Compare two records of `recording.run`."""
    ours, theirs = events(card), events(twin)
    found = list(_differences(card, ours, twin, theirs))
    unequal = {each.part for each in found}
    moved = 0
    if not found:
        blocks = [[each for each in one if each.action == "a"] for one in (ours, theirs)]
        moved = sum(one != other for one, other in zip(*blocks, strict=True))
    return Comparison(
        verdict="requests" if found else _verdict(ours, theirs),
        events=len(ours),
        parts=len(card["parts"]),
        equal_parts=sum(name not in unequal for name, _, _ in card["parts"]),
        differences=tuple(found),
        moved=moved,
    )


def _verdict(ours: list[Event], theirs: list[Event]) -> str:
    if ours == theirs:
        return "equal"
    if sorted_frees(ours) == sorted_frees(theirs):
        return "order of frees"
    plain = [[(each.action, each.size, each.stream) for each in sorted_frees(one)] for one in (ours, theirs)]
    return "places" if plain[0] == plain[1] else "segments"


def sorted_frees(found: list[Event]) -> list[Event]:
    """What goes back at one moment may go in the order of a hash table."""
    result: list[Event] = []
    for gone, group in groupby(found, key=lambda each: each.action in "rf"):
        run = list(group)
        result += sorted(run, key=lambda each: (each.size, each.segment, each.offset, each.action)) if gone else run
    return result


def _differences(card: Record, ours: list[Event], twin: Record, theirs: list[Event]) -> Iterator[Difference]:
    by_name = {name: (failure, found) for name, failure, found in parts(twin, theirs)}
    for name, failure, found in parts(card, ours):
        if name not in by_name:
            yield Difference(name, ("ran",), ("did not run",))
            continue
        other_failure, other = by_name[name]
        if _kind(failure) != _kind(other_failure):
            yield Difference(name, (failure or "ran",), (other_failure or "ran",))
            continue
        yield from _aligned(name, _requests(found), _requests(other))


def _aligned(name: str, card: list[str], twin: list[str]) -> Iterator[Difference]:
    if card == twin:
        return
    for tag, begin, end, first, last in SequenceMatcher(None, card, twin, autojunk=False).get_opcodes():
        if tag != "equal":
            yield Difference(name, tuple(card[begin:end]), tuple(twin[first:last]))


def _requests(found: list[Event]) -> list[str]:
    """Blocks handed out and given back, and requests that failed: whatever segments there are."""
    wanted = [each for each in sorted_frees(found) if each.action in "arO"]
    return [f"{'-' if each.action == 'r' else 'oom ' * (each.action == 'O') + '+'}{each.size}" for each in wanted]


def _kind(failure: str | None) -> str:
    return (failure or "").partition(":")[0]


def classes(differences: tuple[Difference, ...]) -> Counter[tuple[tuple[str, ...], tuple[str, ...]]]:
    """How often each difference is found, whatever the part."""
    return Counter((each.card, each.twin) for each in differences)

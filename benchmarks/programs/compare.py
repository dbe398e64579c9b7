"""Holds a profile against a census of the program's objects, address by address. Knows no torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vramkit.results.profile import Profile
from vramkit.tape.events import Action, Category, Tape

_COUNTED = {"parameter", "buffer", "gradient", "optimizer_state"}
_UNCOUNTED = {category.name.lower() for category in Category} - _COUNTED
"""What no object tells of."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Bytes that one side calls so, and the other otherwise."""

    moment: str
    counted_as: str
    labelled_as: str
    size: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        names = f" ({', '.join(self.names)})" if self.names else ""
        return f"{self.size:,} B are {self.counted_as}, labelled {self.labelled_as}{names}"


def differences(profile: Profile, census: Path) -> tuple[int, list[Difference]]:
    """How many moments were counted, and where labels are not what the objects say."""
    moments = json.loads(census.read_text(encoding="utf-8")) if census.exists() else []
    return len(moments), [each for moment in moments for each in _of_moment(profile.on("cuda:0").tape, moment)]


def _of_moment(tape: Tape, moment: dict[str, Any]) -> Iterator[Difference]:
    event = _event(tape, moment["allocated"], moment["freed"])
    if event is None:
        yield Difference(moment["moment"], "?", "not on the tape", moment["bytes"], ())
        return
    counted = {
        int(address): (kind, size) for kind, rows in moment["storages"].items() for address, size in rows.items()
    }
    trained = set(moment["trained"])
    sizes: Counter[tuple[str, str]] = Counter()
    names: dict[tuple[str, str], list[str]] = {}
    for row in tape.allocations[tape.alive_at(event)]:
        address, label = int(row["address"]), Category(row["category"]).name.lower()
        kind, size = counted.pop(address, ("", int(row["requested"])))
        if label not in _right_labels(kind, is_trained=address in trained):
            key = (kind or "none of them", label)
            sizes[key] += size
            names.setdefault(key, []).append(tape.names[row["name"]] if row["name"] >= 0 else "unnamed")
    for kind, size in counted.values():
        if kind != "attribute":
            sizes[kind, "nothing alive"] += size
    for (kind, label), size in sizes.items():
        shown = names.get((kind, label), [])
        yield Difference(moment["moment"], kind, label, size, (*shown[:3], *(["..."] if len(shown) > 3 else [])))


def _right_labels(kind: str, *, is_trained: bool) -> Container[str]:
    if not kind:
        return _UNCOUNTED
    if kind == "attribute":
        return {*_UNCOUNTED, "buffer", "parameter"}  # the scales of a quantised weight, say
    # A model that no optimizer trains may be a copy of one: an average of its weights, say.
    return {kind, "model_copy"} if kind in {"parameter", "buffer"} and not is_trained else {kind}


def _event(tape: Tape, allocated: int, freed: int) -> int | None:
    """The last event before which so many blocks were handed out and given back, -1 for the start."""
    action = tape.events["action"]
    if not allocated:
        return -1
    both = np.cumsum(action == Action.ALLOC) == allocated
    both &= np.cumsum(action == Action.FREE) == freed
    places = np.flatnonzero(both)
    return int(places[-1]) if len(places) else None

"""The results that every export is tried with. No torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hostile import hostile_profile
from told_profiles import MIB, Story, training

from vramkit.results.profile import Profile
from vramkit.tape.events import ALLOCATION, EVENT, Category, Phase, Tape


def empty(device: str = "cuda:0") -> Profile:
    """Nothing happened."""
    return Profile(tape=Tape(events=np.zeros(0, EVENT), allocations=np.zeros(0, ALLOCATION), device=device))


def one_event() -> Profile:
    """One allocation, and no module."""
    story = Story()
    story.alloc(MIB, Category.INPUT, Phase.OUTSIDE)
    return story.profile(reserved=2 * MIB, modules=())


def held_before() -> Profile:
    """Two allocations from before the first event, of which one stays."""
    tape = training().tape(reserved=400 * MIB)
    allocations = tape.allocations.copy()
    allocations["born"][:2] = -1
    events = tape.events[2:].copy()
    for column in ("born", "died"):
        allocations[column][allocations[column] >= 0] -= 2
    return Profile(tape=replace(tape, events=events, allocations=allocations))


def three_devices() -> Profile:
    """A profile with two others in it, one of which did nothing."""
    first = training().profile(reserved=400 * MIB, device="cuda:0", device_name="A card", capacity=500 * MIB)
    second = training(bytes_per_number=2).profile(reserved=300 * MIB, device="cuda:1")
    return replace(first, others=(second, empty("cuda:2")))


PROFILES = {
    "empty": empty(),
    "empty on the CPU": empty("cpu"),
    "one event": one_event(),
    "one step": training().profile(reserved=400 * MIB),
    "one step on the CPU": training().profile(device="cpu"),
    "held before": held_before(),
    "three devices": three_devices(),
    "hostile": hostile_profile(),
}

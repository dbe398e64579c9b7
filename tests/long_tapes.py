"""Tapes of any length, made at once: what a long training would record. No torch."""

from __future__ import annotations

import numpy as np

from vramkit.tape.events import ALLOCATION, EVENT, SEGMENT, Action, Category, Module, Phase, Tape

EVENTS_OF_A_STEP = 200
MODULES = (
    Module(name="Net", kind="Net", calls=1),
    *(Module(name=f"Net.{i}", kind="Linear", parent=0, calls=1) for i in range(10)),
)


def long_tape(events: int, device: str = "cuda:0") -> Tape:
    """Steps that allocate one after another, of sizes that are always the same, and free in the opposite order."""
    half = EVENTS_OF_A_STEP // 2
    steps = events // EVENTS_OF_A_STEP
    count = steps * half
    random = np.random.default_rng(7)
    requested = random.integers(1, 1 << 20, count)
    number, place = np.divmod(np.arange(count), half)
    allocations = np.zeros(count, ALLOCATION)
    allocations["category"] = random.integers(0, len(Category), count)
    allocations["phase"] = np.where(place < half // 2, Phase.FORWARD, Phase.BACKWARD)
    allocations["module"] = 1 + place * 10 // half
    allocations["step"] = number
    allocations["born"] = number * EVENTS_OF_A_STEP + place
    allocations["died"] = (number + 1) * EVENTS_OF_A_STEP - 1 - place
    allocations["requested"] = requested
    allocations["block"] = -(-requested // 512) * 512
    allocations["address"] = place << 21
    allocations["name"] = -1
    table = np.zeros(steps * EVENTS_OF_A_STEP, EVENT)
    for column, action in (("born", Action.ALLOC), ("died", Action.FREE)):
        at = allocations[column]
        table["action"][at] = action
        table["allocation"][at] = np.arange(count)
        table["size"][at] = requested
        table["address"][at] = allocations["address"]
        table["module"][at] = allocations["module"]
        table["step"][at] = number
        table["phase"][at] = np.where(action == Action.FREE, Phase.BACKWARD, allocations["phase"])
    table["time"] = np.arange(len(table)) * 3
    segments = np.array([(0, half << 21, 0, False, False, (0, 0))], SEGMENT)
    return Tape(events=table, allocations=allocations, segments=segments, modules=MODULES, device=device)

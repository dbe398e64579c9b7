"""Profiles that are told, not measured: what a program allocated, in a few lines. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vramkit.results.profile import Profile
from vramkit.tape.events import ALLOCATION, EVENT, PASS, SEGMENT, Action, Category, Module, Phase, Tape
from vramkit.tape.stacks import StackTree

MIB = 1 << 20
GIB = 1 << 30

MODULES = (
    Module(name="Net", kind="Net", calls=2, output_shape=(4, 10)),
    Module(name="Net.blocks", kind="ModuleList", parent=0),
    *(
        module
        for i in range(3)
        for module in (
            Module(name=f"Net.blocks.{i}", kind="Block", parent=1, calls=2, output_shape=(4, MIB)),
            Module(name=f"Net.blocks.{i}.up", kind="Linear", parent=2 + 2 * i, calls=2, output_shape=(4, MIB)),
        )
    ),
    Module(name="Net.head", kind="Linear", parent=0, calls=2, output_shape=(4, 10)),
)
HEAD = len(MODULES) - 1


class Story:
    """Writes a tape event by event; events of one phase and step that follow each other are a pass of the first module,
    but where ``begin`` says that another one begins."""

    def __init__(self) -> None:
        self._events: list[tuple[Any, ...]] = []
        self._rows: list[list[Any]] = []
        self._names: list[str] = []
        self._operators = {"": 0}
        self._tree = StackTree()
        self._stacks: list[int] = []
        self._passes: list[list[Any]] = []
        self._in_pass = False

    def alloc(
        self,
        size: int,
        category: Category,
        phase: Phase = Phase.FORWARD,
        *,
        module: int = -1,
        step: int = 0,
        name: str = "",
        block: int | None = None,
        stack: Sequence[tuple[str, int, str]] = (),
        operator: str = "",
    ) -> int:
        """An allocation, and where it was made: file, line and function of each frame, the innermost first."""
        if name and name not in self._names:
            self._names.append(name)
        self._pass(phase, step)
        row = len(self._rows)
        born = len(self._events)
        block = -(-size // 512) * 512 if block is None else block
        label = self._names.index(name) if name else -1
        made_by = self._operators.setdefault(operator, len(self._operators))
        self._rows.append(
            [
                category,
                phase,
                module,
                step,
                born,
                -1,
                size,
                block,
                row << 40,
                0,
                label,
                (0, 0),
                self._forwards(),
                made_by,
            ]
        )
        self._stacks.append(self._tree.add([self._tree.number(*frame) for frame in stack]))
        self._events.append((Action.ALLOC, phase, module, step, row, size, row << 40, 0, born, (0, 0)))
        return row

    def begin(self, phase: Phase, *, step: int = 0, module: int = 0, grad: bool = True, left: bool = False) -> None:
        """Another pass begins: of which module, with gradients or not, left by an exception or not."""
        self._end()
        graph = grad and not left
        self._passes.append([phase, module, step, len(self._events), len(self._events), grad, graph, left, False, 0])
        self._in_pass = True

    def _end(self) -> None:
        if self._in_pass:
            self._passes[-1][4] = len(self._events)
        self._in_pass = False

    def _pass(self, phase: Phase, step: int) -> None:
        if phase is Phase.OUTSIDE:
            self._end()
        elif phase is not Phase.RECOMPUTE and not (self._in_pass and self._passes[-1][0::2][:2] == [phase, step]):
            self.begin(phase, step=step)

    def _forwards(self) -> int:
        return sum(each[0] in (Phase.FORWARD, Phase.EVALUATION) for each in self._passes)

    def free(self, row: int, phase: Phase, *, step: int = 0, module: int = -1) -> None:
        self._pass(phase, step)
        self._rows[row][5] = len(self._events)
        size = self._rows[row][6]
        self._events.append((Action.FREE, phase, module, step, row, size, row << 40, 0, len(self._events), (0, 0)))

    def event(self, action: Action, size: int, phase: Phase, *, module: int = -1, step: int = 0) -> None:
        self._pass(phase, step)
        self._events.append((action, phase, module, step, -1, size, 0, 0, len(self._events), (0, 0)))

    def tape(
        self,
        *,
        reserved: int = 0,
        device: str = "cuda:0",
        alloc_conf: str = "",
        modules: tuple[Module, ...] = MODULES,
    ) -> Tape:
        self._end()
        return Tape(
            events=np.array(self._events, EVENT),
            passes=np.array([tuple(each) for each in self._passes], PASS),
            allocations=np.array([tuple(row) for row in self._rows], ALLOCATION),
            segments=np.array([(0, reserved, 0, False, False, (0, 0))] if reserved else [], SEGMENT),
            modules=modules,
            names=tuple(self._names),
            operators=tuple(self._operators)[1:],
            device=device,
            alloc_conf=alloc_conf,
            stacks=self._tree.stacks(np.array(self._stacks, np.int64)) if len(self._tree) else None,
        )

    def profile(
        self,
        *,
        reserved: int = 0,
        device: str = "cuda:0",
        alloc_conf: str = "",
        modules: tuple[Module, ...] = MODULES,
        **more: Any,
    ) -> Profile:
        tape = self.tape(reserved=reserved, device=device, alloc_conf=alloc_conf, modules=modules)
        return Profile(tape=tape, **more)


def training(*, recompute: bool = False, bytes_per_number: int = 4) -> Story:
    """One step of a small network: two activations a block, Adam, temporaries in its step."""
    story = Story()
    story.alloc(10 * MIB, Category.PARAMETER, Phase.OUTSIDE, name="Net.blocks.0.up.weight")
    story.alloc(5 * MIB, Category.PARAMETER, Phase.OUTSIDE, name="Net.head.weight")
    batch = story.alloc(4 * MIB, Category.INPUT, Phase.OUTSIDE)
    kept = []
    for i in range(3):
        kept.append(story.alloc(4 * MIB * bytes_per_number, Category.ACTIVATION, module=3 + 2 * i))
        kept.append(story.alloc(4 * MIB * bytes_per_number, Category.ACTIVATION, module=2 + 2 * i))
    kept.append(story.alloc(160, Category.ACTIVATION, module=HEAD))
    if recompute:
        story.free(story.alloc(MIB, Category.TEMPORARY, Phase.RECOMPUTE, module=3), Phase.RECOMPUTE)
    gradients = []
    for row, module in ((0, 3), (1, HEAD)):
        name = ("Net.blocks.0.up.weight", "Net.head.weight")[row]
        gradients.append(
            story.alloc(10 * MIB // (row + 1), Category.GRADIENT, Phase.BACKWARD, module=module, name=name)
        )
    for row in reversed(kept):
        story.free(row, Phase.BACKWARD)
    for key in ("exp_avg", "exp_avg_sq"):
        story.alloc(10 * MIB, Category.OPTIMIZER_STATE, Phase.OPTIMIZER, name=f"{key} of Net.blocks.0.up.weight")
        story.alloc(5 * MIB, Category.OPTIMIZER_STATE, Phase.OPTIMIZER, name=f"{key} of Net.head.weight")
    story.free(story.alloc(15 * MIB, Category.TEMPORARY, Phase.OPTIMIZER), Phase.OPTIMIZER)
    story.free(batch, Phase.OUTSIDE)
    return story


def churning(count: int) -> Profile:
    """So many allocations of random sizes, categories and places, each of which lives a while; a free for each."""
    random = np.random.default_rng(0)
    ends = np.arange(count) + random.integers(0, 1000, count) + 0.5
    order = np.argsort(np.concatenate([np.arange(count), ends]), kind="stable")
    row, is_free = order % count, order >= count
    events = np.zeros(2 * count, EVENT)
    events["action"] = np.where(is_free, Action.FREE, Action.ALLOC)
    events["allocation"] = row
    events["phase"] = np.arange(2 * count) // 1000 % 4
    events["step"] = np.arange(2 * count) // 4000
    events["module"] = random.integers(-1, len(MODULES), 2 * count)
    allocations = np.zeros(count, ALLOCATION)
    allocations["requested"] = random.integers(1, 1 << 24, count)
    allocations["block"] = -(-allocations["requested"] // 512) * 512
    allocations["category"] = random.integers(len(Category), size=count)
    allocations["born"][row[~is_free]] = np.flatnonzero(~is_free)
    allocations["died"][row[is_free]] = np.flatnonzero(is_free)
    allocations["module"] = random.integers(-1, len(MODULES), count)
    allocations["name"] = random.integers(-1, 500, count)
    allocations["address"] = 512 * random.integers(0, 80 * GIB // 512, count)
    segments = np.zeros(80, SEGMENT)
    segments["address"] = GIB * np.arange(80)
    segments["size"] = GIB
    names = tuple(f"Net.blocks.{i % 3}.up.weight{i}" for i in range(500))
    tape = Tape(events=events, allocations=allocations, segments=segments, modules=MODULES, names=names)
    return Profile(tape=tape, capacity=80 * GIB)

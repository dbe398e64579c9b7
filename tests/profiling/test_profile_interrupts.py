"""A profile that is interrupted, at any line of it, leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupts import Place, first_and_last, interrupt, lines_of
from leftovers import left_behind
from torch import nn

import vramkit
from vramkit.profiling.marks import Marks

PACKAGE = Path(vramkit.__file__).parent
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.virtual_gpu)]


class Program:
    """A step whose graph outlives it, of a model with a parameter whose gradient a hook could use up at once."""

    def __init__(self, device: str, *, stacks: bool = False) -> None:
        self.device = device
        self.stacks = stacks
        self.model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.model[0].weight.register_post_accumulate_grad_hook(lambda _: None)
        self.kept: list[torch.Tensor] = []

    def run(self) -> None:
        with vramkit.profile(self.model, self.optimizer, device=self.device, stacks=self.stacks):
            self.optimizer.zero_grad()
            output = self.model(torch.zeros(2, 4, device=self.device))
            self.kept.append(output)
            output.sum().backward(retain_graph=True)
            self.optimizer.step()


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[Marks]]]:
    """Every recording that was begun. A hook that is left anywhere keeps its recording alive."""
    begun: list[weakref.ref[Marks]] = []
    original = Marks.__init__

    def init(self: Marks, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        begun.append(weakref.ref(self))

    monkeypatch.setattr(Marks, "__init__", init)
    gc.collect()
    gc.freeze()  # else each collection goes through everything
    yield begun
    gc.unfreeze()


def leave_by(error: type[BaseException], program: Program, places: Iterable[tuple[Place, int]]) -> list[str]:
    """Interrupt a program at each of some places; returns what was left behind at which, up to the first of them."""
    for place, turn in places:
        with contextlib.suppress(error):
            interrupt(program.run, PACKAGE, place, turn, error)
        if left := left_behind(program.model):
            return [f"{place}, turn {turn}", *left]
    return []


def lines_on(device: str, folder: Path) -> tuple[Program, dict[Place, int]]:
    """A program, and how often each line runs of it; on a GPU the lines that no other device has, and one in ten of the
    others.
    """
    program = Program(device)
    program.run()
    counts = lines_of(program.run, folder)
    if device == "cuda":
        common = sorted(lines_on("cpu", folder)[1].keys() & counts.keys())
        left_out = set(common) - set(common[::10])
        counts = {place: count for place, count in counts.items() if place not in left_out}
    return program, counts


@pytest.mark.parametrize("device", DEVICES)
def test_an_interrupt_at_any_line_leaves_nothing_behind(device: str, recordings: list[weakref.ref[Marks]]) -> None:
    program, counts = lines_on(device, PACKAGE)
    places = list(first_and_last(counts))
    reached = {name.rpartition("/")[2] for name, _ in counts}

    for start in range(0, len(places), 100):
        assert leave_by(KeyboardInterrupt, program, places[start : start + 100]) == []
        gc.collect()
        assert [each for each in recordings if each() is not None] == []
        program.kept.clear()

    assert {"profiler.py", "hooks.py", "module_hooks.py", "backward_hooks.py", "tracked_tensors.py"} <= reached
    program.run()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_at_any_line_that_stacks_add_leaves_nothing_behind(
    error: type[BaseException], recordings: list[weakref.ref[Marks]]
) -> None:
    program = Program("cpu", stacks=True)
    program.run()
    added = ("node_notes.py", "python_stacks.py")
    places = [
        (place, turn)
        for place, turn in first_and_last(lines_of(program.run, PACKAGE / "profiling"))
        if place[0].endswith(added)
    ]

    assert places
    assert leave_by(error, program, places) == []

    gc.collect()
    program.kept.clear()
    assert [each for each in recordings if each() is not None] == []


@pytest.mark.parametrize("device", DEVICES)
def test_a_lack_of_memory_at_any_line_of_the_profiler_leaves_nothing_behind(
    device: str, recordings: list[weakref.ref[Marks]]
) -> None:
    program, counts = lines_on(device, PACKAGE / "profiling")
    places = [(place, 1) for place in counts]

    assert leave_by(MemoryError, program, places) == []

    gc.collect()
    assert [each for each in recordings if each() is not None] == []


def test_an_interrupt_before_a_line_is_raised_there_and_once() -> None:
    ran: list[int] = []

    def run() -> None:
        for number in range(3):
            ran.append(number)

    folder = Path(__file__).parent
    (place,) = [place for place, count in lines_of(run, folder).items() if count == 3]
    ran.clear()

    with pytest.raises(KeyboardInterrupt):
        interrupt(run, folder, place, 2, KeyboardInterrupt)

    assert ran == [0]

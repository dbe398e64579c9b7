"""A profile in one thread, while another one trains a model of its own, wherever that one is when the block begins."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from leftovers import left_behind
from torch import nn
from torch.autograd.function import once_differentiable

import vramkit
from vramkit.profiling.frames import frames_of_others
from vramkit.results.profile import Profile
from vramkit.tape.events import Category, Phase
from vramkit.torch_internals import allocator

# The threads train on devices of their own: the autograd engine has one thread for each device, and it is held up here.
PLACES = [("cpu", "cpu"), pytest.param(("cuda:0", "cuda:1"), marks=pytest.mark.virtual_gpu)]
MOMENTS = ["zero_grad", "forward", "backward", "step"]
tells_threads = pytest.mark.skipif(
    not allocator.HAS_METADATA, reason="this torch's history does not say which thread an allocation was made in"
)
HELD = 123_457  # floats that the other thread's optimizer allocates in its step


class Gate:
    """Holds a thread up at a moment of its training, until it is told to go on."""

    def __init__(self, moment: str = "") -> None:
        self.moment = moment
        self._reached, self._go = threading.Event(), threading.Event()

    def passes(self, moment: str) -> None:
        if moment == self.moment:
            self._reached.set()
            assert self._go.wait(60)

    def wait(self) -> None:
        assert self._reached.wait(60)

    def open(self) -> None:
        self._go.set()


class Watched(nn.Parameter):
    """Tells which thread reads its gradient. Setting it takes as long as the gate wants."""

    gate: Gate
    readers: set[int]

    @property
    def grad(self) -> torch.Tensor | None:  # type: ignore[override]
        self.readers.add(threading.get_ident())
        return torch.Tensor.grad.__get__(self)

    @grad.setter
    def grad(self, value: torch.Tensor | None) -> None:
        self.gate.passes("zero_grad")
        torch.Tensor.grad.__set__(self, value)


class Passes(torch.autograd.Function):
    """The identity; its backward goes through the gate."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate: Gate) -> torch.Tensor:
        ctx.gate = gate
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.gate.passes("backward")
        return grad, None


class Theirs(nn.Module):
    def __init__(self, device: str) -> None:
        super().__init__()
        self.gate = Gate()
        self.first, self.last = nn.Linear(24, 48, device=device), nn.Linear(48, 8, device=device)
        self.readers: set[int] = set()
        for module in (self.first, self.last):
            for name, parameter in list(module.named_parameters()):
                watched = Watched(parameter.detach())
                watched.gate, watched.readers = self.gate, self.readers
                setattr(module, name, watched)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = Passes.apply(self.first(x), self.gate)
        self.gate.passes("forward")
        return self.last(x)


class Descent(torch.optim.Optimizer):
    def __init__(self, model: Theirs) -> None:
        super().__init__(model.parameters(), {})
        self.gate = model.gate

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self.gate.passes("step")
        for parameter in self.param_groups[0]["params"]:
            parameter.add_(parameter.grad, alpha=-0.01)
        torch.empty(HELD, device=parameter.device)


class Other:
    """The other thread, and what it trains."""

    def __init__(self, device: str) -> None:
        self.model = Theirs(device)
        self.optimizer = Descent(self.model)
        self.device = device
        self.failed: list[BaseException] = []
        self.readers = self.model.readers
        self.step()  # from now on there are gradients

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.zeros(5, 24, device=self.device)).sum().backward()
        self.optimizer.step()

    @contextmanager
    def training(self, steps: int = 2) -> Iterator[None]:
        """Let it train, up to the gate; and to the end when the block is left."""

        def run() -> None:
            try:
                for _ in range(steps):
                    self.step()
            except BaseException as error:
                self.failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            if self.model.gate.moment:
                self.model.gate.wait()
            yield
        finally:
            self.model.gate.open()
            thread.join()
        assert self.failed == []

    def hold_at(self, moment: str) -> None:
        gate = Gate(moment)
        self.model.gate = self.optimizer.gate = gate
        for parameter in self.model.parameters():
            parameter.gate = gate  # type: ignore[attr-defined]

    def go(self) -> None:
        self.model.gate.open()


class Mine:
    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        self.device = device
        self.model = nn.Sequential(nn.Linear(16, 33), nn.ReLU(), nn.Linear(33, 7)).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.zeros(11, 16, device=self.device)).sum().backward()
        self.optimizer.step()


def bytes_of(tensors: list[torch.Tensor | None]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors if tensor is not None)


def gradients(model: nn.Module) -> list[torch.Tensor | None]:
    return [torch.Tensor.grad.__get__(parameter) for parameter in model.parameters()]


def told(profile: Profile) -> list[tuple[int, str, str, str, int]]:
    """What each allocation was for, in order."""
    modules = profile.tape.modules
    return [
        (
            int(row["requested"]),
            Category(int(row["category"])).name,
            Phase(int(row["phase"])).name,
            modules[row["module"]].name if row["module"] >= 0 else "",
            int(row["step"]),
        )
        for row in profile.tape.allocations
        if row["born"] >= 0
    ]


@pytest.fixture(params=PLACES, ids=lambda places: places[0].partition(":")[0])
def pair(request: pytest.FixtureRequest) -> tuple[Mine, Other]:
    mine, other = request.param
    return Mine(mine), Other(other)


# -- what is read when -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("moment", MOMENTS)
def test_gradients_that_another_thread_trains_are_read_by_no_other(
    pair: tuple[Mine, Other], moment: str, given: bool
) -> None:
    mine, other = pair
    mine.step()
    stale = bytes_of(gradients(mine.model))
    other.hold_at(moment)

    with other.training():
        other.readers.clear()
        models = {"mine": mine.model, **({"theirs": other.model} if given else {})}
        with vramkit.profile(models, device=mine.device) as prof:
            mine.step()
            mine.step()

    assert threading.get_ident() not in other.readers
    profile = prof.result
    own = bytes_of(gradients(mine.model))
    assert profile.final.gradients == stale == own
    assert profile.timeline.breakdown_at(0).gradients == own  # those of the step before the block, too
    assert {label for label in told(profile) if label[1] == "GRADIENT"} != set()


def test_who_looks_at_other_threads_keeps_its_own_variables_no_longer() -> None:
    class Kept:
        pass

    def look() -> weakref.ref[Kept]:
        kept = Kept()
        assert threading.get_ident() not in dict(frames_of_others())
        return weakref.ref(kept)

    gc.disable()  # in Python 3.12 only the collector would free the frames, were this thread's among them
    try:
        assert look()() is None
    finally:
        gc.enable()


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_thread_that_goes_on_inside_the_block_looks_at_its_own(moment: str) -> None:
    mine, other = Mine("cuda:0"), Other("cuda:1")
    other.hold_at(moment)

    with vramkit.profile(mine.model, device="cuda:1") as prof, other.training(steps=3):
        mine.step()
        other.go()

    profile = prof.result
    sizes = sorted(parameter.nbytes for parameter in other.model.parameters())
    assert sorted(label[0] for label in told(profile) if label[1] == "GRADIENT") == sorted(sizes * 3)
    assert profile.final.gradients == sum(sizes)
    assert profile.final.parameters == sum(sizes)


# -- what the marks say ------------------------------------------------------------------------------------------------


@tells_threads
@pytest.mark.virtual_gpu
@pytest.mark.parametrize("moment", MOMENTS)
def test_what_a_thread_does_is_told_as_if_no_other_was_in_the_middle_of_a_step(moment: str) -> None:
    alone, mine, other = Mine("cuda:0"), Mine("cuda:0"), Other("cuda:1")
    other.hold_at(moment)
    mine.step(), alone.step()
    torch.cuda.empty_cache()
    with vramkit.profile(alone.model, alone.optimizer, device="cuda:0") as prof:
        for _ in range(5):
            alone.step()
    expected = told(prof.result)
    torch.cuda.empty_cache()

    with vramkit.profile(mine.model, mine.optimizer, device="cuda:0") as prof, other.training():
        for _ in range(5):
            mine.step()

    assert told(prof.result) == expected
    assert {label[2] for label in expected} == {"FORWARD", "BACKWARD", "OUTSIDE"}


@tells_threads
@pytest.mark.virtual_gpu
def test_a_step_that_others_pass_by_is_a_step_to_its_end() -> None:
    mine, other = Mine("cuda:0"), Other("cuda:1")
    other.hold_at("step")

    with vramkit.profile(device="cuda:1") as prof, other.training(steps=1):
        mine.step()
        other.go()

    (phase,) = [label[2] for label in told(prof.result) if label[0] == HELD * 4]
    assert phase == "OPTIMIZER"


@pytest.mark.parametrize("moment", ["forward", "backward"])
def test_a_forward_whose_beginning_was_not_seen_is_left_out(pair: tuple[Mine, Other], moment: str) -> None:
    mine, other = pair
    other.hold_at(moment)

    with other.training(steps=3), vramkit.profile(mine.model, device=mine.device) as prof:
        mine.step()
        other.go()
        mine.step()

    roots = [module.name for module in prof.result.tape.modules if module.parent < 0]
    assert set(roots) <= {"Sequential", "Theirs"}


@pytest.mark.virtual_gpu
def test_a_thread_that_takes_turns_is_told_with_the_others() -> None:
    mine = Mine("cuda:0")
    outputs: list[torch.Tensor] = []

    def forward() -> None:
        outputs.append(mine.model(torch.zeros(11, 16, device="cuda:0")))

    with vramkit.profile(mine.model, mine.optimizer) as prof:
        for _ in range(2):
            thread = threading.Thread(target=forward)
            thread.start()
            thread.join()
            mine.optimizer.zero_grad()
            loss = (outputs.pop() * 2).sum()
            loss.backward()
            mine.optimizer.step()
            del loss

    assert {each.phase for each in prof.result.phases} == {
        Phase.OUTSIDE, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER
    }  # fmt: skip
    # Between the thread's forward and this one's backward is the loss.
    losses = [label[1:3] for label in told(prof.result) if label[0] == 4]
    assert losses == [("ACTIVATION", "FORWARD")] * 4


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("is_beside", [False, True])
def test_a_torch_whose_history_tells_no_threads_says_so_where_it_matters(
    is_beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocator, "HAS_METADATA", False)
    mine = Mine("cuda:0")
    with vramkit.profile(mine.model, mine.optimizer) as prof:
        mine.step()
        if is_beside:
            thread = threading.Thread(target=mine.step)
            thread.start()
            thread.join()

    assert any("which thread" in note for note in prof.result.notes) == is_beside


# -- leaving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("begins", ["before", "inside"])
def test_a_thread_trains_on_when_the_block_is_left_in_the_middle_of_its_step(
    pair: tuple[Mine, Other], moment: str, begins: str
) -> None:
    mine, other = pair
    other.hold_at(moment)
    measuring = vramkit.profile(device=mine.device)

    with contextlib.ExitStack() as stack:
        if begins == "before":
            stack.enter_context(other.training(steps=3))
            measuring.__enter__()
        else:
            measuring.__enter__()
            stack.enter_context(other.training(steps=3))
        mine.step()
        recording = weakref.ref(measuring._source)  # type: ignore[arg-type] # there is one meanwhile
        measuring.__exit__(None, None, None)
        left = left_behind(other.model)
        profile = measuring.result
        del measuring
        other.go()

    assert left == left_behind(other.model) == []
    assert (profile.timeline.by_category >= 0).all()
    assert profile.final.parameters >= bytes_of(list(mine.model.parameters()))
    gc.collect()
    assert recording() is None  # no hook of a graph or of a thread holds it


RACE = """
import faulthandler, sys, threading
faulthandler.enable()
faulthandler.dump_traceback_later(200, exit=True)  # a deadlock says where
device = sys.argv[1]
if device == "cuda":
    import vramkit.virtual_gpu; vramkit.virtual_gpu.activate("t4")
import torch, vramkit
from torch import nn

sys.setswitchinterval(1e-4)

class Trained:
    def __init__(self):
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
    def step(self):
        self.optimizer.zero_grad()
        self.model(torch.zeros(32, 64, device=device)).sum().backward()
        self.optimizer.step()

mine, others, stop = Trained(), [Trained(), Trained()], threading.Event()
given = [mine.model, others[0].model]

def run(trained):
    while not stop.is_set():
        trained.step()

threads = [threading.Thread(target=run, args=(each,)) for each in others]
for each in (mine, *others): each.step()
for thread in threads: thread.start()
try:
    for round in range(60):
        with vramkit.profile(given if round % 2 else None, device=device) as prof:
            for _ in range(2): mine.step()
        held = sum(p.grad.nbytes for p in mine.model.parameters())
        assert (prof.result.timeline.by_category >= 0).all()
        assert prof.result.final.gradients >= held, (round, prof.result.final.gradients, held)
finally:
    stop.set()
    for thread in threads: thread.join()
"""


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.virtual_gpu)])
def test_profiles_beside_threads_that_train_end_no_process(device: str) -> None:
    result = subprocess.run([sys.executable, "-c", RACE, device], capture_output=True, text=True, timeout=300)

    assert (result.returncode, result.stderr) == (0, "")

"""The layers inside of what Inductor has compiled, told apart under a profile. One model is compiled, once."""

from __future__ import annotations

from types import CodeType
from typing import Any

import pytest
import torch
from torch._dynamo import reset
from torch._dynamo.utils import counters
from torch._inductor.codecache import PyCodeCache

import vramkit
from vramkit.tape.events import Action, Category

N, BATCH = 96, 4000
pytestmark = pytest.mark.virtual_gpu


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(N, 4 * N)
        self.act = torch.nn.GELU()
        self.down = torch.nn.Linear(4 * N, N)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down(self.act(self.up(x)))
        return output


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(), Block()])
        self.head = torch.nn.Linear(N, 2 * N)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        output: torch.Tensor = self.head(torch.nn.functional.softmax(x, -1))  # which is the model's own
        return output


def train(model: Net, call: Any) -> None:
    call(torch.ones(BATCH, N, device="cuda")).square().mean().backward()
    model.zero_grad()


def activations(model: Net, call: Any) -> tuple[dict[str, int], vramkit.Profile]:
    """Bytes of the activations of each module, and all that was measured."""
    with vramkit.profile({"Net": model}) as prof:
        train(model, call)
    tape, found = prof.result.tape, dict[str, int]()
    for row in tape.allocations[tape.allocations["category"] == Category.ACTIVATION]:
        if row["module"] >= 0:
            name = tape.modules[row["module"]].name
            found[name] = found.get(name, 0) + int(row["requested"])
    return found, prof.result


def codes() -> list[CodeType]:
    return [module.Runner.call.__code__ for module in PyCodeCache.modules if hasattr(module, "Runner")]


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")  # Inductor's advice, up to torch 2.11
def test_activations_of_a_compiled_model_are_of_its_layers_and_nothing_else_is_other_than_without_a_profile() -> None:
    reset()
    model = Net().cuda()
    made = torch.compile(model)
    train(model, made)
    graphs, plain_codes = counters["stats"]["unique_graphs"], codes()

    eager, seen = activations(model, model)
    found, result = activations(model, made)

    assert found == eager
    assert found["Net"] == BATCH * N * 4
    assert found["Net.blocks.0.act"] == BATCH * 4 * N * 4
    assert "checkpoint the 2 blocks" in seen.report()
    assert "checkpoint the 2 blocks" not in result.report()  # the compiler chooses what it computes again
    assert [note for note in result.notes if "counts for the layer whose result it holds" in note]
    assert counters["stats"]["unique_graphs"] == graphs
    assert codes() == plain_codes
    events = result.tape.events
    assert events["size"][events["action"] == Action.ALLOC].tolist() == allocated_by(model, made)
    reset()


def allocated_by(model: Net, call: Any) -> list[int]:
    """Bytes of each allocation of a step that nobody measures."""
    torch.cuda.memory._record_memory_history(context=None)
    try:
        begin = len(torch.cuda.memory._snapshot()["device_traces"][0])
        train(model, call)
        trace = torch.cuda.memory._snapshot()["device_traces"][0][begin:]
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    return [entry["size"] for entry in trace if entry["action"] == "alloc"]


@pytest.mark.parametrize("measured", [False, True])
def test_a_compiled_step_of_an_optimizer_is_one_graph_with_a_profile_and_without(measured: bool) -> None:
    reset()
    model = torch.nn.Linear(N, N).cuda()
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    step = torch.compile(optimizer.step, backend="eager")
    model(torch.ones(4, N, device="cuda")).sum().backward()
    for _ in range(2):  # the first makes the state
        step()
    counters.clear()

    if measured:
        with vramkit.profile(model, optimizer) as prof:
            step()
        assert prof.result.tape.passes["phase"].tolist() == [vramkit.Phase.OPTIMIZER]
        counters.clear()
    step()

    assert not counters["stats"]["unique_graphs"]

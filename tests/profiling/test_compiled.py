"""What ``torch.compile`` makes, and CUDA graphs, under a profile. Nothing here waits for Inductor."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch._dynamo import compiled_autograd, reset
from torch._dynamo.callback import CallbackTrigger, callback_handler
from torch._dynamo.trace_rules import clear_lru_cache
from torch._dynamo.utils import counters
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import vramkit
from vramkit.sizes import format_size
from vramkit.tape.events import OF_MEASURING, Category, Phase, Tape
from vramkit.torch_internals.allocator import workspace_sizes

N = 512


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(N, 2 * N)
        self.down = torch.nn.Linear(2 * N, N)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down(self.up(x).relu())
        return output


def compiled_itself(model: torch.nn.Module) -> torch.nn.Module:
    model.compile(backend="eager")
    return model


HOW: dict[str, Callable[[torch.nn.Module], torch.nn.Module]] = {
    "torch.compile": lambda model: torch.compile(model, backend="eager"),  # type: ignore[dict-item,return-value]
    "Module.compile": compiled_itself,
}


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("how", HOW)
def test_what_was_first_run_in_a_profile_is_not_compiled_anew_after_it(how: str) -> None:
    reset()
    model, x = HOW[how](Net().cuda()), torch.zeros(4, N, device="cuda")
    counters.clear()

    with vramkit.profile():
        model(x).sum().backward()
    inside = counters["stats"]["unique_graphs"]
    model(x).sum().backward()
    with vramkit.profile():
        model(x).sum().backward()

    assert inside == counters["stats"]["unique_graphs"] == 1


def hooked(model: torch.nn.Module) -> torch.nn.Module:
    model.get_submodule("down").register_forward_hook(lambda module, given, output: output * 2)
    return model


WHAT: dict[str, Callable[[torch.nn.Module], torch.nn.Module]] = {
    "a model": lambda model: model,
    "one with a hook": hooked,
    "one in a checkpoint": checkpoint_wrapper,
}


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("what", WHAT)
def test_what_is_compiled_in_a_profile_is_one_graph(what: str) -> None:
    reset()
    model, x = WHAT[what](Net().cuda()), torch.zeros(4, N, device="cuda")
    counters.clear()

    with vramkit.profile():
        clear_lru_cache()  # as each new process group does
        compiled = torch.compile(model, backend="eager", fullgraph=True)  # which raises where a graph is cut
        torch.nn.Sequential(compiled)(x).sum().backward()

    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("how", HOW)
def test_a_note_says_that_the_layers_of_a_compiled_model_are_not_seen(how: str) -> None:
    reset()
    model, x = HOW[how](Net().cuda()), torch.zeros(4, N, device="cuda")

    with vramkit.profile(model) as whole:
        model(x).sum().backward()
    with vramkit.profile(Net().cuda()) as eager:
        Net().cuda()(x).sum().backward()

    assert [note for note in whole.result.notes if "torch.compile has compiled Net as a whole" in note]
    assert not [note for note in eager.result.notes if "torch.compile" in note]


@pytest.mark.virtual_gpu
def test_what_a_graph_keeps_is_no_cache_of_anybody_else() -> None:
    x = torch.zeros(1 << 20, device="cuda")
    with vramkit.profile() as prof:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = (x + 1) * 2
        for _ in range(3):
            graph.replay()
        torch.cuda.empty_cache()
    result = prof.result
    final, timeline = result.final, result.timeline
    in_pools = [segment for segment in torch.cuda.memory_snapshot() if tuple(segment["segment_pool_id"]) != (0, 0)]

    assert final.graph_pools == sum(segment["total_size"] - segment["allocated_size"] for segment in in_pools) > 0
    assert final.allocated + final.cached + final.graph_pools == final.reserved
    assert len(timeline.graph_pools) == len(timeline)
    assert "graph pools" in result.report()
    assert [note for note in result.notes if note.startswith("CUDA graphs were replayed 3 times")]
    del y, graph
    gc.collect()


@pytest.mark.virtual_gpu
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream:UserWarning")  # torch's of its own warm-up
def test_static_buffers_of_a_graphed_module_have_names() -> None:
    model, x = Net().cuda(), torch.zeros(8, N, device="cuda")
    with vramkit.profile() as prof:
        graphed = torch.cuda.make_graphed_callables(model, (torch.zeros(8, N, device="cuda"),))
        for _ in range(2):
            graphed(x).sum().backward()
    tape, sizes = prof.result.tape, {}
    for row in tape.allocations:
        if row["name"] >= 0 and "graph" in tape.names[row["name"]]:
            sizes[tape.names[row["name"]]] = int(row["requested"])

    assert sizes["static input 0 of Net's graph"] == 8 * N * 4
    assert sizes["static output 0 of Net's graph"] == 8 * N * 4
    assert sizes["static gradient of output 0 of Net's graph"] == 8 * N * 4
    assert torch.cuda.make_graphed_callables is torch.cuda.graphs.make_graphed_callables
    assert torch.cuda.make_graphed_callables.__module__ == torch.cuda.graphs.__name__


class Compiler:
    """Keeps a constant of 4 MiB, and looks at a larger buffer on the device for a while, if it measures."""

    def __init__(self, *, measures: bool) -> None:
        self._measures = measures

    def __call__(self, graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., object]:
        if self._measures:
            torch.empty(48 << 20, device="cuda", dtype=torch.uint8)
        constant = torch.empty(4 << 20, device="cuda", dtype=torch.uint8)
        run: Callable[..., object] = graph.forward
        return lambda *args: (constant, run(*args))[1]


@pytest.mark.virtual_gpu
def test_what_a_compiler_measures_in_is_named_and_the_peaks_without_it_are_said() -> None:
    def measured(*, measures: bool) -> tuple[vramkit.Profile, int, int]:
        reset()
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        model, x = Net().cuda(), torch.zeros(16384, N, device="cuda")
        run = torch.compile(model, backend=Compiler(measures=measures))
        torch.cuda.reset_peak_memory_stats()
        with vramkit.profile(model) as prof:
            run(x).sum().backward()
        return prof.result, torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()

    result = measured(measures=True)[0]
    other, allocated, reserved = measured(measures=False)
    own = result.tape.allocations[[name == OF_MEASURING for name in names_of(result.tape)]]

    [said] = [note for note in result.notes if note.startswith("torch.compile measured variants")]
    assert own["requested"].tolist() == [48 << 20]
    assert own["category"].tolist() == [Category.TEMPORARY]
    assert result.peak_reserved != reserved
    assert f"reaches {figure(allocated)} allocated and {figure(reserved)} reserved" in said
    assert OF_MEASURING not in other.tape.names
    assert not [note for note in other.notes if note.startswith("torch.compile measured variants")]


def names_of(tape: Tape) -> list[str]:
    """Of each allocation its name."""
    return [tape.names[name] if name >= 0 else "" for name in tape.allocations["name"]]


def figure(size: int) -> str:
    return f"{format_size(size)} ({size:,} B)"


@pytest.mark.virtual_gpu
def test_workspaces_that_graphs_of_a_compiled_model_give_back_are_cublas_s() -> None:
    reset()
    gc.collect()  # graphs of other tests
    model, x = Net().cuda(), torch.zeros(8, N, device="cuda")
    run = torch.compile(model, backend="cudagraphs")
    torch._C._cuda_clearCublasWorkspaces()

    with vramkit.profile(model) as prof:
        for _ in range(2):  # a graph warms up, and is recorded
            run(x).sum().backward()
            model.zero_grad()
    table = prof.result.tape.allocations
    of_size = table[np.isin(table["requested"], sorted(workspace_sizes()))]

    assert len(of_size) >= 4  # each forward, and each backward; up to torch 2.11 some are cuBLASLt's own
    assert of_size["pool"].any(axis=1).all()
    assert (of_size["died"] >= 0).all()
    assert set(of_size["category"]) == {Category.WORKSPACE}
    del run
    reset()


@pytest.mark.virtual_gpu
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # compiled autograd looks at it
def test_compiled_autograd_compiles_one_graph_in_a_profile_too() -> None:
    reset()
    model, x = Net().cuda(), torch.zeros(8, N, device="cuda")
    compiled = []

    def counting(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., object]:
        compiled.append(graph)
        run: Callable[..., object] = graph.forward
        return run

    def train() -> None:
        loss = model(x).sum()
        with compiled_autograd._enable(torch.compile(backend=counting)):
            loss.backward()
        model.zero_grad()

    with vramkit.profile(model):
        train()
        train()
    train()

    assert len(compiled) == 1


@pytest.mark.virtual_gpu
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # compiled autograd looks at it
def test_a_graph_of_a_backward_is_a_backward() -> None:
    reset()
    model, x = Net().cuda(), torch.zeros(8, N, device="cuda")

    with vramkit.profile(model) as prof:
        loss = model(x).sum()
        with compiled_autograd._enable(torch.compile(backend="eager")):
            loss.backward()
    result = prof.result
    table = result.tape.allocations

    assert [usage.name for usage in result.by_module] == ["Net"]
    assert Phase.RECOMPUTE not in table["phase"]
    assert Phase.BACKWARD in table["phase"]
    assert (table["category"] == Category.INPUT).sum() == 1  # what was made in the forward is none


class Emptying(torch.nn.Module):
    """Lets go of what it is given in a list, as the graphs of compiled autograd do."""

    def forward(self, given: list[torch.Tensor]) -> torch.Tensor:
        x = given.pop() * 2
        return x * 2


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("measured", [False, True])
def test_what_a_module_is_given_in_a_list_dies_when_the_module_lets_go_of_it(measured: bool) -> None:
    module, size = Emptying(), 1 << 20
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()

    with vramkit.profile() if measured else nullcontext():
        module([torch.zeros(size, device="cuda")])

    assert torch.cuda.max_memory_allocated() - before == 2 * size * 4


@pytest.mark.virtual_gpu
def test_what_a_graph_takes_while_it_is_recorded_is_the_programs() -> None:
    with vramkit.profile() as prof, callback_handler.install_callbacks(CallbackTrigger.CUDAGRAPH_RECORDING, "0/0"):
        torch.zeros(1 << 20, device="cuda")

    assert OF_MEASURING not in prof.result.tape.names


@pytest.mark.virtual_gpu
def test_without_graphs_there_is_no_word_of_replays() -> None:
    with vramkit.profile() as prof:
        torch.zeros(1 << 20, device="cuda")

    assert not any("replay" in note for note in prof.result.notes)

"""What ``torch.compile`` makes, and CUDA graphs, under a profile. Nothing here waits for Inductor."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch._dynamo import reset
from torch._dynamo.trace_rules import clear_lru_cache
from torch._dynamo.utils import counters
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import vramkit

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
    "one in a checkpoint": lambda model: checkpoint_wrapper(model),  # type: ignore[no-untyped-call]
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


@pytest.mark.virtual_gpu
def test_without_graphs_there_is_no_word_of_replays() -> None:
    with vramkit.profile() as prof:
        torch.zeros(1 << 20, device="cuda")

    assert not any("replay" in note for note in prof.result.notes)

"""What the small parts cost: a mark, attribution, a replay, a trace, a report, a file, a parcel. Whole programs are for
the scripts beside this file.

    python -m pytest benchmarks --benchmark-enable --benchmark-autosave --benchmark-compare

measures, saves the figures in ``.benchmarks/`` and shows them beside those that were saved last. Without options each
part runs once, so that none of them rots. On the virtual GPU where it can be, else on the CPU; times are never judged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import allocator_recordings as recordings
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from test_recordings import tape_of
from torch import nn
from workloads import GPT, Workload, tokens

import vramkit
from vramkit.allocator import CachingAllocator, final_state, follow, initial_state
from vramkit.attribution import categories
from vramkit.profiling import settling
from vramkit.programs.arguments import program_of
from vramkit.programs.packing import pack
from vramkit.programs.unpacking import unpack
from vramkit.sizes import format_size

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRACE = max(recordings.all_traces(), key=lambda trace: len(trace.events))
CALLS = 100


@pytest.fixture(scope="module")
def workload() -> Workload:
    """A GPT of 12 layers: as many calls and tensors as a real one, and little to compute."""
    return Workload(GPT(width=64, heads=4, vocabulary=1000, length=64), tokens(2, 64), device=DEVICE)


@pytest.fixture(scope="module")
def settled(workload: Workload) -> tuple[vramkit.Profile, tuple[Any, ...]]:
    """A profile of three steps, and what its attribution was given."""
    given: list[tuple[Any, ...]] = []

    def attribute(*arguments: Any) -> Any:
        given.append(arguments)
        return categories.attribute(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settling, "attribute", attribute)
        with vramkit.profile(workload.model, workload.optimizer) as prof:
            for _ in range(3):
                workload.step()
                prof.step()
    return prof.result, given[0]


@pytest.mark.parametrize("profiled", [False, True], ids=["alone", "profiled"])
def test_calls_of_modules_with_their_marks(benchmark: BenchmarkFixture, profiled: bool) -> None:
    model = nn.Sequential(*(nn.Identity() for _ in range(CALLS)))
    x = torch.zeros(1, device=DEVICE, requires_grad=True)

    if profiled:
        with vramkit.profile(model, device=DEVICE) as prof:
            out = benchmark.pedantic(model, (x,), rounds=100)
        (usage,) = prof.result.by_module
        assert usage.calls > 0
        assert {each.calls for each in usage.walk()} == {usage.calls}
    else:
        out = benchmark.pedantic(model, (x,), rounds=100)
    assert out is x


def test_a_step_under_a_profile(benchmark: BenchmarkFixture, workload: Workload) -> None:
    with vramkit.profile(workload.model, workload.optimizer) as prof:
        benchmark.pedantic(workload.step, rounds=5)

    assert prof.result.peak_allocated > 0


def test_attribution(benchmark: BenchmarkFixture, settled: tuple[vramkit.Profile, tuple[Any, ...]]) -> None:
    profile, given = settled

    tape = benchmark(categories.attribute, *given)

    assert len(tape.events) == len(profile.tape.events)


def test_a_replay(benchmark: BenchmarkFixture) -> None:
    tape = tape_of(TRACE)

    replay = benchmark(lambda: CachingAllocator(conf=TRACE.conf).replay(tape))

    assert replay.fits


def test_a_trace_forward(benchmark: BenchmarkFixture) -> None:
    start = TRACE.start.segments

    benchmark(follow, start, *TRACE.columns, TRACE.conf)

    ends = final_state(start, *TRACE.columns, TRACE.conf)
    assert [segment.address for segment in ends] == [segment.address for segment in TRACE.segments]


def test_a_trace_backward(benchmark: BenchmarkFixture) -> None:
    start = benchmark(initial_state, TRACE.segments, *TRACE.columns, TRACE.conf)

    assert start == TRACE.start


def test_a_report(benchmark: BenchmarkFixture, settled: tuple[vramkit.Profile, tuple[Any, ...]]) -> None:
    profile, _ = settled

    text = benchmark(profile.report)

    assert format_size(profile.peak_allocated) in text


def test_a_save(benchmark: BenchmarkFixture, settled: tuple[vramkit.Profile, tuple[Any, ...]], tmp_path: Path) -> None:
    profile, _ = settled

    benchmark(profile.save, tmp_path / "profile.npz")

    assert vramkit.load(tmp_path / "profile.npz").peak == profile.peak


def test_a_load(benchmark: BenchmarkFixture, settled: tuple[vramkit.Profile, tuple[Any, ...]], tmp_path: Path) -> None:
    profile, _ = settled
    profile.save(tmp_path / "profile.npz")

    loaded = benchmark(vramkit.load, tmp_path / "profile.npz")

    assert loaded.peak == profile.peak


@pytest.fixture
def on_cpu() -> Workload:
    """The same model where a user has it before an estimate."""
    return Workload(GPT(width=64, heads=4, vocabulary=1000, length=64), tokens(2, 64), device="cpu")


def test_packing_a_program(benchmark: BenchmarkFixture, on_cpu: Workload) -> None:
    program = program_of(
        "A benchmark", on_cpu.model, on_cpu.batch(), optimizer=on_cpu.optimizer, step=None,
        loss=lambda output, batch: output.sum(), autocast=None, steps=2,
    )  # fmt: skip

    parcel = benchmark(pack, program)

    (model,) = unpack(parcel.content).program.models.values()
    assert [p.shape for p in model.parameters()] == [p.shape for p in on_cpu.model.parameters()]

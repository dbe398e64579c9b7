"""The virtual GPU does what real GPUs did: whole allocator histories, and published figures."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable

import counterfactuals
import histories
import pytest
from subprocesses import run_on

from vramkit.torch_releases import installed, release_of

pytestmark = pytest.mark.virtual_gpu
MIB = 1 << 20

# Recordings, by the process that runs their programs. Those of one process must not disturb each other: the short ones
# use no cuBLAS and start from an emptied allocator, the warm ones start with a step of their own.
_PROCESSES = {
    "short": {
        "double-multiplication": "programs.double_multiplication(record)",
        "powers": "programs.powers(record)",
        "powers-checkpointed": "programs.powers(record, checkpointed=True)",
        "adam-foreach": "programs.adam(record, (True,))",
        "adam-forloop": "programs.adam(record, (True, False))",
    },
    "attention": {"naive-attention": "programs.naive_attention(record)"},
    "cold": {"lm-small-t512-inference": "programs.lm_inference(record, 512, programs.SMALL, cold=True)"},
    "warm": {
        "lm-medium-t128-inference": "programs.lm_inference(record, 128)",
        "lm-medium-t128-training": "programs.lm_training(record, 128)",
        "lm-medium-t512-training": "programs.lm_training(record, 512, autocast=True)",
    },
    "largest": {"lm-2.7b-t128-fullstep": "transposed_model.first_step(record)"},
}
_CARDS = {"largest": "h100"}
"""Where it is not an A100: the buffers of reductions grow with the processors of a card."""
_WARM = {"warm", "largest"}
"""Segments compare where the recording starts before the first segment that the program needs; here it does not."""
_CASES = [(process, name, process not in _WARM) for process, programs in _PROCESSES.items() for name in programs]


@pytest.fixture(scope="module")
def measured() -> Callable[[str, str, bool], list[histories.Event]]:
    """The history of a program on the virtual GPU; each process runs once, when it is first asked for."""

    @functools.cache
    def run(process: str) -> dict[str, dict[str, list[list[object]]]]:
        runs = "".join(
            f"""
record = histories.Recorder()
{program}
result[{name!r}] = {{str(flag): record.events(segments=flag) for flag in (False, True)}}
gc.collect()
torch.cuda.empty_cache()
"""
            for name, program in _PROCESSES[process].items()
        )
        imports = "import gc, histories, programs, torch, transposed_model\nresult = {}\n"
        return run_on(_CARDS.get(process, "a100-80gb"), imports + runs)

    def history(process: str, name: str, segments: bool) -> list[histories.Event]:
        return [histories.Event(*event) for event in run(process)[name][str(segments)]]

    return history


_IS_AS_RECORDED = (3, 11) <= sys.version_info < (3, 14)


def settled(events: list[histories.Event]) -> list[histories.Event]:
    """As they are; with Python 3.10 and 3.14 frees that follow one another in one order.

    3.14 drops the variables of a function that ends from the last one on, and those that recorded from the first one
    on; 3.10 drops what a function was called with from the last one on.
    """
    if _IS_AS_RECORDED:
        return events
    found: list[histories.Event] = []
    for freed, group in itertools.groupby(events, lambda event: event.action == "free_requested"):
        run = list(group)
        found += sorted(run, key=lambda event: event.which) if freed else run
    return found


@pytest.mark.parametrize(("process", "name", "segments"), _CASES, ids=[name for _, name, _ in _CASES])
def test_every_event_is_as_a_real_gpu_recorded_it(
    process: str, name: str, segments: bool, measured: Callable[[str, str, bool], list[histories.Event]]
) -> None:
    assert settled(measured(process, name, segments)) == settled(histories.recorded(name, segments=segments))


_WEIGHTS = 437
# What torch takes otherwise since it recorded a program: bytes then, bytes now, and how often.
_CHANGED = {
    "mingpt-large-b32": {
        ((MIB, -MIB), ()): 4 * 36,  # cuBLASLt's workspace for every product with a bias; now it has cuBLAS's
        ((84_479, -84_479), (3_583, -3_583)): 1,  # the embedding's backward: cub's sort
        ((767, -767), (1_279, -1_279)): 1,  # and its scans
        ((1_023, -1_023), (1_279, -1_279)): 1,
        ((474 * 1280 * 4, -474 * 1280 * 4), (474 * 8, -474 * 8)): 1,  # and rows of parts, now for many words alone
        ((4 * _WEIGHTS,), (4,) * _WEIGHTS): 1,  # the norms of all gradients: a tensor, now one each
        ((), (-4,) * _WEIGHTS): 1,
        ((-4 * _WEIGHTS,), ()): 1,
    },
    "cnn-cudnn": {((MIB, -MIB), ()): 3 * counterfactuals.EPOCHS},
    "layerwise-compression": {
        ((MIB, -MIB), ()): 3 * 2 * 28,
        ((), (16, 8)): 2 * 28,  # flash attention's seed and offset, which it once made for dropout alone
        ((), (-16, -8)): 2 * 28,
    },
}
_CHANGED_PROGRAMS = {
    "mingpt-large-b32": ("h100-pcie", "mingpt.warm_step(record)"),
    "cnn-cudnn": (counterfactuals.CARD, "counterfactuals.counterfactual(record)"),
    "layerwise-compression": ("a100-80gb", "layerwise.layerwise(record)"),
}


@pytest.mark.skipif(release_of(installed()) < (2, 14), reason="what has changed since was noted with torch 2.14")
@pytest.mark.skipif(not _IS_AS_RECORDED, reason="a function's variables die in another order; see settled()")
@pytest.mark.parametrize("name", _CHANGED)
def test_what_an_older_torch_recorded_differs_by_nothing_but_what_torch_has_changed(name: str) -> None:
    gpu, program = _CHANGED_PROGRAMS[name]

    answer = run_on(
        gpu,
        f"""
        import counterfactuals, histories, layerwise, mingpt
        record = histories.Recorder()
        {program}
        result = record.events(segments=False)
        """,
    )

    ours = [histories.Event(*event) for event in answer]
    assert histories.differences(histories.recorded(name, segments=False), ours) == _CHANGED[name]


def test_the_comparison_notices_a_variable_that_lives_too_long() -> None:
    recorded = histories.recorded("double-multiplication", segments=True)

    answer = run_on(
        "a100-80gb",
        """
        import histories, torch
        record = histories.Recorder()
        with record():
            x = torch.ones(16384, 16384, device="cuda")
            w = torch.ones(16384, 16384, device="cuda", requires_grad=True)
            y = (w * x) * w
            loss = y.sum()
            loss.backward()
        result = record.events(segments=True)
        """,
    )

    assert [histories.Event(*event) for event in answer] != recorded


# Attention by hand, batch 8, one head, fp32, torch 2.11: memory_allocated() just before the backward; (d, T): bytes.
# Published by MAGMA27/assignment2-systems.
_ATTENTION = {
    (16, 256): 19_660_800,
    (16, 1024): 52_690_944,
    (16, 4096): 562_298_880,
    (16, 8192): 2_181_300_224,
    (32, 256): 20_185_088,
    (32, 1024): 54_788_096,
    (32, 4096): 570_687_488,
    (32, 8192): 2_198_077_440,
}


def test_attention_holds_what_was_measured_on_a_real_gpu() -> None:
    answer = run_on(
        "a100-80gb",
        f"""
        import math, torch
        result = []
        for d, t in {list(_ATTENTION)}:
            q, k, v = (torch.ones(8, t, d, device="cuda", requires_grad=True) for _ in range(3))
            for _ in range(2):
                for tensor in (q, k, v):
                    tensor.grad = None
                out = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(d), dim=-1) @ v
                allocated = torch.cuda.memory_allocated()
                out.sum().backward()
            result.append(allocated)
            del q, k, v, out
        """,
    )

    assert dict(zip(_ATTENTION, answer, strict=True)) == _ATTENTION

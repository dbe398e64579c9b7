"""Peaks that others measured on real GPUs and published, predicted: with the virtual engine, equal to the byte."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import published_programs as published
import pytest
import torch
from counterfactuals import CARD
from histories import recorded_peak
from programs import MEDIUM, SMALL

import vramkit
from vramkit.allocator import CachingAllocator
from vramkit.tape.events import Category, Tape

pytestmark = pytest.mark.virtual_gpu
MIB = 1 << 20


def peak_requested(estimate: vramkit.Estimate) -> int:
    """The most bytes that were asked for and alive: what does not depend on the allocator."""
    table = estimate.tape.allocations
    changes = np.zeros(len(estimate.tape.events) + 1, np.int64)
    np.add.at(changes, table["born"] + 1, table["requested"])
    died = table[table["died"] >= 0]
    np.subtract.at(changes, died["died"] + 1, died["requested"])
    return int(changes.cumsum().max())


# ``max_memory_allocated()`` in MiB, all digits, torch 2.0 to 2.2. Published by ailzhang/EfficientPyTorch, chapter 7.
@pytest.mark.parametrize(
    ("make", "megabytes"),
    [
        (lambda: published.products(128), 49.00048828125),
        (lambda: published.products(256), 81.37548828125),
        (lambda: published.sequential(checkpointed_only=True), 628.63671875),
        (lambda: published.sequential(checkpointed_only=False), 936.17431640625),
    ],
    ids=["two halves", "whole batches", "checkpointed", "not checkpointed"],
)
def test_what_a_book_printed_is_predicted_to_the_byte(make: Callable[[], published.Program], megabytes: float) -> None:
    estimate = vramkit.estimate(**make(), gpu="a100-40gb")

    assert estimate.peak_allocated == megabytes * MIB


# What ran, and the card: where a recording does not say which, its workspaces and the buffers of its reductions do.
_RECORDED: dict[str, tuple[Callable[[], published.Program], str | vramkit.GPU]] = {
    "lm-medium-t128-training": (lambda: published.language_model(128, MEDIUM), "a100-80gb"),
    "lm-medium-t512-training": (lambda: published.language_model(512, MEDIUM, autocast=True), "a100-80gb"),
    "lm-medium-t128-inference": (lambda: published.inference(128, MEDIUM, waiting=5), "a100-80gb"),
    "lm-small-t512-inference": (lambda: published.inference(512, SMALL), "a100-80gb"),
    "lm-2.7b-t128-fullstep": (published.largest, "h100"),
    "mingpt-large-b32": (published.mingpt, "h100-pcie"),
    "cnn-cudnn": (published.counterfactual, CARD),
}


@pytest.mark.parametrize("recording", _RECORDED)
def test_the_requested_peak_of_a_recording_is_predicted_to_the_byte(recording: str) -> None:
    make, gpu = _RECORDED[recording]

    with torch.set_grad_enabled("inference" not in recording):
        estimate = vramkit.estimate(**make(), gpu=gpu)

    assert peak_requested(estimate) == recorded_peak(recording)


def at_second_step(tape: Tape) -> int:
    """Index of the event just before it."""
    return int((tape.events["step"] == 1).argmax()) - 1


def test_every_line_of_a_published_breakdown_is_predicted_to_the_byte() -> None:
    # GPT-2 small by nanoGPT on an A100, float16, torch 2.0 or 2.1. Published by erees.dev, transformer-memory.
    estimate = vramkit.estimate(**published.nanogpt(), gpu="a100-80gb")

    tape = estimate.tape
    alive = tape.allocations[tape.alive_at(at_second_step(tape))]
    requested = np.bincount(alive["category"], alive["requested"], len(Category)).astype(int).tolist()
    assert requested[Category.PARAMETER] + requested[Category.BUFFER] == 547_826_688
    assert requested[Category.GRADIENT] == 497_495_040
    assert requested[Category.OPTIMIZER_STATE] == 994_990_380
    assert requested[Category.WORKSPACE] == 17_039_360
    assert requested[Category.INPUT] + requested[Category.ACTIVATION] == 196_620
    assert sum(requested) == 547_826_688 + 497_495_040 + 994_990_380 + 17_039_360 + 196_620
    assert round(estimate.peak_allocated / (1 << 30), 3) == 21.898  # all digits that were published
    # Blocks, at 2,064,403,456 bytes, then depended on the addresses that the driver gave: between two orders of them.
    replays = [CachingAllocator(tie_break="address", address_order=each).replay(tape) for each in ("rising", "falling")]
    low, high = sorted(int(replay.tape.allocated[at_second_step(replay.tape)]) for replay in replays)
    assert low < 2_064_403_456 < high

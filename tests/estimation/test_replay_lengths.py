"""A training whose batches differ in length: the course of reserved memory, against a run of the same lengths."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

import vramkit
from vramkit.allocator import AllocatorConf, DeviceCachingAllocator
from vramkit.allocator.conf import UNLIMITED
from vramkit.scaling.lengths import course_of, pieces_of
from vramkit.scaling.requests import Families, requests_of

ROWS, WIDTH = 8, 64
LENGTHS = [100, 37, 300, 38, 211, 300, 57, 120, 119, 280, 37, 64, 150, 300]


class Block(torch.nn.Module):
    """Every request is affine in the length."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.up = torch.nn.Linear(WIDTH, 8 * WIDTH, bias=bias)
        self.down = torch.nn.Linear(8 * WIDTH, WIDTH, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


class Attention(Block):
    """Of the scores it is not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward((x @ x.transpose(1, 2)).softmax(-1) @ x)


def batch(length: int) -> torch.Tensor:
    return torch.zeros(ROWS, length, WIDTH)


def loss(output: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Of as many numbers at every length: a longer sum has a workspace that is not affine."""
    return output[:, 0].sum()


def estimated(model: torch.nn.Module, batch_size: int) -> vramkit.Estimate:
    return vramkit.estimate(model, batch, optimizer=torch.optim.AdamW, loss=loss, gpu="t4", batch_size=batch_size)


def really(model: torch.nn.Module, lengths: list[int]) -> vramkit.Estimate:
    """The same training with a batch of each length, run by the engine."""
    following: Iterator[int] = iter(lengths)
    return vramkit.estimate(
        model,
        lambda _: batch(next(following)),
        optimizer=torch.optim.AdamW,
        loss=loss,
        gpu="t4",
        steps=len(lengths),
    )


def test_each_step_is_what_a_run_of_the_same_lengths_takes_to_the_byte() -> None:
    model = Block()

    replay = vramkit.replay_lengths(estimated(model, batch_size=64), LENGTHS)
    run = really(model, LENGTHS)

    assert (replay.uncertain, replay.margin) == ((), 0)
    assert len(replay.runs) < len({*LENGTHS})
    assert replay.course.reserved.tolist() == [step.peak_reserved for step in run.steps]
    assert replay.course.allocated.tolist() == [step.peak_allocated for step in run.steps]
    assert replay.course.peak_step == replay.course.reserved.tolist().index(run.peak_reserved)
    names = [each.name for each in replay.others]
    assert names == ["expandable_segments", "longest first", "in buckets of 64"]
    assert replay.others[1].peak_reserved <= replay.course.peak_reserved
    assert f"{len(LENGTHS)} steps on Tesla T4, from runs of {len(replay.runs)} lengths" in str(replay)


@pytest.mark.virtual_gpu
def test_workspaces_that_are_on_no_line_are_told_and_what_is_reserved_is_right_all_the_same() -> None:
    model = Block(bias=True)

    replay = vramkit.replay_lengths(estimated(model, batch_size=64), LENGTHS)
    run = really(model, LENGTHS)

    assert replay.uncertain == ()
    assert 0 < replay.margin < 16 << 20
    assert "off their lines" in str(replay)
    assert replay.course.reserved.tolist() == [step.peak_reserved for step in run.steps]


def test_where_requests_lie_on_no_line_each_length_is_run() -> None:
    lengths = [40, 97, 150, 203, 260]

    replay = vramkit.replay_lengths(estimated(Attention(), batch_size=40), lengths, bucket=1)

    assert set(replay.runs) == {*lengths}  # none was read off a line


def test_steps_that_repeat_are_the_same_as_if_each_were_served() -> None:
    estimate = estimated(Block(), batch_size=50)
    families = Families()
    for length in (50, 300):
        families.add(requests_of(length, estimate.at(length).tape))
    family = families.nearest(50)
    assert family is not None
    pieces = {length: pieces_of(family.at(length)) for length in range(50, 300, 10)}
    numbers = random.Random(7)
    lengths = [numbers.choice([*pieces]) for _ in range(400)]

    short = course_of(pieces, lengths, DeviceCachingAllocator(16 << 30, AllocatorConf()))
    # A setting that looks at the device's memory, and is never reached: then every step is served.
    conf = AllocatorConf.parse("garbage_collection_threshold:0.99")
    assert conf.max_split_size == UNLIMITED
    whole = course_of(pieces, lengths, DeviceCachingAllocator(16 << 30, conf))

    assert short.simulated < whole.simulated == len(lengths)
    assert short.reserved.tolist() == whole.reserved.tolist()
    assert short.allocated.tolist() == whole.allocated.tolist()


def test_a_card_that_is_too_small_is_told_with_the_step() -> None:
    replay = vramkit.replay_lengths(estimated(Block(), batch_size=64), [64, 64, 64, 400_000, 64])

    assert replay.course.failed_step == 3
    assert not replay.course.fits
    assert "RUNS OUT in step 4" in str(replay)


@pytest.mark.parametrize(
    ("lengths", "text"), [([], "with no lengths"), ([64, 0], "a length=0"), ([64, "long"], "a length='long'")]
)
def test_lengths_that_are_none_are_refused(lengths: list[int], text: str) -> None:
    with pytest.raises(vramkit.UsageError, match=text):
        vramkit.replay_lengths(estimated(Block(), batch_size=64), lengths)


def test_what_is_no_estimate_and_an_estimate_of_too_few_steps_are_refused_with_the_remedy() -> None:
    with pytest.raises(vramkit.UsageError, match=r"Give what vramkit.estimate\("):
        vramkit.replay_lengths("estimate.npz", [64])  # type: ignore[arg-type]
    two = vramkit.estimate(Block(), batch, optimizer=torch.optim.SGD, batch_size=8, gpu="t4", steps=2)

    with pytest.raises(vramkit.UsageError, match="Estimate it with steps=3"):
        vramkit.replay_lengths(two, [8])


def test_a_program_that_leaves_more_and_more_is_refused() -> None:
    model, kept = Block(), []

    def step(x: torch.Tensor) -> None:
        kept.append(model(x.to(next(model.parameters()).device)).sum())

    estimate = vramkit.estimate(model, batch, step=step, batch_size=64, gpu="t4")

    with pytest.raises(vramkit.UsageError, match="not alike"):
        vramkit.replay_lengths(estimate, [64, 65])

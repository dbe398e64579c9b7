"""Integers and flags on fake tensors: what comes of the host's is known, the rest is not, and nothing is wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("torch")
import torch

import vramkit
from vramkit import UsageError

NUMBERS = [3, 0, 2, 0, 5, 2]


def estimated(read: Callable[[torch.Tensor], int]) -> vramkit.Estimate:
    """Of a step that reads a number off the device, and takes so many MiB."""
    model = torch.nn.Linear(1, 1)

    def step(batch: torch.Tensor) -> None:
        rows = read(batch.to("cuda"))
        model(torch.zeros(1, 1, device="cuda")) * torch.zeros(rows, 1 << 18, device="cuda")

    return vramkit.estimate(model, torch.tensor(NUMBERS), step=step, steps=1, gpu="a100-80gb", engine="fake")


def written_through_a_view(ids: torch.Tensor) -> int:
    ids.view(2, 3)[0].fill_(9)
    return int(ids.sum().item())


def written_through_a_part(ids: torch.Tensor) -> int:
    first, *_ = ids.unbind()
    first.add_(4)
    return int(ids.max().item())


def read_by_what_is_not_known(ids: torch.Tensor) -> int:
    torch.rand(6, device="cuda").masked_fill_(ids == 0, 1).add_(ids)
    return int(ids.sum())


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda ids: 2 if (ids >= 0).all() else 1, 2),
        (lambda ids: ids.to(torch.int32).max().item(), 5),
        (lambda ids: ids.masked_fill(ids == 0, 7).sum().item(), 26),
        (lambda ids: ids.sort().values.tolist()[4], 3),
        (lambda ids: torch.arange(6, device="cuda").cumsum(0)[-1].item(), 15),
        (lambda ids: ids.cpu().max().item(), 5),
        (written_through_a_view, 34),
        (written_through_a_part, 7),
        (read_by_what_is_not_known, 12),
    ],
    ids=["flag", "type", "mask", "sort", "arange", "host", "view", "part", "read"],
)
def test_what_comes_of_the_hosts_integers_is_known(read: Callable[[torch.Tensor], int], expected: int) -> None:
    requested = estimated(read).tape.allocations["requested"]

    assert expected << 20 in requested


def random_before(ids: torch.Tensor) -> int:
    seen = ids.view(2, 3)
    ids.random_(0, 9)
    return int(seen.sum().item())


def not_known_written_through_a_view(ids: torch.Tensor) -> int:
    ids.view(2, 3)[0].copy_(torch.rand(3, device="cuda"))
    return int(ids.sum().item())


@pytest.mark.parametrize(
    "read",
    [
        random_before,
        not_known_written_through_a_view,
        lambda ids: int((torch.rand(6, device="cuda") > ids).sum().item()),
        lambda ids: int(torch.empty(6, dtype=torch.long, device="cuda").sum().item()),
        lambda ids: int(ids.repeat(1 << 19).sum().item()),
    ],
    ids=["random", "view", "comparison", "empty", "too large"],
)
def test_what_comes_of_other_values_is_not_known(read: Callable[[torch.Tensor], int]) -> None:
    with pytest.raises(UsageError, match="_local_scalar_dense"):
        estimated(read)

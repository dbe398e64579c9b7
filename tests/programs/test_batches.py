"""Batches and the plain step's parts, without an engine."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import vramkit
from vramkit.programs import batches, training


def test_a_batch_has_the_size_of_dimension_0() -> None:
    assert batches.batch_size_of(torch.zeros(7, 3)) == 7
    assert batches.batch_size_of({"x": torch.zeros(7, 3), "y": [torch.zeros(7)], "n": 3, "s": torch.zeros(())}) == 7
    assert batches.batch_size_of((torch.zeros(7), vramkit.fixed(torch.zeros(2)))) == 7
    assert batches.batch_size_of(UserDict(x=torch.zeros(7))) == 7
    assert batches.batch_size_of({"n": 3}) == 0


@given(st.integers(1, 40), st.permutations([0, 1, 2, 3]))
def test_a_batch_at_another_size_repeats_its_rows_and_keeps_its_layout(size: int, order: list[int]) -> None:
    sample = torch.arange(4 * 3 * 5 * 2).view(4, 3, 5, 2)
    sample = sample.permute(order).contiguous().permute([order.index(dim) for dim in range(4)])

    resized: Any = batches.at_size({"x": sample, "kept": vramkit.fixed(sample), "n": 3}, size)

    assert torch.equal(resized["x"], sample[torch.arange(size) % 4])
    assert resized["kept"] is sample
    assert resized["n"] == 3
    assert not size > 1 or sorted(range(4), key=resized["x"].stride) == sorted(range(4), key=sample.stride)
    assert resized["x"].untyped_storage().nbytes() == resized["x"].nbytes


def test_what_a_tokenizer_returns_stays_what_it_is() -> None:
    class Encoding(UserDict[str, torch.Tensor]):
        def to(self, device: str) -> Encoding:
            return self

    encoding = Encoding(ids=torch.zeros(2, 5))

    resized: Any = batches.at_size(encoding, 6)

    assert type(resized) is Encoding
    assert resized["ids"].shape == (6, 5)
    assert type(batches.moved(resized, "cpu")) is Encoding
    assert encoding["ids"].shape == (2, 5)


def test_a_wrapper_takes_what_is_inside() -> None:
    assert training.positions_of(nn.DataParallel(Takes())) == training.positions_of(Takes()) == 2


@dataclass(frozen=True)
class Pair:
    """A batch as a class of one's own."""

    images: torch.Tensor
    more: dict[str, Any]


class Placed(Pair):
    """One that says how it is moved."""

    def to(self, device: str) -> str:
        return device


def test_a_dataclass_is_looked_into_and_keeps_its_class() -> None:
    pair = Pair(torch.zeros(2, 5), {"labels": torch.zeros(2), "mask": vramkit.fixed(torch.zeros(3)), "n": 7})

    (resized,) = cast("list[Any]", batches.at_size([pair], 6))

    assert batches.batch_size_of(pair) == batches.batch_size_of([pair]) == 2
    assert type(resized) is Pair
    assert (resized.images.shape, resized.more["labels"].shape, resized.more["n"]) == ((6, 5), (6,), 7)
    assert resized.more["mask"] is pair.more["mask"].tensor
    assert pair.images.shape == (2, 5)
    assert batches.moved(resized, "meta").more["labels"].is_meta
    assert batches.moved(Placed(torch.zeros(2), {}), "meta") == "meta"
    assert batches.batch_size_of(vramkit.fixed(pair)) == 0
    with pytest.raises(vramkit.UsageError, match=r"\[0\]\.images: 2x5, \[0\]\.more\['labels'\]: 3"):
        batches.batch_size_of([Pair(torch.zeros(2, 5), {"labels": torch.zeros(3)})])


@dataclass
class Node:
    """A tree whose parts know each other."""

    x: torch.Tensor
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)


def test_dataclasses_that_refer_to_each_other_still_do_at_another_size() -> None:
    root = Node(torch.zeros(2, 5))
    root.children += [Node(torch.zeros(2, 3), root), Node(torch.zeros(2, 4), root)]

    resized: Any = batches.at_size(root, 6)

    assert [path for path, leaf in batches.leaves_of(root) if isinstance(leaf, torch.Tensor)] == [
        ".x",
        ".children[0].x",
        ".children[1].x",
    ]
    assert batches.batch_size_of(root) == 2
    assert resized.x.shape == (6, 5)
    assert [tuple(child.x.shape) for child in resized.children] == [(6, 3), (6, 4)]
    assert all(child.parent is resized for child in resized.children)
    assert root.children[0].parent is root
    assert root.x.shape == (2, 5)


@dataclass
class Unfinished:
    """One with a field that is set later."""

    x: torch.Tensor
    encoded: torch.Tensor = field(init=False)


def test_a_field_that_is_not_set_stays_so() -> None:
    resized: Any = batches.at_size(Unfinished(torch.zeros(2, 5)), 6)

    assert resized.x.shape == (6, 5)
    assert not hasattr(resized, "encoded")


@dataclass
class Output(OrderedDict[str, Any]):
    """A dataclass that is a dict too, and holds everything twice."""

    x: torch.Tensor

    def __post_init__(self) -> None:
        self["x"] = self.x


def test_a_dataclass_that_is_a_mapping_is_not_changed_in_one_half() -> None:
    output = Output(torch.zeros(2, 5))

    assert batches.at_size(output, 6) is output
    assert batches.batch_size_of(output) == 0


def test_a_large_batch_takes_no_memory_of_the_host() -> None:
    sample = torch.zeros(1, 1 << 20)

    resized: Any = batches.at_size(sample, 1 << 18)

    assert resized.shape == (1 << 18, 1 << 20)  # 1 TiB
    assert not resized[123456, :1000].any()


@pytest.mark.parametrize("size", [1 << 30, 1 << 44])
def test_a_batch_larger_than_any_process_is_refused(size: int) -> None:
    with pytest.raises(vramkit.UsageError, match="ask for a smaller batch"):
        batches.at_size(torch.zeros(1, 1 << 20), size)


def test_a_batch_without_a_size_is_fixed_as_a_whole() -> None:
    images = [torch.zeros(3, 160, 180), torch.zeros(3, 150, 160)]
    batch = {"images": images, "targets": ({"boxes": torch.zeros(2, 4)},), "n": 3}

    marked = vramkit.fixed(batch)

    assert batches.batch_size_of(marked) == 0
    kept: Any = batches.at_size(marked, 7)
    assert kept["images"][1] is images[1]
    assert kept["targets"][0]["boxes"] is batch["targets"][0]["boxes"]  # type: ignore[index]
    assert kept["n"] == 3


def test_only_tensors_can_be_fixed() -> None:
    with pytest.raises(vramkit.UsageError, match="with list, in which no tensor is"):
        vramkit.fixed([1, 2])


class Takes(nn.Module):
    """Says what it was called with."""

    def forward(self, x: object, y: object = None) -> tuple[object, object]:
        return x, y


def test_a_model_is_called_with_what_it_takes() -> None:
    model = Takes()

    assert training.call(model, (1, 2), takes_part=False) == (1, 2)
    assert training.call(model, [1, 2, 3], takes_part=True) == (1, 2)
    assert training.call(model, {"y": 2, "x": 1}, takes_part=False) == (1, 2)
    assert training.call(model, {"y": 2, "x": 1, "labels": 3}, takes_part=True) == (1, 2)
    with pytest.raises(TypeError):
        training.call(model, (1, 2, 3), takes_part=False)
    with pytest.raises(TypeError):
        training.call(model, {"x": 1, "labels": 3}, takes_part=False)


def test_the_loss_is_found_in_what_a_model_returns() -> None:
    scalar, several = torch.ones((), requires_grad=True), torch.ones(3, requires_grad=True)

    class Output:
        loss = scalar

    assert training.loss_of(Output()) is scalar
    assert training.loss_of({"loss": scalar, "logits": several}) is scalar
    assert training.loss_of(scalar) is scalar
    assert training.loss_of(several).item() == 3
    assert training.loss_of({"a": several, "b": torch.ones(3), "c": [several]}).item() == 6
    with pytest.raises(TypeError, match="no tensor to begin a backward with"):
        training.loss_of("text")

"""What a training step changes is put back. On the CPU, where values really change."""

from __future__ import annotations

import functools
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vramkit.batch_size.saved_state import Surroundings


class Net(nn.Module):
    """Batch norm, dropout, an attribute that is no buffer, and a buffer that every forward replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))
        self.register_buffer("ema", torch.zeros(2))
        self.cache: dict[str, torch.Tensor] = {}
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.ema = self.ema + 1
        self.cache["x"] = x
        return self.layers(x)


def values(*models: nn.Module) -> list[Any]:
    return [[(name, value.tolist()) for name, value in model.state_dict().items()] for model in models]


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(6, 4)).sum().backward()
    optimizer.step()


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net()


def test_parameters_buffers_and_attributes_are_put_back(model):
    optimizer = torch.optim.Adam(model.parameters())
    before, ema = values(model), model.ema
    around = Surroundings([model], [optimizer])

    model.eval()
    train(model.train(), optimizer)
    around.close()

    assert values(model) == before
    assert model.ema is ema
    assert model.calls == 0
    assert model.cache == {}


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.Adagrad, torch.optim.LBFGS])
def test_an_optimizer_that_has_no_state_yet_has_none_again(model, make):
    optimizer = make(model.parameters())
    before = repr(optimizer.state_dict())
    around = Surroundings([model], [optimizer])

    if make is torch.optim.LBFGS:
        optimizer.step(lambda: model(torch.randn(6, 4)).sum())
    else:
        train(model, optimizer)
    optimizer.param_groups[0]["lr"] = 99.0
    around.close()

    assert repr(optimizer.state_dict()) == before


def test_an_optimizers_state_is_the_same_tensors_with_the_same_values_again(model):
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    state = {name: each["exp_avg"] for name, each in optimizer.state.items()}
    before = {name: tensor.tolist() for name, tensor in state.items()}
    around = Surroundings([model], [optimizer])

    train(model, optimizer)
    around.close()

    assert all(optimizer.state[name]["exp_avg"] is tensor for name, tensor in state.items())
    assert {name: tensor.tolist() for name, tensor in state.items()} == before


def test_gradients_are_out_of_the_way_meanwhile_and_the_same_tensors_again(model):
    model(torch.randn(6, 4)).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    before = [gradient.tolist() for gradient in gradients]
    around = Surroundings([model], [])

    meanwhile = [parameter.grad for parameter in model.parameters()]
    sizes = [gradient.untyped_storage().nbytes() for gradient in gradients]
    model(torch.randn(6, 4)).sum().backward()
    around.close()

    assert meanwhile == [None] * len(gradients)
    assert sizes == [0] * len(gradients)
    assert all(now.grad is then for now, then in zip(model.parameters(), gradients, strict=True))
    assert [gradient.tolist() for gradient in gradients] == before


def test_gradients_that_are_views_of_one_bucket_stay_so(model):
    parameters = [*model.parameters()]
    bucket = torch.arange(float(sum(parameter.numel() for parameter in parameters)))
    for parameter, part in zip(parameters, bucket.split([each.numel() for each in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
    before = bucket.tolist()

    Surroundings([model], []).close()

    assert bucket.tolist() == before
    assert {parameter.grad.untyped_storage().data_ptr() for parameter in parameters} == {
        bucket.untyped_storage().data_ptr()
    }


def test_random_generators_are_put_back(model):
    around = Surroundings([model], [])
    expected = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    torch.rand(3), random.random(), np.random.rand(3)
    around.close()

    assert (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()) == expected


total = 0
seen: list[int] = []


def test_what_a_step_reaches_is_put_back(model):
    other = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scaler = torch.amp.GradScaler("cpu")
    history: list[float] = []
    scalers: list[object] = []
    count = 0

    def step(batch: torch.Tensor) -> None:
        global total
        nonlocal count
        total, count = total + 1, count + 1
        seen.append(1)
        history.append(1.0)
        scalers.append(torch.amp.GradScaler("cpu"))
        scaler.scale(other(batch).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()

    before = values(other), repr(scaler.__dict__), repr(scheduler.state_dict()), repr(optimizer.state_dict())
    around = Surroundings([model], [], step)

    step(torch.ones(2, 4))
    around.close()

    assert (values(other), repr(scaler.__dict__), repr(scheduler.state_dict()), repr(optimizer.state_dict())) == before
    assert (total, count, seen, history, scalers) == (0, 0, [], [], [])


def test_containers_of_other_kinds_are_put_back_with_their_order():
    counts, last, ordered = Counter(rows=7), deque([1], maxlen=2), OrderedDict(a=1, b=2)

    def step(batch: object) -> None:
        counts["rows"] += 1
        last.extend([2, 3])
        ordered.move_to_end("a")

    around = Surroundings([], [], step)

    for _ in range(2):
        step(None)
        around.put_back()

    assert counts == Counter(rows=7)
    assert last == deque([1], maxlen=2)
    assert [*ordered.items()] == [("a", 1), ("b", 2)]


def test_what_a_function_inside_the_step_names_is_put_back():
    def step(batch: object) -> None:
        def closure() -> None:
            global total
            seen.append(1)
            total += 1

        closure()

    around = Surroundings([], [], step)

    step(None)
    around.close()

    assert (total, seen) == (0, [])


def test_what_a_decorator_keeps_is_put_back_and_what_it_wraps_too():
    calls: list[int] = []
    history: list[int] = []

    def logged(function: Callable[[object], None]) -> Callable[[object], None]:
        @functools.wraps(function)
        def wrapper(batch: object) -> None:
            calls.append(1)
            function(batch)

        return wrapper

    @logged
    def step(batch: object) -> None:
        history.append(1)

    around = Surroundings([], [], step)

    step(None)
    around.close()

    assert (calls, history) == ([], [])


class Trainer:
    """A step that is a method."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.steps = model, 0

    def step(self, batch: torch.Tensor) -> None:
        self.steps += 1
        self.model(batch).sum().backward()

    def __call__(self, batch: torch.Tensor) -> None:
        self.step(batch)


def in_a_closure(trainer: Trainer) -> Callable[[torch.Tensor], None]:
    return lambda batch: trainer.step(batch)


TAKES = {
    "method": lambda trainer: trainer.step,
    "object": lambda trainer: trainer,
    "closure": in_a_closure,
    "partial": lambda trainer: functools.partial(Trainer.step, trainer),
}


@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
def test_an_object_whose_method_is_the_step_is_put_back(take: Callable[[Trainer], Any]):
    trainer = Trainer(nn.Linear(4, 4))
    step = take(trainer)
    around = Surroundings([], [], step)

    step(torch.ones(2, 4))
    around.close()

    assert trainer.steps == 0
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_memory_formats_and_tied_parameters_survive():
    first = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    second = nn.Conv2d(3, 8, 3)
    second.weight = first.weight
    optimizer = torch.optim.SGD(first.parameters(), lr=1.0)
    strides, before = first.weight.stride(), values(first, second)
    around = Surroundings([first, second], [optimizer])

    (first(torch.randn(2, 3, 8, 8)).sum() + second(torch.randn(2, 3, 8, 8)).sum()).backward()
    optimizer.step()
    around.close()

    assert values(first, second) == before
    assert first.weight is second.weight
    assert first.weight.stride() == strides


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(4).to_sparse(),
        lambda: torch.eye(4).to_sparse_csr(),
        lambda: torch.eye(4).to_sparse_csc(),
        lambda: torch.ones(1, 4).expand(4, 4),
        lambda: torch.arange(8.0).unfold(0, 4, 1),
    ],
    ids=["coo", "csr", "csc", "expanded", "overlapping"],
)
@pytest.mark.filterwarnings("ignore:Sparse C:UserWarning")
def test_a_buffer_of_any_layout_is_put_back_and_so_is_everything_else(model, make):
    buffer = make()
    model.register_buffer("mask", buffer)
    model(torch.randn(6, 4)).sum().backward()
    gradient = model.layers[0].weight.grad
    weight, mask, strided = model.layers[0].weight.tolist(), buffer.to_dense().tolist(), buffer.layout is torch.strided
    around = Surroundings([model], [])

    for _ in range(2):
        (buffer[0] if strided else buffer._values() if buffer.is_sparse else buffer.values()).zero_()
        model.layers[0].weight.data.zero_()
        around.put_back()
        assert buffer.to_dense().tolist() == mask
    buffer.data = torch.zeros_like(buffer)
    around.close()

    assert buffer.to_dense().tolist() == mask
    assert model.layers[0].weight.tolist() == weight
    assert model.layers[0].weight.grad is gradient


def test_what_cannot_be_put_back_keeps_nothing_else_from_it(model):
    class Stubborn(dict):
        def clear(self) -> None:
            raise KeyError("stubborn")

    model.stubborn = Stubborn()
    model(torch.randn(6, 4)).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    before, random_before = values(model), torch.get_rng_state().tolist()
    around = Surroundings([model], [])

    model.stubborn["more"] = 1
    model(torch.randn(6, 4))
    with pytest.raises(KeyError, match="stubborn"):
        around.close()

    assert values(model) == before
    assert torch.get_rng_state().tolist() == random_before
    assert all(now.grad is then for now, then in zip(model.parameters(), gradients, strict=True))


def test_it_can_be_put_back_again_and_again(model):
    optimizer = torch.optim.Adam(model.parameters())
    before = values(model)
    around = Surroundings([model], [optimizer])

    for _ in range(3):
        train(model, optimizer)
        around.put_back()
        assert values(model) == before
        assert not optimizer.state

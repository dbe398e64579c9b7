"""``profile(on_step=...)``: steps that are told of while they end are those that the result has afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import vramkit

ROWS = torch.ones(2, 4)


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(ROWS).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def one_optimizer(steps: int) -> None:
    model = nn.Linear(4, 4)
    optimizer = sgd(model)
    for _ in range(steps):
        step_of(model, optimizer)


def adversaries(steps: int) -> None:
    models = nn.Linear(4, 4), nn.Linear(4, 4)
    optimizers = [sgd(model) for model in models]
    for _ in range(steps):
        for model, optimizer in zip(models, optimizers, strict=True):
            step_of(model, optimizer)


def accumulation(steps: int) -> None:
    model = nn.Linear(4, 4)
    optimizer = sgd(model)
    for _ in range(steps):
        model(ROWS).sum().backward()
        step_of(model, optimizer)


def in_the_backward(steps: int) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizers = {parameter: torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters()}

    def update(parameter: torch.Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    hooks = [parameter.register_post_accumulate_grad_hook(update) for parameter in model.parameters()]
    try:
        for _ in range(steps):
            model(ROWS).sum().backward()
    finally:
        for hook in hooks:  # through which parameters and optimizers would hold each other for ever
            hook.remove()


class Wrapper(torch.optim.Optimizer):
    """As accelerate's: it has another's parameters, and its own step is not torch's."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner

    @property
    def param_groups(self) -> object:
        return self.inner.param_groups

    def step(self) -> None:
        self.inner.step()


def wrapped(steps: int) -> None:
    model = nn.Linear(4, 4)
    optimizer = Wrapper(sgd(model))
    for _ in range(steps):
        model(ROWS).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("program", [one_optimizer, adversaries, accumulation, in_the_backward, wrapped])
def test_each_step_is_told_of_once_and_the_result_has_as_many(program: Callable[[int], None], steps: int) -> None:
    told: list[int] = []

    with vramkit.profile(device="cpu", on_step=told.append) as measuring:
        program(steps)

    assert told == list(range(1, steps + 1))
    assert len(measuring.result.steps) == steps


def test_without_an_optimizer_a_step_ends_when_a_pass_begins_without_gradients() -> None:
    model = nn.Linear(4, 4)
    told: list[int] = []

    with vramkit.profile(device="cpu", on_step=told.append):
        for _ in range(3):
            for _ in range(2):
                model(ROWS).sum().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
            model.zero_grad()

    assert told == [1, 2], "that the third has ended shows when a fourth begins"


def test_an_optimizer_out_of_use_is_waited_for_no_longer_than_so_many_steps() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    of_first, of_second = sgd(first), sgd(second)  # second runs, and is never updated
    told: list[int] = []

    with vramkit.profile(device="cpu", on_step=told.append):
        for _ in range(20):
            second(ROWS)
            step_of(first, of_first)

    assert told[-1] == 20
    assert told == list(range(told[0], 21))
    del of_second


@pytest.mark.parametrize("program", [one_optimizer, in_the_backward])
def test_what_is_raised_at_a_steps_end_goes_through_the_program_and_ends_it_there(
    program: Callable[[int], None],
) -> None:
    def at(count: int) -> None:
        if count == 2:
            raise SystemExit(7)

    with pytest.raises(SystemExit) as ended, vramkit.profile(device="cpu", on_step=at) as measuring:
        program(5)

    assert ended.value.code == 7
    assert len(measuring.result.steps) == 2


def test_the_users_own_steps_are_told_of() -> None:
    model = nn.Linear(4, 4)
    optimizer = sgd(model)
    told: list[int] = []

    with vramkit.profile(device="cpu", on_step=told.append) as measuring:
        for _ in range(2):
            step_of(model, optimizer)
            measuring.step()

    assert told[-1] == 2

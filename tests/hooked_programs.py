"""Training programs whose hooks keep or save memory, as arguments of ``vramkit.estimate``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Program = dict[str, Any]


def _trained(hook: Callable[[nn.Module, torch.optim.Optimizer, list[object]], object]) -> Program:
    model = nn.Sequential(nn.Linear(1024, 1024), nn.Linear(1024, 1024))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept: list[object] = []
    hook(model, optimizer, kept)

    def step(batch: torch.Tensor) -> None:
        model(batch.to("cuda")).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"model": model, "batch": torch.zeros(8, 1024), "optimizer": optimizer, "step": step}


def on_a_parameter() -> Program:
    """Copies of gradients are kept."""
    return _trained(
        lambda model, _, kept: [p.register_hook(lambda g: kept.append(g.clone())) for p in model.parameters()]
    )


def before_a_step() -> Program:
    """Something is kept whenever the optimizer begins."""
    return _trained(
        lambda _, optimizer, kept: optimizer.register_step_pre_hook(
            lambda *_: kept.append(torch.zeros(1 << 20, device="cuda"))
        )
    )


def after_a_step() -> Program:
    """Something is kept whenever the optimizer has ended."""
    return _trained(
        lambda _, optimizer, kept: optimizer.register_step_post_hook(
            lambda *_: kept.append(torch.zeros(1 << 20, device="cuda"))
        )
    )


def optimizer_in_backward() -> Program:
    """Each parameter has an optimizer of its own, which runs as soon as the gradient is there, and drops it."""
    model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(4)])
    optimizers = {parameter: torch.optim.Adam([parameter]) for parameter in model.parameters()}

    def run(parameter: torch.Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(run)

    def step(batch: torch.Tensor) -> None:
        model(batch.to("cuda")).sum().backward()

    return {"model": model, "batch": torch.zeros(8, 1024), "optimizer": [*optimizers.values()], "step": step}


PROGRAMS: dict[str, Callable[[], Program]] = {
    each.__name__: each for each in (on_a_parameter, before_a_step, after_a_step, optimizer_in_backward)
}

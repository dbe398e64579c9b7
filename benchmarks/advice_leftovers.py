"""More of the programs of ``advice_programs.py``: what steps leave behind that later ones do not need, and
gradients that nothing uses.
"""

from __future__ import annotations

import gc
from contextlib import nullcontext
from typing import Any

import torch
from advice_pairs import convolutions, feed_forwards, target, train_on
from torch import nn
from torch.nn import functional

ROWS, WIDTH = 2048, 512


def _batch(rows: int = ROWS) -> torch.Tensor:
    return torch.randn(rows, WIDTH, device="cuda")


def critic(change: str) -> object:
    """A critic that is trained on a generator's output, which is not detached."""
    generator, judge = feed_forwards(3), nn.Sequential(feed_forwards(2), nn.Linear(WIDTH, 1)).cuda()
    of_generator, of_judge = (torch.optim.Adam(each.parameters()) for each in (generator, judge))
    for _ in range(3):
        with torch.no_grad() if change else nullcontext():
            made = generator(_batch())
        train_on(of_judge, functional.softplus(torch.cat([judge(made), -judge(_batch())])).mean())
        del made
        train_on(of_generator, functional.softplus(-judge(generator(_batch()))).mean())
    return generator, judge


def shared_output(change: str) -> object:
    """The same output for both, whose graph the critic's backward has to keep for the generator's."""
    generator, judge = feed_forwards(3), nn.Sequential(feed_forwards(3), nn.Linear(WIDTH, 1)).cuda()
    of_generator, of_judge = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (generator, judge))
    for _ in range(3):
        made = generator(_batch())
        value = judge(made.detach() if change else made).mean() - judge(_batch()).mean()
        of_judge.zero_grad()
        value.backward(retain_graph=not change)
        of_judge.step()
        train_on(of_generator, judge(made).mean())
        del made, value
    return generator, judge


def perceptual(change: str) -> object:
    """A network that compares features, which no optimizer has: those of what is aimed at need no graph."""
    return target(change, detaches=False)


def logged_gradients(change: str) -> object:
    """Copies of the gradients, by the names of their parameters, of every step."""
    model = feed_forwards(4)
    optimizer = torch.optim.AdamW(model.parameters())
    log: dict[str, list[object]] = {name: [] for name, _ in model.named_parameters()}
    for _ in range(6):
        optimizer.zero_grad()
        model(_batch(256)).pow(2).mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            log[name].append(parameter.grad.norm().item() if change else parameter.grad.clone())
        optimizer.step()
    return log


def gradients_by_reference(change: str) -> object:
    """The gradients themselves, which each ``zero_grad()`` lets go."""
    model = feed_forwards(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    log = []
    for _ in range(6):
        train_on(optimizer, model(_batch(256)).pow(2).mean())
        log.append([each.grad.cpu() if change else each.grad for each in model.parameters() if each.grad is not None])
    return log


class _Swish(torch.autograd.Function):
    """What is computed is put on ``ctx``: the output too, whose ``grad_fn`` is ``ctx`` itself."""

    @staticmethod
    def forward(ctx: Any, given: torch.Tensor) -> torch.Tensor:
        ctx.given, ctx.out = given, given * torch.sigmoid(given)
        out: torch.Tensor = ctx.out
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(ctx.given)
        return gradients[0] * (ctx.out + gate * (1 - ctx.out))


class _SavedSwish(torch.autograd.Function):
    """The same, with what torch has for it."""

    @staticmethod
    def forward(ctx: Any, given: torch.Tensor) -> torch.Tensor:
        out = given * torch.sigmoid(given)
        ctx.save_for_backward(given, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        given, out = ctx.saved_tensors
        gate = torch.sigmoid(given)
        return gradients[0] * (out + gate * (1 - out))


class _Block(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.function = function

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        returned: torch.Tensor = self.function.apply(self.linear(given))
        return returned


def on_ctx(change: str) -> object:
    """Activations of custom functions, in cycles with their graphs, which only the garbage collector ends."""
    blocks = [_Block(_SavedSwish if change else _Swish) for _ in range(4)]
    model = nn.Sequential(*blocks).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gc.disable()
    try:
        for _ in range(8):
            train_on(optimizer, model(_batch()).pow(2).mean())
    finally:
        gc.enable()
    return model


def optimizer_again(change: str) -> object:
    """A new optimizer for each epoch, while a list holds those before."""
    model, held = feed_forwards(6), []
    for _ in range(3):
        optimizer = torch.optim.Adam(model.parameters())
        if not change:
            held.append(optimizer)
        for _ in range(2):
            train_on(optimizer, model(_batch(64)).pow(2).mean())
    return held


def history(change: str) -> object:
    """Features of each step, joined with those of all steps before."""
    model = feed_forwards(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    joined = torch.empty(0, WIDTH, device="cpu" if change else "cuda")
    for _ in range(10):
        output = model(_batch(4096))
        train_on(optimizer, output.pow(2).mean())
        joined = torch.cat([joined, output.detach().to(joined.device)])
    return joined


def rollout(change: str) -> object:
    """Probabilities of what a policy did, collected with their graphs and only compared with."""
    policy = nn.Sequential(nn.Linear(WIDTH, 1024), nn.Tanh(), nn.Linear(1024, 1024), nn.Tanh(), nn.Linear(1024, 16))
    policy.cuda()
    optimizer = torch.optim.Adam(policy.parameters())
    for _ in range(3):
        seen = [_batch(256) for _ in range(32)]
        with torch.no_grad() if change else nullcontext():
            before = [policy(each).log_softmax(1) for each in seen]
        optimizer.zero_grad()
        for each, old in zip(seen, before, strict=True):
            (policy(each).log_softmax(1) - old.detach()).exp().mean().backward()
        optimizer.step()
        del before
    return policy


def validation_between(change: str) -> object:
    """A validation after every third step, in training mode and with gradients."""
    model = convolutions()
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(9):
        train_on(optimizer, model(torch.randn(32, 3, 64, 64, device="cuda")).pow(2).mean())
        if step % 3 == 2:
            with torch.no_grad() if change else nullcontext():
                checked = model(torch.randn(128, 3, 64, 64, device="cuda")).pow(2).mean()
            checked.item()
    return model


def two_losses(change: str) -> object:
    """Two backwards through one graph, of which the last one keeps it, too."""
    model, head = feed_forwards(4), nn.Linear(WIDTH, 10).cuda()
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1)
    for _ in range(4):
        hidden = model(_batch())
        first, second = head(hidden).pow(2).mean(), hidden.abs().mean()
        optimizer.zero_grad()
        first.backward(retain_graph=True)
        second.backward(retain_graph=not change)
        optimizer.step()
    return model


def lbfgs(change: str) -> object:
    """An optimizer whose temporaries no option saves; a shorter history saves nothing in its first steps."""
    model = feed_forwards(2)
    optimizer = torch.optim.LBFGS(model.parameters(), history_size=10 if change else 100, max_iter=5)
    batch = _batch(64)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = model(batch).pow(2).mean()
        value.backward()
        return value

    for _ in range(2):
        optimizer.step(closure)  # type: ignore[arg-type] # torch says that it returns a float
    return model

"""Nothing is told to be the cause of a program's memory where a program needs what it has, on the virtual GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vramkit
from vramkit.reports.advice import advise
from vramkit.reports.moment import moment_of

pytestmark = pytest.mark.virtual_gpu
WIDTH = 512
"""Of layers, and the rows of a batch: activations are as large as all pairs of rows."""


def network(out: int = WIDTH) -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, out)
    ).to("cuda")


def batch() -> torch.Tensor:
    return torch.zeros(WIDTH, WIDTH, device="cuda")


Program = tuple[list[nn.Module], Callable[[], object]]


def adversaries() -> Program:
    generator, critic = network(), network(1)
    of_generator, of_critic = (torch.optim.Adam(each.parameters()) for each in (generator, critic))

    def step() -> None:
        with torch.no_grad():
            made = generator(batch())
        (critic(batch()).mean() - critic(made).mean()).backward()
        of_critic.step()
        of_critic.zero_grad()
        critic(generator(batch())).mean().backward()
        of_generator.step()
        of_generator.zero_grad()
        of_critic.zero_grad()

    return [generator, critic], step


def penalty() -> Program:
    critic = network(1)
    optimizer = torch.optim.Adam(critic.parameters())

    def step() -> None:
        x = batch().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        (critic(batch()).mean() + (gradient.norm(2, 1) - 1).pow(2).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return [critic], step


def taught() -> Program:
    student, teacher = network(), network()
    optimizer = torch.optim.AdamW(student.parameters())

    def step() -> None:
        with torch.no_grad():
            wanted = teacher(batch())
        F.mse_loss(student(batch()), wanted).backward()
        optimizer.step()
        optimizer.zero_grad()

    return [student, teacher], step


def target() -> Program:
    online = network(4)
    averaged = copy.deepcopy(online).requires_grad_(False)
    optimizer = torch.optim.Adam(online.parameters())

    def step() -> None:
        with torch.no_grad():
            wanted = averaged(batch()).amax(1)
        F.smooth_l1_loss(online(batch()).amax(1), wanted).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for old, new in zip(averaged.parameters(), online.parameters(), strict=True):
                old.lerp_(new, 0.01)

    return [online, averaged], step


def sharpness() -> Program:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        model(batch()).mean().backward()
        with torch.no_grad():
            moves = [each.grad * 0.1 for each in model.parameters() if each.grad is not None]
            for each, move in zip(model.parameters(), moves, strict=True):
                each += move
        optimizer.zero_grad()
        model(batch()).mean().backward()
        with torch.no_grad():
            for each, move in zip(model.parameters(), moves, strict=True):
                each -= move
        optimizer.step()
        optimizer.zero_grad()

    return [model], step


def whole_numbers() -> Program:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:  # of eight bytes, as in float64
        labels = torch.zeros(WIDTH, WIDTH, dtype=torch.long).to("cuda")
        F.binary_cross_entropy_with_logits(model(batch()), labels.float()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return [model], step


class Cached(nn.Module):
    """Attention with the keys and values of earlier words."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Linear(WIDTH, 3 * WIDTH)
        self.earlier: list[torch.Tensor] = []

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        query, *own = self.inputs(words).chunk(3, -1)
        self.earlier = [torch.cat(pair, 1) for pair in zip(self.earlier, own, strict=True)] if self.earlier else own
        return words + F.scaled_dot_product_attention(query, *self.earlier)


def generating() -> Program:
    model = nn.Sequential(*(Cached() for _ in range(4))).to("cuda").eval()
    words = torch.zeros(4, 128, WIDTH, device="cuda")

    def step() -> None:
        nonlocal words
        with torch.no_grad():
            for _ in range(4):
                words = model(words)[:, -1:].clone()

    return [model], step


class Scales(nn.Module):
    """Returns what each of its layers has made."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, rows: torch.Tensor) -> list[torch.Tensor]:
        found = [rows]
        for layer in self.layers:
            found.append(layer(found[-1]))
        return found[1:]


def several_scales() -> Program:
    backbone, head = Scales().to("cuda").eval(), nn.Linear(4 * WIDTH, WIDTH).to("cuda").eval()

    def step() -> None:
        with torch.no_grad():
            head(torch.cat(backbone(batch()), 1)).argmax(1).cpu()

    return [backbone, head], step


def gradients_in_parts() -> Program:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        for _ in range(3):
            model(batch()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return [model], step


@pytest.mark.parametrize(
    "program",
    [
        adversaries,
        penalty,
        taught,
        target,
        sharpness,
        whole_numbers,
        generating,
        several_scales,
        gradients_in_parts,
    ],
    ids=lambda each: each.__name__,
)
def test_a_program_that_needs_what_it_has_is_told_no_cause(program: Callable[[], Program]) -> None:
    models, step = program()

    with vramkit.profile(models) as prof:
        for _ in range(3):
            step()

    assert not [each.text for each in advise(prof.result, moment_of(prof.result), limit=99) if each.is_cause]


class Adapted(nn.Module):
    """A layer that does not train, beside one that does."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH))
        self.frozen.requires_grad_(False)
        self.adapter = nn.Linear(WIDTH, WIDTH)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.frozen(rows) + self.adapter(rows)


def test_frozen_layers_between_adapters_are_not_to_run_without_a_graph() -> None:
    model = nn.Sequential(*(Adapted() for _ in range(4))).to("cuda")
    optimizer = torch.optim.Adam(each for each in model.parameters() if each.requires_grad)

    with vramkit.profile(model) as prof:
        for _ in range(3):
            model(torch.zeros(4096, WIDTH, device="cuda")).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    assert not [each.text for each in advise(prof.result, moment_of(prof.result), limit=99) if "frozen" in each.text]

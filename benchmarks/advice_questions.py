"""More of the programs of ``advice_programs.py``: what people ask about in public."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from advice_pairs import convolutions, feed_forwards, train_on
from torch import nn
from torch.nn import functional

WIDTH = 512


def _batch(rows: int, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(rows, width, device="cuda")


def cudnn_state(change: str) -> object:
    """The state of cuDNN's recurrent layers, handed on with its graph: each backward goes through all steps before."""
    model, head = nn.LSTM(128, 1024, 3, batch_first=True).cuda(), nn.Linear(1024, 10).cuda()
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.0)
    state = None
    for _ in range(5):
        output, state = model(torch.randn(16, 16, 128, device="cuda"), state)
        optimizer.zero_grad()
        head(output).pow(2).mean().backward(retain_graph=True)
        if change:
            state = tuple(each.detach() for each in state)
    return state


class _Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.layers, self.head = nn.Embedding(1000, 128), nn.GRU(128, 256), nn.Linear(256, 1000)

    def forward(self, words: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        output, state = self.layers(self.words(words), state)
        return self.head(output), state


def words_state(change: str) -> object:
    """The same where most of a step's graph is of its logits, which no state needs."""
    model, state = _Words().cuda(), None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(6):
        words = torch.zeros(64, 32, dtype=torch.long, device="cuda")
        output, state = model(words, state)
        optimizer.zero_grad()
        functional.cross_entropy(output.flatten(0, 1), words.flatten()).backward(retain_graph=True)
        if change:
            state = state.detach()
    return state


def _images_of_noise(width: int) -> tuple[nn.Module, nn.Module]:
    def up(inside: int, outside: int, stride: int = 2) -> list[nn.Module]:
        layer = nn.ConvTranspose2d(inside, outside, 4, stride, stride - 1, bias=False)
        return [layer, nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]

    def down(inside: int, outside: int) -> list[nn.Module]:
        return [nn.Conv2d(inside, outside, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]

    makes = [*up(64, 4 * width, 1), *up(4 * width, 2 * width), *up(2 * width, width)]
    generator = nn.Sequential(*makes, nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh())
    judge = nn.Sequential(*down(3, 16), *down(16, 32), *down(32, 64), nn.Conv2d(64, 1, 4))
    return generator.cuda(), judge.cuda()


def small_images(change: str) -> object:
    """Small convolutions, of which the critic's images are a large part: they are there with a graph and without."""
    generator, judge = _images_of_noise(64)
    of_generator, of_judge = (torch.optim.Adam(each.parameters()) for each in (generator, judge))
    for _ in range(3):
        real, noise = torch.randn(64, 3, 32, 32, device="cuda"), torch.randn(64, 64, 1, 1, device="cuda")
        with torch.no_grad() if change else nullcontext():
            made = generator(noise)
        train_on(of_judge, functional.softplus(-judge(real)).mean() + functional.softplus(judge(made)).mean())
        train_on(of_generator, functional.softplus(-judge(generator(noise))).mean())
    return generator, judge


def inner_steps(change: str) -> object:
    """A meta-learner that sums the losses of its tasks, each of which has second derivatives of its inner steps."""
    model = feed_forwards(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        total: torch.Tensor | float = 0.0
        for _ in range(4):
            weights = dict(model.named_parameters())
            for _ in range(3):
                loss = torch.func.functional_call(model, weights, (_batch(512),)).pow(2).mean()
                gradients = torch.autograd.grad(loss, [*weights.values()], create_graph=True)
                moved = zip(weights.items(), gradients, strict=True)
                weights = {name: weight - 0.1 * gradient for (name, weight), gradient in moved}
            loss = torch.func.functional_call(model, weights, (_batch(512),)).pow(2).mean()
            if change:
                loss.backward()
            else:
                total = total + loss
        if isinstance(total, torch.Tensor):
            total.backward()
        optimizer.step()
    return model


def hooked_evaluation(change: str) -> object:
    """Features of every block that hooks keep in evaluation."""
    model, kept = feed_forwards(4), []

    def keep(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        kept.append(output.cpu() if change else output)

    for block in model.eval():
        block[0].register_forward_hook(keep)
    with torch.no_grad():
        for _ in range(4):
            model(_batch(1024))
    return kept


def head_alone(change: str) -> object:
    """An optimizer that has the head alone, while the backbone's gradients are computed, too."""
    model = nn.Sequential(convolutions(), nn.Linear(10, 10)).cuda()
    optimizer = torch.optim.Adam(model[1].parameters())
    model[0].requires_grad_(not change)
    for _ in range(4):
        train_on(optimizer, model(torch.randn(32, 3, 64, 64, device="cuda")).pow(2).mean())
    return model


def larger_evaluation(change: str) -> object:
    """Evaluation with gradients, in larger batches than training."""
    model = convolutions()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        train_on(optimizer, model.train()(torch.randn(16, 3, 64, 64, device="cuda")).pow(2).mean())
        model.eval()
        with torch.no_grad() if change else nullcontext():
            for _ in range(3):
                model(torch.randn(64, 3, 64, 64, device="cuda")).argmax(1).sum().item()
    return model


def all_pairs(change: str) -> object:
    """Predictions of shape (N, 1) and targets of shape (N,): their difference is of all pairs."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        output = model(_batch(4096, 64))
        train_on(
            optimizer, ((output.squeeze(1) if change else output) - torch.zeros(4096, device="cuda")).pow(2).mean()
        )
    return model


def self_play(change: str) -> object:
    """A buffer of what a policy said, with its graphs, four times in a step."""
    policy, buffer = feed_forwards(2), []
    optimizer = torch.optim.Adam(policy.parameters())
    for _ in range(4):
        for _ in range(4):
            with torch.no_grad() if change else nullcontext():
                buffer.append(policy(_batch(256)).log_softmax(1))
        train_on(optimizer, policy(_batch(256)).pow(2).mean())
    return buffer


def seen_batches(change: str) -> object:
    """A list that has each step's batch."""
    model, seen = convolutions(8), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(8):
        images = torch.randn(64, 3, 64, 64)
        batch = images.cuda()
        train_on(optimizer, model(batch).pow(2).mean())
        seen.append(images if change else batch)
    return seen


def attention_weights(change: str) -> object:
    """Attention that returns its weights, which nobody looks at."""
    inside, attention = nn.Linear(32, 32).cuda(), nn.MultiheadAttention(32, 4, batch_first=True).cuda()
    optimizer = torch.optim.Adam([*inside.parameters(), *attention.parameters()])
    for _ in range(3):
        hidden = inside(torch.randn(2, 1600, 32, device="cuda"))
        train_on(optimizer, attention(hidden, hidden, hidden, need_weights=not change)[0].pow(2).mean())
    return attention


def merged_masks(change: str) -> object:
    """A causal mask, and one of padding, of which every layer makes one of all pairs for each head."""
    layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    causal = nn.Transformer.generate_square_subsequent_mask(512, device="cuda")
    for _ in range(3):
        words, padding = torch.randn(8, 512, 128, device="cuda"), torch.zeros(8, 512, device="cuda")
        if change:
            both = (causal + padding[:, None]).repeat_interleave(4, 0)
            train_on(optimizer, model(words, both).pow(2).mean())
        else:
            train_on(optimizer, model(words, causal, padding).pow(2).mean())
    return model


def double(change: str) -> object:
    """A model in float64, for the sake of what comes from NumPy."""
    model = feed_forwards(4)
    model = model if change else model.double()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        rows = torch.zeros(1024, WIDTH, dtype=torch.float64).cuda()
        train_on(optimizer, model(rows.float() if change else rows).pow(2).mean())
    return model


def penalty_of_gradients(change: str) -> object:
    """A critic with a penalty of its gradients, whose generator is not detached: what that costs is not known."""
    generator, judge = _images_of_noise(64)
    of_generator, of_judge = (torch.optim.Adam(each.parameters()) for each in (generator, judge))
    for _ in range(3):
        real, noise = torch.randn(64, 3, 32, 32, device="cuda"), torch.randn(64, 64, 1, 1, device="cuda")
        with torch.no_grad() if change else nullcontext():
            made = generator(noise)
        mixed = (0.5 * real + 0.5 * made).requires_grad_() if change else 0.5 * real + 0.5 * made
        [gradient] = torch.autograd.grad(judge(mixed).sum(), mixed, create_graph=True)
        train_on(
            of_judge, judge(made).mean() - judge(real).mean() + (gradient.flatten(1).norm(dim=1) - 1).pow(2).mean()
        )
        del made, mixed, gradient
        train_on(of_generator, -judge(generator(noise)).mean())
    return generator, judge


def kept_losses(change: str) -> object:
    """Losses of which a list is kept for a plot, whose backward is told to retain the graph."""
    model, losses = feed_forwards(4), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(4):
        loss = model(_batch(2048)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward(retain_graph=not change)
        losses.append(float(loss) if change else loss)
    return losses

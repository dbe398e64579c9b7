"""More of the programs of ``advice_programs.py``: what people describe in public threads when memory ran out."""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from itertools import pairwise

import torch
from advice_pairs import convolutions, feed_forwards, train_on
from torch import nn
from torch.nn import functional

WIDTH = 512


def _batch(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda")


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, *, keeps: bool) -> None:
        super().__init__()
        self.inputs, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.keeps, self.weights = heads, keeps, torch.zeros(0)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        count, length, width = rows.shape
        query, key, value = self.inputs(rows).view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) / 8).softmax(-1)
        if self.keeps:
            self.weights = weights
        return rows + self.out((weights @ value).transpose(1, 2).reshape(count, length, width))


def attention_maps(change: str) -> object:
    """Attention maps that each layer keeps of its last call, to look at, in a larger evaluation after training."""
    model = nn.Sequential(*(_Attention(256, 8, keeps=not change) for _ in range(6)), nn.Linear(256, 10)).cuda()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        train_on(optimizer, model(_batch(2, 256, 256)).pow(2).mean())
    model.eval()
    with torch.no_grad():
        for _ in range(4):
            model(_batch(16, 256, 256)).argmax(-1).cpu()
    return model


class _Encoder(nn.Module):
    """Returns what the last layer has returned, and what all of them have where that is asked for."""

    def __init__(self, *, returns_all: bool) -> None:
        super().__init__()
        self.layers, self.returns_all = nn.ModuleList(feed_forwards(1, 256) for _ in range(8)), returns_all

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        states: tuple[torch.Tensor, ...] = ()
        for layer in self.layers:
            rows = layer(rows)
            states += (rows,) * self.returns_all
        return rows, states


def hidden_states(change: str) -> object:
    """An evaluation that asks for the states of all layers, and uses those of the last one."""
    model = _Encoder(returns_all=not change).cuda().eval()
    with torch.no_grad():
        for _ in range(4):
            last, states = model(_batch(16384, 256))
            last[:, 0].cpu()
    return states


def hooked_dict(change: str) -> object:
    """Hooks that put what layers return in a dict, which each evaluated batch sets anew."""
    model, seen = convolutions(32, 6), dict[str, torch.Tensor]()
    for name, each in model.named_modules():
        if isinstance(each, nn.Conv2d) and not change:
            each.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
    model.eval()
    with torch.no_grad():
        for _ in range(4):
            model(_batch(16, 3, 128, 128)).cpu()
    return model, seen


def hooked_training(change: str) -> object:
    """The same in training: what the backward would free, the dict has."""
    model, seen = convolutions(32, 6), dict[str, torch.Tensor]()
    for name, each in model.named_modules():
        if isinstance(each, (nn.Conv2d, nn.ReLU)) and not change:
            each.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(4):
        train_on(optimizer, model(_batch(16, 3, 128, 128)).pow(2).mean())
    return model, seen


def last_logits(change: str) -> object:
    """Logits of a large vocabulary that a variable has while the next batch is evaluated."""
    model = nn.Sequential(nn.Embedding(16000, 128), nn.Linear(128, 16000)).cuda().eval()
    with torch.no_grad():
        for _ in range(4):
            logits = model(torch.zeros(8, 256, dtype=torch.long, device="cuda"))
            logits[:, -1].argmax(-1).cpu()
            if change:
                del logits
    return model


def _layers() -> nn.ModuleList:
    widths = (3, *(32,) * 6)
    return nn.ModuleList(
        nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.ReLU()) for before, after in pairwise(widths)
    ).cuda()


def _features(layers: nn.ModuleList, images: torch.Tensor) -> list[torch.Tensor]:
    found = []
    for layer in layers:
        images = layer(images)
        found.append(images)
    return found


def style(change: str) -> object:
    """An image that is to have features as another one, of a network whose layers are called one by one."""
    layers, image = _layers().requires_grad_(False), _batch(4, 3, 128, 128).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.1)
    with torch.no_grad():
        wanted = _features(layers, _batch(4, 3, 128, 128))
    for _ in range(4):
        optimizer.zero_grad()
        pairs = zip(_features(layers, image), wanted, strict=True)
        loss = torch.stack([(one - other).pow(2).mean() for one, other in pairs]).sum()
        loss.backward(retain_graph=not change)
        optimizer.step()
    return image


def style_with_a_graph(change: str) -> object:
    """The same where what is aimed at has a graph, so that each backward goes through that again."""
    layers, image = _layers(), _batch(4, 3, 128, 128).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.1)
    with torch.no_grad() if change else nullcontext():
        wanted = _features(layers, _batch(4, 3, 128, 128))[2::3]
    for _ in range(4):
        optimizer.zero_grad()
        pairs = zip(_features(layers, image)[2::3], wanted, strict=True)
        loss = torch.stack([(one - other).pow(2).mean() for one, other in pairs]).sum()
        loss.backward(retain_graph=not change)
        optimizer.step()
    return image


def own_target(change: str) -> object:
    """An autoencoder whose batch comes from NumPy, is its target, and is cast for the model."""
    model = nn.Sequential(nn.Linear(4096, 256), nn.ReLU(), nn.Linear(256, 4096)).cuda()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        batch = torch.randn(2048, 4096, dtype=torch.float64).cuda()
        batch = batch.float() if change else batch
        train_on(optimizer, functional.mse_loss(model(batch.float()), batch))
    return model


def contrastive(change: str) -> object:
    """Similarities of all pairs of a batch."""
    count = 1024 if change else 2048
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 128)).cuda()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        for _ in range(1 + bool(change)):
            rows = functional.normalize(model(torch.cat([_batch(count, WIDTH), _batch(count, WIDTH)])))
            itself = torch.eye(2 * count, dtype=torch.bool, device="cuda")
            scores = (rows @ rows.t() / 0.5).masked_fill(itself, float("-inf"))
            functional.cross_entropy(scores, torch.arange(2 * count, device="cuda").roll(count)).backward()
        optimizer.step()
    return model


def differences(change: str) -> object:
    """Distances of all pairs, from their differences or from products."""
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 64)).cuda()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        rows = model(_batch(512, 256))
        if change:
            squares = rows.pow(2).sum(1)
            distances = squares[:, None] + squares - 2 * rows @ rows.t()
        else:
            distances = (rows[:, None] - rows[None]).pow(2).sum(-1)
        train_on(optimizer, torch.exp(-distances).mean())
    return model


class _Tagger(nn.Module):
    def __init__(self, *, last_alone: bool) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(5000, 128), nn.LSTM(128, 256, batch_first=True)
        self.head, self.last_alone = nn.Linear(256, 5000), last_alone

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.rnn(self.embed(words))
        logits: torch.Tensor = self.head(hidden[:, -1]) if self.last_alone else self.head(hidden)[:, -1]
        return logits


def last_word(change: str) -> object:
    """Logits of every word, of which the last one's are used."""
    model = _Tagger(last_alone=bool(change)).cuda()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        words = torch.zeros(32, 128, dtype=torch.long, device="cuda")
        train_on(optimizer, functional.cross_entropy(model(words), words[:, 0]))
    return model


def adversarial(change: str) -> object:
    """Images that are moved several times, each on the graph of the gradients of the moves before."""
    model = convolutions(32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        moved = _batch(16, 3, 64, 64).requires_grad_()
        for _ in range(5):
            [gradient] = torch.autograd.grad(model(moved).pow(2).mean(), moved, create_graph=not change)
            moved = moved + 0.01 * gradient.sign()
            moved = moved.detach().requires_grad_() if change else moved
        train_on(optimizer, model(moved.detach()).pow(2).mean())
    return model


def sampling(change: str) -> object:
    """Samples that are drawn after training in many steps, each of what the one before came to, with gradients."""
    sizes, layers = (3, 64, 64, 3), list[nn.Module]()
    for before, after in pairwise(sizes):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.SiLU()]
    model = nn.Sequential(*layers[:-1]).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        images = _batch(16, 3, 64, 64)
        train_on(optimizer, functional.mse_loss(model(images + torch.randn_like(images)), images))
    with torch.no_grad() if change else nullcontext():
        images = _batch(8, 3, 64, 64)
        for _ in range(20):
            images = images - 0.05 * model(images)
    images.detach().cpu()
    return model


def memory_bank(change: str) -> object:
    """Embeddings of the last batches that a loss compares with, computed once more and with their graphs."""
    model, bank = convolutions(32, 4, 64), deque[torch.Tensor](maxlen=6)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(8):
        rows = functional.normalize(model(_batch(32, 3, 64, 64)))
        loss = rows.pow(2).mean()
        if bank:
            loss = loss + (rows @ torch.cat([each.detach() for each in bank]).t()).exp().mean()
        train_on(optimizer, loss)
        bank.append(rows.detach() if change else model(_batch(32, 3, 64, 64)))
    return model, bank


def large_masks(change: str) -> object:
    """Probabilities of every pixel at full size, kept of each evaluated batch."""
    model = nn.Sequential(convolutions(16, 2, 1024), nn.Unflatten(1, (4, 16, 16))).cuda()
    optimizer, kept = torch.optim.Adam(model.parameters()), []
    for _ in range(2):
        train_on(optimizer, model(_batch(8, 3, 64, 64)).pow(2).mean())
    model.eval()
    with torch.no_grad():
        for _ in range(10):
            large = functional.interpolate(model(_batch(8, 3, 64, 64)), size=(256, 256), mode="bilinear").softmax(1)
            kept.append(large.argmax(1).cpu() if change else large)
    return model, kept


def two_backwards(change: str) -> object:
    """A critic with two backwards of its own, the second through a generator that is trained on the same output."""
    generator, judge = feed_forwards(3), nn.Sequential(feed_forwards(3), nn.Linear(WIDTH, 1)).cuda()
    of_generator, of_judge = (torch.optim.Adam(each.parameters()) for each in (generator, judge))
    for _ in range(3):
        of_judge.zero_grad()
        functional.softplus(-judge(_batch(2048, WIDTH))).mean().backward()
        made = generator(_batch(2048, WIDTH))
        loss = functional.softplus(judge(made.detach() if change else made)).mean()
        loss.backward(retain_graph=not change)
        of_judge.step()
        train_on(of_generator, functional.softplus(-judge(made)).mean())
    return generator, judge


def penalty_of_a_mix(change: str) -> object:
    """A critic that is trained twice for each step of the generator, with a penalty of its gradients."""
    generator, judge = feed_forwards(3, 256), nn.Sequential(feed_forwards(2, 256), nn.Linear(256, 1)).cuda()
    of_generator, of_judge = (torch.optim.Adam(each.parameters()) for each in (generator, judge))
    for _ in range(3):
        for _ in range(2):
            with torch.no_grad() if change else nullcontext():
                real, made = _batch(1024, 256), generator(_batch(1024, 256))
            share = torch.rand(1024, 1, device="cuda")
            mixed = (share * real + (1 - share) * made).requires_grad_()
            [gradient] = torch.autograd.grad(judge(mixed).sum(), mixed, create_graph=True)
            penalty = 10 * (gradient.norm(2, dim=1) - 1).pow(2).mean()
            train_on(of_judge, judge(made).mean() - judge(real).mean() + penalty)
        train_on(of_generator, -judge(generator(_batch(1024, 256))).mean())
    return generator, judge

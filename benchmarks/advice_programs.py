"""Small programs, each with what people do wrong, and with the changes that are advised. A program is given the name
of a change, and makes it; with "" it is as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import advice_forums as forums
import advice_leftovers as leftovers
import advice_pairs as pairs
import advice_questions as questions
import advice_threads as threads
import torch
from advice_pairs import convolutions, feed_forwards, halves, train_on
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Case:
    """One change to a program."""

    program: Callable[[str], object]
    change: str
    says: str
    """Words of the advice that it follows."""
    is_cause: bool = False
    """Whether it is what the program's author did wrong: then it has to be among the first two lines."""


def _images(count: int, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 3, size, size, device="cuda"), torch.zeros(count, dtype=torch.long, device="cuda")


def validation(change: str) -> object:
    """Losses of a validation with gradients on, kept to its end."""
    model, losses = convolutions(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model.train()
        for _ in range(3):
            images, labels = _images(32)
            train_on(optimizer, functional.cross_entropy(model(images), labels))
        model.eval()
        losses = []
        with torch.no_grad() if change else nullcontext():
            for _ in range(5):
                images, labels = _images(32)
                losses.append(functional.cross_entropy(model(images), labels))
    return losses


def logged_penalty(change: str) -> object:
    """A term that is only logged, every third step."""
    model, log = feed_forwards(2), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(12):
        batch = torch.randn(2048, 512, device="cuda")
        if step % 3 == 0:
            penalty = model(batch).abs().mean()
            log.append(penalty.item() if change else penalty)
        train_on(optimizer, model(batch).pow(2).mean())
    return log


def predictions(change: str) -> object:
    """Predictions that are collected on the device."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1)).cuda()
    found = []
    with torch.no_grad():
        for _ in range(8):
            images, _ = _images(32, 128)
            output = model(images)
            found.append(output.cpu() if change else output)
    return found


def joined(change: str) -> object:
    """Predictions that are joined with those before."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1)).cuda().eval()
    found = torch.zeros(0)
    with torch.no_grad():
        for _ in range(8):
            images, _ = _images(32, 128)
            output = model(images)
            output = output.cpu() if change else output
            found = torch.cat([found, output]) if len(found) else output
    return found


def hooked(change: str) -> object:
    """Features that a hook keeps, every second step."""
    model, features, calls = convolutions(), [], iter(range(1000))

    def keep(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        if next(calls) % 2 == 0:
            features.append(output.detach().cpu() if change else output)

    model[3].register_forward_hook(keep)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(12):
        images, labels = _images(32)
        train_on(optimizer, functional.cross_entropy(model(images), labels))
    return features


def summed(change: str) -> object:
    """Losses of four micro-batches, and one backward of their sum."""
    model = feed_forwards(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        total: torch.Tensor | float = 0.0
        for _ in range(4):
            loss = model(torch.randn(2048, 512, device="cuda")).pow(2).mean() / 4
            if change:
                loss.backward()
            else:
                total = total + loss
        if isinstance(total, torch.Tensor):
            total.backward()
        optimizer.step()
    return model


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside, self.across, self.out = nn.Linear(256, 1024), nn.Linear(1024, 1024), nn.Linear(1024, 8)

    def forward(self, batch: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state = torch.tanh(self.inside(batch) + self.across(state))
        return self.out(state), state


def recurrent(change: str) -> object:
    """A hidden state that is handed on with its graph."""
    model = _Recurrent().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    state = torch.zeros(4096, 1024, device="cuda")
    for _ in range(8):
        output, state = model(torch.randn(4096, 256, device="cuda"), state)
        optimizer.zero_grad()
        output.pow(2).mean().backward(retain_graph=True)
        if change:
            state = state.detach()
    return state


def blocks(change: str) -> object:
    """Repeated blocks in float32, whose gradients are cleared late."""
    model = feed_forwards(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        batch = torch.randn(1024 if change == "halve" else 2048, 512, device="cuda")
        if change == "zero_grad":
            optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16, enabled=change == "autocast"):
            output = batch
            for block in model if change == "checkpoint" else ():
                output = checkpoint(block, output, use_reentrant=False)
            loss = (output if change == "checkpoint" else model(batch)).pow(2).mean()
        if change != "zero_grad":
            optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()
    return model


def whole_checkpoint(change: str) -> object:
    """One checkpoint around all blocks."""
    model = feed_forwards(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        output = torch.randn(2048, 512, device="cuda")
        for part in model if change else (model,):
            output = checkpoint(part, output, use_reentrant=False)
        train_on(optimizer, output.pow(2).mean())
    return model


class _Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(16000, 256)
        self.blocks = feed_forwards(2, 256)
        self.head = nn.Linear(256, 16000, bias=False)

    def loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self.head(hidden), labels, reduction="sum")

    def forward(self, tokens: torch.Tensor, chunks: int) -> torch.Tensor:
        hidden = self.blocks(self.tokens(tokens))
        if chunks == 1:  # shifted after the logits, as most do
            logits = self.head(hidden)[:, :-1].reshape(-1, 16000)
            return functional.cross_entropy(logits, tokens[:, 1:].reshape(-1))
        rows = hidden[:, :-1].reshape(-1, 256).chunk(chunks)
        parts = zip(rows, tokens[:, 1:].reshape(-1).chunk(chunks), strict=True)
        return sum(checkpoint(self.loss, *part, use_reentrant=False) for part in parts) / tokens.numel()


def language(change: str) -> object:
    """A small language model: its logits are most of what is there."""
    model = _Language().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        tokens = torch.zeros(4 if change == "halve" else 8, 512, dtype=torch.long, device="cuda")
        loss = partial(model, tokens, 8 if change == "chunks" else 1)
        halves(optimizer, loss, is_split=change == "halve")
    return model


class _Attention(nn.Module):
    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.inside, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        parts = self.inside(self.norm(hidden)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts, attn_mask=mask)
        return hidden + self.out(mixed.transpose(1, 2).flatten(2))


def _masked(kind: torch.dtype, *, autocast: bool) -> object:
    layers = nn.ModuleList(_Attention() for _ in range(6)).cuda()
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.1)
    for _ in range(3):
        hidden = torch.randn(16, 512, 64, device="cuda")
        mask = torch.zeros(16, 1, 512, 512, dtype=kind, device="cuda")
        with torch.autocast("cuda", torch.float16, enabled=autocast):
            for layer in layers:
                hidden = layer(hidden, mask)
        train_on(optimizer, hidden.pow(2).mean())
    return layers


def float_mask(change: str) -> object:
    """A float32 mask, which autocast makes each layer cast, and keep: it makes the program dearer."""
    return _masked(torch.float32, autocast=bool(change))


def cast_mask(change: str) -> object:
    """The same under autocast."""
    return _masked(torch.float16 if change else torch.float32, autocast=True)


class _Recommender(nn.Module):
    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.items = nn.Embedding(400_000, 64, sparse=sparse)
        self.score = nn.Linear(64, 1)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        return self.score(self.items(items)).squeeze(1)


def recommender(change: str) -> object:
    """A large embedding, of which a step uses few rows."""
    model = _Recommender(sparse=change == "sparse").cuda()
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(model.parameters(), fused=change == "fused" or None)]
    if change == "sparse":
        optimizers = [torch.optim.SparseAdam(model.items.parameters()), torch.optim.Adam(model.score.parameters())]
    for _ in range(3):
        loss = model(torch.zeros(2048, dtype=torch.long, device="cuda")).pow(2).mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    return model


def best_so_far(change: str) -> object:
    """A copy of the weights, kept on the device."""
    model = feed_forwards(4)
    optimizer = torch.optim.AdamW(model.parameters())
    best = {name: each.cpu() if change else each.clone() for name, each in model.state_dict().items()}
    for _ in range(3):
        train_on(optimizer, model(torch.randn(64, 512, device="cuda")).pow(2).mean())
    return best


def data_on_device(change: str) -> object:
    """A data set that lies on the device."""
    data = torch.randn(4096, 3, 64, 64, device="cpu" if change else "cuda")
    model = convolutions(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        images = data[16 * step : 16 * (step + 1)].cuda()
        train_on(optimizer, model(images).pow(2).mean())
    return data


def frozen_backbone(change: str) -> object:
    """A frozen backbone behind a layer that trains."""
    adapter, backbone, head = nn.Conv2d(3, 3, 1).cuda(), convolutions(64), nn.Linear(10, 2).cuda()
    backbone.requires_grad_(False)
    optimizer = torch.optim.SGD([*adapter.parameters(), *head.parameters()], lr=0.1)
    for _ in range(3):
        images, _ = _images(32)
        images = adapter(images)
        with torch.no_grad() if change else nullcontext():
            features = backbone(images)
        train_on(optimizer, head(features).pow(2).mean())
    return backbone


def second_model(change: str) -> object:
    """A second model, while the first one's optimizer holds the first."""
    kept = []
    for _ in range(2):
        model = feed_forwards(6)
        optimizer = torch.optim.Adam(model.parameters())
        if not change:
            kept.append(optimizer)
        for _ in range(3):
            train_on(optimizer, model(torch.randn(64, 512, device="cuda")).pow(2).mean())
        del model, optimizer
    return kept


def average(change: str) -> object:
    """An average of the weights, on the device: half of the batch saves next to nothing."""
    model = feed_forwards(4)
    mean = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        batch = torch.randn(64 if change == "halve" else 128, 512, device="cuda")
        halves(optimizer, lambda batch=batch: model(batch).pow(2).mean(), is_split=change == "halve")
        with torch.no_grad():
            for mine, its in zip(mean.parameters(), model.parameters(), strict=True):
                mine.lerp_(its, 0.001)
    return mean


def deep_linear(change: str) -> object:
    """One layer, called again and again: its output is as large as all others, and no chunk of a loss helps."""
    layer = nn.Linear(512, 512).cuda()
    for _ in range(3):
        hidden = torch.randn(4096, 512, device="cuda")
        for _ in range(29):
            hidden = layer(hidden)
        if change == "chunks":
            sum(
                checkpoint(lambda rows: layer(rows).sum(), rows, use_reentrant=False) for rows in hidden.chunk(8)
            ).backward()
        else:
            layer(hidden).sum().backward()
        layer.zero_grad()
    return layer


def cases() -> Iterator[Case]:
    """All of them."""
    yield Case(validation, "no_grad", "under torch.no_grad()", is_cause=True)
    yield Case(logged_penalty, "float", "float(loss)", is_cause=True)
    yield Case(predictions, "cpu", ".detach().cpu()", is_cause=True)
    yield Case(joined, "cpu", "before they are joined", is_cause=True)
    yield Case(hooked, "cpu", "what a hook or a list has", is_cause=True)
    yield Case(summed, "each", "call backward() on each loss", is_cause=True)
    yield Case(recurrent, "detach", "detach what a step hands", is_cause=True)
    yield Case(blocks, "zero_grad", "zero_grad()", is_cause=True)
    yield Case(blocks, "checkpoint", "checkpoint the")
    yield Case(blocks, "halve", "halve the batch")
    yield Case(blocks, "autocast", "torch.autocast")
    yield Case(whole_checkpoint, "each", "checkpoint each of", is_cause=True)
    yield Case(language, "chunks", "chunks", is_cause=True)
    yield Case(language, "halve", "halve the batch")
    yield Case(float_mask, "autocast", "torch.autocast")
    yield Case(cast_mask, "half", "attention mask", is_cause=True)
    yield Case(recommender, "sparse", "sparse=True", is_cause=True)
    yield Case(recommender, "fused", "fused=True")
    yield Case(best_so_far, "cpu", "copies of the model", is_cause=True)
    yield Case(data_on_device, "cpu", "data set", is_cause=True)
    yield Case(frozen_backbone, "no_grad", "frozen", is_cause=True)
    yield Case(second_model, "del", "what refers to", is_cause=True)
    yield Case(average, "halve", "halve the batch")
    yield Case(deep_linear, "chunks", "chunks")
    yield Case(pairs.twins, "halve", "halve the batch")
    yield Case(pairs.inner_teacher, "no_grad", "under torch.no_grad()", is_cause=True)
    yield Case(pairs.trained_teacher, "no_grad", "under torch.no_grad()", is_cause=True)
    yield Case(pairs.target, "no_grad", "where nothing trains on its output", is_cause=True)
    yield Case(pairs.retained, "drop", "without retain_graph=True", is_cause=True)
    yield Case(pairs.probabilities, "cpu", "find what keeps", is_cause=True)
    yield Case(pairs.replay_buffer, "cpu", "data set", is_cause=True)
    yield Case(pairs.added_mask, "half", "attention mask", is_cause=True)
    yield Case(pairs.norms, "autocast", "torch.autocast")
    yield Case(leftovers.critic, "no_grad", "where another model is trained on its output", is_cause=True)
    yield Case(leftovers.shared_output, "detach", "(output.detach())", is_cause=True)
    yield Case(leftovers.perceptual, "no_grad", "under torch.no_grad()", is_cause=True)
    yield Case(leftovers.logged_gradients, "numbers", "of each step's", is_cause=True)
    yield Case(leftovers.on_ctx, "save_for_backward", "save_for_backward", is_cause=True)
    yield Case(leftovers.gradients_by_reference, "cpu", "of each step's", is_cause=True)
    yield Case(leftovers.optimizer_again, "drop", "delete an optimizer", is_cause=True)
    yield Case(leftovers.history, "cpu", "in a list on the CPU", is_cause=True)
    yield Case(leftovers.rollout, "no_grad", "where nothing trains on its output", is_cause=True)
    yield Case(leftovers.validation_between, "no_grad", "where nothing trains on its output", is_cause=True)
    yield Case(leftovers.two_losses, "drop", "without retain_graph=True", is_cause=True)
    yield Case(leftovers.lbfgs, "history_size", "fused=True")
    yield Case(questions.cudnn_state, "detach", "detach what a step hands", is_cause=True)
    yield Case(questions.words_state, "detach", "detach what a step hands", is_cause=True)
    yield Case(questions.small_images, "no_grad", "where another model is trained on its output", is_cause=True)
    yield Case(questions.inner_steps, "each", "call backward() on each loss", is_cause=True)
    yield Case(questions.hooked_evaluation, "cpu", "what a hook or a list has", is_cause=True)
    yield Case(questions.head_alone, "freeze", "under torch.no_grad(), if it is not to train", is_cause=True)
    yield Case(questions.larger_evaluation, "no_grad", "under torch.no_grad()", is_cause=True)
    yield Case(questions.all_pairs, "squeeze", "output.squeeze(1)", is_cause=True)
    yield Case(questions.self_play, "no_grad", "keep output.detach()", is_cause=True)
    yield Case(questions.seen_batches, "cpu", "find what keeps", is_cause=True)
    yield Case(questions.attention_weights, "drop", "need_weights=False", is_cause=True)
    yield Case(questions.merged_masks, "once", "merge the attention mask", is_cause=True)
    yield Case(questions.double, "float", "float32", is_cause=True)
    yield Case(questions.penalty_of_gradients, "no_grad", "where another model is trained on its output", is_cause=True)
    yield Case(questions.kept_losses, "drop", "without retain_graph=True, and keep float(loss)", is_cause=True)
    yield Case(forums.momentum_contrast, "no_grad", "under torch.no_grad()", is_cause=True)
    yield Case(forums.latents, "no_grad", "under torch.no_grad()", is_cause=True)
    yield Case(forums.reference, "no_grad", "under torch.no_grad()", is_cause=True)
    yield Case(forums.rendered, "no_grad", "under torch.no_grad()", is_cause=True)
    yield Case(forums.running_average, "detach", "of a running average", is_cause=True)
    yield Case(forums.numpy_target, "float", "target.float()", is_cause=True)
    yield Case(forums.metric, "cpu", "find what keeps", is_cause=True)
    yield Case(threads.attention_maps, "drop", "once their forward has used it", is_cause=True)
    yield Case(threads.hidden_states, "drop", "once their forward has used it", is_cause=True)
    yield Case(threads.hooked_dict, "drop", "once their forward has used it", is_cause=True)
    yield Case(threads.hooked_training, "drop", "once their forward has used it", is_cause=True)
    yield Case(threads.last_logits, "del", "before its next forward", is_cause=True)
    yield Case(threads.style, "drop", "without retain_graph=True", is_cause=True)
    yield Case(threads.style_with_a_graph, "no_grad", "computes once, to compare with", is_cause=True)
    yield Case(threads.own_target, "float", "target.float()", is_cause=True)
    yield Case(threads.contrastive, "halve", "halve the batch")
    yield Case(threads.differences, "product", "by a product", is_cause=True)
    yield Case(threads.last_word, "last", "only what is used of its output", is_cause=True)
    yield Case(threads.adversarial, "detach", "without create_graph=True", is_cause=True)
    yield Case(threads.sampling, "no_grad", "under torch.no_grad()", is_cause=True)
    yield Case(threads.memory_bank, "detach", "under torch.no_grad()", is_cause=True)
    yield Case(threads.large_masks, "cpu", "find what keeps", is_cause=True)
    yield Case(threads.two_backwards, "detach", "(output.detach())", is_cause=True)
    yield Case(threads.penalty_of_a_mix, "no_grad", "where another model is trained on its output", is_cause=True)

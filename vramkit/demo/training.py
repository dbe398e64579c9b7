"""The demo's training and its tables. Imports torch, so it must be imported after the virtual GPU is switched on."""

from __future__ import annotations

import gc
import math
import textwrap
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from ..profiling.profiler import profile
from ..results.profile import Profile
from ..sizes import format_size
from ..tape.events import Category
from .images import CLASSES, Data, Images, drawn, load
from .textbook import Textbook

BATCHES = (64, 256, 1024, 4096)
_WIDTH_OF_HIDDEN = 128
_WIDTH = 100
_ROWS = (
    (Category.PARAMETER, "parameters", "parameters"),
    (Category.GRADIENT, "gradients", "gradients"),
    (Category.OPTIMIZER_STATE, "Adam's state", "optimizer_state"),
    (Category.INPUT, "inputs", "inputs"),
    (Category.ACTIVATION, "activations", "activations"),
)


class Classifier(nn.Module):
    """Two fully connected layers with a ReLU between them.

    Args:
        layers: widths, from the input to the output.
    """

    def __init__(self, layers: tuple[int, ...]) -> None:
        super().__init__()
        inputs, width, classes = layers
        self.hidden = nn.Linear(inputs, width)
        self.relu = nn.ReLU()
        self.output = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores of the classes for images of shape ``(batch, channels, height, width)``."""
        scores: torch.Tensor = self.output(self.relu(self.hidden(images.flatten(1))))
        return scores


def layers_for(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The classifier's widths for images of a shape."""
    return math.prod(shape), _WIDTH_OF_HIDDEN, CLASSES


class Trained(NamedTuple):
    """What a training came to."""

    profile: Profile
    losses: list[float]
    """One a step."""
    ran_out: bool
    """It ended for want of memory."""
    accuracy: float
    """Share of all images classified correctly afterwards; 0 where it ran out."""


def train(
    images: Images, device: str, *, steps: int, batch_size: int, make: Callable[[nn.Module], torch.optim.Optimizer]
) -> Trained:
    """Train a new classifier."""
    torch.manual_seed(0)
    losses: list[torch.Tensor] = []
    failed = False
    model = Classifier(layers_for(images.pixels.shape[1:])).to(device)
    optimizer = make(model)
    batches = images.batches(batch_size, device)
    measuring = profile(model, optimizer, device=device)
    try:
        with measuring:
            for _ in range(steps):
                pixels, labels = next(batches)
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(pixels), labels)
                torch.autograd.backward(loss)
                optimizer.step()
                losses.append(loss.detach().cpu())
                del pixels, labels, loss
    except torch.OutOfMemoryError:
        failed = True
    accuracy = 0.0 if failed else _accuracy(model, images, device)
    # The next training starts with as little as this one did.
    del model, optimizer, batches
    gc.collect()
    return Trained(measuring.result, [float(loss) for loss in losses], failed, accuracy)


@torch.no_grad()
def _accuracy(model: nn.Module, images: Images, device: str) -> float:
    told = model(torch.from_numpy(images.pixels).to(device)).argmax(1).cpu()
    return float((told == torch.from_numpy(images.labels)).float().mean())


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """The demo's optimizer."""
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The other optimizer of the table, without momentum."""
    return torch.optim.SGD(model.parameters(), lr=1e-2)


class Shown(NamedTuple):
    """What the demo came to."""

    first: Trained
    """The training that is explained."""
    with_adam: dict[int, Trained]
    """Those that the textbook is held against, by batch size; empty: the first ran out of memory."""
    with_sgd: dict[int, Trained]
    """The same with plain SGD."""

    @property
    def ran_out(self) -> bool:
        """Whether any training ended for want of memory."""
        return any(each.ran_out for each in (self.first, *self.with_adam.values(), *self.with_sgd.values()))


def show(
    data: Data,
    where: str,
    place: str,
    *,
    colours: bool,
    steps: int,
    batch_size: int,
    tell: Callable[[str], object],
    keep: Callable[[Profile], object],
) -> Shown:
    """Train, and explain everything.

    Args:
        data: which images.
        where: "cuda", "virtual" (CUDA without values) or "cpu".
        place: a sentence that says where it runs.
        colours: draw images in colours; False: in ASCII.
        steps: of the training.
        batch_size: images in a batch.
        tell: prints.
        keep: is called with the profile once it is printed.
    """
    device = "cpu" if where == "cpu" else "cuda"
    images = load(data)
    shape = images.pixels.shape[1:]
    layers = layers_for(shape)
    size = "x".join(map(str, shape))
    for line in (
        f"Training a {'-'.join(map(str, layers))} classifier with Adam on {images.source}: {steps} steps of "
        f"{batch_size} images.",
        place,
        f"Three of them: {size} numbers each, {layers[0]:,} of 4 B.",
    ):
        tell(textwrap.fill(line, _WIDTH))
    third = len(images.pixels) // 3
    tell(f"{drawn(images.pixels[third // 2 :: third][:3], colours=colours)}\n")
    first = train(images, device, steps=steps, batch_size=batch_size, make=adam)
    result, losses, failed, accuracy = first
    if where == "virtual":
        tell("So there is no loss and no accuracy to show.")
    elif losses:
        right = "" if failed else f" Then {accuracy:.0%} of the {len(images.pixels):,} images are classified correctly."
        tell(f"Loss: {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last.{right}")
    tell(f"\n{result}\n")
    keep(result)
    if failed:
        return Shown(first, {}, {})
    with_adam = {size: train(images, device, steps=3, batch_size=size, make=adam) for size in BATCHES}
    with_sgd = {size: train(images, device, steps=3, batch_size=size, make=sgd) for size in BATCHES}
    shown = Shown(first, with_adam, with_sgd)
    if shown.ran_out:
        tell("The textbook's batches do not all fit on this device, so there is no table.")
    else:
        tell(
            table(
                layers,
                {n: each.profile for n, each in with_adam.items()},
                {n: each.profile for n, each in with_sgd.items()},
            )
        )
    return shown


def table(layers: tuple[int, ...], with_adam: dict[int, Profile], with_sgd: dict[int, Profile]) -> str:
    """The textbook's bytes beside those that were measured, and why they differ.

    Args:
        layers: widths of the classifier.
        with_adam: profiles of it, trained with Adam, by batch size.
        with_sgd: the same with plain SGD.
    """
    books = {size: Textbook(layers=layers, batch=size) for size in with_adam}
    plain = {size: Textbook(layers=layers, batch=size, optimizer="sgd") for size in with_sgd}
    count = next(iter(books.values())).parameter_count
    lines = [
        *textwrap.wrap(
            f"The textbook and the measurement, in bytes: {count:,} parameters of 4 B, of them "
            f"{layers[0]:,} x {layers[1]} + {layers[1]} in the first layer; {4 * layers[0]:,} B an image, "
            f"{4 * layers[1]} B of hidden activations an image. Measured is the most that a category held at any time.",
            _WIDTH,
        ),
        "",
        _line("batch size", "", list(books)),
    ]
    for category, name, field in _ROWS:
        lines.append(_line(name, "textbook", [getattr(book, field) for book in books.values()]))
        lines.append(_line("", "measured", [most(each, category) for each in with_adam.values()]))
    for name, textbooks, profiles in (("SGD, in all", plain, with_sgd), ("Adam, in all", books, with_adam)):
        lines.append(_line(name, "textbook", [book.total for book in textbooks.values()]))
        lines.append(_line("", "measured peak", [each.peak_allocated for each in profiles.values()]))
    return "\n".join([*lines, "", *_differences(books, with_adam)])


def most(result: Profile, category: Category) -> int:
    """The most bytes that a category held at any time."""
    return int(result.timeline.of(category).max())


def _line(name: str, kind: str, sizes: list[int]) -> str:
    return f"  {name:<14}{kind:<14}" + "".join(f"{size:>15,}" for size in sizes)


def _differences(books: dict[int, Textbook], measured: dict[int, Profile]) -> Iterator[str]:
    """Sentences about what was measured and is not in the textbook, with the figures of the largest batch."""
    size = max(books)
    book, result = books[size], measured[size]
    yield f"Why they differ (batch {size:,}, Adam):"
    counters = most(result, Category.OPTIMIZER_STATE) - book.optimizer_state
    labels = most(result, Category.INPUT) - book.inputs
    activations = most(result, Category.ACTIVATION) - book.activations
    per_image = 2 * 4 * CLASSES
    sentences = [
        (counters, "Adam's step counters: one number for each parameter tensor, on the CPU"),
        (labels, f"labels: {labels // size} B an image, an int64 that the loss needs on the device"),
        (
            activations,
            f"saved tensors: {per_image} B an image are the {CLASSES} scores and their log-softmax, which the loss "
            f"saves for its backward; the other {activations - per_image * size} B are the loss itself and its weight",
        ),
        (result.peak.slack, "rounding at the peak: the allocator hands out multiples of 512 B, and keeps small rests"),
        (
            most(result, Category.WORKSPACE),
            "cuBLAS workspace: one for the forward's thread and one for the backward's; the textbook knows none",
        ),
        (most(result, Category.TEMPORARY), "temporaries: gradients of activations, and what Adam's step() needs"),
    ]
    for extra, text in sentences:
        if extra > 0:
            yield from textwrap.wrap(
                text, _WIDTH, initial_indent=f"  {'+' + format_size(extra):>12}  ", subsequent_indent=" " * 16
            )
    cached = result.peak_reserved - result.peak_allocated
    if not result.device.startswith("cpu"):
        yield from textwrap.wrap(
            f"And above all of it {format_size(cached)} that the allocator holds beyond the peak, and "
            f"{format_size(result.outside)} of CUDA context: nvidia-smi would show "
            f"{format_size(result.peak_reserved + result.outside)}, where the textbook says {format_size(book.total)}.",
            _WIDTH,
            initial_indent="  ",
            subsequent_indent="  ",
        )

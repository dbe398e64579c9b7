"""What the programs are written with: tensors on the device, and a backward. Knows nothing of measuring.

Inputs on whose values a size depends are made on the CPU from a fixed seed and are small, so that a card and its twin
have the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

Part = tuple[str, Callable[[], object]]
"""A name, and what is run under it. Between two parts nothing is alive but what a program keeps on purpose."""
Program = Callable[[], Iterable[Part]]

BF16, HALF, DOUBLE = torch.bfloat16, torch.float16, torch.float64
LAST = torch.channels_last


def x(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = True) -> torch.Tensor:
    """Random numbers on the device."""
    return torch.randn(shape, dtype=dtype, device="cuda", requires_grad=grad)


def known(*shape: int, high: int = 0) -> torch.Tensor:
    """The same numbers on every device: whole ones from 0 to below ``high``, or floating ones; at most 1 MiB."""
    generator = torch.Generator().manual_seed(7)
    made = torch.randint(high, shape, generator=generator) if high else torch.randn(shape, generator=generator)
    return made.cuda()


def backward(found: Any) -> None:
    """Back from every floating result that wants it."""
    results = [found] if isinstance(found, torch.Tensor) else list(found)
    wanted = [each for each in results if isinstance(each, torch.Tensor) and each.requires_grad]
    if wanted:
        torch.autograd.backward(wanted, [torch.ones_like(each) for each in wanted])


def there_and_back(name: str, forward: Callable[[], Any]) -> Part:
    """A part: a forward and its backward."""
    return name, lambda: backward(forward())


def steps(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], torch.Tensor],
    *,
    count: int = 3,
) -> Iterator[Part]:
    """Training steps, each a part."""

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    model.train()
    yield from ((f"step {number}", step) for number in range(count))

"""Training programs of which the largest batch is sought, and the truth about them: fresh processes, and no search but
halving, in words that vramkit has no part in (but for the resizing of a sample batch).
"""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable
from typing import Literal

import torch
from predicted_programs import PROGRAMS, Program, class_loss, run_as_users_do
from torch import nn
from workloads import GPT, tokens

from vramkit.programs.batches import at_size

STEPS = 3


def seed_mlp() -> Program:
    """The lesson's classifier, whose batch can reach millions."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    batch = torch.zeros(64, 1, 28, 28), torch.zeros(64, dtype=torch.long)
    return {"model": model, "batch": batch, "optimizer": torch.optim.Adam, "loss": class_loss}


class Words(nn.Module):
    """Predicts the next word. At small batches the peak is the optimizer's, and cuDNN keeps its states for dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20_000, 512)
        self.lstm = nn.LSTM(512, 512, 3, dropout=0.2, batch_first=True)
        self.head = nn.Linear(512, 20_000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.words(x))[0][:, -1])


def lstm_with_dropout() -> Program:
    batch = torch.zeros(2, 200, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    return {"model": Words(), "batch": batch, "optimizer": torch.optim.AdamW, "loss": class_loss}


def checkpointed_autocast() -> Program:
    return {
        "model": GPT(checkpointed="non-reentrant"), "batch": tokens(4, 512)(), "optimizer": torch.optim.AdamW,
        "loss": class_loss, "autocast": torch.bfloat16,
    }  # fmt: skip


FITTED: dict[str, Callable[[], Program]] = {
    "seed mlp": seed_mlp,
    **{name: PROGRAMS[name] for name in ("resnet18", "resnet50", "vit_b_16", "u-net", "lstm", "gru")},
    "lstm dropout": lstm_with_dropout,
    **{name: PROGRAMS[name] for name in ("gpt fp32", "gpt dropout", "gpt autocast bf16", "gpt checkpointed")},
    "gpt checkpointed, bf16": checkpointed_autocast,
}
"""By name; each makes its program anew, on the CPU."""


Outcome = Literal["fits", "thrashes", "runs out"]


def outcome(program: Program, size: int) -> Outcome:
    """How a fresh process trains at a batch size; "thrashes": it had to give cached memory back to go on.

    It is a fork of this one, which must not have used CUDA yet, so that an allocator begins there that has served
    nothing, nor more than one thread (``torch.set_num_threads(1)`` before the program is made): a fork has no others.
    """
    outcomes: tuple[Outcome, ...] = ("fits", "thrashes", "runs out")
    child = os.fork()
    if child == 0:
        code = len(outcomes)
        try:
            run_as_users_do({**program, "batch": at_size(program["batch"], size)}, STEPS)
            code = int(torch.cuda.memory_stats()["num_alloc_retries"] > 0)
        except torch.OutOfMemoryError:
            code = 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert 0 <= code < len(outcomes), f"status {code} at batch size {size}"
    return outcomes[code]


def largest_that_runs(program: Program) -> tuple[int, int]:
    """The truth, and how many processes it took: doubling until a size does not fit, then halving; then what is above.

    A size can be too large where a larger one is not, because segments happen to be reused better. So some sizes above
    the end that was found are tried too, and where one fits, the end is sought above it.
    """
    gc.freeze()
    known: dict[int, bool] = {}

    def fits(size: int) -> bool:
        if size not in known:
            known[size] = outcome(program, size) == "fits"
        return known[size]

    def end_between(low: int, high: int) -> int:
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    high = 1
    while fits(high):
        high *= 2
    low = end_between(high // 2, high)
    while True:
        nearby = {low + step for step in range(2, 13)} | {low + low * part // 1000 for part in _PARTS}
        beyond = sorted(size for size in nearby if size > low)
        found = max((size for size in beyond if fits(size)), default=0)
        if not found:
            return low, len(known)
        low = end_between(found, next((size for size in beyond if size > found), 2 * found))


_PARTS = (2, 5, 10, 20, 50, 100, 200, 350)  # thousandths

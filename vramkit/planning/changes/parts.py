"""Less at once: a batch in parts whose gradients accumulate, and the last layer and the loss in parts."""

from __future__ import annotations

from dataclasses import dataclass

from ..draft import Draft
from ..facts import Facts
from . import NOTHING_TRAINS, OWN_STEP, Change, Family, LeftOut, Severity

_MOST_PARTS = 64
"""A step of more parts takes as many passes, each of a run's: of 4,096 rows one by one a run took 84 s, where one of
all together took 2. What a part needs is a small part of the whole by then.
"""


@dataclass(frozen=True, kw_only=True)
class Accumulation(Change):
    """Parts of the batch, one after the other, and one step of the optimizer."""

    rows: int

    def write(self, draft: Draft) -> None:
        draft.part = self.rows


def accumulation(facts: Facts) -> Family | LeftOut:
    """In 2 parts, 4 and so on, up to 64, as the batch divides."""
    name = "micro-batches with accumulation"
    if refusal := _refusal(facts, name):
        return refusal
    return Family(
        slot=name,
        changes=tuple(
            Accumulation(
                name=f"accumulate {facts.batch_size // rows} x {rows}",
                severity=Severity.TRAINING if facts.normalizes_batches else Severity.SAME,
                numbers="batch norms see parts of the batch, which is another training"
                if facts.normalizes_batches
                else "the mean of the parts' losses: the same where rows count alike",
                passes=facts.batch_size // rows,
                rows=rows,
            )
            for rows in _divisors(facts.batch_size)
        ),
    )


@dataclass(frozen=True, kw_only=True)
class LossInParts(Change):
    """The last layer and the loss of some rows at once, computed again in the backward."""

    head: str
    rows: int

    def write(self, draft: Draft) -> None:
        draft.imports.append("from torch.utils.checkpoint import checkpoint")
        draft.on_cpu.append(
            f"head = model.get_submodule({self.head!r})\nhead.forward = lambda hidden: hidden  # the loss calls it"
        )
        draft.checks.append(_IS_LAST)
        draft.head, draft.loss_rows = self.head, self.rows


_IS_LAST = """\
made_last = []

def check_last(module, args, output):
    output = getattr(output, "logits", output)
    if not isinstance(output, torch.Tensor) or id(output) not in made_last:
        raise TypeError("the model does more with what its last linear layer makes than to return it")
    made_last.clear()

head.register_forward_hook(lambda module, args, output: made_last.append(id(output)))
model.register_forward_hook(check_last)
"""


def loss_in_parts(facts: Facts) -> Family | LeftOut:
    """Where the model returns what its last linear layer makes."""
    name = "last layer and loss in parts"
    if refusal := _refusal(facts, name):
        return refusal
    if not facts.has_loss and not facts.shifted:
        return LeftOut(name=name, reason="The model computes its own loss. Return the last layer's output, pass loss=.")
    if not facts.head or facts.compiled:
        return LeftOut(name=name, reason="The model has no linear layer that could be called from outside.")
    return Family(
        slot=name,
        changes=tuple(
            LossInParts(
                name=f"last layer and loss of {rows} {'row' if rows == 1 else 'rows'} at once",
                numbers="the mean of the parts' losses: the same where rows count alike",
                computes=True,
                head=facts.head,
                rows=rows,
            )
            for rows in _divisors(facts.batch_size)
        ),
    )


def _refusal(facts: Facts, name: str) -> LeftOut | None:
    if facts.own_step:
        return LeftOut(name=name, reason=OWN_STEP)
    if not facts.trains:
        return LeftOut(name=name, reason=NOTHING_TRAINS)
    if facts.batch_size < 2:
        return LeftOut(name=name, reason="The batch has one row, or nobody knows how many.")
    if not facts.splits:
        return LeftOut(
            name=name,
            reason="The batch is not plain tensors with the rows in dimension 0: give a tensor, or a tuple, list or "
            "dict of tensors.",
        )
    if not _divisors(facts.batch_size):
        return LeftOut(name=name, reason=f"{facts.batch_size:,} rows are no {_MOST_PARTS} equal parts, or fewer.")
    return None


def _divisors(rows: int) -> list[int]:
    """Sizes of equal parts, the largest first: roughly halves of each other."""
    found: list[int] = []
    smallest = -(-rows // _MOST_PARTS)
    sizes = [size for size in range(rows // 2, smallest - 1, -1) if rows % size == 0]
    for size in sizes:
        if not found or 2 * size <= found[-1] or size == sizes[-1]:
            found.append(size)
    return found

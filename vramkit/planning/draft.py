"""A program's code with changes in it, written down part by part. Knows how a training step is written; knows no change
and runs nothing. Its text is what is run and what is shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd
from textwrap import indent
from typing import TYPE_CHECKING

from ..programs.program import Rewrite

if TYPE_CHECKING:
    from .facts import Facts

_STEP = """\
def train_step(batch):
{body}"""

_STEP_IN_PARTS = """\
def backward_of(batch, parts):
{body}

def train_step(batch):
    parts = {split}
    for part in parts:
        backward_of(part, len(parts))
{tail}"""


_STEP_IN_A_LOOP = """\
def train_step(batch):
    parts = {split}
    for part in parts:
{body}
{tail}"""
"""What the last part has is there until the next one has it, as in a step whose loop is its own."""


_LOSS_OF_ROWS = """\
def loss_of_rows(hidden, labels):
    logits = {head}.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
"""


@dataclass
class Draft:
    """Code to be written. Changes add to it.

    Args:
        facts: of the program.
    """

    facts: Facts
    imports: list[str] = field(default_factory=list)
    on_cpu: list[str] = field(default_factory=list)
    """Before the model is moved to the device."""
    checks: list[str] = field(default_factory=list)
    """Run beside it, to see that a change is what it should be, and not shown."""
    optimizer: str = ""
    """What makes the optimizer anew."""
    on_gpu: list[str] = field(default_factory=list)
    """Once model and optimizer are there."""
    around: list[str] = field(default_factory=list)
    """Context managers around forward and loss."""
    autocast: str = ""
    scales: bool = False
    """Losses are scaled, and gradients scaled back."""
    batch_dtype: str = ""
    """Of the batch's floating-point tensors; empty: theirs."""
    part: int = 0
    """Rows that go through the model at once; 0: all."""
    head: str = ""
    """Path of the last layer, if the loss calls it."""
    loss_rows: int = 0
    """Rows of which the loss is computed at once; 0: all."""
    alloc_conf: str = ""
    """Added to ``PYTORCH_CUDA_ALLOC_CONF``."""

    def rewrite(self) -> Rewrite:
        """What is run."""
        made = f"optimizer = {self.optimizer}"
        if self.facts.own_step:
            made = f"optimizer = take_place(optimizer, {self.optimizer})"  # which the step refers to
        return Rewrite(
            on_cpu="\n".join([*self._imports(), *self.on_cpu, *self.checks]),
            on_gpu="\n".join([*[made] * bool(self.optimizer), *self.on_gpu, self._step()]),
        )

    def code(self) -> str:
        """What is to be written, as Python."""
        parts = []
        if self.alloc_conf:
            parts.append(f"# in the environment, before torch is imported: PYTORCH_CUDA_ALLOC_CONF={self.alloc_conf}")
        if self._imports() or self.on_cpu:
            parts.append("\n".join([*self._imports(), *self.on_cpu]))
        if self.optimizer:
            parts.append(f"optimizer = {self.optimizer}  # parameters: those that your optimizer has")
        parts += ["\n".join(self.on_gpu), self._step()]
        return "\n\n".join(filter(None, parts))

    def _imports(self) -> list[str]:
        return sorted({*self.imports})

    def _step(self) -> str:
        """The training step, if it is another one than the plain step."""
        is_other = self.around or self.autocast or self.batch_dtype or self.part or self.loss_rows or self.scales
        is_other = is_other or (self.facts.value and self.optimizer)
        if self.facts.own_step or not is_other:
            return ""
        before = []
        if self.loss_rows:
            head = "torch.nn.functional.linear(hidden, head.weight, head.bias)"
            if self.facts.shifted:
                before.append(_LOSS_OF_ROWS.format(head=head))
            else:
                before.append(f"def loss_of_rows(hidden, batch):\n    return loss({head}, batch)\n")
        if self._is_scaled:
            before.append('scaler = torch.amp.GradScaler("cuda")\n')
        body, tail = indent("\n".join(self._body()), "    "), indent("\n".join(self._tail()), "    ")
        if self.facts.value and (self.part or self.facts.accumulates > 1):
            split = self._split(self.part) if self.part else "[batch]"
            split += f" * {self.facts.accumulates}" * (self.facts.accumulates > 1)
            step = _STEP_IN_A_LOOP.format(body=indent(body, "    "), split=split, tail=tail)
        elif self.part:
            step = _STEP_IN_PARTS.format(body=body, split=self._split(self.part), tail=tail)
        else:
            step = _STEP.format(body=f"{body}\n{tail}".rstrip())
        return "\n".join([*before, step])

    def _body(self) -> list[str]:
        """Of one batch, or of a part of one: everything from the batch to the backward."""
        in_loop = bool(self.facts.value) and (self.part > 0 or self.facts.accumulates > 1)
        lines = [f"batch = {self._moved('part' if in_loop else 'batch')}"]
        around = [*self.around]
        if autocast := self.autocast or _dtype(self.facts.autocast):
            around.append(f'torch.autocast("cuda", {autocast})')
        inner = self._loss_lines()
        if in_loop:
            inner[-1] += " / len(parts)"
        elif self.part:
            inner[-1] += " / parts"
        if around:
            lines += [f"with {', '.join(around)}:", *(f"    {line}" for line in inner)]
        else:
            lines += inner
        if self._is_scaled and self.facts.value:
            lines += ["value = scaler.scale(value)", "value.backward()"]
        elif self.facts.trains:
            lines.append("scaler.scale(value).backward()" if self._is_scaled else "value.backward()")
        return lines

    def _loss_lines(self) -> list[str]:
        if self.loss_rows and self.facts.shifted:
            return [
                'hidden = model(**{name: each for name, each in batch.items() if name != "labels"}).logits',
                'labels = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)',
                f"rows = list(zip(hidden.split({self._rows_at_once()}), labels.split({self._rows_at_once()})))",
                "value = sum(checkpoint(loss_of_rows, *each, use_reentrant=False) for each in rows) / len(rows)",
            ]
        if self.loss_rows:
            return [
                f"hidden = {self.facts.call}",
                f"rows = list(zip(hidden.split({self._rows_at_once()}), {self._split(self._rows_at_once())}))",
                "value = sum(checkpoint(loss_of_rows, *each, use_reentrant=False) for each in rows) / len(rows)",
            ]
        if self.facts.value:
            return [f"value = {self.facts.value}"]
        value = "loss(output, batch)" if self.facts.has_loss else "loss_of(output)"
        lines = [f"output = {self.facts.call}"]
        if self.facts.has_loss or self.facts.trains:
            lines.append(f"value = {value}")
        return lines

    def _rows_at_once(self) -> int:
        return gcd(self.part or self.facts.batch_size, self.loss_rows)

    def _tail(self) -> list[str]:
        """What follows the backward."""
        if not self.facts.trains:
            return []
        if self.facts.optimizers == 0:
            return ["model.zero_grad()"]
        if self.facts.optimizers == 1:
            step = ["scaler.step(optimizer)", "scaler.update()"] if self._is_scaled else ["optimizer.step()"]
            return [*step, "optimizer.zero_grad()"]
        step = ["    scaler.step(each)"] if self._is_scaled else ["    each.step()"]
        update = ["scaler.update()"] if self._is_scaled else []
        return ["for each in optimizers:", *step, *update, "for each in optimizers:", "    each.zero_grad()"]

    @property
    def _is_scaled(self) -> bool:
        """Losses are scaled: by a change, or by a step that vramkit brings."""
        return self.scales or (bool(self.facts.value) and _dtype(self.facts.autocast) == "torch.float16")

    def _moved(self, batch: str) -> str:
        def each(name: str) -> str:
            if not self.batch_dtype:
                return f'{name}.to("cuda")'
            cast = f"{name}.to({self.batch_dtype}) if {name}.is_floating_point() else {name}"
            return f'({cast}).to("cuda")'

        match self.facts.batch_form:
            case "tensor":
                return each(batch)
            case "sequence":
                return f"tuple({each('each')} for each in {batch})"
            case "dict":
                return f"{{name: {each('each')} for name, each in {batch}.items()}}"
            case "other":
                return f"to_cuda({batch})"

    def _split(self, rows: int) -> str:
        match self.facts.batch_form:
            case "tensor" | "other":
                return f"batch.split({rows})"
            case "sequence":
                return f"list(zip(*(each.split({rows}) for each in batch)))"
            case "dict":
                values = f"zip(*(each.split({rows}) for each in batch.values()))"
                return f"[dict(zip(batch, values)) for values in {values}]"


def _dtype(dtype: object) -> str:
    return "" if dtype is None else str(dtype)

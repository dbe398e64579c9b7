"""How a program's own failure reaches its user: as plain text, told in terms of what was asked. Knows no engine."""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path

from ..errors import UsageError
from . import training
from .failed import Failed

_OTHER_DEVICE = re.compile(r"same device|cuda.* and cpu|cpu.* and cuda|is on cpu|on CPU|torch\.\w+Tensor\) and weight")
"""What errors say where part of a computation is not on the GPU."""
_GENERATOR = re.compile(r"Expected a 'cuda' device type for generator")
_PACKAGE = str(Path(__file__).parents[1]) + os.sep


class StepTraceback(Exception):  # noqa: N818 - it is shown as the cause of an error, and says where that happened
    """The traceback of what was raised while a program ran for a prediction.

    Args:
        where: it ran, as "in ...".
        text: the traceback.
    """

    def __str__(self) -> str:
        return f"{self.args[0]}\n\n{self.args[1]}"


def failure_of(doing: str, error: BaseException) -> Failed:
    """An exception as a message: classes of the user's may not arrive elsewhere, and frames would keep tensors."""
    shown = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = shown
    while part is not None:
        part.stack[:] = [frame for frame in part.stack if not frame.filename.startswith(_PACKAGE)]
        part = part.__cause__ or part.__context__
    frames = tuple((frame.filename, frame.name, frame.lineno or 0) for frame in shown.stack)
    text = "".join(shown.format())
    return Failed(doing=doing, kind=type(error).__name__, text=str(error), traceback=text, frames=frames)


def more_telling(first: Failed, moved: Failed) -> Failed:
    """Which to tell of two failures of a step: with the batch as it was given, and with the batch on the GPU.

    The one that got further in the program's own code. Where that is no question, the second, unless it says the same
    or still is about devices.
    """
    if first.step != moved.step:
        return max(first, moved, key=lambda failure: failure.step)
    for (*before, line), (*after, other_line) in zip(first.frames, moved.frames, strict=False):
        if before != after:
            break
        if line != other_line:
            return moved if other_line > line else first
    return first if moved.text == first.text or _OTHER_DEVICE.search(moved.text) else moved


def batch_moved(failure: Failed) -> str:
    """What to say of a step that ran with its batch on the GPU alone.

    Args:
        failure: with the batch as it was given.
    """
    found = f"{failure.kind}: {failure.text}".partition("\n")[0]
    return (
        "The step was given the batch on the GPU, because with a batch on the CPU it fails: it does not move it itself "
        f"({found[:160]})."
    )


def step_failed(failure: Failed, called: str) -> UsageError:
    """What to tell of a program that failed.

    Args:
        failure: how.
        called: how the plain step calls the model; empty: a step of the user's own ran.
    """
    found = f"it raised {failure.kind}: {failure.text}"
    if failure.doing.startswith("unpack"):
        why = "What it needs can't be imported there"
        instead = "Define it in a module that can be imported, or in the script"
    elif _OTHER_DEVICE.search(failure.text):
        why = "Part of it is not on the GPU"
        instead = (
            "Pass every model that the step uses. Where the step moves tensors to a `device`, that has to be "
            '"cuda": in a process without CUDA, "cuda" if torch.cuda.is_available() else "cpu" is "cpu"'
        )
    elif _GENERATOR.search(failure.text):
        why = "A generator was made on the CPU, for numbers that are drawn on the GPU"
        instead = "Make it in the step, where there is a GPU: torch.Generator('cuda')"
    elif called and (told := _advice(failure.doing, failure.text, called)):
        why, instead = told
    else:
        why = "Shapes, types and devices are real there, but nothing is computed: values are zeros"
        instead = "Make sure that the step runs for this batch; the traceback above says where it stopped"
    return UsageError(f"vramkit.estimate was to {failure.doing}", found, why, instead)


_ADVICE = {
    training.MAKE: (
        "The factory is called with the parameters, once they are on the GPU, and returns an optimizer",
        "Pass a class such as torch.optim.AdamW, or lambda parameters: torch.optim.SGD(parameters, lr=0.1)",
    ),
    training.LOSS: (
        "The plain step calls it as loss(output, batch), with the whole batch",
        "Pass a function of the two: loss=lambda output, batch: torch.nn.functional.cross_entropy(output, batch[1])",
    ),
    training.NO_LOSS: (
        "Without a loss the plain step begins the backward at output.loss, at the output or at its sum",
        "Pass loss=..., a function of the output and the batch, or a step of your own",
    ),
    training.BACKWARD: (
        "The plain step calls backward() of the loss, a tensor of one number that depends on what is trained",
        "Let the loss return one, and not detach it. A model that is frozen has no backward: predict its inference "
        "under torch.no_grad()",
    ),
}


def _advice(doing: str, text: str, called: str) -> tuple[str, str] | None:
    """Why the plain step can't do something, and what to write instead; None: that depends.

    Args:
        doing: what it was to do; see `Training.doing`.
        text: of what it raised.
        called: how it calls the model.
    """
    if doing.startswith(training.STEP) and "closure" in text:
        return (
            "The plain step calls optimizer.step() with nothing, and this optimizer wants a closure",
            "Pass step=..., a function of the batch that calls optimizer.step(closure)",
        )
    if doing.startswith(training.CALL) and "unexpected keyword argument" in text:
        return (
            f"A dict's items are keyword arguments: the plain step calls {called}",
            "Give a model that takes the dict itself a tuple of it, (batch,), or with targets (batch, targets)",
        )
    if doing.startswith((training.MOVE, training.CALL)):
        return (
            f"The plain step calls {called}, then the loss as loss(output, batch)",
            "Give a batch that the model takes, with loss=... where it also has targets; or a step of your own",
        )
    return next((told for part, told in _ADVICE.items() if doing.startswith(part)), None)

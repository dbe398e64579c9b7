"""What a verb's NAME or MODULE:FUNCTION comes to, as arguments of a function of vramkit's. Knows models' options."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import UsageError, VramkitError
from ..programs import functions

HELP = (
    "hf:NAME (a model of Hugging Face's hub, or a folder with config.json), timm:NAME, torchvision:NAME; or a "
    "function, as from this folder, such as package.train:build"
)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of models by name: arguments of ``vramkit.models.load``."""
    group = parser.add_argument_group("models by name (hf:, timm:, torchvision:)")
    group.add_argument("--method", metavar="HOW", help="full (default), lora, qlora, freeze:N or inference")
    group.add_argument("--lora", type=int, metavar="RANK", help="train adapters of that rank (8 with --method lora)")
    group.add_argument("--lora-targets", metavar="NAMES", help="all-linear, or modules with commas: q_proj,v_proj")
    group.add_argument(
        "--seq-len", type=int, metavar="N", help="tokens of a text or a prompt (512, or as many as it takes)"
    )
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="with inference: how many are generated (128)")
    group.add_argument("--image-size", type=int, metavar="N", help="pixels of height and width (the model's)")
    group.add_argument("--seconds", type=int, metavar="N", help="of a sound, where a model takes samples (10)")
    group.add_argument("--task", metavar="TASK", help="what an hf: model is for, such as sequence-classification")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the parameters")
    group.add_argument(
        "--precision",
        choices=("32-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed"),
        help="true: dtype of the parameters; mixed: autocast over float32",
    )
    group.add_argument(
        "--quantization",
        metavar="KIND",
        help="nf4, nf4-double (qlora), fp4 or int8: weights beside adapters, by bitsandbytes",
    )
    group.add_argument(
        "--optimizer", metavar="NAME", help="adamw (default), adamw-fused, adamw-8bit, sgd, ... or MODULE:CLASS"
    )
    group.add_argument("--checkpointing", action="store_true", default=None, help="compute activations again")
    group.add_argument("--attention", metavar="KIND", help="sdpa, eager, flash_attention_2, ...")
    group.add_argument("--liger", action="store_true", default=None, help="Liger's kernels, as Trainer has them")
    group.add_argument("--accumulate", type=int, metavar="N", help="so many backwards for a step of the optimizer")
    group.add_argument("--compile", action="store_true", default=None, help="torch.compile the model")
    group.add_argument("--padded", action="store_true", default=None, help="texts of a batch differ in length")


def model_options(options: argparse.Namespace) -> dict[str, Any]:
    """Which of them were given."""
    names = (
        "method", "lora", "lora_targets", "seq_len", "max_new_tokens", "image_size", "seconds", "task", "dtype",
        "precision", "optimizer", "quantization", "checkpointing", "attention", "liger", "accumulate", "compile",
        "padded",
    )  # fmt: skip
    return {name: getattr(options, name) for name in names if getattr(options, name, None) is not None}


def is_model(name: str) -> bool:
    """Whether a name is that of a model, and not MODULE:FUNCTION."""
    return name.startswith(("hf:", "timm:", "torchvision:"))


def arguments_from(verb: str, name: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a name stands for, as arguments.

    Args:
        verb: as it is written: "vramkit estimate".
        name: "package.module:function", or a model's.
        options: of a model by name.

    Raises:
        UsageError: there is none of that name, it fails, or it returns something else.
    """
    if is_model(name):
        from ..models import load

        return load(name, **(options or {})).arguments()
    if options:
        raise UsageError(
            _asked(verb),
            f"with --{next(iter(options)).replace('_', '-')}",
            "What it returns says itself how it is trained",
            f"Leave the option out, or say it in the function; {functions.MODELS}",
        )
    return functions.arguments_from(verb, name)


def check_arguments(verb: str, name: str, given: Mapping[str, object], function: Callable[..., object]) -> None:
    """Raises: UsageError: what was returned lacks an argument that a function of vramkit's needs, or has others."""
    known = inspect.signature(function).parameters
    if unknown := [each for each in given if each not in known]:
        raise UsageError(
            _asked(verb),
            f"{name} returned a dict with {', '.join(map(repr, unknown))}",
            f"vramkit.{function.__name__} has no such argument",
            f"It has {', '.join(known)}",
        )
    needed = [each.name for each in known.values() if each.default is each.empty]
    if missing := [each for each in needed if each not in given]:
        raise UsageError(
            _asked(verb),
            f"what {name} returned has no {' and no '.join(map(repr, missing))}",
            instead=f"It returned {', '.join(map(repr, given))}",
        )


@contextmanager
def step_traceback_told() -> Iterator[None]:
    """Let an error that speaks of the traceback of a step show that, too."""
    try:
        yield
    except VramkitError as error:
        from ..programs.failures import StepTraceback

        if isinstance(error.__cause__, StepTraceback):  # of which the error's own text speaks
            print(error.__cause__, file=sys.stderr)
        raise


def _asked(verb: str) -> str:
    return f"{verb} was given a function"

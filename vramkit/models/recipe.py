"""How a model that is known by its name is to be trained or used: the options, checked. Knows no library of models."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch

from ..counts import check_count
from ..errors import UsageError, shown

Dtype = Literal["float32", "bfloat16", "float16"]
Precision = Literal["32-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed"]
Quantization = Literal["nf4", "nf4-double", "fp4", "int8"]

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Dtypes of parameters by their names."""
PRECISIONS: dict[str, tuple[str, torch.dtype | None]] = {
    "32-true": ("float32", None),
    "bf16-true": ("bfloat16", None),
    "16-true": ("float16", None),
    "bf16-mixed": ("float32", torch.bfloat16),
    "16-mixed": ("float32", torch.float16),
}
"""Of each precision, in Lightning's words: the dtype of the parameters, and that of autocast."""
METHODS = "full, lora, qlora, freeze:N or inference"
QUANTIZATIONS = get_args(Quantization)
"""Of bitsandbytes; "double" is that the factors of the blocks are quantized too, as in the paper of QLoRA."""

_COUNTS = ("batch_size", "seq_len", "max_new_tokens", "image_size", "seconds", "lora", "accumulate")
_NAMES = {
    "task": "'sequence-classification'",
    "dtype": "'bfloat16'",
    "precision": "'bf16-mixed'",
    "method": "'lora'",
    "quantization": "'nf4'",
    "optimizer": "'adamw'",
    "attention": "'sdpa'",
}
"""Options that are names, with one that each can be."""
_FREEZE = re.compile(r"freeze:(\d{1,6})")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train a model, or to use it. The fields are the arguments of ``vramkit.models.load``.

    Raises:
        UsageError: an option is not what it can be, or two of them can't be together.
    """

    asked: str
    """What was asked for, as an error's text begins."""
    batch_size: int = 1
    seq_len: int | None = None
    max_new_tokens: int | None = None
    image_size: int | None = None
    seconds: int | None = None
    task: str | None = None
    dtype: str | None = None
    precision: str | None = None
    method: str = ""
    lora: int | None = None
    lora_targets: str | None = None
    optimizer: str | None = None
    quantization: str | None = None
    checkpointing: bool = False
    attention: str | None = None
    liger: bool = False
    accumulate: int = 1
    compile: bool = False
    padded: bool = False

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) is not None:
                check_count(self.asked, name, getattr(self, name))
        for name in _NAMES:
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise UsageError(self.asked, f"with {name}={shown(value)}", instead=f"Give its name, as {_NAMES[name]}")
        self._check_choice("dtype", DTYPES)
        self._check_choice("precision", PRECISIONS)
        self._check_choice("quantization", QUANTIZATIONS)
        if not self.method:
            object.__setattr__(self, "method", "full" if self.lora is None else "lora")
        if self.method == "qlora":
            object.__setattr__(self, "method", "lora")
            object.__setattr__(self, "quantization", self.quantization or "nf4-double")
        if self.method not in ("full", "lora", "inference") and not _FREEZE.fullmatch(self.method):
            raise UsageError(self.asked, f"with method={shown(self.method)}", instead=f"It is {METHODS}")
        if self.precision and self.dtype not in (None, PRECISIONS[self.precision][0]):
            wanted = PRECISIONS[self.precision][0]
            raise UsageError(
                self.asked,
                f"with dtype={self.dtype!r} and precision={self.precision!r}",
                f"With that precision parameters are {wanted}",
                "Leave one of the two out",
            )
        self._check_together()

    def _check_together(self) -> None:
        if self.method == "inference":
            for name in ("optimizer", "checkpointing"):
                self.refuse(name, "Inference has no backward")
            if self.accumulate != 1:
                raise UsageError(self.asked, f"with accumulate={self.accumulate}", "Inference accumulates nothing")
        else:
            self.refuse("max_new_tokens", "Only inference makes new tokens", 'Add method="inference"')
        if self.method not in ("lora", "inference"):
            self.refuse("quantization", "Quantized weights are not trained", 'Say method="lora", or leave it out')
        if self.method != "lora":
            for name in ("lora", "lora_targets"):
                self.refuse(name, f"method={self.method!r} has no adapters", 'Leave it out, or say method="lora"')

    def refuse(self, name: str, why: str, instead: str = "Leave it out") -> None:
        """Raises: UsageError: an option was given that can't be here."""
        default = {each.name: each.default for each in fields(self)}[name]
        if getattr(self, name) != default:
            raise UsageError(self.asked, f"with {name}={shown(getattr(self, name))}", why, instead)

    def _check_choice(self, name: str, choices: Collection[str]) -> None:
        value = getattr(self, name)
        if value is not None and value not in choices:
            raise UsageError(self.asked, f"with {name}={shown(value)}", instead=f"It is {', '.join(choices)}")

    @property
    def parameter_dtype(self) -> torch.dtype | None:
        """Dtype of the parameters; None: as the configuration has it."""
        name = PRECISIONS[self.precision][0] if self.precision else self.dtype
        return None if name is None else DTYPES[name]

    @property
    def autocast(self) -> torch.dtype | None:
        """Dtype of ``torch.autocast``; None: there is none."""
        return PRECISIONS[self.precision][1] if self.precision else None

    @property
    def frozen_blocks(self) -> int:
        """How many blocks are frozen, with all before them."""
        match = _FREEZE.fullmatch(self.method)
        return int(match[1]) if match else 0

    @property
    def trains(self) -> bool:
        """Whether there is a backward."""
        return self.method != "inference"


OPTIONS = tuple(each.name for each in fields(Recipe) if each.name != "asked")
"""Names of everything that a recipe can say."""

"""Weights in 4 or 8 bits, which bitsandbytes quantizes while transformers loads them. Knows both, and what PEFT does to
train beside them.

No weights are fetched, so zeros stand for them. They are loaded where the model is trained, when it is moved there: by
transformers' own function, which leaves the allocator as it leaves it in a script.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..errors import UsageError
from ..exports import optional
from ..programs.batches import unbacked
from ..torch_internals.fakes import FakeTensor
from . import methods
from .recipe import Recipe

_SETTINGS: dict[str, dict[str, object]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}
"""Arguments of ``BitsAndBytesConfig`` for each quantization."""
_KEPT = frozenset(vars(torch.nn.Module())) - {"training"}
"""What of a module stays when it is loaded: its parts, the places of its tensors, and its hooks."""


def apply(model: Any, recipe: Recipe) -> torch.nn.Module:
    """The model with quantized layers, made ready for a method: on ``meta`` until it is moved to a GPU.

    Args:
        model: of transformers, on ``meta``.
        recipe: how it is used.

    Raises:
        UsageError: bitsandbytes isn't installed, or it can't quantize this model.
    """
    transformers = optional.load(recipe.asked, "transformers", "integrations")
    optional.load(recipe.asked, "accelerate", "integrations")
    optional.load(recipe.asked, "bitsandbytes", "integrations")
    tied = model.state_dict().keys() - {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    weights = {name: (tuple(each.shape), each.dtype) for name, each in model.state_dict().items() if name not in tied}
    loading = _Loading(type(model), copy.deepcopy(model.config), weights, recipe)
    quantizer = transformers.quantizers.AutoHfQuantizer.from_config(loading.settings())
    try:
        quantizer.preprocess_model(model=model, device_map=None)
        quantizer.postprocess_model(model)
        model = loading.prepared(model)
    except (ValueError, ImportError, NotImplementedError) as error:
        raise UsageError(
            recipe.asked,
            f"with quantization={recipe.quantization!r}, which {type(model).__name__} can't have: {error}",
            instead="Leave it out, or install what is missing",
        ) from error
    model.to = partial(_load, model, loading)
    return model  # type: ignore[no-any-return] # transformers has no types here


@dataclass(frozen=True)
class _Loading:
    """How a script would load the model."""

    kind: Any
    """Its class."""
    config: Any
    weights: dict[str, tuple[tuple[int, ...], torch.dtype]]
    """Shape and dtype of each tensor in the file of weights."""
    recipe: Recipe

    def settings(self) -> Any:
        """The configuration of bitsandbytes."""
        import transformers

        given = dict(_SETTINGS[self.recipe.quantization or ""])
        if "load_in_4bit" in given:
            given["bnb_4bit_compute_dtype"] = self.recipe.autocast or self.dtype
        return transformers.BitsAndBytesConfig(**given)

    @property
    def dtype(self) -> torch.dtype:
        """Of the layers that are not quantized, when they are loaded."""
        return self.recipe.parameter_dtype or self.config.dtype or torch.float32

    def loaded(self) -> Any:
        """The model on the GPU, as ``from_pretrained`` leaves it."""
        zeros = {
            name: torch.empty(0, dtype=dtype, device="cpu")
            .set_(unbacked(dtype.itemsize * torch.Size(shape).numel()))
            .view(shape)
            for name, (shape, dtype) in self.weights.items()
        }
        return self.kind.from_pretrained(
            None,
            config=self.config,
            state_dict=zeros,
            quantization_config=self.settings(),
            dtype=self.dtype,
            device_map={"": 0},
        )

    def prepared(self, model: Any) -> Any:
        """The model, ready to be trained or used, as PEFT says."""
        recipe = self.recipe
        if recipe.trains:
            import peft

            model = peft.prepare_model_for_kbit_training(
                model, recipe.checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        return methods.apply(model, recipe)


def _load(model: torch.nn.Module, loading: _Loading, device: object) -> None:
    """Load a model's tensors onto the GPU. Its modules and what is trained stay the objects that they are."""
    recipe = loading.recipe
    if any(isinstance(each, FakeTensor) for each in model.parameters()):
        raise UsageError(
            recipe.asked,
            f"with quantization={recipe.quantization!r} and on fake tensors",
            "bitsandbytes quantizes no fakes",
            "Predict it with the virtual engine, which Linux and a CUDA build of torch have",
        )
    vars(model).pop("to", None)
    loaded = loading.prepared(loading.loaded())
    for name, new in loaded.named_modules():
        old = model.get_submodule(name)
        vars(old).update({key: value for key, value in vars(new).items() if key not in _KEPT})
        for place, buffer in new.named_buffers(recurse=False):
            setattr(old, place, buffer)
        for place, parameter in new.named_parameters(recurse=False):
            if parameter.requires_grad:
                old.get_parameter(place).data = parameter.data
            else:
                setattr(old, place, parameter)

"""``hf:`` models: from a config.json, on this machine or in the hub, never with weights. Knows transformers."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError, shown
from ..exports import optional
from . import liger, methods, optimizers, quantized
from .batches import POSITIONS, positions, reads, sees
from .loaded import Loaded
from .recipe import Recipe
from .steps import ForwardStep, GenerationStep, TrainingStep, model_loss
from .tasks import LABELS, TASKS, Task

_NEW_TOKENS = 128
_OF_THE_NEXT_WORD = ("ForCausalLM", None)
"""Kinds of transformers' losses that are the cross entropy of logits and the labels after them; None stands for it."""
_DROPPED = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")
"""Options of configurations: how often a layer is left out of a step."""


def load(name: str, recipe: Recipe) -> Loaded:
    """A model, a batch and a step.

    Args:
        name: a model of the hub, a folder that holds a config.json, or such a file.
        recipe: how it is trained.

    Raises:
        UsageError: it can't be found or made; the text names the remedy.
    """
    transformers = optional.load(recipe.asked, "transformers", "integrations")
    config = _config(transformers, name, recipe)
    _settle(config, recipe)
    with _quiet():
        task, model = _made(transformers, config, recipe)
        batch = task.batch(model, recipe)
        if recipe.quantization is not None:
            model = quantized.apply(model, recipe)
        else:
            if recipe.checkpointing:
                _checkpoint(model, recipe)
            model = methods.apply(model, recipe)
        if recipe.liger:
            liger.apply(model, config.model_type, recipe)
        called: Any = torch.compile(model) if recipe.compile else model
        if not recipe.trains:
            given = {key: value for key, value in batch.items() if key not in LABELS}
            if not task.generates:
                recipe.refuse("max_new_tokens", f"{type(model).__name__} generates nothing")
                return Loaded(model, given, ForwardStep(called, recipe.autocast, task.inputs))
            return Loaded(model, given, GenerationStep(called, recipe.autocast, _generation(recipe), task.inputs))
        optimizer = optimizers.make(recipe.asked, recipe.optimizer or "adamw", model)
    shifted = task is TASKS["causal-lm"] and getattr(model, "loss_type", "") in _OF_THE_NEXT_WORD
    step = TrainingStep(called, optimizer, model_loss, recipe.autocast, recipe.accumulate, task.inputs, shifted)
    return Loaded(model, batch, step, optimizer)


def _config(transformers: Any, name: str, recipe: Recipe) -> Any:
    path = Path(name).expanduser()
    here = path.exists() or name.startswith((".", "/", "~"))
    if path.is_file() and path.suffix != ".json":
        raise UsageError(recipe.asked, f"{shown(name)} is no configuration", instead="Name a folder with config.json")
    if here and not path.is_file() and not (path / "config.json").is_file():
        raise UsageError(recipe.asked, f"there is no config.json in {shown(name)}", instead="Put the model's there")
    try:
        with _quiet():
            return transformers.AutoConfig.from_pretrained(
                str(path) if here else name, local_files_only=here, trust_remote_code=False
            )
    except Exception as error:  # whatever the hub, the network or a configuration raises
        of_its_own = "remote_code" in str(error) or "custom code" in str(error)
        remedy = "Correct it" if here else "Save the model's config.json to a folder, and name that: hf:./folder"
        if of_its_own:
            remedy = "Write a function that returns (model, batch), and name that as MODULE:FUNCTION"
        found = f"its configuration can't be had: {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        raise UsageError(
            recipe.asked,
            found,
            "Only code that comes with transformers is run, never a model's own" if of_its_own else "",
            remedy,
        ) from error


def _settle(config: Any, recipe: Recipe) -> None:
    """What the recipe says of the configuration."""
    if recipe.trains or hasattr(config, "use_cache"):
        config.use_cache = not recipe.trains  # as Trainer has it, also where only the configuration of the text has one
    for name in _DROPPED:
        if hasattr(config, name):
            setattr(config, name, 0.0)  # of many steps the one with most has all layers
    eyes = sees(config)
    if hasattr(eyes, "image_size"):
        if recipe.image_size is not None:
            of_two = isinstance(eyes.image_size, (list, tuple))
            eyes.image_size = [recipe.image_size] * 2 if of_two else recipe.image_size
    elif recipe.image_size is not None and not (hasattr(eyes, "num_channels") or hasattr(eyes, "patch_size")):
        recipe.refuse("image_size", f"A model of type {config.model_type!r} takes no images")
    if getattr(config, "pad_token_id", None) is None:
        with contextlib.suppress(AttributeError):
            config.pad_token_id = 0  # classifiers of sequences want one
    most = positions(reads(config))
    if most is not None and recipe.seq_len is not None and recipe.seq_len > most:
        raise UsageError(
            recipe.asked,
            f"with seq_len={recipe.seq_len}",
            f"The configuration has {POSITIONS}={most}; with learned positions a longer text fails on a GPU",
            f"Give at most {most}; or, where the model can take more, a config.json that says so",
        )


def _made(transformers: Any, config: Any, recipe: Recipe) -> tuple[Task, torch.nn.Module]:
    """The model on ``meta``, and what it is for."""
    options = {"dtype": recipe.parameter_dtype, "attn_implementation": recipe.attention}
    given = {name: value for name, value in options.items() if value is not None}
    for task in _candidates(config, recipe):
        try:
            with torch.device("meta"):
                model = getattr(transformers, task.auto).from_config(config, **given)
            return task, model.to("meta")  # `torch.Tensor(...)`, as some have it, asks for no device
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise _cannot(config, recipe, error) from error
        except (ImportError, RuntimeError, TypeError, NotImplementedError, AttributeError) as error:
            raise _cannot(config, recipe, error) from error
    tasks = ", ".join(TASKS)
    raise UsageError(
        recipe.asked,
        f"{' or '.join(config.architectures or [config.model_type])} is made for none of {recipe.task or tasks}",
        "Batches are known for these alone",
        "Write a function that returns (model, batch), and name it as MODULE:FUNCTION",
    )


def _cannot(config: Any, recipe: Recipe, error: Exception) -> UsageError:
    instead = "Change the option of which it speaks, or config.json, or install what is missing"
    if isinstance(error, ImportError) and str(recipe.attention).startswith("flash_attention"):
        instead = "Install it (flash-attn, where its wheel is), or give attention='sdpa': torch's own FlashAttention"
    return UsageError(
        recipe.asked,
        f"transformers can't make a model of type {config.model_type!r}: {type(error).__name__}: {error}",
        instead=instead,
    )


def _candidates(config: Any, recipe: Recipe) -> Iterator[Task]:
    if recipe.task is not None:
        if recipe.task not in TASKS:
            raise UsageError(recipe.asked, f"with task={shown(recipe.task)}", instead=f"It is {', '.join(TASKS)}")
        yield TASKS[recipe.task]
        return
    architecture = (config.architectures or [""])[0]
    if not architecture:  # written by hand
        decodes_alone = not getattr(config, "is_encoder_decoder", False)
        yield from (task for name, task in TASKS.items() if decodes_alone or name != "causal-lm")
        return
    meant = [task for task in TASKS.values() if architecture.endswith(task.endings)]
    if not meant and architecture.endswith("Model"):  # "BertModel", "CLIPModel": nothing says what is trained
        raise UsageError(
            recipe.asked,
            f"its configuration names {architecture}, which is not what a training has",
            instead=f"Say what it is trained for with task (--task): {', '.join(TASKS)}",
        )
    yield from meant


def _checkpoint(model: Any, recipe: Recipe) -> None:
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise UsageError(recipe.asked, f"with checkpointing, which transformers refuses: {error}") from error


def _generation(recipe: Recipe) -> dict[str, object]:
    """So many new tokens, neither fewer nor more, whatever the configuration says."""
    return {
        "max_new_tokens": recipe.max_new_tokens or _NEW_TOKENS,
        "do_sample": False,
        "num_beams": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers warns of what is meant here: no weights, no GPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

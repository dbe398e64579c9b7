"""``hf:`` models: from a config.json, on this machine or in the hub, never with weights. Knows transformers."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError, shown
from ..exports import optional
from . import liger, methods, optimizers, quantized
from .loaded import Loaded
from .recipe import Recipe
from .steps import ForwardStep, GenerationStep, TrainingStep, model_loss

_SEQ_LEN = 512
_NEW_TOKENS = 128
_IMAGE_SIZE = 224
_POSITIONS = "max_position_embeddings"

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class _Task:
    """What a model is for: which class of transformers makes it, and which batch it takes."""

    auto: str
    """Name of that class."""
    endings: tuple[str, ...]
    """How the names of its classes end, as ``architectures`` of a configuration has them."""
    batch: Callable[[Any, Recipe], Batch]
    generates: bool = False


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
        batch = task.batch(config, recipe)
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
            if not task.generates:
                recipe.refuse("max_new_tokens", f"{type(model).__name__} generates nothing")
                return Loaded(model, batch, ForwardStep(called, recipe.autocast))
            prompt = {key: value for key, value in batch.items() if key != "labels"}
            return Loaded(model, prompt, GenerationStep(called, recipe.autocast, _generation(recipe)))
        optimizer = optimizers.make(recipe.asked, recipe.optimizer or "adamw", model)
    step = TrainingStep(called, optimizer, model_loss, recipe.autocast, recipe.accumulate)
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
        found = f"its configuration can't be had: {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        raise UsageError(
            recipe.asked,
            found,
            "Only code that comes with transformers is run, never a model's own" if "remote_code" in str(error) else "",
            "Correct it" if here else "Save the model's config.json to a folder, and name that: hf:./folder",
        ) from error


def _settle(config: Any, recipe: Recipe) -> None:
    """What the recipe says of the configuration."""
    if hasattr(config, "use_cache"):
        config.use_cache = not recipe.trains  # as Trainer has it
    sees = _sees(config)
    if hasattr(sees, "image_size"):
        if recipe.image_size is not None:
            sees.image_size = recipe.image_size
    elif recipe.image_size is not None and not hasattr(sees, "num_channels"):
        recipe.refuse("image_size", f"A model of type {config.model_type!r} takes no images")
    if getattr(config, "pad_token_id", None) is None:
        with contextlib.suppress(AttributeError):
            config.pad_token_id = 0  # classifiers of sequences want one
    most = _positions(config)
    if most is not None and recipe.seq_len is not None and recipe.seq_len > most:
        raise UsageError(
            recipe.asked,
            f"with seq_len={recipe.seq_len}",
            f"The configuration has {_POSITIONS}={most}; with learned positions a longer text fails on a GPU",
            f"Give at most {most}; or, where the model can take more, a config.json that says so",
        )


def _made(transformers: Any, config: Any, recipe: Recipe) -> tuple[_Task, torch.nn.Module]:
    """The model on ``meta``, and what it is for."""
    options = {"dtype": recipe.parameter_dtype, "attn_implementation": recipe.attention}
    given = {name: value for name, value in options.items() if value is not None}
    for task in _candidates(config, recipe):
        try:
            with torch.device("meta"):
                return task, getattr(transformers, task.auto).from_config(config, **given)
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise _cannot(config, recipe, error) from error
        except (ImportError, RuntimeError, TypeError, NotImplementedError, AttributeError) as error:
            raise _cannot(config, recipe, error) from error
    tasks = ", ".join(_TASKS)
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


def _candidates(config: Any, recipe: Recipe) -> Iterator[_Task]:
    if recipe.task is not None:
        if recipe.task not in _TASKS:
            raise UsageError(recipe.asked, f"with task={shown(recipe.task)}", instead=f"It is {', '.join(_TASKS)}")
        yield _TASKS[recipe.task]
        return
    architecture = (config.architectures or [""])[0]
    if not architecture:  # written by hand
        decodes_alone = not getattr(config, "is_encoder_decoder", False)
        yield from (task for name, task in _TASKS.items() if decodes_alone or name != "causal-lm")
        return
    meant = [task for task in _TASKS.values() if architecture.endswith(task.endings)]
    if not meant and architecture.endswith("Model"):  # "BertModel", "CLIPModel": nothing says what is trained
        raise UsageError(
            recipe.asked,
            f"its configuration names {architecture}, which is not what a training has",
            instead=f"Say what it is trained for with task (--task): {', '.join(_TASKS)}",
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


# -- batches -----------------------------------------------------------------------------------------------------------


def _positions(config: Any) -> int | None:
    """Tokens that a model takes; None: as many as there are."""
    most = getattr(config, _POSITIONS, None)
    return most if isinstance(most, int) and most > 0 else None


def _length(config: Any, recipe: Recipe) -> int:
    return recipe.seq_len or min(_SEQ_LEN, _positions(config) or _SEQ_LEN)


def _ids(rows: int, length: int) -> torch.Tensor:
    return torch.ones(rows, length, dtype=torch.long, device="cpu")


def _text(config: Any, recipe: Recipe) -> Batch:
    """Token ids and their mask, as a collator makes them."""
    length = _length(config, recipe)
    mask = _ids(recipe.batch_size, length)
    if recipe.padded:
        mask[:, -1] = 0
    return {"input_ids": _ids(recipe.batch_size, length), "attention_mask": mask}


def _language(config: Any, recipe: Recipe) -> Batch:
    batch = _text(config, recipe)
    return {**batch, "labels": batch["input_ids"].clone()}


def _tokens(config: Any, recipe: Recipe) -> Batch:
    batch = _text(config, recipe)
    return {**batch, "labels": torch.zeros_like(batch["input_ids"])}


def _sequence(config: Any, recipe: Recipe) -> Batch:
    return {**_text(config, recipe), "labels": _classes(recipe)}


def _answer(config: Any, recipe: Recipe) -> Batch:
    return {**_text(config, recipe), "start_positions": _classes(recipe), "end_positions": _classes(recipe)}


def _image(config: Any, recipe: Recipe) -> Batch:
    for name in ("seq_len", "padded"):
        recipe.refuse(name, "The model takes images")
    sees = _sees(config)
    size: Any = recipe.image_size or getattr(sees, "image_size", _IMAGE_SIZE)
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.zeros(recipe.batch_size, getattr(sees, "num_channels", 3), height, width, device="cpu")
    return {"pixel_values": _as_model(pixels, config, recipe), "labels": _classes(recipe)}


def _sees(config: Any) -> Any:
    """The part of a configuration that speaks of images."""
    return getattr(config, "vision_config", config)


def _pixels(config: Any, recipe: Recipe) -> Batch:
    batch = _image(config, recipe)
    rows, _, height, width = batch["pixel_values"].shape
    return {**batch, "labels": torch.zeros(rows, height, width, dtype=torch.long, device="cpu")}


def _speech(config: Any, recipe: Recipe) -> Batch:
    if not hasattr(config, "num_mel_bins"):
        raise UsageError(
            recipe.asked,
            f"a model of type {config.model_type!r}, whose sound is not Whisper's",
            "No batch is known for it",
            "Write a function that returns (model, batch), and name it as MODULE:FUNCTION",
        )
    features = torch.zeros(recipe.batch_size, config.num_mel_bins, 2 * config.max_source_positions, device="cpu")
    most = config.max_target_positions
    length = recipe.seq_len or most
    if length > most:
        raise UsageError(recipe.asked, f"with seq_len={length}", instead=f"Give at most max_target_positions={most}")
    return {"input_features": _as_model(features, config, recipe), "labels": _ids(recipe.batch_size, length)}


def _as_model(values: torch.Tensor, config: Any, recipe: Recipe) -> torch.Tensor:
    """Where parameters are in half precision without autocast, so is what they are multiplied with."""
    return values if recipe.autocast is not None else values.to(config.dtype or torch.float32)


def _classes(recipe: Recipe) -> torch.Tensor:
    return torch.zeros(recipe.batch_size, dtype=torch.long, device="cpu")


_TASKS = {
    "causal-lm": _Task("AutoModelForCausalLM", ("ForCausalLM", "LMHeadModel"), _language, True),
    "speech-seq2seq": _Task("AutoModelForSpeechSeq2Seq", ("ForConditionalGeneration",), _speech, True),
    "seq2seq-lm": _Task(
        "AutoModelForSeq2SeqLM", ("ForConditionalGeneration", "WithLMHeadModel", "MTModel"), _language, True
    ),
    "masked-lm": _Task("AutoModelForMaskedLM", ("ForMaskedLM", "ForPreTraining"), _language),
    "sequence-classification": _Task("AutoModelForSequenceClassification", ("ForSequenceClassification",), _sequence),
    "token-classification": _Task("AutoModelForTokenClassification", ("ForTokenClassification",), _tokens),
    "question-answering": _Task("AutoModelForQuestionAnswering", ("ForQuestionAnswering",), _answer),
    "image-classification": _Task("AutoModelForImageClassification", ("ForImageClassification",), _image),
    "semantic-segmentation": _Task("AutoModelForSemanticSegmentation", ("ForSemanticSegmentation",), _pixels),
}
"""Every task by its name."""

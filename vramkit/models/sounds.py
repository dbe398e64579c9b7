"""Batches of sound: spectrograms, as Whisper takes them, and samples, as wav2vec 2.0 does. Knows configurations."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import UsageError
from .batches import Batch, as_model, cannot, classes, ids
from .recipe import Recipe

_RATE = 16_000  # samples of a second, in all of transformers' models that take them
_SECONDS = 10
_TRANSCRIPT = 128  # tokens of it: characters, of some ten seconds


def speech(model: Any, recipe: Recipe) -> Batch:
    """A sound of Whisper's length, and what is said."""
    config = model.config
    if not hasattr(config, "num_mel_bins"):
        raise cannot(f"a model of type {config.model_type!r}, whose sound is not Whisper's", recipe)
    most = config.max_target_positions
    length = recipe.seq_len or most
    if length > most:
        raise UsageError(recipe.asked, f"with seq_len={length}", instead=f"Give at most max_target_positions={most}")
    return {**_heard(model, recipe), "labels": ids(recipe.batch_size, length)}


def transcript(model: Any, recipe: Recipe) -> Batch:
    """A sound, and what is said, without where."""
    return {**_heard(model, recipe), "labels": ids(recipe.batch_size, recipe.seq_len or _TRANSCRIPT)}


def sound(model: Any, recipe: Recipe) -> Batch:
    """A sound, with a class for each."""
    recipe.refuse("seq_len", "The model takes sounds, and writes nothing")
    return {**_heard(model, recipe), "labels": classes(recipe)}


def _heard(model: Any, recipe: Recipe) -> Batch:
    config, rows = model.config, recipe.batch_size
    if model.main_input_name == "input_values" and not hasattr(config, "num_mel_bins"):
        samples = (recipe.seconds or _SECONDS) * _RATE
        values = as_model(torch.zeros(rows, samples, device="cpu"), config, recipe)
        if not recipe.padded:
            return {"input_values": values}
        mask = torch.ones(rows, samples, dtype=torch.int32, device="cpu")
        mask[:, -_RATE // 2 :] = 0
        return {"input_values": values, "attention_mask": mask}
    for name in ("seconds", "padded"):
        recipe.refuse(name, "The length of its sounds is in config.json")
    if hasattr(config, "max_source_positions"):
        size = (config.num_mel_bins, 2 * config.max_source_positions)
    elif hasattr(config, "max_length") and model.main_input_name == "input_values":
        size = (config.max_length, config.num_mel_bins)
    else:
        raise cannot(f"a model of type {config.model_type!r}, whose sound is not known", recipe)
    features = torch.zeros(rows, *size, device="cpu")
    return {model.main_input_name: as_model(features, config, recipe)}

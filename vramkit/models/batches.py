"""Batches of texts and of images, as transformers' models take them: made on the CPU, as a collator makes them. Knows
configurations, and which names their sizes have."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import UsageError
from .recipe import Recipe

POSITIONS = "max_position_embeddings"
_SEQ_LEN = 512
_IMAGE_SIZE = 224

Batch = dict[str, torch.Tensor]
"""Arguments of a model by name; dimension 0 of each is the batch."""


def reads(config: Any) -> Any:
    """The part of a configuration that speaks of texts."""
    return getattr(config, "text_config", config)


def sees(config: Any) -> Any:
    """The part of a configuration that speaks of images."""
    return getattr(config, "vision_config", config)


def positions(config: Any) -> int | None:
    """Tokens that a model takes; None: as many as there are."""
    most = getattr(config, POSITIONS, None)
    return most if isinstance(most, int) and most > 0 else None


def length(config: Any, recipe: Recipe, usual: int = _SEQ_LEN) -> int:
    """Tokens of a text."""
    return recipe.seq_len or min(usual, positions(config) or usual)


def ids(rows: int, tokens: int) -> torch.Tensor:
    """Of tokens, none of them special."""
    return torch.ones(rows, tokens, dtype=torch.long, device="cpu")


def classes(recipe: Recipe) -> torch.Tensor:
    """A class for each row."""
    return torch.zeros(recipe.batch_size, dtype=torch.long, device="cpu")


def as_model(values: torch.Tensor, config: Any, recipe: Recipe) -> torch.Tensor:
    """Where parameters are in half precision without autocast, so is what they are multiplied with."""
    return values if recipe.autocast is not None else values.to(config.dtype or torch.float32)


def masked(rows: int, tokens: int, recipe: Recipe) -> Batch:
    """Token ids and their mask."""
    mask = ids(rows, tokens)
    if recipe.padded:
        mask[:, -1] = 0
    return {"input_ids": ids(rows, tokens), "attention_mask": mask}


def text(model: Any, recipe: Recipe) -> Batch:
    """A text in each row."""
    recipe.refuse("seconds", "The model takes texts")
    return masked(recipe.batch_size, length(model.config, recipe), recipe)


def language(model: Any, recipe: Recipe) -> Batch:
    """Texts that are also what is to be said."""
    batch = text(model, recipe)
    return {**batch, "labels": batch["input_ids"].clone()}


def tokens(model: Any, recipe: Recipe) -> Batch:
    """Texts with a class for each token."""
    batch = text(model, recipe)
    return {**batch, "labels": torch.zeros_like(batch["input_ids"])}


def sequence(model: Any, recipe: Recipe) -> Batch:
    """Texts with a class for each."""
    return {**text(model, recipe), "labels": classes(recipe)}


def answer(model: Any, recipe: Recipe) -> Batch:
    """Texts with the place of an answer in each."""
    return {**text(model, recipe), "start_positions": classes(recipe), "end_positions": classes(recipe)}


def refuse_text(recipe: Recipe) -> None:
    """Raises: UsageError: an option of texts or sounds, where a model takes images."""
    for name in ("seq_len", "padded", "seconds"):
        recipe.refuse(name, "The model takes images")


def pixels(config: Any, recipe: Recipe, size: Any = None) -> torch.Tensor:
    """Images.

    Args:
        config: of the model.
        recipe: which may say their size.
        size: height and width, or one number for both, where neither does; None: the usual one.
    """
    eyes = sees(config)
    size = recipe.image_size or getattr(eyes, "image_size", None) or size or _IMAGE_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(eyes, "num_channels", 3)
    return as_model(torch.zeros(recipe.batch_size, channels, height, width, device="cpu"), config, recipe)


def image(model: Any, recipe: Recipe) -> Batch:
    """Images with a class for each."""
    refuse_text(recipe)
    return {"pixel_values": pixels(model.config, recipe), "labels": classes(recipe)}


def image_of_classes(model: Any, recipe: Recipe) -> Batch:
    """Images with a class for each pixel."""
    batch = image(model, recipe)
    rows, _, height, width = batch["pixel_values"].shape
    return {**batch, "labels": torch.zeros(rows, height, width, dtype=torch.long, device="cpu")}


def cannot(what: str, recipe: Recipe) -> UsageError:
    """That there is no batch for such a model."""
    return UsageError(
        recipe.asked,
        what,
        "No batch is known for it",
        "Write a function that returns (model, batch), and name it as MODULE:FUNCTION",
    )

"""Batches of images and texts: in pairs, as CLIP compares them, and an image within a text, as LLaVA and Qwen2-VL read
it. Knows configurations, and asks the model how many tokens an image takes.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from ..errors import UsageError
from .batches import Batch, as_model, cannot, length, masked, pixels, reads, sees
from .recipe import Recipe
from .steps import on_cuda

_TEXT = 512  # tokens beside those of an image
_PATCHED = 448  # pixels of a side, where a model takes images of any
_IGNORED = -100


def pair(model: Any, recipe: Recipe) -> Batch:
    """A text and an image in each row."""
    recipe.refuse("seconds", "The model takes images and texts")
    config = model.config
    if not hasattr(sees(config), "image_size"):
        raise cannot(f"a model of type {config.model_type!r}, whose images have no one size", recipe)
    texts = masked(recipe.batch_size, length(reads(config), recipe), recipe)
    return {**texts, "pixel_values": pixels(config, recipe)}


def compared(batch: Any) -> dict[str, Any]:
    """A batch of ``pair`` on the GPU, with the wish for a loss."""
    return {**on_cuda(batch), "return_loss": True}


def image_in_text(model: Any, recipe: Recipe) -> Batch:
    """An image and a text after it in each row. The image's places are tokens, and nothing is to be said there."""
    recipe.refuse("seconds", "The model takes images and texts")
    config, rows = model.config, recipe.batch_size
    try:
        images = _images(model, recipe)
        places = _places(model, images)
        image = config.image_token_id
    except Exception as error:  # whatever a model says that takes images in another way
        raise cannot(
            f"a model of type {config.model_type!r}, whose images are taken otherwise: {type(error).__name__}", recipe
        ) from error
    total = recipe.seq_len or places + length(reads(config), recipe, _TEXT)
    if total <= places:
        raise UsageError(
            recipe.asked,
            f"with seq_len={total}",
            f"An image alone takes {places} tokens",
            f"Give more, or a smaller image_size; None is {_TEXT} beside the image",
        )
    batch = masked(rows, total, recipe)
    batch["input_ids"][:, :places] = image
    of_image = batch["input_ids"] == image
    takes = inspect.signature(model.forward).parameters
    if "token_type_ids" in takes:  # PaliGemma's say what is to be said, the others' what is an image
        batch["token_type_ids"] = (of_image != (config.model_type == "paligemma")).long()
    if "mm_token_type_ids" in takes:
        batch["mm_token_type_ids"] = of_image.long()
    return {**batch, "labels": batch["input_ids"].masked_fill(of_image, _IGNORED), **images}


def in_patches(batch: Any) -> Any:
    """A batch of ``image_in_text`` on the GPU, with the patches of all images in one row."""
    pixels = batch["pixel_values"]
    return on_cuda({**batch, "pixel_values": pixels.flatten(0, 1) if pixels.dim() == 3 else pixels})


def _images(model: Any, recipe: Recipe) -> Batch:
    config = model.config
    if hasattr(sees(config), "temporal_patch_size"):
        return _patches(model, recipe)
    if hasattr(config, "image_grid_pinpoints"):
        return _tiles(model, recipe)
    return {"pixel_values": pixels(config, recipe)}


def _tiles(model: Any, recipe: Recipe) -> Batch:
    """Images as LLaVA-NeXT has them: each whole, and in tiles, as many as the best of its configuration's grids has."""
    from transformers.image_processing_utils import select_best_resolution

    config, rows = model.config, recipe.batch_size
    tile = sees(config).image_size
    side = recipe.image_size or 2 * tile
    height, width = select_best_resolution([side, side], config.image_grid_pinpoints)
    tiles = 1 + (height // tile) * (width // tile)
    values = torch.zeros(rows, tiles, 3, tile, tile, device="cpu")
    return {
        "pixel_values": as_model(values, config, recipe),
        "image_sizes": torch.full((rows, 2), side, dtype=torch.long, device="cpu"),
    }


def _patches(model: Any, recipe: Recipe) -> Batch:
    """Images of any size as their patches, as Qwen2-VL has it."""
    eyes, rows = sees(model.config), recipe.batch_size
    merged = eyes.patch_size * eyes.spatial_merge_size
    side = max(1, round((recipe.image_size or _PATCHED) / merged)) * eyes.spatial_merge_size
    channels = getattr(eyes, "in_channels", None) or getattr(eyes, "in_chans", 3)
    values = torch.zeros(rows, side * side, channels * eyes.temporal_patch_size * eyes.patch_size**2, device="cpu")
    grid = torch.tensor([1, side, side], device="cpu").expand(rows, 3).clone()
    return {"pixel_values": as_model(values, model.config, recipe), "image_grid_thw": grid}


def _places(model: Any, images: Batch) -> int:
    """How many tokens one image takes."""
    if "image_grid_thw" in images:
        merged: int = sees(model.config).spatial_merge_size ** 2
        return int(images["image_grid_thw"][0].prod()) // merged
    values = images["pixel_values"][:1].to("meta", model.dtype)
    sizes = {name: images[name][:1] for name in ("image_sizes",) if name in images}
    with torch.no_grad():
        found = model.get_image_features(values, **sizes)
    features = getattr(found, "pooler_output", found)
    parts: list[torch.Tensor] = [*features] if isinstance(features, (list, tuple)) else [features]
    return sum(each.shape[:-1].numel() for each in parts)

"""Batches of those that detect objects: images, and the objects in each. They are the same for transformers' and for
torchvision's, which take a dict of each image; so rows are taken apart when they go to the GPU, as a script does it.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from ..errors import UsageError
from .batches import Batch, pixels, refuse_text
from .recipe import Recipe
from .steps import on_cuda

OBJECTS = 10
"""In each image. COCO's have 7."""
LARGEST = (800, 1333)
"""Height and width, to which images are made smaller, unless a model wants others: the usual transforms'."""
_SQUARE = {"rt_detr": 640, "rt_detr_v2": 640, "d_fine": 640}
"""Types of transformers whose images all have one size, so that none has a mask; it is in no configuration."""


def objects(model: Any, recipe: Recipe) -> Batch:
    """Images, with classes and boxes of the objects in each."""
    refuse_text(recipe)
    config = model.config
    square = _SQUARE.get(config.model_type)
    images = pixels(config, recipe, square or LARGEST)
    batch = {"pixel_values": images}
    of_any_size = square is None and not hasattr(config, "image_size")
    if of_any_size and "pixel_mask" in inspect.signature(model.forward).parameters:
        batch["pixel_mask"] = torch.ones(len(images), *images.shape[2:], dtype=torch.long, device="cpu")
    return {
        **batch,
        "class_labels": torch.zeros(len(images), OBJECTS, dtype=torch.long, device="cpu"),
        "boxes": torch.full((len(images), OBJECTS, 4), 0.5, device="cpu"),
    }


def of_each_image(batch: Any) -> Any:
    """A batch of ``objects`` on the GPU, as transformers takes it."""
    inputs = on_cuda({name: value for name, value in batch.items() if name not in ("class_labels", "boxes")})
    if "boxes" not in batch:
        return inputs
    rows = zip(batch["class_labels"], batch["boxes"], strict=True)
    return {**inputs, "labels": [{"class_labels": of.to("cuda"), "boxes": at.to("cuda")} for of, at in rows]}


def torchvision_batch(recipe: Recipe, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """The same for torchvision."""
    height, width = size
    rows = recipe.batch_size
    corners = torch.tensor([0.0, 0.0, width / 4, height / 4], device="cpu")
    batch = {
        "images": torch.zeros(rows, 3, height, width, device="cpu"),
        "boxes": corners.expand(rows, OBJECTS, 4).clone(),
        "labels": torch.ones(rows, OBJECTS, dtype=torch.long, device="cpu"),
    }
    if recipe.parameter_dtype not in (None, torch.float32):
        raise UsageError(
            recipe.asked,
            f"with parameters in {recipe.parameter_dtype}",
            "torchvision's detectors are trained in float32, or with autocast",
            "Leave it out, or give precision='bf16-mixed'",
        )
    return batch


def lists(batch: Any) -> tuple[Any, ...]:
    """A batch of ``torchvision_batch`` on the GPU: a list of images, and one of what is in them."""
    images = [image.to("cuda") for image in batch["images"]]
    of_objects = [name for name in batch if name != "images"]
    if not of_objects:
        return (images,)
    return images, [{name: batch[name][row].to("cuda") for name in of_objects} for row in range(len(images))]


def sum_of_losses(output: Any, batch: object) -> torch.Tensor:
    """Of a dict of losses, as torchvision's detectors return it."""
    total: torch.Tensor = sum(output.values())
    return total

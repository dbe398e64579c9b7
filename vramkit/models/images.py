"""``timm:`` and ``torchvision:`` models, from their names: classifiers of images and of videos, segmentation, and
detection. Knows the two libraries.
"""

from __future__ import annotations

import difflib
import warnings
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import UsageError, shown
from ..exports import optional
from . import detection, methods, optimizers
from .loaded import Loaded
from .recipe import Recipe
from .steps import ForwardStep, Inputs, Loss, TrainingStep, on_cuda

_IMAGE_SIZE = 224
_FRAMES = 16  # of a video: what the weights of torchvision's models were made for
_MADE_FOR_A_SIZE = {"vit_": "image_size", "maxvit": "input_size"}
"""Models of torchvision that take images of one size alone: how their names begin, and the argument that says it."""
_OF_ONE_SIZE = ("ssd",)
"""How the names of detectors begin that make all images equally large."""
_AUXILIARY = {"Inception3": (0.4,), "GoogLeNet": (0.3, 0.3)}
"""Weights of the losses of auxiliary classifiers, as the papers and torchvision's own references have them."""


def load_timm(name: str, recipe: Recipe) -> Loaded:
    """A model of timm. Raises: UsageError: there is none of that name, or an option can't be."""
    timm = optional.load(recipe.asked, "timm", "integrations")
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.partition('.')[0]}*")[:6]
        raise UsageError(
            recipe.asked,
            f"timm has no model {shown(name)}" + (f"; it has {', '.join(near)}" if near else ""),
            instead="timm.list_models() names them all",
        )
    _refuse_text(recipe)
    try:
        channels, height, width = timm.get_pretrained_cfg(name).input_size
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*")[:6])
        raise UsageError(
            recipe.asked, f"timm says: {error}", instead=f"Leave the tag out, or name one of {tags}"
        ) from error
    given: dict[str, object] = {}
    if recipe.image_size is not None and recipe.image_size != height:
        height = width = recipe.image_size
        given["img_size"] = recipe.image_size
    model = _timm_model(timm, name, given, recipe)
    if recipe.checkpointing:
        _checkpoint(model, recipe)
    return _loaded(model, (channels, height, width), recipe)


def _timm_model(timm: Any, name: str, given: dict[str, object], recipe: Recipe) -> torch.nn.Module:
    try:
        return _on_meta(lambda: timm.create_model(name, pretrained=False, **given), recipe)
    except TypeError:
        if not given:
            raise
        return _on_meta(lambda: timm.create_model(name, pretrained=False), recipe)  # convolutions take any size


def load_torchvision(name: str, recipe: Recipe) -> Loaded:
    """A model of torchvision's that sorts images or videos, segments images, or detects objects.

    Raises:
        UsageError: there is none of that name, or an option can't be.
    """
    torchvision = optional.load(recipe.asked, "torchvision", "integrations")
    kinds = {
        each: kind
        for kind in (
            torchvision.models,
            torchvision.models.segmentation,
            torchvision.models.video,
            torchvision.models.detection,
        )
        for each in torchvision.models.list_models(module=kind)
    }
    if name not in kinds:
        others = torchvision.models.list_models()
        near = difflib.get_close_matches(name, kinds, 6, 0.4)
        found = "has no batch here: it compares" if name in others else "is not in torchvision"
        raise UsageError(
            recipe.asked,
            f"{shown(name)} {found}",
            instead=f"Name one of {', '.join(near or [*kinds][:6])}, ... of torchvision.models.list_models(); or write "
            "a function that returns (model, batch), and name that as MODULE:FUNCTION",
        )
    _refuse_text(recipe)
    recipe.refuse("checkpointing", "torchvision's models have none")
    if kinds[name] is torchvision.models.detection:
        return _load_detector(torchvision, name, recipe)
    size = recipe.image_size or _crop(torchvision, name)
    given: dict[str, Any] = {
        option: (size, size) if option == "input_size" else size
        for begins, option in _MADE_FOR_A_SIZE.items()
        if name.startswith(begins)
    }
    if kinds[name] is torchvision.models.segmentation:
        given["weights_backbone"] = None
    try:
        model = _on_meta(lambda: torchvision.models.get_model(name, weights=None, **given), recipe)
    except (ValueError, AssertionError) as error:
        raise UsageError(
            recipe.asked, f"with image_size={size}", f"torchvision says: {error}", "Leave it out, or give another size"
        ) from error
    if kinds[name] is torchvision.models.segmentation:
        return _loaded(model, (3, size, size), recipe, (size, size), segmentation_loss)
    return _loaded(model, (3, *((_FRAMES,) if kinds[name] is torchvision.models.video else ()), size, size), recipe)


def _load_detector(torchvision: Any, name: str, recipe: Recipe) -> Loaded:
    if "rcnn" in name:
        raise UsageError(
            recipe.asked,
            f"{name} takes a second look at as many places as the first one finds",
            "That is in no configuration: it depends on weights and images",
            "Run your script with `vramkit run`, or name a retinanet, an fcos or an ssd",
        )
    given: dict[str, Any] = {"weights": None, "weights_backbone": None}
    if name.startswith(_OF_ONE_SIZE):
        recipe.refuse("image_size", "The model makes all images as large as it was made for")
    elif recipe.image_size is not None:
        given |= {"min_size": recipe.image_size, "max_size": recipe.image_size}
    model: Any = _on_meta(lambda: torchvision.models.get_model(name, **given), recipe)
    transform = model.transform
    if recipe.image_size is not None:
        size = (recipe.image_size, recipe.image_size)
    else:
        size = transform.fixed_size or (transform.min_size[-1], transform.max_size)
    batch = detection.torchvision_batch(recipe, size)
    if not recipe.trains:
        batch = {"images": batch["images"]}
    return _with_step(model, batch, recipe, detection.sum_of_losses, detection.lists)


def _crop(torchvision: Any, name: str) -> int:
    """The size of images that the published weights were made for; nothing is fetched."""
    weights = torchvision.models.get_model_weights(name)
    if not len(weights):
        return _IMAGE_SIZE
    prepared = weights.DEFAULT.transforms()
    return int((getattr(prepared, "crop_size", None) or prepared.resize_size)[0])


def _on_meta(make: Any, recipe: Recipe) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a constructor says of weights
        try:
            with torch.device("meta"):
                model: torch.nn.Module = make()
        except (RuntimeError, NotImplementedError):
            model = make()  # it looks at values while it is made: on the CPU, then
    return model if recipe.parameter_dtype is None else model.to(recipe.parameter_dtype)


def _checkpoint(model: Any, recipe: Recipe) -> None:
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:
        raise UsageError(recipe.asked, "with checkpointing, which this model of timm does not have") from error


def _refuse_text(recipe: Recipe) -> None:
    for name in ("seq_len", "max_new_tokens", "padded", "task", "seconds"):
        recipe.refuse(name, "The model takes images")
    recipe.refuse("quantization", "Only transformers' models are quantized")
    recipe.refuse("liger", "Its kernels are for transformers' models")
    recipe.refuse("attention", "Only transformers' models let it be chosen")


def _loaded(
    model: torch.nn.Module,
    size: tuple[int, ...],
    recipe: Recipe,
    labels: tuple[int, ...] = (),
    loss: Loss | None = None,
) -> Loaded:
    loss = loss or (auxiliary_loss if type(model).__name__ in _AUXILIARY else classification_loss)
    images = torch.zeros(recipe.batch_size, *size, device="cpu")
    if recipe.parameter_dtype is not None and recipe.autocast is None:
        images = images.to(recipe.parameter_dtype)
    targets = torch.zeros(recipe.batch_size, *labels, dtype=torch.long, device="cpu")
    return _with_step(model, (images, targets) if recipe.trains else (images,), recipe, loss, on_cuda)


def _with_step(model: torch.nn.Module, batch: Any, recipe: Recipe, loss: Loss, inputs: Inputs) -> Loaded:
    model = methods.apply(model, recipe)
    called: Any = torch.compile(model) if recipe.compile else model
    if not recipe.trains:
        return Loaded(model, batch, ForwardStep(called, recipe.autocast, inputs))
    optimizer = optimizers.make(recipe.asked, recipe.optimizer or "adamw", model)
    step = TrainingStep(called, optimizer, loss, recipe.autocast, recipe.accumulate, inputs)
    return Loaded(model, batch, step, optimizer)


def classification_loss(output: torch.Tensor, batch: Any) -> torch.Tensor:
    """Cross entropy of a batch (images, targets)."""
    return F.cross_entropy(output, batch[1])


def segmentation_loss(output: dict[str, torch.Tensor], batch: Any) -> torch.Tensor:
    """Cross entropy of every pixel, as torchvision's own references have it."""
    return F.cross_entropy(output["out"], batch[1], ignore_index=255)


def auxiliary_loss(output: Any, batch: Any) -> torch.Tensor:
    """The same where a model has auxiliary classifiers."""
    main, *others = output
    weights = _AUXILIARY["Inception3"] if len(others) == 1 else _AUXILIARY["GoogLeNet"]
    loss = F.cross_entropy(main, batch[1])
    for weight, each in zip(weights, others, strict=True):
        loss = loss + weight * F.cross_entropy(each, batch[1])
    return loss

"""Convolutions, forward and backward: shapes, types, layouts, and the settings of cuDNN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .common import BF16, DOUBLE, HALF, LAST, Part, Program, there_and_back, x

PROGRAMS: dict[str, Program] = {}

IMAGES: tuple[tuple[tuple[int, ...], dict[str, Any]], ...] = (
    ((16, 3, 224, 224), {"out_channels": 64, "kernel_size": 7, "stride": 2, "padding": 3}),
    ((16, 64, 56, 56), {"out_channels": 64, "kernel_size": 3, "padding": 1}),
    ((16, 64, 56, 56), {"out_channels": 256, "kernel_size": 1}),
    ((16, 256, 56, 56), {"out_channels": 64, "kernel_size": 1}),
    ((16, 128, 28, 28), {"out_channels": 128, "kernel_size": 3, "padding": 1}),
    ((16, 256, 56, 56), {"out_channels": 512, "kernel_size": 1, "stride": 2}),
    ((16, 256, 14, 14), {"out_channels": 256, "kernel_size": 3, "padding": 1}),
    ((16, 512, 7, 7), {"out_channels": 512, "kernel_size": 3, "padding": 1, "bias": False}),
    ((8, 1, 28, 28), {"out_channels": 32, "kernel_size": 3}),
    ((8, 32, 26, 26), {"out_channels": 64, "kernel_size": 3}),
    ((4, 3, 224, 224), {"out_channels": 768, "kernel_size": 16, "stride": 16}),
    ((4, 32, 64, 64), {"out_channels": 32, "kernel_size": 5, "padding": 2}),
    ((4, 64, 33, 47), {"out_channels": 96, "kernel_size": 3, "dilation": 2}),
    ((4, 64, 32, 32), {"out_channels": 64, "kernel_size": 3, "groups": 64, "padding": 1}),
    ((4, 64, 32, 32), {"out_channels": 128, "kernel_size": 3, "groups": 4, "padding": 1}),
    ((8, 96, 56, 56), {"out_channels": 96, "kernel_size": 7, "groups": 96, "padding": 3}),
    ((2, 7, 50, 50), {"out_channels": 13, "kernel_size": 3}),
    ((1, 512, 64, 64), {"out_channels": 512, "kernel_size": 3, "padding": 1}),
)


def convolved(
    kind: Callable[..., nn.Module], shape: tuple[int, ...], settings: dict[str, Any], dtype: torch.dtype, layout: Any
) -> torch.Tensor:
    layer = kind(shape[1], **settings, device="cuda", dtype=dtype)
    tensor = x(*shape, dtype=dtype, grad=False)
    if layout is not None:
        layer, tensor = layer.to(memory_format=layout), tensor.to(memory_format=layout)
    found: torch.Tensor = layer(tensor.requires_grad_())
    return found


def layers(
    kind: Callable[..., nn.Module], cases: Any, dtypes: tuple[torch.dtype, ...], layouts: tuple[Any, ...] = (None,)
) -> Iterator[Part]:
    for dtype in dtypes:
        for layout in layouts:
            for shape, settings in cases:
                said = " ".join(f"{key}={value}" for key, value in settings.items())
                yield there_and_back(
                    f"{kind.__name__} {'x'.join(map(str, shape))} {said} {dtype}{' last' if layout else ''}",
                    lambda shape=shape, settings=settings, dtype=dtype, layout=layout: convolved(
                        kind, shape, settings, dtype, layout
                    ),
                )


def images(*dtypes: torch.dtype) -> Iterator[Part]:
    return layers(nn.Conv2d, IMAGES, dtypes, (None, LAST))


def set_by(settings: dict[str, bool], dtype: torch.dtype, layout: Any) -> Iterator[Part]:
    with torch.backends.cudnn.flags(enabled=True, **settings):
        yield from layers(nn.Conv2d, IMAGES, (dtype,), (layout,))


def other_dimensions() -> Iterator[Part]:
    signals = (
        ((8, 16, 1000), {"out_channels": 32, "kernel_size": 9}),
        ((4, 64, 4000), {"out_channels": 64, "kernel_size": 3, "padding": 1}),
        ((4, 64, 500), {"out_channels": 64, "kernel_size": 3, "dilation": 4, "groups": 64}),
    )
    volumes = (
        ((2, 4, 32, 32, 32), {"out_channels": 16, "kernel_size": 3, "padding": 1}),
        ((1, 32, 16, 24, 24), {"out_channels": 32, "kernel_size": 3, "stride": 2}),
        ((1, 64, 8, 8, 8), {"out_channels": 64, "kernel_size": 1}),
    )
    for dtype in (torch.float32, BF16):
        yield from layers(nn.Conv1d, signals, (dtype,))
        yield from layers(nn.Conv3d, volumes, (dtype,), (None, torch.channels_last_3d))


def transposed() -> Iterator[Part]:
    images = (
        ((4, 64, 16, 16), {"out_channels": 32, "kernel_size": 2, "stride": 2}),
        ((4, 64, 16, 16), {"out_channels": 32, "kernel_size": 4, "stride": 2, "padding": 1}),
        ((2, 128, 32, 32), {"out_channels": 64, "kernel_size": 3, "stride": 2, "output_padding": 1}),
    )
    for dtype in (torch.float32, HALF):
        yield from layers(nn.ConvTranspose2d, images, (dtype,), (None, LAST))
        yield from layers(
            nn.ConvTranspose1d, [((4, 64, 100), {"out_channels": 32, "kernel_size": 16, "stride": 8})], (dtype,)
        )
        yield from layers(
            nn.ConvTranspose3d, [((1, 32, 8, 8, 8), {"out_channels": 16, "kernel_size": 2, "stride": 2})], (dtype,)
        )


def without_tf32() -> Iterator[Part]:
    torch.backends.cudnn.allow_tf32 = False
    yield from layers(nn.Conv2d, IMAGES, (torch.float32,))


def frozen() -> Iterator[Part]:
    def forward(shape: tuple[int, ...], settings: dict[str, Any], dtype: torch.dtype) -> None:
        with torch.no_grad():
            nn.Conv2d(shape[1], **settings, device="cuda", dtype=dtype)(x(*shape, dtype=dtype, grad=False))

    for dtype in (torch.float32, BF16):
        for shape, settings in IMAGES:
            yield (
                f"{shape} {settings} {dtype}",
                lambda shape=shape, settings=settings, dtype=dtype: forward(shape, settings, dtype),
            )


PROGRAMS["convolutions: single"] = lambda: images(torch.float32)
PROGRAMS["convolutions: bfloat16"] = lambda: images(BF16)
PROGRAMS["convolutions: half"] = lambda: images(HALF)
PROGRAMS["convolutions: double"] = lambda: layers(nn.Conv2d, IMAGES[-10:], (DOUBLE,))
PROGRAMS["convolutions: without TF32"] = without_tf32
PROGRAMS["convolutions: forward alone"] = frozen
PROGRAMS["convolutions: signals and volumes"] = other_dimensions
PROGRAMS["convolutions: transposed"] = transposed
PROGRAMS["convolutions: benchmark"] = lambda: set_by({"benchmark": True, "allow_tf32": True}, torch.float32, None)
PROGRAMS["convolutions: benchmark, bfloat16, channels last"] = lambda: set_by({"benchmark": True}, BF16, LAST)
PROGRAMS["convolutions: deterministic"] = lambda: set_by(
    {"deterministic": True, "allow_tf32": True}, torch.float32, None
)
PROGRAMS["convolutions: deterministic, half"] = lambda: set_by({"deterministic": True}, HALF, LAST)

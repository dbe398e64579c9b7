"""Recurrent networks and normalizations, of cuDNN and of torch itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from .common import BF16, HALF, LAST, Part, Program, known, there_and_back, x

PROGRAMS: dict[str, Program] = {}

SHAPES: tuple[tuple[tuple[int, int, int], dict[str, Any]], ...] = (
    ((35, 20, 200), {"hidden_size": 200}),
    ((35, 20, 200), {"hidden_size": 200, "num_layers": 2, "dropout": 0.2}),
    ((50, 32, 64), {"hidden_size": 128, "bidirectional": True}),
    ((50, 32, 64), {"hidden_size": 128, "num_layers": 3, "bidirectional": True, "dropout": 0.5}),
    ((100, 16, 39), {"hidden_size": 256, "batch_first": True}),
    ((10, 8, 32), {"hidden_size": 33, "bias": False}),
    ((1, 64, 512), {"hidden_size": 512, "num_layers": 2}),
    ((20, 64, 650), {"hidden_size": 650, "num_layers": 2, "dropout": 0.5}),
)


def unrolled(kind: type[nn.RNNBase], **more: Any) -> Iterator[Part]:
    for dtype in (torch.float32, HALF, BF16):
        for shape, settings in SHAPES:
            yield there_and_back(
                f"{shape} {settings | more} {dtype}",
                lambda shape=shape, settings=settings, dtype=dtype: kind(
                    shape[2], **settings, **more, device="cuda", dtype=dtype
                )(x(*shape, dtype=dtype))[0],
            )

    def inferred(shape: tuple[int, ...], settings: dict[str, Any]) -> None:
        with torch.no_grad():
            kind(shape[2], **settings, **more, device="cuda").eval()(x(*shape, grad=False))

    for shape, settings in SHAPES:
        yield f"{shape} {settings | more} inferring", lambda shape=shape, settings=settings: inferred(shape, settings)


def packed() -> Iterator[Part]:
    def run(kind: type[nn.RNNBase], **settings: Any) -> torch.Tensor:
        lengths = torch.tensor([50, 41, 33, 33, 20, 11, 5, 1])
        module = kind(64, 128, batch_first=True, device="cuda", **settings)
        return module(pack_padded_sequence(x(8, 50, 64), lengths, batch_first=True))[0].data

    for kind in (nn.LSTM, nn.GRU):
        for settings in ({}, {"bidirectional": True}, {"num_layers": 2, "dropout": 0.1}):
            yield there_and_back(
                f"{kind.__name__} {settings}", lambda kind=kind, settings=settings: run(kind, **settings)
            )
    for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell):
        yield there_and_back(kind.__name__, lambda kind=kind: kind(64, 128, device="cuda")(x(32, 64)))
    for size in (32, 100):
        yield there_and_back(
            f"LSTM projected to {size}", lambda size=size: nn.LSTM(64, 128, proj_size=size, device="cuda")(x(20, 8, 64))
        )


PROGRAMS["recurrent: LSTM"] = lambda: unrolled(nn.LSTM)
PROGRAMS["recurrent: GRU"] = lambda: unrolled(nn.GRU)
PROGRAMS["recurrent: tanh and relu"] = lambda: (
    *unrolled(nn.RNN, nonlinearity="tanh"),
    *unrolled(nn.RNN, nonlinearity="relu"),
)
PROGRAMS["recurrent: packed, cells, projections"] = packed


def batch_norms() -> Iterator[Part]:
    shapes = ((16, 64, 56, 56), (32, 256, 14, 14), (8, 2048, 7, 7), (64, 32, 28, 28), (4, 2048, 1, 1), (256, 128))
    for dtype in (torch.float32, HALF, BF16):
        for shape in shapes:
            for layout in (None, LAST) if len(shape) == 4 else (None,):
                for training in (True, False):
                    yield there_and_back(
                        f"{shape} {dtype}{' last' if layout else ''} training={training}",
                        lambda shape=shape, dtype=dtype, layout=layout, training=training: batch_norm(
                            shape, dtype, layout, training=training
                        ),
                    )
    yield there_and_back("volumes", lambda: nn.BatchNorm3d(16, device="cuda")(x(2, 16, 8, 16, 16)))
    yield there_and_back("signals", lambda: nn.BatchNorm1d(64, device="cuda")(x(8, 64, 500)))


def batch_norm(shape: tuple[int, ...], dtype: torch.dtype, layout: Any, *, training: bool) -> torch.Tensor:
    layer = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(shape[1], device="cuda").train(training)
    tensor = x(*shape, dtype=dtype, grad=False)
    if layout is not None:
        tensor = tensor.to(memory_format=layout)
    found: torch.Tensor = layer(tensor.requires_grad_())
    return found


def other_norms() -> Iterator[Part]:
    for dtype in (torch.float32, BF16, HALF):
        for shape in ((8, 512, 768), (4, 1024, 4096), (64, 100, 33), (16384, 64)):
            width = shape[-1]
            yield there_and_back(
                f"layer {shape} {dtype}",
                lambda shape=shape, dtype=dtype, width=width: nn.LayerNorm(width, device="cuda", dtype=dtype)(
                    x(*shape, dtype=dtype)
                ),
            )
            yield there_and_back(
                f"rms {shape} {dtype}",
                lambda shape=shape, dtype=dtype, width=width: nn.RMSNorm(width, device="cuda", dtype=dtype)(
                    x(*shape, dtype=dtype)
                ),
            )
        for shape in ((8, 64, 32, 32), (2, 320, 64, 64), (16, 96, 7, 7)):
            for layout in (torch.contiguous_format, LAST):
                yield there_and_back(
                    f"group {shape} {dtype} {layout}",
                    lambda shape=shape, dtype=dtype, layout=layout: nn.GroupNorm(
                        32, shape[1], device="cuda", dtype=dtype
                    )(x(*shape, dtype=dtype, grad=False).contiguous(memory_format=layout).requires_grad_()),
                )
            yield there_and_back(
                f"instance {shape} {dtype}", lambda shape=shape, dtype=dtype: F.instance_norm(x(*shape, dtype=dtype))
            )
    yield there_and_back("weight norm", lambda: nn.utils.parametrizations.weight_norm(
        nn.Linear(256, 512, device="cuda"))(x(8, 256)))  # fmt: skip
    yield there_and_back("spectral norm", lambda: nn.utils.parametrizations.spectral_norm(
        nn.Linear(256, 512, device="cuda"))(x(8, 256)))  # fmt: skip
    yield there_and_back("local response", lambda: F.local_response_norm(x(4, 64, 28, 28), 5))
    yield "renorm", lambda: known(256, 64).renorm(2, 0, 1.0)


PROGRAMS["norms: batch"] = batch_norms
PROGRAMS["norms: layer, rms, group, instance"] = other_norms

"""Random models as plain data: what one is made of, how it is built and trained. Knows torch; draws nothing.

A stack is a sequence of layers between tensors of four kinds: vectors (B, D), sequences (B, T, D), signals (B, D, L)
and images (B, D, H, W); D changes from layer to layer, and a loss ends it. It travels to another process as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

WORDS = 50
_ANY = ("relu", "dropout", "softmax")
_ROWS = ("linear", "norm", "rms norm", "residual", "shared", "glu", "top", "picked")
_CHANNELS = ("conv", "transposed", "batch norm", "group norm", "instance norm")
LAYERS = {
    "vectors": (*_ANY, *_ROWS, "gelu"),
    "sequences": (*_ANY, *_ROWS, "attention", "encoder", "grouped", "lstm", "gru", "rnn", "signals"),
    "signals": (*_ANY, *_CHANNELS, "sequences"),
    "images": (*_ANY, *_CHANNELS, "silu", "shared", "pool", "max pool", "adaptive", "upsample", "vectors"),
}
"""Layers that each kind of tensor can go through; some lead to another kind."""

BEGINS = ("words", "bags", *LAYERS)
"""Where a stack begins; an embedding makes sequences of words, and vectors of bags of them."""

LOSSES: dict[str, Any] = {
    "sum": lambda x: x.sum(),
    "mean square": lambda x: F.mse_loss(x, torch.zeros_like(x)),
    "smooth": lambda x: F.smooth_l1_loss(x, torch.zeros_like(x)),
    "classes": lambda x: F.cross_entropy(x.flatten(0, -2), _classes(x)),
    "classes, smoothed": lambda x: F.cross_entropy(x.flatten(0, -2), _classes(x), label_smoothing=0.1),
    "labels": lambda x: F.binary_cross_entropy_with_logits(x, torch.zeros_like(x)),
    "divergence": lambda x: F.kl_div(x.log_softmax(-1), torch.zeros_like(x), reduction="batchmean"),
}

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam, amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True),
    "adamw": torch.optim.AdamW,
    "adamw, fused": lambda p: torch.optim.AdamW(p, fused=True),
    "adamw, for-loop": lambda p: torch.optim.AdamW(p, foreach=False),
    "adafactor": torch.optim.Adafactor,
    "rmsprop, centered": lambda p: torch.optim.RMSprop(p, centered=True),
    "nadam": torch.optim.NAdam,
}


def _classes(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(x.shape[:-1].numel(), dtype=torch.long, device=x.device)


@dataclass(frozen=True)
class Layer:
    """One step of a stack."""

    name: str
    width: int
    """D afterwards, of layers that change it; a multiple of 8."""
    frozen: bool = False


@dataclass(frozen=True)
class StackProgram:
    """A training program, as data."""

    begins: str
    """One of ``BEGINS``."""
    batch: int
    width: int
    """D of what the first layer gets; a multiple of 8."""
    size: int
    """T, L, H and W."""
    layers: tuple[Layer, ...]
    optimizer: str
    dtype: str
    autocast: str = ""
    loss: str = "sum"

    @staticmethod
    def from_json(text: str) -> StackProgram:
        values = json.loads(text)
        return StackProgram(**{**values, "layers": tuple(Layer(**each) for each in values["layers"])})

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def inputs(self) -> torch.Tensor:
        """A batch on the CPU."""
        if self.begins in ("words", "bags"):
            return torch.zeros(self.batch, self.size, dtype=torch.long)
        shape = {
            "vectors": (self.width,),
            "sequences": (self.size, self.width),
            "signals": (self.width, self.size),
            "images": (self.width, self.size, self.size),
        }[self.begins]
        return torch.zeros(self.batch, *shape, dtype=getattr(torch, self.dtype))


class Attention(nn.Module):
    """Self-attention of sequences."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x, x, x, need_weights=False)[0]


class Grouped(nn.Module):
    """Attention in which two queries share a key."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = x.unflatten(-1, (4, -1)).transpose(1, 2)
        key = query[:, :2]
        out = F.scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).flatten(2)


class Top(nn.Module):
    """The eight largest elements of each row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.topk(8, -1).values


class Picked(nn.Module):
    """Each row's elements in an order that a tensor of indices says."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.gather(-1, torch.zeros_like(x, dtype=torch.long)) + x[:, torch.arange(x.shape[1], device=x.device)]


class Recurrent(nn.Module):
    """The outputs of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


class Residual(nn.Module):
    """A layer beside which its input goes on."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layer(x)


class Turned(nn.Module):
    """Sequences as signals, or the other way round."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


class Mean(nn.Module):
    """Images as vectors."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


PLAIN: dict[str, Any] = {
    "pool": lambda: nn.AvgPool2d(3, stride=1, padding=1),
    "max pool": lambda: nn.MaxPool2d(3, stride=1, padding=1),
    "adaptive": lambda: nn.AdaptiveAvgPool2d(5),
    "upsample": lambda: nn.UpsamplingBilinear2d(scale_factor=2),
    "softmax": lambda: nn.Softmax(-1),
    "picked": Picked,
    "grouped": Grouped,
}
"""Layers without parameters that keep D."""


class Stack(nn.Module):
    """The model of a program. Its last layer is linear and is always trained, so that there is a gradient."""

    def __init__(self, program: StackProgram) -> None:
        super().__init__()
        self.words = {"words": nn.Embedding, "bags": nn.EmbeddingBag}.get(program.begins, _nothing)(
            WORDS, program.width
        )
        self.loss = program.loss
        kind = {"words": "sequences", "bags": "vectors"}.get(program.begins, program.begins)
        width, made = program.width, []
        for each in program.layers:
            layers, kind, width = _made(each, kind, width)
            made += layers
        self.layers = nn.Sequential(*made)
        self.head = nn.Linear(width, 8)
        self.channels_last = kind in ("signals", "images")
        self.to(getattr(torch, program.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(x if self.words is None else self.words(x))
        if self.channels_last:
            x = x.flatten(2).transpose(1, 2)
        return LOSSES[self.loss](self.head(x))


def _nothing(_count: int, _width: int) -> None:
    pass


def _made(layer: Layer, kind: str, width: int) -> tuple[list[nn.Module], str, int]:
    """What a layer is, what it leads to, and how wide that is."""
    images = kind == "images"
    wide = width
    made: list[nn.Module]
    if layer.name in ("relu", "gelu", "silu"):
        made = [{"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}[layer.name]()]
    elif layer.name == "dropout":
        made = [nn.Dropout(0.1)]
    elif layer.name in PLAIN:
        made = [PLAIN[layer.name]()]
    elif layer.name == "top":
        made, wide = [Top()], 8
    elif layer.name == "rms norm":
        made = [nn.RMSNorm(width)]
    elif layer.name == "instance norm":
        made = [(nn.InstanceNorm2d if images else nn.InstanceNorm1d)(width, affine=True)]
    elif layer.name == "encoder":
        made = [nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True)]
    elif layer.name in ("signals", "sequences"):
        made, kind = [Turned()], layer.name
    elif layer.name == "vectors":
        made, kind = [Mean()], "vectors"
    elif layer.name == "norm":
        made = [nn.LayerNorm(width)]
    elif layer.name == "batch norm":
        made = [(nn.BatchNorm2d if images else nn.BatchNorm1d)(width)]
    elif layer.name == "group norm":
        made = [nn.GroupNorm(4, width)]
    elif layer.name == "residual":
        made = [Residual(nn.Linear(width, width))]
    elif layer.name == "shared":
        one = nn.Conv2d(width, width, 3, padding=1) if images else nn.Linear(width, width)
        made = [one, nn.Tanh(), one]
    elif layer.name == "attention":
        made = [Attention(width)]
    else:
        wide = layer.width
        if layer.name == "linear":
            made = [nn.Linear(width, wide)]
        elif layer.name == "glu":
            made = [nn.Linear(width, 2 * wide), nn.GLU()]
        elif layer.name == "conv":
            made = [(nn.Conv2d if images else nn.Conv1d)(width, wide, 3, padding=1)]
        elif layer.name == "transposed":
            made = [(nn.ConvTranspose2d if images else nn.ConvTranspose1d)(width, wide, 3, padding=1)]
        else:
            recurrent = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[layer.name]
            made = [Recurrent(recurrent(width, wide, batch_first=True))]
    if layer.frozen:
        for each in made:
            each.requires_grad_(False)
    return made, kind, wide


def train(program: StackProgram, steps: int = 3) -> tuple[int, int]:
    """Train on the CUDA device as a script would; return the peaks of allocated and of reserved memory."""
    model, sample = Stack(program), program.inputs()
    model.to("cuda")
    optimizer = OPTIMIZERS[program.optimizer](model.parameters())

    def step() -> None:
        batch = sample.to("cuda")
        with torch.autocast("cuda", getattr(torch, program.autocast)) if program.autocast else nullcontext():
            loss = model(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(steps):
        step()
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


# -- processes that find an empty allocator ----------------------------------------------------------------------------

_SERVE = """
import json, os, sys, traceback, warnings
sys.path.insert(0, {folder!r})
warnings.simplefilter("ignore")
from vramkit import virtual_gpu
virtual_gpu.activate({gpu!r})
import torch._dynamo  # the first optimizer of every process would import it
from random_stacks import StackProgram, train
torch.set_num_threads(1)  # a fork has no other
for line in sys.stdin:
    if os.fork() == 0:
        try:
            print("RESULT", json.dumps(train(StackProgram.from_json(line))), flush=True)
        except BaseException:
            print("RESULT", json.dumps(traceback.format_exc()), flush=True)
        os._exit(0)
    os.wait()
"""


class FreshProcesses:
    """Trains each program in a process of its own: a fork of one that has imported torch and has not begun CUDA."""

    def __init__(self, gpu: str) -> None:
        code = _SERVE.format(folder=str(Path(__file__).parent), gpu=gpu)
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def peaks(self, program: StackProgram) -> tuple[int, int]:
        """What torch itself says after the training: allocated, reserved."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(program.to_json() + "\n")
        self._process.stdin.flush()
        answer = next(line for line in self._process.stdout if line.startswith("RESULT"))
        found = json.loads(answer.removeprefix("RESULT"))
        assert isinstance(found, list), found
        return found[0], found[1]

    def close(self) -> None:
        self._process.communicate(timeout=60)

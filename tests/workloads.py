"""Training programs that tests and benchmarks share. Each is small to write down and real in what it allocates."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from vramkit.gpus import CUBLAS_WORKSPACE, CUBLASLT_WORKSPACE
from vramkit.torch_internals.versions import LT_HAS_WORKSPACE, LT_KEEPS_WORKSPACE


class Block(nn.Module):
    """A transformer block, pre-norm."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attention = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.out(attention.transpose(1, 2).reshape(batch, length, width)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class GPT(nn.Module):
    """A decoder with tied embeddings, as GPT-2."""

    def __init__(
        self, layers: int = 12, width: int = 768, heads: int = 12, vocabulary: int = 50257, length: int = 1024,
        dropout: float = 0.0, checkpointed: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.checkpointed = checkpointed
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            reentrant = self.checkpointed == "reentrant"
            x = checkpoint(block, x, use_reentrant=reentrant) if self.checkpointed else block(x)
        return self.head(self.norm(x))


class LSTMClassifier(nn.Module):
    """A recurrent classifier; cuDNN's RNN on CUDA."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(128, 256, num_layers=2, batch_first=True, dropout=0.1)
        self.head = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


@dataclass
class Workload:
    """A model, its optimizer and one training step."""

    model: nn.Module
    batch: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    """Makes a batch on the CPU: inputs and class targets."""
    autocast: torch.dtype | None = None
    device: str = "cuda"
    make_optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.model.to(self.device)
        self.optimizer = self.make_optimizer(self.model.parameters())

    def step(self) -> torch.Tensor:
        """One training step as users write it; returns the loss."""
        x, y = (tensor.to(self.device) for tensor in self.batch())
        self.optimizer.zero_grad()
        with torch.autocast(self.device, self.autocast) if self.autocast else nullcontext():
            output = self.model(x)
            loss = F.cross_entropy(output.flatten(0, -2), y.flatten())
        loss.backward()
        self.optimizer.step()
        return loss


def images(count: int, side: int = 224) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """Batches of RGB images of shape ``(count, 3, side, side)`` with a class each."""
    return lambda: (torch.zeros(count, 3, side, side), torch.zeros(count, dtype=torch.long))


def tokens(count: int, length: int) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """Batches of token numbers of shape ``(count, length)`` with as many targets."""
    return lambda: (torch.zeros(count, length, dtype=torch.long), torch.zeros(count, length, dtype=torch.long))


def sequences(count: int) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """Batches of feature sequences of shape ``(count, 100, 128)`` with a class each."""
    return lambda: (torch.zeros(count, 100, 128), torch.zeros(count, dtype=torch.long))


def mlp(device: str = "cuda", count: int = 64) -> Workload:
    """The lesson's classifier of MNIST images: 101,770 parameters, Adam."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(count, 1, 28, 28), torch.zeros(count, dtype=torch.long)

    return Workload(model, batch, device=device, make_optimizer=torch.optim.Adam)


def _torchvision(name: str, count: int) -> Workload:
    import torchvision

    return Workload(getattr(torchvision.models, name)(), images(count))


ADAGRAD = partial(torch.optim.Adagrad, fused="cuda_unsupported" not in inspect.getsource(torch.optim.Adagrad))
"""Makes its states at once; fused where torch can do that on CUDA."""


def workspace_size() -> int:
    """Bytes that torch gives cuBLAS for each thread that multiplies; 2.8 and 2.11 don't tell, and the tests' card is no
    Hopper."""
    told: Callable[[], int] = getattr(torch._C, "_cuda_getCublasWorkspaceSize", lambda: CUBLAS_WORKSPACE)
    return told()


def kept_workspaces() -> int:
    """Bytes that a training of layers with a bias leaves to the libraries: cuBLAS's of the forward's and the backward's
    thread, and of the forward's cuBLASLt's, where torch keeps one of its own."""
    return 2 * workspace_size() + (CUBLASLT_WORKSPACE if LT_HAS_WORKSPACE and LT_KEEPS_WORKSPACE else 0)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "mlp": mlp,
    "resnet18": lambda: _torchvision("resnet18", 16),
    "resnet50": lambda: _torchvision("resnet50", 16),
    "vit_b_16": lambda: _torchvision("vit_b_16", 8),
    "lstm": lambda: Workload(LSTMClassifier(), sequences(32)),
    "gpt fp32": lambda: Workload(GPT(), tokens(4, 512)),
    "gpt autocast bf16": lambda: Workload(GPT(dropout=0.1), tokens(4, 512), torch.bfloat16),
    "gpt autocast fp16": lambda: Workload(GPT(), tokens(4, 512), torch.float16),
    "gpt checkpointed": lambda: Workload(GPT(checkpointed="non-reentrant"), tokens(4, 512)),
    "gpt checkpointed, reentrant": lambda: Workload(GPT(checkpointed="reentrant"), tokens(4, 512)),
}
"""On CUDA; the larger ones need a device of 16 GiB and more."""

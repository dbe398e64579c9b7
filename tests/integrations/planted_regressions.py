"""A program's tests, to be run by another pytest: with PLANTED=1 each takes more GPU memory than before, in one module.

Each case is a change that a review overlooks.
"""

import os

import pytest
import torch
from planted_cases import CASES
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

PLANTED = os.environ.get("PLANTED") == "1"
ROWS, LENGTH, WIDTH = 8, 128, 256


class Attention(nn.Module):
    def __init__(self, planted):
        super().__init__()
        self.planted = planted
        self.project = nn.Linear(WIDTH, WIDTH)
        table = torch.zeros(64, LENGTH, WIDTH)
        self.register_buffer("table", table.double() if planted == "table in float64" else table)

    def forward(self, x):
        scores = x @ x.transpose(1, 2)
        mask = torch.ones(len(x), 16, LENGTH, LENGTH, device=x.device, dtype=torch.bool)
        weights = scores.softmax(-1).unsqueeze(1)
        weights = weights * mask.float() if self.planted == "mask in float32" else weights.masked_fill(mask, 0)
        return self.project(x + weights.mean(1) @ x)


class Mlp(nn.Module):
    def __init__(self, planted):
        super().__init__()
        self.planted = planted
        self.up, self.down = nn.Linear(WIDTH, 8 * WIDTH), nn.Linear(8 * WIDTH, WIDTH)
        self.kept = []

    def inner(self, x):
        x = self.up(x)
        x = x * torch.sigmoid(x) if self.planted == "activation written out" else F.silu(x)
        if self.planted == "activation kept twice":
            self.kept[:] = [x.detach().clone()]
        return self.down(x)

    def forward(self, x):
        if self.planted == "autocast lost":
            with torch.autocast("cuda", enabled=False):
                return self.inner(x.float())
        return self.inner(x)


class Net(nn.Module):
    def __init__(self, case, planted):
        super().__init__()
        self.layers = 3 if case == "checkpoint lost" else 1
        self.checkpoints = case == "checkpoint lost" and not planted
        self.embed = nn.Embedding(8192 if planted == "vocabulary padded" else 1000, WIDTH)
        self.attention, self.mlp = Attention(planted), Mlp(planted)
        self.head = nn.Linear(WIDTH, 400)

    def forward(self, tokens):
        x = self.attention(self.embed(tokens))
        for _ in range(self.layers):
            x = checkpoint(self.mlp, x, use_reentrant=False) if self.checkpoints else self.mlp(x)
        return self.head(x)


def train(case):
    planted = case if PLANTED else ""
    net = Net(case, planted).cuda()
    fused = case == "optimizer without fused" and not planted
    optimizer = torch.optim.AdamW(net.parameters(), fused=fused)
    rows = 1 if case in ("optimizer without fused", "gradients stay") else ROWS
    tokens = torch.zeros(rows, LENGTH, dtype=torch.long, device="cuda")
    kept = []
    for _ in range(3):
        with torch.autocast("cuda", torch.bfloat16, enabled=case == "autocast lost"):
            output = net(tokens)
        if planted == "outputs kept":
            kept.append(output.detach())
        output.float().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=planted != "gradients stay")


@pytest.mark.gpu_memory(gpu="t4", baseline=True)
@pytest.mark.parametrize("case", CASES)
def test_memory(case):
    train(case)

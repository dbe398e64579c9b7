"""An allocation fails somewhere in the search: the answer is right all the same, and nothing is left changed."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import vramkit

pytestmark = pytest.mark.virtual_gpu

ROW = 3 << 20  # floats: two rows are more than 10 MiB, so every activation asks the driver for a segment of its own
LAYERS = 200


class Chain(nn.Module):
    """Many activations and hardly any parameters; a buffer and an attribute that every forward changes."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in range(LAYERS))
        self.register_buffer("seen", torch.zeros(4))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Kernels of the virtual GPU write nothing, copies from the host do.
        self.seen.copy_(torch.rand(4))
        self.calls += 1
        for scale in self.scales:
            x = x * scale
        return x.sum()


class Training:
    """A model in the middle of its training, with all that a step can change."""

    def __init__(self) -> None:
        self.model = Chain().to("cuda")
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
        self.scaler = torch.amp.GradScaler("cuda")
        self.losses: list[torch.Tensor] = []
        self.step(torch.zeros(2, 16))
        self.model.scales[0].grad = torch.ones(1, device="cuda")

    def step(self, batch: torch.Tensor) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        loss = self.model(batch.to("cuda"))
        self.scaler.scale(loss).backward()
        self.optimizer.param_groups[0]["betas"] = (0.5, 0.5)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.losses.append(loss.detach())
        torch.rand(1, device="cuda")

    def state(self) -> dict[str, object]:
        """Everything that has to be as it was, as values that can be compared."""
        return {
            "model": {name: value.tolist() for name, value in self.model.state_dict().items()},
            "calls": self.model.calls,
            "training": [module.training for module in self.model.modules()],
            "gradients": [None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in self.model.parameters()],
            "state": {
                name: {kind: value.tolist() for kind, value in each.items()}
                for name, each in self.optimizer.state_dict()["state"].items()
            },
            "groups": repr(self.optimizer.state_dict()["param_groups"]),
            "scheduler": repr(self.scheduler.state_dict()),
            "scaler": repr(self.scaler.state_dict()),
            "losses": [id(loss) for loss in self.losses],
            "random": torch.get_rng_state().tolist(),
            "random on the device": torch.cuda.get_rng_state().tolist(),
            "allocated": torch.cuda.memory_allocated(),
        }


def search(training: Training, most: int) -> int:
    """The batch size that is found; 0: a clear word that none fits."""
    try:
        found = vramkit.auto_batch_size(
            training.model, torch.zeros(2, ROW), optimizer=training.optimizer, step=training.step,
            min_batch_size=2, max_batch_size=most, steps=1,
        )  # fmt: skip
    except vramkit.DoesNotFit as error:
        return 0 if "runs out of memory" in str(error) else -1
    is_run = {found.batch_size, found.max_batch_size} <= {trial.batch_size for trial in found.trials if trial.fits}
    return int(found) if is_run else -1


@pytest.fixture
def training(gpu):
    made = Training()
    made.model.eval()
    gc.collect()
    gc.freeze()  # or every search would look through all objects of the test run, which takes longer than the search
    yield made
    gc.unfreeze()
    gpu.refuse(after=0, times=0)


def test_a_failure_at_any_third_of_the_first_200_requests_of_a_probe_leaves_no_trace(gpu, training):
    before = training.state()

    for count in range(0, 200, 3):
        gpu.refuse(after=count)
        assert search(training, most=2) == 0
        assert not gpu.refusals()
        assert training.state() == before, f"after a failure at request {count}"

    assert search(training, most=2) == 2


def test_a_failure_in_a_later_trial_leaves_a_size_that_was_run_and_no_trace(gpu, training):
    before = training.state()
    found = {}

    for count in (0, 100, 201, 230, 300, 405, 430, 500, 2000):
        gpu.refuse(after=count)
        found[count] = search(training, most=4)
        was_hit = not gpu.refusals()
        gpu.refuse(after=0, times=0)
        assert training.state() == before, f"after a failure at request {count}"
        assert was_hit == (found[count] < 4)

    assert {*found.values()} == {0, 2, 3, 4}

"""A program's tests, to be run by another pytest: one for each thing that the marker does."""

import os
import sys
import unittest

import pytest
import torch

SIZE = 1 << 22

model_scoped = []


@pytest.fixture(scope="module")
def model():
    model_scoped.append(os.getpid())
    return torch.nn.Linear(1024, 1024, bias=False, device="cuda")


@pytest.mark.gpu_memory(limit="64 MiB", gpu="t4")
@pytest.mark.parametrize("rows", [1, 2])
def test_within(rows, model, gpu_memory):
    assert torch.cuda.get_device_name() == "Tesla T4"
    assert torch.cuda.memory_reserved() < 64 << 20  # what the other row left is not here
    model(torch.zeros(rows, 1024, device="cuda")).sum().backward()
    gpu_memory.step()
    assert gpu_memory.result.peak.gradients == gpu_memory.result.peak.parameters == 4 << 20
    torch.zeros(128 << 20, dtype=torch.uint8, device="cuda")  # the measurement has ended


@pytest.mark.gpu_memory(limit="2 MiB", gpu="l4")
def test_over(model):
    model(torch.zeros(1, 1024, device="cuda"))


def test_asks_by_the_fixture_alone(gpu_memory):
    torch.zeros(SIZE, dtype=torch.uint8, device="cuda")
    assert gpu_memory.result.peak_allocated == SIZE


@pytest.mark.gpu_memory
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_is_not_skipped_for_lack_of_cuda():
    assert torch.zeros(1, device="cuda").is_cuda


@pytest.mark.gpu_memory(gpu="t4")
def test_runs_out_of_memory():
    torch.zeros(16 << 30, dtype=torch.uint8, device="cuda")


@pytest.mark.gpu_memory
def test_dies():
    os._exit(3)


@pytest.mark.gpu_memory(limit="3 giga")
def test_has_a_limit_that_is_none():
    pass


@pytest.mark.gpu_memory(limit=1)
@pytest.mark.xfail(strict=True)
def test_is_known_to_take_more():
    torch.zeros(1, device="cuda")


@pytest.mark.gpu_memory(limit=1)
class TestOfUnittest(unittest.TestCase):
    def test_over_too(self):
        torch.zeros(1, device="cuda")


def test_without_the_marker_is_run_here():
    assert "vramkit.integrations.pytest_process" in sys.modules
    assert model_scoped == []

"""Puts a virtual GPU under torch before anything imports torch, wherever that can be done.

Tests that need it carry the marker ``virtual_gpu``. Where it can't be (no CUDA build of torch, no C compiler, not
Linux), they are skipped with the reason; with ``VRAMKIT_REQUIRE_VIRTUAL_GPU=1`` they fail instead, so that a broken
virtual GPU can't pass for a missing one.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from leftovers import left_behind

from vramkit import virtual_gpu
from vramkit.errors import DeviceError

# How fast a machine is proves nothing.
settings.register_profile("vramkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vramkit")

# What this user's cards were measured to take is no part of what is expected here.
_no_settings = tempfile.TemporaryDirectory()
os.environ["XDG_CONFIG_HOME"] = _no_settings.name

_missing = ""
try:
    virtual_gpu.activate("a100-80gb", count=2)
except DeviceError as error:
    _missing = str(error)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "virtual_gpu: needs the virtual GPU (a CUDA build of torch and a C compiler)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that begin with an empty allocator come first, then those that make cuDNN's states for dropout.

    cuDNN keeps them for ever.
    """
    first = ("test_real_allocator.py", "test_fake_overlay.py")
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))


@pytest.fixture(autouse=True)
def _needs_virtual_gpu(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("virtual_gpu") and _missing:
        if os.environ.get("VRAMKIT_REQUIRE_VIRTUAL_GPU") == "1":
            pytest.fail(_missing)
        pytest.skip(_missing)


@pytest.fixture(autouse=True)
def _finds_no_cached_memory() -> None:
    """What earlier tests left in the allocator's cache would serve this one, with other blocks than a fresh one's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """No test may leave a hook, a mode or a setting of torch other than it was."""
    yield
    assert left_behind() == []


@pytest.fixture
def virtual_gpu_is_there() -> bool:
    """Whether this process, and so its children too, can have the virtual GPU."""
    return not _missing


@pytest.fixture
def gpu() -> virtual_gpu.VirtualGPU:
    """The handle of the virtual GPU that this process runs on."""
    return virtual_gpu.current()

"""Puts a virtual GPU under torch before anything imports torch, wherever that can be done.

Tests that need it carry the marker ``virtual_gpu``. Where it can't be (no CUDA build of torch, no C compiler, not
Linux), they are skipped with the reason; with ``VRAMKIT_REQUIRE_VIRTUAL_GPU=1`` they fail instead, so that a broken
virtual GPU can't pass for a missing one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from leftovers import left_behind

from vramkit import virtual_gpu
from vramkit.errors import DeviceError

_missing = ""
try:
    virtual_gpu.activate("a100-80gb", count=2)
except DeviceError as error:
    _missing = str(error)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "virtual_gpu: needs the virtual GPU (a CUDA build of torch and a C compiler)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that begin with an empty allocator come first: cuDNN, for one, keeps its dropout states for ever."""
    items.sort(key=lambda item: item.path.name != "test_real_allocator.py")


@pytest.fixture(autouse=True)
def _needs_virtual_gpu(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("virtual_gpu") and _missing:
        if os.environ.get("VRAMKIT_REQUIRE_VIRTUAL_GPU") == "1":
            pytest.fail(_missing)
        pytest.skip(_missing)


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

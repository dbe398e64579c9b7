"""The helper process of the virtual engine: what it is before torch is there."""

from __future__ import annotations

from subprocesses import loaded_by


def test_the_helper_is_imported_without_torch_because_the_virtual_gpu_comes_first() -> None:
    assert "torch" not in loaded_by("import vramkit.engines.virtual.helper")


def test_that_test_can_fail() -> None:
    assert "torch" in loaded_by("import vramkit.engines.virtual.helper, vramkit.programs.failures")

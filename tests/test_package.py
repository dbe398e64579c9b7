"""The package as a whole: what it exports, and what importing it costs."""

from __future__ import annotations

import pytest
from subprocesses import loaded_by

import vramkit


def test_importing_vramkit_loads_neither_torch_nor_numpy() -> None:
    assert not loaded_by("import vramkit") & {"torch", "numpy", "typing_extensions"}


def test_that_test_can_fail() -> None:
    assert "numpy" in loaded_by("import vramkit; vramkit.Tape")


def test_results_load_and_print_without_torch() -> None:
    assert "torch" not in loaded_by("import vramkit; vramkit.load, vramkit.Profile.report, vramkit.CachingAllocator")


def test_every_exported_name_is_there_and_listed() -> None:
    assert {name for name in vramkit.__all__ if getattr(vramkit, name, None) is None} == set()
    assert set(vramkit.__all__) <= set(dir(vramkit))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'profiler'"):
        vramkit.profiler  # noqa: B018 - looking it up is the test


def test_errors_are_what_their_tree_says() -> None:
    assert issubclass(vramkit.UsageError, ValueError)
    for error in (vramkit.UsageError, vramkit.DeviceError, vramkit.SnapshotError, vramkit.DoesNotFit):
        assert issubclass(error, vramkit.VramkitError)

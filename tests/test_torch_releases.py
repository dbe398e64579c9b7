"""What follows from torch's version number alone."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from subprocesses import run_python

from vramkit import CachingAllocator, SimulatedOutOfMemory
from vramkit.errors import DeviceError
from vramkit.torch_releases import OLDEST, check, installed_tie_break, release_of, tie_break_of


@pytest.mark.parametrize(
    ("version", "release"),
    [("2.14.1+cu130", (2, 14)), ("2.8.0a0+git1", (2, 8)), ("2.15.0.dev20261101", (2, 15)), ("10.0", (10, 0))],
)
def test_a_release_is_the_first_two_numbers(version: str, release: tuple[int, int]) -> None:
    assert release_of(version) == release


def test_what_is_no_version_is_newer_than_all() -> None:
    check("A test", "unknown")
    assert tie_break_of("") == "age"


def test_ties_are_broken_by_age_since_2_12() -> None:
    assert [tie_break_of(each) for each in ("2.8.0", "2.11.0+cu130", "2.12.1", "2.14.1")] == [
        "address",
        "address",
        "age",
        "age",
    ]


def test_a_torch_that_is_too_old_is_refused_with_both_versions() -> None:
    check("A test", "2.8.0+cu128")

    with pytest.raises(DeviceError, match=r"This is torch 2\.7\.1\+cu126\. It needs torch 2\.8 or newer"):
        check("A test was run", "2.7.1+cu126")


def test_the_package_asks_for_the_oldest_that_will_do() -> None:
    root = Path(__file__).parents[1]
    oldest = ".".join(map(str, OLDEST))

    assert f'"torch>={oldest}"' in (root / "pyproject.toml").read_text(encoding="utf-8")
    assert f"torch {oldest} and newer" in (root / "README.md").read_text(encoding="utf-8")


def test_every_first_use_of_an_old_torch_ends_in_that_error() -> None:
    said = run_python(
        "import torch\n"
        "torch.__version__ = '2.7.1'\n"
        "import vramkit\n"
        "for name in ('profile', 'estimate', 'auto_batch_size', 'profile'):\n"
        "    try:\n"
        "        getattr(vramkit, name)\n"
        "    except vramkit.DeviceError as error:\n"
        "        print('2.7.1' in str(error) and '2.8' in str(error))\n"
        "print(vramkit.CachingAllocator().reserved_bytes)"
    )

    assert said.split() == ["True", "True", "True", "True", "0"]


@pytest.mark.parametrize(("version", "served"), [("2.12.1", False), ("2.14.1", True)])
def test_the_simulator_cuts_a_fraction_off_as_the_installed_torch_does(
    monkeypatch: pytest.MonkeyPatch, version: str, served: bool
) -> None:
    memory = 85_095_088_128
    limit = next(each << 20 for each in range(40, 700, 2) if (each << 20) / memory * memory < each << 20)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__=version))  # type: ignore[arg-type] # enough

    allocator = CachingAllocator(memory)
    allocator.set_memory_fraction(limit / memory)

    assert installed_tie_break() == "age"
    if served:
        assert allocator.malloc(limit) is not None
    else:
        with pytest.raises(SimulatedOutOfMemory):
            allocator.malloc(limit)

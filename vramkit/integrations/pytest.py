"""A plugin of pytest: the GPU memory of a test has a limit, or may not grow. Knows pytest's hooks and the marker.

A test with the marker runs in another process (``pytest_process``), in which it is measured (``pytest_measuring``).
Until there is such a test, neither torch nor anything else of vramkit is imported. PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .pytest_marker import Asked, asked_of

if TYPE_CHECKING:
    from .pytest_measuring import GpuMemory, MeasuredTests
    from .pytest_process import TestProcess

_paths: pytest.StashKey[Sequence[Path]] = pytest.StashKey()
_process: pytest.StashKey[TestProcess] = pytest.StashKey()
_measured: pytest.StashKey[MeasuredTests] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("vramkit", "GPU memory (vramkit)")
    group.addoption(
        "--vramkit-update",
        action="store_true",
        help="keep what tests with gpu_memory(baseline=True) take now as their baselines, and compare with none",
    )
    group.addoption(
        "--vramkit-gpu",
        metavar="NAME|SIZE|real",
        help="the card of every test with gpu_memory, in place of its marker's; real: this machine's",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Add the marker; and in the process that measures, what runs its tests."""
    config.addinivalue_line(
        "markers",
        "gpu_memory(limit=None, gpu='a100-80gb', baseline=False, tolerance='1%', stacks=None): measure the test in a "
        "process with that virtual GPU. It fails if it reserves more than `limit` ('11 GiB'), or if its peak grew by "
        "more than `tolerance` since the baseline, which is kept beside it.",
    )
    if sys.modules.get(f"{__package__}.pytest_start") is not None:
        from .pytest_measuring import MeasuredTests

        config.stash[_measured] = MeasuredTests(config)
        config.pluginmanager.register(config.stash[_measured], "vramkit-measured-tests")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note the files with such tests. Raises: pytest.UsageError: a marker can't be meant."""
    session.config.stash[_paths] = sorted({each.path for each in session.items if asked_of(each) is not None})


@pytest.fixture
def gpu_memory(request: pytest.FixtureRequest) -> GpuMemory:
    """The GPU memory of this test: ``gpu_memory.result`` is its profile up to here, to assert on."""
    return request.config.stash[_measured].memory()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test with the marker in the other process."""
    if _measured in item.config.stash or (asked := asked_of(item)) is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports(item, asked):
        item.ihook.pytest_runtest_logreport(report=report)
    # What earlier tests of this process have set up, and the next one does not need, ends here as after any test.
    item.session._setupstate.teardown_exact(nextitem)  # noqa: SLF001 - nobody else can be told that a test is over
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _reports(item: pytest.Item, asked: Asked) -> Iterator[pytest.TestReport]:
    from .pytest_process import TestProcess

    config = item.config
    if _process not in config.stash:
        config.stash[_process] = TestProcess(config, config.stash[_paths])
    yield from config.stash[_process].run(item, asked)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the other process."""
    if _process in config.stash:
        config.stash[_process].close()

"""The process that runs tests with the marker, from the side of the pytest that the user started.

It is a pytest of its own, with the virtual GPU under its torch, that has collected the same files; it is told of one
test after the other, and hands pytest's reports back. Knows processes and options; measures nothing.
PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from .. import gpus
from ..errors import DeviceError, VramkitError
from ..virtual_gpu.activation import environment_with
from .pytest_marker import REAL, Asked

CHANNEL = "VRAMKIT_TESTS"
"""The variable with the descriptor on which the other process hears which tests to run."""

_START = f"{__package__}.pytest_start"
_OFF = {
    # What chooses tests has chosen, what spreads them over processes has spread them, what writes files writes them.
    **dict.fromkeys(("keyword", "markexpr"), ""),
    **dict.fromkeys(("deselect", "numprocesses", "tx", "cov_source", "usepdb_cls", "report_log", "xmlpath"), None),
    **dict.fromkeys(("lf", "failedfirst", "newfirst", "stepwise", "stepwise_skip", "usepdb", "trace"), False),
    **dict.fromkeys(("collectonly", "setuponly", "setupplan", "looponfail"), False),
    "maxfail": 0,
    "dist": "no",
    "no_cov": True,
}
"""Options of pytest, xdist and pytest-cov that are the other pytest's alone."""


class TestProcess:
    """Runs tests, one at a time, in a process that is started with the first and again where it has ended.

    Args:
        config: of the pytest that the user started.
        paths: the files with such tests.
    """

    __test__ = False  # for pytest, which takes it for tests

    def __init__(self, config: pytest.Config, paths: Sequence[Path]) -> None:
        self._config = config
        self._paths = paths
        self._running: subprocess.Popen[bytes] | None = None
        self._channel: Connection | None = None
        self._is_real = False
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this object

    def run(self, item: pytest.Item, asked: Asked) -> list[pytest.TestReport]:
        """The reports of a test."""
        try:
            return self._run(item, asked)
        except DeviceError as error:
            text = str(error)
            if os.environ.get("VRAMKIT_REQUIRE_VIRTUAL_GPU") != "1":
                return [_report(item, lambda: pytest.skip(text))]
        except VramkitError as error:
            text = str(error)
        except (EOFError, ConnectionError):
            text = f"The process in which this test was measured has ended.\n{self._end()}"
        return [_report(item, lambda: pytest.fail(text, pytrace=False))]

    def _run(self, item: pytest.Item, asked: Asked) -> list[pytest.TestReport]:
        is_real = asked.gpu == REAL
        card = None if is_real else gpus.find(gpus.GENERIC if asked.gpu is None else asked.gpu)
        if is_real != self._is_real:
            self._end()
            self._is_real = is_real
        if self._channel is None:
            if is_real:
                _check_real()
            # NVML answers how many devices there are without beginning CUDA, which could not be used in a fork then.
            real = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
            self._start(real if card is None else environment_with(card))
        assert self._channel is not None
        self._channel.send((item.nodeid, asked, card))
        reports, goes_on = self._channel.recv()
        if not goes_on:
            self._end()
        hook = self._config.hook.pytest_report_from_serializable
        return [hook(config=self._config, data=each) for each in reports]

    def close(self) -> None:
        """End the process."""
        self._end()
        self._said.close()

    def _start(self, environment: dict[str, str]) -> None:
        ours, theirs = Pipe()
        environment[CHANNEL] = str(theirs.fileno())
        environment.pop("PYTEST_ADDOPTS", None)
        # With -s the user sees what tests print.
        said = None if self._config.option.capture in ("no", "tee-sys") else self._said
        with theirs:
            self._running = subprocess.Popen(
                [sys.executable, "-m", "pytest", *_arguments(self._config), *map(str, self._paths)],
                cwd=self._config.invocation_params.dir,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                pass_fds=(theirs.fileno(),),
            )
        self._channel = ours
        ours.send(_options(self._config))

    def _end(self) -> str:
        """End the process. Returns: the last of what it said."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._running is not None:
            self._running.wait()
            self._running = None
        self._said.seek(0)
        said = self._said.read().decode(errors="replace")
        self._said.seek(0)
        self._said.truncate()
        return said[-4000:]


def _check_real() -> None:
    asked = "A test was to be measured on this machine's GPU"
    if not hasattr(os, "fork"):
        raise DeviceError(
            asked, "this system has no fork", "Each test gets a process of its own that way", "Run it on Linux"
        )
    if not gpus.cuda_devices():
        raise DeviceError(
            asked,
            "the driver lists none, or there is no driver",
            instead="Name a virtual one in the marker, or with --vramkit-gpu, such as a100-40gb",
        )


def _arguments(config: pytest.Config) -> list[str]:
    """What a pytest reads before its options can be replaced."""
    option = config.option
    name = config.pluginmanager.get_name(sys.modules[f"{__package__}.pytest"])
    # The plugin first: its name is marked for rewriting, which has to come before the package is imported.
    found = ["-p", str(name), "-p", _START, "-p", "no:terminal", "-p", "no:cacheprovider", "--rootdir", config.rootpath]
    found += [part for plugin in option.plugins if plugin != name for part in ("-p", plugin)]
    found += [part for each in option.override_ini or () for part in ("-o", each)]
    found += [part for each in option.pythonwarnings or () for part in ("-W", each)]
    found += ["-o", "addopts=", "--import-mode", option.importmode, "--capture", option.capture]
    found += ["-c", config.inipath] if config.inipath is not None else []
    found += ["--confcutdir", option.confcutdir] if option.confcutdir else []
    return [str(each) for each in found]


def _options(config: pytest.Config) -> dict[str, Any]:
    """The options, as far as they can be sent."""
    found = {}
    for name, value in vars(config.option).items():
        with suppress(Exception):  # whatever an object of a plugin's raises where it can't be sent
            pickle.dumps(value)
            found[name] = value
    for name in ("plugins", "override_ini", "inifilename", "rootdir", "file_or_dir"):
        found.pop(name, None)
    return found | {name: value for name, value in _OFF.items() if name in found}


def _report(item: pytest.Item, call: Any) -> pytest.TestReport:
    """The report of a test that did not come to run."""
    info = pytest.CallInfo.from_call(call, "call", reraise=(pytest.exit.Exception, KeyboardInterrupt))
    return pytest.TestReport.from_item_and_call(item, info)

"""The process that runs tests with the marker, from within: a fork for each test, a profile around it, the verdict.

A fork of a process that has torch and no CUDA finds what a fresh process finds, an allocator that has served nothing:
so a test takes the same memory whatever ran before it. Knows pytest's hooks and the gate. PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .. import virtual_gpu
from ..errors import VramkitError
from ..gpus import GENERIC, GPU
from ..virtual_gpu.activation import exchange, let_autograd_rest
from .pytest_marker import REAL, Asked
from .pytest_start import channel

if TYPE_CHECKING:
    from ..profiling.profiler import profile
    from ..results.profile import Profile

_FOLDER = "gpu_memory"


class GpuMemory:
    """The GPU memory of a test: what the fixture ``gpu_memory`` gives."""

    def __init__(self, measuring: profile) -> None:
        self._measuring = measuring
        self._ended = False

    @property
    def result(self) -> Profile:
        """The `vramkit.Profile` of this test. It ends where it is first read: what comes later is not measured."""
        self.end()
        return self._measuring.result

    def step(self) -> None:
        """End a training step, where no optimizer's step does."""
        self._measuring.step()

    def end(self, error: BaseException | None = None) -> None:
        """End the measurement, if it goes on."""
        if not self._ended:
            self._ended = True
            self._measuring.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)


@dataclass
class _Running:
    """The test of this process."""

    item: pytest.Item
    asked: Asked
    memory: GpuMemory


class MeasuredTests:
    """Hooks of the pytest in which tests are measured."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._running: _Running | None = None
        self._reports: list[pytest.TestReport] = []
        self._failed: list[str] = []

    def memory(self) -> GpuMemory:
        """What the test that runs is measured by."""
        assert self._running is not None
        return self._running.memory

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Generator[None, object, object]:
        """Import the tests, so that CUDA does not begin."""
        handle = virtual_gpu.current()
        import torch

        from ..torch_internals import dynamo
        from ..torch_internals.allocator import counting_one_device

        # A fork has only the thread that forked: pools of threads must not exist by then.
        torch.set_num_threads(1)
        if handle is None:
            return (yield)
        if handle.values is not None:
            handle.values.prepare()
        with counting_one_device():
            dynamo.come()  # for 1.5 s, which optimizers would take in each fork
            return (yield)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep why a file could not be imported."""
        if report.failed:
            self._failed.append(report.longreprtext)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run each test that is asked for, until nobody asks."""
        import torch

        items = {item.nodeid: item for item in session.items}
        while True:
            try:
                nodeid, asked, card = channel.recv()
            except EOFError:
                return True
            item = items.get(nodeid)
            if item is None:
                raise pytest.UsageError("\n".join([f"{nodeid} was not found.", *self._failed]))
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # torch's; a module of the tests used CUDA
                channel.send((self._run(item, asked, None), False))
                let_autograd_rest()
                return True
            channel.send((self._run_in_fork(item, asked, card), True))

    def _run_in_fork(self, item: pytest.Item, asked: Asked, card: GPU | None) -> list[dict[str, Any]]:
        source, sink = Pipe(duplex=False)
        _write_out()  # what is not written yet would be written by the fork, too
        child = os.fork()
        if child == 0:
            self._be_the_fork(sink, item, asked, card)
        sink.close()
        reports = None
        with source, suppress(EOFError):
            reports = source.recv()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if reports is None:
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            info = pytest.CallInfo.from_call(lambda: pytest.fail(f"The test's process ended {how}", False), "call")
            reports = [self._to_send(pytest.TestReport.from_item_and_call(item, info))]
        return reports

    def _be_the_fork(self, sink: Connection, item: pytest.Item, asked: Asked, card: GPU | None) -> None:
        import torch

        status = 1
        try:
            torch.set_num_threads(1)  # torch's pool of threads is made anew by one thread, not by those of all devices
            sink.send(self._run(item, asked, card))
            status = 0
        finally:
            _write_out()
            os._exit(status)

    def _run(self, item: pytest.Item, asked: Asked, card: GPU | None) -> list[dict[str, Any]]:
        from ..profiling.profiler import profile

        if card is not None:
            exchange(card)
        measuring = profile(device="cuda", stacks=asked.stacks)
        measuring.__enter__()
        memory = GpuMemory(measuring)
        self._running = _Running(item, asked, memory)
        self._reports.clear()
        try:
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        finally:
            memory.end()
        return [self._to_send(report) for report in self._reports]

    def _to_send(self, report: pytest.TestReport) -> dict[str, Any]:
        hook = self._config.hook.pytest_report_to_serializable
        data: dict[str, Any] = hook(config=self._config, report=report)
        return data

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what the other pytest will be told."""
        self._reports.append(report)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        """Judge a test by what it took, if it came to its end."""
        running = self._running
        assert running is not None
        try:
            result = yield
        except BaseException as error:
            running.memory.end(error)  # which tells a failure for lack of memory what held it
            raise
        try:
            text = self._verdict(running)
        except VramkitError as error:
            text = str(error)
        if text:
            pytest.fail(text, pytrace=False)
        return result

    def _verdict(self, running: _Running) -> str:
        """What to say of a test that took too much; empty: it did not."""
        from ..gate import baselines, verdicts

        result, asked = running.memory.result, running.asked
        found = "" if asked.limit is None else verdicts.over_limit(result, asked.limit)
        if found or not asked.baseline:
            return found
        path = baseline_of(running.item, result, asked.gpu)
        root = running.item.config.rootpath
        if running.item.config.getoption("vramkit_update"):
            baselines.keep(result, path, root)
            return ""
        if not path.exists():
            return f"There is no baseline {path}. Keep this run's with: pytest --vramkit-update {running.item.nodeid}"
        tolerance = verdicts.TOLERANCE if asked.tolerance is None else asked.tolerance
        found = verdicts.grown(baselines.open_baseline(path), baselines.compact(result, root), tolerance)
        return found and f"{found}\n\nIf this is meant, accept it with: pytest --vramkit-update {running.item.nodeid}"


def _write_out() -> None:
    """Write what tests have printed, if they print to the user's terminal."""
    sys.stdout.flush()
    sys.stderr.flush()


def baseline_of(item: pytest.Item, result: Profile, gpu: str | int | None) -> Path:
    """Where a test's baseline is: in a folder beside its file, under its name and the card's."""
    _, _, name = item.nodeid.partition("::")
    card = result.device_name if gpu == REAL else gpu or GENERIC
    whole = f"{name.replace('::', '.')}-{card}"
    short = re.sub(r"[^\w.\[\]-]+", "_", whole)
    if short != whole or len(short) > 150:  # another name may be cut to the same
        short = f"{short[:150]}-{hashlib.blake2b(whole.encode(), digest_size=4).hexdigest()}"
    return item.path.parent / _FOLDER / item.path.stem / f"{short}.npz"

"""When memory comes free that NCCL's watchdog holds. Knows the thread; knows no collective."""

from __future__ import annotations

import time
from pathlib import Path

from torch import distributed
from torch.optim.optimizer import register_optimizer_step_post_hook

_THREAD = "pt_nccl_watchdg"
_ROUNDS = 2  # the one that it may be in has begun before
_LIMIT = 2.0  # seconds


class Settling:
    """Lets a process wait for NCCL's watchdog at the end of each of the first optimizer steps.

    The watchdog looks every 0.1 s which collectives are done, and lets go of what they held: DDP's first buckets, as
    large as all gradients, and what a communication hook compressed. Whether that is before the next step is a race,
    on a card too. Here they are always gone by then, so that every run has the same events.

    Args:
        steps: how many. A wait takes 0.1 to 0.2 s; the peak of a training is in its first steps.
    """

    def __init__(self, steps: int = 16) -> None:
        self._left = steps

    def install(self) -> None:
        """Wait from now on."""
        register_optimizer_step_post_hook(self._settle)

    def _settle(self, *args: object) -> None:
        if self._left and distributed.is_initialized():
            self._left -= 1
            _wait_for_rounds()


def _wait_for_rounds() -> None:
    before, deadline = _threads(), time.monotonic() + _LIMIT
    while time.monotonic() < deadline:
        now = _threads()
        if all(now[name].is_through(before[name]) for name in before if name in now):
            return
        time.sleep(0.005)


class _Thread:
    def __init__(self, state: str, sleeps: int) -> None:
        self.state = state
        self.sleeps = sleeps

    def is_through(self, before: _Thread) -> bool:
        """Whether it has gone round and sleeps again."""
        return self.state == "S" and self.sleeps >= before.sleeps + _ROUNDS


def _threads() -> dict[str, _Thread]:
    found = {}
    for task in Path("/proc/self/task").glob("*"):
        try:
            if task.joinpath("comm").read_text().startswith(_THREAD):
                lines = task.joinpath("status").read_text().splitlines()
                status = dict(line.split(":", 1) for line in lines)
                found[task.name] = _Thread(status["State"].split()[0], int(status["voluntary_ctxt_switches"]))
        except OSError:  # it has just ended
            continue
    return found

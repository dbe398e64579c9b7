"""The order of a run: first what needs the card for itself, then programs, and the twins beside both. Every result goes
to the file as soon as it is there.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import context, driver, facts, files
from .tasks import CARD, Task

__all__ = ["CARD", "Plan", "run_all", "run_twins"]

_AHEAD = 5
"""Processes that import torch while another one measures."""
_IMPORTS = 60.0
"""Seconds that importing may take."""
_SLOW = {"compiled": 150.0, "convolutions: benchmark": 150.0}
"""Limits of programs, by how their names begin, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be run."""

    file: Path
    twin: str
    """The virtual card, a `vramkit.GPU` as JSON."""
    card: str
    """`CARD`; or a virtual one that stands in for it."""
    only: tuple[str, ...]
    """Parts of the names of programs, one of which has to be there."""
    deadline: float
    """Of the monotonic clock: nothing is begun after it, and what runs then is stopped."""
    cards: int
    """Programs at a time on the card."""
    twins: int | None
    context: bool

    def say(self, entry: dict[str, object]) -> None:
        """Keep a result, and print a line about it."""
        files.append(self.file, entry)
        failure = entry.get("failure")
        line = f"{entry.get('device', ''):5} {entry['kind']}: {entry.get('name', '')} {entry.get('seconds', '')} s"
        print(line + (f"  {failure}" if failure else ""), flush=True)


def run_all(plan: Plan) -> None:
    """Both sides."""
    files.append(plan.file, facts.of_the_machine())
    _say_twin(plan)
    names = _names(plan)
    with ThreadPoolExecutor(plan.twins or max(1, (os.cpu_count() or 1) // 2)) as twins:
        build = twins.submit(_run, plan, Task("build", "", plan.twin))
        twin_runs = [twins.submit(lambda task=task: (build.result(), _run(plan, task))) for task in _tasks(plan, names)]
        if plan.context:
            try:
                _alone(plan)
            except Exception as error:  # the programs are worth having
                plan.say({"kind": "failure", "name": "alone", "failure": repr(error)})
        with ThreadPoolExecutor(plan.cards) as cards:
            for task in _tasks(plan, names, plan.card):
                cards.submit(_run, plan, task)
        for each in twin_runs:
            each.result()


def run_twins(plan: Plan) -> None:
    """The virtual side alone."""
    _say_twin(plan)
    with ThreadPoolExecutor(plan.twins or max(1, (os.cpu_count() or 1) // 2)) as twins:
        twins.submit(_run, plan, Task("build", "", plan.twin)).result()
        for task in _tasks(plan, _names(plan)):
            twins.submit(_run, plan, task)


def _say_twin(plan: Plan) -> None:
    files.append(plan.file, {"kind": "twin's card", "gpu": json.loads(plan.twin)})


def _names(plan: Plan) -> list[str]:
    from .zoo import PROGRAMS

    return [name for name in PROGRAMS if any(part in name for part in plan.only)]


def _tasks(plan: Plan, names: list[str], device: str | None = None) -> list[Task]:
    from .zoo import ENVIRONMENTS

    programs = [
        Task(
            "program",
            name,
            device or plan.twin,
            stands_for=CARD if device else "",
            environment=ENVIRONMENTS.get(name, {}),
            limit=next((limit for begin, limit in _SLOW.items() if name.startswith(begin)), 90.0),
        )
        for name in names
    ]
    if device is None and plan.context:
        programs += [Task("facts", "", plan.twin), Task("addresses", "", plan.twin)]
    return programs


def _run(plan: Plan, task: Task) -> None:
    if time.monotonic() > plan.deadline:
        return
    try:
        task.start()
        if task.waits:
            task.go()
        plan.say(task.finish(plan.deadline))
    except Exception as error:  # every other result is worth having
        plan.say({"kind": "failure", "name": f"{task.kind}: {task.name}", "failure": repr(error)})


def _alone(plan: Plan) -> None:
    """One after another, while the next ones import torch."""
    tasks = deque(
        [
            Task("facts", "", plan.card, CARD, limit=60),
            Task("addresses", "", plan.card, CARD, limit=60),
            *(Task("context", name, plan.card, CARD, environment=more, limit=40) for name, more in context.STAGES),
        ]
    )
    started: deque[Task] = deque()
    idle = driver.nvml_memory().get("used", 0) if plan.card == CARD else 0
    while tasks or started:
        while tasks and len(started) < _AHEAD:
            started.append(tasks.popleft())
            started[-1].start()
        task = started.popleft()
        until = min(time.monotonic() + _IMPORTS, plan.deadline)
        while not task.is_ready() and time.monotonic() < until:
            time.sleep(0.02)
        if time.monotonic() > plan.deadline:
            tasks.clear()
            task.kill()
            continue
        task.go()
        plan.say(task.finish(plan.deadline))
        _wait_for_idle(idle)


def _wait_for_idle(idle: int) -> None:
    """Until what the last process had is free again; two seconds at most."""
    until = time.monotonic() + 2
    while driver.nvml_memory().get("used", 0) > idle and time.monotonic() < until:
        time.sleep(0.02)

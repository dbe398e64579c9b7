"""What is said at the end of ``vramkit run``: of the script's own process, and of those that it started. Knows results
and where they go; runs nothing.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VramkitError
from ..ranks.place import Place
from ..sizes import format_size
from .overview import note_of_buckets, overview
from .printing import flush, tell
from .processes import Process, found_in, fullest_first, noted, running_in, wait_for
from .saving import save, write_json, write_page

if TYPE_CHECKING:
    from ..results.profile import Profile
    from .limits import Limits
    from .script import Script

_PATIENCE = 10.0  # seconds, for processes that were told to end: settling a large profile takes some


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the script's own process came to."""

    profile: Profile | None
    """None: it did not use CUDA."""
    code: int
    """The exit code."""
    ended: str
    """What ended it: "end", "steps", "timeout", "interrupt" or "exception"."""
    steps: int
    """Training steps that it ended."""
    note: str
    """For every profile; empty: none."""


class RunReport:
    """Collects what the processes of a script leave, and prints it once they have ended.

    Processes that are still there when the script's own code has ended are waited for as Python itself does: those of
    ``multiprocessing`` end before what was registered here, early, to run at exit.

    Args:
        script: that is run.
        save_as: where profiles go; None: nowhere.
        page_as: where pages go; None: nowhere.
        json_as: where everything goes as JSON; None: nowhere.
        settings: the options that it runs with.
        limits: what its processes are held against.
    """

    def __init__(
        self,
        *,
        script: Script,
        save_as: str | None,
        page_as: str | None,
        json_as: str | None,
        settings: Mapping[str, object],
        limits: Limits,
    ) -> None:
        self.is_virtual = settings["gpu"] != "real"
        self.folder = tempfile.mkdtemp(prefix="vramkit-")
        self._script = script
        self._settings = settings
        self._save_as = save_as
        self._page_as = page_as
        self._json_as = json_as
        self._limits = limits
        self._process = os.getpid()
        self._outcome: Outcome | None = None
        atexit.register(self._finish)

    @property
    def is_of_a_fork(self) -> bool:
        """Whether this is a fork of the process that it was made in."""
        return os.getpid() != self._process

    def end_processes(self) -> None:
        """Let the processes that use CUDA end, which leaves their profiles."""
        for process in running_in(self.folder):
            with suppress(OSError):
                os.kill(process, signal.SIGTERM)

    def add(self, outcome: Outcome) -> bool:
        """The script's own process has ended. Print the report, or at exit, where others have not.

        Returns:
            Whether it took more than it may; False too if only the exit will tell, which then has the code 1.

        Raises:
            UsageError: it can't be written to where it was to go.
        """
        from multiprocessing import active_children  # torch has imported it already

        if outcome.ended in ("timeout", "interrupt"):
            wait_for(self.folder, _PATIENCE)
        self._outcome = outcome
        # Of those that multiprocessing has started, one may not have come as far as to use CUDA.
        if not running_in(self.folder) and not active_children():
            return self._print(outcome)
        return False

    def _finish(self) -> None:
        if self.is_of_a_fork:
            return
        exceeded, outcome = False, self._outcome
        try:
            if outcome is not None:
                wait_for(self.folder, _PATIENCE)
                exceeded = self._print(outcome)
        except VramkitError as error:
            tell(f"vramkit: {error}")
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        if exceeded and outcome is not None and not outcome.code:
            flush()
            os._exit(1)  # Python has its code already, and this is the last that runs before it ends with that

    def _print(self, outcome: Outcome) -> bool:
        self._outcome = None
        found = found_in(self.folder)
        place = Place.of(os.environ)
        own = Process(
            pid=self._process,
            command=self._script.target,
            profile=outcome.profile,
            rank=None if place is None else place.rank,
            world_size=1 if place is None else place.world_size,
        )
        measured = fullest_first([own, *found])
        unmeasured = [each for each in found if each.why]
        lost = [_lost(each) for each in unmeasured]
        notes = [*filter(None, (outcome.note, _ending(outcome))), *lost]
        measured = [
            replace(each, profile=noted(each.profile, *notes, *filter(None, [note_of_buckets(each.profile)])))
            for each in measured
            if each.profile
        ]
        text = _text(measured, own, lost, outcome, is_virtual=self.is_virtual)
        if text:
            tell(f"\n{text}")
        if self._save_as is not None:
            self._save(self._save_as, measured)
        if self._page_as is not None and measured:
            tell(f"\n{write_page(partial(_write_tabs, measured, text), self._page_as)}")
        exceeded = self._limits.exceeded([each.profile for each in measured if each.profile is not None])
        for said in exceeded:
            tell(f"\n{said}")
        if self._json_as is not None:
            write_json(self._document(outcome, measured, unmeasured, exceeded), self._json_as)
        return bool(exceeded)

    def _save(self, path: str, measured: Sequence[Process]) -> None:
        names = _names(path, len(measured))
        for name, each in zip(names, measured, strict=True):
            assert each.profile is not None
            save("The profile", each.profile, name)
        if measured:
            more = f" (and {', '.join(names[1:])}: the other processes)" * (len(measured) > 1)
            tell(f"\nvramkit: the profile is in {path}{more}; see it again with: vramkit view {path}")
        else:
            tell(f"\nvramkit: there is no profile to save in {path}")

    def _document(
        self, outcome: Outcome, measured: Sequence[Process], unmeasured: Sequence[Process], exceeded: Sequence[str]
    ) -> dict[str, Any]:
        return {
            "kind": "run",
            "script": self._script.target,
            "arguments": list(self._script.arguments),
            "settings": self._settings,
            "ended": outcome.ended,
            "exit_code": outcome.code or int(bool(exceeded)),
            "exceeded": list(exceeded),
            "processes": [
                {
                    "pid": each.pid,
                    "command": each.command,
                    "is_script": each.pid == self._process,
                    "rank": each.rank,
                    "result": each.profile.to_dict(),
                }
                for each in measured
                if each.profile is not None
            ],
            "unmeasured": [{"pid": each.pid, "command": each.command, "why": each.why} for each in unmeasured],
        }


def _text(measured: Sequence[Process], own: Process, lost: Sequence[str], outcome: Outcome, *, is_virtual: bool) -> str:
    """What is shown: the fullest process's report, and of each other one a line."""
    used = [each for each in measured if each.profile is not None and _used(each.profile)]
    if not used:
        if lost:
            return _filled(f"vramkit: {own.command}: nothing was measured. {' '.join(lost)}")
        if outcome.ended == "exception":
            return ""  # what it raised says more than what it didn't use
        kind = "virtual " * is_virtual
        return _filled(
            f"vramkit: {own.command}: no process of it used CUDA memory. It ran with {kind}CUDA devices "
            "(torch.cuda.is_available() is True): does it need an option to use them?"
        )
    first, *others = used
    assert first.profile is not None
    loose = [each for each in others if each.rank is None or first.rank is None]
    parts = [first.profile.report(), "\n".join(_filled(_line(each, own)) for each in loose)]
    if first.rank is not None and first.world_size > 1:
        parts[0] = f"{overview([each for each in used if each.rank is not None])}\n\n{parts[0]}"
    elif first.pid != own.pid or others:
        count = f"{len(used)} processes used CUDA; the fullest is" if others else "what used CUDA is"
        parts[0] = f"{_filled(f'vramkit: {count} {_name(first, own)}.')}\n{parts[0]}"
    return "\n\n".join(filter(None, parts))


def _write_tabs(measured: Sequence[Process], text: str, path: str) -> None:
    """One page of all processes: a tab for each rank, and each device of a process that used several."""
    from ..reports.html.tabs import Tabs
    from ..results.readable import write_page

    first = measured[0].profile
    assert first is not None
    if len(measured) == 1:
        write_page(first, path, text or first.report())
        return
    tabs = []
    for each in measured:
        assert each.profile is not None
        used = [one for one in each.profile.each_device() if len(one.tape.events)] or [each.profile]
        name = f"process {each.pid}" if each.rank is None else f"rank {each.rank}"
        tabs += [(f"{name}, {one.device}" if len(used) > 1 else name, one) for one in used]
    kind = "rank" if all(each.rank is not None for each in measured) else "process"
    write_page(first, path, text or first.report(), tabs=Tabs(kind=kind, of=tabs))


def _line(process: Process, own: Process) -> str:
    assert process.profile is not None
    profile = max(process.profile.each_device(), key=lambda each: each.peak_reserved)
    return (
        f"Also {_name(process, own)}: at most {format_size(profile.peak_allocated)} allocated, "
        f"{format_size(profile.peak_reserved)} reserved on {profile.device}, in {len(profile.steps)} steps"
    )


def _name(process: Process, own: Process) -> str:
    if process.pid == own.pid:
        return f"the script's own process ({process.pid})"
    return f"process {process.pid} ({process.command})"


def _lost(process: Process) -> str:
    return f"Process {process.pid} ({process.command}) used CUDA and left no profile: it {process.why}."


def _ending(outcome: Outcome) -> str:
    after = f"after {outcome.steps} training step{'s' * (outcome.steps != 1)}"
    return {
        "timeout": f"Ended by --timeout {after}: what would have come later is not in this.",
        "interrupt": f"Interrupted {after}: what would have come later is not in this.",
    }.get(outcome.ended, "")


def _used(profile: Profile) -> bool:
    return any(len(each.tape.events) or len(each.tape.allocations) for each in profile.each_device())


def _names(path: str, count: int) -> list[str]:
    """Names of so many files: the path, and beside it those with numbers from 2 on."""
    file = Path(path)
    return [path, *(str(file.with_name(f"{file.stem}-{n}{file.suffix}")) for n in range(2, count + 1))][:count]


def _filled(text: str) -> str:
    return textwrap.fill(text, width=100, break_on_hyphens=False)

"""What is advised, beside what the change saves: every program of ``advice_programs.py``, as it is and changed.

    python benchmarks/bench_advice.py [--only PROGRAM] [--write docs/advice.md]
    python benchmarks/bench_advice.py --folder FOLDER [--gpu t4]

All run in one process on a virtual T4, so that the peaks of two differ by the change alone. With a folder of scripts,
those that have changed ones in its folder ``remedies`` (``p02_val.py``: ``remedies/p02_nograd.py``) are run, each in a
process of its own; the advice is printed beside what each change saved.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import vramkit
from vramkit import virtual_gpu
from vramkit.reports.advice import advise
from vramkit.reports.moment import moment_of
from vramkit.reports.rules.advised import Advice
from vramkit.sizes import format_size

ENOUGH = 0.1
"""A claim may be off by so much of what was measured."""
_MOST_COLLECTIONS = 100
"""One ends a few cycles of autograd's graphs only."""
_MARKER = "<!-- the table: python benchmarks/bench_advice.py --write docs/advice.md -->\n"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One change, and what was said of it."""

    program: str
    change: str
    said: int | None
    """Bytes; None: no figure."""
    saved: int
    """Bytes that the change took from the peak."""
    said_reserved: int | None
    """What would be reserved at most with the change, in bytes; None: no figure."""
    reserved: int
    """What was."""
    line: int
    """Which line of the advice it is, from 1; 0: it is not advised."""
    is_cause: bool

    @property
    def holds(self) -> bool:
        """Whether the figure is near what was measured; without a figure nothing was claimed."""
        return self.said is None or abs(self.said - self.saved) <= ENOUGH * max(0, self.saved)

    @property
    def reserved_holds(self) -> bool:
        """The same of what would be reserved."""
        return self.said_reserved is None or abs(self.said_reserved - self.reserved) <= ENOUGH * self.reserved

    @property
    def is_found(self) -> bool:
        """Whether the cause is among the first two lines; what is none need not be."""
        return not self.is_cause or 1 <= self.line <= 2


def measured(only: str = "") -> list[Row]:
    """All cases, or those of one program, on the virtual GPU that is active."""
    sys.path.insert(0, str(Path(__file__).parent))
    from advice_programs import cases  # imports torch

    _warm_up()
    rows, before = list[Row](), dict[str, tuple[int, list[Advice]]]()
    for case in cases():
        name = case.program.__name__
        if only not in ("", name):
            continue
        if name not in before:
            profile = _profile(case.program, "")
            before[name] = profile.peak_allocated, advise(profile, moment_of(profile))
        peak, found = before[name]
        changed = _profile(case.program, case.change)
        line = next((number for number, each in enumerate(found, 1) if case.says in each.text), 0)
        advice = found[line - 1] if line else None
        rows.append(
            Row(
                program=name,
                change=case.change,
                said=advice.saves if advice and advice.is_computed else None,
                saved=peak - changed.peak_allocated,
                said_reserved=advice.peak_reserved if advice else None,
                reserved=changed.peak_reserved,
                line=line,
                is_cause=case.is_cause,
            )
        )
    return rows


def _warm_up() -> None:
    """Multiply in both threads: the first program would have their workspaces in its segments, and no other."""
    import torch

    torch.nn.Linear(8, 8).cuda()(torch.zeros(8, 8, device="cuda")).sum().backward()


def _profile(program: object, change: str) -> vramkit.Profile:
    import torch

    for _ in range(_MOST_COLLECTIONS):
        if not gc.collect():
            break
    torch.cuda.empty_cache()
    with vramkit.profile(device="cuda") as prof:
        kept = program(change)  # type: ignore[operator] # a program of advice_programs
    del kept
    return prof.result


def table(rows: Iterable[Row]) -> str:
    """The rows in Markdown, and how many hold."""
    rows = list(rows)
    lines = [
        "| program | change | said | measured | line | reserved then, said | measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        said = "no figure" if row.said is None else format_size(row.said)
        mark = "" if row.holds and row.is_found else " (misses)"
        name = f"**{row.program}**" if row.is_cause else row.program
        line = row.line or "none"
        then = "no figure" if row.said_reserved is None else format_size(row.said_reserved)
        missed = "" if row.reserved_holds else " (misses)"
        lines.append(
            f"| {name} | {row.change} | {said} | {format_size(row.saved)}{mark} | {line} | {then} "
            f"| {format_size(row.reserved)}{missed} |"
        )
    claims = [row for row in rows if row.said is not None]
    causes = [row for row in rows if row.is_cause]
    reserved = [row for row in rows if row.said_reserved is not None]
    lines += [
        "",
        f"{sum(row.holds for row in claims)} of {len(claims)} figures are within {ENOUGH:.0%} of what was measured; "
        f"{sum(row.is_found for row in causes)} of {len(causes)} causes are among the first two lines; "
        f"{sum(row.saved <= 0 for row in claims)} figures stand where the change saves nothing. "
        f"{sum(row.reserved_holds for row in reserved)} of {len(reserved)} figures of what is reserved then are within "
        f"{ENOUGH:.0%}.",
    ]
    return "\n".join(lines)


def of_folder(folder: Path, gpu: str) -> None:
    """Print what is advised for each script of a folder, and what each of its changed ones saved."""
    for remedy in sorted((folder / "remedies").glob("*.py")):
        stem = remedy.stem.partition("_")[0]
        for script in sorted(folder.glob(f"{stem}_*.py")):
            plain, changed = _run(script, gpu, folder), _run(remedy, gpu, folder)
            if plain is None or changed is None:
                print(f"{script.name}: came to no profile")
                continue
            allocated, reserved = (
                getattr(plain, name) - getattr(changed, name) for name in ("peak_allocated", "peak_reserved")
            )
            print(f"{script.name} -> {remedy.name}: {allocated:,} B of allocated, {reserved:,} B of reserved memory")
            for each in advise(plain, moment_of(plain)):
                print(f"    {f'{each.saves:,} B' if each.is_computed else '':>20}  {each.text}")


def _run(script: Path, gpu: str, folder: Path) -> vramkit.Profile | None:
    with tempfile.TemporaryDirectory() as place:
        saved = Path(place) / "profile.npz"
        command = [sys.executable, "-m", "vramkit", "run", "--gpu", gpu, "--save", str(saved), str(script)]
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=False)
        found = vramkit.load(saved) if saved.exists() else None
        return found if isinstance(found, vramkit.Profile) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="this program alone")
    parser.add_argument("--write", type=Path, help="a page, at whose end the table is written")
    parser.add_argument("--folder", type=Path, help="of scripts, with changed ones in its folder remedies")
    parser.add_argument("--gpu", default="t4", help="for the scripts of a folder (default: %(default)s)")
    options = parser.parse_args()
    if options.folder:
        of_folder(options.folder.resolve(), options.gpu)
        return
    virtual_gpu.activate("t4")
    text = table(measured(options.only))
    print(text)
    if options.write:
        page = options.write.read_text().partition(_MARKER)[0]
        options.write.write_text(f"{page}{_MARKER}\n{text}\n")


if __name__ == "__main__":
    main()

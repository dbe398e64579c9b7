"""How a prediction on fake tensors differs from the virtual GPU: two tapes of one program, aligned event by event.

    python -m vramkit.devtools.tapediff predicted_programs:PROGRAMS[sgd] --gpu a100-80gb

Each class of differences is printed once, with the operator and the module it stems from: this is how the rules of the
fake engine are found, and how a new torch is checked. Knows tapes and the two engines; no rule.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any

from ..errors import UsageError
from ..tape.events import Action, Phase, Tape

_DIGITS = re.compile(r"(?<=[._])\d+")  # layers that are alike are one class
Item = tuple[int, int]
"""Bytes that came (above 0) or went (below), and the event's index."""


@dataclass(frozen=True)
class Difference:
    """What one tape has at a place where the other has something else, or nothing."""

    real: tuple[int, ...]
    """Bytes, negative where they are given back."""
    fake: tuple[int, ...]
    phase: Phase
    module: str
    after: str
    """The operator whose events came before on the fake tape."""
    before: str
    """The operator whose events follow there."""

    def __str__(self) -> str:
        def shown(sizes: Sequence[int]) -> str:
            text = " ".join(f"{size:+,}" for size in sizes[:12])
            return (text or "nothing") + f" … ({len(sizes)})" * (len(sizes) > 12)

        place = f"{self.phase.name.lower()} of {self.module}" if self.module else self.phase.name.lower()
        return f"{place}, {self.after} | {self.before}\n    real: {shown(self.real)}\n    fake: {shown(self.fake)}"


def differences(real: Tape, fake: Tape, operators: Sequence[str]) -> Counter[Difference]:
    """Align two tapes and count each class of differences.

    Args:
        real: as measured, or by the virtual engine.
        fake: the same program on fake tensors.
        operators: of each event of ``fake``, the operator that it belongs to.
    """
    found: Counter[Difference] = Counter()
    for ours, theirs in _parts(real, fake):
        if [size for size, _ in ours] == [size for size, _ in theirs]:
            continue
        matcher = SequenceMatcher(None, [size for size, _ in ours], [size for size, _ in theirs], autojunk=False)
        for tag, begin, end, first, last in matcher.get_opcodes():
            if tag == "equal":
                continue
            tape, event = (real, ours[begin][1]) if begin < len(ours) and end > begin else (fake, theirs[first][1])
            row = tape.events[event]
            found[
                Difference(
                    real=tuple(size for size, _ in ours[begin:end]),
                    fake=tuple(size for size, _ in theirs[first:last]),
                    phase=Phase(row["phase"]),
                    module=_DIGITS.sub("*", tape.modules[row["module"]].name) if row["module"] >= 0 else "",
                    after=operators[theirs[first - 1][1]] if first else "the beginning",
                    before=operators[theirs[last][1]] if last < len(theirs) else "the end",
                )
            ] += 1
    return found


def _parts(real: Tape, fake: Tape) -> Iterator[tuple[list[Item], list[Item]]]:
    """The tapes in parts that begin and end together: phases where both have the same, else the whole."""
    ours, theirs = list(_by_phase(real)), list(_by_phase(fake))
    if [key for key, _ in ours] == [key for key, _ in theirs]:
        yield from ((one, other) for (_, one), (_, other) in zip(ours, theirs, strict=True))
    else:
        yield [item for _, part in ours for item in part], [item for _, part in theirs for item in part]


def _by_phase(tape: Tape) -> Iterator[tuple[tuple[int, int], list[Item]]]:
    actions = tape.events["action"]
    wanted = (actions == Action.ALLOC) | (actions == Action.FREE)
    rows = [
        ((step, phase), (size if action == Action.ALLOC else -size, index))
        for index, (action, phase, step, size) in enumerate(
            zip(*(tape.events[name].tolist() for name in ("action", "phase", "step", "size")), strict=True)
        )
        if wanted[index]
    ]
    for key, group in groupby(rows, key=lambda row: row[0]):
        yield key, list(sorted_frees(item for _, item in group))


def sorted_frees(items: Iterable[Item]) -> Iterator[Item]:
    """What goes back at one moment, such as autocast's copies of weights, goes in the order of a hash table."""
    for gone, group in groupby(items, key=lambda item: item[0] < 0):
        run = list(group)
        yield from sorted(run) if gone else run


def program_at(address: str) -> Mapping[str, Any]:
    """The arguments of ``vramkit.estimate`` that a function returns.

    Args:
        address: ``module:function``, or ``module:NAME[key]`` for a function in a dict.

    Raises:
        UsageError: there is no such thing.
    """
    path, _, name = address.partition(":")
    name, _, key = name.partition("[")
    try:
        found = getattr(importlib.import_module(path), name)
        make: Callable[[], Mapping[str, Any]] = found[key.removesuffix("]")] if key else found
    except (ImportError, AttributeError, KeyError) as error:
        raise UsageError(
            f"The program {address!r} was asked for",
            f"{type(error).__name__}: {error}",
            instead="Name a function that can be imported: module:function, or module:NAME[key] in a dict of them",
        ) from error
    return make()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 0: the tapes are the same."""
    parser = argparse.ArgumentParser(prog="python -m vramkit.devtools.tapediff", description=__doc__.splitlines()[0])
    parser.add_argument("programs", nargs="+", metavar="PROGRAM", help="module:function, or module:NAME[key]")
    parser.add_argument("--gpu", default="a100-80gb", help="default: %(default)s")
    parser.add_argument(
        "--classes", type=int, default=40, help="to print of each program, at most; default: %(default)s"
    )
    parser.add_argument("--no-device", action="store_true", help="the fakes as in a process without a CUDA device")
    options = parser.parse_args(arguments)
    sys.path.insert(0, os.getcwd())
    if not options.no_device:
        from .. import virtual_gpu

        if virtual_gpu.current() is None:
            virtual_gpu.activate(options.gpu)
    warnings.simplefilter("ignore")
    return max(_compare(address, options.gpu, options.classes) for address in options.programs)


def _compare(address: str, gpu: str, classes: int) -> int:
    from ..engines.fake.session import FakeSession
    from ..estimation.estimate import estimate

    program = program_at(address)
    real = estimate(**program, gpu=gpu, engine="virtual")
    session = vars(estimate(**program, gpu=gpu, engine="fake"))["_session"]  # a result doesn't show it
    assert isinstance(session, FakeSession)
    run, recorder = session.record(real.gpu, real.batch_size, unlimited=real.failure is not None)
    assert run.profile is not None
    found = differences(real.tape, run.profile.tape, recorder.operators)
    print(f"{address}: {sum(found.values())} differences in {len(found)} classes")
    for name in ("peak_allocated", "peak_reserved"):
        ours, theirs = getattr(real, name), getattr(run, name)
        print(f"  {name}: real {ours:,}, fake {theirs:,}, {theirs / max(ours, 1) - 1:+.4%}")
    for difference, count in found.most_common(classes):
        print(f"{count:5} x {difference}")
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main())

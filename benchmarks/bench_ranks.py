"""Every way of training on several GPUs: one process that plays a rank, held against real processes that all are there.

    python benchmarks/bench_ranks.py [--large] [--gpu h100] [--only FSDP2 ...]

Cases of a group run one after another in the same processes: real ones (``vramkit run --ranks all``), then each rank
alone; of pipelines, whose ranks ask each other, a rank of each stage. A row says what the fullest rank came to, and
whether each has the same events without the others: sizes, order and addresses. The exit code is 1 where any differs.
The programs are ``tests/ranks/parallel_programs.py``, and those of frameworks that are installed
``framework_programs.py`` beside it; ``--large`` takes a model of 0.1 billion parameters (1 GB for each of up to four
processes).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "ranks"))

from framework_programs import PROGRAMS, UNORDERED
from parallel_programs import BY_INDUCTOR
from played import SCRIPT, Played, run

_FRAMEWORKS = SCRIPT.with_name("framework_programs.py")


@dataclass(frozen=True)
class _Group:
    """Cases that run in the same processes."""

    size: int
    """Ranks of their job."""
    without: tuple[str, ...]
    """The options that play some of the ranks without the others."""
    cases: tuple[str, ...]
    script: Path = SCRIPT
    warms: bool = False
    """They are run once before: Inductor measures kernels while its cache is empty, in buffers of their own."""


_EACH_OF_TWO = (
    "DDP",
    "DDP, bucket views",
    "DDP, static graph",
    "DDP, no_sync",
    "DDP, bf16 hook",
    "ZeRO-1",
    "FSDP2",
    "FSDP2, bf16",
    "FSDP2, no reshard",
    "FSDP2, CPU offload",
    "FSDP2, checkpoints, clipping",
    "FSDP2, accumulation",
    "HSDP",
    "FSDP1",
    "TP",
    "TP, sequence",
    "FSDP2, compiled",
    "Checkpoints",
    "Objects",
)
_EACH_OF_FOUR = ("HSDP, 2 x 2", "FSDP2 and TP, 2 x 2", "FSDP2 and TP, sequence, 2 x 2")
_STAGES = ("GPipe and FSDP2, 2 x 2", "1F1B and FSDP2, 2 x 2", "Interleaved and FSDP2, 2 x 2")
_GROUPS = (
    _Group(2, ("--ranks", "0,1", "--alone"), _EACH_OF_TWO),
    _Group(2, ("--ranks", "0,1", "--alone"), tuple(BY_INDUCTOR), warms=True),
    _Group(4, ("--ranks", "0,1,2,3", "--alone"), _EACH_OF_FOUR),
    _Group(2, ("--rank", "0"), ("GPipe", "1F1B", "Interleaved")),
    _Group(4, ("--ranks", "1,3"), _STAGES),
    _Group(2, ("--rank", "0"), tuple(PROGRAMS), _FRAMEWORKS),
)


def main() -> int:
    """Print the matrix; 1: a case differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--gpu", default="h100")
    parser.add_argument(
        "--only", nargs="+", default=[case for group in _GROUPS for case in group.cases], metavar="CASE"
    )
    options = parser.parse_args()
    print("| case | ranks | allocated | reserved | events | without the others |")
    print("|---|---|---|---|---|---|")
    differ = [_compare(options, group) for group in _GROUPS]
    return int(any(differ))


def _compare(options: argparse.Namespace, group: _Group) -> bool:
    """Print the rows of a group; whether any differs."""
    cases = [case for case in group.cases if case in options.only]
    if not cases:
        return False
    if group.warms:
        _play(options, group, group.without, cases)
    real, without = (_play(options, group, ranks, cases) for ranks in (("--ranks", "all"), group.without))
    differs = False
    for case in cases:
        different = [rank for rank, one in without.items() if not _is_equal(one, real[rank], case)]
        differs |= bool(different)
        fullest = max(without, key=lambda rank: real[rank].rows[case]["peak"])
        row, events = real[fullest].rows[case], real[fullest].events(case)
        verdict = (
            f"**{', '.join(map(str, sorted(different)))} differ**"
            if different
            else "equal peaks"
            if case in UNORDERED
            else "equal"
        )
        ranks = f"{', '.join(map(str, sorted(without)))} of {group.size}"
        print(f"| {case} | {ranks} | {row['peak']:,} | {row['reserved']:,} | {len(events):,} | {verdict} |", flush=True)
    return differs


def _is_equal(one: Played, many: Played, case: str) -> bool:
    if case in UNORDERED:
        return bool(one.rows[case]["peak"] == many.rows[case]["peak"])
    return np.array_equal(one.events(case), many.events(case))


def _play(options: argparse.Namespace, group: _Group, ranks: tuple[str, ...], cases: list[str]) -> dict[int, Played]:
    with tempfile.TemporaryDirectory() as folder:
        given = ("--gpu", options.gpu, "--max-events", "5000000", *ranks)
        return run(Path(folder), group.size, *given, names=[*["--large"] * options.large, *cases], script=group.script)


if __name__ == "__main__":
    sys.exit(main())

"""A real card beside its virtual twin: a zoo of programs, compared event by event, and what CUDA's context takes.

    python -m benchmarks.real_gpu [--write FILE]          on a machine with a card: runs both, prints the table
    python -m benchmarks.real_gpu --compare FILE          anywhere: runs the twins here against a file's card
    python -m benchmarks.real_gpu --show FILE             prints a file's table again

The file has every event of both sides, and is to be sent in. It is written result by result, so a run that is stopped
loses nothing. A program takes less than 2 GiB of the card; the search for cuDNN's fastest plan may take 8 GiB.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

from vramkit import gpus
from vramkit.errors import VramkitError

from . import files, running, table


def main() -> int:
    """Run it. Returns 1 if no card could be asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, default=Path("real-gpu.jsonl.gz"), metavar="FILE", help="%(default)s")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="run only the twins, against this file's card")
    parser.add_argument("--show", type=Path, metavar="FILE", help="run nothing; print this file's table")
    parser.add_argument("--markdown", action="store_true", help="with --show: the programs alone, as Markdown")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="programs with this in their names")
    parser.add_argument("--gpu", metavar="NAME", help="the twin's card, if it is not to be the catalogue's")
    parser.add_argument("--limit", type=float, default=240, metavar="S", help="seconds for all (default: %(default)s)")
    parser.add_argument("--cards", type=int, default=4, metavar="N", help="programs at a time on the card")
    parser.add_argument("--twins", type=int, metavar="N", help="twins at a time (default: by the processors)")
    parser.add_argument("--no-context", action="store_true", help="leave out what needs the card for itself")
    parser.add_argument("--stand-in", metavar="NAME", help="a virtual card in place of the real one, to try this tool")
    options = parser.parse_args()
    if options.show:
        entries = list(files.read(options.show))
        print(table.markdown(entries) if options.markdown else table.page(entries))
        return 0
    twin = _twin(options)
    if twin is None:
        print("No CUDA device is listed by the driver here. --compare FILE runs the twins alone.", file=sys.stderr)
        return 1
    if options.write.exists():
        options.write.unlink()
    plan = running.Plan(
        file=options.write,
        twin=json.dumps(dataclasses.asdict(twin)),
        card=running.CARD if not options.stand_in else json.dumps(dataclasses.asdict(gpus.find(options.stand_in))),
        only=tuple(options.only),
        deadline=time.monotonic() + options.limit,
        cards=options.cards,
        twins=options.twins,
        context=not options.no_context,
    )
    if options.compare:
        earlier = [each for each in files.read(options.compare) if each.get("device") != "twin"]
        for each in earlier:
            files.append(options.write, each)
        running.run_twins(plan)
    else:
        running.run_all(plan)
    print(table.page(list(files.read(options.write))))
    print(f"\nThe file to send in: {options.write}, {options.write.stat().st_size / 1e6:.1f} MB")
    return 0


def _twin(options: argparse.Namespace) -> gpus.GPU | None:
    """The card that the twin is; None: there is no card, and none was named."""
    if options.gpu or options.stand_in:
        return gpus.find(options.gpu or options.stand_in)
    if options.compare:
        said = next(each for each in files.read(options.compare) if each["kind"] == "twin's card")
        return gpus.GPU(**{**said["gpu"], "capability": tuple(said["gpu"]["capability"])})
    devices = gpus.cuda_devices()
    if not devices:
        return None
    try:
        return gpus.find(devices[0].name)
    except VramkitError:
        return devices[0].as_gpu()


sys.exit(main())

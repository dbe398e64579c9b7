"""``vramkit run``: an unmodified script, measured on the virtual GPU or on a real one."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from ..errors import UsageError
from .script import NotAProgramError, Program, own_traceback

if TYPE_CHECKING:
    from ..profiling import profile
    from ..result import Profile
    from . import Verbs

VIRTUAL_NOTE = (
    "measured on a virtual GPU: memory is as on the card, but nothing was computed, so losses, accuracies and times "
    "mean nothing."
)


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "run",
        help="run a script as it is, on the virtual GPU or a real one, and report its memory",
        usage="vramkit run --gpu NAME|SIZE|real [options] SCRIPT [arguments ...]\n"
        "       vramkit run --gpu NAME|SIZE|real [options] -m MODULE [arguments ...]",
        description="Runs an unmodified script and prints where its GPU memory went, to stderr, so that the script's "
        "own output stays as it is. Models and optimizers are found by themselves.",
        epilog="Exit code: the script's own; 1 if it ran out of memory or raised; 2 for wrong use. A script that ends "
        "by os._exit() or by a signal leaves no report.",
    )
    parser.add_argument(
        "--gpu",
        required=True,
        metavar="NAME|SIZE|real",
        help="a card of `vramkit gpus`, or a memory size such as '24 GiB': a virtual GPU; real: this machine's",
    )
    parser.add_argument("--count", type=int, metavar="N", help="how many virtual GPUs (default: 1)")
    parser.add_argument("--save", metavar="FILE", help="also write the profile, for `vramkit view` and vramkit.load")
    parser.add_argument(
        "--max-events", type=int, default=500_000, metavar="N", help="keep the last N events (default: %(default)s)"
    )
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="run a module, with what follows")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="the script, and its own arguments")
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Run the script, then report. Returns the exit code."""
    program = _program(options)
    virtual = options.gpu != "real"
    if virtual:
        from ..virtual_gpu import activate

        # Processes that the script starts (a rank for each GPU, say) have it too; only this one is measured.
        activate(options.gpu, count=1 if options.count is None else options.count, children=True)
    elif options.count is not None:
        raise UsageError("--count was given with --gpu real", "the number of real GPUs is what it is")
    from .. import profiling

    error, result = _measure(program, profiling.profile(device="cuda", max_events=options.max_events))
    if result is None:  # a forked child of the script came out here; the report is its parent's
        if error is not None:
            raise error
        return 0
    if isinstance(error, NotAProgramError):
        raise error
    code = _ended(error, result)
    if virtual:
        result = _with_note(result)
    _flush()
    print(f"\n{_summary(result, program, virtual=virtual)}", file=sys.stderr)
    if options.save:
        try:
            result.save(options.save)
        except OSError as failure:
            raise UsageError(
                f"The profile was to be saved as {options.save!r}", f"it can't be written: {failure.strerror}"
            ) from failure
        print(
            f"\nvramkit: the profile is in {options.save}; see it again with: vramkit view {options.save}",
            file=sys.stderr,
        )
    if isinstance(error, SystemExit):
        raise error  # Python itself knows best what its code means
    return code


def _program(options: argparse.Namespace) -> Program:
    if options.module and not options.script:
        return Program(target=options.module[0], arguments=tuple(options.module[1:]), is_module=True)
    script = options.script[1:] if options.script[:1] == ["--"] else options.script
    if not script or options.module is not None:
        raise UsageError("vramkit run was called", "with no script to run", instead="Add a script, or -m and a module")
    if script[0].startswith("-"):
        raise UsageError(f"vramkit run was given {script[0]!r}", "it has no such option")
    return Program(target=script[0], arguments=tuple(script[1:]))


def _measure(program: Program, measuring: profile) -> tuple[BaseException | None, Profile | None]:
    """Run a program; return what it raised, and what was measured: None in a child that the program forked."""
    process = os.getpid()
    raised: BaseException | None = None
    measuring.__enter__()
    try:
        program.run()
    except BaseException as error:
        raised = error
    if os.getpid() != process:
        return raised, None
    trace: TracebackType | None = raised.__traceback__ if raised else None
    measuring.__exit__(type(raised) if raised else None, raised, trace)
    return raised, measuring.result


def _ended(error: BaseException | None, result: Profile) -> int:
    """Show what a program raised as Python would. Returns the exit code."""
    if error is None or isinstance(error, SystemExit):
        return 0
    _flush()
    # The report that profile attached comes below, once.
    notes = [note for note in getattr(error, "__notes__", []) if note != result.report()]
    if hasattr(error, "__notes__"):
        error.__notes__ = notes
    traceback = own_traceback(error)
    sys.excepthook(type(error), error.with_traceback(traceback), traceback)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _summary(result: Profile, program: Program, *, virtual: bool) -> str:
    used = [each for each in result.each_device() if len(each.tape.events) or len(each.tape.allocations)]
    if used:
        return result.report()
    kind = "virtual " * virtual
    return (
        f"vramkit: {program.target} used no CUDA memory. It ran with {kind}CUDA devices: torch.cuda.is_available() is "
        'True and torch.device("cuda") works; does it need an option to use them?'
    )


def _with_note(result: Profile) -> Profile:
    others = tuple(replace(each, notes=(*each.notes, VIRTUAL_NOTE)) for each in result.others)
    return replace(result, notes=(*result.notes, VIRTUAL_NOTE), others=others)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()

"""``vramkit run``: an unmodified script, measured on the virtual GPU or on a real one."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from ..errors import UsageError
from .script import NotAProgramError, Program, without_our_frames

if TYPE_CHECKING:
    from ..profiling.profiler import profile
    from ..results.profile import Profile
    from . import Verbs

VIRTUAL_NOTE = "measured on a virtual GPU: memory is as on the card; losses, results and times mean nothing."


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
    from ..profiling import profiler

    if options.save:
        _check_folder(options.save)
    error, result = _measure(program, profiler.profile(device="cuda", max_events=options.max_events))
    if result is None:  # a forked child of the script came out here; the report is its parent's
        if error is not None:
            raise error
        return 0
    if isinstance(error, NotAProgramError):
        raise error
    _flush()
    code = _ended(error, result)
    if virtual:
        result = _with_note(result)
    summary = _summary(result, program, virtual=virtual, crashed=code != 0)
    if summary:
        _tell(f"\n{summary}")
    if options.save:
        try:
            result.save(options.save)
        except OSError as failure:
            raise _cannot_save(options.save, failure.strerror or str(failure)) from failure
        _tell(f"\nvramkit: the profile is in {options.save}; see it again with: vramkit view {options.save}")
    if isinstance(error, SystemExit):
        raise error  # Python itself knows best what its code means
    return code


def _check_folder(path: str) -> None:
    """A script can run for hours: what is wrong with where its profile goes is said before."""
    folder = os.path.dirname(path) or os.curdir
    if not os.path.isdir(folder):
        raise _cannot_save(path, f"there is no folder {folder!r}")
    if os.path.isdir(path):
        raise _cannot_save(path, "that is a folder")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise _cannot_save(path, "permission denied")


def _cannot_save(path: str, why: str) -> UsageError:
    return UsageError(f"The profile was to be saved as {path!r}", f"it can't be written: {why}")


def _program(options: argparse.Namespace) -> Program:
    if options.module and not options.script:
        return Program(target=options.module[0], arguments=tuple(options.module[1:]), is_module=True)
    script = options.script[1:] if options.script[:1] == ["--"] else options.script
    if not script or options.module is not None:
        raise UsageError("vramkit run was called with no script to run", instead="Add a script, or -m and a module")
    if script[0].startswith("-"):
        raise UsageError(f"vramkit run was given {script[0]!r}", "it has no such option")
    return Program(target=script[0], arguments=tuple(script[1:]))


def _measure(program: Program, measuring: profile) -> tuple[BaseException | None, Profile | None]:
    """Run a program; return what it raised, and what was measured: None in a child that the program forked."""
    from ..profiling.profiler import measured_by

    process = os.getpid()
    raised: BaseException | None = None
    measuring.__enter__()
    measured_by("vramkit run")  # a script that measures itself is told who does already
    try:
        program.run()
    except BaseException as error:
        raised = error
    if os.getpid() != process:
        return raised, None
    trace: TracebackType | None = raised.__traceback__ if raised else None
    measuring.__exit__(type(raised) if raised else None, raised, trace)
    measured_by("")
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
    without_our_frames(error)
    sys.excepthook(type(error), error, error.__traceback__)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _summary(result: Profile, program: Program, *, virtual: bool, crashed: bool) -> str:
    used = [each for each in result.each_device() if len(each.tape.events) or len(each.tape.allocations)]
    if used:
        return result.report()
    if crashed:
        return ""  # what it raised says more than what it didn't use
    kind = "virtual " * virtual
    return textwrap.fill(
        f"vramkit: {program.target}: this process used no CUDA memory; processes that it starts are not measured. It "
        f"ran with {kind}CUDA devices (torch.cuda.is_available() is True): does it need an option to use them?",
        width=100,
        break_on_hyphens=False,
    )


def _with_note(result: Profile) -> Profile:
    others = tuple(replace(each, notes=(*each.notes, VIRTUAL_NOTE)) for each in result.others)
    return replace(result, notes=(*result.notes, VIRTUAL_NOTE), others=others)


def _tell(text: str) -> None:
    """Write to the standard error stream, after whatever the script wrote."""
    _flush()
    _survive(lambda: print(text, file=sys.stderr, flush=True))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            _survive(stream.flush)


def _survive(write: Callable[[], object]) -> None:
    """Write, even if the reader of a pipe has had enough (``| head``): the exit code is still the script's."""
    try:
        write()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # a stream that has no descriptor was not the pipe
                stream.flush()
            with contextlib.suppress(OSError, ValueError):
                os.dup2(nowhere, stream.fileno())
        os.close(nowhere)

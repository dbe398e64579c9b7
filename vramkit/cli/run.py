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
from ..virtual_gpu import activate, current
from .saving import PAGE, add_html_option, check_can_save, save, write_page
from .script import NotAProgramError, Script, without_our_frames

if TYPE_CHECKING:
    from ..profiling.profiler import profile
    from ..results.profile import Profile
    from . import Verbs

_SAVED = "The profile"
_NOTES = {
    "none": "losses, results and times mean nothing.",
    "small": "values were computed of small tensors only, so losses and results mean nothing, and nor do times.",
    "all": "values were computed by the CPU's kernels; times mean nothing.",
}


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
    parser.add_argument(
        "--values",
        choices=tuple(_NOTES),
        help="which values are computed on a virtual GPU: none; small: those of small tensors, on which sizes depend "
        "(default); all: the program trains for real, at the CPU's speed",
    )
    parser.add_argument(
        "--copy-limit", metavar="SIZE", help="the largest copy to a virtual GPU that is made (default: 1 MiB)"
    )
    parser.add_argument("--save", metavar="FILE", help="also write the profile, for `vramkit view` and vramkit.load")
    add_html_option(parser)
    parser.add_argument(
        "--max-events", type=int, default=500_000, metavar="N", help="keep the last N events (default: %(default)s)"
    )
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="run a module, with what follows")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="the script, and its own arguments")
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Run the script, then report. Returns the exit code."""
    script = _script(options)
    if options.save is not None:
        check_can_save(_SAVED, options.save)
    if options.html is not None:
        check_can_save(PAGE, options.html)
    if options.max_events > sys.maxsize:
        raise UsageError("--max-events was given", f"with {options.max_events}", instead=f"At most {sys.maxsize:,}")
    virtual = options.gpu != "real"
    if virtual:
        # Processes that the script starts (a rank for each GPU, say) have it too; only this one is measured.
        activate(
            options.gpu,
            count=1 if options.count is None else options.count,
            values=options.values or "small",
            copy_limit=options.copy_limit,
            children=True,
        )
    else:
        _check_is_real(options)
    from ..profiling import profiler

    error, result = _measure(script, profiler.profile(device="cuda", max_events=options.max_events))
    if result is None:  # a forked child of the script came out here; the report is its parent's
        if error is not None:
            raise error
        return 0
    if isinstance(error, NotAProgramError):
        raise error
    _flush()
    code = _ended(error, result)
    if virtual:
        result = _with_note(result, _values_note(options))
    summary = _summary(result, script, virtual=virtual, crashed=code != 0)
    if summary:
        _tell(f"\n{summary}")
    if options.save:
        save(_SAVED, result, options.save)
        _tell(f"\nvramkit: the profile is in {options.save}; see it again with: vramkit view {options.save}")
    if options.html:
        _tell(f"\n{write_page(result.to_html, options.html)}")
    if isinstance(error, SystemExit):
        raise error  # Python itself knows best what its code means
    return code


def _check_is_real(options: argparse.Namespace) -> None:
    given = {"--count": options.count, "--values": options.values, "--copy-limit": options.copy_limit}
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"{option} was given with --gpu real", "it is about virtual GPUs", instead="Leave it out")


def _values_note(options: argparse.Namespace) -> str:
    handle = current()
    values = options.values or "small"
    if handle is not None and handle.values is None:
        values = "none"
    return f"measured on a virtual GPU: memory is as on the card; {_NOTES[values]}"


def _script(options: argparse.Namespace) -> Script:
    if options.module and not options.script:
        return Script(target=options.module[0], arguments=tuple(options.module[1:]), is_module=True)
    script = options.script[1:] if options.script[:1] == ["--"] else options.script
    if not script or options.module is not None:
        raise UsageError("vramkit run was called with no script to run", instead="Add a script, or -m and a module")
    if script[0].startswith("-"):
        raise UsageError(f"vramkit run was given {script[0]!r}", "it has no such option")
    return Script(target=script[0], arguments=tuple(script[1:]))


def _measure(script: Script, measuring: profile) -> tuple[BaseException | None, Profile | None]:
    """Run a script; return what it raised, and what was measured: None in a child that it forked."""
    from ..profiling.profiler import measured_by

    process = os.getpid()
    raised: BaseException | None = None
    measuring.__enter__()
    measured_by("vramkit run")  # a script that measures itself is told who does already
    try:
        script.run()
    except BaseException as error:
        raised = error
    if os.getpid() != process:
        return raised, None
    trace: TracebackType | None = raised.__traceback__ if raised else None
    measuring.__exit__(type(raised) if raised else None, raised, trace)
    measured_by("")
    return raised, measuring.result


def _ended(error: BaseException | None, result: Profile) -> int:
    """Show what a script raised as Python would. Returns the exit code."""
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


def _summary(result: Profile, script: Script, *, virtual: bool, crashed: bool) -> str:
    used = [each for each in result.each_device() if len(each.tape.events) or len(each.tape.allocations)]
    if used:
        return result.report()
    if crashed:
        return ""  # what it raised says more than what it didn't use
    kind = "virtual " * virtual
    return textwrap.fill(
        f"vramkit: {script.target}: this process used no CUDA memory; processes that it starts are not measured. It "
        f"ran with {kind}CUDA devices (torch.cuda.is_available() is True): does it need an option to use them?",
        width=100,
        break_on_hyphens=False,
    )


def _with_note(result: Profile, note: str) -> Profile:
    others = tuple(replace(each, notes=(*each.notes, note)) for each in result.others)
    return replace(result, notes=(*result.notes, note), others=others)


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

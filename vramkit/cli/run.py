"""``vramkit run``: an unmodified script, measured on the virtual GPU or on a real one."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ..errors import DeviceError, UsageError
from ..gpus.installed import cuda_devices
from ..virtual_gpu import activate, current
from ..virtual_gpu.cache import announced
from . import limits, processes
from .endings import INTERRUPTED, StepLimit, Timeout, was_interrupted
from .printing import flush, tell
from .processes import Task
from .progress import Progress, is_terminal
from .ranks import PlayedJob, Processes, add_options, job_of
from .run_report import Outcome, RunReport
from .saving import JSON, PAGE, add_html_option, check_can_save
from .script import NotAProgramError, Script, without_note, without_our_frames

if TYPE_CHECKING:
    from ..results.profile import Profile
    from . import Verbs
    from .measuring import Measurement

_NOTES = {
    "none": "losses, results and times mean nothing.",
    "small": "values were computed of small tensors only, so losses and results mean nothing, and nor do times.",
    "all": "values were computed by the CPU's kernels; times mean nothing.",
}

_LEAST_COPIES = "1 MiB"
"""What ranks tell each other, such as shapes, has to arrive even where no values are computed."""

_ALONE = " Each rank was played alone: what the others send is taken to be what it sends itself."
_MIRRORS = " What ranks send that were not played is taken to be what each sends itself."
_FAILED = (
    " If the script failed for want of something that another rank would have sent, such as a part of a checkpoint, "
    "play all of them: --ranks all."
)

_SETTINGS = (
    "gpu",
    "count",
    "values",
    "copy_limit",
    "steps",
    "timeout",
    "alloc_conf",
    "max_events",
    "world_size",
    "nproc",
    "rank",
    "ranks",
    "alone",
    "gpus_per_node",
    "stacks",
)
"""The options that change what is measured."""


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "run",
        allow_abbrev=False,  # the script's own options would be looked up, too
        help="run a script as it is, on the virtual GPU or a real one, and report its memory",
        usage="vramkit run --gpu NAME|SIZE|real [options] SCRIPT [arguments ...]\n"
        "       vramkit run --gpu NAME|SIZE|real [options] -m MODULE [arguments ...]",
        description="Runs an unmodified script and prints where its GPU memory went, to stderr, so that the script's "
        "own output stays as it is. Models and optimizers are found by themselves, and so are the processes that the "
        "script starts: the fullest one's report is printed.",
        epilog="Exit code: the script's own; 0 after --steps; 1 if it ran out of memory, raised, or took more than "
        "--limit or --baseline allow; 2 for wrong use; 124 after --timeout; 130 after Ctrl-C. A script that ends by "
        "os._exit() or by a signal leaves no report.",
    )
    parser.add_argument(
        "--gpu",
        required=True,
        metavar="NAME|SIZE|real",
        help="a card of `vramkit gpus`, or a memory size such as '24 GiB': a virtual GPU; real: this machine's",
    )
    parser.add_argument(
        "--count",
        type=int,
        metavar="N",
        help="how many virtual GPUs (default: 1; in a job of ranks, one for each of a machine)",
    )
    parser.add_argument(
        "--values",
        choices=tuple(_NOTES),
        help="which values are computed on a virtual GPU: none; small: those of small tensors, on which sizes depend "
        "(default); all: the program trains for real, at the CPU's speed",
    )
    parser.add_argument(
        "--copy-limit", metavar="SIZE", help="the largest copy to a virtual GPU that is made (default: 1 MiB)"
    )
    parser.add_argument("--steps", type=_at_least_1, metavar="N", help="end the script after N training steps")
    parser.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="end the script after so long a time")
    parser.add_argument(
        "--alloc-conf", metavar="TEXT", help="the script's PYTORCH_CUDA_ALLOC_CONF, such as expandable_segments:True"
    )
    parser.add_argument("--save", metavar="FILE", help="also write the profile, for `vramkit view` and vramkit.load")
    add_html_option(parser)
    parser.add_argument(
        "--json", metavar="FILE", help="also write everything as JSON; -: to stdout, after the script's"
    )
    parser.add_argument(
        "--max-events", type=int, default=500_000, metavar="N", help="keep the last N events (default: %(default)s)"
    )
    parser.add_argument(
        "--stacks", action="store_true", help="record which line of the script made each allocation, and report it"
    )
    limits.add_options(parser)
    add_options(parser)
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="run a module, with what follows")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="the script, and its own arguments")
    parser.set_defaults(main=main)


def _at_least_1(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is no time")
    return number


def main(options: argparse.Namespace) -> int:
    """Run the script, then report. Returns the exit code."""
    script = _script(options)
    job = job_of(options)
    job.name_files(options)
    _check(options)
    allowed = limits.limits_of(options)
    processes.refuse()
    limit, timeout = StepLimit(options.steps), Timeout(options.timeout)
    settings = {name: getattr(options, name) for name in _SETTINGS}
    report = RunReport(
        script=script,
        save_as=options.save,
        page_as=options.html,
        json_as=options.json,
        settings=settings,
        limits=allowed,
    )
    task = Task(
        folder=report.folder,
        max_events=options.max_events,
        steps=options.steps,
        plays_ranks=report.is_virtual,
        mirrored_of=job.mirrored_of,
        together=job.together,
        stacks=options.stacks,
    )
    if options.alloc_conf is not None:
        os.environ.pop("PYTORCH_ALLOC_CONF", None)
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = options.alloc_conf
    if report.is_virtual:
        with announced(tell):
            activate(
                options.gpu,
                count=options.count or job.devices or 1,
                values=options.values or "small",
                copy_limit=options.copy_limit or (_LEAST_COPIES if job.devices is not None else None),
                children=True,
            )
    measurement = _measurement(task, limit)
    task.bequeath()
    error = _run(job.script(script), measurement, timeout, report)
    if report.is_of_a_fork:  # of the script, which came out here; the report is its parent's
        if error is not None:
            raise error
        return 0
    result = measurement.end(error)
    if isinstance(error, NotAProgramError):
        raise error
    if measurement.error is not None:
        raise measurement.error
    code = _ended(error, result)
    ended = _why(error, limit, timeout)
    exceeded = report.add(
        Outcome(
            profile=result,
            code=code,
            ended=ended,
            steps=limit.count,
            note=_note(options, job, failed=_failed(error, code, ended)) if report.is_virtual else "",
        )
    )
    if exceeded and not code:
        return 1
    if isinstance(error, SystemExit):
        raise error  # Python itself knows best what its code means
    return code


def _check(options: argparse.Namespace) -> None:
    """What is wrong is said before the script runs."""
    for what, path in (("The profile", options.save), (PAGE, options.html), (JSON, options.json)):
        if path is not None:
            check_can_save(what, path)
    if options.max_events > sys.maxsize:
        raise UsageError("--max-events was given", f"with {options.max_events}", instead=f"At most {sys.maxsize:,}")
    if options.alloc_conf is not None:
        from ..allocator import AllocatorConf

        AllocatorConf.parse(options.alloc_conf)
    if options.gpu != "real":
        return
    given = {"--count": options.count, "--values": options.values, "--copy-limit": options.copy_limit}
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"{option} was given with --gpu real", "it is about virtual GPUs", instead="Leave it out")
    if not cuda_devices():
        raise DeviceError(
            "A script was to be run on this machine's GPU",
            "the driver lists none, or there is no driver",
            instead="Name a virtual one: --gpu a100-40gb",
        )


def _measurement(task: Task, limit: StepLimit) -> Measurement:
    from ..profiling.profiler import NEEDS
    from ..torch_internals.needs import require
    from .measuring import Measurement

    require("vramkit run was called", "run", *NEEDS["cuda"])
    measurement = Measurement(task, limit, owner=os.getpid())
    measurement.arm()
    return measurement


def _run(
    script: Script | Processes, measurement: Measurement, timeout: Timeout, report: RunReport
) -> BaseException | None:
    """Run a script; return what it raised."""
    try:
        with ExitStack() as stack:
            if is_terminal(sys.stderr):
                stack.enter_context(Progress(sys.stderr, measurement.line).running())
            stack.enter_context(timeout.running(report.end_processes))
            script.run()
    except BaseException as error:
        return error
    return None


def _why(error: BaseException | None, limit: StepLimit, timeout: Timeout) -> str:
    """What ended the script."""
    if timeout.is_over:
        return "timeout"
    if was_interrupted(error):
        return "interrupt"
    if limit.is_reached:
        return "steps"
    return "end" if error is None or isinstance(error, SystemExit) else "exception"


def _failed(error: BaseException | None, code: int, ended: str) -> bool:
    """Whether something in the script went wrong, which was not memory."""
    from ..out_of_memory import is_out_of_memory

    return bool(code) and ended in ("end", "exception") and not is_out_of_memory(error)


def _note(options: argparse.Namespace, job: PlayedJob, *, failed: bool) -> str:
    handle = current()
    values = options.values or "small"
    if handle is not None and handle.values is None:
        values = "none"
    mirrors = "" if job.mirrored_of is None else _MIRRORS if job.meets else _ALONE
    mirrors += _FAILED if failed and mirrors else ""
    return f"measured on a virtual GPU: memory is as on the card; {_NOTES[values]}{mirrors}"


def _script(options: argparse.Namespace) -> Script:
    if options.module and not options.script:
        return Script(target=options.module[0], arguments=tuple(options.module[1:]), is_module=True)
    script = options.script[1:] if options.script[:1] == ["--"] else options.script
    if not script or options.module is not None:
        raise UsageError("vramkit run was called with no script to run", instead="Add a script, or -m and a module")
    if script[0].startswith("-"):
        raise UsageError(f"vramkit run was given {script[0]!r}", "it has no such option")
    return Script(target=script[0], arguments=tuple(script[1:]))


def _ended(error: BaseException | None, result: Profile | None) -> int:
    """Show what a script raised as Python would. Returns the exit code."""
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    flush()
    if result is not None:
        without_note(error, result.report())
    without_our_frames(error)
    sys.excepthook(type(error), error, error.__traceback__)
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1

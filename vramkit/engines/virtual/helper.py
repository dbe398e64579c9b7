"""The helper process: torch on the virtual GPU, imported once, and a fork for every run.

Three generations. The *helper* imports torch and waits. For each session it forks a process that opens the parcel, and
so imports what the user's objects need. That one forks a process for each run, in which CUDA begins: so a run finds
what a fresh process finds, an allocator that has served nothing, for 30 ms instead of the 3 s of a real start.

Nothing here speaks to the user: output goes to a file that the other side may read, errors go back as messages.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import sys
import traceback
import warnings
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from ... import virtual_gpu
from ...allocator import AllocatorConf
from ...allocator.conf import alloc_conf_of_process
from ...programs.failed import Failed
from ...ranks.place import Job, Place
from ...torch_internals import dynamo
from ...virtual_gpu.activation import COMPILERS_VARIABLES, exchange
from .. import Run
from .messages import Ended, Open, Request, UsesCuda, send

if TYPE_CHECKING:
    from ...programs.unpacking import Opened

IDLE = 300
"""Seconds after which a process that nobody asks anything ends. The other side starts a new one."""

_MAX_EVENTS = 5_000_000
_PORT = 29500  # torchrun's; nobody listens there, and nobody is asked


def serve(control: int) -> None:
    """Be the helper. Called in a new process that has the virtual GPU, and whose garbage collector is off.

    Args:
        control: descriptor of a socket. Each message on it is a byte with two descriptors: a pipe for a session, and
            a file for what is printed there.
    """
    handle = virtual_gpu.current()
    assert handle is not None
    warnings.simplefilter("ignore")  # nobody reads them here
    import torch

    from ...profiling import cuda, profiler

    if handle.values is not None:
        # Of a model only shapes are sent: computed from zeros, a loss may be infinite, and a scaler would never step.
        handle.values.leave_out_floating_point()
        handle.values.prepare()
    dynamo.keep_away()
    gc.enable()
    # A fork has only the thread that forked: pools of threads must not exist by then.
    torch.set_num_threads(1)
    del profiler, cuda
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=control) as commands:
        while wait([commands], IDLE):
            message, descriptors, _, _ = socket.recv_fds(commands, 1, 2)
            if not message:
                break
            if os.fork() == 0:
                commands.close()
                _become_session(handle, *descriptors)
            for descriptor in descriptors:
                os.close(descriptor)


# -- a session ---------------------------------------------------------------------------------------------------------


def _become_session(handle: virtual_gpu.VirtualGPU, connection: int, output: int) -> None:
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        with Connection(connection) as asked:
            _session(handle, asked)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(status)  # whatever the helper had registered for its own exit is not for this process


def _session(handle: virtual_gpu.VirtualGPU, asked: Connection) -> None:
    opening: Open = asked.recv()
    os.chdir(opening.folder)
    own = {name: os.environ[name] for name in COMPILERS_VARIABLES if name in os.environ}
    os.environ.clear()
    os.environ.update(opening.environment | own)
    sys.path[:] = opening.path
    exchange(opening.gpu, 1 if opening.place is None else opening.place.local_world_size)
    import torch

    from ...programs import settings
    from ...torch_internals.allocator import counting_one_device

    with counting_one_device():  # it may import the compiler
        settings.apply(opening.settings)
    if opening.place is not None:
        _take(opening.place)
    opened: Opened | bytes = opening.parcel
    if not opening.unpack_late:
        # Modules count devices when they are imported, and after that torch refuses to begin CUDA in a fork.
        with counting_one_device():
            found = _unpacked(opening.parcel)
        if isinstance(found, Failed) or torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # torch's
            send(asked, found if isinstance(found, Failed) else UsesCuda())
            return
        opened = found
    send(asked, None)
    gc.collect()
    gc.freeze()  # the runs' collections need not look at what they share
    while asked.poll(IDLE):
        try:
            request: Request = asked.recv()
        except EOFError:
            return
        _fork_run(handle, opened, request, opening.place, asked)


def _take(place: Place) -> None:
    """Be a rank, from before anything of the user's is imported: it may keep names of torch's."""
    from ...ranks.playing import play

    os.environ.update(place.environment(_PORT))
    play(Job(world_size=place.world_size, played=(place.rank,)), placed=True)


def _unpacked(parcel: bytes) -> Opened | Failed:
    from ...programs.failures import failure_of
    from ...programs.unpacking import unpack

    try:
        return unpack(parcel)
    except Exception as error:
        return failure_of("unpack the program in its own process", error)


def _fork_run(
    handle: virtual_gpu.VirtualGPU, opened: Opened | bytes, request: Request, place: Place | None, asked: Connection
) -> None:
    source, sink = Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        source.close()
        asked.close()
        os.setpgid(0, 0)  # with all that the step starts, which ends with it
        runner, status = os.getpid(), 1

        def let_go() -> None:
            if os.getppid() == runner:
                sink.close()

        # A run that ends without an answer shows by its end of the pipe, which what the step has forked must not hold.
        os.register_at_fork(after_in_child=let_go)
        try:
            content = pickle.dumps(_run(handle, opened, request, place), protocol=5)
            if os.getpid() == runner:  # else a fork has run the rest of the step, and the answer is not its to give
                sink.send(dynamo.has_come())
                sink.send_bytes(content)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            _flush()
            os._exit(status)
    sink.close()
    # An end of the connection means that the user's process has gone, or does not want the answer any more.
    if source not in wait([source, asked]):
        os.kill(child, signal.SIGKILL)
    wants_dynamo, content = False, b""
    with source, suppress(EOFError, OSError):  # it ended before it had said all
        wants_dynamo = source.recv()
        content = source.recv_bytes()
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # its number stays its group's until it is waited for
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGTERM)  # which the tracker of shared memory ignores: it ends when it has cleaned up
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status or not content:
        send(asked, Ended(status=status))
    else:
        asked.send_bytes(content)
        if wants_dynamo:
            dynamo.come()  # this program wants it, and the next run need not wait for it


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


# -- a run -------------------------------------------------------------------------------------------------------------


def _run(handle: virtual_gpu.VirtualGPU, opened: Opened | bytes, request: Request, place: Place | None) -> Run | Failed:
    import torch

    from ...out_of_memory import is_out_of_memory
    from ...profiling.profiler import profile
    from ...programs.counting import LayerCounter, StepCounter
    from ...programs.failures import failure_of
    from ...programs.training import Training

    # A fork makes torch's pool of threads anew at its first use, and threads of several devices would do so at once.
    torch.set_num_threads(1)
    if request.unlimited:
        # Before torch asks for the device's properties: limits that are fractions of its memory have to grow with it.
        # Which kernels run does not depend on it, cuDNN's choice of engines included.
        handle.set_memory(_most_memory(handle, place), 0 if place is None else place.local_rank)
    torch.cuda.init()  # type: ignore[no-untyped-call] # torch's
    if place is not None:
        torch.cuda.set_device(place.local_rank)
    if isinstance(opened, bytes):
        found = _unpacked(opened)
        if isinstance(found, Failed):
            return found
        opened = found
    on_cuda, program = opened.on_cuda, replace(opened.program, rewrite=request.rewrite)
    counter: LayerCounter | None = None
    step_counter: StepCounter | None = None
    if request.counts_layers:
        counter, program = LayerCounter(program.models), replace(program, steps=1)
    if request.counts_step:
        step_counter, program = StepCounter(sees_copies=True), replace(program, steps=StepCounter.STEPS)
    training = Training(program, request.batch_size, request.move_batch)
    compiled, measured = dynamo.compilations(), dynamo.measurements()

    def arrive() -> None:
        for tensor in on_cuda:
            tensor.data = tensor.data.to("cuda")

    ran_out = False
    with ExitStack() as stack:
        measuring: Any = nullcontext()
        if request.detailed:
            measuring = profile(
                program.models or None, program.optimizers or None, device="cuda", max_events=_MAX_EVENTS
            )
        stack.enter_context(measuring)
        if counter is not None:
            stack.enter_context(counter)
        after_step = measuring.step if request.detailed else _nothing
        if step_counter is not None:
            after_step = stack.enter_context(step_counter).after_step
        try:
            training.run(arrive, after_step)
        except BaseException as error:  # sys.exit() in a step is a failure like any other
            if not is_out_of_memory(error):
                return failure_of(training.doing, error)
            ran_out = True
            del error
    return Run(
        ran_out=ran_out,
        peak_allocated=torch.cuda.max_memory_allocated(),
        peak_reserved=torch.cuda.max_memory_reserved(),
        profile=measuring.result if request.detailed else None,
        layers=None if counter is None else counter.counts(),
        step=None if step_counter is None else step_counter.count(),
        compiled=dynamo.compilations() > compiled,
        measured_kernels=dynamo.measurements() > measured,
    )


def _most_memory(handle: virtual_gpu.VirtualGPU, place: Place | None) -> int:
    """Bytes of a device that has enough. Expandable segments reserve addresses for all of it, for each stream."""
    expands = place is not None and AllocatorConf.parse(alloc_conf_of_process()).expandable_segments
    return handle.settings.max_memory // (4 if expands else 1)


def _nothing() -> None:
    pass

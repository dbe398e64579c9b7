"""The thread of a backward that makes nodes itself (``create_graph=True``), and the numbers that autograd orders by.

Of the nodes that could run next autograd takes the one with the highest number, and every thread counts by itself. A
backward on CUDA runs in a thread of the device's, and in a process that has just begun both threads count from zero. So
here both count on from one number: what was computed in this process before must not change in which order memory
comes and goes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

from .patches import put, running

_RUN = "_engine_run_backward"
_CREATE_GRAPH = 2  # the position of that argument after the outputs


def in_a_thread_of_its_own(stack: ExitStack) -> None:
    """Run such backwards as if there were a device with a thread: without one, autograd runs them where it is called.

    Under ``torch.func`` they stay there, because transforms are a thread's own.
    """
    start = _next_number()
    run = vars(torch.autograd)[_RUN]
    threads = stack.enter_context(ThreadPoolExecutor(1, initializer=_count_to, initargs=(start,)))
    running = False

    def run_backward(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal running
        if running or not args[_CREATE_GRAPH] or _is_transformed():
            return run(outputs, *args, **kwargs)
        running = True
        try:
            return threads.submit(_as_here(run), outputs, *args, **kwargs).result()
        finally:
            running = False

    put(stack, torch.autograd, _RUN, run_backward)


def _as_here(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function for another thread, with this one's modes and autocast."""
    modes = _get_current_dispatch_mode_stack()
    autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")

    def run(*args: Any, **kwargs: Any) -> Any:
        torch.set_autocast_enabled("cuda", autocast[0])
        torch.set_autocast_dtype("cuda", autocast[1])
        with ExitStack() as stack:
            stack.enter_context(running())
            for mode in modes:
                stack.enter_context(mode)
            return function(*args, **kwargs)

    return run


def in_the_thread_of_the_device(stack: ExitStack) -> None:
    """Let the device's thread, and this one, count on from one number before such backwards.

    Not under ``torch.func``, whose transforms allow no backward of another graph.
    """
    on_the_device = _DeviceThread()
    seen: list[int] = []
    on_the_device.run(lambda: seen.append(_next_number()))
    _count_to(seen[0])
    start = _next_number()
    run = vars(torch.autograd)[_RUN]
    counts_on = False

    def run_backward(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal counts_on
        if args[_CREATE_GRAPH] and not counts_on and not _is_transformed():
            on_the_device.run(lambda: _count_to(start))
            counts_on = True
        return run(outputs, *args, **kwargs)

    put(stack, torch.autograd, _RUN, run_backward)


class _DeviceThread:
    """Runs functions in autograd's thread of the device, from a hook; after it is made, that makes no nodes."""

    def __init__(self) -> None:
        with _disable_current_modes(), FakeTensorMode() as self._mode, torch.enable_grad():
            self._x = torch.ones((), device="cuda", requires_grad=True)
            self._y = self._x.view(())

    def run(self, function: Callable[[], None]) -> None:
        """Call a function there."""
        hook = self._y.register_hook(lambda gradient: function())  # type: ignore[no-untyped-call] # torch's
        with _disable_current_modes(), self._mode:
            torch.autograd.backward(self._y, retain_graph=True, inputs=[self._x])
        hook.remove()


def let_go_of_graphs() -> None:
    """Let autograd be done with the last backward, of whose graph it may hold parts a little longer."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # torch's
        _DeviceThread().run(lambda: None)
    else:
        _drop_what_waits()


def _drop_what_waits() -> None:
    """Run a backward here whose node comes last, so that those of a backward that has failed are taken before it.

    Without a device this thread has a queue of its own. What waits there when a backward fails, such as the losses of
    other parts of a batch, stays and holds the graph: a later backward drops it only once it comes to it, and takes
    what was made last first. A thread that has just begun counts from zero.
    """
    made: list[tuple[torch.Tensor, torch.Tensor]] = []

    def make() -> None:
        x = torch.ones((), requires_grad=True)
        made.append((x, x.view(())))

    with _disable_current_modes():
        maker = threading.Thread(target=make)
        maker.start()
        maker.join()
        [(x, y)] = made
        torch.autograd.backward(y, inputs=[x])


def _is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is going on."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _next_number() -> int:
    number: int = vars(torch.autograd)["_get_sequence_nr"]()
    return number


def _count_to(number: int) -> None:
    """Let this thread's next node have a number, unless it has a higher one."""
    for _ in range(number - _next_number()):
        torch._C._functions.UndefinedGrad()

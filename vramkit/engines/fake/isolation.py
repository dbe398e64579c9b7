"""What has to be around a program on fake tensors, and what must be as before when it has ended.

Knows the process's own state and what of torch, and of transformers, looks at tensors' classes. Knows no operator.
"""

from __future__ import annotations

import logging
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from ...out_of_memory import quick_collections
from ...programs import settings
from ...torch_internals import dispatch, fakes
from ...torch_internals.fakes import FakeTensor
from ...torch_internals.names import Place
from . import in_place
from .in_place import adding_in_place, one_hot_of
from .overlay import beside_a_device, overlay
from .overlay.patches import put, running, runs_here
from .random_numbers import random_numbers
from .receiving import copied, swap
from .recorder import Recorder
from .value_access import as_numpy, formatted


@contextmanager
def apart() -> Iterator[None]:
    """As in a process of its own: no modes of the user's are on, and what a program sets is as it was afterwards.

    Other threads may go on. What they share with the program all the same: torch's settings, where it changes some, and
    the random numbers of Python and numpy, which begin again where they were.
    """
    before = settings.read()
    host, numbers = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(running())
        stack.enter_context(warnings.catch_warnings())
        # A copy of a scheduler warns that its optimizer is not the one it knew.
        warnings.simplefilter("ignore", _WarningHere)
        stack.enter_context(dispatch.without_modes())
        stack.enter_context(_without_function_modes())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_without_autocast())
        stack.enter_context(random_numbers())
        stack.enter_context(quick_collections(after_one=False))  # what is fake holds no memory
        try:
            yield
        finally:
            settings.apply(before)
            random.setstate(host)
            np.random.set_state(numbers)


class _Here(type):
    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, Warning) and runs_here()


class _WarningHere(Warning, metaclass=_Here):
    """Every warning, where a program runs: filters are those of all threads."""


@contextmanager
def _without_function_modes() -> Iterator[None]:
    """Without ``torch.set_default_device`` and the like."""
    pop, push, depth = dispatch.pop_function_mode, dispatch.push_function_mode, dispatch.function_mode_count
    modes = [pop() for _ in range(depth())]
    try:
        yield
    finally:
        while depth():  # one that the program set
            pop()
        for mode in reversed(modes):
            push(mode)


@contextmanager
def _without_autocast() -> Iterator[None]:
    """Outside of every autocast, as torch sees it: the copies that it keeps of weights die with the outermost one."""
    on = {device: torch.is_autocast_enabled(device) for device in ("cuda", "cpu")}
    depth = torch.autocast_increment_nesting() - 1
    while torch.autocast_decrement_nesting():
        pass
    torch.clear_autocast_cache()
    for device in on:
        torch.set_autocast_enabled(device, False)
    try:
        yield
    finally:
        for _ in range(depth):
            torch.autocast_increment_nesting()
        torch.clear_autocast_cache()
        for device, enabled in on.items():
            torch.set_autocast_enabled(device, enabled)


def _put(stack: ExitStack, place: Place, value: object) -> None:
    put(stack, place.owner, place.name, value)


@contextmanager
def cuda_for_fakes(recorder: Recorder) -> Iterator[None]:
    """Let torch treat fakes as the tensors of a card: with its own kernels' choices, or under the overlay."""
    with ExitStack() as stack:
        if torch.cuda.is_available():
            begins = not torch.cuda.is_initialized()  # type: ignore[no-untyped-call] # torch's
            torch.empty(1, device="cuda")  # autograd wants a device that is in use; each fake would ask for one
            if begins:
                torch.cuda.empty_cache()
            stack.enter_context(beside_a_device(recorder.gpu))
            in_place.autograd_asks = True
            stack.callback(setattr, in_place, "autograd_asks", False)
            for name in ("manual_seed", "manual_seed_all", "seed", "seed_all", "set_rng_state", "set_rng_state_all"):
                put(stack, torch.cuda, name, lambda *args, **kwargs: None)  # nothing is drawn there
            if torch.cuda.get_device_capability() != recorder.gpu.capability:
                found = torch.cuda.get_device_name()
                recorder.remark(f"Kernels were chosen as on {found}, which is here, not as on {recorder.gpu.product}.")
        else:
            stack.enter_context(overlay(recorder.gpu))
            # To see what comes out of an operator without a fake kernel, torch would run it on the device.
            _put(stack, fakes.RUNS_WITHOUT_FAKES, lambda mode, operator: False)
        # What fails is told as an error of ours, and not on stderr as well.
        fakes.LOGGER.addFilter(_is_elsewhere)
        stack.callback(fakes.LOGGER.removeFilter, _is_elsewhere)
        _put(stack, fakes.BEGINS_CUDA, lambda device: None)
        put(stack, torch.utils, "swap_tensors", swap)
        put(stack, torch.cuda, "empty_cache", recorder.empty_cache)
        _put(stack, fakes.FOREACH_OF_OPTIMIZERS, [torch.Tensor, torch.nn.Parameter, FakeTensor])
        _put(stack, fakes.FOREACH, [torch.Tensor, FakeTensor])
        for name in ("linear", "scaled_dot_product_attention"):
            put(stack, torch.nn.functional, name, adding_in_place(getattr(torch.nn.functional, name)))
        put(stack, torch.nn.functional, "one_hot", one_hot_of(torch.nn.functional.one_hot))
        put(stack, FakeTensor, "__deepcopy__", copied)
        put(stack, FakeTensor, "__format__", formatted)
        put(stack, FakeTensor, "numpy", as_numpy)
        put(stack, FakeTensor, "data_ptr", lambda tensor: recorder.data_ptr(tensor))
        _let_transformers_look(stack, recorder)
        yield


def _let_transformers_look(stack: ExitStack, recorder: Recorder) -> None:
    """It leaves a mask out that hides nothing, and takes every fake one for one of which it can't see that."""
    module = sys.modules.get("transformers.utils.import_utils")
    if module is not None and hasattr(module, "is_fake_tensor"):
        is_unknown = lambda value: isinstance(value, FakeTensor) and recorder.known.of(value) is None  # noqa: E731
        put(stack, module, "is_fake_tensor", is_unknown)


def _is_elsewhere(record: logging.LogRecord) -> bool:
    return not runs_here()

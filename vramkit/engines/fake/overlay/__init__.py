"""The overlay: CUDA's choices in a process that has no CUDA device. Puts the parts together; each part knows its own.

Fake tensors of the device "cuda" that reach C++ where nobody has CUDA abort the process, or fail in the backward. Under
the overlay they are what C++ calls ``meta`` tensors, with CUDA's dispatch keys; Python sees ``cuda:0``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch._dynamo

from ....gpus import GPU
from . import attention, autocast, backward, devices, fast_path, layers, losses, recurrent, runtime
from .patches import Kernels, answer_fakes, put, running


@contextmanager
def overlay(gpu: GPU) -> Iterator[None]:
    """Let what runs inside, under a ``FakeTensorMode``, take the operators that it would take on a card.

    ::

        with overlay(gpus.find("h100")), FakeTensorMode():
            model.to("cuda")
            model(torch.zeros(8, 512, device="cuda")).sum().backward()

    Enter it before the fake mode, in a process where ``torch.cuda.is_available()`` is False; one at a time. Other
    threads go on without it.

    Args:
        gpu: the card. Its capability decides about attention kernels and number formats.
    """
    with ExitStack() as stack:
        stack.enter_context(running())
        _compile_nothing(stack)
        devices.install(stack)
        runtime.install(stack, gpu)
        kernels = Kernels(stack)
        layers.install(kernels, stack)
        attention.install(kernels, gpu)
        _install_what_fakes_lack(kernels, stack, gpu)
        autocast.install(kernels, stack)
        backward.in_a_thread_of_its_own(stack)
        yield


@contextmanager
def beside_a_device(gpu: GPU) -> Iterator[None]:
    """That part of the overlay which fakes need where there is a CUDA device: recurrent layers, which ask cuDNN itself,
    and operators that fakes can't run.

    Args:
        gpu: the card.
    """
    with ExitStack() as stack:
        stack.enter_context(running())
        _compile_nothing(stack)
        devices.install_makers(stack)
        _install_what_fakes_lack(Kernels(stack), stack, gpu)
        backward.in_the_thread_of_the_device(stack)
        yield


def _compile_nothing(stack: ExitStack) -> None:
    """As ``torch.compiler.set_stance("force_eager")``, which holds for all threads."""
    put(stack, torch._dynamo.eval_frame, "_callback_from_stance", lambda callback: None)


def _install_what_fakes_lack(kernels: Kernels, stack: ExitStack, gpu: GPU) -> None:
    recurrent.install(kernels, stack, gpu)
    fast_path.install(kernels, stack, gpu)
    losses.install(stack)
    for packet in (torch.ops.aten._fused_sgd_, torch.ops.aten._fused_adagrad_):
        for overload in packet.overloads():  # type: ignore[no-untyped-call] # torch's
            answer_fakes(stack, getattr(packet, overload), lambda *args, **kwargs: None)

"""Which engine predicts, and for which card where none is named. Knows which engines there are, and runs nothing."""

from __future__ import annotations

import torch

from .. import gpus, virtual_gpu
from ..errors import UsageError
from ..gpus import GPU
from ..gpus.installed import cuda_devices
from ..programs.program import Program
from ..torch_internals.names import Need
from ..torch_internals.needs import require
from . import EngineName, Session
from .virtual import session as virtual


def open_session(program: Program, engine: EngineName | None = None, alloc_conf: str | None = None) -> Session:
    """Make a program ready to be predicted, by an engine or by the one that can be here; see ``vramkit.estimate``."""
    if program.places:
        require("A rank of a distributed job was to be predicted", "ranks")
        if engine == "fake":
            raise UsageError(
                "A rank of a distributed job was to be predicted with engine='fake'",
                "fake tensors have no process group",
                instead="Leave engine= out: a rank is played on the virtual GPU, which needs Linux and a CUDA build of "
                "torch, and no GPU",
            )
        engine = "virtual"
    fallen_back = virtual.why_not() if engine != "fake" else None
    if engine == "virtual" and fallen_back is not None:
        raise fallen_back
    if engine != "fake" and fallen_back is None:
        return virtual.open_session(program, alloc_conf)
    needs: tuple[Need, ...] = ("programs", "profile", "fake engine")
    if not torch.cuda.is_available():
        needs += ("fake engine without CUDA",)
    require("A prediction on fake tensors was asked for", *needs)
    from .fake import session as fake

    return fake.open_session(program, alloc_conf, instead_of=fallen_back)


def current_gpu() -> GPU:
    """The card of the current CUDA device, else the one that is assumed where none is named."""
    handle = virtual_gpu.current()
    if handle is not None:
        return handle.gpu
    # The driver is asked, not torch: that would begin CUDA here, for a prediction that needs none.
    devices = cuda_devices() if torch.version.cuda else []
    number = torch.cuda.current_device() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call] # torch's
    return devices[number].as_gpu() if number < len(devices) else gpus.find(gpus.GENERIC)


def check_engine(asked: str, engine: object) -> None:
    """Raises: UsageError: it is no engine's name. ``asked`` says what was asked for."""
    if engine not in (None, "virtual", "fake"):
        raise UsageError(asked, f"the engine is {engine!r}", instead='Give "virtual", "fake", or None for either')

"""``vramkit.estimate``: predict where memory would go, on a GPU that need not be here. Checks the call, chooses the
engine and the card; how a prediction is made, the engines know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from . import gpus, virtual_gpu
from .allocator import AllocatorConf
from .engines import EngineName, Program, virtual
from .engines.batches import batch_size_of
from .errors import DeviceError, UsageError
from .estimate_result import Estimate, predict
from .gpus import GPU

Models = torch.nn.Module | Sequence[torch.nn.Module] | Mapping[str, torch.nn.Module]
OptimizerOrFactory = (
    torch.optim.Optimizer
    | Sequence[torch.optim.Optimizer]
    | Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
)

_ASKED = "vramkit.estimate was called"


def estimate(
    model: Models,
    batch: object,
    *,
    optimizer: OptimizerOrFactory | None = None,
    step: Callable[[Any], object] | None = None,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    steps: int = 3,
    batch_size: int | None = None,
    gpu: str | int | GPU | None = None,
    engine: EngineName | None = None,
    alloc_conf: str | None = None,
    autocast: torch.dtype | None = None,
) -> Estimate:
    """Predict where a training program's GPU memory goes, without the GPU.

    ::

        model = torch.nn.Linear(512, 512)
        estimate = vramkit.estimate(model, torch.zeros(64, 512), optimizer=torch.optim.AdamW, gpu="a100-40gb")
        print(estimate)

    What is predicted is a fresh process that builds the model on the CPU, moves it with ``.to("cuda")``, and runs
    ``steps`` steps: its ``torch.cuda.max_memory_allocated()`` and ``max_memory_reserved()``, to the byte. Gradients
    and optimizer states that are there already don't count, a fresh process has none; they and everything else of
    yours are left as found, because the step runs in a helper process.

    Without ``step`` the plain one runs, under ``torch.no_grad()`` and ``inference_mode()`` its first two lines::

        output = model(*batch)              # model(**batch) for a dict, model(batch) for a tensor
        value = loss(output, batch)         # without loss: output.loss, or the scalar output, or its sum
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    Args:
        model: an ``nn.Module`` on any device, ``meta`` too, a sequence, or a dict of them by name: every one that the
            step uses.
        batch: a tensor or a pytree of tensors, dimension 0 of each being the batch (else wrap it: ``vramkit.fixed``),
            or a callable ``size -> batch``, which is called at each step. Where there is a ``loss`` and the model takes
            fewer arguments than the batch has, it gets the first ones, or those whose names it knows.
        optimizer: a ``torch.optim.Optimizer``, several, or a factory ``parameters -> Optimizer``, a class for instance.
            None: no optimizer step.
        step: ``step(batch)``, one training step as you write it, closing over the model and the optimizer that are
            passed. It gets the batch as it is; where it fails because the batch is on the CPU, and where the batch
            was on the GPU, it gets it on the GPU.
        loss: ``loss(output, batch)``, for the plain step.
        steps: how many; the memory of the third is that of all that follow.
        batch_size: resize the batch; None: as it is, or 1 for a callable.
        gpu: a name of the catalogue, a size such as "24 GiB", bytes, or a `GPU`. None: the current CUDA device, else
            "a100-80gb".
        engine: "virtual": run the step on the virtual GPU; "fake": not there yet. None: virtual.
        alloc_conf: text of ``PYTORCH_CUDA_ALLOC_CONF`` to assume; None: the one in the environment.
        autocast: the plain step's forward and loss run under ``torch.autocast`` with this dtype.

    Returns:
        The prediction. Where the program does not fit the card there is one too, and ``fits()`` is False.

    Raises:
        UsageError: an argument is not what it should be, something can't be sent to the helper process, or the step
            itself fails: the cause is its traceback.
        DeviceError: the virtual GPU can't be here; the text says what is missing.
        DoesNotFit: more would be needed than the largest virtual card has, 1 TiB.

    Known limitations: the helper computes nothing, so what depends on values on the device is as for zeros. A step
    that looks at other processes, or at a device by number, finds one GPU. Only a first device is predicted.
    """
    models = _models(model)
    _check_count("steps", steps)
    if batch_size is not None:
        _check_count("batch_size", batch_size)
    is_made = callable(batch) and not isinstance(batch, (torch.Tensor, Mapping))
    sample = 0 if is_made else batch_size_of(batch)
    if batch_size is not None and not is_made and not sample:
        raise UsageError(
            _ASKED, f"with batch_size={batch_size} and a batch in which no tensor has a dimension 0", "It can't grow"
        )
    optimizers, factory = _optimizers(optimizer)
    _check_step(step, models, factory, loss, autocast)
    if alloc_conf is not None:
        AllocatorConf.parse(alloc_conf)
    _check_engine(engine)
    program = Program(
        models=models,
        batch=batch,
        batch_size=sample,
        steps=steps,
        optimizers=optimizers,
        make_optimizer=factory,
        step=step,
        loss=loss,
        autocast=autocast,
        gradients="inference" if torch.is_inference_mode_enabled() else "on" if torch.is_grad_enabled() else "off",
    )
    card = current_gpu() if gpu is None else gpus.find(gpu)
    return predict(virtual.open_session(program, alloc_conf), card, batch_size or sample or int(is_made))


def current_gpu() -> GPU:
    """The card of the current CUDA device, else the one that is assumed where none is named."""
    handle = virtual_gpu.current()
    if handle is not None:
        return handle.gpu
    if not torch.cuda.is_available():
        return gpus.find(gpus.GENERIC)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    try:
        known = gpus.find(properties.name).context
    except UsageError:
        known = gpus.find(gpus.GENERIC).context
    return GPU(
        name=properties.name.lower().replace(" ", "-"),
        product=properties.name,
        memory=properties.total_memory,
        capability=(properties.major, properties.minor),
        multiprocessors=properties.multi_processor_count,
        l2_cache=properties.L2_cache_size,
        context=known,
    )


# -- what was given ----------------------------------------------------------------------------------------------------

_T = TypeVar("_T")


def _named(given: object, kind: type[_T]) -> dict[str, _T] | None:
    """One object, a sequence, or a dict of them, by name; None: something else is in it, or nothing."""
    if isinstance(given, kind):
        return {type(given).__name__: given}
    if isinstance(given, Mapping):
        pairs = [(str(name), each) for name, each in given.items()]
    elif isinstance(given, (list, tuple)):
        pairs = [(f"{type(each).__name__}#{number}", each) for number, each in enumerate(given)]
    else:
        return None
    found = {name: each for name, each in pairs if isinstance(each, kind)}
    return found if found and len(found) == len(pairs) else None


def _models(given: object) -> dict[str, torch.nn.Module]:
    models = _named(given, torch.nn.Module)
    if models is None:
        shown = f"{given.__name__}, a class" if isinstance(given, type) else f"{type(given).__name__} {given!r:.60}"
        raise UsageError(
            _ASKED, f"the model is {shown}", "It takes models", "Pass an nn.Module, a sequence or a dict of them"
        )
    return models


def _optimizers(
    given: object,
) -> tuple[tuple[torch.optim.Optimizer, ...], Callable[..., object] | None]:
    if given is None:
        return (), None
    optimizers = _named(given, torch.optim.Optimizer)
    if optimizers is not None:
        return tuple(optimizers.values()), None
    if callable(given):
        return (), given
    raise UsageError(
        _ASKED,
        f"the optimizer is {type(given).__name__} {given!r:.60}",
        "It takes optimizers, or what makes one",
        "Pass a torch.optim.Optimizer, a sequence of them, or a factory: optimizer=torch.optim.AdamW",
    )


def _check_step(
    step: object,
    models: Mapping[str, object],
    factory: object,
    loss: object,
    autocast: object,
) -> None:
    if step is None:
        if len(models) > 1:
            raise UsageError(
                _ASKED,
                f"with {len(models)} models and no step",
                "The plain step calls one model",
                "Pass step=..., a function of the batch that calls them",
            )
        return
    if not callable(step):
        raise UsageError(
            _ASKED, f"the step is {step!r:.60}", "It is called with a batch", "Pass a function; how many: steps=3"
        )
    idle = [
        name for name, value in (("optimizer", factory), ("loss", loss), ("autocast", autocast)) if value is not None
    ]
    if idle:
        kind = " (a factory)" if idle[0] == "optimizer" else ""
        raise UsageError(
            _ASKED,
            f"with a step and with {idle[0]}={kind}".removesuffix("="),
            "A step of your own brings everything itself, and would not use it",
            "Pass the very optimizer that the step uses" if kind else f"Leave {idle[0]} out",
        )


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(
            _ASKED, f"with {name}={value!r}", "There is nothing to predict without one", "Give a whole number from 1 on"
        )


def _check_engine(engine: object) -> None:
    if engine not in (None, "virtual", "fake"):
        raise UsageError(_ASKED, f"the engine is {engine!r}", instead='Give "virtual", "fake", or None for either')
    missing = virtual.why_not() if engine != "fake" else None
    if engine == "fake" or (engine is None and missing is not None):
        why = f"The virtual engine can't be here: {missing}" if missing else ""
        raise DeviceError(
            "vramkit.estimate was asked for the fake engine" if engine == "fake" else _ASKED,
            "the fake engine is not there yet",
            why,
            "Use the virtual engine, on Linux with a CUDA build of torch; it needs no GPU",
        ) from missing
    if missing is not None:
        raise missing

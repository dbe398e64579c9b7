"""Closed forms: what a model, its gradients, its optimizer's state and a batch take, by looking at them.

Knows shapes, dtypes and the rules of torch's own optimizers, and runs nothing: a model on ``meta`` will do. It must not
know what a step allocates besides (activations, temporaries, workspaces, rounding); that is ``vramkit.estimate``'s.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from .errors import UsageError
from .programs.arguments import optimizers_or_factory
from .programs.batches import Fixed, is_made, leaves_of
from .programs.objects import Models, OptimizerOrFactory, models_of, optimizers_of
from .sizes import format_size
from .torch_internals import pytree
from .torch_internals.fakes import FakeTensorMode
from .torch_internals.needs import require
from .torch_internals.optimizers import STATE_MAKER

_SIZE_ASKED = "The size of a model was asked for"
_STATE_ASKED = "The state of an optimizer was asked for"
Group = Mapping[str, Any]
"""One of ``optimizer.param_groups``: its parameters, and how they are trained."""


def parameters(model: Models) -> int:
    """Bytes of a model's parameters, each counted once however often it is used.

    ::

        closed_form.parameters(torch.nn.Linear(512, 512))        # 1_050_624

    Args:
        model: on any device, ``meta`` too, a sequence or a dict of them. Parameters that are views of one storage count
            as they do after ``.to("cuda")``, which gives each its own.

    Raises:
        UsageError: a lazy module, which has no shapes yet, or what is no model.
    """
    return sum(map(_size, _parameters_of(model)))


def buffers(model: Models) -> int:
    """Bytes of a model's buffers, such as the running statistics of batch norm. See ``parameters``."""
    return _sum_once(buffer for each in _modules(model) for buffer in each.buffers())


def gradients(model: Models) -> int:
    """Bytes of a gradient for each parameter that is trained; a frozen one (``requires_grad=False``) has none.

    Known limitations: a parameter that no forward uses gets no gradient, and a sparse gradient
    (``nn.Embedding(sparse=True)``) only holds the rows that its batch touched; both count in full here.
    """
    return sum(
        each.numel() * (getattr(each, "grad_dtype", None) or each.dtype).itemsize
        for each in _parameters_of(model)
        if each.requires_grad
    )


def optimizer_state(optimizer: OptimizerOrFactory, model: Models | None = None, *, device: str = "cuda") -> int:
    """Bytes that an optimizer keeps between steps, for every parameter that is trained.

    ::

        closed_form.optimizer_state(torch.optim.AdamW, model)    # twice the parameters
        closed_form.optimizer_state(optimizer)

    Exact for all of ``torch.optim`` but LBFGS, whatever their settings (momentum, ``amsgrad``, ``centered``,
    ``fused``, ...), and for subclasses that leave the step to them. Of any other optimizer, what it holds now.

    Args:
        optimizer: an optimizer, several, or what makes one from parameters: a class, a lambda, a partial.
        model: whose parameters a factory gets, as tensors without memory.
        device: where the training runs, "cuda" or "cpu": most optimizers keep a step counter for each parameter on the
            CPU, unless they are fused or capturable.

    Raises:
        UsageError: there is no closed form: LBFGS, or an unknown optimizer that has made no state yet.
    """
    require(_STATE_ASKED, "closed forms")
    optimizers, factory = optimizers_or_factory(_STATE_ASKED, optimizer)
    made = optimizers if factory is None else _make(factory, model)
    return sum(_kept(each, torch.device(device).type) for each in made)


def inputs(batch: object) -> int:
    """Bytes of every tensor of a batch, a pytree of tensors and dataclasses.

    A tensor that is in it twice is moved twice; a dataclass that is in it twice is moved once, as the engines do it.

    Raises:
        UsageError: a callable, or nothing in which a tensor was found.
    """
    asked = "The size of a batch was asked for"
    require(asked, "closed forms")
    if is_made(batch):
        raise UsageError(asked, "it is a callable", instead="Call it for a size: inputs(make_batch(64))")
    leaves = [leaf.tensor if isinstance(leaf, Fixed) else leaf for _, leaf in leaves_of(batch)]
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise UsageError(
            asked,
            f"no tensor was found in {type(batch).__name__}",
            "Tensors are looked for in tuples, lists, dicts and dataclasses",
            "Pass those that go to the device",
        )
    return sum(map(_size, tensors))


def _kept(made: torch.optim.Optimizer, kind: str) -> int:
    """Bytes that an optimizer keeps on a kind of device."""
    # A learning rate that is a tensor is the optimizer's, too.
    settings = [value for group in made.param_groups for key, value in group.items() if key != "params"]
    held = _sum_once(each for each in _tensors(settings) if each.device.type == kind)
    form = _form_of(type(made))
    if form is not None:
        return held + sum(
            _state_of(parameter, group, form, kind)
            for group in made.param_groups
            for parameter in group["params"]
            if parameter.requires_grad
            or form is _FORMS[torch.optim.Adagrad]  # that one makes its state at once, for all
        )
    if not made.state:
        raise _no_closed_form(made)
    moves = all(parameter.device.type != kind for group in made.param_groups for parameter in group["params"])
    # Assumes that what has a dimension goes where its parameter goes, and that single numbers stay where they are.
    return held + _sum_once(
        each
        for state in made.state.values()
        for each in _tensors(state)
        if each.device.type == kind or (moves and each.dim())
    )


# -- tensors -----------------------------------------------------------------------------------------------------------


def _modules(model: Models) -> Iterable[torch.nn.Module]:
    return models_of(_SIZE_ASKED, model).values()


def _parameters_of(model: Models) -> list[torch.nn.Parameter]:
    found = {id(parameter): parameter for each in _modules(model) for parameter in each.parameters()}
    lazy = sum(isinstance(parameter, torch.nn.parameter.UninitializedParameter) for parameter in found.values())
    if lazy:
        raise UsageError(
            _SIZE_ASKED,
            f"{lazy} of its parameters have no shape yet",
            "Lazy modules make them in their first forward",
            "Call the model once, on a batch like yours",
        )
    return list(found.values())


def _sum_once(tensors: Iterable[torch.Tensor]) -> int:
    return sum(map(_size, {id(tensor): tensor for tensor in tensors}.values()))


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.itemsize  # nbytes has none of a sparse tensor


def _tensors(value: object) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


# -- optimizers --------------------------------------------------------------------------------------------------------


class _Form:
    """What an optimizer keeps for one parameter.

    Args:
        copies: how many tensors like the parameter, by the group's settings.
        counters: how many single numbers, such as the step.
        on_device: the counters are beside the parameter whatever the settings are; None: where fused or capturable.
    """

    def __init__(
        self, copies: int | Callable[[Group], int], counters: int = 1, *, on_device: bool | None = None
    ) -> None:
        self.copies = copies
        self.counters = counters
        self.on_device = on_device


_FORMS: dict[type[torch.optim.Optimizer], _Form] = {
    torch.optim.Adadelta: _Form(2),
    torch.optim.Adafactor: _Form(1, on_device=False),  # but for matrices; see _state_of
    torch.optim.Adagrad: _Form(1),
    torch.optim.Adam: _Form(lambda group: 3 if group["amsgrad"] else 2),
    torch.optim.Adamax: _Form(2),
    torch.optim.ASGD: _Form(1, counters=3, on_device=True),
    torch.optim.NAdam: _Form(2, counters=2),
    torch.optim.RAdam: _Form(2),
    torch.optim.RMSprop: _Form(lambda group: 1 + (group["momentum"] > 0) + bool(group["centered"])),
    torch.optim.Rprop: _Form(2),
    torch.optim.SGD: _Form(lambda group: int(group["momentum"] != 0), counters=0),
    torch.optim.SparseAdam: _Form(2, counters=0),
}
if (_muon := getattr(torch.optim, "Muon", None)) is not None:  # since torch 2.9
    _FORMS[_muon] = _Form(1, counters=0)


def _form_of(kind: type[torch.optim.Optimizer]) -> _Form | None:
    """The form of the class that brings the step; a subclass with a step of its own may keep anything."""
    for known in kind.__mro__:
        if known in _FORMS:
            same = all(_original(kind, name) is _original(known, name) for name in ("step", STATE_MAKER))
            return _FORMS[known] if same else None
    return None


def _original(kind: type, name: str) -> object:
    """A method without what torch wraps around it when the first optimizer of a class is made."""
    return inspect.unwrap(getattr(kind, name, _form_of))


def _state_of(parameter: torch.Tensor, group: Group, form: _Form, device: str) -> int:
    copies = form.copies if isinstance(form.copies, int) else form.copies(group)
    numbers = copies * parameter.numel()
    if form is _FORMS[torch.optim.Adafactor] and parameter.dim() > 1:
        # Squares are kept as their means over rows and over columns.
        *rest, rows, columns = parameter.shape
        numbers = math.prod(rest) * (rows + columns)
    fused = bool(group.get("fused"))
    there = form.on_device if form.on_device is not None else fused or bool(group.get("capturable"))
    wide = torch.get_default_dtype() == torch.float64 and not fused
    counters = form.counters if there or device == "cpu" else 0
    return numbers * parameter.element_size() + counters * (8 if wide else 4)


def _make(factory: Callable[..., object], model: Models | None) -> tuple[torch.optim.Optimizer, ...]:
    if model is None:
        raise UsageError(
            _STATE_ASKED,
            f"it is not made yet: {getattr(factory, '__name__', factory)}",
            "How much it keeps follows from the parameters",
            "Pass the model too: optimizer_state(torch.optim.AdamW, model)",
        )
    held = _parameters_of(model)
    with FakeTensorMode():  # Adagrad makes its state at once
        made = factory(
            torch.nn.Parameter(
                torch.empty(each.shape, dtype=each.dtype, device="cpu"), requires_grad=each.requires_grad
            )
            for each in held
        )
    optimizers = () if callable(made) else tuple(optimizers_of(_STATE_ASKED, made).values())
    if not optimizers:
        raise UsageError(
            _STATE_ASKED,
            f"the factory made {type(made).__name__}",
            instead="Pass an optimizer, or what makes one from parameters, such as torch.optim.AdamW",
        )
    for each in optimizers:
        each.state.clear()
    return optimizers


def _no_closed_form(optimizer: torch.optim.Optimizer) -> UsageError:
    name = type(optimizer).__name__
    asked = f"The state of {name} was asked for"
    if isinstance(optimizer, torch.optim.LBFGS):
        [group] = optimizer.param_groups
        flat = sum(_size(each) for each in group["params"] if each.requires_grad)
        return UsageError(
            asked,
            f"it keeps up to {group['history_size']} earlier steps and gradients, {format_size(2 * flat)} each time",
            "How many it has kept depends on the values of the loss",
            "Lower history_size, or measure a training step",
        )
    return UsageError(
        asked,
        "it has made none yet",
        "Only the rules of torch.optim's own optimizers are known here",
        "Take one training step and ask again, or predict one: vramkit.estimate(model, batch, optimizer=...)",
    )

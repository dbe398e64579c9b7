"""torch's private names of modules and parameters, and of what wraps or watches them.

Knows where torch keeps things; sends, hooks and runs nothing.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .names import look_up, mentioned, place_of, reader_of, word_of

children_of: Callable[[torch.nn.Module], Mapping[str, torch.nn.Module | None]] = reader_of(
    "torch.nn.Module._modules", "profile", probe=lambda: mentioned("_modules", torch.nn.Module.add_module)
)
"""The modules in a module. ``named_children()`` is a method that programs override."""

parameters_of: Callable[[torch.nn.Module], Mapping[str, torch.nn.Parameter | None]] = reader_of(
    "torch.nn.Module._parameters",
    "profile",
    probe=lambda: mentioned("_parameters", torch.nn.Module.register_parameter),
)
"""A module's own parameters. ``named_parameters()`` is a method that programs override."""

_REPLICA = word_of("torch.nn.Module._is_replica", "profile")


def is_replica(module: torch.nn.Module) -> bool:
    """Whether ``DataParallel`` has made a module for one call."""
    return bool(getattr(module, _REPLICA, False))


RECURRENT: Any = look_up("torch.ops.aten._cudnn_rnn", "programs", fallback=None)
"""The operator that is a whole recurrent layer on CUDA; None: there is none."""

# -- hooks ------------------------------------------------------------------------------------------------------------

gradient_hooks_of: Callable[[torch.Tensor], Mapping[int, Any] | None] = reader_of(
    "torch.Tensor._post_accumulate_grad_hooks", "profile", "programs"
)
"""Hooks that run when a parameter's gradient is there."""

_backward_hooks_of: Callable[[torch.Tensor], Mapping[int, Any] | None] = reader_of(
    "torch.Tensor._backward_hooks", "programs"
)

TENSOR_HOOKS: Mapping[str, Callable[[torch.Tensor], Mapping[int, Any] | None]] = {
    "register_hook": _backward_hooks_of,
    "register_post_accumulate_grad_hook": gradient_hooks_of,
}
"""By the method that takes a hook: what reads those that a tensor has."""


def forget_no_hooks(tensor: torch.Tensor) -> None:
    """Let a tensor without hooks have no dict of them: C++ looks into none that came with a pickle."""
    if not _backward_hooks_of(tensor):
        tensor._backward_hooks = None


_OF_EVERY_MODULE = [
    place_of(f"torch.nn.modules.module.{name}", "programs", fallback=None)
    for name in (
        "_global_forward_hooks",
        "_global_forward_pre_hooks",
        "_global_backward_hooks",
        "_global_backward_pre_hooks",
    )
]


def hooks_of_every_module() -> list[Any]:
    """Those that ``register_module_forward_hook`` and its like have taken."""
    places = [place for place in _OF_EVERY_MODULE if place.owner is not None]
    return [hook for place in places for hook in vars(place.owner)[place.name].values()]


# -- settings ---------------------------------------------------------------------------------------------------------


def validates_arguments() -> bool:
    """Whether distributions check their arguments. Raises: AttributeError: this torch keeps it elsewhere."""
    return bool(getattr(torch.distributions.Distribution, _VALIDATES))


_VALIDATES = word_of("torch.distributions.Distribution._validate_args", "programs")

# -- parametrizations -------------------------------------------------------------------------------------------------

give_own_class: Callable[[torch.nn.Module], None] = look_up("torch.nn.utils.parametrize._inject_new_class", "programs")
"""Gives a module a class of its own, as its first parametrization does."""

give_property: Callable[[torch.nn.Module, str], None] = look_up(
    "torch.nn.utils.parametrize._inject_property", "programs"
)
"""Lets that class compute a parameter of the module."""

# -- what torch.compile makes ------------------------------------------------------------------------------------------

_COMPILED_FROM = word_of("torch.compile._torchdynamo_orig_callable", "programs")
_WRAPPED = word_of("torch._dynamo.OptimizedModule._orig_mod", "programs", "profile")


_MADE_BY_FSDP = "FSDPModule"
_INNER = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "OffloadWrapper": "_checkpoint_wrapped_module",
    "_FabricModule": "_forward_module",
}
"""By the class of a wrapper: its name for what it wraps."""
_MAKERS = ("torch.", "lightning.fabric.", "lightning_fabric.")
"""Whose these classes are: torch's, and Fabric's by either name of its package."""
_WRAPPERS = frozenset(name for name in _INNER.values() if name.startswith("_"))


def class_name(module: torch.nn.Module) -> str:
    """The name of a module's class, as its program wrote it: ``fully_shard`` gives it one of its own."""
    return _class_of(module).__name__


def _class_of(module: torch.nn.Module) -> type:
    kind = type(module)
    bases = kind.__bases__
    if len(bases) == 2 and bases[0].__name__ == _MADE_BY_FSDP and kind.__name__ == f"FSDP{bases[1].__name__}":
        return bases[1]
    return kind


def is_compiled(value: object) -> bool:
    """Whether ``torch.compile`` made a function or a module."""
    return _COMPILED_FROM in getattr(value, "__dict__", ()) or _is_optimized(value)


def _is_optimized(value: object) -> bool:
    return isinstance(value, torch.nn.Module) and class_name(value) == "OptimizedModule"


def chooses_by_time(value: object) -> bool:
    """Whether what ``torch.compile`` made is to choose between libraries' kernels and its own by their times."""
    configuration = getattr(value, "get_compiler_config", None)
    found = configuration() if callable(configuration) else None
    return isinstance(found, dict) and bool(found.get("max_autotune"))


OWN_COMPILED = word_of("torch.nn.Module._compiled_call_impl", "programs", "profile")
"""Where a module keeps what its own ``compile()`` has made of it."""


def compiles_itself(module: torch.nn.Module) -> bool:
    """Whether ``module.compile()`` was called."""
    return vars(module).get(OWN_COMPILED) is not None


def compiled_by(function: types.FunctionType) -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """What made a function by compiling, and of what, if ``torch.compile`` did: ``first(second)`` makes it again."""
    original = vars(function).get(_COMPILED_FROM) if _COMPILED_FROM else None
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    return (cells["self"].cell_contents, original) if original is not None and "self" in cells else None


def compiler_of(value: object) -> tuple[type, Sequence[Any], Mapping[str, Any]] | None:
    """The class, arguments and keywords that make what ``torch.compile`` compiles with; None: the value is none.

    torch's own pickle of it sets ``dynamic`` under a name that nobody reads, and leaves ``fullgraph`` out.
    """
    if type(value).__name__ != "OptimizeContext":
        return None
    reduced: Any = value.__reduce__()
    kind, arguments, *state = reduced
    if len(state) != 1 or not isinstance(state[0], dict):
        return None
    kept = {name: vars(value)[own] for name, own in _COMPILER_KEEPS.items() if own in vars(value)}
    if vars(value).get("_isolate_recompiles_id", -1) >= 0:
        kept["isolate_recompiles"] = True
    return kind, arguments, {**state[0], **kept}


_COMPILER_KEEPS = {
    "fullgraph": "fullgraph", "error_on_graph_break": "error_on_graph_break", "dynamic_shapes": "_dynamic_shapes",
}  # fmt: skip


def in_compiled(module: torch.nn.Module) -> torch.nn.Module | None:
    """The module that ``torch.compile`` has wrapped."""
    return getattr(module, _WRAPPED, None)


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """The module that ``torch.compile``, DP, DDP, FSDP, Fabric or a checkpoint has wrapped; any other is itself."""
    while True:
        inner = in_compiled(module) if _is_optimized(module) else in_wrapper(module)
        if inner is None:
            return module
        module = inner


def in_wrapper(module: torch.nn.Module) -> torch.nn.Module | None:
    """The module that a wrapper of torch's or Fabric's calls, so that both calls are one."""
    kind = _class_of(module)
    name = _INNER.get(kind.__name__)
    if name is None or not kind.__module__.startswith(_MAKERS):
        return None
    return children_of(module).get(name)


def unwrapped_name(name: str, wrapped: Sequence[str] = ()) -> str:
    """The name of a parameter or a module without what is wrapped around any module on the way.

    Args:
        name: as the model around it has it.
        wrapped: what `wrapped_in` says of that model.
    """
    for inner in wrapped:
        if f"{name}.".startswith(f"{inner}."):
            name = inner.rpartition(".")[0] + name[len(inner) :]
    return ".".join(part for part in name.split(".") if part != _WRAPPED and part not in _WRAPPERS)


def wrapped_in(model: torch.nn.Module) -> list[str]:
    """The names of modules in a model around which there is DP or DDP, the innermost first: the last part of each is
    the wrapper's, and other modules may be called the same.
    """
    return [
        f"{name}.{_INNER[_class_of(module).__name__]}"
        for name, module in reversed([*model.named_modules()])
        if name and in_wrapper(module) is not None and _INNER[_class_of(module).__name__] not in _WRAPPERS
    ]


def stand_in_dynamo(call: Callable[..., Any]) -> None:
    """Let dynamo take ``call`` for ``Module.__call__`` as torch made it, before it takes its place.

    That one dynamo passes over on its way to a module's forward. Anything else it traces and guards, so that what is
    compiled while ``call`` is there would be compiled anew when it goes.
    """
    _exchange_in_dynamo(torch.nn.Module.__call__, call)


def restore_in_dynamo(call: Callable[..., Any]) -> None:
    """Undo `stand_in_dynamo`, also where dynamo was imported meanwhile: it keeps what it finds in that place."""
    _exchange_in_dynamo(call, torch.nn.Module.__call__)


def _exchange_in_dynamo(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    for name in ("torch._dynamo.utils", "torch._dynamo.variables.nn_module"):
        module = sys.modules.get(name)
        if module is not None and getattr(module, "unpatched_nn_module_call", None) is old:
            module.unpatched_nn_module_call = new  # type: ignore[attr-defined] # not in its stub

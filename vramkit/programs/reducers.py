"""Objects that a pickle refuses, or would make something else of: each as a function that makes it, and its arguments.

Knows what torch's own pickles of them leave out; knows no program.
"""

from __future__ import annotations

import copyreg
import pickle
import sys
import types
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch.nn.utils import parametrize

from ..torch_internals import optimizers
from ..torch_internals.autograd import results_of
from ..torch_internals.modules import OWN_COMPILED, give_own_class, give_property


def is_module_of_its_own_class(value: object) -> bool:
    """Whether it is a module with a class of its own that can be imported: ``torch.ops``, ``torch.backends.cudnn``."""
    return (
        isinstance(value, types.ModuleType)
        and type(value) is not types.ModuleType
        and sys.modules.get(value.__name__) is value
    )


def as_parametrized(module: torch.nn.Module) -> tuple[Any, ...]:
    """A module of a class that torch made for it, when ``module.parametrizations`` began.

    That class refuses to be pickled, and nothing else is in the way: a module of the class before it goes instead,
    with everything that is in this one.
    """
    before: Any = parametrize.type_before_parametrizations(module)
    plain = before.__new__(before)
    plain.__dict__.update(module.__dict__)
    make, arguments, *rest = plain.__reduce_ex__(2)
    return _parametrized, (make, arguments, [*module.parametrizations]), *rest  # type: ignore[misc] # a ModuleDict


def _parametrized(make: Callable[..., torch.nn.Module], arguments: tuple[Any, ...], names: list[str]) -> object:
    module = make(*arguments)
    give_own_class(module)
    for name in names:
        give_property(module, name)
    return module


def compiled_again(compiler: Callable[..., Any], function: Callable[..., Any]) -> Any:
    """What ``torch.compile`` makes of a function: its own result holds what belongs to a thread."""
    return compiler(function)


def compiler_again(kind: type, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """What ``torch.compile`` compiles with, made as it was made first."""

    def again() -> Any:  # compiled autograd makes one for each backward
        return compiler_again(kind, arguments, keywords)

    return kind(*arguments, rebuild_ctx=again, **keywords)


def as_compiled(module: torch.nn.Module) -> Any:
    """A module that ``module.compile()`` has compiled, and stays so: its own pickle leaves that out.

    None: it has none, or is pickled in a way of its own.
    """
    compiled = vars(module).get(OWN_COMPILED)
    if compiled is None:
        return None
    reduced: Any = module.__reduce_ex__(2)
    make, arguments, state, *rest = reduced
    return (make, arguments, {**state, OWN_COMPILED: compiled}, *rest) if isinstance(state, dict) else None


def as_wrapper(value: Any) -> Any:
    """An object around a function that refuses to be pickled, as the one around the forward of a model that accelerate
    has prepared for mixed precision: what it holds is sent. None: it is none, or does not refuse.
    """
    own = getattr(type(value), "__getstate__", None)
    if own is getattr(object, "__getstate__", None) or "__wrapped__" not in getattr(value, "__dict__", ()):
        return None
    try:
        value.__getstate__()
    except pickle.PicklingError:
        return copyreg.__newobj__, (type(value),), dict(vars(value))  # type: ignore[attr-defined] # not in typeshed
    return None


def as_global(value: Any) -> Any:
    """A context variable, or a global object around one, as transformers' hooks use that note hidden states: the
    receiver has its own, under the same name. None: it is none, or no module has it.
    """
    around = getattr(value, "__dict__", None)
    if not isinstance(value, ContextVar) and not (
        isinstance(around, dict) and any(isinstance(each, ContextVar) for each in around.values())
    ):
        return None
    for module in [*sys.modules.values()]:
        for name, each in [*getattr(module, "__dict__", {}).items()]:
            if each is value and module.__name__ != "__main__":
                return getattr, (module, name)
    return None


def code_from(filename: str, make: Callable[..., types.CodeType], arguments: tuple[Any, ...]) -> types.CodeType:
    """Code, with the file that it comes from."""
    return make(*arguments).replace(co_filename=filename)


def as_generator(generator: torch.Generator) -> tuple[Any, ...]:
    """A generator of the CPU. By its own pickle it would follow the devices to the GPU."""
    return _generator, (generator.get_state().numpy().tobytes(),)


def _generator(state: bytes) -> torch.Generator:
    generator = torch.Generator("cpu")
    generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    return generator


class HalfScaler(torch.amp.GradScaler):
    """A scaler that is disabled in a process without CUDA, where nobody knows why: on purpose, or for want of CUDA.

    It is enabled by the first loss that was computed in float16, which is what scalers are for. Wrong where one is used
    with bfloat16 all the same: that costs a few hundred bytes on the device.
    """

    def __init__(self) -> None:
        super().__init__("cuda", enabled=False)

    def scale(self, outputs: Any) -> Any:
        """Scale losses, or give them back as they are."""
        if not self.is_enabled() and _is_in_half(outputs):
            super().__init__("cpu")  # here torch may find no CUDA device either, and would disable it again
            optimizers.set_scaler_device(self, "cuda")
        return super().scale(outputs)


def _is_in_half(losses: Any) -> bool:
    """Whether something in float16 is among losses, or was computed on the way to them."""
    if torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") is torch.float16:
        return True
    tensors = [losses] if isinstance(losses, torch.Tensor) else [*losses]
    if any(tensor.dtype is torch.float16 for tensor in tensors):
        return True
    nodes = [tensor.grad_fn for tensor in tensors]
    seen: set[object] = set()
    while nodes:
        node: Any = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if any(result.dtype is torch.float16 for result in results_of(node)):
            return True
        nodes += [following for following, _ in node.next_functions]
    return False


def without_state(optimizer: torch.optim.Optimizer) -> Any:
    """An optimizer as it was made. Adagrad's state is made with it, so it stays."""
    if isinstance(optimizer, torch.optim.Adagrad):
        return optimizer.__reduce_ex__(2)
    state = optimizer.__getstate__()
    if "state" in state:
        # What a class adds of its own (LBFGS its parameters, a wrapper the optimizer within), torch's own leaves out.
        own = {name: value for name, value in vars(optimizer).items() if name not in _of_every_optimizer()}
        state = {**own, **state, "state": defaultdict(dict)}
    return copyreg.__newobj__, (type(optimizer),), state  # type: ignore[attr-defined] # not in typeshed


@cache
def _of_every_optimizer() -> frozenset[str]:
    """Names of attributes that torch gives to optimizers, also to those that it unpickles, and those of schedulers."""
    plain = torch.optim.SGD([torch.nn.Parameter(torch.zeros(0, device="cpu"))])
    return frozenset({*vars(plain).keys() - {optimizers.ASKS_CAPTURABLE}, "step", *optimizers.OF_SCHEDULERS})

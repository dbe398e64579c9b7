"""Results of operators on fake tensors, remembered: a training step calls the same ones on the same shapes many times.

``FakeTensorMode`` remembers them too, but to find a result there takes longer than most kernels. Knows how fakes are
made; nothing of memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...torch_internals.dispatch import below_python
from ...torch_internals.fakes import FakeTensor, make_fake
from ...torch_internals.storages import key_of

_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
_NEVER = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view}
_MOVERS = {"set_", "resize_", "resize_as_"}  # they do something to what they return


@dataclass(slots=True)
class _Same:
    """The result is an argument."""

    position: tuple[int, ...]


@dataclass(slots=True)
class _View:
    """The result lies in an argument's memory."""

    position: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    attributes: dict[str, Any]


@dataclass(slots=True)
class _New:
    """The result has memory of its own."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    attributes: dict[str, Any]


@dataclass(slots=True)
class _Several:
    """The result is a tuple or a list."""

    kind: type
    parts: tuple[Any, ...]


class _Unknown(Exception):  # noqa: N818 - it only says that nothing is remembered
    pass


class ResultCache:
    """Calls operators on fakes, and makes the results itself where it has seen the like before."""

    def __init__(self) -> None:
        self._recipes: dict[Any, Any] = {}

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result, which shares no memory with anything that it would not share it with otherwise."""
        try:
            key = (func, _key(args), _key(tuple(kwargs.items())) if kwargs else ())
            recipe = self._recipes.get(key)
        except _Unknown:
            return func(*args, **kwargs)
        if recipe is None:
            result = func(*args, **kwargs)
            try:
                is_plain = _NEVER.isdisjoint(func.tags) and func.overloadpacket.__name__ not in _MOVERS
                self._recipes[key] = _recipe(result, args, is_plain and not any(_tensors(kwargs.values())))
            except _Unknown:
                self._recipes[key] = False
            return result
        return _made(recipe, args) if recipe else func(*args, **kwargs)

    def of_each(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As a call, of an operator on lists of tensors: thousands, of which none has to be looked up."""
        name = func.overloadpacket.__name__
        if name.endswith("_"):
            return None
        first, second = (args[1], None) if isinstance(args[0], (int, float)) else (args[0], (*args, None)[1])
        if (
            name in _LIKE_THE_FIRST
            and all(isinstance(tensor, FakeTensor) and tensor.is_floating_point() for tensor in first)
            and not (isinstance(second, (list, tuple)) and any(map(_is_more, second, first)))
        ):
            return [self(_LIKE, (tensor,), {}) for tensor in first]
        return self(func, args, kwargs)


def _is_more(one: Any, other: torch.Tensor) -> bool:
    """Whether the result of two is not like the other one."""
    return isinstance(one, torch.Tensor) and (one.dim() > other.dim() or one.dtype != other.dtype)


_LIKE = torch.ops.aten.empty_like.default
_LIKE_THE_FIRST = {
    "_foreach_add", "_foreach_sub", "_foreach_mul", "_foreach_div", "_foreach_addcmul", "_foreach_addcdiv",
    "_foreach_sqrt", "_foreach_rsqrt", "_foreach_neg", "_foreach_abs", "_foreach_sign", "_foreach_exp", "_foreach_log",
    "_foreach_reciprocal", "_foreach_maximum", "_foreach_minimum", "_foreach_pow", "_foreach_lerp",
    "_foreach_clamp_max", "_foreach_clamp_min",
}  # fmt: skip
"""Their results are as the tensors of their first list, unless another has more dimensions or another type."""


def _key(values: tuple[Any, ...]) -> tuple[Any, ...]:
    parts: list[Any] = []
    for value in values:
        if type(value) is FakeTensor:
            bits = value.is_conj(), value.is_neg()
            parts.append((value.shape, value.stride(), value.storage_offset(), value.dtype, value.fake_device, bits))
        elif isinstance(value, (tuple, list)):
            parts.append(_key(tuple(value)))
        elif isinstance(value, _PLAIN):
            parts.append((type(value), value))
        else:
            raise _Unknown
    return tuple(parts)


def _tensors(values: Any, position: tuple[int, ...] = ()) -> Any:
    for index, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            yield (*position, index), value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value, (*position, index))


def _recipe(result: Any, args: tuple[Any, ...], is_plain: bool) -> Any:
    if result is None:
        return _Several(type(None), ())
    if isinstance(result, (tuple, list)) and type(result) in (tuple, list):
        return _Several(type(result), tuple(None if each is None else _recipe(each, args, is_plain) for each in result))
    if not is_plain or type(result) is not FakeTensor or result.constant is not None:
        raise _Unknown
    if result.is_conj() or result.is_neg():  # views by a bit, which what is made here would not have
        raise _Unknown
    for position, tensor in _tensors(args):
        if tensor is result:
            return _Same(position)
    meta = (tuple(result.shape), result.stride())
    storage = result.untyped_storage()
    attributes = dict(result.__dict__)
    for position, tensor in _tensors(args):
        if key_of(tensor.untyped_storage()) == key_of(storage):
            return _View(position, *meta, int(result.storage_offset()), result.dtype, result.fake_device, attributes)
    with below_python():
        like = torch.empty_strided(*meta, dtype=result.dtype, device="meta")
    if result.storage_offset() or like.untyped_storage().nbytes() != storage.nbytes():
        raise _Unknown
    return _New(*meta, result.dtype, result.fake_device, attributes)


def _at(args: Any, position: tuple[int, ...]) -> Any:
    for index in position:
        args = args[index]
    return args


def _viewed(base: torch.Tensor, recipe: _View) -> torch.Tensor:
    if torch.is_inference_mode_enabled() and not base.is_inference():
        with torch.inference_mode(False):  # a view of a tensor that autograd knows is one that it knows
            return _viewed(base, recipe)
    meta = torch.empty(0, dtype=recipe.dtype, device="meta")
    return meta.set_(base.untyped_storage(), recipe.offset, recipe.size, recipe.stride)


def _made(recipe: Any, args: tuple[Any, ...]) -> Any:
    if type(recipe) is _Several:
        if recipe.kind is type(None):
            return None
        return recipe.kind([None if part is None else _made(part, args) for part in recipe.parts])
    if type(recipe) is _Same:
        return _at(args, recipe.position)
    with below_python():
        if type(recipe) is _New:
            meta = torch.empty_strided(recipe.size, recipe.stride, dtype=recipe.dtype, device="meta")
        else:
            meta = _viewed(_at(args, recipe.position), recipe)
        made = make_fake(meta, recipe.device)
    made.__dict__.update(recipe.attributes)
    return made

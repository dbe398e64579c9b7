"""The tables of rules and of checks: they take arguments by the names of an operator's schema, in this torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from vramkit import gpus
from vramkit.allocator import AllocatorConf, CachingAllocator
from vramkit.engines.fake.kernels import RULES, dtype_checks, rule_of
from vramkit.engines.fake.kernels.arguments import binders
from vramkit.engines.fake.kernels.call import Call
from vramkit.engines.fake.recorder import Recorder
from vramkit.errors import DeviceError

aten = torch.ops.aten


def test_every_rule_and_check_names_arguments_of_every_overload_that_it_is_entered_for() -> None:
    entered = [(overload, function, 1) for overload, (function, _) in RULES.items()]
    entered += [(overload, function, 0) for overload, (function, _) in dtype_checks.CHECKS.items()]

    for overload, function, skipped in entered:
        known = {argument.name for argument in overload._schema.arguments}
        wanted = list(inspect.signature(function).parameters.values())[skipped:]
        missing = [each.name for each in wanted if each.name not in known and each.default is each.empty]
        assert not missing, (overload, function)
    assert len(entered) > 300


def test_a_rule_is_found_for_every_overload_that_comes_to_a_kernel() -> None:
    composite = torch._C.DispatchKey.CompositeImplicitAutograd

    for operator in {overload.overloadpacket for overload in RULES}:
        for name in operator.overloads():
            overload = getattr(operator, name)
            if torch._C._dispatch_has_kernel(overload.name()) and not overload.has_kernel_for_dispatch_key(composite):
                assert overload in RULES, overload


def topk(k: int, dim: int, sorted: bool) -> None:
    """Some arguments of ``topk(Tensor self, SymInt k, int dim=-1, bool largest=True, bool sorted=True)``."""


def test_arguments_are_bound_by_their_names_wherever_they_are_given() -> None:
    bind = dict(binders(topk, aten.topk))[aten.topk.default]

    assert bind(("x", 3), {}) == [3, -1, True]
    assert bind(("x", 3, 0, False, False), {}) == [3, 0, False]
    assert bind(("x",), {"k": 3, "sorted": False}) == [3, -1, False]


def test_an_argument_that_is_only_given_by_name_is_not_taken_for_one_by_position() -> None:
    def rule(dim: int) -> None: ...

    found = dict(binders(rule, aten.sort))

    assert found[aten.sort.default](("x", 2), {}) == [2]
    assert found[aten.sort.stable](("x",), {"stable": True, "dim": 1}) == [1]
    assert found[aten.sort.stable](("x",), {"stable": True}) == [-1]


def test_what_only_some_overloads_have_takes_the_rules_default_in_the_others() -> None:
    def rule(dim: object = "none") -> None: ...

    found = dict(binders(rule, aten.sum))

    assert found[aten.sum.default](("x",), {}) == ["none"]
    assert found[aten.sum.dim_IntList](("x", [1]), {}) == [[1]]


def test_an_overload_that_is_taken_apart_is_left_out_where_it_calls_its_arguments_otherwise() -> None:
    def rule(self: torch.Tensor) -> None: ...

    found = dict(binders(rule, aten.upsample_nearest1d))  # .vec has an input

    assert aten.upsample_nearest1d.default in found
    assert aten.upsample_nearest1d.vec not in found


def of_a_third_matrix(mat3: torch.Tensor) -> None: ...


def of_dimensions(dim: int) -> None: ...


def of_dimensions_or_none(axis: int | None = None) -> None: ...


@pytest.mark.parametrize(
    ("rule", "operator", "parts"),
    [
        (of_a_third_matrix, aten.mm, ("of_a_third_matrix", "'mat3'", "aten.mm", "mat2", "self")),
        (of_dimensions, aten.sum, ("'dim'", "aten.sum.default", "dtype", "self")),
        (of_dimensions_or_none, aten.sum, ("'axis'", "aten.sum", "dim", "keepdim")),
    ],
)
def test_a_name_that_the_schema_lacks_is_an_error_when_the_rule_is_entered(
    rule: Callable[..., None], operator: Any, parts: tuple[str, ...]
) -> None:
    with pytest.raises(DeviceError) as caught:
        list(binders(rule, operator))

    assert all(part in str(caught.value) for part in (*parts, torch.__version__, 'engine="virtual"'))


def test_an_operator_without_a_rule_is_bounded_by_the_largest_of_what_it_is_given_and_gives() -> None:
    allocator = CachingAllocator(None, AllocatorConf(), context=0)
    recorder = Recorder(allocator, gpus.find("a100-80gb"), detailed=False)
    found = rule_of(aten.linalg_lu_factor_ex.default)
    small, large = torch.empty(3, device="meta"), torch.empty(5, 7, device="meta")

    assert found is not None
    rule, bind = found
    rule(Call(recorder, aten.linalg_lu_factor_ex.default, (large, small)), *bind((small, large), {"check_errors": 1}))

    assert list(recorder.assumed.values()) == [2 * large.nbytes]
    assert "linalg_lu_factor_ex has no rule here" in recorder.notes()[0]


def test_pointwise_operators_views_and_those_that_are_listed_need_no_rule() -> None:
    for operator in (aten.mul.Tensor, aten.view.default, aten.clone.default, aten._foreach_add.List):
        assert rule_of(operator) is None

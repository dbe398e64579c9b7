"""Torch's own C++ frames name the operator and the node that made an allocation."""

from __future__ import annotations

import pytest
import torch

from vramkit.tape.native_frames import operator_of, part_of

KERNEL = ("", "at::native::empty_cuda(c10::ArrayRef<long>)")
PYTHON = ("/opt/site-packages/torch/nn/functional.py", "linear")
INTERPRETER = ("??", "PyObject_CallFunctionObjArgs")  # with its loop stripped, Python's own frames come last


def call(name: str) -> tuple[str, str]:
    return "??", f"at::_ops::{name}::call(at::Tensor const&)"


def handed_on(name: str) -> tuple[str, str]:
    return "??", f"at::_ops::{name}::redispatch(c10::DispatchKeySet, at::Tensor const&)"


def node(name: str) -> list[tuple[str, str]]:
    return [
        ("??", f"torch::autograd::generated::{name}::apply(std::vector<at::Tensor>&&)"),
        ("??", "torch::autograd::Engine::evaluate_function(std::shared_ptr<torch::autograd::GraphTask>&)"),
    ]


@pytest.mark.parametrize(
    ("frames", "operator"),
    [
        ([KERNEL, PYTHON], ""),
        ([KERNEL, handed_on("mm"), call("mm"), call("matmul"), PYTHON], "aten::mm"),
        # Kernels make their results by operators of their own.
        (
            [
                KERNEL,
                handed_on("empty_memory_format"),
                call("empty_like"),
                call("clone"),
                handed_on("relu"),
                call("relu"),
            ],
            "aten::relu",
        ),
        ([KERNEL, handed_on("empty_strided"), call("empty_like"), call("ones_like"), PYTHON], "aten::ones_like"),
        ([KERNEL, handed_on("empty_strided"), call("empty_strided"), PYTHON], "aten::empty_strided"),
        # Without autograd nothing is handed on but what makes tensors of nothing.
        (
            [handed_on("zeros"), call("zeros"), call("_efficient_attention"), call("attention"), PYTHON],
            "aten::attention",
        ),
        # A kernel may be written in Python, and a program's own code call an operator that calls it.
        ([call("clone"), PYTHON, handed_on("bmm"), call("bmm"), PYTHON, call("outside")], "aten::bmm"),
        ([handed_on("mm"), call("mm"), *node("AddmmBackward0")], "aten::mm (AddmmBackward0)"),
        ([call("clone"), PYTHON, handed_on("bmm"), *node("BmmBackward0"), call("outside")], "aten::bmm (BmmBackward0)"),
        # A checkpoint runs a forward again, and a hook runs anything: the node that is computed made none of it.
        ([handed_on("addmm"), call("addmm"), PYTHON, *node("MulBackward0")], "aten::addmm"),
        ([handed_on("addmm"), call("addmm"), INTERPRETER, *node("MulBackward0"), PYTHON], "aten::addmm"),
        ([handed_on("add_Tensor"), call("add_Tensor"), *node("")[1:], PYTHON], "aten::add"),
        ([KERNEL, *node("AccumulateGrad")], "AccumulateGrad"),
        ([handed_on("mul_Tensor"), PYTHON, ("??", "torch::autograd::PyNode::apply(int)")], "aten::mul"),
    ],
)
def test_the_operator_is_the_outermost_that_autograd_handed_on(frames: list[tuple[str, str]], operator: str) -> None:
    assert operator_of(part_of(*frame) for frame in frames) == operator


def test_names_of_c_plus_plus_lose_their_overload_and_nothing_else() -> None:
    exact = 0
    schemas = [
        schema
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("aten::") and any("Tensor" in str(result.type) for result in schema.returns)
    ]
    for schema in schemas:
        operator, overload = schema.name.removeprefix("aten::"), schema.overload_name
        found = part_of(*call(f"{operator}_{overload}" if overload else operator))
        assert found is not None
        assert f"{found[1]}_".startswith(f"{operator}_"), schema
        exact += found[1] == operator

    assert exact > 0.75 * len(schemas)


@pytest.mark.parametrize(
    "name", ["add_Tensor", "sum_dim_IntList", "max_dim", "mean_dim", "unique_dim", "empty_memory_format", "add__Tensor"]
)
def test_usual_operators_have_their_own_names(name: str) -> None:
    found = part_of(*call(name))

    assert found is not None
    assert hasattr(torch.ops.aten, found[1])

"""What torch's own C++ functions say of an allocation: which operator made it, and for which node of a backward.

Knows the names of these functions, as stacks have them. Whose a frame is, and what Python says, ``stacks`` knows.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable

_OPERATOR = re.compile(r"at::_ops::(?P<name>\w+)::(?P<how>call|redispatch)\(")
_NODE = re.compile(r"torch::autograd::(?:\w+::)*(?!PyNode\b)(?P<node>\w+)::apply\(")
_RUNS_NODES = ("torch::autograd::Engine::evaluate_function", "torch::autograd::Engine::thread_main")
_OF_CUBLAS = re.compile(r"at::cuda::[gs]et\w*(?:Workspace|BlasHandle|BlasLtHandle)\w*\(")
_PYTHON = (".py", ".pyw", ".ipynb")
_INTERPRETER = re.compile(r"_?Py[A-Z]\w*")
"""Where torch does not find the interpreter's loop, Python's frames come last, and in their place only C functions."""

# C++ calls `add.Tensor` `add_Tensor`. Of an overload that is not here a part stays; no part of an operator's name goes.
_OVERLOAD = re.compile(
    r"_(?:(?:dim_|int_|self_)?(?:Tensor|Scalar|ScalarList|IntList|List)(?:_\w+)?|correction|dtype|dim_(?:max|min|int)|"
    r"grad_input|int|low|memory_format|other|out|padding|self|stable|start|start_step|tensor_lr|using_ints|value|vec|x|"
    r"(?<!unique_)(?<!along_)(?<!except_)(?<!batch_)(?<!with_)dims?)(?:_out)?$"
)
# What kernels make their results with, and what others are made with: neither says what it is for.
_EMPTY = frozenset(
    {
        "empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided", "resize_",
        "_resize_output_",
    }
)  # fmt: skip
_FACTORIES = frozenset(
    {
        "arange", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn", "randperm",
        "scalar_tensor", "tril_indices", "triu_indices", "zeros",
    }
)  # fmt: skip


class Part(enum.Enum):
    """What a frame is to the question which operator made something."""

    PYTHON = enum.auto()
    CALLED = enum.auto()
    """The dispatcher called an operator."""
    HANDED_ON = enum.auto()
    """Autograd, or what else comes before the kernels, called the operator's kernel."""
    NODE = enum.auto()
    """A node of a backward was computed."""
    ENGINE = enum.auto()
    """The autograd engine ran: what is outside of it says nothing."""


def part_of(file: str, function: str) -> tuple[Part, str] | None:
    """What a frame is, and the name of the operator or node; None: it says nothing.

    Args:
        file, function: as a stack has them.
    """
    if found := _OPERATOR.match(function):
        part = Part.CALLED if found["how"] == "call" else Part.HANDED_ON
        return part, _OVERLOAD.sub("", found["name"], count=1)
    if node := node_of(function):
        return Part.NODE, node
    if is_engine(function):
        return Part.ENGINE, ""
    is_python = file.endswith(_PYTHON) or file.startswith("<") or _INTERPRETER.fullmatch(function)
    return (Part.PYTHON, "") if is_python else None


def node_of(function: str) -> str:
    """The node that a function computes, ``"AddmmBackward0"``; empty: none."""
    found = _NODE.match(function)
    return "" if found is None else found["node"]


def is_engine(function: str) -> bool:
    """Whether a function is the one that computes the nodes."""
    return function.startswith(_RUNS_NODES)


def is_workspace(function: str) -> bool:
    """Whether a function gives cuBLAS what it keeps for its products."""
    return _OF_CUBLAS.match(function) is not None


def operator_of(parts: Iterable[tuple[Part, str] | None]) -> str:
    """The operator that made an allocation, as `operator_text` has it; empty: not known.

    It is the outermost that autograd handed on: what a ``TorchDispatchMode`` would see. Where autograd is off
    (``torch.inference_mode``), it is the outermost of all.

    Args:
        parts: of each frame, the innermost first.
    """
    handed_on = called = empty = node = ""
    is_native = True  # whether what was met last is no Python: hooks and recomputations run inside of nodes
    for found in parts:
        if found is None:
            continue
        part, name = found
        if part is Part.NODE:
            node = name if is_native else ""
        if part in (Part.NODE, Part.ENGINE):
            break
        is_native = part is not Part.PYTHON
        if not is_native:
            continue
        if name in _EMPTY:
            empty = name
            continue
        called = name
        if part is Part.HANDED_ON and name not in _FACTORIES:
            handed_on = name
    name = handed_on or called or empty
    return operator_text(f"aten::{name}" if name else "", node)


def operator_text(operator: str, node: str) -> str:
    """``"aten::mm"``, and in a backward ``"aten::mm (MmBackward0)"``.

    Args:
        operator: with its namespace, without its overload.
        node: of the backward; empty: of none.
    """
    return f"{operator} ({node})" if operator and node else operator or node

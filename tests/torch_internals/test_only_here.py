"""Nobody else names torch's private parts. The linter sees attributes and imports; this sees what it can't."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import vramkit
from vramkit.torch_internals.names import TABLE
from vramkit.torch_internals.needs import missing_for
from vramkit.torch_internals.operators import PRIVATE

ROOT = Path(vramkit.__file__).parent
missing_for("fake engine")  # which looks the last names up
PARTS = {part for name in TABLE for part in name.path.split(".") if part.startswith("_")}
KERNELS, OVERLAY = ROOT / "engines" / "fake" / "kernels", ROOT / "engines" / "fake" / "overlay"


def _nodes(folder: Path) -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", node


def _private_attributes(folder: Path) -> Iterator[tuple[str, str]]:
    """Where an object other than ``self`` is asked for a private attribute, and for which."""
    for place, node in _nodes(folder):
        if not isinstance(node, ast.Attribute) or not _is_private(node.attr):
            continue
        if not isinstance(node.value, ast.Name) or node.value.id not in ("self", "cls"):
            yield place, node.attr


def _is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__")


def test_kernel_rules_name_private_operators_of_the_list_and_nothing_else() -> None:
    found = list(_private_attributes(KERNELS))

    assert found
    assert [each for each in found if each[1] not in PRIVATE] == []


def test_every_private_name_of_the_overlay_is_looked_up_before_it_runs() -> None:
    found = list(_private_attributes(OVERLAY))
    replaced = [
        (place, node.args[2].value)
        for place, node in _nodes(OVERLAY)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "put"
        and isinstance(node.args[2], ast.Constant)
        and _is_private(node.args[2].value)
    ]

    assert found
    assert replaced
    assert [each for each in (*found, *replaced) if each[1] not in PARTS] == []


def test_every_private_operator_of_the_list_is_used() -> None:
    used = {name for folder in (KERNELS, OVERLAY) for _, name in _private_attributes(folder)}

    assert set(PRIVATE) <= used


def test_no_other_file_has_a_private_name_in_a_string() -> None:
    # Operators' names are data to whoever knows what they compute.
    last = {name.path.rpartition(".")[2] for name in TABLE if not name.path.startswith("torch.ops.aten.")}
    inside = (ROOT / "torch_internals", OVERLAY, KERNELS)

    found = [
        (place, node.value)
        for place, node in _nodes(ROOT)
        if isinstance(node, ast.Constant)
        and _is_private(node.value)
        and node.value in last
        and not any((ROOT / place.partition(":")[0]).is_relative_to(folder) for folder in inside)
    ]

    assert found == []

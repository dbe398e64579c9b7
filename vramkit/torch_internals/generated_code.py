"""The Python code that Inductor writes for a graph: for which of the graph's nodes each of its statements allocates.

Knows the text, its comments above all; runs nothing. What a node's module is, knows whoever has the graph.

The comment of a kernel's call names the nodes of Dynamo's graph that were fused into it. The one before its definition
also names the values that it writes, in the order in which their buffers are made (torch 2.8 has none of that). A
kernel that is used for several layers is defined once: for the others the nodes are those at the same places in the
comments of the calls.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

_SOURCES = re.compile(r"# (?:Topologically Sorted|Unsorted) Source Nodes: \[(.*?)\]")
_MAPPED = re.compile(r"#   (\S+) => (.*)")
_TYPED = re.compile(r'#   %(\w+) : Tensor "(\w+)\[([^\]]*)\]')
_DEFINED = re.compile(r"#   %(\w+) :.* = call_function\[target=[^\]]*\]\((.*)\)$")
_RETURNED = re.compile(r"#   return (.*)")
_KERNEL = re.compile(r"(\w+) = async_compile\.")
_NODE = re.compile(r"%(\w+)")
_MAKES = re.compile(r"empty_strided_\w+$")
_HARMLESS = re.compile(r"(assert_\w+|get_raw_stream|reinterpret_tensor|clear|set_device|copy_if_misaligned)$")
_FUNCTION = re.compile(r"call$|partition_\d+$")
_DTYPES = {
    "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "bool": "b8", "uint8": "u8", "int8": "i8",
    "int16": "i16", "int32": "i32", "int64": "i64",
}  # fmt: skip

Names = tuple[str, ...]
Owner = tuple[Names, ...]
"""Whose one value is: the first of these groups of nodes of which any is known."""
Owners = tuple[Owner, ...]
"""Whose an allocation is: of more than one of these where it can't be told of which."""
NOBODY: Owners = ()


@dataclass(frozen=True)
class Plan:
    """What is done in a file of generated code."""

    owners: list[Owners]
    """Whose what is allocated is; by number."""
    before: dict[str, dict[int, int]]
    """Of each function: before which lines whose allocations begin, as an index of ``owners``; -1: nobody's."""


@dataclass
class _Kernel:
    sources: dict[str, Names] = field(default_factory=dict)  # by the node of Dynamo's graph: the nodes it became
    types: dict[str, tuple[str, str]] = field(default_factory=dict)  # of a value: data type and size
    uses: dict[str, Names] = field(default_factory=dict)  # of a value: what it is computed from
    writes: Names = ()
    first: Names | None = None  # the nodes in the comment of its first call
    made: Sequence[str] = ()  # the buffers that were made for that

    def owner(self, value: str, here: Names) -> Owner:
        """Whose a value is, where the kernel is called for the nodes ``here``."""
        there = dict(zip(self.first or (), here, strict=False))

        def sources_of(values: Sequence[str]) -> Names:
            return tuple(there[name] for name, made in self.sources.items() if set(made) & set(values))

        users = [name for name, used in self.uses.items() if value in used]
        own = [value], self.uses.get(value, ()), users[:1]
        return (*(sources_of(values) for values in own), here)


def is_backward(source: str) -> bool:
    """Whether a file is for the backward of a graph."""
    return "_backward'" in source.partition("\n")[0]


def plan_of(source: str) -> Plan:
    """Read a file of generated code.

    Args:
        source: its text.
    """
    lines = source.splitlines()
    kernels = _kernels(lines)
    plan = Plan([], {})
    for function in _functions(ast.parse(source)):
        _Reading(lines, kernels, plan).read(function)
    return plan


def marked(source: str, path: str, plan: Plan, enter: str, part: str) -> Iterator[tuple[str, ast.Module]]:
    """The functions of a file with calls before the statements of its plan, each alone in a module, by their names.

    Args:
        source, path: of the file.
        plan: of it.
        enter: global function that is called, without an argument, where ``call`` begins.
        part: the one that is called with an index of ``plan.owners``, or -1.
    """
    for function in _functions(ast.parse(source, path)):
        if not plan.before[function.name] and (function.name != "call" or not plan.owners):
            continue
        _Marking(plan.before[function.name], part).visit(function)
        if function.name == "call":
            function.body.insert(0, _call(enter, [], function.body[0]))
        yield function.name, ast.Module([function], [])


def _functions(tree: ast.Module) -> list[ast.FunctionDef]:
    inside = [each for kept in tree.body if isinstance(kept, ast.ClassDef) for each in kept.body]
    return [each for each in (*tree.body, *inside) if isinstance(each, ast.FunctionDef) and _FUNCTION.match(each.name)]


def _kernels(lines: Sequence[str]) -> dict[str, _Kernel]:
    """What the comments say before each kernel's definition, by its name."""
    found, kernel = {}, _Kernel()
    for line in lines:
        if not line.startswith("#"):
            if match := _KERNEL.match(line):
                found[match[1]] = kernel
            if line:
                kernel = _Kernel()
        elif match := _MAPPED.match(line):
            kernel.sources[match[1]] = tuple(match[2].split(", "))
        elif match := _RETURNED.match(line):
            kernel.writes = tuple(_NODE.findall(match[1]))
        else:
            if match := _TYPED.match(line):
                kernel.types[match[1]] = match[2], _size(match[3])
            if match := _DEFINED.match(line):
                kernel.uses[match[1]] = tuple(_NODE.findall(match[2]))
    return found


def _size(shape: str) -> str:
    """How many numbers there are, where that is known; else what is written."""
    parts = [part.strip() for part in shape.split(",") if part.strip()]
    return (
        str(math.prod(map(int, parts))) if all(part.isdigit() for part in parts) else ",".join(parts).replace(" ", "")
    )


@dataclass
class _Buffer:
    kind: tuple[str, str]
    """Data type and size."""
    root: str
    """The name that its memory had first."""
    owners: Owners = NOBODY


@dataclass
class _Reading:
    """Reads one function, statement by statement."""

    lines: Sequence[str]
    kernels: Mapping[str, _Kernel]
    plan: Plan
    buffers: dict[str, _Buffer] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)  # buffers that were made for the next kernel
    steps: list[tuple[int, str | Owners]] = field(
        default_factory=list
    )  # line, and what it makes: a buffer, or for whom

    def read(self, function: ast.FunctionDef) -> None:
        returned: set[str] = set()
        commented = function.lineno
        for statement in _statements(function.body):
            line = statement.lineno
            if isinstance(statement, ast.Return):
                returned |= _names(statement)
                self.steps.append((line, NOBODY))
            elif not isinstance(statement, (ast.Assign, ast.Expr)):
                if not isinstance(statement, ast.Delete):
                    self.steps.append((line, NOBODY))
            elif not self._makes(statement) and not self._is_harmless(statement):
                here = self._comment(commented, line)
                commented = line
                self._runs(statement, here)
        last: dict[str, Owners] = {}  # of memory that the graph's caller gets: whose value it has then
        for name, buffer in self.buffers.items():
            if name in returned and buffer.owners:
                last[buffer.root] = buffer.owners
        places = self.plan.before.setdefault(function.name, {})
        holds: Owners = NOBODY
        for line, made in self.steps:
            owners = last.get(made, self.buffers[made].owners) if isinstance(made, str) else made
            if owners != holds:
                places.setdefault(line, len(self.plan.owners) if owners else -1)
                if owners:
                    self.plan.owners.append(owners)
                holds = owners

    def _makes(self, statement: ast.Assign | ast.Expr) -> bool:
        """Take note of a buffer that is made, or whose memory becomes another's."""
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            return False
        name, value = statement.targets[0].id, statement.value
        if isinstance(value, ast.Call) and _MAKES.match(_called(value)):
            dtype = _DTYPES.get(_called(value.args[2]), "")
            self.buffers[name] = _Buffer((dtype, _size(ast.unparse(value.args[0]).strip("()"))), name)
            self.steps.append((statement.lineno, name))
        else:
            view = value if isinstance(value, ast.Call) and _called(value) == "reinterpret_tensor" else None
            viewed = value if view is None else view.args[0]
            old = self.buffers.get(viewed.id) if isinstance(viewed, ast.Name) else None
            if old is None:
                return False
            size = old.kind[1] if view is None else _size(ast.unparse(view.args[1]).strip("()"))
            self.buffers[name] = _Buffer((old.kind[0], size), old.root)
        self.pending.append(name)
        return True

    def _is_harmless(self, statement: ast.Assign | ast.Expr) -> bool:
        """Whether it allocates nothing, or only what nobody in the graph has asked for."""
        return all(
            _HARMLESS.match(_called(each)) is not None for each in ast.walk(statement) if isinstance(each, ast.Call)
        )

    def _comment(self, after: int, before: int) -> Names:
        """The nodes that the comment before a line names, if there is one after another line."""
        for line in reversed(self.lines[after : before - 1]):
            if match := _SOURCES.search(line):
                return tuple(filter(None, match[1].split(", ")))
        return ()

    def _runs(self, statement: ast.Assign | ast.Expr, here: Names) -> None:
        value = statement.value
        function = value.func if isinstance(value, ast.Call) else value
        kernel = None
        if isinstance(function, ast.Attribute) and function.attr == "run" and isinstance(function.value, ast.Name):
            kernel = self.kernels.get(function.value.id, _Kernel())
        made, self.pending = self.pending, []
        if kernel is None:  # an operator is the last of the nodes that it was made of: it needs the others
            owners: Owners = (((here[-1:]), here),) if here else NOBODY
            for name in made:
                self.buffers[name].owners = owners
            self.steps.append((statement.lineno, owners))
        else:
            if kernel.first is None:
                kernel.first, kernel.made = here, made
            for name, owners in zip(made, self._written(kernel, made, here), strict=True):
                self.buffers[name].owners = owners

    def _written(self, kernel: _Kernel, made: Sequence[str], here: Names) -> Iterator[Owners]:
        """Whose each of the buffers is that were made for a kernel.

        The kernel's values come in the order of their buffers, but some of them need none. So a buffer may have any of
        those of its type and size that leaves enough for those before and after it.
        """
        anyone: Owners = ((here,),)
        if len(kernel.first or ()) != len(here) or not set(kernel.sources) <= set(kernel.first or ()):
            yield from [anyone] * len(made)
            return
        for values in _fitting(kernel, [self.buffers[name].kind for name in made]):
            yield tuple(dict.fromkeys(kernel.owner(value, here) for value in values)) or anyone


def _fitting(kernel: _Kernel, made: Sequence[tuple[str, str]]) -> list[set[str]]:
    """Of each buffer, told by its data type and size, the values that it can have, if the order is the same in both."""
    writes, count = kernel.writes, len(made)

    def fits(value: str, at: int) -> bool:
        if re.fullmatch(r"buf\d+", value):  # it has no node, and is called by the buffer of the kernel's first call
            return kernel.made[at : at + 1] == [value]
        return value not in kernel.types or kernel.types[value] == made[at]

    # How many of the buffers, from the first and from the last on, find a value before and after each.
    before, after = [0], [0]
    for value in writes:
        at = before[-1]
        before.append(at + (at < count and fits(value, at)))
    for value in reversed(writes):
        at = count - 1 - after[-1]
        after.append(after[-1] + (at >= 0 and fits(value, at)))
    after.reverse()
    return [
        {value for j, value in enumerate(writes) if before[j] >= i and after[j + 1] >= count - 1 - i and fits(value, i)}
        for i in range(count)
    ]


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        if isinstance(statement, ast.With):
            yield from _statements(statement.body)
        else:
            yield statement


def _called(value: ast.expr) -> str:
    """The last name of what is called, or of an attribute."""
    if isinstance(value, ast.Call):
        return _called(value.func)
    return value.attr if isinstance(value, ast.Attribute) else value.id if isinstance(value, ast.Name) else ""


def _names(statement: ast.stmt) -> set[str]:
    return {each.id for each in ast.walk(statement) if isinstance(each, ast.Name)}


def _call(name: str, arguments: list[int], at: ast.stmt) -> ast.stmt:
    called = ast.Call(ast.Name(name, ast.Load()), [ast.Constant(each) for each in arguments], [])
    made = ast.copy_location(ast.Expr(called), at)
    return ast.fix_missing_locations(made)


@dataclass
class _Marking(ast.NodeTransformer):
    """Puts a call before the first statement of each of some lines."""

    before: dict[int, int]
    part: str
    seen: set[int] = field(default_factory=set)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if isinstance(body, list):
                setattr(node, name, [each for statement in body for each in self._with_call(statement)])
        return node

    def _with_call(self, statement: ast.stmt) -> Iterator[ast.stmt]:
        line = statement.lineno
        if line in self.before and line not in self.seen:
            self.seen.add(line)
            yield _call(self.part, [self.before[line]], statement)
        yield self.visit(statement)

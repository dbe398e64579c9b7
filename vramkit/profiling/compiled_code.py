"""Marks inside what ``torch.compile`` has compiled: for which layer each statement of the generated code allocates.

Knows modules and generated code. A marked copy takes the place of the code's functions: the same statements, with calls
between them. Nothing is compiled anew for it, and what was compiled before the recording is marked as well: what it
takes is in the code's own comments, and in Dynamo's graph, which stays with what was compiled.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from ..attribution.recording import Kind
from ..torch_internals import inductor
from ..torch_internals.generated_code import Plan, is_backward, marked, plan_of
from ..torch_internals.names import Place
from .handles import own, replace
from .marks import Marks
from .tracked_modules import TrackedModules

_ENTER, _PART = "_vramkit_enter", "_vramkit_part"


_Copies = tuple[Plan, dict[FunctionType, CodeType]]
_copies: weakref.WeakKeyDictionary[ModuleType, _Copies] = weakref.WeakKeyDictionary()
"""What was read of each module: once, and for every profile."""


def _copies_of(module: ModuleType) -> _Copies:
    """The plan of a module, and marked copies of its functions' code; none for a backward, whose comments name nodes
    that only its compilation knew.
    """
    path = str(module.__file__)
    source = Path(path).read_text()
    if is_backward(source):
        return Plan([], {}), {}
    plan = plan_of(source)
    copies = dict(marked(source, path, plan, _ENTER, _PART))
    functions = [each for each in inductor.functions_of(module) if each.__name__ in copies]
    codes = {each: _code_in(compile(copies[each.__name__], path, "exec"), each.__name__) for each in functions}
    if any(function.__closure__ or code.co_freevars for function, code in codes.items()):
        return plan, {}
    return plan, codes


class _Here(threading.local):
    table: Sequence[int] = ()


class CompiledCode:
    """Tells the layers of compiled forwards apart.

    Args:
        marks: where they are laid down.
        modules: that are known.
    """

    def __init__(self, marks: Marks, modules: TrackedModules) -> None:
        self._marks = marks
        self._modules = modules
        self._here = _Here()
        self._tables: dict[tuple[int, int, int], tuple[weakref.ref[Any], Sequence[int]]] = {}
        self._changed: list[tuple[FunctionType, CodeType]] = []

    def install(self, stack: ExitStack) -> None:
        """Mark what is loaded, and what will be.

        Args:
            stack: undoes it.
        """
        own(stack, self._undo)
        inductor.when_here(stack, partial(self._watch, stack))
        for module in inductor.loaded():
            self._mark(module)

    def _watch(self, stack: ExitStack, place: Place) -> None:
        plain = vars(place.owner)[place.name]
        load = plain.__get__(None, place.owner)

        def load_and_mark(*args: Any, **kwargs: Any) -> ModuleType:
            module: ModuleType = load(*args, **kwargs)
            self._mark(module)
            return module

        replace(stack, place.owner, place.name, staticmethod(load_and_mark))

    def _mark(self, module: ModuleType) -> None:
        """Put marked copies of its code in the place of a module's functions."""
        if not self._marks.is_open or not hasattr(module, "call"):
            return
        if vars(module).get(_ENTER, _nothing) is not _nothing:  # it is marked
            return
        try:
            if module not in _copies:
                _copies[module] = _copies_of(module)
            plan, codes = _copies[module]
        except Exception:  # it is not written as it was known to be: it stays as it is
            return
        if not codes:
            return
        self._changed += [(function, function.__code__) for function in codes]
        vars(module)[_ENTER] = self._enter_of(module, plan)
        vars(module)[_PART] = self._part()
        for function, code in codes.items():
            function.__code__ = code

    def _undo(self) -> None:
        with suppress(IndexError):
            while self._changed:
                function, code = self._changed[-1]
                function.__code__ = code
                # Another thread may still be in the marked copy, which looks its functions up.
                function.__globals__[_ENTER] = function.__globals__[_PART] = _nothing
                self._changed.pop()
        self._tables.clear()

    def _enter_of(self, module: ModuleType, plan: Plan) -> Callable[[], None]:
        def enter() -> None:
            stack = self._marks.lines.here.stack
            self._here.table = ()
            if not stack or self._marks.lines.here.skips or not self._marks.is_open:
                return
            compiled = inductor.compiled_above(sys._getframe(1))  # noqa: SLF001 - public, whatever its name
            key = id(module), id(compiled), stack[-1]
            known = self._tables.get(key)
            if compiled is not None and (known is None or known[0]() is not compiled):
                table: Sequence[int] = ()
                with suppress(Exception):  # its graph is not what it was known to be: nothing is told
                    table = self._table(plan, compiled, stack[-1])
                known = self._tables[key] = weakref.ref(compiled), table
            self._here.table = () if known is None else known[1]

        return enter

    def _part(self) -> Callable[[int], None]:
        marks, here, inside = self._marks, self._here, Kind.IN

        def part(number: int) -> None:
            if here.table:
                mark = inside, here.table[number], marks.lines.current().number
                if marks.entries[-1] != mark:
                    marks.lay(marks.lines.current(), inside, here.table[number])

        return part

    def _table(self, plan: Plan, compiled: Any, outermost: int) -> Sequence[int]:
        """The module of each of a plan's owners, and last the one that runs the code."""
        kinds = inductor.modules_of_nodes(compiled)
        modules = self._modules
        known = {node: modules.index_below(outermost, *of) if of[0] else outermost for node, of in kinds.items()}
        known = {node: outermost if index < 0 else index for node, index in known.items()}

        def common(found: Iterable[int]) -> int:
            return modules.around([index for index in found if index >= 0])

        def whose(groups: Sequence[Sequence[str]]) -> int:
            for names in groups:
                index = common(known.get(name, -1) for name in names)
                if index >= 0:
                    return index
            return -1

        table = [common(map(whose, owners)) for owners in plan.owners]
        table = [outermost if index < 0 else index for index in table] + [outermost]
        if any(index != outermost for index in table):
            modules.opened.add(outermost)
        return table


def _code_in(code: CodeType, name: str) -> CodeType:
    """The code of a function that a module consists of."""
    return next(each for each in code.co_consts if isinstance(each, CodeType) and each.co_name == name)


def _nothing(*_numbers: int) -> None:
    pass

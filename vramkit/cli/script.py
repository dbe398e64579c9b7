"""Runs a script or a module as Python itself would: as ``__main__``, with its own ``sys.argv`` and ``sys.path``.

Knows nothing of memory. Not ``runpy``: that takes the script's globals away again when it has ended, so that models,
and whatever a profile wants to see of them, would be gone first; and its frames would be in every traceback.
"""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType, TracebackType

from ..errors import UsageError

_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")


class NotAProgramError(UsageError):
    """What was to be run can't run at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What ``python target arguments...`` or ``python -m target arguments...`` would run."""

    target: str
    """Path of a script, of a folder or zip file with a ``__main__.py``; or a module's name."""
    arguments: tuple[str, ...] = ()
    is_module: bool = False

    def __post_init__(self) -> None:
        if not self.is_module and not os.path.exists(self.target):
            raise NotAProgramError(
                f"The script {self.target!r} was to be run",
                "there is no such file",
                instead="Give a path as from this folder, or -m and a module's name",
            )

    @property
    def command(self) -> list[str]:
        """What follows Python's name where another process is to run it."""
        return [*["-m"] * self.is_module, self.target, *self.arguments]

    def run(self) -> None:
        """Run it. Whatever it raises, ``SystemExit`` too, passes through.

        Raises:
            NotAProgramError: there is no such module, or it has no code.
        """
        is_container = not self.is_module and PathFinder.find_spec("__main__", [self.target]) is not None
        if self.is_module:
            _set_first_path(os.getcwd())
            sys.argv[:] = ["-m", *self.arguments]  # what a package's __init__ sees, as under python -m
            spec, code = _find_module(self.target)
            sys.argv[0] = spec.origin or self.target
        elif is_container:
            _set_first_path(self.target)
            sys.argv[:] = [self.target, *self.arguments]
            spec, code = _find_main(self.target)
        else:
            _set_first_path(os.path.dirname(os.path.realpath(self.target)))
            sys.argv[:] = [self.target, *self.arguments]
            spec, code = None, _compile(self.target)
        module = ModuleType("__main__")
        vars(module).update(
            __builtins__=__builtins__,
            __file__=self.target if spec is None else spec.origin,
            __spec__=spec,
            __loader__=SourceFileLoader("__main__", self.target) if spec is None else spec.loader,
            __package__=None if spec is None else spec.parent,
        )
        # Pickles, multiprocessing's children and the script's own imports look it up; it stays, for what runs at exit.
        sys.modules["__main__"] = module
        exec(code, vars(module))


def without_note(error: BaseException, note: str) -> None:
    """Take a note off an error, such as the report that a profile attached: it is shown below, once."""
    if hasattr(error, "__notes__"):
        error.__notes__ = [each for each in error.__notes__ if each != note]


def without_our_frames(error: BaseException) -> None:
    """Take vramkit's frames out of what a program's error shows: those above the program, and those that its calls
    passed through. A trail that ends in vramkit's own code keeps its end.
    """
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        each = pending.pop()
        if each is None or id(each) in seen:  # chains can be circular
            continue
        seen.add(id(each))
        each.__traceback__ = _own_traceback(each.__traceback__)
        pending += [each.__cause__, each.__context__]


def _own_traceback(traceback: TracebackType | None) -> TracebackType | None:
    trail: list[TracebackType] = []
    while traceback is not None:
        trail.append(traceback)
        traceback = traceback.tb_next
    above = max((i for i, each in enumerate(trail) if each.tb_frame.f_code.co_filename == __file__), default=-1)
    own = None
    ends_here = True
    for each in reversed(trail[above + 1 :]):
        ours = each.tb_frame.f_code.co_filename.startswith(_PACKAGE)
        ends_here = ends_here and ours
        if ends_here or not ours:
            own = TracebackType(own, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return own


def _set_first_path(path: str) -> None:
    if getattr(sys.flags, "safe_path", False):
        return  # Python itself would put nothing there either (-P)
    # The first item is what Python put there for the vramkit command, or for -m.
    sys.path[0] = path


def _compile(path: str) -> CodeType:
    try:
        with io.open_code(os.path.abspath(path)) as file:
            source = file.read()
    except OSError as error:
        raise NotAProgramError(
            f"The script {path!r} was to be run",
            f"it can't be read: {error.strerror or error}",
            instead="Give a file, or a folder or zip file that has a __main__.py",
        ) from error
    return compile(source, path, "exec", dont_inherit=True)


def _find_module(name: str) -> tuple[ModuleSpec, CodeType]:
    spec = _spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        name = f"{name}.__main__"
        spec = _spec(name)
    if spec is None:
        raise NotAProgramError(
            f"The module {name!r} was to be run",
            "there is none of that name",
            instead="Give a module that `python -m` would find from this folder",
        )
    return spec, _code(spec, name)


def _spec(name: str) -> ModuleSpec | None:
    if name.startswith("."):  # relative to nothing
        return None
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if name.startswith(f"{error.name}.") or error.name == name:
            return None
        raise  # the package was found, and misses something itself
    except ValueError:  # a module without a spec
        return None


def _find_main(path: str) -> tuple[ModuleSpec, CodeType]:
    spec = PathFinder.find_spec("__main__", [path])
    assert spec is not None
    return spec, _code(spec, "__main__")


def _code(spec: ModuleSpec, name: str) -> CodeType:
    get_code: Callable[[str], CodeType | None] | None = getattr(spec.loader, "get_code", None)
    code = get_code(spec.name) if get_code else None
    if code is None:
        raise NotAProgramError(
            f"The module {name!r} was to be run", "it has no Python code, so it can't run as a program"
        )
    return code

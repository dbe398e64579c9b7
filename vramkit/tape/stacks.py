"""Where in a program allocations were made: frames, stacks as a tree of them, and whose each frame is.

The only place that decides which frame is the user's. Knows the names of files and functions; no torch, no tape.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .native_frames import is_engine, is_workspace, node_of

MAX_DEPTH = 200
"""Frames of one stack that are kept, from the innermost on."""
ENGINE = "autograd engine"
"""In place of a file: a frame of the backward that no Python ran. Its function is the node, ``"AddmmBackward0"``."""
CUBLAS = "cuBLAS"
"""In place of a file: what cuBLAS takes for itself."""

STACK = np.dtype(
    [
        ("frame", "i4"),  # index into Stacks.frames: the innermost
        ("parent", "i4"),  # row of the stack that called it, which comes before; -1: none did
    ]
)


class Whose(enum.IntEnum):
    """Who wrote the code of a frame."""

    PROGRAM = 0
    """The user: a file of the program's, a cell of a notebook, text that was executed."""
    LIBRARY = 1
    """An installed package, but for those below."""
    MACHINERY = 2
    """torch, vramkit, Python's own library, what a compiler wrote, or no Python."""


# What programs write, which then has no file. Other names in angle brackets are the user's: `<stdin>`, `<string>`,
# `<ipython-input-3-a1b2>`, `<doctest ...>`.
_MADE = (
    "<__array_function__", "<@beartype", "<attrs generated", "<built-in", "<decorator-gen", "<eval_with_key>",
    "<frozen ", "<lambdifygenerated", "<unknown",
)  # fmt: skip
# The hub's models bring their code along, into a cache that is no package folder.
_INSTALLED = re.compile(
    r".*(?:^|/)(?:site|dist)-packages/|.*\.(?:egg|whl)/|.*/huggingface/modules/(?=transformers_modules/)", re.DOTALL
)
_OF_PYTHON = re.compile(
    r".*(?:^|/)lib(?:64|32)?/(?:python|pypy)3[\d.]*t?/|.*/python3\d+\.zip/|"
    r"[A-Za-z]:.*/(?:Python3\d+|\w*conda3?|\w*forge3?|envs/[^/]+)/Lib/",
    re.DOTALL,
)
# torch from its sources lies in no site-packages. A program may lie in a folder of this name as well.
_OF_TORCH = re.compile(
    r".*?(?:^|/)(?=torch/(?:_|nn/|nn\.py|optim/|autograd/|cuda/|distributed/|fx/|amp/|ao/|func/|jit/|sparse/|"
    r"functional\.py|overrides\.py|utils/(?:_|checkpoint\.py|data/|hooks\.py)))|.*/pytorch/(?=torch/)|^(?=functorch/)",
    re.DOTALL,
)
# Inductor calls a file "c" and a hash, in a folder of the two letters that follow the c.
_OF_A_COMPILER = re.compile(
    r"(?:^|.*/)(?:(?:torchinductor_[^/]*|torch_compile_(?:cache|debug)|unsloth_compiled_cache|\.triton/cache)/.*|"
    r"([a-z2-7]{2})/c\1[a-z2-7]{40,}\.py)",
    re.DOTALL,
)
_OWN = str(Path(__file__).parents[1]).replace("\\", "/") + "/"
_VRAMKIT = "vramkit/"
_MACHINERY = ("torch/", "functorch/", "torchgen/", _VRAMKIT)
_ENGINE = ("torch/autograd/graph.py", "engine_run_backward")  # whatever is before it
_TEXT = re.compile(r'\s*File "(?P<file>[^"\n]*)", line (?P<number>\d{1,9}), in (?P<function>[^\n]*)')
_PYTHON = (".py", ".pyw", ".ipynb")
_RESUMED = re.compile(r"torch_dynamo_resume_in_(?P<name>.+)_at_\d+")


@dataclass(frozen=True, slots=True)
class Frame:
    """A line of code that was running."""

    file: str
    """Its path; of a library's, from the folder of the package on."""
    number: int
    """Of the line, from 1; 0: not known."""
    function: str
    whose: Whose = Whose.PROGRAM


def frame_of(file: str, number: int, function: str) -> Frame:
    """A frame by the names that Python gives it.

    Args:
        file: ``co_filename``.
        number: of the line.
        function: ``co_name``.
    """
    file, whose = _read_file(file)
    if whose is Whose.PROGRAM and "." not in file.rpartition("/")[2] and not number and not file.startswith("<"):
        whose = Whose.MACHINERY  # a program in C: its lines are not known
    if file == "<string>" and function.startswith("__") and function.endswith("__"):
        whose = Whose.MACHINERY  # dataclasses write such methods
    resumed = _RESUMED.fullmatch(function)
    return Frame(file, number, resumed["name"] if resumed else function, whose)


def _native_frame(function: str) -> Frame | None:
    """What stands for a frame of torch's C++; None: it says nothing of what is allocated."""
    if node := node_of(function):
        return Frame(ENGINE, 0, node, Whose.LIBRARY)
    if is_engine(function):
        return Frame(ENGINE, 0, "backward", Whose.LIBRARY)
    return Frame(CUBLAS, 0, "workspace", Whose.MACHINERY) if is_workspace(function) else None


@lru_cache(maxsize=10_000)
def _read_file(file: str) -> tuple[str, Whose]:
    """A file as it is shown, and whose it is."""
    if file.startswith("<") and not file.endswith(_PYTHON):  # torch.package begins its files so
        return file, Whose.MACHINERY if file.startswith(_MADE) else Whose.PROGRAM
    path = file.replace("\\", "/")
    if path.startswith(_OWN):
        return _VRAMKIT + path[len(_OWN) :], Whose.MACHINERY
    for pattern, whose in (
        (_INSTALLED, Whose.LIBRARY),
        (_OF_PYTHON, Whose.MACHINERY),
        (_OF_TORCH, Whose.MACHINERY),
    ):
        if found := pattern.match(path):
            path = path[found.end() :]
            return path, Whose.MACHINERY if path.startswith(_MACHINERY) else whose
    name = path.rpartition("/")[2]
    is_python = name.endswith(_PYTHON) or ("." not in name and not name.startswith(("python", "??")) and name)
    return path, Whose.PROGRAM if is_python and not _OF_A_COMPILER.match(path) else Whose.MACHINERY


@dataclass(frozen=True, kw_only=True)
class Stacks:
    """The stacks of a tape's allocations, as a tree: two that begin alike share what they have in common."""

    frames: tuple[Frame, ...]
    """Each once."""
    table: npt.NDArray[np.void]
    """dtype ``STACK``, one row a stack, each after the one that called it."""
    of: npt.NDArray[np.int32]
    """Of each allocation its stack, a row of ``table``; -1: not known. Shape ``(allocations,)``."""

    @cached_property
    def texts(self) -> list[str]:
        """Each frame as a text: ``"train.py:42 in forward"``, with folders where files are called alike."""
        return _texts(self.frames)

    @cached_property
    def lines(self) -> npt.NDArray[np.int32]:
        """Of each allocation the line that made it, index into ``frames``, -1 for none; shape ``(allocations,)``.

        It is the user's innermost; where none of the stack is the user's, the innermost of a library other than torch.
        What a backward made has the line of the forward whose gradient it computed.
        """
        return np.append(self._line_of_stack, np.int32(-1))[self.of]

    @cached_property
    def _line_of_stack(self) -> npt.NDArray[np.int32]:
        found: dict[Whose, list[int]] = {Whose.PROGRAM: [], Whose.LIBRARY: []}
        for frame, parent in self.table.tolist():
            for whose, lines in found.items():
                inherited = lines[parent] if parent >= 0 else -1
                lines.append(frame if self.frames[frame].whose is whose else inherited)
        own, library = (np.array(lines, np.int32) for lines in found.values())
        return np.where(own >= 0, own, library)

    def stack(self, row: int) -> list[Frame]:
        """A stack's frames, the innermost first.

        Args:
            row: of the table; -1: no frames.
        """
        found: list[Frame] = []
        while row >= 0 and len(found) < MAX_DEPTH:
            frame, row = self.table[row].tolist()
            found.append(self.frames[frame])
        return found


class StackTree:
    """Collects the stacks of a recording."""

    def __init__(self) -> None:
        self._frames: dict[Frame, int] = {}
        self._rows: dict[tuple[int, int], int] = {}
        self._own: set[int] = set()
        self._engine: set[int] = set()
        self._native: set[int] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def number(self, file: str, line: int, function: str) -> int:
        """A number for a frame; -1 for vramkit's own, and for what is neither Python nor of `ENGINE` or `CUBLAS`.

        Args:
            file, line, function: as of `frame_of`.
        """
        frame = frame_of(file, line, function)
        is_python = frame.whose is not Whose.MACHINERY or frame.file.endswith(".py") or frame.file.startswith("<")
        if not is_python:
            native = _native_frame(function)
            if native is None:
                return -1
            number = self._frames.setdefault(native, len(self._frames))
            self._native.add(number)
            return number
        if frame.whose is Whose.MACHINERY and frame.file.startswith(_VRAMKIT):
            return -1
        number = self._frames.setdefault(frame, len(self._frames))
        if frame.whose is Whose.PROGRAM:
            self._own.add(number)
        elif frame.file == _ENGINE[0] and frame.function.endswith(_ENGINE[1]):
            self._engine.add(number)
        return number

    def add(self, frames: Sequence[int], forward: Sequence[str] = ()) -> int:
        """The row of a stack; -1: of one without frames.

        Args:
            frames: numbers of its frames, the innermost first. What is outside of a call of the autograd engine is left
                out: who calls a backward says nothing of what it makes.
            forward: in a backward, the stack of the forward whose gradient is computed, as texts of anomaly detection,
                the outermost first. It counts where ``frames`` has nothing of the program's.
        """
        if not self._engine.isdisjoint(frames):
            frames = frames[: next(i for i, number in enumerate(frames) if number in self._engine)]
        if forward and self._own.isdisjoint(frames):
            of_engine = [number for number in frames if number in self._native]
            frames = [*map(self._number_of_text, reversed(forward)), *of_engine]
        row, rows = -1, self._rows
        for number in reversed([number for number in frames if number >= 0][:MAX_DEPTH]):
            row = rows.setdefault((number, row), len(rows))
        return row

    def _number_of_text(self, text: str) -> int:
        found = _TEXT.match(text)
        return -1 if found is None else self.number(found["file"], int(found["number"]), found["function"])

    def stacks(self, of: npt.NDArray[np.int64]) -> Stacks:
        """What was collected.

        Args:
            of: the row of each allocation.
        """
        return Stacks(frames=(*self._frames,), table=np.array([*self._rows], STACK), of=of.astype(np.int32))


def _texts(frames: Sequence[Frame]) -> list[str]:
    alike: dict[str, dict[str, None]] = {}
    for frame in frames:
        alike.setdefault(frame.file.rpartition("/")[2], {})[frame.file] = None
    short = {file: name for files in alike.values() for file, name in zip(files, _told_apart([*files]), strict=True)}
    return [_text(frame, short[frame.file]) for frame in frames]


def _text(frame: Frame, file: str) -> str:
    if frame.file in (ENGINE, CUBLAS):
        return f"{file}: {frame.function}"
    return f"{file}:{frame.number or '?'} in {frame.function}"


def _told_apart(files: Sequence[str]) -> list[str]:
    """The last parts of some paths, as few as tell them apart."""
    parts = [file.split("/") for file in files]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [*files]

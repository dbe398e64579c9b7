"""What a program's variables hold beside its models and optimizers: copies of models, data sets, outputs that it keeps.

Knows what models and batches look like, and tells by it what a tensor is. The hooks beside this file say when to look.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import CodeType, FrameType
from typing import Any

import torch

from ..tape.events import Category
from .contents import Found, reached
from .frames import is_the_programs, locals_of, program_frames
from .holders import Model
from .marks import Marks
from .tensors import parts_of
from .tracked_modules import TrackedModules

_OF_AN_OPTIMIZER = frozenset({"state", "param_groups"})
_MAX_ROWS = 64
_GROWN = 1.01
_MUCH = 1 << 20
_MAX_ITEMS = 10_000

Row = tuple[int, torch.dtype | None]
Shapes = tuple[tuple[int, ...], ...]


class Variables:
    """Looks at what the variables of this thread's functions, and of their modules, hold.

    Args:
        marks: gets what each look sees.
        locate: where a tensor's memory lies, 0 where it is none that is recorded; None: nothing is looked at.
        models: those that are known now.
        modules: those that have run.
    """

    def __init__(
        self,
        marks: Marks,
        locate: Callable[[torch.Tensor], int] | None,
        models: Callable[[], Iterable[Model]],
        modules: TrackedModules,
    ) -> None:
        self._marks = marks
        self._locate = locate
        self._models = models
        self._modules = modules
        self._rows: dict[Row, int] = {}  # of batches, and how many there are at most in one
        self._outermost: CodeType | None = None
        self._looked_in = -1
        self._level = 0

    def begin(self) -> None:
        """Remember which of the program's functions is entered: what its callers hold is no business of its."""
        self._outermost = next((frame.f_code for frame in program_frames(None)), None)

    def look(self, batch: Iterable[torch.Tensor], step: int, *, again: bool) -> None:
        """Look once in a step; and unless ``again``, only where there is more memory than at any look before.

        Args:
            batch: what a model is given now: the rows of a data set look like its.
            step: any number that is another one in each step.
            again: whether to look in any case.
        """
        if self._locate is None:
            return
        for tensor in batch:
            if tensor.ndim and len(self._rows) < _MAX_ROWS:
                row = _row(tensor.shape, tensor.dtype)
                self._rows[row] = max(self._rows.get(row, 0), tensor.shape[0])
        level = torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0
        if level > self._level * _GROWN + _MUCH or (again and step != self._looked_in):
            self._level, self._looked_in = max(level, self._level), step
            self.look_at_all()

    def look_at_all(self, error: BaseException | None = None) -> None:
        """Look at everything.

        Args:
            error: was raised: what the functions held that it has left is still there.
        """
        if self._locate is None:
            return
        seen: dict[Category | None, tuple[list[int], list[str]]] = {}
        for category, name, tensor in self._held(error):
            addresses = [address for part in parts_of(tensor) if (address := self._address(part))]
            places, names = seen.setdefault(category, ([], []))
            places += addresses
            names += [name] * len(addresses)
        for category, (places, names) in seen.items():
            self._marks.scan(self._marks.lines.current(), category, places, names)

    def unknown(self, error: BaseException | None) -> tuple[list[torch.nn.Module], list[torch.optim.Optimizer]]:
        """The models and optimizers that are held, and that have not run; of a model's modules only itself."""
        copies = _Copies(self._models())
        modules: list[torch.nn.Module] = []
        optimizers: list[torch.optim.Optimizer] = []
        inside: set[int] = set()
        for _, value, _ in reached(self._roots(error), copies.look) if self._locate else ():
            if isinstance(value, torch.optim.Optimizer):
                optimizers.append(value)
            elif isinstance(value, torch.nn.Module) and id(value) not in self._modules.index:
                inside |= {id(child) for child in value.modules() if child is not value}
                if not copies.is_one(value) and not copies.shares(value):
                    modules.append(value)
        return [
            each for each in modules if id(each) not in inside and any(map(self._address, each.parameters()))
        ], optimizers

    def _held(self, error: BaseException | None) -> Iterator[tuple[Category | None, str, torch.Tensor]]:
        """Every tensor that is held: what it is, None if its look does not tell; its name; and itself."""
        copies = _Copies(self._models())
        outputs = {_row(shape, None)[0] for shape in self._modules.output_shapes() if len(shape) > 1}
        for name, value, category in reached(self._roots(error), copies.look):
            if isinstance(value, torch.Tensor):
                if category is None and value.ndim and not value.requires_grad:
                    row = _row(value.shape, value.dtype)
                    if 0 < 2 * self._rows.get(row, 0) <= value.shape[0]:
                        category = Category.DATASET
                    elif row[0] > 1 and row[0] in outputs:
                        category = Category.OUTPUT
                yield category, name, value
            elif isinstance(value, torch.nn.Module) and id(value) not in self._modules.index and copies.is_one(value):
                for key, tensor in (*value.named_parameters(), *value.named_buffers()):
                    yield Category.MODEL_COPY, f"{name}.{key}", tensor

    def _address(self, tensor: torch.Tensor) -> int:
        try:
            return 0 if self._locate is None else self._locate(tensor)
        except Exception:  # whatever a tensor that has no memory of its own raises must not end the program
            return 0

    def _roots(self, error: BaseException | None) -> Iterator[tuple[str, Any]]:
        frames = program_frames(self._outermost) + _frames_of(error)
        spaces = [frame.f_globals for frame in frames] + [vars(sys.modules["__main__"])]
        for frame in frames:
            if frame.f_code.co_name != "<module>":
                yield from locals_of(frame).items()
        for space in {id(space): space for space in spaces}.values():
            yield from ((name, value) for name, value in list(space.items()) if not name.startswith("__"))


class _Copies:
    """Tells copies of models by the shapes of what they hold.

    Args:
        models: the originals.
    """

    def __init__(self, models: Iterable[Model]) -> None:
        self._shapes: set[Shapes] = set()
        self._named: set[tuple[str, tuple[int, ...]]] = set()
        self._parameters: set[int] = set()
        for model in models:
            named = model.named()
            parameters = [tensor for _, tensor in named if isinstance(tensor, torch.nn.Parameter)]
            trained = [tensor for tensor in parameters if tensor.requires_grad]
            self._shapes |= {_shapes(each) for each in (parameters, trained, [tensor for _, tensor in named])}
            self._named |= {(name, tuple(tensor.shape)) for name, tensor in named}
            self._parameters |= {id(tensor) for tensor in parameters}
        self._shapes.discard(())

    def look(self, found: Found) -> tuple[bool, Category | None]:
        """What `reached` asks."""
        value, kind = found.value, type(found.value)
        if kind.__module__.partition(".")[0] == "vramkit" or issubclass(kind, torch.optim.Optimizer):
            return False, None
        if found.mark is not None:
            return True, None
        if issubclass(kind, torch.utils.data.Dataset):
            return True, Category.DATASET
        if issubclass(kind, (dict, list, tuple)):
            items = list(dict.items(value)) if issubclass(kind, dict) else [("", item) for item in value[:_MAX_ITEMS]]
            tensors = [(key, item) for key, item in items if issubclass(type(item), torch.Tensor)]
            named = all((key, tuple(tensor.shape)) in self._named for key, tensor in tensors)
            like_a_model = bool(tensors) and named or len(tensors) > 1 and _shapes(t for _, t in tensors) in self._shapes
            of_an_optimizer = issubclass(kind, dict) and _OF_AN_OPTIMIZER <= set(map(str, dict.keys(value)))
            if like_a_model or of_an_optimizer:
                return True, Category.MODEL_COPY
        return True, None

    def is_one(self, module: torch.nn.Module) -> bool:
        """Whether a module has parameters of a known model's shapes, and none of its parameters."""
        parameters = list(module.parameters())
        return bool(parameters) and _shapes(parameters) in self._shapes and not self.shares(module)

    def shares(self, module: torch.nn.Module) -> bool:
        """Whether all parameters of a module are a known model's."""
        return all(id(parameter) in self._parameters for parameter in module.parameters())


def _shapes(tensors: Iterable[torch.Tensor]) -> Shapes:
    return tuple(tuple(tensor.shape) for tensor in tensors)


def _row(shape: Sequence[int], dtype: torch.dtype | None) -> Row:
    """How many elements a row has; rows of one element say nothing by that, and are told by their type too."""
    elements = math.prod(shape[1:])
    return elements, dtype if elements == 1 else None


def _frames_of(error: BaseException | None) -> list[FrameType]:
    """The frames that an error has left, the innermost first; none of torch's, and none of vramkit's."""
    frames = []
    trace = None if error is None else error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    return [frame for frame in reversed(frames) if is_the_programs(frame)]

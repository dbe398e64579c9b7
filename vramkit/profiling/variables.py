"""What a program's variables hold beside its models and optimizers: copies of models, data sets, outputs that it keeps.

Knows what models and batches look like, and tells by it what a tensor is. The hooks beside this file say when to look.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from types import CodeType, FrameType
from typing import Any

import torch

from ..tape.events import OF_A_CONTEXT, Category
from ..torch_internals.autograd import contexts_of
from ..torch_internals.modules import class_name, unwrapped_name, wrapped_in
from .contents import Found, reached
from .frames import is_the_programs, locals_of, program_frames
from .holders import Model
from .marks import Marks
from .tensors import parts_of, row_of, shape_of
from .tracked_modules import TrackedModules
from .tracked_tensors import TrackedTensors

_OF_AN_OPTIMIZER = frozenset({"state", "param_groups"})
_GROWN = 1.01
_MUCH = 1 << 20
_MAX_ITEMS = 10_000
_UPDATES = 2

Shapes = tuple[tuple[int, ...], ...]


class Variables:
    """Looks at what the variables of this thread's functions, and of their modules, hold.

    Args:
        marks: gets what each look sees.
        locate: where a tensor's memory lies, 0 where it is none that is recorded; None: nothing is looked at.
        allocated: bytes that are allocated now; None: nobody can say.
        tensors: of the models that are known.
        modules: those that have run.
    """

    def __init__(
        self,
        marks: Marks,
        locate: Callable[[torch.Tensor], int] | None,
        allocated: Callable[[], int] | None,
        tensors: TrackedTensors,
        modules: TrackedModules,
    ) -> None:
        self._marks = marks
        self._locate = locate
        self._allocated = allocated
        self._tensors = tensors
        self._modules = modules
        # Leaves of the last look that nobody knew; and after how many updates each was there first.
        self._leaves: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}
        self._outermost: CodeType | None = None
        self._looked_in = -1
        self._level = 0

    def begin(self) -> None:
        """Remember which of the program's functions is entered: what its callers hold is no business of its."""
        self._outermost = next((frame.f_code for frame in program_frames(None)), None)

    def look(self, step: int, *, again: bool, grown: bool = True) -> bool:
        """Look once in a step; and else where there is more memory than at any look before.

        Args:
            step: any number that is another one in each step.
            again: whether to look once in this step in any case.
            grown: whether to look for more memory.

        Returns:
            Whether it was looked.
        """
        if self._locate is None:
            return False
        level = self._allocated() if grown and self._allocated is not None else 0
        if level <= self._level * _GROWN + _MUCH and not (again and step != self._looked_in):
            return False
        self._level, self._looked_in = max(level, self._level), step
        with suppress(Exception):  # the program's own classes raise what they like, which must not end it
            self.look_at(self.walk())
        return True

    def walk(self, error: BaseException | None = None) -> list[Found]:
        """Everything that the variables hold.

        Args:
            error: was raised: what the functions held that it has left is still there.
        """
        return list(reached(self._roots(error), _Copies(self._tensors.models()).look)) if self._locate else []

    def look_at(self, found: Sequence[Found]) -> None:
        """Look at what was found."""
        seen: dict[Category | None, tuple[list[int], list[str]]] = {}
        leaves = []
        for category, name, tensor in self._tensors_among(found):
            if tensor.requires_grad and tensor.is_leaf and not isinstance(tensor, torch.nn.Parameter):
                leaves.append((name, tensor))
            addresses = [address for part in parts_of(tensor) if (address := self._address(part))]
            places, names = seen.setdefault(category, ([], []))
            places += addresses
            names += [name] * len(addresses)
        for category, (places, names) in seen.items():
            self._marks.scan(self._marks.lines.current(), category, places, names)
        self._look_at_idle(found)
        self._find_trained(leaves)

    def _look_at_idle(self, found: Sequence[Found]) -> None:
        """Look at models that have not run: they may be gone when the program ends, and never have run."""
        models = {id(model) for model in self.unknown(found)[0]}
        for name, value, _ in found:
            if id(value) in models:
                named = [*value.named_parameters(), *value.named_buffers()]
                places = [self._address(tensor) for _, tensor in named]
                own = class_name(value) if name == "self" else name
                inside = wrapped_in(value)
                names = [f"{own}.{unwrapped_name(key, inside)}" for key, _ in named]
                self._marks.scan(self._marks.lines.current(), None, places, names, is_idle=True)

    def _find_trained(self, leaves: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Take a leaf that outlives two updates for a parameter; at once, where no model gets any batch.

        A batch that gets a gradient, or a point that a differential equation is to hold at, is made anew in each step,
        however many backwards that has. A variable may hold it until then, and so over one update.
        """
        known = {id(tensor) for model in self._tensors.models() for tensor in model.live_parameters()}
        new = {id(tensor): (name, tensor) for name, tensor in leaves if id(tensor) not in known}
        before, self._leaves = self._leaves, {}
        updates, trained = self._tensors.updates(), list[tuple[str, torch.Tensor]]()
        for key, (name, tensor) in new.items():
            ref, first = before.get(key, (None, updates))
            if ref is None or ref() is not tensor:
                first = updates
            self._leaves[key] = weakref.ref(tensor), first
            if not self._tensors.rows or updates - first >= _UPDATES:
                trained.append((name, tensor))
        if trained:
            self._tensors.add_loose(trained)
            self._tensors.look_at_models()

    def unknown(self, found: Sequence[Found]) -> tuple[list[torch.nn.Module], list[torch.optim.Optimizer]]:
        """The models and optimizers among what was found that have not run; of a model's modules only itself."""
        copies = _Copies(self._tensors.models())
        optimizers = [each.value for each in found if _is(each.value, torch.optim.Optimizer)]
        modules: list[torch.nn.Module] = []
        inside: set[int] = set()
        for _, value, _ in found:
            if _is(value, torch.nn.Module) and id(value) not in self._modules.index:
                inside |= {id(child) for child in value.modules() if child is not value}
                if not copies.is_one(value) and not copies.shares(value):
                    modules.append(value)
        outermost = [each for each in modules if id(each) not in inside]
        return [each for each in outermost if any(map(self._address, each.parameters()))], optimizers

    def _tensors_among(self, found: Sequence[Found]) -> Iterator[tuple[Category | None, str, torch.Tensor]]:
        """Every tensor that was found: what it is, None if its look does not tell; its name; and itself."""
        copies = _Copies(self._tensors.models(), self._tensors.shapes_met())
        outputs = {row_of(shape, None)[0] for shape in self._modules.output_shapes() if len(shape) > 1}
        for name, value, category in found:
            if _is(value, torch.Tensor):
                if category is None and shape_of(value) and not value.requires_grad:
                    row = row_of(value.shape, value.dtype)
                    if 0 < 2 * self._tensors.rows.get(row, 0) <= value.shape[0] and not copies.has(value):
                        category = Category.DATASET
                    elif row[0] > 1 and row[0] in outputs:
                        category = Category.OUTPUT
                yield category, name, value
            elif _is(value, torch.nn.Module) and id(value) not in self._modules.index and copies.is_one(value):
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
        yield from ((f"{name}{OF_A_CONTEXT}", found) for name, found in contexts_of(_is_not_torchs) if found)


class _Copies:
    """Tells copies of models by the shapes of what they hold.

    Args:
        models: the originals.
        shapes: of parameters of others, which are gone.
    """

    def __init__(self, models: Iterable[Model], shapes: Iterable[tuple[int, ...]] = ()) -> None:
        self._models: set[Shapes] = set()
        self._shapes: set[Shapes] = set()  # of lists and dicts
        self._named: set[tuple[str, tuple[int, ...]]] = set()
        self._tensor_shapes: set[tuple[int, ...]] = set(shapes)
        self._parameters: set[int] = set()
        for model in models:
            named = model.named()
            parameters = [tensor for _, tensor in named if isinstance(tensor, torch.nn.Parameter)]
            trained = [tensor for tensor in parameters if tensor.requires_grad]
            self._models.add(_shapes(parameters))
            self._shapes |= {_shapes(each) for each in (parameters, trained, [tensor for _, tensor in named])}
            self._named |= {(name, shape_of(tensor)) for name, tensor in named}
            self._tensor_shapes |= {shape_of(tensor) for _, tensor in named}
            self._parameters |= {id(tensor) for tensor in parameters}
        self._shapes = {shapes for shapes in self._shapes if len(shapes) > 1}  # one alone may be anything

    def look(self, found: Found) -> tuple[bool, Category | None]:
        """What `reached` asks."""
        value, kind = found.value, type(found.value)
        if kind.__module__.partition(".")[0] == "vramkit" or issubclass(kind, torch.optim.Optimizer):
            return False, None
        if found.mark is not None:
            return True, None
        if issubclass(kind, torch.utils.data.Dataset):
            return True, Category.DATASET
        if issubclass(kind, (dict, list, tuple)) and self._is_a_copy(value, kind):
            return True, Category.MODEL_COPY
        return True, None

    def _is_a_copy(self, value: Any, kind: type) -> bool:
        """Whether a container has tensors like a model's, by their names or in their order; or is a state dict."""
        if not issubclass(kind, dict):
            items = (list if issubclass(kind, list) else tuple).__getitem__(value, slice(_MAX_ITEMS))
            return _shapes(item for item in items if _is(item, torch.Tensor)) in self._shapes
        found = list(dict.items(value))
        if {key for key, _ in found if type(key) is str} >= _OF_AN_OPTIMIZER:
            return True
        tensors = [(key, shape_of(item)) for key, item in found if _is(item, torch.Tensor)]
        # Of each sample, as torch.func.vmap gives them, they have one dimension more.
        named = all(type(key) is str and self._named & {(key, shape), (key, shape[1:])} for key, shape in tensors)
        return bool(tensors) and (named or tuple(shape for _, shape in tensors) in self._shapes)

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor has the shape of one of a model's: what is kept of a weight, say."""
        return shape_of(tensor) in self._tensor_shapes

    def is_one(self, module: torch.nn.Module) -> bool:
        """Whether a module has parameters of a known model's shapes, and none of its parameters."""
        parameters = list(module.parameters())
        return bool(parameters) and _shapes(parameters) in self._models and not self.shares(module)

    def shares(self, module: torch.nn.Module) -> bool:
        """Whether all parameters of a module are a known model's."""
        return all(id(parameter) in self._parameters for parameter in module.parameters())


def _is_not_torchs(module: str) -> bool:
    return module.partition(".")[0] not in ("torch", "vramkit")


def _is(value: object, kind: type) -> bool:
    return issubclass(type(value), kind)  # to ask the value itself, as isinstance() does, may run anything


def _shapes(tensors: Iterable[torch.Tensor]) -> Shapes:
    return tuple(map(shape_of, tensors))


def _frames_of(error: BaseException | None) -> list[FrameType]:
    """The frames that an error has left, the innermost first; none of torch's, and none of vramkit's."""
    frames = []
    trace = None if error is None else error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    return [frame for frame in reversed(frames) if is_the_programs(frame)]

"""What models and optimizers hold: where their parameters, buffers, gradients and states lie at a moment.

The hooks beside this file say when to look. What may be looked at while other threads train is said in README.md.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..tape.events import Category
from ..torch_internals.modules import gradient_hooks_of
from .frames import locals_of_others
from .handles import drop
from .holders import Model, Optimizer
from .lines import Line
from .marks import Marks
from .running_backwards import RunningBackwards
from .tensors import Row, parts_of, row_of, tensors_in

_MAX_ROWS = 64
_MAX_MODELS = 1000

_NO_PARAMETER = "a tensor that is no parameter"


class TrackedTensors:
    """The tensors of every model and optimizer that is known.

    Args:
        marks: gets what each look sees.
        locate: where a tensor's memory lies, in the terms of the source's events; 0 where it has none. It may fail with
            any error for tensors that have no memory of their own.
        running: the backwards whose gradients may not be looked at.
    """

    def __init__(self, marks: Marks, locate: Callable[[torch.Tensor], int], running: RunningBackwards) -> None:
        self._marks = marks
        self._locate = locate
        self._running = running
        self._models: list[Model] = []
        self._met: list[Model] = []  # those that are gone, too
        self._loose: list[Model] = []  # parameters that an optimizer has and no model
        self._optimizers: list[Optimizer] = []
        self.rows: dict[Row, int] = {}
        """Of the batches that were seen: how many rows there were at most of each kind."""
        self.backwards = 0
        """How many have added to gradients: those of ``torch.autograd.grad`` do not."""
        self._samples: dict[int, list[int]] = {}
        self._result_names: dict[tuple[str, ...], list[str]] = {}
        self._part_names: dict[int, tuple[Sequence[str], list[int], list[str]]] = {}
        self._hooks: list[Any] = []
        self._is_watching = False
        self._lock = threading.RLock()  # threads that bring models and optimizers at the same time

    # -- what is known ------------------------------------------------------------------------------------------------

    def add_model(self, index: int, name: str, model: torch.nn.Module, *, instead_of: Collection[int] = ()) -> None:
        """Make a model known, by the index that it has among the modules.

        Args:
            index: of its module.
            name: that its tensors' names begin with.
            model: it.
            instead_of: indices of what turned out to be parts of models.
        """
        known = Model(index, name, model, added_by=self._marks.lines.current())
        with self._lock:
            models = [each for each in self._models if each.is_alive() and each.index not in instead_of]
            # A loss or an activation holds nothing, and programs make them anew in every step.
            if known.parameters or known.buffers:
                models.append(known)
                if len(self._met) < _MAX_MODELS:
                    self._met.append(known)
            self._models = models
        if self._is_watching:
            self._watch([known])

    def parameter_ids(self) -> set[int]:
        """The ids of all parameters of the models that are known."""
        return {id(parameter) for model in self._models for parameter in model.live_parameters()}

    def use_model(self, index: int, line: Line) -> None:
        """A line runs a model."""
        for model in self._models:
            if model.index == index:
                model.lines.add(line)

    def add_optimizer(self, optimizer: torch.optim.Optimizer) -> int:
        """Make an optimizer known, if it isn't; returns its index."""
        with self._lock:
            for index, known in enumerate(self._optimizers):
                if known.optimizer() is optimizer:
                    return index
            held = {id(ref()) for model in self._models for ref in model.parameters}
            parameters = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in held]
            loose = Model(-1, type(optimizer).__name__, None, parameters, added_by=self._marks.lines.current())
            if parameters:
                self._loose.append(loose)
            self._optimizers.append(Optimizer(weakref.ref(optimizer), loose))
            index = len(self._optimizers) - 1
            trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            for model in self._models:
                model.is_trained |= model.is_among(trained)
            self._optimizers[index].trains = _named(optimizer, self.parameter_names())
        if self._is_watching and parameters:  # its first gradients are there
            self.look_at_models()
            self.look_at_gradients()
        return index

    def add_loose(self, named: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Make tensors known that the program trains, and that neither a model nor an optimizer has."""
        parameters = [tensor for _, tensor in named]
        loose = Model(-1, "", None, parameters, added_by=self._marks.lines.current(), names=[name for name, _ in named])
        with self._lock:
            self._loose.append(loose)

    def use_optimizer(self, index: int, line: Line) -> None:
        """A line runs a step of an optimizer."""
        self._optimizers[index].loose.lines.add(line)
        self._optimizers[index].steps += 1

    def trained_by(self) -> list[frozenset[str]]:
        """Of each optimizer, by its index, the names of its parameters."""
        names = self.parameter_names()
        for known in self._optimizers:
            if (optimizer := known.optimizer()) is not None:
                known.trains = _named(optimizer, names) or known.trains
        return [known.trains for known in self._optimizers]

    def updates(self) -> int:
        """How often what trains may have changed: steps of the optimizer with the most; backwards, where none steps."""
        return max((each.steps for each in self._optimizers), default=0) or self.backwards

    # -- hooks of its own ---------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Hook the parameters whose gradients may be gone before anybody looks; and from now on those that come."""
        self._is_watching = True
        self._watch(self._models)

    def drop_hooks(self) -> None:
        """Detach every hook from the parameters."""
        drop(self._hooks)

    def _watch(self, models: Sequence[Model]) -> None:
        with self._running.lock:
            written = self._running.written()
            for model in models:
                if model.is_watched or model.is_among(written):
                    continue
                model.is_watched = True
                for parameter, name in zip(model.live_parameters(), model.parameter_names, strict=True):
                    if parameter is not None and parameter.requires_grad and gradient_hooks_of(parameter):
                        # Such a hook may use up the gradient at once, so that no later look would find it.
                        look = partial(self._look_at_gradient, name)
                        self._hooks.append(parameter.register_hook(look))  # type: ignore[no-untyped-call] # torch's
        if not self._marks.is_open:  # the recording has ended meanwhile, and nobody else will
            self.drop_hooks()

    def wrap_swap(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """``torch.utils.swap_tensors``, which refuses to swap what anybody holds weakly, as every model is known here.

        ``Module.to`` swaps weights of a subclass, such as torchao's, and all of them if a program asks for that.
        """

        def swap(one: torch.Tensor, other: torch.Tensor) -> Any:
            with ExitStack() as stack:
                for model in dict.fromkeys((*self._met, *self.models())):
                    stack.enter_context(model.let_go(one, other))
                return plain(one, other)

        return swap

    def _look_at_gradient(self, name: str, grad: torch.Tensor) -> None:
        self._saw(Category.GRADIENT, [grad], [name])

    def models(self) -> list[Model]:
        """Every model that is known, and the loose parameters of optimizers."""
        return [*self._models, *self._loose]

    def alive(self) -> tuple[list[torch.nn.Module], list[torch.optim.Optimizer]]:
        """The models and optimizers that are known and still there."""
        models = [model for each in self._models if (model := each.model()) is not None]
        optimizers = [optimizer for each in self._optimizers if (optimizer := each.optimizer()) is not None]
        return models, optimizers

    # -- looking ------------------------------------------------------------------------------------------------------

    def look_at_all(self) -> None:
        """Look at every parameter, buffer, gradient and state that is known."""
        self.look_at_models()
        self.look_at_gradients()
        for index in range(len(self._optimizers)):
            self.look_at_state(index)

    def look_at_inputs(self, tensors: Sequence[torch.Tensor]) -> None:
        """Look at what a batch brought."""
        if tensors:
            parts = [part for tensor in tensors for part in parts_of(tensor)]
            addresses, places = self._locate_all(parts), list(map(_place_of, parts))
            for part in parts:
                if part.ndim and len(self.rows) < _MAX_ROWS:
                    row = row_of(part.shape, part.dtype)
                    self.rows[row] = max(self.rows.get(row, 0), part.shape[0])
            self._marks.scan(self._marks.lines.current(), Category.INPUT, addresses, (), places)

    def look_at_models(self, *, again: bool = True) -> None:
        """Look at parameters and buffers; unless ``again``, only where some have moved."""
        for model in self._mine():
            if again:
                model.refresh()
            if not (self._moved(id(model), model.sample()) or again):
                continue
            if model.parameters:
                self._saw(Category.PARAMETER, model.live_parameters(), model.parameter_names)
            if model.buffers:
                self._saw(Category.BUFFER, [ref() for ref in model.buffers], model.buffer_names)
            if model.carried:
                self._saw(Category.PARAMETER, [ref() for ref in model.carried], model.carried_names)

    def has_gradients(self) -> bool:
        """Whether the first or the last parameter of any model has a gradient; looking at all would cost too much."""
        with self._running.lock:
            return any(
                parameter is not None and parameter.is_leaf and parameter.grad is not None
                for model in self._readable(None)
                for parameter in (ref() for ref in (*model.parameters[:1], *model.parameters[-1:]))
            )

    def look_at_gradients(self, ended: object = None) -> None:
        """Look at every parameter's gradient.

        Args:
            ended: the backward of this line that the engine has just ended, if it has.
        """
        with self._running.lock:
            for model in self._readable(ended):
                # What torch.func.functional_call puts in a parameter's place may be no leaf: then asking it warns.
                gradients = [p.grad if p is not None and p.is_leaf else None for p in model.live_parameters()]
                if any(gradient is not None for gradient in gradients):
                    model.is_trained = True
                    self._saw(Category.GRADIENT, gradients, model.parameter_names)

    def look_at_results(self, inputs: Sequence[Any], gradients: Sequence[Any]) -> None:
        """Look at what ``torch.autograd.grad`` returns: gradients, as far as it was asked for those of parameters."""
        names = self.parameter_names()
        found = [
            (names[id(tensor)], gradient)
            for tensor, gradient in zip(inputs, gradients, strict=False)
            if id(tensor) in names and isinstance(gradient, torch.Tensor)
        ]
        if found:
            key = tuple(name for name, _ in found)
            self._saw(Category.GRADIENT, [each for _, each in found], self._result_names.setdefault(key, list(key)))

    def shapes_met(self) -> set[tuple[int, ...]]:
        """The shapes of the parameters of all models, those that are gone included."""
        return {shape for model in self._met for shape in model.shapes}

    def tell_copies(self) -> None:
        """Take models that were never trained, and are like one that was, for copies of it."""
        shapes = {model.shapes for model in self._met if model.is_trained}
        copies = {
            id(names): model
            for model in self._met
            if not model.is_trained and model.shapes in shapes
            for names in (model.parameter_names, model.buffer_names)
        }
        for index, scan in enumerate(self._marks.scans):
            if id(scan.names) in copies:
                self._marks.scans[index] = replace(scan, category=Category.MODEL_COPY, is_of_model=True)

    def look_at_leaves(self, line: Line, ended: object) -> None:
        """Look at the gradients of leaves that are no parameters: inputs, and outputs that a program cuts off.

        Args:
            line: the current one.
            ended: its backward that the engine has just ended.
        """
        if any(other is not line and other.trains and other.is_alive() for other in self._marks.lines.met()):
            return  # which thread changes a tensor that no model holds, nobody can tell
        with self._running.lock:
            written = self._running.written(besides=ended)
            line.forget_dead_leaves()
            leaves = [each for ref in line.leaves.values() if (each := ref()) is not None and id(each) not in written]
            gradients = [leaf.grad for leaf in leaves if leaf.is_leaf]
            if gradients:
                self._saw(Category.GRADIENT, gradients, [_NO_PARAMETER] * len(gradients))

    def look_at_state(self, index: int, *, again: bool = True) -> None:
        """Look at what an optimizer keeps; unless ``again``, only where some of it is new."""
        known = self._optimizers[index]
        optimizer = known.optimizer()
        if optimizer is None or known.loose.is_of_others(self._marks.lines.current()):
            return
        if not (self._moved(id(optimizer), _sample_of(optimizer)) or again):
            return
        tensors: list[torch.Tensor | None] = []
        items = list(optimizer.state.items())  # at once: another thread may add to it
        for _, state in items:
            for value in list(state.values()) if isinstance(state, dict) else (state,):
                # Nearly all are plain tensors; a generator for each would be most of this scan's time.
                if type(value) is torch.Tensor:
                    tensors.append(value)
                else:
                    tensors += tensors_in(value)
        if len(known.names) != len(tensors):  # the first step, or one that made more state
            known.names = self._names_of(items)
        for group in optimizer.param_groups:
            tensors += tensors_in([value for key, value in group.items() if key != "params"])
        if tensors:
            self._saw(Category.OPTIMIZER_STATE, tensors, known.names)

    # -- what may be looked at ----------------------------------------------------------------------------------------

    def _mine(self) -> list[Model]:
        """The models that this line may look at, but for gradients."""
        line = self._marks.lines.current()
        return [model for model in (*self._models, *self._loose) if not model.is_of_others(line)]

    def _readable(self, ended: object) -> list[Model]:
        """The models whose gradients this line may read. To be called with ``running.lock`` held.

        Args:
            ended: the backward of this line that the engine has just ended, if it has.
        """
        line = self._marks.lines.current()
        written = self._running.written(besides=ended)
        held = None  # found once, and only where it is asked for, as is what `ended` wrote
        readable = []
        for model in (*self._models, *self._loose):
            if model.is_among(written):
                continue
            if not model.is_alone_with(line) and (ended is None or not model.is_among(self._running.written_by(ended))):
                if not model.is_nobodys(line):
                    continue
                held = _held_by_others() if held is None else held
                if model.is_among(held):
                    continue
            readable.append(model)
        return readable

    def _saw(self, category: Category, tensors: Sequence[torch.Tensor | None], names: Sequence[str]) -> None:
        addresses = self._locate_all(tensors)
        if 0 in addresses:
            addresses, names = self._with_parts(addresses, tensors, names)
        self._marks.scan(self._marks.lines.current(), category, addresses, names)

    def _with_parts(
        self, addresses: list[int], tensors: Sequence[torch.Tensor | None], names: Sequence[str]
    ) -> tuple[list[int], Sequence[str]]:
        """The addresses, and after them those of what sparse and wrapping tensors are made of; a name for each."""
        owners: list[int] = []
        parts: list[torch.Tensor | None] = []
        for index, (address, tensor) in enumerate(zip(addresses, tensors, strict=True)):
            if tensor is not None and not address:
                inner = parts_of(tensor)
                parts += inner
                owners += [index] * len(inner)
        if not parts or not names:
            return addresses + self._locate_all(parts), names
        known = self._part_names.get(id(names))
        if known is None or known[0] is not names or known[1] != owners:
            # The same list again where it says the same: a scan is kept once.
            padded = [*names, *[""] * (len(addresses) - len(names))]
            known = self._part_names[id(names)] = names, owners, padded + [padded[index] for index in owners]
        return addresses + self._locate_all(parts), known[2]

    def _moved(self, key: int, sample: Sequence[torch.Tensor | None]) -> bool:
        """Whether the first and the last tensors of many lie elsewhere than when this was asked last.

        Assumes that a program moves all of them or none: looking at each in every step would be a third of a profile's
        cost. Wrong for an optimizer that replaces only some states between; those are seen at the next whole scan.
        """
        found = [len(sample), *self._locate_all(sample)]
        moved = found != self._samples.get(key)
        self._samples[key] = found
        return moved

    def _locate_all(self, tensors: Sequence[torch.Tensor | None]) -> list[int]:
        """One address a tensor; 0 for none."""
        try:
            return list(map(self._locate, tensors))  # type: ignore[arg-type] # the usual case, without None
        except Exception:  # a wrapper (fake, sparse, distributed), a lazy parameter, or None: not all have memory
            return [_locate_or_0(self._locate, tensor) for tensor in tensors]

    def parameter_names(self) -> dict[int, str]:
        """Of all parameters that are known, by their ids."""
        return {
            id(ref()): name
            for model in (*self._models, *self._loose)
            for ref, name in zip(model.parameters, model.parameter_names, strict=True)
        }

    def _names_of(self, items: Sequence[tuple[object, Any]]) -> list[str]:
        named = self.parameter_names()
        return [
            f"{key} of {named.get(id(parameter), 'a parameter')}"
            for parameter, state in items
            for key, value in (list(state.items()) if isinstance(state, dict) else (("state", state),))
            for _ in tensors_in(value)
        ]


def _named(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> frozenset[str]:
    """Names of an optimizer's parameters, of those that have any."""
    held = (id(parameter) for group in optimizer.param_groups for parameter in group["params"])
    return frozenset(names[each] for each in held if each in names)


def _held_by_others() -> set[int]:
    """The ids of all tensors and modules that other threads have at hand, and of their optimizers' parameters."""
    held: set[int] = set()
    for value in locals_of_others():
        kind = type(value)  # to ask the value itself, as isinstance() does, may run anything
        if issubclass(kind, (torch.Tensor, torch.nn.Module)):
            held.add(id(value))
        elif issubclass(kind, torch.optim.Optimizer):
            groups: Iterable[dict[str, Any]] = vars(value).get("param_groups", ())
            held.update(id(parameter) for group in groups for parameter in group["params"])
    return held


def _locate_or_0(locate: Callable[[torch.Tensor], int], tensor: torch.Tensor | None) -> int:
    try:
        return 0 if tensor is None else locate(tensor)
    except Exception:  # whatever a tensor that has no memory of its own raises must not end the user's training
        return 0


def _place_of(tensor: torch.Tensor) -> tuple[int, int]:
    """At which byte of its storage a tensor begins, and how many it has."""
    return int(tensor.storage_offset()) * tensor.element_size(), int(tensor.nbytes)


def _sample_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor | None]:
    """The tensors that an optimizer keeps for its first and its last parameter."""
    state, groups = optimizer.state, optimizer.param_groups
    ends = [parameters[i] for i in (0, -1) for group in (groups[i],) if (parameters := group["params"])]
    return [tensor for parameter in ends if parameter in state for tensor in tensors_in(state[parameter])]

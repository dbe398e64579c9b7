"""Marks: what the program was doing, laid down by module, gradient and optimizer hooks while a source records.

Knows torch's hooks and which tensors are parameters, gradients, states and inputs. Knows nothing of the allocator: a
source gives it two functions, one that puts a mark's number into the source's own record of events, and one that says
where a tensor lies. What the marks mean together is settled afterwards, in ``vramkit.attribution``.

Nothing here runs per operator. The costs that shaped it, on a step whose kernels do nothing (so that every
microsecond of Python shows): a mark 0.6 µs, of which setting the allocator's metadata is 0.35; a prehook on one
autograd node 1.3 µs to register and 1.3 µs to run. ``register_full_backward_hook`` is not used: it puts
nodes of its own into the graph, which changes what a program allocates and breaks in-place code.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch.optim import optimizer as optimizer_hooks

from ..events import Category, Module
from .recorded import CREATES_GRAPH, FOLLOWED, Kind, Mark, Scan


class _Thread(threading.local):
    def __init__(self) -> None:
        self.stack: list[int] = []


@dataclass
class Marks:
    """The marks of one recording, and the hooks that make them.

    Args:
        place: called with each mark's number, as text, at the moment it is made.
        locate: where a tensor's memory lies, in the terms of the source's events; 0 where it has none. It may fail with
            RuntimeError for tensors that have no memory of their own.
        stamps: whether ``place`` also takes texts ``"module@number"``: the backward is at this module, and so many
            marks have been made. False: a mark says it.
    """

    place: Callable[[str], object]
    locate: Callable[[torch.Tensor], int]
    stamps: bool = False
    entries: list[Mark] = field(default_factory=list)
    scans: list[Scan] = field(default_factory=list)
    optimizers: list[str] = field(default_factory=list)
    """Class names of the optimizers, by index."""

    def __post_init__(self) -> None:
        # Everything of the user's is held weakly: a model that the program drops must die as it would have.
        self._modules: list[Module] = []
        self._inside: list[Mark] = []  # one for each module, made once
        self._calls: list[int] = []
        self._shapes: list[tuple[int, ...]] = []
        self._index: dict[int, int] = {}  # id(module) -> index, while the module lives
        self._deaths: list[weakref.ref[torch.nn.Module]] = []
        self._roots: list[_Root] = []
        self._optimizers: list[weakref.ref[torch.optim.Optimizer]] = []
        self._loose: list[_Root] = []  # parameters that an optimizer has and no model
        self._state_names: list[list[str]] = []
        self._samples: dict[int, list[int]] = {}
        self._last_scan: dict[tuple[Category, int], int] = {}
        self._local = _Thread()
        self._marked_nodes: set[int] = set()
        self._node_hooks: list[Any] = []
        self._at_module: list[Callable[[object], None]] = []
        self._in_backward = False
        self._backward_at = [-1]  # the module that the backward has reached
        self._between = self._make_backward_hook(-1)
        self._backwards = 0
        self._followed = [True]  # not empty: the backward of what runs now is followed module by module
        self._stack = ExitStack()

    # -- what the user says ------------------------------------------------------------------------------------------

    def add_models(self, models: Mapping[str, torch.nn.Module] | Sequence[torch.nn.Module]) -> None:
        """Make models known before their first forward, so that what they hold is labelled from the start."""
        named = models.items() if isinstance(models, Mapping) else ((None, model) for model in models)
        for name, model in named:
            if id(model) not in self._index:
                self._meet_root(model, name)

    def add_optimizers(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Make optimizers known before their first step."""
        for optimizer in optimizers:
            self._optimizer_index(optimizer)

    def step(self) -> None:
        """End a training step."""
        self._mark(Kind.STEP, 0)

    @property
    def modules(self) -> list[Module]:
        """Every module that was met, with what its calls have shown so far."""
        counted = zip(self._modules, self._calls, self._shapes, strict=True)
        return [replace(module, calls=calls, output_shape=shape) for module, calls, shape in counted]

    # -- hooks in and out ---------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Look at what is there and attach every hook."""
        self.scan_all()
        stack = self._stack
        # The call itself is wrapped, as torch.fx does it, rather than hooked: a hook of torch's makes every module call
        # take a slow path of 4 µs, and torch.compile warns of global hooks.
        original_call = torch.nn.Module.__call__
        stack.callback(setattr, torch.nn.Module, "__call__", original_call)
        setattr(torch.nn.Module, "__call__", self._make_call(original_call))  # noqa: B010 - a method
        for handle in (
            optimizer_hooks.register_optimizer_step_pre_hook(self._optimizer_begins),
            optimizer_hooks.register_optimizer_step_post_hook(self._optimizer_ended),
        ):
            stack.callback(handle.remove)
        # Both backward() and grad() look this name up when they are called; there is no hook for "a backward begins".
        original = vars(torch.autograd)["_engine_run_backward"]
        stack.callback(setattr, torch.autograd, "_engine_run_backward", original)
        setattr(torch.autograd, "_engine_run_backward", partial(self._run_backward, original))  # noqa: B010 - private

    def remove(self) -> None:
        """Detach every hook, and look once more at what is there."""
        self._stack.close()
        for handle in self._node_hooks:  # of graphs that outlive the recording
            handle.remove()
        self._node_hooks.clear()
        self._local.stack.clear()
        for root in self._roots:
            root.refresh()
        self.scan_all()
        self._deaths.clear()

    def scan_all(self) -> None:
        """Look at every parameter, buffer, gradient and state that is known."""
        self._scan_held()
        self._scan_gradients()
        for index in range(len(self.optimizers)):
            self._scan_state(index)

    # -- marks ------------------------------------------------------------------------------------------------------

    def _mark(self, kind: Kind, value: int) -> None:
        self.entries.append((kind, value))
        self.place(str(len(self.entries)))

    def _scan(self, category: Category, addresses: list[int], names: Sequence[str]) -> None:
        last = self._last_scan.get((category, id(names)), -1)
        if last < 0 or self.scans[last].addresses != addresses:
            # Most tensors stay where they are: thousands of steps must not keep thousands of equal lists.
            last = self._last_scan[category, id(names)] = len(self.scans)
            self.scans.append(Scan(category, addresses, names))
        self._mark(Kind.SCAN, last)

    def _scan_gradient(self, name: str, grad: torch.Tensor) -> None:
        self._scan(Category.GRADIENT, self._locate_all([grad]), [name])

    def _scan_held(self, *, again: bool = True) -> None:
        """Look at parameters and buffers; unless ``again``, only where some have moved."""
        for root in (*self._roots, *self._loose):
            if not (self._moved(id(root), root.sample()) or again):
                continue
            if root.parameters:
                self._scan(Category.PARAMETER, self._locate_all(root.live_parameters()), root.parameter_names)
            if root.buffers:
                self._scan(Category.BUFFER, self._locate_all([ref() for ref in root.buffers]), root.buffer_names)

    def _scan_gradients(self) -> None:
        for root in (*self._roots, *self._loose):
            gradients = [None if p is None else p.grad for p in root.live_parameters()]
            if any(gradient is not None for gradient in gradients):
                self._scan(Category.GRADIENT, self._locate_all(gradients), root.parameter_names)

    def _scan_state(self, index: int, *, again: bool = True) -> None:
        """Look at what an optimizer keeps; unless ``again``, only where some of it is new."""
        optimizer = self._optimizers[index]()
        if optimizer is None or not (self._moved(id(optimizer), _sample_state(optimizer)) or again):
            return
        tensors: list[torch.Tensor | None] = []
        for state in optimizer.state.values():
            for value in state.values() if isinstance(state, dict) else (state,):
                # Nearly all are plain tensors; a generator for each would be most of this scan's time.
                if type(value) is torch.Tensor:
                    tensors.append(value)
                else:
                    tensors += _tensors(value)
        names = self._state_names[index]
        if len(names) != len(tensors):  # the first step, or one that made more state
            names = self._state_names[index] = self._state_names_of(optimizer)
        for group in optimizer.param_groups:
            tensors += _tensors([value for key, value in group.items() if key != "params"])
        if tensors:
            self._scan(Category.OPTIMIZER_STATE, self._locate_all(tensors), names)

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
        try:
            return list(map(self.locate, tensors))  # type: ignore[arg-type] # the usual case, without None
        except (RuntimeError, TypeError):
            return [_locate_or_0(self.locate, tensor) for tensor in tensors]

    # -- modules ------------------------------------------------------------------------------------------------------

    def _meet_root(self, model: torch.nn.Module, name: str | None = None) -> int:
        name = name or type(model).__name__
        taken = {module.name for module in self._modules if module.parent < 0}
        unique, number = name, 1
        while unique in taken:
            number += 1
            unique = f"{name}#{number}"
        root = _Root(unique, model)
        self._roots.append(root)
        for parameter, parameter_name in zip(model.parameters(), root.parameter_names, strict=True):
            if getattr(parameter, "_post_accumulate_grad_hooks", None):
                # Such a hook may use up the gradient at once, so that no later look would find it.
                handle = parameter.register_hook(partial(self._scan_gradient, parameter_name))  # type: ignore[no-untyped-call] # torch's
                self._stack.callback(handle.remove)
        return self._meet(model, unique, -1, set())

    def _meet(self, module: torch.nn.Module, name: str, parent: int, counted: set[int]) -> int:
        index = len(self.modules)
        identity = id(module)
        self._index[identity] = index
        self._deaths.append(weakref.ref(module, lambda _ref: self._index.pop(identity, None)))
        own = 0
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in counted:
                counted.add(id(parameter))
                own += _nbytes(parameter)
        self._modules.append(Module(name=name, kind=type(module).__name__, parent=parent, parameters=own))
        self._inside.append((Kind.IN, index))
        self._calls.append(0)
        self._shapes.append(())
        self._at_module.append(self._make_backward_hook(index))
        for child_name, child in module._modules.items():
            if child is not None and id(child) not in self._index:
                self._meet(child, f"{name}.{child_name}", index, counted)
        return index

    def _make_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What stands for ``Module.__call__``: every name it uses is local, because it runs for every module call."""
        known, local, entries, place = self._index, self._local, self.entries, self.place
        at_module, inside, calls, shapes = self._at_module, self._inside, self._calls, self._shapes
        mark_nodes, followed, is_compiling = self._mark_nodes, self._followed, torch.compiler.is_compiling

        def call(module: torch.nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            if is_compiling():
                return original(module, *args, **kwargs)
            stack = local.stack
            index = known.get(id(module), -1)
            if stack and not followed and index >= 0:
                stack.append(index)
                entries.append(inside[index])
                place(str(len(entries)))
                try:
                    return original(module, *args, **kwargs)
                finally:
                    stack.pop()
                    entries.append(inside[stack[-1]])
                    place(str(len(entries)))
                    calls[index] += 1
            return outermost_or_followed(module, index, stack, args, kwargs)

        def outermost_or_followed(
            module: torch.nn.Module, index: int, stack: list[int], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            if index < 0:
                index = self._meet_in(module, stack)
            if stack:
                mark = inside[index]
            else:
                self._scan_inputs(args, kwargs)
                mark = (Kind.ROOT, index)
            if followed:
                # What the parent did before is not this module's: the backward leaves the module there.
                mark_nodes((*args, *kwargs.values()), at_module[stack[-1]] if stack else self._between)
            stack.append(index)
            entries.append(mark)
            place(str(len(entries)))
            try:
                output = original(module, *args, **kwargs)
            finally:
                stack.pop()
                entries.append(inside[stack[-1]] if stack else (Kind.ROOT_END, index))
                place(str(len(entries)))
                calls[index] += 1
                if not stack and self._in_backward:  # a recomputation: the backward goes on where it was
                    self._mark(Kind.BACKWARD_AT, self._backward_at[0])
            if not shapes[index]:
                shapes[index] = _first_shape(output)
            if followed:
                mark_nodes((output,), at_module[index])
            if not stack and any(tensor.requires_grad for tensor in _tensors(output)):
                self._mark(Kind.GRAPH, index)
            return output

        return call

    def _meet_in(self, module: torch.nn.Module, stack: Sequence[int]) -> int:
        """Make a module known at its first call: a model of its own, or one that a forward has just made."""
        if not stack:
            return self._meet_root(module)
        name = f"{self._modules[stack[-1]].name}.<{type(module).__name__}>"
        return self._meet(module, name, stack[-1], set())

    def _scan_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """At the begin of an outermost forward: where the models' tensors are by now, and what came in."""
        self._scan_held(again=bool(self._followed))
        inputs = [
            tensor
            for tensor in _tensors((args, kwargs))
            if tensor.grad_fn is None and not isinstance(tensor, torch.nn.Parameter)
        ]
        if inputs:
            self._scan(Category.INPUT, self._locate_all(inputs), ())

    # -- backward ----------------------------------------------------------------------------------------------------

    def _mark_nodes(self, values: Iterable[Any], hook: Callable[..., None]) -> None:
        """Let ``hook`` run when the backward reaches the nodes that made these values, unless one is there already."""
        for value in values:
            if isinstance(value, torch.Tensor):
                node = value.grad_fn
                if node is not None:
                    key = node._sequence_nr()
                    if key not in self._marked_nodes:
                        self._marked_nodes.add(key)
                        self._node_hooks.append(node.register_prehook(hook))
            elif isinstance(value, (tuple, list)):
                self._mark_nodes(value, hook)
            elif isinstance(value, Mapping):
                self._mark_nodes(value.values(), hook)

    def _make_backward_hook(self, index: int) -> Callable[[object], None]:
        entries, place, at = self.entries, self.place, self._backward_at

        def stamp(_grads: object) -> None:
            at[0] = index
            place(f"{index}@{len(entries)}")

        def mark(_grads: object) -> None:
            at[0] = index
            self._mark(Kind.BACKWARD_AT, index)

        return stamp if self.stamps else mark

    def _run_backward(self, original: Callable[..., Any], outputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        if torch._C._current_graph_task_id() >= 0:
            return original(outputs, *args, **kwargs)  # a checkpoint's own backward, inside the outer one
        self._scan_targets(outputs)
        # (tensors, grad_tensors, retain_graph, create_graph, ...), as torch.autograd calls it
        keeps_graph, creates_graph = bool(args[1]), bool(args[2])
        self._mark(Kind.BACKWARD, CREATES_GRAPH * creates_graph + FOLLOWED * bool(self._followed))
        self._marked_nodes.clear()  # numbers of nodes are a thread's own, and checkpoints recompute in another thread
        # The autograd threads have marks of their own: the first node to run says there that this backward began.
        nodes = [node for node in (getattr(output, "grad_fn", None) for output in outputs) if node is not None]
        handles = [node.register_prehook(lambda _grads: self._mark(Kind.BACKWARD_AT, -1)) for node in nodes]
        del nodes
        self._in_backward, self._backward_at[0] = True, -1
        try:
            return original(outputs, *args, **kwargs)
        finally:
            self._in_backward = False
            for handle in handles:
                handle.remove()
            self._mark(Kind.BACKWARD_END, 0)
            self._scan_gradients()
            self._backwards += 1
            self._followed[:] = [True] * (self._backwards < _FOLLOW_FIRST or self._backwards % _FOLLOW_EVERY == 0)
            if not keeps_graph:
                self._node_hooks.clear()  # the hooks die with their nodes

    def _scan_targets(self, outputs: Sequence[Any]) -> None:
        """Label what a loss compares with: the model never sees it, but the loss's node holds it."""
        ready = [getattr(output, "grad_fn", None) for output in outputs]
        targets = []
        for _ in range(_LOSS_NODES):
            if not ready:
                break
            node = ready.pop()
            if node is None or node._sequence_nr() in self._marked_nodes:
                continue
            for attribute in ("_saved_target", "_saved_targets"):
                target = getattr(node, attribute, None)
                if isinstance(target, torch.Tensor) and target.grad_fn is None:
                    targets.append(target)
            ready += [following for following, _ in node.next_functions]
        if targets:
            self._scan(Category.INPUT, self._locate_all(targets), ())

    # -- optimizers ----------------------------------------------------------------------------------------------------

    def _optimizer_index(self, optimizer: torch.optim.Optimizer) -> int:
        for index, known in enumerate(self._optimizers):
            if known() is optimizer:
                return index
        held = {id(ref()) for root in self._roots for ref in root.parameters}
        parameters = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in held]
        name = type(optimizer).__name__
        if parameters:
            self._loose.append(_Root(name, None, parameters))
        self._optimizers.append(weakref.ref(optimizer))
        self._state_names.append([])
        self.optimizers.append(name)
        return len(self.optimizers) - 1

    def _state_names_of(self, optimizer: torch.optim.Optimizer) -> list[str]:
        named = {
            id(ref()): name
            for root in (*self._roots, *self._loose)
            for ref, name in zip(root.parameters, root.parameter_names, strict=True)
        }
        return [
            f"{key} of {named.get(id(parameter), 'a parameter')}"
            for parameter, state in optimizer.state.items()
            for key, value in (state.items() if isinstance(state, dict) else (("state", state),))
            for _ in _tensors(value)
        ]

    def _optimizer_begins(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        self._mark(Kind.OPTIMIZER, self._optimizer_index(optimizer))

    def _optimizer_ended(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        index = self._optimizer_index(optimizer)
        self._mark(Kind.OPTIMIZER_END, index)
        self._scan_state(index, again=bool(self._followed))


# Prehooks on some 150 nodes are most of what a profile costs, and one backward is like the next. So only these are
# followed; the others' modules are found afterwards, where their events are the same. An odd number, because programs
# with two or four backwards a step are common.
_FOLLOW_FIRST, _FOLLOW_EVERY = 2, 11
_LOSS_NODES = 64  # how far a loss may lie from the model's output before its target is taken for "other"


def _locate_or_0(locate: Callable[[torch.Tensor], int], tensor: torch.Tensor | None) -> int:
    try:
        return 0 if tensor is None else locate(tensor)
    except RuntimeError:  # a wrapper (fake, sparse, distributed) or a lazy parameter: no memory of its own
        return 0


class _Root:
    """The tensors of one model, or the loose parameters of an optimizer, with their names; held weakly."""

    def __init__(self, name: str, model: torch.nn.Module | None, parameters: Sequence[torch.Tensor] = ()) -> None:
        self._name = name
        self._model = None if model is None else weakref.ref(model)
        self.parameters = [weakref.ref(parameter) for parameter in parameters]
        self.parameter_names: Sequence[str] = [f"{name}.{index}" for index in range(len(parameters))]
        self.buffers: list[weakref.ref[torch.Tensor]] = []
        self.buffer_names: Sequence[str] = []
        self.refresh()

    def sample(self) -> list[torch.Tensor | None]:
        """The first and the last of its tensors."""
        refs = (*self.parameters[:1], *self.parameters[-1:], *self.buffers[:1], *self.buffers[-1:])
        return [ref() for ref in refs]

    def live_parameters(self) -> list[torch.Tensor | None]:
        """The parameters, None for one that is gone."""
        return [ref() for ref in self.parameters]

    def refresh(self) -> None:
        """Look at the model again: parameters may have come and gone."""
        model = None if self._model is None else self._model()
        if model is None:
            return
        named = list(model.named_parameters())
        self.parameters = [weakref.ref(parameter) for _, parameter in named]
        self.parameter_names = [f"{self._name}.{name}" for name, _ in named]
        held = list(model.named_buffers())
        self.buffers = [weakref.ref(buffer) for _, buffer in held]
        self.buffer_names = [f"{self._name}.{name}" for name, _ in held]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)


def _sample_state(optimizer: torch.optim.Optimizer) -> list[torch.Tensor | None]:
    """The tensors that an optimizer keeps for its first and its last parameter."""
    state, groups = optimizer.state, optimizer.param_groups
    ends = [parameters[i] for i in (0, -1) for group in (groups[i],) if (parameters := group["params"])]
    return [tensor for parameter in ends if parameter in state for tensor in _tensors(state[parameter])]


def _first_shape(output: Any) -> tuple[int, ...]:
    first = next(_tensors(output), None)
    return () if first is None else tuple(first.shape)


def _nbytes(tensor: torch.Tensor) -> int:
    try:
        return tensor.numel() * tensor.element_size()
    except (RuntimeError, ValueError):  # a lazy module's parameter has no shape yet
        return 0

"""Marks: what the program was doing, laid down by module, gradient and optimizer hooks while a source records.

Knows torch's hooks and which tensors are parameters, gradients, states and inputs. Knows nothing of the allocator: a
source gives it two functions, one that puts a mark's number into the source's own record of events, and one that says
where a tensor lies. What the marks mean together is settled afterwards, in ``vramkit.attribution``.

Nothing here runs per operator. The costs that shaped it, on a step whose kernels do nothing (so that every
microsecond of Python shows): a forward hook about 1 µs, of which setting the allocator's metadata is 0.3 µs; a prehook
on one autograd node 0.7 µs to register and about 1 µs to run. ``register_full_backward_hook`` is not used: it puts
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
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks

from ..events import Category, Module
from .recorded import Kind, Mark, Scan


class _Thread(threading.local):
    def __init__(self) -> None:
        self.stack: list[int] = []


@dataclass
class Marks:
    """The marks of one recording, and the hooks that make them.

    Args:
        place: called with each mark's number at the moment it is made.
        locate: where a tensor's memory lies, in the terms of the source's events; 0 where it has none.
        backward_hook: makes the prehook of the autograd nodes that belong to a module (index), where the source can
            note the module by itself, without a mark. None: the prehook makes a mark.
    """

    place: Callable[[int], object]
    locate: Callable[[torch.Tensor], int]
    backward_hook: Callable[[int], Callable[[object], None]] | None = None
    entries: list[Mark] = field(default_factory=list)
    scans: list[Scan] = field(default_factory=list)
    optimizers: list[str] = field(default_factory=list)
    """Class names of the optimizers, by index."""

    def __post_init__(self) -> None:
        # Everything of the user's is held weakly: a model that the program drops must die as it would have.
        self._modules: list[Module] = []
        self._calls: list[int] = []
        self._shapes: list[tuple[int, ...]] = []
        self._index: dict[int, int] = {}  # id(module) -> index, while the module lives
        self._deaths: list[weakref.ref[torch.nn.Module]] = []
        self._roots: list[_Root] = []
        self._optimizers: list[weakref.ref[torch.optim.Optimizer]] = []
        self._loose: list[_Root] = []  # parameters that an optimizer has and no model
        self._state_names: list[list[str]] = []  # filled in at the end, when all of the state is there
        self._local = _Thread()
        self._marked_nodes: set[int] = set()
        self._node_hooks: list[Any] = []
        self._at_module: list[Callable[[object], None]] = []
        self._between = self._make_backward_hook(-1)
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
        for handle in (
            module_hooks.register_module_forward_pre_hook(self._make_enter()),
            module_hooks.register_module_forward_hook(self._make_exit(), always_call=True),
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
        self._name_states()
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
        self.entries.append((kind, value, threading.get_ident()))
        self.place(len(self.entries))

    def _scan(self, category: Category, addresses: list[int], names: Sequence[str]) -> None:
        self.scans.append(Scan(category, addresses, names))
        self._mark(Kind.SCAN, len(self.scans) - 1)

    def _scan_gradient(self, name: str, grad: torch.Tensor) -> None:
        self._scan(Category.GRADIENT, [self.locate(grad)], [name])

    def _scan_held(self) -> None:
        locate = self.locate
        for root in (*self._roots, *self._loose):
            if root.parameters:
                found = [0 if (p := ref()) is None else locate(p) for ref in root.parameters]
                self._scan(Category.PARAMETER, found, root.parameter_names)
            if root.buffers:
                found = [0 if (b := ref()) is None else locate(b) for ref in root.buffers]
                self._scan(Category.BUFFER, found, root.buffer_names)

    def _scan_gradients(self) -> None:
        locate = self.locate
        for root in (*self._roots, *self._loose):
            found = [0 if (p := ref()) is None or (grad := p.grad) is None else locate(grad) for ref in root.parameters]
            if any(found):
                self._scan(Category.GRADIENT, found, root.parameter_names)

    def _scan_state(self, index: int) -> None:
        optimizer = self._optimizers[index]()
        if optimizer is None:
            return
        locate = self.locate
        found = []
        for state in optimizer.state.values():
            for value in state.values() if isinstance(state, dict) else (state,):
                # Nearly all are plain tensors; a generator for each would be most of this scan's time.
                found += [locate(value)] if type(value) is torch.Tensor else [locate(t) for t in _tensors(value)]
        for group in optimizer.param_groups:
            for key, value in group.items():
                if key != "params":
                    found += [locate(t) for t in _tensors(value)]
        if found:
            self._scan(Category.OPTIMIZER_STATE, found, self._state_names[index])

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
                self._stack.callback(parameter.register_hook(partial(self._scan_gradient, parameter_name)).remove)
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
        self._calls.append(0)
        self._shapes.append(())
        self._at_module.append(self._make_backward_hook(index))
        for child_name, child in module._modules.items():
            if child is not None and id(child) not in self._index:
                self._meet(child, f"{name}.{child_name}", index, counted)
        return index

    def _make_enter(self) -> Callable[..., None]:
        known, entries, local, place = self._index, self.entries, self._local, self.place
        mark_nodes, at_module, between = self._mark_nodes, self._at_module, self._between
        ident, is_compiling, enter = threading.get_ident, torch.compiler.is_compiling, Kind.ENTER

        def enters(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
            if is_compiling():
                return
            stack = local.stack
            index = known.get(id(module), -1)
            if index < 0:
                if stack:
                    name = f"{self._modules[stack[-1]].name}.<{type(module).__name__}>"
                    index = self._meet(module, name, stack[-1], set())
                else:
                    index = self._meet_root(module)
            if stack:
                # What the parent did before is not this module's: the backward leaves the module there.
                mark_nodes(args, at_module[stack[-1]])
            else:
                self._root_enters(module, args)
                mark_nodes(args, between)
            stack.append(index)
            entries.append((enter, index, ident()))
            place(len(entries))

        return enters

    def _make_exit(self) -> Callable[..., None]:
        known, entries, local, place = self._index, self.entries, self._local, self.place
        calls, shapes = self._calls, self._shapes
        mark_nodes, at_module = self._mark_nodes, self._at_module
        ident, is_compiling, leave = threading.get_ident, torch.compiler.is_compiling, Kind.EXIT

        def leaves(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if is_compiling():
                return
            index = known.get(id(module), -1)
            stack = local.stack
            if index < 0 or index not in stack:
                return  # its forward had begun before the hooks were there
            while stack.pop() != index:
                pass  # a forward below was left by an exception that it had no chance to see
            entries.append((leave, index, ident()))
            place(len(entries))
            calls[index] += 1
            if not shapes[index]:
                shapes[index] = _first_shape(output)
            mark_nodes((output,), at_module[index])
            if not stack and any(tensor.requires_grad for tensor in _tensors(output)):
                self._mark(Kind.GRAPH, index)

        return leaves

    def _root_enters(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self._scan_held()
        inputs = [t for t in _tensors(args) if t.grad_fn is None and not isinstance(t, torch.nn.Parameter)]
        if inputs:
            self._scan(Category.INPUT, [self.locate(t) for t in inputs], ())

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
        if self.backward_hook is not None:
            return self.backward_hook(index)
        return lambda _grads: self._mark(Kind.BACKWARD_AT, index)

    def _run_backward(self, original: Callable[..., Any], outputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        if torch._C._current_graph_task_id() >= 0:
            return original(outputs, *args, **kwargs)  # a checkpoint's own backward, inside the outer one
        self._scan_targets(outputs)
        # (tensors, grad_tensors, retain_graph, create_graph, ...), as torch.autograd calls it
        keeps_graph, creates_graph = bool(args[1]), bool(args[2])
        self._mark(Kind.BACKWARD, int(creates_graph))
        self._marked_nodes.clear()  # numbers of nodes are a thread's own, and checkpoints recompute in another thread
        # The autograd threads have marks of their own: the first node to run says there that this backward began.
        nodes = [node for node in (getattr(output, "grad_fn", None) for output in outputs) if node is not None]
        handles = [node.register_prehook(lambda _grads: self._mark(Kind.BACKWARD_AT, -1)) for node in nodes]
        del nodes
        try:
            return original(outputs, *args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
            self._mark(Kind.BACKWARD_END, 0)
            self._scan_gradients()
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
                    targets.append(self.locate(target))
            ready += [following for following, _ in node.next_functions]
        if targets:
            self._scan(Category.INPUT, targets, ())

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

    def _name_states(self) -> None:
        named = {
            id(ref()): name
            for root in (*self._roots, *self._loose)
            for ref, name in zip(root.parameters, root.parameter_names, strict=True)
        }
        for optimizer, names in zip((ref() for ref in self._optimizers), self._state_names, strict=True):
            for parameter, state in optimizer.state.items() if optimizer is not None else ():
                name = named.get(id(parameter), "a parameter")
                for key, value in state.items() if isinstance(state, dict) else (("state", state),):
                    names += [f"{key} of {name}" for _ in _tensors(value)]

    def _optimizer_begins(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        self._mark(Kind.OPTIMIZER, self._optimizer_index(optimizer))

    def _optimizer_ended(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        index = self._optimizer_index(optimizer)
        self._mark(Kind.OPTIMIZER_END, index)
        self._scan_state(index)


_LOSS_NODES = 64  # how far a loss may lie from the model's output before its target is taken for "other"


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


def _first_shape(output: Any) -> tuple[int, ...]:
    first = next(_tensors(output), None)
    return () if first is None else tuple(first.shape)


def _nbytes(tensor: torch.Tensor) -> int:
    try:
        return tensor.numel() * tensor.element_size()
    except (RuntimeError, ValueError):  # a lazy module's parameter has no shape yet
        return 0

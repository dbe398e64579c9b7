"""Marks: what the program was doing, laid down by hooks on modules, the autograd engine and optimizers.

Knows when things begin and end. Knows nothing of the allocator: a source gives it two functions, one that puts a mark's
number into the source's own record of events, and one that says where a tensor lies. What the marks mean together is
settled afterwards, in ``vramkit.attribution.categories``.

Nothing here runs per operator. The costs that shaped it, on a step whose kernels do nothing (so that every microsecond
of Python shows): a mark 0.6 µs, of which setting the allocator's metadata is 0.35; a prehook on one autograd node
1.3 µs to register and 1.3 µs to run. ``register_full_backward_hook`` is not used: it puts nodes of its own into the
graph, which changes what a program allocates and breaks in-place code.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch.optim import optimizer as optimizer_hooks

from ..attribution.recording import ACCUMULATES, CREATES_GRAPH, FOLLOWED, Kind, Mark, Scan
from ..tape.events import Category
from .tracked_modules import Modules, first_shape
from .tracked_tensors import Holdings, tensors_in

# Marks at every module, and prehooks on its nodes, are most of what a profile costs, and one step is like the next. So
# only the forwards before these backwards are followed, with the backwards; the others' modules are found afterwards,
# where their events are the same. A prime number: where a step has several backwards, each of them gets its turn.
_FOLLOW_FIRST, _FOLLOW_EVERY = 2, 23
_MOST_NODES = 100_000
_LOSS_NODES = 64  # how far a loss may lie from the model's output before its target is taken for "other"


class _Thread(threading.local):
    def __init__(self) -> None:
        self.stack: list[int] = []


class Marks:
    """The marks of one recording, and the hooks that make them.

    Args:
        place: called with each mark's number, as text, at the moment it is made.
        locate: where a tensor's memory lies; see `Holdings`.
        stamps: whether ``place`` also takes texts ``"module@number"``: the backward is at this module, and so many
            marks have been made. False: a mark says it.
        prefix: of every text that ``place`` gets. Texts of an earlier recording can still be around.
    """

    def __init__(
        self,
        place: Callable[[str], object],
        locate: Callable[[torch.Tensor], int],
        *,
        stamps: bool = False,
        prefix: str = "",
    ) -> None:
        self.entries: list[Mark] = []
        self.scans: list[Scan] = []
        self.kept: list[Mark] = []
        """The marks up to `remove`."""
        self.modules = Modules()
        self._place = place
        self._stamps = stamps
        self.prefix = prefix
        self._holdings = Holdings(locate, self._scan)
        self._last_scan: dict[tuple[Category, int], int] = {}
        self._local = _Thread()
        self._inside: list[Mark] = []  # one for each module, made once
        self._at_module: list[Callable[[object], None]] = []  # the prehook of its nodes
        self._marked_nodes: set[int] = set()
        self._node_hooks: list[Any] = []
        self._backwards = 0
        self._in_step: list[int] = []  # optimizers whose step has begun
        self._packs = False  # whether anything was seen that packs saved tensors
        self._first_node = 0
        self._in_backward = False
        self._backward_at = [-1]  # the module that the backward has reached
        self._between = self._make_backward_hook(-1)
        self._followed = [True]  # not empty: the backward of what runs now is followed module by module
        self._stack = ExitStack()

    # -- what the user says -------------------------------------------------------------------------------------------

    def add_models(self, models: Mapping[str, torch.nn.Module]) -> None:
        """Make models known before their first forward, so that what they hold is labelled from the start."""
        for name, model in models.items():
            if id(model) not in self.modules.index:
                self._meet(model, name)

    def add_optimizers(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Make optimizers known before their first step."""
        for optimizer in optimizers:
            self._holdings.add_optimizer(optimizer)

    def step(self) -> None:
        """End a training step."""
        self._mark(Kind.STEP, 0)

    # -- hooks in and out ---------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Look at what is there and attach every hook. If it fails, call `abandon`."""
        self._holdings.look_at_all()
        stack = self._stack
        self._first_node = _next_node_number()
        # The call itself is wrapped, as torch.fx does it, rather than hooked: a hook of torch's makes every module call
        # take a slow path of 4 µs, and torch.compile warns of global hooks.
        self._replace(torch.nn.Module, "__call__", self._make_call(torch.nn.Module.__call__))
        for handle in (
            optimizer_hooks.register_optimizer_step_pre_hook(self._optimizer_begins),
            optimizer_hooks.register_optimizer_step_post_hook(self._optimizer_ended),
        ):
            stack.callback(handle.remove)
        # Both backward() and grad() look this name up when they are called; there is no hook for "a backward begins".
        original = vars(torch.autograd)["_engine_run_backward"]
        self._replace(torch.autograd, "_engine_run_backward", partial(self._run_backward, original))
        packing = torch.autograd.graph.saved_tensors_hooks
        self._replace(packing, "__enter__", self._make_packing(packing.__enter__))

    def remove(self) -> None:
        """Detach every hook, and look once more at what is there."""
        call = torch.nn.Module.__call__
        self.abandon()
        _restore_dynamo(call)
        self._holdings.look_once_more()
        self.modules.forget()
        # Another thread may still be inside a forward, and go on to make marks that nobody waits for.
        self.kept = self.entries.copy()

    def abandon(self) -> None:
        """Detach every hook."""
        self._stack.close()
        self._drop_node_hooks()
        self._local.stack.clear()
        self._holdings.detach()

    def _replace(self, owner: Any, name: str, replacement: Callable[..., Any]) -> None:
        original = vars(owner)[name]
        setattr(owner, name, replacement)
        self._stack.callback(setattr, owner, name, original)

    # -- marks --------------------------------------------------------------------------------------------------------

    def _mark(self, kind: Kind, value: int) -> None:
        self.entries.append((kind, value))
        self._place(f"{self.prefix}{len(self.entries)}")

    def _scan(self, category: Category, addresses: list[int], names: Sequence[str]) -> None:
        last = self._last_scan.get((category, id(names)), -1)
        if last < 0 or self.scans[last].addresses != addresses:
            # Most tensors stay where they are: thousands of steps must not keep thousands of equal lists.
            last = self._last_scan[category, id(names)] = len(self.scans)
            self.scans.append(Scan(category, addresses, names))
        self._mark(Kind.SCAN, last)

    def _scan_inputs(self, tensors: Sequence[torch.Tensor]) -> None:
        if tensors:
            self._scan(Category.INPUT, self._holdings.locate_all(tensors), ())

    # -- modules ------------------------------------------------------------------------------------------------------

    def _meet(self, model: torch.nn.Module, name: str) -> int:
        name = self.modules.unique_name(name)
        index = self.modules.meet(model, name)
        self._holdings.add_model(name, model)
        self._prepare_modules()
        return index

    def _meet_called(self, module: torch.nn.Module, stack: Sequence[int]) -> int:
        """Make a module known at its first call: a model of its own, or one that a forward has just made."""
        if not stack:
            again = self.modules.meet_again(module)
            return again if again >= 0 else self._meet(module, type(module).__name__)
        index = self.modules.meet_inside(module, stack[-1])
        self._prepare_modules()
        return index

    def _prepare_modules(self) -> None:
        for index in range(len(self._inside), len(self.modules)):
            self._inside.append((Kind.IN, index))
            self._at_module.append(self._make_backward_hook(index))

    def _make_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What stands for ``Module.__call__``: every name it uses is local, because it runs for every module call."""
        known, calls, shapes = self.modules.index, self.modules.calls, self.modules.shapes
        local, entries, place, prefix = self._local, self.entries, self._place, self.prefix
        at_module, inside, followed = self._at_module, self._inside, self._followed
        is_compiling, is_tracing = torch.compiler.is_compiling, torch._C._get_tracing_state

        def call(module: torch.nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            if is_compiling() or is_tracing():
                return original(module, *args, **kwargs)
            stack = local.stack
            index = known.get(id(module), -1)
            if stack and not followed and index >= 0:
                calls[index] += 1
                return original(module, *args, **kwargs)
            return outermost_or_followed(module, index, stack, args, kwargs)

        def outermost_or_followed(
            module: torch.nn.Module, index: int, stack: list[int], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            if index < 0:
                if getattr(module, "_is_replica", False):  # DataParallel makes new ones for every call
                    return original(module, *args, **kwargs)
                index = self._meet_called(module, stack)
            if not stack:
                self._close_steps()
                if len(self._node_hooks) > _MOST_NODES:  # forwards that no backward follows
                    self._drop_node_hooks()
                    self._marked_nodes.clear()
                self._holdings.look_at_models(again=bool(followed))
                self._scan_inputs(_inputs((args, kwargs)))
            if followed:
                # What the parent did before is not this module's: the backward leaves the module there.
                self._mark_nodes((*args, *kwargs.values()), at_module[stack[-1]] if stack else self._between)
            entries.append(inside[index] if stack else (Kind.ROOT, index))
            stack.append(index)
            place(f"{prefix}{len(entries)}")
            try:
                output = original(module, *args, **kwargs)
            finally:
                stack.pop()
                entries.append(inside[stack[-1]] if stack else (Kind.ROOT_END, index))
                place(f"{prefix}{len(entries)}")
                calls[index] += 1
                if not stack and self._in_backward:  # a recomputation: the backward goes on where it was
                    self._mark(Kind.BACKWARD_AT, self._backward_at[0])
            if not shapes[index]:
                shapes[index] = first_shape(output)
            if followed or not stack:
                self._mark_nodes((output,), at_module[index] if followed else None)
            if not stack and any(tensor.requires_grad for tensor in tensors_in(output)):
                self._mark(Kind.GRAPH, index)
            return output

        return call

    # -- backward -----------------------------------------------------------------------------------------------------

    def _mark_nodes(self, values: Iterable[Any], hook: Callable[[object], None] | None) -> None:
        """Remember the nodes that made these values; unless they were known, let ``hook`` run when a backward comes."""
        for value in values:
            for tensor in (value,) if isinstance(value, torch.Tensor) else tensors_in(value):
                node = tensor.grad_fn
                if node is not None:
                    number = node._sequence_nr()
                    if number not in self._marked_nodes:
                        self._marked_nodes.add(number)
                        if hook is not None:
                            self._node_hooks.append(node.register_prehook(hook))

    def _drop_node_hooks(self) -> None:
        for handle in self._node_hooks:  # a graph can outlive its backward, and the recording
            handle.remove()
        self._node_hooks.clear()

    def _make_backward_hook(self, index: int) -> Callable[[object], None]:
        entries, place, prefix, at = self.entries, self._place, self.prefix, self._backward_at

        def stamp(_grads: object) -> None:
            at[0] = index
            place(f"{prefix}{index}@{len(entries)}")

        def mark(_grads: object) -> None:
            at[0] = index
            self._mark(Kind.BACKWARD_AT, index)

        return stamp if self._stamps else mark

    def _run_backward(self, original: Callable[..., Any], outputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        if torch._C._current_graph_task_id() >= 0:
            return original(outputs, *args, **kwargs)  # a checkpoint's own backward, inside the outer one
        nodes = [node for node in (getattr(output, "grad_fn", None) for output in outputs) if node is not None]
        self._close_steps()
        if not self._packs:
            self._scan_inputs(self._targets(nodes))
        # (tensors, grad_tensors, retain_graph, create_graph, ...), as torch.autograd calls it
        keeps_graph, creates_graph = bool(args[1]), bool(args[2])
        accumulates = self._holdings.has_gradients()
        self._mark(
            Kind.BACKWARD,
            CREATES_GRAPH * creates_graph + FOLLOWED * bool(self._followed) + ACCUMULATES * accumulates,
        )
        self._marked_nodes.clear()  # numbers of nodes are a thread's own, and checkpoints recompute in another thread
        # The autograd threads have marks of their own: the first node to run says there that this backward began.
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
            self._holdings.look_at_gradients()
            self._backwards += 1
            self._followed[:] = [True] * (self._backwards < _FOLLOW_FIRST or self._backwards % _FOLLOW_EVERY == 0)
            if not keeps_graph:
                self._drop_node_hooks()

    def _make_packing(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def enter(hooks: Any) -> Any:
            # To read a saved tensor is to unpack it: a checkpoint would compute it anew.
            self._packs = True
            return original(hooks)

        return enter

    def _targets(self, nodes: Sequence[Any]) -> list[torch.Tensor]:
        """What a loss compares with: the model never sees it, but a node between the model and the loss holds it.

        Only where nothing packs saved tensors, and only in graphs that were made since the recording began.
        """
        ready = list(nodes)
        targets = []
        for _ in range(_LOSS_NODES):
            if not ready:
                break
            node = ready.pop()
            if node is None or (number := node._sequence_nr()) in self._marked_nodes or number < self._first_node:
                continue
            for attribute in ("_saved_target", "_saved_targets"):
                try:
                    target = getattr(node, attribute, None)
                except RuntimeError:  # this graph's tensors were freed; the engine will say so better
                    continue
                if isinstance(target, torch.Tensor) and target.grad_fn is None:
                    targets.append(target)
            ready += [following for following, _ in node.next_functions]
        return targets

    # -- optimizers ---------------------------------------------------------------------------------------------------

    def _optimizer_begins(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        self._close_steps()
        index = self._holdings.add_optimizer(optimizer)
        self._in_step.append(index)
        self._mark(Kind.OPTIMIZER, index)

    def _optimizer_ended(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        index = self._holdings.add_optimizer(optimizer)
        if index in self._in_step:
            self._in_step.remove(index)
        self._mark(Kind.OPTIMIZER_END, index)
        self._holdings.look_at_state(index, again=bool(self._followed))

    def _close_steps(self) -> None:
        """End optimizer steps that an exception left: torch calls no hook then. A closure's forward is inside one."""
        while self._in_step and not _runs_a_step():
            self._in_step.pop()
            self._mark(Kind.OPTIMIZER_END, -1)


def _runs_a_step() -> bool:
    """Whether an optimizer's step is among this thread's callers."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == optimizer_hooks.__file__ and frame.f_code.co_name == "wrapper":
            return True
        frame = frame.f_back
    return False


def _next_node_number() -> int:
    """The number that the next autograd node of this thread gets, or the one before."""
    with torch.enable_grad(), torch.inference_mode(False):
        return int(torch.zeros((), requires_grad=True).neg().grad_fn._sequence_nr())  # type: ignore[union-attr] # it has one


def _restore_dynamo(call: Callable[..., Any]) -> None:
    """Dynamo keeps what ``Module.__call__`` was when it was first imported; that must not be the recording's."""
    utils = sys.modules.get("torch._dynamo.utils")
    if utils is not None and getattr(utils, "unpatched_nn_module_call", None) is call:
        utils.unpatched_nn_module_call = torch.nn.Module.__call__  # type: ignore[attr-defined] # not in its stub


def _inputs(values: Any) -> list[torch.Tensor]:
    """The tensors among a model's arguments that no graph made and no model owns."""
    return [
        tensor for tensor in tensors_in(values) if tensor.grad_fn is None and not isinstance(tensor, torch.nn.Parameter)
    ]

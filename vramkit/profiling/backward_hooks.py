"""The hooks of the autograd engine: when a backward begins and ends, and which module's nodes it has reached.

Knows graphs and their nodes; no modules, only their indices. ``register_full_backward_hook`` is not used: it puts nodes
of its own into the graph, which changes what a program allocates and breaks in-place code.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from ..attribution.recording import ACCUMULATES, CREATES_GRAPH, FOLLOWED, Kind
from ..torch_internals.autograd import graph_task, saved_targets, sequence_number
from ..torch_internals.dynamo import compiles_backward
from .following import Following
from .handles import drop
from .lines import Line
from .marks import Marks
from .optimizer_hooks import OptimizerHooks
from .running_backwards import RunningBackwards, node_of
from .step_ends import StepEnds
from .tensors import tensors_in
from .tracked_tensors import TrackedTensors
from .variables import Variables

_MAX_LEAVES = 1000  # of which most have died with their forwards
_MAX_NODES = 100_000  # hooked and alive: forwards that no backward follows
_MANY_NODES = 10_000  # hooked, of which most have died with their graphs
_MAX_LOSS_NODES = 64  # how far a loss may lie from the model's output before its target is taken for "other"


class BackwardHooks:
    """What runs around a backward, and at the nodes that are followed.

    Args:
        marks: where marks are laid down.
        tensors: whose gradients are looked at.
        optimizers: whose steps may have to be closed.
        running: is told of every backward.
        ends: as well.
        following: is told of every backward.
        variables: looks at what the program holds beside models and optimizers.
        around: what the engine runs in.
    """

    def __init__(
        self,
        marks: Marks,
        tensors: TrackedTensors,
        optimizers: OptimizerHooks,
        running: RunningBackwards,
        ends: StepEnds,
        following: Following,
        variables: Variables,
        around: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._marks = marks
        self._tensors = tensors
        self._optimizers = optimizers
        self._running = running
        self._ends = ends
        self._following = following
        self._variables = variables
        self._around = around
        self._packs = False  # whether anything was seen that packs saved tensors

    def wrap_engine(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What stands for the engine's entry."""
        return partial(self.run, original)

    def wrap_packing(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """What stands for ``saved_tensors_hooks.__enter__``."""

        def enter(hooks: Any) -> Any:
            # To read a saved tensor is to unpack it: a checkpoint would compute it anew.
            self._packs = True
            return original(hooks)

        return enter

    def hook_of(self, line: Line, index: int) -> Callable[[object], None]:
        """The prehook of a module's nodes on a line; -1: of those between modules."""
        hook = line.at_module.get(index)
        if hook is None:
            hook = line.at_module[index] = self._make_hook(line, index)
        return hook

    def hook_of_missed(self, line: Line, index: int) -> Callable[[object], None]:
        """The prehook of the nodes at the end of a forward that is not followed: it is all its outermost module's."""
        hook = line.at_missed.get(index)
        if hook is None:
            hook = line.at_missed[index] = partial(self._miss, line, self.hook_of(line, index))
        return hook

    def mark_nodes(self, line: Line, values: Iterable[Any], hook: Callable[[object], None]) -> None:
        """Remember the nodes that made these values; unless they were known, let ``hook`` run when a backward comes."""
        for value in values:
            for tensor in (value,) if isinstance(value, torch.Tensor) else tensors_in(value):
                node = tensor.grad_fn
                if node is None:
                    if tensor.requires_grad and not isinstance(tensor, torch.nn.Parameter):
                        line.leaves[id(tensor)] = weakref.ref(tensor)
                else:
                    number = sequence_number(node)
                    if number not in line.marked_nodes:
                        line.marked_nodes.add(number)
                        line.node_hooks.append(node.register_prehook(hook))
        if not self._marks.is_open:  # the recording has ended meanwhile, and nobody else will
            drop(line.node_hooks)

    def forget_old_nodes(self, line: Line) -> None:
        """Forget the nodes that are gone, if there are many, and those of forwards that no backward followed.

        Not after each backward: a GAN's generator runs before the discriminator's backward, and waits for its own.
        """
        if len(line.node_hooks) > line.many_nodes:
            line.node_hooks[:] = [each for each in line.node_hooks if each.hooks_dict_ref() is not None]
            line.many_nodes = _MANY_NODES + 2 * len(line.node_hooks)
        if len(line.leaves) > _MAX_LEAVES:
            line.forget_dead_leaves()
        if len(line.node_hooks) > _MAX_NODES:
            drop(line.node_hooks)
        if len(line.marked_nodes) > _MAX_NODES:
            line.marked_nodes.clear()

    def drop_node_hooks(self) -> None:
        """Detach every hook from nodes: a graph can outlive its backward, and the recording."""
        for line in self._marks.lines.met():
            drop(line.root_hooks)
            drop(line.node_hooks)

    def run(self, original: Callable[..., Any], outputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        """Let the engine run a backward.

        Args:
            original: the engine's entry.
            outputs: what it starts from.
            args: (tensors' gradients, retain_graph, create_graph, ...), as torch.autograd calls it.
            kwargs: others.
        """
        backward = object()
        if graph_task() >= 0:  # a checkpoint's own backward, inside the outer one
            try:
                self._running.begin(backward, outputs)
                return original(outputs, *args, **kwargs)
            finally:
                self._running.end(backward)
        if not self._marks.is_open:
            return original(outputs, *args, **kwargs)
        marks = self._marks
        line = marks.lines.current()
        line.trains = True
        nodes = [node for node in map(node_of, outputs) if node is not None]
        self._optimizers.close_steps()
        self._ends.pass_begins(self._tensors.has_gradients)
        if not self._packs:
            self._tensors.look_at_inputs(self._targets(line, nodes))
        creates_graph = bool(args[2])
        results = None
        try:
            with self._running.lock:
                accumulates = self._tensors.has_gradients()
                self._running.begin(backward, outputs)
            marks.lay(line, Kind.BACKWARD, CREATES_GRAPH * creates_graph + ACCUMULATES * accumulates)
            line.misses = compiles_backward()
            line.backward_at = -1
            if line.misses:  # each hook would break the graph; and what was compiled runs in this thread
                drop(line.node_hooks)
                nodes.clear()
            # The autograd threads have marks of their own: the first node to run says there that this one began.
            for node in nodes:
                line.root_hooks.append(node.register_prehook(partial(self._begins, line)))
            node = None
            nodes.clear()
            with self._around():
                results = original(outputs, *args, **kwargs)
            if results and args[3:] and args[3] and marks.is_open:
                self._tensors.look_at_results(args[3], results)
            return results
        finally:
            drop(line.root_hooks)
            marks.lines.end_task(line)
            marks.lay(line, Kind.BACKWARD_END, FOLLOWED * (not line.misses))
            if marks.is_open:
                if self._variables.look(line.backwards, again=line.is_looked_at, grown=False):  # no model has run
                    self._tensors.look_at_models()
                self._tensors.look_at_gradients(backward)
                self._tensors.look_at_leaves(line, backward)
            self._running.end(backward)
            self._ends.backward_ended()
            line.backwards += 1
            self._tensors.backwards += not results
            self._following.note(line, Kind.BACKWARD)

    def _begins(self, line: Line, _grads: object) -> None:
        self._marks.lines.begin_task(line)
        self._marks.lay(line, Kind.BACKWARD_AT, -1)

    @staticmethod
    def _miss(line: Line, hook: Callable[[object], None], grads: object) -> None:
        line.misses = True
        hook(grads)

    def _make_hook(self, line: Line, index: int) -> Callable[[object], None]:
        marks = self._marks
        entries, place, prefix = marks.entries, marks.place, line.prefix

        def stamp(_grads: object) -> None:
            line.backward_at = index
            place(f"{prefix}{index}@{len(entries)}")

        def mark(_grads: object) -> None:
            line.backward_at = index
            marks.lay(line, Kind.BACKWARD_AT, index)

        return stamp if marks.stamps else mark

    def _targets(self, line: Line, nodes: Sequence[Any]) -> list[torch.Tensor]:
        """What a loss compares with: the model never sees it, but a node between the model and the loss holds it.

        Only where nothing packs saved tensors, and only in graphs that were made since the recording began.
        """
        ready = list(nodes)
        targets: list[torch.Tensor] = []
        for _ in range(_MAX_LOSS_NODES):
            if not ready:
                break
            node = ready.pop()
            if node is None or (number := sequence_number(node)) in line.marked_nodes or number < line.first_node:
                continue
            targets += [target for target in saved_targets(node) if target.grad_fn is None]
            ready += [following for following, _ in node.next_functions]
        return targets

"""The wrapper around every module's call: which modules run, what they are given, and which nodes their forwards make.

Knows ``nn.Module``. The call itself is wrapped, as torch.fx does it, rather than hooked: a hook of torch's makes every
module call take a slow path of 4 µs, and torch.compile warns of global hooks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from types import CodeType, FrameType
from typing import Any

import torch

from ..attribution.recording import EVALUATES, NO_GRAD, SOURCE, Kind
from ..torch_internals.autograd import graph_task, is_tracing
from ..torch_internals.modules import class_name, is_replica, unwrapped
from .backward_hooks import BackwardHooks
from .contents import tensors_given
from .exchanges import Exchanges
from .following import Following
from .frames import frames_of_others, own_frames
from .lines import Line
from .marks import Marks
from .optimizer_hooks import OptimizerHooks
from .step_ends import StepEnds
from .tensors import tensors_in
from .tracked_modules import TrackedModules, first_shape
from .tracked_tensors import TrackedTensors
from .variables import Variables


class ModuleHooks:
    """What runs around each module's forward.

    Args:
        marks: where marks are laid down.
        modules: which are known, and learn of those that run.
        tensors: what models are made known to, and what looks at inputs.
        backwards: hooks the nodes that forwards make.
        optimizers: whose steps may have to be closed.
        ends: is told of every forward.
        variables: looks at what the program holds beside models and optimizers.
        following: says which forwards are followed.
        exchanges: is told of new models.
    """

    def __init__(
        self,
        marks: Marks,
        modules: TrackedModules,
        tensors: TrackedTensors,
        backwards: BackwardHooks,
        optimizers: OptimizerHooks,
        ends: StepEnds,
        variables: Variables,
        following: Following,
        exchanges: Exchanges,
    ) -> None:
        self._marks = marks
        self._modules = modules
        self._tensors = tensors
        self._backwards = backwards
        self._optimizers = optimizers
        self._ends = ends
        self._variables = variables
        self._following = following
        self._exchanges = exchanges
        self._codes: set[CodeType] = set()  # of the wrapper's functions
        self._wrapped: CodeType | None = None
        self._late: set[int] = set()  # threads that were in a forward when the hooks came, and may still be

    def add_model(self, model: torch.nn.Module, name: str = "") -> int:
        """Make a model known, and what it holds; returns the index of its module.

        Args:
            model: it.
            name: that its user has given it; empty: that of its class.
        """
        model, given = unwrapped(model), bool(name)
        name = self._modules.unique_name(name or class_name(model))
        index = self._modules.meet(model, name, given=given)
        self._tensors.add_model(index, name, model, instead_of=self._modules.adopted)
        self._exchanges.model_met()
        return index

    def leave_out_late(self) -> None:
        """Leave out the forwards that other threads are in when the wrapper comes: their beginnings were not seen."""
        self._late = {thread for thread, frame in frames_of_others() if self._is_unseen(frame)}

    def is_alone(self) -> bool:
        """Whether no other thread is known to train: what has not run here might be its, and must not be read then."""
        lines = self._marks.lines
        here = lines.current()
        return not self._late and not any(line is not here and line.trains and line.is_alive() for line in lines.met())

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What stands for ``Module.__call__``: every name it uses is local, because it runs for every module call."""
        marks, lines, here = self._marks, self._marks.lines, self._marks.lines.here
        known, calls, shapes = self._modules.index, self._modules.calls, self._modules.shapes
        wrappers, entries, place = self._modules.wrappers, marks.entries, marks.place
        hook_of, hook_of_missed = self._backwards.hook_of, self._backwards.hook_of_missed
        mark_nodes = self._backwards.mark_nodes
        is_compiling = torch.compiler.is_compiling
        root, root_end, inside = Kind.ROOT, Kind.ROOT_END, Kind.IN

        def call(module: torch.nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            if is_compiling() or is_tracing():
                return original(module, *args, **kwargs)
            if here.skips:
                index = known.get(id(module), -1)
                if index < 0:  # it was made in this forward, in a module that nobody knows
                    index = self._modules.meet_somewhere(module, here.stack[0])
                if index >= 0 and id(module) not in wrappers:
                    calls[index] += 1
                return original(module, *args, **kwargs)
            return outermost_or_followed(module, args, kwargs)

        def outermost_or_followed(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            stack = here.stack
            index = known.get(id(module), -1)
            # DataParallel makes new ones for every call.
            if (index < 0 and is_replica(module)) or (not stack and self._is_left_out()):
                return original(module, *args, **kwargs)
            in_backward = not stack and graph_task() >= 0  # a recomputation
            if in_backward and _is_backward(module):
                return original(module, *args, **kwargs)
            line = here.line if stack and here.line is not None else lines.current()
            mode = 0
            if index < 0:
                index = self._meet(module, stack)
            if not stack:
                here.line = line
                self._optimizers.close_steps()
                if not in_backward:
                    self._ends.pass_begins(self._tensors.has_gradients)
                self._backwards.forget_old_nodes(line)
                self._tensors.use_model(self._modules.root_of(index), line)
                given = tensors_given((args, kwargs))
                if not in_backward:  # a recomputation is as its forward was
                    mode = self._begin(module, index, line, given)
                self._tensors.look_at_inputs(_inputs(given))
                del given  # it may hold what was handed over in a list, for the module to empty
                # Each module of a recomputation is an outermost one: to look at the whole model for each would cost
                # the square of its layers. Its forward has looked, and the program waits for the backward.
                again = not in_backward and line.is_looked_at
                looked = not in_backward and self._variables.look(line.backwards, again=again)
                self._tensors.look_at_models(again=again or looked)
            marked = line.marked_nodes
            if in_backward:  # in another thread, which numbers its nodes by itself
                line.marked_nodes = set()
            # What the parent did before is not this module's: the backward leaves the module there.
            mark_nodes(line, (*args, *kwargs.values()), hook_of(line, stack[-1] if stack else -1))
            number, prefix = line.number, line.prefix
            entries.append((inside if stack else root, index, number))
            stack.append(index)
            place(f"{prefix}{len(entries)}")
            has_ended = False
            try:
                here.skips = not line.is_followed
                if mode:
                    marks.lay(line, Kind.MODE, mode)
                output = original(module, *args, **kwargs)
                has_ended = True
            finally:
                stack.pop()
                entries.append((inside, stack[-1], number) if stack else (root_end, index, number))
                place(f"{prefix}{len(entries)}")
                if id(module) not in wrappers:
                    calls[index] += 1
                if not stack:
                    here.skips = False
                    if not has_ended:
                        line.marked_nodes = marked
                        marks.lay(line, Kind.LEFT, index)
                    if in_backward:  # which goes on where it was
                        marks.lay(line, Kind.BACKWARD_AT, line.backward_at)
            if not shapes[index]:
                shapes[index] = first_shape(output)
            mark_nodes(line, (output,), (hook_of if line.is_followed else hook_of_missed)(line, index))
            line.marked_nodes = marked
            if not stack and _has_graph(output):
                marks.lay(line, Kind.GRAPH, index)
            return output

        # torch.compile knows by the name what it need not put a frame of its own around.
        call.__name__ = getattr(original, "__name__", call.__name__)
        self._wrapped = getattr(original, "__code__", None)
        self._codes = {call.__code__, outermost_or_followed.__code__}
        return call

    def _begin(self, module: torch.nn.Module, index: int, line: Line, given: Sequence[torch.Tensor]) -> int:
        """Begin an outermost forward; returns the value of its mark `Kind.MODE`, 0: it needs none."""
        has_grad, is_training = torch.is_grad_enabled(), bool(getattr(module, "training", True))
        self._following.begin_forward(
            line, index, has_grad=has_grad, is_training=is_training, marks=len(self._marks.entries)
        )
        is_source = has_grad and bool(given) and not any(tensor.requires_grad for tensor in given)
        return NO_GRAD * (not has_grad) + EVALUATES * (not is_training) + SOURCE * is_source

    def _meet(self, module: torch.nn.Module, stack: Sequence[int]) -> int:
        """Make a module known at its first call: a model of its own, or one that a forward has just made."""
        if stack:
            return self._modules.meet_inside(module, stack[-1])
        again = self._modules.meet_again(module)
        return again if again >= 0 else self._meet_model(module)

    def _meet_model(self, module: torch.nn.Module) -> int:
        inner = unwrapped(module)
        index = self._modules.index.get(id(inner), -1)
        if index < 0:
            index = self.add_model(inner)
        return index if inner is module else self._modules.meet(module, "")

    def _is_left_out(self) -> bool:
        """Whether nobody waits for this thread's marks, or it is still in a forward whose beginning was not seen."""
        if not self._marks.is_open:
            return True
        thread = threading.get_ident()
        if thread not in self._late:
            return False
        if any(map(self._is_unseen, own_frames())):
            return True
        self._late.discard(thread)
        return False

    def _is_unseen(self, frame: FrameType) -> bool:
        """Whether a frame is that of a module's call that the wrapper did not make."""
        return frame.f_code is self._wrapped and (frame.f_back is None or frame.f_back.f_code not in self._codes)


def _has_graph(output: Any) -> bool:
    """Whether a model's output is part of an autograd graph; of an object that nobody looks into, whether it may be."""
    tensors = list(tensors_in(output))
    return any(tensor.requires_grad for tensor in tensors) or (not tensors and torch.is_grad_enabled())


def _is_backward(module: torch.nn.Module) -> bool:
    """Whether a module that runs inside a backward is a graph of that backward, which makes no graph of what it does.

    ``torch.compile`` makes such modules. A recomputation makes one.
    """
    return isinstance(unwrapped(module), torch.fx.GraphModule) and not torch.is_grad_enabled()


def _inputs(given: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Those of a model's arguments that no graph made and no model owns."""
    return [tensor for tensor in given if tensor.grad_fn is None and not isinstance(tensor, torch.nn.Parameter)]

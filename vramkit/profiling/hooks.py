"""Everything of torch's that is hooked or replaced while a recording runs: put in and taken out here, and nowhere else.

Knows the names in torch; what runs at them, the files of the hooks know. The costs that shaped them, on a step whose
kernels do nothing (so that every microsecond of Python shows): a mark 0.6 µs, of which setting the allocator's metadata
is 0.35; a prehook on one autograd node 1.3 µs to register and 1.3 µs to run. Nothing runs per operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext, suppress
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ..attribution.recording import Kind
from ..torch_internals import dynamo
from ..torch_internals.autograd import RUN_BACKWARD
from ..torch_internals.modules import class_name, restore_in_dynamo, stand_in_dynamo
from .backward_hooks import BackwardHooks
from .compiled_code import CompiledCode
from .exchanges import Exchanges
from .following import Following
from .handles import own, replace
from .marks import Marks
from .module_hooks import ModuleHooks
from .node_notes import NodeNotes
from .optimizer_hooks import OptimizerHooks
from .running_backwards import RunningBackwards
from .step_ends import StepEnds
from .tracked_modules import TrackedModules
from .tracked_tensors import TrackedTensors
from .variables import Variables

Choose = Callable[[Callable[..., Any], Callable[..., Any]], Callable[..., Any]]


class Hooks:
    """What lays down the marks of one recording.

    Args:
        marks: where they are laid down.
        locate: where a tensor's memory lies; see `TrackedTensors`.
        choose: makes one function of a hook and of what runs without it, for a recording that is not of every thread.
        locate_held: where a tensor's memory lies that only a variable holds, 0 where nothing of it is recorded; None:
            the program's variables are not looked at.
        allocated: bytes that are allocated now; a source that can't say so, as on the CPU, gives none.
        follows_all: every forward is followed module by module, where time means nothing.
        notes_lines: the program's line is noted on each node of the autograd graph.
    """

    def __init__(
        self,
        marks: Marks,
        locate: Callable[[torch.Tensor], int],
        *,
        choose: Choose | None = None,
        locate_held: Callable[[torch.Tensor], int] | None = None,
        allocated: Callable[[], int] | None = None,
        follows_all: bool = False,
        notes_lines: bool = False,
    ) -> None:
        self.modules = TrackedModules()
        self._notes = NodeNotes() if notes_lines else None
        self._marks = marks
        self._choose = choose or _always
        self._is_on_cuda = allocated is not None
        running = RunningBackwards(BackwardHooks.run.__code__)
        self._ends = StepEnds()
        self._tensors = TrackedTensors(marks, locate, running)
        following = Following(all_of_them=follows_all)
        self._optimizers = OptimizerHooks(marks, self._tensors, self._ends, following)
        self._variables = Variables(marks, locate_held, allocated, self._tensors, self.modules)
        self._backwards = BackwardHooks(
            marks,
            self._tensors,
            self._optimizers,
            running,
            self._ends,
            following,
            self._variables,
            nullcontext if self._notes is None else self._notes.in_backward,
        )
        self._exchanges = Exchanges(marks, locate, self._tensors.parameter_names)
        self._calls = ModuleHooks(
            marks,
            self.modules,
            self._tensors,
            self._backwards,
            self._optimizers,
            self._ends,
            self._variables,
            following,
            self._exchanges,
        )

    def trained_by(self) -> list[frozenset[str]]:
        """Of each optimizer that stepped the names of its parameters, by the index that its marks have."""
        return self._tensors.trained_by()

    def add_models(self, models: Mapping[str, torch.nn.Module]) -> None:
        """Make models known before their first forward, so that what they hold is labelled from the start."""
        for name, model in models.items():
            if id(model) not in self.modules.index:
                self._calls.add_model(model, "" if name.partition("#")[0] == class_name(model) else name)

    def add_optimizers(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Make optimizers known before their first step."""
        for optimizer in optimizers:
            self._tensors.add_optimizer(optimizer)

    def tell_of_steps(self, tell: Callable[[int], object]) -> None:
        """Call something at the end of each training step; see `StepEnds`."""
        self._ends.tell = tell

    def step(self) -> None:
        """End a training step."""
        self._marks.lay(self._marks.lines.current(), Kind.STEP, 0)
        self._ends.said()

    def install(self, stack: ExitStack) -> None:
        """Attach every hook, and look at what is there.

        Args:
            stack: owns each hook before it is there, and detaches it. Other threads may be anywhere meanwhile.
        """
        self._marks.lines.current()  # this thread's comes first
        self._variables.begin()
        own(stack, self.modules.forget)
        own(stack, self._backwards.drop_node_hooks)
        own(stack, self._tensors.drop_hooks)
        own(stack, self._marks.close)
        if self._notes is not None:
            self._notes.install(stack)
        choose, plain = self._choose, torch.nn.Module.__call__
        call = choose(self._calls.wrap(plain), plain)
        # A compiled step of an optimizer calls its hooks. A compiled module that has hooks of the user's is called as
        # it is without torch.compile, and must not be cut there.
        dynamo.leave_alone(stack, __package__, but=call)
        own(stack, restore_in_dynamo, call)
        stand_in_dynamo(call)
        replace(stack, torch.nn.Module, "__call__", call)
        packing = torch.autograd.graph.saved_tensors_hooks
        enter = packing.__enter__
        replace(stack, packing, "__enter__", choose(self._backwards.wrap_packing(enter), enter))
        swap = torch.utils.swap_tensors
        replace(stack, torch.utils, "swap_tensors", choose(self._tensors.wrap_swap(swap), swap))
        engine = vars(RUN_BACKWARD.owner)[RUN_BACKWARD.name]
        replace(stack, RUN_BACKWARD.owner, RUN_BACKWARD.name, choose(self._backwards.wrap_engine(engine), engine))
        # torch goes through a dict of these hooks that may not change meanwhile. Each comes last in it, so that a
        # thread which is in it is through when it goes.
        stack.callback(register_optimizer_step_pre_hook(choose(self._optimizers.begins, _nothing)).remove)
        stack.callback(register_optimizer_step_post_hook(choose(self._optimizers.ended, _nothing)).remove)
        if self._is_on_cuda:
            self._exchanges.install(stack)
            CompiledCode(self._marks, self.modules).install(stack)
        self._calls.leave_out_late()
        self._tensors.watch()
        self._tensors.look_at_all()

    def finish(self, error: BaseException | None = None) -> None:
        """Look once more at what is there; the marks up to here are kept.

        Args:
            error: ended the program.
        """
        self._tensors.look_at_all()
        with suppress(Exception):  # the program's own classes raise what they like
            found = self._variables.walk(error)
            models, optimizers = self._variables.unknown(found) if self._calls.is_alone() else ([], [])
            self.add_optimizers(optimizers)
            if models:
                for model in models:
                    self._calls.add_model(model)
                self._tensors.look_at_all()
                found = self._variables.walk(error)
            self._variables.look_at(found)
        self._tensors.tell_copies()
        self._marks.keep()

    def alive(self) -> tuple[list[torch.nn.Module], list[torch.optim.Optimizer]]:
        """The models and optimizers that are known and still there."""
        return self._tensors.alive()


def _always(hook: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    return hook


def _nothing(*args: object) -> None:
    pass

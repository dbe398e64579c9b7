"""Where training steps end, and which forwards are part of none: evaluation. Knows marks; no event and no torch.

Evaluation is what no backward follows. That a backward comes some time later says little: after a validation the next
epoch begins. So a forward is told by the step in which it is, and by what others of its kind do.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .forwards import Forward, forwards_of
from .recording import ACCUMULATES, Kind, Mark

_WORK = frozenset({Kind.BACKWARD, Kind.OPTIMIZER})
_Kind = tuple[int, bool, bool]
"""A model, whether it ran with gradients, and whether it was in training mode."""


@dataclass
class Steps:
    """The training steps of a recording, and what is evaluation in it.

    Where nothing trains (no backward, no optimizer's step), a step is what the user says, or a forward of the first
    model.

    Args:
        marks: in the order in which they were made.
        track_of: the track of each line.
        model_of: index of the model that a module is part of, for each module; a module beyond it is one of its own.
    """

    marks: Sequence[Mark]
    track_of: Mapping[int, int]
    model_of: Sequence[int]
    step: npt.NDArray[np.int32] = field(init=False)
    """Index of the step that each mark belongs to, from mark 0 on; between two steps, that of the next."""
    forwards: list[Forward] = field(init=False)
    """Every outermost forward."""
    evaluation: dict[int, Forward] = field(init=False)
    """The forwards that are evaluation, by the number of the mark that began each."""

    def __post_init__(self) -> None:
        kinds = {kind for kind, _, _ in self.marks}
        self._trains = not kinds.isdisjoint(_WORK)
        self.step = self._count(self._ends_by(kinds))
        self.forwards = forwards_of(self.marks)
        if self._trains:
            chosen = _Chosen(self, self.forwards).evaluation()
        else:
            chosen = [each for each in self.forwards if each.needs_no_backward]
        self.evaluation = {each.number: each for each in chosen}
        first = self._first_model()
        busy = [
            number
            for number, (kind, value, _) in enumerate(self.marks, 1)
            if kind in _WORK
            or (kind is Kind.ROOT and (number not in self.evaluation if self._trains else value == first))
        ]
        # What comes after the last step is its end, and not another step.
        self.step = np.minimum(self.step, self.step[busy[-1] - 1] if busy else 0)

    def model(self, module: int) -> int:
        """Index of the model that a module is part of."""
        return self.model_of[module] if module < len(self.model_of) else module

    # -- where steps end -----------------------------------------------------------------------------------------------

    def _count(self, ends: Callable[[int, Kind, int], bool]) -> npt.NDArray[np.int32]:
        steps = np.zeros(len(self.marks) + 1, np.int32)
        step = 0
        for number, (kind, value, _) in enumerate(self.marks, 1):
            step += ends(number, kind, value)
            steps[number] = step
        return steps

    def _ends_by(self, kinds: set[Kind]) -> Callable[[int, Kind, int], bool]:
        """What says of each mark, in their order, whether a step ends there."""
        if Kind.STEP in kinds:
            return self._said_by_the_user()
        expected = self._optimizer_periods()
        if expected:
            return _all_stepped(expected)
        if Kind.BACKWARD in kinds:
            unstepped = self._ends_of_accumulation()
            return lambda number, kind, value: number in unstepped
        first = self._first_model()
        return lambda number, kind, value: kind is Kind.ROOT_END and value == first

    def _first_model(self) -> int:
        return next((value for kind, value, _ in self.marks if kind is Kind.ROOT), -1)

    def _said_by_the_user(self) -> Callable[[int, Kind, int], bool]:
        """Where ``prof.step()`` was called; in a program that trains, not after rounds in which nothing did."""
        trained = not self._trains

        def ends(number: int, kind: Kind, value: int) -> bool:
            nonlocal trained
            trained = trained or kind in _WORK
            ended = kind is Kind.STEP and trained
            trained = trained and not (ended and self._trains)
            return ended

        return ends

    def _optimizer_periods(self) -> dict[int, tuple[int, int]]:
        """Between which marks each optimizer belongs to every step.

        From its first step to its last; and before the first, as long as it takes turns with one that goes on after it.
        So models that are trained one after another don't wait for each other, and those of a GAN do. Where no
        optimizer has come again, all of them are of one step.
        """
        ended = [
            (number, value)
            for number, (kind, value, _) in enumerate(self.marks, 1)
            if kind is Kind.OPTIMIZER_END and value >= 0
        ]
        last = {value: number for number, value in ended}
        first = {value: number for number, value in reversed(ended)}
        if len(first) == len(ended) > 0:
            return dict.fromkeys(first, (ended[0][0], ended[-1][0]))
        return {
            value: (min(first[other] for other in first if last[other] >= begin), last[value])
            for value, begin in first.items()
        }

    def _ends_of_accumulation(self) -> set[int]:
        """Ends of backwards whose gradients are gone before the next: steps, where no optimizer ever steps."""
        ends: set[int] = set()
        last = -1
        for number, (kind, value, _) in enumerate(self.marks, 1):
            if kind is Kind.BACKWARD and last >= 0 and not value & ACCUMULATES:
                ends.add(last)
            elif kind is Kind.BACKWARD_END:
                last = number
        return ends


def _all_stepped(expected: Mapping[int, tuple[int, int]]) -> Callable[[int, Kind, int], bool]:
    seen: set[int] = set()

    def ends(number: int, kind: Kind, value: int) -> bool:
        if kind is not Kind.OPTIMIZER_END or value < 0:
            return False
        seen.add(value)
        ended = all(each in seen for each, (begin, end) in expected.items() if begin <= number <= end)
        if ended:
            seen.clear()
        return ended

    return ends


# -- what is evaluation ------------------------------------------------------------------------------------------------


class _Chosen:
    """Tells evaluation from the forwards of training steps, in a program that trains.

    A forward without gradients is part of a step if it is in the middle of one: after its first forward with gradients,
    and before its last backward or optimizer's step. Before that it may be a validation, or a teacher, whose output the
    step needs. It is the latter where most steps have such a forward, from the first step on, and no evaluation comes
    between. (A model that is never trained itself may come later.) Wrong for a validation before every step, the first
    one included.

    With gradients and in evaluation mode, the forward of a model that trains in training mode is evaluation, too.
    """

    def __init__(self, steps: Steps, forwards: Sequence[Forward]) -> None:
        self._steps = steps
        self._forwards = forwards
        self._trained_in = self._modes_of_training()
        self._work: dict[int, list[int]] = defaultdict(list)  # of each track: marks at which it trains
        for number, (kind, value, line) in enumerate(steps.marks, 1):
            if kind in _WORK or (kind is Kind.OPTIMIZER_END and value >= 0):  # a closure's forwards come before its end
                self._work[steps.track_of[line]].append(number)
        self._begins: dict[tuple[int, int], int] = {}  # of each track's steps: the first mark that is training
        for each in forwards:
            if not each.needs_no_backward and not self._is_odd(each):
                self._begins.setdefault(self._place(each), each.number)
        self._steps_of: dict[int, list[int]] = {}  # of each track: the steps in which it trains, in order
        for track, numbers in self._work.items():
            self._steps_of[track] = sorted({int(steps.step[number - 1]) for number in numbers})
            for number in numbers:
                key = track, int(steps.step[number - 1])
                self._begins[key] = min(number, self._begins.get(key, number))

    def evaluation(self) -> list[Forward]:
        """The forwards that are evaluation."""
        uncertain = [each for each in self._forwards if each.needs_no_backward or self._is_odd(each)]
        led: dict[tuple[int, _Kind], set[int]] = defaultdict(set)  # of each kind: the steps in which it runs
        for each in uncertain:
            if self._leads_to_work(each):
                track, step = self._place(each)
                led[track, self._kind(each)].add(step)
        found = []
        begun: set[tuple[int, int]] = set()  # of each track, steps before whose forwards there was evaluation
        for each in reversed(uncertain):
            place = self._place(each)
            is_regular = place not in begun and self._is_regular(each, led[place[0], self._kind(each)])
            if not (self._leads_to_work(each) and (self._is_inside(each) or is_regular)):
                found.append(each)
                begun.add(place)
        return found[::-1]

    def _modes_of_training(self) -> dict[int, set[bool]]:
        """Of each model: in which modes, training or not, the forwards were whose graphs a backward went through.

        Of several forwards before a backward, the last of each model: an epoch follows the validation before it.
        """
        found: dict[int, set[bool]] = defaultdict(set)
        waiting: dict[int, dict[int, bool]] = defaultdict(dict)
        forwards = iter(self._forwards)
        following = next(forwards, None)
        for number, (kind, _, line) in enumerate(self._steps.marks, 1):
            if following is not None and number == following.number:
                if following.made_graph:
                    waiting[line][self._steps.model(following.module)] = following.is_training
                following = next(forwards, None)
            elif kind is Kind.BACKWARD:
                for model, mode in waiting.pop(line, {}).items():
                    found[model].add(mode)
        return found

    def _kind(self, each: Forward) -> _Kind:
        return (self._steps.model(each.module), not each.needs_no_backward, each.is_training)

    def _place(self, each: Forward) -> tuple[int, int]:
        """Its track and its step."""
        return self._steps.track_of[each.line], int(self._steps.step[each.number])

    def _is_odd(self, each: Forward) -> bool:
        """Whether it runs in evaluation mode, and its model trains in training mode."""
        return not each.is_training and self._trained_in.get(self._steps.model(each.module)) == {True}

    def _leads_to_work(self, each: Forward) -> bool:
        """Whether training follows in its step; a forward with gradients that came to no end counts as that."""
        track, step = self._place(each)
        work = self._work[track]
        at = bisect_right(work, each.number)
        if at < len(work):
            return int(self._steps.step[work[at] - 1]) == step
        return self._begins.get((track, step), -1) > each.number

    def _is_inside(self, each: Forward) -> bool:
        """Whether its step had begun to train; of a validation between accumulated backwards that is not believed."""
        begin = self._begins.get(self._place(each), each.number)
        return begin < each.number and not self._is_odd(each)

    def _is_regular(self, each: Forward, led: set[int]) -> bool:
        """Whether most steps have a forward of its kind."""
        steps = self._steps_of.get(self._place(each)[0], [])
        if not led:
            return False
        if self._steps.model(each.module) not in self._trained_in:
            steps = steps[bisect_left(steps, min(led)) :]
        elif not steps or steps[0] not in led or (self._is_odd(each) and len(steps) < 2):
            return False
        return 2 * len(led) > len(steps)

"""The outermost forwards of a recording, as its marks tell them: how each ran, and what it led to. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .recording import EVALUATES, NO_GRAD, SOURCE, Kind, Mark


@dataclass(slots=True)
class Forward:
    """One outermost forward, recomputations left out."""

    number: int
    """Number of the mark that began it."""
    line: int
    module: int
    has_grad: bool = True
    """Whether gradients were on when it began."""
    is_training: bool = True
    """Whether the module was in training mode."""
    made_graph: bool = False
    has_ended: bool = False
    was_left: bool = False
    """Whether an exception left it."""
    is_source: bool = False
    """Whether it was given nothing that is part of a graph, as far as that is known."""

    @property
    def needs_no_backward(self) -> bool:
        """Whether it ran without gradients: they were off, or nothing in it required any."""
        return not self.has_grad or (self.has_ended and not self.was_left and not self.made_graph)


def forwards_of(marks: Sequence[Mark]) -> list[Forward]:
    """All of them, in the order in which they began."""
    found: list[Forward] = []
    last: dict[int, Forward] = {}  # of each line
    in_backward: set[int] = set()
    for number, (kind, value, line) in enumerate(marks, 1):
        match kind:
            case Kind.BACKWARD:
                in_backward.add(line)
            case Kind.BACKWARD_END:
                in_backward.discard(line)
            case Kind.ROOT if line not in in_backward:
                last[line] = Forward(number, line, value)
                found.append(last[line])
            case Kind.MODE:
                last[line].has_grad = not value & NO_GRAD
                last[line].is_training = not value & EVALUATES
                last[line].is_source = bool(value & SOURCE)
            case Kind.ROOT_END if line in last and line not in in_backward:
                last[line].has_ended = True
            case Kind.GRAPH if line in last and line not in in_backward:
                last[line].made_graph = True
            case Kind.LEFT if line in last and line not in in_backward:
                last[line].was_left = True
            case _:
                pass
    return found

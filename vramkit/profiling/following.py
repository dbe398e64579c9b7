"""Which forwards are followed module by module: some of each kind. Knows kinds and counts; no module, no tensor.

Marks at every module, and prehooks on its nodes, are most of what a profile costs, and one forward is like the next of
its kind. The modules of those that are not followed are found afterwards, where their events are the same.
"""

from __future__ import annotations

from .lines import Line

# A kind is told by what came just before as well: a GAN runs its discriminator three times a step, and the backward of
# the third goes through the generator too. Several in a row, as kinds begin to repeat at different times: what one
# backward goes through must be followed together. Of 67, 3 are 4.5 %.
_IN_A_ROW, _OUT_OF = 3, 67
_BEFORE = 2  # how many things that came before tell kinds apart
_MAX_MARKS = 2_000_000  # some 70 B each: from there on not even a virtual GPU's forwards are all followed


class Following:
    """Decides for each outermost forward whether it is followed.

    Args:
        all_of_them: follow every one. Only where time means nothing.
    """

    def __init__(self, *, all_of_them: bool) -> None:
        self._all = all_of_them

    def begin_forward(self, line: Line, module: int, *, has_grad: bool, is_training: bool, marks: int) -> None:
        """A line begins an outermost forward.

        Args:
            line: which learns whether it is followed.
            module: the outermost.
            has_grad: whether gradients are on.
            is_training: the module's mode.
            marks: how many there are by now.
        """
        this = (module, has_grad, is_training)
        kind = (this, line.recent)
        count = line.forwards.get(kind, 0)
        line.forwards[kind] = count + 1
        line.is_looked_at = count % _OUT_OF < _IN_A_ROW
        line.is_followed = line.is_looked_at or (self._all and marks < _MAX_MARKS)
        self.note(line, this)

    def note(self, line: Line, what: object) -> None:
        """A line does something that tells the kinds of its next forwards apart."""
        line.recent = (*line.recent, what)[-_BEFORE:]

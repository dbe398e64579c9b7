"""The rows of a comparison, as values. Knows no tape; every figure is in bytes at the peak of each result."""

from __future__ import annotations

from dataclasses import dataclass

from ..tape.events import Category, Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A figure of two results, in bytes."""

    name: str
    before: int
    after: int

    @property
    def difference(self) -> int:
        """How much more it is after; negative: less."""
        return self.after - self.before


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDifference:
    """A training step of two results."""

    step: int
    """From 0."""
    peak_allocated: Difference
    peak_reserved: Difference
    end_allocated: Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleDifference:
    """What a module, or a row of equal ones, holds at the peak of two results; bytes as asked for."""

    name: str
    """Qualified; ``*`` stands for the numbers of equal blocks. Empty: what is in no module, or in a smaller one."""
    kind: str
    """Name of the class, after; before, where it is gone."""
    count_before: int
    """How many modules this is; 0: there was none."""
    count_after: int
    own: bool = False
    """Without the modules inside it, which have rows of their own."""
    parts: tuple[Difference, ...] = ()
    """``parameters`` (and buffers), ``kept`` (gradients and optimizer state), ``activations``, ``rest``."""

    @property
    def before(self) -> int:
        """Bytes that it held before."""
        return sum(each.before for each in self.parts)

    @property
    def after(self) -> int:
        """Bytes that it holds after."""
        return sum(each.after for each in self.parts)

    @property
    def difference(self) -> int:
        """How much more it holds after; negative: less."""
        return self.after - self.before


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDifference:
    """Allocations of one origin and one size that are alive at one peak and not at the other, or of another size."""

    name: str
    """What they are called, or the module that they belong to, with ``*`` for the numbers of equal blocks."""
    named: bool
    """Whether it is their own name."""
    category: Category
    phase: Phase
    """Where those without a name were made; of cuBLAS's workspaces nothing is said."""
    line: str = ""
    """The line that made those without a name, if both results have stacks: ``"train.py:42 in forward"``."""
    operator: str = ""
    """The operator that made those without a name, where it is known, ``"aten::bmm"``: after, where they are there."""
    count_before: int
    size_before: int
    """Bytes of each."""
    count_after: int
    size_after: int
    """Bytes of each."""

    @property
    def before(self) -> int:
        """Bytes of all, before."""
        return self.count_before * self.size_before

    @property
    def after(self) -> int:
        """Bytes of all, after."""
        return self.count_after * self.size_after

    @property
    def difference(self) -> int:
        """How much more they take after; negative: less."""
        return self.after - self.before

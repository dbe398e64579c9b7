"""What a piece of advice is. Knows no result, and no rule."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from ..edits import Edit


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One change to a program."""

    saves: int
    """About how many bytes of peak memory it saves, made alone; of reserved memory where ``of_reserved`` says so."""
    text: str
    """What to change, and why it saves, in a sentence."""
    of_reserved: bool = False
    """The bytes are of reserved memory, not of allocated memory."""
    is_computed: bool = True
    """Whether the bytes are what the change would save; else only what is at stake, and nothing to tell."""
    is_cause: bool = False
    """Whether it names memory that nothing needs: a leak, a graph that nobody uses, a model that is done."""
    peak_allocated: int | None = None
    """Highest ``memory_allocated()`` with the change, in bytes, where a replay of the tape proves it."""
    peak_reserved: int | None = None
    """Highest ``memory_reserved()`` with it; likewise."""
    edit: Edit | None = field(default=None, repr=False, compare=False)
    """What becomes of the tape's allocations, where the rule knows it of each: the peaks follow from that."""

    def to_record(self) -> dict[str, int | str | bool | None]:
        """All that is to be told, as a plain dictionary."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "edit"}

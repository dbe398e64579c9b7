"""The exceptions of vramkit. Knows how an error text is built up; knows nothing of what went wrong.

::

    VramkitError
    ├── UsageError      (also ValueError)  the call can't mean anything
    ├── DeviceError     (also RuntimeError) the device, driver, compiler or build that is needed isn't there
    ├── SnapshotError   (also ValueError)  a file is damaged, from another version, or not safe to open
    ├── DoesNotFit      the answer to "how much fits?" is "not even the smallest"
    └── SimulatedOutOfMemory  a request that `CachingAllocator` could not serve (defined with it)

``torch.OutOfMemoryError`` is not in the tree: it is never swallowed or replaced.
"""

from __future__ import annotations

import builtins
import copyreg
from typing import Any


class VramkitError(Exception):
    """Base class of every error that vramkit raises itself.

    Args:
        asked: what was asked for.
        found: what was found instead: values, shapes, sizes.
        why: why that can't work.
        instead: what to write instead.

    The four parts become one text, a sentence each; a part that would only repeat another is left out. What was found
    goes on with the sentence if it begins with "with".
    """

    def __init__(self, asked: str, found: str = "", why: str = "", instead: str = "") -> None:
        if found.startswith("with "):
            asked, found = f"{asked} {found}", ""
        parts = (asked, *(_capitalised(part) for part in (found, why, instead)))
        super().__init__(" ".join(_ended(part.strip()) for part in parts if part))

    def __reduce__(self) -> tuple[Any, ...]:
        # As Python would, but without a call of __init__, which makes the text from its parts.
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined] # not in typeshed


def _capitalised(part: str) -> str:
    word, space, _ = part.partition(" ")
    is_name = isinstance(getattr(builtins, word, None), type) and word != "set"  # str 'x'
    is_word = word.isalpha() and word.islower() and space and not is_name
    return part[0].upper() + part[1:] if is_word else part


def _ended(part: str) -> str:
    return part if part.endswith((".", "!", "?", ":")) else f"{part}."


def printable(text: str) -> str:
    """Text that someone else wrote, with what a terminal would act on (escapes, newlines) as Python would write it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_SHOWN = 200
_SHOWN_BITS = 256
_SHOWN_ITEMS = 4
_CONTAINERS = (list, tuple, dict, set, frozenset)


def shortened(text: str) -> str:
    """`printable`, and of more than 200 characters only the first: enough of a stranger's text for an error."""
    shown = printable(text[:_SHOWN])
    return shown if len(text) <= _SHOWN and len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def shown(value: object) -> str:
    """A value that someone else gave, as Python writes it, but `shortened`; of most containers only what they are.

    The ``repr`` of lists inside lists can be longer than any memory, and Python refuses to write a number of more
    than 4,300 digits.
    """
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:
        return f"a number of {value.bit_length():,} bits"
    if isinstance(value, (str, bytes)):
        return shortened(repr(value[: _SHOWN + 1]))  # one more, so that it is seen to be cut
    if (
        isinstance(value, tuple)
        and len(value) <= _SHOWN_ITEMS
        and not any(isinstance(each, _CONTAINERS) for each in value)
    ):
        return shortened(f"({', '.join(map(shown, value))})")
    if isinstance(value, _CONTAINERS):
        return f"a {type(value).__name__}"
    return shortened(repr(value))


class UsageError(VramkitError, ValueError):
    """An argument or an order of calls that can't mean anything."""


class DeviceError(VramkitError, RuntimeError):
    """A device, driver, compiler or build of torch that is needed is not there."""


class SnapshotError(VramkitError, ValueError):
    """A file that is damaged, was written by another version, or would run code if it were opened."""


class DoesNotFit(VramkitError):  # noqa: N818 - an answer, not a fault
    """Not even the smallest size that was allowed fits; the text carries the report."""

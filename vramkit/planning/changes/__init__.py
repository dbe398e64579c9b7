"""The changes that a plan tries: a file for each kind. This file knows what a change is, and which kinds there are not.

A kind offers a *family* for a program: the same change from its mildest form to its strongest, of which a program gets
one. Where it can't help, or can't be made from outside, it says why instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..draft import Draft
    from ..facts import Facts


class Severity(IntEnum):
    """What a change does to a training, from the least on. A plan takes a dearer kind only where the ones before it do
    not suffice.
    """

    SAME = 0
    """The same numbers, up to the order in which they are added."""
    PRECISION = 1
    """Products in fewer bits; weights and optimizer state stay as they are."""
    TRANSFERS = 2
    """The same numbers, and bytes that cross PCIe in every step."""
    WEIGHTS = 3
    """Weights, gradients and optimizer state in fewer bits."""
    TRAINING = 4
    """Another training: its settings have to be found anew."""


@dataclass(frozen=True, kw_only=True)
class Change(ABC):
    """One change of a program's code."""

    name: str
    """In a few words."""
    severity: Severity = Severity.SAME
    numbers: str = "none"
    """What changes numerically."""
    computes: bool = False
    """It changes which operations run, or what is copied."""
    passes: int = 1
    """How often a step goes through the model."""
    host_bytes: int = 0
    """What it may take of the host's memory where it runs; `ALL`: as much as the program takes on the card."""

    @abstractmethod
    def write(self, draft: Draft) -> None:
        """Write it into a program's code."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A change in several strengths."""

    slot: str
    """Families of one slot exclude each other."""
    changes: tuple[Change, ...]
    """From the mildest on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A change that was not tried, or could not be made."""

    name: str
    reason: str
    """A sentence."""


ALL = -1

Kind = Callable[["Facts"], "Family | LeftOut"]
"""What a file of this folder has for a kind."""

OWN_STEP = "Your step decides about that. Make the change in it, and plan that step."
NOTHING_TRAINS = "Nothing trains, so nothing is kept for a backward, and no optimizer steps."

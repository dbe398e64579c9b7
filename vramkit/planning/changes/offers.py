"""Every kind of change, from those that cost least on. A new kind is a function in this folder and a row here."""

from __future__ import annotations

from ..facts import Facts
from . import Family, Kind, LeftOut
from .checkpointing import checkpointing
from .optimizers import adafactor, eight_bits, fused, offload_state, sgd, without_foreach
from .parts import accumulation, loss_in_parts
from .places import expandable, frozen, saved_on_host
from .precision import autocast, frozen_half, half_weights

KINDS: tuple[Kind, ...] = (
    expandable,
    frozen,
    fused,
    without_foreach,
    accumulation,
    loss_in_parts,
    checkpointing,
    frozen_half,
    autocast,
    saved_on_host,
    offload_state,
    eight_bits,
    half_weights,
    sgd,
    adafactor,
)


def offers(facts: Facts) -> tuple[tuple[Family, ...], tuple[LeftOut, ...]]:
    """The families that apply to a program, and what does not, with the reasons."""
    found = [kind(facts) for kind in KINDS]
    families = tuple(each for each in found if isinstance(each, Family))
    return families, tuple(each for each in found if isinstance(each, LeftOut))

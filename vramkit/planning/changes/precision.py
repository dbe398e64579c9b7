"""Fewer bits: autocast, weights in bfloat16, and frozen weights in half precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..draft import Draft
from ..facts import Facts
from . import OWN_STEP, Change, Family, LeftOut, Severity

_BFLOAT16_FROM = (8, 0)
_HALF = "torch.bfloat16", "torch.float16"


def _half_of(facts: Facts) -> str:
    """The dtype of 16 bits that a card computes in."""
    return _HALF[0] if facts.gpu.capability >= _BFLOAT16_FROM else _HALF[1]


def _short(dtype: str) -> str:
    return dtype.removeprefix("torch.")


def _cast(draft: Draft, dtype: str) -> None:
    """Run forward and loss under autocast; in float16 gradients need a scaler."""
    if draft.facts.autocast is None:
        draft.autocast = dtype
        draft.scales = dtype == _HALF[1] and draft.facts.trains


@dataclass(frozen=True, kw_only=True)
class Autocast(Change):
    """Forward and loss under autocast."""

    dtype: str

    def write(self, draft: Draft) -> None:
        _cast(draft, self.dtype)


def autocast(facts: Facts) -> Family | LeftOut:
    """To bfloat16 where the card has it, else to float16, with a scaler."""
    name = "autocast"
    if facts.own_step:
        return LeftOut(name=name, reason=OWN_STEP)
    if facts.autocast in (torch.bfloat16, torch.float16):
        return LeftOut(name=name, reason="It is on already.")
    if not (facts.trained_in_float32 or facts.frozen_in_float32):
        return LeftOut(name=name, reason="No weight is in float32.")
    dtype = _half_of(facts)
    bits = {_HALF[0]: "8 bits of mantissa", _HALF[1]: "11 bits of mantissa; steps whose gradients overflow are skipped"}
    return Family(
        slot="precision",
        changes=(
            Autocast(
                name=f"autocast to {_short(dtype)}" + " with a GradScaler" * (dtype == _HALF[1] and facts.trains),
                severity=Severity.PRECISION,
                numbers=f"matrix products and convolutions in {bits[dtype]}",
                computes=True,
                dtype=dtype,
            ),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class FrozenHalf(Change):
    """Frozen weights in half precision, under autocast."""

    dtype: str

    def write(self, draft: Draft) -> None:
        draft.on_cpu.append(
            "for parameter in model.parameters():\n"
            "    if not parameter.requires_grad:\n"
            f"        parameter.data = parameter.data.to({self.dtype})"
        )
        _cast(draft, self.dtype)


def frozen_half(facts: Facts) -> Family | LeftOut:
    """Of weights that nobody trains: they have no state that would suffer."""
    name = "frozen weights in half precision"
    if facts.own_step:
        return LeftOut(name=name, reason=OWN_STEP)
    if not facts.frozen_in_float32 or not facts.trained_in_float32:
        return LeftOut(name=name, reason="No weight in float32 is frozen beside others that train.")
    dtype = _half_of(facts)
    if facts.autocast not in (None, getattr(torch, _short(dtype))):
        return LeftOut(name=name, reason="Autocast is to another dtype.")
    return Family(
        slot="precision",
        changes=(
            FrozenHalf(
                name=f"frozen weights in {_short(dtype)}, under autocast",
                severity=Severity.PRECISION,
                numbers=f"frozen weights are rounded to {_short(dtype)}, products are computed in it",
                computes=True,
                dtype=dtype,
            ),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class HalfWeights(Change):
    """The whole model in half precision."""

    dtype: str

    def write(self, draft: Draft) -> None:
        if draft.facts.value:  # as a library makes them: what buffers have, stays
            draft.on_cpu.append(
                f"for parameter in model.parameters():\n    parameter.data = parameter.data.to({self.dtype})"
            )
        else:
            draft.on_cpu.append(f"model.to({self.dtype})")
        if draft.facts.floats_in_batch:
            draft.batch_dtype = self.dtype


def half_weights(facts: Facts) -> Family | LeftOut:
    """Weights, gradients and optimizer state in bfloat16; where nothing trains, weights as the card computes."""
    dtype = _HALF[0] if facts.trains else _half_of(facts)
    name = f"weights in {_short(dtype)}"
    if not facts.one_model:
        return LeftOut(name=name, reason="There are several models.")
    if not (facts.trained_in_float32 or (facts.frozen_in_float32 and not facts.trains)):
        return LeftOut(name=name, reason="No weight that trains is in float32.")
    if facts.trains and facts.gpu.capability < _BFLOAT16_FROM:
        return LeftOut(
            name=name,
            reason="The card computes bfloat16 by detours (capability below 8.0), and in float16 weights do not train.",
        )
    if facts.floats_in_batch and (facts.own_step or facts.batch_form == "other"):
        return LeftOut(
            name=name, reason="The batch would have to be cast in your step." if facts.own_step else _UNKNOWN
        )
    if facts.autocast is not None:
        return LeftOut(name=name, reason="The step runs under autocast, which keeps weights as they are.")
    return Family(
        slot="precision",
        changes=(
            HalfWeights(
                name=name,
                severity=Severity.WEIGHTS,
                numbers="weights, gradients and optimizer state have 8 bits of mantissa: small updates are lost"
                if facts.trains
                else f"weights and all that is computed have {8 if dtype == _HALF[0] else 11} bits of mantissa",
                computes=True,
                dtype=dtype,
            ),
        ),
    )


_UNKNOWN = "What floating-point tensors are in the batch is not known: give a tensor, or a tuple or a dict of tensors."

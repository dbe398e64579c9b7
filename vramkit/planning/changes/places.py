"""Where memory is: activations on the host, segments that grow, and nothing for parameters that no optimizer trains."""

from __future__ import annotations

from dataclasses import dataclass

from ..draft import Draft
from ..facts import Facts
from . import ALL, NOTHING_TRAINS, OWN_STEP, Change, Family, LeftOut, Severity


@dataclass(frozen=True, kw_only=True)
class SavedOnHost(Change):
    """What autograd keeps lies on the host."""

    def write(self, draft: Draft) -> None:
        draft.around.append("torch.autograd.graph.save_on_cpu(pin_memory=True)")


def saved_on_host(facts: Facts) -> Family | LeftOut:
    """For the whole forward."""
    name = "activations on the CPU"
    if facts.own_step:
        return LeftOut(name=name, reason=OWN_STEP)
    if not facts.trains:
        return LeftOut(name=name, reason=NOTHING_TRAINS)
    return Family(
        slot=name,
        changes=(
            SavedOnHost(name=f"{name} (save_on_cpu)", severity=Severity.TRANSFERS, computes=True, host_bytes=ALL),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Expandable(Change):
    """Segments of the allocator that grow."""

    def write(self, draft: Draft) -> None:
        draft.alloc_conf = "expandable_segments:True"


def expandable(facts: Facts) -> Family | LeftOut:
    """Less that is reserved and not allocated."""
    name = "expandable_segments:True"
    if facts.expands:
        return LeftOut(name=name, reason="They grow already.")
    return Family(slot=name, changes=(Expandable(name=name),))


@dataclass(frozen=True, kw_only=True)
class Frozen(Change):
    """No gradients where no optimizer uses them."""

    modules: tuple[str, ...]
    parameters: tuple[str, ...]

    def write(self, draft: Draft) -> None:
        draft.on_cpu += [f"model.get_submodule({path!r}).requires_grad_(False)" for path in self.modules]
        draft.on_cpu += [f"model.get_parameter({path!r}).requires_grad_(False)" for path in self.parameters]


def frozen(facts: Facts) -> Family | LeftOut:
    """What requires gradients and is in no optimizer. What is frozen already keeps nothing, with or without no_grad."""
    name = "freeze what no optimizer trains"
    if not facts.trains:
        return LeftOut(name=name, reason=NOTHING_TRAINS)
    if facts.optimizers < 1:
        return LeftOut(name=name, reason="There is no optimizer, or nobody knows what it trains.")
    if not facts.untrained_modules and not facts.untrained_parameters:
        return LeftOut(
            name=name,
            reason="Everything that requires gradients is in an optimizer. For what is frozen, autograd keeps nothing "
            "that no_grad would save, unless something below it trains.",
        )
    return Family(
        slot=name,
        changes=(
            Frozen(
                name=name,
                computes=True,
                modules=facts.untrained_modules,
                parameters=facts.untrained_parameters,
            ),
        ),
    )

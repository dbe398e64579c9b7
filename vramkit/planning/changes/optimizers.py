"""The optimizer: how its step is computed, and others with less state."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from ..draft import Draft
from ..facts import Facts
from . import NOTHING_TRAINS, Change, Family, Kind, LeftOut, Severity

_SLOT = "optimizer"
_LESS_STATE = {"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adadelta", "RMSprop"}
"""Those in ``torch.optim`` that keep a number or more for each parameter, and are not SGD."""
_PACKAGE = "bitsandbytes"
_EIGHT_BITS = {"Adam", "AdamW"}
_EIGHT_BITS_KEPT = {"lr", "betas", "eps", "weight_decay"}
_EIGHT_BITS_OPTIONS = {*_EIGHT_BITS_KEPT, "foreach", "fused"}
_MOST_STATE = 3  # times its parameters: what an optimizer of torch keeps at most


@dataclass(frozen=True, kw_only=True)
class Optimizer(Change):
    """The optimizer made otherwise."""

    made: str
    package: str = ""
    """It is made by; empty: by torch."""

    def write(self, draft: Draft) -> None:
        draft.imports += [f"import {self.package}"] * bool(self.package)
        draft.optimizer = self.made


def _refusal(facts: Facts, name: str) -> LeftOut | None:
    """Why an optimizer can't be made otherwise."""
    if not facts.trains or facts.optimizers == 0:
        return LeftOut(name=name, reason=NOTHING_TRAINS if not facts.trains else "There is no optimizer.")
    if facts.optimizers != 1:
        return LeftOut(name=name, reason="There are several optimizers, or nobody knows which. Make each of them so.")
    if facts.optimizer is None or not facts.optimizer.kind:
        return LeftOut(name=name, reason="The optimizer is none of torch.optim that is made of parameters and numbers.")
    return None


def _made(kind: str, options: dict[str, object]) -> str:
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f"{kind}(parameters{', ' if given else ''}{given})"


def _option(option: str, value: bool, excludes: str) -> Kind:
    """A way to compute the same step."""
    name = f"{option}={value}"

    def offered(facts: Facts) -> Family | LeftOut:
        if refusal := _refusal(facts, name):
            return refusal
        assert facts.optimizer is not None
        own = dict(facts.optimizer.options)
        if option not in facts.optimizer.known:
            return LeftOut(name=name, reason=f"{facts.optimizer.kind} has no such option.")
        if own.get(option) == value or own.get("fused") or own.get("differentiable"):
            return LeftOut(name=name, reason="The optimizer is made so already, or with an option that excludes it.")
        own.pop(excludes, None)
        return Family(
            slot=_SLOT,
            changes=(
                Optimizer(
                    name=f"{facts.optimizer.kind}({name})",
                    numbers="rounding in the optimizer's step",
                    made=_made(f"torch.optim.{facts.optimizer.kind}", {**own, option: value}),
                ),
            ),
        )

    return offered


fused = _option("fused", True, "foreach")
without_foreach = _option("foreach", False, "fused")


_OF_THE_STEP = "Your step has the optimizer that was passed. Pass it this one, and plan that."


def _another(kind: str, options: dict[str, object], numbers: str) -> Kind:
    name = f"{kind}({', '.join(f'{option}={value}' for option, value in options.items())})"

    def offered(facts: Facts) -> Family | LeftOut:
        if refusal := _refusal(facts, name):
            return refusal
        assert facts.optimizer is not None
        if facts.own_step:
            return LeftOut(name=name, reason=_OF_THE_STEP)
        if facts.optimizer.kind not in _LESS_STATE:
            return LeftOut(name=name, reason=f"{facts.optimizer.kind} keeps no more than it would.")
        own = dict(facts.optimizer.options)
        rate = {"lr": own["lr"]} if "lr" in own else {}
        return Family(
            slot=_SLOT,
            changes=(
                Optimizer(
                    name=name,
                    severity=Severity.TRAINING,
                    numbers=numbers,
                    made=_made(f"torch.optim.{kind}", {**rate, **options}),
                ),
            ),
        )

    return offered


sgd = _another(
    "SGD",
    {"momentum": 0.9, "fused": True},
    "another optimizer, with one number of state for each parameter: find its learning rate",
)
adafactor = _another(
    "Adafactor", {"foreach": False}, "another optimizer, with state for rows and columns alone: find its learning rate"
)


def eight_bits(facts: Facts) -> Family | LeftOut:
    """The same optimizer of bitsandbytes, with a byte for each number of its state."""
    name = "optimizer state in 8 bits"
    if refusal := _refusal(facts, name):
        return refusal
    assert facts.optimizer is not None
    kind = facts.optimizer.kind
    if facts.own_step:
        return LeftOut(name=name, reason=_OF_THE_STEP)
    if kind not in _EIGHT_BITS or {option for option, _ in facts.optimizer.options} - _EIGHT_BITS_OPTIONS:
        return LeftOut(
            name=name, reason="bitsandbytes has no optimizer with these options. Pass an 8-bit one as optimizer=."
        )
    if find_spec(_PACKAGE) is None:
        return LeftOut(
            name=name, reason=f"{_PACKAGE} is not installed. Install it, or pass an 8-bit one of another package."
        )
    options = {option: value for option, value in facts.optimizer.options if option in _EIGHT_BITS_KEPT}
    return Family(
        slot=_SLOT,
        changes=(
            Optimizer(
                name=f"{kind}8bit of {_PACKAGE}",
                severity=Severity.WEIGHTS,
                numbers="optimizer state has 8 bits a number, with a scale for each 256 of them",
                made=_made(f"{_PACKAGE}.optim.{kind}8bit", options),
                package=_PACKAGE,
            ),
        ),
    )


def offload_state(facts: Facts) -> Family | LeftOut:
    """Optimizer state on the host, but for the optimizer's step."""
    name = "optimizer state on the CPU"
    if not facts.trains or facts.optimizers == 0:
        return LeftOut(name=name, reason=NOTHING_TRAINS if not facts.trains else "There is no optimizer.")
    if facts.optimizers != 1:
        return LeftOut(name=name, reason="There are several optimizers, or nobody knows which.")
    return Family(
        slot=name,
        changes=(
            StateOnHost(
                name=name, severity=Severity.TRANSFERS, computes=True, host_bytes=_MOST_STATE * facts.trained_bytes
            ),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class StateOnHost(Change):
    """Moved by hooks around the optimizer's step."""

    def write(self, draft: Draft) -> None:
        draft.on_gpu.append(_MOVES)


_MOVES = """\
def move_state(device):
    for state in optimizer.state.values():
        for name, value in state.items():
            if torch.is_tensor(value) and value.dim():
                state[name] = value.to(device)

optimizer.register_step_pre_hook(lambda *_: move_state("cuda"))
optimizer.register_step_post_hook(lambda *_: move_state("cpu"))
"""

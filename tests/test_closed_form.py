"""The closed forms: equal to what a training step is seen to hold, for every optimizer, without running anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import vramkit
from vramkit import closed_form
from vramkit.tape.events import Category
from vramkit.tape.memory import MemoryResult

Factory = Callable[..., torch.optim.Optimizer]
BATCH = (torch.zeros(4, 3, 8, 8), torch.zeros(4, 5, dtype=torch.long))


class Net(nn.Module):
    """Parameters of none to four dimensions; one used twice, one frozen, and batch norm's buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.words = nn.Embedding(11, 24)
        self.head = nn.Linear(24, 11, bias=False)
        self.head.weight = self.words.weight
        self.frozen = nn.Linear(24, 24).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        seen = self.norm(self.conv(images)).mean()
        return (self.head(self.frozen(self.words(words))) * self.scale).sum() + seen


class Matrices(nn.Sequential):
    """Nothing but matrices, which is what Muon takes."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(40, 30, bias=False), nn.Linear(30, 20, bias=False))


class Sparse(nn.Module):
    """A table with sparse gradients, which is what SparseAdam takes."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16, sparse=True)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.words(words).sum()


def with_(kind: Factory, **settings: Any) -> Factory:
    return lambda parameters: kind(parameters, **settings)


OPTIMIZERS: dict[str, Factory] = {
    "sgd": torch.optim.SGD,
    "sgd, momentum": with_(torch.optim.SGD, momentum=0.9),
    "sgd, fused, momentum": with_(torch.optim.SGD, momentum=0.9, fused=True),
    "adam": torch.optim.Adam,
    "adam, amsgrad": with_(torch.optim.Adam, amsgrad=True),
    "adam, capturable": with_(torch.optim.Adam, capturable=True),
    "adamw": torch.optim.AdamW,
    "adamw, fused": with_(torch.optim.AdamW, fused=True),
    "adamw, for-loop, amsgrad": with_(torch.optim.AdamW, foreach=False, amsgrad=True),
    "adafactor": torch.optim.Adafactor,
    "adadelta": torch.optim.Adadelta,
    "adadelta, capturable": with_(torch.optim.Adadelta, capturable=True),
    "adagrad": torch.optim.Adagrad,
    "adamax": torch.optim.Adamax,
    "asgd": torch.optim.ASGD,
    "nadam": torch.optim.NAdam,
    "nadam, capturable": with_(torch.optim.NAdam, capturable=True),
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "rmsprop, centered, momentum": with_(torch.optim.RMSprop, centered=True, momentum=0.9),
    "rprop": torch.optim.Rprop,
}
OTHERS = {"sparse adam": (Sparse, torch.optim.SparseAdam)}
if hasattr(torch.optim, "Muon"):  # since torch 2.9
    OTHERS["muon"] = (Matrices, torch.optim.Muon)


def most(result: MemoryResult, category: Category) -> int:
    return int(result.timeline.of(category).max())


def trained_on_cpu(model: nn.Module, make: Factory, *batch: torch.Tensor) -> vramkit.Profile:
    """Three steps, measured."""
    optimizer = make(model.parameters())
    with vramkit.profile(model, optimizer, device="cpu") as prof:
        for _ in range(3):
            inputs = [each.clone() for each in batch]
            model(*inputs).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            del inputs
    assert prof.result is not None
    return prof.result


# -- held against what is measured and predicted -----------------------------------------------------------------------


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_on_a_gpu_a_step_holds_what_the_closed_forms_say(name: str) -> None:
    model = Net()

    estimate = vramkit.estimate(model, BATCH, optimizer=OPTIMIZERS[name], gpu="t4")

    assert closed_form.parameters(model) == estimate.peak.parameters
    assert closed_form.buffers(model) == estimate.peak.buffers
    assert closed_form.gradients(model) == most(estimate, Category.GRADIENT)
    assert closed_form.optimizer_state(OPTIMIZERS[name], model) == most(estimate, Category.OPTIMIZER_STATE)
    assert closed_form.inputs(BATCH) == most(estimate, Category.INPUT)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if "capturable" not in name])
def test_on_the_cpu_a_step_holds_what_the_closed_forms_say(name: str) -> None:
    model = Net()

    profile = trained_on_cpu(model, OPTIMIZERS[name], *BATCH)

    assert closed_form.parameters(model) == profile.peak.parameters
    assert closed_form.buffers(model) == profile.peak.buffers
    assert closed_form.gradients(model) == most(profile, Category.GRADIENT)
    state = closed_form.optimizer_state(OPTIMIZERS[name], model, device="cpu")
    assert state == most(profile, Category.OPTIMIZER_STATE)
    assert closed_form.inputs(BATCH) == most(profile, Category.INPUT)


@pytest.mark.parametrize("name", OTHERS)
def test_optimizers_that_only_take_some_models_are_known_too(name: str) -> None:
    make_model, make = OTHERS[name]
    model = make_model()
    batch = torch.zeros(4, 40) if name == "muon" else torch.zeros(4, dtype=torch.long)

    profile = trained_on_cpu(model, make, batch)

    assert closed_form.optimizer_state(make, model, device="cpu") == most(profile, Category.OPTIMIZER_STATE) > 0


# -- what they are by themselves ---------------------------------------------------------------------------------------


def test_a_model_without_memory_and_one_of_another_dtype_will_do() -> None:
    with torch.device("meta"):
        huge = nn.Linear(1 << 18, 1 << 18, bias=False)
    half = Net().to(torch.bfloat16)

    assert closed_form.optimizer_state(torch.optim.Adagrad, huge) == closed_form.parameters(huge) == 4 << 36
    assert closed_form.optimizer_state(with_(torch.optim.AdamW, fused=True), huge) == (8 << 36) + 4
    assert 2 * closed_form.parameters(half) == closed_form.parameters(Net())
    assert 2 * closed_form.optimizer_state(torch.optim.Adam, half) == closed_form.optimizer_state(
        torch.optim.Adam, Net()
    )


def test_an_optimizer_and_what_makes_it_have_the_same_state() -> None:
    model = Net()
    optimizer = torch.optim.Adam(
        [{"params": [*model.conv.parameters()], "amsgrad": True}, {"params": [model.scale]}], lr=torch.tensor(1e-3)
    )

    class Named(torch.optim.Adam):
        pass

    convolution = closed_form.parameters(model.conv)
    assert closed_form.optimizer_state(optimizer) == 3 * convolution + 2 * 4
    assert closed_form.optimizer_state(optimizer, device="cpu") == 3 * convolution + 2 * 4 + 3 * 4 + 4
    assert closed_form.optimizer_state(Named, model) == closed_form.optimizer_state(torch.optim.Adam, model)
    assert optimizer.state == {}


def test_several_models_share_what_they_share() -> None:
    model = Net()

    assert closed_form.parameters([model, model.head]) == closed_form.parameters(model)
    assert closed_form.parameters([Net(), Net()]) == 2 * closed_form.parameters(model)


def test_a_batch_is_any_tree_of_tensors() -> None:
    batch = {"images": torch.zeros(2, 3), "more": [torch.zeros(5, dtype=torch.int8), "a name"]}

    assert closed_form.inputs(batch) == 2 * 3 * 4 + 5
    assert closed_form.inputs({**batch, "mask": vramkit.fixed(torch.zeros(7, dtype=torch.bool))}) == 2 * 3 * 4 + 5 + 7


@dataclass
class Images:
    """A batch as a class of one's own."""

    pixels: torch.Tensor


def test_closed_forms_take_what_an_estimate_takes() -> None:
    model, other = nn.Linear(4, 4), nn.Linear(5, 5)
    optimizers = [torch.optim.SGD(model.parameters(), momentum=0.9), torch.optim.Adam(other.parameters())]

    assert closed_form.parameters({"one": model, "other": other}) == 4 * (20 + 30)
    assert closed_form.optimizer_state(optimizers) == 4 * (20 + 2 * 30)
    assert closed_form.optimizer_state(lambda parameters: [torch.optim.Adam(parameters)], model) == 4 * 2 * 20
    assert closed_form.inputs(Images(torch.zeros(7))) == 4 * 7


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: closed_form.inputs(torch.zeros), "it is a callable.*make_batch"),
        (lambda: closed_form.inputs(object()), "no tensor was found in object"),
        (lambda: closed_form.parameters("model"), "the model is str 'model'"),  # type: ignore[arg-type] # on purpose
        (lambda: closed_form.optimizer_state("adam"), "the optimizer is str 'adam'"),  # type: ignore[arg-type] # on purpose
        (lambda: closed_form.optimizer_state(lambda parameters: None, nn.Linear(4, 4)), "the factory made NoneType"),  # type: ignore[arg-type, return-value] # on purpose
    ],
)
def test_what_closed_forms_cannot_look_at_they_refuse(ask: Callable[[], int], words: str) -> None:
    with pytest.raises(vramkit.UsageError, match=f"(?i){words}"):
        ask()


def test_where_there_is_no_closed_form_it_says_so() -> None:
    class Own(torch.optim.Adam):
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter] = {"step": torch.zeros(()), "low": torch.zeros(6, dtype=torch.int8)}

    model = nn.Linear(4, 4)
    own = Own(model.parameters())

    with pytest.raises(vramkit.UsageError, match="Take one training step"):
        closed_form.optimizer_state(own)
    own.step()
    assert closed_form.optimizer_state(own) == 2 * 6
    assert closed_form.optimizer_state(own, device="cpu") == 2 * (6 + 4)
    with pytest.raises(vramkit.UsageError, match=r"keeps up to 100 earlier steps and gradients, 160 B each"):
        closed_form.optimizer_state(torch.optim.LBFGS, model)
    with pytest.raises(vramkit.UsageError, match="Pass the model too"):
        closed_form.optimizer_state(torch.optim.Adam)
    with pytest.raises(vramkit.UsageError, match="2 of its parameters have no shape yet"):
        closed_form.parameters(nn.LazyLinear(3))

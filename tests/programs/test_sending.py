"""How a program is sent: every way in which a step may reach its objects ends in the right figure, or in a clear error,
and the user's own are left alone.
"""

from __future__ import annotations

import functools
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cloudpickle
import pytest
import torch
from torch import nn

import vramkit

ENGINES = [pytest.param("virtual", marks=pytest.mark.virtual_gpu), "fake"]
BATCH = torch.zeros(8, 64)

TRAINING = """
import functools, torch
import users_helpers

model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters())

def train(batch):
    model(batch.to("cuda")).sum().backward()
    optimizer.step()
    optimizer.zero_grad()

def scaled(scale, batch):
    train(batch)

class Trainer:
    model, optimizer = model, optimizer

    def step(self, batch):
        train(batch)

    __call__ = step

    @classmethod
    def of_the_class(cls, batch):
        cls.model(batch.to("cuda")).sum().backward()
        cls.optimizer.step()
        cls.optimizer.zero_grad()

class Holder:
    def __init__(self):
        self.inner = {"trainer": Trainer()}

holder = Holder()

def through_objects(batch):
    holder.inner["trainer"].of_the_class(batch)

@users_helpers.counted
def decorated(batch):
    train(batch)

@functools.lru_cache(maxsize=None)
def cached():
    return model
"""

HELPERS = """
import functools, torch

def counted(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)
    return wrapper

model = torch.nn.Linear(64, 10)
optimizer = torch.optim.AdamW(model.parameters())
weight = torch.zeros(64, 10, requires_grad=True)
table = torch.zeros(10)
criterion = torch.nn.CrossEntropyLoss()

def train(batch):
    model(batch).sum().backward()
    optimizer.step()

def average():
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data.mul_(0.99)

def multiply(batch):
    (batch.to("cuda") @ weight.to("cuda")).sum().backward()

def write():
    table[0] = 1

def loss_of(output):
    return criterion(output, torch.zeros(len(output), dtype=torch.long, device=output.device))
"""


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of the user's that can be imported, and uses another one."""
    (tmp_path / "users_training.py").write_text(TRAINING)
    (tmp_path / "users_helpers.py").write_text(HELPERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("users_training")
    for name in ("users_training", "users_helpers"):
        del sys.modules[name]


def state(module: ModuleType) -> list[Any]:
    """Everything of a module's that a step could change, as values."""
    helpers = sys.modules["users_helpers"]
    parameters = [*module.model.parameters(), *helpers.model.parameters(), helpers.weight]
    return [
        [each.tolist() for each in (*parameters, helpers.table)],
        [(type(each), each.requires_grad, each.grad, each.device) for each in parameters],
        [len(each.state) for each in (module.optimizer, helpers.optimizer)],
        [each.training for each in (module.model, helpers.model)],
        torch.get_rng_state().tolist(),
        cloudpickle.list_registry_pickle_by_value(),
    ]


def estimate(training: Any, step: Callable[[Any], object], engine: Any) -> vramkit.Estimate:
    return vramkit.estimate(
        training.model, BATCH, optimizer=training.optimizer, step=step, gpu="a100-80gb", engine=engine
    )


# -- steps that get their very model -----------------------------------------------------------------------------------

WAYS: dict[str, Callable[[Any], Callable[[Any], object]]] = {
    "a function of its module": lambda training: training.train,
    "a partial": lambda training: functools.partial(training.scaled, 2.0),
    "a method": lambda training: training.Trainer().step,
    "a class method": lambda training: training.Trainer.of_the_class,
    "a callable object": lambda training: training.Trainer(),
    "objects in objects": lambda training: training.through_objects,
    "a decorated function": lambda training: training.decorated,
    "a lambda that calls it": lambda training: lambda batch: training.train(batch),
    "attributes of the module": lambda training: lambda batch: (
        training.model(batch.to("cuda")).sum().backward(), training.optimizer.step(), training.optimizer.zero_grad()
    ),
}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("way", WAYS)
def test_a_step_meets_the_model_that_was_passed(way: str, engine: Any, training: Any) -> None:
    model, optimizer = training.model, training.optimizer

    def closure(batch: torch.Tensor) -> None:
        loss = model(batch.to("cuda")).sum()
        del batch
        loss.backward()
        del loss
        optimizer.step()
        optimizer.zero_grad()

    before = state(training)
    expected = estimate(training, closure, engine)

    found = estimate(training, WAYS[way](training), engine)

    assert found.peak == expected.peak
    assert found.final.parameters == sum(each.nbytes for each in model.parameters())
    assert found.final.optimizer_state == expected.final.optimizer_state > 0
    assert found.notes == expected.notes
    assert state(training) == before


# -- steps that would use other objects --------------------------------------------------------------------------------


def imports_it(batch: torch.Tensor) -> None:
    import users_training

    users_training.train(batch)


def does_nothing(batch: torch.Tensor) -> None:
    pass


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("step", [imports_it, does_nothing])
def test_a_step_that_leads_to_nothing_that_was_passed_is_refused_before_it_runs(
    step: Callable[[Any], None], engine: Any, training: Any
) -> None:
    before = state(training)

    with pytest.raises(vramkit.UsageError, match="uses none of the models and optimizers that were passed") as raised:
        estimate(training, step, engine)

    assert "variables of the script" in str(raised.value)
    assert state(training) == before


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_that_closes_over_another_model_is_told_of_it(engine: Any, training: Any) -> None:
    other = nn.Embedding(10, 64)

    with pytest.raises(vramkit.UsageError, match=r"none of .* that were passed, but Embedding"):
        estimate(training, lambda batch: other(batch.long()).sum().backward(), engine)
    assert other.weight.grad is None


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_that_could_use_the_model_and_trains_another_is_an_error(engine: Any, training: Any) -> None:
    model, other = training.model, nn.Bilinear(64, 64, 10)

    def step(batch: torch.Tensor) -> None:
        (model if batch is None else other)(batch, batch).sum().backward()

    with pytest.raises(vramkit.UsageError, match=r"The step called Bilinear, and none of .* \(Sequential\)") as raised:
        estimate(training, step, engine)

    assert "estimate([model, other]" in str(raised.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_that_does_nothing_with_the_model_is_an_error(engine: Any, training: Any) -> None:
    model = training.model

    with pytest.raises(vramkit.UsageError, match="did nothing with the models"):
        estimate(training, lambda batch: model, engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_may_do_without_a_forward(engine: Any, training: Any) -> None:
    weight = training.model[0].weight

    def step(batch: torch.Tensor) -> None:
        (batch.to("cuda") @ weight.t()).sum().backward()

    assert estimate(training, step, engine).peak.gradients == weight.nbytes


USES: dict[str, Callable[[Any, torch.Tensor], object]] = {
    "trained": lambda helpers, batch: helpers.train(batch),
    "called": lambda helpers, batch: helpers.model(batch.to("cuda")),
    "averaged": lambda helpers, batch: helpers.average(),
    "moved": lambda helpers, batch: helpers.model.to("cuda"),
    "evaluated": lambda helpers, batch: helpers.model.eval(),
    "frozen": lambda helpers, batch: helpers.model.requires_grad_(False),
    "loaded": lambda helpers, batch: helpers.model.load_state_dict(helpers.model.state_dict()),
    "stepped": lambda helpers, batch: helpers.optimizer.step(),
    "cleared": lambda helpers, batch: helpers.optimizer.zero_grad(),
    "multiplied with": lambda helpers, batch: helpers.multiply(batch),
    "written to": lambda helpers, batch: helpers.write(),
}


@pytest.mark.parametrize("use", USES)
def test_in_this_process_the_users_own_objects_are_not_touched(use: str, training: Any) -> None:
    model, does = training.model, USES[use]

    def step(batch: torch.Tensor) -> None:
        import users_helpers

        model(batch.to("cuda")).sum().backward()
        try:
            does(users_helpers, batch)
        except Exception:
            users_helpers.optimizer.zero_grad()  # a program that goes on is refused all the same

    before = state(training)

    with pytest.raises(vramkit.UsageError, match=r"of this process, and not a copy of it"):
        estimate(training, step, "fake")

    assert state(training) == before


def test_the_error_says_which_object_it_is_and_where(training: Any) -> None:
    def step(batch: torch.Tensor) -> None:
        training.model(batch.to("cuda"))
        imports_it(batch)

    with pytest.raises(vramkit.UsageError, match=r"It uses users_training\.model, the Sequential of this process"):
        estimate(training, step, "fake")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_function_that_only_its_name_leads_to_is_no_way_around_that(engine: Any, training: Any) -> None:
    before = state(training)

    with pytest.raises(vramkit.UsageError):
        estimate(training, lambda batch: training.cached()(batch).sum().backward(), engine)

    assert state(training) == before


def test_a_loss_that_another_module_holds_may_be_used(training: Any) -> None:
    model, size = training.model, sum(each.nbytes for each in training.model.parameters())

    def step(batch: torch.Tensor) -> None:
        import users_helpers

        users_helpers.loss_of(model(batch.to("cuda"))).backward()

    assert estimate(training, step, "fake").peak.gradients == size


def test_what_the_process_froze_before_is_found_too(training: Any) -> None:
    gc.freeze()
    kept = nn.Linear(64, 10)  # made after that
    sys.modules["users_helpers"].kept = kept

    def step(batch: torch.Tensor) -> None:
        import users_helpers

        training.model(batch.to("cuda"))
        users_helpers.kept.weight.data.zero_()

    before = kept.weight.tolist()
    try:
        with pytest.raises(vramkit.UsageError, match="of this process"):
            estimate(training, step, "fake")
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()
    assert kept.weight.tolist() == before


def test_modules_that_a_step_makes_are_its_own(training: Any) -> None:
    model = training.model

    def step(batch: torch.Tensor) -> None:
        layer = nn.Linear(64, 64)
        layer.weight.data.mul_(2)
        layer.eval().to("cuda")
        model(layer(batch.to("cuda"))).sum().backward()

    assert estimate(training, step, "fake").final.gradients == sum(each.nbytes for each in model.parameters())


def test_a_context_variable_that_a_module_has_arrives_as_the_one_of_that_name(training: Any) -> None:
    """As in the hooks that transformers leaves on a model that was asked for its hidden states."""
    from vramkit.programs.reducers import as_global

    training.kept = ContextVar("kept")
    training.around = SimpleNamespace(context_var=training.kept)

    for name in ("kept", "around"):
        make, arguments = as_global(getattr(training, name))
        assert make(*arguments) is getattr(training, name)
        assert arguments == (training, name)
    assert as_global(ContextVar("of nobody")) is None
    assert as_global(SimpleNamespace(other=1)) is None

"""What verbs take for models and optimizers: by one rule, whether they measure or predict."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import vramkit
from vramkit.programs.arguments import optimizers_or_factory
from vramkit.programs.objects import models_of, optimizers_of


def measured(models: Any) -> list[str]:
    with vramkit.profile(models, device="cpu") as prof:
        pass
    return [root.name for root in prof.result.by_module]


def predicted(models: Any) -> list[str]:
    if isinstance(models, Iterator):
        models, held = itertools.tee(models)
    else:
        held = models.values() if isinstance(models, dict) else models if isinstance(models, list) else [models]
    first = next(iter(held))
    step = lambda batch: first(batch.to("cuda"))  # noqa: E731 - it closes over one of them
    estimate = vramkit.estimate(models, torch.zeros(2, 4), step=step, engine="fake", gpu="t4")
    return [root.name for root in estimate.by_module]


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: nn.Linear(4, 4), ["Linear"]),
        (lambda: [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)], ["Linear", "ReLU", "Linear#2"]),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).children(), ["Linear", "Linear#2"]),
        (lambda: {"maker": nn.Linear(4, 4), "judge": nn.Linear(4, 4)}, ["maker", "judge"]),
        (lambda: {1: nn.Linear(4, 4), "1": nn.Linear(4, 4)}, ["1", "1#2"]),
    ],
)
def test_models_have_the_same_names_measured_and_predicted(make: Callable[[], Any], names: list[str]) -> None:
    assert measured(make()) == predicted(make()) == names


@pytest.mark.parametrize("several", [None, [], (), {}])
def test_none_are_none(several: Any) -> None:
    assert models_of("", several) == {}
    assert optimizers_of("", several) == {}
    assert optimizers_or_factory("", several) == ((), None)
    with pytest.raises(vramkit.UsageError, match="with no model"):
        vramkit.estimate(several, torch.zeros(2, 4))


def forever() -> Any:
    yield "first"
    raise AssertionError("what comes after something wrong is not asked for")


@pytest.mark.parametrize("wrong", ["net", 3, nn.Linear, [nn.Linear], {"a": None}, torch.zeros(2), b"net", forever()])
def test_what_is_no_model_is_refused_alike(wrong: Any) -> None:
    found = []
    for verb in (vramkit.profile, lambda model: vramkit.estimate(model, torch.zeros(2, 4))):
        if hasattr(wrong, "send"):
            wrong = forever()
        with pytest.raises(vramkit.UsageError, match=r"That is not an nn\.Module\. Pass an nn\.Module, a ") as caught:
            verb(wrong)
        found.append(str(caught.value).partition("That is not")[0].partition(" was called. ")[2])

    assert found[0] == found[1]

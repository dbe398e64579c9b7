"""Which forwards are followed module by module, and that the others get what those show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from workloads import GPT

import vramkit
from vramkit.gpus import CUBLASLT_WORKSPACE
from vramkit.profiling import cuda
from vramkit.profiling.following import Following
from vramkit.profiling.lines import Lines
from vramkit.results.profile import Profile
from vramkit.tape.events import Action, Category, Phase

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.virtual_gpu)]
FOLLOWING = pytest.mark.parametrize("follows_all", [True, False], ids=["all", "some"])


@pytest.fixture
def _as_on_a_card(follows_all: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only some forwards of each kind are followed there; on a virtual GPU all are."""
    if not follows_all:
        monkeypatch.setattr(cuda, "current", lambda: None)


class Head(nn.Module):
    """As transformers' heads: the loss is made in each forward, and another module with modules of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in "123"])
        self.scale = nn.ModuleList(Scaled() for _ in "12")

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = self.layers(x)
        for each in self.scale:
            x = each(x)
        return nn.CrossEntropyLoss()(nn.Sequential(nn.Identity(), nn.Tanh())(x), y)


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + nn.Softmax(dim=-1)(x)


def owners(profile: Profile, phase: Phase, step: int) -> list[str]:
    """The module of each allocation and free of a phase of a step, in their order."""
    events = profile.tape.events
    chosen = (events["phase"] == phase) & (events["step"] == step) & (events["action"] <= Action.FREE_COMPLETED)
    chosen &= events["size"] != 8_519_680  # cuBLAS's workspace comes once
    return [profile.tape.modules[i].name if i >= 0 else "" for i in events["module"][chosen]]


@pytest.mark.usefixtures("_as_on_a_card")
@FOLLOWING
@pytest.mark.parametrize("device", DEVICES)
def test_a_module_that_is_made_inside_a_forward_hides_no_other(device: str, follows_all: bool) -> None:
    model = Head().to(device)

    with vramkit.profile(model) as prof:
        for _ in range(8):
            model.zero_grad()
            model(torch.zeros(32, 64, device=device), torch.zeros(32, dtype=torch.long, device=device)).backward()

    profile = prof.result
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        told = [owners(profile, phase, step) for step in range(1, 8)]
        assert len(set(told[0])) > 5
        assert told == [told[0]] * 7
    usage = {each.name: each for each in profile.by_module[0].walk()}
    made = {name: each.calls for name, each in usage.items() if "<" in name}
    assert made == {
        "Head.<CrossEntropyLoss>": 8,
        "Head.<Sequential>": 8,
        "Head.<Sequential>.0": 8,
        "Head.<Sequential>.1": 8,
        "Head.scale.0.<Softmax>": 8,
        "Head.scale.1.<Softmax>": 8,
    }


@pytest.mark.usefixtures("_as_on_a_card")
@FOLLOWING
@pytest.mark.virtual_gpu
def test_every_backward_of_a_gan_is_followed_from_the_first_step_on(follows_all: bool) -> None:
    maker = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 32)).cuda()
    judge = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 1)).cuda()
    make, judged = torch.optim.SGD(maker.parameters(), lr=0.1), torch.optim.SGD(judge.parameters(), lr=0.1)

    with vramkit.profile({"maker": maker, "judge": judge}, [make, judged]) as prof:
        for _ in range(6):
            judged.zero_grad()
            judge(torch.zeros(8, 32, device="cuda")).sum().backward()
            fake = maker(torch.zeros(8, 16, device="cuda"))
            judge(fake.detach()).sum().backward()
            judged.step()
            make.zero_grad()
            judge(fake).sum().backward()
            make.step()

    profile = prof.result
    table, tape = profile.tape.allocations, profile.tape
    gradients = table[table["category"] == Category.GRADIENT]
    made_in = {(int(row["step"]), tape.names[row["name"]]): tape.modules[row["module"]].name for row in gradients}
    weights = {key: owner for key, owner in made_in.items() if key[1].endswith("weight")}
    assert {step for step, _ in weights} == set(range(6))
    assert weights == {key: key[1].removesuffix(".weight") for key in weights}
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        told = [owners(profile, phase, step) for step in range(1, 6)]
        assert {"maker.0", "maker.2", "judge.0", "judge.2"} <= set(told[0])
        assert told == [told[0]] * 5


@pytest.mark.usefixtures("_as_on_a_card")
@FOLLOWING
@pytest.mark.virtual_gpu
def test_an_evaluation_after_training_is_followed(follows_all: bool) -> None:
    model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 8)).cuda()

    with vramkit.profile(model) as prof:
        for _ in range(30):
            model.zero_grad()
            model(torch.zeros(8, 64, device="cuda")).sum().backward()
        model.eval()
        with torch.no_grad():
            for _ in range(10):
                model(torch.zeros(512, 64, device="cuda"))

    table = prof.result.tape.allocations
    evaluated = table[(table["phase"] == Phase.EVALUATION) & (table["module"] >= 0)]
    evaluated = evaluated[evaluated["requested"] != CUBLASLT_WORKSPACE]  # which torch 2.8 takes for each product
    assert np.bincount(evaluated["module"], minlength=4).tolist() == [0, 10, 10, 10]
    assert set(evaluated["requested"].tolist()) == {512 * 256 * 4, 512 * 8 * 4}


@pytest.mark.virtual_gpu
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # so says a checkpoint in evaluation
@pytest.mark.parametrize("how", [None, "reentrant", "non-reentrant"])
def test_what_is_not_followed_gets_the_modules_that_following_shows(
    how: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def program() -> Profile:
        model = GPT(layers=2, width=64, heads=2, vocabulary=100, length=32, checkpointed=how).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        tokens = torch.zeros(2, 32, dtype=torch.long, device="cuda")
        with vramkit.profile(model, optimizer) as prof:
            for number in range(12):
                F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
                if number % 2:
                    optimizer.step()
                    optimizer.zero_grad()
            model.eval()
            with torch.no_grad():
                for _ in range(5):
                    F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        return prof.result

    program()  # workspaces and caches come once
    all_of_them = program().tape.events
    monkeypatch.setattr(cuda, "current", lambda: None)
    some = program().tape.events

    assert {*some["phase"].tolist()} >= {Phase.FORWARD, Phase.BACKWARD, Phase.EVALUATION}
    assert (all_of_them[["action", "phase", "module", "size"]] == some[["action", "phase", "module", "size"]]).all()


def followed(kinds: Callable[[int], tuple[object, ...]], count: int, *, all_of_them: bool = False) -> list[bool]:
    """Which of many forwards are followed, where ``kinds`` says what each is: module, gradients, mode."""
    following, line = Following(all_of_them=all_of_them), Lines("").current()
    found = []
    for number in range(count):
        module, has_grad, is_training = kinds(number)
        following.begin_forward(
            line, int(str(module)), has_grad=bool(has_grad), is_training=bool(is_training), marks=number
        )
        found.append(line.is_followed)
        if has_grad:
            following.note(line, "backward")
    return found


def test_the_first_forwards_of_every_kind_are_followed_and_few_of_a_long_run() -> None:
    alike = followed(lambda number: (0, True, True), 3000)
    assert alike[:3] == [True] * 3
    assert 0.03 < sum(alike) / 3000 < 0.06

    evaluation = followed(lambda number: (0, number < 1000, number < 1000), 1100)
    assert evaluation[1000:1003] == [True] * 3
    assert sum(evaluation[1000:]) < 12

    assert all(followed(lambda number: (0, True, True), 3000, all_of_them=True))

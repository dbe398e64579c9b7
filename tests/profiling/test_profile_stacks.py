"""`profile(stacks=True)`: each allocation has the user's own line, and nothing else changes."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import vramkit
from vramkit.results.profile import Profile
from vramkit.tape.events import Category, Phase
from vramkit.tape.stacks import ENGINE, Whose
from vramkit.torch_internals import allocator

HERE = Path(__file__)
_NOTES_REACH_THE_HISTORY = allocator.HAS_METADATA  # both came with torch 2.11
on_any_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.virtual_gpu)])


def at(mark: str, function: str) -> str:
    """The line of this file that ends in a comment, as results show it."""
    lines = HERE.read_text(encoding="utf-8").splitlines()
    return f"{HERE.name}:{1 + next(i for i, line in enumerate(lines) if line.endswith(f'  # {mark}'))} in {function}"


class Net(nn.Module):
    """Two layers, and something of its own between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(x)  # up
        x = nested(x)
        return self.down(x)  # down


def nested(x: torch.Tensor) -> torch.Tensor:
    def innermost() -> torch.Tensor:
        return torch.sigmoid(x)  # sigmoid

    return innermost()


def train(device: str, count: int = 2, **options: Any) -> Profile:
    torch.manual_seed(0)
    net = Net().to(device)
    optimizer = torch.optim.Adam(net.parameters(), foreach=False)
    with vramkit.profile(net, optimizer, device=device, stacks=True, **options) as prof:
        for _ in range(count):
            step(net, optimizer, device)
    return prof.result


def step(net: nn.Module, optimizer: torch.optim.Optimizer, device: str) -> None:
    x = torch.zeros(32, 64, device=device)  # batch
    optimizer.zero_grad()
    loss = F.mse_loss(net(x), x)  # loss
    loss.backward()  # backward
    optimizer.step()  # optimizer


def lines_of(profile: Profile, **wanted: object) -> set[str | None]:
    """The lines of what was made inside the block, and is of some category or phase."""
    return {
        row["line"]
        for row in profile.to_records()
        if row["born"] >= 0
        and row["category"] != Category.WORKSPACE.name
        and all(row[key] == value.name for key, value in wanted.items())  # type: ignore[attr-defined]
    }


def made_in(profile: Profile) -> list[str | None]:
    """The lines of what was made inside the block, in order."""
    return [row["line"] for row in profile.to_records() if row["born"] >= 0]


@on_any_device
def test_each_allocation_has_the_line_that_made_it(device: str) -> None:
    profile = train(device)

    forward = {at("up", "forward"), at("sigmoid", "innermost"), at("down", "forward")}
    assert lines_of(profile, category=Category.INPUT) == {at("batch", "step")}
    assert lines_of(profile, category=Category.OPTIMIZER_STATE) == {at("optimizer", "step")}
    assert forward <= lines_of(profile, phase=Phase.FORWARD) <= forward | {at("loss", "step"), at("backward", "step")}
    assert at("loss", "step") in lines_of(profile, phase=Phase.FORWARD)


@on_any_device
def test_what_a_backward_makes_has_the_line_of_the_forward(device: str) -> None:
    profile = train(device)

    gradients = {row["name"]: row["line"] for row in profile.to_records() if row["category"] == "GRADIENT"}
    if device == "cuda" and not _NOTES_REACH_THE_HISTORY:
        assert {line and line.partition(":")[0] for line in gradients.values()} <= {None, ENGINE}
        return
    assert gradients == {
        f"Net.{layer}.{name}": at(layer, "forward") for layer in ("up", "down") for name in ("weight", "bias")
    }
    forward = {at("up", "forward"), at("sigmoid", "innermost"), at("down", "forward"), at("loss", "step")}
    assert lines_of(profile, phase=Phase.BACKWARD) <= forward


@on_any_device
def test_of_a_forward_before_the_block_a_backward_has_no_line_of_the_program(device: str) -> None:
    net = Net().to(device)
    loss = net(torch.zeros(32, 64, device=device)).sum()

    with vramkit.profile(net, device=device, stacks=True) as prof:
        loss.backward()

    lines = lines_of(prof.result, phase=Phase.BACKWARD)
    assert {line and line.partition(":")[0] for line in lines} <= {None, ENGINE}


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 3  # own backward


@on_any_device
def test_a_backward_that_the_program_wrote_has_its_own_line(device: str) -> None:
    x = torch.zeros(1000, device=device, requires_grad=True)

    with vramkit.profile(device=device, stacks=True) as prof:
        Doubled.apply(x).sum().backward()

    assert at("own backward", "backward") in lines_of(prof.result, phase=Phase.BACKWARD)


@on_any_device
def test_a_recomputation_has_the_lines_of_the_forward(device: str) -> None:
    net = Net().to(device)
    x = torch.zeros(32, 64, device=device, requires_grad=True)

    with vramkit.profile(net, device=device, stacks=True) as prof:
        checkpoint(net, x, use_reentrant=False).sum().backward()

    assert at("sigmoid", "innermost") in lines_of(prof.result, phase=Phase.RECOMPUTE)
    assert None not in lines_of(prof.result, phase=Phase.RECOMPUTE)


@on_any_device
@pytest.mark.parametrize("name", ["<ipython-input-3-0a1b2c>", "<string>", "/tmp/ipykernel_1/123.py"])
def test_cells_and_executed_text_have_lines(device: str, name: str) -> None:
    space = {"torch": torch, "device": device}
    cell = compile("def make():\n    return torch.zeros(1000, device=device)\n\nx = make() + 1\n", name, "exec")

    with vramkit.profile(device=device, stacks=True) as prof:
        exec(cell, space)

    file = name.rpartition("/")[2]
    assert made_in(prof.result) == [f"{file}:2 in make", f"{file}:4 in <module>"]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., torch.Tensor]]:
    """A function of an installed package."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "some_library.py").write_text("def shifted(x):\n    return x + 1\n")
    monkeypatch.syspath_prepend(folder)
    import some_library  # type: ignore[import-not-found]

    yield some_library.shifted
    del sys.modules["some_library"]


@on_any_device
def test_frames_of_libraries_are_passed_over_and_kept_in_the_stack(
    device: str, library: Callable[..., torch.Tensor]
) -> None:
    x = torch.zeros(1000, device=device)

    with vramkit.profile(device=device, stacks=True) as prof:
        y = library(x)  # library

    row = len(prof.result.tape.lines) - 1
    stacks = prof.result.tape.stacks
    assert stacks is not None
    inner, outer, *_ = (frame for frame in stacks.stack(int(stacks.of[row])) if frame.whose is not Whose.MACHINERY)
    assert (inner.file, inner.number, inner.function) == ("some_library.py", 2, "shifted")
    assert prof.result.tape.lines[row] == at("library", outer.function)
    del y


@on_any_device
def test_stacks_change_no_event_and_no_loss(device: str) -> None:
    def run(*, stacks: bool) -> tuple[Profile, float]:
        gc.collect()
        torch.manual_seed(0)
        net = Net().to(device)
        optimizer = torch.optim.Adam(net.parameters())
        with vramkit.profile(net, optimizer, device=device, stacks=stacks) as prof:
            for _ in range(3):
                step(net, optimizer, device)
            loss = F.mse_loss(net(torch.ones(8, 64, device=device)), torch.ones(8, 64, device=device)).item()
        return prof.result, loss

    run(stacks=False)  # whatever is made once
    (plain, loss), (traced, again) = run(stacks=False), run(stacks=True)

    for column in ("action", "size", "phase", "module", "step"):
        assert traced.tape.events[column].tolist() == plain.tape.events[column].tolist(), column
    assert traced.tape.allocations["category"].tolist() == plain.tape.allocations["category"].tolist()
    assert again == loss
    assert plain.tape.stacks is None


@on_any_device
def test_a_program_sees_nothing_of_how_nodes_are_noted(device: str) -> None:
    x = torch.zeros(10, device=device, requires_grad=True)

    def refuse(_gradient: torch.Tensor) -> None:
        raise ValueError

    with warnings.catch_warnings(), vramkit.profile(device=device, stacks=True):
        warnings.simplefilter("error")
        assert not torch.is_anomaly_enabled()
        y = x * 2
        y.register_hook(refuse)
        with pytest.raises(ValueError, match=r"^$"):
            y.sum().backward()
        with torch.autograd.set_detect_anomaly(True):
            assert torch.is_anomaly_enabled()
            assert torch.is_anomaly_check_nan_enabled()
        assert not torch.is_anomaly_enabled()


@on_any_device
def test_a_programs_own_anomaly_detection_works_as_ever(device: str) -> None:
    x = torch.zeros(10, device=device, requires_grad=True)

    def refuse(_gradient: torch.Tensor) -> None:
        raise ValueError

    with torch.autograd.set_detect_anomaly(True), vramkit.profile(device=device, stacks=True):
        y = (x * 2).exp()
        y.grad_fn.next_functions[0][0].register_prehook(lambda _gradients: refuse(x))
        with pytest.raises(ValueError, match=r"^$"), pytest.warns(UserWarning, match="forward call that caused"):
            y.sum().backward()
        assert torch.is_anomaly_enabled()


@on_any_device
def test_a_setting_that_the_block_made_stays(device: str) -> None:
    try:
        with vramkit.profile(device=device, stacks=True):
            torch.autograd.set_detect_anomaly(True, check_nan=False)
        assert torch.is_anomaly_enabled()
        assert not torch.is_anomaly_check_nan_enabled()
    finally:
        torch.autograd.set_detect_anomaly(False)


@on_any_device
def test_stacks_are_kept_in_a_file(device: str, tmp_path: Path) -> None:
    profile = train(device)

    profile.save(tmp_path / "profile.npz")

    assert vramkit.load(tmp_path / "profile.npz").tape.lines == profile.tape.lines


@pytest.mark.virtual_gpu
def test_a_history_that_was_on_before_and_has_no_stacks_is_told() -> None:
    torch.cuda.memory._record_memory_history(context=None)
    try:
        profile = train("cuda")
    finally:
        torch.cuda.memory._record_memory_history(None)

    assert {*made_in(profile)} == {None}
    assert any("No source lines" in note for note in profile.notes)


@pytest.mark.virtual_gpu
def test_a_snapshot_says_the_same_lines(tmp_path: Path) -> None:
    net = Net().cuda()
    optimizer = torch.optim.Adam(net.parameters(), foreach=False)
    step(net, optimizer, "cuda")
    with vramkit.profile(net, optimizer, device="cuda", stacks=True) as prof:
        step(net, optimizer, "cuda")
        torch.cuda.memory._dump_snapshot(str(tmp_path / "step.pickle"))

    snapshot = vramkit.open_snapshot(tmp_path / "step.pickle")

    assert made_in(snapshot) == made_in(prof.result)


@pytest.mark.virtual_gpu
def test_a_script_that_is_run_has_its_own_lines(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""\
        import torch

        net = torch.nn.Linear(1024, 4096).cuda()
        optimizer = torch.optim.Adam(net.parameters())

        def step():
            net(torch.zeros(512, 1024, device="cuda")).sum().backward()
            optimizer.step()

        step()
        """)
    )

    ran = subprocess.run(
        [sys.executable, "-m", "vramkit", "run", "--gpu", "a100-40gb", "--stacks", "--save", "it.npz", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert ran.returncode == 0, ran.stderr
    assert "script.py:8 in step" in ran.stderr + ran.stdout
    profile = vramkit.load(tmp_path / "it.npz")
    assert lines_of(profile, category=Category.OPTIMIZER_STATE) == {"script.py:8 in step"}
    assert lines_of(profile, category=Category.PARAMETER) == {"script.py:3 in <module>"}

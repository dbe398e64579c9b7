"""The virtual engine's processes: which they are; and where they can't be, a `DeviceError`, or the fake engine and a
note that says why.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import vramkit  # noqa: E402
from vramkit import DeviceError  # noqa: E402
from vramkit.engines.virtual import session  # noqa: E402
from vramkit.programs.arguments import program_of  # noqa: E402

BATCH = torch.zeros(4, 8)


def net() -> torch.nn.Module:
    return torch.nn.Linear(8, 8)


@pytest.mark.virtual_gpu
def test_a_session_apart_has_processes_of_its_own_and_comes_to_the_same(tmp_path: Path) -> None:
    model, told = net(), tmp_path / "told"

    def step(batch: torch.Tensor) -> None:
        with told.open("a") as file:
            print(os.getppid(), file=file)
        model(batch.to("cuda")).sum().backward()

    program = program_of("", model, BATCH, optimizer=None, step=step, loss=None, autocast=None, steps=1)
    card = vramkit.gpus.find("t4")
    one = session.open_session(program, None)
    other = one.apart()

    runs = [each.run(card, 0, detailed=False) for each in (one, other, one)]

    first, second, third = told.read_text().split()
    assert first == third != second
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.virtual_gpu
def test_a_python_that_cannot_be_started_is_a_device_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    session._drop_helper()
    monkeypatch.setattr(session.sys, "executable", str(tmp_path / "no-python"))

    with pytest.raises(DeviceError, match=r"The system refused: .*no-python"):
        vramkit.estimate(net(), BATCH, gpu="t4", engine="virtual")


@pytest.mark.virtual_gpu
def test_a_folder_that_has_gone_is_a_device_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    with pytest.raises(DeviceError, match="Run from a folder that exists"):
        vramkit.estimate(net(), BATCH, gpu="t4", engine="virtual")


@pytest.mark.virtual_gpu
def test_no_folder_for_temporary_files_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = vramkit.estimate(net(), BATCH, gpu="t4", engine="virtual")
    session._drop_helper()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: [str(tmp_path / "missing")])
    monkeypatch.setattr("tempfile.tempdir", None)

    after = vramkit.estimate(net(), BATCH, gpu="t4", engine="virtual")

    assert (after.peak_allocated, after.peak_reserved) == (before.peak_allocated, before.peak_reserved)


def _with_broken_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))


@pytest.mark.virtual_gpu
def test_without_a_build_the_virtual_engine_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _with_broken_cache(monkeypatch, tmp_path)

    refusal = session.why_not()

    assert refusal is not None
    assert "can't be written" in str(refusal)
    with pytest.raises(DeviceError, match="can't be written"):
        vramkit.estimate(net(), BATCH, gpu="t4", engine="virtual")


@pytest.mark.virtual_gpu
def test_without_a_build_the_fake_engine_answers_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    exact = vramkit.estimate(net(), BATCH, gpu="t4", engine="virtual")
    _with_broken_cache(monkeypatch, tmp_path)

    estimate = vramkit.estimate(net(), BATCH, gpu="t4")

    assert estimate.engine == "fake"
    assert any("can't be written" in note for note in estimate.notes)
    assert estimate.peak_allocated == exact.peak_allocated

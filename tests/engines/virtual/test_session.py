"""The virtual engine where its process can't be: a `DeviceError`, or the fake engine and a note that says why."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import vramkit  # noqa: E402
from vramkit import DeviceError  # noqa: E402
from vramkit.engines.virtual import session  # noqa: E402

BATCH = torch.zeros(4, 8)


def net() -> torch.nn.Module:
    return torch.nn.Linear(8, 8)


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

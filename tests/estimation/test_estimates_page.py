"""The web page of an estimate: what it has beside a profile's."""

from __future__ import annotations

import html
from pathlib import Path

import pytest
import torch
from shown_pages import header_of

import vramkit
from vramkit.__main__ import main


@pytest.fixture
def estimate() -> vramkit.Estimate:
    model, batch = torch.nn.Linear(512, 512), torch.zeros(8, 512)
    return vramkit.estimate(model, batch, optimizer=torch.optim.Adam, gpu="1 GiB", engine="fake")


def test_the_page_has_the_verdict_and_the_sizes_around_the_estimates_own(
    estimate: vramkit.Estimate, tmp_path: Path
) -> None:
    path = tmp_path / "estimate.html"

    estimate.to_html(path)

    shown = header_of(path)["prediction"]
    sizes = [2, 4, 8, 16, 32, 64]
    assert shown["fits"]
    assert shown["verdict"] in estimate.report()
    assert html.escape(estimate.report()) in path.read_text(encoding="utf-8")
    assert [point["batch_size"] for point in shown["curve"]] == sizes
    rows = estimate.batch_sizes(sizes)
    assert [point["used"] for point in shown["curve"]] == [row.used for row in rows]
    assert estimate.gpu.memory in [card["memory"] for card in shown["cards"]]


def test_the_sizes_can_be_chosen(estimate: vramkit.Estimate, tmp_path: Path) -> None:
    path = tmp_path / "estimate.html"

    estimate.to_html(path, batch_sizes=[512, 8, 600_000, 8])

    curve = header_of(path)["prediction"]["curve"]
    assert [(point["batch_size"], point["fits"]) for point in curve] == [(8, True), (512, True), (600_000, False)]


def test_without_its_program_an_estimate_says_why_there_is_no_curve(estimate: vramkit.Estimate, tmp_path: Path) -> None:
    estimate.save(tmp_path / "estimate.npz")

    vramkit.load(tmp_path / "estimate.npz").to_html(tmp_path / "estimate.html")

    shown = header_of(tmp_path / "estimate.html")["prediction"]
    assert shown["curve"] == []
    assert "comes from another process, or from a file" in shown["why_no_curve"]
    vramkit.load(tmp_path / "estimate.npz").to_html(tmp_path / "estimate.html", batch_sizes=[])
    assert header_of(tmp_path / "estimate.html")["prediction"]["why_no_curve"] == ""


def test_the_command_line_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import torch\ndef pair(): return torch.nn.Linear(512, 512), torch.zeros(8, 512)"
    (tmp_path / "for_a_page.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--gpu", "t4", "--engine", "fake", "--batch-size", "8", "24", "--html", "report.html"]

    assert main(["estimate", "for_a_page:pair", *options]) == 0

    curve = header_of(tmp_path / "report.html")["prediction"]["curve"]
    assert [point["batch_size"] for point in curve] == [8, 24]


def test_what_was_measured_has_what_was_predicted_beside_it(estimate: vramkit.Estimate, tmp_path: Path) -> None:
    model = torch.nn.Linear(512, 512)
    with vramkit.profile(model, device="cpu") as prof:
        model(torch.zeros(8, 512)).sum().backward()
    profile, path = prof.result, tmp_path / "measured.html"

    profile.to_html(path, beside=estimate)

    [shown] = header_of(path)["beside"]
    rows = {name: figures for name, *figures in shown["rows"]}
    assert shown["heads"] == ["predicted", "measured"]
    assert rows["gradients"] == [estimate.peak.gradients, profile.peak.gradients]
    assert rows["most allocated"] == [estimate.peak_allocated, profile.peak_allocated]
    estimate.to_html(path, batch_sizes=[], beside=profile)
    assert header_of(path)["beside"][0]["heads"] == ["measured", "predicted"]
    estimate.to_html(path, batch_sizes=[])
    assert header_of(path)["beside"] == []

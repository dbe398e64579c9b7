"""What CUDA's context takes: what is known of it, what was measured here, and what predictions make of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from subprocesses import run_on

from vramkit import gpus
from vramkit.gpus import context
from vramkit.gpus.context import Measured
from vramkit.gpus.installed import Device

MIB = 1 << 20
MEASURED = Measured(stages={"a first kernel": 300 * MIB, "a convolution": 341 * MIB}, torch="2.9", driver="580.1")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def test_what_was_measured_of_a_card_is_its_context_from_then_on(settings: Path) -> None:
    before = gpus.find("l4")

    context.keep({"NVIDIA L4": MEASURED})
    path = context.keep({"Another": MEASURED})

    assert path.is_relative_to(settings)
    assert context.measurements() == {"NVIDIA L4": MEASURED, "Another": MEASURED}
    assert before.context != gpus.find("NVIDIA L4").context == 341 * MIB
    assert gpus.record(gpus.find("l4")) == gpus.record(before) != ""
    context.keep({"NVIDIA L40": MEASURED})
    assert gpus.is_derived(gpus.find("l40"))
    assert gpus.find("t4").context == gpus.CATALOGUE["t4"].context
    other = Device(name="Another", memory=20 << 30, capability=(8, 6), multiprocessors=64, l2_cache=4 << 20)
    assert other.as_gpu().context == 341 * MIB
    assert str(context.known("NVIDIA L4", 341 * MIB)) == "as measured on this machine"


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"NVIDIA L4": {}}', '{"NVIDIA L4": {"stages": {"a": -1}, "torch": "", "driver": ""}}', "\x00{"],
)
def test_a_file_that_is_none_of_ours_measures_nothing(settings: Path, text: str) -> None:
    context.file().parent.mkdir()
    context.file().write_text(text)

    assert gpus.find("l4") is gpus.CATALOGUE["l4"]


@pytest.mark.parametrize("card", gpus.all_gpus(), ids=lambda card: card.name)
def test_the_catalogues_contexts_lie_where_contexts_were_seen(card: gpus.GPU) -> None:
    between = context.known(card.product, card.context)

    assert between is not None
    assert len(str(between)) <= 34  # what a report's line has room for


def test_nothing_is_known_of_a_context_that_was_given() -> None:
    assert context.known("NVIDIA H200", 2 * MIB) is None
    assert str(context.known("NVIDIA H200", 700 * MIB)) == "seen on such cards: 619 to 807 MiB"


@pytest.mark.virtual_gpu
def test_the_command_measures_what_the_driver_says_and_keeps_no_virtual_cards() -> None:
    found = run_on(
        "rtx3090",
        """
        import contextlib, io, json
        from vramkit.__main__ import main
        from vramkit.gpus import context
        with contextlib.redirect_stdout(io.StringIO()) as out:
            status = main(["gpus", "--measure", "--json", "-"])
        result = [status, json.loads(out.getvalue())["cards"], len(context.measurements())]
        """,
        children=True,
    )

    [status, cards, kept] = found
    card = gpus.find("rtx3090")
    assert (status, kept, [*cards]) == (0, 0, [card.product])
    assert set(cards[card.product]["stages"].values()) == {card.context}

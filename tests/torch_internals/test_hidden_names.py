"""A torch that lacks a private name: every verb works as before, or says so before it runs anything of the user's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vramkit import virtual_gpu
from vramkit.torch_internals.names import TABLE, Need
from vramkit.torch_internals.needs import missing_for

missing_for("fake engine")  # which looks the last names up
PATHS = sorted({name.path for name in TABLE})
CARD, NO_CARD = "a100-40gb", ""
_FAKES: frozenset[Need] = frozenset({"programs", "profile", "fake engine"})
VERBS: dict[tuple[str, str], frozenset[Need]] = {
    ("closed forms", NO_CARD): frozenset({"closed forms"}),
    ("profile on the CPU", NO_CARD): frozenset({"profile", "profile on the CPU"}),
    ("estimate on fakes", NO_CARD): _FAKES | {"fake engine without CUDA"},
}
"""Every verb, on which card it runs, and all that it needs; what takes less time comes first."""
if virtual_gpu.is_active():
    VERBS |= {
        ("profile on CUDA", CARD): frozenset({"profile", "profile on CUDA", "values"}),
        ("run", CARD): frozenset({"run", "profile", "profile on CUDA"}),
        ("run a rank", CARD): frozenset({"run", "ranks", "profile", "profile on CUDA"}),
        ("estimate on fakes", CARD): _FAKES,
        ("estimate on the virtual GPU", CARD): frozenset({"programs", "profile", "profile on CUDA", "virtual engine"}),
        ("auto_batch_size", CARD): frozenset({"programs", "profile", "profile on CUDA", "batch size on CUDA"}),
    }
else:
    VERBS["auto_batch_size", NO_CARD] = _FAKES | {"fake engine without CUDA"}


class Process:
    """A process that forks one for each question; see ``hiding.py``."""

    def __init__(self, card: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("hiding.py")), *[card] * bool(card)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._known: dict[str, Any] = {}

    def ask(self, verb: str, hidden: list[str]) -> Any:
        """What a verb comes to where some names are hidden."""
        question = json.dumps({"verb": verb, "hidden": hidden})
        if question not in self._known:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(f"{question}\n")
            self._process.stdin.flush()
            self._known[question] = json.loads(self._process.stdout.readline())
        return self._known[question]

    def end(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Process]]:
    started = {card: Process(card, tmp_path_factory.mktemp("cache")) for card in {card for _, card in VERBS}}
    yield started
    for process in started.values():
        process.end()


def _needed_by(needs: frozenset[Need], *, with_fallback: bool = True) -> set[str]:
    return {name.path for name in TABLE if name.needs & needs and (with_fallback or not name.has_fallback)}


@pytest.mark.parametrize("path", PATHS)
def test_without_a_name_a_verb_says_so_before_any_of_the_users_code_or_works_as_before(
    path: str, processes: dict[str, Process]
) -> None:
    asked = set()
    for (verb, card), needs in VERBS.items():
        if path not in _needed_by(needs) or verb in asked:
            continue
        asked.add(verb)
        answer = processes[card].ask(verb, [path])
        if path not in _needed_by(needs, with_fallback=False):
            assert answer == processes[card].ask(verb, [])
            break  # for the others all of these are hidden at once, below
        assert answer["error"] == "DeviceError", (verb, answer)
        assert f"torch {torch.__version__}, which lacks {path} (torch " in answer["text"]
        assert not answer["ran"], verb


@pytest.mark.parametrize(("verb", "card"), VERBS, ids=map(" ".join, VERBS))
def test_a_verb_works_as_before_without_every_name_that_has_a_fallback(
    verb: str, card: str, processes: dict[str, Process]
) -> None:
    needs = VERBS[verb, card]
    hidden = sorted(_needed_by(needs) - _needed_by(needs, with_fallback=False))

    assert processes[card].ask(verb, hidden) == processes[card].ask(verb, [])


@pytest.mark.parametrize(("verb", "card"), VERBS, ids=map(" ".join, VERBS))
def test_a_verb_works_without_every_name_that_it_does_not_say_it_needs(
    verb: str, card: str, processes: dict[str, Process]
) -> None:
    hidden = sorted(set(PATHS) - _needed_by(VERBS[verb, card]))

    answer = processes[card].ask(verb, hidden)

    assert hidden
    assert answer["peak"] > 0
    assert answer == processes[card].ask(verb, [])


def test_every_name_serves_a_verb_that_is_tested_here() -> None:
    needed = set[str]().union(*map(_needed_by, VERBS.values()))
    tools = {name.path for name in TABLE if name.needs == {"developers' tools"}}
    if not virtual_gpu.is_active():  # on which ranks are played, and values computed
        tools |= {name.path for name in TABLE if name.needs <= {"ranks", "values"}}

    unused = set(PATHS) - needed - tools

    # Without a CUDA build those of CUDA serve nothing here.
    assert {path for path in unused if "cuda" not in path.lower()} <= set()

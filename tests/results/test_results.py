"""Results as values: sums, time lines, module trees, and the file that keeps them."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.recfunctions import repack_fields
from strategies import tapes
from told_profiles import training

import vramkit
from vramkit.gpus.nccl import NCCL
from vramkit.results.profile import Profile
from vramkit.tape.breakdown import Breakdown
from vramkit.tape.events import ALLOCATION, EVENT, Category, Phase, Tape


@given(tapes())
def test_categories_and_slack_sum_to_allocated_at_every_moment(tape: Tape) -> None:
    timeline = Profile(tape=tape).timeline

    for moment in range(len(timeline)):
        at = timeline.breakdown_at(moment)
        assert sum(at.of(category) for category in Category) + at.slack == at.allocated == timeline.allocated[moment]
        assert at.allocated + at.cached + at.graph_pools == at.reserved == timeline.reserved[moment]


@given(tapes())
def test_a_moments_memory_is_that_of_the_allocations_alive_then(tape: Tape) -> None:
    for event in range(-1, len(tape.events)):
        alive = tape.alive_at(event)

        expected = tape.allocations["block"][alive].sum()
        assert (tape.allocated[event] if event >= 0 else tape.initial_allocated) == expected


@given(tapes())
def test_peaks_are_the_highest_moments(tape: Tape) -> None:
    profile = Profile(tape=tape)

    assert profile.peak_allocated == profile.timeline.allocated.max() == profile.peak.allocated
    assert profile.peak_reserved == profile.timeline.reserved.max()


@given(tapes())
def test_a_step_is_what_its_phases_are_together(tape: Tape) -> None:
    profile = Profile(tape=tape)
    phase = tape.events["phase"]
    trains = bool((~np.isin(phase, (Phase.OUTSIDE, Phase.EVALUATION))).any())
    in_steps = phase != Phase.EVALUATION if trains else np.ones(len(phase), bool)

    assert [step.step for step in profile.steps] == sorted({*tape.events["step"][in_steps].tolist()})
    in_order = sorted(profile.phases, key=lambda each: each.step)
    evaluation = [each for each in in_order if trains and each.phase is Phase.EVALUATION]
    assert [each for step in profile.steps for each in step.phases] == [x for x in in_order if x not in evaluation]
    assert len({(each.step, each.phase) for each in profile.phases}) == len(profile.phases)
    for step in profile.steps:
        its = (tape.events["step"] == step.step) & in_steps
        assert step.events == its.sum()
        assert step.peak_allocated == tape.allocated[its].max()
        assert step.peak_reserved == tape.reserved[its].max()
        assert step.end_allocated == tape.allocated[its][-1]


@given(tapes(), st.sampled_from(Category))
def test_a_category_goes_by_itself_its_code_its_name_and_its_field(tape: Tape, category: Category) -> None:
    result = Profile(tape=tape)
    field = next(each.name for each, one in zip(fields(Breakdown), Category, strict=False) if one is category)
    names = (category, int(category), np.uint8(category), category.name, category.name.lower(), field, field.upper())

    assert {result.peak.of(name) for name in names} == {getattr(result.peak, field)}
    for name in names:
        assert (result.timeline.of(name) == result.timeline.by_category[:, category]).all()


@pytest.mark.parametrize("given_", ["weights", "", len(Category), -1, True, 2.5, None, Phase.FORWARD, ["ACTIVATION"]])
def test_what_is_no_category_is_refused_with_the_names_of_all(given_: object) -> None:
    result = Profile(tape=Tape(events=np.zeros(0, EVENT), allocations=np.zeros(0, ALLOCATION)))

    for of in (result.peak.of, result.timeline.of):
        with pytest.raises(vramkit.UsageError, match="PARAMETER, BUFFER, GRADIENT, OPTIMIZER_STATE, INPUT, ACTIVATION"):
            of(given_)


@pytest.mark.parametrize("moment", [2, -2, "peak", 0.0, None])
def test_a_moment_that_is_not_there_is_refused(moment: object) -> None:
    timeline = Profile(tape=Tape(events=np.zeros(0, EVENT), allocations=np.zeros(0, ALLOCATION))).timeline

    with pytest.raises(vramkit.UsageError, match="There are 1 moments"):
        timeline.breakdown_at(moment)


@given(tapes())
def test_the_old_name_of_a_moments_breakdown_says_the_new_one(tape: Tape) -> None:
    timeline = Profile(tape=tape).timeline

    with pytest.warns(DeprecationWarning, match=r"breakdown_at\(moment\)"):
        old = timeline.at(-1)

    assert old == timeline.breakdown_at(-1)


@given(tapes())
def test_a_module_holds_no_more_than_the_modules_it_is_in(tape: Tape) -> None:
    for root in Profile(tape=tape).by_module:
        for child in root.children:
            assert child.activations <= root.activations
            assert child.temporaries <= root.temporaries
            assert child.at_peak <= root.at_peak
            assert child.peak <= root.peak
        assert root.activations <= sum(child.activations for child in root.children) + max(
            (int(row["requested"]) for row in tape.allocations), default=0
        ) * len(tape.allocations)


@given(tapes())
def test_records_carry_every_allocation(tape: Tape) -> None:
    records = Profile(tape=tape).to_records()

    assert sum(record["requested"] for record in records) == tape.allocations["requested"].sum()
    assert json.loads(json.dumps(records)) == records


@given(tapes(), tapes())
def test_what_was_saved_is_what_is_loaded(tmp_path_factory: pytest.TempPathFactory, tape: Tape, second: Tape) -> None:
    path = tmp_path_factory.mktemp("saved") / "profile.npz"
    other = Profile(tape=second, notes=("another",))
    profile = Profile(
        tape=tape, device_name="A card", capacity=10**9, outside=5, versions={"torch": "2"}, notes=("a", "ü"),
        nccl=NCCL(communicators=2, size=4), others=(other,),
    )  # fmt: skip

    profile.save(path)
    loaded = vramkit.load(path)

    for before, after in zip(profile.each_device(), loaded.each_device(), strict=True):
        for table in ("events", "allocations", "segments", "passes"):
            assert (getattr(before.tape, table) == getattr(after.tape, table)).all()
        for column in ("modules", "names", "evaluations"):
            assert getattr(before.tape, column) == getattr(after.tape, column)
        shared = ("device", "device_name", "capacity", "outside", "nccl", "versions", "notes")
        for name in (*shared, "peak", "steps", "by_module"):
            assert getattr(before, name) == getattr(after, name)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "profile.npz"
    tape = Tape(events=np.zeros(0, vramkit.tape.events.EVENT), allocations=np.zeros(0, vramkit.tape.events.ALLOCATION))
    Profile(tape=tape).save(path)
    return path


def rewrite(path: Path, **changes: bytes) -> None:
    """Replace members of the archive."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (
            members | {f"{key.replace('_', '.')}.npy": value for key, value in changes.items()}
        ).items():
            archive.writestr(name, content)


def as_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("keep", [0, 1, 100, -30])
def test_a_damaged_file_says_so(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])

    with pytest.raises(vramkit.SnapshotError, match=r"can't be read.*Save the profile again"):
        vramkit.load(saved)


def test_a_file_from_a_newer_version_says_which(saved: Path) -> None:
    meta = np.frombuffer(json.dumps({"format": 99}).encode(), np.uint8)
    rewrite(saved, meta=as_npy(meta))

    with pytest.raises(vramkit.SnapshotError, match=r"format 99.*reads formats 1 to 6"):
        vramkit.load(saved)


def as_saved_before(path: Path, number: int, **tables: bytes) -> None:
    """Make a saved file one of an older format."""
    with np.load(path) as archive:
        meta = json.loads(bytes(archive["meta"]).decode())
        newer = [name for name, since in (("operator", 5), ("forward", 4)) if since > number]
        passes = without(["is_source", "optimizer"], archive["0.passes"])
        tables = {
            "0_allocations": as_npy(without(newer, archive["0.allocations"])),
            "0_passes": as_npy(passes),
        } | tables
    for device in meta["devices"]:
        del device["operators"], device["optimizers"]
        if number < 3:
            del device["evaluations"]
    rewrite(path, meta=as_npy(np.frombuffer(json.dumps(meta | {"format": number}).encode(), np.uint8)), **tables)


@pytest.mark.parametrize("number", [2, 3])
def test_a_file_from_before_passes_or_evaluation_were_known_is_read(tmp_path: Path, number: int) -> None:
    path = tmp_path / "profile.npz"
    tape = training().tape()
    Profile(tape=tape).save(path)
    as_saved_before(path, number)

    opened = vramkit.load(path).tape

    assert tape.allocations["forward"].any()
    assert (opened.events == tape.events).all()
    newer = ("forward", "operator")
    assert (without(newer, opened.allocations) == without(newer, tape.allocations)).all()
    assert not opened.allocations["forward"].any()
    assert len(opened.passes) == 0
    assert opened.evaluations == ()


@given(tapes())
def test_a_file_from_before_private_pools_were_known_is_read(
    tmp_path_factory: pytest.TempPathFactory, tape: Tape
) -> None:
    path = tmp_path_factory.mktemp("saved") / "profile.npz"
    Profile(tape=tape).save(path)
    newer = ("pool", "forward", "operator")
    narrow = {name: without(newer, getattr(tape, name)) for name in ("events", "allocations", "segments")}
    tables = {f"0_{name}": as_npy(table) for name, table in narrow.items()}
    as_saved_before(path, 1, **tables)

    opened = vramkit.load(path).tape

    for name, table in narrow.items():
        assert (without(newer, getattr(opened, name)) == table).all()
        assert not getattr(opened, name)["pool"].any()


@given(tapes())
def test_a_file_from_before_operators_were_known_is_read(tmp_path_factory: pytest.TempPathFactory, tape: Tape) -> None:
    path = tmp_path_factory.mktemp("saved") / "profile.npz"
    Profile(tape=tape).save(path)
    as_saved_before(path, 4)

    opened = vramkit.load(path).tape

    assert (without(["operator"], opened.allocations) == without(["operator"], tape.allocations)).all()
    assert set(opened.made_by) <= {None}
    newer = ["is_source", "optimizer"]
    assert (without(newer, opened.passes) == without(newer, tape.passes)).all()
    assert not opened.passes["is_source"].any()


def without(columns: Collection[str], table: np.ndarray) -> np.ndarray:
    return repack_fields(table[[name for name in table.dtype.names or () if name not in columns]])


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("the file ran code",))


def test_a_file_with_code_inside_runs_none(saved: Path) -> None:
    rewrite(saved, meta=as_npy(np.array([Bomb()], dtype=object)))

    with pytest.raises(vramkit.SnapshotError):
        vramkit.load(saved)


def test_a_pickle_in_place_of_the_file_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "profile.npz"
    path.write_bytes(pickle.dumps(Bomb()))

    with pytest.raises(vramkit.SnapshotError):
        vramkit.load(path)


@pytest.mark.parametrize(("table", "column"), [("allocations", "module"), ("allocations", "born"), ("events", "phase")])
def test_a_file_whose_tables_point_nowhere_is_refused(saved: Path, table: str, column: str) -> None:
    wrong = np.zeros(1, getattr(vramkit.tape.events, {"allocations": "ALLOCATION", "events": "EVENT"}[table]))
    for pointer in {"module", "allocation", "name", "born", "died"} & set(wrong.dtype.names or ()):
        wrong[pointer] = -1
    wrong[column] = 77
    rewrite(saved, **{f"0_{table}": as_npy(wrong)})

    with pytest.raises(vramkit.SnapshotError, match=f"{table}.{column}"):
        vramkit.load(saved)


def test_a_breakdowns_text_names_what_there_is() -> None:
    shown = repr(Breakdown(parameters=2048, slack=512))

    assert shown == "Breakdown(allocated 2.50 KiB: parameter 2.00 KiB)"

"""Saved files that nobody saved: whoever made them, `load` gives a result that can be shown, or a `SnapshotError`.

Each test here is a file that hung, filled the memory, wrote to the terminal or ended in a traceback.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safe_results import ESCAPES, assert_can_be_shown, assert_is_shown_or_refused
from told_profiles import MIB, Story, training

import vramkit
from vramkit.__main__ import main
from vramkit.gpus import find
from vramkit.tape.breakdown import Breakdown
from vramkit.tape.events import Category, Phase
from vramkit.tape.memory import OutOfMemory

Meta = dict[str, Any]
Arrays = dict[str, np.ndarray]
PROFILE = training().profile(reserved=200 * MIB, capacity=80 << 30, device_name="NVIDIA A100", notes=("A note.",))
ESTIMATE = vramkit.Estimate(
    tape=PROFILE.tape,
    engine="fake",
    gpu=find("t4"),
    batch_size=8,
    failure=OutOfMemory(event=0, requested=5, phase=Phase.FORWARD, module="Net", breakdown=Breakdown(other=7)),
)


def saved(tmp_path: Path, result: vramkit.Profile | vramkit.Estimate = PROFILE) -> Path:
    path = tmp_path / "result.npz"
    result.save(path)
    return path


def changed(path: Path, change: Callable[[Meta, Arrays], object]) -> Path:
    """Rewrite a file after a change to its JSON or its arrays."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    meta = json.loads(bytes(arrays.pop("meta")).decode())
    change(meta, arrays)
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez_compressed(path, **arrays)
    return path


def with_meta(path: Path, text: bytes) -> Path:
    """Rewrite a file with another JSON text."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez_compressed(path, **{**arrays, "meta": np.frombuffer(text, np.uint8)})
    return path


def refused(path: Path, *words: str, **limit: int) -> None:
    with pytest.raises(vramkit.SnapshotError) as raised:
        vramkit.load(path, **limit)

    text = str(raised.value).replace(str(path), "")
    assert [word for word in words if word not in text] == []
    assert len(text) <= 1000
    assert text.isprintable()


def test_what_these_tests_change_opens_as_it_is(tmp_path: Path) -> None:
    for result in (PROFILE, ESTIMATE):
        loaded = vramkit.load(changed(saved(tmp_path, result), lambda meta, arrays: None))

        assert loaded.report() == result.report()
        assert_can_be_shown(loaded)


# -- values that a report reads ----------------------------------------------------------------------------------------


def in_device(**values: object) -> Callable[[Meta, Arrays], object]:
    return lambda meta, arrays: meta["devices"][0].update(values)


def in_module(index: int, **values: object) -> Callable[[Meta, Arrays], object]:
    return lambda meta, arrays: meta["devices"][0]["modules"][index].update(values)


def in_column(table: str, column: str, row: int, value: object) -> Callable[[Meta, Arrays], object]:
    return lambda meta, arrays: arrays[f"0.{table}"][column].__setitem__(row, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (in_device(device=ESCAPES), r"the device can't be '\x1b[31mred"),
        (in_device(device="x" * 5000), "the device can't be 'xxx"),
        (in_device(device_name=5), "the device's name can't be 5"),
        (in_device(capacity=10**19), "the capacity can't be 10000"),
        (in_device(capacity=10**400), "a number in it has 401 digits"),
        (in_device(capacity=-1), "the capacity can't be -1"),
        (in_device(capacity=1.5), "the capacity can't be 1.5"),
        (in_device(capacity=True), "the capacity can't be True"),
        (in_device(capacity=float("nan")), "the capacity can't be nan"),
        (in_device(outside=1 << 62), "the memory outside"),
        (in_device(nccl={"communicators": 1, "size": -1}), "NCCL's memory"),
        (in_device(notes="x"), "the notes can't be 'x'"),
        (in_device(notes=["x" * 20_000]), "the notes can't be 'xxx"),
        (in_device(versions=["torch"]), "the versions can't be a list"),
        (in_device(versions={"torch": [[]]}), "a version can't be a list"),
        (in_device(names=[None]), "the names can't be None"),
        (in_device(alloc_conf=None), "the allocator's settings can't be None"),
        (in_device(modules={}), "the modules can't be a dict"),
        (in_module(0, name=5), "a module's name can't be 5"),
        (in_module(0, kind=None), "a module's class can't be None"),
        (in_module(0, parent=0), "a module's parent can't be 0"),
        (in_module(1, parent=1), "a module's parent can't be 1"),
        (in_module(1, parent=5), "a module's parent can't be 5"),
        (in_module(1, parent=999), "a module's parent can't be 999"),
        (in_module(1, parent=-2), "a module's parent can't be -2"),
        (in_module(1, parent="0"), "a module's parent can't be '0'"),
        (in_module(1, name="elsewhere"), "'elsewhere' is not named after the one that it is part of"),
        (in_module(0, parameters=1 << 62), "the size of a module's parameters"),
        (in_module(0, calls=-1), "the number of a module's calls can't be -1"),
        (in_module(0, output_shape=[1 << 40, 1 << 40]), "a module's output is larger than can be"),
        (in_module(0, output_shape=[-1]), "a size of a module's output can't be -1"),
        (in_module(0, output_shape=[1] * 65), "there are 65 of a module's output shape"),
        (in_device(evaluations=5), "the evaluations can't be 5"),
        (in_device(evaluations=[{"module": 99, "forwards": 1, "with_graph": 0}]), "an evaluation's model can't be 99"),
        (in_device(evaluations=[{"module": 0, "forwards": 1, "with_graph": 2}]), "number of its graphs can't be 2"),
        (lambda meta, arrays: meta.update(devices=[]), "it has no devices"),
        (lambda meta, arrays: meta.update(devices=[5]), "a device can't be 5"),
        (lambda meta, arrays: meta.update(devices=[{}] * 2000), "there are 2,000 of the devices"),
        (lambda meta, arrays: meta.update(kind=None), "the kind of result can't be None"),
        (lambda meta, arrays: meta.update(format=[[[]]]), "the format can't be a list"),
        (in_column("events", "action", 0, 8), "events.action has an unknown code"),
        (in_column("events", "phase", 0, len(Phase)), "events.phase has an unknown code"),
        (in_column("allocations", "category", 0, len(Category)), "allocations.category has an unknown code"),
        (in_column("events", "step", 3, -1), "events.step has a number below 0"),
        (in_column("allocations", "requested", 0, -1), "allocations.requested has a number below 0"),
        (in_column("segments", "size", 0, -1), "segments.size has a number below 0"),
        (in_column("events", "pool", 0, (0, -1)), "events.pool has a number below 0"),
        (in_column("allocations", "block", 0, 1), "allocations.block has less than was asked for"),
        (in_column("allocations", "block", 0, 1 << 62), "its sizes add up to more than can be"),
        (in_column("segments", "size", 0, (1 << 63) - 1), "its sizes add up to more than can be"),
        (in_column("allocations", "died", 2, 0), "allocations.died points to events of something else"),
        (in_column("allocations", "born", 2, 0), "allocations.born points to events of something else"),
        (in_column("allocations", "born", 2, -1), "events.allocation lacks the allocation of an event"),
        (in_column("allocations", "name", 0, 99), "allocations.name points outside its table"),
    ],
)
def test_a_profile_with_a_value_that_can_not_be_is_refused(
    tmp_path: Path, change: Callable[[Meta, Arrays], object], words: str
) -> None:
    refused(changed(saved(tmp_path), change), words)


def of_lines() -> vramkit.Profile:
    story = Story()
    for number in (31, 32):
        story.alloc(MIB, Category.OTHER, stack=[("/me/net.py", number, "forward"), ("/me/train.py", 9, "step")])
    return story.profile()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (in_device(frames=5), "the frames can't be 5"),
        (in_device(frames=[["a.py", 1, "f"]] * 3), "a frame can't be a list"),
        (in_device(frames=[["a.py", -1, "f", 0]] * 3), "a frame's line can't be -1"),
        (in_device(frames=[[5, 1, "f", 0]] * 3), "a frame's file can't be 5"),
        (in_device(frames=[["a.py", 1, "f", 3]] * 3), "whose a frame is can't be 3"),
        (in_device(frames=[]), "stacks.frame points outside its table"),
        (in_column("stacks", "frame", 0, -1), "stacks.frame points outside its table"),
        (in_column("stacks", "parent", 0, 0), "stacks.parent points to a row that does not come before"),
        (in_column("stacks", "parent", 0, -2), "stacks.parent points to a row that does not come before"),
        (lambda meta, arrays: arrays["0.stack_of"].__setitem__(0, 99), "stack_of points outside its table"),
        (lambda meta, arrays: arrays.update({"0.stack_of": arrays["0.stack_of"][1:]}), "not one of each allocation"),
    ],
)
def test_stacks_that_can_not_be_are_refused(
    tmp_path: Path, change: Callable[[Meta, Arrays], object], words: str
) -> None:
    refused(changed(saved(tmp_path, of_lines()), change), words)


def test_a_file_without_stacks_opens_without_lines(tmp_path: Path) -> None:
    path = changed(saved(tmp_path), lambda meta, arrays: [each.pop("frames") for each in meta["devices"]])

    assert {*vramkit.load(path).tape.lines} == {None}


def test_an_allocation_that_ends_before_it_begins_is_refused(tmp_path: Path) -> None:
    def turn_round(meta: Meta, arrays: Arrays) -> None:
        events, allocations = arrays["0.events"], arrays["0.allocations"]
        row = int(np.flatnonzero(allocations["died"] >= 0)[0])
        born, died = int(allocations["born"][row]), int(allocations["died"][row])
        allocations["born"][row], allocations["died"][row] = died, born
        events["action"][[born, died]] = events["action"][[died, born]]

    refused(changed(saved(tmp_path), turn_round), "an end before the beginning")


def in_particulars(**values: object) -> Callable[[Meta, Arrays], object]:
    return lambda meta, arrays: meta["particulars"].update(values)


def in_gpu(**values: object) -> Callable[[Meta, Arrays], object]:
    return lambda meta, arrays: meta["particulars"]["gpu"].update(values)


def in_failure(**values: object) -> Callable[[Meta, Arrays], object]:
    return lambda meta, arrays: meta["particulars"]["failure"].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (in_particulars(engine=ESCAPES), r"the engine can't be '\x1b[31m"),
        (in_particulars(engine=5), "the engine can't be 5"),
        (in_particulars(batch_size=-1), "the batch size can't be -1"),
        (in_particulars(batch_size=None), "the batch size can't be None"),
        (in_particulars(gpu=[]), "the card can't be a list"),
        (in_particulars(failure="x"), "the failure can't be 'x'"),
        (in_gpu(product=ESCAPES), "A GPU's name was expected"),
        (in_gpu(name=5), "the card's name can't be 5"),
        (in_gpu(memory=1 << 61), "No virtual card is larger"),
        (in_gpu(memory="24"), "the card's memory can't be '24'"),
        (in_gpu(capability=5), "the card's capability can't be 5"),
        (in_gpu(capability=[8, [0]]), "the card's capability can't be a list"),
        (in_gpu(capability=[8, 99]), "A GPU of compute capability (8, 99)"),
        (in_failure(requested=-1), "the request that failed can't be -1"),
        (in_failure(phase=99), "the failure's phase can't be 99"),
        (in_failure(module=None), "the failure's module can't be None"),
        (in_failure(breakdown={"other": []}), "KeyError"),
        (lambda meta, arrays: meta["particulars"]["failure"]["breakdown"].update(other=[]), "failure's other can't be"),
        (lambda meta, arrays: meta["particulars"].pop("engine"), "KeyError"),
    ],
)
def test_an_estimate_with_a_value_that_can_not_be_is_refused(
    tmp_path: Path, change: Callable[[Meta, Arrays], object], words: str
) -> None:
    refused(changed(saved(tmp_path, ESTIMATE), change), words)


@pytest.mark.parametrize(
    "change",
    [
        in_device(device_name=ESCAPES),
        in_device(notes=[ESCAPES, "\ud800", "x" * 10_000]),
        in_device(versions={"torch": ESCAPES}),
        in_device(alloc_conf=ESCAPES),
        in_device(names=["x" * 9000 + ESCAPES] * 6),
        in_module(0, kind=ESCAPES),
        in_device(modules=[{"name": ESCAPES * 900, "kind": ESCAPES * 900, "calls": 2}] * 9),
        in_device(modules=[{"name": "", "kind": ""}] * 9),
        lambda meta, arrays: meta["particulars"]["failure"].update(module=ESCAPES * 900),
    ],
)
def test_what_a_terminal_would_act_on_is_shown_escaped(
    tmp_path: Path, change: Callable[[Meta, Arrays], object]
) -> None:
    assert_can_be_shown(vramkit.load(changed(saved(tmp_path, ESTIMATE), change)))


def test_the_command_line_shows_a_file_of_any_name_and_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = saved(tmp_path).rename(tmp_path / "\x1b[31mgood.npz")
    bad = changed(saved(tmp_path), in_device(device=ESCAPES)).rename(tmp_path / "\x1b[31mbad.npz")

    codes = [main(["view", str(path)]) for path in (good, bad, tmp_path / "\x1b[31mnone.npz")]

    printed = capsys.readouterr()
    assert codes == [0, 2, 2]
    assert all(line.isprintable() for line in (printed.out + printed.err).split("\n"))


def test_modules_very_deep_in_one_another_are_refused(tmp_path: Path) -> None:
    def nested(depth: int) -> Callable[[Meta, Arrays], object]:
        return in_device(
            modules=[{"name": "a" + ".a" * i, "kind": "A", "parent": i - 1} for i in range(depth)],
        )

    assert_can_be_shown(vramkit.load(changed(saved(tmp_path), nested(200))))
    refused(changed(saved(tmp_path), nested(5000)), "more than 200 modules are inside one another")


def test_a_module_called_by_very_many_digits_is_shown(tmp_path: Path) -> None:
    modules = [
        {"name": "a", "kind": "A"},
        {"name": "a." + "1" * 9000 + "x", "kind": "A", "parent": 0},
        {"name": "a." + "1" * 9000 + "x.b", "kind": "A", "parent": 1},
        *({"name": f"a.{i}", "kind": "A", "parent": 0} for i in range(6)),
    ]

    assert_can_be_shown(vramkit.load(changed(saved(tmp_path), in_device(modules=modules))))


# -- files that claim more than they are -------------------------------------------------------------------------------


def test_a_file_that_unpacks_to_more_than_is_allowed_is_refused_before_it_does(tmp_path: Path) -> None:
    path = changed(saved(tmp_path), lambda meta, arrays: arrays.update({"0.events": np.zeros(10**7, np.uint8)}))
    assert path.stat().st_size < 50_000

    refused(path, "unpacks to more than 9.54 MiB", "max_bytes", max_bytes=10**7)


@pytest.mark.parametrize("limit", [1000, "1 kB"])
def test_a_file_that_is_larger_than_is_allowed_is_refused(tmp_path: Path, limit: int | str) -> None:
    refused(saved(tmp_path), "unpacks to more than 1000 B", max_bytes=limit)


def test_a_limit_that_is_no_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(vramkit.UsageError, match="'24G'"):
        vramkit.load(saved(tmp_path), max_bytes="24G")


def test_a_large_json_text_counts_with_what_python_makes_of_it(tmp_path: Path) -> None:
    path = with_meta(saved(tmp_path), b'{"format": 2, "x": [' + b"[],[],[],[],[],[],[],[],[],[]," * 10_000 + b"[]]}")

    refused(path, "unpacks to more than 5.00 MiB", max_bytes=5 << 20)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"format": ' + b"9" * 5000 + b"}",
        b'{"format": 1e999}',
        b'{"format": NaN}',
        b"\xff\xfe",
        b"",
        b"5",
        b'{"format": 2}',
        b'{"format": 2, "kind": "Profile", "devices": [{}]}',
    ],
    ids=range(10),
)
def test_json_that_can_not_be_is_refused(tmp_path: Path, text: bytes) -> None:
    refused(with_meta(saved(tmp_path), text), "can't be read")


def member(path: Path, name: str, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Rewrite one member of an archive."""
    with zipfile.ZipFile(path) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for each, old in members.items():
            archive.writestr(each, content if each == name else old, method if each == name else zipfile.ZIP_STORED)
    return path


def npy(header: str, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + body


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000,)}"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (True,)}"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': ()}", b"1"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 0)}"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"\x80\x04N."),
        npy("{'descr': '|V1000000000', 'fortran_order': False, 'shape': (0,)}"),
        npy("(" * 60_000),
        npy("-" * 60_000 + "1"),
        b"\x93NUMPY\x03\x00" + b"\xff" * 100,
        b"",
    ],
    ids=range(11),
)
@pytest.mark.parametrize("name", ["meta.npy", "0.events.npy"])
def test_a_header_that_claims_something_else_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    refused(member(saved(tmp_path), name, content), "can't be read")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_that_is_compressed_in_another_way_is_refused(tmp_path: Path, method: int) -> None:
    content = io.BytesIO()
    np.save(content, PROFILE.tape.events)

    refused(member(saved(tmp_path), "0.events.npy", content.getvalue(), method), "compressed in another way")


def test_an_archive_that_lacks_a_table_is_refused(tmp_path: Path) -> None:
    refused(changed(saved(tmp_path), lambda meta, arrays: arrays.pop("0.segments")), "can't be read: KeyError")


# -- anything at all ---------------------------------------------------------------------------------------------------

HOSTILE = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 2**31 - 1, 2**31, 2**62, 2**63 - 1, 2**63, 10**30]),
    st.floats(),
    st.none(),
    st.booleans(),
    st.text(max_size=20),
    st.just(ESCAPES),
    st.just("9" * 9000),
    st.just([]),
    st.just({}),
    st.just([[[[]]] * 3] * 3),
)


def places(value: object) -> list[tuple[Any, Any]]:
    """Every place inside a JSON value, as a container and a key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in [(value, key), *places(inner)]]


@given(st.data(), st.sampled_from([PROFILE, ESTIMATE]))
def test_a_file_with_any_value_changed_is_shown_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, result: vramkit.Profile | vramkit.Estimate
) -> None:
    def change(meta: Meta, arrays: Arrays) -> None:
        container, key = data.draw(st.sampled_from(places(meta)))
        if data.draw(st.booleans()):
            container[key] = data.draw(HOSTILE)
        else:
            del container[key]

    assert_is_shown_or_refused(vramkit.load, changed(saved(tmp_path_factory.mktemp("changed"), result), change))


@given(st.data())
def test_a_file_with_any_cell_of_a_table_changed_is_shown_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    def change(meta: Meta, arrays: Arrays) -> None:
        for _ in range(data.draw(st.integers(1, 3))):
            table = arrays[f"0.{data.draw(st.sampled_from(['events', 'allocations', 'segments']))}"]
            column = table[data.draw(st.sampled_from(table.dtype.names))]
            limits = np.iinfo(column.dtype) if column.dtype != bool else None
            low, high = (int(limits.min), int(limits.max)) if limits else (0, 1)
            column[data.draw(st.integers(0, len(column) - 1))] = data.draw(
                st.integers(low, high) | st.integers(max(low, -2), min(high, 40)) | st.sampled_from([low, high])
            )

    assert_is_shown_or_refused(vramkit.load, changed(saved(tmp_path_factory.mktemp("changed")), change))


@given(st.data())
def test_a_file_with_any_bytes_changed_is_shown_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = saved(tmp_path_factory.mktemp("changed"), ESTIMATE)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])

    assert_is_shown_or_refused(vramkit.load, path)


@given(st.data())
def test_an_array_with_any_bytes_changed_is_shown_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = saved(tmp_path_factory.mktemp("changed"), ESTIMATE)
    name = data.draw(st.sampled_from(["meta.npy", "0.events.npy", "0.allocations.npy", "0.segments.npy"]))
    with zipfile.ZipFile(path) as archive:
        content = bytearray(archive.read(name))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))

    assert_is_shown_or_refused(vramkit.load, member(path, name, bytes(content)))

"""Opening a snapshot: plain data comes back as it was, and nothing in a hostile file ever runs."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramkit.errors import SnapshotError
from vramkit.snapshots.unpickling import load_snapshot

SNAPSHOT = {
    "segments": [
        {
            "device": 0,
            "address": 0x7F0000000000,
            "total_size": 2 << 20,
            "segment_pool_id": (0, 0),
            "is_expandable": False,
            "frames": [],
            "blocks": [{"address": 0x7F0000000000, "size": 2 << 20, "requested_size": 400, "state": "inactive"}],
        }
    ],
    "device_traces": [[{"action": "alloc", "addr": 0x7F0000000000, "size": 400, "stream": 0, "time_us": 1.5}], []],
    "allocator_settings": {"max_split_size": -1, "note": None, "raw": b"\x00"},
}

ran: list[str] = []


def mark(what: str) -> str:
    """What a hostile pickle below calls; a file that got here would have run code."""
    ran.append(what)
    return what


class Reduced:
    """Pickles to a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


class Stateful:
    """Pickles to an instance and a state that its class acts on."""

    def __setstate__(self, state: object) -> None:
        mark("setstate")

    def __getstate__(self) -> object:
        return {"a": 1}


def _global(name: str) -> bytes:
    return b"c" + __name__.encode() + b"\n" + name.encode() + b"\n"


HOSTILE = {
    "reduce": pickle.dumps({**SNAPSHOT, "x": Reduced(mark, "reduce")}),
    "reduce, protocol 0": pickle.dumps(Reduced(mark, "protocol 0"), 0),
    "reduce, protocol 2": pickle.dumps([Reduced(mark, "protocol 2")], 2),
    "os.system": pickle.dumps(Reduced(os.system, "false")),
    "eval": pickle.dumps(Reduced(eval, "1")),
    "deep inside": pickle.dumps({"segments": [{"frames": [Reduced(mark, "deep")]}], "device_traces": []}),
    "as a key": pickle.dumps({"segments": [], "device_traces": [], 1: Reduced(mark, "key")}),
    "setstate": pickle.dumps(Stateful()),
    "inst opcode": b"(\x8c\x04insti" + __name__.encode() + b"\nmark\n.",
    "obj opcode": b"(" + _global("mark") + b"S'obj'\no.",
    "newobj opcode": b"\x80\x02" + _global("Stateful") + b")\x81.",
    "persistent id": b"Psomewhere\n.",
    "binary persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "only a class": pickle.dumps(Stateful),
    "a class that looks harmless": pickle.dumps(io.BytesIO),
}


@pytest.fixture(autouse=True)
def nothing_ran():
    ran.clear()
    yield
    assert ran == []


def write(folder, data: bytes):
    path = folder / "snapshot.pickle"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_a_snapshot_comes_back_as_it_was(tmp_path, protocol):
    path = write(tmp_path, pickle.dumps(SNAPSHOT, protocol))

    assert load_snapshot(path) == SNAPSHOT


def test_a_frame_may_end_inside_of_a_pools_id(tmp_path):
    """Python begins a frame of the protocol after every 64 KiB, wherever that is: most large files have one there."""
    snapshot = {"segments": [], "device_traces": [[{"pool_id": (3, 300)}]]}
    pickled, frame = pickle.dumps(snapshot, 4), b"\x95" + struct.pack("<Q", 1)
    pickled = pickled[:2] + pickled[11:]  # without the one frame around everything
    pool = b"K\x03M\x2c\x01\x86"
    assert pool in pickled

    for framed in (b"K\x03%sM\x2c\x01\x86", b"K\x03M\x2c\x01%s\x86", b"%sK\x03M\x2c\x01\x86"):
        assert load_snapshot(write(tmp_path, pickled.replace(pool, framed % frame))) == snapshot


def test_a_list_of_segments_comes_back_as_a_snapshot_without_a_trace(tmp_path):
    path = write(tmp_path, pickle.dumps(SNAPSHOT["segments"]))

    assert load_snapshot(path) == {"segments": SNAPSHOT["segments"], "device_traces": []}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, name):
    path = write(tmp_path, HOSTILE[name])

    with pytest.raises(SnapshotError, match="would run code"):
        load_snapshot(path)


def test_the_hostile_pickles_would_have_run_something(tmp_path):
    path = write(tmp_path, HOSTILE["reduce"])

    pickle.loads(path.read_bytes())

    assert ran == ["reduce"]
    ran.clear()


@pytest.mark.parametrize("opcode", [b"\x82\xf0", b"\x83\xf0\x00", b"\x84\xf0\x00\x00\x00"])
def test_a_registered_extension_code_runs_nothing_even_when_it_was_used_before(tmp_path, opcode):
    copyreg.add_extension(__name__, "mark", 0xF0)
    try:
        hostile = b"\x80\x02" + opcode + b"X\x01\x00\x00\x00a\x85R."
        pickle.loads(hostile)  # now the function lies in the interpreter's cache
        assert ran == ["a"]
        ran.clear()
        path = write(tmp_path, hostile)

        with pytest.raises(SnapshotError, match="EXT"):
            load_snapshot(path)
    finally:
        copyreg.remove_extension(__name__, "mark", 0xF0)


def test_a_hostile_name_is_shown_escaped(tmp_path):
    path = write(tmp_path, b"c\x1b[31mos\nsystem\n.")

    with pytest.raises(SnapshotError, match=r"\\x1b\[31mos\.system"):
        load_snapshot(path)


@pytest.mark.parametrize("end", [0, 1, 2, 20, -20, -1])
def test_a_truncated_file_is_refused(tmp_path, end):
    path = write(tmp_path, pickle.dumps(SNAPSHOT)[:end])

    with pytest.raises(SnapshotError, match="damaged"):
        load_snapshot(path)


@given(st.binary(max_size=200))
def test_garbage_is_refused(tmp_path_factory, data):
    path = write(tmp_path_factory.mktemp("garbage"), data)

    with pytest.raises(SnapshotError):
        load_snapshot(path)


@given(st.data())
def test_a_file_with_a_changed_byte_gives_data_or_an_error_and_runs_nothing(tmp_path_factory, data):
    good = bytearray(pickle.dumps(SNAPSHOT))
    place = data.draw(st.integers(0, len(good) - 1))
    good[place] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.mktemp("changed"), bytes(good))

    try:
        loaded = load_snapshot(path)
    except SnapshotError:
        return

    assert type(loaded) is dict


@pytest.mark.parametrize(
    "value",
    [None, [], {}, {"segments": []}, {"segments": {}, "device_traces": []}, {"segments": [1], "device_traces": []}],
)
def test_a_pickle_of_something_else_is_refused(tmp_path, value):
    path = write(tmp_path, pickle.dumps(value))

    with pytest.raises(SnapshotError, match="pickle of a"):
        load_snapshot(path)


def test_the_error_says_what_to_do(tmp_path):
    path = write(tmp_path, b"not a pickle")

    with pytest.raises(SnapshotError, match="_dump_snapshot") as caught:
        load_snapshot(path)

    assert str(tmp_path) not in str(caught.value)


def test_a_missing_file_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_snapshot(tmp_path / "none.pickle")


def test_a_huge_claimed_length_is_refused(tmp_path):
    path = write(tmp_path, b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"a.")

    with pytest.raises(SnapshotError, match="damaged"):
        load_snapshot(path)


@pytest.mark.virtual_gpu
def test_what_torch_dumps_is_opened(tmp_path):
    torch = pytest.importorskip("torch")
    torch.cuda.memory._record_memory_history(context="all", stacks="python")
    try:
        tensor = torch.empty(1000, device="cuda")
        torch.cuda.memory._dump_snapshot(str(tmp_path / "dump.pickle"))
    finally:
        torch.cuda.memory._record_memory_history(None)

    snapshot = load_snapshot(tmp_path / "dump.pickle")

    found = [
        (entry["action"], entry["size"])
        for entry in snapshot["device_traces"][0]
        if entry.get("addr") == tensor.data_ptr()
    ]
    assert ("alloc", 4000) in found
    assert any(segment["address"] <= tensor.data_ptr() for segment in snapshot["segments"])

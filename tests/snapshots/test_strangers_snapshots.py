"""Snapshots that torch didn't write: whoever made them, they open and can be shown, or end in a `SnapshotError`.

Each test here is a file that hung, filled the memory, wrote to the terminal or ended in a traceback.
"""

from __future__ import annotations

import copy
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safe_results import ESCAPES, assert_can_be_shown, assert_is_shown_or_refused

import vramkit
from vramkit.snapshots.stacks import _Reader
from vramkit.snapshots.unpickling import load_snapshot

START, MIB = 0x7F0000000000, 1 << 20
POOL = (0, 0)


def entry(action: str, offset: int, size: int, time: int) -> dict[str, Any]:
    frames = [{"filename": "/torch/nn.py", "line": 1, "name": "f"}, {"filename": "/a/b.py", "line": 3, "name": "step"}]
    return {
        "action": action, "addr": START + offset, "size": size, "stream": 0, "time_us": time, "frames": frames,
        "pool_id": POOL,
    }  # fmt: skip


SNAPSHOT: dict[str, Any] = {
    "segments": [
        {
            "device": 0,
            "address": START,
            "total_size": 20 * MIB,
            "stream": 0,
            "segment_type": "large",
            "segment_pool_id": POOL,
            "is_expandable": False,
            "blocks": [
                {"address": START, "size": 8 * MIB, "requested_size": 8 * MIB, "state": "active_allocated"},
                {"address": START + 8 * MIB, "size": 12 * MIB, "requested_size": 0, "state": "inactive"},
            ],
        }
    ],
    "device_traces": [
        [
            entry("segment_alloc", 0, 20 * MIB, 1),
            entry("alloc", 0, 8 * MIB, 2),
            entry("alloc", 8 * MIB, 2 * MIB, 3),
            entry("free_requested", 8 * MIB, 2 * MIB, 4),
            entry("free_completed", 8 * MIB, 2 * MIB, 5),
            entry("oom", 0, 1 << 40, 6),
        ],
        [],
    ],
    "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:40"},
}


def written(tmp_path: Path, snapshot: object, protocol: int = 4) -> Path:
    path = tmp_path / "made.pickle"
    path.write_bytes(snapshot if isinstance(snapshot, bytes) else pickle.dumps(snapshot, protocol))
    return path


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    snapshot = copy.deepcopy(SNAPSHOT)
    change(snapshot)
    return snapshot


def refused(path: Path, *words: str, **limit: int) -> None:
    with pytest.raises(vramkit.SnapshotError) as raised:
        vramkit.open_snapshot(path, **limit)

    text = str(raised.value).replace(str(path), "")
    assert [word for word in words if word not in text] == []
    assert len(text) <= 1000
    assert text.isprintable()


def nested(depth: int, make: Callable[[Any, Any], Any]) -> Any:
    """What is small as long as nobody writes, compares or hashes it."""
    value: Any = make(0, 0)
    for _ in range(depth):
        value = make(value, value)
    return value


HUGE_LIST = nested(60, lambda left, right: [left, right])


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_what_these_tests_change_opens_as_it_is(tmp_path: Path, protocol: int) -> None:
    profile = vramkit.open_snapshot(written(tmp_path, SNAPSHOT, protocol))

    assert profile.peak_allocated == 10 * MIB
    assert {line for line in profile.tape.lines if line} == {"b.py:3 in step"}
    assert_can_be_shown(profile)


# -- values that a profile is made of ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda made: made["segments"][0].update(address=HUGE_LIST), "the address can't be a list"),
        (lambda made: made["segments"][0].update(total_size=HUGE_LIST), "the total_size can't be a list"),
        (lambda made: made["segments"][0].update(device=HUGE_LIST), "the device can't be a list"),
        (lambda made: made["segments"][0].update(stream=None), "the stream can't be None"),
        (lambda made: made["segments"][0].update(segment_type=HUGE_LIST), "the segment_type can't be a list"),
        (lambda made: made["segments"][0].update(segment_pool_id=HUGE_LIST), "the private pool can't be a list"),
        (lambda made: made["segments"][0].update(is_expandable=5), "the is_expandable can't be 5"),
        (lambda made: made["segments"][0].update(blocks=5), "the blocks can't be 5"),
        (lambda made: made["segments"][0]["blocks"][0].update(size=HUGE_LIST), "the size can't be a list"),
        (lambda made: made["segments"][0]["blocks"][0].update(requested_size=-1), "the requested_size can't be -1"),
        (lambda made: made["segments"][0]["blocks"][0].update(requested_size=9 * MIB), "less than the 9437184 bytes"),
        (lambda made: made["segments"][0]["blocks"][0].update(state=HUGE_LIST), "the state can't be a list"),
        (lambda made: made["segments"][0]["blocks"][0].update(state=ESCAPES), r"the state can't be '\x1b[31m"),
        (lambda made: made["segments"][0]["blocks"].append(HUGE_LIST), "the block can't be a list"),
        (lambda made: made["segments"][0].update(total_size=1 << 62), "add up to more than can be"),
        (lambda made: made["device_traces"][0][1].update(action=HUGE_LIST), "the action can't be a list"),
        (lambda made: made["device_traces"][0][1].update(size=HUGE_LIST), "the size can't be a list"),
        (lambda made: made["device_traces"][0][1].update(size=1 << 62), "add up to more than can be"),
        (lambda made: made["device_traces"][0][1].update(stream="x" * 5000), "the stream can't be 'xxx"),
        (lambda made: made["device_traces"][0][1].update(addr=-1), "the addr can't be -1"),
        (lambda made: made["device_traces"][0][1].update(time_us=float("nan")), "the time_us can't be nan"),
        (lambda made: made["device_traces"][0][1].update(pool_id=(0,)), "the private pool can't be (0)"),
        (lambda made: made["device_traces"][0][1].update(frames=5), "the frames can't be 5"),
        (lambda made: made["device_traces"][0][1].update(frames=[HUGE_LIST]), "a frame can't be a list"),
        (lambda made: made.update(device_traces=[[]] * 200), "traces of 200 devices"),
        (lambda made: made.update(allocator_settings=HUGE_LIST), "the allocator_settings can't be a list"),
        (
            lambda made: made["allocator_settings"].update(PYTORCH_CUDA_ALLOC_CONF=HUGE_LIST),
            "the PYTORCH_CUDA_ALLOC_CONF can't be a list",
        ),
        (lambda made: made["device_traces"][0][2].pop("pool_id"), "KeyError"),
    ],
)
def test_a_snapshot_with_a_value_that_can_not_be_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    refused(written(tmp_path, changed(change)), words)


@pytest.mark.parametrize(
    "frame",
    [
        {"filename": HUGE_LIST, "line": HUGE_LIST, "name": HUGE_LIST},
        {"filename": "a.py", "line": HUGE_LIST, "name": HUGE_LIST},
        {"filename": "a.py", "line": 1, "name": ESCAPES * 1000},
        {"filename": ESCAPES + ".py", "line": 1, "name": "f"},
        {"filename": "a/" * 10**6 + "b.py", "line": 1, "name": "f" * 10**6},
        {},
    ],
    ids=range(6),
)
def test_a_frame_of_any_kind_is_shown_or_passed_over(tmp_path: Path, frame: dict[str, object]) -> None:
    path = written(tmp_path, changed(lambda made: made["device_traces"][0][1].update(frames=[frame])))

    assert_can_be_shown(vramkit.open_snapshot(path))


def test_a_stack_that_many_entries_share_is_read_once(tmp_path: Path) -> None:
    class Counted(dict[str, object]):
        reads = 0

        def get(self, *key: Any) -> Any:
            Counted.reads += 1
            return super().get(*key)

    frames = [Counted(filename="/torch/a.py", line=1, name="f") for _ in range(100)]
    reader, again = _Reader(), [*frames]

    rows = {reader.read({"frames": each}) for each in (frames, again) for _ in range(100)}

    assert len(rows) == 1
    assert len(reader.tree) == len(frames)
    assert Counted.reads == 3 * len(frames)


def test_one_entry_a_million_times_counts_a_million_times(tmp_path: Path) -> None:
    path = written(
        tmp_path, changed(lambda made: made["device_traces"][1].extend([made["device_traces"][0][1]] * 10**5))
    )
    assert path.stat().st_size < 300_000

    refused(path, "unpacks to more than 10.0 MiB", "max_bytes", max_bytes=10 * MIB)


def test_one_segment_a_million_times_counts_a_million_times(tmp_path: Path) -> None:
    path = written(tmp_path, changed(lambda made: made["segments"].extend(made["segments"] * 10**5)))

    refused(path, "unpacks to more than 10.0 MiB", max_bytes=10 * MIB)


def test_very_many_mapped_ranges_are_followed(tmp_path: Path) -> None:
    """Each of them was held against all others: half a megabyte took minutes."""
    events = [entry("segment_unmap", 6 * MIB * number, 2 * MIB, number) for number in range(20_000)]
    path = written(tmp_path, {"segments": [], "device_traces": [events]})

    assert vramkit.open_snapshot(path).peak_reserved == 20_000 * 2 * MIB


def test_settings_that_are_not_known_are_noted_in_a_short_and_printable_text(tmp_path: Path) -> None:
    for conf in ("x" * 9000, ESCAPES, "max_split_size_mb:" + "9" * 9000):
        path = written(tmp_path, changed(lambda made: made["allocator_settings"].update(PYTORCH_CUDA_ALLOC_CONF=conf)))  # noqa: B023

        profile = vramkit.open_snapshot(path)

        assert any("not all known here" in note and len(note) < 500 for note in profile.notes)
        assert_can_be_shown(profile)


def test_an_event_where_nothing_is_is_no_traceback(tmp_path: Path) -> None:
    path = written(tmp_path, {"segments": [], "device_traces": [[entry("free_completed", 0, 512, 1)]]})

    assert_is_shown_or_refused(vramkit.open_snapshot, path)


# -- pickles that claim, or need, more than they are -------------------------------------------------------------------


def chain(opcode: bytes, count: int, start: bytes = b"K\x00") -> bytes:
    return b"\x80\x04" + start + opcode * count


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x04Nr\xff\xff\xff\x3f.",  # remembers an object as the thousand millionth
        b"\x80\x04N" + b"p4000000000\n.",
        b"\x80\x04}" + pickle.dumps(nested(60, lambda left, right: (left, right)))[2:-1] + b"Ns.",
        chain(b"2\x86", 60),  # a pair of the same thing, again and again
        chain(b"(2t", 60),
        b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.",
        b"\x80\x04\x8b" + struct.pack("<i", 10**6) + b"\x01" * 10**6 + b".",
        b"\x80\x04\x8a\xff" + b"\x01" * 255 + b".",
        b"\x80\x04L" + b"9" * 5000 + b"L\n.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
        b"\x80\x04B" + struct.pack("<I", 2**32 - 1) + b"x.",
        b"\x80\x04X" + struct.pack("<I", 2**32 - 1) + b"x.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**64 - 1) + b"x.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**64 - 1) + b"N.",
        b"\x80\x04\x8f(K\x01\x90.",  # a set
        b"\x80\x04(K\x01\x91.",
        b"\x80\xff.",
        b"\x80\x04" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
        b"\x80\x04]\x94h\x00a.",  # a list in itself
        b"\x80\x04}\x94\x8c\x08segmentsh\x00s.",
        b"\x80\x04" + b"(" * 10**5 + b".",
        b"h\xff.",
        b"\x80\x04j\xff\xff\xff\xff.",
    ],
    ids=range(24),
)
def test_a_small_pickle_that_would_take_without_end_is_refused(tmp_path: Path, pickled: bytes) -> None:
    refused(written(tmp_path, pickled))


def test_keys_of_a_pickle_that_is_no_snapshot_are_shown_short_and_printable(tmp_path: Path) -> None:
    refused(written(tmp_path, {ESCAPES * 1000: 1, **dict.fromkeys(range(1000))}), r"keys '\x1b[31mred")


def test_a_pickle_of_more_containers_than_are_allowed_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, changed(lambda made: made.update(more=[{} for _ in range(10**5)])))
    assert path.stat().st_size < 250_000

    refused(path, "unpacks to more than 5.00 MiB", "max_bytes", max_bytes=5 * MIB)


def test_a_file_that_is_larger_than_is_allowed_is_refused(tmp_path: Path) -> None:
    refused(written(tmp_path, SNAPSHOT), "unpacks to more than 100 B", max_bytes=100)


def test_a_limit_that_is_no_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(vramkit.UsageError, match="'24G'"):
        vramkit.open_snapshot(written(tmp_path, SNAPSHOT), max_bytes="24G")


def test_an_object_may_be_remembered_as_late_as_a_file_of_its_size_can(tmp_path: Path) -> None:
    entries = [entry("alloc", 0, 512, number) for number in range(20_000)]  # more than 65,536 remembered objects

    snapshot = {"segments": [], "device_traces": [entries]}

    assert load_snapshot(written(tmp_path, snapshot, protocol=2)) == snapshot


# -- anything at all ---------------------------------------------------------------------------------------------------

HOSTILE = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 512, START, START + 8 * MIB, 2**31, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1]),
    st.sampled_from(["alloc", "free_requested", "free_completed", "segment_alloc", "segment_free", "segment_map"]),
    st.sampled_from(["segment_unmap", "oom", "inactive", "active_allocated", "active_pending_free", ESCAPES]),
    st.floats(),
    st.none(),
    st.booleans(),
    st.text(max_size=20),
    st.tuples(st.integers(-1, 2**32), st.integers(-1, 2**32)),
    st.just([]),
    st.just({}),
    st.just("HUGE_LIST"),  # Hypothesis would write the list itself
)


def places(value: object) -> list[tuple[Any, Any]]:
    """Every place inside a snapshot, as a container and a key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in [(value, key), *places(inner)]]


@given(st.data())
def test_a_snapshot_with_any_values_changed_is_shown_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    snapshot = copy.deepcopy(SNAPSHOT)
    everywhere = places(snapshot)
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = everywhere[data.draw(st.integers(0, len(everywhere) - 1))]
        value = data.draw(HOSTILE)
        container[key] = HUGE_LIST if value == "HUGE_LIST" else value
        if isinstance(container, dict) and data.draw(st.booleans()):
            del container[key]

    assert_is_shown_or_refused(vramkit.open_snapshot, written(tmp_path_factory.mktemp("changed"), snapshot))


@given(st.data())
def test_a_snapshot_with_any_events_is_shown_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    actions = st.sampled_from(
        ["alloc", "free_requested", "free_completed", "segment_alloc", "segment_free", "segment_map", "segment_unmap"]
    )
    offsets, sizes = st.sampled_from([0, 512, 2 * MIB, 20 * MIB]), st.sampled_from([0, 512, 2 * MIB, 20 * MIB])
    events = data.draw(st.lists(st.builds(entry, actions, offsets, sizes, st.integers(0, 9)), max_size=12))
    segments = data.draw(st.sampled_from([[], SNAPSHOT["segments"], SNAPSHOT["segments"] * 2]))

    assert_is_shown_or_refused(
        vramkit.open_snapshot,
        written(tmp_path_factory.mktemp("events"), {"segments": segments, "device_traces": [events]}),
    )


@given(st.data(), st.sampled_from([2, 4]))
def test_a_snapshot_with_any_bytes_changed_is_shown_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, protocol: int
) -> None:
    pickled = bytearray(pickle.dumps(SNAPSHOT, protocol))
    opcodes = [place for _, _, place in pickletools.genops(bytes(pickled)) if place]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(pickled) - 1) | st.sampled_from(opcodes))
        pickled[place] = data.draw(st.integers(0, 255))

    assert_is_shown_or_refused(vramkit.open_snapshot, written(tmp_path_factory.mktemp("changed"), bytes(pickled)))

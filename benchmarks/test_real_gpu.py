"""The comparison of a real card with its twin finds what is planted, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.real_gpu import files, table
from benchmarks.real_gpu.chunks import Chunks
from benchmarks.real_gpu.comparing import compare
from benchmarks.real_gpu.recording import Record
from vramkit import gpus
from vramkit.engines.fake.kernels.cudnn_sizes import Recurrent, batch_norm

MIB = 1 << 20
_ROWS = (
    ("S", 2 * MIB, 0), ("a", 512, 0), ("a", 1024, 512), ("r", 512, 0), ("f", 512, 0), ("r", 1024, 512),
    ("f", 1024, 512), ("S", 2 * MIB, 10 * MIB), ("a", 2048, 0), ("a", 2048, 10 * MIB), ("r", 2048, 0), ("f", 2048, 0),
)  # fmt: skip
"""Action, bytes, address. The first part has two blocks, the second one two more."""


def record(base: int = 0) -> Record:
    """A program of two parts, in a stretch of addresses."""
    actions, sizes, addresses = zip(*_ROWS, strict=True)
    return {
        "kind": "program",
        "name": "made up",
        "actions": "".join(actions),
        "sizes": list(sizes),
        "addresses": [base + address for address in addresses],
        "streams": [0] * len(_ROWS),
        "parts": [["first", 0, None], ["second", 2, None]],
        "peak_allocated": 4096,
        "peak_reserved": 4 * MIB,
    }


def drop(found: Record, *rows: int) -> None:
    for column in ("sizes", "addresses", "streams"):
        found[column] = [value for row, value in enumerate(found[column]) if row not in rows]
    found["actions"] = "".join(letter for row, letter in enumerate(found["actions"]) if row not in rows)


def longer_by_a_byte(found: Record) -> None:
    found["sizes"][8] += 1


def never_given_back(found: Record) -> None:
    drop(found, 10, 11)


def fails(found: Record) -> None:
    found["parts"][1][2] = "RuntimeError: no"


def test_the_same_events_elsewhere_are_equal() -> None:
    found = compare(record(), record(base=1 << 40))

    assert (found.verdict, found.differences, found.moved) == ("equal", (), 0)
    assert (found.events, found.parts, found.equal_parts) == (len(_ROWS), 2, 2)


@pytest.mark.parametrize(
    ("plant", "card", "twin"),
    [
        (longer_by_a_byte, ("+2048",), ("+2049",)),
        (never_given_back, ("-2048",), ()),
        (fails, ("ran",), ("RuntimeError: no",)),
    ],
)
def test_a_planted_difference_is_found_in_its_part(
    plant: Callable[[Record], None], card: tuple[str, ...], twin: tuple[str, ...]
) -> None:
    other = record(base=1 << 40)
    plant(other)

    found = compare(record(), other)

    assert found.verdict == "requests"
    [difference] = found.differences
    assert (difference.part, difference.card, difference.twin) == ("second", card, twin)
    assert found.equal_parts == 1


def test_another_segment_for_the_same_requests_is_told_apart() -> None:
    other = record()
    other["sizes"][7] = 20 * MIB

    assert compare(record(), other).verdict == "segments"


def test_a_block_in_the_other_of_two_equal_segments_is_told_as_moved() -> None:
    other = record()
    for row in (8, 10, 11):
        other["addresses"][row] = 11 * MIB

    found = compare(record(), other)

    assert (found.verdict, found.moved) == ("places", 1)


def test_frees_of_one_moment_may_come_in_another_order() -> None:
    one, other = record(), record()
    for each in (one, other):
        drop(each, 4, 6)  # what went back at once
    for column in ("sizes", "addresses"):
        other[column][3:5] = reversed(other[column][3:5])

    assert compare(one, other).verdict == "order of frees"


def test_pages_of_an_expandable_segment_are_one_segment() -> None:
    one = record()
    one["actions"] = one["actions"].replace("S", "M")
    one["addresses"] = [2 * MIB + address % MIB if address >= 10 * MIB else address for address in one["addresses"]]
    other = copy.deepcopy(one)
    other["addresses"] = [(1 << 40) + address for address in other["addresses"]]

    assert compare(one, other).verdict == "equal"


def test_a_file_that_was_cut_off_shows_what_was_whole(tmp_path: Path) -> None:
    path = tmp_path / "sent.jsonl.gz"
    for device in ("card", "twin"):
        files.append(path, {**record(), "device": device})
    whole = path.stat().st_size
    files.append(path, {**record(), "device": "twin", "name": "cut off"})
    path.write_bytes(path.read_bytes()[: whole + 20])

    entries = list(files.read(path))

    assert [each["device"] for each in entries] == ["card", "twin"]
    assert "1 compared: 1 equal" in table.page(entries)


RECORDINGS = sorted((Path(__file__).parent / "real_gpu" / "recordings").glob("*.jsonl.gz"))


@pytest.mark.parametrize("path", RECORDINGS, ids=[path.name.split(".jsonl")[0] for path in RECORDINGS])
@pytest.mark.parametrize("what", ["rising", "comes and goes"])
def test_a_cards_segments_lie_where_the_rule_puts_them(path: Path, what: str) -> None:
    [found] = [each for each in files.read(path) if each["kind"] == "addresses" and each["device"] == "card"]
    [(_, newest), (_, older)] = found["rising"][
        :2
    ]  # what the context has left: 2 MiB, and of an older chunk 24 or more
    top = found["rising"][4][1] + 32 * MIB
    chunks = Chunks(top, ((26 * MIB, older), (2 * MIB, newest)))
    sizes: dict[int, int] = {}

    for size, address in found[what]:
        if size:
            assert chunks.take(size) == address
            sizes[address] = size
        else:
            chunks.give_back(address, sizes.pop(address))


@pytest.mark.parametrize("path", RECORDINGS, ids=[path.name.split(".jsonl")[0] for path in RECORDINGS])
def test_the_catalogue_has_what_a_card_said_of_itself(path: Path) -> None:
    [facts] = [each for each in files.read(path) if each["kind"] == "facts" and each["device"] == "card"]
    said = facts["properties"]

    known = gpus.find(path.name.partition("-")[0])

    assert (known.product, known.memory) == (said["name"], said["total_memory"])
    assert (known.multiprocessors, known.l2_cache) == (said["multi_processor_count"], said["L2_cache_size"])
    assert (known.clock_mhz * 1000, known.memory_clock_mhz * 1000) == (said["clock_rate"], said["memory_clock_rate"])
    assert (known.bus_width, known.capability) == (said["memory_bus_width"], (said["major"], said["minor"]))


LIBRARIES = sorted((Path(__file__).parent / "real_gpu" / "recordings" / "libraries").glob("*.jsonl.gz"))


ITEMSIZE = {0: 4, 1: 8, 2: 2}
"""By cudnnDataType_t: float, double, half."""


def rows_of(path: Path, kind: str) -> list[Record]:
    return [each for each in files.read(path) if each["kind"] == kind and not each["status"]]


def network(row: Record) -> Recurrent:
    same = {name: row[name] for name in ("mode", "layers", "directions", "input", "hidden", "steps", "batch")}
    return Recurrent(
        **same,
        output=row["hidden"],
        itemsize=ITEMSIZE[row["type"]],
        dropout=row["dropout"] > 0,
        rows=row["steps"] * row["batch"],
        packed=False,
        persistent=row["algorithm"] == 1,
    )


@pytest.mark.parametrize("path", LIBRARIES, ids=[path.name.split(".jsonl")[0] for path in LIBRARIES])
def test_a_recurrent_network_wants_what_the_rule_says(path: Path) -> None:
    rows = rows_of(path, "recurrent")
    standard = [(row, network(row)) for row in rows if not row["algorithm"]]
    assert len(standard) > 10_000

    assert [row for row in rows if network(row).reserve != row["reserve"]] == []
    for training, name in ((False, "inference"), (True, "training")):
        assert [row for row, of in standard if of.workspace(training=training) != row[name]] == []


@pytest.mark.parametrize("path", LIBRARIES, ids=[path.name.split(".jsonl")[0] for path in LIBRARIES])
def test_persistent_kernels_want_what_the_rule_says_where_torch_asks_for_them(path: Path) -> None:
    asked = [
        (row, network(row))
        for row in rows_of(path, "recurrent")
        if row["algorithm"] == row["layers"] == row["directions"] == 1 and row["type"] == 2
        if row["hidden"] % 128 == 0 and row["mode"] != 3
    ]
    assert len(asked) > 100

    assert [row for row, of in asked if of.workspace(training=False) != row["inference"]] == []
    long = [(row, of) for row, of in asked if of.rows >= 256]
    assert [row for row, of in long if of.workspace(training=True) != row["training"]] == []


@pytest.mark.parametrize("path", LIBRARIES, ids=[path.name.split(".jsonl")[0] for path in LIBRARIES])
def test_batch_norm_wants_what_the_rule_says(path: Path) -> None:
    rows = rows_of(path, "batch norm")
    assert len(rows) > 3000

    for row in rows:
        pixels, is_last = row["batch"] * row["side"] ** 2, row["last"] or row["side"] == 1
        for backward, name in ((False, "forward"), (True, "backward")):
            size = batch_norm(pixels, row["channels"], ITEMSIZE[row["type"]], backward=backward)
            assert row[name] == (size if row["mode"] == 2 and is_last else 0), row
        assert row["reserve"] == 0

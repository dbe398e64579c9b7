"""The virtual GPU's cuSOLVER and cuFFT want what an H200's wanted."""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.real_gpu import files
from vramkit import virtual_gpu

pytestmark = pytest.mark.skipif(virtual_gpu.current() is None, reason="there is no virtual GPU")

Row = dict[str, Any]
RECORDED = list(
    files.read(next((Path(__file__).parent / "real_gpu" / "recordings" / "libraries").glob("h200-*.jsonl.gz")))
)
SIZE = {"S": 4, "D": 8, "C": 8, "Z": 16}


def rows_of(kind: str) -> list[Row]:
    return [each for each in RECORDED if each["kind"] == kind and not each["status"]]


def elements(name: str, *given: int | None) -> int:
    """What a routine of cuSOLVER says it wants."""
    size = c.c_int()
    assert getattr(c.CDLL(None), f"cusolverDn{name}_bufferSize")(None, *given, c.byref(size)) == 0
    return size.value


def products(row: Row) -> int:
    m, n, k = row["m"], row["n"], min(row["m"], row["n"])
    name = "ormqr" if row["letter"] in "SD" else "unmqr"
    return elements(row["letter"] + name, 0, 1, m, n, k, None, m, None, None, m)


def generated(row: Row) -> int:
    m, k = row["m"], min(row["m"], row["n"])
    name = "orgqr" if row["letter"] in "SD" else "ungqr"
    return elements(row["letter"] + name, m, k, k, None, m, None)


def lower_and_upper(row: Row) -> int:
    return elements(f"{row['letter']}potrf", row["upper"], row["n"], None, row["n"])


def plain(name: str) -> Callable[[Row], int]:
    return lambda row: elements(row["letter"] + name, row["m"], row["n"], None, row["m"])


def eigenvalues(row: Row) -> int:
    name = "syevd" if row["letter"] in "SD" else "heevd"
    return elements(row["letter"] + name, 0, row["upper"], row["n"], None, row["n"], None)


def singular_values(row: Row) -> int:
    return elements(f"{row['letter']}gesvd", max(row["m"], row["n"]), min(row["m"], row["n"]))


@pytest.mark.parametrize(
    ("kind", "names", "ask", "is_fitted", "least"),
    [
        ("factorization", ("geqrf",), plain("geqrf"), lambda row: True, 284),
        ("factorization", ("ormqr", "unmqr"), products, lambda row: True, 284),
        ("factorization", ("orgqr", "ungqr"), generated, lambda row: not 64 < min(row["m"], row["n"]) < 128, 260),
        ("factorization", ("getrf",), plain("getrf"), lambda row: max(row["m"], row["n"]) <= 1024, 236),
        ("symmetric", ("potrf",), lower_and_upper, lambda row: True, 192),
    ],
    ids=["QR", "products with Q", "Q", "LU", "Cholesky"],
)
def test_a_factorization_wants_what_the_card_wanted(
    kind: str, names: tuple[str, ...], ask: Callable[[Row], int], is_fitted: Callable[[Row], bool], least: int
) -> None:
    rows = [row for row in rows_of(kind) if is_fitted(row)]
    assert len(rows) >= least

    for row in rows:
        [wanted] = [row[name] for name in names if name in row]
        assert ask(row) == wanted, row


@pytest.mark.parametrize(
    ("kind", "names", "ask", "off"),
    [
        ("symmetric", ("syevd, values", "heevd, values"), eigenvalues, 36),
        ("factorization", ("gesvd",), singular_values, 96),
    ],
    ids=["eigenvalues", "singular values"],
)
def test_values_of_square_matrices_want_what_the_card_wanted_but_for_some_bytes(
    kind: str, names: tuple[str, ...], ask: Callable[[Row], int], off: int
) -> None:
    for row in rows_of(kind):
        if row.get("m", row["n"]) == row["n"]:
            [wanted] = [row[name] for name in names if name in row]
            assert abs(ask(row) - wanted) <= off, row


KINDS = {"C2C": (4, 4), "R2C": (0, 4), "C2R": (4, 0), "Z2Z": (5, 5), "D2Z": (1, 5), "Z2D": (5, 1)}
"""cudaDataType_t of what goes in and what comes out."""


def work_area(row: Row) -> int:
    """What a plan of cuFFT says it wants."""
    sides, size = (c.c_longlong * len(row["shape"]))(*row["shape"]), c.c_size_t()
    one, (read, written) = c.c_longlong(1), KINDS[row["type"]]
    status = c.CDLL(None).cufftXtMakePlanMany(
        0, len(sides), sides, None, one, one, read, None, one, one, written, c.c_longlong(row["batch"]),
        c.byref(size), max(read, written),
    )  # fmt: skip
    assert status == 0
    return size.value


def test_a_transform_wants_what_the_card_wanted() -> None:
    # Of primes above 127 in real data, and above 4,096, the convolutions are other ones by some per cent.
    rows = [row for row in rows_of("transform") if row["shape"] not in ([1009], [4099])]
    assert len(rows) == 600

    for row in rows:
        assert work_area(row) == row["work"], row
    for row in rows_of("transform"):
        assert work_area(row) == pytest.approx(row["work"], rel=0.03), row

"""What a search for the batch size comes to: its arithmetic, its conversions, its report. On made-up trials."""

from __future__ import annotations

import operator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from subprocesses import loaded_by

from vramkit.batch_size.result import BatchSizeResult, Trial, accumulate

GIB = 1 << 30


def trial(batch_size: int, gib: float = 0.0, **more: object) -> Trial:
    return Trial(
        **{  # type: ignore[arg-type]
            "batch_size": batch_size, "fits": True, "peak_allocated": int(gib * GIB * 0.9),
            "peak_reserved": int(gib * GIB), "seconds": 0.25, **more,
        }
    )  # fmt: skip


FOUND = BatchSizeResult(
    batch_size=100,
    max_batch_size=125,
    peak_reserved=8 * GIB,
    capacity=10 * GIB,
    memory_fraction=0.8,
    trials=(
        trial(2, 0.2, is_probe=True),
        trial(4, 0.4, is_probe=True),
        trial(100, 8.0),
        trial(126, 9.9, fits=False, retries=2),
        trial(125, 9.9),
    ),
    device_name="Tesla T4",
)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_parts_of_an_accumulated_batch_are_the_batch(effective: int, fits: int) -> None:
    made_of = accumulate(effective, fits)

    whole = made_of.steps - bool(made_of.remainder)
    assert whole * made_of.batch_size + made_of.remainder == effective
    assert made_of.batch_size <= fits
    assert made_of.remainder < made_of.batch_size
    assert made_of.even_batch_size * made_of.even_steps == effective
    assert not [size for size in range(made_of.even_batch_size + 1, min(fits, effective) + 1) if effective % size == 0]


def test_steps_times_batch_size_is_the_effective_batch_where_it_divides() -> None:
    found = replace(FOUND, batch_size=64, effective_batch_size=256)

    assert found.accumulation_steps == 4
    assert "4 x 64 = 256" in found.report()


def test_what_remains_is_said_where_it_does_not_divide() -> None:
    found = replace(FOUND, effective_batch_size=256)

    assert found.accumulation_steps == 3
    assert "2 x 100 and one of 56, for 256; or 4 x 64, which is even" in found.report()


def test_an_effective_batch_that_fits_is_one_step() -> None:
    found = replace(FOUND, effective_batch_size=60)

    assert found.accumulation_steps == 1
    assert "1 x 60 = 60" in found.report()


def test_a_prime_batch_is_not_split_into_single_rows() -> None:
    assert "none is even" in replace(FOUND, effective_batch_size=257).report()


def test_without_an_effective_batch_nothing_is_accumulated() -> None:
    assert FOUND.accumulation is None
    assert FOUND.accumulation_steps is None
    assert "accumulate" not in FOUND.report()


def test_a_result_counts_as_its_batch_size() -> None:
    assert int(FOUND) == operator.index(FOUND) == len(range(FOUND)) == 100


def test_its_repr_is_one_line_with_the_answer() -> None:
    assert repr(FOUND) == ("BatchSizeResult(100 within 0.8 of 10.0 GiB, at most 125; reserved 8.00 GiB, 5 trials)")


def test_it_is_verified_when_both_sizes_ran_on_the_device_and_fitted() -> None:
    assert FOUND.verified
    assert not replace(FOUND, trials=FOUND.trials[:-1]).verified
    assert not replace(FOUND, trials=(trial(100, 8.0), trial(125, 9.9, kind="predicted"))).verified
    assert not replace(FOUND, max_batch_size=126).verified


def test_the_report_has_the_answer_every_trial_and_the_notes() -> None:
    text = str(replace(FOUND, notes=("The third step took longer.",)))

    assert "vramkit: the largest batch on Tesla T4, 10.0 GiB available" in text
    assert "batch_size               100   reserves 8.00 GiB, within 0.8 of that (8.00 GiB); measured" in text
    assert "max_batch_size           125   is the largest that fits at all" in text
    assert "126      8.91 GiB      9.90 GiB      0.25 s  measured: emptied the cache 2 times on its way" in text
    assert text.count(" probe") == 2
    assert text.endswith("Note: The third step took longer.")


def test_the_report_is_one_screen_of_ascii() -> None:
    many = replace(FOUND, trials=tuple(trial(n, n / 15) for n in range(1, 126)), notes=("word " * 60,))

    lines = many.report().splitlines()

    assert many.report().isascii()
    assert max(map(len, lines)) <= 100
    assert len(lines) < 50
    assert "and 109 more, in .trials" in many.report()


def plot_of(result: BatchSizeResult) -> list[str]:
    """Rows of the plot from the top, without the axis."""
    lines = result.report().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("Peak reserved"))
    rows = lines[first + 1 :]
    return [row.partition("|")[2] for row in rows[: next(n for n, row in enumerate(rows) if "+---" in row)]]


def test_the_curve_rises_from_left_to_right_up_to_the_capacity() -> None:
    rows = plot_of(FOUND)
    heights = {x: y for y, row in reversed([*enumerate(rows)]) for x, sign in enumerate(row) if sign in "*.ox"}

    ordered = [heights[x] for x in sorted(heights)]
    assert len(ordered) > 60
    assert ordered == sorted(ordered, reverse=True)
    assert ordered[-1] == 0


def test_the_plot_has_lines_for_the_capacity_and_the_limit() -> None:
    rows = plot_of(FOUND)

    assert set(rows[0]) <= set("=*.x")
    (limit,) = [row for row in rows if row.startswith("--")]
    assert "*" in limit  # 100 rows take just what is allowed


def test_a_size_far_above_the_others_does_not_flatten_the_plot() -> None:
    far = replace(FOUND, trials=(*FOUND.trials, trial(1 << 20, 9.9, fits=False, ran_out=True)))

    assert plot_of(far) == plot_of(FOUND)
    assert "1,048,576      8.91 GiB      9.90 GiB      0.25 s  measured: ran out of memory" in far.report()


def test_one_trial_makes_no_plot() -> None:
    assert "Peak reserved" not in replace(FOUND, trials=FOUND.trials[2:3]).report()


def test_predicted_trials_and_the_curve_are_drawn_too() -> None:
    predicted = tuple(replace(each, kind="predicted") for each in FOUND.trials if each.fits)
    found = replace(FOUND, trials=predicted, curve=((50, 4 * GIB),))

    assert "100   reserves 8.00 GiB, within 0.8 of that (8.00 GiB); predicted" in found.report()
    assert sum(row.count("o") for row in plot_of(found)) >= 3
    assert sum(row.count("*") for row in plot_of(found)) == 0


def test_it_prints_without_torch() -> None:
    assert "torch" not in loaded_by(
        "import vramkit; print(vramkit.BatchSizeResult(batch_size=1, max_batch_size=1, peak_reserved=1, capacity=1,"
        "memory_fraction=1, trials=()))"
    )


@pytest.mark.parametrize("trials", [(), FOUND.trials])
def test_nothing_tried_is_a_report_too(trials: tuple[Trial, ...]) -> None:
    assert "max_batch_size" in replace(FOUND, trials=trials).report()

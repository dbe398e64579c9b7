"""A result as JSON, and as a flat dict of figures: the same figures as the result's own."""

from __future__ import annotations

import json
from dataclasses import fields, replace

from hypothesis import given
from strategies import tapes
from told_profiles import MIB, training

import vramkit
from vramkit.results.profile import Profile
from vramkit.tape.events import Category, Tape


@given(tapes())
def test_a_document_is_json_and_its_parts_sum_to_what_is_allocated(tape: Tape) -> None:
    result = Profile(tape=tape, notes=("A note.",))

    document = result.to_dict()

    assert json.loads(json.dumps(document, allow_nan=False)) == document
    [device] = document["devices"]
    for moment in (device["peak"], device["final"]):
        parts = sum(getattr(result.peak if moment is device["peak"] else result.final, name) for name in _parts(moment))
        assert parts + moment["slack"] == moment["allocated"]
        assert moment["allocated"] + moment["cached"] + moment["graph_pools"] == moment["reserved"]
    assert device["peak"]["allocated"] == device["peak_allocated"] == result.peak_allocated
    assert device["highest"] == {category.name: result.timeline.of(category).max(initial=0) for category in Category}
    assert [each["peak_allocated"] for each in device["steps"]] == [each.peak_allocated for each in result.steps]


def test_every_device_step_module_and_piece_of_advice_is_in_it() -> None:
    first = training().profile(reserved=200 * MIB, device_name="A Card")
    result = replace(first, others=(first,))

    document = result.to_dict()

    assert (document["kind"], len(document["devices"])) == ("Profile", 2)
    device = document["devices"][0]
    assert device["device_name"] == "A Card"
    assert [each["name"] for each in device["modules"]] == [
        each.name for root in first.by_module for each in root.walk()
    ]
    assert all(each["text"] in " ".join(first.report().split()) for each in device["advice"])
    assert device["peak"]["phase"] in {phase["phase"] for step in device["steps"] for phase in step["phases"]}


@given(tapes())
def test_metrics_are_flat_numbers_that_sum_as_the_peak_does(tape: Tape) -> None:
    metrics = Profile(tape=tape, capacity=100, outside=7).metrics()

    assert all(type(value) is int for value in metrics.values())
    above = {"cached", "graph_pools", "outside"}
    whole = sum(metrics[f"peak_{part.name}"] for part in fields(vramkit.Breakdown) if part.name not in above)
    assert whole == metrics["peak_allocated"] == tape.peak_allocated
    assert metrics["peak_used"] == tape.peak_reserved + 7


def _parts(moment: dict[str, object]) -> set[str]:
    sums = {"requested", "allocated", "reserved", "used", "slack", "cached", "graph_pools", "outside"}
    return set(moment) - sums - {"step", "phase", "module"}

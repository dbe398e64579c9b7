"""Settings are read as torch reads them, and what can't be simulated is refused with a way out."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramkit.allocator import AllocatorConf
from vramkit.allocator.conf import UNLIMITED
from vramkit.errors import UsageError

MIB = 1 << 20


def test_no_text_gives_torchs_defaults():
    assert AllocatorConf.parse("") == AllocatorConf()
    assert AllocatorConf().large_segment_size == 20 * MIB
    assert AllocatorConf().max_split_size == UNLIMITED
    assert not AllocatorConf().expandable_segments


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("max_split_size_mb:128", "max_split_size", 128 * MIB),
        ("large_segment_size_mb:12", "large_segment_size", 12 * MIB),
        ("max_non_split_rounding_mb:64", "max_non_split_rounding", 64 * MIB),
        ("garbage_collection_threshold:0.6", "garbage_collection_threshold", 0.6),
        ("expandable_segments:True", "expandable_segments", True),
        ("per_process_memory_fraction:0.5", "per_process_memory_fraction", 0.5),
        ("throw_on_cudamalloc_oom:True", "throw_on_cudamalloc_oom", True),
        ("roundup_power2_divisions:4", "roundup_power2_divisions", (4,) * 16),
        ("backend:native,expandable_segments:True", "expandable_segments", True),
        (" max_split_size_mb : 40 , garbage_collection_threshold: 0.5,", "max_split_size", 40 * MIB),
        ("max_split_size_mb:40,max_split_size_mb:50", "max_split_size", 50 * MIB),
        ("large_segment_size_mb:12,max_split_size_mb:15", "max_split_size", 15 * MIB),
        ("large_segment_size_mb:12", "max_non_split_rounding", 12 * MIB),
        ("max_split_size_mb:64,large_segment_size_mb:32", "max_non_split_rounding", 32 * MIB),
        ("max_non_split_rounding_mb:40,large_segment_size_mb:32", "max_non_split_rounding", 40 * MIB),
        ("max_split_size_mb:14,large_segment_size_mb:12", "max_split_size", 14 * MIB),
        ("garbage_collection_threshold:1e-1", "garbage_collection_threshold", 0.1),
        ("per_process_memory_fraction:5.E-1", "per_process_memory_fraction", 0.5),
        ("pinned_use_background_threads:True,max_split_size_mb:40", "max_split_size", 40 * MIB),
        ("pinned_max_cached_size_mb:-1,pinned_num_register_threads:8", "max_split_size", UNLIMITED),
    ],
)
def test_a_setting_is_read(text, field, value):
    assert getattr(AllocatorConf.parse(text), field) == value


@pytest.mark.parametrize(("version", "last"), [("2.14.1", 4), ("2.9.1", 1)])
def test_a_list_of_divisions_covers_what_it_does_not_name_as_torch_does(monkeypatch, version, last):
    """Below the first size its value, between two of them nothing; and up to 2.9 what is larger begins at the last."""
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__=version))

    conf = AllocatorConf.parse("roundup_power2_divisions:[64:8,256:4,1024:4,>:1]")

    assert conf.roundup_power2_divisions == (8, 8, 8, 8, 8, 8, 8, 0, 4, 0, last, 1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    "text",
    [
        "max_split_size_mb",
        "max_split_size_mb:",
        "max_split_size_mb:10",
        "max_split_size_mb=40",
        "max_split_size_mb:40;x:1",
        "max_split_size_mb:-1",
        "max_split_size_mb:30,large_segment_size_mb:64",
        "max_non_split_rounding_mb:25,large_segment_size_mb:64",
        "max_split_size_mb:5,max_split_size_mb:50",
        "max_split_size_mb:18446744073709551616",
        "large_segment_size_mb:10",
        "garbage_collection_threshold:0",
        "garbage_collection_threshold:1.0",
        "garbage_collection_threshold:x",
        "expandable_segments:true",
        "per_process_memory_fraction:1.5",
        "roundup_power2_divisions:3",
        "roundup_power2_divisions:0",
        "roundup_power2_divisions:[3:4]",
        "roundup_power2_divisions:[64:8",
        "roundup_power2_divisions:[64:8,,128:4]",
        "release_lock_on_cudamalloc:1",
        "pinned_num_register_threads:3",
        "pinned_num_register_threads:256",
        "pinned_reserve_segment_size_mb:0",
        "pinned_max_round_threshold_mb:x",
        ",",
    ],
)
def test_what_torch_refuses_is_refused(text):
    with pytest.raises(UsageError) as caught:
        AllocatorConf.parse(text)

    assert repr(text) in str(caught.value)


def test_an_unknown_key_gets_the_known_ones():
    with pytest.raises(UsageError, match="expandable_segments") as caught:
        AllocatorConf.parse("expandable_segment:True")

    assert "'expandable_segment'" in str(caught.value)


def test_the_drivers_own_allocator_is_refused():
    with pytest.raises(UsageError, match="backend:native"):
        AllocatorConf.parse("backend:cudaMallocAsync")


def test_settings_that_are_no_text_are_refused():
    with pytest.raises(UsageError, match="PYTORCH_CUDA_ALLOC_CONF"):
        AllocatorConf.parse(None)


def test_a_change_at_run_time_resets_what_torch_resets():
    start = AllocatorConf.parse(
        "expandable_segments:True,large_segment_size_mb:12,per_process_memory_fraction:0.5,throw_on_cudamalloc_oom:True,"
        "max_split_size_mb:64,max_non_split_rounding_mb:64,garbage_collection_threshold:0.5,roundup_power2_divisions:4"
    )

    changed = start.changed("garbage_collection_threshold:0.8")

    kept = AllocatorConf(
        expandable_segments=True,
        large_segment_size=12 * MIB,
        per_process_memory_fraction=0.5,
        throw_on_cudamalloc_oom=True,
    )
    assert changed == replace(kept, max_non_split_rounding=12 * MIB, garbage_collection_threshold=0.8)


def test_a_change_at_run_time_is_held_against_the_large_segment_in_force():
    start = AllocatorConf.parse("large_segment_size_mb:64")

    with pytest.raises(UsageError, match="at least 64"):
        start.changed("max_split_size_mb:30")


@pytest.mark.parametrize(
    ("size", "divisions", "rounded"),
    [
        (1, 0, 512),
        (511, 0, 512),
        (512, 0, 512),
        (513, 0, 1024),
        (MIB + 1, 0, MIB + 512),
        (1200, 4, 1536),  # up to 512 * divisions, divisions do not count
        (2100, 4, 2560),
        (5 * MIB, 4, 5 * MIB),
        (5 * MIB + 1, 4, 6 * MIB),
        (8 * MIB, 4, 8 * MIB),
        (5 * MIB + 1, 1, 5 * MIB + 512),
    ],
)
def test_requests_are_rounded(size, divisions, rounded):
    conf = AllocatorConf(roundup_power2_divisions=(divisions,) * 16)

    assert conf.round_size(size) == rounded


divisions = st.lists(st.sampled_from([0, 1, 2, 4, 8, 16, 32]), min_size=16, max_size=16)


@given(st.integers(1, 1 << 37), divisions)
def test_a_rounded_request_is_enough_and_wastes_less_than_a_step(size, steps):
    conf = AllocatorConf(roundup_power2_divisions=tuple(steps))

    rounded = conf.round_size(size)

    assert rounded >= size
    assert rounded - size < max(512, size)
    assert conf.round_size(rounded) == rounded


@given(st.lists(st.integers(1, 1 << 37), max_size=30), divisions)
def test_rounding_many_is_rounding_each(requests, steps):
    conf = AllocatorConf(roundup_power2_divisions=tuple(steps))

    assert conf.round_sizes(np.array(requests, np.int64)).tolist() == [conf.round_size(size) for size in requests]


@pytest.mark.parametrize(
    ("rounded", "segment"),
    [
        (512, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 512, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 512, 12 * MIB),
    ],
)
def test_segments_have_torchs_sizes(rounded, segment):
    assert AllocatorConf().segment_size(rounded) == segment


@given(st.lists(st.integers(1, 1 << 30), max_size=20), st.booleans(), st.sampled_from([UNLIMITED, 40 * MIB]))
def test_the_split_rule_for_many_is_that_for_each(requests, expandable, limit):
    conf = AllocatorConf(max_split_size=limit)
    rounded = conf.round_sizes(np.array(requests, np.int64))

    many = conf.smallest_rests(rounded, expandable=expandable)

    assert many.tolist() == [conf.smallest_rest(size, expandable=expandable) for size in rounded.tolist()]


@pytest.mark.parametrize(
    "text",
    [
        "max_split_size_mb:" + "9" * 5000,
        "roundup_power2_divisions:[" + "9" * 5000 + ":4]",
        "roundup_power2_divisions:" + "9" * 5000,
        "pinned_max_cached_size_mb:-" + "9" * 5000,
        "garbage_collection_threshold:" + "9" * 5000,
        "expandable_segments:" + "x" * 5000,
        "k" * 5000 + ":1",
        "backend:" + "\x1b[31m" * 1000,
    ],
)
def test_a_value_of_any_length_is_refused_in_a_short_and_printable_text(text):
    with pytest.raises(UsageError, match="Allocator settings were read from") as raised:
        AllocatorConf.parse(text)

    assert len(str(raised.value)) < 1000
    assert str(raised.value).isprintable()


def test_zeros_before_a_number_do_not_matter_as_torch_has_it():
    zeros = "0" * 5000

    conf = AllocatorConf.parse(f"max_split_size_mb:{zeros}128,pinned_max_cached_size_mb:-{zeros}1")

    assert conf.max_split_size == 128 * MIB

"""What would be reserved if some allocations were smaller, or gone earlier: replays, held against stories told so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from told_profiles import MIB, Story

from vramkit import CachingAllocator
from vramkit.reports.advice import advise
from vramkit.reports.edits import Edit, Peaks, Replays
from vramkit.reports.moment import moment_of
from vramkit.reports.text import report
from vramkit.results.profile import Profile
from vramkit.tape.events import Category, Phase, Tape

STEPS = 6
KEPT = 24 * MIB


def told(*, kept: int = KEPT, replaced: bool = False) -> Tape:
    """Steps that each make a tensor and keep it, or only the last one, beside what they need for a while."""
    story, last = Story(), -1
    for step in range(STEPS):
        activation = story.alloc(40 * MIB, Category.ACTIVATION, step=step)
        story.free(activation, Phase.BACKWARD, step=step)
        made = story.alloc(kept, Category.OTHER, Phase.OUTSIDE, step=step) if kept else -1
        if replaced and last >= 0:
            story.free(last, Phase.OUTSIDE, step=step)
        last = made
    return story.tape()


def recorded(tape: Tape, conf: str = "") -> Tape:
    """As torch's allocator would have recorded it."""
    return replace(CachingAllocator(conf=conf).replay(tape).tape, alloc_conf=conf)


def peaks(tape: Tape) -> Peaks:
    done = recorded(tape)
    return Peaks(allocated=done.peak_allocated, reserved=done.peak_reserved)


def test_allocations_that_are_not_made_or_smaller_or_gone_earlier_are_replayed_so() -> None:
    tape = recorded(told())
    kept = tape.allocations["category"] == Category.OTHER
    block = tape.allocations["block"].astype(np.int64)
    born = tape.allocations["born"]
    following = np.full(len(kept), len(tape.events), np.int64)
    following[np.flatnonzero(kept)[:-1]] = born[np.flatnonzero(kept)[1:]] + 1

    without = Replays(tape).edited(Edit(np.where(kept, block, 0)))
    halved = Replays(tape).edited(Edit(np.where(kept, block // 2, 0)))
    earlier = Replays(tape).edited(Edit(np.where(kept, block, 0), following))

    assert without == peaks(told(kept=0))
    assert halved == peaks(told(kept=KEPT // 2))
    assert earlier == peaks(told(replaced=True))
    assert len({each.reserved for each in (without, halved, earlier) if each}) == 3


def test_no_figure_is_given_where_the_tape_does_not_prove_it() -> None:
    tape = recorded(told())
    every = tape.allocations["block"].astype(np.int64)
    there_before = tape.allocations.copy()
    there_before["born"][0] = -1
    other = tape.events.copy()
    other["size"][other["action"] > 2] *= 2  # segments as no allocator would have asked for

    assert Replays(tape).edited(Edit(every)) is not None
    assert Replays(tape).edited(Edit(0 * every)) is None
    assert Replays(replace(tape, allocations=there_before)).edited(Edit(every)) is None
    assert Replays(replace(tape, events=other)).edited(Edit(every)) is None
    assert Replays(replace(tape, device="cpu")).edited(Edit(every)) is None


@pytest.mark.parametrize("conf", ["", "expandable_segments:True"])
def test_advice_tells_the_peaks_that_the_change_comes_to(conf: str) -> None:
    profile = Profile(tape=recorded(told(), conf))
    changed = recorded(told(replaced=True), conf)

    [found] = [each for each in advise(profile, moment_of(profile)) if "find what keeps" in each.text]

    assert found.peak_allocated == changed.peak_allocated == profile.peak_allocated - found.saves
    assert found.peak_reserved == changed.peak_reserved
    assert "edit" not in found.to_record()
    assert "[then about " in report(profile)

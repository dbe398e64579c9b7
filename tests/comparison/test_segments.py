"""What is said where reserved memory alone grew: which requests took the segments, and where the requests part."""

from __future__ import annotations

from told_profiles import HEAD, MIB, MODULES, Story

from vramkit.gate.verdicts import grown
from vramkit.results.profile import Profile
from vramkit.tape.events import Action, Category, Phase

BLOCK = next(i for i, module in enumerate(MODULES) if module.name == "Net.blocks.1")


def forward(*requests: tuple[int, int], segments: tuple[int, ...], kept: int = -1, more: int = 0) -> Profile:
    """A profile of one forward: requests of so many MiB in a module, each freed before the next, the one that is kept
    after it.

    Of each request, the segment that it took; 0: it found a free block. ``more`` bytes are alive at the peak.
    """
    story = Story()
    if more:
        story.alloc(more, Category.INPUT, Phase.OUTSIDE)
    held = -1
    for place, ((size, module), segment) in enumerate(zip(requests, segments, strict=True)):
        if segment:
            story.event(Action.SEGMENT_ALLOC, segment * MIB, Phase.FORWARD, module=module)
        row = story.alloc(size * MIB, Category.TEMPORARY, module=module)
        if place == kept:
            held = row
            continue
        story.free(row, Phase.FORWARD)
        if held >= 0:
            story.free(held, Phase.FORWARD)
            held = -1
    return story.profile()


def test_segments_are_named_by_whose_request_took_them_and_requests_by_the_first_other_one() -> None:
    before = forward((40, HEAD), segments=(40,))
    after = forward((20, BLOCK), (40, HEAD), segments=(20, 40))

    said = grown(before, after, "1%").split("\n\n")[0].splitlines()

    assert said[1:] == [
        "No more is allocated at the peak: the same takes more segments, or larger ones.",
        "  taken:  +20.0 MiB of segments for Net.blocks.* (Block): 20.0 MiB were asked for in the forward, and no "
        "free block was as large",
        "  asked:  the first request that is another one is 20.0 MiB (temporaries) in the forward of Net.blocks.1, "
        "step 1; it was 40.0 MiB (temporaries) in the forward of Net.head, step 1",
    ]


def test_what_is_kept_for_longer_is_named_where_the_same_is_asked_for() -> None:
    requests = ((10, BLOCK), (10, HEAD), (30, HEAD))
    before = forward(*requests, segments=(20, 0, 40))
    after = forward(*requests, segments=(20, 40, 40), kept=0)

    said = grown(before, after, "1%")

    assert (
        "in the same order, and kept for longer: 10.0 MiB (temporaries) in the forward of Net.blocks.1, step 1" in said
    )


def test_what_is_freed_earlier_is_no_rule_of_the_allocators() -> None:
    requests = ((10, BLOCK), (10, HEAD), (30, HEAD))
    before = forward(*requests, segments=(20, 0, 20), kept=0)
    after = forward(*requests, segments=(20, 0, 40))

    assert "in the same order, and some of it is freed earlier" in grown(before, after, "1%")


def test_a_request_that_is_gone_is_named_too() -> None:
    before = forward((10, BLOCK), (10, HEAD), segments=(20, 0))
    after = forward((10, BLOCK), segments=(40,))

    said = grown(before, after, "1%")

    assert "what was asked for is no longer, from 10.0 MiB (temporaries) in the forward of Net.head, step 1 on" in said


def test_equal_requests_in_other_segments_are_the_allocators_doing() -> None:
    before = forward((10, BLOCK), segments=(20,))
    after = forward((10, BLOCK), segments=(40,))

    assert "the same is asked for and freed in the same order: the allocator's rules or settings" in grown(
        before, after, "1%"
    )


def test_small_requests_are_named_where_the_large_ones_are_the_same() -> None:
    before = forward((40, HEAD), segments=(40,))
    after = forward((40, HEAD), segments=(60,), more=512)

    said = grown(before, after, "1%")

    assert "the first request that is another one is 512 B (inputs) between the phases" in said


def test_a_little_more_that_is_allocated_does_not_hide_the_segments() -> None:
    before = forward((40, HEAD), segments=(40,))
    after = forward((20, BLOCK), (40, HEAD), segments=(20, 40), more=512)

    said = grown(before, after, "1%")

    assert "Only 512 B more is allocated at the peak" in said
    assert "+20.0 MiB of segments for Net.blocks.*" in said

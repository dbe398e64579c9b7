"""What a report says of what the next forward of a model replaces, on profiles that are told."""

from __future__ import annotations

from collections.abc import Callable

from told_profiles import HEAD, MIB, Story

from vramkit.reports.advice import advise
from vramkit.reports.moment import moment_of
from vramkit.reports.rules.advised import Advice
from vramkit.tape.events import Action, Category, Phase

UPS = (3, 5, 7)
EVALUATION = Phase.EVALUATION


def causes(story: Story) -> list[Advice]:
    profile = story.profile()
    return [each for each in advise(profile, moment_of(profile)) if each.is_cause]


def evaluated(story: Story, forwards: int, size: Callable[[int], int], modules: tuple[int, ...] = UPS) -> None:
    """Forwards without gradients, whose layers return 16 MiB each, and keep something until they are called again."""
    kept: dict[int, int] = {}
    for number in range(forwards):
        story.begin(EVALUATION, grad=False)
        passing = -1
        for module in UPS:
            made = story.alloc(16 * MIB, Category.TEMPORARY, EVALUATION, module=module)
            if module in modules:
                own = story.alloc(size(number), Category.ACTIVATION, EVALUATION, module=module)
                if module in kept:
                    story.free(kept[module], EVALUATION, module=module)
                kept[module] = own
            if passing >= 0:
                story.free(passing, EVALUATION, module=module)
            passing = made
        result = story.alloc(160, Category.TEMPORARY, EVALUATION, module=HEAD)
        story.free(passing, EVALUATION, module=HEAD)
        story.free(result, EVALUATION)


def test_what_layers_hold_of_their_last_call_goes_when_they_have_returned() -> None:
    story = Story()
    evaluated(story, 3, lambda _: 12 * MIB)

    [found] = causes(story)

    # Three tensors of layers and one more where one replaces another; then one beside two of what layers return.
    assert found.text.startswith("drop what Net.blocks.0.up, Net.blocks.1.up and 1 other made")
    assert "36.0 MiB of each forward" in found.text
    assert found.saves == (3 + 1) * 12 * MIB - 12 * MIB


def test_what_is_larger_from_call_to_call_is_made_of_what_was_kept() -> None:
    story = Story()
    evaluated(story, 4, lambda number: (number + 1) * 12 * MIB)

    assert causes(story) == []


def test_two_layers_could_hold_something_by_chance() -> None:
    story = Story()
    evaluated(story, 3, lambda _: 12 * MIB, UPS[:2])

    assert causes(story) == []


def test_what_another_model_may_work_on_is_not_to_be_dropped() -> None:
    story, kept = Story(), list[int]()
    for _ in range(3):
        story.begin(EVALUATION, grad=False)
        made = [story.alloc(16 * MIB, Category.ACTIVATION, EVALUATION, module=module) for module in UPS]
        story.begin(EVALUATION, grad=False, module=HEAD)
        story.free(story.alloc(160, Category.TEMPORARY, EVALUATION, module=HEAD), EVALUATION, module=HEAD)
        for row in kept:
            story.free(row, EVALUATION)
        kept = made

    assert causes(story) == []


def test_an_output_that_a_variable_has_goes_before_the_next_forward() -> None:
    story, before = Story(), -1
    for _ in range(3):
        story.begin(EVALUATION, grad=False)
        passing = story.alloc(64 * MIB, Category.TEMPORARY, EVALUATION, module=UPS[0])
        output = story.alloc(160, Category.ACTIVATION, EVALUATION, module=HEAD)
        story.free(passing, EVALUATION, module=HEAD)
        probabilities = story.alloc(32 * MIB, Category.ACTIVATION, EVALUATION)
        if before >= 0:
            story.free(before, EVALUATION)
        story.free(output, EVALUATION)
        before = probabilities

    [found] = causes(story)

    assert found.text.startswith("del what Net returned, and what is made of it, before its next forward: 32.0 MiB")
    assert found.saves == 32 * MIB


def test_what_a_forward_made_that_ran_out_of_memory_is_not_told_to_be_dropped() -> None:
    story = Story()
    story.begin(Phase.FORWARD, left=True)
    for module in UPS:
        story.alloc(64 * MIB, Category.ACTIVATION, module=module)
    story.event(Action.OOM, 64 * MIB, Phase.FORWARD, module=HEAD)

    assert causes(story) == []

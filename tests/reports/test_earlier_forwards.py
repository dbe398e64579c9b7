"""What a report says of memory that earlier forwards left behind, on profiles that are told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from told_profiles import HEAD, MIB, MODULES, Story

from vramkit.reports.advice import advise
from vramkit.reports.moment import moment_of
from vramkit.reports.rules.advised import Advice
from vramkit.results.profile import Profile
from vramkit.tape.events import Action, Category, Module, Phase


def causes(profile: Profile) -> list[Advice]:
    return [each for each in advise(profile, moment_of(profile)) if each.is_cause]


def forward(story: Story, step: int, *, module: int = 0, loss: bool = True) -> list[int]:
    """A forward that keeps three tensors of 4 MiB, and its loss."""
    story.begin(Phase.FORWARD, step=step, module=module)
    kept = [story.alloc(4 * MIB, Category.ACTIVATION, module=each, step=step) for each in (3, 5, HEAD)]
    return [*kept, story.alloc(4, Category.ACTIVATION, step=step)] if loss else kept


def backward(story: Story, rows: list[int], step: int) -> None:
    for row in reversed(rows):
        story.free(row, Phase.BACKWARD, step=step)


def end_step(story: Story, step: int) -> None:
    story.begin(Phase.OPTIMIZER, step=step)


@pytest.mark.parametrize(("steps", "every"), [(3, 1), (30, 1), (30, 7)])
def test_graphs_that_no_backward_used_are_counted_and_the_last_is_not(steps: int, every: int) -> None:
    story, logged = Story(), 0
    for step in range(steps):
        if step % every == 0:
            forward(story, step)
            logged += 1
        backward(story, forward(story, step), step)
        end_step(story, step)

    [found] = causes(story.profile())

    assert found.text.startswith("keep float(loss) or loss.detach() instead of loss")
    assert f"the graphs of {logged} forwards of Net are alive" in found.text
    assert (logged - 1) * 12 * MIB <= found.saves <= logged * 12 * MIB + 512 * logged


def test_a_batch_that_a_logged_loss_is_given_too_goes_with_its_graph() -> None:
    story = Story()
    for step in range(4):
        story.alloc(4 * MIB, Category.INPUT, Phase.OUTSIDE, step=step)
        backward(story, forward(story, step), step)
        forward(story, step)
        end_step(story, step)

    [found] = causes(story.profile())

    assert "the graphs of 3 forwards of Net are alive, 36.0 MiB" in found.text
    assert found.saves // MIB == 2 * (12 + 4)  # the last one is a variable's while the next forward runs


def test_a_program_whose_backwards_use_everything_has_nothing_to_be_told() -> None:
    story = Story()
    for step in range(5):
        backward(story, forward(story, step), step)
        end_step(story, step)

    assert causes(story.profile()) == []


@pytest.mark.parametrize("grows", [False, True])
def test_backwards_that_free_nothing_hand_a_state_on_if_each_has_more_to_do(grows: bool) -> None:
    story = Story()
    for step in range(5):
        forward(story, step)
        for _ in range(1 + step * grows):
            story.free(story.alloc(MIB, Category.TEMPORARY, Phase.BACKWARD, step=step), Phase.BACKWARD, step=step)
        end_step(story, step)

    [found] = causes(story.profile())

    if grows:
        assert found.text.startswith("detach what a step hands to the next")
        # Five graphs and a backward's temporary; then two graphs, while the older one is still the variable's.
        assert found.saves // MIB == 5 * 12 + 1 - 2 * 12
    else:
        assert found.text.startswith("call backward() without retain_graph=True, and keep float(loss) instead of loss")


@pytest.mark.parametrize(("sizes", "is_known"), [((8, 8), True), ((8, 6), False)])
def test_what_backwards_make_in_the_graphs_of_earlier_steps_goes_with_these(
    sizes: tuple[int, int], is_known: bool
) -> None:
    story = Story()
    for step in range(4):
        forward(story, step)
        first, others = sizes
        made = [
            story.alloc(each * MIB, Category.TEMPORARY, Phase.BACKWARD, step=step)
            for each in (first if step == 0 else others, *[32] * step)
        ]
        for row in made:
            story.free(row, Phase.BACKWARD, step=step)
        end_step(story, step)

    [found] = causes(story.profile())

    assert found.text.startswith("detach what a step hands to the next")
    assert found.is_computed is is_known
    if is_known:  # four graphs and all temporaries; then two graphs, while the older one is still the variable's
        assert found.saves // MIB == 4 * 12 + 8 + 3 * 32 - 2 * 12


def test_inner_steps_of_one_loss_are_not_to_have_backwards_of_their_own() -> None:
    def learned(losses: int, *, weights: bool = True) -> list[Advice]:
        story = Story()
        for step in range(2):
            rows = list[int]()
            for _ in range(losses):
                for inner in (True, True, False):
                    rows += forward(story, step)
                    if inner:
                        rows += [story.alloc(MIB, Category.PARAMETER, step=step)] if weights else []
                        story.begin(Phase.BACKWARD, step=step)
                        rows.append(story.alloc(8 * MIB, Category.ACTIVATION, Phase.BACKWARD, step=step))
            story.begin(Phase.BACKWARD, step=step)
            backward(story, rows, step)
            end_step(story, step)
        return causes(story.profile())

    [one], [several] = learned(1), learned(3)

    assert one.text.startswith("take fewer inner steps")
    assert not one.is_computed
    assert not several.is_computed
    assert several.text.startswith("call backward() on each loss")
    assert "the graphs of 9 forwards of Net, and of their gradients" in several.text
    assert not learned(1, weights=False), "a loss with a penalty of gradients"


def test_the_layer_whose_output_is_kept_is_named_and_a_variables_last_value_is_no_leak() -> None:
    def kept(last_only: bool) -> list[Advice]:
        story, before = Story(), -1
        for step in range(6):
            rows = forward(story, step)
            backward(story, rows[1:], step)
            if last_only and before >= 0:
                story.free(before, Phase.BACKWARD, step=step)
            before = rows[0]
            end_step(story, step)
        story.free(story.alloc(64 * MIB, Category.TEMPORARY, step=6), Phase.FORWARD, step=6)
        return causes(story.profile())

    [found] = kept(last_only=False)

    assert found.text.startswith("keep what a hook or a list has of Net.blocks.0.up as .detach().cpu()")
    assert "6 tensors of 6 forwards, 24.0 MiB" in found.text
    assert kept(last_only=True) == []


def test_what_a_hook_keeps_of_a_forward_without_a_graph_would_go_with_that_forward() -> None:
    story = Story()
    story.begin(Phase.EVALUATION, grad=False)
    story.alloc(4 * MIB, Category.ACTIVATION, Phase.EVALUATION, module=3)
    for step in range(4):
        backward(story, forward(story, step)[1:], step)
        end_step(story, step)
    story.free(story.alloc(64 * MIB, Category.TEMPORARY, step=4), Phase.FORWARD, step=4)

    [found] = causes(story.profile())

    assert "5 tensors of 5 forwards, 20.0 MiB" in found.text
    assert found.saves // MIB == 5 * 4, "no variable has what a hook keeps"


def test_summed_losses_are_told_from_forwards_that_share_one() -> None:
    def four(with_loss: bool) -> Profile:
        story = Story()
        for step in range(2):
            rows = [row for _ in range(4) for row in forward(story, step, loss=with_loss)]
            backward(story, rows, step)
            end_step(story, step)
        return story.profile()

    [found] = causes(four(with_loss=True))

    assert found.text.startswith("call backward() on each loss")
    assert "4 forwards of Net" in found.text
    assert found.saves // MIB == 3 * 12
    assert causes(four(with_loss=False)) == []
    for with_loss in (True, False):  # without losses of their own they are twins, of one batch
        profile = four(with_loss)
        assert any("halve" in each.text for each in advise(profile, moment_of(profile))) != with_loss


def test_what_failed_before_is_held_by_its_exception_and_nothing_says_inference() -> None:
    story = Story()
    story.begin(Phase.FORWARD, left=True)
    for module in (3, 5):
        story.alloc(64 * MIB, Category.ACTIVATION, module=module)
    story.event(Action.OOM, 64 * MIB, Phase.FORWARD, module=HEAD)
    story.begin(Phase.FORWARD, step=1)
    story.alloc(16 * MIB, Category.ACTIVATION, module=3, step=1)
    story.event(Action.OOM, 16 * MIB, Phase.FORWARD, module=5, step=1)
    profile = story.profile()

    [found] = causes(profile)

    assert found.text.startswith("leave the except clause before trying again")
    assert found.saves == 128 * MIB
    assert not any("inference" in each.text for each in advise(profile, moment_of(profile)))


def test_what_an_exception_holds_is_less_from_the_next_forward_on() -> None:
    story = Story()
    story.begin(Phase.FORWARD, left=True)
    for module in (3, 5):
        story.alloc(64 * MIB, Category.ACTIVATION, module=module)
    story.event(Action.OOM, 64 * MIB, Phase.FORWARD, module=HEAD)
    for step in (1, 2):
        story.begin(Phase.FORWARD, step=step)
        story.free(story.alloc(16 * MIB, Category.ACTIVATION, module=3, step=step), Phase.BACKWARD, step=step)
    profile = story.profile()

    [found] = [each for each in causes(profile) if each.text.startswith("leave the except clause")]

    assert found.saves == 16 * MIB, "the batch that failed had reached its 128 MiB all the same"


def test_a_teacher_with_gradients_is_to_run_without() -> None:
    story, teacher = Story(), 1
    for step in range(3):
        before = forward(story, step, module=teacher)
        rows = forward(story, step)
        backward(story, rows, step)
        for row in before:
            story.free(row, Phase.OUTSIDE, step=step)
        end_step(story, step)

    [found] = causes(story.profile())

    assert found.text.startswith("run Net.blocks under torch.no_grad(): its 3 forwards made graphs")
    assert 0 < found.saves <= 12 * MIB + 512


def test_a_teacher_whose_gradients_nobody_clears_is_to_run_without() -> None:
    modules = (*MODULES, Module(name="Teacher", kind="Linear", calls=1, output_shape=(4, MIB)))
    story, teacher, own = Story(), len(MODULES), -1
    for step in range(3):
        story.begin(Phase.FORWARD, step=step, module=teacher)
        kept = [story.alloc(4 * MIB, Category.ACTIVATION, module=teacher, step=step) for _ in range(3)]
        rows = forward(story, step)
        if own >= 0:
            story.free(own, Phase.OUTSIDE, step=step)
        own = story.alloc(MIB, Category.GRADIENT, Phase.BACKWARD, module=HEAD, step=step, name="Net.head.weight")
        if step == 0:
            story.alloc(2 * MIB, Category.GRADIENT, Phase.BACKWARD, module=teacher, step=step, name="Teacher.weight")
        backward(story, [*kept, *rows], step)
        end_step(story, step)

    [found] = causes(story.profile(modules=modules))

    assert found.text.startswith("run Teacher under torch.no_grad(), if it is not to train")
    assert found.saves // MIB == 3 * 4 + 2  # nothing of it is there while Net runs, gradients neither


def test_of_a_file_without_passes_nothing_is_said_of_forwards() -> None:
    story = Story()
    for step in range(4):
        forward(story, step)
        story.free(story.alloc(MIB, Category.TEMPORARY, Phase.BACKWARD, step=step), Phase.BACKWARD, step=step)
    tape = story.tape()
    allocations = tape.allocations.copy()
    allocations["forward"] = 0

    assert causes(Profile(tape=tape))
    old = Profile(tape=replace(tape, allocations=allocations, passes=tape.passes[:0]))
    assert not any("graph" in each.text or "inference" in each.text for each in causes(old))

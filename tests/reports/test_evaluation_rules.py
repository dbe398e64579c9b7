"""What a report says of evaluation, on profiles that are told."""

from __future__ import annotations

from told_profiles import GIB, HEAD, MIB, Story, training

from vramkit.reports.advice import advise
from vramkit.reports.moment import moment_of, peaks_of
from vramkit.reports.rules.advised import Advice
from vramkit.reports.sentences import step_at
from vramkit.reports.text import report
from vramkit.results.profile import Profile
from vramkit.tape.events import Action, Category, Phase


def advice(profile: Profile) -> dict[str, Advice]:
    """What is advised, by its first words."""
    return {" ".join(each.text.split()[:3]): each for each in advise(profile, moment_of(profile), limit=99)}


def evaluated(size: int, *, fails: bool = False) -> Story:
    """A training step, whose peak is 130 MiB, and a forward without gradients that takes so much."""
    story = training()
    made = story.alloc(size, Category.TEMPORARY, Phase.EVALUATION, module=HEAD)
    if fails:
        story.event(Action.OOM, GIB, Phase.EVALUATION, module=HEAD)
    else:
        story.free(made, Phase.EVALUATION, module=HEAD)
    return story


def test_an_evaluation_above_training_needs_a_smaller_batch_and_no_figure_is_claimed() -> None:
    profile = evaluated(GIB).profile()
    training_peak, evaluation_peak = peaks_of(profile)
    assert training_peak is not None
    assert evaluation_peak is not None

    found = advice(profile)["use a smaller"]
    text = report(profile)

    assert not found.is_computed
    assert found.saves == evaluation_peak.allocated - training_peak.allocated
    assert "about" not in next(line for line in text.splitlines() if "use a smaller batch in evaluation" in line)


def test_an_evaluation_below_training_gets_no_advice_of_its_own() -> None:
    assert "use a smaller" not in advice(evaluated(MIB).profile())


def test_what_is_for_training_is_not_advised_for_evaluation() -> None:
    of_training = {"halve the batch;", "checkpoint the 3", "run the forward,"}

    assert of_training <= advice(evaluated(MIB).profile()).keys()
    for profile in (evaluated(GIB).profile(), evaluated(MIB, fails=True).profile()):
        assert not of_training & advice(profile).keys()


def test_gradients_that_were_used_are_to_be_cleared_before_evaluation() -> None:
    # 15 MiB of gradients, and the peak in training is far below.
    assert advice(evaluated(256 * MIB).profile())["call optimizer.zero_grad() before"].saves == 15 * MIB
    assert advice(evaluated(MIB, fails=True).profile())["call optimizer.zero_grad() before"].saves == 15 * MIB


def with_graphs(forwards: int, *, grad: bool = True) -> Profile:
    """A step, and forwards of evaluation, each of which keeps five activations of 1 GiB in all."""
    story = training()
    for _ in range(forwards):
        story.begin(Phase.EVALUATION, grad=grad)
        for size, module in ((128, 2), (128, 3), (256, 4), (256, 5), (256, HEAD)):
            story.alloc(size * MIB, Category.ACTIVATION, Phase.EVALUATION, module=module)
    return story.profile()


def test_graphs_of_evaluation_are_counted_and_what_a_layer_works_on_stays() -> None:
    found = advice(with_graphs(1))["evaluate Net under"]

    assert found.text == (
        "evaluate Net under torch.no_grad(): the graphs of 1 forward of Net are alive, 1.00 GiB, "
        "and no backward followed"
    )
    assert found.is_cause
    assert found.saves == 384 * MIB, "beside the largest two what the block around them was given stays"
    assert "the graphs of 2 forwards" in advice(with_graphs(2))["evaluate Net under"].text
    assert "evaluate Net under" not in advice(with_graphs(1, grad=False))


def test_the_report_says_where_training_and_where_evaluation_reached_most() -> None:
    text = " ".join(report(evaluated(GIB).profile()).split())

    assert "over 1 step," in text or "over 1 step " in text
    assert "Most memory was allocated in the evaluation of Net.head, after step 1 of 1:" in text
    assert (
        "Training reached at most 130.0 MiB (in the backward of Net.head, step 1), evaluation reached at most" in text
    )
    assert "evaluation reached" not in report(training().profile())


def test_evaluation_is_told_by_the_step_before_it() -> None:
    story = Story()
    for step in range(2):
        story.free(story.alloc(MIB, Category.TEMPORARY, Phase.EVALUATION, step=step), Phase.EVALUATION, step=step)
        story.free(story.alloc(MIB, Category.TEMPORARY, Phase.BACKWARD, step=step), Phase.BACKWARD, step=step)
    story.alloc(MIB, Category.OTHER, Phase.EVALUATION, step=1)
    profile = story.profile()

    assert [step_at(profile, event) for event in (0, 2, 4, 6, 8)] == [
        "before step 1", "step 1", "after step 1", "step 2", "after step 2",
    ]  # fmt: skip
    assert [step.step for step in profile.steps] == [0, 1]
    assert [step.end_allocated for step in profile.steps] == [0, 0], "what evaluation keeps is no step's"


def test_where_a_model_is_made_in_more_memory_than_it_trains_in_the_report_says_both() -> None:
    story = Story()
    story.free(story.alloc(GIB, Category.TEMPORARY, Phase.OUTSIDE), Phase.OUTSIDE)
    for step in range(2):
        story.free(
            story.alloc((step + 2) * MIB, Category.TEMPORARY, Phase.BACKWARD, step=step), Phase.BACKWARD, step=step
        )
    text = " ".join(report(story.profile()).split())

    assert "Most memory was allocated between the phases, before step 1 of 2:" in text
    assert "Training reached at most 3.00 MiB (in the backward, step 2)." in text


def test_what_is_kept_of_forwards_without_a_graph_is_not_taken_for_one() -> None:
    def kept(*, grad: bool) -> list[str]:
        story = Story()
        story.begin(Phase.EVALUATION, grad=grad)
        for module in (3, 5, 7):  # keys and values of earlier tokens, say
            story.alloc(64 * MIB, Category.ACTIVATION, Phase.EVALUATION, module=module)
        profile = story.profile()
        return [each.text for each in advise(profile, moment_of(profile)) if "inference_mode" in each.text]

    assert len(kept(grad=True)) == 1
    assert kept(grad=False) == []

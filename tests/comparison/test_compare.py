"""Two results compared: the rows as data on synthetic tapes, what is said of why, and one golden text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from long_tapes import long_tape
from strategies import tapes
from told_profiles import GIB, HEAD, MIB, MODULES, Story, training

import vramkit
from vramkit import MemoryResult, UsageError
from vramkit.gate.verdicts import grown
from vramkit.reports.layout import WIDTH
from vramkit.results.profile import Profile
from vramkit.tape.events import Action, Category, Module, Phase, Tape


def peak_of(*allocations: tuple[int, Category, str]) -> Profile:
    """A profile in which some named allocations are alive at once."""
    story = Story()
    for size, category, name in allocations:
        story.alloc(size, category, Phase.OUTSIDE, name=name)
    return story.profile()


def made_by(*allocations: tuple[int, int, str]) -> Profile:
    """A profile in which allocations are alive that lines of train.py made: size, line, function."""
    story = Story()
    for size, number, function in allocations:
        story.alloc(size, Category.OTHER, Phase.OUTSIDE, stack=[("/home/me/train.py", number, function)])
    return story.profile()


def renamed(modules: tuple[Module, ...], name: str) -> tuple[Module, ...]:
    """Modules of one model, which has another name."""
    return tuple(replace(module, name=name + module.name[len(modules[0].name) :]) for module in modules)


def wrapped(modules: tuple[Module, ...], wrapper: str, inside: str) -> tuple[Module, ...]:
    """Modules of one model inside a wrapper, which comes first."""
    inner = renamed(modules, f"{wrapper}.{inside}")
    return (Module(name=wrapper, kind=wrapper, calls=2), *(replace(each, parent=each.parent + 1) for each in inner))


# -- sums --------------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(tapes(), tapes())
def test_modules_and_tensors_sum_to_the_difference_of_the_categories(before: Tape, after: Tape) -> None:
    comparison = vramkit.compare(Profile(tape=before), Profile(tape=after))

    change = comparison.after.peak.requested - comparison.before.peak.requested
    assert sum(row.difference for row in comparison.modules) == change
    assert sum(row.difference for row in comparison.tensors) == change
    parts = [row for row in comparison.categories if row.name not in ("slack", "cached", "graph_pools", "outside")]
    assert sum(row.difference for row in parts) == change


@settings(max_examples=25)
@given(tapes(), tapes())
def test_the_other_way_round_every_difference_is_the_opposite(before: Tape, after: Tape) -> None:
    one, other = Profile(tape=before), Profile(tape=after)
    there, back = vramkit.compare(one, other), vramkit.compare(other, one)

    assert [row.difference for row in there.categories] == [-row.difference for row in back.categories]
    assert sorted(row.difference for row in there.tensors) == sorted(-row.difference for row in back.tensors)
    assert sum(row.before for row in there.modules) == sum(row.after for row in back.modules)


@given(tapes())
def test_a_result_is_equal_to_itself(tape: Tape) -> None:
    comparison = vramkit.compare(Profile(tape=tape), Profile(tape=tape))

    assert {row.difference for row in comparison.categories} == {0}
    assert comparison.tensors == comparison.lines == comparison.reasons == ()
    assert not comparison.exceeds("0%")
    assert "no module and no tensor changed" in comparison.report()


# -- what is the same --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "modules",
    [
        renamed(MODULES, "Other"),
        wrapped(MODULES, "OptimizedModule", "_orig_mod"),
        wrapped(MODULES, "DistributedDataParallel", "module"),
        wrapped(wrapped(MODULES, "OptimizedModule", "_orig_mod"), "DistributedDataParallel", "module"),
    ],
)
def test_a_model_that_was_renamed_or_wrapped_is_the_same(modules: tuple[Module, ...]) -> None:
    before, tape = training().profile(), training().tape()
    shift = len(modules) - len(MODULES)
    for table in (tape.events, tape.allocations):
        table["module"][table["module"] >= 0] += shift
    root = modules[shift].name
    names = tuple(name.replace("Net", root) for name in tape.names)
    after = Profile(tape=replace(tape, modules=modules, names=names))

    comparison = vramkit.compare(before, after)

    assert comparison.tensors == ()
    assert {part.difference for row in comparison.modules for part in row.parts} <= {0}


def test_a_line_that_moved_within_its_function_is_the_same_line() -> None:
    before = made_by((MIB, 31, "step"), (MIB, 50, "load"))
    after = made_by((3 * MIB, 33, "step"), (MIB, 50, "load"))

    comparison = vramkit.compare(before, after)

    [line] = comparison.lines
    assert (line.name, line.before, line.after) == ("train.py:31, now 33 in step", MIB, 3 * MIB)


def test_two_lines_of_one_function_are_not_taken_for_each_other() -> None:
    before = made_by((MIB, 31, "step"), (MIB, 32, "step"))
    after = made_by((MIB, 41, "step"), (MIB, 42, "step"))

    lines = vramkit.compare(before, after).lines

    assert sorted(line.name for line in lines) == [f"train.py:{number} in step" for number in (31, 32, 41, 42)]


def test_of_one_origin_only_what_both_do_not_have_is_left() -> None:
    sizes = ((2, 2, 5), (2, 5, 5, 7))
    stories = []
    for each in sizes:
        story = Story()
        for size in each:
            story.alloc(size * MIB, Category.ACTIVATION, module=HEAD)
        stories.append(story.profile())

    rows = vramkit.compare(*stories).tensors

    assert [(row.name, row.count_before, row.size_before, row.count_after, row.size_after) for row in rows] == [
        ("Net.head", 0, 0, 1, 7 * MIB),
        ("Net.head", 0, 0, 1, 5 * MIB),
        ("Net.head", 1, 2 * MIB, 0, 0),
    ]


def test_other_sizes_of_the_same_tensors_are_one_row() -> None:
    comparison = vramkit.compare(training().profile(), training(bytes_per_number=8).profile())

    [blocks, up] = sorted(comparison.tensors, key=lambda row: row.name)
    assert (up.name, up.count_before, up.size_before, up.count_after, up.size_after) == (
        "Net.blocks.*.up", 3, 16 * MIB, 3, 32 * MIB,
    )  # fmt: skip
    assert blocks.difference == up.difference == 48 * MIB


@settings(max_examples=25)
@given(tapes(), tapes())
def test_json_carries_every_row(before: Tape, after: Tape) -> None:
    comparison = vramkit.compare(Profile(tape=before), Profile(tape=after))

    document = comparison.to_dict()

    assert json.loads(json.dumps(document)) == document
    [device] = document["devices"]
    for name in ("categories", "modules", "lines", "tensors"):
        rows = getattr(comparison, name)
        assert [row["difference"] for row in device[name]] == [row.difference for row in rows]
    ends = [row["end_allocated"]["difference"] for row in device["steps"]]
    assert ends == [row.end_allocated.difference for row in comparison.steps]
    assert device["peak_reserved"]["after"] == comparison.peak_reserved.after


# -- devices -----------------------------------------------------------------------------------------------------------


def test_devices_are_matched_by_name_and_one_that_is_alone_is_compared_with_nothing() -> None:
    small, large = training(bytes_per_number=2), training()
    before = replace(
        small.profile(device="cuda:0"), others=(large.profile(device="cuda:1"), small.profile(device="cuda:2"))
    )
    after = replace(large.profile(device="cuda:1"), others=(large.profile(device="cuda:0"),))

    found = {each.device: each.peak_allocated for each in vramkit.compare(before, after).each_device()}

    assert found["cuda:0"].difference == large.profile().peak_allocated - small.profile().peak_allocated
    assert found["cuda:1"].difference == 0
    assert (found["cuda:2"].before, found["cuda:2"].after) == (small.profile().peak_allocated, 0)


def test_two_results_of_one_device_each_are_compared_whatever_it_is_called() -> None:
    comparison = vramkit.compare(training().profile(device="cuda:3"), training().profile(device="cuda:0"))

    assert comparison.peak_allocated.difference == 0
    assert comparison.device == "cuda:3 and cuda:0"


def test_what_is_no_result_is_told_how_to_become_one() -> None:
    with pytest.raises(UsageError, match=r"'after\.npz' was given as after.*vramkit\.load\(path\)"):
        vramkit.compare(training().profile(), "after.npz")  # type: ignore[arg-type] # on purpose


# -- limits ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, GIB), st.integers(0, 1 << 20), st.integers(0, 100))
def test_a_limit_is_exceeded_by_a_byte_more(before: int, growth: int, percent: int) -> None:
    comparison = vramkit.compare(*(Profile(tape=Story().tape(reserved=size)) for size in (before, before + growth)))

    assert comparison.exceeds(growth) is False
    assert growth == 0 or comparison.exceeds(growth - 1)
    assert comparison.exceeds(f"{percent}%") == (100 * growth > percent * before)


def test_either_peak_and_any_device_can_exceed() -> None:
    steady = training().profile(reserved=400 * MIB)
    more_reserved = training().profile(reserved=500 * MIB)
    more_allocated = training(bytes_per_number=8).profile(reserved=400 * MIB)
    second = training().profile(reserved=40 * MIB, device="cuda:1")
    more = training().profile(reserved=50 * MIB, device="cuda:1")

    for after in (more_reserved, more_allocated):
        assert vramkit.compare(steady, after).exceeds("20%")
        assert not vramkit.compare(after, steady).exceeds("20%")
    assert vramkit.compare(replace(steady, others=(second,)), replace(steady, others=(more,))).exceeds("20%")


def test_running_out_of_memory_exceeds_any_limit() -> None:
    story = training()
    story.event(Action.OOM, GIB, Phase.BACKWARD)

    survived = training()
    survived.event(Action.OOM, GIB, Phase.BACKWARD)
    survived.alloc(MIB, Category.ACTIVATION)

    assert vramkit.compare(training().profile(), story.profile()).exceeds("100%")
    assert not vramkit.compare(training().profile(), survived.profile()).exceeds("10%")
    assert not vramkit.compare(story.profile(), story.profile()).exceeds("0%")


@pytest.mark.parametrize("limit", ["2", "-2%", "%", "two%", "1e9%", "9" * 9 + "%", "", None, 2.5])
def test_a_limit_that_is_none_is_told(limit: object) -> None:
    with pytest.raises(UsageError):
        vramkit.compare(training().profile(), training().profile()).exceeds(limit)  # type: ignore[arg-type] # on purpose


# -- why ---------------------------------------------------------------------------------------------------------------


def reasons(before: MemoryResult, after: MemoryResult) -> str:
    return "\n".join(vramkit.compare(before, after).reasons)


def activations(
    *, sizes: tuple[int, ...] = (8,), blocks: int = 3, kind: str = "Block", shape: tuple[int, ...] = (4, MIB)
) -> Profile:
    """A network whose blocks keep activations of some MiB each."""
    modules = [Module(name="Net", kind="Net", calls=1), Module(name="Net.blocks", kind="ModuleList", parent=0)]
    modules += [Module(name=f"Net.blocks.{i}", kind=kind, parent=1, calls=1, output_shape=shape) for i in range(blocks)]
    inside = [Module(name=f"Net.blocks.{i}.up", kind="Linear", parent=2 + i) for i in range(blocks)]
    story = Story()
    for i in range(blocks):
        for size in sizes:
            story.alloc(size * MIB, Category.ACTIVATION, module=2 + i)
    return story.profile(modules=(*modules, *inside))


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (lambda: activations(sizes=(16,)), "3 tensors are 2 times as large"),
        (lambda: activations(sizes=(16,), shape=(8, MIB)), "it returns 8x1048576, and returned 4x1048576; 3 tensors"),
        (lambda: activations(sizes=(8, 4)), "+12.0 MiB activations in 3 x Net.blocks.*: 3 x 4.00 MiB came."),
        (lambda: activations(blocks=6), "+24.0 MiB activations in 6 x Net.blocks.*: 6 modules, and there were 3."),
        (lambda: activations(sizes=(8, 4), kind="NewBlock"), "its class is NewBlock, and was Block; 3 x 4.00 MiB came"),
    ],
)
def test_what_changed_in_modules_is_said(after: Callable[[], Profile], said: str) -> None:
    assert said in reasons(activations(), after())


def test_wider_numbers_are_told_from_larger_shapes() -> None:
    four, eight = training().profile(), training(bytes_per_number=8).profile()

    assert "has the same shape: numbers of 8 B in place of 4 B would do that" in reasons(four, eight)
    assert "same shape" not in reasons(activations(), activations(sizes=(16,), shape=(8, MIB)))


def test_larger_tensors_that_are_not_what_a_module_returns_are_no_wider_numbers() -> None:
    def gradient(size: int, category: Category) -> Profile:
        story = Story()
        story.alloc(size * MIB, category, Phase.BACKWARD, module=HEAD)
        modules = (*MODULES[:HEAD], replace(MODULES[HEAD], output_shape=(MIB,)))
        return story.profile(modules=modules)

    for before, after, category in ((4, 8, Category.TEMPORARY), (8, 16, Category.ACTIVATION)):
        said = reasons(gradient(before, category), gradient(after, category))
        assert "1 tensor is 2 times as large." in said


def test_a_recomputation_that_came_or_went_is_said() -> None:
    plain, checkpointed = training().profile(), training(recompute=True, bytes_per_number=2).profile()

    assert "its forward is run again in the backward, and was not" in reasons(plain, checkpointed)
    assert "its forward was run again in the backward, and no longer is" in reasons(checkpointed, plain)


def attending(*operators: str) -> Profile:
    """A module in whose forward each of some operators made 8 MiB."""
    story = Story()
    for operator in operators:
        story.alloc(8 * MIB, Category.ACTIVATION, module=HEAD, operator=operator)
    return story.profile()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            ["aten::_scaled_dot_product_efficient_attention"],
            ["aten::bmm", "aten::_safe_softmax"],
            "its attention kernel is math, and was efficient;",
        ),
        (["aten::mm"], ["aten::mm", "aten::_to_copy"], "its forward runs aten::_to_copy now, and did not;"),
        (["aten::mm", "aten::gelu"], ["aten::mm"], "its forward no longer runs aten::gelu;"),
        (["aten::gelu"], ["aten::mul", "aten::erf"], "its forward runs aten::mul, aten::erf now, and ran aten::gelu;"),
    ],
)
def test_other_operators_of_a_forward_are_said(before: list[str], after: list[str], said: str) -> None:
    assert said in reasons(attending(*before), attending(*after * 3))


def test_operators_that_one_recording_can_not_name_are_not_taken_for_others() -> None:
    plain = attending("aten::mm")

    for other in (
        attending("", ""),  # it knows none
        attending("aten::mm", "aten::empty"),  # what a kernel from outside of torch is called on CUDA
        attending("aten::mm", "mine::kernel"),
        attending("aten::mm", "aten::gelu (GeluBackward0)"),
    ):
        assert "forward" not in reasons(plain, other)


def test_another_torch_is_said() -> None:
    before, after = (replace(states("sum"), versions={"torch": torch}) for torch in ("2.8.0", "2.14.1"))

    assert reasons(before, after) == "torch was 2.8.0 before, and is 2.14.1."
    assert reasons(before, replace(after, versions={})) == ""


def test_a_recording_that_has_nodes_in_place_of_lines_is_compared_without_lines_of_backwards() -> None:
    def trained(*line: tuple[str, int, str], size: int = MIB) -> Profile:
        story = Story()
        story.alloc(size, Category.ACTIVATION, stack=[("/me/train.py", 7, "forward")])
        story.alloc(MIB, Category.TEMPORARY, Phase.BACKWARD, stack=[*line])
        return story.profile()

    nodes = trained(("", 0, "torch::autograd::generated::MulBackward0::apply("))
    known = trained(("/me/train.py", 7, "forward"), size=2 * MIB)

    comparison = vramkit.compare(nodes, known)

    assert [row.name for row in comparison.lines] == ["train.py:7 in forward"]
    assert [row.difference for row in comparison.lines] == [MIB]
    assert [row.category for row in comparison.tensors] == [Category.ACTIVATION]


def states(*kinds: str) -> Profile:
    sizes = [(MIB, Category.OPTIMIZER_STATE, f"{kind} of Net.head.weight") for kind in kinds]
    return peak_of((MIB, Category.PARAMETER, "Net.head.weight"), *sizes)


def test_other_states_of_the_optimizer_are_said() -> None:
    assert "Optimizers keep exp_avg, exp_avg_sq of a parameter now, and kept momentum_buffer." in reasons(
        states("momentum_buffer"), states("exp_avg", "exp_avg_sq")
    )
    assert reasons(states(), states("sum")) == "Optimizers keep sum of a parameter now, and kept nothing."
    unlabelled = peak_of((MIB, Category.OTHER, ""))
    assert "Optimizers" not in reasons(unlabelled, states("sum"))


def test_larger_inputs_are_said() -> None:
    def inputs(size: int) -> Profile:
        return peak_of((size, Category.INPUT, ""), (size // 4, Category.INPUT, ""))

    assert reasons(inputs(4 * MIB), inputs(6 * MIB)) == "Inputs are 1.5 times as large."
    assert reasons(inputs(4 * MIB), peak_of((6 * MIB, Category.INPUT, ""))) == ""


def test_a_peak_that_moved_explains_what_was_there_all_the_time() -> None:
    def program(temporary: int) -> Profile:
        story = Story()
        kept = story.alloc(10 * MIB, Category.ACTIVATION)
        story.free(kept, Phase.BACKWARD)
        story.free(story.alloc(temporary, Category.TEMPORARY, Phase.OPTIMIZER), Phase.OPTIMIZER)
        return story.profile()

    said = reasons(program(MIB), program(20 * MIB))

    assert "The peak is in the optimizer step now, and was in the forward." in said
    assert "-10.0 MiB activations at the peak is for this alone: at their highest they are 10.0 MiB in both." in said
    assert "temporaries at the peak is for this alone" not in said


def test_memory_that_grows_with_every_step_is_said() -> None:
    def steps(growth: int) -> Profile:
        story = Story()
        for step in range(8):
            story.alloc(MIB, Category.ACTIVATION, step=step)
            if not growth:
                story.free(step, Phase.BACKWARD, step=step)
        return story.profile()

    said = "Every step from the third on now ends with more than the one before, by 1.00 MiB or more."
    assert said in reasons(steps(0), steps(MIB))
    assert "Every step" not in reasons(steps(MIB), steps(0)) + reasons(peak_of(), steps(MIB))


def test_the_line_that_leaves_it_behind_is_said() -> None:
    def steps(*, kept: bool) -> Profile:
        story = Story()
        for step in range(8):
            row = story.alloc(MIB, Category.OTHER, Phase.FORWARD, step=step, stack=[("/me/train.py", 31, "step")])
            if not kept:
                story.free(row, Phase.BACKWARD, step=step)
        return story.profile()

    said = reasons(steps(kept=False), steps(kept=True))

    assert "Of what they leave until the end, 5.00 MiB were made by train.py:31 in step." in said


def test_tensors_without_a_name_are_told_apart_by_their_lines() -> None:
    before = made_by((MIB, 31, "step"), (MIB, 50, "load"))
    after = made_by((MIB, 31, "step"), (2 * MIB, 50, "load"))

    [tensor] = vramkit.compare(before, after).tensors

    assert (tensor.line, tensor.size_before, tensor.size_after) == ("train.py:50 in load", MIB, 2 * MIB)
    assert "train.py:50 in load" in vramkit.compare(before, after).report()


def test_a_tensor_that_came_is_told_with_its_operator_and_matched_without() -> None:
    def made(size: int, operator: str) -> Profile:
        story = Story()
        story.alloc(MIB, Category.ACTIVATION, module=HEAD, operator=operator)
        story.alloc(size, Category.TEMPORARY, module=HEAD, operator=operator)
        return story.profile()

    [tensor] = vramkit.compare(made(MIB, "aten::bmm"), made(2 * MIB, "aten::_flash")).tensors

    assert (tensor.category, tensor.operator) == (Category.TEMPORARY, "aten::_flash")
    assert "by aten::_flash" in vramkit.compare(made(MIB, ""), made(2 * MIB, "aten::_flash")).report()


def test_the_gate_names_what_came_before_what_only_grew_with_its_operator_and_its_line() -> None:
    def loss(*, upcast: bool) -> Profile:
        story = Story()
        width = 1 + upcast
        story.alloc(width * MIB, Category.TEMPORARY, Phase.BACKWARD, stack=[("/me/train.py", 41, "loss")])
        if upcast:
            stack = [("/me/train.py", 40, "loss")]
            story.alloc(MIB, Category.ACTIVATION, Phase.OUTSIDE, operator="aten::_to_copy", stack=stack)
        return story.profile()

    said = grown(loss(upcast=False), loss(upcast=True), "1%").splitlines()

    assert (
        "  tensor: +1.00 MiB: 1.00 MiB activations, made between the phases by aten::_to_copy at train.py:40 in loss"
        in said
    )


def test_where_only_one_has_lines_nothing_is_said_of_them() -> None:
    before, after = peak_of((MIB, Category.OTHER, "")), made_by((MIB, 31, "step"))

    comparison = vramkit.compare(before, after)

    assert comparison.lines == comparison.tensors == ()


def test_failures_and_settings_are_said() -> None:
    story = training()
    story.event(Action.OOM, GIB, Phase.BACKWARD, module=HEAD)
    after = story.profile(alloc_conf="expandable_segments:True")

    said = reasons(training().profile(), after)

    assert "After, an allocation of 1.00 GiB failed in the backward of Net.head, and that was the end" in said
    assert "(PYTORCH_CUDA_ALLOC_CONF) were not set before, and are expandable_segments:True." in said


# -- text --------------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(tapes(), tapes())
def test_a_report_fits_its_width(before: Tape, after: Tape) -> None:
    text = vramkit.compare(Profile(tape=before), Profile(tape=after)).report()

    assert max(map(len, text.splitlines())) <= WIDTH


def test_a_terminal_acts_on_nothing_in_a_report() -> None:
    bad = "\x1b[31m\n" * 40
    story = Story()
    story.alloc(MIB, Category.OTHER, Phase.OUTSIDE, name=bad, stack=[(f"{bad}.py", 3, bad)])
    story.alloc(MIB, Category.ACTIVATION, module=0, operator=bad)
    modules = (Module(name=bad, kind=bad, calls=1),)
    after = story.profile(modules=modules, device_name=bad, versions={"torch": bad}, alloc_conf=bad)

    comparison = vramkit.compare(training().profile(), after)

    for shown in (*comparison.report().split("\n"), repr(comparison)):
        assert shown.isprintable()
        assert len(shown) <= WIDTH


def test_long_tapes_are_compared() -> None:
    comparison = vramkit.compare(Profile(tape=long_tape(20_000)), Profile(tape=long_tape(19_000)))

    assert f"{100:,} steps" in comparison.report()
    assert len(comparison.steps) == 95


def test_alike_steps_are_one_line() -> None:
    def steps(size: int) -> Profile:
        story = Story()
        for step in range(5):
            row = story.alloc(size if step else MIB, Category.ACTIVATION, step=step)
            story.free(row, Phase.BACKWARD, step=step)
        return story.profile()

    text = vramkit.compare(steps(2 * MIB), steps(4 * MIB)).report()

    assert re.search(r"^  steps 2 to 5 +2\.00 MiB -> +4\.00 MiB \(\+2\.00 MiB\)", text, re.MULTILINE)
    assert "step 1 " not in text


GOLDEN = """\
vramkit: memory of cuda:0, before and after
  before: profile of A card, 1 step, peak in the backward, step 1, torch 2.13.0
  after:  profile of A card, 1 step, peak in the backward, step 1, torch 2.14.1

At the peak of allocated memory:    before         after    difference
    activations                    96.0 MiB     192.0 MiB     +96.0 MiB  +100.0%      +100,663,296 B
    parameters                     15.0 MiB      15.0 MiB             =
    gradients                      15.0 MiB      15.0 MiB             =
    inputs                         4.00 MiB      4.00 MiB             =
    rounding and unsplit slack        352 B         352 B             =
  = allocated                     130.0 MiB     226.0 MiB     +96.0 MiB   +73.8%      +100,663,296 B
  = reserved, at its own peak     400.0 MiB     500.0 MiB    +100.0 MiB   +25.0%      +104,857,600 B

Why, as far as both recordings prove it:
* torch was 2.13.0 before, and is 2.14.1.
* +48.0 MiB activations in 3 x Net.blocks.*.up: 3 tensors are 2 times as large, and what it returns
  has the same shape: numbers of 8 B in place of 4 B would do that.
* +48.0 MiB activations in 3 x Net.blocks.* itself: 3 tensors are 2 times as large, and what it
  returns has the same shape: numbers of 8 B in place of 4 B would do that.

Modules that changed most (each row is the sum of the four parts that follow):
   difference parameters grads+state activations temp.+other  module
    +48.0 MiB          -           -   +48.0 MiB           -  3 x Net.blocks.*.up (Linear)
    +48.0 MiB          -           -   +48.0 MiB           -  3 x Net.blocks.* itself (Block)

Tensors that came, went, or have another size:
    +48.0 MiB  3 x 16.0 MiB -> 3 x 32.0 MiB     activation       Net.blocks.* (forward)
    +48.0 MiB  3 x 16.0 MiB -> 3 x 32.0 MiB     activation       Net.blocks.*.up (forward)"""


def test_the_report_in_full() -> None:
    before = training().profile(reserved=400 * MIB, device_name="A card", versions={"torch": "2.13.0"})
    after = training(bytes_per_number=8).profile(reserved=500 * MIB, device_name="A card", versions={"torch": "2.14.1"})

    assert str(vramkit.compare(before, after)) == GOLDEN

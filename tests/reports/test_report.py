"""The text report: its parts as data on synthetic tapes, then one golden text."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from strategies import tapes
from told_profiles import GIB, HEAD, MIB, MODULES, Story, training

from vramkit.allocator import CachingAllocator
from vramkit.gpus.nccl import NCCL
from vramkit.reports.advice import advise
from vramkit.reports.modules import module_rows
from vramkit.reports.moment import largest_tensors, moment_of
from vramkit.reports.text import WIDTH, report
from vramkit.reports.tree import shown_name, starred_names
from vramkit.results.profile import Profile
from vramkit.tape.events import Action, Category, Module, Phase, Tape


def texts(profile: Profile) -> dict[str, int]:
    """What is advised, by its first words, with what it saves."""
    return {" ".join(each.text.split()[:3]): each.saves for each in advise(profile, moment_of(profile), limit=99)}


# -- the moment, modules and tensors ----------------------------------------------------------------------------------


@given(tapes())
def test_rows_of_modules_sum_to_everything_that_was_asked_for(tape: Tape) -> None:
    profile = Profile(tape=tape)

    for limit in (1, 2, 7):
        rows = module_rows(profile, moment_of(profile), limit=limit)
        assert sum(row.holds for row in rows) == profile.peak.requested
        assert sum(bool(row.name) for row in rows) <= limit


@given(tapes())
def test_the_largest_tensors_are_the_largest(tape: Tape) -> None:
    profile = Profile(tape=tape)
    moment = moment_of(profile)

    groups = largest_tensors(profile, moment, limit=3)

    alive = np.sort(tape.allocations["requested"][moment.alive])[::-1]
    sizes = [group.size for group in groups]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[:1] == alive[:1].tolist()
    assert all(group.count <= (alive == group.size).sum() for group in groups)


def test_a_tensor_is_told_with_the_operator_and_the_line_that_made_it() -> None:
    story = Story()
    story.alloc(2 * MIB, Category.ACTIVATION, module=HEAD, operator="aten::mm")
    line = [("/me/net.py", 42, "forward")]
    story.alloc(MIB, Category.GRADIENT, Phase.BACKWARD, name="w", operator="aten::mm (MmBackward0)", stack=line)

    text = report(story.profile())

    assert "made in the forward of Net.head by aten::mm\n" in text
    assert "by aten::mm (MmBackward0) at net.py:42 in forward\n" in text


def test_equal_blocks_are_one_row_and_weights_belong_to_their_module() -> None:
    profile = training().profile()

    rows = {row.name: row for row in module_rows(profile, moment_of(profile))}

    up = rows["Net.blocks.*.up"]
    assert (up.count, up.kind, up.calls, up.output_shape) == (3, "Linear", 2, (4, MIB))
    assert (up.parameters, up.activations) == (10 * MIB, 3 * 16 * MIB)
    assert up.kept == 10 * MIB, "its gradient was made in the backward, and is its own"
    assert rows["Net.blocks.*"].own, "the block's other activation has a row without what is inside the block"
    assert "Net" not in rows
    assert "Net.blocks" not in rows


def test_numbers_of_equal_blocks_become_stars() -> None:
    assert starred_names(MODULES)[:4] == ["Net", "Net.blocks", "Net.blocks.*", "Net.blocks.*.up"]


def numbered(stem: str, kind: str, insides: tuple[str, ...]) -> list[Module]:
    """Siblings ``stem1``, ``stem2``... of one class, each with one module of another class inside."""
    modules = [Module(name="Net", kind="Net")]
    for number, inside in enumerate(insides, 1):
        modules.append(Module(name=f"Net.{stem}{number}", kind=kind, parent=0))
        modules.append(Module(name=f"Net.{stem}{number}.0", kind=inside, parent=len(modules) - 1))
    return modules


def test_blocks_whose_names_end_in_a_number_are_equal_if_their_insides_are() -> None:
    def names(*given: Any) -> list[str]:
        return starred_names(numbered(*given))[1::2]

    assert names("layer_", "Encoder", ("Linear", "Linear")) == ["Net.layer_*"] * 2
    assert names("layer_", "Encoder", ("Linear", "Conv2d")) == ["Net.layer_1", "Net.layer_2"]
    assert names("layer", "Sequential", ("Linear", "Linear")) == ["Net.layer1", "Net.layer2"], "stages of a ResNet"


def test_shown_names_leave_out_the_compilers_wrapper_and_the_middle_of_long_ones() -> None:
    assert shown_name("Net.h.0._orig_mod.up") == "Net.h.0.up"
    assert shown_name("OptimizedModule._orig_mod") == "OptimizedModule"
    long = ".".join(f"part{i}" for i in range(20))
    for width in (18, 30, 60):
        shown = shown_name(long, width)
        assert width // 2 < len(shown) <= width
        assert shown.startswith("part0...")
        assert shown.endswith(long[-5:])
        assert shown_name(f"exp_avg of {long}", 40).startswith("exp_avg of part0...")


def test_the_moment_is_the_failure_where_there_is_one() -> None:
    story = training()
    story.event(Action.OOM, 7 * MIB, Phase.BACKWARD, module=HEAD, step=1)
    profile = story.profile()

    moment = moment_of(profile)

    assert moment.failed is not None
    assert moment.recovered == ()
    assert (moment.step, moment.phase, moment.module) == (1, Phase.BACKWARD, "Net.head")
    assert moment.breakdown == profile.final != profile.peak


def test_a_failure_that_the_program_survived_is_one_line_above_the_peak() -> None:
    story = training()
    story.event(Action.OOM, 7 * MIB, Phase.BACKWARD, module=HEAD)
    story.alloc(GIB, Category.ACTIVATION, step=1)
    profile = story.profile()

    moment = moment_of(profile)

    assert moment.failed is None
    assert [each.requested for each in moment.recovered] == [7 * MIB]
    text = " ".join(report(profile).split())
    assert "An allocation failed, of 7.00 MiB in the backward of Net.head (step 1), and the program went on" in text
    assert "OUT OF MEMORY" not in text
    assert "Most memory was allocated in the forward, step 2 of 2:" in text


# -- advice -----------------------------------------------------------------------------------------------------------


def test_what_is_advised_saves_no_more_than_there_is() -> None:
    profile = training().profile(reserved=GIB)

    assert advise(profile, moment_of(profile))
    for each in advise(profile, moment_of(profile)):
        assert 0 < each.saves < (profile.peak_reserved if each.of_reserved else profile.peak_allocated)


def test_a_change_that_only_moves_the_peak_is_credited_with_the_difference() -> None:
    story = Story()
    story.free(story.alloc(10 * MIB, Category.ACTIVATION), Phase.BACKWARD)
    story.free(story.alloc(8 * MIB, Category.TEMPORARY, Phase.OPTIMIZER), Phase.OPTIMIZER)

    # Half of the activations would be 5 MiB, but then the optimizer's step is the peak.
    assert texts(story.profile())["halve the batch"] == 2 * MIB


@pytest.mark.parametrize(
    ("gradient", "says"), [(MIB // 4, "and accumulate gradients"), (6 * MIB, "saves less"), (16 * MIB, "saves nothing")]
)
def test_gradients_of_a_first_half_are_there_beside_the_second(gradient: int, says: str) -> None:
    story = Story()
    activation = story.alloc(20 * MIB, Category.ACTIVATION)
    story.alloc(gradient, Category.GRADIENT, Phase.BACKWARD, module=HEAD)
    story.free(activation, Phase.BACKWARD)
    profile = story.profile()

    [found] = [each for each in advise(profile, moment_of(profile)) if "halve the batch" in each.text]

    # The half batch alone is 10 MiB less; accumulated, a gradient more is there when the backward makes it anew.
    assert says in found.text
    assert found.saves == 10 * MIB - (gradient if gradient < MIB else 0)


def test_checkpointing_is_advised_for_repeated_blocks_and_not_twice() -> None:
    assert "checkpoint the 3" in texts(training().profile())
    assert "checkpoint the 3" not in texts(training(recompute=True).profile())


def test_autocast_is_advised_only_for_float32() -> None:
    assert "run the forward," in texts(training(bytes_per_number=4).profile())
    assert "run the forward," not in texts(training(bytes_per_number=2).profile())


def test_the_optimizers_temporaries_count_only_where_they_make_the_peak() -> None:
    story = Story()
    story.alloc(3 * MIB, Category.PARAMETER, Phase.OUTSIDE, name="Net.head.weight")
    story.free(story.alloc(3 * MIB, Category.TEMPORARY, Phase.OPTIMIZER), Phase.OPTIMIZER)
    low = texts(story.profile())
    story.free(story.alloc(5 * MIB, Category.TEMPORARY, Phase.BACKWARD), Phase.BACKWARD)
    high = texts(story.profile())

    assert low == {"give the optimizer": 3 * MIB}
    assert "give the optimizer" not in high


def test_a_state_as_large_as_the_parameters_suggests_an_8_bit_optimizer() -> None:
    story = Story()
    story.alloc(4 * MIB, Category.PARAMETER, Phase.OUTSIDE, name="Net.head.weight")
    for kind in ("exp_avg", "exp_avg_sq"):
        story.alloc(4 * MIB, Category.OPTIMIZER_STATE, Phase.OPTIMIZER, name=f"{kind} of Net.head.weight")
    story.free(story.alloc(2 * MIB, Category.TEMPORARY, Phase.OPTIMIZER), Phase.OPTIMIZER)

    # A byte in place of four, and four bytes more for each 256; and it steps one parameter at a time.
    assert texts(story.profile())["use an 8-bit"] == (8 - 2) * MIB - 4 * (2 * MIB // 256) + 2 * MIB


def accumulated(*, optimizer_ran: bool, cleared: bool = False, fails: bool = False) -> Profile:
    """A gradient of one step, and the forward of the next."""
    tale = Story()
    tale.alloc(MIB, Category.PARAMETER, Phase.OUTSIDE, name="Net.head.weight")
    gradient = tale.alloc(MIB, Category.GRADIENT, Phase.BACKWARD, module=HEAD, name="Net.head.weight")
    if optimizer_ran:
        tale.free(tale.alloc(512, Category.TEMPORARY, Phase.OPTIMIZER), Phase.OPTIMIZER)
    if cleared:
        tale.free(gradient, Phase.OUTSIDE)
    activation = tale.alloc(4 * MIB, Category.ACTIVATION, Phase.FORWARD, step=1, module=HEAD)
    if fails:
        tale.event(Action.OOM, 9 * MIB, Phase.FORWARD, step=1, module=HEAD)
    else:
        tale.free(activation, Phase.BACKWARD, step=1, module=HEAD)
    return tale.profile()


@pytest.mark.parametrize("fails", [False, True])
def test_gradients_that_an_optimizer_has_used_are_to_be_cleared_before_the_forward(fails: bool) -> None:
    [saves] = [
        size for text, size in texts(accumulated(optimizer_ran=True, fails=fails)).items() if "zero_grad" in text
    ]

    assert saves == MIB
    assert not any("zero_grad" in text for text in texts(accumulated(optimizer_ran=True, cleared=True, fails=fails)))


@pytest.mark.parametrize("fails", [False, True])
def test_gradients_that_are_being_accumulated_are_never_to_be_cleared(fails: bool) -> None:
    profile = accumulated(optimizer_ran=False, fails=fails)

    assert not any("zero_grad" in each.text for each in advise(profile, moment_of(profile), limit=99))


WIDE_HEAD = (*MODULES[:-1], replace(MODULES[HEAD], output_shape=(4, MIB), parameters=32 * MIB))


def test_what_the_loss_makes_of_the_last_layers_output_suggests_chunks() -> None:
    story = Story()
    story.alloc(16 * MIB, Category.ACTIVATION, module=3)  # as wide, and before the last layer
    story.alloc(8 * MIB, Category.ACTIVATION, module=HEAD)
    story.alloc(16 * MIB, Category.ACTIVATION, module=0)
    story.alloc(4, Category.ACTIVATION)
    story.alloc(16 * MIB, Category.TEMPORARY, Phase.BACKWARD)

    found = texts(story.profile(modules=WIDE_HEAD))

    assert found["compute the last"] == 35 * MIB, "seven eighths of the three tensors"


def test_shifted_labels_leave_a_few_rows_out() -> None:
    modules = (*MODULES[:-1], replace(MODULES[HEAD], output_shape=(4, 256, 4096), parameters=MIB))
    story = Story()
    story.alloc(16 * MIB, Category.ACTIVATION, module=HEAD)
    story.alloc(4 * 255 * 4096 * 4, Category.ACTIVATION)
    story.free(story.alloc(MIB, Category.ACTIVATION), Phase.BACKWARD)

    assert texts(story.profile(modules=modules))["compute the last"] == (16 * MIB + 4 * 255 * 4096 * 4) * 7 // 8


def test_tensors_of_the_size_of_the_logits_alone_suggest_no_chunks() -> None:
    story = Story()
    for _ in range(3):  # such as a layer that is called again and again
        story.alloc(16 * MIB, Category.ACTIVATION, module=3)
        story.alloc(16 * MIB, Category.ACTIVATION)
    story.alloc(MIB, Category.ACTIVATION, module=HEAD)
    story.alloc(16 * MIB, Category.TEMPORARY, Phase.BACKWARD, module=HEAD)
    story.alloc(16 * MIB, Category.TEMPORARY, Phase.BACKWARD)

    modules = (*MODULES[:-1], replace(MODULES[HEAD], output_shape=(4, MIB // 16), parameters=MIB))
    assert "compute the last" not in texts(story.profile(modules=modules))


def test_an_idle_copy_of_the_model_counts_for_no_blocks() -> None:
    copy = tuple(
        replace(each, name=f"Copy{each.name[3:]}", parent=each.parent + len(MODULES) if each.parent >= 0 else -1)
        for each in MODULES
    )

    assert "checkpoint the 3" in texts(training().profile(modules=(*MODULES, *copy)))


def lengths(conf: str = "") -> Tape:
    """Steps whose sequences grow: every one needs a segment that is larger than all those before."""
    story = Story()
    for step in range(8):
        story.free(story.alloc((200 + 20 * step) * MIB, Category.ACTIVATION, step=step), Phase.BACKWARD, step=step)
    return replace(CachingAllocator(conf=conf).replay(story.tape()).tape, alloc_conf=conf)


def test_what_expandable_segments_save_is_replayed_and_comes_last() -> None:
    tape, grown = lengths(), lengths("expandable_segments:True")
    small, large = Profile(tape=tape, capacity=4 * GIB), Profile(tape=tape, capacity=80 * GIB)

    *others, last = advise(small, moment_of(small))

    assert last.of_reserved
    assert "expandable_segments:True" in last.text
    assert last.saves == tape.peak_reserved - grown.peak_reserved > GIB
    assert others
    assert not any(each.of_reserved for each in others + advise(large, moment_of(large)))
    assert not any(each.of_reserved for each in advise(Profile(tape=grown), moment_of(Profile(tape=grown))))


def convolved(*, grows: bool) -> Profile:
    """Three steps of a convolution, the first with a workspace of its own."""
    story, modules = Story(), (*MODULES[:-1], replace(MODULES[HEAD], kind="Conv2d"))
    for step in range(3):
        size = 16 + grows * step
        kept = story.alloc(size * MIB, Category.ACTIVATION, module=HEAD, step=step)
        workspace = story.alloc(
            (2 + 62 * (step == 0)) * MIB, Category.TEMPORARY, Phase.BACKWARD, module=HEAD, step=step
        )
        story.free(workspace, Phase.BACKWARD, module=HEAD, step=step)
        story.free(kept, Phase.BACKWARD, step=step)
    return story.profile(modules=modules)


def test_workspaces_that_only_the_first_step_tried_are_told_from_those_of_another_shape() -> None:
    [tried] = [size for text, size in texts(convolved(grows=False)).items() if "leave" in text]

    assert tried == (16 + 64) * MIB - (16 + 2) * MIB
    assert not any("leave" in text for text in texts(convolved(grows=True)))


def test_cached_memory_that_is_less_than_a_request_is_not_the_reason_of_a_failure() -> None:
    story = training()
    story.event(Action.OOM, GIB, Phase.BACKWARD)
    profile = story.profile(reserved=GIB, capacity=2 * GIB)

    assert not any(each.of_reserved for each in advise(profile, moment_of(profile)))


@pytest.mark.parametrize(("steps", "every"), [(8, 1), (4, 1), (40, 9)])
def test_memory_that_grows_in_every_step_or_every_nth_is_told_but_for_the_last(steps: int, every: int) -> None:
    story = Story()
    for step in range(steps):
        story.free(story.alloc(MIB, Category.TEMPORARY, step=step), Phase.FORWARD, step=step)
        if step % every == 0:
            story.alloc(MIB, Category.OTHER, Phase.OUTSIDE, step=step)
    story.free(story.alloc(2 * MIB, Category.TEMPORARY, step=steps), Phase.FORWARD, step=steps)

    assert texts(story.profile())["find what keeps"] == (len(range(0, steps, every)) - 1) * MIB


def test_what_only_the_first_steps_made_does_not_grow() -> None:
    story = Story()
    for step in range(20):
        story.free(story.alloc(MIB, Category.TEMPORARY, step=step), Phase.FORWARD, step=step)
        if step < 3:
            story.alloc(MIB, Category.OTHER, Phase.OUTSIDE, step=step)

    assert "find what keeps" not in texts(story.profile())


def test_a_forward_without_a_backward_suggests_inference_mode() -> None:
    story = Story()
    for module in (3, 5, 7):
        story.alloc(MIB, Category.ACTIVATION, module=module)

    assert texts(story.profile())["run this under"] == MIB, "what a layer is given and what it returns stay"


def first_forward(*, step: int = 0) -> Story:
    """A forward that kept a graph, after ``step`` others, and ran out of memory."""
    story = Story()
    story.alloc(MIB, Category.PARAMETER, Phase.OUTSIDE, name="Net.head.weight")
    for each in range(step + 1):
        for module in (2, 3, 4, 5):
            story.alloc(16 * MIB, Category.ACTIVATION, module=module, step=each)
    story.event(Action.OOM, 16 * MIB, Phase.FORWARD, module=6, step=step)
    return story


def test_the_first_forward_running_out_of_memory_is_taken_for_training() -> None:
    found = texts(first_forward().profile())

    assert {"halve the batch", "checkpoint the 3", "run the forward,"} <= found.keys()
    assert "run this under" not in found


def test_graphs_of_earlier_forwards_without_a_backward_suggest_inference_mode_first() -> None:
    found = texts(first_forward(step=2).profile())

    assert next(iter(found)) == "run this under"
    assert not {"halve the batch", "checkpoint the 3"} & found.keys()


@pytest.mark.parametrize(
    ("card", "kind"),
    [
        ("Tesla T4", "float16"),
        ("Tesla V100-SXM2-16GB", "float16"),
        ("NVIDIA GeForce RTX 2080 Ti", "float16"),
        ("NVIDIA A100-SXM4-40GB", "bfloat16"),
        ("NVIDIA RTX 2000 Ada Generation", "bfloat16"),
        ("NVIDIA H100 80GB HBM3", "bfloat16"),
        ("", "bfloat16"),
    ],
)
def test_autocast_is_to_what_the_card_can_do(card: str, kind: str) -> None:
    profile = training().profile(device_name=card)

    [text] = [each.text for each in advise(profile, moment_of(profile)) if "autocast" in each.text]
    assert f"torch.{kind})" in text
    assert ("GradScaler" in text) == (kind == "float16")


def test_half_of_a_batch_has_half_of_the_temporaries_but_not_of_a_weights_gradient() -> None:
    story = Story()
    story.alloc(4 * MIB, Category.PARAMETER, Phase.OUTSIDE, name="Net.head.weight")
    story.alloc(6 * MIB, Category.TEMPORARY, module=HEAD)
    story.free(story.alloc(4 * MIB, Category.TEMPORARY, Phase.BACKWARD, module=HEAD), Phase.BACKWARD)

    assert texts(story.profile())["halve the batch"] == 3 * MIB


@pytest.mark.parametrize(
    ("gradient", "indices", "saves"),
    [(6 * MIB, MIB, 1), (16 * MIB, 0, 0), (8 * MIB, 0, 0), (18 * MIB, 0, 0)],  # the last: with others, in one buffer
)
def test_a_sparse_gradient_has_the_rows_that_a_batch_uses(gradient: int, indices: int, saves: int) -> None:
    story, weight = Story(), "Net.head.weight"
    story.alloc(16 * MIB, Category.PARAMETER, Phase.OUTSIDE, name=weight)
    story.alloc(40 * MIB, Category.ACTIVATION, module=HEAD)
    for size in filter(None, (indices, gradient)):
        story.alloc(size, Category.GRADIENT, Phase.BACKWARD, module=HEAD, name=weight)

    [halved] = [size for text, size in texts(story.profile()).items() if text.startswith("halve the batch")]
    assert halved == 20 * MIB + saves * (indices + gradient) // 2


def test_a_checkpointed_block_holds_its_activations_again_during_its_backward() -> None:
    story = Story()
    rows = [story.alloc(16 * MIB, Category.ACTIVATION, module=module) for module in (3, 3, 2, 5, 5, 4)]
    story.free(story.alloc(8 * MIB, Category.TEMPORARY, Phase.BACKWARD, module=5), Phase.BACKWARD, module=5)
    for row in reversed(rows):
        story.free(row, Phase.BACKWARD, module=3)

    # Each block keeps its output of 16 MiB; the second one has its other two back when the peak comes.
    assert texts(story.profile())["checkpoint the 3"] == 2 * 16 * MIB


def test_blocks_of_a_copy_inside_the_model_that_keep_nothing_are_not_to_be_checkpointed() -> None:
    parents = [each.parent + len(MODULES) if each.parent >= 0 else 0 for each in MODULES]
    copy = [replace(each, name=f"Net.ema{each.name[3:]}", parent=up) for each, up in zip(MODULES, parents, strict=True)]

    profile = training().profile(modules=(*MODULES, *copy))

    [text] = [each.text for each in advise(profile, moment_of(profile), limit=99) if "checkpoint" in each.text]
    assert "the 3 blocks Net.blocks.* " in text


# -- the text ---------------------------------------------------------------------------------------------------------


@given(tapes())
def test_any_tape_has_a_report_of_one_screen(tape: Tape) -> None:
    lines = report(Profile(tape=tape, capacity=GIB, notes=("A note.",))).splitlines()

    assert len(lines) <= 48 + 14 * (tape.stacks is not None)
    assert [line for line in lines if len(line) > WIDTH or not line.isascii() or line != line.rstrip()] == []


def figures(text: str) -> dict[str, int]:
    """The bridge's bytes, by name."""
    lines = re.findall(r"^  [ +=] (.{28}) *\d[\d.]* [KMG]?i?B +([\d,]+) B", text, re.MULTILINE)
    return {name.strip(): int(size.replace(",", "")) for name, size in lines}


def test_the_bridges_bytes_add_up() -> None:
    shown = figures(report(training().profile(reserved=GIB, outside=400 * MIB, capacity=8 * GIB)))

    signs = {"rounding and unsplit slack", "cached: held, not allocated", "CUDA context, others"}
    sums = {"allocated", "reserved", "used on the device"}
    parts = sum(size for name, size in shown.items() if name not in signs | sums)
    assert parts + shown["rounding and unsplit slack"] == shown["allocated"]
    assert shown["allocated"] + shown["cached: held, not allocated"] == shown["reserved"]
    assert shown["reserved"] + shown["CUDA context, others"] == shown["used on the device"]


def test_what_nccl_has_is_a_part_of_what_is_beside_torchs_memory() -> None:
    asked = NCCL(communicators=2, size=300 * MIB)

    text = report(training().profile(reserved=GIB, outside=400 * MIB, nccl=asked))

    shown = figures(text)
    assert shown["of these NCCL"] == 300 * MIB
    assert shown["reserved"] + shown["CUDA context, others"] == shown["used on the device"]
    assert "2 communicators, as NCCL counts it" in text


@pytest.mark.parametrize(
    ("card", "issue"), [("NVIDIA H100 80GB HBM3", "issue 1685"), ("Another", "others saw 0.5 GB and more")]
)
def test_nccl_that_was_not_asked_has_no_figure_but_what_others_saw(card: str, issue: str) -> None:
    profile = training().profile(reserved=GIB, outside=400 * MIB, device_name=card, nccl=NCCL(communicators=2))

    text = " ".join(report(profile).split())

    assert "+ NCCL: not modelled; " in text
    assert issue in text


def test_a_failure_comes_first_with_what_was_asked_for_and_what_was_free() -> None:
    story = training()
    story.event(Action.OOM, 7 * GIB, Phase.BACKWARD, module=HEAD)

    text = report(story.profile(reserved=2 * GIB, outside=GIB, capacity=8 * GIB))

    head = " ".join(text.split("What held the memory then:")[0].split())
    assert f"OUT OF MEMORY: 7.00 GiB ({7 * GIB:,} B) were asked for in the backward of Net.head, step 1 of 1." in head
    assert "5.00 GiB of 8.00 GiB were free" in head


def test_the_cpu_has_no_bridge_above_what_tensors_hold() -> None:
    text = report(training().profile(device="cpu"))

    assert "= held by tensors" in text
    assert not any(word in text for word in ("reserved", "nvidia-smi", "CUDA context", "torch.cuda"))


@pytest.mark.parametrize("device", ["cuda:0", "cpu"])
def test_an_empty_profile_says_that_nothing_happened(device: str) -> None:
    assert f"Nothing was allocated on {device} meanwhile." in report(Story().profile(device=device))


def test_other_devices_have_a_line_each_and_one_that_failed_is_shown() -> None:
    full, other = training(), training()
    other.event(Action.OOM, GIB, Phase.FORWARD)
    second = other.profile(device="cuda:1")

    calm = report(replace(full.profile(), others=(training().profile(device="cuda:1"),)))
    failed = report(replace(full.profile(), others=(second,)))

    assert "memory of cuda:0" in calm.splitlines()[0]
    assert calm.count("\nAlso cuda:1:") == 1
    assert "memory of cuda:1" in failed.splitlines()[0]
    assert failed.count("\nAlso cuda:0:") == 1


GOLDEN = """\
vramkit: memory of A Card (cuda:0, 8.00 GiB) over 1 step, torch 2.13.0

Most memory was allocated in the backward of Net.head, step 1 of 1:
    activations                     96.0 MiB       100,663,456 B   73.8%  ###################
    parameters                      15.0 MiB        15,728,640 B   11.5%  ###
    gradients                       15.0 MiB        15,728,640 B   11.5%  ###
    inputs                          4.00 MiB         4,194,304 B    3.1%  #
    optimizer state                      0 B                 0 B    0.0%
    temporaries                          0 B                 0 B    0.0%
  + rounding and unsplit slack         352 B               352 B
  = allocated                      130.0 MiB       136,315,392 B  torch.cuda.max_memory_allocated()
  + cached: held, not allocated     30.0 MiB        31,456,768 B
  = reserved                       160.0 MiB       167,772,160 B  torch.cuda.max_memory_reserved()
  + CUDA context, others           426.0 MiB       446,693,376 B  and libraries, other processes
  = used on the device             586.0 MiB       614,465,536 B  what nvidia-smi shows, 7.2%

Modules that hold most of it (each row is the sum of the four parts that follow):
       holds parameters grads+state activations temp.+other calls  module
    68.0 MiB   10.0 MiB    10.0 MiB    48.0 MiB           -     2  3 x Net.blocks.*.up -> 4x1048576
    48.0 MiB          -           -    48.0 MiB           -     2  3 x Net.blocks.* itself (Block)
    10.0 MiB   5.00 MiB    5.00 MiB       160 B           -     2  Net.head (Linear) -> 4x10
    4.00 MiB          -           -           -    4.00 MiB        (no module, or a smaller one)

Largest tensors:
      6 x 16.0 MiB  activation        made in the forward of Net.blocks.*.up, Net.blocks.*
          10.0 MiB  parameter         Net.blocks.0.up.weight
          10.0 MiB  gradient          Net.blocks.0.up.weight
          5.00 MiB  parameter         Net.head.weight
          5.00 MiB  gradient          Net.head.weight

What would help most (each alone):
    about 50.0 MiB  halve the batch; with gradients accumulated over two it saves less, as those of
                    the first half are there beside the second
    about 32.0 MiB  checkpoint the 3 blocks Net.blocks.* (torch.utils.checkpoint)
                    run the forward, float32 now, under torch.autocast("cuda", torch.bfloat16): what
                    it saves depends on the code of its layers

Note: What could not be known.
"""


def test_the_whole_text() -> None:
    profile = training().profile(
        reserved=160 * MIB,
        device_name="A Card",
        outside=426 * MIB,
        capacity=8 * GIB,
        versions={"torch": "2.13.0"},
        notes=("What could not be known.",),
    )

    assert report(profile) == GOLDEN.rstrip("\n")

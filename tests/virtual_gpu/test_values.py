"""Values on a virtual GPU: what is computed is right, nothing else changes, and what was not computed is told."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from subprocesses import loaded_by, run_on

import vramkit
from vramkit import virtual_gpu

pytest.importorskip("torch")
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.virtual_gpu

NUMBERS = [3, 0, 2, 0, 5, 2]

ASKED: dict[str, Callable[[torch.Tensor], Any]] = {
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 1),
    "mask": lambda x: x[x > 1],
    "masked_select": lambda x: x.masked_select(x > 1),
    "item": lambda x: (x > 1).sum().item(),
    "tolist": lambda x: x.tolist(),
    "argmax": lambda x: x.argmax().item(),
    "topk": lambda x: tuple(x.float().topk(2)),
    "argsort": lambda x: x.argsort(stable=True),
    "cumsum": lambda x: x.cumsum(0),
    "cummax": lambda x: tuple(x.cummax(0)),
    "unique": lambda x: x.unique(return_inverse=True, return_counts=True),
    "unique_consecutive": lambda x: x.sort().values.unique_consecutive(return_counts=True),
    "unique of rows": lambda x: torch.stack([x, x]).T.unique(dim=0),
    "segment_reduce": lambda x: torch.segment_reduce(x.repeat_interleave(x).double(), "max", lengths=x[x > 0]),
    "repeat_interleave": lambda x: x.repeat_interleave(x),
    "bincount": lambda x: x.bincount(),
    "one_hot": lambda x: F.one_hot(x),
    "isin": lambda x: torch.isin(x, x[:2]),
    "scatter_add": lambda x: torch.zeros_like(x).scatter_add(0, x, x),
    "equal": lambda x: torch.equal(x, x.clone()),
    "any": lambda x: bool((x == 5).any()),
    "split by its values": lambda x: x.repeat_interleave(x).split(x.tolist()),
    "integers of another type": lambda x: x.to(torch.int32).max().item(),
    "searchsorted": lambda x: torch.searchsorted(x.sort().values, x),
    "pad_sequence": lambda x: torch.nn.utils.rnn.pad_sequence([x, x[x > 0]]),
}


def test_what_unique_finds_lies_where_its_kernel_wrote_it() -> None:
    x = torch.tensor(NUMBERS * 100, device="cuda")

    found = x.unique(), x.unique_consecutive(), *x.unique(return_inverse=True, return_counts=True)

    assert [each.untyped_storage().nbytes() for each in found] == [x.nbytes] * len(found)


def test_how_many_places_are_written_to_is_known_without_what_is_written() -> None:
    places = torch.tensor([NUMBERS * 1000], device="cuda")
    values = torch.empty(places.shape[1], 16, device="cuda")  # too many to be computed

    with vramkit.profile() as prof:
        count = torch.sparse_coo_tensor(places, values, (10, 16), check_invariants=False).coalesce().values().shape[0]

    assert count == len({*NUMBERS})
    assert not [note for note in prof.result.notes if "not computed" in note]


@pytest.mark.parametrize("size", [10, 1 << 20], ids=["computed", "too large"])
def test_deviations_are_taken_to_be_what_normal_wants_of_them(size: int) -> None:
    assert torch.normal(0.0, torch.rand(size, device="cuda")).shape == (size,)


def on_cpu(found: Any) -> Any:
    if isinstance(found, torch.Tensor):
        return found.cpu().tolist()
    return [on_cpu(each) for each in found] if isinstance(found, (tuple, list)) else found


@pytest.mark.parametrize("name", ASKED)
def test_what_sizes_and_answers_depend_on_is_as_on_the_cpu(name: str) -> None:
    expected = ASKED[name](torch.tensor(NUMBERS))

    found = ASKED[name](torch.tensor(NUMBERS, device="cuda"))

    assert on_cpu(found) == on_cpu(expected)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 9))
def test_masks_of_any_numbers_select_what_they_select_on_the_cpu(numbers: list[int], limit: int) -> None:
    there = torch.tensor(numbers, device="cuda")

    chosen = there[there > limit]
    there[there <= limit] = -1

    assert chosen.tolist() == [number for number in numbers if number > limit]
    assert there.tolist() == [number if number > limit else -1 for number in numbers]


def test_results_of_out_and_in_place_operators_are_written_where_they_belong() -> None:
    a = torch.arange(4.0, device="cuda")
    out = torch.empty(0, device="cuda")

    torch.add(a, 1, out=out)
    a.mul_(2).add_(out)
    a[1:3] = 0

    assert out.tolist() == [1, 2, 3, 4]
    assert a.tolist() == [1, 0, 0, 10]


def test_each_of_several_out_arguments_is_written_however_often() -> None:
    x = torch.tensor([3.0, 1.0, 2.0], device="cuda")
    values, places = torch.empty(3, device="cuda"), torch.empty(3, dtype=torch.long, device="cuda")

    for _ in range(30):
        torch.topk(x, 3, out=(values, places))
        assert (values.tolist(), places.tolist()) == ([3, 2, 1], [0, 2, 1])
        torch.sort(x, out=(values, places))
        assert (values.tolist(), places.tolist()) == ([1, 2, 3], [1, 2, 0])


def summed_bags(device: str, **how: Any) -> torch.Tensor:
    places = torch.arange(12, device=device) * 7 % 20
    offsets = torch.tensor([0, 4, 4, 9, 12], device=device)
    table = torch.linspace(-1, 1, 120, device=device).view(20, 6).sin().requires_grad_()
    bags = F.embedding_bag(places, table, offsets if how.get("include_last_offset") else offsets[:-1], **how)
    weights = torch.arange(1.0, 1 + bags.numel(), device=device).view_as(bags)
    return torch.autograd.grad((bags * weights).sum(), table)[0].to_dense()


def log_sigmoid(device: str) -> torch.Tensor:
    x = torch.linspace(-4, 4, 9, device=device, requires_grad=True)
    return torch.autograd.grad(F.logsigmoid(x).sum(), x)[0]


def sign(device: str) -> torch.Tensor:
    x = torch.linspace(-4, 4, 9, device=device, requires_grad=True)
    return torch.autograd.grad(x.sgn().sum(), x)[0]


def norm_in_evaluation(device: str) -> torch.Tensor:
    x = torch.linspace(-4, 4, 24, device=device, requires_grad=True)
    mean, variance = torch.zeros(3, device=device), torch.full((3,), 4.0, device=device)
    output, *_ = torch.native_batch_norm(x.view(2, 3, 4), None, None, mean, variance, False, 0.1, 1e-5)
    return torch.autograd.grad(output.pow(2).sum(), x)[0]


@pytest.mark.parametrize(
    "gradient",
    [
        *(partial(summed_bags, mode=mode) for mode in ("sum", "mean", "max")),
        *(partial(summed_bags, mode=mode, include_last_offset=True) for mode in ("sum", "mean", "max")),
        partial(summed_bags, mode="sum", sparse=True),
        partial(summed_bags, mode="mean", padding_idx=7),
        log_sigmoid,
        sign,  # a tensor of zeros that has no memory
        norm_in_evaluation,
    ],
)
def test_a_backward_is_as_on_the_cpu_whatever_each_forward_keeps_for_it(
    gradient: Callable[[str], torch.Tensor],
) -> None:
    assert torch.allclose(gradient("cuda").cpu(), gradient("cpu"), atol=1e-5)


def test_a_thread_of_its_own_computes_from_its_first_operator_on() -> None:
    found: list[float] = []

    thread = threading.Thread(target=lambda: found.append(torch.arange(5, device="cuda").sum().item()))
    thread.start()
    thread.join()

    assert found == [10]


def test_the_seed_decides_random_numbers_and_the_cpus_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    state = torch.cuda.get_rng_state()
    try:
        torch.cuda.manual_seed(7)
        first = [torch.rand(5, device="cuda").tolist() for _ in range(2)]
        torch.cuda.manual_seed(7)
        again = [torch.rand(5, device="cuda").tolist() for _ in range(2)]
        own = torch.rand(5, device="cuda", generator=torch.Generator("cuda").manual_seed(8)).tolist()
    finally:
        torch.cuda.set_rng_state(state)

    assert first == again
    assert first[0] != first[1] != own
    assert torch.equal(before, torch.get_rng_state())


def test_a_recomputed_dropout_drops_the_same() -> None:
    layer = torch.nn.Linear(8, 8).cuda()
    x = torch.randn(4, 8).cuda()

    def gradient(run: Callable[[torch.Tensor], torch.Tensor]) -> list[float]:
        torch.cuda.manual_seed(3)
        layer.zero_grad()
        run(x).square().sum().backward()
        assert layer.weight.grad is not None
        return layer.weight.grad.flatten().tolist()

    def run(x: torch.Tensor) -> torch.Tensor:
        return F.dropout(layer(x), 0.5)

    assert gradient(lambda x: checkpoint(run, x, use_reentrant=False)) == gradient(run)


def test_a_size_that_was_not_computed_is_told_with_operator_and_module() -> None:
    class Chooses(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[x > 0].sum()

    model = torch.nn.Sequential(Chooses())
    large = torch.empty(1 << 20, device="cuda")

    with vramkit.profile(model, device="cuda") as prof:
        model(large)

    notes = [note for note in prof.result.notes if "not computed" in note]
    assert len(notes) == 1
    assert "nonzero in Sequential.0 (1 x)." in notes[0]
    assert "--values all" in notes[0]


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda x: x[7].item(), 0.0),
        (lambda x: x.cpu().abs().max().item(), 0.0),
        (lambda x: x[x > 0].numel(), 0),
        (lambda x: x.nonzero().shape[0], 0),
        (lambda x: x.unique().shape[0], 0),
        (lambda x: x.view(-1, 2).unique(dim=0).shape[0], 0),
        (lambda x: torch.tensor([[3, 3], [0, 0], [3, 3]], device="cuda").unique(dim=0).shape[0], 2),
        (lambda x: bool((x == 1).all()), False),
        (lambda x: bool(x.isfinite().all()), True),
        (lambda x: bool(x.expand(64, -1).abs().isfinite().all()), True),
        (lambda x: x.expand(64, -1).abs().isfinite().all(dim=1)[5].item(), True),
        (lambda x: bool((x.expand(64, -1).abs() > 0).all()), False),
        (lambda x: bool((x.view(-1, 4)[:, 2:] >= x.view(-1, 4)[:, :2]).all()), True),
        (lambda x: bool((x[:4] >= x[4:8]).all() | (x[4:8] >= x[:4] + 1).any()), False),
        (lambda x: bool(x.sum().isfinite()), True),
        (lambda x: bool(x.isnan().any() | x.isinf().any() | (x != x).any()), False),
        (lambda x: x.long()[7].item(), 0),
    ],
    ids=[
        "number",
        "copy",
        "mask",
        "nonzero",
        "unique",
        "rows",
        "computed",
        "flag",
        "finite",
        "many finite",
        "finite rows",
        "many flags",
        "corners",
        "no corners",
        "number's",
        "NaN",
        "integer",
    ],
)
def test_what_was_not_computed_reads_as_zero_whatever_lay_there_before(
    read: Callable[[torch.Tensor], object], expected: object
) -> None:
    size = 1 << 20
    left = [torch.empty(count, device="cuda") for count in (size, size, size, size, *[128] * 64)]
    for each in left:
        ctypes.memset(each.data_ptr(), 0x66, each.nbytes)
    del left, each

    assert read(torch.empty(size, device="cuda") * 2) == expected


def test_ids_and_masks_are_computed_up_to_sixteen_mib_and_packed_weights_up_to_one() -> None:
    hidden = torch.ones(1 << 9, 1 << 12, dtype=torch.long)
    hidden[5, 7] = 0
    packed = torch.full((1 << 20,), 7, dtype=torch.uint8)

    mask = hidden.to("cuda").bool()

    assert (mask.sum().item() == mask.numel() - 1, bool(mask[:5].all()), mask[5, 7].item()) == (True, True, False)
    assert torch.cat([packed.cuda(), packed.cuda()]).unique().tolist() == []
    assert packed.cuda().unique().tolist() == [7]


@pytest.mark.parametrize(
    "read",
    [
        lambda large, x: x[x > 1].unique().tolist(),
        lambda large, x: large[x > 1],
        lambda large, x: large.masked_select((x > 1)[:, None]),
        lambda large, x: bool(large.sum().isnan()),
        lambda large, x: large.sum().item(),
        lambda large, x: torch.equal(large, large + 1),
        lambda large, x: F.ctc_loss(
            large.view(-1, 4, 8).log_softmax(2), x[None, :2].expand(4, 2), x[:4] + 9, x[:4] % 2
        ),
    ],
    ids=["computed", "mask of another", "masked_select", "flag", "number", "equal", "ctc_loss"],
)
def test_a_program_whose_sizes_were_computed_has_no_such_note(
    read: Callable[[torch.Tensor, torch.Tensor], object],
) -> None:
    large = torch.empty(len(NUMBERS), 1 << 16, device="cuda")

    with vramkit.profile() as prof:
        read(large, torch.tensor(NUMBERS, device="cuda"))

    assert not [note for note in prof.result.notes if "not computed" in note]


def test_a_whole_number_that_was_not_computed_is_told_as_one() -> None:
    large = torch.empty(1 << 20, device="cuda")

    with vramkit.profile() as prof:
        (large > 0).sum().item()

    (note,) = [note for note in prof.result.notes if "not computed" in note]
    assert note.startswith("Whole numbers")
    assert "item() (1 x)" in note


def test_a_routers_choices_that_were_not_computed_go_round_evenly() -> None:
    experts, tokens = 8, 1024
    scores = torch.empty(tokens, 64, device="cuda") @ torch.empty(64, experts, device="cuda")

    chosen = scores.topk(2).indices

    assert chosen.flatten().bincount(minlength=experts).tolist() == [2 * tokens // experts] * experts


_LOSSES = """
import torch, valued_programs
types = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
result = {
    f"{name} {kind}": [valued_programs.train(name, device, dtype) for device in ("cuda", "cpu")]
    for name in valued_programs.PROGRAMS for kind, dtype in types.items() if kind != "float16"
}
"""


def test_with_all_values_programs_train_as_on_the_cpu() -> None:
    losses = run_on("a100-40gb", _LOSSES, values="all")

    for name, (there, here) in losses.items():
        tolerance = 1e-4 if name.endswith("float32") else 2e-2
        assert there == pytest.approx(here, rel=tolerance), name
        assert there[-1] < there[0]


_EVENTS = """
import torch, valued_programs
torch.cuda.memory._record_memory_history("all", context=None, stacks="python", max_entries=1_000_000)
result = {}
for name in valued_programs.PROGRAMS:
    for kind, dtype in {"float32": None, "bfloat16": torch.bfloat16}.items():
        begin = len(torch.cuda.memory._snapshot()["device_traces"][0])
        valued_programs.train(name, "cuda", dtype)
        trace = torch.cuda.memory._snapshot()["device_traces"][0][begin:]
        events = [(entry["action"], entry["size"]) for entry in trace]
        # Autocast drops its copies in the order of where they lie on the host, which is another one in each process.
        result[f"{name} {kind}"] = sorted(events) if dtype else events
"""


def test_not_one_allocator_event_changes_by_it() -> None:
    events = {values: run_on("a100-40gb", _EVENTS, values=values) for values in ("none", "small", "all")}

    assert events["none"] == events["small"] == events["all"]
    assert all(len(each) > 100 for each in events["none"].values())


_WORKLOADS = """
import torch
from workloads import WORKLOADS
result = {}
for name, make in WORKLOADS.items():
    torch.cuda.memory._record_memory_history("all", context=None, stacks="python", max_entries=1_000_000)
    workload = make()
    for _ in range(2):
        workload.step()
    trace = torch.cuda.memory._snapshot()["device_traces"][0]
    events = [[entry["action"], entry["size"], entry["addr"]] for entry in trace]
    result[name] = sorted(each[:2] for each in events) if "autocast" in name else events
    del workload
    torch.cuda.memory._record_memory_history(None)
    torch.cuda.empty_cache()
"""


def test_small_values_change_no_event_of_larger_programs_either() -> None:
    assert run_on("a100-80gb", _WORKLOADS, values="small") == run_on("a100-80gb", _WORKLOADS, values="none")


_LARGE = """
import torch
from workloads import GPT
with torch.device("meta"):
    model = GPT(layers=80, width=8192, heads=64, vocabulary=32000, length=128)
model.to_empty(device="cuda")
optimizer = torch.optim.AdamW(model.parameters())
model(torch.zeros(1, 128, dtype=torch.long, device="cuda")).sum().backward()
optimizer.step()
parameters = sum(parameter.nbytes for parameter in model.parameters())
with open("/proc/self/status") as file:  # getrusage() counts what the parent had at the fork, too
    here = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))
result = [parameters, torch.cuda.max_memory_allocated(), here]
"""


def test_a_model_of_65_billion_parameters_takes_next_to_no_memory_here() -> None:
    parameters, allocated, here = run_on("2 TiB", _LARGE)

    assert parameters > 4 * 64e9
    assert allocated > 4 * parameters
    assert here < parameters / 100


def test_what_computes_values_loads_no_torch_by_itself() -> None:
    code = "from vramkit import virtual_gpu; virtual_gpu.activate('t4', values='all')"

    assert "torch" not in loaded_by(code)


def test_without_values_everything_reads_as_zero() -> None:
    code = "import torch; result = (torch.tensor([3, 0, 2], device='cuda') > 0).sum().item()"

    assert run_on("t4", code, values="none") == 0
    assert run_on("t4", code, values="small") == 2


def test_a_kind_of_values_that_there_is_not_is_refused() -> None:
    with pytest.raises(vramkit.UsageError, match="Give 'none', 'small' or 'all'"):
        virtual_gpu.activate("t4", values="some")  # type: ignore[arg-type]


def test_attention_with_dropout_has_a_backward_that_drops_the_same() -> None:
    torch.cuda.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 8, 16).cuda().requires_grad_() for _ in range(3))

    output = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    output.sum().backward()

    # The output is linear in v: its gradient says what was kept.
    assert v.grad is not None
    assert math.isclose((v.grad * v.detach()).sum().item(), output.sum().item(), rel_tol=1e-4)


_CHILD = """
import torch
print("FOUND", (torch.tensor([3, 0, 2], device="cuda") > 0).sum().item(), "vramkit" in vars())
"""


def test_a_child_that_never_asked_for_vramkit_computes_as_its_parent_does() -> None:
    code = f"""
    import subprocess, sys
    virtual_gpu.activate("t4", children=True)
    result = subprocess.run([sys.executable, "-c", {_CHILD!r}], capture_output=True, text=True).stdout
    """

    assert run_on("t4", code).split() == ["FOUND", "2", "False"]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_operators_that_take_functions_run() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    q = torch.zeros(1, 1, 64, 16, device="cuda")
    output = flex_attention(q, q, torch.ones_like(q), score_mod=lambda score, *_: score)

    assert output.shape == q.shape
    assert bool((output == 1).all())


def test_a_distributions_check_of_what_was_not_computed_says_yes_and_of_what_was_the_truth() -> None:
    made = torch.randn(256, 256, device="cuda") @ torch.randn(256, 4, device="cuda")  # too large: not computed

    chosen = torch.distributions.Categorical(logits=made, validate_args=True)
    assert chosen.log_prob(chosen.sample()).shape == (256,)
    torch.distributions.Normal(made, made.exp(), validate_args=True).log_prob(made)

    with pytest.raises(ValueError, match="found invalid values"):
        torch.distributions.Normal(0.0, torch.tensor([1.0, -1.0], device="cuda"), validate_args=True)
    assert [bool((made > 1).all()), bool((made <= 1).all())] == [False, False], "what is no check reads as zero"

"""``vramkit.estimate`` with the fake engine: what it predicts, what it leaves alone, what it says where it can't."""

from __future__ import annotations

import copy
import gc
import importlib
import random
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import predicted_programs
import pytest
import torch
import torch.nn.functional as F
from predicted_programs import class_loss, small_gpt
from subprocesses import run_python
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributions import Distribution, Normal
from torch.utils.checkpoint import checkpoint
from workloads import ADAGRAD, tokens

import vramkit
from vramkit import closed_form
from vramkit.devtools.tapediff import differences
from vramkit.engines import Run
from vramkit.engines.fake.recorder import Recorder
from vramkit.engines.fake.session import open_session
from vramkit.engines.virtual import session
from vramkit.errors import DeviceError, UsageError
from vramkit.programs import settings
from vramkit.programs.arguments import program_of
from vramkit.tape.events import Category, Phase


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def fake(model: nn.Module | None = None, batch: Any = None, **more: Any) -> vramkit.Estimate:
    """A small prediction by the fake engine."""
    model = mlp() if model is None else model
    batch = torch.zeros(8, 64) if batch is None else batch
    return vramkit.estimate(model, batch, engine="fake", **{"gpu": "a100-80gb", **more})


def total(estimate: vramkit.Estimate, category: Category) -> int:
    """Bytes that were asked for, at the end, of a category."""
    table = estimate.tape.allocations
    return int(table["requested"][(table["category"] == category) & (table["died"] < 0)].sum())


# -- against the virtual engine, which equals a fresh process ----------------------------------------------------------


def imitated(program: dict[str, Any], gpu: str = "a100-80gb") -> tuple[vramkit.Estimate, Run, Recorder]:
    """What the virtual engine predicts of a program, what the fake one does, and what that one recorded."""
    real = vramkit.estimate(**program, gpu=gpu, engine="virtual")
    arguments = {"optimizer": None, "step": None, "loss": None, "autocast": None, **program}
    session = open_session(program_of("A test called", **arguments, steps=3), None)
    return real, *session.record(real.gpu, real.batch_size)


class OneOfEach(nn.Module):
    """Operators whose kernels take memory of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 64)
        self.layer = nn.TransformerEncoderLayer(64, 4, batch_first=True)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.norm = nn.GroupNorm(8, 128)
        self.head = nn.Linear(64, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(self.embedding(x))
        x = self.attention(x, x, x)[0].softmax(1) + self.norm(x)
        x = F.layer_norm(x.transpose(0, 1), (64,)).transpose(0, 1)
        return self.head(x) * x.std() + x.mean((0, 1)).sum() + x.gather(2, torch.zeros_like(x, dtype=torch.long)).sum()


PROGRAMS: dict[str, Callable[[], dict[str, Any]]] = {
    **{
        name: predicted_programs.PROGRAMS[name]
        for name in (
            "gpt fp16, scaler, clipping", "gpt accumulating", "lstm", "gru", "sgd", "adamw, fused", "adafactor",
            "adagrad", "gradient penalty",
        )
    },
    "one of each": lambda: {
        "model": OneOfEach(), "batch": tokens(32, 128)(), "optimizer": torch.optim.AdamW, "loss": class_loss,
    },
    "checkpointed, dropout, bf16": lambda: {
        "model": small_gpt(checkpointed="reentrant", dropout=0.1), "batch": tokens(4, 256)(),
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, foreach=False), "loss": class_loss,
        "autocast": torch.bfloat16,
    },
}  # fmt: skip


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("name", PROGRAMS)
def test_beside_a_cuda_device_fakes_ask_for_what_the_real_program_asks_for(name: str) -> None:
    real, run, recorder = imitated(PROGRAMS[name]())

    assert run.profile is not None
    assert differences(real.tape, run.profile.tape, recorder.operators) == {}
    assert (run.peak_allocated, run.peak_reserved) == (real.peak_allocated, real.peak_reserved)


def second_derivatives() -> dict[str, Any]:
    """A network that solves a differential equation: three backwards, one through the others."""
    model = nn.Sequential(nn.Linear(2, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 1))

    def step(batch: torch.Tensor) -> None:
        x = batch.to("cuda").requires_grad_()
        u = model(x)
        (slope,) = torch.autograd.grad(u, x, torch.ones_like(u), create_graph=True)
        (bend,) = torch.autograd.grad(slope[:, 1:], x, torch.ones_like(u), create_graph=True)
        (slope[:, :1] + u * slope[:, 1:] - 0.01 * bend[:, 1:]).pow(2).mean().backward()
        model.zero_grad()

    return {"model": model, "batch": torch.zeros(2000, 2), "step": step}


@pytest.mark.virtual_gpu
def test_what_was_computed_before_does_not_change_the_order_of_a_backward() -> None:
    x = torch.ones((), requires_grad=True)
    nodes = [x * 1 for _ in range(3000)]  # autograd's count of this thread's nodes goes on

    estimates = [imitated(second_derivatives()) for _ in range(2)]

    assert len(nodes) == 3000
    for real, run, recorder in estimates:
        assert run.profile is not None
        assert differences(real.tape, run.profile.tape, recorder.operators) == {}


def grown(batch: torch.Tensor) -> None:
    """Storages that get more memory after they were made."""
    x = batch.cuda()
    result = torch.empty(0, device="cuda")
    torch.add(x, x, out=result)
    torch.empty(0, device="cuda").resize_(1000).resize_(1_000_000)


def conjugated(batch: torch.Tensor) -> None:
    """Views that differ from what they look at by a bit alone."""
    z = torch.complex(batch.cuda(), batch.cuda())
    for _ in range(2):  # the second time, results are remembered
        assert (z.conj().resolve_conj() + z.conj().imag.resolve_neg()).numel() == z.numel()


def mapped(batch: torch.Tensor) -> None:
    """A layer for each row: its bias has a dimension more than what it is added to."""
    layer = torch.nn.Linear(256, 64).cuda()
    torch.func.vmap(lambda x: layer(x[None]))(batch.cuda())
    batch.cuda() + batch.cuda()


def offloaded(batch: torch.Tensor) -> None:
    """What is kept for the backward, on the host."""
    x = batch.cuda().requires_grad_()
    with torch.autograd.graph.save_on_cpu(pin_memory=True):
        y = (x * x).sin()
    y.sum().backward()


def deep_copied(batch: torch.Tensor) -> None:
    """Modules with gradients, a layer whose weight is part of a larger storage, an optimizer's state, and a buffer."""
    x, whole = batch.cuda(), torch.zeros(2, 256, 256, device="cuda")
    layer, norm = nn.Linear(256, 256).cuda(), nn.BatchNorm1d(256).cuda()
    layer.weight = nn.Parameter(whole[1])
    optimizer = torch.optim.Adam([*layer.parameters(), *norm.parameters()])
    norm(layer(x)).square().sum().backward()
    optimizer.step()
    again = copy.deepcopy(nn.Sequential(layer, norm))
    kept = copy.deepcopy([optimizer, layer.state_dict(), whole[0], whole[1]])
    again(x).square().sum().backward()
    assert again[0].weight.grad is not None
    assert kept[2].untyped_storage()._cdata == kept[3].untyped_storage()._cdata


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("step", [grown, conjugated, mapped, offloaded, deep_copied])
def test_storages_that_grow_bits_that_are_set_and_the_like_cost_what_they_cost(
    step: Callable[[torch.Tensor], None],
) -> None:
    model, batch = mlp(), torch.zeros(1024, 256)

    def with_the_model(batch: torch.Tensor) -> None:
        model(batch[:, :64].to("cuda"))
        step(batch)

    real, run, recorder = imitated({"model": model, "batch": batch, "step": with_the_model})

    assert run.profile is not None
    assert differences(real.tape, run.profile.tape, recorder.operators) == {}
    assert run.peak_allocated == real.peak_allocated > 2 * batch.nbytes


@pytest.mark.virtual_gpu
@pytest.mark.parametrize(
    ("words", "width", "dtype"),
    [(300, 64, torch.float32), (300, 1536, torch.float32), (431, 96, torch.bfloat16), (432, 96, torch.float64)],
)
def test_gradients_of_few_words_take_no_rows_of_parts(words: int, width: int, dtype: torch.dtype) -> None:
    model = nn.Embedding(words, width, dtype=dtype)

    real, run, recorder = imitated({"model": model, "batch": torch.zeros(16, 1024, dtype=torch.long)})

    assert run.profile is not None
    assert differences(real.tape, run.profile.tape, recorder.operators) == {}


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_in_inference_mode_fakes_ask_for_what_the_real_program_asks_for(autocast: torch.dtype | None) -> None:
    program = {"model": small_gpt(), "batch": tokens(4, 256)()[:1], "autocast": autocast}

    with torch.inference_mode():
        real, run, recorder = imitated(program)

    assert run.profile is not None
    assert differences(real.tape, run.profile.tape, recorder.operators) == {}
    assert (run.peak_allocated, run.peak_reserved) == (real.peak_allocated, real.peak_reserved)


class Padded(nn.Module):
    """An encoder of sequences that are padded."""

    def __init__(self, **more: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, **more)

    def forward(self, tokens: torch.Tensor, hidden: torch.Tensor | None = None) -> torch.Tensor:
        return self.encoder(tokens, src_key_padding_mask=hidden)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference_with_transformers_is_predicted_without_a_bound(mode: Callable[[], Any]) -> None:
    with mode():
        estimate = fake(Padded().eval(), torch.zeros(8, 32, 64))

    assert estimate.notes == ()


def test_what_only_a_padding_masks_values_decide_is_told() -> None:
    batch = torch.zeros(8, 32, 64), torch.zeros(8, 32, dtype=torch.bool)

    with torch.no_grad():
        estimate = fake(Padded().eval(), batch)
        with pytest.raises(UsageError, match="_nested_tensor_from_mask") as raised:
            fake(Padded(mask_check=False).eval(), batch)

    assert len(estimate.notes) == 1
    assert "enable_nested_tensor=False" in estimate.notes[0]
    assert 'engine="virtual"' in str(raised.value)


@pytest.mark.parametrize("loss", [F.multi_margin_loss, F.multilabel_margin_loss])
def test_margin_losses_of_which_torch_has_no_fakes_are_predicted_on_any_machine(loss: Callable[..., Any]) -> None:
    shape = (8, 10) if loss is F.multilabel_margin_loss else (8,)
    batch = torch.zeros(8, 64), torch.zeros(shape, dtype=torch.long)

    estimate = fake(mlp(), batch, loss=lambda output, batch: loss(output, batch[1]))

    assert estimate.notes == ()


def test_a_copy_of_a_model_takes_what_the_model_takes() -> None:
    model = mlp()

    copying = fake(model, step=lambda batch: copy.deepcopy(model))

    held = sum(-(-tensor.nbytes // 512) * 512 for tensor in model.parameters())
    assert copying.peak_allocated == 2 * held


def test_a_default_device_counts_without_cuda_too() -> None:
    code = """
    import torch, vramkit
    model = torch.nn.Linear(64, 64)
    batch = torch.zeros(8, 64)

    def step(batch):
        made = torch.zeros(1 << 20)
        assert made.device.type == where
        model(batch.to("cuda")).sum().backward()

    for where in ("cpu", "cuda"):
        with torch.device(where):
            print(vramkit.estimate(model, batch, step=step, gpu="t4", engine="fake").peak_allocated)
    assert not torch.cuda.is_initialized()
    """

    without, with_it = map(int, run_python(textwrap.dedent(code)).split())

    assert with_it - without >= 4 << 20


def functional() -> dict[str, Any]:
    """A program with a gradient by a transform of ``torch.func``."""
    model = mlp()

    def step(batch: torch.Tensor) -> None:
        assert torch.func.grad(lambda x: model(x).sum())(batch.to("cuda")).shape == batch.shape

    return {"model": model, "batch": torch.zeros(512, 64), "step": step}


def requests(estimate: vramkit.Profile | vramkit.Estimate) -> list[int]:
    """Bytes of everything that was asked for. When a graph goes, the device's thread decides."""
    return sorted(estimate.tape.allocations["requested"].tolist())


@pytest.mark.virtual_gpu
def test_a_graph_that_the_devices_thread_still_holds_is_waited_for() -> None:
    program = functional()
    real = vramkit.estimate(**program, gpu="a100-80gb", engine="virtual", steps=1)
    stop = threading.Event()
    busy = [threading.Thread(target=lambda: [sum(range(10_000)) for _ in iter(stop.is_set, True)]) for _ in range(3)]
    for each in busy:
        each.start()
    try:
        found = [fake(**program, steps=1) for _ in range(12)]
    finally:
        stop.set()
        for each in busy:
            each.join()

    for each in found:
        assert (each.peak_allocated, each.peak_reserved) == (real.peak_allocated, real.peak_reserved)
        assert requests(each) == requests(real)


@pytest.mark.virtual_gpu
def test_a_transform_of_a_function_asks_for_what_it_asks_for() -> None:
    real, run, _ = imitated(functional())

    assert run.profile is not None
    assert requests(run.profile) == requests(real)


def test_a_step_may_use_transforms_of_functions() -> None:
    estimate = fake(**functional())

    assert estimate.final.parameters == sum(each.nbytes for each in mlp().parameters())
    assert estimate.peak.gradients == 0  # the gradient is the input's, which is no parameter
    assert total(estimate, Category.WORKSPACE) == 2 * 8_519_680  # the backward multiplies, too
    assert requests(estimate).count(512 * 64 * 4) == 3 * 2  # in each step the batch, and its gradient


class OwnNet(nn.Module):
    """A class that goes by value, with the module of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_classes_of_the_program_stay_as_they_are_and_schedulers_are_copied() -> None:
    forward = OwnNet.forward
    model = OwnNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)

    def step(batch: torch.Tensor) -> None:
        optimizer.zero_grad()
        model(batch.to("cuda")).sum().backward()
        optimizer.step()
        scheduler.step()

    estimate = fake(model, optimizer=optimizer, step=step)

    assert total(estimate, Category.PARAMETER) == (64 * 10 + 10) * 4
    assert OwnNet.forward is forward
    assert scheduler.last_epoch == 0


@pytest.mark.virtual_gpu
def test_what_is_predicted_belongs_to_the_same_categories_and_modules() -> None:
    real, run, _ = imitated(PROGRAMS["sgd"]())

    assert run.profile is not None
    assert run.profile.peak == real.peak
    assert run.profile.tape.modules == real.tape.modules


@pytest.mark.virtual_gpu
@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        *(("a100-80gb", name) for name in ("u-net", "conv1d", "frozen backbone")),
        *(("h100", name) for name in ("resnet18", "conv1d", "u-net")),
        ("t4", "u-net"),
    ],
)
def test_convolutions_are_within_two_and_five_percent(gpu: str, name: str) -> None:
    program = predicted_programs.PROGRAMS[name]()

    real, run, _ = imitated(program, gpu)

    assert run.peak_allocated == pytest.approx(real.peak_allocated, rel=0.02)
    assert run.peak_reserved == pytest.approx(real.peak_reserved, rel=0.05)
    assert any("cuDNN's workspaces" in note for note in run.notes)


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["cudnn", "torch's own kernel"])
def test_on_a_t4_nothing_is_copied_for_a_convolution(autocast: torch.dtype | None) -> None:
    program = {**predicted_programs.PROGRAMS["conv1d"](), "autocast": autocast}

    real, run, _ = imitated(program, "t4")

    assert run.peak_allocated == pytest.approx(real.peak_allocated, rel=1e-3)
    assert run.peak_reserved == real.peak_reserved


# -- in any process ----------------------------------------------------------------------------------------------------


def test_parameters_gradients_and_states_are_those_of_the_model() -> None:
    model = mlp()
    size = sum(parameter.numel() * 4 for parameter in model.parameters())

    def step(batch: torch.Tensor) -> None:
        optimizer.zero_grad()
        model(batch.to("cuda")).sum().backward()
        optimizer.step()

    optimizer = torch.optim.AdamW(model.parameters())
    estimate = fake(model, optimizer=optimizer, step=step)

    assert estimate.engine == "fake"
    assert total(estimate, Category.PARAMETER) == size
    assert total(estimate, Category.GRADIENT) == size
    assert total(estimate, Category.OPTIMIZER_STATE) == 2 * size


@pytest.mark.parametrize("kind", [torch.optim.AdamW, ADAGRAD])
def test_an_optimizer_and_what_makes_it_come_to_the_same(kind: Callable[..., torch.optim.Optimizer]) -> None:
    model = mlp()

    made, factory = fake(model, optimizer=kind(model.parameters())), fake(model, optimizer=kind)

    assert (made.peak_allocated, made.peak_reserved) == (factory.peak_allocated, factory.peak_reserved)
    assert made.final == factory.final
    assert factory.final.optimizer_state == closed_form.optimizer_state(kind, model)


@pytest.mark.parametrize(("gpu", "size"), [("a100-80gb", 8_519_680), ("h100", 33_554_432), ("b200", 33_554_432)])
def test_each_thread_that_multiplies_has_a_workspace_of_the_cards_size(gpu: str, size: int) -> None:
    with torch.no_grad():
        forward = fake(gpu=gpu)
    both = fake(gpu=gpu)

    assert total(forward, Category.WORKSPACE) == size
    assert total(both, Category.WORKSPACE) == 2 * size


@pytest.mark.virtual_gpu
def test_layers_with_parametrizations_ask_for_what_the_real_ones_ask_for() -> None:
    real, run, recorder = imitated(predicted_programs.parametrized())

    assert run.profile is not None
    assert differences(real.tape, run.profile.tape, recorder.operators) == {}


def test_a_copy_that_a_step_makes_of_its_model_costs_what_another_model_costs() -> None:
    model, other = mlp(), mlp()

    def step_of(target: Callable[[], nn.Module]) -> Callable[[torch.Tensor], None]:
        def step(batch: torch.Tensor) -> None:
            module = target()
            F.mse_loss(module(batch.to("cuda")), model(batch.to("cuda"))).backward()
            module.zero_grad()

        return step

    copied = fake(model, step=step_of(lambda: copy.deepcopy(model)))
    there = fake([model, other], step=step_of(lambda: other))

    assert copied.peak_allocated == there.peak_allocated


def test_an_optimizer_that_is_there_costs_what_one_that_is_made_costs() -> None:
    model = mlp()

    for make in (torch.optim.Adafactor, torch.optim.Adagrad, torch.optim.NAdam):
        assert fake(model, optimizer=make(model.parameters())).peak == fake(model, optimizer=make).peak


def test_a_step_may_use_modules_that_torch_gave_classes_of_their_own() -> None:
    model = mlp()

    def step(batch: torch.Tensor) -> None:
        with torch.backends.cudnn.flags(enabled=False):
            model(torch.ops.aten.relu(batch.to("cuda"))).sum().backward()
        assert not torch.backends.cuda.matmul.allow_tf32

    assert fake(model, step=step).peak_allocated


def test_a_model_on_meta_needs_no_memory_and_gives_the_same() -> None:
    with torch.device("meta"):
        model = mlp()

    assert fake(model).peak == fake().peak
    assert all(parameter.is_meta for parameter in model.parameters())


def test_rows_grow_with_the_batch() -> None:
    rows = fake(optimizer=torch.optim.SGD).batch_sizes([8, 4096, 65_536])

    allocated = [row.peak_allocated for row in rows]
    assert allocated == sorted(set(allocated))


def test_a_card_that_is_too_small_is_told() -> None:
    estimate = fake(batch=torch.zeros(1 << 20, 64), gpu="1 GiB")

    assert not estimate.fits()
    assert estimate.failure is not None
    assert estimate.peak_reserved > 1 << 30


def test_a_step_may_catch_that_memory_ran_out() -> None:
    model = mlp()

    def step(batch: torch.Tensor) -> None:
        try:
            model(batch.to("cuda").repeat(1 << 20, 1))
        except torch.OutOfMemoryError:
            model(batch.to("cuda"))

    estimate = fake(model, step=step, gpu="1 GiB")

    assert estimate.fits()
    assert estimate.peak_reserved < 1 << 30


def test_a_backward_that_runs_out_between_its_parts_leaves_nothing_behind() -> None:
    model = nn.Linear(64, 64)

    def part(batch: torch.Tensor) -> torch.Tensor:
        return model(batch).repeat(1, 1, 256).exp().sum()

    def step(batch: torch.Tensor) -> None:
        rows = batch.to("cuda").split(1)
        torch.stack([checkpoint(part, each, use_reentrant=False) for each in rows]).sum().backward()

    # Every forward fits; the first part's backward does not, while the others wait for theirs.
    estimate = fake(model, torch.zeros(4, 4096, 64), step=step, gpu="1100 MiB")

    assert estimate.failure is not None
    assert estimate.failure.phase is Phase.BACKWARD


def test_the_host_keeps_its_values() -> None:
    model = mlp()

    def step(batch: torch.Tensor) -> None:
        rows = int((batch[:, 0] > 0).sum().item())
        model(batch[:rows].to("cuda"))

    batch = torch.zeros(8, 64)
    batch[:4] = 1

    few, many = fake(model, batch, step=step, steps=1), fake(model, batch + 1, step=step, steps=1)

    table = few.tape.allocations
    assert 4 * 64 * 4 in table["requested"][table["category"] == Category.INPUT]
    assert few.peak_allocated < many.peak_allocated


# -- what it leaves alone ----------------------------------------------------------------------------------------------


def _state() -> tuple[object, ...]:
    modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    return (
        torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(), torch.get_default_dtype(),
        torch.is_grad_enabled(), torch.is_autocast_enabled("cuda"), torch.is_autocast_enabled("cpu"), len(modes),
        torch.nn.functional.linear, torch.Tensor.to, torch.cuda.is_available(), torch.utils.swap_tensors,
    )  # fmt: skip


@pytest.mark.parametrize("fails", [False, True])
def test_everything_of_the_users_is_left_as_found(fails: bool) -> None:
    model, batch = mlp(), torch.zeros(8, 64)
    optimizer = torch.optim.AdamW(model.parameters())
    parameters = list(model.parameters())
    values = [parameter.detach().clone() for parameter in parameters]

    def step(batch: torch.Tensor) -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        torch.set_default_dtype(torch.float64)
        model(batch.to("cuda")).sum().backward()
        optimizer.step()
        if fails:
            raise ValueError("no more")

    torch.rand(1)
    before = _state()

    if fails:
        with pytest.raises(UsageError, match="no more"):
            fake(model, batch, optimizer=optimizer, step=step)
    else:
        fake(model, batch, optimizer=optimizer, step=step)

    assert _state() == before
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    assert all(type(parameter) is nn.Parameter and parameter.grad is None for parameter in parameters)
    assert all(torch.equal(value, parameter) for value, parameter in zip(values, parameters, strict=True))
    assert not optimizer.state
    assert torch.equal(model(batch), mlp_output(values, batch))


def _new_names(precision: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = precision


def _old_names(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


@pytest.mark.parametrize("before", ["highest", "high"])
@pytest.mark.parametrize(
    "change",
    [
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: _old_names(True),
        lambda: _old_names(False),
        lambda: _new_names("tf32"),
        lambda: _new_names("ieee"),
        lambda: (torch.set_float32_matmul_precision("medium"), _new_names("ieee")),
        lambda: torch.autograd.set_detect_anomaly(True),
        lambda: Distribution.set_default_validate_args(False),
    ],
    ids=["medium", "allowed", "forbidden", "tf32", "ieee", "both", "anomaly", "unchecked"],
)
def test_what_a_step_says_of_precision_and_checks_holds_for_it_alone(before: str, change: Callable[[], object]) -> None:
    def step(batch: torch.Tensor) -> None:
        change()
        model(batch.to("cuda"))

    model, fresh = mlp(), settings.read()
    torch.set_float32_matmul_precision(before)
    found = settings.read()
    try:
        fake(model, step=step)

        assert settings.read() == found
        assert torch.get_float32_matmul_precision() == before
        assert torch.backends.cuda.matmul.allow_tf32 is (before == "high")
    finally:
        settings.apply(fresh)


def mlp_output(values: list[torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
    return F.linear(F.linear(batch, values[0], values[1]).relu(), values[2], values[3])


@pytest.mark.virtual_gpu
def test_tensors_of_a_step_that_are_on_the_gpu_go_there_and_leave_no_fake() -> None:
    weight = torch.ones(10, device="cuda")
    model = mlp()
    before = fakes()  # what torch.compile has compiled in this process keeps some

    def step(batch: torch.Tensor) -> None:
        F.cross_entropy(model(batch.to("cuda")), torch.zeros_like(batch[:, 0]).long().to("cuda"), weight).backward()

    estimate = fake(model, step=step)

    assert total(estimate, Category.OTHER) == weight.nbytes
    assert fakes().keys() <= before.keys()


def fakes() -> dict[int, FakeTensor]:
    """Every fake tensor that there is, by its id."""
    gc.collect()
    return {id(each): each for each in gc.get_objects() if type(each) is FakeTensor}


def test_what_surrounds_the_call_does_not_count() -> None:
    plain = fake()

    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        surrounded = fake(mlp().to_empty(device="cpu"), torch.zeros(8, 64, device="cpu"))

    assert surrounded.peak == plain.peak


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module that can be imported, with a model, a list and a step that uses both."""
    (tmp_path / "users_training.py").write_text(
        "import torch\n"
        "model = torch.nn.Linear(64, 10)\n"
        "losses = []\n"
        "def step(batch):\n"
        "    losses.append(model(batch.to('cuda')).sum())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("users_training")
    del sys.modules["users_training"]


def test_a_step_of_an_importable_module_gets_copies_of_what_lies_beside_it(module: Any) -> None:
    estimate = fake(module.model, step=module.step)

    assert total(estimate, Category.PARAMETER) == 650 * 4
    assert module.losses == []
    assert type(module.model.weight) is nn.Parameter


# -- what it says ------------------------------------------------------------------------------------------------------


class Kept:
    """As a module's cache."""

    tensors: list[torch.Tensor] = []  # noqa: RUF012 - that it is shared is the point


def _keeps(output: torch.Tensor) -> None:
    Kept.tensors.append(output)


@pytest.mark.parametrize(
    ("look", "found"),
    [
        (lambda output: output.sum().item(), "_local_scalar_dense"),
        (lambda output: output.nonzero(), "nonzero"),
        (lambda output: output[output > 0], "nonzero"),
        (lambda output: f"{output.sum():.3f}", "_local_scalar_dense"),
        (lambda output: output.tolist(), "_local_scalar_dense"),
        (lambda output: output.detach().cpu().numpy(), "numpy"),
        (lambda output: np.asarray(output.detach().cpu()), "numpy"),
    ],
    ids=["item", "nonzero", "mask", "format", "tolist", "numpy", "asarray"],
)
def test_a_step_that_needs_values_is_told_what_to_use_instead(look: Callable[[torch.Tensor], Any], found: str) -> None:
    model = mlp()

    with pytest.raises(UsageError, match=found) as raised:
        fake(model, step=lambda batch: look(model(batch.to("cuda"))))

    assert 'engine="virtual"' in str(raised.value)


@pytest.mark.parametrize(
    ("model", "batch", "found"),
    [
        (mlp(), torch.zeros(8, 64, dtype=torch.long), "mat1 and mat2 .* Long and Float"),
        (mlp(), torch.zeros(8, 64, dtype=torch.half), "mat1 and mat2 .* Half and Float"),
        (mlp().half(), torch.zeros(8, 64), "mat1 and mat2 .* Float and Half"),
        (nn.LayerNorm(64), torch.zeros(8, 64, dtype=torch.half), "expected scalar type Half but found Float"),
        (nn.MultiheadAttention(64, 4), (torch.zeros(8, 64),) * 2 + (torch.zeros(8, 64).half(),), "Half and Float"),
    ],
    ids=["integers", "half", "half model", "norm", "attention"],
)
def test_a_batch_of_another_type_than_the_model_is_refused(model: nn.Module, batch: Any, found: str) -> None:
    with pytest.raises(UsageError, match=found):
        fake(model, batch)


@pytest.mark.virtual_gpu
def test_torch_itself_may_look_for_nan_in_a_backward() -> None:
    def step(batch: torch.Tensor) -> None:
        with torch.autograd.set_detect_anomaly(True):
            model(batch.to("cuda")).sum().backward()

    model = mlp()

    real, run, recorder = imitated({"model": model, "batch": torch.zeros(4096, 64), "step": step})

    assert run.profile is not None
    assert differences(real.tape, run.profile.tape, recorder.operators) == {}


def test_an_operator_without_a_fake_kernel_is_named() -> None:
    model = mlp()
    with torch.library._scoped_library("vramkit_tests", "FRAGMENT") as library:
        library.define("unheard_of(Tensor x) -> Tensor")

        with pytest.raises(UsageError, match="unheard_of") as raised:
            fake(model, step=lambda batch: torch.ops.vramkit_tests.unheard_of(model(batch.to("cuda"))))

    assert "register_fake" in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there torch asks the device what comes out")
def test_an_operator_of_torch_without_a_fake_kernel_is_named() -> None:
    with pytest.raises(UsageError, match=r"aten\._sample_dirichlet") as raised:
        fake(loss=lambda output, batch: torch._sample_dirichlet(output.exp()).sum())

    assert "register_fake" in str(raised.value)


def test_sparse_gradients_are_left_to_the_virtual_engine() -> None:
    model = nn.Embedding(10, 4, sparse=True)

    with pytest.raises(UsageError, match="do not follow sparse") as raised:
        fake(model, torch.zeros(8, 3, dtype=torch.long), optimizer=lambda p: torch.optim.SparseAdam(list(p)))

    assert 'engine="virtual"' in str(raised.value)
    assert "register_fake" not in str(raised.value)


@pytest.mark.parametrize("checks", [True, False])
def test_a_distribution_may_check_values_that_nobody_knows(checks: bool) -> None:
    def step(batch: torch.Tensor) -> None:
        mean = model(batch.to("cuda"))
        Normal(mean, mean.exp(), validate_args=checks).log_prob(mean).sum().backward()

    model = mlp()

    assert fake(model, step=step).peak_allocated > closed_form.parameters(model)


def test_tensors_that_outlive_the_step_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    monkeypatch.setattr(Kept, "tensors", [])
    kept = Kept.tensors
    monkeypatch.setitem(sys.modules, "keeper", type(sys)("keeper"))
    sys.modules["keeper"].keep = kept.append  # type: ignore[attr-defined] # a module of this test's

    def step(batch: torch.Tensor) -> None:
        import keeper

        keeper.keep(model(batch.to("cuda")))

    with pytest.raises(UsageError, match="outlive"):
        fake(model, step=step)


def test_a_step_that_does_not_move_its_batch_gets_it_moved() -> None:
    model = mlp()

    estimate = fake(model, step=lambda batch: model(batch))

    assert any("does not move it itself" in note for note in estimate.notes)


def test_an_operator_that_no_rule_knows_is_named_with_a_bound() -> None:
    model = mlp()

    estimate = fake(model, step=lambda batch: torch.linalg.qr(model(batch.to("cuda"))))

    assert any("no rule" in note and "B at a moment" in note for note in estimate.notes)


def test_where_the_virtual_engine_cannot_be_the_fake_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = DeviceError("A virtual GPU was asked for", "there is no C compiler")
    monkeypatch.setattr(session, "why_not", lambda: missing)

    estimate = vramkit.estimate(mlp(), torch.zeros(8, 64))

    assert estimate.engine == "fake"
    assert any("no C compiler" in note for note in estimate.notes)


@pytest.mark.virtual_gpu
def test_beside_a_card_of_another_generation_it_says_whose_kernels_it_chose() -> None:
    assert any("not as on NVIDIA H100" in note for note in fake(gpu="h100").notes)
    assert not any("not as on" in note for note in fake(gpu="a100-40gb").notes)


def test_inside_a_profile_it_refuses() -> None:
    with vramkit.profile(device="cpu"), pytest.raises(UsageError, match="profile"):
        fake()


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch 2.13 does so itself
def test_what_would_be_compiled_runs_as_it_is_written() -> None:
    model = mlp()
    compiled = torch.compile(model)

    def step_of(called: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], None]:
        return lambda batch: called(batch.to("cuda")).sum().backward()

    plain, plain_step = fake(model), fake(model, step=step_of(model))
    whole, in_step = fake(compiled), fake(model, step=step_of(compiled))

    assert whole.peak_allocated == plain.peak_allocated
    assert in_step.peak_allocated == plain_step.peak_allocated
    said = [any("torch.compile" in note for note in each.notes) for each in (plain, plain_step, whole, in_step)]
    assert said == [False, False, True, True]

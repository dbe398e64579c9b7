"""The overlay makes CUDA's choices without CUDA: the same operators as on the virtual GPU, and nothing stays behind."""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from predicted_programs import PROGRAMS
from subprocesses import run_python
from torch import nn
from torch._subclasses import fake_impls
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import vramkit
from vramkit import gpus
from vramkit.engines.fake.overlay import attention, autocast, overlay
from vramkit.engines.fake.receiving import swap

HALF, BF16 = torch.float16, torch.bfloat16

# Operators that take no memory, and those by which real recurrent layers get at weights and seeds.
_NO_MEMORY = re.compile(
    r"aten\.(detach|view|_unsafe_view|t|alias|lift_fresh|unsqueeze|squeeze|select|slice|expand|transpose|permute|set_"
    r"|split_with_sizes|_local_scalar_dense|empty|_cudnn_init_dropout_state)\b"
)


class Operators(TorchDispatchMode):
    """Notes which operators run on the GPU, what they give, and which memory is alive."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.highest = 0
        """Most bytes that were alive at once."""
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    @property
    def alive(self) -> int:
        """Bytes of what is there now."""
        storages = (ref() for ref in self._storages.values())
        return sum(storage.nbytes() for storage in storages if storage is not None)

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func).replace("_cudnn_rnn_flatten_weight.default", "zeros.default")
        for tensor in _tensors(result):
            if tensor.device.type == "cuda":
                self._storages[tensor.untyped_storage()._cdata] = weakref.ref(tensor.untyped_storage())
        self.highest = max(self.highest, self.alive)
        if any(each.device.type == "cuda" for each in _tensors((args, result))) and not _NO_MEMORY.match(name):
            self.seen.append(f"{name} {' '.join(map(_described, _tensors(result)))}")
        return result


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)


def _described(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype}{[*tensor.shape]}{'' if tensor.is_contiguous() else [*tensor.stride()]}"


@contextmanager
def faked(gpu: str = "a100-80gb") -> Iterator[Operators]:
    """Inside, "cuda" means fake tensors under the overlay."""
    seen = Operators()
    with ExitStack() as stack:
        monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
        stack.enter_context(overlay(gpus.find(gpu)))
        # What the engine does for all fakes, beside a device too:
        kinds = [torch.Tensor, nn.Parameter, FakeTensor]
        monkeypatch.setattr(sys.modules["torch.optim.optimizer"], "_foreach_supported_types", kinds)
        monkeypatch.setattr(torch.utils._foreach_utils, "_foreach_supported_types", kinds)
        monkeypatch.setattr(torch.utils, "swap_tensors", swap)
        monkeypatch.setattr(FakeTensor, "data_ptr", lambda tensor: id(tensor))
        # A value of the device's reads as zero; of the host's there are only an optimizer's counters.
        monkeypatch.setattr(FakeTensor, "item", lambda tensor: 0.5 * (tensor.device.type == "cpu"))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(seen)
        yield seen


def on_gpu(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = True) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device="cuda", requires_grad=grad)


# -- the same operators ------------------------------------------------------------------------------------------------


def layer(make: Callable[[], nn.Module], *shape: int, dtype: torch.dtype | None = None) -> Callable[[], None]:
    """Forward and backward of a layer, under autocast to ``dtype`` if one is given."""

    def run() -> None:
        module = make().to("cuda")
        with torch.autocast("cuda", dtype or HALF, enabled=dtype is not None):
            output = module(on_gpu(*shape) * 1)
        while isinstance(output, tuple):
            output = output[0]
        output.float().sum().backward()

    return run


def attend(shape: tuple[int, ...], dtype: torch.dtype, mask: tuple[int, ...] | None = None, **more: Any) -> Any:
    def run() -> None:
        inputs = [on_gpu(*shape, dtype=dtype) for _ in range(3)]
        kept = None if mask is None else torch.zeros(mask, dtype=torch.bool, device="cuda")
        F.scaled_dot_product_attention(*inputs, attn_mask=kept, **more).sum().backward()

    return run


def attend_as_told() -> None:
    for kernels in ([SDPBackend.MATH], [SDPBackend.EFFICIENT_ATTENTION], [SDPBackend.CUDNN_ATTENTION]):
        with sdpa_kernel(kernels):
            attend((2, 4, 16, 64), HALF)()
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
        attend((2, 4, 16, 64), HALF)()


def losses() -> None:
    x, target = on_gpu(4, 8), torch.zeros(4, dtype=torch.long, device="cuda")
    with torch.autocast("cuda", HALF):
        y = x @ x.t()
        parts = [F.cross_entropy(y, target), F.mse_loss(y, y.float()), y.norm(), y.softmax(1).sum(), y.pow(2).sum()]
        parts += [F.layer_norm(y, (4,)).sum(), torch.addcmul(y, y, y.float()).sum(), y.cumsum(1).sum(), y.exp().sum()]
    torch.stack([part.float() for part in parts]).sum().backward()


def scaled_and_clipped() -> None:
    model = nn.Linear(8, 8).to("cuda")
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cuda", init_scale=16.0)
    for _ in range(2):
        with torch.autocast("cuda", HALF):
            loss = model(on_gpu(4, 8, grad=False)).sum()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def optimizers() -> None:
    for make in (torch.optim.Adam, torch.optim.RAdam, torch.optim.Adadelta, torch.optim.NAdam, torch.optim.Adamax):
        for more in ({}, {"foreach": False}, {"capturable": True}):
            model = nn.Linear(8, 8).to("cuda")
            optimizer = make(model.parameters(), **more)
            model(on_gpu(4, 8)).sum().backward()
            optimizer.step()


def recomputed_under_autocast() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1)).to("cuda")
    for reentrant in (False, True):
        with torch.autocast("cuda", BF16):
            output = checkpoint(model, on_gpu(4, 8), use_reentrant=reentrant)
        output.float().sum().backward()


def autocast_in_autocast() -> None:
    model = nn.Linear(8, 8).to("cuda")
    with torch.autocast("cuda", BF16):
        model(on_gpu(4, 8))  # casts the weight
        with torch.autocast("cuda", enabled=False):
            model(on_gpu(4, 8))
        model(on_gpu(4, 8))  # finds it cast
    with torch.autocast("cuda", BF16):
        model(on_gpu(4, 8))  # casts it anew


def cells() -> None:
    for make in (nn.LSTMCell, nn.GRUCell, nn.RNNCell):
        for dtype in (None, HALF):
            layer(lambda make=make: make(8, 16), 3, 8, dtype=dtype)()


def assigned() -> None:
    x = on_gpu(4, 8, grad=False)
    x[x > 0] = 1
    x[:, 0] = 2.0
    x[1] = torch.zeros(8)


def without_gradients() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Conv1d(8, 8, 3), nn.MaxPool1d(2)).to("cuda")
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            model(on_gpu(4, 8, 9, grad=False))
            F.scaled_dot_product_attention(*(on_gpu(2, 4, 16, 64, grad=False) for _ in range(3)))


def channels_last() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    model.to("cuda", memory_format=torch.channels_last)
    model(on_gpu(2, 3, 9, 9)).sum().backward()


SNIPPETS: dict[str, Callable[[], None]] = {
    "dropout": layer(lambda: nn.Sequential(nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AlphaDropout(0.5)), 4, 8, 6, 6),
    "all dropped": layer(lambda: nn.Dropout(1.0), 4, 8),
    "layer norm": layer(lambda: nn.LayerNorm(8), 4, 8, dtype=HALF),
    "rms norm": layer(lambda: nn.RMSNorm(8), 4, 8),
    "batch norm": layer(lambda: nn.BatchNorm2d(8), 4, 8, 6, 6),
    "batch norm of vectors": layer(lambda: nn.BatchNorm1d(8), 4, 8),
    "batch norm without weights": layer(lambda: nn.BatchNorm2d(8, affine=False), 4, 8, 6, 6),
    "batch norm in half": layer(lambda: nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)), 4, 8, 6, 6, dtype=HALF),
    "group and instance norm": layer(lambda: nn.Sequential(nn.GroupNorm(2, 8), nn.InstanceNorm2d(8)), 4, 8, 6, 6),
    "activations": layer(lambda: nn.Sequential(nn.SiLU(), nn.Mish(), nn.GELU(), nn.RReLU(), nn.Softmax(1)), 4, 8),
    "convolutions": layer(
        lambda: nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 4, 2, stride=2)), 2, 8, 9, 9,
        dtype=BF16,
    ),
    "channels last": channels_last,
    "LSTM": layer(lambda: nn.LSTM(8, 16, 2, bidirectional=True, dropout=0.2), 5, 2, 8),
    "LSTM in half": layer(lambda: nn.LSTM(8, 16, batch_first=True), 2, 5, 8, dtype=HALF),
    "LSTM with projections": layer(lambda: nn.LSTM(8, 16, proj_size=4), 5, 2, 8),
    "GRU without biases": layer(lambda: nn.GRU(8, 16, bias=False), 5, 2, 8),
    "RNN": layer(lambda: nn.RNN(8, 16), 5, 2, 8),
    "cells": cells,
    "transformer": layer(lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0), 2, 16, 32),
    "transformer in half": layer(lambda: nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0), 2, 16, 32, dtype=HALF),
    "attention": attend((2, 4, 16, 64), torch.float32, is_causal=True),
    "attention in half": attend((2, 4, 16, 64), HALF, dropout_p=0.1),
    "attention with narrow heads": attend((2, 4, 16, 20), BF16),
    "attention with wide heads": attend((2, 4, 16, 260), HALF),
    "attention with a mask": attend((2, 4, 16, 64), HALF, (16, 16)),
    "attention with a mask of odd length": attend((2, 4, 7, 64), torch.float32, (2, 1, 1, 7)),
    "attention as told": attend_as_told,
    "losses": losses,
    "scaler and clipping": scaled_and_clipped,
    "optimizers": optimizers,
    "checkpoints": recomputed_under_autocast,
    "autocast in autocast": autocast_in_autocast,
    "assigned": assigned,
    "without gradients": without_gradients,
}  # fmt: skip


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("name", SNIPPETS)
def test_the_operators_are_those_of_the_virtual_gpu(name: str) -> None:
    with Operators() as real:
        SNIPPETS[name]()

    with faked() as imagined:
        SNIPPETS[name]()

    assert real.seen
    assert imagined.seen == real.seen


@pytest.mark.parametrize("name", SNIPPETS)
def test_a_program_that_has_run_leaves_nothing_on_the_gpu_and_takes_as_much_again(name: str) -> None:
    with faked() as first:
        SNIPPETS[name]()
        gc.collect()
        left = first.alive
    with faked() as second:
        SNIPPETS[name]()

    card = gpus.find("a100-80gb")
    states = card.multiprocessors * card.threads_per_multiprocessor * 24  # of cuDNN's random numbers, which stay
    assert left == (states if name == "LSTM" else 0)
    assert second.highest == first.highest > 0
    assert second.seen == first.seen


_FAKED = """
import json, sys
sys.path[:0] = {folders!r}
import vramkit
from predicted_programs import PROGRAMS

found = {{}}
for name in {names!r}:
    estimate = vramkit.estimate(**PROGRAMS[name](), gpu="t4", engine="fake", steps=2)
    found[name] = [estimate.peak_allocated, estimate.peak_reserved]
print("RESULT" + json.dumps(found))
"""


@pytest.mark.virtual_gpu
def test_the_figures_of_a_process_without_a_device_are_those_of_the_virtual_gpu() -> None:
    names = ["gpt fp16, scaler, clipping", "gpt accumulating", "gpt fp32", "adamw, fused", "lstm", "gradient penalty"]
    estimates = [vramkit.estimate(**PROGRAMS[name](), gpu="t4", engine="virtual", steps=2) for name in names]

    answer = run_python(_FAKED.format(folders=[str(Path(__file__).parents[2])], names=names))

    figures = {name: [each.peak_allocated, each.peak_reserved] for name, each in zip(names, estimates, strict=True)}
    assert json.loads(answer.rsplit("RESULT", 1)[1]) == figures


@pytest.mark.virtual_gpu
def test_operators_without_a_device_take_what_they_take_on_a_gpu() -> None:
    names = [f"operator_calls:CALLS[{name}]" for name in ("renorm", "margin_loss", "fast encoder", "scatter_reduce")]
    code = f"from vramkit.devtools import opcheck; print(opcheck.main([*{names!r}, '--no-device', '--failures']))"

    answer = run_python(code, environment={"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])})

    assert answer.splitlines()[-1] == "0", answer


# -- devices -----------------------------------------------------------------------------------------------------------


def test_what_is_moved_is_on_the_gpu_and_what_was_not_is_on_the_host() -> None:
    with faked():
        host = torch.zeros(3, 4)
        moved = [host.to("cuda"), host.cuda(), host.to(0), host.to(torch.device("cuda", 0)), host.pin_memory().cuda()]
        made = [torch.zeros(3, device="cuda"), torch.tensor([1], device="cuda"), torch.as_tensor(1.0, device="cuda")]
        with torch.device("cuda"):
            made += [torch.zeros(3), torch.tensor([1.0])]
        made += [
            moved[0] * 2 + 1,
            torch.arange(3, device=moved[0].device),
            host.to(moved[0]),
            torch.zeros_like(made[0]),
        ]
        generator = torch.Generator(device="cuda").manual_seed(1)
        made.append(torch.randn(3, device="cuda", generator=generator))

        assert {each.device for each in (*moved, *made)} == {torch.device("cuda", 0)}
        assert all(each.is_cuda and not each.is_meta and each.get_device() == 0 for each in (*moved, *made))
        assert {each.device.type for each in (host, moved[0].cpu(), torch.zeros_like(moved[0], device="cpu"))} == {
            "cpu"
        }
        assert moved[0].to("cuda") is moved[0]
        assert len({each.untyped_storage()._cdata for each in (host, *moved)}) == 1 + len(moved)


def test_gradients_are_where_their_parameters_are() -> None:
    with faked():
        model = nn.Linear(4, 5)
        model.weight = nn.Parameter(torch.zeros(5, 4, device="cuda"))
        model.bias = nn.Parameter(torch.zeros(5, device="cuda"))

        model(torch.zeros(3, 4).to("cuda")).sum().backward()

        assert model.weight.grad is not None
        assert model.weight.grad.device.type == "cuda"


def test_a_batch_that_was_not_moved_is_refused_as_by_torch() -> None:
    with faked():
        weight = torch.zeros(4, 4, device="cuda")

        with pytest.raises(RuntimeError, match=r"[Ff]ound two different devices|same device"):
            torch.mm(torch.zeros(3, 4), weight)


def test_torch_tells_of_the_card_that_is_imitated() -> None:
    with faked("t4"):
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()), torch.cuda.device(0):
            torch.cuda.current_stream().wait_event(torch.cuda.Event())
        torch.manual_seed(3)

        assert torch.cuda.is_available()
        assert torch.cuda.device_count() == 1
        assert torch.cuda.get_device_capability() == (7, 5)
        assert torch.cuda.get_device_properties(0).total_memory == gpus.find("t4").memory
        assert torch.cuda.memory_allocated() == 0
        assert torch.amp.GradScaler("cuda").is_enabled()
        with torch.autocast("cuda"):
            assert torch.is_autocast_enabled("cuda")


# -- attention ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("card", "dtype", "more", "kernel"),
    [
        ("h100", BF16, {}, "cudnn"),
        ("h100", HALF, {"mask": True}, "cudnn"),
        ("h100", HALF, {"dropout": 0.1}, "flash"),
        ("h100", torch.float32, {}, "efficient"),
        ("a100-40gb", BF16, {}, "flash"),
        ("a100-40gb", BF16, {"mask": True}, "efficient"),
        ("a100-40gb", HALF, {"width": 250}, "flash"),
        ("a100-40gb", HALF, {"width": 257}, "math"),
        ("rtx4090", BF16, {"width": 224}, "efficient"),
        ("rtx4090", BF16, {"width": 224, "grad": False}, "flash"),
        ("t4", BF16, {}, "math"),
        ("t4", HALF, {}, "efficient"),
        ("t4", torch.float32, {"width": 30}, "efficient"),
        ("a100-40gb", torch.float32, {"width": 30}, "math"),
    ],
)
def test_attention_takes_the_kernel_of_the_card(
    card: str, dtype: torch.dtype, more: dict[str, Any], kernel: str
) -> None:
    with faked(card):
        shape = (2, 4, 16, more.get("width", 64))
        query, key, value = (on_gpu(*shape, dtype=dtype, grad=more.get("grad", True)) for _ in range(3))
        mask = torch.zeros(16, 16, dtype=dtype, device="cuda") if "mask" in more else None
        call = attention.Attention(query, key, value, mask, more.get("dropout", 0.0), False, False)

        assert attention.choose(call, gpus.find(card)) == kernel


def test_attention_wants_one_type_of_all() -> None:
    with faked():
        single, half = (on_gpu(2, 4, 16, 64, dtype=dtype) for dtype in (torch.float32, HALF))

        with pytest.raises(RuntimeError, match=r"query\.dtype: float key\.dtype: c10::Half and value\.dtype: float"):
            F.scaled_dot_product_attention(single, half, single)
        with pytest.raises(RuntimeError, match=r"attn_mask\.dtype: c10::Half and  query\.dtype: float"):
            F.scaled_dot_product_attention(single, single, single, half[0, 0] @ half[0, 0].mT)


# -- autocast ----------------------------------------------------------------------------------------------------------


def test_every_operator_that_is_written_down_has_a_rule_in_torch() -> None:
    written = autocast._HALF | autocast._FLOAT_BY_ARGUMENT | autocast._WIDEST | set(autocast._FLOAT_BY_OVERLOAD)

    assert written <= set(autocast.rules())


def test_host_tensors_are_not_cast() -> None:
    with faked(), torch.autocast("cuda", HALF):
        host = torch.zeros(4, 4)

        assert (host @ host).dtype is torch.float32
        assert (host.cuda() @ host.cuda()).dtype is HALF


# -- afterwards --------------------------------------------------------------------------------------------------------

_OWNERS = (
    torch, torch.cuda, torch.cuda.memory, torch.cuda.nvtx, torch.accelerator, torch._C, torch.Tensor, FakeTensor,
    FakeTensorMode, torch.backends.cudnn, torch.backends.cudnn.rnn,
)  # fmt: skip
_OPERATORS = (
    "dropout",
    "scaled_dot_product_attention",
    "lstm.input",
    "linear",
    "layer_norm",
    "silu_backward",
    "softmax.int",
)


def _state() -> list[object]:
    """What the overlay replaces, as it is now."""
    attributes = [{name: id(value) for name, value in vars(owner).items()} for owner in _OWNERS]
    for counter in ("cache_hits", "cache_misses"):
        attributes[_OWNERS.index(FakeTensorMode)].pop(counter)
    tables = [torch._C._dispatch_dump_table(f"aten::{name}") for name in _OPERATORS]
    kernels = [dict(torch.ops.aten.dropout.default.py_kernels), dict(fake_impls.op_implementations_dict)]
    return [attributes, tables, kernels, torch._C._len_torch_dispatch_stack(), torch.is_autocast_enabled("cuda")]


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_torch_is_as_before_also_after_an_exception(error: type[Exception] | None) -> None:
    with overlay(gpus.find("h100")):
        pass  # modules that are imported when they are first needed are there now
    before = _state()

    try:
        with faked("h100"), torch.autocast("cuda", HALF):
            during = _state()
            SNIPPETS["LSTM in half"]()
            if error is not None:
                raise error
    except ZeroDivisionError:
        pass

    assert _state() == before
    assert all(changed != was for changed, was in zip(during[:3], before[:3], strict=True))
    assert F.dropout(torch.ones(8), 1.0).tolist() == [0.0] * 8

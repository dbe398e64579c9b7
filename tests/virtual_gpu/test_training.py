"""Unmodified training code runs: every kind of step that PyTorch users write, on the virtual GPU."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator

import pytest

from vramkit import virtual_gpu

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, set_checkpoint_early_stop  # noqa: E402

pytestmark = pytest.mark.virtual_gpu


@pytest.fixture(autouse=True)
def _fresh_peak() -> Iterator[None]:
    torch.cuda.init()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    torch.cuda.empty_cache()


def _rounded(*tensors: torch.Tensor) -> int:
    """Bytes of the blocks behind small tensors on the GPU, each once: whole times 512."""
    return sum(_blocks(*tensors).values())


def _blocks(*tensors: torch.Tensor) -> dict[int, int]:
    """Of the blocks behind small tensors on the GPU, by their addresses, the bytes."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.is_cuda]
    return {storage.data_ptr(): (storage.nbytes() + 511) // 512 * 512 for storage in storages}


def _addresses() -> set[int]:
    """Of all blocks that are taken."""
    blocks = [block for segment in torch.cuda.memory_snapshot() for block in segment["blocks"]]
    return {block["address"] for block in blocks if block["state"] == "active_allocated"}


def _holds_what_it_should(
    model: nn.Module, forward: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer, step: Callable[[], object]
) -> None:
    """Check a training step's memory at four moments, against the tensors that should be there.

    Args:
        model: on the GPU, without gradients.
        forward: makes the loss.
        optimizer: of the model, with state already.
        step: what follows the backward.
    """
    before, known = torch.cuda.memory_allocated(), _addresses()
    saved: list[weakref.ref[torch.Tensor]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    alive = [tensor for tensor in (reference() for reference in saved) if tensor is not None]
    made = {address: size for address, size in _blocks(*alive, loss).items() if address not in known}
    assert torch.cuda.memory_allocated() - before == sum(made.values())

    alive.clear()
    loss.backward()
    del loss
    gradients = [p.grad for p in model.parameters()]
    assert [gradient.shape for gradient in gradients] == [p.shape for p in model.parameters()]
    assert torch.cuda.memory_allocated() - before == _rounded(*gradients)

    step()
    assert torch.cuda.memory_allocated() - before == _rounded(*gradients)

    gradients.clear()
    optimizer.zero_grad()
    assert torch.cuda.memory_allocated() == before


def _mlp(device: str = "cuda") -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).to(device)


def test_an_mlp_holds_parameters_gradients_and_state_after_a_step() -> None:
    before = torch.cuda.memory_allocated()
    model = _mlp()
    weights = _rounded(*model.parameters())
    assert torch.cuda.memory_allocated() - before == weights

    optimizer = torch.optim.AdamW(model.parameters(), fused=False)
    workspaces = torch.cuda.memory_allocated()
    model(torch.zeros(8, 64, device="cuda")).sum().backward()
    optimizer.zero_grad()
    workspaces = torch.cuda.memory_allocated() - workspaces
    model(torch.zeros(8, 64, device="cuda")).sum().backward()
    optimizer.step()

    assert torch.cuda.memory_allocated() - before - workspaces == 4 * weights


_SDPA = {
    SDPBackend.FLASH_ATTENTION: "Flash",
    SDPBackend.EFFICIENT_ATTENTION: "Efficient",
    SDPBackend.CUDNN_ATTENTION: "Cudnn",
    SDPBackend.MATH: "ToCopy",  # a composition; for half precision its last step is the cast back
}


@pytest.mark.parametrize("backend", _SDPA, ids=[name.name.lower() for name in _SDPA])
def test_attention_runs_in_every_kernel(backend: SDPBackend) -> None:
    q, k, v = (torch.zeros(2, 4, 256, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    out.sum().backward()

    assert _SDPA[backend] in type(out.grad_fn).__name__
    assert v.grad.shape == v.shape


def test_flash_attention_is_the_choice_of_an_a100_for_half_precision() -> None:
    q = torch.zeros(2, 4, 256, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    out = F.scaled_dot_product_attention(q, q, q, is_causal=True)

    assert type(out.grad_fn).__name__ == "ScaledDotProductFlashAttentionBackward0"


def test_the_math_kernel_keeps_the_scores_and_flash_does_not() -> None:
    peaks = {}
    for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        q = torch.zeros(1, 8, 1024, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        torch.cuda.reset_peak_memory_stats()
        with sdpa_kernel(backend):
            F.scaled_dot_product_attention(q, q, q)
        peaks[backend] = torch.cuda.max_memory_allocated()

    assert peaks[SDPBackend.MATH] - peaks[SDPBackend.FLASH_ATTENTION] >= 8 * 1024 * 1024 * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_transformer_trains_under_autocast_with_a_scaler(dtype: torch.dtype) -> None:
    x = torch.zeros(2, 32, 64, device="cuda")
    # With the scale that it begins with, 65536, gradients of half precision overflow for some weights.
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0, enabled=dtype == torch.float16)
    empty = torch.cuda.memory_allocated()
    model = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True).cuda()
    optimizer = torch.optim.AdamW(model.parameters())

    def forward() -> torch.Tensor:
        with torch.autocast("cuda", dtype):
            loss = model(x).float().square().mean()
        return scaler.scale(loss)

    def step() -> None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    workspaces = torch.cuda.memory_allocated()
    forward().backward()
    step()
    optimizer.zero_grad()
    state = [value for p in model.parameters() for value in optimizer.state[p].values()]
    kept = [value for value in vars(scaler).values() if isinstance(value, torch.Tensor)]  # scale, growth tracker
    assert len(kept) == 2 * (dtype == torch.float16)
    assert len(state) == 3 * len(list(model.parameters()))
    assert _rounded(*state) == 2 * _rounded(*model.parameters())
    workspaces = torch.cuda.memory_allocated() - workspaces - _rounded(*state, *kept)

    _holds_what_it_should(model, forward, optimizer, step)

    assert torch.cuda.memory_allocated() - empty - workspaces == 3 * _rounded(*model.parameters()) + _rounded(*kept)


class _Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((-2, -1)))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("cudnn", [True, False], ids=["cudnn", "native"])
def test_convolutions_train(cudnn: bool, layout: torch.memory_format) -> None:
    model = _Convolutions().cuda().to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.zeros(4, 3, 32, 32, device="cuda").to(memory_format=layout)
    labels = torch.zeros(4, dtype=torch.long, device="cuda")

    def forward() -> torch.Tensor:
        return F.cross_entropy(model(x), labels)

    with torch.backends.cudnn.flags(enabled=cudnn):
        forward().backward()
        optimizer.step()
        optimizer.zero_grad()
        momentum = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
        assert _rounded(*momentum) == _rounded(*model.parameters())
        _holds_what_it_should(model, forward, optimizer, optimizer.step)


def test_a_cudnn_convolution_takes_the_workspace_that_its_plan_asks_for() -> None:
    convolution = nn.Conv2d(64, 64, 3, padding=1).cuda()
    x = torch.zeros(8, 64, 56, 56, device="cuda")

    def beyond_the_output() -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = convolution(x)
        return torch.cuda.max_memory_allocated() - before - _rounded(out)

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        # The TF32 kernels of this layout work on transposed copies of input and output, in the workspace.
        assert beyond_the_output() > _rounded(x)


@pytest.mark.parametrize("cudnn", [True, False], ids=["cudnn", "native"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(16, 32, 2, dropout=0.1),
        lambda: nn.GRU(16, 32, bidirectional=True),
        lambda: nn.RNN(16, 32),
        lambda: nn.LSTM(16, 32, proj_size=8),
    ],
    ids=["lstm", "gru", "rnn", "lstm-projected"],
)
def test_recurrent_networks_train(make: Callable[[], nn.Module], cudnn: bool) -> None:
    model = make().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.zeros(5, 3, 16, device="cuda")

    def forward() -> torch.Tensor:
        out, _ = model(x)
        return out.sum()

    with torch.backends.cudnn.flags(enabled=cudnn):
        forward().backward()  # the workspaces, and cuDNN's states for dropout
        optimizer.zero_grad()
        _holds_what_it_should(model, forward, optimizer, optimizer.step)


@pytest.mark.parametrize(
    ("settings", "temporaries"),
    [({"fused": True}, 0), ({"foreach": True}, 1), ({}, 1)],
    ids=["fused", "foreach", "default"],
)
def test_optimizers_take_the_temporaries_of_their_kind(settings: dict[str, bool], temporaries: int) -> None:
    weights = [nn.Parameter(torch.zeros(256, 256, device="cuda")) for _ in range(4)]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.AdamW(weights, **settings)
    optimizer.step()  # makes the state

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.step()

    assert torch.cuda.max_memory_allocated() - before == temporaries * _rounded(*weights)


def test_an_optimizer_that_loops_takes_two_temporaries_of_one_parameter() -> None:
    weights = [nn.Parameter(torch.zeros(256, 256, device="cuda")) for _ in range(4)]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.AdamW(weights, foreach=False)
    optimizer.step()

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.step()

    # Three: torch keeps the last parameter's denominator in a variable while it makes the next one.
    assert torch.cuda.max_memory_allocated() - before == 3 * _rounded(weights[0])


def _body() -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(256, 256), nn.GELU()) for _ in range(8))).cuda()


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_checkpoints_trade_activations_for_recomputation(reentrant: bool) -> None:
    model = _body()
    x = torch.zeros(1024, 256, device="cuda", requires_grad=True)
    model(x).sum().backward()  # the workspaces
    peaks, launches = [], []

    def plain() -> torch.Tensor:
        return model(x)

    def checkpointed() -> torch.Tensor:
        return checkpoint_sequential(model, 4, x, use_reentrant=reentrant)

    gpu = virtual_gpu.current()
    assert gpu is not None
    for forward in (plain, checkpointed):
        model.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        before = gpu.launches
        forward().sum().backward()
        peaks.append(torch.cuda.max_memory_allocated())
        launches.append(gpu.launches - before)

    assert peaks[1] < peaks[0]
    assert launches[1] > launches[0]


def test_a_checkpoint_inside_a_checkpoint_keeps_nothing_and_runs_its_part_three_times() -> None:
    model = _body()
    x = torch.zeros(16, 256, device="cuda")
    layer = _rounded(x)
    gpu = virtual_gpu.current()
    assert gpu is not None

    def launches(run: Callable[[], object]) -> int:
        before = gpu.launches
        run()
        return gpu.launches - before

    def half(x: torch.Tensor) -> torch.Tensor:
        return checkpoint(model[:4], x, use_reentrant=False)

    def nested() -> torch.Tensor:
        return checkpoint(lambda x: model[4:](half(x)), x, use_reentrant=False)

    def plain() -> torch.Tensor:
        return model(x)

    kept, launched = [], []
    for forward in (plain, nested):
        forward().sum().backward()  # the workspaces
        model.zero_grad()
        before = torch.cuda.memory_allocated()
        with set_checkpoint_early_stop(False):
            loss = forward().sum()
            kept.append(torch.cuda.memory_allocated() - before - _rounded(loss))
            launched.append(launches(loss.backward))
        del loss
        assert torch.cuda.memory_allocated() - before == _rounded(*(p.grad for p in model.parameters()))

    assert kept == [15 * layer, 0]  # what goes into each of eight products and GELUs, less what was given
    assert launched[1] - launched[0] == launches(lambda: model(x)) + launches(lambda: model[:4](x))


def test_a_model_trains_spread_over_two_devices() -> None:
    def train(first: nn.Module, second: nn.Module) -> None:
        optimizer = torch.optim.Adam([*first.parameters(), *second.parameters()])
        second(first(torch.zeros(4, 64, device="cuda:0")).to("cuda:1")).sum().backward()
        optimizer.step()
        states.append(optimizer.state)

    states: list[object] = []
    train(_mlp("cuda:0"), _mlp("cuda:1"))  # the workspaces
    states.clear()
    used = torch.cuda.memory_allocated(0), torch.cuda.memory_allocated(1)
    parts = _mlp("cuda:0"), _mlp("cuda:1")
    train(*parts)

    for device, part in enumerate(parts):
        assert {p.grad.device.index for p in part.parameters()} == {device}
        assert torch.cuda.memory_allocated(device) - used[device] == 4 * _rounded(*part.parameters())


def test_a_cuda_graph_keeps_its_memory_in_a_pool_of_its_own() -> None:
    x = torch.zeros(1024, 1024, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x * 2
    graph.replay()

    pools = {tuple(segment["segment_pool_id"]) for segment in torch.cuda.memory_snapshot()}

    assert y.shape == x.shape
    assert tuple(graph.pool()) in pools


def test_who_synchronises_finds_that_the_autograd_thread_has_let_go() -> None:
    model, x = torch.nn.Linear(512, 512).cuda(), torch.zeros(8, 512, device="cuda")
    model(x).sum().backward()
    torch.cuda.synchronize()
    before, left = torch.cuda.memory_allocated(), set()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # as on a busy machine: the thread waits for Python's lock until it is handed over
    try:
        for _ in range(50):
            torch.autograd.grad(model(x).sum(), [*model.parameters()])
            torch.cuda.synchronize()
            left.add(torch.cuda.memory_allocated() - before)
    finally:
        sys.setswitchinterval(interval)

    assert left == {0}


def test_random_numbers_can_be_drawn_in_a_captured_graph() -> None:
    x = torch.ones(1000, device="cuda")
    graph = torch.cuda.CUDAGraph()

    with torch.cuda.graph(graph):
        y = F.dropout(x) + torch.rand_like(x)
    graph.replay()

    assert y.shape == x.shape
    assert F.dropout(x).count_nonzero() < 1000  # and after it they are computed as before

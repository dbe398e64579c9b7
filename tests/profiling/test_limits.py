"""What a profile says of the virtual GPU's limits: on the exception that comes of one, and in its notes."""

from __future__ import annotations

import pytest

import vramkit
from vramkit.virtual_gpu.limits import limit_behind

pytest.importorskip("torch")
import torch
from torch import nn

from vramkit.torch_internals.allocator import HAS_METADATA


@pytest.mark.virtual_gpu
def test_an_exception_at_a_limit_and_its_report_name_the_limit() -> None:
    storage = torch.ones(2, device="cuda").untyped_storage()
    with pytest.raises(RuntimeError, match="not supported"):
        storage._share_cuda_()  # before, which the profile's own is told from
    with pytest.raises(RuntimeError, match="not supported") as caught, vramkit.profile(device="cuda") as prof:
        storage._share_cuda_()

    (note,) = caught.value.__notes__
    assert "limit of the virtual GPU" in note
    assert "cudaIpcGetMemHandle" in note
    assert any(note in told for told in prof.result.notes)
    assert "cudaIpcGetMemHandle" in prof.result.report().replace("\n", "")


@pytest.mark.virtual_gpu
def test_an_exception_of_the_program_itself_gets_no_note_though_a_limit_was_met_before() -> None:
    def fail() -> None:
        with pytest.raises(RuntimeError):
            torch.ones(2, device="cuda").untyped_storage()._share_cuda_()
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught, vramkit.profile(device="cuda") as prof:
        fail()

    assert not hasattr(caught.value, "__notes__")
    assert prof.result.notes == ()


@pytest.mark.parametrize(
    ("function", "text", "word"),
    [
        ("ncclCommWindowRegister", "NCCL error in: NCCLUtils.cpp:92, invalid usage", "Switch it off"),
        ("cudnnGetConvolutionForwardWorkspaceSize", "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", "cudnn.enabled"),
        ("cuGetExportTable", "CUDA driver version is insufficient for CUDA runtime version", "libcudart"),
        ("cusolverDnXnew_bufferSize", "cusolver error: CUSOLVER_STATUS_ARCH_MISMATCH", "CPU"),
        ("cuMulticastCreate", "CUDA driver error: operation not supported", "Switch it off"),
        ("cuMulticastCreate", "RuntimeError: cuMulticastCreate failed with 801", "Switch it off"),
        ("cuGreenCtxCreate", "CUDA driver error: operation not supported", "feature"),
    ],
)
def test_each_limit_has_its_remedy(function: str, text: str, word: str) -> None:
    note = limit_behind(RuntimeError(text), [function, "cuLogsRegisterCallback"])  # which torch calls as it begins

    assert note is not None
    assert f"({function})" in note
    assert word in note


def test_the_cause_of_an_exception_is_looked_at_and_the_newest_limit_is_named() -> None:
    error = RuntimeError("could not train")
    error.__cause__ = RuntimeError("CUDA error: operation not supported")

    note = limit_behind(error, ["cudaIpcOpenMemHandle", "cuMulticastCreate"])

    assert note is not None
    assert "cudaIpcOpenMemHandle" in note


@pytest.mark.parametrize(
    "text", ["Expected all tensors to be on the same device, cuda:0 and cpu", "CUDA_VISIBLE_DEVICES is not a list"]
)
def test_what_only_mentions_a_library_is_no_limit(text: str) -> None:
    functions = ["cuGetProcAddress_v2", "cuLogsRegisterCallback", "cudaIpcGetMemHandle"]

    assert limit_behind(RuntimeError(text), functions) is None


class Routed(nn.Module):
    """A mixture of experts, whose router's values are too large to be computed."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(1024, 4)
        self.experts = nn.ModuleList([nn.Linear(1024, 1024) for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = self.router(x).softmax(-1).topk(2).indices
        total = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).any(-1).nonzero().flatten()
            total.index_add_(0, mine, expert(x[mine]))
        return total


@pytest.mark.virtual_gpu
def test_a_router_that_chose_evenly_is_told_and_that_alone() -> None:
    model, taken = Routed().cuda(), []
    for expert in model.experts:
        expert.register_forward_hook(lambda _module, _inputs, output: taken.append(output.shape[0]))
    with vramkit.profile(model) as prof:
        model(torch.randn(256, 1024, device="cuda"))

    assert taken == [128, 128, 128, 128]
    (note,) = prof.result.notes
    assert f"nonzero{' in Routed' * HAS_METADATA} (4 x)" in note  # torch up to 2.10 doesn't say in which thread's mark
    assert "even" in note


@pytest.mark.virtual_gpu
def test_an_accuracy_of_choices_that_were_not_computed_is_no_size() -> None:
    model = nn.Linear(1024, 10).cuda()
    with vramkit.profile(model) as prof:
        chosen = model(torch.randn(256, 1024, device="cuda")).argmax(-1)
        (chosen == torch.zeros_like(chosen)).float().mean().item()

    assert prof.result.notes == ()


@pytest.mark.virtual_gpu
def test_a_text_goes_on_to_its_full_length_where_its_tokens_are_not_computed() -> None:
    head, ended = nn.Linear(64, 32_000).cuda(), 2  # a row of logits is 125 KiB
    tokens = torch.ones(2, 1, dtype=torch.long, device="cuda")
    while tokens.shape[1] < 8 and not bool((tokens == ended).any(1).all()):
        logits = head(torch.zeros(2, 64, device="cuda"))
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
        tokens = torch.cat([tokens, torch.multinomial(logits.softmax(-1), 1)], 1)

    assert tokens.shape[1] >= 8


@pytest.mark.virtual_gpu
def test_a_size_of_flags_that_were_not_computed_is_told() -> None:
    x = torch.zeros(1 << 20, device="cuda")
    with vramkit.profile(device="cuda") as prof:
        x[x > 0].sum()

    (note,) = prof.result.notes
    assert "Sizes came from values" in note


@pytest.mark.virtual_gpu
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # torch 2.8's own LBFGS does
@pytest.mark.parametrize(("width", "is_told"), [(4, False), (256, True)], ids=["computed", "too large"])
def test_what_lbfgs_would_keep_is_told_where_its_loss_was_not_computed(width: int, is_told: bool) -> None:
    model = nn.Linear(width, width, bias=False).cuda()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3, history_size=7)
    x = torch.ones(2, width, device="cuda")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = (model(x) - 1).pow(2).mean()
        loss.backward()
        return loss

    with vramkit.profile(model, optimizer) as prof:
        optimizer.step(closure)  # type: ignore[no-untyped-call] # torch's

    pair = 2 * 4 * width * width
    told = [note for note in prof.result.notes if note.startswith("LBFGS")]
    assert len(told) == is_told
    assert all(f"keep 7 pairs of a step and a gradient, {pair / 1024:.1f} KiB ({pair:,} B)" in note for note in told)
    assert bool(next(iter(optimizer.state.values()))["old_dirs"]) != is_told

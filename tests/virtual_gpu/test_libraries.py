"""cuFFT, cuSOLVER, cuSPARSE and cuDNN's search on a virtual GPU: results, work areas, and what reads as a success."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
from subprocesses import run_on

import vramkit
from vramkit import virtual_gpu

pytest.importorskip("torch")
import torch
import torch.nn.functional as F

pytestmark = pytest.mark.virtual_gpu

L = torch.linalg
Asked = Callable[[torch.Tensor], Any]


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def positive(a: torch.Tensor) -> torch.Tensor:
    return a @ a.mT + 6 * torch.eye(a.shape[-1], device=a.device)


def again(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """A matrix from its factors, which have no signs of their own."""
    u, s, v = parts
    return (u[..., : s.shape[-1]] * s.unsqueeze(-2)) @ v[..., : s.shape[-1], :]


FACTORED: dict[str, Asked] = {
    "svd": lambda a: (L.svdvals(a), again(L.svd(a))),
    "svd, thin": lambda a: again(L.svd(a[..., :4], full_matrices=False)),
    "svd, complex": lambda a: again(L.svd(torch.complex(a, a.mT + 1))),
    "inv": L.inv,
    "qr": lambda a: torch.matmul(*L.qr(a[..., :4])),
    "cholesky": lambda a: L.cholesky(positive(a)),
    "eigh": lambda a: L.eigvalsh(positive(a)),
    "eig": lambda a: L.eig(a).eigenvalues.abs().sort().values,
    "eigvals": lambda a: L.eigvals(a).abs().sort().values,
    "matrix_exp": L.matrix_exp,
    "solve": lambda a: L.solve(a, a[..., :2]),
    "lu": lambda a: tuple(L.lu(a)),
    "lstsq": lambda a: L.lstsq(a[..., :4], a[..., :2]).solution,
    "det": L.det,
    "ldl": lambda a: L.ldl_solve(*L.ldl_factor(positive(a)), a[..., :2]),
    "householder": lambda a: L.householder_product(*torch.geqrf(a[..., :4])),
}
TRANSFORMED: dict[str, Asked] = {
    "fft": torch.fft.fft,
    "fftn of two": torch.fft.fft2,
    "real and back": lambda a: torch.fft.irfft2(torch.fft.rfft2(a)),
    "of a conjugate": lambda a: torch.fft.hfft(torch.complex(a, a + 1).conj()),
    "of a long prime": lambda a: torch.fft.rfft(a.flatten().repeat(4)[:131]),
    "stft": lambda a: torch.stft(a.flatten(), 4, return_complex=True, window=torch.ones(4, device=a.device)),
}
SPARSE: dict[str, Asked] = {
    "to COO": lambda a: a.relu().to_sparse().to_dense(),
    "to CSR": lambda a: a.relu().to_sparse_csr().to_dense(),
    "COO by dense": lambda a: torch.sparse.mm(a.relu().to_sparse(), a),
    "CSR by dense": lambda a: a.relu().to_sparse_csr() @ a,
    "BSR by dense": lambda a: a.to_sparse_bsr((2, 2)) @ a,
    "CSR by a vector": lambda a: a.relu().to_sparse_csr() @ a[0],
    "COO by COO": lambda a: torch.sparse.mm(a.relu().to_sparse(), a.relu().to_sparse()).to_dense(),
    "CSR by CSR": lambda a: (a.relu().to_sparse_csr() @ a.relu().to_sparse_csr()).to_dense(),
    "CSR and CSR": lambda a: (a.relu().to_sparse_csr() + (-a).relu().to_sparse_csr()).to_dense(),
    "twice the same index": lambda a: (
        torch.sparse_coo_tensor(torch.tensor([[0, 1, 1], [2, 0, 0]], device=a.device), a[0, :3], (2, 3))
        .coalesce()
        .values()
    ),
    "sampled": lambda a: torch.sparse.sampled_addmm(a.relu().to_sparse_csr(), a, a).to_dense(),
    "softmax": lambda a: torch.sparse.softmax(a.relu().to_sparse(), 1).to_dense(),
}


def flat(found: Any) -> list[torch.Tensor]:
    return [found.cpu()] if isinstance(found, torch.Tensor) else [each.cpu() for each in found]


@pytest.mark.parametrize("name", [*FACTORED, *TRANSFORMED, *SPARSE])
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning", "ignore:.*beta state:UserWarning")
def test_results_of_small_matrices_are_as_on_the_cpu(name: str) -> None:
    ask = {**FACTORED, **TRANSFORMED, **SPARSE}[name]
    batches = [numbers(6, 6), numbers(3, 6, 6)] if name in FACTORED else [numbers(6, 6)]

    for a in batches:
        for there, here in zip(flat(ask(a.cuda())), flat(ask(a)), strict=True):
            assert torch.allclose(there, here, rtol=1e-3, atol=1e-3)


def test_rows_of_an_embedding_with_sparse_gradients_are_trained_as_on_the_cpu() -> None:
    weights = {}
    for device in ("cpu", "cuda"):
        table = torch.nn.Embedding(10, 4, sparse=True, _weight=numbers(10, 4)).to(device)
        optimizer = torch.optim.SparseAdam(list(table.parameters()), lr=0.1)
        for _ in range(2):
            table(torch.tensor([1, 2, 2, 5], device=device)).pow(2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights[device] = table.weight.detach().cpu()

    assert torch.allclose(weights["cuda"], weights["cpu"], atol=1e-5)


@pytest.mark.parametrize("size", [4, 200], ids=["computed", "too large"])
@pytest.mark.parametrize("name", ["svd", "inv", "cholesky", "eigh", "solve", "lstsq", "det", "ldl", "eig", "eigvals"])
def test_a_factorization_succeeds_whatever_another_tensor_left_behind(name: str, size: int) -> None:
    # 200 x 200 numbers are too many to be computed: what says that it succeeded must not be a leftover.
    a = torch.eye(size, device="cuda")
    left = [torch.full((128,), -7, dtype=torch.int32, device="cuda") for _ in range(40)]
    del left

    with vramkit.profile(device="cuda") as prof:
        FACTORED[name](a)

    assert prof.result.notes == ()


@pytest.mark.parametrize("shape", [(100, 100), (4, 64, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_routine_for_eigenvalues_of_symmetric_matrices_answers(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    # cuSOLVER has several, and torch chooses by size, type and batch; of doubles these are too many to compute.
    a = numbers(*shape).to(dtype)
    a = a + a.mT

    values, vectors = L.eigh(a.cuda())

    assert vectors.shape == shape
    assert dtype is torch.float64 or torch.allclose(values.cpu(), L.eigvalsh(a), atol=1e-3)


def test_exponentials_of_matrices_that_were_not_computed_take_what_those_of_zeros_take() -> None:
    many = torch.empty(3, 200, 200, device="cuda")
    few = many.flatten()[:48].view(3, 4, 4)

    assert L.matrix_exp(many).shape == many.shape
    assert taken_by(lambda: L.matrix_exp(few)) == taken_by(lambda: L.matrix_exp(torch.zeros_like(few)))[1:]


def test_a_matrix_that_has_no_factors_is_refused_as_on_a_card() -> None:
    with pytest.raises(torch.linalg.LinAlgError, match="not positive-definite"):
        L.cholesky(torch.zeros(4, 4, device="cuda"))


def taken_by(run: Callable[[], object]) -> list[int]:
    """What a call allocated and gave back before it ended, in bytes as they were asked for."""
    torch.cuda.synchronize()
    torch.cuda.memory._record_memory_history("all", context=None, stacks="python")
    try:
        kept = run()
        trace = torch.cuda.memory._snapshot()["device_traces"][0]
    finally:
        torch.cuda.memory._record_memory_history(None)
    del kept
    freed = [entry["addr"] for entry in trace if entry["action"] == "free_completed"]
    return [entry["size"] for entry in trace if entry["action"] == "alloc" and entry["addr"] in freed]


@pytest.mark.parametrize(("shape", "size"), [((4, 64, 64), 0), ((4, 1 << 15), 8 * 4 << 15)], ids=["short", "long"])
def test_only_a_long_transform_wants_a_copy_of_its_data(shape: tuple[int, ...], size: int) -> None:
    x = torch.zeros(shape, dtype=torch.complex64, device="cuda")

    assert sum(taken_by(lambda: torch.fft.fft(x))) == size


@pytest.mark.parametrize(("side", "batch", "size"), [(4, 1, 2077), (4, 2, 3126), (4, 512, 1028 + 512 * 1049)])
def test_the_workspace_of_many_small_eigenproblems_is_what_was_published(side: int, batch: int, size: int) -> None:
    # cupy issue 7261: in numbers of complex64
    found = ctypes.c_int()

    ask = ctypes.CDLL(None).cusolverDnCheevjBatched_bufferSize
    assert ask(None, 0, 0, side, None, side, None, ctypes.byref(found), None, batch) == 0

    assert found.value == size


_SEARCH = """
import torch
torch.backends.cudnn.benchmark = {search}
layer = torch.nn.Conv2d(64, 64, 3, padding=1).cuda()
x = torch.zeros(16, 64, 28, 28, device="cuda")
torch.cuda.memory._record_memory_history("all", context=None, stacks="python")
result = []
for _ in range(2):
    begin = len(torch.cuda.memory._snapshot()["device_traces"][0])
    layer(x).sum().backward()
    trace = torch.cuda.memory._snapshot()["device_traces"][0][begin:]
    result.append([entry["size"] for entry in trace if entry["action"] == "alloc"])
"""


def test_a_search_tries_every_workspace_and_then_takes_the_plan_that_heuristics_put_first() -> None:
    (searched, after), (at_once, plain) = (
        run_on("a100-40gb", _SEARCH.format(search=search)) for search in (True, False)
    )

    assert after == plain
    assert max(searched) > max(plain)
    assert len(searched) > len(at_once)


def test_a_search_is_told_in_the_notes() -> None:
    x = torch.zeros(2, 3, 19, 19, device="cuda")
    weight = torch.zeros(4, 3, 3, 3, device="cuda")
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        with vramkit.profile(device="cuda") as prof:
            F.conv2d(x, weight)
        with vramkit.profile(device="cuda") as found:
            F.conv2d(x, weight)

    (note,) = prof.result.notes
    assert "heuristics" in note
    assert found.result.notes == ()


def test_it_is_known_which_functions_could_not_be_answered(gpu: virtual_gpu.VirtualGPU) -> None:
    before = gpu.limits_met
    with pytest.raises(RuntimeError):
        torch.ones(2, device="cuda").untyped_storage()._share_cuda_()

    assert gpu.limits_since(before) == ["cudaIpcGetMemHandle"]
    assert gpu.limits_since(gpu.limits_met) == []

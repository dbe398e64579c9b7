"""Products and what is built on them: cuBLAS, cuBLASLt, cuSOLVER, cuFFT, cuSPARSE."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from .common import BF16, DOUBLE, HALF, Part, Program, known, there_and_back, x

PROGRAMS: dict[str, Program] = {}

SHAPES = ((16, 16, 16), (128, 784, 512), (1024, 1024, 1024), (4096, 768, 3072), (1, 4096, 4096), (333, 77, 1001))
"""Rows, what is summed over, columns."""


def plain() -> Iterator[Part]:
    for dtype in (torch.float32, DOUBLE, BF16, HALF, torch.complex64):
        for m, k, n in SHAPES:
            name = f"{m}x{k}x{n} {dtype}"
            yield there_and_back(f"mm {name}", lambda m=m, k=k, n=n, dtype=dtype: x(m, k, dtype=dtype) @ x(
                k, n, dtype=dtype))  # fmt: skip
            yield there_and_back(f"turned {name}", lambda m=m, k=k, n=n, dtype=dtype: x(k, m, dtype=dtype).t() @ x(
                n, k, dtype=dtype).t())  # fmt: skip
            yield there_and_back(f"strided {name}", lambda m=m, k=k, n=n, dtype=dtype: x(
                m, 2 * k, dtype=dtype)[:, ::2] @ x(k, n, dtype=dtype))  # fmt: skip
            yield there_and_back(f"mv {name}", lambda m=m, k=k, dtype=dtype: x(m, k, dtype=dtype) @ x(k, dtype=dtype))
    yield there_and_back("dot", lambda: x(100_000) @ x(100_000))
    yield "outer", lambda: torch.outer(x(1000), x(1000))


def with_tf32() -> Iterator[Part]:
    torch.backends.cuda.matmul.allow_tf32 = True
    for m, k, n in SHAPES:
        yield there_and_back(f"mm {m}x{k}x{n}", lambda m=m, k=k, n=n: x(m, k) @ x(k, n))
        yield there_and_back(f"linear {m}x{k}x{n}", lambda m=m, k=k, n=n: F.linear(x(m, k), x(n, k), x(n)))


def epilogues() -> Iterator[Part]:
    for dtype in (torch.float32, BF16, HALF):
        for m, k, n in SHAPES:
            name = f"{m}x{k}x{n} {dtype}"
            yield there_and_back(f"linear {name}", lambda m=m, k=k, n=n, dtype=dtype: F.linear(
                x(m, k, dtype=dtype), x(n, k, dtype=dtype), x(n, dtype=dtype)))  # fmt: skip
            yield there_and_back(f"linear of three dimensions {name}", lambda m=m, k=k, n=n, dtype=dtype: F.linear(
                x(2, m, k, dtype=dtype), x(n, k, dtype=dtype), x(n, dtype=dtype)))  # fmt: skip
            yield there_and_back(f"addmm {name}", lambda m=m, k=k, n=n, dtype=dtype: torch.addmm(
                x(m, n, dtype=dtype), x(m, k, dtype=dtype), x(k, n, dtype=dtype), beta=0.5))  # fmt: skip
            for gelu in (False, True):
                yield f"with activation, gelu={gelu} {name}", lambda m=m, k=k, n=n, dtype=dtype, gelu=gelu: (
                    torch._addmm_activation(
                        x(n, dtype=dtype, grad=False), x(m, k, dtype=dtype, grad=False),
                        x(k, n, dtype=dtype, grad=False), use_gelu=gelu,
                    )
                )  # fmt: skip


def narrow() -> Iterator[Part]:
    one = lambda: torch.ones((), device="cuda")
    kinds = (torch.float8_e4m3fn, torch.float8_e5m2)
    for m, k, n in ((32, 64, 128), (1024, 1024, 1024), (4096, 768, 3072)):
        for left in kinds:
            for out in (BF16, torch.float32):
                yield (
                    f"scaled {m}x{k}x{n} {left} {out}",
                    lambda m=m, k=k, n=n, left=left, out=out: torch._scaled_mm(
                        x(m, k, grad=False).to(left), x(n, k, grad=False).to(kinds[0]).t(), one(), one(), out_dtype=out
                    ),
                )
        yield f"scaled by rows {m}x{k}x{n}", lambda m=m, k=k, n=n: torch._scaled_mm(
            x(m, k, grad=False).to(kinds[0]), x(n, k, grad=False).to(kinds[0]).t(),
            torch.ones(m, 1, device="cuda"), torch.ones(1, n, device="cuda"), out_dtype=BF16,
        )  # fmt: skip
        yield f"scaled with bias {m}x{k}x{n}", lambda m=m, k=k, n=n: torch._scaled_mm(
            x(m, k, grad=False).to(kinds[0]), x(n, k, grad=False).to(kinds[0]).t(), one(), one(),
            bias=x(n, dtype=BF16, grad=False), out_dtype=BF16, use_fast_accum=True,
        )  # fmt: skip
        yield (
            f"integers {m}x{k}x{n}",
            lambda m=m, k=k, n=n: torch._int_mm(
                torch.ones(m, k, dtype=torch.int8, device="cuda"), torch.ones(n, k, dtype=torch.int8, device="cuda").t()
            ),
        )
        yield (
            f"single of half {m}x{k}x{n}",
            lambda m=m, k=k, n=n: torch.mm(
                x(m, k, dtype=BF16, grad=False), x(k, n, dtype=BF16, grad=False), out_dtype=torch.float32
            ),
        )
    yield "grouped", lambda: torch._grouped_mm(
        x(256, 64, dtype=BF16, grad=False), x(4, 64, 128, dtype=BF16, grad=False),
        offs=torch.tensor([64, 128, 192, 256], dtype=torch.int32, device="cuda"),
    )  # fmt: skip


def batched() -> Iterator[Part]:
    for dtype in (torch.float32, BF16, DOUBLE):
        for batch, m, k, n in ((8, 64, 64, 64), (96, 512, 64, 512), (3, 100, 333, 7), (1000, 8, 8, 8)):
            name = f"{batch}x{m}x{k}x{n} {dtype}"
            yield there_and_back(f"bmm {name}", lambda b=batch, m=m, k=k, n=n, dtype=dtype: x(
                b, m, k, dtype=dtype) @ x(b, k, n, dtype=dtype))  # fmt: skip
            yield there_and_back(f"baddbmm {name}", lambda b=batch, m=m, k=k, n=n, dtype=dtype: torch.baddbmm(
                x(b, m, n, dtype=dtype), x(b, m, k, dtype=dtype), x(b, k, n, dtype=dtype)))  # fmt: skip
            yield there_and_back(f"einsum {name}", lambda b=batch, m=m, k=k, n=n, dtype=dtype: torch.einsum(
                "bmk,bnk->mbn", x(b, m, k, dtype=dtype), x(b, n, k, dtype=dtype)))  # fmt: skip
            yield there_and_back(f"broadcast {name}", lambda b=batch, m=m, k=k, n=n, dtype=dtype: x(
                b, m, k, dtype=dtype) @ x(k, n, dtype=dtype))  # fmt: skip


def definite(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Positive definite matrices, whatever the random numbers are."""
    made = 4 * torch.eye(shape[-1], dtype=dtype, device="cuda").expand(*shape[:-1], shape[-1])
    return (made + 0.01 * torch.ones(shape[-1], dtype=dtype, device="cuda")).clone().requires_grad_()


def factorizations() -> Iterator[Part]:
    linalg = torch.linalg
    for dtype in (torch.float32, DOUBLE):
        for shape in ((8, 8), (100, 100), (600, 600), (4, 64, 64), (200, 16, 16), (2, 700, 700)):
            make = lambda shape=shape, dtype=dtype: definite(*shape, dtype=dtype)
            right = lambda shape=shape, dtype=dtype: x(*shape[:-1], 3, dtype=dtype)
            name = f"{shape} {dtype}"
            yield there_and_back(f"inv {name}", lambda make=make: linalg.inv(make()))
            yield there_and_back(f"solve {name}", lambda make=make, right=right: linalg.solve(make(), right()))
            yield there_and_back(f"cholesky {name}", lambda make=make: linalg.cholesky(make()))
            yield there_and_back(f"det {name}", lambda make=make: linalg.det(make()))
            yield there_and_back(f"slogdet {name}", lambda make=make: linalg.slogdet(make()))
            yield there_and_back(f"qr {name}", lambda make=make: linalg.qr(make()))
            yield there_and_back(f"lu {name}", lambda make=make: linalg.lu(make()))
            yield f"lu_factor {name}", lambda make=make: linalg.lu_factor(make().detach())
            yield f"svd {name}", lambda make=make: linalg.svd(make().detach())
            yield f"svdvals {name}", lambda make=make: linalg.svdvals(make().detach())
            for driver in ("gesvd", "gesvdj", "gesvda"):
                yield (
                    f"svd {driver} {name}",
                    lambda make=make, driver=driver: linalg.svd(make().detach(), driver=driver),
                )
            yield f"eigh {name}", lambda make=make: linalg.eigh(make().detach())
            yield f"eigvalsh {name}", lambda make=make: linalg.eigvalsh(make().detach())
            yield f"pinv {name}", lambda make=make: linalg.pinv(make().detach())
            yield (
                f"triangular {name}",
                lambda make=make, right=right: linalg.solve_triangular(make().detach(), right().detach(), upper=True),
            )
            yield (
                f"cholesky_solve {name}",
                lambda make=make, right=right: torch.cholesky_solve(right().detach(), make().detach()),
            )
            yield f"matrix_exp {name}", lambda make=make: linalg.matrix_exp(make().detach())
    for shape in ((300, 40), (40, 300), (8, 50, 20)):
        yield f"qr {shape}", lambda shape=shape: linalg.qr(x(*shape, grad=False))
        yield f"svd {shape}", lambda shape=shape: linalg.svd(x(*shape, grad=False), full_matrices=False)
    yield "eig", lambda: linalg.eig(definite(50, 50).detach())
    yield "ldl", lambda: linalg.ldl_factor(definite(64, 64).detach())


def least_squares() -> Iterator[Part]:
    for dtype in (torch.float32, DOUBLE):
        for shape in ((8, 8), (100, 100), (600, 600), (4, 64, 64), (300, 40), (8, 50, 20)):
            yield (
                f"lstsq {shape} {dtype}",
                lambda shape=shape, dtype=dtype: torch.linalg.lstsq(
                    x(*shape, dtype=dtype, grad=False), x(*shape[:-1], 2, dtype=dtype, grad=False)
                ),
            )


def transforms() -> Iterator[Part]:
    fft = torch.fft
    for shape in ((1024,), (64, 1000), (8, 3, 224, 224), (2, 32, 32, 32), (16, 127), (16, 2018), (4, 1 << 18)):
        for dtype in (torch.float32, DOUBLE):
            make = lambda shape=shape, dtype=dtype: x(*shape, dtype=dtype)
            name = f"{shape} {dtype}"
            yield there_and_back(f"rfft {name}", lambda make=make: fft.irfft(fft.rfft(make())))
            yield there_and_back(f"fft {name}", lambda make=make: fft.fft(make()).abs())
            if len(shape) > 1:
                yield there_and_back(f"rfft2 {name}", lambda make=make: fft.irfft2(fft.rfft2(make())))
                yield there_and_back(f"fftn {name}", lambda make=make: fft.ifftn(fft.fftn(make())).abs())
                yield f"fft of rows {name}", lambda make=make: fft.fft(make().detach(), dim=0)
    yield there_and_back("stft", lambda: torch.stft(
        x(4, 16000), 400, 160, window=torch.ones(400, device="cuda"), return_complex=True).abs())  # fmt: skip
    yield "istft", lambda: torch.istft(torch.stft(
        x(4, 16000, grad=False), 512, window=torch.ones(512, device="cuda"), return_complex=True),
        512, window=torch.ones(512, device="cuda"))  # fmt: skip


def sparse_products() -> Iterator[Part]:
    def matrix(rows: int, columns: int, layout: torch.layout) -> torch.Tensor:
        dense = known(rows, columns) * (known(rows, columns, high=4) == 0)
        return dense.to_sparse(layout=layout)

    for rows, columns in ((100, 80), (256, 256)):
        for layout in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc):
            name = f"{rows}x{columns} {layout}"
            make = lambda r=rows, c=columns, layout=layout: matrix(r, c, layout)
            yield f"made {name}", make
            yield f"times dense {name}", lambda make=make, c=columns: make() @ x(c, 32, grad=False)
            yield f"times vector {name}", lambda make=make, c=columns: make() @ x(c, grad=False)
            yield (
                f"times sparse {name}",
                lambda make=make, r=rows, c=columns, layout=layout: make() @ matrix(c, r, layout),
            )
            yield f"to dense {name}", lambda make=make: make().to_dense()
            yield f"sum {name}", lambda make=make: make() + make()
    yield "blocks", lambda: (known(64, 64) @ known(64, 64)).to_sparse_bsr((16, 16)) @ x(64, 32, grad=False)
    yield (
        "sampled",
        lambda: torch.sparse.sampled_addmm(
            matrix(64, 64, torch.sparse_csr), x(64, 16, grad=False), x(16, 64, grad=False)
        ),
    )
    yield there_and_back("sparse.mm", lambda: torch.sparse.mm(matrix(100, 80, torch.sparse_coo), x(80, 16)))
    yield "softmax", lambda: torch.sparse.softmax(matrix(100, 80, torch.sparse_coo), 1)


PROGRAMS["products: plain"] = plain
PROGRAMS["products: with TF32"] = with_tf32
PROGRAMS["products: with bias and activation"] = epilogues
PROGRAMS["products: of eight bits, and wider results"] = narrow
PROGRAMS["products: batched"] = batched
PROGRAMS["linalg"] = factorizations
PROGRAMS["linalg: least squares"] = least_squares
PROGRAMS["fft"] = transforms
PROGRAMS["sparse"] = sparse_products

"""What CUDA's context and its libraries take of a card: each stage in a fresh process that has the card for itself, and
all of them one after another in one process.

What is taken beside torch's segments is `used - reserved`; `used` is cudaMemGetInfo's total less its free bytes.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

from . import driver


def _steps() -> dict[str, Callable[[], object]]:
    """What can be used first, in the order in which one process uses all."""
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torch.nn.attention import SDPBackend, sdpa_kernel

    half = torch.bfloat16

    def x(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = True) -> Any:
        return torch.ones(shape, dtype=dtype, device="cuda", requires_grad=grad)

    def attend(backend: SDPBackend, dtype: torch.dtype = half) -> None:
        with sdpa_kernel(backend):
            heads = [x(2, 4, 128, 64, dtype=dtype) for _ in range(3)]
            F.scaled_dot_product_attention(*heads, is_causal=True).sum().backward()

    return {
        "empty": lambda: torch.empty(1, device="cuda"),
        "zeros": lambda: torch.zeros(1, device="cuda"),
        "sum of two": lambda: x(100) + x(100),
        "reduction": lambda: x(1000).sum(),
        "softmax": lambda: x(64, 100).softmax(-1),
        "layer norm": lambda: F.layer_norm(x(64, 100), (100,)).sum().backward(),
        "index": lambda: F.embedding(torch.arange(50, device="cuda"), x(100, 64)).sum().backward(),
        "sort": lambda: x(100_000).sort(),
        "random": lambda: torch.randn(1000, device="cuda"),
        "cuBLAS handle": lambda: torch.cuda.current_blas_handle(),
        "cuBLAS": lambda: x(512, 512) @ x(512, 512),
        "cuBLAS, bfloat16": lambda: x(512, 512, dtype=half) @ x(512, 512, dtype=half),
        "cuBLASLt": lambda: F.linear(x(512, 512, dtype=half), x(512, 512, dtype=half), x(512, dtype=half)),
        "flash attention": lambda: attend(SDPBackend.FLASH_ATTENTION),
        "efficient attention": lambda: attend(SDPBackend.EFFICIENT_ATTENTION, torch.float32),
        "cuDNN attention": lambda: attend(SDPBackend.CUDNN_ATTENTION),
        "cuDNN convolution": lambda: nn.Conv2d(16, 32, 3, device="cuda")(x(8, 16, 32, 32)).sum().backward(),
        "cuDNN batch norm": lambda: nn.BatchNorm2d(16, device="cuda")(x(8, 16, 32, 32)).sum().backward(),
        "cuDNN RNN": lambda: nn.LSTM(64, 64, device="cuda")(x(10, 8, 64))[0].sum().backward(),
        "cuFFT": lambda: torch.fft.fft(x(8, 1000, grad=False)),
        "cuSOLVER": lambda: torch.linalg.cholesky(torch.eye(600, device="cuda")),
        "cuSPARSE": lambda: torch.eye(100, device="cuda").to_sparse_csr() @ x(100, 8, grad=False),
        "Adam": lambda: _stepped(torch.optim.Adam, x(1000)),
    }


def _stepped(kind: Any, parameter: Any) -> None:
    parameter.sum().backward()
    kind([parameter]).step()


def _train(program: Any) -> None:
    for _, call in program():
        call()


FIRST = (
    "empty", "zeros", "sum of two", "reduction", "sort", "random", "cuBLAS handle", "cuBLAS", "cuBLAS, bfloat16",
    "cuBLASLt", "flash attention", "efficient attention", "cuDNN attention", "cuDNN convolution", "cuDNN RNN", "cuFFT",
    "cuSOLVER", "cuSPARSE",
)  # fmt: skip
"""What a fresh process uses first and alone."""
TRAINED = ("training: CNN", "training: GPT, autocast", "training: MLP, accumulated and clipped")

STAGES: tuple[tuple[str, dict[str, str]], ...] = (
    ("driver", {}),
    ("driver, again", {}),
    *((name, {}) for name in FIRST),
    *((name, {}) for name in TRAINED),
    ("one after another", {}),
    ("driver", {"CUDA_MODULE_LOADING": "EAGER"}),
    ("zeros", {"CUDA_MODULE_LOADING": "EAGER"}),
    ("cuBLAS", {"CUDA_MODULE_LOADING": "EAGER"}),
    ("one after another", {"CUDA_MODULE_LOADING": "EAGER"}),
)
"""Each with its environment."""


def measure(name: str, wait: Callable[[], None], answer: Callable[[dict[str, Any]], None]) -> None:
    """Be the process of a stage."""
    if name.startswith("driver"):
        wait()
        answer({"before": driver.nvml_memory(), "steps": [_primary_context()]})
        return
    import torch

    steps = _steps()
    from . import zoo  # before the wait

    wait()
    before, found = driver.nvml_memory(), []
    begin = time.perf_counter()
    torch.cuda.init()
    torch.empty(0, device="cuda")
    found.append(_state("context"))
    chosen = steps if name == "one after another" else {name: steps.get(name) or (lambda: _train(zoo.PROGRAMS[name]))}
    for step, call in chosen.items():
        try:
            call()
            torch.cuda.synchronize()
        except Exception as error:  # the other steps are worth having
            found.append({"step": step, "error": f"{type(error).__name__}: {error}"[:300]})
            continue
        found.append(_state(step))
        answer({"before": before, "steps": found})
    torch.cuda.empty_cache()
    found.append(_state("cache given back"))
    answer(
        {
            "before": before,
            "steps": found,
            "run_seconds": round(time.perf_counter() - begin, 3),
            "nvidia-smi": driver.nvidia_smi("--query-compute-apps=pid,used_memory", "--format=csv"),
        }
    )


def _state(step: str) -> dict[str, Any]:
    import torch

    free, total = driver.memory_info()
    return {
        "step": step,
        "used": total - free,
        "total": total,
        "reserved": torch.cuda.memory_reserved(),
        "nvml": driver.nvml_memory(),
    }


def _primary_context() -> dict[str, Any]:
    """A context without torch and without any kernel."""
    cuda = ctypes.CDLL("libcuda.so.1")
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    status = [cuda.cuInit(0), cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0), cuda.cuCtxSetCurrent(context)]
    status.append(cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
    return {
        "step": "primary context", "status": status, "used": total.value - free.value, "total": total.value,
        "reserved": 0, "nvml": driver.nvml_memory(),
    }  # fmt: skip

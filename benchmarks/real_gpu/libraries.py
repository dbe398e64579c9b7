"""What cuDNN, cuSOLVER and cuFFT say they want, of a grid of problems: asked of the libraries themselves, on a card.

    python -m benchmarks.real_gpu.libraries FILE

Some seconds. The virtual GPU has to know these sizes: the libraries make no handle without a device. FILE has a line of
JSON for each problem; ``status`` is 0 where the library answered.
"""

from __future__ import annotations

import ctypes as c
import gzip
import json
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def _library(*names: str) -> c.CDLL:
    import torch

    folder = Path(torch.__file__).parents[1] / "nvidia"
    for name in names:
        for path in (name, *map(str, sorted(folder.glob(f"*/lib/{name}")))):
            try:
                return c.CDLL(path)
            except OSError:
                continue
    raise OSError(f"none of {names} is there")


def _made(make: Callable[[Any], int]) -> c.c_void_p:
    made = c.c_void_p()
    status = make(c.byref(made))
    if status:
        raise OSError(f"a handle or descriptor was refused: status {status}")
    return made


def recurrent(cudnn: c.CDLL) -> Iterator[Row]:
    """Workspace and reserve in inference and in training."""
    import torch

    handle, network, data = (
        _made(make) for make in (cudnn.cudnnCreate, cudnn.cudnnCreateRNNDescriptor, cudnn.cudnnCreateRNNDataDescriptor)
    )
    size = c.c_size_t()
    cudnn.cudnnDropoutGetStatesSize(handle, c.byref(size))
    states = torch.zeros(size.value, dtype=torch.uint8, device="cuda")
    dropouts = {}
    for rate in (0.0, 0.5):
        dropouts[rate] = _made(cudnn.cudnnCreateDropoutDescriptor)
        where = (c.c_void_p(states.data_ptr()), size) if rate else (None, c.c_size_t(0))
        cudnn.cudnnSetDropoutDescriptor(dropouts[rate], handle, c.c_float(rate), *where, c.c_ulonglong(0))
    lengths = ((35, 20), (100, 16), (1, 64), (20, 64), (50, 32), (7, 128), (10, 8), (200, 1), (64, 64))
    for mode, kind, both, (steps, batch), hidden, algorithm, layers, rate in product(
        (2, 3, 1, 0),
        (0, 2, 1),
        (0, 1),
        lengths,
        (200, 256, 33, 64, 128, 512, 650, 1024),
        (0, 1),
        (1, 2, 3, 4),
        dropouts,
    ):
        if rate and layers == 1:
            continue
        for width in {hidden, hidden if algorithm or rate else 39}:
            status = cudnn.cudnnSetRNNDescriptor_v8(
                network, algorithm, mode, 2, both, 0, kind, int(kind == 1), int(kind == 2), width, hidden, hidden,
                layers, dropouts[rate], 1,
            )  # fmt: skip
            every = (c.c_int * batch)(*[steps] * batch)
            status = status or cudnn.cudnnSetRNNDataDescriptor(data, kind, 0, steps, batch, width, every, None)
            sizes = []
            for training in (0, 1):
                work, reserve = c.c_size_t(), c.c_size_t()
                if not status:
                    status = cudnn.cudnnGetRNNTempSpaceSizes(
                        handle, network, training, data, c.byref(work), c.byref(reserve)
                    )
                sizes += [work.value, reserve.value]
            yield {
                "kind": "recurrent", "status": status, "mode": mode, "type": kind, "directions": both + 1,
                "steps": steps, "batch": batch, "hidden": hidden, "input": width, "algorithm": algorithm,
                "layers": layers, "dropout": rate, "inference": sizes[0], "training": sizes[2], "reserve": sizes[3],
            }  # fmt: skip


def normalization(cudnn: c.CDLL) -> Iterator[Row]:
    """Workspaces of batch norm in training, forward and backward, and its reserve; mode 2 is the persistent one."""
    handle, x, weights = (
        _made(make)
        for make in (cudnn.cudnnCreate, cudnn.cudnnCreateTensorDescriptor, cudnn.cudnnCreateTensorDescriptor)
    )
    for batch, channels, side, last, kind, mode in product(
        (1, 2, 8, 16, 32, 64, 128), (16, 24, 64, 96, 128, 256, 512, 1024, 2048), (1, 7, 14, 28, 56, 112),
        (0, 1), (0, 2), (1, 2),
    ):  # fmt: skip
        plane = side * side
        strides = (channels * plane, 1, side * channels, channels) if last else (channels * plane, plane, side, 1)
        status = cudnn.cudnnSetTensor4dDescriptorEx(x, kind, batch, channels, side, side, *strides)
        status = status or cudnn.cudnnDeriveBNTensorDescriptor(weights, x, mode)
        forward, backward, reserve = c.c_size_t(), c.c_size_t(), c.c_size_t()
        status = status or cudnn.cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
            handle, mode, 0, x, None, x, weights, None, c.byref(forward)
        )
        status = status or cudnn.cudnnGetBatchNormalizationBackwardExWorkspaceSize(
            handle, mode, 0, x, None, x, None, x, weights, None, c.byref(backward)
        )
        status = status or cudnn.cudnnGetBatchNormalizationTrainingExReserveSpaceSize(
            handle, mode, 0, None, x, c.byref(reserve)
        )
        yield {
            "kind": "batch norm", "status": status, "batch": batch, "channels": channels, "side": side, "last": last,
            "type": kind, "mode": mode, "forward": forward.value, "backward": backward.value, "reserve": reserve.value,
        }  # fmt: skip


def factorizations(cusolver: c.CDLL) -> Iterator[Row]:
    """Elements of the work areas of the older interface, by its functions' names; negative: a status."""
    handle = _made(cusolver.cusolverDnCreate)

    def asked(name: str, *given: Any) -> int:
        found = c.c_int()
        status = getattr(cusolver, f"cusolverDn{name}_bufferSize")(handle, *given, c.byref(found))
        return -status if status else found.value

    for letter in "SDCZ":
        real = letter in "SD"
        generate, times, eigen = ("orgqr", "ormqr", "syevd") if real else ("ungqr", "unmqr", "heevd")
        for n in (
            *range(1, 6),
            8,
            16,
            31,
            32,
            33,
            64,
            100,
            128,
            200,
            255,
            256,
            257,
            512,
            600,
            1000,
            1024,
            1025,
            2048,
            4096,
        ):
            for m in sorted({n, 2 * n, max(1, n // 2)}):
                least = min(m, n)
                yield {
                    "kind": "factorization", "status": 0, "letter": letter, "m": m, "n": n,
                    "getrf": asked(f"{letter}getrf", m, n, None, m),
                    "geqrf": asked(f"{letter}geqrf", m, n, None, m),
                    "gesvd": asked(f"{letter}gesvd", max(m, n), least),
                    generate: asked(f"{letter}{generate}", m, least, least, None, m, None),
                    times: asked(f"{letter}{times}", 0, 1 if real else 2, m, n, least, None, m, None, None, m),
                }  # fmt: skip
            for upper in (0, 1):
                yield {
                    "kind": "symmetric", "status": 0, "letter": letter, "n": n, "upper": upper,
                    "potrf": asked(f"{letter}potrf", upper, n, None, n),
                    "potri": asked(f"{letter}potri", upper, n, None, n),
                    f"{eigen}, values": asked(f"{letter}{eigen}", 0, upper, n, None, n, None),
                    f"{eigen}, vectors": asked(f"{letter}{eigen}", 1, upper, n, None, n, None),
                }  # fmt: skip


def transforms(cufft: c.CDLL) -> Iterator[Row]:
    """Bytes of the work areas of plans."""
    kinds = {"C2C": 0x29, "R2C": 0x2A, "C2R": 0x2C, "Z2Z": 0x69, "D2Z": 0x6A, "Z2D": 0x6C}
    shapes = (
        (64,), (1000,), (2018,), (1024,), (4096,), (8192,), (32768,), (65536,), (1 << 20,), (97,), (1009,), (4099,),
        (3000,), (16384,), (7,), (32, 32), (256, 256), (28, 28), (224, 224), (1000, 1000), (127, 128), (512, 1024),
        (8, 8, 8), (32, 32, 32), (64, 64, 64), (17, 32, 64), (100, 100, 100),
    )  # fmt: skip
    for shape, batch, kind in product(shapes, (1, 2, 16, 64), kinds):
        plan, size, sides = c.c_int(), c.c_size_t(), (c.c_longlong * len(shape))(*shape)
        cufft.cufftCreate(c.byref(plan))
        cufft.cufftSetAutoAllocation(plan, 0)
        one = c.c_longlong(1)
        status = cufft.cufftMakePlanMany64(
            plan, len(shape), sides, None, one, one, None, one, one, kinds[kind], c.c_longlong(batch), c.byref(size)
        )
        cufft.cufftDestroy(plan)
        yield {
            "kind": "transform", "status": status, "shape": shape, "batch": batch, "type": kind, "work": size.value
        }  # fmt: skip


def main(path: str) -> None:
    import torch

    torch.zeros(1, device="cuda")
    cudnn = _library("libcudnn.so.9")
    cudnn.cudnnGetVersion.restype = c.c_size_t
    begin = {"kind": "versions", "torch": torch.__version__, "cudnn": cudnn.cudnnGetVersion()}
    with gzip.open(path, "wt") as file:
        file.write(json.dumps(begin) + "\n")
        for rows in (
            recurrent(cudnn),
            normalization(cudnn),
            factorizations(_library("libcusolver.so.12", "libcusolver.so.11")),
            transforms(_library("libcufft.so.12", "libcufft.so.11")),
        ):
            for row in rows:
                file.write(json.dumps(row, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])

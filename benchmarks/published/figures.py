"""The figures: who published them, on which card and torch, and which program here says the same.

Knows no program: ``call`` names it, and it runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

MIB, GIB, GB = 1 << 20, 1 << 30, 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Who published figures."""

    name: str
    where: str
    """Repository at a commit, and the file."""
    card: str
    torch: str
    gpu: str
    """The card's name here."""
    what: str
    unit: str
    size: int
    """Bytes of a unit."""
    digits: int | None
    """Decimals that were published; None: the figure is a float32, all digits."""
    setup: str
    """Imports of the program."""
    context: int = 0
    """Bytes that CUDA's context took, where it was not what is assumed for the card; 0: that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    source: Source
    program: str
    value: float
    """In the source's unit."""
    call: str
    """Says the same in bytes, after ``source.setup``."""
    why: str = ""
    """Where it is known why ours is another, the reason."""


OLD_CONTEXT = 1341 * MIB
"""Of a context before CUDA 11.7, which loaded all kernels: what the source of BERT found before it had a model."""

LIGER = Source(
    name="Liger-Kernel",
    where="linkedin/Liger-Kernel@ead96b61 benchmark/data/all_benchmark_data.csv",
    card="A100-SXM4-80GB",
    torch="of September to November 2024",
    gpu="a100-80gb",
    what="max_memory_allocated()",
    unit="MiB",
    size=MIB,
    digits=None,
    setup="from benchmarks.published import kernels",
)
ATTENTION = Source(
    name="Attention by hand",
    where="GAOYUEtianc/Stanford-CS336-assignments@f06a68ce assignment2-systems/answers.md",
    card="A100 80GB PCIe",
    torch="2.6.0",
    gpu="a100-80gb",
    what="max_memory_allocated()",
    unit="GB",
    size=GB,
    digits=3,
    setup="from benchmarks.published import kernels",
)
GPT = Source(
    name="GPT with 124 million parameters",
    where="rasbt/LLMs-from-scratch@28c65cdf ch05/10_llm-training-speed/README.md",
    card="A100",
    torch="2.6.0",
    gpu="a100-40gb",
    what="memory_reserved() after an epoch",
    unit="GiB",
    size=GIB,
    digits=4,
    setup="from benchmarks.published import language_models",
)
VIT = Source(
    name="ViT-L/16",
    where="rasbt/pytorch-memory-optim@f6eddcd2 logs.md",
    card="A100",
    torch="2.1.0.dev20230623",
    gpu="a100-40gb",
    what="max_memory_reserved()",
    unit="GB",
    size=GB,
    digits=2,
    setup="from benchmarks.published import images",
)
BERT = Source(
    name="BERT-large",
    where="huggingface/transformers@0ad5fe67 docs/source/performance.mdx",
    card="V100-SXM2-16GB",
    torch="1.10",
    gpu="v100-16gb",
    what="NVML, used on the device",
    unit="MiB",
    size=MIB,
    digits=0,
    setup="from benchmarks.published import bert",
    context=OLD_CONTEXT,
)
FINE_TUNING = Source(
    name="Whole fine-tuning",
    where="foundation-model-stack/fms-acceleration@876e2ed6 scripts/benchmarks/refs/a100_80gb.csv",
    card="A100-80GB",
    torch="2.4.1",
    gpu="a100-80gb",
    what="max_memory_allocated()",
    unit="B",
    size=1,
    digits=0,
    setup="from benchmarks.published import fine_tuning",
)
CONVNEXT = Source(
    name="ConvNeXt-L",
    where="mila-iqia/milabench@faf39234 config/scaling/H100.yaml",
    card="H100",
    torch="2.6",
    gpu="h100",
    what="NVML, used on the device",
    unit="MiB",
    size=MIB,
    digits=0,
    setup="from benchmarks.published import images",
)
TIMM_TRAINS = Source(
    name="timm's largest batches, training",
    where="huggingface/pytorch-image-models@aa4b5850 results/benchmark-train-amp-nchw-pt112-cu113-rtx3090.csv",
    card="RTX 3090",
    torch="1.12",
    gpu="rtx3090",
    what="the first batch size that fits, from above",
    unit="images",
    size=1,
    digits=0,
    setup="from benchmarks.published import batches",
    context=OLD_CONTEXT,
)
TIMM_INFERS = replace(
    TIMM_TRAINS,
    name="timm's largest batches, inference",
    where="huggingface/pytorch-image-models@aa4b5850 results/benchmark-infer-amp-nchw-pt291-cu128-4090.csv",
    card="RTX 4090",
    torch="2.9.1",
    gpu="rtx4090",
    context=0,
)

_LIGER: Mapping[str, Mapping[int, float]] = {
    "cross_entropy": {
        4096: 1280.1259765625,
        8192: 2560.1259765625,
        16384: 5120.1259765625,
        32768: 10240.1259765625,
        65536: 20480.125,
        131072: 40960.125,
    },
    "linear_cross_entropy": {4096: 6092.2822265625, 8192: 9162.3134765625, 16384: 15302.3759765625, 32768: 27582.5},
    "geglu": {1024: 1992.25, 2048: 3452.25, 4096: 6372.25, 8192: 12212.25},
    "layer_norm": {1024: 80.0625, 2048: 160.09375, 4096: 320.15625, 8192: 640.28125, 16384: 1280.53125},
    "rms_norm": {
        1024: 80.01953125,
        2048: 160.03125,
        4096: 320.0546875,
        8192: 640.1015625,
        16384: 1280.1953125,
        32768: 2560.3828125,
    },
    "swiglu": {1024: 1294.25, 2048: 1992.25, 4096: 3452.25, 8192: 6372.25},
}
"""By program, and what it is given: vocabulary, rows, length, or width."""

_ATTENTION: Mapping[int, Mapping[int, float]] = {
    16: {256: 0.026, 1024: 0.155, 4096: 2.179, 8192: 8.636, 16384: 34.435},
    32: {256: 0.027, 1024: 0.159, 4096: 2.194, 8192: 8.666, 16384: 34.494},
    64: {256: 0.029, 1024: 0.166, 4096: 2.223, 8192: 8.724, 16384: 34.612},
    128: {256: 0.033, 1024: 0.181, 4096: 2.282, 8192: 8.842, 16384: 34.847},
}
"""By width, and by length."""

_READING = "how it was changed is told in one sentence; this is one reading of it"
_GPT = (
    ("as it was", 26.2617, "original", ""),
    ("the mask made when it is needed", 26.2422, "mask_on_the_fly", ""),
    ("float32 products on tensor cores", 26.2422, "mask_on_the_fly", ""),
    ("fused AdamW", 26.2422, "fused", ""),
    ("bfloat16", 13.7871, "bfloat16", _READING),
    ("torch's LayerNorm and GELU", 11.5645, "torch_layers", _READING),
    ("scaled_dot_product_attention", 5.9004, "flash", "equal with torch 2.8.0; 2.14.1 needs less"),
)

_VIT = (
    ("float32, 64 images", 26.79, "images.Run()", "equal with torch 2.8.0; 2.14.1 takes 34 MiB more"),
    ("float16 by autocast", 18.21, 'images.Run(precision="16-mixed")', ""),
    ("bfloat16", 13.82, 'images.Run(precision="bf16-true")', ""),
    ("16 images", 5.69, 'images.Run(16, "bf16-true")', ""),
    ("4 images, 4 accumulated", 3.91, 'images.Run(4, "bf16-true", 4)', "a segment of 20 MiB more; not understood"),
    ("SGD", 2.02, 'images.Run(4, "bf16-true", 4, "sgd")', ""),
)

_CUBLAS = "what cuBLAS took from CUDA for itself is not known"
_BERT = (
    ("4 texts", 14949, "bert.Run()", _CUBLAS),
    ("1 text, 4 accumulated", 8681, "bert.Run(1, 4)", _CUBLAS),
    ("1 text, 4 accumulated, checkpointing", 6775, "bert.Run(1, 4, True)", _CUBLAS),
    ("4 texts, float16 by autocast", 13939, "bert.Run(half=True)", "not understood"),
    ("1 text, 4 accumulated, checkpointing, float16", 7275, "bert.Run(1, 4, True, True)", _CUBLAS),
    ("4 texts, Adafactor", 12295, "bert.Run(optimizer=bert.Adafactor)", "not understood"),
    ("the fifth with Adafactor", 4847, "bert.Run(1, 4, True, True, bert.Adafactor)", _CUBLAS),
)
_FINE_TUNING = (
    ("SantaCoder", 11267745280, "santacoder", "4 MiB are a mask that today's transformers has as a buffer"),
    ("Mistral-7B", 72434837504, "mistral", "457 KiB, not followed: the texts' lengths are not published"),
)
_CONTEXT = "the context and what the driver keeps are an H200's"
_CONVNEXT = {64: 24989, 144: 53069, 216: 78435}
_TRAINS = {
    "densenet121": (224, 256),
    "mixer_b16_224": (224, 256),
    "vgg16": (224, 384),
    "vit_base_patch16_224": (224, 192),
    "resnet152": (224, 192),
    "convnext_base": (224, 128),
    "efficientnet_b4": (320, 96),
    "swin_base_patch4_window7_224": (224, 128),
    "regnety_160": (224, 192),
    "vit_large_patch16_224": (224, 64),
}
"""By network: the width of its images, and the batch."""
_INFERS = {
    "regnety_320": (384, 384),
    "swin_large_patch4_window12_384": (384, 128),
    "maxvit_large_tf_512": (512, 64),
}


def _figures() -> Iterator[Figure]:
    for name, row in _LIGER.items():
        for size, value in row.items():
            yield Figure(source=LIGER, program=f"{name} {size}", value=value, call=f"kernels.{name}({size})")
    for width, row in _ATTENTION.items():
        for length, value in row.items():
            program, call = f"length {length}, width {width}", f"kernels.attention({length}, {width})"
            yield Figure(source=ATTENTION, program=program, value=value, call=call)
    for program, value, changes, why in _GPT:
        call = f"language_models.epoch(language_models.CHANGES[{changes!r}])"
        yield Figure(source=GPT, program=program, value=value, call=call, why=why)
    for program, value, run, why in _VIT:
        yield Figure(source=VIT, program=program, value=value, call=f"images.train({run})", why=why)
    for program, value, run, why in _BERT:
        yield Figure(source=BERT, program=program, value=value, call=f"bert.train({run})", why=why)
    for program, value, name, why in _FINE_TUNING:
        call = f"fine_tuning.train(fine_tuning.{name}())"
        yield Figure(source=FINE_TUNING, program=program, value=value, call=call, why=why)
    for batch, value in _CONVNEXT.items():
        yield Figure(
            source=CONVNEXT, program=f"{batch} images", value=value, call=f"images.convnext({batch})", why=_CONTEXT
        )
    for source, sizes, trains in ((TIMM_TRAINS, _TRAINS, True), (TIMM_INFERS, _INFERS, False)):
        for name, (width, value) in sizes.items():
            options = f"width={width}, above={2 * value}, trains={trains}, of_2022={trains}"
            yield Figure(source=source, program=name, value=value, call=f"batches.largest({name!r}, {options})")


FIGURES = tuple(_figures())

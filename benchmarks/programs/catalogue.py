"""The programs: where each comes from, what it is given in place of data and of the hub, and its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .standins import graphs, hub, images, text

StandIn = tuple[Callable[[Path], None], str]
"""What makes a stand-in, and the folder of the program's that it is made in."""
_OWN = str(Path(__file__).parent / "scripts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One program and how it is run."""

    name: str
    repository: str = ""
    """``"owner/name"``; empty: it comes with an installed package, or with these benchmarks."""
    commit: str = ""
    paths: tuple[str, ...] = ()
    """What is taken of the repository."""
    package: str = ""
    """The package that has it, or that it shows."""
    folder: str = "."
    """Where it runs, from the root of its files."""
    run: tuple[str, ...]
    """The script, or -m and a module, and the arguments."""
    options: tuple[str, ...] = ()
    """More options of ``vramkit run``."""
    standins: tuple[StandIn, ...] = ()
    path: str = ""
    """A folder of its files that Python finds modules in."""
    environment: Mapping[str, str] = field(default_factory=dict)


_EXAMPLES: dict[str, Any] = {"repository": "pytorch/examples", "commit": "77f55b912142e11fcfdf5b530231fb9c52f181e8"}
_NANOGPT: dict[str, Any] = {
    "repository": "karpathy/nanoGPT",
    "commit": "3adf61e154c3fe3fca428ad6bc3818b27a3b8291",
    "paths": (".",),
    "standins": ((text.characters, "data/shakespeare_char"),),
}
_ACCELERATE: dict[str, Any] = {
    "repository": "huggingface/accelerate",
    "commit": "16cb6eb80dd9aa8b4df1a63ef57863e455d53b83",
}
_LIGHTNING: dict[str, Any] = {
    "repository": "Lightning-AI/pytorch-lightning",
    "commit": "7f0c3436cd3f6ad3753125672024fc415cbcb414",
}
_GLUE = ((hub.bert, "."), (hub.glue, "."))
_CHATS = ((hub.qwen, "."), (hub.chats, "."))


def _example(name: str, *arguments: str, **more: Any) -> Program:
    folder = name.partition(" ")[0]
    fields: dict[str, Any] = {"standins": ((images.mnist, "data"),), "paths": (folder,), **_EXAMPLES, **more}
    return Program(name=f"examples/{name}", folder=folder, run=("main.py", *arguments), **fields)


def _words(model: str) -> Program:
    folder = "word_language_model"
    return _example(
        f"{folder} {model}",
        *("--accel", "--model", model, "--epochs", "1"),
        paths=(folder, f":!{folder}/data"),
        standins=((text.words, f"{folder}/data/wikitext-2"),),
    )


def _nanogpt(dtype: str, *, compiled: bool = False) -> Program:
    arguments = ("config/train_shakespeare_char.py", "--max_iters=12", "--eval_interval=6", "--eval_iters=5")
    how = (f"--dtype={dtype}", f"--compile={compiled}")
    return Program(name=f"nanoGPT {dtype}{' compiled' * compiled}", run=("train.py", *arguments, *how), **_NANOGPT)


def _sft(name: str, *arguments: str) -> Program:
    base = (
        *("-m", "trl.scripts.sft", "--model_name_or_path", "Qwen/Qwen2-0.5B", "--dataset_name", "trl-lib/Capybara"),
        *("--learning_rate", "2.0e-4", "--max_steps", "6", "--packing", "--per_device_train_batch_size", "2"),
        *("--gradient_accumulation_steps", "2", "--eos_token", "<|im_end|>", "--eval_strategy", "steps"),
        *("--eval_steps", "3", "--use_peft", "--lora_r", "32", "--lora_alpha", "16", "--report_to", "none"),
    )
    return Program(name=name, package="trl", run=(*base, "--output_dir", "out", *arguments), standins=_CHATS)


_FEW_BATCHES = (
    *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "100", "--trainer.limit_val_batches", "10"),
    *("--trainer.limit_test_batches", "10", "--trainer.limit_predict_batches", "5"),
)

PROGRAMS = (
    _example("mnist", "--epochs", "1"),
    _example("vae", "--epochs", "1"),
    _example("dcgan", "--dataset", "fake", "--accel", "--dry-run", standins=()),
    _example("gcn", "--epochs", "20", standins=((graphs.archive, "stand_ins"),), path="stand_ins"),
    _example("imagenet", "--dummy", "-b", "64", "-j", "1", standins=(), options=("--steps", "20")),
    _words("LSTM"),
    _words("Transformer"),
    _example("siamese_network", "--epochs", "1"),
    _nanogpt("float32"),
    _nanogpt("bfloat16"),
    _nanogpt("float16"),
    _nanogpt("float32", compiled=True),
    Program(
        name="minGPT adder",
        repository="karpathy/minGPT",
        commit="37baab71b9abea1b76ab957409a1cc2fbfba8a26",
        paths=("mingpt", "projects"),
        folder="projects/adder",
        path=".",
        run=("adder.py", "--trainer.max_iters=30"),
    ),
    Program(
        name="accelerate nlp_example",
        paths=("examples/nlp_example.py",),
        standins=_GLUE,
        run=("examples/nlp_example.py",),
        **_ACCELERATE,
    ),
    Program(
        name="accelerate by_feature/memory",
        paths=("examples/by_feature/memory.py",),
        standins=_GLUE,
        run=("examples/by_feature/memory.py",),
        **_ACCELERATE,
    ),
    Program(name="transformers Trainer", package="transformers", standins=_GLUE, run=(f"{_OWN}/trainer_glue.py",)),
    _sft("TRL SFT LoRA"),
    _sft("bitsandbytes 4-bit (TRL SFT)", "--load_in_4bit"),
    _sft("bitsandbytes 8-bit (TRL SFT)", "--load_in_8bit", "--optim", "adamw_8bit"),
    Program(
        name="Lightning backbone_image_classifier",
        paths=("examples/pytorch/basics",),
        standins=((images.full_mnist, "data"), (images.full_mnist, "examples/Datasets")),
        run=("examples/pytorch/basics/backbone_image_classifier.py", *_FEW_BATCHES),
        **_LIGHTNING,
    ),
    Program(
        name="Fabric image_classifier",
        paths=("examples/fabric/image_classifier",),
        standins=((images.mnist, "Datasets"),),
        run=("examples/fabric/image_classifier/train_fabric.py", "--epochs", "1"),
        **_LIGHTNING,
    ),
    Program(
        name="timm train.py",
        repository="huggingface/pytorch-image-models",
        commit="aa4b5850c1543fa488abf260f18390eda46cf85d",
        paths=("train.py",),
        package="timm",
        standins=((images.folders, "."),),
        run=("train.py", "--data-dir", "images", "--amp", "--model-ema", "--epochs", "1", "-b", "16", "-j", "1"),
    ),
    Program(
        name="diffusers unconditional",
        repository="huggingface/diffusers",
        commit="58eb52c0803ea9af3abec60841c2a093bdf1f951",
        paths=("examples/unconditional_image_generation",),
        package="diffusers",
        standins=((images.folders, "."),),
        run=(
            "examples/unconditional_image_generation/train_unconditional.py",
            *("--train_data_dir", "images/train", "--use_ema", "--num_epochs", "1", "--ddpm_num_inference_steps", "5"),
        ),
    ),
    Program(
        name="ultralytics YOLO11n",
        package="ultralytics",
        standins=((images.boxes, "."),),
        run=(f"{_OWN}/yolo11n.py",),
        environment={"YOLO_OFFLINE": "True"},
    ),
    Program(
        name="PyG GCN",
        repository="pyg-team/pytorch_geometric",
        commit="5c6461b2305ad068a6d61165b3c55852a11aaa41",
        paths=("examples/gcn.py",),
        package="torch_geometric",
        standins=((graphs.planetoid, "data/Planetoid"),),
        run=("examples/gcn.py", "--epochs", "20"),
    ),
)
"""Every program of the table, in its order."""

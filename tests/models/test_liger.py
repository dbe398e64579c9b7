"""Liger's kernels by name, with a package in its place: what it replaces, and where."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from frameworks import missing

import vramkit
from vramkit import UsageError

if why := missing("transformers", "peft"):
    pytest.skip(why, allow_module_level=True)

CONFIG = Path(__file__).parent / "configs" / "llama-small.json"
KEPT = 96 << 20

# As Liger does, it replaces a function of transformers; and the model gets a tensor, which shows that it was there.
PATCH = f"""
import torch
from transformers.models.llama import modeling_llama

MODEL_TYPE_TO_APPLY_LIGER_FN = {{"llama": None}}


def apply_liger_kernel_to_instance(model):
    rotate = modeling_llama.apply_rotary_pos_emb
    modeling_llama.apply_rotary_pos_emb = lambda *given, **options: rotate(*given, **options)
    model.kept = torch.empty({KEPT}, dtype=torch.uint8, device="cuda")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with a config.json, beside which a package has Liger's name."""
    package = tmp_path / "packages" / "liger_kernel"
    (package / "transformers").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "transformers" / "__init__.py").write_text(
        "from .monkey_patch import apply_liger_kernel_to_instance as _apply_liger_kernel_to_instance\n"
    )
    (package / "transformers" / "monkey_patch.py").write_text(PATCH)
    described = package.parent / "liger_kernel-0.8.5.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: liger-kernel\nVersion: 0.8.5\n")
    monkeypatch.syspath_prepend(package.parent)
    shutil.copy(CONFIG, tmp_path / "config.json")
    return f"hf:{tmp_path}"


@pytest.mark.virtual_gpu
def test_what_liger_replaces_is_replaced_where_the_model_is_trained_and_nowhere_else(folder: str) -> None:
    from transformers.models.llama import modeling_llama

    rotate = modeling_llama.apply_rotary_pos_emb
    plain, replaced = (
        vramkit.estimate(
            **vramkit.models.load(folder, lora=4, seq_len=64, liger=liger).arguments(), gpu="t4", engine="virtual"
        )
        for liger in (False, True)
    )

    assert replaced.peak_allocated == plain.peak_allocated + KEPT
    assert modeling_llama.apply_rotary_pos_emb is rotate


def test_where_liger_cannot_be_it_is_refused(folder: str, tmp_path: Path) -> None:
    loaded = vramkit.models.load(folder, liger=True)

    with pytest.raises(UsageError, match=r"run on no fakes\. Predict it with the virtual engine"):
        vramkit.estimate(**loaded.arguments(), gpu="t4", engine="fake")
    with pytest.raises(UsageError, match="Its kernels are for transformers' models"):
        vramkit.models.load("timm:resnet18", liger=True)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 1}')
    with pytest.raises(UsageError, match=r"no kernels for models of type 'gpt2'\. It has some for llama"):
        vramkit.models.load(folder, liger=True)

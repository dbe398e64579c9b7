"""Models by name: each against a plain script of the same training, in a process that knows nothing of vramkit's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import missing

import vramkit
from vramkit import UsageError

if why := missing("transformers", "peft", "timm", "torchvision"):
    pytest.skip(why, allow_module_level=True)

HERE = Path(__file__).parent
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")

# Each script of plain_scripts.py, and the same by name; of the configurations two layers are kept.
PROGRAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"batch_size": 2, "seq_len": 512}),
    "bert": (
        "bert-base-uncased",
        {"batch_size": 4, "seq_len": 384, "precision": "bf16-mixed", "padded": True, "accumulate": 2},
    ),
    "t5": ("t5-small", {"batch_size": 2, "seq_len": 256}),
    "marian": ("marian", {"batch_size": 2, "seq_len": 256}),
    "vit": ("vit-base-patch16-224", {"batch_size": 4}),
    "segformer": ("segformer", {"batch_size": 2, "image_size": 96}),
    "whisper": ("whisper-small", {"batch_size": 2}),
    "wav2vec2": ("wav2vec2", {"batch_size": 2, "seq_len": 64}),
    "detr": ("detr", {"batch_size": 2, "image_size": 256}),
    "llava": ("llava", {"batch_size": 2, "seq_len": 192}),
    "llava_next": ("llava-next", {"batch_size": 2, "seq_len": 464}),
    "llama": ("llama-3.1-8b", {"seq_len": 1024, "lora": 16, "checkpointing": True}),
    "llama_generates": (
        "llama-3.1-8b",
        {"batch_size": 2, "seq_len": 256, "method": "inference", "max_new_tokens": 8},
    ),
    "marian_generates": (
        "marian",
        {"batch_size": 2, "seq_len": 64, "method": "inference", "max_new_tokens": 8, "precision": "bf16-mixed"},
    ),
    "qlora": (
        "llama-small",
        {
            "batch_size": 2,
            "seq_len": 256,
            "method": "qlora",
            "lora": 16,
            "lora_targets": "all-linear",
            "checkpointing": True,
        },
    ),
    "generates_in_8_bits": (
        "llama-small",
        {"batch_size": 2, "seq_len": 64, "method": "inference", "quantization": "int8", "max_new_tokens": 8},
    ),
    "resnet": ("torchvision:resnet18", {"batch_size": 4}),
    "segmentation": ("torchvision:lraspp_mobilenet_v3_large", {"batch_size": 2, "image_size": 96}),
    "detector": ("torchvision:ssdlite320_mobilenet_v3_large", {"batch_size": 2}),
    "timm_vit": ("timm:vit_tiny_patch16_224", {"batch_size": 4, "method": "freeze:8"}),
}

QUANTIZED = ("qlora", "generates_in_8_bits")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder with a config.json for each configuration, by its name."""
    found = {}
    for path in sorted((HERE / "configs").glob("*.json")):
        config = json.loads(path.read_text())
        config |= {name: 2 for name in LAYERS if name in config}
        folder = tmp_path_factory.mktemp(path.stem)
        (folder / "config.json").write_text(json.dumps(config))
        found[path.stem] = str(folder)
    return found


@pytest.fixture(scope="module")
def plain(folders: dict[str, str]) -> dict[str, list[int]]:
    """What the plain scripts took: allocated and reserved, by their names."""
    given = {script: folders.get(name, "") for script, (name, _) in PROGRAMS.items()}
    done = subprocess.run(
        [sys.executable, str(HERE / "plain_scripts.py"), json.dumps(given)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("PEAKS")[2])


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("script", PROGRAMS)
def test_a_model_by_name_takes_what_a_plain_script_takes(
    script: str, plain: dict[str, list[int]], folders: dict[str, str]
) -> None:
    if script in QUANTIZED and (why := missing("bitsandbytes")):
        pytest.skip(why)
    name, options = PROGRAMS[script]

    loaded = vramkit.models.load(name if ":" in name else f"hf:{folders[name]}", **options)
    estimate = vramkit.estimate(**loaded.arguments(), gpu="a100-80gb")

    assert {parameter.device.type for parameter in loaded.model.parameters()} == {"meta"}
    assert [estimate.peak_allocated, estimate.peak_reserved] == plain[script]


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("script", ["gpt2", "llama_generates"])
def test_on_fake_tensors_it_takes_the_same_where_nothing_is_padded(
    script: str, plain: dict[str, list[int]], folders: dict[str, str]
) -> None:
    name, options = PROGRAMS[script]

    estimate = vramkit.estimate(
        **vramkit.models.load(f"hf:{folders[name]}", **options).arguments(), gpu="a100-80gb", engine="fake"
    )

    assert [estimate.peak_allocated, estimate.peak_reserved] == plain[script]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("hf:FOLDER", {"seq_len": 2048}, "max_position_embeddings=1024; with learned positions a longer text fails"),
        ("hf:./absent", {}, "no config.json in './absent'"),
        ("hf:", {}, "Write hf:NAME"),
        ("hf:FOLDER", {"task": "image-classification"}, "GPT2LMHeadModel is made for none of image-classification"),
        (
            "hf:FOLDER",
            {"attention": "flash_attention_2"},
            "can't make a model of type 'gpt2': ImportError: FlashAttention2",
        ),
        ("hf:FOLDER", {"method": "half"}, "It is full, lora, qlora, freeze:N or inference"),
        ("hf:FOLDER", {"method": "full", "quantization": "nf4"}, "Quantized weights are not trained"),
        ("hf:FOLDER", {"method": "lora", "quantization": "nf5"}, "It is nf4, nf4-double, fp4, int8"),
        ("timm:vit_tiny_patch16_224", {"method": "qlora"}, "Only transformers' models are quantized"),
        ("hf:FOLDER", {"method": "freeze:9"}, "the model has 2 blocks (transformer.h)"),
        ("hf:FOLDER", {"max_new_tokens": 8}, 'Only inference makes new tokens. Add method="inference"'),
        ("hf:FOLDER", {"dtype": "float16", "precision": "bf16-mixed"}, "With that precision parameters are float32"),
        ("hf:FOLDER", {"optimizer": "adamw9"}, "sgd-momentum, one of torch's with -fused"),
        ("hf:FOLDER", {"batch_size": 0}, "batch_size=0"),
        ("timm:vit_tiny", {}, "it has convit_tiny"),
        ("timm:vit_tiny_patch16_224", {"lora": 4}, 'lora_targets="all-linear", or names of modules'),
        (
            "timm:resnet18.absent",
            {},
            "Invalid pretrained tag (absent) for resnet18. Leave the tag out, or name one of resnet18.",
        ),
        ("torchvision:vit_b_16", {"image_size": 225}, "with image_size=225"),
        ("torchvision:resnet18", {"optimizer": vramkit.UsageError}, "Give its name, as 'adamw'"),
        ("torchvision:resnet18", {"checkpointing": True}, "torchvision's models have none"),
        ("torchvision:raft_large", {}, "'raft_large' has no batch here"),
        ("torchvision:fasterrcnn_resnet50_fpn", {}, "as many places as the first one finds"),
        ("torchvision:ssd300_vgg16", {"image_size": 64}, "The model makes all images as large as it was made for"),
        ("torchvision:resnet18", {"seconds": 2}, "The model takes images"),
        ("hf:FOLDER", {"seconds": 2}, "The model takes texts"),
        ("torchvision:resnet51", {}, "'resnet51' is not in torchvision. Name one of resnet50, "),
        ("json:dumps", {"lora": 4}, "What a function returns says itself how it is trained"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(
    name: str, options: dict[str, Any], words: str, folders: dict[str, str]
) -> None:
    with pytest.raises(UsageError) as raised:
        vramkit.models.load(name.replace("FOLDER", folders["gpt2"]), **options)

    assert words in str(raised.value)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_an_optimizer_of_matrices_alone_names_the_function_as_the_remedy(folders: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"are none\. Write a function .* name that as MODULE:FUNCTION"):
        vramkit.models.load(f"hf:{folders['gpt2']}", optimizer="muon")


@pytest.mark.skipif(bool(missing("bitsandbytes")), reason=missing("bitsandbytes"))
def test_sgd_in_8_bits_is_made_with_the_momentum_without_which_there_is_none() -> None:
    loaded = vramkit.models.load("torchvision:resnet18", optimizer="sgd-8bit", image_size=32)

    assert type(loaded.optimizer).__name__ == "SGD8bit"


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        ({"model_type": "moonshine", "architectures": ["MoonshineForConditionalGeneration"]}, {}, "not Whisper's"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, {}, "BertModel, which is not what a training has"),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, {"seq_len": 8}, "takes images"),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, {"padded": True}, "takes images"),
    ],
)
def test_a_configuration_that_does_not_say_what_is_asked_of_it_is_refused(
    config: dict[str, Any], options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))

    with pytest.raises(UsageError, match=words):
        vramkit.models.load(f"hf:{tmp_path}", **options)


TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64, "intermediate_size": 32}
EYES = {**TEXT, "image_size": 28, "patch_size": 14}
OF_QWEN = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}
SOUND = {**TEXT, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}


@pytest.mark.parametrize(
    ("config", "options", "shapes"),
    [
        (
            {"model_type": "clip", "architectures": ["CLIPModel"], "text_config": TEXT, "vision_config": EYES},
            {},
            {"input_ids": (3, 77), "attention_mask": (3, 77), "pixel_values": (3, 3, 28, 28)},
        ),
        (
            {"model_type": "hubert", "architectures": ["HubertForSequenceClassification"], **SOUND},
            {"seconds": 2, "padded": True},
            {"input_values": (3, 32_000), "attention_mask": (3, 32_000), "labels": (3,)},
        ),
        (
            {
                "model_type": "qwen2_vl",
                "architectures": ["Qwen2VLForConditionalGeneration"],
                "text_config": {**TEXT, "num_key_value_heads": 2},
                "vision_config": OF_QWEN,
                "image_token_id": 63,
            },
            {"image_size": 112},
            {
                "input_ids": (3, 528),
                "attention_mask": (3, 528),
                "mm_token_type_ids": (3, 528),
                "labels": (3, 528),
                "pixel_values": (3, 64, 1176),
                "image_grid_thw": (3, 3),
            },
        ),
    ],
    ids=["pairs", "sound", "image in a text"],
)
def test_a_batch_has_what_its_models_processor_makes(
    config: dict[str, Any], options: dict[str, Any], shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))

    batch = vramkit.models.load(f"hf:{tmp_path}", batch_size=3, **options).batch

    assert {name: tuple(value.shape) for name, value in batch.items()} == shapes


def test_a_text_is_longer_than_the_image_in_it(folders: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="An image alone takes 64 tokens"):
        vramkit.models.load(f"hf:{folders['llava']}", seq_len=64)


def test_a_configuration_that_sets_no_end_takes_texts_of_any_length(tmp_path: Path) -> None:
    config = {"model_type": "xlnet", "architectures": ["XLNetForSequenceClassification"], "d_model": 16, "n_head": 2}
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_layer": 1, "d_inner": 16, "vocab_size": 32}))

    assert vramkit.models.load(f"hf:{tmp_path}", seq_len=640).batch["input_ids"].shape == (1, 640)


def test_a_video_has_frames() -> None:
    loaded = vramkit.models.load("torchvision:r3d_18", image_size=32, method="inference")

    assert loaded.batch[0].shape == (1, 3, 16, 32, 32)


def test_a_configuration_without_architectures_is_made_for_what_its_type_does(tmp_path: Path) -> None:
    small = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 16}
    small |= {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bart", **small}))

    assert type(vramkit.models.load(f"hf:{tmp_path}").model).__name__ == "BartForConditionalGeneration"


@pytest.mark.parametrize(
    ("name", "blocks", "trained"),
    [
        ("torchvision:resnet18", 3, {"layer4", "fc"}),
        ("torchvision:vgg11", 1, {"classifier"}),
        ("torchvision:mobilenet_v3_small", 12, {"features.12", "classifier"}),
        ("timm:resnet18", 3, {"layer4", "fc"}),
        ("timm:swin_tiny_patch4_window7_224", 3, {"layers.3", "norm", "head"}),
        ("timm:efficientnet_b0", 6, {"blocks.6", "conv_head", "bn2", "classifier"}),
    ],
)
def test_blocks_that_are_frozen_are_stages_where_a_model_has_stages(name: str, blocks: int, trained: set[str]) -> None:
    model = vramkit.models.load(name, method=f"freeze:{blocks}").model

    left = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {each for each in trained if any(name.startswith(f"{each}.") for name in left)} == trained
    assert all(name.startswith(tuple(f"{each}." for each in trained)) for name in left)


@pytest.mark.parametrize(
    ("name", "size"), [("vit_h_14", None), ("vit_b_32", 256), ("maxvit_t", 256 - 32), ("resnet18", 96)]
)
def test_a_model_of_torchvision_is_made_for_the_size_of_its_images(name: str, size: int | None) -> None:
    loaded = vramkit.models.load(f"torchvision:{name}", image_size=size, method="inference")

    assert loaded.model(loaded.batch[0].to("meta")).shape == (1, 1000)


def test_a_hub_that_cannot_be_reached_names_the_folder_as_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def unreachable(*_: object, **given: object) -> None:
        assert given["trust_remote_code"] is False
        raise OSError("no route to the hub")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)

    with pytest.raises(UsageError, match=r"no route to the hub. Save the model's config.json .* hf:./folder"):
        vramkit.models.load("hf:someone/something")


def test_a_configuration_that_comes_with_code_names_a_function_as_the_remedy(tmp_path: Path) -> None:
    config = {"model_type": "strange", "auto_map": {"AutoConfig": "configuration_strange.StrangeConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(UsageError, match=r"never a model's own. Write a function that returns \(model, batch\)"):
        vramkit.models.load(f"hf:{tmp_path}")


def test_three_things_come_of_a_name_and_of_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_here.py").write_text(
        "import torch\ndef build():\n"
        "    return {'model': torch.nn.Linear(4, 4), 'batch': torch.zeros(2, 4), 'optimizer': torch.optim.SGD}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    loaded = vramkit.models.load("made_here:build")
    model, batch, step = loaded

    assert step.model is model
    assert batch.shape == (2, 4)
    assert [*loaded.optimizer.param_groups[0]["params"]] == [*model.parameters()]

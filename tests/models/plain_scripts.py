"""Training scripts as people write them, without vramkit: each says what it took of a GPU.

Run as a program, each in a fork that has not begun CUDA, so that they share the imports alone.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

Peaks = tuple[int, int]


def train(
    model: Any, batch: Any, loss: Callable[[Any, Any], Any], parameters: Any = None, accumulate: int = 1
) -> Peaks:
    """Three steps with AdamW."""
    import torch

    optimizer = torch.optim.AdamW(parameters or model.parameters())

    def step() -> None:
        for _ in range(accumulate):
            inputs = {key: value.to("cuda") for key, value in batch.items()}
            value = loss(model, inputs)
            if accumulate > 1:
                value = value / accumulate
            value.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    return peaks()


def peaks() -> Peaks:
    import torch

    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def own_loss(model: Any, inputs: Any) -> Any:
    return model(**inputs).loss


def configuration(folder: str) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    config.use_cache = False
    return config


def text(rows: int, length: int) -> dict[str, Any]:
    import torch

    ids = torch.ones(rows, length, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def gpt2(folder: str) -> Peaks:
    from transformers import AutoModelForCausalLM

    return train(AutoModelForCausalLM.from_config(configuration(folder)).to("cuda").train(), text(2, 512), own_loss)


def bert(folder: str) -> Peaks:
    """Texts of different lengths, in mixed precision; gradients of two batches."""
    import torch
    from transformers import AutoModelForMaskedLM

    def loss(model: Any, inputs: Any) -> Any:
        with torch.autocast("cuda", torch.bfloat16):
            return own_loss(model, inputs)

    batch = text(4, 384)
    batch["attention_mask"][:, 300:] = 0
    model = AutoModelForMaskedLM.from_config(configuration(folder)).to("cuda").train()
    return train(model, batch, loss, accumulate=2)


def t5(folder: str) -> Peaks:
    from transformers import AutoModelForSeq2SeqLM

    return train(AutoModelForSeq2SeqLM.from_config(configuration(folder)).to("cuda").train(), text(2, 256), own_loss)


def marian(folder: str) -> Peaks:
    """Its decoder makes a mask of ones, in float32 on the GPU, and leaves it out as nothing is padded."""
    from transformers import AutoModelForSeq2SeqLM

    return train(AutoModelForSeq2SeqLM.from_config(configuration(folder)).to("cuda").train(), text(2, 256), own_loss)


def vit(folder: str) -> Peaks:
    import torch
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_config(configuration(folder)).to("cuda").train()
    batch = {"pixel_values": torch.rand(4, 3, 224, 224), "labels": torch.zeros(4, dtype=torch.long)}
    return train(model, batch, own_loss)


def segformer(folder: str) -> Peaks:
    """It asks its own encoder for hidden states."""
    import torch
    from transformers import AutoModelForSemanticSegmentation

    model = AutoModelForSemanticSegmentation.from_config(configuration(folder)).to("cuda").train()
    batch = {"pixel_values": torch.rand(2, 3, 96, 96), "labels": torch.zeros(2, 96, 96, dtype=torch.long)}
    return train(model, batch, own_loss)


def whisper(folder: str) -> Peaks:
    import torch
    from transformers import AutoModelForSpeechSeq2Seq

    model = AutoModelForSpeechSeq2Seq.from_config(configuration(folder)).to("cuda").train()
    batch = {"input_features": torch.rand(2, 80, 3000), "labels": torch.ones(2, 448, dtype=torch.long)}
    return train(model, batch, own_loss)


def wav2vec2(folder: str) -> Peaks:
    """Ten seconds, of which every step has all layers."""
    import torch
    from transformers import AutoModelForCTC

    config = configuration(folder)
    config.layerdrop = 0.0
    model = AutoModelForCTC.from_config(config).to("cuda").train()
    batch = {"input_values": torch.rand(2, 160_000), "labels": torch.ones(2, 64, dtype=torch.long)}
    return train(model, batch, own_loss)


def detr(folder: str) -> Peaks:
    """It compares the corners of boxes that were not computed, and gives objects to them on the CPU."""
    import torch
    from transformers import AutoModelForObjectDetection

    def loss(model: Any, inputs: Any) -> Any:
        inputs["labels"] = [{name: value.to("cuda") for name, value in each.items()} for each in targets]
        return own_loss(model, inputs)

    one = {"class_labels": torch.zeros(10, dtype=torch.long), "boxes": torch.full((10, 4), 0.5)}
    targets = [one, one]
    model = AutoModelForObjectDetection.from_config(configuration(folder)).to("cuda").train()
    batch = {"pixel_values": torch.rand(2, 3, 256, 256), "pixel_mask": torch.ones(2, 256, 256, dtype=torch.long)}
    return train(model, batch, loss)


def llava(folder: str) -> Peaks:
    """Images of 64 tokens, before texts of 128."""
    import torch
    from transformers import AutoModelForImageTextToText

    batch = text(2, 192)
    batch["input_ids"][:, :64] = 1999
    batch["labels"][:, :64] = -100
    batch["pixel_values"] = torch.rand(2, 3, 112, 112)
    return train(AutoModelForImageTextToText.from_config(configuration(folder)).to("cuda").train(), batch, own_loss)


def llava_next(folder: str) -> Peaks:
    """Images of 224 x 224, whole and in four tiles: 64 tokens, and 16 lines of 16 and an end; then texts of 128."""
    import torch
    from transformers import AutoModelForImageTextToText

    batch = text(2, 464)
    batch["input_ids"][:, :336] = 1999
    batch["labels"][:, :336] = -100
    batch["pixel_values"] = torch.rand(2, 5, 3, 112, 112)
    batch["image_sizes"] = torch.full((2, 2), 224)
    return train(AutoModelForImageTextToText.from_config(configuration(folder)).to("cuda").train(), batch, own_loss)


def llama(folder: str) -> Peaks:
    """Adapters of rank 16 beside a frozen model in bfloat16, whose blocks are checkpointed."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration(folder))
        model.gradient_checkpointing_enable()
        model = peft.get_peft_model(model, peft.LoraConfig(r=16))
    model = model.to_empty(device="cuda").train()
    return train(model, text(1, 1024), own_loss, [each for each in model.parameters() if each.requires_grad])


def llama_generates(folder: str) -> Peaks:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return generate(model.to_empty(device="cuda").eval(), text(2, 256))


def marian_generates(folder: str) -> Peaks:
    """In mixed precision, where autocast keeps its copies of parameters."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.from_pretrained(folder)).to("cuda").eval()
    return generate(model, text(2, 64), torch.bfloat16)


def generate(model: Any, prompt: Any, autocast: Any = None) -> Peaks:
    import torch

    for _ in range(3):
        with torch.autocast("cuda", autocast, enabled=autocast is not None):
            answer(model, prompt)
    return peaks()


def answer(model: Any, prompt: Any) -> None:
    model.generate(
        input_ids=prompt["input_ids"].to("cuda"),
        attention_mask=prompt["attention_mask"].to("cuda"),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )


def small_llama(folder: str, **quantization: Any) -> Any:
    """From weights on the disk, quantized."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    saved = f"{folder}/weights"
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16).save_pretrained(saved)
    settings = BitsAndBytesConfig(**quantization)
    return AutoModelForCausalLM.from_pretrained(
        saved, quantization_config=settings, dtype=torch.bfloat16, device_map={"": 0}
    )


def qlora(folder: str) -> Peaks:
    import peft
    import torch

    model = small_llama(
        folder,
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model.config.use_cache = False
    checkpointing = {"use_reentrant": False}
    model = peft.prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs=checkpointing)
    model = peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules="all-linear"))
    model.train()
    return train(model, text(2, 256), own_loss, [each for each in model.parameters() if each.requires_grad])


def generates_in_8_bits(folder: str) -> Peaks:
    return generate(small_llama(folder, load_in_8bit=True), text(2, 64))


def resnet(_: str) -> Peaks:
    import torch
    import torchvision

    def loss(model: Any, inputs: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(inputs["images"]), inputs["targets"])

    batch = {"images": torch.rand(4, 3, 224, 224), "targets": torch.zeros(4, dtype=torch.long)}
    return train(torchvision.models.resnet18().to("cuda"), batch, loss)


def segmentation(_: str) -> Peaks:
    import torch
    import torchvision

    def loss(model: Any, inputs: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(inputs["images"])["out"], inputs["targets"], ignore_index=255)

    batch = {"images": torch.rand(2, 3, 96, 96), "targets": torch.zeros(2, 96, 96, dtype=torch.long)}
    return train(
        torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None).to("cuda"), batch, loss
    )


def detector(_: str) -> Peaks:
    import torch
    import torchvision

    def loss(model: Any, inputs: Any) -> Any:
        inputs["images"] = [each.to("cuda") for each in images]  # which live as long as a batch does
        inputs["targets"] = [{name: value.to("cuda") for name, value in each.items()} for each in targets]
        return sum(model(inputs["images"], inputs["targets"]).values())

    images = [torch.rand(3, 320, 320) for _ in range(2)]
    corners = torch.tensor([[0.0, 0.0, 80.0, 80.0]]).repeat(10, 1)
    targets = [{"boxes": corners.clone(), "labels": torch.ones(10, dtype=torch.long)} for _ in range(2)]
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights_backbone=None).to("cuda").train()
    return train(model, {}, loss)


def timm_vit(_: str) -> Peaks:
    """All but the last four blocks and the head is frozen."""
    import timm
    import torch

    def loss(model: Any, inputs: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(inputs["images"]), inputs["targets"])

    model = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    for part in (model.patch_embed, *model.blocks[:8]):
        part.requires_grad_(False)
    model.cls_token.requires_grad_(False)
    model.pos_embed.requires_grad_(False)
    model = model.to("cuda").train()
    batch = {"images": torch.rand(4, 3, 224, 224), "targets": torch.zeros(4, dtype=torch.long)}
    return train(model, batch, loss, [each for each in model.parameters() if each.requires_grad])


def in_forks(gpu: str, calls: dict[str, Callable[[], Any]]) -> None:
    """Print what calls return on a virtual GPU, each in a fork of its own, by their names.

    Args:
        gpu: the card.
        calls: each returns what JSON can carry; null stands for one that failed.
    """
    warnings.simplefilter("ignore")
    from vramkit import virtual_gpu

    virtual_gpu.activate(gpu)
    sys.modules["torchao"] = None  # type: ignore[assignment] # as if it were absent: its import begins CUDA
    import transformers.modeling_utils  # noqa: F401 - before the forks; not PEFT: bitsandbytes, if there, begins CUDA

    found = {}
    for name, call in calls.items():
        ours, theirs = os.pipe()
        if not (child := os.fork()):
            os.write(theirs, json.dumps(call()).encode())
            os._exit(0)
        os.close(theirs)
        os.waitpid(child, 0)
        with open(ours, "rb") as answer:
            found[name] = json.loads(answer.read() or "null")
    print("PEAKS", json.dumps(found))


def main(given: dict[str, str]) -> None:
    """Print the peaks of each script, by its name, with the folder that it is given."""
    in_forks("a100-80gb", {name: partial(globals()[name], folder) for name, folder in given.items()})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

"""Small models of many kinds, trained by plain scripts: the configurations, and the scripts. Knows nothing of vramkit's
predictions.

Run as a program, each script in a fork that has not begun CUDA.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "models"))

import plain_scripts

_LLAMA = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 5000,
    "pad_token_id": 0,
}
_BERT = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "vocab_size": 5000,
    "embedding_size": 64,
}
_T5 = {
    "d_model": 256, "d_kv": 32, "d_ff": 512, "num_layers": 2, "num_heads": 8, "vocab_size": 5000,
    "decoder_start_token_id": 0,
}  # fmt: skip
_BART = {
    "d_model": 256,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
    "vocab_size": 5000,
}
_VIT = {
    "hidden_size": 192,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
_STAGES = {"depths": [1, 1, 2, 1]}
Kind = tuple[str, str, dict[str, Any]]
"""The class of transformers that makes a model, its architecture, and its configuration."""


def _text(type_: str, architecture: str, config: dict[str, Any], **more: Any) -> Kind:
    return "AutoModelForCausalLM", architecture, {"model_type": type_, **config, **more}


def _as(auto: str, type_: str, architecture: str, config: dict[str, Any], **more: Any) -> Kind:
    return f"AutoModelFor{auto}", architecture, {"model_type": type_, **config, **more}


_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 128}

KINDS = {
    "gpt2": _text("gpt2", "GPT2LMHeadModel", {"n_embd": 256, "n_layer": 3, "n_head": 4, "vocab_size": 5000}),
    "gpt_neo": _text(
        "gpt_neo",
        "GPTNeoForCausalLM",
        {
            "hidden_size": 256,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "vocab_size": 5000,
        },
    ),
    "gptj": _text(
        "gptj", "GPTJForCausalLM", {"n_embd": 256, "n_layer": 2, "n_head": 4, "vocab_size": 5000, "rotary_dim": 16}
    ),
    "gpt_neox": _text("gpt_neox", "GPTNeoXForCausalLM", _LLAMA),
    "gpt_bigcode": _text(
        "gpt_bigcode", "GPTBigCodeForCausalLM", {"n_embd": 256, "n_layer": 3, "n_head": 4, "vocab_size": 5000}
    ),
    "opt": _text("opt", "OPTForCausalLM", {**_LLAMA, "ffn_dim": 512, "word_embed_proj_dim": 256}),
    "bloom": _text("bloom", "BloomForCausalLM", {"hidden_size": 256, "n_layer": 2, "n_head": 4, "vocab_size": 5000}),
    "llama": _text("llama", "LlamaForCausalLM", _LLAMA),
    "mistral": _text("mistral", "MistralForCausalLM", _LLAMA),
    "qwen2": _text("qwen2", "Qwen2ForCausalLM", _LLAMA),
    "qwen3": _text("qwen3", "Qwen3ForCausalLM", _LLAMA),
    "gemma": _text("gemma", "GemmaForCausalLM", _LLAMA),
    "gemma2": _text("gemma2", "Gemma2ForCausalLM", _LLAMA),
    "gemma3": _text("gemma3_text", "Gemma3ForCausalLM", _LLAMA),
    "phi": _text("phi", "PhiForCausalLM", _LLAMA),
    "phi3": _text("phi3", "Phi3ForCausalLM", _LLAMA),
    "falcon": _text("falcon", "FalconForCausalLM", {k: v for k, v in _LLAMA.items() if k != "head_dim"}),
    "stablelm": _text("stablelm", "StableLmForCausalLM", _LLAMA),
    "olmo2": _text("olmo2", "Olmo2ForCausalLM", _LLAMA),
    "granite": _text("granite", "GraniteForCausalLM", _LLAMA),
    "cohere": _text("cohere", "CohereForCausalLM", _LLAMA),
    "starcoder2": _text("starcoder2", "Starcoder2ForCausalLM", _LLAMA),
    "smollm3": _text("smollm3", "SmolLM3ForCausalLM", _LLAMA),
    "mamba": _text("mamba", "MambaForCausalLM", {"hidden_size": 128, "num_hidden_layers": 2, "vocab_size": 5000}),
    "mamba2": _text(
        "mamba2",
        "Mamba2ForCausalLM",
        {
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "vocab_size": 5000,
            "num_heads": 8,
            "head_dim": 32,
            "n_groups": 1,
            "state_size": 16,
        },
    ),
    "mixtral": _text("mixtral", "MixtralForCausalLM", {**_LLAMA, "num_local_experts": 4}),
    "qwen2_moe": _text(
        "qwen2_moe", "Qwen2MoeForCausalLM", {**_LLAMA, **_MOE, "num_experts": 4, "shared_expert_intermediate_size": 128}
    ),
    "qwen3_moe": _text("qwen3_moe", "Qwen3MoeForCausalLM", {**_LLAMA, **_MOE, "num_experts": 4}),
    "gpt_oss": _text("gpt_oss", "GptOssForCausalLM", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v3": _text(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        {
            **_LLAMA,
            **_MOE,
            "num_key_value_heads": 8,
            "n_routed_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "q_lora_rank": 64,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
            "head_dim": 16,
            "first_k_dense_replace": 1,
        },
    ),
    "bert": _as("MaskedLM", "bert", "BertForMaskedLM", _BERT),
    "bert-classes": _as("SequenceClassification", "bert", "BertForSequenceClassification", _BERT),
    "roberta": _as("SequenceClassification", "roberta", "RobertaForSequenceClassification", _BERT),
    "xlm-roberta": _as("TokenClassification", "xlm-roberta", "XLMRobertaForTokenClassification", _BERT),
    "modernbert": _as("MaskedLM", "modernbert", "ModernBertForMaskedLM", _BERT, pad_token_id=0),
    "deberta": _as("SequenceClassification", "deberta", "DebertaForSequenceClassification", _BERT),
    "deberta-v2": _as(
        "SequenceClassification",
        "deberta-v2",
        "DebertaV2ForSequenceClassification",
        {
            **_BERT,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 64,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "max_relative_positions": -1,
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    "distilbert": _as(
        "SequenceClassification",
        "distilbert",
        "DistilBertForSequenceClassification",
        {"dim": 256, "n_layers": 2, "n_heads": 4, "hidden_dim": 512, "vocab_size": 5000},
    ),
    "albert": _as("MaskedLM", "albert", "AlbertForMaskedLM", _BERT),
    "electra": _as("QuestionAnswering", "electra", "ElectraForQuestionAnswering", _BERT),
    "camembert": _as("TokenClassification", "camembert", "CamembertForTokenClassification", _BERT),
    "mpnet": _as("SequenceClassification", "mpnet", "MPNetForSequenceClassification", _BERT),
    "longformer": _as(
        "SequenceClassification",
        "longformer",
        "LongformerForSequenceClassification",
        {**_BERT, "attention_window": [64] * 3, "max_position_embeddings": 514},
    ),
    "xlnet": _as(
        "SequenceClassification",
        "xlnet",
        "XLNetForSequenceClassification",
        {"d_model": 256, "n_layer": 2, "n_head": 4, "d_inner": 512, "vocab_size": 5000},
    ),
    "llama-classes": _as("SequenceClassification", "llama", "LlamaForSequenceClassification", _LLAMA),
    "t5": _as("Seq2SeqLM", "t5", "T5ForConditionalGeneration", _T5),
    "mt5": _as("Seq2SeqLM", "mt5", "MT5ForConditionalGeneration", _T5),
    "bart": _as("Seq2SeqLM", "bart", "BartForConditionalGeneration", _BART),
    "mbart": _as("Seq2SeqLM", "mbart", "MBartForConditionalGeneration", _BART),
    "pegasus": _as("Seq2SeqLM", "pegasus", "PegasusForConditionalGeneration", _BART),
    "marian": _as("Seq2SeqLM", "marian", "MarianMTModel", _BART, pad_token_id=0, decoder_start_token_id=0),
    "m2m_100": _as("Seq2SeqLM", "m2m_100", "M2M100ForConditionalGeneration", _BART),
    "whisper": _as(
        "SpeechSeq2Seq",
        "whisper",
        "WhisperForConditionalGeneration",
        {**_BART, "max_source_positions": 250, "pad_token_id": 0, "decoder_start_token_id": 1},
    ),
    "vit": _as("ImageClassification", "vit", "ViTForImageClassification", _VIT),
    "deit": _as("ImageClassification", "deit", "DeiTForImageClassification", _VIT),
    "beit": _as("ImageClassification", "beit", "BeitForImageClassification", _VIT),
    "swin": _as(
        "ImageClassification",
        "swin",
        "SwinForImageClassification",
        {"embed_dim": 32, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]},
    ),
    "swinv2": _as(
        "ImageClassification",
        "swinv2",
        "Swinv2ForImageClassification",
        {"embed_dim": 32, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]},
    ),
    "convnext": _as(
        "ImageClassification",
        "convnext",
        "ConvNextForImageClassification",
        {**_STAGES, "hidden_sizes": [32, 64, 96, 128]},
    ),
    "convnextv2": _as(
        "ImageClassification",
        "convnextv2",
        "ConvNextV2ForImageClassification",
        {**_STAGES, "hidden_sizes": [32, 64, 96, 128]},
    ),
    "resnet": _as(
        "ImageClassification",
        "resnet",
        "ResNetForImageClassification",
        {**_STAGES, "hidden_sizes": [64, 128, 192, 256], "embedding_size": 32},
    ),
    "dinov2": _as("ImageClassification", "dinov2", "Dinov2ForImageClassification", {**_VIT, "image_size": 224}),
    "segformer-classes": _as(
        "ImageClassification",
        "segformer",
        "SegformerForImageClassification",
        {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]},
    ),
    "segformer": _as(
        "SemanticSegmentation",
        "segformer",
        "SegformerForSemanticSegmentation",
        {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]},
    ),
    "mobilenet_v2": _as("ImageClassification", "mobilenet_v2", "MobileNetV2ForImageClassification", {}),
    "mobilevit": _as("ImageClassification", "mobilevit", "MobileViTForImageClassification", {"image_size": 256}),
    "siglip": _as(
        "ImageClassification", "siglip", "SiglipForImageClassification", {"vision_config": {**_VIT, "image_size": 224}}
    ),
    "clip-classes": _as(
        "ImageClassification", "clip", "CLIPForImageClassification", {"vision_config": {**_VIT, "image_size": 224}}
    ),
}
"""Kinds of transformers by a name."""


ROWS = 2
LENGTH = 128
OF_IMAGES = ("AutoModelForImageClassification", "AutoModelForSemanticSegmentation")
OF_TEXTS = ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM")
_AUXILIARY = {
    "inception_v3": {"aux_logits": 0.4},
    "googlenet": {"aux_logits1": 0.3, "aux_logits2": 0.3},
}


def batch(auto: str, config: Any) -> dict[str, Any]:
    """By hand, as the examples of each task have it."""
    import torch

    ids = torch.ones(ROWS, LENGTH, dtype=torch.long)
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    classes = torch.zeros(ROWS, dtype=torch.long)
    if auto in OF_TEXTS:
        return {**text, "labels": ids.clone()}
    if auto == "AutoModelForTokenClassification":
        return {**text, "labels": torch.zeros_like(ids)}
    if auto == "AutoModelForSequenceClassification":
        return {**text, "labels": classes}
    if auto == "AutoModelForQuestionAnswering":
        return {**text, "start_positions": classes, "end_positions": classes.clone()}
    if auto == "AutoModelForSpeechSeq2Seq":
        mels = torch.zeros(ROWS, config.num_mel_bins, 2 * config.max_source_positions)
        return {"input_features": mels, "labels": ids}
    assert auto in OF_IMAGES
    size = getattr(getattr(config, "vision_config", config), "image_size", 224)
    of_pixels = auto == "AutoModelForSemanticSegmentation"
    labels = torch.zeros(ROWS, size, size, dtype=torch.long) if of_pixels else classes
    return {"pixel_values": torch.zeros(ROWS, 3, size, size), "labels": labels}


def train(name: str) -> tuple[int, int]:
    """What a plain script takes of the GPU: allocated and reserved."""
    import torch

    source, _, rest = name.partition(":")
    if source == "hf":
        import transformers

        auto, architecture, given = KINDS[rest]
        config = transformers.AutoConfig.for_model(**given, architectures=[architecture])
        config.use_cache = False
        model = getattr(transformers, auto).from_config(config).to("cuda").train()
        data = batch(auto, config)
    else:
        model, size = images_model(source, rest)
        data = {"x": torch.zeros(ROWS, 3, size, size), "y": torch.zeros(ROWS, dtype=torch.long)}

    def loss(model: Any, inputs: dict[str, Any]) -> Any:
        if source == "hf":
            return model(**inputs).loss
        criterion, output = torch.nn.functional.cross_entropy, model(inputs["x"])
        if rest not in _AUXILIARY or source == "timm":
            return criterion(output, inputs["y"])
        value = criterion(output.logits, inputs["y"])
        for head, weight in _AUXILIARY[rest].items():
            value = value + weight * criterion(getattr(output, head), inputs["y"])
        return value

    return plain_scripts.train(model, data, loss)


def images_model(source: str, name: str) -> tuple[Any, int]:
    """A classifier of images on the GPU, and the size of its images."""
    if source == "timm":
        import timm

        return timm.create_model(name, pretrained=False).to("cuda").train(), timm.get_pretrained_cfg(name).input_size[
            -1
        ]
    import torchvision

    size = torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    return torchvision.models.get_model(name, weights=None).to("cuda").train(), size


if __name__ == "__main__":
    plain_scripts.in_forks(sys.argv[1], {name: partial(train, name) for name in sys.argv[2:]})

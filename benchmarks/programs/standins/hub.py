"""Models, tokenizers, data sets and metrics as the hub has them, made up, in the folder that a program runs in.

A program that asks for "bert-base-cased" or "nyu-mll/glue" finds a folder of that name first. The models have the sizes
of the ones they stand for, with fewer layers where that is said; their weights are as they are initialised.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

_WORDS = [f"word{i}" for i in range(997)]
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|im_start|>", "<|im_end|>")
_METRIC = """
import datasets
import evaluate


class Metric(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"accuracy": sum(p == r for p, r in zip(predictions, references)) / len(references)}
"""
_CHAT = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} {{ message['content'] }} <|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def bert(folder: Path) -> None:
    """``bert-base-cased``: 12 layers of 768."""
    from transformers import BertConfig, BertForPreTraining

    model = BertForPreTraining(BertConfig(vocab_size=28996))
    model.save_pretrained(folder / "bert-base-cased")
    _tokenizer(folder / "bert-base-cased", template="[CLS]")


def qwen(folder: Path) -> None:
    """``Qwen/Qwen2-0.5B`` with 6 of its 24 layers and a vocabulary of 32,000."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=32000,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=6,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    Qwen2ForCausalLM(config).to(dtype=__import__("torch").bfloat16).save_pretrained(folder / "Qwen/Qwen2-0.5B")
    _tokenizer(folder / "Qwen/Qwen2-0.5B", template="")


def glue(folder: Path) -> None:
    """``nyu-mll/glue``, its part ``mrpc``, and the metric ``glue``."""
    draw = random.Random(0)
    place = folder / "nyu-mll/glue"
    for split, number in (("train", 160), ("validation", 80), ("test", 80)):
        rows = [
            {"sentence1": _sentence(draw), "sentence2": _sentence(draw), "label": i % 2, "idx": i}
            for i in range(number)
        ]
        _lines(place / f"mrpc/{split}.jsonl", rows)
    files = "".join(f"  - split: {each}\n    path: mrpc/{each}.jsonl\n" for each in ("train", "validation", "test"))
    (place / "README.md").write_text(f"---\nconfigs:\n- config_name: mrpc\n  data_files:\n{files}---\n")
    (folder / "glue").mkdir(parents=True, exist_ok=True)
    (folder / "glue/glue.py").write_text(_METRIC)


def chats(folder: Path) -> None:
    """``trl-lib/Capybara``: conversations."""
    draw = random.Random(0)
    for split, number in (("train", 200), ("test", 20)):
        rows = [
            {
                "messages": [
                    {"role": role, "content": " ".join(_sentence(draw) for _ in range(draw.randint(1, 12)))}
                    for role in ("user", "assistant")
                ]
            }
            for _ in range(number)
        ]
        _lines(folder / f"trl-lib/Capybara/{split}.jsonl", rows)


def _sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(_WORDS, k=draw.randint(8, 40)))


def _lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _tokenizer(folder: Path, *, template: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate((*_SPECIAL, *_WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
        )
        special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    else:
        special = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=512, **special
    )
    if not template:
        wrapped.chat_template = _CHAT
    wrapped.save_pretrained(folder)

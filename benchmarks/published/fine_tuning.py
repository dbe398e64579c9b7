"""Language models of one and seven billion parameters trained whole in bfloat16, as a Trainer does.

Written anew from the options that fms-acceleration's benchmark gives its Trainer. Needs transformers, for the two
architectures. Most is allocated in the optimizer's step, so the texts' lengths don't matter.
"""

from __future__ import annotations

import torch
from torch import nn


def mistral() -> nn.Module:
    """Mistral-7B-v0.1: the library's own default."""
    import transformers

    return _made(transformers.MistralConfig())


def santacoder() -> nn.Module:
    """GPTBigCode as in gpt_bigcode-santacoder."""
    import transformers

    return _made(transformers.GPTBigCodeConfig(vocab_size=49280, n_embd=2048, n_layer=24, n_head=16, n_positions=2048))


def train(model: nn.Module, *, batch: int = 4, length: int = 256, steps: int = 2) -> int:
    """``max_memory_allocated()``."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    model.train()
    for _ in range(steps):
        tokens = torch.zeros(batch, length, dtype=torch.long).to("cuda")
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.zero_grad()
    return torch.cuda.max_memory_allocated()


def _made(config: object) -> nn.Module:
    import transformers

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.to_empty(device="cuda").tie_weights()
    return model

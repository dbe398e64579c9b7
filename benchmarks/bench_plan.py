"""How long ``vramkit.plan`` takes for three published models, and what it finds.

    python benchmarks/bench_plan.py [--largest N] [NAME ...]

For each: seconds of the whole call, programs that were run, and the plan's report.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from large_models import GPT2, LlamaWithLoRA, ViT, class_loss, token_loss, tokens

import vramkit


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4)


def gpt2_medium_on_a_t4() -> dict[str, Any]:
    return {"model": GPT2(), "batch": tokens(16, 1024), "loss": token_loss, "gpu": "t4"}


def vit_large_on_an_rtx3060() -> dict[str, Any]:
    images, labels = torch.zeros(64, 3, 224, 224), torch.zeros(64, dtype=torch.long)
    return {"model": ViT(), "batch": (images, labels), "loss": class_loss, "gpu": "rtx3060"}


def llama3_8b_lora_on_an_rtx4090() -> dict[str, Any]:
    with torch.device("meta"):
        model = LlamaWithLoRA()
    return {"model": model, "batch": tokens(4, 2048), "loss": token_loss, "gpu": "rtx4090"}


CASES = (gpt2_medium_on_a_t4, vit_large_on_an_rtx3060, llama3_8b_lora_on_an_rtx4090)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", metavar="NAME", nargs="*")
    parser.add_argument("--largest", type=int)
    options = parser.parse_args()
    for case in CASES:
        if options.names and not any(name in case.__name__ for name in options.names):
            continue
        given = case()
        began = time.perf_counter()
        plan = vramkit.plan(**given, optimizer=adamw, largest=options.largest)
        took = time.perf_counter() - began
        print(f"{case.__name__}: {took:.1f} s, {len(plan.variants)} programs\n\n{plan}\n", flush=True)


if __name__ == "__main__":
    main()

"""Training whose ranks a framework sets up, as far as it is installed. To be run as ``parallel_programs.py`` is."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable

import torch
from parallel_programs import Block, Net, adamw, main
from torch import nn

ROWS, WIDTH = 8, 96


def batches() -> torch.utils.data.DataLoader[tuple[torch.Tensor, ...]]:
    """A loader of batches, of which each rank gets some."""
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(6 * ROWS, WIDTH)), batch_size=ROWS)


def accelerated() -> None:
    """Accelerate, with FSDP2 around each block."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["Block"]
    )
    accelerator = Accelerator(mixed_precision="bf16", fsdp_plugin=plugin)
    model = nn.Sequential(*(Block(WIDTH) for _ in range(3)))
    model, optimizer, loader = accelerator.prepare(model, adamw(model), batches())
    for (x,) in loader:
        accelerator.backward(model(x).square().mean())
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    accelerator.free_memory()
    accelerator.state._reset_state(reset_partial_state=True)


def trainer() -> None:
    """The Trainer of transformers, which takes DDP."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=300, n_positions=32))
    ids = torch.zeros(32, dtype=torch.int64)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=3, per_device_train_batch_size=ROWS, report_to=[], save_strategy="no", disable_tqdm=True
        )
        Trainer(model, arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 64).train()


def lightning(strategy: str) -> None:
    """Lightning's Trainer."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(*(Block(WIDTH) for _ in range(3)))

        def training_step(self, batch: tuple[torch.Tensor], index: int) -> torch.Tensor:
            return self.blocks(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adamw(self)

    lightning.Trainer(
        accelerator="gpu",
        strategy=strategy,
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        max_steps=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Module(), batches())


def deepspeed(stage: int) -> None:
    """DeepSpeed's ZeRO in bfloat16, with torch's AdamW."""
    import deepspeed

    model = Net()
    config = {
        "train_micro_batch_size_per_gpu": ROWS,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untrusted_optimizer": True,
        "bf16": {"enabled": True},
        "gradient_clipping": 1.0,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=adamw(model), config=config)
    for _ in range(3):
        engine.backward(engine(torch.zeros(ROWS, 32, dtype=torch.int64, device="cuda")).square().mean())
        engine.step()
    engine.destroy()


_ALL: dict[str, dict[str, Callable[[], None]]] = {
    "accelerate": {"accelerate, FSDP2": accelerated},
    "transformers": {"transformers' Trainer": trainer},
    "lightning": {
        "Lightning, ddp": lambda: lightning("ddp"),
        "Lightning, fsdp": lambda: lightning("fsdp"),
    },
    "deepspeed": {
        "DeepSpeed, ZeRO-1": lambda: deepspeed(1),
        "DeepSpeed, ZeRO-2": lambda: deepspeed(2),
        "DeepSpeed, ZeRO-3": lambda: deepspeed(3),
    },
}
PROGRAMS = {
    name: program for needs, some in _ALL.items() if importlib.util.find_spec(needs) for name, program in some.items()
}
"""Those that can run here."""

UNORDERED = ("DeepSpeed, ZeRO-3",)
"""The order of their events is another in each run: they go through sets, which Python orders by addresses."""

if __name__ == "__main__":
    main(PROGRAMS)

"""The Trainer's callback, in a Trainer of the real transformers."""

from __future__ import annotations

import pytest
from frameworks import missing
from subprocesses import run_on

needs = pytest.mark.skipif(bool(missing("transformers")), reason=missing("transformers"))

TRAINER = """
    import os
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    import json, tempfile, torch, vramkit
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
    from vramkit.integrations.transformers import MemoryCallback

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 64
        def __getitem__(self, index):
            tokens = torch.zeros(32, dtype=torch.long)
            return {"input_ids": tokens, "labels": tokens}

    def trainer(rows, callback=True, **more):
        folder = tempfile.mkdtemp()
        arguments = TrainingArguments(
            folder, max_steps=4, per_device_train_batch_size=rows, report_to=[], save_strategy="no",
            disable_tqdm=True, logging_steps=1, **more
        )
        model = GPT2LMHeadModel(GPT2Config(vocab_size=500, n_positions=64, n_embd=64, n_layer=2, n_head=2))
        made = Trainer(model=model, args=arguments, train_dataset=Rows())
        if callback:
            made.memory = MemoryCallback(made, html=os.path.join(folder, "memory.html"))
            made.add_callback(made.memory)
        return made
"""


@needs
@pytest.mark.virtual_gpu
def test_chosen_steps_are_measured_logged_and_written_and_training_is_as_without() -> None:
    found = run_on(
        "t4",
        TRAINER
        + """
    plain = trainer(4, callback=False)
    plain.train()
    without = torch.cuda.max_memory_allocated()
    del plain
    import gc; gc.collect(); torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
    one = trainer(4)
    one.train()
    logged = [each for each in one.state.log_history if "memory/peak_allocated" in each]
    profile = one.memory.result
    result = {
        "logged": logged, "figures": profile.metrics(), "steps": len(profile.steps),
        "same": torch.cuda.max_memory_allocated() == without,
        "page": os.path.exists(os.path.join(one.args.output_dir, "memory.html")),
        "losses": len([each for each in one.state.log_history if "loss" in each]),
        "modules": [each.name for each in profile.by_module],
    }
    """,
    )

    [logged] = found["logged"]
    assert {name: logged[f"memory/{name}"] for name in found["figures"]} == found["figures"]
    assert logged["step"] == found["steps"] == 3
    assert found["same"]
    assert found["page"]
    assert found["losses"] == 4
    assert found["modules"] == ["GPT2LMHeadModel"]


@needs
@pytest.mark.virtual_gpu
def test_a_training_that_runs_out_of_memory_leaves_the_page_and_no_hook() -> None:
    found = run_on(
        "512 MiB",
        TRAINER
        + """
    one = trainer(4096)
    one.train_dataset.__class__.__len__ = lambda self: 1 << 14
    try:
        one.train()
    except torch.OutOfMemoryError as error:
        notes = "".join(error.__notes__)
    from vramkit.profiling.profiler import is_measuring
    result = {
        "notes": notes, "page": os.path.exists(os.path.join(one.args.output_dir, "memory.html")),
        "failed": len(one.memory.result.out_of_memory), "free": not is_measuring(),
    }
    """,
    )

    assert "OUT OF MEMORY" in found["notes"]
    assert found["page"]
    assert found["failed"] == 1
    assert found["free"]

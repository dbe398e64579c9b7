"""The Trainer's callback and its batch size, in a Trainer of the real transformers."""

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


@needs
@pytest.mark.virtual_gpu
def test_a_trainers_batch_size_is_what_it_then_takes_and_nothing_else_changes() -> None:
    found = run_on(
        "512 MiB",
        TRAINER
        + """
    import gc
    from vramkit.integrations.transformers import fit_batch_size

    def tried(more, **asked):
        gc.collect()  # the Trainer before
        torch.cuda.empty_cache()
        one = trainer(8, callback=False, **more)
        attributes = dict(vars(one))
        values = {name: value.cpu() for name, value in one.model.state_dict().items()}
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        found = fit_batch_size(one, max_batch_size=512, **asked)
        changed = [name for name in {*vars(one), *attributes} if vars(one).get(name) is not attributes.get(name)]
        same = all(torch.equal(value.cpu(), values[name]) for name, value in one.model.state_dict().items())
        rest = [one.optimizer, one.lr_scheduler, len(one.state.log_history), "forward" in vars(one.model)]
        left = torch.cuda.memory_allocated() - before
        del values
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        one.train_dataset.__class__.__len__ = lambda self: 1 << 16
        one.train()
        arguments = one.args
        return {
            "predicted": found.peak_reserved, "took": torch.cuda.max_memory_reserved(), "size": found.batch_size,
            "set": [arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps],
            "changed": changed, "same": same, "rest": rest, "left": left,
        }

    Rows.__len__ = lambda self: 1 << 16
    result = {
        "accumulating": tried({"fp16": True, "gradient_accumulation_steps": 4}, multiple_of=8),
        "effective": tried({}, effective_batch_size=1024),
        "failures": torch.cuda.memory_stats()["num_ooms"],
    }
    """,
    )

    assert found["failures"] == 0
    for each in (found["accumulating"], found["effective"]):
        assert each["predicted"] == each["took"]
        assert each["set"][0] == each["size"] > 8
        assert set(each["changed"]) == {"_train_batch_size"}
        assert each["same"]
        assert each["rest"] == [None, None, 0, False]
        assert each["left"] <= 0
    assert found["accumulating"]["set"][0] % 8 == 0
    assert found["accumulating"]["set"][1] == 4
    size, accumulated = found["effective"]["set"]
    assert size * accumulated == 1024
    assert accumulated > 1


@needs
@pytest.mark.virtual_gpu
def test_a_batch_is_made_of_the_row_with_the_most_numbers_and_a_failure_is_told() -> None:
    found = run_on(
        "1 GiB",
        TRAINER
        + """
    from vramkit.integrations.transformers import fit_batch_size

    class Ragged(Rows):
        def __getitem__(self, index):
            tokens = torch.zeros(64 if index == 5 else 4, dtype=torch.long)
            return {"input_ids": tokens, "labels": tokens}

    one = trainer(1, callback=False)
    one.train_dataset = Ragged()
    seen = []
    collate = one.data_collator
    one.data_collator = lambda rows: (seen.append(len(rows[0]["input_ids"])), collate(rows))[1]
    fit_batch_size(one, max_batch_size=4)
    lengths = sorted({*seen})
    one.args.num_generations = 8
    try:
        fit_batch_size(one)
    except vramkit.UsageError as error:
        refused = str(error)
    result = {"lengths": lengths, "refused": refused, "data": type(one.train_dataset).__name__}
    """,
    )

    assert found["lengths"] == [64]
    assert "num_generations" in found["refused"]
    assert found["data"] == "Ragged"

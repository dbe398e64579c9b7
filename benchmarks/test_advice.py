"""A few programs of what people do wrong: what is advised is what the change saves, and stands where it is seen."""

from __future__ import annotations

import pytest

from benchmarks.bench_advice import measured
from benchmarks.needs import needs_virtual_gpu


@needs_virtual_gpu
@pytest.mark.parametrize(
    "program",
    [
        "validation",
        "recurrent",
        "joined",
        "cast_mask",
        "float_mask",
        "deep_linear",
        "inner_teacher",
        "target",
        "norms",
        "critic",
        "logged_gradients",
        "on_ctx",
        "optimizer_again",
        "history",
        "rollout",
        "two_losses",
        "cudnn_state",
        "words_state",
        "small_images",
        "hooked_evaluation",
        "head_alone",
        "larger_evaluation",
        "all_pairs",
        "self_play",
        "seen_batches",
        "attention_weights",
        "merged_masks",
        "double",
        "momentum_contrast",
        "latents",
        "reference",
        "rendered",
        "running_average",
        "numpy_target",
        "metric",
        "hooked_dict",
        "hooked_training",
        "last_logits",
        "own_target",
        "contrastive",
        "last_word",
        "adversarial",
        "two_backwards",
        "penalty_of_a_mix",
    ],
)
def test_what_is_advised_is_what_the_change_saves(program: str) -> None:
    rows = measured(program)

    assert rows
    assert [row for row in rows if not (row.holds and row.is_found and row.reserved_holds)] == []
    assert [row for row in rows if row.said is None] == [row for row in rows if row.saved <= 0]

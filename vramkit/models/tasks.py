"""What a model of transformers is for: the class that makes it, and the batch that it takes. Knows names alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import batches, detection, image_texts, sounds
from .recipe import Recipe
from .steps import on_cuda

LABELS = ("labels", "start_positions", "end_positions", "class_labels", "boxes")
"""What of a batch is to be learnt: inference has none of it."""
_PAIRS = ("CLIPModel", "SiglipModel", "MetaClip2Model", "AlignModel")


@dataclass(frozen=True)
class Task:
    """What a model is for."""

    auto: str
    """Name of the class of transformers that makes it."""
    endings: tuple[str, ...]
    """How the names of its classes end, as ``architectures`` of a configuration has them."""
    batch: Callable[[Any, Recipe], batches.Batch]
    """Makes a batch for a model."""
    generates: bool = False
    inputs: Callable[[Any], Any] = on_cuda
    """Moves a batch to the GPU, as what the model is called with."""


TASKS = {
    "causal-lm": Task("AutoModelForCausalLM", ("ForCausalLM", "LMHeadModel"), batches.language, True),
    "speech-seq2seq": Task("AutoModelForSpeechSeq2Seq", ("ForConditionalGeneration",), sounds.speech, True),
    "seq2seq-lm": Task(
        "AutoModelForSeq2SeqLM", ("ForConditionalGeneration", "WithLMHeadModel", "MTModel"), batches.language, True
    ),
    "image-text-to-text": Task(
        "AutoModelForImageTextToText",
        ("ForConditionalGeneration",),
        image_texts.image_in_text,
        True,
        image_texts.in_patches,
    ),
    "masked-lm": Task("AutoModelForMaskedLM", ("ForMaskedLM", "ForPreTraining"), batches.language),
    "sequence-classification": Task(
        "AutoModelForSequenceClassification", ("ForSequenceClassification",), batches.sequence
    ),
    "token-classification": Task("AutoModelForTokenClassification", ("ForTokenClassification",), batches.tokens),
    "question-answering": Task("AutoModelForQuestionAnswering", ("ForQuestionAnswering",), batches.answer),
    "image-classification": Task("AutoModelForImageClassification", ("ForImageClassification",), batches.image),
    "semantic-segmentation": Task(
        "AutoModelForSemanticSegmentation", ("ForSemanticSegmentation",), batches.image_of_classes
    ),
    "object-detection": Task(
        "AutoModelForObjectDetection", ("ForObjectDetection",), detection.objects, inputs=detection.of_each_image
    ),
    "zero-shot-image-classification": Task(
        "AutoModelForZeroShotImageClassification", _PAIRS, image_texts.pair, inputs=image_texts.compared
    ),
    "ctc": Task("AutoModelForCTC", ("ForCTC",), sounds.transcript),
    "audio-classification": Task(
        "AutoModelForAudioClassification", ("ForAudioClassification", "ForSequenceClassification"), sounds.sound
    ),
}
"""Every task by its name."""

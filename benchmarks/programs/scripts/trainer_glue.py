"""Fine-tunes BERT on GLUE's MRPC with transformers' Trainer, and evaluates it: written as its guides show it."""

from __future__ import annotations

import argparse

import evaluate
import numpy as np
from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--output-dir", default="trainer_out")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained("bert-base-cased")
    data = load_dataset("nyu-mll/glue", "mrpc")
    data = data.map(lambda rows: tokenizer(rows["sentence1"], rows["sentence2"], truncation=True), batched=True)
    metric = evaluate.load("glue", "mrpc")

    def measure(result: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
        logits, labels = result
        return metric.compute(predictions=np.argmax(logits, axis=-1), references=labels)

    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained("bert-base-cased", num_labels=2),
        args=TrainingArguments(
            output_dir=options.output_dir,
            num_train_epochs=1,
            per_device_train_batch_size=16,
            eval_strategy="epoch",
            bf16=options.bf16,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=measure,
    )
    trainer.train()
    print(trainer.evaluate())


if __name__ == "__main__":
    main()

"""The largest batch of a ``Trainer`` of transformers, by prediction, in place of its ``auto_find_batch_size``.

A trial is the Trainer's own ``train``: a few steps, on copies of one row, with nothing logged, saved or evaluated.
Knows what the Trainer keeps of a training; how sizes are chosen, `vramkit.auto_batch_size` knows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, cast

import torch
from transformers import DefaultFlowCallback
from transformers.trainer_callback import CallbackHandler

from ..batch_size.auto import auto_batch_size
from ..batch_size.result import BatchSizeResult
from ..batch_size.trial import Trial
from ..counts import check_count
from ..errors import DoesNotFit, UsageError

_ASKED = "fit_batch_size was called"
_STEPS = 3  # by the third, optimizers have their state
_ACCUMULATED = 2  # batches of an optimizer step on which a trial trains
_LOOKED_AT = 1000  # rows, for the largest


def fit_batch_size(
    trainer: Any,
    *,
    effective_batch_size: int | None = None,
    memory_fraction: float = 0.8,
    multiple_of: int = 1,
    max_batch_size: int | None = None,
    row: object = None,
    on_trial: Callable[[Trial], object] | None = None,
) -> BatchSizeResult:
    """Give a ``Trainer`` of transformers the largest batch with which it fits the GPU, before it trains.

    ::

        from vramkit.integrations.transformers import fit_batch_size
        fit_batch_size(trainer)             # in place of TrainingArguments(auto_find_batch_size=True)
        trainer.train()

    `vramkit.auto_batch_size`, whose trials are the Trainer's own training: three optimizer steps with its collator,
    precision, gradient accumulation and optimizer. Its callbacks, logs, checkpoints and evaluations are left out, and
    all is put back as it was. Then ``per_device_train_batch_size`` is set, and with ``effective_batch_size``
    ``gradient_accumulation_steps``.

    Args:
        trainer: the Trainer, or one that is made of it (TRL's ``SFTTrainer``).
        effective_batch_size: rows of all ranks for one optimizer step. The batch is the largest that fits and divides
            it, with as many steps accumulated as make it. None: the accumulation stays as it is.
        memory_fraction: part of the memory that the batch may reserve.
        multiple_of: only such sizes.
        max_batch_size: no larger size; None: the length of the data set, if it has one.
        row: every batch is made of copies of this row of the data set. None: the one with the most numbers, among 1000
            that are spread over the data set, or the first 1000 of one that can only be read in order. With padding,
            memory goes by the longest row: pass it where these may miss it.
        on_trial: called with every trial.

    Returns:
        The answer; the Trainer has its ``batch_size``.

    Raises:
        DoesNotFit: not even the smallest size does.
        UsageError: there is no GPU, or the Trainer spreads a batch over several, or an argument can't be meant.

    Known limitations: an evaluation has a batch size of its own, which is not looked at. Trainers that generate
    (GRPO, RLOO) tie their batch to other arguments, and are refused. DeepSpeed and FSDP were not tried.
    """
    runs = _Runs(trainer, row)
    args = trainer.args
    common: dict[str, Any] = {"memory_fraction": memory_fraction, "multiple_of": multiple_of, "on_trial": on_trial}
    maximum = max_batch_size if max_batch_size is not None else runs.length
    if effective_batch_size is None:
        accumulated = int(args.gradient_accumulation_steps)
        found = runs.search(accumulated, max_batch_size=maximum, **common)
    else:
        rows = _of_one_rank(effective_batch_size, int(args.world_size))
        maximum = rows if maximum is None else min(rows, maximum)
        found = runs.search(1, max_batch_size=maximum, **common)
        if found.batch_size < rows:
            found = runs.accumulating(rows, found.batch_size, common)
        accumulated = rows // found.batch_size
    args.per_device_train_batch_size, args.gradient_accumulation_steps = found.batch_size, accumulated
    trainer._train_batch_size = args.train_batch_size  # noqa: SLF001 - read from the arguments when it was made
    return found


def _of_one_rank(effective: int, ranks: int) -> int:
    rows = check_count(_ASKED, "effective_batch_size", effective)
    if rows % ranks:
        raise UsageError(
            _ASKED,
            f"with effective_batch_size={rows}, for {ranks} ranks",
            "Each rank has as many rows as the others",
            f"Give a multiple of {ranks}",
        )
    return rows // ranks


class _Runs:
    """Trainings of a Trainer that leave it as it was."""

    def __init__(self, trainer: Any, row: object) -> None:
        _check(trainer)
        self._trainer = trainer
        data = trainer.train_dataset
        self.length: int | None = len(data) if hasattr(data, "__len__") else None
        self._row = _largest(_rows(data, self.length)) if row is None else row
        self._models = list({id(each): each for each in vars(trainer).values() if _is_model(each)}.values())

    def search(self, accumulated: int, **bounds: Any) -> BatchSizeResult:
        """The largest batch, with so many accumulated for one optimizer step.

        Raises:
            DoesNotFit: not even the smallest size does.
        """
        trainer = self._trainer
        return auto_batch_size(
            self._models,
            lambda size: size,
            optimizer=trainer.optimizer,
            step=partial(_Step(self, accumulated), trainer.accelerator.scaler),
            steps=1,  # which is a whole training
            group=torch.distributed.group.WORLD if trainer.args.world_size > 1 else None,
            **bounds,
        )

    def accumulating(self, rows: int, largest: int, common: dict[str, Any]) -> BatchSizeResult:
        """The largest part of some rows that fits while the others are accumulated.

        Raises:
            DoesNotFit: none does.
        """
        least = self.search(2, max_batch_size=min(largest, rows // 2), **common)
        # All batches of an optimizer step are moved to the device at its beginning, so each count is another program.
        parts = [
            size for size in range(least.batch_size, 0, -1) if not rows % size and not size % common["multiple_of"]
        ]
        refused = None
        for size in parts:
            bounds = common | {"min_batch_size": size, "max_batch_size": size, "effective_batch_size": rows}
            try:
                return self.search(rows // size, **bounds)
            except DoesNotFit as error:
                refused = error
        raise refused or DoesNotFit(
            _ASKED,
            f"no multiple of {common['multiple_of']} divides {rows} and fits",
            instead="Give another effective_batch_size, or multiple_of=1",
        )

    def train(self, size: int, accumulated: int) -> None:
        """Train for a few steps."""
        with self._left_as_it_was():
            trainer = self._trainer
            trainer.args = args = _quiet(trainer.args)
            args.per_device_train_batch_size = size
            args.gradient_accumulation_steps = min(accumulated, _ACCUMULATED)
            if accumulated > _ACCUMULATED:
                trainer.get_batch_samples = _Held(trainer.get_batch_samples, accumulated)
            trainer._train_batch_size = args.train_batch_size  # noqa: SLF001 - as above
            trainer.train_dataset = _Copies(self._row, _STEPS * accumulated * args.train_batch_size * args.world_size)
            trainer.callback_handler = CallbackHandler(
                [DefaultFlowCallback], trainer.model, trainer.processing_class, trainer.optimizer, trainer.lr_scheduler
            )
            type(trainer).train(trainer)  # an object's own may measure it, or write where it ends

    @contextmanager
    def _left_as_it_was(self) -> Iterator[None]:
        trainer, accelerator = self._trainer, self._trainer.accelerator
        attributes, counts = dict(vars(trainer)), _counts(vars(trainer))
        try:
            yield
        finally:
            vars(trainer).clear()
            vars(trainer).update(attributes | counts)
            accelerator.free_memory()  # its optimizers and models


class _Step:
    """One run of a Trainer, as the step of a program. No function: a search looks at all that those reach."""

    def __init__(self, runs: _Runs, accumulated: int) -> None:
        self._runs = runs
        self._accumulated = accumulated

    def __call__(self, scaler: object, size: int) -> None:
        self._runs.train(size, self._accumulated)


class _Held:
    """Has all batches of an optimizer step on the device, as a Trainer from its beginning, and trains on the first.

    Of those that are accumulated, the second finds the gradients of the first; all others take what it takes.
    """

    def __init__(self, samples: Callable[..., tuple[list[object], object]], accumulated: int) -> None:
        self._samples = samples
        self._accumulated = accumulated
        self._held: list[object] = []

    def __call__(self, batches: object, count: int, *others: object) -> tuple[list[object], object]:
        self._held, items = self._samples(batches, self._accumulated, *others)
        return self._held[:count], items


class _Copies(torch.utils.data.Dataset[object]):
    """A row again and again."""

    def __init__(self, row: object, count: int) -> None:
        self._row = row
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> object:
        return copy.copy(self._row)  # collators take out of it


def _check(trainer: Any) -> None:
    if not torch.cuda.is_available():
        raise UsageError(
            _ASKED,
            "there is no GPU",
            "It runs the Trainer's own steps, on the GPU that they will have",
            'Run the script on one; without one, vramkit.virtual_gpu.activate("t4") before torch is imported makes one',
        )
    if trainer.args.n_gpu > 1:
        raise UsageError(
            _ASKED,
            f"the Trainer spreads each batch over {trainer.args.n_gpu} GPUs (DataParallel)",
            "What fits is asked of one device",
            "Start the script with torchrun, or set CUDA_VISIBLE_DEVICES=0",
        )
    if hasattr(trainer.args, "num_generations"):
        raise UsageError(
            _ASKED,
            f"{type(trainer).__name__} generates: its batch size is tied to num_generations and others",
            instead="Measure it with a MemoryCallback, and set the size yourself",
        )


def _is_model(value: object) -> bool:
    return isinstance(value, torch.nn.Module)


def _rows(data: Any, length: int | None) -> Iterable[object]:
    if length is None:
        return islice(data, _LOOKED_AT)
    return (data[number] for number in range(0, length, max(1, -(-length // _LOOKED_AT))))


def _largest(rows: Iterable[object]) -> object:
    found = max(rows, key=_numbers, default=None)
    if found is None:
        raise UsageError(_ASKED, "the Trainer's train_dataset is empty", instead="Give it rows to train on")
    return found


def _numbers(value: Any) -> int:
    """How many numbers or characters a row has."""
    if isinstance(value, Mapping):
        return sum(map(_numbers, value.values()))
    if isinstance(value, (list, tuple)):
        nested = value and not isinstance(value[0], (int, float))
        return sum(map(_numbers, value)) if nested else len(value)
    if isinstance(value, torch.Tensor):
        return value.numel()
    return len(value) if isinstance(value, str) else int(getattr(value, "nbytes", 1))


def _quiet(args: Any) -> Any:
    """The arguments of a training that ends soon and tells nobody."""
    found = copy.copy(args)
    found.max_steps = _STEPS
    for name in ("save_strategy", "eval_strategy", "logging_strategy"):
        setattr(found, name, type(getattr(args, name))("no"))
    for name in (
        *("eval_on_start", "logging_first_step", "load_best_model_at_end", "push_to_hub", "auto_find_batch_size"),
        *("dataloader_persistent_workers", "dataloader_num_workers"),
    ):
        setattr(found, name, type(getattr(args, name))(0))
    found.dataloader_prefetch_factor = None
    return found


def _counts(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of what a Trainer counts and averages in dicts."""
    dicts = {name: value for name, value in attributes.items() if isinstance(value, dict) and _is_plain(value)}
    return cast("dict[str, Any]", copy.deepcopy(dicts))


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))

"""``vramkit.summary``: run a training step, count what is in its layers, and make a table of both. Chooses what a size
means; how a step is run and counted, the engines know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from .. import gpus
from ..counts import check_count
from ..engines import EngineName, Session
from ..engines.choosing import check_engine, current_gpu, open_session
from ..errors import UsageError, shortened
from ..estimation.result import predict
from ..gpus import GPU
from ..programs.arguments import check_grows, program_of
from ..programs.batches import described, is_made
from ..programs.layer_count import LayerCounts
from ..programs.objects import Models, OptimizerOrFactory
from ..torch_internals.needs import require
from .input_size import Dtypes, InputSize, batches, is_input_size
from .result import Summary
from .rows import rows_of

_ASKED = "vramkit.summary was called"
_STEPS = 3  # as vramkit.estimate: the memory of the third is that of all that follow


def summary(
    model: Models,
    batch: object = None,
    *,
    input_size: InputSize | None = None,
    dtypes: Dtypes | None = None,
    batch_size: int | None = None,
    optimizer: OptimizerOrFactory | None = None,
    step: Callable[[Any], object] | None = None,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    gpu: str | int | GPU | None = None,
    engine: EngineName | None = None,
    autocast: torch.dtype | None = None,
) -> Summary:
    """A model's layers as a table: shapes, parameters, multiply-adds, and the memory of each in a training step.

    ::

        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 128), torch.nn.ReLU())
        print(vramkit.summary(model, input_size=(1, 28, 28)))
        print(vramkit.summary(model, torch.zeros(64, 1, 28, 28), optimizer=torch.optim.Adam))

    The step is that of ``vramkit.estimate``: forward, loss, backward, and the optimizer if there is one. Under
    ``torch.no_grad()``, and of a model that trains nothing, only the forward runs. The model is left as found.

    Args:
        model: as for ``vramkit.estimate``.
        batch: as for ``vramkit.estimate``, or the size of the input, as ``input_size``.
        input_size: in place of a batch. With ``batch_size`` it is the size of one sample, as torchsummary takes it:
            ``input_size=(1, 28, 28), batch_size=64``. Without, it is the size of a batch, as torchinfo takes it,
            ``(64, 1, 28, 28)``, if the model runs on that; and else that of one sample, in a batch of one. A
            convolution or a recurrent layer that would get one sample without a batch means the latter, too. Several
            inputs: a list of sizes, or a dict by the names of the forward's arguments.
        dtypes: of what ``input_size`` makes: one, or one for each input. None: that of the model's parameters. A model
            of tokens needs ``torch.long``.
        batch_size: rows of the batch; None: as it is given.
        optimizer, step, loss, gpu, engine, autocast: as for ``vramkit.estimate``.

    Returns:
        The table. Multiply-adds are those that torch's ``FlopCounterMode`` counts: matrix products, convolutions,
        attention; and recurrent layers.

    Raises:
        UsageError, DeviceError, DoesNotFit: as ``vramkit.estimate``.

    Known limitations: a layer whose ``forward`` is called without calling the layer is not seen; what it does counts
    for the one around it. Multiply-adds of kernels that torch has no formula for count as none.
    """
    require(_ASKED, "programs")
    check_engine(_ASKED, engine)
    card = current_gpu() if gpu is None else gpus.find(gpu)
    if input_size is None and is_input_size(batch):
        batch, input_size = None, batch
    if (batch is None) == (input_size is None):
        raise UsageError(
            _ASKED,
            "with neither a batch nor an input_size" if batch is None else "with a batch and an input_size",
            instead="Pass one of them: vramkit.summary(model, batch), or input_size=(1, 28, 28)",
        )

    def run(given: object, rows: int | None) -> tuple[Summary, bool]:
        program = program_of(
            _ASKED, model, given, optimizer=optimizer, step=step, loss=loss, autocast=autocast, steps=_STEPS
        )
        if step is None and not any(
            each.requires_grad for part in program.models.values() for each in part.parameters()
        ):
            program = replace(program, gradients="off")
        if rows is not None:
            check_grows(f"{_ASKED} with batch_size={rows}", program)
        return _table(
            open_session(program, engine), card, rows or program.batch_size or int(is_made(given)), described(given)
        )

    if batch_size is not None:
        batch_size = check_count(_ASKED, "batch_size", batch_size)
    if input_size is None:
        return run(batch, batch_size)[0]
    return _of_size(input_size, batches(_ASKED, input_size, dtypes, batch_size, model), lambda made: run(made, None))


def _of_size(
    size: object, candidates: Iterator[tuple[str, object]], run: Callable[[object], tuple[Summary, bool]]
) -> Summary:
    """The table of the first batch that the model takes as one, of those that a size may mean."""
    failures: list[UsageError] = []
    found: Summary | None = None
    for words, batch in candidates:
        try:
            table, took_one_sample = run(batch)
        except UsageError as error:
            failures.append(error)
            continue
        found = found or table
        if not took_one_sample:
            return replace(table, notes=(*table.notes, f"input_size={shortened(repr(size))} was read {words}."))
    if found is not None:
        return found
    raise UsageError(
        _ASKED,
        f"with input_size={shortened(repr(size))}",
        f"The model does not run on such a batch: {failures[0]}",
        "Where it takes whole numbers, pass dtypes=torch.long; or give a batch: vramkit.summary(model, batch)",
    ) from failures[0].__cause__


def _table(session: Session, card: GPU, rows: int, called: str) -> tuple[Summary, bool]:
    """The table of a program, and whether a layer was called with one sample that has no batch dimension."""
    estimate = predict(session, card, rows)
    counts: LayerCounts | None = None
    notes = estimate.notes
    try:
        counts = session.count_layers(card, rows)
    except UsageError as error:
        notes += (f"Parameters and multiply-adds were not counted: {error}",)
    table = Summary(rows=rows_of(estimate.by_module, counts, _STEPS), estimate=estimate, called=called, notes=notes)
    return table, counts is not None and counts.took_one_sample

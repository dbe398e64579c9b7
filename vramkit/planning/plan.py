"""``vramkit.plan``: find what to change so that a training program fits. Checks the call, lets changes be searched,
and makes the table of what was run.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from .. import gpus
from .._version import __version__
from ..allocator import AllocatorConf
from ..allocator.conf import alloc_conf_of_process
from ..batch_size.progress import Line
from ..counts import check_count
from ..engines import EngineName
from ..engines.choosing import check_engine, current_gpu, open_session
from ..errors import UsageError
from ..gpus import GPU
from ..programs.arguments import check_grows, places_of, program_of
from ..programs.batches import is_made
from ..programs.objects import Models, OptimizerOrFactory
from ..programs.parallel import Parallel
from ..ranks.place import GPUS_PER_NODE
from ..sizes import format_size
from ..torch_internals.needs import require
from .beside import beside, processors
from .changes import Change, Severity
from .changes.offers import offers
from .facts import facts_of
from .measuring import Measuring
from .result import Plan
from .search import Outcome, Search
from .variant import EFFECTS, Variant, cheapest, front

_ASKED = "vramkit.plan was called"


def plan(
    model: Models,
    batch: object,
    *,
    optimizer: OptimizerOrFactory | None = None,
    step: Callable[[Any], object] | None = None,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    steps: int = 3,
    batch_size: int | None = None,
    gpu: str | int | GPU | None = None,
    engine: EngineName | None = None,
    alloc_conf: str | None = None,
    autocast: torch.dtype | None = None,
    largest: int | None = None,
    everything: bool = False,
    world_size: int | None = None,
    rank: int | Sequence[int] = 0,
    gpus_per_node: int = GPUS_PER_NODE,
    parallel: Parallel | None = None,
) -> Plan:
    """Find what to change so that a training program fits a card: changes are made and run, alone and together.

    ::

        model = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(512, 8, batch_first=True), 6)
        plan = vramkit.plan(model, torch.zeros(64, 256, 512), optimizer=torch.optim.AdamW, gpu="4 GiB")
        print(plan)

    The arguments are those of ``vramkit.estimate``, and so are the figures: each is that of an estimate of the program
    whose code was changed so. Nothing of yours is changed.

    With a ``step`` of your own only those changes are made that can be made from outside: gradient checkpointing, how
    the optimizer computes its step, where its state lies, what requires gradients, weights in bfloat16, and expandable
    segments. ``Plan.left_out`` says so of the others. In the step of a model by its name (`vramkit.models.load`) all
    changes are made.

    Args:
        model, batch, optimizer, step, loss, steps, batch_size, gpu, engine, alloc_conf, autocast: as for
            ``vramkit.estimate``. The model is one that changes can be made to, not a function that makes it.
        world_size, rank, gpus_per_node, parallel: as there, too.
        largest: of how many variants that fit, the cheapest first, the largest batch on the card is searched, which
            takes some more runs each. None: of the program as it is, of the cheapest, and of all on the Pareto front,
            whether they fit or not. A batch in parts can be of any size: of those it is never searched.
        everything: also run changes that do more to the training than others that fit: memory on the host, weights in
            bfloat16, other optimizers. They take longest to run, and are not needed then.

    Returns:
        The variants that were run. ``Plan.cheapest`` is the one that fits and costs least.

    Raises:
        UsageError, DeviceError, DoesNotFit: as ``vramkit.estimate``, of the program as it is. A change with which it
            does not run is left out, with the reason.

    Known limitations: how long a step takes is not known, only which operations it has; small batches and many passes
    take longer than their operations say. Blocks are found as modules of one class beside each other. Losses of parts
    are averaged, so a loss has to be a mean over rows. Changes that need other code inside the model (another
    attention, sharding, quantised weights) are not tried. Of other packages' optimizers only bitsandbytes' in 8 bits
    are, where it is installed: another one is planned by passing it.
    """
    require(_ASKED, "programs")
    program = program_of(
        _ASKED,
        model,
        batch,
        optimizer=optimizer,
        step=step,
        loss=loss,
        autocast=autocast,
        steps=steps,
        places=places_of(_ASKED, parallel, world_size, rank, gpus_per_node),
        parallel=parallel,
    )
    if program.make_models is not None:
        raise UsageError(
            _ASKED,
            "with a function that makes the model",
            "Changes are made to a model, before it is parallel",
            "Pass the model, and how ranks share its training: parallel=vramkit.FSDP(8)",
        )
    if batch_size is not None:
        batch_size = check_count(_ASKED, "batch_size", batch_size)
        check_grows(f"{_ASKED} with batch_size={batch_size}", program)
    rows = batch_size or program.batch_size or int(is_made(batch))
    if largest:
        largest = check_count(_ASKED, "largest", largest)
        check_grows(f"{_ASKED} with largest={largest}", program)
    elif largest is None and not rows:
        largest = 0  # nobody knows how such a batch grows
    conf = alloc_conf_of_process() if alloc_conf is None else alloc_conf
    parsed = AllocatorConf.parse(conf)
    check_engine(_ASKED, engine)
    card = current_gpu() if gpu is None else gpus.find(gpu)
    facts = facts_of(program, card, rows, parsed)
    session = open_session(program, engine, alloc_conf)
    count = processors() if session.engine == "virtual" else 1
    measuring = Measuring(session, card, rows, facts, conf, count)
    families, left_out = offers(facts)
    with Line(sys.stderr is not None and sys.stderr.isatty()) as line:

        def measure(changes: tuple[Change, ...]) -> Outcome:
            line.show(f"vramkit: trying {_name(changes)}")
            outcome = measuring.run(changes)
            fits = "fits" if outcome.fits else "does not fit"
            line.show(f"vramkit: {format_size(outcome.peak_reserved)}, {fits}: {_name(changes)}")
            return outcome

        search = Search(families, measure, partial(beside, count), room=card.memory - card.context)
        outcomes = search.run(everything=everything)
        line.show("vramkit: counting operations")
        variants = _variants(outcomes, measuring, card, largest, line)
    return Plan(
        gpu=card,
        engine=session.engine,
        batch_size=rows,
        variants=variants,
        left_out=(*left_out, *search.left_out),
        notes=measuring.notes,
        versions={"torch": torch.__version__, "vramkit": __version__, "python": sys.version.split()[0]},
    )


def _name(changes: Sequence[Change]) -> str:
    return " + ".join(each.name for each in changes) or "the program as it is"


def _variants(
    outcomes: Sequence[Outcome], measuring: Measuring, card: GPU, largest: int | None, line: Line
) -> tuple[Variant, ...]:
    """A row for each outcome, in the order of a plan."""
    plain, *others = outcomes
    measuring.count_all(each.changes for each in outcomes if _is_counted(each))
    whole = measuring.count(()).flops
    rows = {each.changes: _variant(each, measuring, card, whole) for each in outcomes}
    fitting = sorted((each for each in others if each.fits), key=lambda each: rows[each.changes].cost)
    rest = sorted((each for each in others if not each.fits), key=lambda each: each.peak_reserved)
    order = (plain, *fitting, *rest)
    if largest is None:
        table = [rows[each.changes] for each in order]
        wanted = {id(each) for each in (table[0], cheapest(table), *front(table))}
        searched = [each for each, row in zip(order, table, strict=True) if id(row) in wanted]
    else:
        searched = [each for each in (plain, *fitting) if each.fits][:largest]
    wanted_sizes = [each.changes for each in searched if rows[each.changes].passes == 1]
    line.show(f"vramkit: searching the largest batch of {len(wanted_sizes)} programs")
    for changes, found in zip(wanted_sizes, measuring.largest_batch_sizes(wanted_sizes), strict=True):
        rows[changes] = dataclasses.replace(rows[changes], largest_batch_size=found)
    return tuple(rows[each.changes] for each in order)


def _is_counted(outcome: Outcome) -> bool:
    """What does not fit is counted where it is a single change; others would take time and answer nothing."""
    return outcome.fits or len(outcome.changes) < 2


def _variant(outcome: Outcome, measuring: Measuring, card: GPU, whole: int) -> Variant:
    changes = outcome.changes
    count = measuring.count(changes) if _is_counted(outcome) else None
    severity = max((each.severity for each in changes), default=Severity.SAME)
    return Variant(
        changes=tuple(each.name for each in changes),
        peak_allocated=outcome.peak_allocated,
        peak_reserved=outcome.peak_reserved,
        used=outcome.peak_reserved + card.context,
        fits=outcome.fits,
        effect=EFFECTS[severity],
        passes=max((each.passes for each in changes), default=1),
        flops=None if count is None else count.flops,
        operations=None if count is None else count.flops / whole if whole else 1.0,
        transferred=None if count is None else count.transferred,
        numbers=tuple(each.numbers for each in changes),
        code=measuring.draft(changes).code(),
    )

"""``vramkit estimate``: predict the memory of a training step that a name stands for, or that a function describes."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..gpus import GPU, find
from ..sizes import format_size
from .functions import HELP, add_model_options, arguments_from, check_arguments, model_options, step_traceback_told
from .printing import show
from .saving import JSON, PAGE, STDOUT, add_html_option, check_can_save, save, write_json, write_page

if TYPE_CHECKING:
    from ..estimation.result import Estimate
    from ..scaling.rows import BatchSizeRow
    from . import Verbs

_SAVED = "The estimate"

_VERB = "vramkit estimate"


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "estimate",
        help="predict the memory of a training step on a GPU that isn't here",
        description="Prints where the memory of a training step would go: of a model that is known by its name, made "
        "from its configuration alone; or of what a function returns: (model, batch), or a dict of the arguments of "
        "vramkit.estimate.",
        epilog="Exit code: 0 if it fits (with several batch sizes and cards: each on each), 1 if it does not, 2 for "
        "wrong use and for a function or a step that fails.",
    )
    parser.add_argument("function", metavar="NAME|MODULE:FUNCTION", help=HELP)
    parser.add_argument(
        "--gpu",
        nargs="+",
        metavar="NAME|SIZE",
        help="a card of `vramkit gpus`, or a size such as '24 GiB'; several: a verdict for each",
    )
    parser.add_argument("--batch-size", type=int, nargs="+", metavar="N", help="resize the batch; several: a table too")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps (default: 3)")
    parser.add_argument("--engine", choices=("virtual", "fake"), help="default: virtual where it can be, else fake")
    parser.add_argument("--max-batch-size", action="store_true", help="also search the largest batch that fits")
    parser.add_argument("--save", metavar="FILE", help="also write the prediction, for `vramkit view` and vramkit.load")
    parser.add_argument("--json", metavar="FILE", help="also write everything as JSON; -: to stdout, and no text")
    add_html_option(parser)
    add_model_options(parser)
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Predict, and print. Returns the exit code."""
    with step_traceback_told():
        return _predict(options)


def _predict(options: argparse.Namespace) -> int:
    if options.save is not None:
        check_can_save(_SAVED, options.save)
    if options.json is not None:
        check_can_save(JSON, options.json)
    if options.html is not None:
        check_can_save(PAGE, options.html)
    cards = [find(each) for each in options.gpu or ()]
    given = arguments_from(_VERB, options.function, model_options(options))
    sizes: list[int] = options.batch_size or []
    named = {
        "gpu": cards[0] if cards else None,
        "steps": options.steps,
        "engine": options.engine,
        "batch_size": sizes[0] if sizes else None,
    }
    given |= {name: value for name, value in named.items() if value is not None}
    from ..estimation.estimate import estimate

    check_arguments(_VERB, options.function, given, estimate)
    found: Estimate = estimate(**given)
    tell = _nothing if options.json == STDOUT else show
    tell(found.report())
    if options.save:
        save(_SAVED, found, options.save)
    fits = found.fits()
    document: dict[str, object] = {"kind": "estimate", "function": options.function, "result": found.to_dict()}
    if len(sizes) > 1:
        rows = found.batch_sizes(sizes)
        tell(f"\n{table(rows)}")
        fits = all(row.fits for row in rows)
        document["batch_sizes"] = [asdict(row) for row in rows]
    if len(cards) > 1:
        others = [_on(found, card, sizes) for card in cards[1:]]
        fits = fits and all(each["fits"] for each in others)
        document["other_gpus"] = others
        tell(f"\n{_verdicts(others)}")
    if options.max_batch_size:
        largest = found.largest_batch_size()
        tell(f"\nThe largest batch that fits {found.gpu.product}: {largest:,}")
        document["largest_batch_size"] = largest
    if options.html:
        curve = sizes if len(sizes) > 1 else None
        tell(f"\n{write_page(lambda path: found.to_html(path, batch_sizes=curve), options.html)}")
    if options.json is not None:
        write_json(document, options.json)
    return 0 if fits else 1


def _on(found: Estimate, card: GPU, sizes: list[int]) -> dict[str, Any]:
    """What another card says, as JSON has it."""
    if not found.batch_size:
        return {"gpu": card.name, "product": card.product, "fits": found.fits(card), "batch_sizes": []}
    rows = found.batch_sizes(sizes or [found.batch_size], card)
    fits = all(row.fits for row in rows)
    return {"gpu": card.name, "product": card.product, "fits": fits, "batch_sizes": [asdict(row) for row in rows]}


def _verdicts(others: list[dict[str, Any]]) -> str:
    """What other cards say, as text."""
    from ..scaling.rows import BatchSizeRow

    parts = []
    for each in others:
        rows = tuple(BatchSizeRow(**row) for row in each["batch_sizes"])
        verdict = f"{'Fits' if each['fits'] else 'DOES NOT FIT'} {each['product']}"
        parts.append(f"{verdict}:\n{table(rows)}" if rows else f"{verdict}.")
    return "\n\n".join(parts)


def _nothing(text: str) -> None:
    pass


def table(rows: tuple[BatchSizeRow, ...]) -> str:
    """Batch sizes and what each needs, as text."""
    lines = [f"{'batch size':>10}{'allocated':>13}{'reserved':>13}{'used':>13}{'of the card':>13}"]
    lines += [
        f"{row.batch_size:>10,}{format_size(row.peak_allocated):>13}{format_size(row.peak_reserved):>13}"
        f"{format_size(row.used):>13}{row.used / row.capacity:>13.1%}" + ("" if row.fits else "  does not fit")
        for row in rows
    ]
    return "\n".join(lines)

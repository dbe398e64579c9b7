"""``vramkit estimate``: predict the memory of a training step that a function describes."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..sizes import format_size
from .functions import HELP, arguments_from, check_arguments, step_traceback_told
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
        description="Calls a function that returns (model, batch), or a dict of the arguments of vramkit.estimate, and "
        "prints where the memory of its training step would go.",
        epilog="Exit code: 0 if it fits (with several batch sizes: each of them), 1 if it does not, 2 for wrong use "
        "and for a function or a step that fails.",
    )
    parser.add_argument("function", metavar="MODULE:FUNCTION", help=HELP)
    parser.add_argument("--gpu", metavar="NAME|SIZE", help="a card of `vramkit gpus`, or a size such as '24 GiB'")
    parser.add_argument("--batch-size", type=int, nargs="+", metavar="N", help="resize the batch; several: a table too")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps (default: 3)")
    parser.add_argument("--engine", choices=("virtual", "fake"), help="default: virtual where it can be, else fake")
    parser.add_argument("--max-batch-size", action="store_true", help="also search the largest batch that fits")
    parser.add_argument("--save", metavar="FILE", help="also write the prediction, for `vramkit view` and vramkit.load")
    parser.add_argument("--json", metavar="FILE", help="also write everything as JSON; -: to stdout, and no text")
    add_html_option(parser)
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
    given = arguments_from(_VERB, options.function)
    sizes: list[int] = options.batch_size or []
    named = {
        "gpu": options.gpu,
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

"""``vramkit summary``: the layer table of a model that a function makes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .functions import HELP, arguments_from, check_arguments, step_traceback_told
from .printing import show
from .saving import JSON, STDOUT, check_can_save, write_json

if TYPE_CHECKING:
    from ..layers.result import Summary
    from . import Verbs

_VERB = "vramkit summary"


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "summary",
        help="a model's layers: shapes, parameters, multiply-adds, and the memory of each in a training step",
        description="Calls a function that returns (model, batch), a dict of the arguments of vramkit.summary, or with "
        "--input-size a model alone, and prints its layers and what each takes in a training step.",
        epilog="Exit code: 0; 1 if the step does not fit the card; 2 for wrong use.",
    )
    parser.add_argument("function", metavar="MODULE:FUNCTION", help=HELP)
    parser.add_argument(
        "--input-size",
        type=int,
        nargs="+",
        metavar="N",
        help="of a batch, such as 64 3 224 224; or of one sample, such as 3 224 224, above all with --batch-size",
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="rows of the batch")
    parser.add_argument("--depth", type=int, metavar="N", help="leave out layers inside of more layers than this")
    parser.add_argument("--gpu", metavar="NAME|SIZE", help="a card of `vramkit gpus`, or a size such as '24 GiB'")
    parser.add_argument("--engine", choices=("virtual", "fake"), help="default: virtual where it can be, else fake")
    parser.add_argument("--json", metavar="FILE", help="also write everything as JSON; -: to stdout, and no text")
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Print the table. Returns the exit code."""
    if options.json is not None:
        check_can_save(JSON, options.json)
    with step_traceback_told():
        given: dict[str, Any] = arguments_from(_VERB, options.function)
        named = {name: getattr(options, name) for name in ("input_size", "batch_size", "gpu", "engine")}
        given |= {name: value for name, value in named.items() if value is not None}
        if options.input_size is not None:
            given.pop("batch", None)
        from ..layers.summary import summary

        check_arguments(_VERB, options.function, given, summary)
        table: Summary = summary(**given)
    if options.json != STDOUT:
        show(table.report(depth=options.depth))
    if options.json is not None:
        write_json({"kind": "summary", "function": options.function, **table.to_dict()}, options.json)
    return 0 if table.estimate.fits() else 1

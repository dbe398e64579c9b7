"""``vramkit plan``: what to change in a training step that a function describes, so that it fits a card."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .functions import (
    HELP,
    add_model_options,
    arguments_from,
    check_arguments,
    is_model,
    model_options,
    step_traceback_told,
)
from .printing import show
from .saving import JSON, PAGE, STDOUT, add_html_option, check_can_save, write_json, write_page

if TYPE_CHECKING:
    from ..planning.result import Plan
    from . import Verbs

_VERB = "vramkit plan"

_OPTIONS = (
    "\nOf a model by name these make another model, and are not tried: --liger, whose loss makes no logits,\n"
    "--quantization and --attention. Give one, and plan again."
)


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "plan",
        help="what to change so that a training step fits a GPU: changes that were run, alone and together",
        description="Takes a model that is known by its name, or calls a function that returns (model, batch), or a "
        "dict of the arguments of vramkit.plan, makes changes in its training step, runs each, and prints what they "
        "take, what they cost, and the code for the cheapest that fits.",
        epilog="Exit code: 0 if something fits; 1 if nothing does; 2 for wrong use.",
    )
    parser.add_argument("function", metavar="NAME|MODULE:FUNCTION", help=HELP)
    parser.add_argument("--gpu", metavar="NAME|SIZE", help="a card of `vramkit gpus`, or a size such as '24 GiB'")
    parser.add_argument("--batch-size", type=int, metavar="N", help="resize the batch")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps (default: 3)")
    parser.add_argument("--engine", choices=("virtual", "fake"), help="default: virtual where it can be, else fake")
    parser.add_argument(
        "--largest",
        type=int,
        metavar="N",
        help="search the largest batch of the N cheapest that fit; 0: "
        "of none (default: of the program as it is, of the cheapest, and of the Pareto front)",
    )
    parser.add_argument("--everything", action="store_true", help="also run changes that are not needed")
    add_html_option(parser)
    parser.add_argument("--json", metavar="FILE", help="also write everything as JSON; -: to stdout, and no text")
    add_model_options(parser)
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Plan, and print. Returns the exit code."""
    if options.json is not None:
        check_can_save(JSON, options.json)
    if options.html is not None:
        check_can_save(PAGE, options.html)
    with step_traceback_told():
        given: dict[str, Any] = arguments_from(_VERB, options.function, model_options(options))
        names = ("gpu", "batch_size", "steps", "engine", "largest")
        named = {name: getattr(options, name) for name in names}
        given |= {name: value for name, value in named.items() if value is not None}
        if options.everything:
            given["everything"] = True
        from ..planning.plan import plan

        check_arguments(_VERB, options.function, given, plan)
        found: Plan = plan(**given)
    if options.json != STDOUT:
        show(found.report())
        if is_model(options.function):
            show(_OPTIONS)
    if options.html is not None:
        written = write_page(found.to_html, options.html)
        if options.json != STDOUT:
            show(f"\n{written}")
    if options.json is not None:
        write_json({"kind": "plan", "function": options.function, **found.to_dict()}, options.json)
    return 0 if found.cheapest is not None else 1

"""``vramkit estimate``: predict the memory of a training step that a function describes."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, VramkitError
from ..sizes import format_size
from .printing import show
from .saving import JSON, PAGE, STDOUT, add_html_option, check_can_save, save, write_json, write_page

if TYPE_CHECKING:
    from ..estimation.result import Estimate
    from ..scaling.rows import BatchSizeRow
    from . import Verbs

_ASKED = "vramkit estimate was given a function"
_SAVED = "The estimate"


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
    parser.add_argument("function", metavar="MODULE:FUNCTION", help="as from this folder, such as package.train:build")
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
    try:
        return _predict(options)
    except VramkitError as error:
        from ..programs.failures import StepTraceback

        if isinstance(error.__cause__, StepTraceback):  # of which the error's own text speaks
            print(error.__cause__, file=sys.stderr)
        raise


def _predict(options: argparse.Namespace) -> int:
    if options.save is not None:
        check_can_save(_SAVED, options.save)
    if options.json is not None:
        check_can_save(JSON, options.json)
    if options.html is not None:
        check_can_save(PAGE, options.html)
    given = _arguments(options.function)
    sizes: list[int] = options.batch_size or []
    named = {
        "gpu": options.gpu,
        "steps": options.steps,
        "engine": options.engine,
        "batch_size": sizes[0] if sizes else None,
    }
    given |= {name: value for name, value in named.items() if value is not None}
    from ..estimation.estimate import estimate

    known = inspect.signature(estimate).parameters
    if unknown := [name for name in given if name not in known]:
        raise UsageError(
            _ASKED,
            f"{options.function} returned a dict with {', '.join(map(repr, unknown))}",
            "vramkit.estimate has no such argument",
            f"It has {', '.join(known)}",
        )
    if missing := [name for name in ("model", "batch") if name not in given]:
        raise UsageError(
            _ASKED,
            f"{options.function} returned a dict without {' and '.join(map(repr, missing))}",
            instead=f"It returned {', '.join(map(repr, given))}",
        )
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


def _arguments(name: str) -> dict[str, Any]:
    """What the function that is meant returns, as arguments of ``vramkit.estimate``."""
    result = _result_of(name)
    if isinstance(result, Mapping):
        return {str(key): value for key, value in result.items()}
    if isinstance(result, (tuple, list)) and len(result) == 2:
        return {"model": result[0], "batch": result[1]}
    raise UsageError(
        _ASKED,
        f"{name} returned {type(result).__name__}",
        "It has to say what is trained",
        'Return (model, batch), or a dict such as {"model": model, "batch": batch, "optimizer": torch.optim.AdamW}',
    )


def _result_of(name: str) -> object:
    try:
        return _function(name)()
    except VramkitError:
        raise
    except (Exception, SystemExit) as error:
        from ..programs.failures import StepTraceback, failure_of

        failure = failure_of("call it", error)
        raise UsageError(
            f"vramkit estimate was to call {name}",
            f"it raised {failure.kind}: {failure.text}",
            instead="Make sure that it can be imported here and called without arguments; the traceback above says "
            "where it stopped",
        ) from StepTraceback(f"in {name}", failure.traceback)


def _function(name: str) -> Callable[[], object]:
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path) or module_name.startswith("."):
        raise UsageError(_ASKED, f"{name!r} names none", instead="Write MODULE:FUNCTION, such as package.train:build")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and misses something itself
        raise UsageError(
            _ASKED, f"there is no module {module_name!r}", instead="Call it from the folder that holds it"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UsageError(_ASKED, f"{module_name!r} has no {path!r}", instead="Name a function without arguments")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(_ASKED, f"{name} is {type(found).__name__}", instead="Name a function without arguments")
    return found  # type: ignore[no-any-return] # what it takes and returns shows when it is called

"""``vramkit compare A B``: two saved results, or snapshots that torch wrote: what grew, and why."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .printing import show
from .saving import JSON, PAGE, STDOUT, add_html_option, check_can_save, write_json, write_page
from .view import open_result

if TYPE_CHECKING:
    from . import Verbs


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "compare",
        help="what grew between two saved profiles, estimates or snapshots, and why",
        description="Prints what grew or shrank from A to B, by category, module, step, line and tensor, and why, as "
        "far as both recordings prove it. A and B are what `save(FILE)` or `vramkit run --save FILE` wrote, or what "
        "torch.cuda.memory._dump_snapshot(FILE) did; also of different versions of torch.",
        epilog="Exit code: 0; 1 if --fail-above was exceeded; 2 for wrong use.",
    )
    parser.add_argument("before", metavar="A")
    parser.add_argument("after", metavar="B")
    parser.add_argument(
        "--fail-above",
        metavar="LIMIT",
        help="exit with 1 if on a device the peak of allocated memory, or that of reserved memory, grew by more than "
        "this: '2%%' of A's figure, or a size such as '100 MiB'; or if B ran out of memory and A did not. '0%%' allows "
        "no growth. Allocated memory is exactly repeatable; reserved memory decides what fits, and moves in steps of 2 "
        "MiB and more",
    )
    add_html_option(parser)
    parser.add_argument("--json", metavar="FILE", help="also write everything as JSON; -: to stdout, and no text")
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Print the comparison of two files. Returns the exit code."""
    from ..comparison.result import compare

    if options.json is not None:
        check_can_save(JSON, options.json)
    if options.html is not None:
        check_can_save(PAGE, options.html)
    before, after = open_result(options.before), open_result(options.after)
    comparison = compare(before, after)
    exceeded = options.fail_above is not None and comparison.exceeds(options.fail_above)
    written = ""
    if options.html is not None:
        written = write_page(lambda path: after.to_html(path, beside=before), options.html)
    if options.json != STDOUT:
        show(comparison.report())
        if options.fail_above is not None:
            grew = "grew by more than" if exceeded else "did not grow by more than"
            show(f"\nPeak memory {grew} {options.fail_above}.")
        if written:
            show(f"\n{written}")
    if options.json is not None:
        files = {"before": options.before, "after": options.after}
        limit = {"fail_above": options.fail_above, "exceeded": None if options.fail_above is None else exceeded}
        write_json({"kind": "compare", **files, **limit, **comparison.to_dict()}, options.json)
    return int(exceeded)

"""The command line: ``vramkit VERB ...``, also ``python -m vramkit``. Knows the verbs and exit codes; loads no torch.

Exit codes: 0 good, 1 does not fit or ran out of memory, 2 wrong use. ``vramkit run`` passes on the script's own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ._version import __version__
from .cli import compare, demo, estimate, gpus, plan, run, summary, view
from .errors import DoesNotFit, VramkitError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: without the program's name; None: those of the process.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="vramkit",
        description="Where a PyTorch training step's GPU memory goes, to the byte, with a GPU and without one.",
        epilog="Exit codes: 0 good, 1 does not fit or ran out of memory, 2 wrong use.",
    )
    parser.add_argument("--version", action="version", version=f"vramkit {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in (demo, run, estimate, plan, summary, view, compare, gpus):
        verb.add_to(verbs)
    options = parser.parse_args(arguments)
    try:
        code: int = options.main(options)
        sys.stdout.flush()
    except VramkitError as error:
        print(f"vramkit: {error}", file=sys.stderr)
        return 1 if isinstance(error, DoesNotFit) else 2
    except BrokenPipeError:
        # The reader of a pipe has had enough. Python would complain once more when it flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


if __name__ == "__main__":
    sys.exit(main())

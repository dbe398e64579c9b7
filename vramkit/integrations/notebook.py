"""``%%vram`` in a notebook: the memory of a cell. Knows IPython's magics; ``%load_ext vramkit`` imports it."""

from __future__ import annotations

import argparse
import shlex
from contextlib import ExitStack
from typing import Any, NoReturn

from ..errors import UsageError
from ..profiling.profiler import profile
from ..results.profile import Profile


def register(shell: Any) -> None:
    """Add ``%%vram`` to an IPython shell."""

    def vram(line: str, cell: str) -> Profile:
        """Run a cell and show where its GPU memory went. ``--stacks``: by lines; a name: where the `Profile` goes."""
        options = _options(line)
        source = shell.transform_cell(cell)
        code = shell.compile(source, shell.compile.cache(source, shell.execution_count), "exec")
        measuring, running = profile(stacks=options.stacks), ExitStack()
        running.enter_context(measuring)  # before the try: if this fails there is no result
        try:
            with running:
                exec(code, shell.user_ns)
        finally:
            if options.name is not None:
                shell.user_ns[options.name] = measuring.result
        return measuring.result

    shell.register_magic_function(vram, magic_kind="cell", magic_name="vram")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """An error of the cell, where argparse would end the process."""
        raise UsageError("%%vram was called", message, instead="Write %%vram, %%vram NAME, or %%vram --stacks NAME")


def _options(line: str) -> argparse.Namespace:
    parser = _Parser(prog="%%vram", add_help=False)
    parser.add_argument("--stacks", action="store_true")
    parser.add_argument("name", nargs="?")
    options = parser.parse_args(shlex.split(line))
    if options.name is not None and not options.name.isidentifier():
        parser.error(f"{options.name!r} is no name of a variable")
    return options

"""Python runs this when it starts, in each process that a measured script starts: ``vramkit run`` puts this folder
first in their ``PYTHONPATH``. It lets the process be measured once torch is imported, and does nothing before.

Knows nothing of vramkit but where it is; the environment's own ``sitecustomize``, which this one hides, runs too.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGE = os.path.dirname(os.path.dirname(_HERE))


class _WhenTorchIsThere:
    """Finds torch as the other finders do, and has something done when it has been imported."""

    is_of_vramkit_run = True

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_measure(module: ModuleType) -> None:
                load(module)
                _measure()

            spec.loader.exec_module = load_and_measure  # type: ignore[method-assign] # on this one object
        return spec


def _measure() -> None:
    sys.path.append(os.path.dirname(_PACKAGE))  # a child may have another path; whatever it has comes first
    try:
        from vramkit.cli.measuring import measure_child
    except Exception as error:  # no NumPy, an older vramkit: the script must not fail for it
        sys.path.pop()
        print(f"vramkit: process {os.getpid()} can't be measured: {error!r}", file=sys.stderr)
        return
    sys.path.pop()
    measure_child()


def _run_the_hidden_one() -> None:
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or os.curdir) != _HERE]
    spec = PathFinder.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if "VRAMKIT_RUN" in os.environ:
    sys.meta_path.insert(0, _WhenTorchIsThere())
_run_the_hidden_one()

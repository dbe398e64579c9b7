"""What a MODULE:FUNCTION returns, as arguments of a function of vramkit's. Knows how it is found and called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UsageError, VramkitError

MODELS = "the name of a model begins with hf:, timm: or torchvision:"
"""What is said where no function was found: a model may have been meant."""


def arguments_from(verb: str, name: str) -> dict[str, Any]:
    """What a function returns, as arguments.

    Args:
        verb: as it is written: "vramkit estimate".
        name: "package.module:function".

    Raises:
        UsageError: there is no such function, it fails, or it returns something else.
    """
    result = _result_of(verb, name)
    if isinstance(result, Mapping):
        return {str(key): value for key, value in result.items()}
    if isinstance(result, (tuple, list)) and len(result) == 2:
        return {"model": result[0], "batch": result[1]}
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(result, torch.nn.Module):
        return {"model": result}
    raise UsageError(
        _asked(verb),
        f"{name} returned {type(result).__name__}",
        "It has to say what is trained",
        'Return (model, batch), or a dict such as {"model": model, "batch": batch, "optimizer": torch.optim.AdamW}',
    )


def _result_of(verb: str, name: str) -> object:
    try:
        return _function(verb, name)()
    except VramkitError:
        raise
    except (Exception, SystemExit) as error:
        from .failures import StepTraceback, failure_of

        failure = failure_of("call it", error)
        raise UsageError(
            f"{verb} was to call {name}",
            f"it raised {failure.kind}: {failure.text}",
            instead="Make sure that it can be imported here and called without arguments; the traceback above says "
            "where it stopped",
        ) from StepTraceback(f"in {name}", failure.traceback)


def _function(verb: str, name: str) -> Callable[[], object]:
    asked = _asked(verb)
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path) or module_name.startswith("."):
        raise UsageError(
            asked, f"{name!r} names none", instead=f"Write MODULE:FUNCTION, such as package.train:build; {MODELS}"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and misses something itself
        raise UsageError(
            asked, f"there is no module {module_name!r}", instead=f"Call it from the folder that holds it; {MODELS}"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UsageError(asked, f"{module_name!r} has no {path!r}", instead="Name a function without arguments")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(asked, f"{name} is {type(found).__name__}", instead="Name a function without arguments")
    return found  # type: ignore[no-any-return] # what it takes and returns shows when it is called


def _asked(verb: str) -> str:
    return f"{verb} was given a function"

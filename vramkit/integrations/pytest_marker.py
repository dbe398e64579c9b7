"""What a test asks for by its marker. Knows the marker's arguments; imports nothing of torch's. PYTEST_DONT_REWRITE"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import pytest

REAL = "real"
"""In the place of a card's name: the machine's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A test's arguments, as its markers and the command line give them."""

    gpu: str | int | None
    limit: str | int | None
    baseline: bool
    tolerance: str | int | None
    stacks: bool


def _marker(
    *,
    limit: str | int | None = None,
    gpu: str | int | None = None,
    baseline: bool = False,
    tolerance: str | int | None = None,
    stacks: bool | None = None,
) -> None:
    """The arguments that a marker has."""


def asked_of(item: pytest.Item) -> Asked | None:
    """What a test asks for; None: it has neither the marker nor the fixture.

    Of several markers (a module's, a class's, its own) each argument counts where it is nearest to the test.

    Raises:
        pytest.UsageError: a marker has an argument that there is not.
    """
    given: dict[str, object] = {}
    marks = [*item.iter_markers("gpu_memory")]
    if not marks and "gpu_memory" not in getattr(item, "fixturenames", ()):
        return None
    for mark in reversed(marks):
        try:
            inspect.signature(_marker).bind(*mark.args, **mark.kwargs)
        except TypeError as error:
            raise pytest.UsageError(f"{item.nodeid}: gpu_memory{inspect.signature(_marker)}: {error}") from error
        given |= mark.kwargs
    option = item.config.getoption("vramkit_gpu")
    baseline, stacks = bool(given.get("baseline")), given.get("stacks")
    return Asked(
        gpu=_size_or_name(given.get("gpu") if option is None else option),
        limit=_size_or_name(given.get("limit")),
        baseline=baseline,
        tolerance=_size_or_name(given.get("tolerance")),
        stacks=baseline if stacks is None else bool(stacks),
    )


def _size_or_name(value: object) -> str | int | None:
    return value if isinstance(value, (str, int)) or value is None else str(value)

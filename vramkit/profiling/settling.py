"""From a recording with its marks to its tape: the modules by the names and in the tree that they have at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..attribution.categories import attribute
from ..attribution.recording import Kind, Recording
from ..tape.events import Tape
from .marks import Marks
from .tracked_modules import TrackedModules

_OF_MODULES = frozenset({Kind.ROOT, Kind.ROOT_END, Kind.IN, Kind.GRAPH, Kind.LEFT, Kind.BACKWARD_AT})


def tape_of(recording: Recording, marks: Marks, modules: TrackedModules, optimizers: Sequence[frozenset[str]]) -> Tape:
    """What every allocation of a recording was for.

    A module that ran before the model that it is part of was first taken for a model itself.

    Args:
        recording: of one device.
        marks: laid down meanwhile.
        modules: that the marks speak of.
        optimizers: names of the parameters of each optimizer that the marks speak of.
    """
    kept = marks.kept
    if modules.renamed:
        places = modules.places()
        kept = [
            (kind, places[value] if kind in _OF_MODULES and value >= 0 else value, line) for kind, value, line in kept
        ]
        noted = recording.at_module
        at_module = np.where(noted >= 0, np.array(places, np.int32)[np.maximum(noted, 0)], noted)
        recording = replace(recording, at_module=at_module)
    tape = replace(attribute(recording, kept, marks.scans, modules.described()), optimizers=tuple(optimizers))
    if not modules.renamed:
        return tape
    return replace(
        tape,
        names=tuple(modules.name_now(name) for name in tape.names),
        optimizers=tuple(frozenset(map(modules.name_now, names)) for names in optimizers),
    )

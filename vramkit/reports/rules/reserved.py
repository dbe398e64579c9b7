"""What the allocator holds and nobody has, and what only a first step needs. Knows no other advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ...sizes import format_size
from ...tape.events import Category, Phase
from ..edits import retries
from ..layout import counted
from ..scene import Scene
from .advised import Advice

_SEGMENTS = 32 << 20
"""Less than this is only the rest of a few segments of 2 and 20 MiB."""


def _fragmentation(scene: Scene) -> Iterator[Advice]:
    """Segments that grow in place of many. What they reserve is replayed; of a tape too long for that, nothing is said
    but that it may be tried.
    """
    result, failed = scene.result, scene.moment.failed
    if not scene.on_gpu or "expandable_segments:True" in result.tape.alloc_conf:
        return
    if result.is_window and not failed:  # what was allocated at once before it, nobody knows
        return
    if failed:
        cached = scene.moment.breakdown.cached
        matters = cached >= failed.requested
        what = f"{format_size(cached)} are cached, in pieces that were too small"
    else:
        at = int(result.timeline.reserved.argmax())
        cached = max(0, result.peak_reserved - result.peak_allocated - int(result.timeline.graph_pools[at]))
        matters = cached * 10 >= (result.capacity or result.peak_reserved)
        what = f"{format_size(cached)} more are held than were ever allocated at once"
    if not matters or cached < _SEGMENTS:
        return
    again = retries(result.tape)
    if again:
        what += f", and {counted(again, 'time')} all that was cached was given back for one request"
    expected = scene.replays.run(result.tape, "expandable_segments:True")
    reached = result.peak_reserved if not failed else int(result.timeline.reserved[scene.moment.event + 1])
    yield Advice(
        saves=reached - expected.reserved if expected else cached,
        text=f"set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: {what}",
        of_reserved=True,
        is_computed=expected is not None,
        peak_allocated=expected.allocated if expected and not failed else None,
        peak_reserved=expected.reserved if expected and not failed else None,
    )


def _trials(scene: Scene) -> Iterator[Advice]:
    """Workspaces of convolutions that the first step alone asked for: ``cudnn.benchmark`` tries kernels there."""
    tape, moment = scene.result.tape, scene.moment
    if not scene.at(tried(scene)):
        return
    peak = int(tape.allocated[tape.events["step"] > moment.step].max())
    yield Advice(
        saves=scene.result.peak_allocated - peak,
        text=f"leave torch.backends.cudnn.benchmark off, or count with the later steps: only step {moment.step + 1} "
        f"tries kernels whose workspaces are so large; later ones reach {format_size(peak)}",
        is_cause=True,
    )


def tried(scene: Scene) -> npt.NDArray[np.bool_]:
    """Workspaces of kernels that a first step, which has the peak, tried and no later one ran. They are no batch's."""
    tape, moment = scene.result.tape, scene.moment
    table = tape.allocations
    none = np.zeros(len(table), bool)
    if not scene.on_gpu or moment.failed or moment.event < 0:
        return none
    convolves = np.array([*("Conv" in module.kind for module in tape.modules), False])[table["module"]]
    passes = np.isin(table["phase"], (Phase.FORWARD, Phase.BACKWARD, Phase.EVALUATION))
    inside = (scene.category == Category.TEMPORARY) & passes & convolves
    found = inside & (table["step"] == moment.step)
    later = (table["step"] > moment.step) & passes
    if not found.any() or not later.any() or not _is_first_of_its_shape(scene, convolves):
        return none
    result: npt.NDArray[np.bool_] = found & ~np.isin(table["requested"], np.unique(table["requested"][later]))
    return result


def _is_first_of_its_shape(scene: Scene, convolves: npt.NDArray[np.bool_]) -> bool:
    """Whether the moment's step is the first, and convolutions keep tensors of the same sizes in the next one: then a
    kernel that it alone ran was tried, and not needed for another shape.

    Args:
        scene: of the moment.
        convolves: which allocations convolutions made.
    """
    table = scene.result.tape.allocations
    kept = (scene.category == Category.ACTIVATION) & convolves
    sizes = [set(table["requested"][kept & (table["step"] == step)].tolist()) for step in (0, 1)]
    return scene.moment.step == 0 and sizes[0] == sizes[1]


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_fragmentation, _trials)

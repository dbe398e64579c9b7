"""What the allocator holds and nobody has, and what only a first step needs. Knows no other advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ...allocator import CachingAllocator
from ...errors import VramkitError
from ...sizes import format_size
from ...tape.events import Action, Category, Phase
from ..layout import counted
from ..scene import Scene
from .advised import Advice

_SEGMENTS = 32 << 20
"""Less than this is only the rest of a few segments of 2 and 20 MiB."""
_MOST_REPLAYED = 1 << 18
"""Events, at most: a replay takes a microsecond or two for each."""


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
    retries = _retries(scene)
    if retries:
        what += f", and {counted(retries, 'time')} all that was cached was given back for one request"
    expected = _expandable(scene)
    reached = result.peak_reserved if not failed else int(result.timeline.reserved[scene.moment.event + 1])
    saves = cached if expected < 0 else reached - expected
    yield Advice(
        saves=saves,
        text=f"set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: {what}",
        of_reserved=True,
        is_computed=expected >= 0,
    )


def _expandable(scene: Scene) -> int:
    """Bytes that would be reserved at most in segments that grow; -1: not known."""
    tape = scene.result.tape
    if len(tape.events) > _MOST_REPLAYED or tape.has_graph_pools:
        return -1
    conf = ",".join(filter(None, (tape.alloc_conf, "expandable_segments:True")))
    try:
        allocator = CachingAllocator(conf=conf, tie_break=tape.tie_break)
        return allocator.replay(tape, flushes=not _retries(scene)).peak_reserved
    except (
        VramkitError,
        LookupError,
        ValueError,
    ):  # settings that can't be simulated, or a file that no allocator made
        return -1


def _retries(scene: Scene) -> int:
    """How often a pass gave back what was cached and asked the device again for the same request."""
    events = scene.result.tape.events
    begins = np.flatnonzero(scene.result.tape.flushes & (events["phase"] != Phase.OUTSIDE))
    released = np.isin(events["action"], (Action.SEGMENT_FREE, Action.SEGMENT_UNMAP))
    kept = np.flatnonzero(~released)
    following = kept[np.minimum(np.searchsorted(kept, begins), len(kept) - 1)] if len(kept) else begins
    asks = np.isin(events["action"][following], (Action.SEGMENT_ALLOC, Action.SEGMENT_MAP))
    return int(asks.sum())


def _trials(scene: Scene) -> Iterator[Advice]:
    """Workspaces of convolutions that the first step alone asked for: ``cudnn.benchmark`` tries kernels there."""
    tape, moment = scene.result.tape, scene.moment
    if not scene.on_gpu or moment.failed or moment.event < 0:
        return
    table, steps = tape.allocations, tape.events["step"]
    convolution = np.array([*("Conv" in module.kind for module in tape.modules), False])
    passes = np.isin(table["phase"], (Phase.FORWARD, Phase.BACKWARD, Phase.EVALUATION))
    tried = moment.alive & (scene.category == Category.TEMPORARY) & passes & convolution[table["module"]]
    later = (table["step"] > moment.step) & passes
    if not tried.any() or not later.any() or not _is_first_of_its_shape(scene):
        return
    tried &= ~np.isin(table["requested"], np.unique(table["requested"][later]))
    if not scene.at(tried):
        return
    peak = int(tape.allocated[steps > moment.step].max())
    yield Advice(
        saves=scene.result.peak_allocated - peak,
        text=f"leave torch.backends.cudnn.benchmark off, or count with the later steps: only step {moment.step + 1} "
        f"tries kernels whose workspaces are so large; later ones reach {format_size(peak)}",
    )


def _is_first_of_its_shape(scene: Scene) -> bool:
    """Whether the moment's step is the first, and the next one keeps tensors of the same sizes: then a kernel that it
    alone ran was tried, and not needed for another shape.
    """
    table = scene.result.tape.allocations
    kept = scene.category == Category.ACTIVATION
    sizes = [set(table["requested"][kept & (table["step"] == step)].tolist()) for step in (0, 1)]
    return scene.moment.step == 0 and sizes[0] == sizes[1]


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_fragmentation, _trials)

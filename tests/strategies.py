"""What Hypothesis draws: every new kind of input of the library belongs here."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from hypothesis import strategies as st
from random_stacks import BEGINS, LAYERS, LOSSES, OPTIMIZERS, Layer, StackProgram

from vramkit.tape.events import ALLOCATION, EVENT, PASS, Action, Category, Evaluation, Module, Phase, Tape
from vramkit.tape.stacks import StackTree


@st.composite
def tapes(draw: st.DrawFn, max_allocations: int = 40) -> Tape:
    """Tapes of one device: consistent tables with any lives, sizes and labels; segments cover what is allocated."""
    count = draw(st.integers(0, max_allocations))
    modules = (
        Module(name="Net", kind="Net", calls=1, output_shape=(2, 3)),
        Module(name="Net.a", kind="Linear", parent=0, parameters=24),
        Module(name="Net.b", kind="Linear", parent=0),
    )
    lives = []
    moments = draw(st.permutations(range(2 * count)))
    for i in range(count):
        born, died = sorted(moments[2 * i : 2 * i + 2])
        lives.append((born, died, draw(st.booleans()), draw(st.booleans())))
    kept = sorted(
        moment
        for born, died, before, stays in lives
        for moment, there in ((born, not before), (died, not stays))
        if there
    )
    index = {moment: i for i, moment in enumerate(kept)}
    steps = sorted(draw(st.lists(st.integers(0, 3), min_size=len(kept), max_size=len(kept))))
    allocations = np.zeros(count, ALLOCATION)
    events = np.zeros(len(kept), EVENT)
    order = sorted(range(count), key=lambda i: (not lives[i][2], lives[i][0]))
    for row, i in enumerate(order):
        born, died, before, stays = lives[i]
        requested = draw(st.integers(1, 10_000))
        pool = draw(st.sampled_from([(0, 0), (0, 0), (0, 3), (7, 0)]))
        block = -(-requested // 512) * 512
        event_born, event_died = -1 if before else index[born], -1 if stays else index[died]
        allocations[row] = (
            draw(st.sampled_from(Category)), draw(st.sampled_from(Phase)), draw(st.integers(-1, 2)),
            0 if before else steps[event_born], event_born, event_died, requested, block, 512 * 100 * i, 0,
            draw(st.integers(-1, 1)), pool, 0, draw(st.integers(0, 2)),
        )  # fmt: skip
        for event, action in ((event_born, Action.ALLOC), (event_died, Action.FREE)):
            if event >= 0:
                events[event] = (
                    action, draw(st.sampled_from(Phase)), draw(st.integers(-1, 2)), steps[event], row, requested,
                    512 * 100 * i, 0, event, pool,
                )  # fmt: skip
    begins = sorted(draw(st.lists(st.integers(0, len(kept)), max_size=3)))
    passes = np.array(
        [
            (Phase.FORWARD, 0, 0, begin, len(kept), True, draw(st.booleans()), False, draw(st.booleans()), 0)
            for begin in begins
        ],
        PASS,
    )
    allocations["forward"] = [draw(st.integers(0, len(passes))) for _ in range(count)]
    tree = StackTree()
    frames = st.tuples(st.sampled_from(["/a/train.py", "/b/train.py", "/x/site-packages/lib/m.py"]), st.integers(0, 3))
    rows = [
        tree.add([tree.number(file, number, "f") for file, number in draw(st.lists(frames, max_size=3))])
        for _ in range(count)
    ]
    stacks = tree.stacks(np.array(rows, np.int64)) if draw(st.booleans()) else None
    evaluations = draw(st.sampled_from([(), (Evaluation(module=0, forwards=3, with_graph=2),)]))
    return Tape(
        events=events, allocations=allocations, modules=modules, names=("w", "b"),
        operators=("aten::mm", "aten::add (AddBackward0)"), evaluations=evaluations, device="cpu", stacks=stacks,
        passes=passes,
    )  # fmt: skip


@st.composite
def stacks(
    draw: st.DrawFn,
    dtypes: tuple[str, ...],
    autocast: tuple[str, ...] = ("",),
    max_batch: int = 70,
    without: Collection[str] = (),
) -> StackProgram:
    """Training programs of one to six layers of any kind, ``without`` some."""
    begins = draw(st.sampled_from([each for each in BEGINS if each not in without]))
    widths = st.sampled_from([8, 16, 24, 64, 136])
    kind = {"words": "sequences", "bags": "vectors"}.get(begins, begins)
    layers = []
    for _ in range(draw(st.integers(1, 6))):
        name = draw(st.sampled_from([each for each in LAYERS[kind] if each not in without]))
        layers.append(Layer(name, draw(widths), draw(st.booleans()) and draw(st.booleans())))
        kind = name if name in LAYERS else kind
    dtype = draw(st.sampled_from(dtypes))
    return StackProgram(
        begins=begins,
        batch=draw(st.integers(2, max_batch)),
        width=draw(widths),
        size=draw(st.integers(4, 20)),
        layers=tuple(layers),
        optimizer=draw(st.sampled_from([*OPTIMIZERS])),
        dtype=dtype,
        autocast=draw(st.sampled_from(autocast)) if dtype == "float32" else "",
        loss=draw(st.sampled_from([*LOSSES])),
    )

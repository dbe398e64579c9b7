"""The text report: one screen that says where a device's memory was. Knows what to show in which order; the figures
come from ``moment``, ``modules`` and ``advice``.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import printable
from ..sizes import format_size
from ..tape.events import Action, Category, Phase
from ..tape.memory import MemoryResult
from .advice import advise
from .layout import WIDTH, counted, cut, note, sections, wrapped
from .modules import ModuleRow, module_rows
from .moment import Moment, Tensors, largest_tensors, moment_of
from .tree import shown_name

_NAME = 60
"""Characters of a module's name in a sentence, at most."""

_BAR = 26
_NAMES = {
    Category.PARAMETER: "parameters",
    Category.BUFFER: "buffers",
    Category.GRADIENT: "gradients",
    Category.OPTIMIZER_STATE: "optimizer state",
    Category.INPUT: "inputs",
    Category.ACTIVATION: "activations",
    Category.TEMPORARY: "temporaries",
    Category.WORKSPACE: "cuBLAS workspace",
    Category.OTHER: "other",
    Category.MODEL_COPY: "copies of models",
    Category.DATASET: "data sets",
    Category.OUTPUT: "kept outputs",
}
_SINGULAR = {c: name.removesuffix("s") for c, name in _NAMES.items()}
_SINGULAR |= {Category.TEMPORARY: "temporary", Category.MODEL_COPY: "copy of a model"}
_PHASES = {
    Phase.OUTSIDE: "between the phases",
    Phase.FORWARD: "forward",
    Phase.BACKWARD: "backward",
    Phase.OPTIMIZER: "optimizer step",
    Phase.RECOMPUTE: "recomputation",
}


def report(result: MemoryResult) -> str:
    """One screen of text about a result: the bridge, the modules, the largest tensors, and what would help most.

    Args:
        result: a profile or an estimate. Of several devices, the one whose memory ran out is shown, else the fullest.

    Returns:
        Lines of at most 100 characters, without a newline at the end.
    """
    devices = list(result.each_device())
    shown = next((each for each in devices if moment_of(each).failed), result)
    parts = [[_title(shown)]]
    if not len(shown.tape.events) and not len(shown.tape.allocations):
        parts.append([f"Nothing was allocated on {shown.device} meanwhile."])
    else:
        moment = moment_of(shown)
        parts[0] += _failure(shown, moment) if moment.failed else _recovered(shown, moment)
        parts += [
            list(_bridge(shown, moment)),
            list(_modules(module_rows(shown, moment))),
            list(_tensors(largest_tensors(shown, moment))),
            list(_advice(shown, moment)),
        ]
    parts.append([_other_device(each) for each in devices if each is not shown])
    parts.append([line for each in shown.notes for line in note(each)])
    return sections(parts)


def _title(result: MemoryResult) -> str:
    on_cpu = result.device.startswith("cpu")
    known = [result.device] * bool(result.device_name) + [format_size(result.capacity)] * bool(result.capacity)
    name = (result.device_name or result.device) + (f" ({', '.join(known)})" if known else "")
    what = "storages of tensors on the CPU" if on_cpu else f"memory of {name}"
    steps = _step_count(result)
    over = f" over {counted(steps, 'step')}" if steps else ""
    version = f", torch {result.versions['torch']}" if "torch" in result.versions else ""
    return cut(f"vramkit: {what}{over}{version}")


def _step_count(result: MemoryResult) -> int:
    events = result.tape.events
    return int(events["step"].max()) + 1 if len(events) else 0


def _failure(result: MemoryResult, moment: Moment) -> list[str]:
    failed, held = moment.failed, moment.breakdown
    assert failed is not None
    failures = len(result.out_of_memory)
    several = f" {counted(failures, 'allocation')} failed; this is the last." * (failures > 1)
    free = f" {format_size(max(0, result.capacity - held.used))} of {format_size(result.capacity)} were free, and"
    return wrapped(
        f"{format_size(failed.requested)} ({failed.requested:,} B) were asked for {_when(result, moment)}."
        f"{free if result.capacity else ''} the allocator held {format_size(held.cached)} more that it could not use "
        f"for this.{several}",
        "OUT OF MEMORY: ",
    )


def _recovered(result: MemoryResult, moment: Moment) -> list[str]:
    if not moment.recovered:
        return []
    last, many = moment.recovered[-1], len(moment.recovered)
    events = result.tape.events[last.event + 1 :]
    again = int(((events["action"] == Action.ALLOC) & (events["phase"] != Phase.OUTSIDE)).argmax())
    since = int(result.tape.allocated[last.event + 1 :][again:].max())
    step = int(result.tape.events["step"][last.event])
    head = f"{counted(many, 'allocation')} failed, the last" if many > 1 else "An allocation failed,"
    return wrapped(
        f"{head} of {format_size(last.requested)} {_place(last.phase, last.module)} (step {step + 1}), and the program "
        f"went on: with at most {format_size(since)} allocated since.",
        "",
    )


def _when(result: MemoryResult, moment: Moment) -> str:
    if moment.event < 0:
        return "before the first event"
    return f"{_place(moment.phase, moment.module)}, step {moment.step + 1} of {_step_count(result)}"


def _place(phase: Phase, module: str = "") -> str:
    place = _PHASES[phase] if phase is Phase.OUTSIDE else f"in the {_PHASES[phase]}"
    return place + (f" of {shown_name(module, _NAME)}" if module else "")


# -- the bridge --------------------------------------------------------------------------------------------------------


def _bridge(result: MemoryResult, moment: Moment) -> Iterator[str]:
    held = moment.breakdown
    on_cpu = result.device.startswith("cpu")
    if moment.failed:
        yield "What held the memory then:"
    else:
        yield from wrapped(f"Most memory was allocated {_when(result, moment)}:", "")
    ever = result.timeline.by_category.max(axis=0)
    for category in sorted((c for c in Category if ever[c]), key=lambda c: -held.of(c)):
        size = held.of(category)
        share = size / held.allocated if held.allocated else 0.0
        bar = "#" * round(min(share, 1.0) * _BAR)
        yield f"{_line('', _NAMES[category], size)} {share:7.1%}  {bar}".rstrip()
    if on_cpu:
        if held.slack:
            yield _line("+", "rounding", held.slack)
        yield _line("=", "held by tensors", held.allocated)
        return
    yield _line("+", "rounding and unsplit slack", held.slack)
    function = "memory_allocated()" if moment.failed else "max_memory_allocated()"
    yield _line("=", "allocated", held.allocated) + f"  torch.cuda.{function}"
    yield _line("+", "cached: held, not allocated", held.cached)
    highest = "" if moment.failed or result.peak_reserved == held.reserved else " then"
    function = "memory_reserved()" if moment.failed or highest else "max_memory_reserved()"
    yield _line("=", f"reserved{highest}", held.reserved) + f"  torch.cuda.{function}"
    if held.outside:
        yield _line("+", "CUDA context, others", held.outside) + "  and libraries, other processes"
        part = f", {held.used / result.capacity:.1%}" if result.capacity else ""
        yield _line("=", "used on the device", held.used) + f"  what nvidia-smi shows{part}"
    if highest:
        step, phase = _reserved_peak(result)
        yield from wrapped(
            f"Reserved memory was highest {_place(phase)}, step {step + 1}: {format_size(result.peak_reserved)} "
            f"({result.peak_reserved:,} B), torch.cuda.max_memory_reserved().",
            "    ",
        )


def _line(sign: str, name: str, size: int) -> str:
    return f"  {sign:1} {name:<28}{format_size(size):>12}{size:>18,} B"


def _reserved_peak(result: MemoryResult) -> tuple[int, Phase]:
    events = result.tape.events
    if not len(events):
        return 0, Phase.OUTSIDE
    row = events[int(result.tape.reserved.argmax())]
    return int(row["step"]), Phase(int(row["phase"]))


# -- modules and tensors -----------------------------------------------------------------------------------------------


def _modules(rows: list[ModuleRow]) -> Iterator[str]:
    if not any(row.name for row in rows):
        return
    yield "Modules that hold most of it (each row is the sum of the four parts that follow):"
    yield "       holds parameters grads+state activations temp.+other calls  module"
    for row in rows:
        parts = f"{format_size(row.holds):>12}{_cell(row.parameters, 11)}{_cell(row.kept, 12)}"
        parts += f"{_cell(row.activations, 12)}{_cell(row.rest, 12)}{row.calls or '':>6}  "
        yield parts + _module_label(row, WIDTH - len(parts))


def _cell(size: int, width: int) -> str:
    return f"{format_size(size) if size else '-':>{width}}"


def _module_label(row: ModuleRow, width: int) -> str:
    if not row.name:
        return "(no module, or a smaller one)"
    count, own = f"{row.count} x " * (row.count > 1), " itself" * row.own
    name = count + shown_name(row.name) + own
    kind = f" ({printable(row.kind)})"
    shape = " -> " + "x".join(map(str, row.output_shape)) if row.output_shape and not row.own else ""
    short = count + shown_name(row.name, width - len(count) - len(own)) + own
    return next((label for label in (name + kind + shape, name + shape, name + kind) if len(label) <= width), short)


def _tensors(groups: list[Tensors]) -> Iterator[str]:
    if not groups:
        return
    yield "Largest tensors:"
    for each in groups:
        count = f"{each.count} x " if each.count > 1 else ""
        head = f"{count + format_size(each.size):>18}  {_SINGULAR[each.category]:<16}  "
        if not each.named and each.phase is Phase.OUTSIDE:
            yield f"{head}made outside of forward, backward and optimizer step"
            continue
        if not each.named:
            head += f"made in the {_PHASES[each.phase]}" + " of " * bool(each.names)
            head += ", in no module" * (not each.names and each.phase is not Phase.OPTIMIZER)
        yield head + _listed(each.names, WIDTH - len(head))


def _listed(names: tuple[str, ...], width: int) -> str:
    """The first two names, as far as they have room, and whether there are more."""
    more = ", ..." if len(names) > 2 else ""
    room = width - len(more)
    first, second = shown_name(names[0], room) if names else "", ""
    if len(names) > 1:
        # Two names that are cut say less than one that is not.
        second = f", {shown_name(names[1])}"
        if len(first + second) > room:
            first, second, more = shown_name(names[0], width - 5), "", ", ..."
    return first + second + more


# -- the rest ----------------------------------------------------------------------------------------------------------


def _advice(result: MemoryResult, moment: Moment) -> Iterator[str]:
    found = advise(result, moment)
    if not found:
        return
    yield "What would help most (each alone):"
    for each in found:
        size = f"{'up to' if each.of_reserved else 'about'} {format_size(each.saves)}"
        yield from wrapped(each.text + " [of reserved]" * each.of_reserved, f"{size:>18}  ")


def _other_device(result: MemoryResult) -> str:
    used = result.peak.outside + result.peak_reserved
    of = f" of {format_size(result.capacity)}" if result.capacity else ""
    return cut(
        f"Also {result.device}: at most {format_size(result.peak_allocated)} allocated, "
        f"{format_size(result.peak_reserved)} reserved, {format_size(used)} used{of}"
    )

"""The text report: one screen that says where a device's memory was. Knows what to show in which order; the figures
come from ``moment``, ``modules`` and ``advice``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..errors import printable
from ..gpus import GPU
from ..gpus.context import known
from ..sizes import format_size
from ..tape.events import Category, Phase
from ..tape.memory import MemoryResult
from .advice import advise
from .layout import WIDTH, cut, note, sections, wrapped
from .modules import ModuleRow, module_rows
from .moment import LineUsage, Moment, Tensors, largest_lines, largest_tensors, moment_of
from .nccl import nccl_row
from .rules import Advice
from .sentences import (
    CATEGORY_NAMES,
    PHASE_NAMES,
    at_most,
    both_peaks,
    failure,
    highest,
    recovered,
    reserved_at,
    steps_of,
    when,
)
from .tree import shown_name

_BAR = 26
_INDENT = 38  # of what is said of a tensor
_SINGULAR = {category: name.removesuffix("s") for category, name in CATEGORY_NAMES.items()}
_SINGULAR |= {Category.TEMPORARY: "temporary", Category.MODEL_COPY: "copy of a model"}


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
        happened = failure(shown, moment) if moment.failed else recovered(shown, moment)
        parts[0] += wrapped(happened, "OUT OF MEMORY: " * bool(moment.failed))
        parts += [
            list(_bridge(shown, moment)),
            wrapped(both_peaks(shown), ""),
            list(_modules(module_rows(shown, moment), knows_shapes=moment.phase is not Phase.EVALUATION)),
            list(_tensors(largest_tensors(shown, moment), knows_phases=shown.tape.knows_phases)),
            list(_lines(largest_lines(shown, moment))),
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
    version = f", torch {result.versions['torch']}" if "torch" in result.versions else ""
    steps = steps_of(result)
    return cut(f"vramkit: {what}{f' over {steps}' if steps else ''}{version}")


# -- the bridge --------------------------------------------------------------------------------------------------------


def _bridge(result: MemoryResult, moment: Moment) -> Iterator[str]:
    held = moment.breakdown
    on_cpu = result.device.startswith("cpu")
    if moment.failed:
        yield "What held the memory then:"
    elif result.is_moment:
        yield "What was allocated at that moment, the only one that is known:"
    else:
        kept = "Of what was kept, most" if result.is_window else "Most"
        yield from wrapped(f"{kept} memory was allocated {when(result, moment)}:", "")
    ever = result.timeline.by_category.max(axis=0)
    for category in sorted((c for c in Category if ever[c]), key=lambda c: -held.of(c)):
        size = held.of(category)
        share = size / held.allocated if held.allocated else 0.0
        bar = "#" * round(min(share, 1.0) * _BAR)
        yield f"{_line('', CATEGORY_NAMES[category], size)} {share:7.1%}  {bar}".rstrip()
    if on_cpu:
        if held.slack:
            yield _line("+", "rounding", held.slack)
        yield _line("=", "held by tensors", held.allocated)
        return
    yield _line("+", "rounding and unsplit slack", held.slack)
    called = "torch.cuda.memory_allocated()" if moment.failed else highest(result, "memory_allocated()")
    yield _line("=", "allocated", held.allocated) + f"  {called}"
    yield _line("+", "cached: held, not allocated", held.cached)
    if result.tape.has_graph_pools:
        yield _line("+", "graph pools", held.graph_pools) + "  private: free to nobody else"
    then = "" if moment.failed or result.peak_reserved == held.reserved else " then"
    called = "torch.cuda.memory_reserved()" if moment.failed or then else highest(result, "memory_reserved()")
    yield _line("=", f"reserved{then}", held.reserved) + f"  {called}"
    if held.outside:
        yield _line("+", "CUDA context, others", held.outside) + f"  {_whose(result)}"
        nccl = nccl_row(result)
        if nccl is not None and nccl.size is not None:
            yield _line("", nccl.name, nccl.size) + f"  {nccl.note}"
        part = f", {held.used / result.capacity:.1%}" if result.capacity else ""
        yield _line("=", "used on the device", held.used) + f"  what nvidia-smi shows{part}"
        if nccl is not None and nccl.size is None:
            yield from wrapped(f"{nccl.name}: {nccl.note}", "  + ")
    if then:
        yield from wrapped(
            f"Reserved memory was highest {reserved_at(result)}: {format_size(result.peak_reserved)} "
            f"({result.peak_reserved:,} B), {highest(result, 'memory_reserved()')}.",
            "    ",
        )


def _whose(result: MemoryResult) -> str:
    """What is outside of torch's memory; where it is only assumed, between what it lies."""
    card = getattr(result, "gpu", None)
    between = known(card.product, card.context) if isinstance(card, GPU) else None
    return "and libraries, other processes" if between is None else str(between)


def _line(sign: str, name: str, size: int) -> str:
    return f"  {sign:1} {name:<28}{format_size(size):>12}{size:>18,} B"


# -- modules and tensors -----------------------------------------------------------------------------------------------


def _modules(rows: list[ModuleRow], *, knows_shapes: bool) -> Iterator[str]:
    """The table of the modules. Shapes are those of first calls, and evaluation may have others than training."""
    if not any(row.name for row in rows):
        return
    yield "Modules that hold most of it (each row is the sum of the four parts that follow):"
    yield "       holds parameters grads+state activations temp.+other calls  module"
    for row in rows:
        parts = f"{format_size(row.holds):>12}{_cell(row.parameters, 11)}{_cell(row.kept, 12)}"
        parts += f"{_cell(row.activations, 12)}{_cell(row.rest, 12)}{row.calls or '':>6}  "
        yield parts + _module_label(row if knows_shapes else replace(row, output_shape=()), WIDTH - len(parts))


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


def _tensors(groups: list[Tensors], *, knows_phases: bool) -> Iterator[str]:
    if not groups:
        return
    yield "Largest tensors:"
    for each in groups:
        count = f"{each.count} x " if each.count > 1 else ""
        head = f"{count + format_size(each.size):>18}  {_SINGULAR[each.category]:<16}  "
        if not each.named and each.phase is Phase.OUTSIDE:
            yield head + (_made_by(each) or _somewhere(each, knows_phases))
            continue
        if not each.named:
            head += f"made in the {PHASE_NAMES[each.phase]}" + " of " * bool(each.names)
            head += ", in no module" * (knows_phases and not each.names and each.phase is not Phase.OPTIMIZER)
        line, made_by = head + _listed(each.names, WIDTH - len(head)), _made_by(each)
        if made_by and not each.lines and len(line) + 1 + len(made_by) <= WIDTH:
            line, made_by = f"{line} {made_by}", ""
        yield line
        if made_by:
            yield " " * _INDENT + made_by


def _somewhere(tensors: Tensors, knows_phases: bool) -> str:
    """What is said of tensors that no name, no phase and no line says anything of."""
    if knows_phases:
        return "made outside of forward, backward and optimizer step"
    return "kept by cuBLAS" if tensors.category is Category.WORKSPACE else "no line is known"


def _made_by(tensors: Tensors) -> str:
    """The operator and the line that made them, or the first of several; empty: none is known."""
    operator = f"by {tensors.operators[0]}{', ...' * (len(tensors.operators) > 1)}" if tensors.operators else ""
    if not tensors.lines:
        return cut(operator, WIDTH - _INDENT)
    more = f" and {len(tensors.lines) - 1} more lines" if len(tensors.lines) > 1 else ""
    line = f"{'at' if operator else 'by'} {tensors.lines[0]}"
    room = WIDTH - _INDENT - len(more)
    both = f"{operator} {line}" if len(operator) + 1 + len(line) <= room else line  # where they took it says more
    return cut(both.lstrip(), room) + more


def _lines(rows: list[LineUsage]) -> Iterator[str]:
    if not rows:
        return
    yield "Lines of the program that made most of it:"
    yield "       holds  tensors  mostly            line"
    for row in rows:
        mostly = CATEGORY_NAMES[row.largest] if row.largest is not None else ""
        head = f"{format_size(row.size):>12}{row.count:>9,}  {mostly:<16}  "
        yield head + cut(row.line or "(no line of the program, or one with less)", WIDTH - len(head))


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
        size = f"about {format_size(each.saves)}" if each.is_computed else ""
        yield from wrapped(each.text + _then(each), f"{size:>18}  ")


def _then(advice: Advice) -> str:
    """What the peaks would be, where that is known."""
    if advice.peak_allocated is None or advice.peak_reserved is None:
        return " [of reserved]" * advice.of_reserved
    reserved = f"{format_size(advice.peak_reserved)} reserved"
    if advice.of_reserved:
        return f" [then {reserved}]"
    return f" [then about {format_size(advice.peak_allocated)}, {reserved}]"


def _other_device(result: MemoryResult) -> str:
    outside = result.peak.outside
    of = f" of {format_size(result.capacity)}" if result.capacity else ""
    used = f", {format_size(outside + result.peak_reserved)} used{of}" if outside else of
    return cut(
        f"Also {result.device}: {at_most(result)}{format_size(result.peak_allocated)} allocated, "
        f"{format_size(result.peak_reserved)} reserved{used}"
    )

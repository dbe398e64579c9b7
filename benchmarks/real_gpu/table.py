"""A file's results as text: the card, its programs beside their twins', and what the context took. Runs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .comparing import Comparison, classes, compare

Entry = dict[str, Any]
MIB = 1 << 20
_SHOWN = 6
"""Differences of a program that are printed."""

_ATTRIBUTES = {
    "1": "threads of a block", "8": "shared memory of a block", "10": "warp", "12": "registers of a block",
    "13": "clock, kHz", "16": "multiprocessors", "36": "memory clock, kHz", "37": "bus width, bits", "38": "L2 cache",
    "39": "threads of a multiprocessor", "75": "major", "76": "minor", "81": "shared memory of a multiprocessor",
    "82": "registers of a multiprocessor", "97": "shared memory of a block, opted in",
    "106": "blocks of a multiprocessor", "111": "shared memory reserved of a block",
}  # fmt: skip
"""Numbers of cudaDeviceAttr."""


def page(entries: list[Entry]) -> str:
    """The whole text."""
    return "\n".join([*_card(entries), "", *_programs(entries), "", *_contexts(entries)])


def _sides(entries: list[Entry], kind: str) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """Of a kind, the card's and the twin's, by name; the last of each counts."""
    found: dict[str, dict[str, Entry]] = {"card": {}, "twin": {}}
    for each in entries:
        if each["kind"] == kind:
            found[each["device"]][each["name"]] = each
    return found["card"], found["twin"]


def _card(entries: list[Entry]) -> Iterator[str]:
    cards, twins = _sides(entries, "facts")
    card, twin = cards.get("", {}), twins.get("", {})
    for each in entries:
        if each["kind"] == "machine":
            yield each["nvidia-smi"].strip()
    if "properties" not in card:
        yield f"The card said nothing: {card.get('failure', 'it was not asked')}"
        return
    yield f"torch {card['torch']}, CUDA {card['cuda']}, cuDNN {card['cudnn']}, Python {card['python']}"
    yield f"NVML, idle: {card['nvml_idle']}"
    yield f"cublas_workspace: card {card['cublas_workspace']}, twin {twin.get('cublas_workspace')}"
    for what in ("properties", "attributes"):
        ours, theirs = card[what], twin.get(what, {})
        for key in ours:
            name = key if what == "properties" else _ATTRIBUTES.get(key)
            if ours[key] != theirs.get(key) and name is not None:
                yield f"  {name}: card {ours[key]}, twin {theirs.get(key)}"
        if what == "attributes":
            others = [key for key in ours if key not in _ATTRIBUTES and ours[key] != theirs.get(key)]
            yield f"  other attributes that differ: {' '.join(others) or 'none'}"


def _programs(entries: list[Entry]) -> Iterator[str]:
    cards, twins = _sides(entries, "program")
    yield f"{'program':46}{'events':>8}{'parts':>7}{'equal':>7}  {'allocated':>16}{'reserved':>16}  verdict"
    verdicts = []
    for name, card in cards.items():
        twin = twins.get(name, {"failure": "it was not run"})
        if "actions" not in card or "actions" not in twin:
            side, failed = ("card", card) if "actions" not in card else ("twin", twin)
            yield f"{name:46}{'':54}  not compared: {side}: {failed.get('failure')}"
            yield from (f"    {line[:140]}" for line in failed.get("said", "").strip().splitlines()[-2:])
            continue
        for side, entry in (("card", card), ("twin", twin)):
            if "failure" in entry:
                yield f"{name:46}{'':54}  only begun: {side}: {entry['failure']}"
        found = compare(card, twin)
        verdicts.append(found.verdict)
        peaks = [_off(card, twin, peak) for peak in ("peak_allocated", "peak_reserved")]
        yield (
            f"{name:46}{found.events:8}{found.parts:7}{found.equal_parts:7}  {peaks[0]:>16}{peaks[1]:>16}  "
            + found.verdict
            + (f" ({found.moved} blocks elsewhere)" if found.moved else "")
        )
        yield from _differences(found)
    yield f"{len(verdicts)} compared: " + ", ".join(
        f"{verdicts.count(each)} {each}" for each in dict.fromkeys(sorted(verdicts))
    )


def markdown(entries: list[Entry]) -> str:
    """The programs as a table of Markdown."""
    cards, twins = _sides(entries, "program")
    lines = [
        "| program | events | parts equal | allocated, MiB | reserved, MiB | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for name, card in cards.items():
        twin = twins.get(name, {})
        if "actions" in card and "actions" in twin:
            found = compare(card, twin)
            peaks = " | ".join(_off(card, twin, peak) for peak in ("peak_allocated", "peak_reserved"))
            parts = f"{found.equal_parts} of {found.parts}"
            lines.append(f"| {name} | {found.events:,} | {parts} | {peaks} | {found.verdict} |")
    return "\n".join(lines)


def _off(card: Entry, twin: Entry, peak: str) -> str:
    """The card's peak, and how far the twin is off."""
    if card[peak] == twin[peak]:
        return f"{card[peak] / MIB:.1f} ="
    return f"{card[peak] / MIB:.1f} {(twin[peak] - card[peak]) / MIB:+.1f}"


def _differences(found: Comparison) -> Iterator[str]:
    first = {(each.card, each.twin): each for each in reversed(found.differences)}
    for kind, count in classes(found.differences).most_common(_SHOWN):
        yield f"    {count} x {first[kind]}"
    if len(first) > _SHOWN:
        yield f"    … {len(first) - _SHOWN} more kinds of differences"


def _contexts(entries: list[Entry]) -> Iterator[str]:
    rows = [each for each in entries if each["kind"] == "context"]
    if not rows:
        return
    yield "Beside torch's segments, MiB: a fresh process for each; the context alone, and with what was then used"
    for each in rows:
        eager = " (eager)" * bool(each.get("environment"))
        if "steps" not in each:
            yield f"  {each['name'] + eager:40} {each.get('failure')}"
            continue
        before = each["before"].get("used", 0)
        steps = [step for step in each["steps"] if "used" in step]
        taken = [f"{step['step']} {(step['used'] - step['reserved']) / MIB:,.0f}" for step in steps]
        nvml, kept = (steps[-1]["nvml"], steps[-1]["reserved"]) if steps else ({}, 0)
        yield (
            f"  {each['name'] + eager:40} "
            + ", ".join(taken)
            + f"; NVML {(nvml.get('used', 0) - before - kept) / MIB:,.0f}"
            + f", of this process {(nvml.get('this process', 0) - kept) / MIB:,.0f}"
        )
        yield from (f"      {step['step']}: {step['error']}" for step in each["steps"] if "error" in step)

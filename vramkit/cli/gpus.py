"""``vramkit gpus``: the catalogue, this machine's devices, and what CUDA's context takes of them."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..errors import DeviceError
from ..gpus import GPU, all_gpus, find, is_derived, record
from ..gpus.context import Measured, keep
from ..gpus.installed import cuda_devices
from ..gpus.measuring import measure
from ..sizes import format_size, parse_size
from .saving import JSON, STDOUT, check_can_save, write_json

if TYPE_CHECKING:
    from . import Verbs

_NAME, _PRODUCT = 23, 50
_HEAD = f"{'name':<{_NAME}}{'product':<{_PRODUCT}}{'memory':>10}{'bytes':>18}{'capability':>12}{'SMs':>6}"


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "gpus",
        help="the GPUs that are known by name, and this machine's",
        description="Prints the catalogue (what `--gpu NAME` takes), and the CUDA devices of this machine.",
    )
    parser.add_argument(
        "--fits",
        metavar="SIZE",
        help="only cards with that much beside the CUDA context, such as 18GiB, the smallest first",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure what CUDA's context and libraries take of this machine's cards, which nobody else should use "
        "meanwhile, and keep it: predictions for these cards take it from then on",
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help="also write both as JSON; - or none: to stdout, and no text",
    )
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Print both tables, or measure. Returns the exit code: 1 if no card has so much."""
    if options.measure:
        return _measure(options.json)
    cards = tuple(find(card.name) for card in all_gpus())  # with the contexts that were measured here
    if options.fits is not None:
        wanted = parse_size(options.fits)
        cards = tuple(sorted((card for card in cards if _free(card) >= wanted), key=_free))
    if options.json is not None:
        check_can_save(JSON, options.json)
        rows = [{**asdict(card), "derived": is_derived(card), "record": record(card)} for card in cards]
        here = [asdict(device) for device in cuda_devices()]
        write_json({"kind": "gpus", "cards": rows, "devices": here}, options.json)
        if options.json == STDOUT:
            return 0 if cards else 1
    print(_HEAD)
    for card in cards:
        row = _row(card.name, card.product, card.memory, card.capability, card.multiprocessors)
        print(row + "  derived" * is_derived(card))
    if not cards:
        print(f"No card has {options.fits} beside the CUDA context.")
    print("\nA size does as well: --gpu '24 GiB' is a card with that memory, otherwise like the A100.")
    print("derived: no record of what the driver reports was found; taken from what the board carries.\n", flush=True)
    devices = cuda_devices()
    print("CUDA devices of this machine:" if devices else "This machine has no CUDA device.")
    for index, device in enumerate(devices):
        print(_row(f"cuda:{index}", device.name, device.memory, device.capability, device.multiprocessors))
    return 0 if cards else 1


def _free(card: GPU) -> int:
    return card.memory - card.context


def _measure(path: str | None) -> int:
    if path is not None:
        check_can_save(JSON, path)
    found: dict[str, Measured] = {}
    for ordinal, device in enumerate(cuda_devices()):
        if device.name not in found:
            found[device.name] = measure(ordinal)
    if not found:
        raise DeviceError(
            "What CUDA's context takes was to be measured",
            "this machine has no CUDA device",
            instead="Run it on the machine that has the card",
        )
    real = {name: each for name, each in found.items() if not each.is_virtual}
    try:
        kept = keep(real) if real else None
    except (OSError, RuntimeError) as error:
        raise DeviceError(
            "What CUDA's context takes was measured", f"it can't be kept: {error}", instead="Set XDG_CONFIG_HOME"
        ) from error
    if path is not None:
        write_json({"kind": "contexts", "cards": {name: asdict(each) for name, each in found.items()}}, path)
        if path == STDOUT:
            return 0
    for name, each in found.items():
        print(f"{name}, driver {each.driver}, torch {each.torch}: beside torch's memory")
        for stage, size in each.stages.items():
            print(f"  {stage:<40}{format_size(size):>12}{size:>18,} B")
    if kept is None:
        print("Not kept: a virtual GPU's context is the one that its card is taken to have.")
    else:
        print(f"Kept in {kept}: predictions for these cards take the last figure from now on.")
    return 0


def _row(name: str, product: str, memory: int, capability: tuple[int, int], multiprocessors: int) -> str:
    return (
        f"{name:<{_NAME}}{product:<{_PRODUCT}}{format_size(memory):>10}{memory:>18,}"
        f"{'.'.join(map(str, capability)):>12}{multiprocessors:>6}"
    )

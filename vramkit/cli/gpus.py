"""``vramkit gpus``: the catalogue, and this machine's devices."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..gpus import all_gpus
from ..gpus.installed import cuda_devices
from ..sizes import format_size
from .saving import JSON, STDOUT, check_can_save, write_json

if TYPE_CHECKING:
    from . import Verbs

_HEAD = f"{'name':<12}{'product':<27}{'memory':>10}{'bytes':>18}{'capability':>12}{'SMs':>6}"


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "gpus",
        help="the GPUs that are known by name, and this machine's",
        description="Prints the catalogue (what `--gpu NAME` takes), and the CUDA devices of this machine.",
    )
    parser.add_argument("--json", metavar="FILE", help="also write both as JSON; -: to stdout, and no text")
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Print both tables."""
    if options.json is not None:
        check_can_save(JSON, options.json)
        cards, here = [asdict(gpu) for gpu in all_gpus()], [asdict(device) for device in cuda_devices()]
        write_json({"kind": "gpus", "cards": cards, "devices": here}, options.json)
        if options.json == STDOUT:
            return 0
    print(_HEAD)
    for gpu in all_gpus():
        print(_row(gpu.name, gpu.product, gpu.memory, gpu.capability, gpu.multiprocessors))
    print("\nA size does as well: --gpu '24 GiB' is a card with that memory, otherwise like the A100.\n", flush=True)
    devices = cuda_devices()
    print("CUDA devices of this machine:" if devices else "This machine has no CUDA device.")
    for index, device in enumerate(devices):
        print(_row(f"cuda:{index}", device.name, device.memory, device.capability, device.multiprocessors))
    return 0


def _row(name: str, product: str, memory: int, capability: tuple[int, int], multiprocessors: int) -> str:
    return (
        f"{name:<12}{product:<27}{format_size(memory):>10}{memory:>18,}"
        f"{'.'.join(map(str, capability)):>12}{multiprocessors:>6}"
    )

"""``vramkit gpus``: the catalogue, and this machine's devices."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..gpus import all_gpus
from ..gpus.installed import cuda_devices
from ..sizes import format_size

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
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Print both tables."""
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

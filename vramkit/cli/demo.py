"""``vramkit demo``: an image classifier's training step, measured, explained, and held against the textbook."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import DeviceError, DoesNotFit, UsageError
from ..gpus.installed import cuda_devices
from .colours import shows_colours
from .printing import show, tell
from .saving import JSON, PAGE, STDOUT, add_html_option, check_can_save, write_json, write_page

if TYPE_CHECKING:
    from ..demo.training import Shown, Trained
    from ..results.profile import Profile
    from . import Verbs


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "demo",
        help="train a small image classifier and explain its memory",
        description="Trains a network of two layers on grey or colour images for a few steps, prints where the memory "
        "went, and holds it against the textbook's formulas. Uses this machine's GPU, else the virtual GPU, else the "
        "CPU.",
    )
    parser.add_argument(
        "--data",
        choices=("grey", "colour"),
        default="grey",
        help="digits of 1x28x28 pixels and 101,770 parameters, or pieces of photographs, 3x32x32 and 394,634 (default: "
        "%(default)s)",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where that can be, real or virtual")
    parser.add_argument("--gpu", metavar="NAME|SIZE|real", help="a virtual GPU of this kind (see `vramkit gpus`)")
    parser.add_argument("--steps", type=_positive, default=5, metavar="N", help="training steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=_positive, default=64, metavar="N", help="images (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write everything as JSON; -: to stdout, and no text")
    add_html_option(parser)
    parser.set_defaults(main=main)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def main(options: argparse.Namespace) -> int:
    """Choose a device, train, and print. Returns the exit code."""
    if options.device == "cpu" and options.gpu is not None:
        raise UsageError("vramkit demo was called with --device cpu and --gpu", instead="Leave one of them out")
    if options.json is not None:
        check_can_save(JSON, options.json)
    if options.html is not None:
        check_can_save(PAGE, options.html)
    where, place = _choose(options.device, options.gpu)
    # Only now: the virtual GPU has to be there before torch is.
    import torch

    from ..demo import training

    tell = _nothing if options.json == STDOUT else show

    def keep(result: Profile) -> None:
        if options.html:
            tell(f"{write_page(result.to_html, options.html)}\n")

    try:
        shown = training.show(
            options.data,
            where,
            place,
            colours=shows_colours(sys.stdout),
            steps=options.steps,
            batch_size=options.batch_size,
            tell=tell,
            keep=keep,
        )
    except (torch.OutOfMemoryError, MemoryError) as error:  # outside of what is measured: while these were made
        part = "this many images don't fit" if isinstance(error, MemoryError) else "not even its model fits"
        raise DoesNotFit("The demo was to run on this device", part, str(error)) from error
    if options.json is not None:
        write_json({"kind": "demo", "data": options.data, "place": place, **_document(shown)}, options.json)
    return int(shown.ran_out)


def _document(shown: Shown) -> dict[str, object]:
    def rows(trained: Mapping[int, Trained]) -> list[dict[str, int]]:
        return [{"batch_size": size, **each.profile.metrics()} for size, each in trained.items()]

    return {
        "losses": [loss if math.isfinite(loss) else None for loss in shown.first.losses],
        "accuracy": shown.first.accuracy,
        "ran_out": shown.ran_out,
        "result": shown.first.profile.to_dict(),
        "with_adam": rows(shown.with_adam),
        "with_sgd": rows(shown.with_sgd),
    }


def _nothing(text: str) -> None:
    pass


def _choose(device: str | None, gpu: str | None) -> tuple[str, str]:
    """What to train on: "cuda", "virtual" (CUDA without values) or "cpu"; and a sentence that says so."""
    if device == "cpu":
        return "cpu", "On the CPU, as asked."
    if gpu == "real" or (gpu is None and cuda_devices()):
        import torch

        if torch.cuda.is_available():
            return "cuda", "On this machine's GPU."
        if gpu == "real" or device == "cuda":
            raise DeviceError(
                "The demo was to run on this machine's GPU",
                f"torch {torch.__version__} finds no CUDA device",
                instead="Leave --gpu out, or name a virtual one: --gpu a100-40gb",
            )
        return "cpu", "On the CPU: torch can't use this machine's GPU."
    from ..gpus import GENERIC
    from ..virtual_gpu import activate, can_compute_values
    from ..virtual_gpu.cache import announced

    computes = can_compute_values()
    try:
        with announced(tell):
            card = activate(gpu or GENERIC, values="all" if computes else "none").gpu
    except DeviceError as error:
        if gpu is not None or device is not None:
            raise
        reason = str(error).removeprefix("The virtual GPU was asked for. ")
        return "cpu", f"On the CPU: there is no GPU, and a virtual one is not possible here. {reason}"
    how = "the CPU computes the values" if computes else "nothing is computed, as there is no C++ compiler"
    return (
        "cuda" if computes else "virtual",
        f"On a virtual GPU ({card.product}): the memory is as on the card, and {how}.",
    )

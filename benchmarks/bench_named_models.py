"""Models by name, each held against a plain script of the same training: allocated and reserved, to the byte.

    python -m benchmarks.bench_named_models [hf:llama timm:resnet50 torchvision:vgg16 ...]

Without names: every kind of transformers in `named_models.py`, as a small model. The scripts run first, each in a fork
of one process with the virtual GPU, three steps with AdamW; then the names are estimated. Exit code 1 if any differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from . import named_models

GPU = "a100-80gb"


def main() -> None:
    """Compare what is named."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[f"hf:{kind}" for kind in named_models.KINDS], metavar="NAME")
    names = parser.parse_args().names
    scripts = subprocess.run(
        [sys.executable, "-m", "benchmarks.named_models", GPU, *names], stdout=subprocess.PIPE, text=True, check=True
    )
    taken = json.loads(scripts.stdout.rpartition("PEAKS")[2])
    different = 0
    for name in names:
        found = estimated(name)
        different += found != taken[name]
        said = "the same" if found == taken[name] else f"not the same: {found}"
        print(f"{name:44}{taken[name]!s:34}{said}", flush=True)
    sys.exit(different > 0)


def estimated(name: str) -> list[int] | str:
    """Peaks of a model by its name; or why it is refused."""
    import vramkit

    options: dict[str, Any] = {"batch_size": named_models.ROWS}
    with tempfile.TemporaryDirectory() as folder:
        source, _, kind = name.partition(":")
        if source == "hf":
            auto, architecture, config = named_models.KINDS[kind]
            (Path(folder) / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
            name = f"hf:{folder}"
            if auto not in named_models.OF_IMAGES:
                options["seq_len"] = named_models.LENGTH
        try:
            estimate = vramkit.estimate(**vramkit.models.load(name, **options).arguments(), gpu=GPU)
        except vramkit.VramkitError as error:
            return str(error)
    return [estimate.peak_allocated, estimate.peak_reserved]


if __name__ == "__main__":
    main()

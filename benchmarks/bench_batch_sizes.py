"""``Estimate.batch_sizes`` beside running every size: seconds, how many were run, and whether the figures are the same.

    python benchmarks/bench_batch_sizes.py [PROGRAM ...] [--engine fake] [--sizes 4 8 12 ...]

The two are measured one after the other in one process, after the estimate itself.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
warnings.simplefilter("ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", nargs="*", default=["gpt fp32"], metavar="PROGRAM", help="default: gpt fp32")
    parser.add_argument("--engine", nargs="+", default=["virtual", "fake"], metavar="NAME", help="default: both")
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=[*range(4, 44, 4)], metavar="N", help="default: 4 ... 40"
    )
    parser.add_argument("--gpu", default="a100-80gb", help="default: %(default)s")
    options = parser.parse_args()
    from predicted_programs import PROGRAMS

    import vramkit

    print(
        f"{'program':28}{'engine':9}{'batch_sizes':>13}{'each run':>13}{'ratio':>8}  of {len(options.sizes)} were run"
    )
    for name in options.programs:
        for engine in options.engine:
            estimate = vramkit.estimate(**PROGRAMS[name](), gpu=options.gpu, engine=engine)
            start = time.perf_counter()
            rows = estimate.batch_sizes(options.sizes)
            middle = time.perf_counter()
            alone = [estimate.batch_sizes([size])[0] for size in options.sizes]
            end = time.perf_counter()
            same = [(row.peak_allocated, row.peak_reserved, row.fits) for row in rows] == [
                (row.peak_allocated, row.peak_reserved, row.fits) for row in alone
            ]
            print(
                f"{name:28}{engine:9}{middle - start:11.2f} s{end - middle:11.2f} s"
                f"{(middle - start) / (end - middle):8.2f}  {sum(row.was_run for row in rows)}, "
                f"{'all figures the same' if same else 'FIGURES DIFFER'}",
                flush=True,
            )


if __name__ == "__main__":
    main()

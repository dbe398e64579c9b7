"""What the reports of a long recording cost: the text; the page to write, on the disk, to open, and to pin a moment in.

    python benchmarks/bench_html.py [--runs N]

The recordings are made up: allocations of random sizes and lives, which is the worst for the file's size (a training's
steps repeat, and a recording of 335,109 events of one took 0.2 MB). Python's parts are seconds of processor time. Needs
playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browser import running_chromium
from told_profiles import churning

from vramkit.reports.html.page import page

_EVENTS = (10_000, 200_000, 1_000_000)
_PIN = """() => {
  const chart = document.querySelector("#timeline .chart");
  const begin = performance.now();
  chart.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft", bubbles: true }));
  document.body.getBoundingClientRect(); // laid out, too
  return performance.now() - begin;
}"""


def main() -> None:
    """Print one line for each size; of several runs the median."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    print(f"{'events':>10} {'text in':>9} {'page in':>9} {'file':>10} {'opened in':>12} {'moment pinned in':>18}")
    with tempfile.TemporaryDirectory() as folder, running_chromium() as browser:
        for events in _EVENTS:
            profile = churning(events // 2)
            begin = time.process_time()
            report = profile.report()
            told = time.process_time()
            text = page(profile, report)
            written = time.process_time()
            path = Path(folder, "report.html")
            path.write_text(text, encoding="utf-8")
            opened, pinned = [], []
            for _ in range(runs):
                tab = browser.new_page(viewport={"width": 1280, "height": 900})
                asked = time.perf_counter()
                tab.goto(path.as_uri())
                tab.wait_for_selector("html[data-ready]")
                opened.append(time.perf_counter() - asked)
                pinned += [tab.evaluate(_PIN) for _ in range(5)]
                tab.close()
            print(
                f"{events:>10,} {told - begin:>7.2f} s {written - told:>7.2f} s {len(text) / 1e6:>7.2f} MB "
                f"{statistics.median(opened):>10.2f} s {statistics.median(pinned):>15.0f} ms"
            )


if __name__ == "__main__":
    main()

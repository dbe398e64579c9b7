"""``python -m vramkit.devtools.chartlib``: brings the charts' library from npm into the HTML report's assets.

The one place that knows the library's version. Users need neither this nor npm: the files are in the package.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import subprocess
import tarfile
import tempfile
from pathlib import Path

NAME = "uplot"
VERSION = "1.6.32"
INTEGRITY = "KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw=="
"""SHA-512 of the version's archive, as npm has it."""
FILES = {
    "package/dist/uPlot.iife.min.js": "uplot.js",
    "package/dist/uPlot.min.css": "uplot.css",
    "package/LICENSE": "uplot.LICENSE",
}
"""Files of the archive, and what they are called here."""
HASHES = {
    "uplot.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uplot.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uplot.LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
"""SHA-256 of each, so that a change of theirs is seen without npm, too."""
ASSETS = Path(__file__).parent.parent / "reports" / "html" / "assets"


def from_npm() -> dict[str, bytes]:
    """The files as npm has them, by their names here. Needs npm and a network.

    Raises:
        OSError: npm is not there.
        subprocess.CalledProcessError: it could not get the archive.
        ValueError: the archive is another than that of this version.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", f"{NAME}@{VERSION}", "--silent"]
        packed = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.split()[-1]
        archive = Path(folder, packed)
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != INTEGRITY:
            raise ValueError(f"the archive of {NAME} {VERSION} has the hash {found}, which is not {INTEGRITY}")
        with tarfile.open(archive) as members:
            return {here: members.extractfile(there).read() for there, here in FILES.items()}  # type: ignore[union-attr] # files, no folders


def main() -> None:
    """Write the files, or only say which differ."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not npm's")
    options = parser.parse_args()
    for name, content in from_npm().items():
        path = ASSETS / name
        if not options.check:
            path.write_bytes(content)
            print(f"{name} {hashlib.sha256(content).hexdigest()}")
        elif path.read_bytes() != content:
            raise SystemExit(f"{name} is not that of {NAME} {VERSION}")


if __name__ == "__main__":
    main()

"""Draws the tutorial's pictures: runs the tutorial's own code in `images/`, so a reader's pictures are the same.

They are committed: a build of these pages needs no virtual GPU and no data then, and other viewers show them as well.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent


def main() -> None:
    """Run every Python block of the tutorial, and keep the pictures."""
    text = (DOCS / "tutorial.md").read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
        for picture in Path(folder).glob("*.png"):
            shutil.copy(picture, DOCS / "images")


if __name__ == "__main__":
    main()

"""One file for each verb of the command line. Each has ``add_to(verbs)``; none loads torch before it must."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # argparse has no public name for what add_subparsers() gives.
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

"""Builds the library that sees torch's operators. Knows the C++ compiler and torch's headers; imports no torch."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
from pathlib import Path

from ...errors import DeviceError
from ..build import Torch, run_compiler
from ..cache import keep

LIBRARY = "libvgpu_values.so"
_FOLDER = Path(__file__).parent
_SOURCE = _FOLDER / "values.cpp"
_FLAGS = ("-std=c++20", "-O1", "-fPIC", "-shared")


def build_values(torch: Torch) -> Path:
    """The built library; compiles it if it is not there, which takes some 7 s, once for each torch.

    Raises:
        DeviceError: no C++ compiler, it failed, or the cache can't be written.
    """
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for source in (_SOURCE, *sorted(_FOLDER.glob("*.h"))):
        digest.update(source.read_bytes())
    name = f"values-{torch.version}-{platform.machine()}-{digest.hexdigest()[:16]}"
    return keep(name, (LIBRARY,), functools.partial(_compile, torch)) / LIBRARY


def _compile(torch: Torch, scratch: Path, into: Path) -> None:
    headers = torch.folder / "include"
    includes = [f"-isystem{folder}" for folder in (headers, headers / "torch/csrc/api/include")]
    # Found by the names that torch has loaded by then, so that no path of this machine gets into the library.
    libraries = (f"-L{torch.folder / 'lib'}", "-lc10", "-ltorch_cpu")
    run_compiler([*_compiler(), *_FLAGS, *includes, str(_SOURCE), "-o", str(into / LIBRARY), *libraries], scratch)


def _compiler() -> list[str]:
    wanted = os.environ.get("CXX", "").split()
    for command in [wanted] if wanted else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    raise DeviceError(
        "Values on a virtual GPU were to be computed",
        f"there is no C++ compiler ({wanted[0] if wanted else 'c++, g++, clang++'})",
        "What sees torch's operators is compiled when it is first used, for the torch that is installed",
        'Install one (g++ on most systems), name it in CXX, or give values="none"',
    )

"""Builds the virtual GPU for the installed torch. Knows compilers, headers and torch's libraries as files; imports
no torch, configures no GPU, and leaves to the cache where a build is kept.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import DeviceError
from ..torch_releases import check
from .cache import keep
from .elf import imported_names

NATIVE = Path(__file__).parent / "native"
LIBRARY = "libvgpu.so"
ALIASES = ("libcuda.so", "libcuda.so.1", "libnvidia-ml.so.1")
"""Names that torch and others open at run time: empty libraries that depend on ours."""

_CUDA = re.compile(r"__cuda|cuda|cublas|cudnn|cusolver|cusparse|cufft|curand|cuFile|nccl|nvshmem|cu[A-Z]")
# These need no device, and the real libraries answer them: versions, texts, run-time compilation.
_LEFT_ALONE = re.compile(r"Version|ErrorString|StatusString|GetProperty")
# A stub can't say how large a work area has to be, nor where another process has its memory: it refuses, with the
# number by which the library calls "not supported" (cuSOLVER's own has no name in torch, "architecture mismatch" has;
# NCCL has "invalid usage"), and torch reports a clean error.
_HAS_TO_ANSWER = re.compile(
    r"[bB]uffer_?[sS]ize|MakePlan|WorkSize|WorkspaceSize|ReserveSpaceSize|Ipc|CompressedSize|LtMatmul(Search|GetWorkspace)"
    r"|nccl(DevComm|Signal|PutSignal|WaitSignal|GetLsa|GetPeer)|nvshmem\w*(init|malloc)|cuLinkComplete|cuFileHandleRegister"
)
_REFUSALS = {"cufft": 16, "cusolver": 4, "cusparse": 10, "cudnn": 3000, "nccl": 5}
_HEADERS = {
    "cuda_runtime_api.h": "nvidia-cuda-runtime",
    "cuda.h": "nvidia-cuda-runtime",
    "cudnn.h": "nvidia-cudnn",
}
_FLAGS = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-fPIC", "-pthread")
_ASKED = "The virtual GPU was asked for"
_BUILDING = "The virtual GPU was being built"


@dataclass(frozen=True, slots=True)
class Torch:
    """The installed torch, seen from outside."""

    folder: Path
    """Its package folder."""
    version: str
    """Such as ``"2.14.1+cu130"``."""

    @property
    def release(self) -> tuple[int, int]:
        """The first two parts of its version; zeros if it has none."""
        found = re.match(r"(\d+)\.(\d+)", self.version)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    @property
    def libraries(self) -> list[Path]:
        """The libraries whose CUDA calls have to be answered: torch's own, and its companions'."""
        site = self.folder.parent
        found = [*self.folder.glob("lib/lib*.so"), *site.glob("torchvision/*.so"), *site.glob("torchaudio/**/*.so")]
        return sorted(path for path in found if path.is_file())


def find_torch() -> Torch:
    """The torch that ``import torch`` would load, without loading it.

    Raises:
        DeviceError: this is not Linux on x86-64 or aarch64, there is no torch, or it is too old or not a CUDA build.
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise DeviceError(
            _ASKED,
            f"this is {sys.platform} on {platform.machine()}",
            "It stands in for libraries of the CUDA build of torch for Linux on x86-64 (aarch64 is not tested)",
            "Run in a Linux container",
        )
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        raise DeviceError(
            _ASKED, f"{sys.executable} has no torch", "It runs the real torch", "Install torch, its CUDA build"
        )
    folder = Path(spec.origin).parent
    with _reading():
        text = (folder / "version.py").read_text(errors="replace")
    match = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    version = match[1] if match else "unknown"
    check(_ASKED, version)
    if not (folder / "lib" / "libtorch_cuda.so").exists():
        raise DeviceError(
            _ASKED,
            f"torch {version} in {folder} is not a CUDA build",
            "It stands in for the CUDA libraries under torch, and a build for the CPU (or ROCm) calls none",
            "Install a CUDA build of torch; no GPU or driver is needed",
        )
    return Torch(folder, version)


def build(torch: Torch) -> Path:
    """The folder with the built libraries; builds them if they are not there.

    Raises:
        DeviceError: no C compiler, no CUDA headers, the compiler failed, a file of torch can't be read, the cache can't
            be written, or others could have written what lies there.
    """
    with _reading():
        name = f"virtual-gpu-{torch.version}-{platform.machine()}-{_key(torch)}"
    return keep(name, (LIBRARY, *ALIASES), functools.partial(_compile, torch))


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DeviceError(
            _ASKED, f"a file of torch, of CUDA's headers or of vramkit can't be read: {error}", instead="Reinstall it"
        ) from error


def _key(torch: Torch) -> str:
    digest = hashlib.sha256()
    sources = [Path(__file__), *NATIVE.rglob("*.[ch]")]
    for source in sorted(sources):
        digest.update(source.read_bytes())
    for library in torch.libraries:
        digest.update(f"{library.name} {library.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]


def _compile(torch: Torch, scratch: Path, into: Path) -> None:
    compiler = _compiler()
    with _reading():
        includes = _include_folders(torch)
        written = {"stubs.c": _stubs(torch, includes), "empty.c": "typedef int nothing;\n"}
        sources = [str(path) for path in sorted(NATIVE.glob("*.c"))]
    stubs, empty = (scratch / name for name in written)
    for name, text in written.items():
        (scratch / name).write_text(text)
    flags = [*_FLAGS, *(f"-I{folder}" for folder in includes), "-idirafter", str(NATIVE / "include")]
    library = into / LIBRARY
    link = ("-shared", f"-Wl,-soname,{LIBRARY}", "-Wl,-Bsymbolic", "-ldl")
    run_compiler([*compiler, *flags, *sources, str(stubs), "-o", str(library), *link], scratch)
    for name in ALIASES:
        depends = ("-Wl,--no-as-needed", str(library), "-Wl,-rpath,$ORIGIN")
        run_compiler(
            [*compiler, "-shared", "-fPIC", str(empty), "-o", str(into / name), f"-Wl,-soname,{name}", *depends],
            scratch,
        )
    if missing := [name for name in (LIBRARY, *ALIASES) if not (into / name).is_file()]:
        raise DeviceError(
            _BUILDING,
            f"the compiler {compiler[0]} ended well, but made no {missing[0]}",
            instead="Name a C compiler in CC",
        )


def _compiler() -> list[str]:
    wanted = os.environ.get("CC", "").split()
    for command in [wanted] if wanted else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    raise DeviceError(
        _ASKED,
        f"there is no C compiler ({wanted[0] if wanted else 'cc, gcc, clang'})",
        "It is compiled when it is first used, for the torch that is installed",
        "Install one (gcc on most systems), or name it in CC",
    )


def _include_folders(torch: Torch) -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(path) for path in (spec.submodule_search_locations or ())] if spec else []
    folders = [folder for root in roots for folder in sorted(root.glob("*/include"))]
    toolkits = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), sys.prefix, "/usr/local/cuda"]
    folders += [Path(toolkit) / "include" for toolkit in toolkits if toolkit]
    absent = {header for header in _HEADERS if not any((folder / header).exists() for folder in folders)}
    if absent:
        raise DeviceError(
            _ASKED,
            f"the headers {', '.join(sorted(absent))} were found neither beside torch nor in a CUDA toolkit",
            "Its functions have to match the ones of the CUDA version that torch was built for",
            f"Install {' and '.join(sorted({_HEADERS[header] for header in absent}))} of torch {torch.version}"
            " (pip installs them with torch), or set CUDA_HOME",
        )
    return [folder for folder in folders if folder.is_dir()]


def _stubs(torch: Torch, includes: list[Path]) -> str:
    """C for every CUDA function that is imported but not written by hand.

    The definitions are weak: where a hand-written one exists, the linker takes that. All driver functions that the
    headers name are there too, because torch looks them up at run time and insists on finding some.
    """
    imported = {name for library in torch.libraries for name in imported_names(library) if _CUDA.match(name)}
    imported = {name for name in imported if not _LEFT_ALONE.search(name)}
    header = next(folder / "cuda.h" for folder in includes if (folder / "cuda.h").exists())
    driver = set(re.findall(r"\bcu[A-Z]\w+", header.read_text(errors="replace"))) - imported
    lines = [
        "int vgpu_accept_call(const char *);",
        "int vgpu_refuse_call(const char *, int);",
        "#define ACCEPT(name) __attribute__((weak)) int name(void) { return vgpu_accept_call(#name); }",
        "#define REFUSE(name, status) __attribute__((weak)) int name(void) { return vgpu_refuse_call(#name, status); }",
    ]
    for name in sorted(imported):
        refusal = next((number for prefix, number in _REFUSALS.items() if name.startswith(prefix)), 801)
        lines.append(f"REFUSE({name}, {refusal})" if _HAS_TO_ANSWER.search(name) else f"ACCEPT({name})")
    lines.extend(f"REFUSE({name}, 801)" for name in sorted(driver))
    return "\n".join(lines) + "\n"


def run_compiler(command: list[str], scratch: Path) -> None:
    """Run a compiler. Raises: DeviceError: it can't be started, or it failed; the text has what it said."""
    surroundings = {**os.environ, "LC_ALL": "C", "TMPDIR": str(scratch)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=surroundings)
    except OSError as error:
        raise DeviceError(
            _BUILDING,
            f"the compiler {command[0]} can't be started ({error.strerror or error})",
            instead="Name a C compiler in CC",
        ) from error
    if not done.returncode:
        return
    said = done.stderr.strip()[-2000:]
    how = f"failed with status {done.returncode}"
    instead = "Please report this with the versions of torch and of the compiler"
    if done.returncode < 0:
        how = f"was ended by signal {-done.returncode}"
        instead = "Try again; if nobody ended it, look whether memory or a limit of this process ran out"
    elif "No space left" in said or "File size limit" in said or "Disk quota" in said:
        instead = "Make room on that disk, or set XDG_CACHE_HOME to a folder on another one"
    raise DeviceError(_BUILDING, f"the compiler {command[0]} {how}" + (f":\n{said}\n" if said else ""), instead=instead)

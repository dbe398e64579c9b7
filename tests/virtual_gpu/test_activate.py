"""Switching the virtual GPU on: what is refused and how it says so, and the build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from subprocesses import run_python

from vramkit import DeviceError, UsageError, gpus, virtual_gpu
from vramkit.virtual_gpu import _handle, build

_RAISES = """
from vramkit import virtual_gpu
try:
    virtual_gpu.activate("t4")
except {error} as error:
    print(type(error).__name__, error)
"""


@pytest.mark.virtual_gpu
def test_the_same_settings_return_the_same_handle() -> None:
    handle = virtual_gpu.activate("A100 80GB", count=2)

    assert handle is virtual_gpu.current()
    assert virtual_gpu.is_active()
    assert repr(handle) == "VirtualGPU('a100-80gb', 79.3 GiB, count=2)"


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("change", [{"count": 1}, {"gpu": "t4"}, {"address_order": "rising"}, {"copy_limit": "1 KiB"}])
def test_other_settings_are_refused(change: dict[str, object]) -> None:
    settings = {"gpu": "a100-80gb", "count": 2, **change}

    with pytest.raises(UsageError, match="One is active already: 2 x NVIDIA A100"):
        virtual_gpu.activate(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 17, 1.5])
def test_a_count_that_cannot_be_is_refused(count: int) -> None:
    with pytest.raises(UsageError, match="1 to 16"):
        virtual_gpu.activate("a100-80gb", count=count)


@pytest.mark.parametrize(
    ("gpu", "count", "most"), [("5 TiB", 1, "larger than 4.00 TiB"), ("2 TiB", 16, "is 1.00 TiB, with 16 of")]
)
def test_more_memory_than_there_are_addresses_is_refused(gpu: str, count: int, most: str) -> None:
    with pytest.raises(UsageError, match=most):
        virtual_gpu.activate(gpu, count=count)


def test_an_address_order_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="'falling' or 'rising'"):
        virtual_gpu.activate("a100-80gb", address_order="random")  # type: ignore[arg-type]


@pytest.mark.virtual_gpu
def test_torch_that_is_imported_already_is_too_late() -> None:
    answer = run_python("import torch\n" + _RAISES.format(error="ValueError"))

    assert answer.startswith("UsageError A virtual GPU was asked for. Torch is imported already.")
    assert "before the first `import torch`" in answer


def test_settings_survive_the_way_to_a_child() -> None:
    for card in gpus.all_gpus():
        settings = _handle.Settings(gpu=card, count=3, address_order="rising", copy_limit=77)

        assert _handle.Settings.from_text(settings.to_text()) == settings


@pytest.mark.virtual_gpu
def test_without_a_compiler_the_error_says_what_to_install(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path), "CC": "no-such-compiler"}

    answer = run_python(_RAISES.format(error="RuntimeError"), environment=environment)

    assert answer.startswith("DeviceError The virtual GPU was asked for. There is no C compiler (no-such-compiler).")
    assert "Install one" in answer
    assert not list(tmp_path.rglob("building-*"))


@pytest.mark.virtual_gpu
def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    answer = run_python(
        _RAISES.format(error="RuntimeError"),
        environment={"XDG_CACHE_HOME": str(tmp_path), "CC": "cc -DNULL=x -include no.h"},
    )

    assert "failed with status 1" in answer
    assert "no.h" in answer


@pytest.mark.virtual_gpu
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")

    answer = run_python(_RAISES.format(error="RuntimeError"), environment={"XDG_CACHE_HOME": str(file)})

    assert f"Its cache folder {file / 'vramkit'} can't be written" in answer


@pytest.mark.virtual_gpu
def test_two_processes_that_start_at_once_both_get_it(tmp_path: Path) -> None:
    code = (
        "from vramkit import virtual_gpu as v; print(v.activate('t4')); import torch; print(torch.cuda.device_count())"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]

    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate()[0] for process in both]

    assert answers == ["VirtualGPU('t4', 14.7 GiB)\n1\n"] * 2
    (folder,) = (tmp_path / "vramkit").iterdir()
    assert {path.name for path in folder.iterdir()} == {build.LIBRARY, *build.ALIASES}


def _torch(folder: Path, *, cuda: bool) -> SimpleNamespace:
    package = folder / "torch"
    (package / "lib").mkdir(parents=True)
    (package / "version.py").write_text("__version__ = '9.9.9+made.up'\n")
    if cuda:
        (package / "lib" / "libtorch_cuda.so").write_text("")
    return SimpleNamespace(
        util=SimpleNamespace(find_spec=lambda _: SimpleNamespace(origin=str(package / "__init__.py")))
    )


@pytest.mark.skipif(sys.platform != "linux", reason="what is missing elsewhere is Linux")
def test_a_torch_for_the_cpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "importlib", _torch(tmp_path, cuda=False))

    with pytest.raises(DeviceError, match=r"Torch 9\.9\.9\+made\.up in .* is not a CUDA build"):
        build.find_torch()


@pytest.mark.skipif(sys.platform != "linux", reason="what is missing elsewhere is Linux")
def test_a_torch_for_cuda_is_found_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "importlib", _torch(tmp_path, cuda=True))

    found = build.find_torch()

    assert found == build.Torch(tmp_path / "torch", "9.9.9+made.up")
    assert [path.name for path in found.libraries] == ["libtorch_cuda.so"]


@pytest.mark.skipif(sys.platform != "linux", reason="what is missing elsewhere is Linux")
def test_no_torch_at_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = SimpleNamespace(util=SimpleNamespace(find_spec=lambda _: None))
    monkeypatch.setattr(build, "importlib", nothing)

    with pytest.raises(DeviceError, match="has no torch"):
        build.find_torch()


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("win32", "AMD64"), ("linux", "ppc64le")])
def test_other_systems_are_refused(system: str, machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "sys", SimpleNamespace(platform=system))
    monkeypatch.setattr(build, "platform", SimpleNamespace(machine=lambda: machine))

    with pytest.raises(DeviceError, match=f"This is {system} on {machine}"):
        build.find_torch()


@pytest.mark.virtual_gpu
def test_headers_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_HEADERS", {**build._HEADERS, "missing.h": "nvidia-missing"})

    with pytest.raises(DeviceError, match=r"The headers missing\.h were found neither .* Install nvidia-missing"):
        build._include_folders(build.find_torch())


@pytest.mark.virtual_gpu
def test_it_builds_without_warnings_from_the_headers_that_come_with_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = build.find_torch()
    everything = build._include_folders(torch)
    wheels = [folder for folder in everything if folder.is_relative_to(torch.folder.parent)]
    if not (wheels and all(any((folder / header).exists() for folder in wheels) for header in build._HEADERS)):
        pytest.skip("this torch came without the headers (a system package?)")
    monkeypatch.setattr(build, "_include_folders", lambda _: wheels)
    monkeypatch.setattr(build, "_FLAGS", (*build._FLAGS, "-Werror"))

    build._compile(torch, tmp_path)

    assert (tmp_path / build.LIBRARY).exists()


@pytest.mark.virtual_gpu
def test_imports_of_a_library_are_read_without_binutils() -> None:
    from vramkit.virtual_gpu.elf import imported_names

    library = next(path for path in build.find_torch().libraries if path.name == "libtorch_cuda.so")

    names = imported_names(library)

    assert {"cudaLaunchKernel", "cublasCreate_v2", "cudnnBackendFinalize"} <= names


def test_what_is_no_library_imports_nothing(tmp_path: Path) -> None:
    from vramkit.virtual_gpu.elf import imported_names

    script = tmp_path / "libscript.so"
    script.write_text("INPUT(libreal.so)")

    assert imported_names(script) == set()


@pytest.mark.virtual_gpu
def test_children_cannot_be_served_from_a_folder_that_the_loader_cannot_name(tmp_path: Path) -> None:
    code = _RAISES.format(error="ValueError").replace('"t4"', '"t4", children=True')

    answer = run_python(code, environment={"XDG_CACHE_HOME": str(tmp_path / "a folder")})

    assert "has a space or a colon in its name" in answer
    assert "Set XDG_CACHE_HOME" in answer

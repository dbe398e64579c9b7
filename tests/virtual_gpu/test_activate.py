"""Switching the virtual GPU on: what is refused and how it says so, and the build."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from subprocesses import run_on, run_python

from vramkit import DeviceError, UsageError, gpus, virtual_gpu
from vramkit.virtual_gpu import build, cache, handle

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
        settings = handle.Settings(gpu=card, count=3, address_order="rising", copy_limit=77, values="all")

        assert handle.Settings.from_text(settings.to_text()) == settings


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


def _script(folder: Path, text: str) -> str:
    """The path of a program that stands in for the compiler."""
    path = folder / "compiler"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.mark.virtual_gpu
@pytest.mark.parametrize(
    ("compiler", "told"),
    [
        ("#!/bin/sh\nkill -9 $$\n", "compiler was ended by signal 9. Try again"),
        (
            "#!/bin/sh\necho 'ld: final link failed: No space left on device' >&2\nexit 1\n",
            "No space left on device. Make room on that disk",
        ),
        ("#!/bin/sh\nexit 0\n", "compiler ended well, but made no libvgpu.so. Name a C compiler in CC"),
        ("\x7fELF", "compiler can't be started (Exec format error). Name a C compiler in CC"),
        ("#!/bin/sh\nprintf '\\377' >&2\nexit 1\n", "compiler failed with status 1:\n\N{REPLACEMENT CHARACTER}"),
    ],
    ids=["killed", "full disk", "makes nothing", "no program", "no text"],
)
def test_a_compiler_that_does_not_compile_is_a_device_error(compiler: str, told: str, tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path), "CC": _script(tmp_path, compiler)}

    answer = run_python(_RAISES.format(error="RuntimeError"), environment=environment)

    assert told in answer
    assert list((tmp_path / "vramkit").iterdir()) == []


@pytest.mark.virtual_gpu
def test_a_file_that_cannot_be_written_whole_is_a_device_error(tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"

    answer = run_python(limit + _RAISES.format(error="RuntimeError"), environment={"XDG_CACHE_HOME": str(tmp_path)})

    assert answer.startswith("DeviceError The virtual GPU was asked for. Its cache folder")
    assert "can't be written (File too large). Make room" in answer
    assert list((tmp_path / "vramkit").iterdir()) == []


@pytest.mark.virtual_gpu
def test_a_missing_folder_for_temporary_files_is_no_hindrance(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path / "missing")}

    answer = run_python("from vramkit import virtual_gpu; print(virtual_gpu.activate('t4'))", environment=environment)

    assert answer == "VirtualGPU('t4', 14.7 GiB)\n"


@pytest.mark.virtual_gpu
def test_a_process_that_is_killed_while_it_builds_leaves_nothing_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "begun")
    compiler = _script(tmp_path, f"#!/bin/sh\necho $$ > {tmp_path / 'begun'}\nread nothing\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", _RAISES.format(error="RuntimeError")],
        env={**os.environ, "CC": compiler},
        stdin=subprocess.PIPE,
    )
    (tmp_path / "begun").read_text()  # until the compiler has begun
    process.kill()
    process.communicate()
    assert list((tmp_path / "vramkit").glob("building-*"))

    cache.keep("another", (), lambda scratch, into: None)

    assert not list((tmp_path / "vramkit").glob("building-*"))


@pytest.mark.virtual_gpu
def test_a_build_that_cannot_be_loaded_is_a_device_error(tmp_path: Path) -> None:
    damaged = """
from vramkit.virtual_gpu import build
build._compile = lambda torch, scratch, into: [(into / n).write_text("?") for n in (build.LIBRARY, *build.ALIASES)]
"""

    answer = run_python(damaged + _RAISES.format(error="RuntimeError"), environment={"XDG_CACHE_HOME": str(tmp_path)})

    (folder,) = (tmp_path / "vramkit").glob("virtual-gpu-*")
    assert answer.startswith("DeviceError The virtual GPU was to be loaded.")
    assert f"Remove {folder}, or set XDG_CACHE_HOME" in answer


@pytest.mark.virtual_gpu
def test_settings_that_a_parent_did_not_write_are_a_device_error() -> None:
    answer = run_on(
        "t4",
        f"""
        import os, subprocess
        code = {_RAISES.format(error="RuntimeError")!r}
        broken = dict(os.environ, VRAMKIT_VIRTUAL_GPU="nonsense")
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=broken).stdout
        """,
        children=True,
    )

    assert "The variable is 'nonsense'" in answer
    assert "Unset it, together with LD_PRELOAD" in answer


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
    (folder,) = (tmp_path / "vramkit").glob("virtual-gpu-*")
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
def test_a_torch_that_is_damaged_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "importlib", _torch(tmp_path, cuda=True))
    (tmp_path / "torch" / "version.py").unlink()

    with pytest.raises(DeviceError, match=r"can't be read: .*version\.py.* Reinstall it"):
        build.find_torch()


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

    build._compile(torch, tmp_path, tmp_path)

    assert (tmp_path / build.LIBRARY).exists()


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("children", [False, True])
def test_kernels_are_compiled_where_the_compiler_finds_this_gpu(children: bool) -> None:
    code = 'import os; result = os.environ["TORCHINDUCTOR_COMPILE_THREADS"]'
    workers_want_a_gpu = build.find_torch().release < (2, 14)

    threads = run_on("t4", code, environment={"TORCHINDUCTOR_COMPILE_THREADS": "8"}, children=children)

    assert threads == ("1" if workers_want_a_gpu and not children else "8")


@pytest.mark.virtual_gpu
def test_imports_of_a_library_are_read_without_binutils() -> None:
    from vramkit.virtual_gpu.elf import imported_names

    library = next(path for path in build.find_torch().libraries if path.name == "libtorch_cuda.so")

    names = imported_names(library)

    assert {"cudaMalloc", "cublasCreate_v2", "cudnnBackendFinalize"} <= names


@pytest.mark.parametrize("text", ["INPUT(libreal.so)", ""])
def test_what_is_no_library_imports_nothing(text: str, tmp_path: Path) -> None:
    from vramkit.virtual_gpu.elf import imported_names

    script = tmp_path / "libscript.so"
    script.write_text(text)

    assert imported_names(script) == set()


@pytest.mark.virtual_gpu
def test_children_cannot_be_served_from_a_folder_that_the_loader_cannot_name(tmp_path: Path) -> None:
    code = _RAISES.format(error="ValueError").replace('"t4"', '"t4", children=True')

    answer = run_python(code, environment={"XDG_CACHE_HOME": str(tmp_path / "a folder")})

    assert "has a space or a colon in its name" in answer
    assert "Set XDG_CACHE_HOME" in answer


@pytest.mark.virtual_gpu
def test_compiled_kernels_go_to_a_cache_of_virtual_gpus() -> None:
    users = {"TORCHINDUCTOR_CACHE_DIR": "/users/inductor", "TRITON_CACHE_DIR": "/users/triton"}
    names = [*users, "TORCH_COMPILE_CACHE_KEY_TAG"]
    child = f"import os; print(*(os.environ[name] for name in {names}))"
    code = f"""
    import os, subprocess, sys
    result = [os.environ[name] for name in {names}]
    result.append(subprocess.run([sys.executable, "-c", {child!r}], capture_output=True, text=True).stdout.strip())
    """

    *found, inherited = run_on("t4", code, environment=users)

    folder = cache.cache_folder() / "compiled"
    assert found == [str(folder / "inductor"), str(folder / "triton"), "virtual GPU"]
    assert inherited == " ".join(found)


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("name", ["libcuda.so", "libcuda.so.1"])
def test_the_driver_has_both_names_by_which_programs_open_it(name: str) -> None:
    assert ctypes.CDLL(name).cuInit(0) == 0

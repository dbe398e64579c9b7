"""What users see of the package: which names, typed how, and that nothing of its inside shows in a signature."""

from __future__ import annotations

import ast
import copy
import importlib
import importlib.util
import inspect
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

import vramkit

ROOT = Path(vramkit.__file__).parents[1]
TESTS = Path(__file__).parent
CACHE = ROOT / ".mypy_cache" / "programs"  # mypy reads torch for a minute where it does not find it there
HOMES: dict[str, str] = {name: f"vramkit.{home}" for name, home in vramkit._HOMES.items()}
MODULES = [importlib.import_module(f"vramkit.{name}") for name in vramkit._MODULES]


# -- names -------------------------------------------------------------------------------------------------------------


def test_type_checkers_and_python_find_the_same_names_in_the_same_files() -> None:
    tree = ast.parse(Path(vramkit.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]

    seen = {alias.asname: node.module for node in imports for alias in node.names if alias.name == alias.asname}

    assert len(seen) == sum(len(node.names) for node in imports)
    assert {name: home for name, home in seen.items() if home} == vramkit._HOMES
    assert {name for name, home in seen.items() if not home} == {*vramkit._MODULES}


@pytest.mark.parametrize("name", vramkit._MODULES)
def test_a_public_module_is_there_after_import_vramkit(name: str) -> None:
    code = f"import sys, vramkit; print('vramkit.{name}' in sys.modules, vramkit.{name}.__name__)"

    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed.split() == ["False", f"vramkit.{name}"]


def public(value: object) -> Iterator[tuple[str, Any]]:
    """The public classes and functions of a module, by the name under which they are found."""
    names = getattr(value, "__all__", None) or [
        name for name, each in vars(value).items() if getattr(each, "__module__", "") == value.__name__
    ]
    for name in names:
        each = getattr(value, name)
        if isinstance(each, (type, FunctionType)) and not name.startswith("_"):
            yield name, each


@pytest.mark.parametrize("module", [vramkit, *MODULES], ids=lambda module: module.__name__)
def test_classes_and_functions_are_of_the_module_in_which_they_are_found(module: ModuleType) -> None:
    names = dict(public(module))

    assert names
    for name, value in names.items():
        assert value.__module__ == ("vramkit" if name in HOMES and getattr(vramkit, name) is value else module.__name__)
        assert getattr(sys.modules[value.__module__], name) is value
        assert inspect.getmodule(value) is sys.modules[value.__module__]
        assert pickle.loads(pickle.dumps(value)) is copy.deepcopy(value) is value
        assert inspect.getdoc(value)
        if type(value) is type:
            assert repr(value) == f"<class '{value.__module__}.{name}'>"


def test_what_was_looked_at_first_does_not_matter_for_what_a_class_says() -> None:
    code = "import vramkit; print(vramkit.Profile.__mro__[-2])"  # which nobody has asked the package for

    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed == "<class 'vramkit.MemoryResult'>\n"


def test_results_are_pickled_under_public_names_and_come_back() -> None:
    allocator = vramkit.CachingAllocator(1 << 20)
    with pytest.raises(vramkit.SimulatedOutOfMemory) as caught:
        allocator.malloc(1 << 30)
    values = [vramkit.Breakdown(parameters=3), vramkit.Category.INPUT, vramkit.gpus.find("t4"), caught.value]

    for value in values:
        content = pickle.dumps(value)

        assert b"vramkit." not in content
        assert str(pickle.loads(content)) == str(value)


# -- what signatures show ----------------------------------------------------------------------------------------------


def shown(before: str = "") -> dict[str, Any]:
    """What `shown_classes` finds, after some code of its own."""
    code = f"import sys, vramkit; sys.path[:0] = [{str(TESTS)!r}]\n{before}\nimport shown_classes; shown_classes.main()"
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_every_class_that_a_public_signature_shows_is_public() -> None:
    found = shown()

    assert found["not public"] == []
    assert found["looked at"] > 500


def test_that_test_can_fail() -> None:
    found = shown("del vramkit._HOMES['Module'], vramkit._HOMES['Replay']")

    assert ["Tape.modules", "vramkit.tape.events.Module"] in found["not public"]
    assert ["CachingAllocator.replay(return)", "vramkit.allocator.replay.Replay"] in found["not public"]


def test_every_argument_of_a_verb_has_a_type() -> None:
    tree = {each: ast.parse(each.read_text()) for each in (ROOT / "vramkit").rglob("*.py")}
    verbs = ("profile", "estimate", "auto_batch_size", "fixed", "load", "open_snapshot", "compare", "summary")
    functions = [
        (node.name, argument.arg, argument.annotation)
        for each in tree.values()
        for node in each.body
        if isinstance(node, ast.FunctionDef) and node.name in verbs
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    ]

    assert [(name, argument) for name, argument, kind in functions if kind is None or ast.unparse(kind) == "Any"] == []


# -- what type checkers see --------------------------------------------------------------------------------------------

GOOD = """
import torch
import vramkit
from typing_extensions import assert_type
from vramkit import *

model = torch.nn.Linear(4, 4)
optimizer = torch.optim.AdamW(model.parameters())
with vramkit.profile(model, optimizer) as prof:
    prof.step()
result: vramkit.Profile = prof.result
assert_type(result.peak.of("ACTIVATION") + result.timeline.breakdown_at(-1).of(vramkit.Category.INPUT), int)
assert_type(result.steps[0].phases, "tuple[vramkit.PhaseUsage, ...]")
assert_type(result.tape.modules, "tuple[vramkit.Module, ...]")
assert_type(result.tape.evaluations, "tuple[vramkit.Evaluation, ...]")
assert_type(profile(), vramkit.profile)

predicted = vramkit.estimate([model], torch.zeros(8, 4), optimizer=torch.optim.AdamW, engine="fake")
assert_type(predicted, vramkit.Estimate)
assert_type(predicted.largest_batch_size("24 GiB"), int)
assert_type(predicted.batch_sizes([1, 2])[0].fits, bool)
assert_type(predicted.gpu, vramkit.GPU)
engine: vramkit.EngineName = predicted.engine
nets: vramkit.Models = {"net": model}
either: vramkit.ReadableResult = result if engine == "fake" else predicted
both: list[vramkit.MemoryResult] = [result, predicted]


def size_of(found: vramkit.BatchSizeResult) -> int:
    made_of: vramkit.Accumulation | None = found.accumulation
    return int(found) if made_of is None else made_of.batch_size


def batch_of(size: int) -> torch.Tensor:
    return torch.zeros(size, 4)


try:
    size_of(vramkit.auto_batch_size(model, batch_of, alloc_conf=""))
except vramkit.DoesNotFit as error:
    base: vramkit.VramkitError = error
except vramkit.errors.UsageError as error:
    wrong: ValueError = error


@vramkit.fit_batch_size(starting_batch_size=64)
def train(batch_size: int, epochs: int) -> float:
    return 0.5


assert_type(train(epochs=3), float)
allocator = vramkit.CachingAllocator("24 GiB")
block = allocator.malloc(512)
assert_type(block, "vramkit.Block | None")
assert_type(allocator.replay(result.tape), vramkit.Replay)
assert_type(vramkit.closed_form.parameters(model) + vramkit.closed_form.optimizer_state(optimizer), int)
assert_type(vramkit.gpus.find("t4"), vramkit.GPU)
assert_type(vramkit.virtual_gpu.is_active(), bool)
assert_type(vramkit.load("file.npz"), "vramkit.Profile | vramkit.Estimate")
compared = vramkit.compare(predicted, result)
assert_type(compared.tensors[0].difference + compared.peak_reserved.before, int)
assert_type(compared.exceeds("2%"), bool)
layers = vramkit.summary(model, input_size=(8, 4), dtypes=torch.float32)
assert_type(layers.rows[0].multiply_adds, "int | None")
assert_type(layers.estimate, vramkit.Estimate)
"""
BAD = """
import vramkit
vramkit.profiler
text: str = vramkit.Breakdown().allocated
vramkit.estimate(None, None, engine="magic")
vramkit.CachingAllocator().events
"""
WRONG_LINES = [3, 4, 5, 6]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with a program that uses the package well, and one with a mistake in each line."""
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text(BAD)
    return tmp_path


def checked(tool: str, *arguments: str, folder: Path) -> str:
    """What a type checker prints of the programs in a folder; without the checker, the test is skipped."""
    if importlib.util.find_spec(tool) is None:
        missing = f'{tool} is not installed: pip install "vramkit[lint]"'
        if os.environ.get("VRAMKIT_REQUIRE_TYPE_CHECKERS") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    done = subprocess.run(
        [sys.executable, "-m", tool, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr  # of bad.py
    return done.stdout


def test_mypy_accepts_a_program_and_finds_each_mistake(programs: Path) -> None:
    printed = checked(
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--no-color-output",
        f"--cache-dir={CACHE}",
        "good.py",
        "bad.py",
        folder=programs,
    )

    errors = [line for line in printed.splitlines() if ": error:" in line]
    assert {line.partition(":")[0] for line in errors} == {"bad.py"}, printed
    assert sorted({int(line.split(":")[1]) for line in errors}) == WRONG_LINES, printed


def test_pyright_accepts_a_program_and_finds_each_mistake(programs: Path) -> None:
    settings = {"extraPaths": [str(ROOT)], "typeCheckingMode": "strict", "reportMissingModuleSource": False}
    (programs / "pyrightconfig.json").write_text(json.dumps(settings))

    printed = checked("pyright", "--outputjson", "--pythonpath", sys.executable, folder=programs)

    errors = [each for each in json.loads(printed)["generalDiagnostics"] if each["severity"] == "error"]
    assert {Path(each["file"]).name for each in errors} == {"bad.py"}, errors
    assert sorted({each["range"]["start"]["line"] + 1 for each in errors}) == WRONG_LINES, errors


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "vramkit" / "py.typed").exists()

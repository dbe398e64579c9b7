"""Whose a frame is, and which line of a stack is the user's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vramkit
from vramkit.tape.stacks import Frame, Stacks, StackTree, Whose, frame_of

LIB = "/usr/lib/python3.11"
VENV = "/home/me/project/.venv/lib/python3.11/site-packages"


@pytest.mark.parametrize(
    "file",
    [
        "/home/me/project/train.py",
        "train.py",
        "/home/me/torch/train.py",
        "/home/me/torch/utils/data.py",
        "/home/me/vramkit/experiments/train.py",
        "/home/me/lib/python/train.py",
        r"C:\Users\me\Lib\train.py",
        "/opt/bin/train",
        "<stdin>",
        "<string>",
        "<ipython-input-3-0a1b2c>",
        "<doctest page.md[0]>",
        "/tmp/ipykernel_4711/1234567.py",
        "<torch_package_0>.model.py",
    ],
)
def test_files_cells_and_executed_text_are_the_programs(file: str) -> None:
    assert frame_of(file, 3, "f").whose is Whose.PROGRAM


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        (f"{VENV}/torch/nn/modules/linear.py", "torch/nn/modules/linear.py"),
        (f"{VENV}/vramkit/profiling/module_hooks.py", "vramkit/profiling/module_hooks.py"),
        (f"{Path(vramkit.__file__).parent}/profiling/module_hooks.py", "vramkit/profiling/module_hooks.py"),
        ("/workspace/pytorch/torch/optim/adam.py", "torch/optim/adam.py"),
        ("/src/torch/_tensor.py", "torch/_tensor.py"),
        (f"{LIB}/contextlib.py", "contextlib.py"),
        (r"C:\Python311\Lib\runpy.py", "runpy.py"),
        ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap>"),
        ("<eval_with_key>.17", "<eval_with_key>.17"),
        ("/tmp/torchinductor_me/ab/cabz.py", "/tmp/torchinductor_me/ab/cabz.py"),
        (f"/cache/xy/cxy{'a2' * 24}.py", f"/cache/xy/cxy{'a2' * 24}.py"),
        ("/home/me/run/unsloth_compiled_cache/Trainer.py", "/home/me/run/unsloth_compiled_cache/Trainer.py"),
        ("/cache/torch_compile_cache/0a1b/rank_0/code.py", "/cache/torch_compile_cache/0a1b/rank_0/code.py"),
        ("/build/aten/src/ATen/Functions.cpp", "/build/aten/src/ATen/Functions.cpp"),
        ("/opt/lib/libtorch_cpu.so", "/opt/lib/libtorch_cpu.so"),
        ("/usr/bin/python3", "/usr/bin/python3"),
        ("??", "??"),
    ],
)
def test_torch_python_itself_compilers_and_c_are_machinery(file: str, shown: str) -> None:
    frame = frame_of(file, 3, "f")

    assert (frame.whose, frame.file) == (Whose.MACHINERY, shown)


@pytest.mark.parametrize(
    "file", [f"{VENV}/transformers/trainer.py", "/usr/lib/python3/dist-packages/transformers/trainer.py"]
)
def test_installed_packages_are_libraries_and_shown_without_where_they_lie(file: str) -> None:
    frame = frame_of(file, 3, "f")

    assert (frame.whose, frame.file) == (Whose.LIBRARY, "transformers/trainer.py")


def test_methods_that_dataclasses_write_are_machinery() -> None:
    assert frame_of("<string>", 3, "__init__").whose is Whose.MACHINERY


def test_code_that_a_model_of_the_hub_brings_is_a_librarys() -> None:
    frame = frame_of("/home/me/.cache/huggingface/modules/transformers_modules/org/model/modeling.py", 3, "forward")

    assert frame.whose is Whose.LIBRARY
    assert frame.file == "transformers_modules/org/model/modeling.py"


OF_A_BACKWARD = (
    "at::native::empty_cuda(long)",
    "torch::autograd::generated::AddmmBackward0::apply(std::vector<at::Tensor>&&)",
    "torch::autograd::Node::operator()(std::vector<at::Tensor>&&)",
    "torch::autograd::Engine::evaluate_function(std::shared_ptr<torch::autograd::GraphTask>&)",
    "torch::autograd::Engine::thread_main(std::shared_ptr<torch::autograd::GraphTask> const&)",
)
OF_PYTHON_IN_A_BACKWARD = ("torch::autograd::PyNode::apply(std::vector<at::Tensor>&&)", *OF_A_BACKWARD[3:])


def line_of(*frames: tuple[str, int, str]) -> str:
    tree = StackTree()
    stacks = tree.stacks(np.array([tree.add([tree.number(*frame) for frame in frames])]))
    return stacks.texts[stacks.lines[0]] if stacks.lines[0] >= 0 else ""


def test_what_only_the_engine_ran_has_its_node_for_a_line() -> None:
    assert line_of(*(("??", 0, name) for name in OF_A_BACKWARD)) == "autograd engine: AddmmBackward0"
    assert line_of(*(("", 0, name) for name in OF_A_BACKWARD[3:])) == "autograd engine: backward"
    assert line_of(("??", 0, OF_A_BACKWARD[0])) == ""


def test_a_line_of_the_program_inside_of_a_backward_comes_before_its_node() -> None:
    native = [("??", 0, name) for name in OF_PYTHON_IN_A_BACKWARD]

    assert line_of(("/home/me/train.py", 3, "backward"), *native) == "train.py:3 in backward"
    assert line_of((f"{VENV}/flash_attn/ops.py", 7, "backward"), *native) == "ops.py:7 in backward"


def test_frames_that_are_no_python_do_not_push_the_programs_out() -> None:
    native = [("??", 0, "at::native::empty_cuda(long)")] * 500

    assert line_of(*native, ("/home/me/train.py", 3, "step")) == "train.py:3 in step"


def test_a_function_that_dynamo_resumes_has_its_own_name() -> None:
    assert frame_of("net.py", 9, "torch_dynamo_resume_in_forward_at_8").function == "forward"


TORCH = (f"{VENV}/torch/nn/functional.py", 5, "relu")
LIBRARY = (f"{VENV}/lib/layers.py", 7, "forward")
INNER, OUTER = ("/me/net.py", 42, "forward"), ("/me/train.py", 9, "step")
ENGINE = (f"{VENV}/torch/autograd/graph.py", 1, "_engine_run_backward")
FORWARD = ['  File "/me/train.py", line 9, in step\n    net(x)\n', '  File "/me/net.py", line 42, in forward\n    up\n']


@pytest.mark.parametrize(
    ("frames", "forward", "line"),
    [
        ([TORCH, INNER, OUTER], [], "net.py:42 in forward"),
        ([TORCH, LIBRARY, OUTER], [], "train.py:9 in step"),
        ([TORCH, LIBRARY], [], "layers.py:7 in forward"),
        ([TORCH], [], None),
        ([], [], None),
        ([TORCH, ENGINE, OUTER], [], None),
        ([TORCH, ENGINE, OUTER], FORWARD, "net.py:42 in forward"),
        ([TORCH, OUTER, ENGINE, INNER], FORWARD, "train.py:9 in step"),
        ([], ["no line of a traceback"], None),
    ],
)
def test_the_line_is_the_innermost_of_the_program(
    frames: list[tuple[str, int, str]], forward: list[str], line: str | None
) -> None:
    tree = StackTree()
    row = tree.add([tree.number(*frame) for frame in frames], forward)

    stacks = tree.stacks(np.array([row]))

    assert [stacks.texts[each] if each >= 0 else None for each in stacks.lines.tolist()] == [line]


def test_files_that_are_called_alike_are_told_apart() -> None:
    files = ("/me/a/net.py", "/me/b/net.py", "/me/train.py")
    stacks = Stacks(
        frames=tuple(Frame(file, 1, "f") for file in files), table=StackTree().stacks(np.zeros(0)).table, of=np.zeros(0)
    )

    assert stacks.texts == ["a/net.py:1 in f", "b/net.py:1 in f", "train.py:1 in f"]


@given(st.lists(st.lists(st.integers(0, 5), max_size=6)))
def test_a_tree_gives_back_the_stacks_that_it_was_given(drawn: list[list[int]]) -> None:
    tree = StackTree()
    rows = [tree.add([tree.number("/me/net.py", 1 + number, "f") for number in each]) for each in drawn]

    stacks = tree.stacks(np.array(rows, np.int64))

    assert [[frame.number - 1 for frame in stacks.stack(row)] for row in stacks.of.tolist()] == drawn
    assert len(stacks.table) == len({tuple(each[i:]) for each in drawn for i in range(len(each))})

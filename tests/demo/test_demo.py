"""The demo: the textbook's arithmetic, and what is measured beside it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shown_pages import header_of

from vramkit import virtual_gpu
from vramkit.cli import demo
from vramkit.demo.textbook import Textbook
from vramkit.errors import DeviceError
from vramkit.gpus import CATALOGUE, GENERIC
from vramkit.tape.events import Category

LAYERS = (784, 128, 10)
NUMBER = 4  # bytes of a float32


@pytest.mark.parametrize(("data", "count", "first"), [("grey", 101_770, 100_480), ("colour", 394_634, 393_344)])
def test_the_classifiers_of_grey_and_of_colour_images(data: str, count: int, first: int) -> None:
    from vramkit.demo import images, training

    layers = training.layers_for(images.SHAPES[data])
    model = training.Classifier(layers)

    assert sum(each.numel() for each in model.parameters()) == count
    assert sum(each.numel() for each in model.hidden.parameters()) == first
    assert Textbook(layers=layers, batch=1).parameter_count == count


@pytest.mark.parametrize(("data", "per_image"), [("grey", 3_136), ("colour", 12_288)])
def test_real_images_are_contiguous_numbers_from_0_to_1_of_ten_classes(data: str, per_image: int) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("PIL")
    from vramkit.demo import images

    found = images.load(data)

    assert "scikit-learn" in found.source
    assert found.pixels.shape == (len(found.labels), *images.SHAPES[data])
    assert found.pixels[0].nbytes == per_image
    assert found.pixels.flags.c_contiguous  # or a batch is copied when it is flattened
    assert 0 <= found.pixels.min() < 0.1 < 0.9 < found.pixels.max() <= 1
    assert sorted(set(found.labels.tolist())) == list(range(10))


def test_without_scikit_learn_images_are_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    from vramkit.demo import images

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)

    for data, shape in images.SHAPES.items():
        found = images.load(data)
        assert "generated images" in found.source
        assert found.pixels.shape[1:] == shape


def test_images_are_drawn_two_rows_of_pixels_in_a_line() -> None:
    from vramkit.demo import images

    grey = np.zeros((2, 1, 4, 3), np.float32)
    grey[0, :, :2] = 1
    red = np.zeros((1, 3, 2, 1), np.float32)
    red[0, 0, 0] = 1

    assert images.drawn(grey, colours=False) == "@@@\n"
    assert images.drawn(red, colours=True) == "\x1b[38;2;255;0;0;48;2;0;0;0m▀\x1b[0m"


def test_the_textbook_of_the_digit_classifier() -> None:
    count = 784 * 128 + 128 + 128 * 10 + 10
    book = Textbook(layers=LAYERS, batch=64)

    assert book.parameter_count == count == 101_770
    assert book.parameters == book.gradients == NUMBER * count == 407_080
    assert book.optimizer_state == 2 * book.parameters
    assert book.inputs == 64 * 3_136
    assert book.activations == 64 * 512
    assert Textbook(layers=LAYERS, batch=64, optimizer="sgd").optimizer_state == 0


@given(st.lists(st.integers(1, 50), min_size=2, max_size=5), st.integers(1, 100), st.sampled_from(["sgd", "adam"]))
def test_the_textbooks_parts_sum_and_only_data_grows_with_the_batch(
    layers: list[int], batch: int, optimizer: str
) -> None:
    book = Textbook(layers=tuple(layers), batch=batch, optimizer=optimizer)
    double = Textbook(layers=tuple(layers), batch=2 * batch, optimizer=optimizer)

    weights = book.parameters + book.gradients + book.optimizer_state
    assert book.total == weights + book.inputs + book.activations
    assert double.total == book.total + book.inputs + book.activations


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.virtual_gpu)])
@pytest.mark.parametrize("batch", [64, 100])
def test_measured_and_textbook_agree_but_for_what_is_said(device: str, batch: int) -> None:
    from vramkit.demo import images, training

    random = np.random.default_rng(0)
    made = images.Images(random.random((256, 1, 28, 28), np.float32), random.integers(10, size=256), "made here")

    result, losses, failed, accuracy = training.train(made, device, steps=3, batch_size=batch, make=training.adam)

    book = Textbook(layers=LAYERS, batch=batch)
    measured = {category: training.most(result, category) for category in Category}
    counters = 4 * NUMBER if device == "cpu" else 0  # one for each of four parameters
    assert measured[Category.PARAMETER] == book.parameters
    assert measured[Category.GRADIENT] == book.gradients
    assert measured[Category.OPTIMIZER_STATE] == book.optimizer_state + counters
    assert measured[Category.INPUT] == book.inputs + batch * 8
    scores_and_log_softmax = 2 * NUMBER * LAYERS[-1] * batch
    assert 0 <= measured[Category.ACTIVATION] - book.activations - scores_and_log_softmax < 64
    assert len(losses) == 3
    assert not failed
    assert 0 < accuracy <= 1


@pytest.mark.parametrize("where", ["cpu", pytest.param("virtual", marks=pytest.mark.virtual_gpu)])
def test_the_demo_explains_itself_on_two_screens(where: str, tmp_path: Path) -> None:
    device = ["--device", "cpu"] if where == "cpu" else ["--gpu", "rtx4090"]
    data = "grey" if where == "cpu" else "colour"
    layers = LAYERS if where == "cpu" else (3_072, 128, 10)
    options = ["--data", data, "--steps", "20", "--batch-size", "32", "--html", "demo.html", *device]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "vramkit", "demo", *options],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) <= 92
    assert max(map(len, lines)) <= 110
    assert "20 steps of 32 images" in " ".join(lines)
    assert header_of(tmp_path / "demo.html")["devices"][0]["steps"] == 20
    first, last, right = re.search(
        r"Loss: (\S+) at the first step, (\S+) at the last. Then (\d+)%", done.stdout
    ).groups()
    if "generated images" not in done.stdout:  # which have nothing to learn
        assert float(last) < float(first)
        assert int(right) > 10
    assert ("the CPU computes the values" in " ".join(lines)) == (where == "virtual")
    for size in (64, 256, 1024, 4096):
        for optimizer in ("sgd", "adam"):
            assert f"{Textbook(layers=layers, batch=size, optimizer=optimizer).total:,}" in done.stdout


def test_the_cpu_says_plainly_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(gpu: str, values: str) -> None:
        raise DeviceError("The virtual GPU was asked for", "there is no C compiler", instead="Install one")

    monkeypatch.setattr(demo, "cuda_devices", list)
    monkeypatch.setattr(virtual_gpu, "activate", refuse)

    where, sentence = demo._choose(None, None)

    assert where == "cpu"
    assert sentence == (
        "On the CPU: there is no GPU, and a virtual one is not possible here. There is no C compiler. Install one."
    )


@pytest.mark.virtual_gpu
@pytest.mark.parametrize(("room", "words"), [(1, "Not even its model fits"), (12, "OUT OF MEMORY")])
def test_a_device_that_is_too_small_is_status_1(room: int, words: str) -> None:
    context = CATALOGUE[GENERIC].context >> 20
    done = subprocess.run(
        [sys.executable, "-m", "vramkit", "demo", "--gpu", f"{context + room} MiB"], capture_output=True, text=True
    )

    assert done.returncode == 1
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr

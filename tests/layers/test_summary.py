"""``vramkit.summary``: its figures against models that can be counted by hand, closed forms and a measurement."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import pytest
import torch
from layered_models import Checkpointed, Mixed, Named, Pair, Repeated, classifier, convolutional
from torch import nn

import vramkit
from vramkit import closed_form


def summary(*args: Any, **kwargs: Any) -> vramkit.Summary:
    return vramkit.summary(*args, engine="fake", gpu="t4", **kwargs)


def row_of(table: vramkit.Summary, path: str) -> vramkit.LayerRow:
    """The row of a layer, by its path below the model."""
    [row] = [row for row in table.rows if row.name == f"{table.rows[0].name}.{path}"]
    return row


# -- parameters, gradients, state --------------------------------------------------------------------------------------


def test_parameters_count_once_wherever_they_are() -> None:
    model = Mixed()

    table = summary(model, torch.zeros(2, 3, dtype=torch.long), optimizer=torch.optim.Adam)

    whole = table.rows[0]
    assert (table.parameters, table.trainable) == (whole.parameters, whole.trainable)
    assert whole.parameters == sum(each.numel() for each in model.parameters())
    assert whole.trainable == sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert row_of(table, "blocks").parameters == sum(each.numel() for each in model.blocks.parameters())
    assert row_of(table, "head").parameters == 0  # its weight is that of the words
    inside = sum(row.parameters or 0 for row in table.rows if row.depth == 1)
    assert whole.parameters - inside == model.scale.numel()
    assert whole.parameter_bytes == closed_form.parameters(model)
    assert whole.gradients == closed_form.gradients(model)
    assert whole.optimizer_state == 2 * closed_form.gradients(model)
    assert row_of(table, "frozen").gradients == 0


@pytest.mark.virtual_gpu
def test_lazy_layers_have_the_parameters_that_their_forward_made() -> None:
    model = nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.LazyLinear(4))

    table = vramkit.summary(model, torch.zeros(16, 64), engine="virtual")

    assert [row.parameters for row in table.rows] == [65 * 32 + 33 * 4, 65 * 32, 0, 33 * 4]


# -- multiply-adds and calls -------------------------------------------------------------------------------------------


def test_multiply_adds_are_those_of_matrix_products_and_convolutions() -> None:
    table = summary(convolutional(), torch.zeros(2, 3, 32, 32))

    convolution, linear = 2 * 30 * 30 * 8 * 3 * 9, 2 * 8 * 10
    assert [row.multiply_adds for row in table.rows] == [convolution + linear, convolution, 0, 0, 0, linear]
    assert table.multiply_adds == convolution + linear


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_multiplies_its_matrices_at_every_step(kind: type[nn.RNNBase]) -> None:
    model = kind(10, 20, num_layers=2, bidirectional=True)

    table = summary(model, vramkit.fixed(torch.zeros(7, 3, 10)))

    matrices = sum(each.numel() for each in model.parameters() if each.dim() == 2)
    assert table.multiply_adds == 7 * 3 * matrices


def test_a_layer_that_is_used_many_times_counts_as_often() -> None:
    rows, times = 16, 12

    table = summary(Repeated(times), torch.zeros(rows, 64))

    layer, tanh = row_of(table, "layer"), row_of(table, "tanh")
    assert (layer.calls, tanh.calls) == (times, times)
    assert layer.multiply_adds == times * rows * 64 * 64
    assert layer.parameters == 65 * 64
    assert tanh.activations == times * rows * 64 * 4  # its backward needs each result
    assert table.rows[0].activations == tanh.activations


def test_what_a_checkpoint_runs_again_is_no_call() -> None:
    table = summary(Checkpointed(), torch.zeros(4, 16))

    assert [row.calls for row in table.rows] == [1, 1, 1, 1, 1]
    assert table.multiply_adds == 2 * 4 * 16 * 32


def test_attention_without_gradients_counts_as_with_them() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, batch_first=True, dropout=0.0), 1).eval()

    trained = summary(model, torch.zeros(2, 10, 32))
    with torch.no_grad():  # where one kernel does a whole layer
        table = summary(model, torch.zeros(2, 10, 32))

    products = 20 * (4 * 32 * 32 + 2 * 32 * 2048) + 2 * 2 * 10 * 10 * 32
    assert table.multiply_adds == trained.multiply_adds == products
    assert table.rows[0].gradients == 0
    assert torch.backends.mha.get_fastpath_enabled()


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.virtual_gpu
def test_bytes_are_those_that_are_measured() -> None:
    table = summary(classifier(), torch.zeros(64, 784), optimizer=torch.optim.Adam)
    torch.cuda.empty_cache()
    model = classifier().cuda()
    optimizer = torch.optim.Adam(model.parameters())

    with vramkit.profile(model, optimizer) as prof:
        for _ in range(3):
            model(torch.zeros(64, 784, device="cuda")).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    def figures(each: vramkit.LayerRow | vramkit.ModuleUsage) -> tuple[object, ...]:
        return each.name, each.output_shape, each.activations, each.gradients, each.optimizer_state

    assert [*map(figures, table.rows)] == [*map(figures, prof.result.by_module[0].walk())]


def test_the_peak_inside_is_of_the_whole_device() -> None:
    table = summary(classifier(), torch.zeros(64, 784), optimizer=torch.optim.Adam)

    peaks = [row.peak for row in table.rows]
    assert peaks[0] == max(peaks) <= table.estimate.peak_allocated
    assert min(peak for peak in peaks if peak) > table.rows[0].parameter_bytes


def test_a_model_that_trains_nothing_runs_its_forward_alone() -> None:
    table = summary(classifier().requires_grad_(False), torch.zeros(64, 784))

    assert (table.parameters, table.trainable) == (101_770, 0)
    assert "gradients" not in str(table)
    assert table.rows[2].multiply_adds == 64 * 784 * 128


# -- sizes in place of a batch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "size", "more", "shape"),
    [
        (classifier, (1, 28, 28), {"batch_size": 64}, (64, 10)),
        (classifier, (64, 1, 28, 28), {}, (64, 10)),
        (classifier, (1, 28, 28), {}, (1, 10)),
        (convolutional, (3, 32, 32), {}, (1, 10)),
        (convolutional, (5, 3, 32, 32), {}, (5, 10)),
        (lambda: nn.Conv2d(3, 8, 3), (3, 32, 32), {}, (1, 8, 30, 30)),
        (lambda: nn.LSTM(8, 16), (100, 8), {}, (1, 100, 16)),
        (lambda: nn.LSTM(8, 16), (32, 100, 8), {}, (32, 100, 16)),
        (lambda: nn.Embedding(50, 8), (4, 6), {"dtypes": torch.long}, (4, 6, 8)),
        (Pair, [(5, 10), (5,)], {"dtypes": [torch.float, torch.long]}, (5, 4)),
        (Pair, [(10,), (7, 4)], {"dtypes": [torch.float, torch.long]}, (1, 7, 4, 4)),
        (Named, {"x": (5, 10), "tokens": (5,)}, {"dtypes": {"x": torch.float, "tokens": torch.long}}, (5, 4)),
        (lambda: nn.Linear(4, 2).half(), (8, 4), {}, (8, 2)),
    ],
)  # fmt: skip
def test_a_size_is_that_of_a_batch_where_the_model_takes_it_so_and_else_of_one_sample(
    model: Any, size: Any, more: dict[str, Any], shape: tuple[int, ...]
) -> None:
    assert summary(model(), input_size=size, **more).rows[0].output_shape == shape


def test_a_size_in_the_place_of_the_batch_is_one() -> None:
    tables = [summary(classifier(), (64, 784)), summary(classifier(), input_size=(64, 784))]

    assert tables[0].rows == tables[1].rows


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "neither a batch nor an input_size"),
        ({"batch": torch.zeros(1, 784), "input_size": (1, 784)}, "a batch and an input_size"),
        ({"input_size": (0, 3)}, "whole numbers from 1 on"),
        ({"input_size": 784}, "whole numbers from 1 on"),
        ({"input_size": (1, 784), "dtypes": [torch.float, torch.long]}, "for 1 inputs"),
        ({"input_size": (3, 7)}, "pass dtypes=torch.long; or give a batch"),
        ({"input_size": (784,), "batch_size": 0}, "batch_size=0"),
        ({"batch": {"images": torch.zeros(1, 784)}}, r"takes the dict itself a tuple of it, \(batch,\)"),
    ],
)
def test_errors_say_what_to_write_instead(more: dict[str, Any], words: str) -> None:
    with pytest.raises(vramkit.UsageError, match=words):
        summary(classifier(), **more)


# -- as a value --------------------------------------------------------------------------------------------------------


def test_the_model_is_left_as_found() -> None:
    model = classifier()
    state = {name: value.clone() for name, value in model.state_dict().items()}

    summary(model, torch.zeros(4, 784), optimizer=torch.optim.Adam)

    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [each.grad for each in model.parameters()] == [None] * 4
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


def test_equal_blocks_are_one_row_of_the_text_with_the_figures_of_one() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(12)), nn.Linear(64, 8))

    table = summary(model, torch.zeros(16, 64))

    lines = str(table).splitlines()
    [blocks] = [line for line in lines if line.startswith("  0 to 11 (12 x Sequential)  ")]
    assert " 4.00 KiB " in blocks  # 16 x 64 results of tanh
    assert f" {65 * 64:,} " in blocks
    assert sum("(Linear)" in line for line in lines) == 2
    assert len(table.rows) == 1 + 3 * 12 + 1
    assert [line for line in table.report(depth=0).splitlines() if "(Linear)" in line] == []


def test_long_names_keep_lines_short_and_deep_layers_keep_their_names() -> None:
    model = classifier()
    for depth in range(40):
        model = nn.Sequential(OrderedDict({f"a_module_with_a_rather_long_name_{depth}": model}))
    table = summary(model, torch.zeros(2, 784), optimizer=torch.optim.Adam)

    assert max(map(len, str(table).splitlines())) <= 100


def test_it_becomes_json_a_frame_and_html() -> None:
    pytest.importorskip("pandas")
    model = nn.Sequential()
    model.add_module("<script>", nn.Linear(4, 2))
    table = summary(model, torch.zeros(2, 4))

    found = json.loads(json.dumps(table.to_dict()))
    assert [each["parameters"] for each in found["layers"]] == [row.parameters for row in table.rows] == [10, 10]
    assert (found["multiply_adds"], found["engine"], found["fits"]) == (16, "fake", True)
    assert list(table.to_frame()["parameters"]) == [10, 10]
    html = table._repr_html_()
    assert "&lt;script&gt;" in html
    assert "<script" not in html
    assert repr(table) == "Summary(Sequential: 2 layers, 10 parameters)"


def test_the_layers_of_a_compiled_model_have_its_own_names() -> None:
    table = summary(torch.compile(classifier(), backend="eager"), torch.zeros(4, 784))

    assert [row.name for row in table.rows] == ["Sequential", *(f"Sequential.{n}" for n in range(4))]
    assert table.multiply_adds == 4 * (784 * 128 + 128 * 10)


@pytest.mark.virtual_gpu
def test_both_engines_count_the_same() -> None:
    def counted(engine: str) -> list[tuple[object, ...]]:
        batch = torch.zeros(2, 3, dtype=torch.long)
        table = vramkit.summary(Mixed(), batch, engine=engine, gpu="t4", optimizer=torch.optim.Adam)
        return [
            (row.name, row.calls, row.parameters, row.multiply_adds, row.activations, row.peak) for row in table.rows
        ]

    assert counted("fake") == counted("virtual")


def test_a_program_that_cannot_be_counted_has_its_memory_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from vramkit.engines.fake.session import FakeSession

    def refuse(*args: object) -> None:
        raise vramkit.UsageError("It was to be counted", "on purpose")

    monkeypatch.setattr(FakeSession, "count_layers", refuse)
    table = summary(classifier(), torch.zeros(4, 784))

    assert (table.parameters, table.rows[0].multiply_adds) == (None, None)
    assert table.rows[0].gradients == closed_form.gradients(classifier())
    assert "were not counted: It was to be counted" in " ".join(str(table).split())

"""``vramkit.estimate`` with the virtual engine: equal to a fresh process, and the user's objects as they were."""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import predicted_programs
import pytest
import torch
from predicted_programs import class_loss, small_gpt
from subprocesses import run_on, run_python
from torch import nn
from torch.utils.data import DataLoader
from workloads import ADAGRAD, tokens

import vramkit
from vramkit import closed_form
from vramkit.engines.virtual import session
from vramkit.programs import settings
from vramkit.results import archive
from vramkit.torch_internals.versions import SINCE_2_10

pytestmark = pytest.mark.virtual_gpu

FRESH = """
import warnings
warnings.simplefilter("ignore")
import predicted_programs as programs
result = programs.run_as_users_do(programs.PROGRAMS[{name!r}]())
"""


def peaks(estimate: vramkit.Estimate) -> tuple[int, int]:
    return estimate.peak_allocated, estimate.peak_reserved


def gpt_arguments(**more: Any) -> dict[str, Any]:
    return {
        "model": small_gpt(), "batch": tokens(4, 256)(), "optimizer": torch.optim.AdamW, "loss": class_loss, **more
    }  # fmt: skip


@cache
def _gpt() -> vramkit.Estimate:
    return vramkit.estimate(**gpt_arguments(), gpu="2 GiB")


@pytest.fixture
def gpt() -> vramkit.Estimate:
    """One prediction for those tests that only look at it."""
    return _gpt()  # not a fixture of the module's: such a one would be made before a test is skipped


# -- what is predicted is what a fresh process shows -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gpu", "conf"),
    [
        ("mobilenet_v3_small", "a100-80gb", None),
        ("gpt accumulating", "h100", "expandable_segments:True"),
        ("lstm", "t4", None),
        ("u-net", "a100-40gb", "max_split_size_mb:64"),
        ("adagrad", "24 GiB", None),
    ],
)
def test_the_peaks_are_those_of_a_fresh_process(name: str, gpu: str, conf: str | None) -> None:
    environment = {} if conf is None else {"PYTORCH_CUDA_ALLOC_CONF": conf}

    measured = run_on(gpu, FRESH.format(name=name), environment=environment)
    estimate = vramkit.estimate(**predicted_programs.PROGRAMS[name](), gpu=gpu, alloc_conf=conf)

    assert peaks(estimate) == tuple(measured)


def test_every_batch_size_is_as_in_a_fresh_process_too(gpt: vramkit.Estimate) -> None:
    code = """
    import predicted_programs as programs
    from workloads import tokens
    program = programs.PROGRAMS["adamw, foreach"]()
    result = programs.run_as_users_do({**program, "batch": tokens(7, 256)()})
    """

    [row] = gpt.batch_sizes([7])

    assert [row.peak_allocated, row.peak_reserved] == run_on("2 GiB", code)
    assert peaks(gpt.at(7)) == (row.peak_allocated, row.peak_reserved)


def test_where_the_model_is_does_not_matter() -> None:
    with torch.device("meta"):
        on_meta = small_gpt()
    on_cuda = small_gpt().to("cuda")
    shared = torch.zeros(2, 64, 64)

    class Shared(nn.Linear):
        """Its weight and its buffer are views of one storage."""

        def __init__(self, memory: torch.Tensor) -> None:
            super().__init__(64, 64)
            self.weight = nn.Parameter(memory[0])
            self.register_buffer("other", memory[1])

    found = {
        peaks(vramkit.estimate(**gpt_arguments(model=model), gpu="2 GiB"))
        for model in (small_gpt(), on_meta, on_cuda)
    }  # fmt: skip
    small = {
        peaks(vramkit.estimate(Shared(memory), torch.zeros(4, 64), gpu="t4")) for memory in (shared, shared.to("meta"))
    }

    assert len(found) == 1
    assert len(small) == 1


def test_a_model_of_any_size_needs_no_memory_of_its_own() -> None:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(1 << 16, 1 << 16, bias=False) for _ in range(4)))

    estimate = vramkit.estimate(model, torch.zeros(1, 1 << 16), gpu="200 GiB", steps=1)

    assert estimate.peak.parameters == 4 << 34
    assert estimate.peak.gradients == 4 << 34
    assert estimate.fits()


def test_training_so_far_does_not_count() -> None:
    model, batch = small_gpt(), tokens(4, 256)()
    optimizer = torch.optim.AdamW(model.parameters())
    before = vramkit.estimate(**gpt_arguments(model=model, optimizer=optimizer), gpu="2 GiB")
    class_loss(model(batch[0]), batch).backward()
    optimizer.step()

    after = vramkit.estimate(**gpt_arguments(model=model, optimizer=optimizer), gpu="2 GiB")

    assert peaks(after) == peaks(before)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, ADAGRAD])
def test_an_optimizer_and_what_makes_it_come_to_the_same(kind: Callable[..., torch.optim.Optimizer]) -> None:
    model = small_gpt()

    made = vramkit.estimate(**gpt_arguments(model=model, optimizer=kind(model.parameters())), gpu="2 GiB")
    factory = vramkit.estimate(**gpt_arguments(model=model, optimizer=kind), gpu="2 GiB")

    assert peaks(made) == peaks(factory)
    assert made.final == factory.final
    assert factory.final.optimizer_state == closed_form.optimizer_state(kind, model)


def test_the_settings_of_this_process_hold_there() -> None:
    attention = {"model": small_gpt(), "batch": tokens(4, 256)(), "loss": class_loss, "gpu": "t4"}
    usual = vramkit.estimate(**attention)
    kept = torch.backends.cuda.mem_efficient_sdp_enabled()
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    try:
        plain = vramkit.estimate(**attention)
    finally:
        torch.backends.cuda.enable_mem_efficient_sdp(kept)

    assert plain.peak_allocated > usual.peak_allocated  # it materializes the scores


def test_precision_and_what_is_checked_hold_there() -> None:
    def step(batch: torch.Tensor) -> None:
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.is_anomaly_enabled()
        assert not torch.distributions.Normal(net(batch.to("cuda")), 1.0)._validate_args

    net, before = Net(), settings.read()
    torch.distributions.Distribution.set_default_validate_args(False)
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autograd.set_detect_anomaly(True):
            vramkit.estimate(net, BATCH, step=step, gpu="t4")
    finally:
        settings.apply(before)


def test_without_gradients_it_is_inference() -> None:
    model, batch = small_gpt(), tokens(4, 256)()[0]

    training = vramkit.estimate(model, batch, gpu="2 GiB")
    with torch.no_grad():
        without = vramkit.estimate(model, batch, gpu="2 GiB")
    with torch.inference_mode():
        inference = vramkit.estimate(model, batch, gpu="2 GiB")

    assert peaks(without) == peaks(inference)
    assert without.peak_allocated < training.peak_allocated
    assert without.peak.gradients == 0
    assert without.peak.activations == 4 * batch.numel() * 8192  # the output, and nothing for a backward


def test_a_prediction_is_everything_that_a_profile_is(gpt: vramkit.Estimate) -> None:
    assert gpt.engine == "virtual"
    assert gpt.peak.parameters == 4 * sum(p.numel() for p in small_gpt().parameters())
    assert gpt.peak.optimizer_state == pytest.approx(2 * gpt.peak.parameters, rel=1e-3)
    assert [step.step for step in gpt.steps] == [0, 1, 2]
    assert [root.name for root in gpt.by_module][:1] == ["GPT"]
    assert gpt.timeline.breakdown_at(-1) == gpt.final


def test_an_estimate_comes_back_from_a_file_without_its_program(gpt: vramkit.Estimate, tmp_path: Path) -> None:
    too_large = vramkit.estimate(**gpt_arguments(), gpu="600 MiB")
    for number, estimate in enumerate((gpt, too_large)):
        estimate.save(tmp_path / f"{number}.npz")

        loaded = vramkit.load(tmp_path / f"{number}.npz")

        assert isinstance(loaded, vramkit.Estimate)
        own = ("engine", "gpu", "batch_size", "failure", "notes", "peak", "final", "steps", "by_module", "capacity")
        assert [name for name in own if getattr(loaded, name) != getattr(estimate, name)] == []
        assert loaded.report() == estimate.report()
        assert loaded.fits() == estimate.fits()
        with pytest.raises(vramkit.UsageError, match="or from a file"):
            loaded.largest_batch_size()


def test_a_file_of_an_older_estimate_is_a_profile(gpt: vramkit.Estimate, tmp_path: Path) -> None:
    archive.save(gpt, tmp_path / "old.npz")  # as it was before there were particulars

    loaded = vramkit.load(tmp_path / "old.npz")

    assert type(loaded) is vramkit.Profile
    assert loaded.peak == gpt.peak


# -- what is asked of it afterwards ------------------------------------------------------------------------------------


def test_the_largest_batch_fits_and_the_next_does_not(gpt: vramkit.Estimate) -> None:
    largest = gpt.largest_batch_size()

    fits, too_much = gpt.batch_sizes([largest, largest + 1])
    assert fits.fits
    assert not too_much.fits
    assert not gpt.at(largest + 1).fits()
    assert gpt.at(largest + 1).peak_reserved == too_much.peak_reserved


def test_what_does_not_fit_is_predicted_all_the_same() -> None:
    estimate = vramkit.estimate(**gpt_arguments(), gpu="600 MiB")

    assert not estimate.fits()
    assert estimate.failure is not None
    assert estimate.failure.requested > 0
    assert estimate.fits("2 GiB")
    assert peaks(estimate) == peaks(vramkit.estimate(**gpt_arguments(), gpu="2 GiB"))
    assert "DOES NOT FIT Virtual GPU 600.0 MiB" in estimate.report()
    if SINCE_2_10:  # older ones know no such setting
        half = vramkit.estimate(**gpt_arguments(), gpu="600 MiB", alloc_conf="per_process_memory_fraction:0.5")
        assert not half.fits()
        assert peaks(half) == peaks(estimate)
    with pytest.raises(vramkit.DoesNotFit, match="One row runs out of memory"):
        estimate.largest_batch_size("500 MiB")


def test_the_report_says_that_it_is_a_prediction_and_whether_it_fits(gpt: vramkit.Estimate) -> None:
    first, *_, last = gpt.report().splitlines()

    assert first.startswith("vramkit: predicted memory (virtual engine) of Virtual GPU 2.00 GiB")
    assert last.startswith("Fits Virtual GPU 2.00 GiB: ")


def test_a_callable_makes_the_batch_of_each_size() -> None:
    def make(size: int) -> dict[str, object]:
        return {"input": torch.zeros(size, 512), "other": vramkit.fixed(torch.zeros(3, 512))}

    class Model(nn.Linear):
        def forward(self, input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            assert other.shape == (3, 512)
            return super().forward(input)

    made = vramkit.estimate(Model(512, 512), make, batch_size=8, gpu="t4")
    sampled = vramkit.estimate(Model(512, 512), make(2), batch_size=8, gpu="t4")

    assert made.batch_size == sampled.batch_size == 8
    assert peaks(made) == peaks(sampled)
    assert peaks(made.at(4096)) == peaks(sampled.at(4096)) > peaks(made)


def test_what_an_optimizer_class_adds_goes_with_it() -> None:
    class Wrapping(torch.optim.Optimizer):
        """Steps by another optimizer, as SAM does."""

        def __init__(self, parameters: Any, inner: type[torch.optim.Optimizer]) -> None:
            super().__init__(parameters, {})
            self.inner = inner(self.param_groups)

        def step(self, closure: Any = None) -> None:
            self.inner.step()

    model = small_gpt()

    wrapped = vramkit.estimate(
        **gpt_arguments(model=model, optimizer=Wrapping(model.parameters(), torch.optim.AdamW)), gpu="2 GiB"
    )

    assert peaks(wrapped) == peaks(_gpt())


def test_layers_with_parametrizations_cost_what_they_cost() -> None:
    code = FRESH.replace("PROGRAMS[{name!r}]()", "parametrized()")

    estimate = vramkit.estimate(**predicted_programs.parametrized(), gpu="t4")

    assert peaks(estimate) == tuple(run_on("t4", code))


def test_a_copy_in_another_process_has_the_figures_and_no_program(gpt: vramkit.Estimate) -> None:
    copy = pickle.loads(pickle.dumps(gpt))

    assert peaks(copy) == peaks(gpt)
    assert copy.fits()
    assert copy.at(copy.batch_size) is copy
    with pytest.raises(vramkit.UsageError, match="comes from another process"):
        copy.at(8)


def test_the_old_name_of_the_largest_batch_size_says_the_new_one(gpt: vramkit.Estimate) -> None:
    copy = pickle.loads(pickle.dumps(gpt))

    with (
        pytest.warns(DeprecationWarning, match=r"largest_batch_size\(gpu\)"),
        pytest.raises(vramkit.UsageError, match=r"largest_batch_size\(\) of an estimate was called"),
    ):
        copy.max_batch_size()


def test_numbers_of_numpy_are_batch_sizes_too(gpt: vramkit.Estimate) -> None:
    sizes: Any = 2 ** np.arange(3)

    rows = gpt.batch_sizes(sizes)

    assert rows == gpt.batch_sizes([1, 2, 4])
    assert gpt.at(sizes[1]).batch_size == 2
    assert gpt.at(np.int64(gpt.batch_size)) is gpt


@pytest.mark.parametrize("size", [0, -1, True, 2.0, 1 << 25])
def test_what_is_no_batch_size_is_refused(gpt: vramkit.Estimate, size: Any) -> None:
    with pytest.raises(vramkit.UsageError, match=r"at\(\) of an estimate was called with batch_size="):
        gpt.at(size)


# -- steps of the user's own -------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(512, 512)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).sum()


BATCH, NET, OTHER = torch.zeros(64, 512), Net(), Net()


def test_a_step_gets_the_batch_where_it_wants_it() -> None:
    net = Net()
    optimizer = torch.optim.Adam(net.parameters())

    def finish(loss: torch.Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    steps: list[Callable[[torch.Tensor], None]] = [
        lambda batch: finish(net(batch.to("cuda"))),
        lambda batch: finish(net(batch.to(torch.device("cuda")))),
        lambda batch: finish(net(batch)),
    ]
    found = [vramkit.estimate(net, BATCH, optimizer=optimizer, step=step, gpu="t4") for step in steps]
    from_cuda = vramkit.estimate(net, BATCH.to("cuda"), optimizer=optimizer, step=steps[2], gpu="t4")
    plain = vramkit.estimate(net, BATCH, optimizer=optimizer, gpu="t4")

    assert peaks(found[0]) == peaks(found[1])
    # Here the loop holds the batch until the step has ended, and so does the plain step.
    assert peaks(found[2]) == peaks(from_cuda) == peaks(plain)
    assert [len(each.notes) for each in (*found, from_cuda)] == [0, 0, 1, 0]
    assert "given the batch on the GPU" in found[2].notes[0]


def test_tensors_that_a_step_holds_keep_their_values_and_their_device() -> None:
    lengths = torch.tensor([3, 5, 8])
    weight = torch.ones(1000, device="cuda")

    def step(batch: torch.Tensor) -> None:
        assert lengths.tolist() == [3, 5, 8]
        assert weight.device.type == "cuda"
        assert batch.tolist() == [7, 7]
        assert all(parameter.is_cuda for parameter in net.parameters())

    net = Net()
    estimate = vramkit.estimate(net, torch.tensor([7, 7]), step=step, gpu="t4")

    assert estimate.final.other == 4000


@dataclass
class Rows:
    """A batch as a class of one's own."""

    x: torch.Tensor


def test_a_step_gets_a_dataclass_as_it_is() -> None:
    net = Net()

    def step(batch: Rows) -> None:
        assert type(batch) is Rows
        net(batch.x.to("cuda")).backward()

    found = vramkit.estimate(net, Rows(BATCH), step=step, gpu="t4")

    assert found.batch_size == len(BATCH)
    assert peaks(found.at(7)) == peaks(vramkit.estimate(net, Rows(BATCH[:7]), step=step, gpu="t4"))


def test_what_only_an_optimizer_trains_is_on_the_gpu_too() -> None:
    """In a process without CUDA it was made on the CPU."""
    measured = run_on("t4", "import predicted_programs as p; result = p.run_as_users_do(p.latents())")
    code = f"""
    import sys
    sys.path.insert(0, {str(Path(__file__).parents[1])!r})
    import predicted_programs, vramkit
    for engine in ("virtual", "fake"):
        found = vramkit.estimate(**predicted_programs.latents(), gpu="t4", engine=engine)
        print(found.peak_allocated, found.peak_reserved)
    """

    predicted = run_python(textwrap.dedent(code)).split()

    assert [*map(int, predicted)] == [*measured, *measured]


@pytest.mark.parametrize("engine", ["virtual", "fake"])
def test_a_default_device_is_that_of_the_steps(engine: Any) -> None:
    model = Net()

    def step(batch: torch.Tensor) -> None:
        model(batch + torch.zeros(512)).sum().backward()

    with torch.device("cuda"):
        estimate = vramkit.estimate(model, BATCH.to("cuda"), step=step, gpu="a100-80gb", engine=engine)
        with pytest.raises(vramkit.UsageError, match=r"on the same device|two different devices"), torch.device("cpu"):
            vramkit.estimate(model, BATCH.to("cuda"), step=step, gpu="a100-80gb", engine=engine)

    assert any(estimate.tape.allocations["requested"] == 4 * 512)


def test_an_optimizer_of_another_model_is_noticed() -> None:
    model = Net()
    own, others = torch.optim.SGD(model.parameters()), torch.optim.SGD(OTHER.parameters())

    notes = [" ".join(vramkit.estimate(model, BATCH, optimizer=each, gpu="t4").notes) for each in (own, others)]

    assert "none of the model's parameters" not in notes[0]
    assert "none of the model's parameters" in notes[1]


SCRIPT = """
import sys, torch, vramkit

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
assert device.type == "cpu"

class Net(torch.nn.Linear):
    pass

model = Net(512, 512).to(device)
optimizer = torch.optim.Adam(model.parameters())
scaler = torch.amp.GradScaler("cuda")

def loss_of(batch):
    return model(batch).sum()

def train_step(batch):
    batch = batch.to(device)
    optimizer.zero_grad()
    with torch.autocast("cuda", torch.float16):
        loss = loss_of(batch)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
"""
ASK = """
import a_training_module as module

for name, place in (("script", globals()), ("module", vars(module))):
    model, optimizer, step = (place[each] for each in ("model", "optimizer", "train_step"))
    for engine in ("virtual", "fake"):
        found = vramkit.estimate(model, torch.zeros(64, 512), optimizer=optimizer, step=step, gpu="t4", engine=engine)
        print("FOUND", found.peak_allocated, found.peak_reserved, len(found.notes))
"""


def test_a_script_for_the_gpu_is_predicted_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "a_training_module.py").write_text(SCRIPT)
    head = f"import sys, warnings; warnings.simplefilter('ignore'); sys.path.insert(0, {str(tmp_path)!r})"
    measure = SCRIPT.replace('assert device.type == "cpu"', "")
    measure += "\nfor _ in range(3): train_step(torch.zeros(64, 512))"
    measure += "\nresult = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()"

    lines = [line.split() for line in run_python(f"{head}\n{SCRIPT}\n{ASK}").splitlines() if "FOUND" in line]

    # Two notes: the device, which is the CPU here, and the scaler, which torch has disabled.
    assert lines == [["FOUND", *map(str, run_on("t4", measure)), "2"]] * 4


SCALED = """
import sys, warnings, torch
warnings.simplefilter("ignore")
BATCH = torch.zeros(64, 256)
pure = {"float16": None, "bfloat16": torch.bfloat16}.get(KIND, torch.float32)
model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10)).to(pure)
optimizer = torch.optim.AdamW(model.parameters())
scaler = torch.amp.GradScaler("cuda", enabled=(KIND == "float16"))
half = {"float16": torch.float16, "autocast bfloat16": torch.bfloat16}.get(KIND)

def step(batch):
    with torch.autocast("cuda", half or torch.float16, enabled=half is not None):
        loss = model(batch.to("cuda", pure)).float().square().mean()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
"""


def test_a_scaler_that_is_disabled_here_is_enabled_there_for_float16_alone() -> None:
    kinds = ("float16", "bfloat16", "autocast bfloat16", "float32")
    measure = "model.to('cuda')\nfor _ in range(3): step(BATCH)"
    measure += "\nresult = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()"
    measure += ", torch.cuda.memory_allocated()"  # with the scale, where there is one
    ask = f"""
import vramkit
for KIND in {kinds!r}:
    exec({SCALED!r})
    assert not torch.cuda.is_available() and not scaler.is_enabled()
    for engine in ("virtual", "fake"):
        found = vramkit.estimate(model, BATCH, optimizer=optimizer, step=step, gpu="t4", engine=engine)
        print(found.peak_allocated, found.peak_reserved, found.final.allocated)
"""

    predicted = [[*map(int, line.split())] for line in run_python(ask).splitlines()]

    measured = [run_on("t4", f"KIND = {kind!r}\n{SCALED}\n{measure}") for kind in kinds]
    assert predicted == [each for each in measured for _ in ("virtual", "fake")]


UNMOVED = """
import torch
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 10)
)
optimizer = torch.optim.AdamW(model.parameters())
BATCH = torch.zeros(8, 3, 64, 64), torch.zeros(8, dtype=torch.long)

def step(batch):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def test_a_step_that_does_not_move_its_batch_may_fail_in_any_words() -> None:
    names: dict[str, Any] = {}
    exec(UNMOVED, names)
    measure = "model.to('cuda')\nfor _ in range(3):\n    step([each.to('cuda') for each in BATCH])"
    measure += "\nresult = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()"

    found = {
        engine: vramkit.estimate(
            names["model"], names["BATCH"], optimizer=names["optimizer"], step=names["step"], gpu="a100-80gb",
            engine=engine,
        )
        for engine in ("virtual", "fake")
    }  # fmt: skip

    assert peaks(found["virtual"]) == tuple(run_on("a100-80gb", UNMOVED + measure))
    assert found["fake"].peak_allocated == pytest.approx(found["virtual"].peak_allocated, rel=0.02)
    for estimate in found.values():
        assert [note for note in estimate.notes if "given the batch on the GPU" in note and "type" in note]


def fails_at_once_on_the_gpu(batch: torch.Tensor) -> None:
    batch.numpy()
    NET(batch.to("cuda"))
    raise KeyError("on purpose")


def fails_at_once_on_the_cpu(batch: torch.Tensor) -> None:
    NET(batch)
    raise KeyError("on purpose")


def fails_at_one_place(batch: torch.Tensor) -> None:
    NET(batch[:, :3])


@pytest.mark.parametrize("engine", ["virtual", "fake"])
@pytest.mark.parametrize(
    ("step", "told"),
    [
        (fails_at_once_on_the_gpu, "on purpose"),
        (fails_at_once_on_the_cpu, "on purpose"),
        (fails_at_one_place, "shapes cannot be multiplied|same reduction dim"),
    ],
)
def test_of_two_failures_the_more_telling_one_is_told(
    engine: Any, step: Callable[[torch.Tensor], None], told: str
) -> None:
    with pytest.raises(vramkit.UsageError, match=told):
        vramkit.estimate(NET, BATCH, step=step, gpu="a100-80gb", engine=engine)


def test_a_module_that_uses_cuda_when_it_is_imported_does_so_in_every_run(tmp_path: Path) -> None:
    (tmp_path / "an_early_module.py").write_text(
        "import torch\nkept = torch.zeros(1 << 20, device='cuda')\nclass Net(torch.nn.Linear):\n    pass\n"
    )
    code = f"""
    import sys, torch, vramkit
    sys.path.insert(0, {str(tmp_path)!r})
    from an_early_module import Net
    estimate = vramkit.estimate(Net(512, 512), torch.zeros(64, 512), gpu="t4")
    usual = vramkit.estimate(torch.nn.Linear(512, 512), torch.zeros(64, 512), gpu="t4")
    result = estimate.peak_allocated - usual.peak_allocated, estimate.at(64).peak_allocated - estimate.peak_allocated
    """

    assert run_on("t4", code) == [4 << 20, 0]


def test_nothing_of_the_users_changes() -> None:
    arguments = gpt_arguments()
    model = arguments["model"]
    optimizer = torch.optim.AdamW(model.parameters())
    held = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    allocated, folder, path = torch.cuda.memory_allocated(), os.getcwd(), [*sys.path]
    environment, random = {**os.environ}, torch.get_rng_state()

    vramkit.estimate(**{**arguments, "optimizer": optimizer}, gpu="2 GiB", alloc_conf="max_split_size_mb:64")

    assert all(
        value.data_ptr() == held[name][0] and torch.equal(value, held[name][1])
        for name, value in model.state_dict().items()
    )
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not optimizer.state
    assert torch.equal(torch.get_rng_state(), random)
    assert (torch.cuda.memory_allocated(), os.getcwd(), sys.path) == (allocated, folder, path)
    assert os.environ == environment


# -- what can go wrong -------------------------------------------------------------------------------------------------


def fail(batch: torch.Tensor) -> None:
    raise KeyError(f"on purpose, with {type(NET).__name__}")


def draw_on_the_cpu(batch: torch.Tensor) -> None:
    torch.rand(NET.layer.in_features, device="cuda", generator=torch.Generator())


def mention_a_closure(output: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    raise ValueError("a closure in a loss")


def raise_out_of_memory(batch: torch.Tensor) -> None:
    NET(batch.to("cuda"))
    raise torch.OutOfMemoryError


def exit_early(batch: torch.Tensor) -> None:
    NET(batch.to("cuda"))
    sys.exit(3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch": torch.zeros(3, 7)}, ["step 1 of 3", "shapes cannot be multiplied", "model(f32[3,7])"]),
        ({"batch": (BATCH, BATCH)}, ["TypeError", "model(f32[64,512], f32[64,512])", "loss=..."]),
        ({"step": fail}, ["step 1 of 3", "KeyError: 'on purpose, with Net'"]),
        ({"step": draw_on_the_cpu}, ["device type for generator", "torch.Generator('cuda')"]),
        ({"loss": mention_a_closure}, ["compute the loss in step 1 of 3", "loss(output, batch)"]),
        ({"step": raise_out_of_memory}, ["an out-of-memory error", "something in the program raised that itself"]),
        ({"step": exit_early}, ["SystemExit: 3"]),
        ({"step": lambda batch: NET and OTHER(batch.to("cuda"))}, ["Part of it is not on the GPU", "Pass every model"]),
        ({"batch": {"x": BATCH, "mask": BATCH[:3]}}, ["3, 64", "['mask']: 3x512", "vramkit.fixed(tensor)"]),
        ({"batch": BATCH[:0]}, ["0"]),
        ({"batch": torch.zeros(()), "batch_size": 3}, ["no tensor with a dimension 0", "a callable size -> batch"]),
        ({"gpu": "t44"}, ["'t44'", "nearest are 't4'"]),
        ({"gpu": "5 TiB"}, ["No virtual card is larger than 4.00 TiB"]),
        ({"batch": DataLoader(BATCH)}, ["the batch is DataLoader", "next(iter(loader))"]),
        ({"loss": "mse"}, ["the loss is 'mse'", "Pass a function"]),
        ({"loss": nn.MSELoss}, ["MSELoss, a class"]),
        ({"loss": nn.MSELoss(), "batch": (BATCH, BATCH)}, ["compute the loss in step 1 of 3", "loss(output, batch)"]),
        ({"loss": lambda output, batch: output.expand(3)}, ["the shape (3,)", "one number"]),
        ({"loss": lambda output, batch: 0.5}, ["the loss is float", "Let the loss return one"]),
        ({"loss": lambda output, batch: (output, 1)}, ["the loss is tuple"]),
        ({"loss": lambda output, batch: output.detach()}, ["begin the backward", "not detach it"]),
        ({"model": Net().requires_grad_(False)}, ["nothing that requires a gradient", "torch.no_grad()"]),
        ({"optimizer": lambda parameters: None}, ["the optimizer's factory returned NoneType", "torch.optim.AdamW"]),
        ({"optimizer": lambda: None}, ["make the optimizer", "called with the parameters"]),
        ({"autocast": True}, ["autocast=True", "torch.bfloat16"]),
        ({"autocast": torch.float64}, ["autocast=torch.float64"]),
        ({"optimizer": lambda p: torch.optim.LBFGS(p)}, ["closure", "Pass step=..."]),
        ({"steps": 0}, ["steps=0"]),
        ({"steps": True}, ["steps=True"]),
        ({"batch_size": 0}, ["batch_size=0"]),
        ({"alloc_conf": "fast:True"}, ["'fast'"]),
        ({"engine": "magic"}, ["'magic'"]),
        ({"model": Net}, ["Net, a class"]),
        ({"model": [Net(), Net()]}, ["2 models and no step"]),
        ({"optimizer": "adam"}, ["str 'adam'", "optimizer=torch.optim.AdamW"]),
        ({"step": fail, "optimizer": torch.optim.Adam}, ["a step", "the very optimizer"]),
        ({"step": fail, "loss": class_loss}, ["loss"]),
        ({"step": 3}, ["the step is 3"]),
        ({"loss": threading.Lock().acquire}, ["Its loss can't be sent", "TypeError"]),
    ],
)
def test_what_cannot_work_is_explained(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(vramkit.UsageError) as raised:
        vramkit.estimate(**{"model": NET, "batch": BATCH, "gpu": "t4", **arguments})

    text = str(raised.value)
    assert [word for word in words if word.lower() not in text.lower()] == [], text


def test_the_cause_of_a_failed_step_is_its_own_traceback() -> None:
    with pytest.raises(vramkit.UsageError) as raised:
        vramkit.estimate(NET, BATCH, step=fail, gpu="t4")

    text = str(raised.value.__cause__)
    assert 'raise KeyError(f"on purpose' in text
    assert text.count('  File "') == 1


def test_a_process_that_dies_is_an_error_with_its_last_words() -> None:
    def die(batch: torch.Tensor) -> None:
        sys.stderr.write(f"last words of {type(NET).__name__}\n")
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(vramkit.DeviceError, match=r"(?s)signal 9.*last words"):
        vramkit.estimate(NET, BATCH, step=die, gpu="t4")


@pytest.fixture
def line(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A named pipe, and its end that is read: at the end of it, nobody is there any more who could write."""
    os.mkfifo(tmp_path / "line")
    source = os.open(tmp_path / "line", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(source, True)
    yield str(tmp_path / "line"), source
    os.close(source)


def fork_and_stay(path: str) -> None:
    """Leave a process behind that stays for a minute, and says then that it did."""
    sink = os.open(path, os.O_WRONLY)
    if os.fork() == 0:
        os.write(sink, b"1")
        select.select([], [], [], 60)
        os.write(sink, b"stayed")
        os._exit(0)
    os.close(sink)


def read_to_end(source: int) -> bytes:
    return b"".join(iter(lambda: os.read(source, 100), b""))


def test_what_a_step_leaves_running_is_not_waited_for_and_ends_with_it(line: tuple[str, int]) -> None:
    path, source = line
    net = Net()

    def step(batch: torch.Tensor) -> None:
        fork_and_stay(path)
        net(batch.to("cuda")).backward()

    left = vramkit.estimate(net, BATCH, step=step, gpu="t4", steps=1)

    assert b"stayed" not in read_to_end(source)
    assert peaks(left) == peaks(vramkit.estimate(net, BATCH, gpu="t4", steps=1))


def test_a_fork_that_runs_the_rest_of_the_step_gives_no_answer() -> None:
    net = Net()

    def step(batch: torch.Tensor) -> None:
        if (child := os.fork()) == 0:
            raise RuntimeError
        os.waitpid(child, 0)
        net(batch.to("cuda")).backward()

    found = vramkit.estimate(net, BATCH, step=step, gpu="t4", steps=1)

    assert found.fits("l4")
    assert peaks(found) == peaks(vramkit.estimate(net, BATCH, gpu="t4", steps=1))


def test_an_interrupted_run_leaves_no_process(line: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    path, source = line

    def step(batch: torch.Tensor) -> None:
        fork_and_stay(path)
        select.select([], [], [NET.training][1:], 60)

    def interrupted(connection: object, seconds: float) -> bool:
        poll = select.poll()  # without a writer, a read would end at once
        poll.register(source, select.POLLIN)
        poll.poll()
        assert os.read(source, 1) == b"1"  # the step has begun
        raise KeyboardInterrupt

    monkeypatch.setattr(session.Connection, "poll", interrupted)

    with pytest.raises(KeyboardInterrupt):
        vramkit.estimate(NET, BATCH, step=step, gpu="t4")
    assert read_to_end(source) == b""


def test_a_run_that_takes_long_is_spoken_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "PATIENCE", 0)

    with pytest.warns(UserWarning, match="a loop that waits for a value on the device does not end"):
        vramkit.estimate(Net(), BATCH, gpu="t4")


def test_a_helper_that_has_gone_is_replaced() -> None:
    estimate = vramkit.estimate(Net(), BATCH, gpu="t4")
    assert session._current is not None
    os.kill(session._current._process.pid, signal.SIGKILL)

    again = vramkit.estimate(Net(), BATCH, gpu="t4")

    assert peaks(again) == peaks(estimate) == peaks(estimate.at(64))


def test_without_a_virtual_gpu_the_error_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = vramkit.DeviceError("The virtual GPU was asked for", "no compiler")
    monkeypatch.setattr(session, "build", lambda torch: (_ for _ in ()).throw(missing))

    with pytest.raises(vramkit.DeviceError, match="No compiler"):
        vramkit.estimate(Net(), BATCH, gpu="t4", engine="virtual")
    assert vramkit.estimate(Net(), BATCH, gpu="t4").engine == "fake"


def test_no_process_outlives_the_one_that_asked() -> None:
    code = """
    import os, torch, vramkit
    from vramkit.engines.virtual import session
    estimate = vramkit.estimate(torch.nn.Linear(4, 4), torch.zeros(4, 4), gpu="t4")
    if os.fork() == 0:
        estimate.at(8)
        os._exit(0)
    assert os.wait()[1] == 0
    result = session._current._process.pid
    """

    process = run_on("t4", code)

    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)

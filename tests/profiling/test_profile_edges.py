"""Programs that do unusual things inside a profile; each was once done wrongly."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from leftovers import left_behind
from torch import nn
from torch.utils.checkpoint import checkpoint
from workloads import workspace_size

import vramkit
from vramkit.profiling.contents import tensors_given
from vramkit.results.profile import Profile
from vramkit.tape.events import Category, Phase

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.virtual_gpu)]


def profiled(run: Callable[[], object], *named: object, device: str = "cpu") -> Profile:
    with vramkit.profile(*named, device=device) as prof:  # type: ignore[arg-type]
        run()
    return prof.result


def labels(profile: Profile) -> list[tuple[int, Category, Phase, str]]:
    """Of each allocation inside the block: requested bytes, what it was for, the phase and the module of its birth."""
    modules = profile.tape.modules
    return [
        (
            int(row["requested"]),
            Category(int(row["category"])),
            Phase(int(row["phase"])),
            modules[row["module"]].name if row["module"] >= 0 else "",
        )
        for row in profile.tape.allocations
        if row["born"] >= 0
    ]


@pytest.mark.parametrize("device", DEVICES)
def test_a_checkpointed_loss_is_computed_as_often_as_without(device: str) -> None:
    calls = 0

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return F.cross_entropy(x, y)

    model = nn.Linear(8, 4).to(device)

    def step() -> None:
        x, y = torch.zeros(2, 8, device=device), torch.zeros(2, dtype=torch.long, device=device)
        checkpoint(loss, model(x), y, use_reentrant=False).backward()

    step()
    plain, calls = calls, 0
    profiled(step, model, device=device)

    assert calls == plain


@pytest.mark.virtual_gpu
def test_what_an_earlier_profile_left_in_other_threads_confuses_no_later_one() -> None:
    first, second = nn.Linear(64, 64).to("cuda:0"), nn.Linear(64, 64).to("cuda:1")

    def steps(count: int) -> None:
        for _ in range(count):
            first.zero_grad(), second.zero_grad()
            second(first(torch.zeros(8, 64, device="cuda:0")).to("cuda:1")).sum().backward()

    one = profiled(lambda: steps(30), [first, second], device="cuda")
    again = profiled(lambda: steps(3), [first, second], device="cuda")

    assert len(one.steps) > len(again.steps)
    for device in ("cuda:0", "cuda:1"):
        phases = [(each.step, each.phase) for each in again.on(device).phases if each.phase is Phase.BACKWARD]
        assert phases == [(step, Phase.BACKWARD) for step in range(3)]


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_that_dies_inside_the_block_leaves_a_result(device: str) -> None:
    def run() -> None:
        nn.Linear(8, 8).to(device)(torch.zeros(2, 8, device=device)).sum().backward()

    profile = profiled(run, device=device)

    held = [8 * 8 * 4, 8 * 4]
    assert [label[0] for label in labels(profile) if label[1] is Category.PARAMETER] == held
    assert sorted(label[0] for label in labels(profile) if label[1] is Category.GRADIENT) == sorted(held)
    final = profile.final
    assert final.parameters == final.gradients == final.activations == final.inputs == 0
    assert [module.name for module in profile.tape.modules] == ["Linear"]


@pytest.mark.parametrize("named", [True, False])
def test_lazy_modules_become_known_when_they_have_a_shape(named: bool) -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2))

    profile = profiled(lambda: model(torch.zeros(3, 5)).sum().backward(), *([model] if named else []))

    assert profile.final.parameters == sum(p.nbytes for p in model.parameters())
    assert profile.final.gradients == profile.final.parameters


def test_a_model_that_shows_other_parameters_than_it_has_is_measured() -> None:
    class Trainable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def parameters(self, recurse: bool = True):  # type: ignore[no-untyped-def]
            return self.b.parameters()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    profile = profiled(lambda: Trainable()(torch.zeros(2, 4)))

    assert profile.peak.parameters == 2 * (16 + 4) * 4


def test_odd_arguments_of_a_forward_are_left_alone() -> None:
    circular: list[object] = [torch.zeros(2)]
    circular.append(circular)

    class Touchy(dict[str, torch.Tensor]):
        def values(self):  # type: ignore[no-untyped-def]
            raise KeyError("not now")

    class Takes(nn.Module):
        def forward(self, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            return x * 2

    model = Takes()

    profile = profiled(lambda: model(torch.zeros(3), circular, batch=Touchy(a=torch.zeros(5))))

    assert [label[0] for label in labels(profile) if label[1] is Category.INPUT] == [12, 20, 8]
    assert labels(profile)[-1] == (12, Category.ACTIVATION, Phase.EVALUATION, "Takes"), "nothing in it has gradients"


def test_what_an_object_brings_that_is_a_batch_is_input() -> None:
    class Store:
        def __init__(self) -> None:
            self.mapping = {"x": torch.zeros(8, 4), "edges": torch.zeros(2, 9, dtype=torch.int64)}

    class Graph:
        __slots__ = ("mask", "store")

        def __init__(self) -> None:
            self.store, self.mask = Store(), torch.zeros(8, dtype=torch.bool)

        @property
        def x(self) -> torch.Tensor:
            return self.store.mapping["x"]

    class Layer(nn.Linear):
        def forward(self, graph: Graph) -> torch.Tensor:
            return super().forward(graph.x)

    model = Layer(4, 2)

    profile = profiled(lambda: model(Graph()).sum().backward(), model)

    assert [label[0] for label in labels(profile) if label[1] is Category.INPUT] == [128, 144, 8]


def test_an_object_that_is_no_batch_brings_nothing() -> None:
    class Trainer:
        def __init__(self, *holds: object) -> None:
            self.holds, self.history = holds, torch.zeros(64)

    batch, small = torch.zeros(8, 4), Trainer()

    for trainer in (Trainer(nn.Linear(2, 2)), Trainer(*[object() for _ in range(200)])):
        assert list(map(id, tensors_given(((batch, trainer), {})))) == [id(batch)]
    assert list(map(id, tensors_given(((batch,), {"trainer": [small]})))) == [id(batch), id(small.history)]


def test_an_exception_of_the_program_is_the_one_that_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("vramkit's own")

    monkeypatch.setattr("vramkit.profiling.profiler.tape_of", broken)

    def run() -> None:
        raise KeyError("the program's")

    with pytest.raises(KeyError, match="the program's") as caught:
        profiled(run)
    with pytest.raises(ZeroDivisionError):
        profiled(lambda: None)

    assert any("could not settle" in note for note in caught.value.__notes__)


@pytest.mark.virtual_gpu
def test_other_threads_may_run_models_while_the_block_ends() -> None:
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(20)]).cuda()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            model(torch.zeros(2, 8, device="cuda"))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        profiles = [profiled(lambda: model(torch.zeros(2, 8, device="cuda")), model, device="cuda") for _ in range(20)]
    finally:
        stop.set()
        thread.join()

    assert all((each.timeline.slack >= 0).all() for each in profiles)
    assert {each.final.parameters for each in profiles} == {20 * (8 * 8 + 8) * 4}
    assert {each.peak.gradients for each in profiles} == {0}


def test_modules_that_are_made_anew_in_each_step_stay_one() -> None:
    model = nn.Linear(4, 4)

    def steps() -> None:
        for _ in range(50):
            nn.MSELoss()(nn.ReLU()(model(torch.zeros(2, 4))), torch.zeros(2, 4)).backward()

    profile = profiled(steps, model)

    assert [module.kind for module in profile.tape.modules] == ["Linear", "ReLU", "MSELoss"]
    assert [module.calls for module in profile.tape.modules] == [50, 50, 50]


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_that_raises_ends_all_the_same(device: str) -> None:
    model = nn.Linear(8, 8).to(device)

    class Raises(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            raise RuntimeError("no step")

    optimizer = Raises(model.parameters())

    def run() -> None:
        for _ in range(3):
            x = torch.zeros(16, 8, device=device)
            model(x).sum().backward()
            with pytest.raises(RuntimeError, match="no step"):
                optimizer.step()
            del x

    profile = profiled(run, model, optimizer, device=device)

    inputs = profile.tape.allocations[profile.tape.allocations["requested"] == 16 * 8 * 4]
    assert (inputs["category"] == Category.INPUT).sum() == 3
    assert {Phase(int(code)) for code in inputs["phase"][inputs["category"] == Category.INPUT]} == {Phase.OUTSIDE}


@pytest.mark.virtual_gpu
def test_an_unused_device_gets_no_context() -> None:
    code = (
        "import vramkit.virtual_gpu; vramkit.virtual_gpu.activate('t4', count=3)\n"
        "import torch, vramkit\n"
        "with vramkit.profile(device='cuda') as prof: torch.zeros(1, device='cuda:0')\n"
        "print([torch._C._cuda_hasPrimaryContext(i) for i in range(3)])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[True, False, False]"


def test_a_model_can_be_traced_inside_and_the_result_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and still done
        profile = profiled(lambda: torch.jit.trace(model, torch.zeros(2, 4))(torch.zeros(2, 4)), model)
    profile.save(tmp_path / "traced.npz")
    loaded = vramkit.load(tmp_path / "traced.npz")

    made = 2 * 4 * 4
    runs = [label for label in labels(profile) if label[2] is not Phase.OUTSIDE and label[3]]
    assert runs == [
        # torch.jit.trace runs the model once more by itself, to compare; then what it made is run.
        (made, Category.TEMPORARY, Phase.EVALUATION, "Sequential.0"),
        (made, Category.ACTIVATION, Phase.EVALUATION, "Sequential.1"),
        (made, Category.TEMPORARY, Phase.FORWARD, "TopLevelTracedModule"),
        (made, Category.ACTIVATION, Phase.FORWARD, "TopLevelTracedModule"),
    ]
    assert profile.final.parameters == profile.final.requested == (4 * 4 + 4) * 4
    assert isinstance(loaded, Profile)
    assert labels(loaded) == labels(profile)
    assert loaded.final == profile.final


def test_a_graph_that_outlives_the_block_carries_no_hook() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    kept: list[torch.Tensor] = []

    def run() -> None:
        kept.append(model(torch.zeros(2, 4)).sum())
        model(torch.zeros(2, 4)).sum().backward(retain_graph=True)

    with vramkit.profile(model) as prof:
        run()
        recording = weakref.ref(prof._source)  # type: ignore[arg-type] # inside the block there is one
    del prof
    gc.collect()

    assert recording() is None  # no hook of the graph's holds it
    kept[0].backward()


def test_dynamo_keeps_nothing_of_a_profile() -> None:
    code = (
        "import torch, vramkit\n"
        "with vramkit.profile(device='cpu'):\n"
        "    import torch._dynamo.utils\n"
        "assert torch._dynamo.utils.unpatched_nn_module_call is torch.nn.Module.__call__\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).returncode == 0


@pytest.mark.virtual_gpu
def test_workspaces_of_other_threads_and_cleared_ones_are_workspaces() -> None:
    torch._C._cuda_clearCublasWorkspaces()
    x = torch.zeros(8, 8, device="cuda")

    def multiply() -> None:
        x @ x

    def run() -> None:
        multiply()
        thread = threading.Thread(target=multiply)
        thread.start()
        thread.join()
        torch._C._cuda_clearCublasWorkspaces()

    profile = profiled(run, device="cuda")

    assert int(profile.timeline.of(Category.WORKSPACE).max()) == 2 * workspace_size()


@pytest.mark.virtual_gpu
def test_a_history_that_is_switched_off_inside_is_said() -> None:
    model = nn.Linear(8, 8).cuda()

    def run() -> None:
        model(torch.zeros(2, 8, device="cuda"))
        torch.cuda.memory._record_memory_history(None)
        model(torch.zeros(2, 8, device="cuda"))

    profile = profiled(run, model, device="cuda")

    assert any("_record_memory_history(None)" in note for note in profile.notes)
    assert profile.final.allocated == torch.cuda.memory_allocated()


def test_accumulating_backwards_are_one_step_where_no_optimizer_steps() -> None:
    model = nn.Linear(4, 4)

    def run() -> None:
        for _ in range(2):
            model.zero_grad()
            for _ in range(3):
                model(torch.zeros(2, 4)).sum().backward()

    assert {each.step for each in profiled(run, model).steps} == {0, 1}


def test_models_trained_one_after_another_have_steps_of_their_own() -> None:
    def run() -> None:
        for _ in range(2):
            model = nn.Linear(4, 4)
            optimizer = torch.optim.SGD(model.parameters())
            for _ in range(5):
                model(torch.zeros(2, 4)).sum().backward()
                optimizer.step()

    assert {each.step for each in profiled(run).steps} == set(range(10))


def test_a_copy_of_the_model_is_no_input() -> None:
    model = nn.Linear(32, 32)
    copies: list[nn.Module] = []

    def run() -> None:
        copies.append(copy.deepcopy(model))
        for _ in range(3):
            model.zero_grad()
            model(torch.zeros(2, 32)).sum().backward()

    profile = profiled(run, model)

    outside = [label[:2] for label in labels(profile) if label[2] is Phase.OUTSIDE]
    copied = [(32 * 32 * 4, Category.MODEL_COPY), (32 * 4, Category.MODEL_COPY)]
    assert outside == copied + [(2 * 32 * 4, Category.INPUT)] * 3


@pytest.mark.parametrize("device", DEVICES)
def test_sparse_gradients_are_gradients(device: str) -> None:
    model = nn.Embedding(100, 64, sparse=True).to(device)
    index = torch.zeros(8, dtype=torch.long, device=device)

    profile = profiled(lambda: model(index).sum().backward(), model, device=device)

    gradient = model.weight.grad
    assert profile.final.gradients == gradient._values().nbytes + gradient._indices().untyped_storage().nbytes()


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_whose_tensors_torch_swaps_can_be_moved_inside(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it swaps weights of torchao's kinds: it refuses where anybody holds one weakly."""
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)).to(device)

    with vramkit.profile(model, device=device) as prof:
        model.double()

    assert prof.result.final.parameters == sum(each.nbytes for each in model.parameters()) == 8 * (64 * 64 + 3 * 64)


def test_a_device_that_is_not_there_is_refused() -> None:
    message = "Name one of those" if torch.cuda.is_available() else "no CUDA device"
    with pytest.raises(vramkit.DeviceError, match=message), vramkit.profile(device="cuda:7"):
        pass


@pytest.mark.virtual_gpu
def test_a_device_that_is_named_is_the_results() -> None:
    def run() -> None:
        torch.zeros(10_000, device="cuda:0").sum()
        torch.zeros(10, device="cuda:1").sum()

    with vramkit.profile(device="cuda:1") as prof:
        run()

    assert prof.result.devices == ("cuda:1", "cuda:0")


@pytest.mark.virtual_gpu
def test_running_out_of_memory_is_explained_where_it_is_the_cause_too() -> None:
    def run() -> None:
        try:
            torch.zeros(1 << 45, device="cuda")
        except torch.OutOfMemoryError as error:
            raise RuntimeError("the framework's own") from error

    with pytest.raises(RuntimeError, match="the framework's own") as caught:
        profiled(run, device="cuda")

    (note,) = caught.value.__notes__
    assert vramkit.sizes.format_size(1 << 47) in note  # of floats
    assert left_behind() == []


def test_an_empty_tape_has_no_batches() -> None:
    assert len(profiled(lambda: None).tape.events) == 0
    assert np.array_equal(profiled(lambda: None).timeline.allocated, [0])


@pytest.mark.virtual_gpu
def test_a_profile_makes_nothing_on_the_device_that_is_the_default() -> None:
    torch.set_default_device("cuda")
    try:
        profile = profiled(lambda: None, device="cuda")
    finally:
        torch.set_default_device(None)  # "cpu" would leave a mode in force

    assert len(profile.tape.events) == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True:UserWarning")  # LBFGS of torch 2.8
def test_a_closure_that_recomputes_a_checkpoint_is_inside_its_optimizers_step(device: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU()).to(device)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    x = torch.ones(4, 6, device=device, requires_grad=True)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = checkpoint(model, x, use_reentrant=False).sum()
        loss.backward()
        return loss

    def run() -> None:
        closure()
        optimizer.step(closure)

    profile = profiled(run, model, optimizer, device=device)

    outside = [label for label in labels(profile) if label[2] is Phase.OUTSIDE]
    assert [label[0] for label in outside if label[0]] in (
        [],
        [x.nbytes],
    )  # which the CPU tells of when it sees it first
    assert {label[2] for label in labels(profile) if label not in outside} == {
        Phase.FORWARD, Phase.BACKWARD, Phase.RECOMPUTE, Phase.OPTIMIZER
    }  # fmt: skip
    assert profile.final.optimizer_state > 0


@pytest.mark.parametrize("device", DEVICES)
def test_an_optimizers_step_in_which_the_block_begins_is_no_step_of_it(device: str) -> None:
    model = nn.Linear(8, 8).to(device)
    measuring = vramkit.profile(device=device)

    class Begins(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            measuring.__enter__()

    Begins(model.parameters()).step()
    model(torch.zeros(2, 8, device=device)).sum().backward()
    measuring.__exit__(None, None, None)

    assert {each.step for each in measuring.result.steps} == {0}
    assert {each.phase for each in measuring.result.phases} == {Phase.OUTSIDE, Phase.FORWARD, Phase.BACKWARD}


@pytest.mark.virtual_gpu
def test_logits_as_large_as_a_workspace_are_none() -> None:
    size = torch._C._cuda_getCublasWorkspaceSize()
    model = nn.Linear(4, size // 4 // 128, device="cuda")  # of 128 rows as many bytes

    def run() -> None:
        for _ in range(3):
            model(torch.zeros(128, 4, device="cuda")).sum().backward()
            model.zero_grad()

    profile = profiled(run, device="cuda")
    table = profile.tape.allocations
    alike = table["requested"] == size

    assert alike.sum() >= 3
    assert (alike & (table["category"] == Category.WORKSPACE)).sum() <= 2  # the program's thread and autograd's
    assert int(profile.timeline.of(Category.WORKSPACE).max()) <= 2 * size

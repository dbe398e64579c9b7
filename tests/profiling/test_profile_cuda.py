"""A measured profile held against torch's own figures, on the virtual GPU."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from subprocesses import run_on
from torch import nn
from workloads import GPT, WORKLOADS, LSTMClassifier, Workload, images, kept_workspaces, mlp, tokens

import vramkit
from vramkit.gpus import CUBLASLT_WORKSPACE
from vramkit.profiling import cuda as cuda_source
from vramkit.results.profile import Profile
from vramkit.tape.events import Action, Category, Phase
from vramkit.torch_internals.versions import BLAS_KEEPS_WORKSPACE

pytestmark = pytest.mark.virtual_gpu


@pytest.fixture(autouse=True)
def _fresh_device() -> Iterator[None]:
    yield
    gc.collect()
    for device in range(torch.cuda.device_count()):
        with torch.cuda.device(device):
            torch.cuda.empty_cache()


def storage_bytes(tensors: list[torch.Tensor]) -> int:
    """Bytes of the distinct storages behind CUDA tensors: what introspection of the objects gives."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.is_cuda}.values())


def state_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]


def events_so_far(device: int = 0) -> int:
    counts = torch.cuda.memory_stats(device)
    return counts["allocation.all.allocated"] + counts["allocation.all.freed"]


@contextmanager
def probes(model: nn.Module) -> Iterator[list[tuple[int, int]]]:
    """After how many allocations and frees ``memory_allocated()`` was how much, at every module's forward and more."""
    seen: list[tuple[int, int]] = []

    def probe(*_: object) -> None:
        seen.append((events_so_far(), torch.cuda.memory_allocated()))

    handles = [module.register_forward_hook(probe) for module in model.modules()]
    handles += [parameter.register_hook(probe) for parameter in model.parameters()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def measure(workload: Workload, steps: int = 2) -> Profile:
    with vramkit.profile(workload.model, workload.optimizer) as prof:
        for _ in range(steps):
            workload.step()
    return prof.result


def check_sums(profile: Profile) -> None:
    """Every allocation has one category, so that parts and slack sum to what was allocated at every event."""
    timeline = profile.timeline
    assert (timeline.by_category.sum(axis=1) + timeline.slack == timeline.allocated).all()
    assert (timeline.slack >= 0).all()
    assert (timeline.by_category >= 0).all()
    assert (timeline.reserved >= timeline.allocated).all()


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_event_is_explained_and_every_figure_is_torchs_own(name: str) -> None:
    workload = WORKLOADS[name]()
    torch.cuda.reset_peak_memory_stats()
    before = events_so_far()

    with probes(workload.model) as seen:
        profile = measure(workload)
        workload.optimizer.zero_grad(set_to_none=False)

    check_sums(profile)
    assert profile.notes == ()
    assert profile.peak_allocated == torch.cuda.max_memory_allocated()
    assert profile.peak_reserved == torch.cuda.max_memory_reserved()
    assert profile.final.allocated == torch.cuda.memory_allocated()
    assert profile.final.reserved == torch.cuda.memory_reserved()
    counted = np.isin(profile.tape.events["action"], (Action.ALLOC, Action.FREE))
    after = np.flatnonzero(counted)[[count - before - 1 for count, _ in seen if count > before]]
    assert len(after) > len(list(workload.model.modules()))
    assert profile.tape.allocated[after].tolist() == [size for count, size in seen if count > before]
    parameters = list(workload.model.parameters())
    assert profile.final.parameters == storage_bytes(parameters)
    assert profile.final.buffers == storage_bytes(list(workload.model.buffers()))
    assert profile.final.gradients == storage_bytes([p.grad for p in parameters if p.grad is not None])
    assert profile.final.optimizer_state == storage_bytes(state_tensors(workload.optimizer))
    assert profile.peak.used == profile.peak.reserved + profile.outside
    free, total = torch.cuda.mem_get_info()
    assert profile.final.used == total - free


def test_inputs_are_what_the_batch_brought_targets_included() -> None:
    workload = mlp(count=256)
    x, y = workload.batch()

    profile = measure(workload)

    assert int(profile.timeline.of(Category.INPUT).max()) == x.nbytes + y.nbytes


def test_targets_that_come_after_the_forward_are_inputs_too() -> None:
    model = nn.Linear(16, 4).cuda()
    with vramkit.profile(model) as prof:
        output = model(torch.zeros(8, 16, device="cuda"))
        F.cross_entropy(output, torch.zeros(8, dtype=torch.long).cuda()).backward()

    assert int(prof.result.timeline.of(Category.INPUT).max()) == 8 * 16 * 4 + 8 * 8


@pytest.mark.skipif(not BLAS_KEEPS_WORKSPACE, reason="this torch takes one for each product")
def test_workspaces_are_one_for_each_thread_that_multiplied() -> None:
    torch._C._cuda_clearCublasWorkspaces()  # those of earlier tests' threads and streams

    profile = measure(mlp())

    assert profile.final.workspace == kept_workspaces()


def test_steps_and_phases_follow_each_other() -> None:
    profile = measure(mlp(), steps=3)

    seen = [(each.step, each.phase) for each in profile.phases]
    wanted = [Phase.OUTSIDE, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER]
    assert seen == [(step, phase) for step in range(3) for phase in wanted]


def test_the_users_own_steps_hold_where_there_are_some() -> None:
    workload = mlp()
    with vramkit.profile(workload.model, workload.optimizer) as prof:
        workload.step()
        workload.step()
        prof.step()
        workload.step()

    assert {each.step for each in prof.result.steps} == {0, 1}


def test_activations_of_a_module_are_what_its_forward_left_alive() -> None:
    workload = mlp(count=64)

    profile = measure(workload, steps=1)

    root = profile.by_module[0]
    relu = next(usage for usage in root.walk() if usage.kind == "ReLU")
    last = list(root.walk())[-1]
    assert relu.activations == 64 * 128 * 4
    assert (last.kind, last.activations, last.output_shape) == ("Linear", 64 * 10 * 4, (64, 10))
    assert root.calls == 1
    assert root.parameters == 101_770 * 4


def test_modules_that_run_several_times_count_every_run() -> None:
    shared = nn.Linear(64, 64).cuda()
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), shared)
    with vramkit.profile(model) as prof:
        model(torch.zeros(32, 64, device="cuda")).sum().backward()

    linear = next(usage for usage in prof.result.by_module[0].walk() if usage.kind == "Linear")
    assert linear.calls == 3
    assert linear.parameters == (64 * 64 + 64) * 4
    assert prof.result.peak.parameters == linear.parameters


@pytest.fixture
def followed_as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only some forwards of each kind are followed; on a virtual GPU all are."""
    monkeypatch.setattr(cuda_source, "current", lambda: None)


@pytest.mark.usefixtures("followed_as_on_a_card")
def test_the_backward_is_followed_module_by_module() -> None:
    model = GPT(layers=2, width=64, heads=2, vocabulary=100, length=32).cuda()
    with vramkit.profile(model) as prof:
        for _ in range(8):  # the last ones are not followed, and get the modules of those that were
            model.zero_grad()
            F.cross_entropy(model(torch.zeros(2, 32, dtype=torch.long, device="cuda")).flatten(0, 1),
                            torch.zeros(64, dtype=torch.long, device="cuda")).backward()  # fmt: skip

    profile = prof.result
    table, modules = profile.tape.allocations, profile.tape.modules
    gradients = table[(table["category"] == Category.GRADIENT)]
    owners = {profile.tape.names[row["name"]]: modules[row["module"]].name for row in gradients}
    norms = {name: owner for name, owner in owners.items() if "norm" in name or "up" in name or "qkv" in name}
    assert norms == {name: name.rsplit(".", 1)[0] for name in norms}
    assert len(norms) == 2 * 2 * 4 + 2
    events = profile.tape.events
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        chosen = (events["phase"] == phase) & (events["action"] <= Action.FREE_COMPLETED)
        steps = [events[chosen & (events["step"] == step)]["module"] for step in range(1, 8)]
        assert len(set(steps[0].tolist())) > 10
        assert all((step == steps[0]).all() for step in steps)


@pytest.mark.usefixtures("followed_as_on_a_card")
def test_a_forward_that_was_not_followed_and_ended_by_an_exception_has_its_modules() -> None:
    class Full(nn.Module):
        is_full = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.is_full:
                raise torch.OutOfMemoryError
            return x

    layers = [nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), Full(), nn.Linear(32, 32)]
    model = nn.Sequential(*layers).cuda()
    with vramkit.profile(model) as prof:
        for _ in range(6):
            model.zero_grad()
            model(torch.zeros(8, 32, device="cuda")).sum().backward()
        Full.is_full = True
        with contextlib.suppress(torch.OutOfMemoryError):
            model(torch.zeros(8, 32, device="cuda"))

    events = prof.result.tape.events
    begins = np.flatnonzero(events["phase"] == Phase.BACKWARD)[-1] + 1
    made = (events["action"] == Action.ALLOC) & (events["phase"] == Phase.FORWARD) & (events["module"] >= 0)
    made &= events["size"] != CUBLASLT_WORKSPACE  # which torch 2.8 takes for each product
    ended = events[begins:][made[begins:]]
    # The second forward, because in the first one cuBLAS takes its workspace.
    wanted = events[made & (events["step"] == 1)]["module"].tolist()
    assert len(wanted) == len(set(wanted)) == 4
    assert ended["module"].tolist() == wanted[:3]


def test_optimizer_transients_are_temporary_and_only_what_stays_is_state() -> None:
    workload = mlp()
    profile = measure(workload, steps=3)

    assert int(profile.timeline.of(Category.OPTIMIZER_STATE).max()) == storage_bytes(state_tensors(workload.optimizer))
    table = profile.tape.allocations
    inside = table[table["phase"] == Phase.OPTIMIZER]
    assert (inside["category"] == Category.TEMPORARY).any()
    assert set(inside["category"]) == {Category.TEMPORARY, Category.OPTIMIZER_STATE}


@pytest.mark.parametrize("how", ["reentrant", "non-reentrant"])
def test_a_checkpoints_second_forward_is_recomputation(how: str) -> None:
    model = GPT(layers=2, width=64, heads=2, vocabulary=100, length=32, checkpointed=how)

    profile = measure(Workload(model, tokens(2, 32)))

    check_sums(profile)
    table, modules = profile.tape.allocations, profile.tape.modules
    recomputed = table[table["phase"] == Phase.RECOMPUTE]
    assert {modules[index].name for index in recomputed["module"]} >= {"GPT.blocks.0.up", "GPT.blocks.1.up"}
    assert (recomputed["category"] == Category.ACTIVATION).any()
    block = next(usage for usage in profile.by_module[0].walk() if usage.name == "GPT.blocks.0")
    assert [each.phase for each in block.phases] == [Phase.FORWARD, Phase.BACKWARD, Phase.RECOMPUTE]
    assert max(each.peak for each in block.phases) == block.peak <= profile.peak_allocated
    assert max(each.temporaries for each in block.phases) <= block.temporaries


def test_several_models_and_optimizers_each_keep_their_own() -> None:
    maker = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32)).cuda()
    judge = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1)).cuda()
    make = torch.optim.Adam(maker.parameters())
    judged = torch.optim.SGD(judge.parameters(), momentum=0.9)

    def train() -> None:
        real, fake = torch.zeros(8, 32, device="cuda"), maker(torch.zeros(8, 16, device="cuda"))
        judged.zero_grad()
        (judge(real).mean() - judge(fake.detach()).mean()).backward()
        judged.step()
        make.zero_grad()
        judge(fake).mean().backward()
        make.step()

    with vramkit.profile({"generator": maker, "discriminator": judge}, [make, judged]) as prof:
        for _ in range(3):
            train()

    profile = prof.result
    check_sums(profile)
    assert [root.name for root in profile.by_module] == ["generator", "discriminator"]
    assert profile.final.parameters == storage_bytes([*maker.parameters(), *judge.parameters()])
    assert profile.final.optimizer_state == storage_bytes(state_tensors(make) + state_tensors(judged))
    assert max(each.step for each in profile.steps) == 2
    # The fake batch that the discriminator sees is the generator's output, not an input.
    assert int(profile.timeline.of(Category.INPUT).max()) == 8 * 32 * 4 + 8 * 16 * 4


def test_frozen_parameters_have_no_gradient() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    model[0].requires_grad_(False)

    profile = measure(Workload(model, lambda: (torch.zeros(4, 64), torch.zeros(4, dtype=torch.long))))

    assert profile.final.parameters == storage_bytes(list(model.parameters()))
    assert profile.final.gradients == storage_bytes(list(model[2].parameters()))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_that_accumulate_or_are_zeroed_in_place_keep_their_label(set_to_none: bool) -> None:
    model = nn.Linear(64, 64).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with vramkit.profile(model, optimizer) as prof:
        for _ in range(2):
            optimizer.zero_grad(set_to_none=set_to_none)
            for _ in range(3):
                model(torch.zeros(8, 64, device="cuda")).sum().backward()
            optimizer.step()

    profile = prof.result
    check_sums(profile)
    table = profile.tape.allocations
    assert int(profile.timeline.of(Category.GRADIENT).max()) == storage_bytes(list(model.parameters()))
    assert (table["category"] == Category.GRADIENT).sum() == 2 * (2 if set_to_none else 1)


def test_gradients_that_a_hook_uses_up_at_once_are_still_gradients() -> None:
    model = nn.Linear(64, 64, bias=False).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step_now(_parameter: torch.Tensor) -> None:
        optimizer.step()
        optimizer.zero_grad()

    model.weight.register_post_accumulate_grad_hook(step_now)
    with vramkit.profile(model, optimizer) as prof:
        model(torch.zeros(8, 64, device="cuda")).sum().backward()

    assert int(prof.result.timeline.of(Category.GRADIENT).max()) == 64 * 64 * 4


def test_autocast_with_a_scaler() -> None:
    workload = mlp()
    scaler = torch.amp.GradScaler("cuda")
    with vramkit.profile(workload.model, workload.optimizer) as prof:
        for _ in range(2):
            x, y = (tensor.cuda() for tensor in workload.batch())
            workload.optimizer.zero_grad()
            with torch.autocast("cuda", torch.float16):
                loss = F.cross_entropy(workload.model(x), y)
            scaler.scale(loss).backward()
            scaler.step(workload.optimizer)
            scaler.update()

    check_sums(prof.result)
    assert prof.result.final.optimizer_state == storage_bytes(state_tensors(workload.optimizer))


def test_inference_has_forwards_and_no_gradients() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).cuda()
    with vramkit.profile(model) as prof, torch.inference_mode():
        for _ in range(2):
            model(torch.zeros(8, 64, device="cuda"))

    profile = prof.result
    check_sums(profile)
    assert {each.phase for each in profile.phases} <= {Phase.OUTSIDE, Phase.EVALUATION}
    assert int(profile.timeline.of(Category.GRADIENT).max()) == 0
    assert max(each.step for each in profile.steps) == 1


def test_what_runs_is_found_where_nothing_was_named() -> None:
    with vramkit.profile() as prof:
        workload = Workload(LSTMClassifier(), lambda: (torch.zeros(4, 100, 128), torch.zeros(4, dtype=torch.long)))
        workload.step()
        workload.step()

    profile = prof.result
    check_sums(profile)
    assert [root.name for root in profile.by_module] == ["LSTMClassifier"]
    assert profile.final.parameters == storage_bytes(list(workload.model.parameters()))
    assert profile.final.optimizer_state == storage_bytes(state_tensors(workload.optimizer))


def test_a_model_that_the_program_drops_dies_as_it_would_have() -> None:
    with vramkit.profile() as prof:
        model = nn.Linear(256, 256).cuda()
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.zeros(8, 256, device="cuda")).sum().backward()
        optimizer.step()
        del model, optimizer
        gc.collect()
        held = torch.cuda.memory_allocated()

    assert prof.result.final.parameters == prof.result.final.gradients == prof.result.final.optimizer_state == 0
    assert held == prof.result.final.allocated


def test_models_spread_over_two_devices_have_a_profile_for_each() -> None:
    first, second = nn.Linear(64, 256).to("cuda:0"), nn.Linear(256, 8).to("cuda:1")
    optimizer = torch.optim.Adam([*first.parameters(), *second.parameters()])
    with vramkit.profile([first, second], optimizer) as prof:
        for _ in range(2):
            optimizer.zero_grad()
            second(first(torch.zeros(16, 64, device="cuda:0")).to("cuda:1")).sum().backward()
            optimizer.step()

    for device, model in ((0, first), (1, second)):
        profile = prof.result.on(f"cuda:{device}")
        check_sums(profile)
        assert profile.final.allocated == torch.cuda.memory_allocated(device)
        assert profile.final.parameters == storage_bytes(list(model.parameters()))
        assert profile.final.gradients == storage_bytes([p.grad for p in model.parameters()])
        states = [v for p in model.parameters() for v in optimizer.state[p].values()]
        assert profile.final.optimizer_state == storage_bytes(states)
    assert set(prof.result.devices) == {"cuda:0", "cuda:1"}


def test_several_streams_and_expandable_blocks_are_explained() -> None:
    side = torch.cuda.Stream()
    model = nn.Linear(512, 512).cuda()
    with vramkit.profile(model) as prof:
        for _ in range(3):
            x = torch.zeros(1024, 512, device="cuda")
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                y = model(x)
                x.record_stream(side)
            del x
            y.sum().backward()

    check_sums(prof.result)
    assert prof.result.notes == ()
    assert len(set(prof.result.tape.events["stream"])) == 2
    assert prof.result.final.allocated == torch.cuda.memory_allocated()


def test_dropped_events_are_said_and_the_rest_stays_exact() -> None:
    workload = mlp()
    torch.cuda.reset_peak_memory_stats()
    with vramkit.profile(workload.model, workload.optimizer, max_events=300) as prof:
        for _ in range(50):
            workload.step()

    profile = prof.result
    check_sums(profile)
    assert len(profile.tape.events) <= 300
    assert "not kept" in profile.notes[0]
    assert profile.final.allocated == torch.cuda.memory_allocated()
    assert profile.final.parameters == storage_bytes(list(workload.model.parameters()))
    assert profile.final.optimizer_state == storage_bytes(state_tensors(workload.optimizer))
    assert profile.peak_allocated == torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("when", ["as it begins", "as it ends", "always"])
def test_what_is_freed_between_a_snapshot_and_a_count_is_not_lost(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Garbage:
        """A cycle that holds memory, as modules that know their parent do."""

        def __init__(self) -> None:
            self.me = self
            self.tensor = torch.zeros(1000, device="cuda")

    snapshot = cuda_source.allocator.snapshot
    kept = [Garbage() for _ in range(20)]
    held = [torch.cuda.memory_allocated()]
    read = 0

    def collected() -> dict[str, object]:
        nonlocal read
        taken = snapshot()
        held.append(torch.cuda.memory_allocated())
        read += 1
        if when == "always" or read == {"as it begins": 1, "as it ends": 3}[when]:
            kept.pop()
            gc.collect()
        return taken

    monkeypatch.setattr(cuda_source.allocator, "snapshot", collected)
    with vramkit.profile(device="cuda") as prof:
        inside = [torch.zeros(3000, device="cuda") for _ in range(5)]
        del inside
        read = 2

    profile = prof.result
    check_sums(profile)
    assert profile.notes == ()
    assert profile.final.allocated == held[-1]
    assert len(kept) == 20 - {"as it begins": 1, "as it ends": 1, "always": 6}[when]


def test_a_history_that_was_on_goes_on_as_it_was() -> None:
    torch.cuda.memory._record_memory_history(context=None, max_entries=10_000)
    try:
        before = torch.zeros(1000, device="cuda")
        profile = measure(mlp())
        after = torch.zeros(2000, device="cuda")
        trace = torch.cuda.memory._snapshot()["device_traces"][0]
        still_on = torch._C._cuda_isHistoryEnabled()
    finally:
        torch.cuda.memory._record_memory_history(None)

    check_sums(profile)
    assert still_on
    assert profile.notes == ()
    sizes = [entry["size"] for entry in trace if entry["action"] == "alloc"]
    assert (sizes[0], sizes[-1]) == (before.nbytes, after.nbytes)
    assert len(profile.tape.events) < len(trace)


def test_without_metadata_the_figures_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Workload:
        torch.manual_seed(0)
        model = GPT(layers=2, width=64, heads=2, vocabulary=100, length=32, checkpointed="non-reentrant")
        return Workload(model, tokens(2, 32))

    measure(make())  # so that neither of the two is the one that allocates the workspaces
    torch.cuda.empty_cache()
    with_metadata = measure(make(), steps=8)
    torch.cuda.empty_cache()
    monkeypatch.setattr(cuda_source.allocator, "HAS_METADATA", False)
    used = []
    monkeypatch.setattr(cuda_source, "_stamps", used.append)
    without = measure(make(), steps=8)
    monkeypatch.undo()

    assert not used
    for column in ("action", "phase", "module", "step", "size", "allocation"):
        assert (with_metadata.tape.events[column] == without.tape.events[column]).all(), column
    for column in ("category", "module", "phase", "requested", "block", "born", "died"):
        assert (with_metadata.tape.allocations[column] == without.tape.allocations[column]).all(), column
    assert with_metadata.peak == without.peak
    assert with_metadata.by_module == without.by_module


@pytest.mark.parametrize("name", ["mlp", "lstm", "resnet18"])
def test_profiling_leaves_the_allocators_events_as_they_were(name: str) -> None:
    def history(run: Callable[[Workload], object]) -> list[tuple[str, int]]:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.memory._record_memory_history(context=None)
        try:
            workload = WORKLOADS[name]()
            run(workload)
            trace = torch.cuda.memory._snapshot()["device_traces"][0]
        finally:
            torch.cuda.memory._record_memory_history(None)
        events = [entry for entry in trace if entry["action"] != "snapshot"]
        start = min(entry["addr"] for entry in events)
        return [(entry["action"], entry["size"], entry["addr"] - start, entry["stream"]) for entry in events]

    def plain(workload: Workload) -> None:
        for _ in range(3):
            workload.step()

    plain(WORKLOADS[name]())  # cuBLAS's workspaces and cuDNN's plans are there before both
    assert history(lambda workload: measure(workload, 3)) == history(plain)


def test_an_exception_leaves_the_result_and_passes_on() -> None:
    model = nn.Linear(64, 64).cuda()
    prof = vramkit.profile(model)

    def fails() -> None:
        with prof:
            model(torch.zeros(8, 64, device="cuda"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()

    check_sums(prof.result)
    assert prof.result.peak.parameters == storage_bytes(list(model.parameters()))


def test_running_out_of_memory_is_explained_and_leaves_the_process_usable(gpu: vramkit.virtual_gpu.VirtualGPU) -> None:
    workload = Workload(nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(8)], nn.Flatten()), images(16, 64))
    workload.step()
    gc.collect()
    free, total = torch.cuda.mem_get_info()
    big = Workload(workload.model, images(256, 256))
    prof = vramkit.profile(big.model, big.optimizer)
    gpu.set_memory(total - free + 512 * 1024**2)
    try:
        with pytest.raises(torch.OutOfMemoryError) as caught, prof:
            big.step()
    finally:
        gpu.set_memory(None)

    (failure,) = {each.requested: each for each in prof.result.out_of_memory}.values()
    assert failure.requested > 0
    assert failure.phase in (Phase.FORWARD, Phase.BACKWARD)
    assert failure.module.startswith("Sequential")
    assert failure.breakdown.activations > 0
    check_sums(prof.result)
    (note,) = [note for note in caught.value.__notes__ if "Sequential" in note]
    assert vramkit.sizes.format_size(failure.requested) in note
    del caught
    gc.collect()
    assert workload.step().shape == ()


_WORKER = """
import torch, vramkit

class Images(torch.utils.data.Dataset):
    normalize = torch.nn.Identity()  # as the transforms of torchvision are modules
    def __len__(self): return 2
    def __getitem__(self, index): return self.normalize(torch.ones(4))

model = torch.nn.Linear(4, 1).cuda()
with vramkit.profile() as prof:
    batches = list(torch.utils.data.DataLoader(Images(), num_workers=1, multiprocessing_context="fork"))
    for batch in batches:
        model(batch.cuda()).sum().backward()
result = [len(batches), prof.result.final.gradients]
"""


def test_modules_run_in_a_forked_worker_of_a_loader() -> None:
    assert run_on("t4", _WORKER) == [2, (4 + 1) * 4]


@pytest.mark.parametrize("has_metadata", [True, False])
def test_running_out_of_memory_inside_a_forward_is_told_as_inside_it(
    has_metadata: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_metadata:
        monkeypatch.setattr(cuda_source.allocator, "HAS_METADATA", False)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).cuda()
    model[1].register_forward_pre_hook(lambda module, arguments: torch.empty(1 << 45, dtype=torch.uint8, device="cuda"))

    with vramkit.profile(model) as prof, contextlib.suppress(torch.OutOfMemoryError):
        model(torch.zeros(4, 8, device="cuda"))

    [failure] = prof.result.out_of_memory
    assert (failure.phase, failure.module) == (Phase.FORWARD, "Sequential.1")


def test_of_tensors_as_large_as_a_kept_workspace_the_first_that_lives_on_is_the_workspace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As torch 2.9 to 2.11 keep 1 MiB for cuBLASLt; here a layer plays the library."""
    size = 1 << 20
    sizes = cuda_source.allocator.workspace_sizes()
    monkeypatch.setattr(cuda_source.allocator, "workspace_sizes", lambda: sizes | {size})
    kept: list[torch.Tensor] = []

    class Layer(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.empty(size, dtype=torch.uint8, device="cuda")  # gone at once
            if not kept:
                kept.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            return x.expand(size // 4).exp()  # kept for the backward, which never comes

    model = nn.Sequential(Layer())
    x = torch.zeros(1, device="cuda", requires_grad=True)
    with vramkit.profile(model, device="cuda") as prof:
        for _ in range(2):
            output = model(x)
            prof.step()

    table = prof.result.tape.allocations
    of_size = table[table["requested"] == size]
    assert of_size["category"].tolist().count(Category.WORKSPACE) == 1
    assert of_size["category"].tolist()[1] == Category.WORKSPACE
    assert output.nbytes == size

"""What tensors are: those inside wrappers, copies of models, data sets and outputs that a program keeps.

Each figure is compared with what the live objects say of themselves.
"""

from __future__ import annotations

import copy
import io
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vramkit
from vramkit.profiling.frames import locals_of
from vramkit.reports.modules import module_rows
from vramkit.reports.moment import moment_of
from vramkit.results.profile import Profile
from vramkit.tape.events import Category

N = 128
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.virtual_gpu)]


def nbytes(tensors: Iterable[torch.Tensor | None]) -> int:
    """Bytes of the storages of tensors, each once."""
    storages = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors if each is not None
    }
    return sum(storages.values())


def states(optimizer: torch.optim.Optimizer, device: str) -> list[torch.Tensor]:
    found = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in found if isinstance(value, torch.Tensor) and value.device.type == device]


def network(device: str) -> nn.Sequential:
    return nn.Sequential(nn.Linear(N, N), nn.ReLU(), nn.Linear(N, N)).to(device)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(batch).pow(2).mean().backward()
    optimizer.step()


def named(profile: Profile, category: Category) -> set[str]:
    table = profile.tape.allocations
    rows = table[table["category"] == category]
    return {profile.tape.names[row["name"]] if row["name"] >= 0 else "" for row in rows}


def unexplained(profile: Profile) -> int:
    """Bytes of what was made inside the block, and is of no category but the last resort."""
    table = profile.tape.allocations
    return int(table["requested"][(table["category"] == Category.OTHER) & (table["born"] >= 0)].sum())


# -- wrappers ----------------------------------------------------------------------------------------------------------


@pytest.mark.virtual_gpu
def test_the_shards_of_a_distributed_model_are_parameters_gradients_and_states() -> None:
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = network("cuda")
        fully_shard(model)
        optimizer = torch.optim.AdamW(model.parameters())
        with vramkit.profile() as prof:
            for _ in range(3):
                train(model, optimizer, torch.zeros(4, N, device="cuda"))
    finally:
        dist.destroy_process_group()

    local: Callable[[Any], Any] = lambda tensor: tensor.to_local() if hasattr(tensor, "to_local") else tensor  # noqa: E731
    final = prof.result.final
    assert final.parameters == nbytes(local(parameter) for parameter in model.parameters())
    assert final.gradients == nbytes(local(parameter.grad) for parameter in model.parameters())
    assert final.optimizer_state == nbytes(map(local, states(optimizer, "cuda")))
    assert not unexplained(prof.result)


class Scales:
    __slots__ = ("factor", "second")

    def __init__(self, size: int, device: str, second: Scales | None = None) -> None:
        self.factor, self.second = torch.ones(size, device=device), second


@pytest.mark.parametrize("device", DEVICES)
def test_tensors_that_a_parameter_has_as_attributes_are_its_modules_parameters(device: str) -> None:
    model = network(device)
    scales = Scales(1000, device, second=Scales(100, device))
    model[0].weight.quant_state = scales  # type: ignore[attr-defined]
    model[2].mask = torch.ones(300, device=device)  # type: ignore[assignment] # a plain attribute

    with vramkit.profile(device=device) as prof:
        model(torch.zeros(4, N, device=device) * model[0].weight.quant_state.factor[0]).sum().backward()  # type: ignore[union-attr]

    profile, own = prof.result, 4 * (1000 + 100)
    assert profile.final.parameters == nbytes(model.parameters()) + own
    assert profile.final.buffers == 4 * 300
    [row] = [row for row in module_rows(profile, moment_of(profile)) if row.name == "Sequential.0"]
    assert row.parameters == nbytes(model[0].parameters()) + own


# -- copies ------------------------------------------------------------------------------------------------------------


class Shadow:
    def __init__(self, model: nn.Module) -> None:
        self.weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}


def loaded(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save({"epoch": 1, "model": model.state_dict()}, file)
    file.seek(0)
    return torch.load(file, map_location=next(model.parameters()).device)


COPIES: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Any], Iterable[torch.Tensor]]]] = {
    "model": (copy.deepcopy, lambda copied: copied.parameters()),
    "averaged": (torch.optim.swa_utils.AveragedModel, lambda copied: copied.parameters()),
    "state": (lambda model: {k: v.clone() for k, v in model.state_dict().items()}, lambda copied: copied.values()),
    "list": (lambda model: [p.detach().clone() for p in model.parameters()], lambda copied: copied),
    "shadow": (Shadow, lambda copied: copied.weights.values()),
    "checkpoint": (loaded, lambda copied: copied["model"].values()),
}


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_of_a_model_is_told_from_the_model_and_named_after_its_variable(kind: str) -> None:
    make, tensors_of = COPIES[kind]
    model = network("cuda")
    optimizer = torch.optim.AdamW(model.parameters())

    with vramkit.profile() as prof:
        kept = make(model)
        for _ in range(3):
            train(model, optimizer, torch.zeros(4, N, device="cuda"))

    final = prof.result.final
    assert final.model_copies == nbytes(tensors_of(kept))
    assert final.parameters == nbytes(model.parameters())
    assert final.optimizer_state == nbytes(states(optimizer, "cuda"))
    assert not unexplained(prof.result)
    assert all(name.startswith("kept") for name in named(prof.result, Category.MODEL_COPY))


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(N, N), nn.Linear(N, 3 * N)

    def encode(self, batch: torch.Tensor) -> torch.Tensor:
        return self.encoder(batch)


@pytest.mark.virtual_gpu
def test_models_that_only_a_function_held_are_told_after_it_has_returned() -> None:
    """Of none of them ``forward`` runs; and the function calls ``eval()``, which is no way to its own variables."""

    def main() -> tuple[int, int]:
        model, vae, unused = network("cuda"), Autoencoder().to("cuda"), nn.Linear(N, 5 * N, device="cuda")
        average = copy.deepcopy(model)
        average.eval()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            with torch.no_grad():
                latent = vae.encode(torch.zeros(4, N, device="cuda"))
            train(model, optimizer, latent)
        optimizer.zero_grad()
        return nbytes(average.parameters()), nbytes((*model.parameters(), *vae.parameters(), *unused.parameters()))

    with vramkit.profile() as prof:
        copies, parameters = main()

    at_most = prof.result.peak
    assert (at_most.model_copies, at_most.parameters) == (copies, parameters)
    assert {"Autoencoder.decoder.weight", "unused.weight"} <= named(prof.result, Category.PARAMETER)
    assert not unexplained(prof.result)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("first", ["copy", "model"])
def test_a_model_that_runs_and_is_never_trained_is_a_copy_of_one_like_it_that_is(device: str, first: str) -> None:
    model = network(device)
    teacher, other = copy.deepcopy(model), nn.Linear(N, N).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    with vramkit.profile(device=device) as prof:
        for _ in range(3):
            batch = torch.zeros(4, N, device=device)
            with torch.no_grad():
                target = teacher(batch) if first == "copy" else other(batch)
            optimizer.zero_grad()
            F.mse_loss(model(batch), target).backward()
            optimizer.step()
            with torch.no_grad():
                (other if first == "copy" else teacher)(batch)

    assert prof.result.final.model_copies == nbytes(teacher.parameters())
    assert prof.result.final.parameters == nbytes((*model.parameters(), *other.parameters()))


def test_a_copy_that_a_variable_held_before_it_ran_is_named_by_its_modules() -> None:
    with vramkit.profile(device="cpu") as prof:
        model = network("cpu")
        teacher = copy.deepcopy(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(3):
            train(model, optimizer, torch.zeros(4, N))
            if step:
                with torch.no_grad():
                    teacher(torch.zeros(4, N))

    names = {f"Sequential#2.{name}" for name, _ in teacher.named_parameters()}
    assert named(prof.result, Category.MODEL_COPY) == names


@pytest.mark.virtual_gpu
def test_copies_that_are_made_anew_in_each_step_are_so_in_the_steps_that_are_not_looked_at_too() -> None:
    model = network("cuda")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    with vramkit.profile() as prof:
        for _ in range(6):
            train(model, optimizer, torch.zeros(4, N, device="cuda"))
            kept = {name: weight.clone() for name, weight in model.state_dict().items()}

    table = prof.result.tape.allocations
    size = kept["0.weight"].nbytes
    cloned = table[(table["requested"] == size) & (table["phase"] == 0) & (table["born"] >= 0)]
    assert len(cloned) == 2 * 6
    assert set(cloned["category"]) == {Category.MODEL_COPY}


# -- data sets ---------------------------------------------------------------------------------------------------------


def slices(data: torch.Tensor, step: int) -> torch.Tensor:
    return data[step * 8 : step * 8 + 8]


def picked(data: torch.Tensor, step: int) -> torch.Tensor:
    return data[torch.arange(step, step + 8, device=data.device)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cut", [slices, picked])
def test_what_batches_are_cut_from_is_a_data_set(cut: Callable[[torch.Tensor, int], torch.Tensor], device: str) -> None:
    model, data = network(device), torch.zeros(64, N, device=device)
    labels = torch.zeros(64, dtype=torch.long, device=device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    with vramkit.profile(device=device) as prof:
        for step in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(cut(data, step)), cut(labels, step)).backward()
            optimizer.step()

    assert prof.result.peak.datasets == nbytes([data, labels])
    assert named(prof.result, Category.DATASET) == {"data", "labels"}


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("steps", [1, 3])
def test_parts_of_a_batch_that_a_step_uses_up_are_inputs(steps: int) -> None:
    model, batch = network("cuda"), torch.zeros(64, N, device="cuda")

    with vramkit.profile(model) as prof:
        for _ in range(steps):
            model.zero_grad()
            for part in batch.chunk(4):
                model(part).sum().backward()
            prof.step()

    assert prof.result.final.inputs == batch.nbytes
    assert prof.result.final.datasets == 0


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("wrap", [tuple, lambda pair: {"inputs": pair[0], "more": pair[1]}], ids=["tuple", "dict"])
def test_batches_that_all_lie_there_are_a_data_set(wrap: Callable[[list[torch.Tensor]], Any]) -> None:
    model, alone = network("cuda"), [torch.zeros(8, N, device="cuda") for _ in range(6)]
    pairs = [wrap([torch.zeros(4, N, device="cuda") for _ in range(2)]) for _ in range(4)]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    with vramkit.profile() as prof:
        for batch in alone:
            train(model, optimizer, batch)
        for pair in pairs:
            for batch in pair.values() if isinstance(pair, dict) else pair:
                model(batch).sum().backward()
            optimizer.step()

    assert prof.result.final.datasets == nbytes(alone) + 8 * nbytes([batch])


@pytest.mark.parametrize("device", DEVICES)
def test_batches_that_are_kept_after_use_and_what_they_are_joined_to_are_no_data_set(device: str) -> None:
    model, kept = network(device), list[torch.Tensor]()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    with vramkit.profile(device=device) as prof:
        for _ in range(6):
            kept.append(torch.zeros(8, N).to(device, copy=True))
            train(model, optimizer, kept[-1])
        joined = torch.cat(kept)

    assert prof.result.final.datasets == 0
    assert prof.result.final.inputs + prof.result.final.other >= nbytes([*kept, joined])


@pytest.mark.parametrize("device", DEVICES)
def test_samples_that_are_mapped_are_a_batch_and_their_gradients_are_gradients(device: str) -> None:
    model = network(device)

    def loss(parameters: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.func.functional_call(model, parameters, (sample[None],))
        return output.pow(2).mean()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    with vramkit.profile(model, device=device) as prof:
        for _ in range(3):
            samples = torch.zeros(16, N).to(device, copy=True)
            gradients = each(parameters, samples)

    assert prof.result.final.inputs == nbytes([samples])
    assert prof.result.final.gradients == nbytes(gradients.values()) == 16 * prof.result.final.parameters


@pytest.mark.parametrize("device", DEVICES)
def test_a_list_that_is_made_anew_in_each_step_is_no_data_set(device: str) -> None:
    model = network(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    with vramkit.profile(device=device) as prof:
        for _ in range(5):
            batch = [torch.zeros(8, N).to(device, copy=True), torch.zeros(8, N).to(device, copy=True)]
            for part in batch:
                model(part).pow(2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            del part

    assert named(prof.result, Category.DATASET) == set()
    assert prof.result.final.inputs == nbytes(batch)


# -- outputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_what_lies_in_a_list_is_told_by_the_list_and_not_by_the_variable_that_had_it(device: str) -> None:
    model, kept = network(device), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    with vramkit.profile(model, optimizer, device=device) as measured:
        for _ in range(4):
            images = torch.zeros(64, 1000, device=device)
            kept.append(images)
            train(model, optimizer, torch.zeros(8, N, device=device))

    table, names = measured.result.tape.allocations, measured.result.tape.names
    rows = table[table["requested"] == images.nbytes]
    assert {names[row["name"]] for row in rows} == {f"kept[{place}]" for place in range(len(kept))}


@pytest.mark.virtual_gpu
def test_what_a_hook_keeps_of_every_step_are_outputs_of_the_module_that_made_them() -> None:
    model = network("cuda")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    features: list[torch.Tensor] = []
    model[0].register_forward_hook(lambda _module, _args, output: features.append(output))

    with vramkit.profile() as prof:
        for _ in range(5):
            train(model, optimizer, torch.zeros(4, N, device="cuda"))

    profile = prof.result
    assert profile.final.outputs == nbytes(features)
    assert {name.rpartition("[")[0] for name in named(profile, Category.OUTPUT)} == {"features"}
    table = profile.tape.allocations
    makers = {profile.tape.modules[row["module"]].name for row in table[table["category"] == Category.OUTPUT]}
    assert makers == {"Sequential.0"}


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("grows", [False, True])
def test_predictions_that_are_collected_and_joined_are_outputs(grows: bool) -> None:
    model = nn.Linear(N, 3 * N).cuda()
    kept: list[torch.Tensor] = []

    with vramkit.profile() as prof, torch.no_grad():
        for _ in range(6):
            prediction = model(torch.zeros(256, N, device="cuda"))
            kept = [torch.cat([*kept, prediction])] if grows else [*kept, prediction]
        joined = kept[0] if grows else torch.cat(kept)

    assert prof.result.final.outputs == nbytes([joined, *kept])
    assert not unexplained(prof.result)


@pytest.mark.virtual_gpu
def test_an_output_that_its_step_uses_stays_an_activation() -> None:
    model = network("cuda")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    with vramkit.profile() as prof:
        for _ in range(5):
            output = model(torch.zeros(4, N, device="cuda"))
            optimizer.zero_grad()
            output.sum().backward()
            optimizer.step()

    assert prof.result.timeline.of(Category.OUTPUT).max() == 0
    assert prof.result.final.activations == output.nbytes


# -- programs without modules ------------------------------------------------------------------------------------------


@pytest.mark.virtual_gpu
def test_weights_in_no_module_and_their_gradients_are_found() -> None:
    weights = [torch.zeros(N, N, device="cuda", requires_grad=True) for _ in range(3)]

    with vramkit.profile() as prof:
        for _ in range(3):
            out = torch.zeros(4, N, device="cuda")
            for weight in weights:
                out = torch.relu(out @ weight)
                weight.grad = None
            out.sum().backward()

    assert prof.result.final.parameters == nbytes(weights)
    assert prof.result.final.gradients == nbytes(weight.grad for weight in weights)
    assert prof.result.timeline.of(Category.ACTIVATION).max() > 0
    assert unexplained(prof.result) <= 3 * (out.nbytes + 2 * out.element_size())  # what the last line of a step leaves


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_that_a_program_asks_for_are_gradients(device: str) -> None:
    model = network(device)

    with vramkit.profile(device=device) as prof:
        loss = model(torch.zeros(4, N, device=device)).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))

    assert prof.result.final.gradients == nbytes(gradients)
    assert "Sequential.0.weight" in named(prof.result, Category.GRADIENT)


# -- names -------------------------------------------------------------------------------------------------------------


class Detector(nn.Module):
    """Runs its layers before anybody calls it, as ultralytics' models do to learn their strides."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(N, N), nn.Sequential(nn.Linear(N, N)))
        self.predict(torch.zeros(1, N))

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.predict(x)


@pytest.mark.parametrize("device", DEVICES)
def test_layers_that_ran_before_their_model_did_get_its_names(device: str) -> None:
    with vramkit.profile(device=device) as prof:
        model = Detector().to(device)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(3):
            train(model, optimizer, torch.zeros(4, N, device=device))

    profile = prof.result
    [root] = profile.by_module
    assert [each.name for each in root.walk()] == [
        "Detector",
        "Detector.layers",
        "Detector.layers.0",
        "Detector.layers.1",
        "Detector.layers.1.0",
    ]
    assert [each.calls for each in root.walk()] == [3, 0, 4, 4, 4]
    assert named(profile, Category.PARAMETER) == {f"Detector.{name}" for name, _ in model.named_parameters()}
    assert all(" of Detector.layers." in name for name in named(profile, Category.OPTIMIZER_STATE))
    assert {each.name for each in root.walk() if each.activations} >= {"Detector.layers.0"}


@pytest.mark.virtual_gpu
def test_a_compiled_model_has_the_names_of_the_model() -> None:
    model = network("cuda")
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    with vramkit.profile() as prof:
        for _ in range(3):
            train(compiled, optimizer, torch.zeros(4, N, device="cuda"))

    [root] = prof.result.by_module
    assert [each.name for each in root.walk()] == ["Sequential", "Sequential.0", "Sequential.1", "Sequential.2"]
    assert root.calls == 3
    assert named(prof.result, Category.PARAMETER) == {f"Sequential.{name}" for name, _ in model.named_parameters()}


class Task(nn.Module):
    """Has a model in DataParallel, in which a layer is called as DataParallel calls what it wraps."""

    def __init__(self) -> None:
        super().__init__()
        layers = {"module": nn.Linear(N, N), "last": nn.Linear(N, N)}
        self.model = nn.DataParallel(nn.Sequential(OrderedDict(layers)), device_ids=[0])

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.model(batch)


@pytest.mark.virtual_gpu
def test_parameters_of_a_wrapped_model_inside_another_one_count_for_their_layers() -> None:
    model = Task().to("cuda")

    with vramkit.profile() as prof:
        train(model, torch.optim.SGD(model.parameters(), 0.1), torch.zeros(4, N, device="cuda"))

    layers = {"Task.model.module", "Task.model.last"}
    assert named(prof.result, Category.PARAMETER) == {
        f"{layer}.{part}" for layer in layers for part in ("weight", "bias")
    }
    [root] = prof.result.by_module
    own = {row.name: row.parameters for row in root.walk() if not row.children}
    assert own == dict.fromkeys(layers, nbytes(nn.Linear(N, N).parameters()))


# -- nothing is changed by looking -------------------------------------------------------------------------------------


@pytest.mark.virtual_gpu
def test_a_model_in_data_parallel_has_the_names_of_the_model() -> None:
    model = nn.DataParallel(network("cuda"), device_ids=[0])

    with vramkit.profile() as prof:
        train(model, torch.optim.SGD(model.parameters(), 0.1), torch.zeros(4, N, device="cuda"))

    assert [module.name for module in prof.result.tape.modules][:2] == ["Sequential", "Sequential.0"]
    assert named(prof.result, Category.PARAMETER) == {
        f"Sequential.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")
    }


@pytest.mark.virtual_gpu
def test_a_variable_that_was_looked_at_dies_when_the_program_drops_it() -> None:
    model = network("cuda")

    with vramkit.profile(model):
        extra = torch.zeros(1 << 20, device="cuda")
        gone = weakref.ref(extra)
        model(torch.zeros(4, N, device="cuda")).sum().backward()
        before = torch.cuda.memory_allocated()
        del extra
        after = torch.cuda.memory_allocated()

    assert gone() is None
    assert before - after == 4 << 20


def test_the_variables_of_a_function_that_may_hold_them_itself_are_left_alone() -> None:
    def holds() -> tuple[dict[str, Any], dict[str, Any]]:
        mine = locals()
        later = 1
        seen = locals_of(sys._getframe())
        return dict(mine), seen

    mine, seen = holds()

    assert mine == {}
    assert seen == {} or sys.version_info >= (3, 13)  # where what a frame answers keeps nothing


def test_a_function_that_asks_an_object_for_its_attributes_holds_no_variables() -> None:
    def asks(options: object) -> dict[str, Any]:
        given = eval("vars(options)")
        vars(options), dir(options)
        return {**given, **locals_of(sys._getframe())}

    def holds() -> dict[str, Any]:
        mine = vars()
        return {**mine, **locals_of(sys._getframe())}

    options = Touchable(rate=0.1)
    assert asks(options).keys() == {"rate", "given", "options"}
    assert holds() == {} or sys.version_info >= (3, 13)  # where what a frame answers keeps nothing


class Touchable:
    def __init__(self, **options: float) -> None:
        vars(self).update(options)


class Touchy:
    """Anything that is asked of it is a failure."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    @property
    def __class__(self) -> type:  # type: ignore[override]
        raise AssertionError("was asked what it is")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"was asked for {name}")

    def __iter__(self) -> Any:
        raise AssertionError("was iterated")

    def __len__(self) -> int:
        raise AssertionError("was counted")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("was compared")

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.virtual_gpu
def test_to_look_at_an_object_runs_none_of_its_code() -> None:
    model, touchy = network("cuda"), Touchy(torch.zeros(1000, device="cuda"))

    with vramkit.profile(model) as prof:
        model(torch.zeros(4, N, device="cuda")).sum().backward()

    assert "touchy.tensor" in named(prof.result, Category.OTHER)
    assert vars(touchy)["tensor"].nbytes == 4000

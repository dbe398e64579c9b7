"""While a program runs on fake tensors, the user's other threads see torch as it is."""

from __future__ import annotations

import copy
import inspect
import logging
import random
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import fake_impls, fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorConverter, FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import vramkit
from vramkit import gpus
from vramkit.allocator import CachingAllocator
from vramkit.engines.fake.isolation import apart, cuda_for_fakes
from vramkit.engines.fake.overlay import overlay, patches
from vramkit.engines.fake.recorder import Recorder
from vramkit.engines.fake.strangers import Strangers

A100 = gpus.find("a100-80gb")


def elsewhere(function: Callable[[], Any]) -> Any:
    """What a function gives in another thread."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


@contextmanager
def _around_a_program() -> Iterator[None]:
    recorder = Recorder(CachingAllocator(A100.memory), A100, detailed=True)
    with ExitStack() as stack:
        stack.enter_context(apart())
        stack.enter_context(cuda_for_fakes(recorder))
        Strangers(by_collector=True).guard(stack, frozenset())
        recorder.hooks.install(stack)
        yield


@pytest.fixture(params=["as it is here", "as without a device"])
def everything_replaced(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """All that is replaced around a program."""
    return _around_a_program if request.param == "as it is here" else lambda: overlay(A100)


Replacing = Callable[[], Any]


# -- every replacement -------------------------------------------------------------------------------------------------

_CLASSES: tuple[type, ...] = (
    torch.Tensor, FakeTensor, FakeTensorMode, FakeTensorConverter, nn.Module, nn.Parameter, torch.optim.Optimizer,
    torch.autograd.graph.saved_tensors_hooks, torch.autocast, torch.amp.GradScaler,
)  # fmt: skip


def _seen() -> dict[tuple[str, str], Any]:
    """Every attribute of torch's modules and of some classes, as who asks for it sees it."""
    owners: dict[str, Any] = {
        name: module
        for name, module in sys.modules.items()
        if name.partition(".")[0] == "torch" and isinstance(module, types.ModuleType)
    }
    owners |= {kind.__qualname__: kind for kind in _CLASSES}
    found = {}
    for owner_name, owner in owners.items():
        for name in list(vars(owner)):
            value = getattr(owner, name, None) if isinstance(owner, types.ModuleType) else vars(owner)[name]
            if type(value) is not int:  # which is a counter
                found[owner_name, name] = value
    for counter in ("cache_hits", "cache_misses", "__dict__", "__abstractmethods__"):
        for kind in _CLASSES:
            found.pop((kind.__qualname__, counter), None)
    return found


def _innermost(value: Any) -> Any:
    """What is behind everything that chooses between two functions."""
    return inspect.unwrap(value.fget if isinstance(value, property) else getattr(value, "__func__", value))


def test_whatever_is_replaced_is_torchs_own_for_other_threads(everything_replaced: Replacing) -> None:
    """Found by looking at all of torch, so that a replacement that is new can't be forgotten."""
    with everything_replaced():
        pass  # modules that are imported when they are first needed are there now
    before = _seen()

    with everything_replaced():
        here, there = _seen(), elsewhere(_seen)
    after = _seen()

    replaced = [key for key, value in here.items() if value is not before.get(key)]
    assert {("torch", "tensor"), ("Tensor", "new_tensor"), ("FakeTensor", "__deepcopy__")} & {*replaced}
    for key in replaced:
        if key[0] in sys.modules:  # of a module everybody gets the very object
            assert there[key] is before.get(key, getattr(sys.modules[key[0]], key[1])), key
        else:  # of a class, what chooses when it is called
            kind = next(kind for kind in _CLASSES if kind.__qualname__ == key[0])
            original = inspect.getattr_static(kind, key[1])
            theirs = _innermost(here[key])
            assert theirs is not here[key], key
            assert theirs in (_innermost(original), getattr(kind, key[1])) or theirs.__self__ is original, key
    assert [key for key, value in before.items() if after.get(key) is not value] == []


def test_the_two_sides_of_a_choice() -> None:
    module = types.ModuleType("module")
    theirs = {"function": len, "items": [1], "switch": False, "kind": str}
    ours = {"function": sum, "items": [1, 2], "switch": True, "kind": int}
    vars(module).update(theirs)

    class Kind:
        @property
        def place(self) -> str:
            return "theirs"

        def method(self) -> str:
            return "theirs"

    def seen() -> list[object]:
        return [*[getattr(module, name) for name in theirs], Kind().place, Kind().method()]

    with ExitStack() as stack:
        stack.enter_context(patches.running())
        for name, value in ours.items():
            patches.put(stack, module, name, value)
        patches.put(stack, Kind, "place", property(lambda self: "ours"))
        patches.put(stack, Kind, "method", lambda self: "ours")

        assert seen() == [*ours.values(), "ours", "ours"]
        assert elsewhere(seen) == [*theirs.values(), "theirs", "theirs"]
        # The module's own functions do not ask it, but look into its dictionary.
        assert eval("function([1, 2]), 2 in items, len(items)", vars(module)) == (3, True, 2)
        assert elsewhere(lambda: eval("function([1, 2]), 2 in items, len(items)", vars(module))) == (2, False, 1)
        module.function = min
        elsewhere(lambda: setattr(module, "items", [3]))
        assert (module.function, elsewhere(lambda: module.items)) == (min, [3])
    assert seen() == [len, [3], False, str, "theirs", "theirs"]
    assert type(module) is types.ModuleType


def test_fakes_of_another_thread_are_made_as_torch_makes_them(everything_replaced: Replacing) -> None:
    operators = [*fake_impls.op_implementations_dict]

    def fakes() -> list[object]:
        with FakeTensorMode() as mode:
            x = mode.from_tensor(torch.ones(2, 3, requires_grad=True))
            y = F.dropout(F.linear(x, torch.zeros(4, 3)).softmax(1), 0.5)
            y.sum().backward()
            return [str(each.device) for each in (x, y)] + [x.is_cuda, x.is_meta, x.get_device(), tuple(y.shape)]

    before = fakes()

    with everything_replaced():
        new = [each for each in fake_impls.op_implementations_dict if each not in operators]
        assert new
        assert all(
            elsewhere(lambda each=each: fake_impls.op_implementations_dict[each](None, each)) is NotImplemented
            for each in new
        )
        assert elsewhere(fakes) == before


def test_warnings_and_logs_of_other_threads_are_not_held_back(caplog: pytest.LogCaptureFixture) -> None:
    def warn() -> list[str]:
        with pytest.warns(UserWarning, match="seen") as caught:
            warnings.warn("seen", stacklevel=1)
        logging.getLogger(fake_tensor.__name__).warning("logged")
        return [str(each.message) for each in caught]

    with _around_a_program():
        warnings.warn("unseen", stacklevel=1)
        logging.getLogger(fake_tensor.__name__).warning("unlogged")
        assert elsewhere(warn) == ["seen"]

    assert caplog.messages == ["logged"]


# -- ordinary work -----------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A bit of everything that has a replacement."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.lstm, self.head = nn.LSTM(64, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.dropout(self.norm(self.convolution(images)).relu(), 0.3, self.training).flatten(2)
        x = checkpoint(lambda x: self.lstm(x)[0], x, use_reentrant=False)
        x = F.scaled_dot_product_attention(x, x, x)
        return self.head(x.mean(1))


_IS_EXACT = "AVX512" in torch.backends.cpu.get_cpu_capability()
"""Whether this processor adds bfloat16 up in the same order whatever other threads do."""


def ordinary_work() -> list[Any]:
    """Training on the CPU and more, as values that can be compared bit by bit."""
    torch.manual_seed(0)
    net = Net()
    data = TensorDataset(torch.randn(8, 3, 8, 8), torch.randint(0, 5, (8,)))
    found: list[Any] = [torch.cuda.is_available(), torch.cuda.is_initialized(), torch.cuda.device_count()]
    for foreach in (True, False):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, foreach=foreach)
        for images, labels in DataLoader(data, batch_size=4, shuffle=True):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=_IS_EXACT):
                loss = F.cross_entropy(net(images.to("cpu")), labels)
            loss.float().backward()
            optimizer.step()
            found.append(loss.item())
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    (slope,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
    slope.sum().backward()
    generator = torch.Generator().manual_seed(3)
    scaler = torch.amp.GradScaler("cpu")
    found += [
        x.grad, F.one_hot(torch.arange(3)), torch.rand(3, generator=generator), generator.device, x.is_cuda,
        torch.as_tensor(np.ones(2)), torch.asarray([1, 2]), x.new_tensor([3]), x.detach().numpy(), f"{x[0]:.2f}",
        torch.func.grad(lambda y: (y**2).sum())(x.detach()), scaler.scale(loss).item(), torch.get_rng_state(),
        copy.deepcopy(net).head.weight, torch.empty(2, device="meta").is_meta, x.get_device(), torch.initial_seed(),
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0),
    ]  # fmt: skip
    x[...].detach()[0] = 4
    return [each.tolist() if hasattr(each, "tolist") else each for each in (*found, x, *net.parameters())]


def test_ordinary_work_in_another_thread_comes_out_the_same(everything_replaced: Replacing) -> None:
    expected = ordinary_work()

    with everything_replaced():
        assert elsewhere(ordinary_work) == expected


def drawing_program() -> dict[str, Any]:
    """A step that draws numbers on the host, and seeds."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.1), nn.Linear(64, 8))
    optimizer = torch.optim.AdamW(model.parameters())

    def step(batch: torch.Tensor) -> None:
        torch.manual_seed(int(batch[0, 0]))
        noise = nn.Linear(64, 64)(torch.rand(8, 64))
        F.mse_loss(model((batch + noise.detach()).to("cuda")), torch.zeros(8, 8, device="cuda")).backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"model": model, "batch": torch.ones(8, 64), "optimizer": optimizer, "step": step}


def estimate(program: dict[str, Any]) -> vramkit.Estimate:
    return vramkit.estimate(**program, engine="fake", gpu="a100-80gb")


def test_a_thread_that_trains_meanwhile_gets_what_it_gets_alone_and_so_does_the_estimate() -> None:
    expected, program = ordinary_work(), drawing_program()
    alone = estimate(program)
    works, stop = threading.Event(), threading.Event()
    found: list[bool] = []

    def work() -> list[bool]:
        while not stop.is_set():
            found.append(ordinary_work() == expected)
            works.set()
        return found

    thread = threading.Thread(target=work)
    thread.start()
    try:
        works.wait()
        estimates = [estimate(program) for _ in range(3)]
    finally:
        stop.set()
        thread.join()

    assert found == [True] * len(found)
    for each in estimates:
        assert each.peak == alone.peak
        assert each.tape.modules == alone.tape.modules
        assert (each.tape.events["phase"] == alone.tape.events["phase"]).all()


def test_random_numbers_of_a_run_are_its_own() -> None:
    program = drawing_program()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    before = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())

    estimate(program)

    assert (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())) == before
    assert torch.initial_seed() == 5


def test_a_run_goes_on_with_the_numbers_that_came_next() -> None:
    model, seen = nn.Linear(64, 8), torch.zeros(4)

    def step(batch: torch.Tensor) -> None:
        drawn = torch.rand(2), torch.empty(2).uniform_()
        assert torch.equal(torch.cat(drawn), seen)
        torch.manual_seed(7)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator("cpu").manual_seed(7)))
        assert torch.initial_seed() == 7
        model(batch.to("cuda"))

    torch.manual_seed(6)
    torch.cat((torch.rand(2), torch.empty(2).uniform_()), out=seen)
    torch.manual_seed(6)

    assert vramkit.estimate(model, torch.ones(8, 64), step=step, steps=1, engine="fake", gpu="t4").fits()


@pytest.mark.virtual_gpu
def test_a_recurrent_layer_on_the_device_asks_for_what_it_asks_for_alone(everything_replaced: Replacing) -> None:
    layer, data = nn.LSTM(64, 128).to("cuda"), torch.zeros(5, 3, 64, device="cuda")

    def requests() -> tuple[int, int]:
        before = torch.cuda.memory_stats()
        with torch.autocast("cuda", torch.float16):
            layer(data)[0].float().sum().backward()
        layer.zero_grad()
        after = torch.cuda.memory_stats()
        names = "allocation.all.allocated", "requested_bytes.all.allocated"
        first, second = (after[name] - before[name] for name in names)
        return first, second

    elsewhere(requests)  # workspaces
    expected = elsewhere(requests)

    with everything_replaced():
        assert elsewhere(requests) == expected

"""Several ranks that search together: real processes on gloo, each with a capacity of its own, none with a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vramkit
from vramkit.batch_size.ranks import Agreement
from vramkit.torch_releases import installed, release_of

# Elsewhere gloo has to be there: without it these tests fail, because a skip could hide that ranks were never tested.
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")

_STARTER = """
import json, os, signal, sys, traceback
from datetime import timedelta
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from vramkit.batch_size.result import Trial
from vramkit.errors import VramkitError
from vramkit.batch_size.ranks import Agreement
from vramkit.torch_releases import installed, release_of
from vramkit.batch_size.bounds import Bounds
from vramkit.batch_size.search import Search, TrialRun

torch.set_num_threads(1)

def be(rank, world, meeting, code, pipe, others):
    signal.alarm(60)                       # who waits in vain is ended
    scope = {**globals(), "rank": rank, "world": world}
    try:
        dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=world,
                                timeout=timedelta(seconds=50))
        exec(code, scope)
        answer = {"result": scope["result"]}
    except BaseException:
        answer = {"error": traceback.format_exc()}
    os.write(pipe, json.dumps(answer).encode())
    os.close(pipe)
    if "result" in answer:
        os.read(others, 1)                 # who goes first closes sockets that others still connect to
    os._exit(0)

for line in sys.stdin:
    request = json.loads(line)
    pipes, (others, all_done) = [], os.pipe()
    for rank in range(request["world"]):
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.close(all_done)
            be(rank, request["world"], request["meeting"], request["code"], writing, others)
        os.close(writing)
        pipes.append(reading)
    answers = [json.loads(open(pipe).read() or '{"error": "it hung, or died"}') for pipe in pipes]
    os.close(all_done)
    os.close(others)
    for _ in pipes:
        os.wait()
    print("RESULT" + json.dumps(answers), flush=True)
"""

OnRanks = Callable[[int, str], list[Any]]


@pytest.fixture(scope="module")
def _starter() -> Iterator[subprocess.Popen[str]]:
    """A process that imported torch once, and forks ranks."""
    with subprocess.Popen(
        [sys.executable, "-c", _STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        yield starter
        assert starter.stdin is not None
        starter.stdin.close()


@pytest.fixture
def on_ranks(_starter: subprocess.Popen[str], tmp_path: Path) -> OnRanks:
    """Runs a snippet on so many ranks, as ``rank`` of ``world``; gives what ``result`` is on each."""

    def run(world: int, code: str) -> list[Any]:
        assert _starter.stdin is not None
        assert _starter.stdout is not None
        request = {"world": world, "code": code, "meeting": str(tmp_path / "meeting")}
        _starter.stdin.write(json.dumps(request) + "\n")
        _starter.stdin.flush()
        answers = json.loads(next(line for line in _starter.stdout if line.startswith("RESULT"))[len("RESULT") :])
        assert [answer["error"] for answer in answers if "error" in answer] == []
        return [answer["result"] for answer in answers]

    return run


def test_alone_there_is_nothing_to_agree_on() -> None:
    with Agreement(None) as ranks:
        assert ranks.is_first
        assert (ranks.smallest(5), ranks.any(True), ranks.any(False)) == (5, True, False)
        assert ranks.together(lambda: "done") == "done"
        with pytest.raises(KeyError), ranks.apart([]):
            ranks.together(lambda: {}["missing"])


def test_a_group_without_process_groups_is_refused() -> None:
    with pytest.raises(vramkit.UsageError, match="init_process_group"):
        Agreement(object())  # type: ignore[arg-type]


def test_ranks_agree_on_the_smallest_size_and_on_any_failure(on_ranks: OnRanks) -> None:
    results = on_ranks(
        3,
        """
with Agreement(dist.group.WORLD) as ranks:
    result = [ranks.smallest(10 + rank), ranks.any(rank == 2), ranks.any(False), ranks.is_first]
""",
    )

    assert results == [[10, True, False, True], [10, True, False, False], [10, True, False, False]]


def test_an_error_on_one_rank_reaches_all_and_keeps_its_own_type_there(on_ranks: OnRanks) -> None:
    results = on_ranks(
        3,
        """
def attempt():
    if rank == 1:
        raise KeyError("no such column")
    return rank

seen = []
with Agreement(dist.group.WORLD) as ranks:
    seen.append(ranks.together(lambda: rank))
    try:
        ranks.together(attempt)
    except (KeyError, VramkitError) as error:
        seen += [type(error).__name__, str(error)]
    seen.append(ranks.smallest(rank))       # nobody is left behind: the next exchange works
result = seen
""",
    )

    assert [result[0] for result in results] == [0, 1, 2]
    assert [result[1] for result in results] == ["VramkitError", "KeyError", "VramkitError"]
    assert "Rank 1 failed with KeyError: 'no such column'" in results[0][2]
    assert [result[3] for result in results] == [0, 0, 0]


def test_only_the_ranks_of_the_group_take_part(on_ranks: OnRanks) -> None:
    results = on_ranks(
        3,
        """
pair = dist.new_group([0, 2])
result = None
if rank != 1:
    with Agreement(pair) as ranks:
        result = [ranks.smallest(rank + 5), ranks.any(rank == 2)]
""",
    )

    assert results == [[5, True], None, [5, True]]


def test_the_same_ranks_agree_again_and_again(on_ranks: OnRanks) -> None:
    results = on_ranks(
        2,
        """
result = []
for number in range(4):
    with Agreement(dist.group.WORLD) as ranks:
        result.append(ranks.smallest(number + rank))
""",
    )

    assert results == [[0, 1, 2, 3]] * 2


_SEARCH = """
class Card:
    '''A machine whose memory is a number.'''

    def __init__(self, capacity, row, fails_at=None):
        self.capacity, self.row, self.fails_at, self.sizes = capacity, row, fails_at, []

    def run(self, batch_size, *, is_probe):
        self.sizes.append(batch_size)
        if batch_size == self.fails_at:
            raise ValueError("a broken row")
        size = 1000 + self.row * batch_size
        fits = size <= self.capacity
        peak = min(size, self.capacity)
        return TrialRun(trial=Trial(batch_size=batch_size, fits=fits, peak_allocated=peak, peak_reserved=peak,
                               is_probe=is_probe, ran_out=not fits))

bounds = Bounds(minimum=1, maximum=None, multiple_of=1, memory_fraction=0.8, verify=True)
"""


def test_every_rank_tries_the_same_sizes_and_finds_what_the_smallest_can(on_ranks: OnRanks) -> None:
    results = on_ranks(
        2,
        _SEARCH
        + """
card = Card(capacity=[900_000, 500_000][rank], row=[100, 70][rank])
with Agreement(dist.group.WORLD) as ranks:
    found = Search(card, ranks, bounds).run()
result = [found.batch_size, found.max_batch_size, card.sizes]
""",
    )

    # Rank 1 has the smaller card, and the smaller rows: (500,000 - 1000) // 70 = 7128, (400,000 - 1000) // 70 = 5700.
    assert results[0] == results[1]
    assert results[0][:2] == [5700, 7128]


def test_running_out_on_one_rank_is_running_out_on_all(on_ranks: OnRanks) -> None:
    results = on_ranks(
        2,
        _SEARCH
        + """
card = Card(capacity=[900_000, 800][rank], row=100)
with Agreement(dist.group.WORLD) as ranks:
    found = Search(card, ranks, bounds).run()
result = [found.batch_size, found.max_batch_size, card.sizes]
""",
    )

    assert results == [[0, 0, [2, 1]], [0, 0, [2, 1]]]


def test_a_step_that_fails_on_one_rank_ends_the_search_on_all(on_ranks: OnRanks) -> None:
    results = on_ranks(
        2,
        _SEARCH
        + """
card = Card(capacity=900_000, row=100, fails_at=3 if rank else None)
try:
    with Agreement(dist.group.WORLD) as ranks:
        Search(card, ranks, bounds).run()
except (ValueError, VramkitError) as error:
    result = [type(error).__name__, card.sizes]
""",
    )

    assert results == [["VramkitError", [2, 3]], ["ValueError", [2, 3]]]


def test_an_error_of_the_callback_on_one_rank_ends_the_search_on_all(on_ranks: OnRanks) -> None:
    results = on_ranks(
        2,
        _SEARCH
        + """
def on_trial(trial):
    if rank == 1 and trial.batch_size == 3:
        raise KeyError("no such metric")

card = Card(capacity=900_000, row=100)
try:
    with Agreement(dist.group.WORLD) as ranks:
        Search(card, ranks, bounds, on_trial).run()
except (KeyError, VramkitError) as error:
    result = [type(error).__name__, str(error), card.sizes]
""",
    )

    assert [(kind, sizes) for kind, _, sizes in results] == [("VramkitError", [2, 3]), ("KeyError", [2, 3])]
    assert "Rank 1 failed with KeyError: 'no such metric'" in results[0][1]


def test_bounds_are_those_that_hold_on_every_rank(on_ranks: OnRanks) -> None:
    results = on_ranks(
        3,
        _SEARCH
        + """
card = Card(capacity=900_000, row=100)
minimum, maximum = [4, 8, 4][rank], [500, 400, None][rank]
bounds = Bounds(minimum=minimum, maximum=maximum, multiple_of=4, memory_fraction=0.8, verify=True)
with Agreement(dist.group.WORLD) as ranks:
    found = Search(card, ranks, bounds).run()
result = [found.batch_size, found.max_batch_size, card.sizes]
""",
    )

    assert results[0] == results[1] == results[2]
    assert results[0][:2] == [400, 400]
    assert min(results[0][2]) == 8


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ("multiple_of=rank + 1", "multiple_of is not the same on all of them"),
        ("memory_fraction=[0.8, 0.85][rank]", "memory_fraction is not the same on all of them"),
        ("verify=rank == 0, multiple_of=2 - rank", "multiple_of and verify are not the same on all of them"),
        ("minimum=[1, 50][rank], maximum=[40, None][rank]", "One allows no size below 50, and one no size above 40"),
    ],
)
def test_ranks_that_ask_for_different_things_all_get_the_same_error(on_ranks: OnRanks, asked: str, text: str) -> None:
    results = on_ranks(
        2,
        _SEARCH
        + f"""
from dataclasses import replace
card = Card(capacity=900_000, row=100)
try:
    with Agreement(dist.group.WORLD) as ranks:
        Search(card, ranks, replace(bounds, {asked})).run()
except VramkitError as error:
    result = [type(error).__name__, str(error), card.sizes]
""",
    )

    assert results[0] == results[1]
    assert text in results[0][1]
    assert [results[0][0], results[0][2]] == ["UsageError", []]


def test_gradients_stay_apart_so_that_no_rank_waits_for_one_that_ran_out(on_ranks: OnRanks) -> None:
    results = on_ranks(
        2,
        """
model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)))
with Agreement(dist.group.WORLD) as ranks:
    ran_out = False
    for step in range(2):
        try:
            with ranks.apart([model]):
                loss = model(torch.full((2, 4), float(rank + step))).sum()
                if rank == 1:
                    raise torch.OutOfMemoryError("here and nowhere else")
                loss.backward()
        except torch.OutOfMemoryError:
            ran_out = True
        result = [ran_out, ranks.any(ran_out)]
model.zero_grad()
weight = model.module[0].weight
(model(torch.ones(2, 4) * (rank + 1)) * torch.arange(8.0).view(2, 4)).sum().backward()
same = [torch.zeros_like(weight.grad) for _ in range(world)]
dist.all_gather(same, weight.grad)
result.append(torch.equal(*same))        # afterwards gradients are exchanged as ever
""",
    )

    assert results == [[False, True, True], [True, True, True]]


@pytest.mark.skipif(release_of(installed()) < (2, 9), reason="FSDP2 lets nobody take the place of its collectives")
def test_shards_are_gathered_apart_so_that_no_rank_waits_for_one_that_ran_out(on_ranks: OnRanks) -> None:
    results = on_ranks(
        2,
        """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from vramkit.batch_size.saved_state import Surroundings

class Ends(torch.autograd.Function):
    @staticmethod
    def forward(context, x, where):
        context.where = where
        if where == "forward":
            raise torch.OutOfMemoryError("here and nowhere else")
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        if context.where == "backward":
            raise torch.OutOfMemoryError("here and nowhere else")
        return gradient, None

class Model(torch.nn.Sequential):
    where = None

    def forward(self, x):
        return self[1](Ends.apply(self[0](x), self.where))

torch.manual_seed(0)
model = Model(torch.nn.Linear(4, 3), torch.nn.Linear(3, 5))
values = {name: value.clone() for name, value in model.state_dict().items()}
mesh = init_device_mesh("cpu", (world,))
for module in (*model, model):
    fully_shard(module, mesh=mesh)
around, seen = Surroundings([model], []), []
with Agreement(dist.group.WORLD) as ranks:
    for where in ("forward", "backward", None):
        model.where = where if rank == 1 else None
        ran_out = False
        try:
            with ranks.apart([model]):
                model(torch.ones(2, 4)).square().sum().backward()
        except torch.OutOfMemoryError:
            ran_out = True
        around.put_back()
        seen.append([ran_out, ranks.any(ran_out)])

alone = Model(torch.nn.Linear(4, 3), torch.nn.Linear(3, 5))
alone.load_state_dict(values)
model.where = None
model(torch.ones(2, 4) * (rank + 1)).square().sum().backward()
for each in range(world):
    (alone(torch.ones(2, 4) * (each + 1)).square().sum() / world).backward()
same = [torch.allclose(one.grad.full_tensor(), other.grad)
        for one, other in zip(model.parameters(), alone.parameters(), strict=True)]
result = [seen, same]                   # afterwards they are gathered and reduced as ever
""",
    )

    assert [result[1] for result in results] == [[True] * 4] * 2
    assert results[0][0] == [[False, True], [False, True], [False, False]]
    assert results[1][0] == [[True, True], [True, True], [False, False]]

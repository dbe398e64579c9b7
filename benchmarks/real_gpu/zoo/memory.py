"""What programs do with memory itself: streams, graphs, compiled code, the allocator's settings, running out of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import nn

from .common import BF16, Part, Program, known, steps, x
from .training import GPT, Block, language, language_loss, mlp

PROGRAMS: dict[str, Program] = {}
ENVIRONMENTS: dict[str, dict[str, str]] = {}
"""The allocator's settings of the programs that have some."""

MIB = 1 << 20


def block(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cuda")


def requests(seed: int, count: int, largest: int) -> Iterator[Part]:
    """Blocks that come and go at random."""
    rng, held = random.Random(seed), []
    for number in range(4):

        def run() -> None:
            for _ in range(count):
                if held and rng.random() < 0.48:
                    held.pop(rng.randrange(len(held)))
                else:
                    held.append(block(int(2 ** rng.uniform(8, largest))))
            if rng.random() < 0.5:
                torch.cuda.empty_cache()

        yield f"part {number}", run


def equal_segments() -> Iterator[Part]:
    """Free blocks of one size in many segments: which is taken first is the allocator's rule for ties."""
    held = []

    def fill(size: int) -> None:
        held.extend(block(size) for _ in range(12))

    def take(size: int) -> None:
        for index in (7, 2, 9, 4):
            held[index] = None
        held.extend(block(size) for _ in range(4))

    for size in (30 * MIB, 12 * MIB, 700_000, 100_000):
        held.clear()
        yield f"fill {size}", lambda size=size: fill(size)
        yield f"take {size}", lambda size=size: take(size)
        yield f"give back {size}", torch.cuda.empty_cache
        yield f"fill again {size}", lambda size=size: fill(size)


def streams() -> Iterator[Part]:
    side = torch.cuda.Stream()

    def copied() -> None:
        for _ in range(4):
            host = torch.empty(1 << 18).pin_memory()
            with torch.cuda.stream(side):
                device = host.cuda(non_blocking=True)
            torch.cuda.current_stream().wait_stream(side)
            device.record_stream(torch.cuda.current_stream())
            (device * 2).sum()
            del device
            torch.cuda.synchronize()

    def multiplied() -> None:
        with torch.cuda.stream(side):
            a = torch.randn(512, 512, device="cuda")
            (a @ a).sum()
        side.synchronize()
        a = torch.randn(512, 512, device="cuda")
        (a @ a).sum()

    def backward_on_side() -> None:
        with torch.cuda.stream(side):
            F.linear(x(256, 256), x(256, 256), x(256)).sum().backward()
        torch.cuda.synchronize()

    yield "copied beside", copied
    yield "multiplied on both", multiplied
    yield "multiplied on both again", multiplied
    yield "backward beside", backward_on_side


def out_of_memory() -> Iterator[Part]:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((256 * MIB) / total)
    held = []

    def fill() -> None:
        with suppress(torch.OutOfMemoryError):
            while True:
                held.append(block(19 * MIB))

    def retry() -> None:
        del held[::2]
        with suppress(torch.OutOfMemoryError):
            held.append(block(100 * MIB))
        held.append(block(40 * MIB))

    def train() -> None:
        held.clear()
        model = mlp(2048)
        batch = 1 << 16
        while True:
            try:
                model(x(batch, 784, grad=False)).sum().backward()
                break
            except torch.OutOfMemoryError:
                batch //= 2
            model.zero_grad()
        held.append(batch)

    yield "fill", fill
    yield "retry", retry
    yield "smaller batches", train
    yield "raised", lambda: block(400 * MIB)


def captured() -> Iterator[Part]:
    model, data = mlp(), x(128, 784, grad=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    graph, side, kept = torch.cuda.CUDAGraph(), torch.cuda.Stream(), []

    def warm() -> None:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                optimizer.zero_grad()
                model(data).sum().backward()
                optimizer.step()
        torch.cuda.current_stream().wait_stream(side)

    def capture() -> None:
        optimizer.zero_grad()
        with torch.cuda.graph(graph):
            loss = model(data).sum()
            loss.backward()
            optimizer.step()
        kept.append(loss)

    def replay() -> None:
        for _ in range(2):
            data.copy_(torch.randn(128, 784, device="cuda"))
            graph.replay()

    yield "warm", warm
    yield "capture", capture
    yield "replay", replay
    yield "inference", lambda: torch.cuda.make_graphed_callables(mlp(), (x(64, 784, grad=False),))


def graphed_callables() -> Iterator[Part]:
    blocks = [Block(256, 4).cuda().eval() for _ in range(2)]
    sample = x(8, 128, 256)
    made = []

    def make() -> None:
        made.extend(torch.cuda.make_graphed_callables(tuple(blocks), ((sample,), (sample,))))

    def train() -> None:
        tensor = x(8, 128, 256)
        for each in made:
            tensor = each(tensor)
        tensor.sum().backward()

    yield "make", make
    yield "first", train
    yield "second", train


def pools() -> Iterator[Part]:
    pool, held = torch.cuda.MemPool(), []

    def fill() -> None:
        with torch.cuda.use_mem_pool(pool):
            held.extend(block(size) for size in (100, MIB, 5 * MIB, 30 * MIB))
        held.append(block(3 * MIB))

    yield "fill", fill
    yield "cleared", held.clear
    yield "given back", torch.cuda.empty_cache


def compiled(**settings: str) -> Iterator[Part]:
    models = {"block": Block(256, 4).cuda(), "MLP": mlp()}
    data = {"block": x(8, 128, 256, grad=False), "MLP": x(128, 784, grad=False)}
    for name, model in models.items():
        run = torch.compile(model, **settings)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step, part in steps(model, optimizer, lambda run=run, given=data[name]: run(given).square().mean()):
            yield f"{name}, {step}", part


def compiled_language() -> Iterator[Part]:
    model, tokens = GPT(layers=2).cuda(), known(8, 257, high=5000)
    run = torch.compile(model)

    def loss() -> torch.Tensor:
        with torch.autocast("cuda", BF16):
            return language_loss(run, tokens)

    yield from steps(model, torch.optim.AdamW(model.parameters()), loss)


def two_threads() -> Iterator[Part]:
    """Two inputs of the host, and a backward from a thread that isn't the main one."""
    import threading

    model, data = nn.Linear(512, 512).cuda(), x(64, 512, grad=False)

    def in_a_thread() -> None:
        thread = threading.Thread(target=lambda: model(data).sum().backward())
        thread.start()
        thread.join()

    yield "main", lambda: model(data).sum().backward()
    yield "thread", in_a_thread
    yield "thread again", in_a_thread


def with_setting(name: str, setting: str, program: Program) -> None:
    PROGRAMS[name] = program
    ENVIRONMENTS[name] = {"PYTORCH_CUDA_ALLOC_CONF": setting, "PYTORCH_ALLOC_CONF": setting}


PROGRAMS["allocator: at random, small"] = lambda: requests(1, 300, 21)
PROGRAMS["allocator: at random, large"] = lambda: requests(2, 150, 26)
PROGRAMS["allocator: ties"] = equal_segments
with_setting("allocator: at random, expandable", "expandable_segments:True", lambda: requests(3, 150, 26))
with_setting("allocator: ties, expandable", "expandable_segments:True", equal_segments)
with_setting("allocator: rounded up", "roundup_power2_divisions:4", lambda: requests(4, 150, 25))
with_setting("allocator: split up to 32 MiB", "max_split_size_mb:32", lambda: requests(5, 150, 27))
with_setting(
    "allocator: cleaned up", "garbage_collection_threshold:0.8,max_split_size_mb:64", lambda: requests(6, 150, 26)
)
with_setting("training: GPT, expandable", "expandable_segments:True", lambda: language(BF16))
PROGRAMS["memory: streams and pinned copies"] = streams
PROGRAMS["memory: out of it, and again"] = out_of_memory
with_setting("memory: out of it, expandable", "expandable_segments:True", out_of_memory)
PROGRAMS["memory: threads"] = two_threads
PROGRAMS["memory: pools"] = pools
PROGRAMS["graphs: captured"] = captured
PROGRAMS["graphs: callables"] = graphed_callables
PROGRAMS["compiled: block and MLP"] = compiled
PROGRAMS["compiled: GPT, autocast"] = compiled_language
PROGRAMS["compiled: reduce-overhead"] = lambda: compiled(mode="reduce-overhead")

"""How an operator's memory on fakes differs from the virtual GPU's: one call of it, event by event.

    python -m vramkit.devtools.opcheck                      # every operator that torch has samples of
    python -m vramkit.devtools.opcheck topk sort --gpu t4
    python -m vramkit.devtools.opcheck operator_calls:CALLS

Prints each operator whose calls differ, what differs, and whether a note bounds it. Knows calls and their events; of
the engine's rules, none.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from itertools import accumulate
from typing import Any

from ..gpus import GPU, find
from .tapediff import sorted_frees

Calls = Mapping[str, Callable[[], object]]
"""Calls on the device "cuda", which make their inputs and keep nothing, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a call asked of the allocator."""

    sizes: tuple[int, ...]
    """Bytes, negative where they were given back; what was given back at one moment in order of size."""
    operators: tuple[str, ...] = ()
    """On fakes: of each event, its operator."""
    assumed: dict[str, int] = field(default_factory=dict)
    """On fakes: what was said to be a bound, bytes."""
    failure: str = ""
    """Why there is nothing else."""

    @property
    def peak(self) -> int:
        """How many bytes there are at most at a moment, as requested."""
        return max(accumulate(self.sizes), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One call, on the virtual GPU and on fakes."""

    real: Asked
    fake: Asked

    @property
    def is_equal(self) -> bool:
        """Whether every event is the same."""
        return self.real.sizes == self.fake.sizes

    @property
    def is_bounded(self) -> bool:
        """Whether the peaks are no further apart than the notes say."""
        return abs(self.real.peak - self.fake.peak) <= sum(self.fake.assumed.values())

    def __str__(self) -> str:
        if self.real.failure or self.fake.failure:
            return f"real: {self.real.failure or 'runs'}; fake: {self.fake.failure or 'runs'}"
        lines = []
        matcher = SequenceMatcher(None, self.real.sizes, self.fake.sizes, autojunk=False)
        for tag, begin, end, first, last in matcher.get_opcodes():
            if tag != "equal":
                after = self.fake.operators[first - 1] if first else "the beginning"
                before = self.fake.operators[last] if last < len(self.fake.operators) else "the end"
                real, fake = (
                    " ".join(f"{size:+,}" for size in part[:12]) or "nothing"
                    for part in (self.real.sizes[begin:end], self.fake.sizes[first:last])
                )
                lines.append(f"{after} | {before}: real {real}; fake {fake}")
        bound = "within" if self.is_bounded else "BEYOND"
        lines.append(
            f"peaks: real {self.real.peak:,}, fake {self.fake.peak:,}, {bound} the notes' {self.fake.assumed}"
            if self.fake.assumed
            else f"peaks: real {self.real.peak:,}, fake {self.fake.peak:,}, NO NOTE"
        )
        return "\n      ".join(lines)


def on_the_device(call: Callable[[], object]) -> Asked:
    """What a call asks of the real allocator, once its libraries' handles have their workspaces."""
    from ..torch_internals.allocator import record_history, snapshot

    _warm_up()
    record_history("all", context=None, clear_history=True, max_entries=1 << 20)
    try:
        call()
    except Exception as error:
        return Asked(sizes=(), failure=_told(error))
    finally:
        entries = snapshot()["device_traces"][0]
        record_history(None)
    signs = {"alloc": 1, "free_requested": -1}
    sizes = [signs[entry["action"]] * entry["size"] for entry in entries if entry["action"] in signs]
    return Asked(sizes=tuple(size for size, _ in sorted_frees((size, 0) for size in sizes)))


_warm: list[bool] = []


def _warm_up() -> None:
    import torch

    if not _warm:
        x = torch.ones(8, 8, device="cuda", requires_grad=True)
        torch.nn.functional.linear(x, x, x[0]).sum().backward()  # type: ignore[no-untyped-call] # torch's
        _warm.append(True)


def on_fakes(call: Callable[[], object], gpu: GPU) -> Asked:
    """What a call asks on fakes: beside a device, or under the overlay where there is none."""
    from ..allocator import DeviceCachingAllocator
    from ..engines.fake.in_place import counts_of_the_only_holder
    from ..engines.fake.isolation import apart, cuda_for_fakes
    from ..engines.fake.recorder import Recorder
    from ..gpus import CUBLASLT_WORKSPACE, cublas_workspace
    from ..tape.events import Action
    from ..torch_internals.fakes import FakeTensorMode

    allocator = DeviceCachingAllocator(history=True)
    recorder = Recorder(allocator, gpu, detailed=True)
    kept = (cublas_workspace(gpu), CUBLASLT_WORKSPACE)
    recorder.workspaces = {(size, side) for size in kept for side in (False, True)}  # as on the device, after warm-up
    try:
        with ExitStack() as stack:
            stack.enter_context(apart())
            counts_of_the_only_holder()
            mode = FakeTensorMode(allow_non_fake_inputs=True)
            mode.cache_enabled = False
            stack.enter_context(cuda_for_fakes(recorder))
            stack.enter_context(mode)
            stack.enter_context(recorder)
            call()
    except Exception as error:
        return Asked(sizes=(), failure=_told(error))
    signs = {Action.ALLOC: 1, Action.FREE: -1}
    items = [
        (signs[Action(action)] * size, index)
        for index, (action, _, size, _) in enumerate(allocator.events)
        if Action(action) in signs
    ]
    items = list(sorted_frees(items))
    return Asked(
        sizes=tuple(size for size, _ in items),
        operators=tuple(recorder.operators[index] for _, index in items),
        assumed={what: size for what, size in recorder.assumed.items() if size},
    )


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"


# -- torch's own samples -----------------------------------------------------------------------------------------------


def sampled(names: Sequence[str], limit: int) -> Iterator[tuple[str, Calls]]:
    """Operators with calls of them, forward and, where there is one, backward: from the samples that torch tests by.

    Args:
        names: of operators; none: all.
        limit: calls of each, at most.
    """
    import torch

    from ..torch_internals.operators import operator_samples

    for operator in operator_samples():
        if names and operator.name not in names and operator.formatted_name not in names:
            continue
        kinds = operator.supported_dtypes("cuda")
        kind = next((each for each in (torch.float32, torch.int64, torch.bool, torch.complex64) if each in kinds), None)
        if kind is None:
            continue
        grad = operator.supports_autograd and kind.is_floating_point
        calls: dict[str, Callable[[], object]] = {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                samples = operator.sample_inputs("cpu", kind, requires_grad=grad)
                for index, sample in enumerate(samples):
                    if index >= limit:
                        break
                    calls[f"{operator.formatted_name}[{index}]"] = _call_of(operator.op, sample)
        except Exception as error:
            print(f"{operator.formatted_name}: no samples: {_told(error)}")
            continue
        yield operator.formatted_name, calls


def _call_of(operator: Callable[..., object], sample: Any) -> Callable[[], object]:
    from ..torch_internals.pytree import tree_flatten, tree_unflatten

    given, form = tree_flatten((sample.input, sample.args, sample.kwargs))

    def call() -> None:
        args = tree_unflatten([_on_cuda(each) for each in given], form)
        backward(operator(args[0], *args[1], **args[2]))

    call.__doc__ = sample.summary()
    return call


def _on_cuda(value: object) -> object:
    """A tensor of the host's, with its strides, on the device."""
    import torch

    if value == "cpu" or (isinstance(value, torch.device) and value.type == "cpu"):
        return torch.device("cuda")
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return value
    count = value.untyped_storage().nbytes() // value.element_size()
    whole = torch.empty(count, dtype=value.dtype, device="cuda")
    made = whole.as_strided(value.shape, value.stride(), value.storage_offset())
    return made.detach().requires_grad_(value.requires_grad)


def backward(result: object) -> None:
    """Run the backward of everything that a call has given and that has one."""
    import torch

    from ..torch_internals.pytree import tree_leaves

    ends = [
        each for each in tree_leaves(result) if isinstance(each, torch.Tensor) and each.requires_grad and each.numel()
    ]
    if ends:
        torch.autograd.backward(ends, [torch.ones_like(each) for each in ends])


# -- the tool ----------------------------------------------------------------------------------------------------------


def _groups(names: Sequence[str], limit: int) -> Iterator[tuple[str, Calls]]:
    for address in names:
        if ":" in address:
            path, _, name = address.partition(":")
            name, _, key = name.partition("[")
            calls: Calls = getattr(importlib.import_module(path), name)
            key = key.removesuffix("]")
            for each, call in calls.items():
                if key in each:
                    yield each, {each: call}
    operators = [name for name in names if ":" not in name]
    if operators or not names:
        yield from sampled(operators, limit)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 0: every call that runs asks for the same."""
    parser = argparse.ArgumentParser(prog="python -m vramkit.devtools.opcheck", description=__doc__.splitlines()[0])
    parser.add_argument("operators", nargs="*", help="of torch's samples, or module:NAME or module:NAME[part of key]")
    parser.add_argument("--gpu", default="a100-80gb", help="default: %(default)s")
    parser.add_argument("--no-device", action="store_true", help="the fakes as in a process without a CUDA device")
    parser.add_argument("--samples", type=int, default=6, help="of each operator, at most; default: %(default)s")
    parser.add_argument("--failures", action="store_true", help="print calls that fail too")
    parser.add_argument("--real-events", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    sys.path.insert(0, os.getcwd())
    warnings.simplefilter("ignore")
    gpu = find(options.gpu)
    measured: dict[str, Asked] = {}
    if options.no_device:
        command = [sys.executable, "-m", "vramkit.devtools.opcheck", *options.operators]
        answer = subprocess.run(
            [*command, "--gpu", options.gpu, "--real-events"], stdout=subprocess.PIPE, text=True, check=True
        )
        for line in answer.stdout.splitlines():
            if line.startswith("{"):
                name, found = json.loads(line)["call"]
                measured[name] = Asked(**{**found, "sizes": tuple(found["sizes"])})
    else:
        from .. import virtual_gpu

        if virtual_gpu.current() is None:
            virtual_gpu.activate(options.gpu)
    count = equal = 0
    differing: dict[str, list[str]] = {}
    for group, calls in _groups(options.operators, options.samples):
        for name, call in calls.items():
            if options.real_events:
                print(json.dumps({"call": (name, asdict(on_the_device(call)))}))
                continue
            real = measured[name] if options.no_device else on_the_device(call)
            compared = Compared(real=real, fake=on_fakes(call, gpu))
            if real.failure or compared.fake.failure:
                if options.failures or (compared.fake.failure and not real.failure):
                    differing.setdefault(group, []).append(f"{name} FAILS {compared}")
                continue
            count, equal = count + 1, equal + compared.is_equal
            if not compared.is_equal:
                differing.setdefault(group, []).append(f"{name} {compared}")
    for group, found in differing.items():
        print(group, len(found))
        for text in found[:4]:
            print("   ", text)
    print(f"{equal} of {count} calls are equal; {len(differing)} operators differ")
    return int(bool(differing))


if __name__ == "__main__":
    raise SystemExit(main())

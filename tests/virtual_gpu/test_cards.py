"""Other cards, other orders, other allocator settings: each in a process of its own."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import pytest
from subprocesses import run_on, run_python
from torch.backends import cudnn

from vramkit import gpus
from vramkit.virtual_gpu import AddressOrder

pytestmark = pytest.mark.virtual_gpu

MIB = 1 << 20

_ATTENTION = """
import torch
import torch.nn.functional as F
q = torch.zeros(2, 4, 256, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
out = F.scaled_dot_product_attention(q, q, q, is_causal=True)
out.sum().backward()
x = torch.zeros(64, 64, device="cuda")
before = torch.cuda.memory_allocated()
y = x @ x
stream = torch.cuda.Stream()
with torch.cuda.stream(stream):
    before = torch.cuda.memory_allocated()
    z = x @ x
    workspace = torch.cuda.memory_allocated() - before - 64 * 64 * 4
result = [torch.cuda.get_device_name(), type(out.grad_fn).__name__, workspace]
"""


# Which kernel a card gets, and the size of a cuBLAS workspace: both are decided by torch, from the capability.
@pytest.mark.parametrize(
    ("name", "kernel", "workspace"),
    [
        ("t4", "ToCopy", 8_519_680),  # no kernel for bfloat16 on 7.5: a composition
        ("rtx4090", "Flash", 8_519_680),
        ("h100", "Cudnn" if (cudnn.version() or 0) > 91500 else "Flash", 33_554_432),
    ],
)
def test_a_card_gets_its_own_attention_kernel_and_workspace(name: str, kernel: str, workspace: int) -> None:
    product, function, size = run_on(name, _ATTENTION)

    assert product == gpus.find(name).product
    assert kernel in function
    assert size == workspace


_EACH_CARD = """
import ctypes, os
from vramkit import gpus
from vramkit.virtual_gpu.activation import exchange

def driver(card):
    cuda = ctypes.CDLL("libcuda.so.1")
    name, memory, major, minor = ctypes.create_string_buffer(256), ctypes.c_size_t(), ctypes.c_int(), ctypes.c_int()
    cuda.cuInit(0)
    cuda.cuDeviceGetName(name, 256, 0)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), 0)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, 0)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, 0)
    same = name.value.decode() == card.product and memory.value == card.memory
    return same and (major.value, minor.value) == card.capability

def program(card):
    layer = torch.nn.Conv2d(3, 8, 3, device="cuda")
    layer(torch.zeros(2, 3, 32, 32, device="cuda")).sum().backward()
    q = torch.zeros(2, 4, 256, 64, device="cuda", dtype=torch.float16, requires_grad=True)
    torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
    return torch.cuda.get_device_capability() == card.capability

def fails(card, function):
    if not os.fork():
        exchange(card)
        os._exit(0 if function(card) else 1)
    return os.wait()[1] != 0

result = [card.name for card in gpus.all_gpus() if fails(card, driver)]
import torch
result += [name for name in ("p100", "p40", "b300") if fails(gpus.find(name), program)]
"""


def test_every_card_of_the_catalogue_can_be_had_and_rare_capabilities_convolve_and_attend() -> None:
    assert run_on("a100-80gb", _EACH_CARD) == []


def test_a_card_of_a_given_size_works_convolutions_included() -> None:
    total, peak = run_on(
        "3 GiB",
        """
        import torch
        layer = torch.nn.Conv2d(3, 64, 7, 2, 3).cuda()
        layer(torch.zeros(8, 3, 224, 224, device="cuda")).sum().backward()
        result = torch.cuda.mem_get_info()[1], torch.cuda.max_memory_allocated()
        """,
    )

    assert total == 3 << 30
    assert peak > 8 * 3 * 224 * 224 * 4


@pytest.mark.parametrize(("order", "sign"), [("falling", -1), ("rising", 1)])
def test_addresses_go_the_way_that_was_asked_for(order: str, sign: int) -> None:
    places = run_on(
        "a100-80gb",
        """
        import torch
        tensors = [torch.empty(20 << 20, dtype=torch.uint8, device="cuda") for _ in range(3)]
        result = [tensor.data_ptr() for tensor in tensors]
        del tensors[1]
        torch.cuda.empty_cache()
        result.append(torch.empty(20 << 20, dtype=torch.uint8, device="cuda").data_ptr())
        """,
        address_order=order,
    )

    assert [later - place for place, later in itertools.pairwise(places[:3])] == [sign * 20 * MIB] * 2
    assert places[3] == places[1]


def test_every_run_gets_the_same_addresses() -> None:
    code = "import torch; result = torch.empty(1 << 25, device='cuda').data_ptr()"

    assert run_on("a100-80gb", code) == run_on("a100-80gb", code)


_BOTH_KINDS = """
import torch

def take(device, expandable):
    torch.cuda.memory._set_allocator_settings(f"expandable_segments:{{expandable}}")
    return torch.empty(20 << 20, dtype=torch.uint8, device=f"cuda:{{device}}")

kept = [take(device, expandable) for device in (0, 1) for expandable in ({first}, not {first})]
result = [each.data_ptr() for each in kept]
"""


@pytest.mark.parametrize("order", ["falling", "rising"])
@pytest.mark.parametrize("first", [False, True], ids=["plain-first", "expandable-first"])
def test_every_run_gets_the_same_addresses_where_plain_and_expandable_segments_are_used(
    first: bool, order: AddressOrder
) -> None:
    code = _BOTH_KINDS.format(first=first)

    runs = [run_on("a100-80gb", code, count=2, address_order=order) for _ in range(3)]

    assert runs == [runs[0]] * 3
    assert len(set(runs[0])) == 4


def test_expandable_segments_grow_in_place_and_give_pages_back() -> None:
    result = run_on(
        "8 GiB",
        """
        import torch
        before = torch.cuda.memory_reserved()
        first = torch.empty(300 << 20, dtype=torch.uint8, device="cuda")
        second = torch.empty(700 << 20, dtype=torch.uint8, device="cuda")
        segments = [s for s in torch.cuda.memory_snapshot() if s["segment_type"] == "large"]
        result = {"segments": len(segments), "expandable": segments[0]["is_expandable"], "used": gpu.used()}
        result["adjacent"] = second.data_ptr() == first.data_ptr() + first.numel()
        del first
        torch.cuda.empty_cache()
        result["after"] = gpu.used()
        try:
            torch.empty(9 << 30, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError as error:
            result["oom"] = str(error)
        again = torch.empty(6 << 30, dtype=torch.uint8, device="cuda")
        result["again"] = again.numel()
        """,
        environment={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
    )

    assert result["expandable"]
    assert result["adjacent"]
    assert result["used"] == 1000 * MIB
    assert result["after"] == 700 * MIB
    assert "Tried to allocate 9.00 GiB" in result["oom"]
    assert result["again"] == 6 << 30


@pytest.mark.parametrize("conf", ["", "expandable_segments:True"])
def test_the_largest_card_can_be_used_up(conf: str) -> None:
    answer = run_on(
        "4 TiB",
        """
        import torch
        x = [torch.empty(1 << 40, dtype=torch.uint8, device="cuda") for _ in range(3)]
        torch.cuda.empty_cache()
        rest = torch.cuda.mem_get_info()[0] - (64 << 20)
        x.append(torch.empty(rest, dtype=torch.uint8, device="cuda"))
        result = [torch.cuda.memory_allocated() - rest]
        try:
            x.append(torch.empty(65 << 20, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            result.append("full")
        """,
        environment={"PYTORCH_CUDA_ALLOC_CONF": conf},
    )

    assert answer == [3 << 40, "full"]


def test_sixteen_cards_share_the_addresses() -> None:
    answer = run_on(
        "1 TiB",
        """
        import torch
        size = (1 << 40) - (1 << 30)
        x = [torch.empty(size, dtype=torch.uint8, device=f"cuda:{i}") for i in range(16)]
        places = sorted(each.data_ptr() for each in x)
        result = all(b - a >= size for a, b in zip(places, places[1:]))
        """,
        count=16,
    )

    assert answer is True


def test_visible_devices_are_chosen_as_the_driver_does() -> None:
    count, used, index, properties = run_on(
        "a100-80gb",
        """
        import ctypes, torch
        keep = torch.empty(1 << 30, dtype=torch.uint8, device="cuda:0")
        bus = torch.cuda.get_device_properties(0).pci_bus_id
        result = torch.cuda.device_count(), [gpu.used(n) for n in range(3)], bus, torch.cuda.mem_get_info()[0]
        """,
        count=3,
        environment={"CUDA_VISIBLE_DEVICES": "2,0,7,1"},
    )

    assert count == 2
    assert used == [0, 0, 1 << 30]
    assert index == 3
    card = gpus.find("a100-80gb")
    assert properties == card.memory - card.context - (1 << 30)


def test_no_visible_device_is_no_device() -> None:
    answer = run_on(
        "a100-80gb",
        "import torch; result = torch.cuda.is_available(), torch.cuda.device_count()",
        environment={"CUDA_VISIBLE_DEVICES": ""},
    )

    assert answer == [False, 0]


def test_a_context_is_charged_where_something_happened() -> None:
    idle, busy = run_on(
        "a100-80gb",
        """
        import ctypes, torch
        keep = torch.empty(1, device="cuda:1")
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        result = []
        for number in range(2):
            handle, count = ctypes.c_void_p(), ctypes.c_uint(0)
            nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle))
            nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle, ctypes.byref(count), None)
            result.append(count.value)
        """,
        count=2,
    )

    assert busy == 1
    assert idle in (0, 1)  # torch itself may touch device 0


def test_small_copies_keep_their_values_if_asked() -> None:
    answer = run_on(
        "a100-80gb",
        "import torch; result = torch.arange(4).cuda().tolist(), torch.ones(1 << 20).cuda().sum().item()",
        copy_limit="4 KiB",
    )

    assert answer == [[0, 1, 2, 3], 0.0]


def test_children_inherit_the_virtual_gpu_through_the_environment() -> None:
    child = (
        "import torch; from vramkit import virtual_gpu as v; torch.zeros(1, device='cuda');"
        "print(torch.cuda.get_device_name(1), v.is_active(), v.current(), v.activate('t4', count=2, children=True))"
    )

    answer = run_on(
        "t4",
        f"""
        import subprocess
        result = subprocess.run([sys.executable, "-c", {child!r}], capture_output=True, text=True).stdout.strip()
        """,
        count=2,
        children=True,
    )

    handle = "VirtualGPU('t4', 14.7 GiB, count=2)"
    assert answer == f"Tesla T4 True {handle} {handle}"


def test_spawned_children_have_it_when_the_main_script_activates_it(tmp_path: object) -> None:
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    script = tmp_path / "script.py"
    script.write_text(
        "from vramkit import virtual_gpu\n"
        "virtual_gpu.activate('l4')\n"
        "import multiprocessing, torch\n"
        "def work(queue):\n"
        "    queue.put(torch.zeros(3, device='cuda').device.type + torch.cuda.get_device_name())\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    queue = context.SimpleQueue()\n"
        "    child = context.Process(target=work, args=(queue,))\n"
        "    child.start()\n"
        "    print(queue.get())\n"
        "    child.join()\n"
    )

    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "cudaNVIDIA L4"


def test_a_loader_with_spawned_workers_pins_and_copies() -> None:
    answer = run_on(
        "a100-80gb",
        """
        import torch
        from torch.utils.data import DataLoader, TensorDataset
        data = TensorDataset(torch.arange(64.0).reshape(16, 4))
        result = []
        for start in ("fork", "spawn"):
            loader = DataLoader(data, 8, pin_memory=True, num_workers=1, multiprocessing_context=start)
            for (batch,) in loader:
                result.append([batch.is_pinned(), batch.to("cuda", non_blocking=True).is_cuda])
        """,
    )

    assert answer == [[True, True]] * 4


def test_a_process_that_ends_right_after_backward_ends_cleanly() -> None:
    # The race that this is about aborts some runs only: benchmarks/virtual_gpu_exit.py runs it fifty times.
    code = """
from vramkit import virtual_gpu
virtual_gpu.activate("a100-80gb")
import torch
w = torch.ones(1000, 1000, device="cuda", requires_grad=True)
loss = ((w @ w).relu() @ w).sum()
print(torch.cuda.memory_allocated(), torch.cuda.memory_reserved())
loss.backward()
"""

    assert len({run_python(code) for _ in range(5)}) == 1


def test_importing_torch_needs_no_import_from_us() -> None:
    code = """
import sys
from vramkit import virtual_gpu
virtual_gpu.activate("a100-80gb")
print("torch" in sys.modules, "numpy" in sys.modules)
"""

    assert run_python(code).split() == ["False", "False"]


def test_the_environment_is_left_alone_unless_children_are_asked_for() -> None:
    code = "import os; result = {k: v for k, v in os.environ.items() if 'VRAMKIT_V' in k or k == 'LD_PRELOAD'}"
    clean = {k: v for k, v in os.environ.items() if k == "LD_PRELOAD"}

    assert run_on("t4", code) == json.loads(json.dumps(clean))
    assert set(run_on("t4", code, children=True)) == {"LD_PRELOAD", "VRAMKIT_VIRTUAL_GPU"}

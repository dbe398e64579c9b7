"""Devices and their memory, in this process: the card that conftest activates, twice."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest

from vramkit import UsageError, virtual_gpu

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.virtual_gpu

MIB = 1 << 20


@pytest.fixture
def gpu() -> Iterator[virtual_gpu.VirtualGPU]:
    handle = virtual_gpu.current()
    assert handle is not None
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    yield handle
    handle.set_memory(None)
    handle.set_memory(None, device=1)
    torch.cuda.empty_cache()


def test_torch_sees_the_card_that_was_asked_for(gpu: virtual_gpu.VirtualGPU) -> None:
    properties = torch.cuda.get_device_properties(1)

    assert torch.cuda.device_count() == gpu.count == 2
    assert properties.name == gpu.gpu.product
    assert properties.total_memory == gpu.gpu.memory == gpu.memory(1)
    assert (properties.major, properties.minor) == gpu.gpu.capability
    assert properties.multi_processor_count == gpu.gpu.multiprocessors
    assert properties.max_threads_per_multi_processor == gpu.gpu.threads_per_multiprocessor
    assert properties.shared_memory_per_multiprocessor == gpu.gpu.shared_memory_per_multiprocessor
    assert properties.shared_memory_per_block_optin == gpu.gpu.shared_memory_per_block
    assert properties.L2_cache_size == gpu.gpu.l2_cache
    assert torch.cuda.get_device_properties(0).uuid != properties.uuid


def test_segments_and_the_context_are_what_the_device_misses(gpu: virtual_gpu.VirtualGPU) -> None:
    before = gpu.used()

    tensor = torch.empty(100 * MIB, dtype=torch.uint8, device="cuda")
    free, total = torch.cuda.mem_get_info()

    assert tensor.numel() == gpu.used() - before
    assert gpu.used() == torch.cuda.memory_reserved()
    assert free == total - gpu.used() - gpu.gpu.context
    assert total == gpu.gpu.memory


def test_new_segments_fall_and_freed_ones_are_taken_again(gpu: virtual_gpu.VirtualGPU) -> None:
    first, second, third = (torch.empty(64 * MIB, dtype=torch.uint8, device="cuda:1") for _ in range(3))
    places = [tensor.data_ptr() for tensor in (first, second, third)]

    del second
    with torch.cuda.device(1):
        torch.cuda.empty_cache()
    again = torch.empty(32 * MIB, dtype=torch.uint8, device="cuda:1")

    assert places == sorted(places, reverse=True)
    assert all(place % (2 * MIB) == 0 for place in places)
    assert again.data_ptr() == places[1] + 32 * MIB  # the upper end of the highest gap


def test_a_full_device_raises_and_the_process_goes_on(gpu: virtual_gpu.VirtualGPU) -> None:
    gpu.set_memory("2 GiB")
    ooms = torch.cuda.memory_stats()["num_ooms"]

    with pytest.raises(torch.OutOfMemoryError, match=r"GPU 0 has a total capacity of 2\.00 GiB") as raised:
        torch.empty(3 << 30, dtype=torch.uint8, device="cuda")

    assert "Tried to allocate 3.00 GiB" in str(raised.value)
    assert torch.cuda.memory_stats()["num_ooms"] == ooms + 1
    gpu.set_memory("4 GiB")
    assert torch.empty(3 << 30, dtype=torch.uint8, device="cuda").numel() == 3 << 30


def test_a_full_cache_is_given_back_before_torch_gives_up(gpu: virtual_gpu.VirtualGPU) -> None:
    gpu.set_memory("2 GiB")
    retries = torch.cuda.memory_stats()["num_alloc_retries"]
    held = torch.cuda.memory_reserved()
    cached = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    del cached

    larger = torch.empty(1200 * MIB, dtype=torch.uint8, device="cuda")

    assert torch.cuda.memory_reserved() - held == larger.numel()
    assert torch.cuda.memory_stats()["num_alloc_retries"] == retries + 1


def test_capacity_is_per_device(gpu: virtual_gpu.VirtualGPU) -> None:
    gpu.set_memory("1 GiB", device=1)

    with pytest.raises(torch.OutOfMemoryError, match="GPU 1"):
        torch.empty(1 << 30, dtype=torch.uint8, device="cuda:1")

    assert torch.empty(1 << 30, dtype=torch.uint8, device="cuda:0").numel() == 1 << 30


def test_a_memory_fraction_limits_without_the_device_being_full(gpu: virtual_gpu.VirtualGPU) -> None:
    torch.cuda.set_per_process_memory_fraction(0.25)
    try:
        with pytest.raises(torch.OutOfMemoryError, match="allowed"):
            torch.empty(gpu.gpu.memory // 2, dtype=torch.uint8, device="cuda")
        fitting = torch.empty(gpu.gpu.memory // 5, dtype=torch.uint8, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

    assert fitting.numel() == gpu.gpu.memory // 5


@pytest.mark.parametrize("size", [0, "0 B", "5 TiB", "24G", -1])
def test_a_capacity_that_cannot_be_is_refused(gpu: virtual_gpu.VirtualGPU, size: int | str) -> None:
    with pytest.raises(UsageError):
        gpu.set_memory(size)


def test_a_device_that_is_not_there_is_refused(gpu: virtual_gpu.VirtualGPU) -> None:
    with pytest.raises(UsageError, match="There are 2"):
        gpu.used(2)


def test_small_values_are_copied_and_computed_and_large_ones_read_as_zero(gpu: virtual_gpu.VirtualGPU) -> None:
    x = torch.tensor([3.0, 4.0]).cuda()
    large = torch.ones(1 << 20).cuda()

    assert x.tolist() == [3.0, 4.0]
    assert (x + 1).sum().item() == 9.0
    assert x.nonzero().shape == (2, 1)
    assert large.nbytes > gpu.settings.copy_limit
    assert (large + 1).sum().item() == 0.0


def test_pinned_memory_is_the_hosts(gpu: virtual_gpu.VirtualGPU) -> None:
    allocated = torch.cuda.memory_allocated()

    page = torch.arange(1000).pin_memory()
    on_device = page.to("cuda", non_blocking=True)

    assert page.is_pinned()
    assert page.tolist() == list(range(1000))
    assert torch.cuda.memory_allocated() - allocated == 8192  # the copy's block
    assert on_device.is_cuda


def test_a_stream_reuses_only_its_own_blocks(gpu: virtual_gpu.VirtualGPU) -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        side = torch.empty(30 * MIB, dtype=torch.uint8, device="cuda")
        where = side.data_ptr()
        del side
        again = torch.empty(30 * MIB, dtype=torch.uint8, device="cuda")
    main = torch.empty(30 * MIB, dtype=torch.uint8, device="cuda")
    event = torch.cuda.Event(enable_timing=True)
    event.record(stream)

    assert again.data_ptr() == where
    assert main.data_ptr() != where
    assert event.query()


def test_nvidia_smi_figures_include_context_and_driver(gpu: virtual_gpu.VirtualGPU) -> None:
    tensor = torch.empty(100 * MIB, dtype=torch.uint8, device="cuda")
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    handle, memory = ctypes.c_void_p(), (ctypes.c_ulonglong * 3)()
    name, count = ctypes.create_string_buffer(96), ctypes.c_uint(4)
    processes = (ctypes.c_ulonglong * 12)()

    assert nvml.nvmlInit_v2() == 0
    assert nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) == 0
    assert nvml.nvmlDeviceGetMemoryInfo(handle, memory) == 0
    assert nvml.nvmlDeviceGetName(handle, name, 96) == 0
    assert nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle, ctypes.byref(count), processes) == 0

    total, free, used = memory
    assert tensor.is_cuda
    assert name.value.decode() == gpu.gpu.product
    assert total == gpu.gpu.board_memory
    assert free == torch.cuda.mem_get_info()[0]
    assert used == total - free == gpu.gpu.board_memory - gpu.gpu.memory + gpu.gpu.context + gpu.used()
    assert count.value == 1
    assert processes[0] & 0xFFFFFFFF == os.getpid()
    assert processes[1] == gpu.gpu.context + gpu.used()


def test_launches_are_counted(gpu: virtual_gpu.VirtualGPU) -> None:
    before = gpu.launches

    torch.zeros(10, device="cuda").add_(1)

    assert gpu.launches > before


def test_a_snapshot_accounts_for_every_segment(gpu: virtual_gpu.VirtualGPU) -> None:
    tensors = [torch.empty(size, device="cuda") for size in (10, 1000, 300_000, 5_000_000)]

    snapshot = torch.cuda.memory_snapshot()
    mine = [segment for segment in snapshot if segment["device"] == 0]

    assert sum(segment["total_size"] for segment in mine) == torch.cuda.memory_reserved() == gpu.used()
    assert sum(segment["allocated_size"] for segment in mine) == torch.cuda.memory_allocated()
    starts = {block["address"] for segment in mine for block in segment["blocks"]}
    assert {tensor.data_ptr() for tensor in tensors} <= starts

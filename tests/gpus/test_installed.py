"""The machine's own devices, found without torch and without beginning CUDA."""

from __future__ import annotations

import pytest
from subprocesses import run_on

from vramkit import UsageError, gpus
from vramkit.gpus.installed import Device


@pytest.mark.virtual_gpu
def test_the_card_of_a_machine_is_found_without_beginning_cuda() -> None:
    card = gpus.find("l4")

    # With `children` the process that lists devices finds the virtual driver as it would find a real one.
    answer = run_on(
        "l4",
        """
        from unittest import mock
        import torch
        from vramkit.engines import choosing
        with mock.patch.object(choosing.virtual_gpu, "current", lambda: None):
            found = choosing.current_gpu()
        result = [found.product, found.memory, found.capability, found.multiprocessors, found.l2_cache, found.context]
        result.append(torch.cuda.is_initialized())
        """,
        children=True,
    )

    figures = [card.product, card.memory, [*card.capability], card.multiprocessors, card.l2_cache, card.context]
    assert answer == [*figures, False]


def test_a_card_that_no_catalogue_knows_is_one_all_the_same() -> None:
    device = Device(name="NVIDIA Example", memory=20 << 30, capability=(8, 6), multiprocessors=64, l2_cache=4 << 20)

    assert device.as_gpu().product == "NVIDIA Example"
    assert device.as_gpu().context == gpus.find(gpus.GENERIC).context


def test_a_card_of_an_unknown_generation_is_refused() -> None:
    old = Device(name="An old one", memory=4 << 30, capability=(3, 5), multiprocessors=8, l2_cache=1 << 20)

    with pytest.raises(UsageError, match=r"compute capability \(3, 5\)"):
        old.as_gpu()

"""Operators whose kernels take memory of their own: on fakes they ask for what they ask the real allocator for."""

from __future__ import annotations

import pytest
from operator_calls import CALLS, REFUSED

from vramkit import gpus
from vramkit.devtools import opcheck

A100 = gpus.find("a100-80gb")


def test_what_differs_is_told_with_the_operator_and_the_bound() -> None:
    real = opcheck.Asked(sizes=(8, 16, -16, -8))
    fake = opcheck.Asked(sizes=(8, -8), operators=("mm", "detach"), assumed={"a guess": 10})

    compared = opcheck.Compared(real=real, fake=fake)

    assert not compared.is_equal
    assert not compared.is_bounded  # 24 B were in use, and 8 B were predicted
    assert "mm | detach: real +16 -16; fake nothing" in str(compared)
    assert "BEYOND" in str(compared)


@pytest.mark.virtual_gpu
def test_torchs_samples_are_run_forward_and_backward(capsys: pytest.CaptureFixture[str]) -> None:
    status = opcheck.main(["softmax", "--samples", "3"])

    assert status == 0
    assert "calls are equal; 0 operators differ" in capsys.readouterr().out


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("name", CALLS)
def test_an_operator_takes_on_fakes_what_it_takes_on_a_gpu(name: str) -> None:
    real, fake = opcheck.on_the_device(CALLS[name]), opcheck.on_fakes(CALLS[name], A100)

    assert (real.failure, fake.failure) == ("", "")
    assert fake.sizes == real.sizes, opcheck.Compared(real=real, fake=fake)


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("name", REFUSED)
def test_types_that_a_kernel_refuses_are_refused_on_fakes_in_the_same_words(name: str) -> None:
    real, fake = opcheck.on_the_device(REFUSED[name]), opcheck.on_fakes(REFUSED[name], A100)

    assert real.failure
    assert fake.failure == real.failure

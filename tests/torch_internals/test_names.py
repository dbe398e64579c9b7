"""How a private name is looked up, and what is said of one that is missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vramkit.errors import DeviceError
from vramkit.torch_internals import names
from vramkit.torch_internals.names import TABLE, caller_of, look_up, mentioned, place_of, reader_of, word_of
from vramkit.torch_internals.needs import missing_for, require

GONE = "torch._C._a_name_that_no_torch_has"


@pytest.fixture(autouse=True)
def _table_is_as_before() -> Iterator[None]:
    count = len(TABLE)
    yield
    del TABLE[count:]


def test_a_name_that_is_there_is_torchs_own_object() -> None:
    assert look_up("torch._C._get_tracing_state", "profile") is torch._C._get_tracing_state


def test_a_module_that_its_package_hides_is_found() -> None:
    assert not hasattr(torch.optim, "optimizer")
    assert look_up("torch.optim.optimizer.Optimizer", "programs") is torch.optim.Optimizer


def test_an_attribute_is_read_without_python() -> None:
    tensor = torch.zeros(3)

    read, call = reader_of("torch.Tensor._version", "profile"), caller_of("torch.Tensor._is_view", "profile")

    assert (read(tensor), call(tensor), call(tensor[:1])) == (0, False, True)
    assert not hasattr(read, "__code__")
    assert not hasattr(call, "__code__")


def test_a_fallback_takes_the_place_of_a_name_and_no_verb_minds() -> None:
    assert look_up(GONE, "closed forms", fallback=len) is len
    assert look_up(GONE, "closed forms", fallback=None) is None
    assert reader_of(GONE, "closed forms", fallback=id) is id
    assert missing_for("closed forms") == []


def test_a_name_that_only_some_objects_have_is_one_that_none_has_where_torch_lacks_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert word_of("torch.nn.Module._is_replica", "profile") == "_is_replica"

    def lacks(path: str, probe: object) -> object:
        raise AttributeError(path)

    monkeypatch.setattr(names, "find", lacks)

    assert word_of("torch.nn.Module._is_replica", "profile") == ""


def test_a_probe_finds_what_torchs_own_code_uses_no_more() -> None:
    assert mentioned("_modules", torch.nn.Module.add_module) == "_modules"
    with pytest.raises(AttributeError, match="_a_dict_of_another_name"):
        mentioned("_a_dict_of_another_name", torch.nn.Module.add_module)


def test_a_missing_name_is_told_up_front_with_torchs_version_and_those_that_have_it() -> None:
    look_up(GONE, "closed forms", versions="2.15 and newer")

    require("Something else was asked for", "profile on the CPU")
    with pytest.raises(DeviceError) as caught:
        require("A sum was asked for", "closed forms")

    assert str(caught.value) == (
        f"A sum was asked for. This is torch {torch.__version__}, which lacks {GONE} (torch 2.15 and newer have it). "
        "There is no public name for it, and nothing takes its place. "
        "Install a torch that has it, or a vramkit that knows this one."
    )


def test_what_stands_for_a_missing_name_fails_alike_when_it_is_used() -> None:
    stands = look_up(GONE, "closed forms")

    class Derived(stands):  # type: ignore[misc, valid-type]
        pass

    for use in (stands, Derived, lambda: stands(1, two=2)):
        with pytest.raises(DeviceError, match=GONE):
            use()
    assert not isinstance(torch.zeros(1), stands)


def test_a_place_says_where_a_name_can_be_replaced() -> None:
    place = place_of("torch.optim.optimizer._foreach_supported_types", "fake engine")

    assert vars(place.owner)[place.name][:2] == [torch.Tensor, torch.nn.Parameter]  # and DTensor, once that is imported

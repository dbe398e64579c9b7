"""Variables that say which device: found in what a step uses, and changed. No torch."""

from __future__ import annotations

from vramkit.programs.device_names import become_cuda, is_used

device = "cpu"
other = "cpu"


def moves() -> str:
    return device


def calls() -> list[str]:
    return [moves() for _ in range(1)]


def takes_other() -> str:
    return other


def closing(dev: str) -> object:
    def step() -> str:
        return dev

    return step


class Trainer:
    def step(self) -> str:
        return device


def copied(function: object) -> object:
    """With globals of its own, as one that was sent by value."""
    own = type(moves)
    mine = {**globals()}
    for name in ("moves", "calls", "takes_other"):
        mine[name] = own(globals()[name].__code__, mine, name)
    return mine[function.__name__]  # type: ignore[attr-defined]


def test_a_device_that_a_step_uses_becomes_cuda_for_it_alone() -> None:
    for function in (moves, calls):
        mine = copied(function)
        assert is_used(mine)

        become_cuda(mine)

        assert mine() in ("cuda", ["cuda"])  # type: ignore[operator]
        assert not is_used(mine)
    assert moves() == device == "cpu"


def test_a_closure_and_a_method_have_one_too() -> None:
    step = closing("cpu")
    assert is_used(step)

    become_cuda(step)

    assert step() == "cuda"  # type: ignore[operator]
    assert not is_used(closing("cuda"))
    assert is_used(Trainer().step)


def test_what_is_named_otherwise_or_is_no_function_is_left() -> None:
    assert not is_used(takes_other)
    assert not is_used(None)
    assert not is_used(Trainer())

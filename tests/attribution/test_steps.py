"""Where steps end and what is evaluation, on programs that are told in letters."""

from __future__ import annotations

import pytest

from vramkit.attribution.recording import EVALUATES, NO_GRAD, Kind, Mark
from vramkit.attribution.steps import Steps

FORWARDS = {
    # letter: model, mode, and whether it made a graph
    "F": (0, 0, True),  # of the model that trains, as it trains
    "N": (0, NO_GRAD, False),
    "e": (0, NO_GRAD | EVALUATES, False),
    "E": (0, EVALUATES, True),  # in evaluation mode, and nobody switched gradients off
    "x": (0, 0, False),  # an exception left it
    "t": (1, NO_GRAD | EVALUATES, False),  # of another model, which never trains
    "p": (1, 0, False),  # of another model that has nothing to train, and nobody switched gradients off
    "G": (2, 0, True),  # a second model that trains
    "n": (2, NO_GRAD, False),
}


def marks_of(program: str) -> tuple[list[Mark], dict[int, int]]:
    """The marks of a program, and the place in it of the letter that each forward's first mark is of.

    Beside the forwards: ``B`` a backward, ``O`` and ``P`` steps of two optimizers, ``S`` what the user says.
    """
    marks: list[Mark] = []
    places = {}
    for place, letter in enumerate(program):
        if letter in FORWARDS:
            model, mode, has_graph = FORWARDS[letter]
            places[len(marks) + 1] = place
            marks.append((Kind.ROOT, model, 0))
            marks += [(Kind.MODE, mode, 0)] * bool(mode)
            marks.append((Kind.ROOT_END, model, 0))
            marks += [(Kind.LEFT, model, 0)] * (letter == "x")
            marks += [(Kind.GRAPH, model, 0)] * has_graph
        elif letter == "B":
            marks += [(Kind.BACKWARD, 0, 0), (Kind.BACKWARD_END, 0, 0)]
        elif letter in "OP":
            optimizer = "OP".index(letter)
            marks += [(Kind.OPTIMIZER, optimizer, 0), (Kind.OPTIMIZER_END, optimizer, 0)]
        elif letter == "S":
            marks.append((Kind.STEP, 0, 0))
    return marks, places


def told(program: str) -> tuple[str, int]:
    """A program with ``.`` in place of every forward that is evaluation; and how many steps it has."""
    program = program.replace(" ", "")
    marks, places = marks_of(program)
    steps = Steps(marks, {0: 0}, range(3))
    letters = list(program)
    for number in steps.evaluation:
        letters[places[number]] = "."
    return "".join(letters), int(steps.step.max()) + 1


@pytest.mark.parametrize(
    ("program", "expected", "steps"),
    [
        ("FBO FBO", "FBO FBO", 2),
        ("FBO FBO ee", "FBO FBO ..", 2),
        ("FBO FBO NN", "FBO FBO ..", 2),
        ("FBO FBO tt", "FBO FBO ..", 2),
        ("FBO FBO pp", "FBO FBO ..", 2),
        ("pFBO pFBO pepe pFBO pFBO pe", "pFBO pFBO .... pFBO pFBO ..", 4),
        ("FBO FBO eee FBO FBO eee", "FBO FBO ... FBO FBO ...", 4),
        ("FBO FBO NNN FBO FBO NNN", "FBO FBO ... FBO FBO ...", 4),
        ("FBO FBO EEE FBO FBO EEE", "FBO FBO ... FBO FBO ...", 4),
        ("FBO e FBO e FBO e", "FBO . FBO . FBO .", 3),
        ("FBO N FBO N FBO N", "FBO . FBO . FBO .", 3),
        ("ee FBO FBO FBO ee FBO FBO", ".. FBO FBO FBO .. FBO FBO", 5),
        ("e FBO", ". FBO", 1),
        ("FBFBe FBFBO FBFBO FBFBO e FBFBO", "FBFB. FBFBO FBFBO FBFBO . FBFBO", 4),
    ],
    ids=[
        "training alone", "evaluation at the end", "without eval()", "of another model", "of a frozen model",
        "of what steps use as well", "between epochs",
        "between epochs, without eval()", "with gradients", "after every step", "after every step, without eval()",
        "before training as well", "a check before the only step", "between accumulated backwards",
    ],
)  # fmt: skip
def test_a_forward_that_no_backward_follows_is_evaluation_and_no_step(program: str, expected: str, steps: int) -> None:
    assert told(program) == (expected.replace(" ", ""), steps)


@pytest.mark.parametrize(
    ("program", "steps"),
    [
        ("tFBO tFBO tFBO", 3),
        ("pFBO pFBO pFBO", 3),
        ("FtBO FtBO", 2),
        ("FBO FBO tFBO tFBO tFBO", 5),
        ("eFBO eFBO eFBO", 3),
        ("FNBO FNBO", 2),
        ("nFFBO GFBP nFFBO GFBP", 2),
        ("tFBO tFBO tx", 3),
        ("EBO EBO EBO", 3),
        ("FBO FBO x", 3),
        ("FEBO FEBO", 2),
    ],
    ids=[
        "a teacher", "what prepares the batch", "a teacher in the middle", "a teacher that comes later",
        "labels of its own", "a second look before the backward", "a GAN",
        "an exception after the teacher", "always in evaluation mode",
        "an exception in a forward", "a second loss in evaluation mode",
    ],
)  # fmt: skip
def test_a_forward_without_gradients_that_steps_need_is_part_of_them(program: str, steps: int) -> None:
    assert told(program) == (program.replace(" ", ""), steps)


def test_a_rollout_before_several_steps_is_none_of_them() -> None:
    assert told("NNNN FBO FBO FBO NNNN FBO FBO FBO") == ("....FBOFBOFBO....FBOFBOFBO", 6)


@pytest.mark.parametrize(
    ("program", "expected", "steps"),
    [
        ("FBOS FBOS eS eS", "FBOS FBOS .S .S", 2),
        ("FBOS FBOS eS eS FBOS FBOS", "FBOS FBOS .S .S FBOS FBOS", 4),
        ("FBOFBOS FBOFBOS", "FBOFBOS FBOFBOS", 2),
        ("eeS eeS", "..S ..S", 2),
    ],
)
def test_what_the_user_ends_is_a_step_if_it_trained_or_nothing_does(program: str, expected: str, steps: int) -> None:
    assert told(program) == (expected.replace(" ", ""), steps)


def test_where_nothing_trains_a_step_is_a_forward_of_the_first_model() -> None:
    assert told("et et et") == ("......", 3)
    assert told("FFF") == ("FFF", 3), "with gradients it may be the beginning of a training"

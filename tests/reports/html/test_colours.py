"""The categories' colours can be told apart, by people with each kind of colour blindness too."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from vramkit.devtools.chartlib import ASSETS
from vramkit.tape.events import Category

Floats = npt.NDArray[np.float64]

# What dichromats see, of linear RGB: the matrices of Machado, Oliveira and Fernandes (2009), severity 1.
SEEN_BY = {
    "everybody": np.eye(3),
    "protanopes": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopes": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopes": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
CLEAR = 15
"""Of CIE 1976's difference, of which 2.3 can just be noticed side by side."""


def lab(linear: Floats) -> Floats:
    """CIELAB of linear sRGB under D65."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear.clip(0, 1)
    xyz /= np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    found: Floats = np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
    return found


def linear(colour: str) -> Floats:
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    found: Floats = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return found


def themes() -> dict[str, dict[str, str]]:
    """The colours of each theme's parts, as the page's style has them."""
    light, dark = (ASSETS / "page.css").read_text(encoding="utf-8").split(':root[data-theme="dark"] {', 1)
    return {
        name: dict(re.findall(r"--([\w-]+): (#\w{6});", text.partition("}")[0]))
        for name, text in (("light", light.partition("{")[2]), ("dark", dark))
    }


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("person", SEEN_BY)
def test_every_two_colours_differ_clearly(person: str, theme: str) -> None:
    parts = {name: colour for name, colour in themes()[theme].items() if name.startswith(("category-", "slack"))}
    seen = {name: lab(SEEN_BY[person] @ linear(colour)) for name, colour in parts.items()}

    alike = {(a, b) for a, b in combinations(seen, 2) if np.linalg.norm(seen[a] - seen[b]) < CLEAR}
    assert len(seen) > len(Category), "one for each, and the slack's"
    assert alike == set()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("behind", ["page", "ground", "level-colour", *(f"phase-{i}" for i in range(1, 6))])
def test_text_can_be_read_on_whatever_is_behind_it(behind: str, theme: str) -> None:
    colours = themes()[theme]
    light = [float(np.array([0.2126, 0.7152, 0.0722]) @ linear(colours[name])) for name in (behind, "ink")]

    assert (max(light) + 0.05) / (min(light) + 0.05) >= 4.5, "what the web's guidelines (WCAG 2) ask for"

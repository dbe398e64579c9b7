"""What a search shows while it runs."""

from __future__ import annotations

import io

from vramkit import Trial
from vramkit.batch_size.progress import Progress


def trial(size: int, *, fits: bool = True) -> Trial:
    return Trial(batch_size=size, fits=fits, peak_allocated=1 << 20, peak_reserved=3 << 30, seconds=1.25)


def test_each_trial_replaces_the_line_and_the_end_clears_it():
    stream = io.StringIO()

    with Progress(True, stream=stream, patience=0) as progress:
        progress(trial(1024))
        progress(trial(2048, fits=False))

    shown = stream.getvalue().split("\r\x1b[K")
    assert shown[1] == "vramkit: batch size 1,024 fits, 3.00 GiB reserved (trial 1, 1.2 s)"
    assert shown[2].startswith("vramkit: batch size 2,048 does not fit")
    assert shown[3] == ""


def test_nothing_is_shown_without_a_terminal_or_before_it_takes_long():
    hidden, short = io.StringIO(), io.StringIO()

    with Progress(False, stream=hidden, patience=0) as silent, Progress(True, stream=short, patience=1e9) as patient:
        silent(trial(2))
        patient(trial(2))

    assert hidden.getvalue() == ""
    assert short.getvalue() == ""


def test_whoever_asked_gets_every_trial():
    seen = []

    with Progress(False, seen.append) as progress:
        progress(trial(2))
        progress(trial(3))

    assert [each.batch_size for each in seen] == [2, 3]

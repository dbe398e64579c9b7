"""``%%vram`` in a real IPython shell."""

from __future__ import annotations

import pytest
from frameworks import missing
from subprocesses import run_on

needs = pytest.mark.skipif(bool(missing("IPython")), reason=missing("IPython"))


@needs
@pytest.mark.virtual_gpu
def test_a_cell_shows_its_memory_and_one_that_fails_too() -> None:
    found = run_on(
        "t4",
        """
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    shell = InteractiveShell.instance()
    with capture_output() as said:
        shell.run_line_magic("load_ext", "vramkit")
        shell.run_cell("import torch")
        good = shell.run_cell("%%vram --stacks kept\\nx = torch.zeros(1 << 20, device='cuda')\\n").result
        shell.run_cell("%%vram bad\\ny = torch.zeros(1 << 40, device='cuda')\\n")
        import vramkit
        with vramkit.profile():
            twice = shell.run_cell("%%vram again\\npass\\n").error_in_exec
        wrong = shell.run_cell("%%vram 1\\npass\\n").error_in_exec
    names = shell.user_ns
    result = {
        "good": good.peak_allocated, "same": names["kept"] is good, "x": names["x"].numel(),
        "line": [line for line in good.tape.lines if line], "bad": len(names["bad"].out_of_memory),
        "said": said.stdout + said.stderr, "wrong": str(wrong), "twice": str(twice),
    }
    """,
    )

    assert found["good"] == 4 << 20
    assert found["same"]
    assert found["x"] == 1 << 20
    assert len(found["line"]) == 1
    assert found["bad"] == 1
    assert "OutOfMemoryError" in found["said"]
    assert "Another one is still measuring" in found["twice"]
    assert "'1' is no name of a variable" in found["wrong"]

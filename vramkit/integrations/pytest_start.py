"""Makes a pytest the process in which tests are measured. Imported with ``-p``, before pytest reads its settings.

Knows how the two processes speak. PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from typing import Any

import pytest

from .pytest_process import CHANNEL

# Taken out: a pytest that a test starts is an ordinary one.
channel = Connection(int(os.environ.pop(CHANNEL)))


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Take over the options of the pytest that started this one."""
    options: dict[str, Any] = channel.recv()
    vars(config.option).update(options)

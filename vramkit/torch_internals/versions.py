"""Which torch this is, where no probe can tell what its kernels do: that is no name, but a rule in C++."""

from __future__ import annotations

import torch

from ..torch_releases import TieBreak, release_of, tie_break_of

_RELEASE = release_of(torch.__version__)

SINCE_2_9: bool = _RELEASE >= (2, 9)
SINCE_2_10: bool = _RELEASE >= (2, 10)
SINCE_2_12: bool = _RELEASE >= (2, 12)
SINCE_2_14: bool = _RELEASE >= (2, 14)
SINCE_2_15: bool = _RELEASE >= (2, 15)
"""Whether this is that torch or a newer one; its nightly builds and release candidates count."""

BLAS_KEEPS_WORKSPACE: bool = not SINCE_2_15
"""Whether cuBLAS's workspace is kept, for each handle and stream, or taken for each product."""
LT_HAS_WORKSPACE: bool = not SINCE_2_12
"""Whether torch gives cuBLASLt a workspace of its own; later ones let it use cuBLAS's."""
LT_KEEPS_WORKSPACE: bool = SINCE_2_9
"""Whether that one is kept, for each handle and stream, or taken for each product."""

TIE_BREAK: TieBreak = tie_break_of(torch.__version__)
"""Which of equally large free blocks this torch's allocator takes. Nothing in Python shows it, and to try it out would
take a device."""

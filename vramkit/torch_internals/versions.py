"""Which torch this is, where no probe can tell what its kernels do: that is no name, but a rule in C++."""

from __future__ import annotations

import torch

SINCE_2_14: bool = torch.torch_version.TorchVersion(torch.__version__) >= "2.14.0a0"
"""Whether this is torch 2.14 or a newer one; its nightly builds and release candidates count."""

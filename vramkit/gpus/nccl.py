"""What NCCL takes of a card beside torch's memory: what it says itself, and what others saw it take.

No rule is published by which its size follows from a job, so there is no figure where it was not asked.
"""

from __future__ import annotations

from dataclasses import dataclass

_SEEN = {
    "A100": "544 to 688 MB for each group on 4 A100 (github.com/NVIDIA/nccl, issue 964)",
    "H100": "1.06 GB on 8 H100, 4.34 GB after an all-to-all (github.com/NVIDIA/nccl, issue 1685)",
    "B300": "0.5 GB for a group of one rank on B300, NCCL 2.28.9 (github.com/NVIDIA/nccl, issue 2363)",
}
"""By a part of the card's name."""
_ELSEWHERE = "others saw 0.5 GB and more on a card"


@dataclass(frozen=True, slots=True, kw_only=True)
class NCCL:
    """Communicators on a card, and what they take of it."""

    communicators: int
    """How many this process has."""
    size: int | None = None
    """Bytes that NCCL says it has there, a part of what is in use beside torch's memory; None: it was not asked, for it
    is older than 2.30, or the card is not there."""


def seen(product: str) -> str:
    """What others saw NCCL take on a card, as a part of a sentence.

    Args:
        product: of the card, as it calls itself.
    """
    return next((text for name, text in _SEEN.items() if name in product), _ELSEWHERE)

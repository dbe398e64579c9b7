"""`Profile`: what a recording comes to, of one device or several. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import UsageError
from .readable import ReadableResult


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Profile(ReadableResult):
    """A measured profile: what `vramkit.profile` leaves behind.

    ::

        with vramkit.profile(model, optimizer) as prof:
            train()
        print(prof.result)
        prof.result.peak.activations

    Where several devices were used this is the fullest one's; ``on()`` gives the others'.

    Known limitations: memory that a kernel takes and gives back inside one operator is TEMPORARY, whichever library
    asked for it; only cuBLAS's lasting workspace is told apart. Memory that torch's allocator does not hand out (NCCL,
    other libraries, the CUDA context) is in ``outside``, as one figure. On a virtual GPU every forward is
    followed module by module, with its backward; else, of each kind (model, gradients, mode, and what came before),
    three in a row of every 67. The others get the modules of one with the same sequence of allocations and frees, or,
    where none has it, the outermost module alone.
    """

    others: tuple[Profile, ...] = ()
    """Profiles of the other devices that were used meanwhile."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Every device that was used, this one first."""
        return (self.device, *(other.device for other in self.others))

    def on(self, device: str) -> Profile:
        """The profile of one device.

        Args:
            device: in torch's words, "cuda:1".

        Raises:
            UsageError: that device was not used.
        """
        for each in self.each_device():
            if each.device == str(device):
                return each
        raise UsageError(
            f"The profile of {device} was asked for",
            f"this recording used {', '.join(self.devices)}",
            instead="Name one of those",
        )

    def each_device(self) -> Iterator[Profile]:
        """This profile and those of the other devices."""
        yield self
        yield from self.others

"""The one room that names torch's private parts. README.md beside this file says how a name is added.

A verb asks `needs.require` before any of the user's code runs; other files then take what they use from here. A torch
that is too old is refused by the first import of anything in here.
"""

from __future__ import annotations

from ..torch_releases import check, installed

check("vramkit was to work with torch", installed())  # without importing torch: a virtual GPU comes before it

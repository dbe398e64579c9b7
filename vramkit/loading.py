"""``vramkit.load``: a saved result as what it was, a `Profile` or an `Estimate`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np

from .errors import SnapshotError
from .estimation.result import Estimate, restored
from .results.archive import FORMAT, TABLES, DamagedError, check, with_pools
from .results.profile import Profile
from .tape.events import Module, Table, Tape


def load(path: str | PathLike[str]) -> Profile | Estimate:
    """Open what ``save`` of a profile or an estimate wrote.

    ::

        profile = vramkit.load("step.npz")
        print(profile)

    Args:
        path: of the file.

    Returns:
        A result equal to the one that was saved, in every table and figure. An estimate can't run its program again.

    Raises:
        SnapshotError: the file is damaged, is something else, or was written by a newer vramkit.
        OSError: there is no such file, or it can't be read.
    """
    with open(path, "rb") as file:
        content = file.read()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            meta = json.loads(bytes(archive["meta"]).decode())
            version = meta["format"]
            if version == FORMAT:
                return _read(meta, archive.__getitem__)
            if version == 1:
                return _read(meta, lambda name: with_pools(archive[name]))
    except Exception as error:  # what a damaged file makes zipfile, zlib, numpy and json raise is anything
        raise SnapshotError(
            f"{path} was opened as a saved profile",
            f"it can't be read: {error if isinstance(error, DamagedError) else type(error).__name__}",
            "It is damaged, or is not what vramkit saved",
            "Save the profile again with profile.save(path)",
        ) from error
    raise SnapshotError(
        f"{path} was opened as a saved profile",
        f"it is of format {version!r}, and this vramkit reads formats 1 to {FORMAT}",
        instead="Open it with the vramkit that wrote it, or a newer one",
    )


def _read(meta: dict[str, Any], table: Callable[[str], Table]) -> Profile | Estimate:
    profiles = [_profile(each, number, table) for number, each in enumerate(meta["devices"])]
    first, *others = profiles
    if meta["kind"] == "Estimate" and meta.get("particulars"):  # older files have none, and are opened as profiles
        return restored(first, meta["particulars"])
    return replace(first, others=tuple(others))


def _profile(each: dict[str, Any], number: int, table: Callable[[str], Table]) -> Profile:
    tables = {}
    for name, dtype in TABLES.items():
        tables[name] = table(f"{number}.{name}")
        if tables[name].dtype != dtype or tables[name].ndim != 1:
            raise DamagedError(f"the table {name!r} has the wrong columns")
    modules = tuple(Module(**{**module, "output_shape": tuple(module["output_shape"])}) for module in each["modules"])
    names = tuple(map(str, each["names"]))
    check(tables, len(modules), len(names))
    tape = Tape(**tables, modules=modules, names=names, device=str(each["device"]), alloc_conf=str(each["alloc_conf"]))
    return Profile(
        tape=tape,
        device_name=str(each["device_name"]),
        capacity=int(each["capacity"]),
        outside=int(each["outside"]),
        versions={str(key): str(value) for key, value in each["versions"].items()},
        notes=tuple(map(str, each["notes"])),
    )

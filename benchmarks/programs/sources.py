"""Finds fetched repositories, and takes a program's files out of the commit that the catalogue names."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path


class SourceError(Exception):
    """A program's source isn't there; the text says how to get it."""


def extract(sources: Path, repository: str, commit: str, paths: tuple[str, ...], target: Path) -> None:
    """Write a commit's files below some paths, git's pathspecs, into a new folder.

    Raises:
        SourceError: the repository, or the commit, isn't there.
    """
    owner, name = repository.split("/")
    places = [sources / owner / name, sources / f"{owner}+{name}/repo", sources / name]
    place = next((each for each in places if _has(each, commit)), None)
    if place is None:
        raise SourceError(
            f"{repository} at {commit[:10]} is not in {sources}: "
            f"git clone https://github.com/{repository} {sources / name}"
        )
    made = subprocess.run(["git", "-C", place, "archive", commit, "--", *paths], capture_output=True, check=False)
    if made.returncode:
        raise SourceError(f"{repository} at {commit[:10]}: {made.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(target, filter="data")


def _has(place: Path, commit: str) -> bool:
    command = ["git", "-C", place, "cat-file", "-e", f"{commit}^{{commit}}"]
    return place.is_dir() and not subprocess.run(command, capture_output=True, check=False).returncode

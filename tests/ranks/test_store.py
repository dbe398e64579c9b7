"""The store of a rank that is alone: nobody waits in it, and nothing is made up."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch.distributed")
from torch.distributed import FileStore, PrefixStore

from vramkit.errors import UsageError
from vramkit.ranks.store import Meeting, MirrorStore


def test_what_this_rank_wrote_is_read_and_what_another_would_have_written_is_an_error() -> None:
    store = MirrorStore(4)
    store.set("mine", "here")

    assert store.get("mine") == b"here"
    with pytest.raises(UsageError, match=r"'theirs'.*not played.*--ranks all"):
        store.get("theirs")
    store.wait(["theirs"])
    assert not store.check(["mine", "theirs"])


def test_ranks_that_meet_read_what_the_others_wrote_and_do_not_wait_for_ever(tmp_path: Path) -> None:
    one, two = (MirrorStore(4, FileStore(str(tmp_path / "meeting"), 2), patience=0.1) for _ in range(2))

    one.set("told", "yes")
    one.set("both", "1")
    two.set("both", "2")

    assert (two.get("told"), one.get("both"), two.get("both")) == (b"yes", b"1", b"2")
    assert two.check(["told", "both"])
    assert not two.check(["told", "theirs"])
    with pytest.raises(UsageError, match=r"'theirs'.*no rank that is played has written"):
        two.get("theirs")


def test_an_id_of_nccl_is_there_and_looks_like_none() -> None:
    store = MirrorStore(4)

    assert PrefixStore("default_pg/0//cuda//", store).get("0") == bytes(128)
    assert store.get("cuda/0:3") == bytes(128)


def test_every_rank_counts() -> None:
    store = MirrorStore(4)

    assert store.add("arrived", 1) == 4
    assert store.add("arrived", 0) == 4


def test_a_meeting_takes_rank_and_size_from_the_address_or_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    meeting = Meeting(8)

    assert next(meeting("env://"))[1:] == (3, 8)
    assert next(meeting("tcp://host:1?rank=1&world_size=8"))[1:] == (1, 8)
    with pytest.raises(UsageError, match=r"2 ranks.*--world-size 2"):
        next(meeting("tcp://host:1?rank=1&world_size=2"))

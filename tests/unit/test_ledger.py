"""The ledger: one writer, replaced as a whole, never started empty over what can't be read."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.agent.keys import Generation, Key, Keys, State
from dpop_agent.agent.ledger import FILE, Contents, Ledger
from dpop_agent.errors import ConfigurationError, LedgerUnreadable, NotDurable

AT = "2026-11-20T19:05:00Z"


def contents(*names: str) -> Contents:
    made = Generation(1, State.ACTIVE, "ab" * 16, AT, AT, jkt="j" * 43, jwk={"kty": "EC"})
    keys = (Key(name, "soft", "ES256", AT, generations=(made,)) for name in names)
    return Contents(Keys(keys), {"request-1": {"method": "key.create", "params": {}, "at": AT}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Ledger]:
    ledger = Ledger(str(folder))
    try:
        yield ledger
    finally:
        ledger.close()


def names(folder: Path) -> list[str]:
    with opened(folder) as ledger:
        return sorted(ledger.contents.keys)


def test_a_new_ledger_is_empty_and_writes_nothing(folder: Path) -> None:
    with opened(folder) as ledger:
        assert dict(ledger.contents.keys) == {}
        assert dict(ledger.contents.requests) == {}
        assert not (folder / FILE).exists()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_was_written_is_read_back(folder: Path) -> None:
    with opened(folder) as ledger:
        ledger.write(contents("a", "b"))
        assert sorted(ledger.contents.keys) == ["a", "b"]
    with opened(folder) as ledger:
        assert dict(ledger.contents.keys) == dict(contents("a", "b").keys)
        assert ledger.contents.requests == contents().requests


def test_the_file_is_for_its_owner_alone_whatever_the_umask(folder: Path) -> None:
    umask = os.umask(0)
    try:
        with opened(folder) as ledger:
            ledger.write(contents("a"))
            assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600
            assert stat.S_IMODE((folder / "ledger.lock").stat().st_mode) == 0o600
    finally:
        os.umask(umask)


def test_the_new_file_is_durable_before_it_has_the_name_and_the_name_before_it_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.replace

    def told_fsync(descriptor: int) -> None:
        steps.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def told_replace(old: str, new: str) -> None:
        size = Path(old).stat().st_size
        assert json.loads(Path(old).read_text())["version"] == 1, size
        steps.append(("replace", Path(new).name))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", told_fsync)
    monkeypatch.setattr(os, "replace", told_replace)
    with opened(folder) as ledger:
        ledger.write(contents("a"))
    assert steps == [("fsync", FILE + ".new"), ("replace", FILE), ("fsync", folder.name)]


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_write_that_fails_keeps_the_old_contents_in_the_file_and_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with opened(folder) as ledger:
        ledger.write(contents("old"))
        before = (folder / FILE).read_bytes()

        def fails(*args: Any, **kwargs: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, step, fails)
            with pytest.raises(NotDurable, match="No space left on device") as failed:
                ledger.write(contents("new"))
        assert failed.value.retry == "later"
        assert failed.value.hint
        assert (folder / FILE).read_bytes() == before
        assert sorted(ledger.contents.keys) == ["old"]
        ledger.write(contents("new"))
    assert names(folder) == ["new"]


def test_a_file_that_cant_grow_keeps_the_old_contents(folder: Path) -> None:
    """The kernel's own refusal in the middle of a write."""
    many = contents(*(f"key-{n}" for n in range(50)))
    with opened(folder) as ledger:
        ledger.write(contents("old"))
        before = (folder / FILE).read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            with pytest.raises(NotDurable, match="File too large"):
                ledger.write(many)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (folder / FILE).read_bytes() == before
        assert sorted(ledger.contents.keys) == ["old"]
        ledger.write(many)
    assert len(names(folder)) == 50


def test_what_an_ended_writer_left_is_written_over(folder: Path) -> None:
    with opened(folder) as ledger:
        ledger.write(contents("a"))
    (folder / (FILE + ".new")).write_text("half of a led")
    assert names(folder) == ["a"]
    with opened(folder) as ledger:
        ledger.write(contents("b"))
    assert names(folder) == ["b"]


def _without(*path: str | int) -> Callable[[Any], Any]:
    def spoil(document: Any) -> Any:
        place = document
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]
        return document

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d | {"version": 2},
        lambda d: d | {"version": "1"},
        lambda d: d | {"version": None},
        _without("version"),
        _without("keys"),
        _without("requests"),
        _without("keys", 0, "name"),
        _without("keys", 0, "generations", 0, "state"),
        lambda d: d | {"keys": None},
        lambda d: d | {"keys": [1]},
        lambda d: d | {"keys": [d["keys"][0] | {"colour": "red"}]},
        lambda d: d | {"keys": [d["keys"][0] | {"generations": d["keys"][0]["generations"] * 2}]},
        lambda d: d | {"requests": 1},
        lambda d: [],
        lambda d: None,
        lambda d: "",
    ],
)
def test_a_ledger_of_another_form_is_refused_and_stays_as_it_is(
    folder: Path, spoil: Callable[[Any], Any]
) -> None:
    with opened(folder) as ledger:
        ledger.write(contents("a"))
    path = folder / FILE
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    before = path.read_bytes()
    with pytest.raises(LedgerUnreadable, match="can't be read") as refused:
        Ledger(str(folder))
    assert str(path) in refused.value.message
    assert "backup" in refused.value.hint
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\0" * 4096, b"\xff\xfe", b'{"version": 1, "keys": [', b"[" * 100_000],
    ids=["empty", "a brace", "zeros", "not UTF-8", "cut off", "nested without end"],
)
def test_what_isnt_json_is_refused_and_stays_as_it_is(folder: Path, data: bytes) -> None:
    folder.mkdir(mode=0o700)
    (folder / FILE).write_bytes(data)
    with pytest.raises(LedgerUnreadable):
        Ledger(str(folder))
    assert (folder / FILE).read_bytes() == data


def test_a_folder_in_the_ledgers_place_is_refused(folder: Path) -> None:
    (folder / FILE).mkdir(parents=True)
    folder.chmod(0o700)
    with pytest.raises(LedgerUnreadable, match="Is a directory"):
        Ledger(str(folder))


def test_there_is_one_writer(folder: Path) -> None:
    with opened(folder):
        with pytest.raises(ConfigurationError, match="another agent uses the state folder"):
            Ledger(str(folder))
        code = (
            "import sys; from dpop_agent.agent.ledger import Ledger;"
            "from dpop_agent.errors import ConfigurationError\n"
            "try: Ledger(sys.argv[1])\n"
            "except ConfigurationError: print('refused')"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, folder],
            check=True,
            timeout=30,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert run.stdout == "refused\n"
    assert names(folder) == []


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigurationError, match="others can write to the state folder") as refused:
        Ledger(str(folder))
    assert f"chmod 700 {folder}" in refused.value.hint


def test_a_place_where_no_folder_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="can't be used"):
        Ledger(str(tmp_path / "file" / "state"))

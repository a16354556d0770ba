"""The ledger: one writer, replaced as a whole, never started empty over what can't be read."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import random
import re
import resource
import secrets
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.agent.blocks import RECORD, ROOM
from dpop_agent.agent.filters import Filter
from dpop_agent.agent.forms import Block, Remembered, digest_of
from dpop_agent.agent.keys import Generation, Key, Keys, State
from dpop_agent.agent.ledger import BLOCKS, FILE, USES, Contents, Copy, Ledger, Reading, Times
from dpop_agent.agent.rules import Rate, Rules
from dpop_agent.agent.uses import Seen, Use
from dpop_agent.errors import ConfigurationError, LedgerUnreadable, NotDurable
from dpop_agent.jose import ALGORITHMS, ec_jwk, okp_jwk, rsa_jwk, thumbprint
from tests.state_folder import changed, new_public_key

AT = "2026-11-20T19:05:00Z"
ASKED = Remembered("key.create", digest_of({"key": "a"}), AT, 0)


def made(number: int = 1, state: State = State.ACTIVE, **members: Any) -> Generation:
    known = {"protection": "software-token", **new_public_key()}
    return Generation(number, state, secrets.token_hex(16), AT, AT, **(known | members))


def contents(*names: str) -> Contents:
    keys = (Key(name, "soft", "ES256", AT, generations=(made(),)) for name in names)
    return Contents(Keys(keys), {"request-1": ASKED}, observed_s=60)


def used(by: Contents) -> Times:
    use = Use(AT, 5, {"https://a.example": AT}, {"https://[::1]:8443": AT}, left_out=3)
    return Times(dict.fromkeys(by.keys.by_jkt, use), observed_s=120, unclean_s=7)


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
    written = contents("a", "b")
    with opened(folder) as ledger:
        ledger.write(written)
        assert sorted(ledger.contents.keys) == ["a", "b"]
    with opened(folder) as ledger:
        assert ledger.contents == written


def test_what_was_forgotten_is_read_back_and_only_then_has_a_section(folder: Path) -> None:
    marked = made(1, State.DESTROYED, compromised=True, jwk={})
    gone = made(2, State.DESTROYED, jwk={})
    keys = Keys([Key("a", "soft", "ES256", AT, generations=(marked, gone))])
    with opened(folder) as ledger:
        ledger.write(Contents(keys))
        assert b"forgotten" not in (folder / FILE).read_bytes()
        ledger.write(Contents(keys.forget("a")))
    with opened(folder) as ledger:
        assert dict(ledger.contents.keys) == {}
        kept = ledger.contents.keys.forgotten
        assert [(f.key, f.generation, f.compromised) for f in kept.values()] == [
            ("a", 1, True),
            ("a", 2, False),
        ]
        assert list(kept) == [marked.jkt, gone.jkt]
    for wrong in ({"jkt": "short"}, {"key": "A"}, {"generation": 0}, {"compromised": 1}):
        with changed(folder / FILE) as document:
            before = dict(document["forgotten"][0])
            document["forgotten"][0] |= wrong
        with pytest.raises(LedgerUnreadable, match="line"):
            Ledger(str(folder))
        with changed(folder / FILE) as document:
            document["forgotten"][0] = before


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
        assert json.loads(Path(old).read_text())["version"] == 2, size
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


def test_the_file_is_one_json_document_with_a_key_a_line(folder: Path) -> None:
    with opened(folder) as ledger:
        ledger.write(contents("a", "b"))
    text = (folder / FILE).read_text()
    document = json.loads(text)
    assert [key["name"] for key in document["keys"]] == ["a", "b"]
    assert [line[:13] for line in text.splitlines() if '"generations"' in line] == [
        '{"name": "a",',
        '{"name": "b",',
    ]


# What is changed on the disk


FILES = {FILE: "the ledger", USES: "how keys were used", BLOCKS: "which keys are compromised"}


def fill(folder: Path, keys: int) -> None:
    """A state folder with all its files."""
    many = contents(*(f"key-{n}" for n in range(keys)))
    with opened(folder) as ledger:
        ledger.write(many)
        ledger.save(used(many), clean=False)
        ledger.blocks.keep([Block("key-1", "ab" * 16, AT)])
        ledger.save(used(many), clean=True)


def refused(folder: Path, name: str) -> str:
    """What is said of a file that can't be read; the folder is as it was."""

    def files() -> list[tuple[str, int]]:
        found = ((path.name, path.lstat().st_mtime_ns) for path in folder.iterdir())
        return sorted(one for one in found if one[0] != "ledger.lock")

    before = files()
    with pytest.raises(LedgerUnreadable, match="can't be read") as error:
        Ledger(str(folder))
    assert str(folder / name) in error.value.message
    assert FILES[name] in error.value.message
    assert error.value.hint
    assert files() == before
    return error.value.message


def flip(folder: Path, name: str, bits: Iterable[int]) -> None:
    """Every flip of these bits is refused, with the line that it is in."""
    path = folder / name
    good = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for bit in bits:
            byte, flipped = bit // 8, good[bit // 8] ^ 1 << bit % 8
            os.pwrite(file.fileno(), bytes([flipped]), byte)
            with pytest.raises(LedgerUnreadable, match=r"line [0-9]+|it has version") as error:
                Ledger(str(folder))
            os.pwrite(file.fileno(), good[byte : byte + 1], byte)
            # A newline that is gone, or a number of lines that is another, shows a line later.
            line = good[:byte].count(b"\n") + 1
            told = re.search(r"\bline ([0-9]+)", error.value.message)
            assert told is None or line <= int(told[1]) <= line + 1, error.value.message
    assert path.read_bytes() == good
    Ledger(str(folder)).close()


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_each_byte_is_refused_with_its_line(folder: Path, name: str) -> None:
    fill(folder, 3)
    size = min((folder / name).stat().st_size, 2 * RECORD if name == BLOCKS else 2**20)
    flip(folder, name, (8 * byte + byte % 8 for byte in range(size)))


@pytest.mark.long
@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_of_ten_keys_is_refused_with_its_line(folder: Path, name: str) -> None:
    fill(folder, 10)
    size = min((folder / name).stat().st_size, 2 * RECORD if name == BLOCKS else 2**20)
    flip(folder, name, range(8 * size))


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_lost_or_gained_something_at_any_place_is_refused(
    folder: Path, name: str
) -> None:
    fill(folder, 3)
    path = folder / name
    good = path.read_bytes()
    chance = random.Random(8)
    for _ in range(60):
        place, many = chance.randrange(len(good)), chance.randint(1, 700)
        for bad in (
            good[:place],
            good[:place] + good[place + many :],
            good[:place] + good[place : place + many] + good[place:],
            good[:place] + b"\n" + good[place:],
        ):
            if bad == good:
                continue
            path.write_bytes(bad)
            refused(folder, name)


@pytest.mark.parametrize("line", range(7))
def test_a_line_that_is_lost_doubled_or_elsewhere_is_refused(folder: Path, line: int) -> None:
    fill(folder, 3)
    path = folder / FILE
    rows = path.read_bytes().split(b"\n")
    for bad in (
        rows[:line] + rows[line + 1 :],
        rows[: line + 1] + rows[line:],
        [rows[line], *rows[:line], *rows[line + 1 :]],
    ):
        if bad != rows:
            path.write_bytes(b"\n".join(bad))
            assert re.search(r"line [0-9]+|begin with a version", refused(folder, FILE))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("what", ["a directory", "a FIFO", "a socket", "a symbolic link"])
def test_what_isnt_a_file_is_refused_at_once(folder: Path, name: str, what: str) -> None:
    fill(folder, 1)
    path = folder / name
    good = path.rename(folder.parent / "good")
    if what == "a directory":
        path.mkdir()
    elif what == "a FIFO":
        os.mkfifo(path)
    elif what == "a socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    else:
        path.symlink_to(good)
    assert f"it is {what}, not a file" in refused(folder, name)


def test_a_link_to_nothing_is_no_new_ledger(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / FILE).symlink_to(folder / "nowhere")
    assert "symbolic link" in refused(folder, FILE)


def _set(*path: str | int, to: Any) -> Callable[[Any], None]:
    def spoil(document: Any) -> None:
        place = document
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to

    return spoil


def _drop(*path: str | int) -> Callable[[Any], None]:
    def spoil(document: Any) -> None:
        place = document
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]

    return spoil


GENERATION = ("keys", 0, "generations", 0)
DATES = ["2026-02-30T00:00:00Z", "2026-11-20", "2026-11-20T19:05:00+00:00", 5, "\u0662026-11-20"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_drop("observed_s"), "line 1 has no observed_s"),
        (_set("observed_s", to=-1), "observed_s of line 1 isn't seconds"),
        (_set("colour", to="red"), "line 1 has a member that isn't known here, 'colour'"),
        (_set("keys", 1, "name", to="a"), "line 4: the key a appears twice"),
        (_set("keys", 0, "name", to="A"), "line 3: name of a key isn't a key's name"),
        (_set("keys", 0, "store", to=""), "store of the key a isn't a store's name"),
        (_set("keys", 0, "alg", to="ES257"), "alg of the key a isn't an algorithm"),
        *((_set("keys", 0, "created", to=d), "created of the key a isn't") for d in DATES),
        (_set("keys", 0, "origins", to=["https://A.example"]), "origins of the key a isn't"),
        (_set("keys", 0, "origins", to=["https://a.example"] * 2), "origins of the key a isn't"),
        (_set("keys", 0, "origins", to="https://a.example"), "origins of the key a isn't"),
        (_set("keys", 0, "methods", to=["get"]), "methods of the key a isn't a list of at most"),
        (_set("keys", 0, "methods", to=["GET", "GET"]), "methods of the key a isn't"),
        (_set("keys", 0, "paths", to=["/a/"]), "paths of the key a isn't a list of at most"),
        (_set("keys", 0, "paths", to=["/a/..;/b"]), "paths of the key a isn't"),
        (_set("keys", 0, "require_ath", to=None), "require_ath of the key a isn't true or false"),
        (_set("keys", 0, "rate", to={"per_minute": 60}), "rate of the key a isn't null, or an"),
        (_set("keys", 0, "rate", to={"per_minute": 0, "burst": 1}), "rate of the key a isn't"),
        (_set("keys", 0, "confirm_s", to="each"), "confirm_s of the key a isn't seconds"),
        (_set("keys", 0, "allow_sign_proof", to=1), "allow_sign_proof of the key a isn't"),
        (_set("keys", 0, "rotate_every_s", to=0), "rotate_every_s of the key a isn't"),
        (_set("keys", 0, "drain_s", to=True), "drain_s of the key a isn't"),
        (_set("keys", 0, "drain_s", to=1.5), "drain_s of the key a isn't"),
        (_set("keys", 0, "max_drain_s", to=2**40), "max_drain_s of the key a isn't"),
        (_set("keys", 0, "touch", to="yes"), "touch of the key a isn't"),
        (_set("keys", 0, "policy_lost", to=0), "policy_lost of the key a isn't"),
        (_set("keys", 0, "colour", to="red"), "the key a has a member that isn't known here"),
        (_drop("keys", 0, "name"), "line 3: a key has no name"),
        (_drop("keys", 0, "store"), "line 3: the key a has no store"),
        (_set("keys", 0, "generations", to=[]), "generations of the key a isn't"),
        (_set("keys", 0, "generations", to=[5]), "number 1 in the list isn't an object"),
        (_set(*GENERATION, "generation", to=0), "generation of the key a's generation number 1"),
        (_set(*GENERATION, "state", to="asleep"), "line 3: state of a@1 isn't a state"),
        (_set(*GENERATION, "state", to=["active"]), "state of a@1 isn't a state"),
        (_set(*GENERATION, "ref", to="xy"), "ref of a@1 isn't"),
        (_set(*GENERATION, "changed", to="yesterday"), "changed of a@1 isn't"),
        (_set(*GENERATION, "jkt", to="A" * 43), "jwk of a@1 isn't an ES256 key with the thumb"),
        (_set(*GENERATION, "jkt", to=""), "a@1 is active, which doesn't fit its jkt"),
        (_set(*GENERATION, "jwk", to={}), "a@1 is active and has no jwk"),
        (_set(*GENERATION, "jwk", "x", to="A" * 43), "jwk of a@1 isn't an ES256 key"),
        (_set(*GENERATION, "jwk", "d", to="A" * 43), "jwk of a@1 isn't an ES256 key"),
        (_set(*GENERATION, "jwk", "kty", to=5), "jwk of a@1 isn't an ES256 key"),
        (_set("keys", 0, "alg", to="Ed25519"), "jwk of a@1 isn't an Ed25519 key"),
        (_set(*GENERATION, "exportable", to=None), "exportable of a@1 isn't"),
        (_set(*GENERATION, "protection", to="harddisk"), "protection of a@1 isn't"),
        (_set(*GENERATION, "local", to=0), "local of a@1 isn't"),
        (_set(*GENERATION, "slot", to="9A"), "slot of a@1 isn't"),
        (_set(*GENERATION, "touch", to=True), "touch of a@1 isn't"),
        (_set(*GENERATION, "object_left", to=True), "a@1 has object_left, and is active"),
        (_set(*GENERATION, "compromised", to=True), "a@1 was compromised, and is active"),
        (_set(*GENERATION, "state", to="compromised"), "its member compromised is false"),
        (_set(*GENERATION, "since_s", to=61), "since_s of a@1 is later than observed_s"),
        (_set(*GENERATION, "drain_s", to=-1), "drain_s of a@1 isn't"),
        (_set(*GENERATION, "generation", to=9), "a@2 comes after generation 9"),
        (_set("keys", 0, "generations", 1, "state", to="active"), "active generations [1, 2]"),
        (_set("requests", 0, "request", to="x"), "request of a request isn't"),
        (_set("requests", 0, "method", to="key.steal"), "method of a request isn't"),
        (_set("requests", 0, "params", to={}), "params of a request isn't"),
        (_set("requests", 0, "at_s", to="0"), "at_s of a request isn't"),
        (lambda d: d["requests"].append(d["requests"][0]), "the request request-1 appears twice"),
    ],
)
def test_what_cant_be_is_refused_with_its_place_though_its_checksum_fits(
    folder: Path, spoil: Callable[[Any], None], says: str
) -> None:
    with opened(folder) as ledger:
        two = contents("a", "b")
        two_generations = two.keys["a"].with_(made(2, State.STAGED))
        ledger.write(dataclasses.replace(two, keys=two.keys.with_(two_generations)))
    with changed(folder / FILE) as document:
        spoil(document)
    assert says in refused(folder, FILE)


SOCKET = Filter(
    "ci",
    ("a", "b"),
    AT,
    Rules(("https://a.example",), ("GET",), ("/v1",), True, Rate(60, 10), 0),
    gone=("b",),
    expires_at=2**31,
    expires_s=60,
)


def test_filtered_sockets_are_kept_and_their_lines_are_made_once(folder: Path) -> None:
    sockets = {"ci": SOCKET, "two": Filter("two", ("a",), AT)}
    with opened(folder) as ledger:
        ledger.write(dataclasses.replace(contents("a"), sockets=sockets))
    with opened(folder) as ledger:
        assert ledger.contents.sockets == sockets
        before = (folder / FILE).read_bytes()
        ledger.write(ledger.contents)
        assert (folder / FILE).read_bytes() == before
        ledger.write(contents("a"))
    with opened(folder) as ledger:
        assert ledger.contents.sockets == {}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_set("sockets", 0, "name", to="agent"), "name of a socket isn't a socket's name"),
        (_set("sockets", 0, "keys", to=[]), "keys of the socket ci isn't a list of keys' names"),
        (_set("sockets", 0, "keys", to=["a", "a"]), "keys of the socket ci isn't"),
        (_set("sockets", 0, "gone", to=["c"]), "the socket ci has no key of its gone ones"),
        (_set("sockets", 0, "expires_at", to="soon"), "expires_at of the socket ci isn't seconds"),
        (_set("sockets", 0, "expires_s", to=-1), "expires_s of the socket ci isn't seconds"),
        (_set("sockets", 0, "origins", to=["https://A.example"]), "origins of the socket ci isn't"),
        (_set("sockets", 0, "paths", to=["/v1/..;/x"]), "paths of the socket ci isn't"),
        (_set("sockets", 0, "colour", to="red"), "the socket ci has a member that isn't known"),
        (_drop("sockets", 0, "methods"), "the socket ci has no methods"),
        (lambda d: d["sockets"].append(d["sockets"][0]), "the socket ci appears twice"),
    ],
)
def test_a_socket_that_cant_be_is_refused(
    folder: Path, spoil: Callable[[Any], None], says: str
) -> None:
    with opened(folder) as ledger:
        ledger.write(dataclasses.replace(contents("a"), sockets={"ci": SOCKET}))
    with changed(folder / FILE) as document:
        spoil(document)
    assert says in refused(folder, FILE)


def test_one_key_pair_is_one_generation(folder: Path) -> None:
    with opened(folder) as ledger:
        ledger.write(contents("a", "b"))
    with changed(folder / FILE) as document:
        a, b = (key["generations"][0] for key in document["keys"])
        b.update({"jkt": a["jkt"], "jwk": a["jwk"]})
    assert "a@1 and b@1 have the same jkt" in refused(folder, FILE)


def test_a_use_that_cant_be_is_refused(folder: Path) -> None:
    fill(folder, 2)
    good = (folder / USES).read_bytes()
    for spoil, says in (
        (_set("unclean_s", to="0"), "unclean_s of line 1 isn't"),
        (_set("uses", 0, "at_s", to=121), "line 3: at_s is later than observed_s"),
        (_set("uses", 0, "jkt", to="x"), "line 3: jkt of a use isn't"),
        (_set("uses", 0, "left_out", to=-1), "left_out of a use isn't"),
        (_set("uses", 0, "first", to={"https://a.example": 5}), "first of a use isn't"),
        (_set("uses", 0, "last", to={"https://a.example": AT}), "a use has an origin twice"),
        (lambda d: d["uses"].append(d["uses"][0]), "line 5: the jkt"),
    ):
        (folder / USES).write_bytes(good)
        with changed(folder / USES) as document:
            spoil(document)
        assert says in refused(folder, USES)


@pytest.mark.parametrize("name", [FILE, USES])
@pytest.mark.parametrize("version", [0, 3, 99])
def test_a_file_of_another_version_is_told_by_it(folder: Path, name: str, version: int) -> None:
    fill(folder, 1)
    path = folder / name
    path.write_text(path.read_text().replace('"version": 2', f'"version": {version}'))
    assert f"it has version {version}, this agent reads 1 to 2" in refused(folder, name)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_generation_in_any_state_is_the_same_afterwards(
    folder: Path, state: State, alg: str
) -> None:
    row = ALGORITHMS[alg]
    jwk = {
        "EC": lambda: ec_jwk(str(row.crv), *[secrets.token_bytes(row.coordinate_size)] * 2),
        "OKP": lambda: okp_jwk("Ed25519", secrets.token_bytes(32)),
        "RSA": lambda: rsa_jwk(int.from_bytes(secrets.token_bytes(256)), 65537),
    }[row.kty]()
    known = {"jkt": thumbprint(jwk), "jwk": jwk}
    if state is State.PENDING:
        known = {"jkt": "", "jwk": {}}
    flags: dict[str, Any] = {"compromised": state is State.COMPROMISED}
    if state is State.DESTROYED:
        flags |= {"object_left": True, "compromised": True}
    generation = made(7, state, slot="82", touch="cached", drain_s=0, since_s=-5, **known, **flags)
    rules = Rules(("http://b:8080",), ("GET",), ("/v1",), True, Rate(60, 10), 900)
    key = Key("a", "soft", alg, AT, rules, True, 60, 0, 5, True, (generation,))
    written = Contents(Keys([key]))
    with opened(folder) as ledger:
        ledger.write(written)
    with opened(folder) as ledger:
        assert ledger.contents == written


# Version 1


def version_1(**changes: Any) -> dict[str, Any]:
    """A ledger as version 1 wrote it."""
    generation = {
        "generation": 1,
        "state": "draining",
        "ref": "ab" * 16,
        "created": AT,
        "changed": AT,
        **new_public_key(),
        "exportable": False,
        "protection": "software-token",
        "local": True,
        "last_used": AT,
        "origins_used": {f"https://{n}.example": AT for n in range(20)},
        "shared": False,
        "object_left": False,
        "compromised": False,
        "observed_s": 500,
        "idle_s": 30,
        "drain_s": None,
    }
    key = {
        "name": "a",
        "store": "soft",
        "alg": "ES256",
        "created": AT,
        "origins": [],
        "allow_sign_proof": False,
        "rotate_every_s": None,
        "drain_s": 60,
        "max_drain_s": 600,
        "generations": [generation],
    }
    asked = {"method": "key.create", "params": {"key": "a"}, "at": AT}
    document = {"version": 1, "clean": True, "requests": {"request-1": asked}, "keys": [key]}
    return document | changes


def lay(folder: Path, document: Any) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / FILE).write_text(json.dumps(document))


def test_version_1_is_read_with_what_it_said_of_use_and_time(folder: Path) -> None:
    lay(folder, version_1())
    with opened(folder) as ledger:
        (generation,) = ledger.contents.keys["a"].generations
        assert generation.slot is None  # from before there were slots
        assert ledger.contents.requests == {"request-1": ASKED}
        seen = Seen(0, None, ledger.times.uses)
        assert (seen.in_state_s(generation), seen.idle_s(generation)) == (500, 30)
        use = ledger.times.uses[generation.jkt]
        assert use.at == AT
        assert list(use.origins) == [f"https://{n}.example" for n in range(20)]
        assert ledger.clean


def test_version_1_becomes_version_2_with_the_first_save(folder: Path) -> None:
    lay(folder, version_1())
    with opened(folder) as ledger:
        before = ledger.contents
        ledger.save(dataclasses.replace(ledger.times, observed_s=40), clean=False)
        uses = ledger.times.uses
    assert json.loads((folder / FILE).read_text())["version"] == 2
    with opened(folder) as ledger:
        assert ledger.contents == before
        assert ledger.times == Times(uses, 40)
        assert not ledger.clean


def test_version_1_that_was_cut_short_on_its_way_to_version_2_stands_still_on_no_clock(
    folder: Path,
) -> None:
    document = version_1()
    lay(folder, document)
    with opened(folder) as ledger:
        ledger.save(dataclasses.replace(ledger.times, observed_s=40), clean=True)
    lay(folder, document)  # the uses were written, the ledger wasn't
    with opened(folder) as ledger:
        (generation,) = ledger.contents.keys["a"].generations
        seen = Seen(ledger.times.observed_s, None, ledger.times.uses)
        assert (seen.in_state_s(generation), seen.idle_s(generation)) == (540, 70)


@pytest.mark.parametrize("clean", [True, False])
def test_version_1_says_whether_its_agent_ended_in_order(folder: Path, clean: bool) -> None:
    lay(folder, version_1(clean=clean))
    with opened(folder) as ledger:
        assert ledger.clean is clean


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_drop("keys"), "the ledger has no keys"),
        (_drop("requests"), "the ledger has no requests"),
        (_drop("keys", 0, "name"), "key number 1: a key has no name"),
        (_drop(*GENERATION, "state"), "key number 1: a@1 has no state"),
        (_drop(*GENERATION, "idle_s"), "a@1 has no idle_s"),
        (_set("keys", to=None), "keys of the ledger isn't a list"),
        (_set("keys", to=[1]), "key number 1: a key isn't an object"),
        (_set("keys", 0, "colour", to="red"), "a member that isn't known here, 'colour'"),
        (lambda d: d["keys"].append(d["keys"][0]), "the key a appears twice"),
        (lambda d: d["keys"][0]["generations"].append(d["keys"][0]["generations"][0]), "after"),
        (_set(*GENERATION, "jkt", to="A" * 43), "jwk of a@1 isn't an ES256 key"),
        (_set(*GENERATION, "idle_s", to=1.5), "idle_s of a@1 isn't seconds"),
        (_set("requests", to=1), "requests of the ledger isn't an object"),
        (_set("requests", "request-1", to={}), "a request isn't one"),
        (_set("clean", to="yes"), "clean of the ledger isn't true or false"),
        (_set("version", to="1"), "line 1 doesn't begin with a version"),
        (_set("version", to=None), "line 1 doesn't begin with a version"),
    ],
)
def test_a_ledger_of_version_1_that_cant_be_is_refused(
    folder: Path, spoil: Callable[[Any], None], says: str
) -> None:
    document = version_1()
    spoil(document)
    lay(folder, document)
    assert says in refused(folder, FILE)


def test_what_stands_behind_the_ledgers_end_is_refused(folder: Path) -> None:
    fill(folder, 1)
    with (folder / FILE).open("a") as file:
        file.write("x\n")
    assert re.search(r"line [0-9]+ isn't empty", refused(folder, FILE))


def test_a_member_that_appears_twice_is_refused(folder: Path) -> None:
    lay(folder, version_1())
    path = folder / FILE
    path.write_text(path.read_text().replace('"clean": true', '"clean": true, "clean": true'))
    assert "a member appears twice" in refused(folder, FILE)


@pytest.mark.parametrize("document", [[], None, "", 2, {}, {"version": 2}])
def test_json_that_is_no_ledger_is_refused(folder: Path, document: Any) -> None:
    lay(folder, document)
    refused(folder, FILE)


# Whether the last agent ended in order


def test_an_agent_that_ended_in_order_is_followed_by_one_that_knows(folder: Path) -> None:
    one = contents("a")
    with opened(folder) as ledger:
        assert ledger.clean
        ledger.write(one)
        ledger.save(used(one), clean=True)
    with opened(folder) as ledger:
        assert ledger.clean
        assert ledger.times == used(one)
        ledger.save(used(one), clean=False)  # an agent that starts
    with opened(folder) as ledger:
        assert not ledger.clean


def test_that_an_agent_runs_is_noted_though_nothing_can_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder, 1)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened(folder) as ledger:
        assert ledger.clean
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(NotDurable):
                ledger.save(ledger.times, clean=False)
    with opened(folder) as ledger:
        assert not ledger.clean


def test_uses_that_are_gone_count_as_an_end_that_wasnt_in_order(folder: Path) -> None:
    fill(folder, 1)
    (folder / USES).unlink()
    with opened(folder) as ledger:
        assert not ledger.clean
        assert ledger.times == Times()


def test_only_what_was_used_since_is_written_as_a_line_of_its_own_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save costs what was used, not what there is; also the first one after a start."""
    many = contents(*(f"key-{n}" for n in range(200)))
    fill(folder, 200)
    made_anew: list[object] = []
    real = json.dumps

    def counted(value: object) -> str:
        made_anew.append(value)
        return real(value)

    with opened(folder) as ledger:
        monkeypatch.setattr("dpop_agent.agent.lines.json.dumps", counted)
        jkt, use = next(iter(ledger.times.uses.items()))
        again = {**ledger.times.uses, jkt: use.signed("https://b.example", AT, 9)}
        ledger.save(Times(again, 120), clean=False)
        assert len(made_anew) == 2  # the first line, and that one
        key = ledger.contents.keys["key-7"]
        keys = ledger.contents.keys.with_(dataclasses.replace(key, touch=True))
        ledger.write(dataclasses.replace(ledger.contents, keys=keys))
        assert len(made_anew) == 4
    assert len(many.keys) == 200


# The reserve


def test_a_block_that_is_kept_is_there_at_the_next_start_until_it_is_cleared(folder: Path) -> None:
    first, second = (Block(name, "ab" * 16, AT) for name in ("a", "x" * 64))
    with opened(folder) as ledger:
        ledger.blocks.make()
        ledger.blocks.keep([first])
        ledger.blocks.keep([first, second])
    with opened(folder) as ledger:
        assert ledger.blocks.kept == {first, second}
        ledger.blocks.clear()
    with opened(folder) as ledger:
        assert ledger.blocks.kept == set()
        ledger.blocks.keep([second])
    with opened(folder) as ledger:
        assert ledger.blocks.kept == {second}


def test_the_reserve_is_written_in_place_and_never_grows(folder: Path) -> None:
    with opened(folder) as ledger:
        ledger.blocks.make()
        before = (folder / BLOCKS).stat()
        ledger.blocks.keep([Block("a", "ab" * 64, AT)])
        after = (folder / BLOCKS).stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    assert after.st_blocks == before.st_blocks
    assert stat.S_IMODE(after.st_mode) == 0o600


def test_a_reserve_without_room_says_so_and_keeps_what_it_has(folder: Path) -> None:
    blocks = [Block(f"key-{n}", "ab" * 16, AT) for n in range(ROOM + 1)]
    with opened(folder) as ledger:
        ledger.blocks.make()
        ledger.blocks.keep(blocks[:ROOM])
        with pytest.raises(OSError, match="no room left"):
            ledger.blocks.keep(blocks)
    with opened(folder) as ledger:
        assert ledger.blocks.kept == set(blocks[:ROOM])


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


def test_a_copy_has_what_the_reserve_has_and_is_read_as_a_ledger(folder: Path) -> None:
    with opened(folder) as ledger:
        ledger.write(contents("a", "b"))
        ledger.save(Times(), clean=False)
        (blocked,) = ledger.contents.keys["a"].generations
        ledger.blocks.keep([Block("a", blocked.ref, blocked.created)])
        copy = folder / "copy"
        copy.write_bytes(b"".join(Reading(str(folder)).text("2026-11-26T12:00:00Z")))
    read = Copy(str(copy)).contents
    (marked,) = read.keys["a"].generations
    assert (marked.state, marked.changed) == (State.COMPROMISED, "2026-11-26T12:00:00Z")
    assert read.keys["b"] == ledger.contents.keys["b"]
    assert read.requests == ledger.contents.requests


def test_a_copy_of_version_1_is_one_of_version_2(folder: Path) -> None:
    lay(folder, version_1())
    copy = folder / "copy"
    copy.write_bytes(b"".join(Reading(str(folder)).text(AT)))
    assert copy.read_text().startswith('{"version": 2')
    with opened(folder) as ledger:
        assert dict(Copy(str(copy)).contents.keys) == dict(ledger.contents.keys)


def test_a_lost_policy_is_still_lost_after_a_restart(folder: Path) -> None:
    (key,) = contents("a").keys.values()
    with opened(folder) as ledger:
        ledger.write(Contents(Keys([dataclasses.replace(key, policy_lost=True)]), observed_s=60))
    with opened(folder) as ledger:
        assert ledger.contents.keys["a"].policy_lost


def test_a_ledger_from_before_policies_could_be_lost_is_read(folder: Path) -> None:
    with opened(folder) as ledger:
        ledger.write(contents("a"))
    with changed(folder / FILE) as document:
        del document["keys"][0]["policy_lost"]
    with opened(folder) as ledger:
        assert not ledger.contents.keys["a"].policy_lost


def test_a_ledger_from_before_there_were_rules_is_read(folder: Path) -> None:
    with opened(folder) as ledger:
        ledger.write(contents("a"))
    with changed(folder / FILE) as document:
        for name in ("methods", "paths", "require_ath", "rate", "confirm_s"):
            del document["keys"][0][name]
    with opened(folder) as ledger:
        assert ledger.contents.keys["a"].rules == Rules()

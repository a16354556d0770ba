"""tests/hardware/run, which somebody lets loose on a PKCS#11 token of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.agent.places import until
from tests.emulators import Tpm, YubiKey
from tests.faulty import Faulty
from tests.hardware.__main__ import in_all
from tests.newcomer import ORDINARY_UID
from tests.piv_card import PIN_TRIES
from tests.processes import ROOT, Agent, Token, new_token, running
from tests.stores import on_token
from tests.stores.test_yubikey import Authorizing
from tests.terminal import Screen

MakeToken = Callable[..., Token]

END_S = 300.0
"""Seconds for a whole run on the slowest of these."""


class Run(Screen):
    """`tests/hardware/run` at a terminal of its own, for a PKCS#11 token."""

    def __init__(
        self,
        token: Token,
        *words: str,
        module: str | None = None,
        uri: str | None = None,
        env: dict[str, str] | None = None,
        preexec: Sequence[str] = (),
    ) -> None:
        super().__init__()
        uri = uri or f"pkcs11:token={token.label.replace(' ', '%20')}"
        take: Callable[[], object] = lambda: os.close(os.open(self.name, os.O_RDWR))  # noqa: E731
        self.process = subprocess.Popen(
            [
                *preexec,
                *(ROOT / "tests" / "hardware" / "run", "--module", module or token.module),
                *("--uri", uri, *words),
            ],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env={**os.environ, **token.env, **(env or {})},
            start_new_session=True,
            preexec_fn=take,
        )
        os.close(self._theirs)

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def begin(self, pin: str) -> None:
        """Say yes, and type a PIN."""
        self.until("Go on? Type yes: ")
        self.type("yes\n")
        self.until("yes\r\nPIN: ")
        self.type(f"{pin}\n")

    def end(self) -> int:
        """Its exit status, once all was shown."""
        while self._read():
            pass
        return self.process.wait(END_S)

    def count(self, how: str) -> int:
        (found,) = re.findall(rf"(\d+) {how}", self.shown.partition("## Report")[2])
        return int(found)


def own_folders() -> list[Path]:
    """Those with a PIN in them, of this test's runs."""
    return [*Path(os.environ["XDG_RUNTIME_DIR"]).glob("dpop-hw-*")]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No folder with a PIN in it."""
    yield
    assert own_folders() == []


@pytest.fixture
def used(make_token: MakeToken) -> Token:
    """A PKCS#11 token with things of somebody's on it."""
    token = make_token("somebodys")
    on_token.make_stranger(token, key_id="aa" * 16)
    on_token.make_others(token, label="theirs")
    return token


def test_it_says_what_it_will_make_makes_that_and_leaves_what_was_there(used: Token) -> None:
    before, serial = on_token.objects(used), on_token.serial(used)
    with Run(used) as run:
        run.begin(used.pin)
        assert run.end() == 0
    plan, _, report = run.shown.partition("## Report")
    number = in_all(["any"] * 7)
    assert f"7 key pairs at a time at the most, {number} in all" in plan
    assert f"- keys: {number} made; 5 objects were there before; left behind: nothing" in report
    assert on_token.objects(used) == before
    assert (run.count("passed"), run.count("failed"), run.count("skipped")) == (11, 0, 2)
    assert "it would cost a PIN try" in " ".join(report.split())
    assert all(len(line) <= 80 for line in report.splitlines())
    assert "- token: SoftHSM v2, SoftHSM project" in report
    for own in (used.pin, serial, used.label, str(used.folder)):
        assert own not in report
    assert used.pin not in run.shown


def test_keys_of_an_agent_of_theirs_stay_and_arent_in_the_report(make_token: MakeToken) -> None:
    token = make_token("somebodys")
    for number, name in enumerate(("mine", "shop"), start=1):
        on_token.make_stranger(token, key_id=f"b{number}" * 16, label=f"dpop-agent {name}@1")
    before = on_token.objects(token)
    with Run(token) as run:
        run.begin(token.pin)
        assert run.end() == 0
    report = run.shown.partition("## Report")[2]
    assert (run.count("passed"), run.count("failed"), run.count("skipped")) == (10, 0, 3)
    assert "it would adopt keys of an agent of yours too" in " ".join(report.split())
    assert "mine" not in report
    assert on_token.objects(token) == before


def test_without_a_yes_nothing_is_done(used: Token) -> None:
    before = on_token.objects(used)
    with Run(used) as run:
        run.until("Go on? Type yes: ")
        run.type("no\n")
        assert run.end() == 1
    assert "nothing was done" in run.shown
    assert on_token.objects(used) == before


def test_where_nobody_can_be_asked_it_wants_yes(token: Token) -> None:
    words = ("--module", token.module, "--uri", f"pkcs11:token={token.label}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.hardware", *words],
        cwd=ROOT,
        env={**os.environ, **token.env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "give --yes" in done.stderr


def test_a_wrong_pin_is_tried_once_and_nothing_is_made(faulty_token: Faulty) -> None:
    token = faulty_token.token
    before = on_token.objects(token)
    with Run(token, module=str(faulty_token.module), env=faulty_token.env) as run:
        run.begin("wrong")
        assert run.end() == 1
    assert "the PIN wasn't accepted (PinIncorrect): that was one try" in run.shown
    assert faulty_token.logins == 1
    with Run(token, module=str(faulty_token.module), env=faulty_token.env) as run:
        assert run.end() == 1
    assert "few PIN tries are left" in run.shown
    assert faulty_token.logins == 1
    assert on_token.objects(token) == before


@pytest.mark.parametrize("number", [2, 3, 11])
def test_a_pin_that_is_refused_on_the_way_is_not_tried_again(
    faulty_token: Faulty, number: int
) -> None:
    """By whichever login, an agent's or one without: the next would be accepted, and none comes."""
    faulty_token.rules(f"C_Login {number} return 0xa0")
    with Run(faulty_token.token, module=str(faulty_token.module), env=faulty_token.env) as run:
        run.begin(faulty_token.token.pin)
        assert run.end() == 1
    assert faulty_token.logins == number
    assert "a login was refused before, and none is tried again" in run.shown
    assert "left behind: that can't be told (a login was refused" in " ".join(run.shown.split())


@pytest.mark.parametrize("how", ["Ctrl-C", signal.SIGTERM, signal.SIGKILL])
def test_however_it_is_ended_it_leaves_nothing(used: Token, how: signal.Signals | str) -> None:
    before = on_token.objects(used)
    with Run(used) as run:
        run.begin(used.pin)
        there = len(before) + 4
        until(lambda: len([*used.folder.rglob("*.object")]) > there, seconds=60)
        if isinstance(how, signal.Signals):
            os.kill(run.process.pid, how)
        else:
            run.type("\x03")
        assert run.end() in (130, 128 + signal.SIGTERM, -signal.SIGKILL)
        until(lambda: not own_folders(), seconds=60)
    assert on_token.objects(used) == before
    assert not running(run.process.pid)


def test_what_is_no_token_is_told(token: Token) -> None:
    for module, uri, says in (
        (None, "pkcs11:token=none", "there is no PKCS#11 token pkcs11:token=none"),
        (None, "pkcs11:pin-value=73195", "pin-value, which isn't allowed there"),
        ("/none.so", None, "there is no PKCS#11 module /none.so"),
    ):
        with Run(token, module=module, uri=uri) as run:
            assert run.end() == 1
        assert says in run.shown.replace("\r\n", " ")
        assert "73195" not in run.shown
        assert "Traceback" not in run.shown


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0, reason="who runs the tests is an ordinary user")
def test_an_ordinary_user_can_run_it() -> None:
    become = ["setpriv", f"--reuid={ORDINARY_UID}", f"--regid={ORDINARY_UID}", "--clear-groups"]
    reaches = subprocess.run([*become, "test", "-x", ROOT / "tests" / "hardware" / "run"])
    if reaches.returncode:
        pytest.skip(f"an ordinary user can't reach {ROOT}")
    with tempfile.TemporaryDirectory(prefix="somebody-", dir="/tmp") as name:
        home = Path(name)
        token = new_token(home / "token", "somebodys")
        for path in (home, *home.rglob("*")):
            os.chown(path, ORDINARY_UID, ORDINARY_UID)
        # What is left would be seen there.
        env = {"HOME": name, "XDG_RUNTIME_DIR": name}
        with Run(token, "--yes", env=env, preexec=become) as run:
            run.until("which has the PIN\r\nPIN: ")  # the question, below the plan
            assert "Go on?" not in run.shown
            run.type(f"{token.pin}\n")
            assert run.end() == 0, run.shown
        assert run.count("failed") == 0
        assert on_token.objects(token) == []
        assert {path.name for path in home.iterdir()} <= {"token", ".cache"}


@pytest.mark.long
def test_on_a_tpm_it_costs_no_try_and_leaves_nothing(tpm: Tpm) -> None:
    before = on_token.objects(tpm.token)
    with Run(tpm.token) as run:
        run.begin(tpm.token.pin)
        assert run.end() == 0, run.shown
    assert tpm.wrong_pins() == 0
    assert on_token.objects(tpm.token) == before
    assert run.count("failed") == 0


@pytest.mark.long
def test_on_a_yubikey_nothing_is_made_and_a_key_that_is_there_signs(
    yubikey: YubiKey, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent(yubikey.token.config).start()
    with Authorizing(agent.admin_socket, yubikey) as wire:
        wire.make("mine")
    agent.stop()
    keys, objects = dict(yubikey.card.keys), dict(yubikey.card.objects)
    with Run(yubikey.token, uri=f"pkcs11:serial={yubikey.card.serial}") as run:
        run.begin(yubikey.card.pin)
        assert run.end() == 0, run.shown
    assert "nothing, for a private key in a slot of this card can't be deleted" in run.shown
    assert (yubikey.card.keys, yubikey.card.objects) == (keys, objects)
    assert yubikey.card.tries == PIN_TRIES
    assert run.count("failed") == 0
    assert run.count("passed") == 4
    assert str(yubikey.card.serial) not in run.shown.partition("## Report")[2]

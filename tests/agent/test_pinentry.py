"""PINs asked for by a real pinentry at a terminal of the test's own, and by ones that misbehave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpop_agent import pinentry
from dpop_agent.errors import Cancelled, ConfigurationError, DPoPAgentError, Timeout
from tests.agent.places import store, until, write_config
from tests.emulators import file_of, need
from tests.processes import Agent, Token
from tests.terminal import Screen
from tests.timing import Measured

HTU = "https://api.example.com/v1/me"
ODD_PIN = "pä%41 +ß%0A"
CANCEL = "\t\t\r"
"""From the field past OK to Cancel, and there."""


class Person(Screen):
    """Somebody at a terminal who waits for pinentry's prompt and types."""

    def __init__(self) -> None:
        super().__init__()
        self.env = {
            "DISPLAY": ":no-such-display",
            "GPG_TTY": self.name,
            "LC_ALL": "C.UTF-8",
            "TERM": "xterm",
        }

    def answers(self, text: str) -> threading.Thread:
        """Wait for the prompt and type that, while the test goes on."""

        def answer() -> None:
            self.until("<Cancel>")
            self.type(text)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        return thread


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Person]:
    """Where the real pinentry asks; it is found as `pinentry`."""
    need("pinentry-curses")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pinentry").symlink_to(file_of("pinentry-curses"))
    with Person() as screen:
        screen.env["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        for name, value in screen.env.items():
            monkeypatch.setenv(name, value)
        yield screen


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """`script(TEXT)`: a pinentry that is this shell script."""

    def write(text: str) -> None:
        program = tmp_path / "pinentry"
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o700)
        monkeypatch.setattr(pinentry, "PROGRAM", str(program))

    return write


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """No pinentry is left behind, asleep or dead."""
    yield
    own = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    names = [Path(f"/proc/{pid}/comm").read_text() for pid in own]
    assert [name for name in names if "pinentry" in name] == []


def ask() -> str:
    return pinentry.ask("PIN of the store 50% \n: ", "PIN")


def test_what_is_typed_comes_as_it_was_typed(screen: Person) -> None:
    thread = screen.answers(f"{ODD_PIN}\r")
    assert ask() == ODD_PIN
    thread.join()
    assert "PIN of the store 50%" in screen.shown
    assert ODD_PIN not in screen.shown


def test_a_cancelled_pinentry_gives_no_pin(screen: Person) -> None:
    screen.answers(CANCEL)
    with pytest.raises(Cancelled, match="was cancelled"):
        ask()


def test_a_pinentry_at_which_nobody_types_ends_in_time(
    screen: Person, monkeypatch: pytest.MonkeyPatch, measured: Measured
) -> None:
    monkeypatch.setattr(pinentry, "TIMEOUT_S", 1)
    with measured(GIVEN_UP), pytest.raises(Timeout, match="nobody typed it"):
        ask()


def test_a_pinentry_without_a_place_to_ask_at_is_an_error(
    screen: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPG_TTY")
    with pytest.raises(Cancelled, match="refused"):
        ask()
    assert screen.shown == ""


def test_without_a_pinentry_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinentry, "PROGRAM", "no-such-pinentry")
    with pytest.raises(ConfigurationError, match="no terminal and no pinentry") as caught:
        ask()
    assert "install pinentry" in caught.value.hint


# Consent


def confirm(within_s: int = 60) -> None:
    pinentry.Pinentry().confirm("Sign a proof with the key 50%?\n\nGET at x", within_s=within_s)


def test_a_person_who_presses_ok_agrees_and_one_who_cancels_doesnt(screen: Person) -> None:
    thread = screen.answers("\r")
    confirm()
    thread.join()
    assert "Sign a proof with the key 50%?" in screen.shown
    screen.shown = ""
    thread = screen.answers("\t\r")
    with pytest.raises(pinentry.NotConfirmed):
        confirm()
    thread.join()


def test_a_question_that_nobody_answers_ends_in_time(screen: Person, measured: Measured) -> None:
    with measured(GIVEN_UP), pytest.raises(Timeout):
        confirm(within_s=1)


def test_a_question_without_a_place_to_be_asked_at_is_no_yes(
    screen: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPG_TTY")
    with pytest.raises(Cancelled):
        confirm()
    monkeypatch.setattr(pinentry, "PROGRAM", "no-such-pinentry")
    with pytest.raises(ConfigurationError, match="there is no pinentry"):
        confirm()


def test_a_question_is_called_off_from_another_thread(screen: Person) -> None:
    asked, came = pinentry.Pinentry(), list[BaseException]()

    def ask() -> None:
        try:
            asked.confirm("Sign?", within_s=60)
        except DPoPAgentError as e:
            came.append(e)

    thread = threading.Thread(target=ask)
    thread.start()
    screen.until("<Cancel>")
    asked.stop()
    thread.join()
    (error,) = came
    assert isinstance(error, Cancelled)
    assert not isinstance(error, pinentry.NotConfirmed)


GIVEN_UP = "a pinentry is given up after its 1 s"

ANSWER = "echo OK; while read line; do case $line in GETPIN) {};; *) echo OK;; esac; done"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("exit 1", Cancelled),
        ("echo OK; exit 1", Cancelled),
        ("echo OK; read line; kill -9 $$", Cancelled),
        (ANSWER.format("exit"), Cancelled),
        (ANSWER.format("echo ERR nonsense"), Cancelled),
        (ANSWER.format(r"printf 'D \377\nOK\n'"), Cancelled),
        ("exec tr '\\0' x < /dev/zero", Cancelled),
        ("exec yes S nothing", Timeout),
        ("echo OK; exec sleep 60", Timeout),
        ("trap '' TERM; exec sleep 60", Timeout),
    ],
    ids=[
        "ends",
        "greets",
        "killed",
        "ends-asked",
        "odd",
        "no-utf8",
        "endless-line",
        "endless",
        "hangs",
        "stubborn",
    ],
)
def test_a_pinentry_that_misbehaves_is_one_line_of_error_in_time(
    script: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    measured: Measured,
    text: str,
    error: type[DPoPAgentError],
) -> None:
    monkeypatch.setattr(pinentry, "GRACE_S", 0.5)
    monkeypatch.setattr(pinentry, "TIMEOUT_S", 0.5)
    script(text)
    with measured(GIVEN_UP), pytest.raises(error) as caught:
        ask()
    assert caught.value.hint


def test_status_lines_comments_and_unknown_options_are_no_answers(
    script: Callable[[str], None],
) -> None:
    script(
        """\
echo '# hello'; echo OK
while read word rest; do
    case $word in
        OPTION | SETTIMEOUT) echo 'ERR 83886254 Unknown option <Pinentry>' ;;
        GETPIN) printf 'S PASSWORD_FROM_CACHE\\n# so\\nD 12\\nD 34%%25\\nOK\\n' ;;
        BYE) echo OK; exit ;;
        *) echo OK ;;
    esac
done"""
    )
    assert ask() == "1234%"


# From `dpop-agent unlock`


@pytest.fixture
def agent(token: Token, make_agent: Callable[..., Agent], screen: Person) -> Agent:
    """An agent whose PKCS#11 token has an odd PIN, which is asked for; where no terminal is."""
    change = (
        "import sys, pkcs11;"
        "token = pkcs11.lib(sys.argv[1]).get_token(token_label=sys.argv[2]);"
        "old, new = sys.stdin.read().split('\\n');"
        "token.open(rw=True, user_pin=old).set_pin(old, new)"
    )
    subprocess.run(
        [sys.executable, "-c", change, token.module, token.label],
        env={**os.environ, **token.env},
        input=f"{token.pin}\n{ODD_PIN}",
        text=True,
        check=True,
    )
    agent = make_agent(write_config(token, pin_source="prompt")).start()
    agent.env.update(screen.env)
    return agent


def test_unlock_asks_by_pinentry_where_there_is_a_display_and_no_terminal(
    agent: Agent, screen: Person
) -> None:
    screen.answers(f"{ODD_PIN}\r")
    ran = agent.run("unlock", check=True)
    assert ran.stdout == "the store softhsm is open\n"
    assert "PIN of the store softhsm" in screen.shown


def test_an_unlock_that_is_interrupted_leaves_no_pinentry_and_a_locked_store(
    agent: Agent, screen: Person, measured: Measured
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dpop_agent", "unlock"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=agent.env,
        start_new_session=True,
    )
    screen.until("<Cancel>")
    with measured("an unlock that is interrupted at its pinentry ends"):
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=30)[1]
    assert process.returncode != 0
    assert "Traceback" not in error
    screen.until("\x1b[?1049l")  # it gave the terminal back as it was
    assert store(agent)["state"] == "locked"
    screen.shown = ""
    screen.answers(f"{ODD_PIN}\r")
    until(lambda: agent.run("unlock").returncode == 0)

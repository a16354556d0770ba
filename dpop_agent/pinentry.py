"""Asking for a PIN, or for consent, by the desktop's pinentry (the Assuan protocol of GnuPG)."""

from __future__ import annotations

import os
import select
import subprocess
import time
from shutil import which
from urllib.parse import unquote_to_bytes

from dpop_agent.errors import Cancelled, ConfigurationError, Timeout
from dpop_agent.hardening import text_of

PROGRAM = "pinentry"
TIMEOUT_S = 60

GRACE_S = 3.0
"""Seconds that a pinentry may be late with what it has to say, and with its end."""

MAX_LINE = 4096
"""Bytes of its lines, four times what Assuan allows."""

_CANCELED, _NOT_CONFIRMED, _TIMEOUT = 99, 114, 62  # libgpg-error's codes, in the low 16 bits


def ask(prompt: str, what: str) -> str:
    """What somebody typed.

    Args:
        prompt: what is asked for, for what.
        what: the same in a word or two.

    Raises:
        Cancelled: they didn't want to, or pinentry failed.
        Timeout: nobody did.
        ConfigurationError: there is no pinentry.
    """
    program = which(PROGRAM)
    if program is None:
        raise ConfigurationError(
            f"there is no terminal and no pinentry to ask for the {what}",
            hint="install pinentry, or run this in a terminal",
        )
    process = _start(program)
    try:
        conversation = _begun(process, prompt.rstrip(": "), TIMEOUT_S)
        conversation.say(f"SETPROMPT {_escaped(what)}:")
        typed = conversation.say("GETPIN", seconds=TIMEOUT_S)
        conversation.say("BYE", must=False)
    except OSError as e:
        raise _no_answer() from e
    finally:
        _end(process)
    secret = text_of(typed)
    if secret is None:
        raise Cancelled(
            "pinentry answered with something other than UTF-8", hint="run this in a terminal"
        )
    return secret


class NotConfirmed(Cancelled):
    """Somebody said no."""


class Pinentry:
    """One that asks for consent, and can be stopped from another thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def confirm(self, question: str, *, within_s: int) -> None:
        """Return for a yes. Blocks.

        Raises:
            NotConfirmed: they said no.
            Timeout: nobody said anything for so many seconds.
            Cancelled: pinentry failed, or was stopped.
            ConfigurationError: there is none.
        """
        program = which(PROGRAM)
        if program is None:
            raise ConfigurationError("there is no pinentry", hint="install pinentry")
        process = self._process = _start(program)
        try:
            if self._stopped:  # before there was a process to end
                raise _no_answer()
            conversation = _begun(process, question, within_s)
            conversation.say("CONFIRM", seconds=within_s)
            conversation.say("BYE", must=False)
        except OSError as e:
            raise _no_answer() from e
        finally:
            _end(process)

    def stop(self) -> None:
        """End it, without an answer."""
        self._stopped = True
        if self._process is not None:
            self._process.terminate()


def _start(program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def _begun(process: subprocess.Popen[bytes], text: str, timeout_s: int) -> _Conversation:
    """A conversation in which pinentry knows what to show, where and for how long."""
    conversation = _Conversation(process)
    conversation.answer()
    for option in _options():
        conversation.say(f"OPTION {option}", must=False)
    conversation.say(f"SETTIMEOUT {timeout_s}", must=False)
    conversation.say("SETTITLE dpop-agent", must=False)
    conversation.say(f"SETDESC {_escaped(text)}")
    return conversation


def _options() -> list[str]:
    """What a pinentry has to know of a terminal, where it asks at one after all."""
    environ = os.environ
    ctype = environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG")
    values = {
        "ttyname": environ.get("GPG_TTY"),
        "ttytype": environ.get("TERM"),
        "lc-ctype": ctype,
        "display": environ.get("DISPLAY"),
    }
    return [f"{name}={_escaped(value)}" for name, value in values.items() if value]


class _Conversation:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._to, self._from = process.stdin.fileno(), process.stdout.fileno()
        self._rest = b""

    def say(self, command: str, *, must: bool = True, seconds: float = 0.0) -> bytes:
        """The answer to a command that takes so long; if it needn't be known it may be refused."""
        os.write(self._to, command.encode() + b"\n")
        return self.answer(must=must, seconds=seconds)

    def answer(self, *, must: bool = True, seconds: float = 0.0) -> bytes:
        """The data before `OK`."""
        data = b""
        deadline = time.monotonic() + seconds + GRACE_S
        while True:
            word, _, rest = self._line(deadline).partition(b" ")
            if word == b"OK":
                return data
            if word == b"D":
                data += unquote_to_bytes(rest)
            elif word == b"ERR":
                if must:
                    raise _error(rest)
                return b""

    def _line(self, deadline: float) -> bytes:
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise Timeout("pinentry didn't answer in time", hint="run this in a terminal")
            line, end, rest = self._rest.partition(b"\n")
            if end:
                self._rest = rest
                return line
            if select.select([self._from], [], [], left_s)[0]:
                read = os.read(self._from, MAX_LINE)
                if not read or len(self._rest) > MAX_LINE:
                    raise _no_answer()
                self._rest += read


def _end(process: subprocess.Popen[bytes]) -> None:
    """No pinentry stays behind, on no way out; one that still asks clears its screen first."""
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.kill()
        process.wait()


def _error(said: bytes) -> Cancelled | Timeout:
    number = said.split(b" ")[0]
    code = int(number) & 0xFFFF if number.isdigit() else 0
    if code == _TIMEOUT:
        return Timeout("nobody typed it in time", hint="try again")
    if code in (_CANCELED, _NOT_CONFIRMED):
        return NotConfirmed("pinentry was cancelled")
    return Cancelled(f"pinentry refused (code {code})", hint="run this in a terminal")


def _no_answer() -> Cancelled:
    return Cancelled("pinentry ended without an answer", hint="run this in a terminal")


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

"""Asking for a PIN by the desktop's pinentry (the Assuan protocol of GnuPG)."""

from __future__ import annotations

import subprocess
from shutil import which
from urllib.parse import unquote

from dpop_agent.errors import Cancelled, ConfigurationError, Timeout

PROGRAM = "pinentry"
TIMEOUT_S = 60

_CANCELED, _TIMEOUT = 99, 62  # libgpg-error's codes, in the low 16 bits


def ask(prompt: str) -> str:
    """What somebody typed.

    Raises:
        Cancelled: he didn't want to.
        Timeout: nobody did.
        ConfigurationError: there is no pinentry.
    """
    program = which(PROGRAM)
    if program is None:
        raise ConfigurationError(
            "there is no terminal and no pinentry to ask for the PIN",
            hint="install pinentry, or run it in a terminal",
        )
    with subprocess.Popen(
        [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        conversation = _Conversation(process)
        conversation.expect_ok()
        for command in (
            f"SETTIMEOUT {TIMEOUT_S}",
            f"SETDESC {_escaped('dpop-agent opens a store.')}",
            f"SETPROMPT {_escaped(prompt)}",
        ):
            conversation.say(command)
        return conversation.say("GETPIN")


class _Conversation:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def say(self, command: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self.expect_ok()

    def expect_ok(self) -> str:
        """The data before `OK`."""
        assert self._process.stdout is not None
        data = ""
        for line in self._process.stdout:
            word, _, rest = line.rstrip("\n").partition(" ")
            if word == "OK":
                return data
            if word == "D":
                data += unquote(rest)
            elif word == "ERR":
                raise _error(int(rest.split()[0]) & 0xFFFF)
        raise Cancelled("pinentry ended without an answer", hint="run it in a terminal")


def _error(code: int) -> Cancelled | Timeout:
    if code == _TIMEOUT:
        return Timeout("nobody typed a PIN", hint="try again")
    if code == _CANCELED:
        return Cancelled("no PIN was given")
    return Cancelled(f"pinentry refused (code {code})", hint="run it in a terminal")


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

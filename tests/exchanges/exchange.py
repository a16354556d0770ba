"""What one recorded exchange is, the keys that it is about, and curl."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.exchanges.proofs import Key

FOLDER = Path(__file__).parent
LIST = FOLDER / "exchanges.json"
APPS = FOLDER / "apps"

Form = Mapping[str, str]
Headers = Sequence[tuple[str, str]]


class Keys:
    """What an agent knows, and one key that it doesn't."""

    def __init__(self) -> None:
        self.active, self.draining, self.destroyed = Key(), Key(), Key()
        self.other, self.stranger = Key(), Key()

    def known(self) -> list[dict[str, Any]]:
        """As an exchange's `known`."""
        rows = [
            ("default", 1, "destroyed", self.destroyed),
            ("default", 2, "draining", self.draining),
            ("default", 3, "active", self.active),
            ("other", 1, "active", self.other),
        ]
        return [
            {"key": key, "generation": generation, "state": state, "jkt": made.jkt}
            for key, generation, state, made in rows
        ]


@dataclass(frozen=True)
class Exchange:
    """One that went wrong in one way, or well.

    Args:
        name: of its file, without the ending.
        cause: one of README.md's; None where nothing is wrong.
        note: what was done to break it.
        output: what curl wrote.
        metadata: the authorization server's own, where they say something about the cause.
        source: where the server's words were read; None where they come from a run.
        measured: for words that were read: an earlier run had the same.
    """

    name: str
    cause: str | None
    note: str
    output: str
    metadata: Mapping[str, Any] | None = None
    source: str | None = None
    measured: bool = False


@dataclass(frozen=True)
class Curl:
    """The `curl -v` that people paste.

    Args:
        folder: it runs there, and may name it.
        terminal: it writes to one, not into a file.
    """

    folder: Path
    terminal: bool = False

    def __call__(
        self,
        method: str,
        uri: str,
        headers: Headers = (),
        *options: str,
        form: Form | None = None,
        basic: tuple[str, str] | None = None,
        meter: bool = False,
        traced: bool = False,
    ) -> str:
        """Its standard error and, where it comes, the body.

        Args:
            method: GET or POST, say.
            uri: where to.
            headers: handed over on its standard input, so that no argument shows them.
            options: further words for it.
            form: the body.
            basic: the client's id and secret.
            meter: leave its progress meter on, as without a terminal.
            traced: the form as arguments, and the command above it all, as `sh -x` shows it.
        """
        lines = [f"header = {quoted(f'{name}: {value}')}" for name, value in headers]
        fields = [f"{name}={value}" for name, value in (form or {}).items()]
        shown = [word for field in fields for word in ("--data-urlencode", field) if traced]
        if not traced:
            lines += [f"data-urlencode = {quoted(field)}" for field in fields]
        if basic:
            lines.append(f"user = {quoted(':'.join(basic))}")
        if not (form and method == "POST") and method != "GET":
            lines.append(f"request = {method}")
        quiet = () if meter else ("--silent",)
        command = ["sh", "-xc", 'curl "$@"', "sh"] if traced else ["curl"]
        command += ["-q", "--verbose", "--no-buffer", "--globoff", *shown]
        whole = [*command, *quiet, "--max-time", "20", "--config", "-", *options, uri]
        written = self._run(whole, "\n".join(lines))
        return written if written.endswith("\n") else f"{written}\n"

    def _run(self, command: Sequence[str], config: str) -> str:
        read, write = pty.openpty() if self.terminal else os.pipe()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=write,
            stderr=write,
            cwd=self.folder,
            env={"PATH": os.environ["PATH"]},  # no proxy between
        )
        os.close(write)
        assert process.stdin
        process.stdin.write(config.encode())
        process.stdin.close()
        written = b"".join(iter(lambda: some(read), b"")).decode(errors="replace")
        os.close(read)
        if process.wait():
            raise AssertionError(f"curl ended with {process.returncode}:\n{written}")
        return re.sub("\r+\n", "\n", written) if self.terminal else written


def some(descriptor: int) -> bytes:
    """The next bytes; none at the end, which a terminal calls an error."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


def quoted(text: str) -> str:
    """As curl's configuration wants it."""
    escaped = text.replace("\\", r"\\").replace('"', r"\"")
    return f'"{escaped}"'


def header(output: str, name: str) -> str:
    """The last response header of this name.

    Raises:
        AssertionError: there is none.
    """
    found: list[str] = re.findall(rf"(?im)^< {re.escape(name)}: ?(.*?)\s*$", output)
    assert found, f"no {name} in:\n{output}"
    return found[-1]


def access_token(output: str) -> str:
    """What a token response gave."""
    found = re.findall('"access_token":"([^"]+)"', output)
    assert found, output
    return str(found[-1])


def statuses(output: str) -> list[int]:
    """The responses' status codes."""
    return [int(code) for code in re.findall(r"(?m)^< HTTP/[0-9.]+ (\d{3})", output)]


def words(output: str) -> list[str]:
    """What the server says of each failure: the challenges' parameters and the JSON's `error…`."""
    said = re.findall(r'(?m)\b(error(?:_description)?)="((?:[^"\\]|\\.)*)"', output)
    said += re.findall(r'"(error|error_description|message|code)":\s*"((?:[^"\\]|\\.)*)"', output)
    return [f"{name}: {re.sub(r'127.0.0.1:[0-9]+', '127.0.0.1', text)}" for name, text in said]


def listed() -> list[dict[str, Any]]:
    """exchanges.json."""
    rows: list[dict[str, Any]] = json.loads(LIST.read_text())
    return rows

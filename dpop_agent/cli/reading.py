"""Text from a file that somebody names, or from standard input."""

from __future__ import annotations

import sys

from dpop_agent.errors import ConfigurationError

MAX_TYPED_LINE = 4095
"""Bytes of a line that a terminal takes (termios(3), canonical mode)."""


def name(file: str) -> str:
    """What people call it; `-` is standard input."""
    return "standard input" if file == "-" else file


def text(file: str, wanted: str, *, most: int, shorter: str = "give another file") -> str:
    """What it has; who sits at standard input is told what is wanted.

    Args:
        file: its name, `-` for standard input.
        wanted: what that should be, for people.
        most: bytes.
        shorter: what to do where it has more.

    Raises:
        ConfigurationError: it can't be read, or is too long; or the terminal didn't take all of it.
    """
    try:
        if file == "-":
            data = _standard_input(wanted, most + 1)
        else:
            with open(file, "rb") as stream:
                data = stream.read(most + 1)
    except OSError as e:
        raise ConfigurationError(
            f"{name(file)} can't be read: {e.strerror}", hint="give another file"
        ) from e
    except ValueError as e:
        raise ConfigurationError("the file's name has a zero byte", hint="give another file") from e
    if len(data) > most:
        raise ConfigurationError(f"{name(file)} has more than {most} bytes", hint=shorter)
    # PowerShell writes into files what a byte order mark begins.
    is_utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    return data.decode("utf-16" if is_utf16 else "utf-8", "replace")


def _standard_input(wanted: str, size: int) -> bytes:
    if not sys.stdin.isatty():
        return sys.stdin.buffer.read(size)
    told = f"reading {wanted} from standard input; end it with Enter and Ctrl-D"
    print(told, file=sys.stderr, flush=True)
    typed = sys.stdin.buffer.read(size)
    _refuse_cut_lines(typed)
    return typed


def _refuse_cut_lines(typed: bytes) -> None:
    """A terminal drops what is beyond, and a proof or an access token would look malformed."""
    for number, line in enumerate(typed.split(b"\n"), 1):
        if len(line) >= MAX_TYPED_LINE:
            raise ConfigurationError(
                f"line {number}: the terminal took no more than {MAX_TYPED_LINE} characters of it",
                hint="save it in a file, and give that with < FILE",
            )

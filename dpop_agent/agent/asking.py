"""Putting a question to a person: by pinentry, or by a command of the configuration's."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Protocol

from dpop_agent import pinentry
from dpop_agent.config import check_confirm_program
from dpop_agent.errors import Cancelled, ConfigurationError, DPoPAgentError, Timeout

MAX_SHOWN = 80
"""Characters shown of a name that isn't the agent's own."""

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/@:+-")


class NotAgreed(Exception):
    """Any answer but yes.

    Attributes:
        why: as in "the answer was no".
        hint: what to do next.
    """

    def __init__(self, why: str, *, hint: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.hint = hint


class _Prompt(Protocol):
    def run(self) -> None:
        """Return for a yes. Blocks.

        Raises:
            NotAgreed
        """

    def stop(self) -> None:
        """End it, from another thread; what `run` does then is nobody's answer."""


async def ask(question: str, *, command: Sequence[str], within_s: float) -> None:
    """Return once somebody said yes; no program stays behind where this is cancelled.

    Args:
        question: in lines.
        command: a program and its arguments, which gets the question as one more and ends with
            status 0 for a yes; none: pinentry asks.
        within_s: seconds for the answer.

    Raises:
        NotAgreed: they said no, or nothing, or nobody can be asked.
    """
    prompt: _Prompt = (
        _Command(command, question, within_s) if command else _Pinentry(question, within_s)
    )
    asking = asyncio.get_running_loop().run_in_executor(None, prompt.run)
    try:
        await asyncio.shield(asking)
    except asyncio.CancelledError:
        prompt.stop()
        await asyncio.wait([asking])
        asking.exception()
        raise


class _Pinentry:
    def __init__(self, question: str, within_s: float) -> None:
        self._question = question
        self._within_s = within_s
        self._pinentry = pinentry.Pinentry()

    def run(self) -> None:
        try:
            self._pinentry.confirm(self._question, within_s=int(self._within_s))
        except Timeout as e:
            raise NotAgreed("nobody answered in time", hint="try again") from e
        except pinentry.NotConfirmed as e:
            raise NotAgreed("the answer was no") from e
        except (Cancelled, ConfigurationError, OSError) as e:
            raise _nobody(e) from e

    def stop(self) -> None:
        self._pinentry.stop()


class _Command:
    def __init__(self, command: Sequence[str], question: str, within_s: float) -> None:
        self._command = command
        self._question = question
        self._within_s = within_s
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self) -> None:
        try:
            check_confirm_program(self._command[0])
            process = self._process = subprocess.Popen(
                [*self._command, self._question],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
                cwd="/",
            )
        except (ConfigurationError, OSError) as e:
            raise _nobody(e) from e
        try:
            if self._stopped:  # before there was a process to end
                self._kill()
            status = process.wait(self._within_s)
        except subprocess.TimeoutExpired as e:
            raise NotAgreed("nobody answered in time", hint="try again") from e
        finally:
            self._kill()
            process.wait()
        if status != 0:
            raise NotAgreed("the answer was no")

    def stop(self) -> None:
        self._stopped = True
        self._kill()

    def _kill(self) -> None:
        """End it, and what it started."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def _nobody(error: DPoPAgentError | OSError) -> NotAgreed:
    if isinstance(error, DPoPAgentError):
        return NotAgreed(f"nobody can be asked: {error.message}", hint=_HINT)
    return NotAgreed(f"nobody can be asked ({error.strerror or type(error).__name__})", hint=_HINT)


_HINT = (
    "have the agent run where pinentry can ask (DISPLAY, WAYLAND_DISPLAY or GPG_TTY in its "
    "environment), or set agent.confirm_command in the configuration"
)


def asker(pid: int) -> str:
    """What a process seems to be, for people: its program, its pid and the service that it is in.

    All of it is for the process itself, or somebody who starts it, to choose.
    """
    if not pid:
        return "a program that can't be told"
    unit = _unit(pid)
    return f"{_program(pid)}, process {pid}{f', unit {unit}' if unit else ''}"


def _program(pid: int) -> str:
    try:
        return shown(os.readlink(f"/proc/{pid}/exe"))
    except OSError:  # it may be closed to us
        return shown(_read(f"/proc/{pid}/comm").strip()) or "a program that has ended"


def _unit(pid: int) -> str:
    """The innermost unit of systemd's that a process is in, if any."""
    for line in _read(f"/proc/{pid}/cgroup").splitlines():
        *_, path = line.split(":", 2)  # cgroups(7): hierarchy, controllers, path
        for part in reversed(path.split("/")[1:]):
            if part.endswith((".service", ".scope")):
                return shown(part)
    return ""


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096)
    except OSError:
        return ""


def shown(text: str) -> str:
    """A foreign text, so that it can be nothing but a name: escaped, and its beginning cut."""
    escaped = "".join(c if c in _PLAIN else ascii(c)[1:-1] if c > "~" else "_" for c in text)
    return escaped if len(escaped) <= MAX_SHOWN else f"...{escaped[-MAX_SHOWN:]}"

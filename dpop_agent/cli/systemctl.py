"""What systemd is asked for, the user's or the machine's, by `systemctl` and `journalctl`."""

from __future__ import annotations

import os
import shutil
import subprocess

from dpop_agent.cli.units import IDENTIFIER
from dpop_agent.errors import ServiceFailed, Timeout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_BOOTED = "/run/systemd/system"
"""It is there where systemd runs the machine (sd_booted(3))."""

_BUS = "Failed to connect to "
"""How systemctl begins where there is nobody to ask: `bus: No medium found`, and others."""

NO_PROGRAM = "203"
"""ExecMainStatus where what a unit starts isn't there, or can't be started (systemd.exec(5))."""

GONE = "its program isn't where it was when the service was installed"
INSTALL = "dpop-agent service install"


ANSWER_S = 15.0
"""Seconds in which it says how a unit is; where it can't, systemctl would wait for minutes."""


class Systemd:
    """The user's service manager, or the machine's."""

    def __init__(self, *, system: bool) -> None:
        self._system = system

    @property
    def words(self) -> list[str]:
        """How a command of its begins, for people too."""
        return ["systemctl"] if self._system else ["systemctl", "--user"]

    def do(self, *words: str) -> None:
        """Have something done, and wait for it.

        Raises:
            ServiceFailed: why not.
        """
        if self._system and os.getuid() != 0:
            raise ServiceFailed(
                "only root can change the machine's services",
                hint=f"as root: {' '.join([*self.words, *words])}",
            )
        done = self._ask(words)
        if done.returncode != 0:
            raise ServiceFailed(
                f"{' '.join([*self.words, *words])}: {_first_line(done.stderr) or 'it failed'}",
                hint="see: " + ("journalctl -e" if self._system else "journalctl --user -e"),
            )

    def must_start(self, verb: str, service: str, *beside: str) -> None:
        """`start` or `restart` a service, and what has to be there beside it, which it needs.

        Raises:
            ServiceFailed: why it doesn't, as it said itself.
        """
        self._ask(["reset-failed", service, *beside])  # fails where it hasn't loaded them yet
        try:
            self.do(verb, service)
        except ServiceFailed:
            shown = self.show(service, "StatusText", "ExecMainStatus")
            why, option = shown["StatusText"], " --system" if self._system else ""
            if shown["ExecMainStatus"] == NO_PROGRAM:
                raise ServiceFailed(
                    f"the service doesn't start: {GONE}", hint=f"{INSTALL}{option}"
                ) from None
            if not why:
                raise
            raise ServiceFailed(
                f"the service doesn't start: {why}",
                hint=f"correct that, then: dpop-agent service start{option}",
            ) from None

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit, those of one that isn't there too.

        Raises:
            ServiceFailed: nobody can be asked.
            Timeout: whoever can doesn't answer.
        """
        done = self._ask(["show", f"--property={','.join(names)}", unit], limit_s=ANSWER_S)
        pairs = (line.partition("=") for line in done.stdout.splitlines())
        return dict.fromkeys(names, "") | {name: value for name, _, value in pairs}

    def said(self, unit: str, *, follow: bool = False, as_json: bool = False) -> list[str]:
        """The command that shows what a unit said of late, and what systemd said of it."""
        scope, field = ([], "UNIT") if self._system else (["--user"], "USER_UNIT")
        # By its name: what a process said that has ended by now isn't known to be of its unit.
        matches = [f"{field}={unit}", "+", f"SYSLOG_IDENTIFIER={IDENTIFIER}"]
        form = ["--follow"] * follow + ["--output=json"] * as_json
        return ["journalctl", *scope, "--lines=200", "--no-pager", "--quiet", *form, *matches]

    def _ask(
        self, words: Sequence[str], *, limit_s: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        if shutil.which(self.words[0]) is None or not os.path.isdir(_BOOTED):
            raise ServiceFailed(
                "systemd doesn't run this machine, so there is nobody to give a service to",
                hint="have what starts your programs here start this one: dpop-agent serve",
            )
        try:
            done = subprocess.run(
                [*self.words, *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                check=False,
                env=os.environ | {"LC_ALL": "C"},
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired as e:
            raise Timeout(
                f"systemd didn't answer within {e.timeout:g} s: {' '.join([*self.words, *words])}",
                hint="see whether its process is stopped or has too much to do",
            ) from None
        if done.returncode != 0 and done.stderr.startswith(_BUS):
            raise ServiceFailed(
                f"systemd can't be asked: {_first_line(done.stderr)}",
                hint="try it as root"
                if self._system
                else "log in as this user, at the machine or by ssh, for su and sudo start no "
                "service manager; on Debian it also needs: apt install dbus-user-session",
            )
        return done


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0]

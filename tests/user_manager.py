"""A real service manager of a user's, in namespaces of the test's own.

`systemd --user` runs as an ordinary user who has a home, a runtime folder and a tree of control
groups to himself, with a journal. Nothing of the machine's is touched: /run, /home, /opt and
/var/log are empty there, and cgroup2 is mounted where systemd looks for it. All of it ends with the
first process in there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.emulators import need
from tests.newcomer import BASH, ORDINARY_UID, PROMPT, Shell
from tests.processes import ROOT, START_S

HOME, RUNTIME = "/home/somebody here", f"/run/user/{ORDINARY_UID}"
"""The home's name has a space: units have to write it so that it is one word."""

PYTHON = f"{HOME}/venv/bin/python"

_SETUP = r"""
set -eu
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /opt
mkdir /opt/project /opt/libraries
mount --bind "$ROOT" /opt/project
mount --bind "$LIBRARIES" /opt/libraries
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /home
mount -t tmpfs -o mode=755 tmpfs /var/log
mkdir -p /run/systemd/system /var/log/journal
mkdir -p /run/systemd/journal
touch /run/systemd/journal/flushed
/usr/lib/systemd/systemd-journald &
while [ ! -S /run/systemd/journal/stdout ]; do sleep 0.05; done
umount -R /sys/fs/cgroup || :
mount -t cgroup2 cgroup2 /sys/fs/cgroup
manager="/sys/fs/cgroup/$GROUP/user-$WHO.slice/user@$WHO.service"  # what the journal knows one by
mkdir -p "$manager"
chown -R "$WHO:$WHO" "$manager"
install -d -m 700 -o "$WHO" -g "$WHO" "$RUNTIME" "$HOME"
echo $$ >"$manager/cgroup.procs"
setpriv --reuid="$WHO" --regid="$WHO" --clear-groups env -i \
  HOME="$HOME" XDG_RUNTIME_DIR="$RUNTIME" PATH=/usr/bin:/bin SYSTEMD_LOG_TARGET=console \
  /usr/lib/systemd/systemd --user --show-status=no &
echo set up
while :; do wait; sleep 1; done
"""


class UserManager:
    """One that runs; commands are an ordinary user's, in there."""

    def __init__(self, first: int) -> None:
        self._enter = [
            *("nsenter", f"--target={first}", "--mount", "--pid"),
            *("setpriv", f"--reuid={ORDINARY_UID}", f"--regid={ORDINARY_UID}", "--clear-groups"),
        ]
        self.env = {"HOME": HOME, "XDG_RUNTIME_DIR": RUNTIME, "PATH": "/usr/bin:/bin"}

    def run(
        self,
        *words: str,
        check: bool = True,
        stdin: str = "",
        without: tuple[str, ...] = (),
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as the user, without some variables, or with more."""
        known = {name: v for name, v in (self.env | env).items() if name not in without}
        pairs = [f"{name}={value}" for name, value in known.items()]
        done = subprocess.run(
            [*self._enter, "env", "-i", f"--chdir={HOME}", *pairs, *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check:
            assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done

    def agent(
        self, *words: str, check: bool = True, without: tuple[str, ...] = (), **env: str
    ) -> subprocess.CompletedProcess[str]:
        """`dpop-agent WORDS…`."""
        command = (PYTHON, "-P", "-m", "dpop_agent", *words)
        return self.run(*command, check=check, without=without, **env)

    def terminal(self) -> Shell:
        """A new terminal of the user's, with the program on its PATH."""
        known = self.env | {"PATH": f"{HOME}/venv/bin:/usr/bin:/bin", "PS1": PROMPT}
        known |= {"HISTFILE": "", "LANG": "C.UTF-8", "TERM": "dumb"}
        pairs = [f"{name}={value}" for name, value in known.items()]
        command = [*self._enter, "env", "-i", f"--chdir={HOME}", *pairs, *BASH]
        return Shell(command, cwd=ROOT, env=dict(os.environ))

    def bind(self, source: Path, target: str) -> None:
        """Show a folder of the machine's at a new one in there, as only root can."""
        script = 'mkdir -p "$2"; mount --bind "$1" "$2"'
        enter = [*self._enter[:3], "sh", "-ec", script, "sh", str(source), target]
        subprocess.run(enter, check=True)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "--user", "show", f"-P{name}", unit).stdout.strip()

    def write(self, path: str, text: str, mode: str = "600") -> None:
        """A file of the user's, in folders that are made for it."""
        script = 'umask 077; mkdir -p "${1%/*}"; cat >"$1"; chmod "$2" "$1"'
        self.run("sh", "-c", script, "sh", path, mode, stdin=text)

    def read(self, path: str) -> str:
        return self.run("cat", path).stdout

    def exists(self, path: str) -> bool:
        return self.run("test", "-e", path, check=False).returncode == 0


@contextmanager
def user_manager() -> Iterator[UserManager]:
    """One in a home that has this program, and a PKCS#11 token that is configured."""
    need("systemd")
    if os.getuid() != 0:
        pytest.skip("not here: only root can make a tree of control groups for a user")
    group = f"dpop-agent-tests-{os.getpid()}.slice"
    env = {
        **os.environ,
        "ROOT": str(ROOT),
        "LIBRARIES": sysconfig.get_path("purelib"),
        "GROUP": group,
        "WHO": str(ORDINARY_UID),
        "HOME": HOME,
        "RUNTIME": RUNTIME,
    }
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", _SETUP],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
            start_new_session=True,
        )

        def said() -> str:
            log.seek(0)
            return log.read()

        try:
            until(lambda: "set up" in said() or process.poll() is not None)
            if process.poll() is not None:
                pytest.skip(f"not here: namespaces with cgroup2: {said()}")
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            manager = UserManager(int(children.read_text().split()[0]))
            until(
                lambda: (
                    manager.run("systemctl", "--user", "is-system-running", check=False).stdout
                    == "running\n"
                )
            )
            _furnish(manager)
            yield manager
        finally:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            for first in children.read_text().split() if process.poll() is None else ():
                os.kill(int(first), signal.SIGKILL)
            process.wait()
            print(said())
            remove_groups(group)


def _furnish(manager: UserManager) -> None:
    """A virtual environment with the libraries of this one, and a PKCS#11 token."""
    base = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    manager.run(base, "-m", "venv", "--without-pip", f"{HOME}/venv")
    (packages,) = manager.run(
        PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
    ).stdout.splitlines()
    manager.write(f"{packages}/here.pth", "/opt/project\n/opt/libraries\n")
    command = f'#!/bin/sh\nexec "{PYTHON}" -P -m dpop_agent "$@"\n'
    manager.write(f"{HOME}/venv/bin/dpop-agent", command, "700")
    manager.run(PYTHON, "/opt/project/softhsm/new_token.py", f"{HOME}/token", "dpop-agent")
    manager.write(
        f"{HOME}/.config/dpop-agent/config.toml", manager.read(f"{HOME}/token/config.toml")
    )


def until(holds: object) -> None:
    assert callable(holds)
    deadline = time.monotonic() + START_S
    while not holds():
        assert time.monotonic() < deadline, "it doesn't come to be"
        time.sleep(0.05)


def remove_groups(group: str) -> None:
    """The control groups, which are all empty now."""
    script = (
        "mount --make-rprivate / && { umount -R /sys/fs/cgroup || :; } && "
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup && "
        f"find /sys/fs/cgroup/{group} -depth -type d -exec rmdir {{}} +"
    )
    subprocess.run(["unshare", "--mount", "sh", "-c", script], check=True, timeout=60)

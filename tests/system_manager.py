"""A machine's service manager, the first process of namespaces of the test's own.

systemd runs there as on a server, with root and services of other users. What is written to /etc,
/opt and /var/lib is gone afterwards; /run and /var/log are empty there, and of the machine's units
none is known. All of it ends with the first process in there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.emulators import need
from tests.newcomer import BASH, PROJECT, PROMPT, Shell
from tests.processes import ROOT
from tests.user_manager import remove_groups, until

SOURCES = "/opt/sources"
"""Where the project's folder is, as somebody unpacked it."""

_NAMESPACES = ("--mount", "--pid", "--cgroup", "--ipc", "--uts")

_JOIN = """\
mount --make-rprivate /
umount -R /sys/fs/cgroup || :
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /sys/fs/cgroup/"$GROUP"
echo "$1" >/sys/fs/cgroup/"$GROUP"/cgroup.procs
"""
"""Puts a process into a control group of its own, which the namespace then begins with."""

_FIRST = r"""
set -eu
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /mnt
for folder in etc opt var/lib; do
  mkdir -p /mnt/new/$folder /mnt/work/$folder
  mount -t overlay -o "lowerdir=/$folder,upperdir=/mnt/new/$folder,workdir=/mnt/work/$folder" \
    overlay /$folder
done
touch /etc/of-its-own
test -e /mnt/new/etc/of-its-own  # from here on nothing that is written is the machine's
mkdir /mnt/units /mnt/none /opt/sources /opt/bin
ln -s "$PYTHON" /opt/bin/python3
for name in basic final multi-user paths shutdown slices sockets sysinit timers umount; do
  printf '[Unit]\nDescription=%s\n' $name >/mnt/units/$name.target
done
cp /usr/lib/systemd/system/systemd-journald*.s* /mnt/units
echo Wants=systemd-journald.service >>/mnt/units/sysinit.target
mount --bind /mnt/units /usr/lib/systemd/system
mount --bind /mnt/none /usr/lib/systemd/system-generators
rm -rf /etc/systemd/system /etc/dpop-agent
mkdir /etc/systemd/system
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/lock
mount -t tmpfs -o mode=755 tmpfs /var/log
umount -R /sys/fs/cgroup || :
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for name in $PROJECT; do cp -r "$ROOT/$name" /opt/sources; done
mount --make-rshared /  # as on a machine: what systemd mounts for a service, credentials say
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_LOG_TARGET=console \
  /usr/lib/systemd/systemd --system --unit=multi-user.target --show-status=no
"""


class SystemManager:
    """One that runs; what is run in there is root's."""

    def __init__(self, first: int, env: dict[str, str]) -> None:
        self._enter = ["nsenter", f"--target={first}", *_NAMESPACES]
        path = "/opt/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self._env = {"HOME": "/root", "LANG": "C.UTF-8", "PATH": path, **env}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command, however it ends."""
        return subprocess.run(
            [*self._enter, "env", "-i", *self._pairs(), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def write(self, path: str, text: str) -> None:
        """A file, as somebody saves it with an editor."""
        script = 'mkdir -p "${1%/*}"; cat >"$1"'
        command = [*self._enter, "sh", "-ec", script, "sh", path]
        subprocess.run(command, input=text, text=True, check=True)

    def terminal(self) -> Shell:
        """A new terminal of root's, in the folder with the sources."""
        pairs = self._pairs(PS1=PROMPT, HISTFILE="", TERM="dumb")
        command = [*self._enter, "env", "-i", f"--chdir={SOURCES}", *pairs, *BASH]
        return Shell(command, cwd=ROOT, env=dict(os.environ))

    def _pairs(self, **more: str) -> list[str]:
        return [f"{name}={value}" for name, value in (self._env | more).items()]


@contextmanager
def system_manager(**env: str) -> Iterator[SystemManager]:
    """One without services.

    Args:
        env: more variables for what is run there.
    """
    need("systemd")
    if os.getuid() != 0:
        pytest.skip("not here: only root can have a service manager of a machine's")
    group = f"dpop-agent-tests-{os.getpid()}.slice"
    join = 'unshare --mount sh -ec "$JOIN" sh $$'
    begin = f'{join} && exec unshare {" ".join(_NAMESPACES)} --fork --kill-child bash -c "$FIRST"'
    given = {"ROOT": str(ROOT), "GROUP": group, "JOIN": _JOIN, "FIRST": _FIRST}
    given["PROJECT"] = " ".join(PROJECT)
    # The Python of these tests, whose wheels fit no other.
    given["PYTHON"] = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            ["bash", "-c", begin],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **given},
            start_new_session=True,
        )

        def first() -> int | None:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            found = [int(pid) for pid in children if _name(int(pid)) == "systemd"]
            return found[0] if found else None

        try:
            until(lambda: process.poll() is not None or first())
            if process.poll() is not None:
                log.seek(0)
                pytest.skip(f"not here: namespaces with overlays and cgroup2: {log.read()}")
            found = first()
            assert found
            manager = SystemManager(found, env)
            asks = ("systemctl", "is-system-running")
            until(lambda: manager.run(*asks).stdout in ("running\n", "degraded\n"))
            yield manager
        finally:
            if process.poll() is None:
                os.kill(first() or process.pid, signal.SIGKILL)
            process.wait()
            log.seek(0)
            print(log.read())
            remove_groups(group)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""

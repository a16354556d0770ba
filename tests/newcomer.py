"""An ordinary user in an empty home, who has the project's folder and types into terminals.

Nothing is downloaded: what this environment has installed is packed into wheels again.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.processes import ROOT
from tests.terminal import Screen

ORDINARY_UID = 54321
"""Whose the home is where root runs the tests: nobody's in /etc/passwd, nor the overflow uid."""

COMMAND_S = 120.0
"""Seconds for one command: making a virtual environment and filling it takes most."""

PROMPT = "[$?]% "
BASH = ["bash", "--noprofile", "--norc", "--noediting", "-i"]
_PROMPT = re.compile(r"\[(\d+)\]% $")
_PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
BUILD: list[str] = _PYPROJECT["build-system"]["requires"]
"""What builds the project."""

PROJECT = ("LICENSE", "README.md", "dpop_agent", "pyproject.toml", "softhsm")
_NEVER_PACKED = ("INSTALLER", "REQUESTED", "direct_url.json")


def wheels(folder: Path, *wanted: str) -> None:
    """Pack what these requirements need, as it is installed here, into wheels."""
    installed = {canonicalize_name(found.name): found for found in distributions()}
    todo, packed = [Requirement(text) for text in wanted], set[tuple[str, frozenset[str]]]()
    while todo:
        requirement = todo.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in packed:
            continue
        packed.add((name, extras))
        found = installed[name]
        if name != "dpop-agent":
            _pack(found, folder)
        for text in found.requires or ():
            needs = Requirement(text)
            if needs.marker is None or any(
                needs.marker.evaluate({"extra": extra}) for extra in extras | {""}
            ):
                todo.append(needs)


def _pack(found: Distribution, folder: Path) -> None:
    tags = re.findall(r"^Tag: (\S+)$", found.read_text("WHEEL") or "", re.M)
    parts = zip(*(tag.split("-") for tag in tags), strict=True)
    tag = "-".join(".".join(dict.fromkeys(part)) for part in parts)
    name = canonicalize_name(found.name).replace("-", "_")
    with zipfile.ZipFile(folder / f"{name}-{found.version}-{tag}.whl", "w") as wheel:
        for file in found.files or ():
            if ".." in file.parts or "__pycache__" in file.parts or file.name in _NEVER_PACKED:
                continue
            wheel.write(str(file.locate()), str(file))


class Newcomer:
    """The user; `project` is the folder with the sources, in a home that is empty otherwise."""

    def __init__(self, folder: Path, wheelhouse: Path) -> None:
        self.home = folder / "home"
        self.project = self.home / "dpop-agent"
        self.project.mkdir(parents=True)
        runtime = folder / "run"
        runtime.mkdir(mode=0o700)
        ignored = shutil.ignore_patterns("__pycache__", ".state")
        for name in PROJECT:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.project / name, ignore=ignored)
            else:
                shutil.copy(ROOT / name, self.project)
        # With the Python of these tests, whose wheels fit no other.
        python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        (bin_folder / "python3").symlink_to(python)
        self._env = {
            "HISTFILE": "",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "PATH": f"{bin_folder}:/usr/local/bin:/usr/bin:/bin",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_FIND_LINKS": str(wheelhouse),
            "PIP_NO_CACHE_DIR": "1",
            "PIP_NO_COMPILE": "1",
            "PIP_NO_INDEX": "1",
            "PS1": PROMPT,
            "TERM": "dumb",
            "XDG_RUNTIME_DIR": str(runtime),
        }
        self._become: list[str] = []
        if os.getuid() == 0:
            ids = [f"--reuid={ORDINARY_UID}", f"--regid={ORDINARY_UID}", "--clear-groups"]
            self._become = ["setpriv", *ids]
            for path in (folder, *folder.rglob("*")):
                os.chown(path, ORDINARY_UID, ORDINARY_UID, follow_symlinks=False)

    def write(self, name: str, text: str) -> None:
        """A file of the user's in the project's folder."""
        path = self.project / name
        path.write_text(text)
        if os.getuid() == 0:
            os.chown(path, ORDINARY_UID, ORDINARY_UID)

    def terminal(self) -> Shell:
        """A new terminal, with nothing set in it, in the project's folder."""
        return Shell([*self._become, *BASH], cwd=self.project, env=self._env)


class Shell(Screen):
    """A shell in a terminal of its own, 80 columns wide.

    Attributes:
        serves: whether what was typed last goes on serving, so that the shell takes nothing more.
    """

    def __init__(self, command: list[str], *, cwd: Path, env: dict[str, str]) -> None:
        super().__init__()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        take: Callable[[], Any] = lambda: os.close(os.open(self.name, os.O_RDWR))  # noqa: E731
        self.process = subprocess.Popen(
            command,
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            cwd=cwd,
            env=env,
            start_new_session=True,
            preexec_fn=take,  # the first terminal that is opened controls it
        )
        os.close(self._theirs)
        self.serves = False
        self._seen = 0
        self._until_prompt({}, None)

    def __exit__(self, *exc_info: object) -> None:
        with suppress(OSError):
            if self.serves:
                self.interrupt()
            self.type("exit\n")
            self.process.wait(COMMAND_S)
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def run(
        self, line: str, *, asked: dict[str, str], serving: str | None, fails: bool = False
    ) -> str:
        """Type a command; what it shows until it ends, or until it serves.

        Args:
            line: the command.
            asked: what is typed where one of these is shown, a regular expression.
            serving: what this one shows when it serves; None for one that ends.
            fails: whether it ends with an exit status other than 0.
        """
        self._seen = len(self.shown)
        self.type(f"{line}\n")
        status = self._until_prompt(asked, serving)
        shown = self.shown[self._seen :]
        assert status is None or bool(status) == fails, f"{line}: {shown}"
        self.serves = status is None
        return shown

    def interrupt(self) -> int:
        """Ctrl-C; the exit status of what served."""
        self._seen = len(self.shown)
        self.type("\x03")
        status = self._until_prompt({}, None)
        assert status is not None
        self.serves = False
        return status

    def _until_prompt(self, asked: dict[str, str], serving: str | None) -> int | None:
        deadline = time.monotonic() + COMMAND_S
        answered = self._seen
        while True:
            shown = self.shown[self._seen :]
            if found := _PROMPT.search(shown):
                return int(found[1])
            if serving is not None and serving in shown:
                return None
            for question, answer in asked.items():
                if re.search(f"{question}$", self.shown[answered:]):
                    answered = len(self.shown)
                    self.type(f"{answer}\n")
            ready, _, _ = select.select([self._ours], [], [], deadline - time.monotonic())
            assert ready, f"it says no more: {self.shown}"
            assert self._read(), f"it ended: {self.shown}"


@contextmanager
def newcomer(wheelhouse: Path) -> Iterator[Newcomer]:
    """Someone in a home that is gone afterwards, not below a folder that only root may enter."""
    with tempfile.TemporaryDirectory(prefix="newcomer-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield Newcomer(folder, wheelhouse)

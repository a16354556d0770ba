"""The project as it lies here, and a revision of it to compare it with."""

from __future__ import annotations

import compileall
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.figures import CannotMeasure
from tests.processes import ROOT, Agent, Token


def git(*words: str | Path) -> str:
    """What git says in this project's folder."""
    return subprocess.run(
        ["git", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()


@dataclass(frozen=True)
class Revision:
    """A checkout that can be run.

    Attributes:
        commit: its name for git; with a + where files were changed since.
        root: its folder.
        python: an interpreter that has the libraries it needs.
        beside: that it is only there to be compared with.
    """

    commit: str
    root: Path = ROOT
    python: str = sys.executable
    beside: bool = False
    preexec: list[str] = field(init=False)

    def __post_init__(self) -> None:
        # `-m` looks into the current folder first.
        words = ["env", f"--chdir={self.root}", f"PYTHONPATH={self.root}"]
        object.__setattr__(self, "preexec", words)

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"dpop-agent at {self.commit}" if self.beside else "dpop-agent"

    def agent(self, token: Token, state: Path, config: Path | None = None) -> Agent:
        """An agent of it for a PKCS#11 token, not started yet."""
        return Agent(config or token.config, state, preexec=self.preexec, python=self.python)

    def command(self, *words: str) -> list[str]:
        """`dpop-agent WORDS…` of it, as a shell runs it where it is installed."""
        script = Path(self.python).with_name("dpop-agent")
        program = [str(script)] if script.exists() else ["-m", "dpop_agent"]
        return [self.python, *program, *words]


def here() -> Revision:
    """The files as they are now."""
    _compile(ROOT)
    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return Revision(git("rev-parse", "--short", "HEAD") + ("+" if changed else ""))
    except (OSError, subprocess.CalledProcessError):
        return Revision("unknown")  # unpacked, with no history


@contextmanager
def checked_out(name: str, folder: Path) -> Iterator[Revision]:
    """A revision in a folder of its own; if it needs other libraries, with an environment too."""
    commit = git("rev-parse", "--short", f"{name}^{{commit}}")
    root = folder / "revision"
    git("worktree", "add", "--quiet", "--detach", root, commit)
    try:
        python = sys.executable
        if _dependencies(root) != _dependencies(ROOT):
            python = str(_environment(root, folder / "venv"))
        _compile(root)
        yield Revision(commit, root, python, beside=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
        git("worktree", "prune")


def _compile(root: Path) -> None:
    """Have its bytecode, as an installed one has: where none may be written, each start would
    compile anew what was edited.
    """
    if not compileall.compile_dir(root / "dpop_agent", quiet=1):
        raise CannotMeasure(f"{root / 'dpop_agent'} can't be compiled")


def _dependencies(root: Path) -> Any:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]


def _environment(root: Path, folder: Path) -> Path:
    print(f"installing what {root} needs into {folder}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", root)
    subprocess.run([python, *install], stdout=sys.stderr, check=True)
    return python

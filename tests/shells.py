"""Interactive shells in a terminal (tmux), where somebody types and presses TAB."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from tests.newcomer import Newcomer
from tests.processes import START_S

SHELLS = ("bash", "zsh", "fish")

_END = "%%"
"""Typed after TAB: once it is shown, the shell has done what TAB asks for."""

LOADED = {
    "bash": 'eval "$(dpop-agent completion bash)"',
    "zsh": 'eval "$(dpop-agent completion zsh)"',
    "fish": "dpop-agent completion fish > ~/.config/fish/completions/dpop-agent.fish",
}
"""How README has a shell load its completions."""

_SETUP = {
    "bash": """
        bind 'set show-all-if-ambiguous on'
        bind 'set page-completions off'
        bind 'set completion-query-items 0'
        bind 'set enable-bracketed-paste off'
        PS1='{prompt}'
        {load}
        """,
    # A list stays where it was shown, and comes at the first TAB, as in bash.
    "zsh": """
        PROMPT='{prompt}'
        unsetopt list_ambiguous always_last_prompt auto_menu list_beep
        LISTMAX=0
        autoload -U compinit
        compinit -D -u
        {load}
        """,
    "fish": """
        function fish_prompt; echo -n '{prompt}'; end
        function fish_greeting; end
        mkdir -p ~/.config/fish/completions
        {load}
        """,
}
_START = {
    "bash": ("bash", "--noprofile", "--rcfile"),
    "zsh": ("zsh",),
    "fish": ("fish",),
}
_PROMPT = "ready> "


class TypedShell:
    """A shell of the user's, 80 columns wide, that has loaded its completions as README says.

    Args:
        user: whose it is.
        shell: one of `SHELLS`.
        env: its environment, beside the user's.
        height: its rows.
    """

    def __init__(
        self, user: Newcomer, shell: str, env: dict[str, str], *, height: int = 60
    ) -> None:
        self.shell = shell
        home = Path(tempfile.mkdtemp(dir=user.home))
        setup = _SETUP[shell].format(prompt=_PROMPT, load=LOADED[shell])
        start = list(_START[shell])
        if shell == "bash":
            (home / "rc").write_text(setup)
            start.append(str(home / "rc"))
        elif shell == "zsh":
            (home / ".zshrc").write_text(setup)
        else:
            (home / "rc").write_text(setup)
            start.append(f"--init-command=source {home / 'rc'}")
        for path in (home, *home.rglob("*")):
            shutil.chown(path, *_owner(user))
        self.env = {
            **user._env,
            "ZDOTDIR": str(home),
            **env,
            "TERM": "screen",
        }
        self._tmux = [*user._become, "tmux", "-f", "/dev/null", "-S", str(home / "tmux")]
        self._user = user
        self._start = ["new-session", "-d", "-x", "80", "-y", str(height), *start]

    def __enter__(self) -> Self:
        self._do(*self._start)
        self._until(_PROMPT)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._do("kill-server")

    def offered(self, line: str) -> set[str]:
        """The words that TAB offers after that line; nothing where it completes the line itself."""
        if self.shell == "fish":  # whose list goes as soon as somebody types on
            self._do("send-keys", "-l", f"complete -C {_quoted(line)} | cut -f 1")
            return set(self._answers("Enter"))
        self._type(line)
        words: set[str] = set()
        for shown in self._shown()[1:-1]:
            words |= set(re.split(r"\s+-- ", shown)[0].split())
        self._clear()
        return words

    def completed(self, line: str) -> str:
        """The line as TAB completes it."""
        self._type(line)
        rows = [row for row in self._shown() if row.startswith(_PROMPT)]
        self._clear()
        return rows[-1].removeprefix(_PROMPT).partition(_END)[0]

    def screen(self) -> str:
        """What is shown."""
        return self._do("capture-pane", "-p", "-J")

    def _type(self, line: str) -> None:
        self._do("send-keys", "-l", line)
        self._until(line[-20:])
        self._do("send-keys", "Tab")
        self._do("send-keys", "-l", _END)
        self._until(_END)

    def _answers(self, key: str) -> list[str]:
        self._do("send-keys", key)
        deadline = time.monotonic() + START_S
        while len([row for row in self._shown() if row.startswith(_PROMPT.strip())]) < 2:
            assert time.monotonic() < deadline, self.screen()
            time.sleep(0.02)
        rows = self._shown()
        self._clear()
        return rows[1:-1]

    def _shown(self) -> list[str]:
        return self.screen().rstrip().splitlines()

    def _clear(self) -> None:
        self._do("send-keys", "C-u", "C-l")
        deadline = time.monotonic() + START_S
        while self.screen().strip() != _PROMPT.strip():
            assert time.monotonic() < deadline, self.screen()
            time.sleep(0.02)
        self._do("clear-history")

    def _until(self, text: str) -> None:
        deadline = time.monotonic() + START_S
        while text not in self.screen().replace("\n", ""):
            assert time.monotonic() < deadline, f"no {text!r}: {self.screen()}"
            time.sleep(0.02)

    def _do(self, *words: str) -> str:
        done = subprocess.run(
            [*self._tmux, *words],
            env=self.env,
            cwd=self._user.home,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=True,
        )
        return done.stdout


def _owner(user: Newcomer) -> tuple[int, int]:
    info = Path(user.home).stat()
    return info.st_uid, info.st_gid


def _quoted(line: str) -> str:
    return "'" + line.replace("\\", "\\\\").replace("'", "\\'") + "'"

"""SoftHSM2 with faults, as faulty.c makes them."""

from __future__ import annotations

from pathlib import Path

from tests.agent.places import changed_config
from tests.emulators import built, need
from tests.processes import Token


class Faulty:
    """A PKCS#11 token behind faulty.c.

    Args:
        token: it, as it is behind SoftHSM2's own module.
        module: faulty.c's shared object.
    """

    def __init__(self, token: Token, module: Path) -> None:
        self.token = token
        self.module = module
        self._folder = token.folder / "faults"
        self._folder.mkdir()
        (self._folder / "calls").touch()

    @property
    def env(self) -> dict[str, str]:
        """What the module needs."""
        return {"FAULTY": str(self._folder)}

    def config(self, **settings: str) -> Path:
        """A configuration of it, with other settings."""
        return changed_config(self.token, env=self.env, module=str(self.module), **settings)

    def rules(self, *rules: str) -> None:
        """What goes wrong from now on, in faulty.c's words."""
        new = self._folder / "rules.new"
        new.write_text("".join(f"{rule}\n" for rule in rules))
        new.rename(self._folder / "rules")

    def calls(self, name: str) -> list[str]:
        """The calls of a function, each with what was noted of it."""
        lines = (self._folder / "calls").read_text().splitlines()
        return [line for line in lines if line.split()[0] == name]

    def callers(self, name: str) -> list[int]:
        """The processes that called a function, once for each call that was noted."""
        return [pid for called, pid in self.called if called == name]

    @property
    def called(self) -> list[tuple[str, int]]:
        """Each call that was noted, in their order, and the process that made it."""
        lines = map(str.split, (self._folder / "callers").read_text().splitlines())
        return [(name, int(pid)) for name, pid in lines]

    @property
    def logins(self) -> int:
        """How many times something logged in, or tried to."""
        return len(self.calls("C_Login"))


def module(folder: Path) -> Path:
    """faulty.c's shared object, in a folder."""
    need("gcc", "libc6-dev")
    return built("faulty.c", folder)

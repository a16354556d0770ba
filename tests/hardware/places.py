"""The folder of one run, which is gone afterwards: its PIN, its agents, what was seen before."""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dpop_agent.agent.labels import named_by
from dpop_agent.signer.brake import CUT_SHORT
from tests.hardware.looking import Failed, Place, Thing

PIN_WAS_REFUSED = "pin-was-refused"

NAMES = ("shop", "other", "first", "second")
"""Keys that the conformance classes make beside those that are called as their algorithms."""


class Run:
    """One run's folder.

    Attributes:
        folder: on a disk that is none, where there is one: it has the PIN.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.toml"
        self.pin_file = folder / "pin"
        self.results = folder / "results"
        self.log = folder / "log"
        self.made = folder / "made"
        self._settings = folder / "settings.json"

    @classmethod
    def new(cls) -> Run:
        """A new one."""
        return cls(Path(tempfile.mkdtemp(prefix="dpop-hw-", dir=parent())))

    def write(
        self, place: Place, seen: dict[str, Any], before: list[Thing], pin: str | None
    ) -> None:
        """All that the tests and the janitor want to know."""
        if pin is not None:
            self.pin_file.touch(mode=0o600)
            self.pin_file.write_text(f"{pin}\n")
        settings = {"place": vars(place), "seen": seen, "before": before}
        self._settings.write_text(json.dumps(settings))
        source = "none" if pin is None else f"file:{self.pin_file}"
        lines = {
            "type": "pkcs11",
            "module": place.module,
            "module_args": place.module_args,
            "uri": place.uri,
            "pin_source": source,
        }
        env = ", ".join(f"{name} = {_quoted(value)}" for name, value in place.env.items())
        text = "".join(f"{name} = {_quoted(value)}\n" for name, value in lines.items())
        self.config.write_text(f"[stores.hardware]\n{text}env = {{ {env} }}\n")
        for path in (self.results, self.made):
            path.touch()

    @property
    def pin(self) -> str | None:
        return self.pin_file.read_text().strip() if self.pin_file.exists() else None

    @property
    def seen(self) -> dict[str, Any]:
        seen: dict[str, Any] = self._read()["seen"]
        return seen

    @property
    def place(self) -> Place:
        return Place(**self._read()["place"])

    @property
    def has_an_agents_keys(self) -> bool:
        """Whether there were private keys before that an agent with a lost ledger would adopt."""
        before = (Thing(*thing) for thing in self._read()["before"])
        return any(thing.kind == "PRIVATE_KEY" and named_by(thing.label) for thing in before)

    def new_objects(self) -> list[Thing]:
        """Those that weren't there before, whoever made them.

        Raises:
            Failed: it can't be told; or nobody logs in any more, since a login was refused.
        """
        if self.is_over():
            raise Failed("a login was refused, and none is tried again")
        before = {Thing(*thing) for thing in self._read()["before"]}
        try:
            return [thing for thing in self.place.objects(self.pin) if thing not in before]
        except Failed as e:
            if e.pin:
                self.give_up()
            raise

    def delete_ours(self) -> list[Thing]:
        """Delete what the run's agents made; what is left of it.

        Raises:
            Failed
        """
        if ours := [thing for thing in self.new_objects() if self._is_ours(thing)]:
            self.place.delete(self.pin, ours)
            return [thing for thing in self.new_objects() if self._is_ours(thing)]
        return []

    def give_up(self) -> None:
        """Nobody logs in from here on: the next wrong PIN may lock a card."""
        (self.folder / PIN_WAS_REFUSED).touch()

    def is_over(self) -> bool:
        """Whether a login was refused, by an agent or without one.

        One that was cut short wasn't: the PIN was accepted when the run began.
        """
        if (self.folder / PIN_WAS_REFUSED).exists():
            return True
        marks = (path.read_text(errors="replace") for path in self.folder.rglob("logins-*"))
        hows = (how for mark in marks for how in re.findall(r'"how": "([^"]+)', mark))
        return any(how != CUT_SHORT for how in hows)

    def _is_ours(self, thing: Thing) -> bool:
        """In a ledger of ours, or with the label of a key of ours: of those that are new."""
        return thing.ref in set(self._refs()) or is_label_of_ours(thing.label)

    def _refs(self) -> Iterator[str]:
        for ledger in self.folder.rglob("ledger.json*"):
            yield from re.findall(r'"ref": "([0-9a-f]+)"', ledger.read_text(errors="replace"))

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._settings.read_text())
        return found


def labels(algs: Iterable[str]) -> list[str]:
    """Of the keys that are made."""
    return [f"dpop-agent {name}@1" for name in (*NAMES, *(alg.lower() for alg in algs))]


def is_label_of_ours(label: str) -> bool:
    from dpop_agent.jose import ALGORITHMS

    return label in labels(ALGORITHMS)


def _quoted(text: str) -> str:
    return json.dumps(text)


def parent() -> str:
    """A folder whose files are on no disk, where there is one."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    try:
        info = os.stat(runtime)
        if info.st_uid == os.getuid() and stat.S_IMODE(info.st_mode) == 0o700 and len(runtime) < 30:
            return runtime
    except OSError:
        pass
    return "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else "/tmp"

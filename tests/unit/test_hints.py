"""Whatever a key has been through: a command that the command line names does what it says."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from dpop_agent.agent.keys import State
from dpop_agent.cli import main as cli
from dpop_agent.client import AgentClient
from tests.unit.agent_in_process import SLOT, AgentInProcess

URL = "https://api.example.com/v1/me"
OTHERS = "ff" * 16
COMMAND = re.compile(r"dpop-agent ((?:key|proof|status|config|serve|reload)\b[^;,()\n]*)")
UNDO = 6
"""Hints that may have to be followed one after the other."""


class Shell:
    """The command line, with an agent whose store is a dictionary."""

    def __init__(self, agent: AgentInProcess, capsys: pytest.CaptureFixture[str]) -> None:
        self.agent = agent
        self.store = agent.store
        self._capsys = capsys
        self.store._generate(OTHERS)
        self._before = self._now

    @property
    def _now(self) -> tuple[object, ...]:
        return self.agent.records.keys, dict(self.store.objects)

    @property
    def has_changed(self) -> bool:
        """Whether anything has since `remember`."""
        (keys, objects), (keys_now, objects_now) = self._before, self._now
        return keys is not keys_now or objects != objects_now

    def remember(self) -> None:
        self._before = self._now

    def __call__(self, *words: str) -> tuple[int, str]:
        """The exit status and what is said, as to somebody who says yes to everything."""
        yes = words[:1] == ("key",) and words[1] in ("destroy", "compromise")
        status = cli.main([*words, "--yes"] if yes and "--yes" not in words else list(words))
        out, err = self._capsys.readouterr()
        return status, out + err

    def do(self, *words: str) -> str:
        """The same, where it has to work."""
        status, said = self(*words)
        assert status == 0, (words, said)
        return said

    def commands(self, said: str) -> list[tuple[str, ...]]:
        """Those that are named, with names of their own where any is meant."""
        named = [shlex.split(found.strip().rstrip(".")) for found in COMMAND.findall(said)]
        meant = {"NAME": "another", "REF": OTHERS, "--store": "--store"}
        return [tuple(meant.get(word, word) for word in words) for words in named]

    def jkt(self) -> str:
        """The first generation's; one that nobody has where there is none."""
        with AgentClient(self.agent.socket) as client:
            keys = [k for k in client.keys(include_destroyed=True) if k["key"] == "shop"]
        found = [g["jkt"] for key in keys for g in key["generations"] if g["jkt"]]
        return str(found[0]) if found else "A" * 43


def _make(shell: Shell) -> None:
    shell.do("key", "create", "shop", "--any-origin")


def _rotate(*options: str) -> Callable[[Shell], None]:
    return lambda shell: void(shell.do("key", "rotate", "shop", *options))


def _one(verb: str, number: int = 1) -> Callable[[Shell], None]:
    return lambda shell: void(shell.do("key", verb, f"shop@{number}"))


def void(_: object) -> None:
    pass


def _time_goes_by(shell: Shell) -> None:
    shell.agent.run(shell.agent.upkeep.do_what_is_due())


def _lose(shell: Shell) -> None:
    shell.store.objects = {OTHERS: shell.store.objects[OTHERS]}
    shell.do("reload")


def _half_made(shell: Shell) -> None:
    """An intent whose store can't be asked."""
    generate = shell.store._generate
    shell.store._generate = _fail(shell)  # type: ignore[method-assign]
    shell("key", "create", "shop", "--any-origin")
    shell.store._generate = generate  # type: ignore[method-assign]


def _fail(shell: Shell) -> Callable[..., dict[str, Any]]:
    def fails(**_rest: Any) -> dict[str, Any]:
        shell.store.fails = True
        return shell.store._find("00")

    return fails


def _works(shell: Shell) -> None:
    shell.store.fails = False


def _keeps_what_it_has(shell: Shell) -> None:
    """Its store fails to delete one time, and works again."""
    shell.store.keeps = True
    status, _ = shell("key", "destroy", "shop@1")
    assert status == 1
    shell.store.keeps = False


def _slot(shell: Shell) -> None:
    shell.store.has_slot = True


Steps = list[Callable[[Shell], None]]
STATES: dict[str, Steps] = {
    "no key": [],
    "active": [_make],
    "staged beside active": [_make, _rotate("--stage")],
    "staged alone": [_make, _rotate("--stage"), _one("destroy")],
    "draining": [_make, _rotate()],
    "draining alone": [_make, _rotate(), _one("suspend", 2)],
    "retired": [_make, _rotate("--drain", "0s"), _time_goes_by],
    "retired alone": [_make, _rotate("--drain", "0s"), _time_goes_by, _one("destroy", 2)],
    "suspended": [_make, _one("suspend")],
    "suspended beside active": [_make, _one("suspend"), _rotate()],
    "compromised": [_make, _one("compromise")],
    "compromised beside active": [_make, _one("compromise"), _rotate()],
    "destroyed": [_make, _one("destroy")],
    "destroyed beside active": [_make, _rotate(), _one("destroy")],
    "destroyed twice": [_make, _rotate(), _one("destroy"), _one("destroy", 2)],
    "compromised and destroyed": [_make, _one("compromise"), _one("destroy")],
    "destroyed but for its object": [_make, _keeps_what_it_has],
    "destroyed but for its object beside active": [_make, _rotate(), _keeps_what_it_has],
    "destroyed but for its slot": [_slot, _make, _one("destroy")],
    "missing": [_make, _lose],
    "missing beside active": [_make, _lose, _rotate()],
    "half made": [_half_made, _works],
    "forgotten": [_make, _one("destroy"), lambda shell: void(shell.do("key", "forget", "shop"))],
}

VERBS = [
    f"proof GET {URL} --key shop",
    f"proof GET {URL} --jkt JKT",
    "key create shop --any-origin",
    "key list",
    "key list shop",
    "key list --all",
    "key show shop",
    "key show shop@1",
    "key set shop --drain 5s",
    "key rotate shop",
    "key rotate shop --stage",
    "key activate shop",
    "key activate shop@1",
    "key suspend shop",
    "key suspend shop@1",
    "key resume shop",
    "key resume shop@1",
    "key compromise shop",
    "key compromise shop@1",
    "key destroy shop",
    "key destroy shop@1",
    "key forget shop",
    f"key adopt shop --ref {OTHERS}",
    "key show nobody",
    "status",
]

FINAL = {"missing", "missing beside active"}
"""What no command mends: only its store does."""


@pytest.fixture
def shells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Shell]]:
    """Agents with the key `shop` in that state, one after the other."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)  # no machine stops here
    monkeypatch.setattr(cli, "_parser", cache(cli._parser))
    running: list[AgentInProcess] = []

    def end() -> None:
        while running:
            running.pop().__exit__(None, None, None)

    def in_state(state: str) -> Shell:
        end()
        running.append(AgentInProcess().__enter__())
        monkeypatch.setenv("DPOP_AGENT_SOCK", running[0].socket)
        shell = Shell(running[0], capsys)
        for step in STATES[state]:
            step(shell)
        shell.agent.run(shell.agent.upkeep.look())
        shell.remember()
        return shell

    yield in_state
    end()


def words_of(verb: str, shell: Shell) -> tuple[str, ...]:
    return tuple(shell.jkt() if word == "JKT" else word for word in verb.split())


@pytest.mark.parametrize("state", STATES)
def test_each_command_that_is_named_works_whatever_was_tried(
    shells: Callable[[str], Shell], state: str
) -> None:
    shell, known = shells(state), set[tuple[str, ...]]()
    for verb in VERBS:
        refused, said = shell(*words_of(verb, shell))
        for number, command in enumerate(shell.commands(said)):
            if refused and command in known:
                continue  # nothing has changed
            if number:
                shell = shells(state)
                shell(*words_of(verb, shell))
            status, then = shell(*command)
            assert status == 0, f"{verb}: {said}\n{' '.join(command)}: {then}"
            known |= {command} if refused else set()
            if shell.has_changed:
                shell = shells(state)
        if shell.has_changed:
            shell = shells(state)


@pytest.mark.parametrize(
    ("verb", "state"),
    [
        *((f"proof GET {URL} --key shop", state) for state in STATES if state not in FINAL),
        *(("key forget shop", state) for state in STATES if state not in ("no key", "forgotten")),
    ],
)
def test_following_the_first_hint_leads_to_what_was_wanted(
    shells: Callable[[str], Shell], state: str, verb: str
) -> None:
    shell, steps = shells(state), 0
    status, said = shell(*verb.split())
    while status != 0:
        first, *_ = shell.commands(said)
        shell.do(*first)
        _time_goes_by(shell)
        status, said = shell(*verb.split())
        steps += 1
        assert steps < UNDO, said


def test_every_state_is_walked(shells: Callable[[str], Shell]) -> None:
    seen = set()
    for state in STATES:
        shell = shells(state)
        for key in shell.agent.records.keys.values():
            seen |= {g.state for g in key.generations}
    assert seen == set(State)


def test_status_names_each_key_that_is_destroyed(shells: Callable[[str], Shell]) -> None:
    for state in STATES:
        said = shells(state).do("status")
        dead = state.startswith(("destroyed", "compromised and")) and "beside" not in state
        assert ("destroyed, its name taken still: shop;" in said) == dead, state


def test_a_slot_that_is_kept_is_named(shells: Callable[[str], Shell]) -> None:
    shell = shells("destroyed but for its slot")
    status, said = shell("key", "forget", "shop")
    assert status == 1
    assert f"slot {SLOT}" in said

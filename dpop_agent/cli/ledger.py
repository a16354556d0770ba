"""`ledger export | check`, which work while the agent runs, and without it."""

from __future__ import annotations

import os
import sys

from dpop_agent import paths
from dpop_agent.cli import arguments, calls, output
from dpop_agent.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable
    from typing import Any

    from dpop_agent.agent.ledger import Reading

_TRIES = 3
"""Readings of a folder whose agent may write to it meanwhile."""


def add_ledger(parser: arguments.Parser) -> None:
    """`dpop-agent ledger` and its verbs."""
    parser.description = (
        "Keep a copy of the ledger, or check one. The ledger says which keys there are, which "
        "generations they have and what they may be used for; the private keys are in the stores."
    )
    verbs = parser.add_verbs()
    add_export(verbs)
    add_check(verbs)


def add_export(verbs: arguments.Verbs) -> None:
    """`dpop-agent ledger export`."""
    sub = arguments.add_verb(
        verbs,
        "export",
        "Write a copy of the ledger",
        _export,
        "Nothing secret is in it, but which servers you use is. To restore it, end the agent and "
        "put it in place of ledger.json in the state folder. What was compromised since isn't so "
        "in the copy: take a new one after each change.",
    )
    sub.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="a new file, which gets mode 0600; by default standard output",
    )


def _export(args: Namespace) -> int:
    from dpop_agent.agent.records import now_text

    found = _sound(calls.state_folder())
    text = found.text(now_text())
    if args.file is None:
        sys.stdout.flush()
        sys.stdout.buffer.writelines(text)
        sys.stdout.buffer.flush()
        return 0
    _write_new(args.file, text)
    return _say(args, found, os.path.abspath(args.file))


def _write_new(path: str, text: Iterable[bytes]) -> None:
    try:
        paths.write_new(path, text)
    except FileExistsError as e:
        raise ConfigurationError(
            f"{path} is there already, and isn't overwritten", hint="name another file"
        ) from e
    except OSError as e:
        raise ConfigurationError(
            f"{path} can't be written ({e.strerror})", hint="name a file in a folder of yours"
        ) from e


def add_check(verbs: arguments.Verbs) -> None:
    """`dpop-agent ledger check`."""
    sub = arguments.add_verb(
        verbs,
        "check",
        "Read a ledger as the agent would, and say which line is wrong",
        _check,
        "Nothing is changed.",
    )
    sub.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="a copy; by default all files of the state folder",
    )


def _check(args: Namespace) -> int:
    if args.file is None:
        found = _sound(calls.state_folder())
    else:
        from dpop_agent.agent.ledger import Copy

        found = Copy(os.path.abspath(args.file))
    return _say(args, found, found.path)


def reading(folder: str) -> Reading:
    """What a state folder has, whether or not an agent writes to it meanwhile.

    Raises:
        LedgerUnreadable: what is wrong with it.
    """
    from dpop_agent.agent.ledger import Reading
    from dpop_agent.errors import LedgerUnreadable

    for _ in range(_TRIES - 1):
        try:
            return Reading(folder)
        except LedgerUnreadable:
            continue
    return Reading(folder)


def _sound(folder: str) -> Reading:
    """What a state folder has that nobody else can change.

    Raises:
        ConfigurationError: there is no ledger, or others can change it.
        LedgerUnreadable: what is wrong with it.
    """
    try:
        paths.check_only_ours(folder, "the state folder", instead=paths.ANOTHER_STATE_FOLDER)
    except FileNotFoundError:
        pass  # then there is no ledger in it either
    found = reading(folder)
    if not found.is_there:
        raise ConfigurationError(
            f"there is no ledger {found.path}: an agent would start without any key",
            hint="if there was one, put a copy of it there; without one: dpop-agent key adopt "
            "--all finds the keys of PKCS#11 tokens",
        )
    return found


def _say(args: Namespace, found: Reading, path: str) -> int:
    keys = found.contents.keys.values()
    known: dict[str, Any] = {
        "ledger": path,
        "keys": len(keys),
        "generations": sum(len(key.generations) for key in keys),
    }
    if args.json:
        output.print_json(known)
    else:
        many = [
            f"{known[what]} {what[:-1] if known[what] == 1 else what}"
            for what in ("keys", "generations")
        ]
        print(output.plain(f"{path} is sound: {', '.join(many)}"))
    return 0

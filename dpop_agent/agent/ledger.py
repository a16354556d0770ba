"""The ledger: which keys there are, in which state. One file, one writer, replaced as a whole.

    {"version": 1, "clean": true, "requests": {"ID": {…}},
     "keys": [{"name": …, "generations": [{…}]}]}

The file is the truth about keys: an object in a store that it doesn't list is a stranger's. So it
is never started empty over a file that can't be read, and never changed in place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dpop_agent import paths
from dpop_agent.agent import lock
from dpop_agent.agent.keys import Key, Keys, from_json, to_json
from dpop_agent.errors import ConfigurationError, DPoPAgentError, LedgerUnreadable, NotDurable

VERSION = 1
FILE = "ledger.json"
_LOCK = "ledger.lock"


@dataclass(frozen=True, slots=True)
class Contents:
    """All that the ledger says at one moment.

    `requests` has, by request id, what was asked and when, for a caller that asks again. `clean`:
    the agent that wrote it ended in order, with nothing unsaved.
    """

    keys: Keys = field(default_factory=Keys)
    requests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    clean: bool = True


class Ledger:
    """The open ledger; holding it means being its only writer."""

    def __init__(self, folder: str, *, holder: str = "a process") -> None:
        """Open the ledger in `folder`, which is made with mode 0700 where it isn't there.

        `holder` is what another agent is told that wants it too.

        Raises:
            ConfigurationError: another agent has it, or others can write to the folder.
            LedgerUnreadable: there is one that can't be read.
        """
        self.path = os.path.join(folder, FILE)
        self._folder = folder
        try:
            paths.make_private_folder(
                folder, "the state folder", instead=paths.ANOTHER_STATE_FOLDER
            )
            paths.check_only_ours(folder, "the state folder", instead=paths.ANOTHER_STATE_FOLDER)
            self._lock = lock.take(os.path.join(folder, _LOCK), holder=holder)
        except lock.Held as e:
            raise ConfigurationError(
                f"another agent uses the state folder {folder}: {e}",
                hint="use that one, end it, or set DPOP_AGENT_STATE_DIR",
            ) from e
        except OSError as e:
            raise ConfigurationError(
                f"the state folder {folder} can't be used ({e.strerror})",
                hint="make it writable, or set DPOP_AGENT_STATE_DIR",
            ) from e
        self.contents = _read(self.path)

    def write(self, contents: Contents) -> None:
        """Replace the file, durably: the old contents or the new ones survive, whatever happens.

        Blocks for an fsync of file and folder.

        Raises:
            NotDurable: the write failed; `contents` is what the file has.
        """
        new = self.path + ".new"
        try:
            descriptor = paths.create(new)
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(_text(contents))
                file.flush()
                os.fsync(descriptor)
            os.replace(new, self.path)
            self.contents = contents  # as the file has it now, durable or not
            _fsync_folder(self._folder)
        except OSError as e:
            raise NotDurable(
                f"the ledger {self.path} can't be written ({e.strerror})",
                hint="free space or make the folder writable, then try again",
            ) from e

    def close(self) -> None:
        """Let another agent have it."""
        os.close(self._lock)


def _fsync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _text(contents: Contents) -> str:
    """JSON, one key a line: quick to write, and a person can look at it."""
    keys = ",\n  ".join(json.dumps(to_json(key)) for key in contents.keys.values())
    rest = {"version": VERSION, "clean": contents.clean, "requests": contents.requests}
    return f'{json.dumps(rest)[:-1]}, "keys": [\n  {keys}\n]}}\n'


def _read(path: str) -> Contents:
    try:
        descriptor = paths.open_only_ours(path, "the ledger", instead="restore it from a backup")
        with open(descriptor, encoding="utf-8") as file:
            document = json.load(file)
        version = document["version"]
        if version != VERSION:
            raise _unreadable(path, f"it has version {version}, this agent reads {VERSION}")
        keys: list[Key] = [from_json(key) for key in document["keys"]]
        return Contents(Keys(keys), dict(document["requests"]), bool(document["clean"]))
    except FileNotFoundError:
        return Contents()
    except OSError as e:
        raise _unreadable(path, e.strerror or type(e).__name__) from e
    except ConfigurationError as e:
        raise _unreadable(path, e.message) from None
    except LedgerUnreadable:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, DPoPAgentError) as e:
        raise _unreadable(path, f"{type(e).__name__} in its text") from e


def _unreadable(path: str, why: str) -> LedgerUnreadable:
    return LedgerUnreadable(
        f"the ledger {path} can't be read ({why}), and starting without it would forget every key",
        hint="restore it from a backup, or move it away to start with none",
    )

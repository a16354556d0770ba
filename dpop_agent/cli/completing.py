"""How a word may go on, where a shell asks: argcomplete reads the parser, and here is what takes
its options' and arguments' places at this moment. The shells' side is in `shell/`.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping

from argcomplete.completers import BaseCompleter
from argcomplete.finders import ExclusiveCompletionFinder

from dpop_agent.cli import arguments, leasing, live, output
from dpop_agent.cli.generations import FITTING, LIVE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import NoReturn

    from dpop_agent.cli.calls import Key

    Offered = Iterable[str] | Mapping[str, str]
    """Words, or words and what each is."""

FILE, COMMAND = 10, 11
"""Exit statuses by which the shell is told to complete it by itself, as it does everywhere."""

_NEW = ("key create", "socket add")
"""Verbs whose NAME isn't there yet."""

_STATES = {
    **FITTING,
    "compromise": (*LIVE, "suspended"),
    "show": (*LIVE, "suspended", "compromised", "destroyed"),
}
_SIGNING = ("active", "draining")

_WORD = re.compile(r"[A-Za-z0-9._@+-]+")
"""Words of ours: another's, from a wrong agent, would be put into a command line."""

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Lenient(arguments.Parser):
    """One that takes a command to which words will be added."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        if self.passes_on_to == leasing.COMMAND and "--" in (args or ()):
            os._exit(COMMAND)
        if self.verbs is None:
            return super().parse_known_args(args, namespace)
        verb = args[0] if args else "-"
        if not verb.startswith("-") and verb not in self.verbs.choices:
            os._exit(0)  # what comes behind a verb that there isn't, nobody can say
        return argparse.ArgumentParser.parse_known_args(self, args, namespace)


def complete(parser: Lenient) -> NoReturn:
    """Print the words that fit, or nothing, and end."""
    os.environ.pop("_ARGCOMPLETE_STDOUT_FILENAME", None)  # no file is written
    places = _Places()
    _Finder()(
        parser,
        always_complete_options=False,
        exit_method=lambda _: os._exit(places.instead),
        default_completer=places,
    )
    os._exit(0)


class _Finder(ExclusiveCompletionFinder):
    """argcomplete's, which would offer options behind `--` too, and doesn't know bash's `@`."""

    def quote_completions(
        self, completions: list[str], cword_prequote: str, last_wordbreak_pos: int | None
    ) -> list[str]:
        # bash wants what comes behind the last character that it splits words at; but an @ is that
        # of hostnames, which it wants too.
        at = last_wordbreak_pos
        if at is not None and completions and completions[0][at : at + 1] == "@":
            at -= 1
        return super().quote_completions(completions, cword_prequote, at)

    def filter_completions(self, completions: list[str]) -> list[str]:
        if " -- " in os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]:
            completions = [word for word in completions if not word.startswith("-")]
        return super().filter_completions(completions)


class _Places(BaseCompleter):
    """What an argument or an option takes, where the parser has no `choices` for it.

    Attributes:
        instead: the exit status by which the shell is told to find it.
    """

    instead = 0

    def __call__(
        self,
        *,
        prefix: str,
        action: argparse.Action,
        parser: argparse.ArgumentParser,
        parsed_args: argparse.Namespace,
    ) -> Offered:
        """Words; those that don't begin with `prefix` are left out."""
        found = self._found(prefix, action, parser, parsed_args)
        if not isinstance(found, Mapping):
            return [word for word in found if _WORD.fullmatch(word)]
        return {word: output.plain(is_) for word, is_ in found.items() if _WORD.fullmatch(word)}

    def _found(
        self,
        prefix: str,
        action: argparse.Action,
        parser: argparse.ArgumentParser,
        parsed_args: argparse.Namespace,
    ) -> Offered:
        verb = parser.prog.removeprefix("dpop-agent ")
        kind = action.type
        if action.nargs == argparse.REMAINDER:
            self.instead = COMMAND
        elif kind is None and action.metavar in ("FILE", "PATH"):
            self.instead = FILE
        elif verb in _NEW and not action.option_strings:
            pass
        elif kind is arguments.key_name:
            return _keys(verb)
        elif kind is arguments.generation:
            return _generations(verb, prefix, bare=action.metavar != "NAME@N")
        elif kind is arguments.socket_name:
            return live.sockets()
        elif kind is arguments.htm:
            return _METHODS
        elif action.dest == "jkt" and "key" in parsed_args:
            return _jkts(parsed_args.key)
        elif action.dest == "store":
            return live.stores()
        elif action.dest == "alg":
            from dpop_agent.jose import ALGORITHMS

            return ALGORITHMS.keys()
        elif verb == "log" and action.dest == "name":
            return live.recorded()
        elif action.metavar == "SETTING":
            return live.settings(set_ones=verb == "config unset")
        return ()


def _keys(verb: str) -> dict[str, str]:
    """Those that the verb takes, each with its store."""
    told = verb.split()[-1]
    every = live.keys(include_destroyed=told in ("forget", "list", "log"))
    return {
        key["key"]: f"in {key['store']}"
        for key in every
        if told in ("list", "log") or _is_over(key) == (told == "forget")
    }


def _is_over(key: Key) -> bool:
    return all(generation["state"] == "destroyed" for generation in key["generations"])


def _generations(verb: str, prefix: str, *, bare: bool) -> dict[str, str]:
    """Those in a state that the verb takes; where a bare name will do, first the names."""
    told = verb.split()[-1]
    states = _STATES.get(told, _SIGNING)
    name, at, _ = prefix.partition("@")
    found = live.keys(name if at else None, include_destroyed="destroyed" in states)
    fitting = {
        f"{key['key']}@{generation['generation']}": generation["state"]
        for key in found
        for generation in key["generations"]
        if generation["state"] in states
    }
    if bare and not at:
        return {one.partition("@")[0]: "" for one in fitting}
    return fitting


def _jkts(meant: tuple[str, int | None] | None) -> dict[str, str]:
    """Those of the generations that sign; of one key, where one is named."""
    name, number = meant or (None, None)
    return {
        generation["jkt"]: f"{key['key']}@{generation['generation']}, {generation['state']}"
        for key in live.keys(name)
        for generation in key["generations"]
        if generation["state"] in _SIGNING and number in (None, generation["generation"])
    }

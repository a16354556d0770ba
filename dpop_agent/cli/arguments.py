"""Arguments: what several verbs take, checked before anything is sent."""

from __future__ import annotations

import argparse
import re

from dpop_agent import durations
from dpop_agent.cli.output import width
from dpop_agent.errors import HtuRefused
from dpop_agent.jose import is_sha256
from dpop_agent.proof import MAX_HTM, MAX_NONCE, is_htm, is_nonce
from dpop_agent.protocol import KEY_NAME, SLOT
from dpop_agent.spelling import near, nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Verbs = argparse._SubParsersAction["Parser"]

# It looks for translations of its words, which nobody has, for each of them anew: a twenty-fifth of
# what `proof` takes.
argparse._ = str  # type: ignore[attr-defined]

# Values that may begin with a dash: a jkt does one time in 64.
_ANY_TEXT = ("--jkt", "--ath", "--nonce", "--label")

_OPTION = re.compile(r"--?[^0-9.-]")
"""How an option begins, which a negative number doesn't."""


class _Help(argparse.HelpFormatter):
    """argparse asks shutil for the terminal's width, which loads every compression there is."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=(width() or 80) - 2)


class AsWritten(argparse.RawDescriptionHelpFormatter, _Help):
    """For a description with lines that are copied."""


class Parser(argparse.ArgumentParser):
    """One that never says what it didn't understand: it may be an access token.

    Attributes:
        verbs: those below this one, if it has any.
        passes_on_to: the program that gets the words after `--`, as `passed_on`, if one does.
    """

    verbs: Verbs | None = None
    passes_on_to: str | None = None

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("allow_abbrev", False)
        settings.setdefault("formatter_class", _Help)
        super().__init__(**settings)

    def add_verbs(self) -> Verbs:
        """Where the verbs below this one are added."""
        self.verbs = self.add_subparsers(metavar="VERB", required=True)
        return self.verbs

    def parse_known_args(  # type: ignore[override]  # overloads that nobody here uses
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words: list[str] = []
        passed_on: list[str] = []
        rest = iter(args or ())
        for word in rest:
            if word == "--":  # what follows is another command's
                if self.passes_on_to:
                    passed_on = [*rest]
                else:
                    words += [word, *rest]
                break
            value = next(rest, None) if word in _ANY_TEXT else None
            words.append(word if value is None else f"{word}={value}")
        if self.verbs is not None:
            if not words:
                self.error(f"it needs a verb; there are: {', '.join(self.verbs.choices)}")
            if not words[0].startswith("-") and words[0] not in self.verbs.choices:
                self.error(
                    f"there is no such verb; {nearest(words[0].lower(), self.verbs.choices)}"
                )
            self._refuse_unknown(words[:1])  # the others are for the verb's own parser
        else:
            self._refuse_unknown(words)
        found, unknown = super().parse_known_args(words, namespace)
        if unknown:
            self.error("too many arguments")
        if self.passes_on_to:
            found.passed_on = passed_on
        return found, unknown

    def _refuse_unknown(self, words: list[str]) -> None:
        """Refuse options that aren't any, before anybody is told that another one is missing."""
        known = self._option_string_actions
        for word in words:
            option, _, _ = word.partition("=")
            if option == "--":
                return
            if option in known or " " in word or not _OPTION.match(option):
                continue
            if option.startswith("--"):
                meant, what = near(option, known), f"unknown: {option}"
            elif all(f"-{flag}" in known for flag in option[1:]):
                continue
            else:  # what stands in it may be the value of one letter's option
                meant, what = near(f"-{option}", known), "there is no such option"
            if self.passes_on_to:
                what += f"; if it is {self.passes_on_to}'s, put -- before it"
                meant = meant if option.startswith("--") else None
            elif any(action.nargs == argparse.REMAINDER for action in self._actions):
                what += "; if it is the command's, put -- before the command"
                meant = meant if option.startswith("--") else None
            self.error(f"{what}; did you mean {meant}?" if meant else what)


def add_verb(
    verbs: Verbs, name: str, what: str, run: Callable[[argparse.Namespace], int], more: str = ""
) -> Parser:
    """The parser of a verb's verb, such as `key create`; its own help has `more` too."""
    found = verbs.add_parser(name, help=what, description=f"{what}. {more}")
    add_json(found)
    found.set_defaults(run=run)
    return found


def add_json(parser: argparse._ActionsContainer) -> None:
    """`--json`."""
    parser.add_argument(
        "--json", action="store_true", help="print what the agent returns, and errors, as JSON"
    )


def slot(text: str) -> str:
    """A slot's name."""
    if not SLOT.fullmatch(text.lower()):
        raise argparse.ArgumentTypeError("a slot has two hex digits, such as 9a or 82")
    return text.lower()


def socket_name(text: str) -> str:
    """A filtered socket's name."""
    from dpop_agent.protocol import OWN_SOCKETS, is_socket_name

    if text in OWN_SOCKETS:
        raise argparse.ArgumentTypeError(
            f"{', '.join(OWN_SOCKETS)} are taken: every agent has those; use another name"
        )
    if not is_socket_name(text):
        raise argparse.ArgumentTypeError(
            "a socket's name is made of a-z, 0-9, dot, dash and underscore, 64 characters at most"
        )
    return text


def key_name(text: str) -> str:
    """A key's name."""
    name, at, _ = text.partition("@")
    if at and KEY_NAME.fullmatch(name):
        raise argparse.ArgumentTypeError(f"name a key, not a generation: {name}")
    if not KEY_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            "a key's name is made of a-z, 0-9, dot, dash and underscore, 64 characters at most"
        )
    return text


def generation(text: str) -> tuple[str, int | None]:
    """`NAME@N`, or a bare `NAME`."""
    name, at, number = text.partition("@")
    if not at:
        return key_name(name), None
    if not (number.isascii() and number.isdigit()) or not 0 < int(number[:12]) <= 2**31:
        raise argparse.ArgumentTypeError("a generation is written NAME@N, as in default@2")
    return key_name(name), int(number)


def ref(text: str) -> str:
    """What a store finds an object by."""
    from dpop_agent.protocol import MAX_REF, REF

    if not REF.fullmatch(text.lower()):
        raise argparse.ArgumentTypeError(
            f"it has to be the object's id, 1 to {MAX_REF} bytes in hex digits, as status shows it"
        )
    return text


def duration(text: str) -> int:
    """`90s`, `15m`, `12h`, `30d` or `4w`, in seconds."""
    try:
        return durations.seconds(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def interval(text: str) -> int | None:
    """A duration that isn't zero; None for `never`."""
    if text == "never":
        return None
    try:
        return durations.interval(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{e}; for none at all say never") from e


def sha256(text: str) -> str:
    """A jkt or an ath."""
    if not is_sha256(text):
        raise argparse.ArgumentTypeError("it has to be 43 characters of base64url: a SHA-256 value")
    return text


def htm(text: str) -> str:
    """An HTTP method."""
    if "://" in text:
        raise argparse.ArgumentTypeError("an HTTP method, such as GET, comes before the URL")
    if not is_htm(text):
        raise argparse.ArgumentTypeError(
            f"it has to be an HTTP method, such as GET, of {MAX_HTM} characters at most"
        )
    return text


def nonce(text: str) -> str:
    """A server's nonce."""
    if not is_nonce(text):
        raise argparse.ArgumentTypeError(
            f"it has to be a server's nonce (RFC 9449 section 8.1): 1 to {MAX_NONCE} visible "
            "ASCII characters without quotes or backslashes"
        )
    return text


def origin(text: str) -> str:
    """An origin, normalised."""
    from dpop_agent.htu import origin_of

    try:
        return origin_of(text)
    except HtuRefused as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def path(text: str) -> str:
    """A path that stands for itself and all below it."""
    from dpop_agent.htu import path_prefix

    try:
        return path_prefix(text)
    except HtuRefused as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def add_drain(parser: Any, whose: str, default: Any = None) -> None:
    """`--drain TIME`."""
    parser.add_argument(
        "--drain",
        dest="drain_s",
        metavar="TIME",
        type=duration,
        default=default,
        help=f"such as 90s, 12h, 7d or 4w: the time without use that ends the drain {whose}",
    )

"""docs/reference/verbs.md, made from the command line's parsers: `python -m tests.docs.verbs`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from dpop_agent.cli import main as cli
from dpop_agent.cli.arguments import Parser
from tests.processes import ROOT

PAGE = ROOT / "docs" / "reference" / "verbs.md"

_HEAD = """\
# Verbs

Made from the program itself, as what `--help` shows of each verb is. With `--json` a verb that
takes it prints what the agent returns, and errors, as JSON. A time is `90s`, `15m`, `12h`, `30d`
or `4w`. Exit status: see [environment](environment.md#exit-status).
"""


def page() -> str:
    """The page as it has to be."""
    parts = [_HEAD]
    for verb, (_, what) in cli._VERBS.items():
        parser = cli._parser(verb)
        parts += _part(f"## {verb}", parser, what)
        for name, below in (parser.verbs.choices if parser.verbs else {}).items():
            parts += _part(f"### {verb} {name}", below, "")
    return "\n".join(parts)


def _part(heading: str, parser: Parser, what: str) -> Iterator[str]:
    yield f"{heading}\n"
    takes_json = any("--json" in action.option_strings for action in parser._actions)
    yield _sentence(parser.description or what) + (" Takes `--json`." if takes_json else "") + "\n"
    yield from _arguments(parser)


def _arguments(parser: Parser) -> Iterator[str]:
    rows = [
        f"| {_name(parser, action)} | {_meaning(parser, action)} |"
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
        and "--json" not in action.option_strings
        and action.help != argparse.SUPPRESS
    ]
    if rows:
        yield "\n".join(["| | |", "|---|---|", *rows]) + "\n"


def _name(parser: Parser, action: argparse.Action) -> str:
    value = _value(parser, action)
    names = [f"{option} {value}".strip() for option in action.option_strings] or [value]
    return ", ".join(f"`{name}`" for name in names)


def _value(parser: Parser, action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    formatter = parser._get_formatter()
    if action.metavar is None and not action.choices:
        return action.dest.upper()
    return _cell(formatter._metavar_formatter(action, action.dest.upper())(1)[0])


def _meaning(parser: Parser, action: argparse.Action) -> str:
    said = [parser._get_formatter()._expand_help(action)] if action.help else []
    if action.nargs in ("?", "*"):
        said.append("may be left out")
    if action.option_strings and action.required:
        said.append("required")
    for group in parser._mutually_exclusive_groups:
        others = [a for a in group._group_actions if a is not action]
        if others and action in group._group_actions:
            names = " or ".join(f"`{(a.option_strings or [a.dest.upper()])[-1]}`" for a in others)
            said.append(f"this or {names} is required" if group.required else f"not beside {names}")
    return _cell("; ".join(said))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<")


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith(".") else f"{text[0].upper()}{text[1:]}."


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")

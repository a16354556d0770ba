"""The man page, from the parser: `python -m tests.manpage` writes it anew.

It is committed, so that nobody who builds or packages needs what makes it.
"""

from __future__ import annotations

import argparse
from typing import Any

from argparse_manpage.manpage import Manpage

from dpop_agent.cli import main
from dpop_agent.cli.arguments import Parser
from tests.processes import ROOT

PAGE = ROOT / "dpop_agent" / "cli" / "shell" / "dpop-agent.1"

DESCRIPTION = """\
The private keys stay in PKCS#11 tokens, or in the operating system's keychain: a daemon signs with
them, and gives DPoP proofs (RFC 9449) over a Unix socket. The verbs below run that daemon, change
its keys, and ask it for proofs.
"""

SECTIONS = {
    "synopsis": """\
.B dpop\\-agent
.I VERB
\\&...
.br
.B dpop\\-agent
.I VERB
.B \\-\\-help
""",
    "exit status": """\
.TP
.B 0
done
.TP
.B 1
refused or failed: one line of standard error says what, why and what next; with
.B \\-\\-json
as JSON
.TP
.B 2
usage: the command line is wrong
.TP
.B 3
no agent is there
.TP
.B 130
interrupted
.P
.B dpop\\-agent exec
and
.B dpop\\-agent lease
end with their command's,
.B dpop\\-agent curl
with curl's from 4 on.
""",
    "environment": """\
.TP
.B DPOP_AGENT_SOCK
the agent's socket; by default
.I dpop\\-agent/agent.sock
in
.B XDG_RUNTIME_DIR
.TP
.B DPOP_AGENT_CONFIG
the configuration; by default
.I dpop\\-agent/config.toml
in the user's configuration folder
.TP
.B DPOP_AGENT_STATE_DIR
the folder of ledger and audit; by default
.I dpop\\-agent
in the user's state folder
.TP
.BR VISUAL ", " EDITOR
the editor of
.B dpop\\-agent config edit
""",
    "files": """\
.TP
.I ~/.config/dpop\\-agent/config.toml
where keys live: the configuration
.TP
.I ~/.local/state/dpop\\-agent/
ledger.json, which says what keys there are and what they may be used for, and audit/, which
.B dpop\\-agent log
shows; nothing secret is in either
.TP
.I $XDG_RUNTIME_DIR/dpop\\-agent/
agent.sock, which gives proofs; admin.sock, which changes keys; mount/, to be mounted into a
container; sockets/NAME/, the filtered sockets
""",
    "see also": """\
.BR ssh\\-agent (1),
.BR systemd.socket (5),
RFC 9449 (DPoP), RFC 7512 (URIs of PKCS#11 tokens)
""",
}


class _OneLine(argparse.HelpFormatter):
    """Lines are filled by whoever shows the page."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=100_000)


class _Described(Parser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=_OneLine, **settings)
        self.color = False  # which Python 3.14 has at a terminal

    def format_usage(self) -> str:
        return " ".join(super().format_usage().split()).removeprefix("usage: ")


def page() -> str:
    """The page's source."""
    parser = main.whole(_Described, main._VERBS)
    assert parser._subparsers
    parser._subparsers.title = "verbs"
    parser.description = " ".join(DESCRIPTION.split())
    _drop_what_is_said_again(parser)
    made = Manpage(
        parser,
        {
            "description": "keep DPoP keys in PKCS#11 tokens, and sign proofs with them",
            "manual_title": "User Commands",
        },
        format="single-commands-section",
    )
    made.date = ""
    for heading, content in SECTIONS.items():
        made.add_section(heading, ">", content.rstrip())
    head, *lines = str(made).splitlines()
    return "\n".join([head, ".nh", ".ad l", *lines]).replace(".RS 7\n", ".RS 4\n") + "\n"


def _drop_what_is_said_again(parser: Parser) -> None:
    """The line that lists a verb, where its description says the same."""
    if parser.verbs is None:
        return
    for listed in parser.verbs._choices_actions:
        listed.help = None
    for verb in parser.verbs.choices.values():
        _drop_what_is_said_again(verb)


if __name__ == "__main__":
    PAGE.write_text(page())

"""`completion`: what has a shell complete the words after `dpop-agent`."""

from __future__ import annotations

import os

from dpop_agent.cli import arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

FILES = {"bash": "dpop-agent.bash", "zsh": "_dpop-agent", "fish": "dpop-agent.fish"}
"""Each shell's script; the names are those by which the shells find them."""


_DESCRIPTION = """\
Print what has a shell complete verbs, options, files, and what there is: keys,
generations, stores, sockets, settings. No agent is started to find that out.

bash, in ~/.bashrc:
    eval "$(dpop-agent completion bash)"

zsh, in ~/.zshrc after compinit:
    eval "$(dpop-agent completion zsh)"

fish, once:
    dpop-agent completion fish > ~/.config/fish/completions/dpop-agent.fish"""


def add_completion(parser: arguments.Parser) -> None:
    """`dpop-agent completion`."""
    parser.formatter_class = arguments.AsWritten
    parser.description = _DESCRIPTION
    parser.add_argument("shell", metavar="SHELL", choices=FILES, help="bash, zsh or fish")
    parser.set_defaults(run=_completion)


def _completion(args: Namespace) -> int:
    path = os.path.join(os.path.dirname(__file__), "shell", FILES[args.shell])
    with open(path, encoding="utf-8") as file:
        print(file.read(), end="")
    return 0

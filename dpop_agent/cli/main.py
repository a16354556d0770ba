"""`dpop-agent`: finds the verb, runs it, and turns whatever goes wrong into one line.

Exit status: 0 done, 1 refused or failed, 2 usage, 3 no agent there, 130 interrupted.
"""

from __future__ import annotations

import errno
import gc
import os
import sys

from dpop_agent.errors import AgentUnavailable, DPoPAgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container
    from typing import NoReturn, TextIO, TypeVar

    from dpop_agent.cli.arguments import Parser

    P = TypeVar("P", bound=Parser)

DONE, FAILED, USAGE, NO_AGENT, INTERRUPTED = 0, 1, 2, 3, 130

YOUNG = 50_000
"""Objects that a command makes before garbage is looked for: most are over sooner."""

_VERBS = {
    "init": ("init", "see what is here and write a configuration that works"),
    "serve": ("serve", "run the agent in the foreground"),
    "service": ("service", "have systemd run it: install, start, stop, status, and more"),
    "stop": ("service", "end the agent in order"),
    "key": ("keys", "create, list, rotate, suspend, destroy keys, and more"),
    "ledger": ("ledger", "keep a copy of what the agent knows of its keys, check it"),
    "socket": ("sockets", "give a sandbox some keys for some servers, and nothing else"),
    "exec": ("execute", "run a command with such a socket"),
    "lease": ("leasing", "run a command as the only one of that name"),
    "proof": ("proofs", "print a proof for one request"),
    "curl": ("curl", "send a request by curl, with a proof"),
    "verify": ("proofs", "check a proof against RFC 9449 section 4.3"),
    "explain": ("explain", "say what is wrong with a request that failed, from curl -v"),
    "doctor": ("doctor", "say what is wrong on this machine, and what mends it"),
    "status": ("status", "show the agent, its stores and the servers' nonces"),
    "log": ("audit", "show who asked for what: proofs, refusals, changes"),
    "reload": ("status", "reread the configuration and check the stores again"),
    "lock": ("locking", "forget PINs and close stores"),
    "unlock": ("locking", "open closed stores, asking for their PINs"),
    "config": ("configuration", "show, check, change or find the configuration"),
    "env": ("status", "print the line that sets DPOP_AGENT_SOCK"),
    "completion": ("completion", "print what has bash, zsh or fish complete all this"),
}
"""Each verb's module, which has a function `add_VERB` that takes its parser, and what it does."""

_GROUPS = ("service", "key", "socket", "ledger", "config")
"""Those that have verbs of their own."""


def program() -> NoReturn:
    """`dpop-agent`, without what its interpreter does beside: a sixth of the time of `proof`."""
    # A shell asks how a word may go on. With words of its own it is a command all the same, which a
    # program runs that is asked so itself.
    if len(sys.argv) == 1 and "_ARGCOMPLETE" in os.environ:
        from dpop_agent.cli.completing import Lenient, complete

        complete(whole(Lenient, os.environ.get("COMP_LINE", "").split()))
    if sys.argv[1:2] != ["serve"]:
        gc.set_threshold(YOUNG)
    status = main()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # main has told what could be told
            pass
    os._exit(status)


def main(argv: list[str] | None = None) -> int:
    """Run one command; the words after the program's name are `argv`, else `sys.argv`'s."""
    words = sys.argv[1:] if argv is None else argv
    _fill_standard_descriptors()
    for stream in (sys.stdout, sys.stderr):
        _never_fail_on_a_character(stream)
    as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
    try:
        try:
            status = _run(words)
        except SystemExit as e:  # argparse, having said what is wrong, or having printed its help
            status = e.code if isinstance(e.code, int) else USAGE
        sys.stdout.flush()
    except DPoPAgentError as e:
        _report(e, as_json=as_json)
        return NO_AGENT if isinstance(e, AgentUnavailable) else FAILED
    except KeyboardInterrupt:
        _end_line()
        return INTERRUPTED
    except BrokenPipeError:
        _give_up_output()
        return FAILED
    except OSError as e:
        _give_up_output()
        what = f"{e.filename}: {e.strerror}" if e.filename else e.strerror or type(e).__name__
        if e.errno == errno.EBADF:
            what = "standard output is closed"
        _report(DPoPAgentError(what), as_json=as_json)
        return FAILED
    except Exception as e:  # noqa: BLE001, RUF100  (no traceback reaches a user; its text may be secret)
        _report(_unexpected(e), as_json=as_json)
        return FAILED
    return status


def _fill_standard_descriptors() -> None:
    """Where one is closed, what is opened next would take its place, and be printed to."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # Standard output can't be written to then: whoever asked for something is told so.
            os.open(os.devnull, os.O_RDONLY if descriptor == 1 else os.O_RDWR)
            os.set_inheritable(descriptor, True)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def _end_line() -> None:
    """A terminal shows ^C where the prompt was; the shell's own begins on the next line."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(file=sys.stderr)


def _give_up_output() -> None:
    """What can't be written now can't at the interpreter's end either, which would complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(words: list[str]) -> int:
    verb = words[0] if words else ""
    if verb in _VERBS:
        args = _parser(verb).parse_args(words[1:])
        status: int = args.run(args)
        return status
    if verb in ("-h", "--help", "help"):
        print(_overview())
        return DONE
    if verb in ("-V", "--version"):
        from dpop_agent import __version__

        print(f"dpop-agent {__version__}")
        return DONE
    if not verb:
        print(_overview(), file=sys.stderr)
        return USAGE
    what = "option" if verb.startswith("-") else "verb"
    print(f"dpop-agent: there is no such {what}; {_meant(verb)}", file=sys.stderr)
    return USAGE


def _meant(word: str) -> str:
    """A hint for what is no verb: those at the top, and those below one, are looked through."""
    from dpop_agent.spelling import near

    known: dict[str, list[str]] = {verb: [verb] for verb in (*_VERBS, "--help", "--version")}
    for group in _GROUPS:
        verbs = _parser(group).verbs
        for verb in () if verbs is None else verbs.choices:
            if verb not in _VERBS:
                known.setdefault(verb, []).append(f"{group} {verb}")
    found = near(word.lower(), known)
    if found is None:
        return "see: dpop-agent --help"
    *others, last = known[found]
    meant = f"{', '.join(others)} or {last}" if others else last
    return f"did you mean {meant}?"


def _parser(verb: str) -> Parser:
    from dpop_agent.cli.arguments import Parser

    parser = Parser(prog=f"dpop-agent {verb}")
    _fill(parser, verb)
    return parser


def _fill(parser: Parser, verb: str) -> None:
    # This verb's module alone: it doesn't pay for the others, nor for importlib.
    module = __import__(f"dpop_agent.cli.{_VERBS[verb][0]}", fromlist=[verb])
    getattr(module, f"add_{verb}")(parser)


def whole(kind: type[P], words: Container[str]) -> P:
    """The parser of all verbs; only those among `words` have all that is theirs."""
    parser = kind(prog="dpop-agent")
    parser.add_argument("-V", "--version", action="store_true", help="print the version")
    verbs = parser.add_verbs()
    for verb, (_, what) in _VERBS.items():
        sub = verbs.add_parser(verb, help=what)
        if verb in words:
            _fill(sub, verb)
    return parser


def _overview() -> str:
    verbs = "\n".join(f"  {verb:11}{what}" for verb, (_, what) in _VERBS.items())
    return (
        "usage: dpop-agent VERB …\n\n"
        "Keeps DPoP keys (RFC 9449) in PKCS#11 tokens and signs proofs with them.\n\n"
        f"{verbs}\n\n"
        "dpop-agent VERB --help says more about each; --version prints the version.\n"
        "DPOP_AGENT_SOCK, DPOP_AGENT_CONFIG and DPOP_AGENT_STATE_DIR name other places.\n"
        "Exit status: 0 done, 1 refused or failed, 2 usage, 3 no agent there."
    )


def _report(error: DPoPAgentError, *, as_json: bool) -> None:
    from dpop_agent.cli.output import report

    report(error, as_json=as_json)


def _unexpected(error: Exception) -> DPoPAgentError:
    place, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        place = f" ({os.path.basename(code.co_filename)}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return DPoPAgentError(
        f"a bug in dpop-agent: {type(error).__name__}{place}", hint="please report it"
    )


def _never_fail_on_a_character(stream: TextIO) -> None:
    """A terminal that can't show an umlaut gets an escape instead."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")

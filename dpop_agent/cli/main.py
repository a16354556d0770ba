"""`dpop-agent`: finds the verb, runs it, and turns whatever goes wrong into one line.

Exit status: 0 done, 1 refused or failed, 2 usage, 3 no agent there, 130 interrupted.
"""

from __future__ import annotations

import os
import sys

from dpop_agent.errors import AgentUnavailable, DPoPAgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from typing import TextIO

DONE, FAILED, USAGE, NO_AGENT, INTERRUPTED = 0, 1, 2, 3, 130

_VERBS = {
    "init": "look what is here and write a configuration that works",
    "serve": "the agent, in the foreground",
    "key": "create, list, rotate, suspend, destroy keys, and more",
    "proof": "print a proof for one request",
    "verify": "check a proof by RFC 9449 section 4.3",
    "status": "the agent, its stores and the servers' nonces",
    "reload": "read the configuration again, look anew into the stores",
    "lock": "forget PINs and close stores",
    "unlock": "open stores that aren't open, asking for their PINs",
    "config": "show, check or find the configuration",
    "env": "print the line that sets DPOP_AGENT_SOCK",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; the words after the program's name are `argv`, else `sys.argv`'s."""
    words = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        _never_fail_on_a_character(stream)
    as_json = "--json" in words
    try:
        status = _run(words)
        sys.stdout.flush()
    except SystemExit as e:  # argparse, having said what is wrong, or having printed its help
        return e.code if isinstance(e.code, int) else USAGE
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
        _report(DPoPAgentError(what), as_json=as_json)
        return FAILED
    except Exception as e:  # noqa: BLE001, RUF100  (no traceback reaches a user; its text may be secret)
        _report(_unexpected(e), as_json=as_json)
        return FAILED
    return status


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
    from difflib import get_close_matches

    near = get_close_matches(verb[:64], _VERBS, n=1)
    hint = f"did you mean {near[0]}?" if near else "see: dpop-agent --help"
    what = "option" if verb.startswith("-") else "verb"
    print(f"dpop-agent: there is no such {what}; {hint}", file=sys.stderr)
    return USAGE


def _parser(verb: str) -> ArgumentParser:
    # One import each: a verb doesn't pay for the others.
    if verb in ("proof", "verify"):
        from dpop_agent.cli import proofs

        return proofs.parser(verb)
    if verb == "key":
        from dpop_agent.cli import keys

        return keys.parser(verb)
    if verb in ("status", "reload", "env"):
        from dpop_agent.cli import status

        return status.parser(verb)
    if verb in ("lock", "unlock"):
        from dpop_agent.cli import locking

        return locking.parser(verb)
    if verb == "serve":
        from dpop_agent.cli import serve

        return serve.parser(verb)
    if verb == "config":
        from dpop_agent.cli import configuration

        return configuration.parser(verb)
    from dpop_agent.cli import init

    return init.parser(verb)


def _overview() -> str:
    verbs = "\n".join(f"  {verb:8}{what}" for verb, what in _VERBS.items())
    return (
        "usage: dpop-agent VERB …\n\n"
        "Keeps DPoP keys (RFC 9449) in PKCS#11 tokens and signs proofs with them.\n\n"
        f"{verbs}\n\n"
        "dpop-agent VERB --help tells more of each; --version tells the version.\n"
        "DPOP_AGENT_SOCK, DPOP_AGENT_CONFIG and DPOP_AGENT_STATE_DIR override the places.\n"
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
        f"a defect of dpop-agent: {type(error).__name__}{place}", hint="please report it"
    )


def _never_fail_on_a_character(stream: TextIO) -> None:
    """A terminal that can't show an umlaut gets an escape instead."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")

"""`proof` and `verify`."""

from __future__ import annotations

import sys

from dpop_agent.cli import arguments
from dpop_agent.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from dpop_agent.client import Touch

MAX_INPUT = 64 * 1024
"""Characters of an access token or a proof: more than servers take in a header."""


def add_proof(parser: arguments.Parser) -> None:
    """`dpop-agent proof`."""
    parser.description = "Print a proof for one request."
    parser.add_argument("htm", metavar="METHOD", type=arguments.htm, help="such as GET")
    parser.add_argument("uri", metavar="URI", help="the target; query and fragment are cut off")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--key",
        metavar="NAME",
        type=arguments.key_name,
        help="sign with its active generation; by default that of the key default",
    )
    which.add_argument(
        "--jkt", type=arguments.sha256, help="sign with the generation the access token is bound to"
    )
    bound = parser.add_mutually_exclusive_group()
    bound.add_argument(
        "--access-token-file", metavar="FILE", help="the access token presented; - for stdin"
    )
    bound.add_argument("--ath", type=arguments.sha256, help="or its hash")
    nonces = parser.add_mutually_exclusive_group()
    nonces.add_argument(
        "--nonce", type=arguments.nonce, help="this one rather than the one that the agent has"
    )
    nonces.add_argument("--no-nonce", action="store_true", help="no nonce")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--header", action="store_true", help="print it as DPoP: …")
    arguments.add_json(form)
    parser.set_defaults(run=_proof)


def _proof(args: Namespace) -> int:
    from dpop_agent.client.sync import AgentClient

    options: dict[str, Any] = {}
    if args.no_nonce:
        options["nonce"] = None
    elif args.nonce is not None:
        options["nonce"] = args.nonce
    if args.access_token_file is not None:
        options["access_token"] = _access_token(args.access_token_file)
    with AgentClient(on_touch=_say_touch) as agent:
        proof = agent.proof(args.htm, args.uri, key=args.key, jkt=args.jkt, ath=args.ath, **options)
    if args.json:
        from dpop_agent.cli.output import print_json

        print_json(
            {
                "proof": str(proof),
                "key": proof.key,
                "jkt": proof.jkt,
                "state": proof.state,
                "nonce": proof.nonce,
            }
        )
    else:
        print(f"DPoP: {proof}" if args.header else proof)
    return 0


def _say_touch(touch: Touch) -> None:
    from dpop_agent.cli.output import say_touch

    say_touch(touch)


def _access_token(file: str) -> str:
    what = "standard input" if file == "-" else file
    text = _text(what, file).strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigurationError(
            f"{what} has to hold an access token and nothing else",
            hint="leave out all else, such as JSON or Bearer",
        )
    return text


def _text(what: str, file: str) -> str:
    try:
        if file == "-":
            data = sys.stdin.buffer.read(MAX_INPUT + 1)
        else:
            with open(file, "rb") as stream:
                data = stream.read(MAX_INPUT + 1)
    except OSError as e:
        raise ConfigurationError(
            f"{what} can't be read: {e.strerror}", hint="give another file"
        ) from e
    except ValueError as e:
        raise ConfigurationError("the file's name has a zero byte", hint="give another file") from e
    if len(data) > MAX_INPUT:
        raise ConfigurationError(
            f"{what} has more than {MAX_INPUT} bytes", hint="give another file"
        )
    return data.decode("utf-8", "replace")


def add_verify(parser: arguments.Parser) -> None:
    """`dpop-agent verify`."""
    parser.description = (
        "Check the proof on standard input against RFC 9449 section 4.3, without an agent."
    )
    parser.add_argument("--htm", required=True, type=arguments.htm, help="the request's method")
    parser.add_argument("--htu", required=True, help="the request's target URI")
    parser.add_argument("--jkt", type=arguments.sha256, help="what the access token is bound to")
    parser.add_argument("--ath", type=arguments.sha256, help="the access token's hash")
    parser.add_argument("--nonce", type=arguments.nonce, help="the nonce that the server gave")
    parser.add_argument(
        "--max-age", metavar="S", type=_seconds, help="how many seconds old iat may be"
    )
    arguments.add_json(parser)
    parser.set_defaults(run=_verify)


def _seconds(text: str) -> int:
    import argparse

    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise argparse.ArgumentTypeError("it has to be a number of seconds")
    return int(text)


def _verify(args: Namespace) -> int:
    from dpop_agent.verify import MAX_AGE_S, verify

    text = _text("standard input", "-").strip()
    name, colon, value = text.partition(":")
    if colon and name.strip().lower() == "dpop":
        text = value.strip()
    found = verify(
        text,
        htm=args.htm,
        htu=args.htu,
        jkt=args.jkt,
        ath=args.ath,
        nonce=args.nonce,
        max_age_s=MAX_AGE_S if args.max_age is None else args.max_age,
    )
    if args.json:
        from dpop_agent.cli.output import print_json

        print_json(
            {"jkt": found.jkt, "alg": found.alg, "header": found.header, "claims": found.claims}
        )
    else:
        print(f"ok jkt={found.jkt} alg={found.alg} iat={found.claims['iat']}")
    return 0

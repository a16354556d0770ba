"""`proof` and `verify`."""

from __future__ import annotations

from dpop_agent.cli import arguments
from dpop_agent.errors import ConfigurationError, JktRequired, KeyPending

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from argparse import _ActionsContainer as ActionsContainer
    from typing import Any, Self

    from dpop_agent.cli.waiting import Waiting
    from dpop_agent.client import Touch

MAX_INPUT = 64 * 1024
"""Characters of an access token or a proof: more than servers take in a header."""


def add_proof(parser: arguments.Parser) -> None:
    """`dpop-agent proof`."""
    parser.description = "Print a proof for one request."
    parser.add_argument("htm", metavar="METHOD", type=arguments.htm, help="such as GET")
    parser.add_argument("uri", metavar="URI", help="the target; query and fragment are cut off")
    add_signer(parser)
    bound = parser.add_mutually_exclusive_group()
    add_access_token_file(bound)
    bound.add_argument("--ath", type=arguments.sha256, help="or its hash; by default none")
    nonces = parser.add_mutually_exclusive_group()
    nonces.add_argument(
        "--nonce",
        type=arguments.nonce,
        help="this one; by default the one that the agent has from the server",
    )
    nonces.add_argument("--no-nonce", action="store_true", help="none at all")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--header", action="store_true", help="print it as DPoP: …")
    arguments.add_json(form)
    parser.set_defaults(run=_proof)


def add_signer(parser: arguments.Parser) -> None:
    """`--key` and `--jkt`, which `signer` reads."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--key",
        metavar="NAME[@N]",
        type=arguments.generation,
        help="sign with this generation, or with the active one of that name; by default the "
        "active one of the key default",
    )
    which.add_argument(
        "--jkt",
        type=arguments.sha256,
        help="sign with the generation that the access token is bound to (its cnf.jkt); by default "
        "with what --key says",
    )


def add_access_token_file(parser: ActionsContainer) -> None:
    """`--access-token-file`, which `access_token` reads."""
    parser.add_argument(
        "--access-token-file",
        metavar="FILE",
        help="the access token presented; - for stdin; by default none",
    )


def _proof(args: Namespace) -> int:
    from dpop_agent.client.sync import AgentClient

    options: dict[str, Any] = {"ath": args.ath}
    if args.no_nonce:
        options["nonce"] = None
    elif args.nonce is not None:
        options["nonce"] = args.nonce
    if args.access_token_file is not None:
        options["access_token"] = access_token(args.access_token_file)
    key, jkt = signer(args)
    try:
        with Touches() as touches, AgentClient(on_touch=touches.say) as agent:
            proof = agent.proof(args.htm, args.uri, key=key, jkt=jkt, **options)
    except JktRequired as e:
        raise with_choices(e, key) from e
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


def signer(args: Namespace) -> tuple[str | None, str | None]:
    """The key and the generation's jkt that `--key` or `--jkt` name."""
    if args.key is None:
        return None, args.jkt
    key, number = args.key
    return key, None if number is None else _jkt_of(key, number)


def _jkt_of(key: str, number: int) -> str:
    """The jkt of one generation; whether it signs, the agent says."""
    from dpop_agent.cli import calls

    jkt: str | None = calls.generation(calls.the_key(key, include_destroyed=True), number)["jkt"]
    if jkt is None:
        raise KeyPending(f"{key}@{number} isn't made yet", hint="see: dpop-agent status")
    return jkt


def with_choices(error: JktRequired, key: str | None) -> JktRequired:
    """The same, with what could be given here."""
    from dpop_agent.cli import calls
    from dpop_agent.cli.listing import name
    from dpop_agent.client.hop import DEFAULT_KEY

    owner = calls.the_key(key or DEFAULT_KEY)
    choices = ", ".join(
        f"{g['jkt']} ({name(owner, g)}, {g['state']})"
        for g in owner["generations"]
        if g["jkt"] in error.details.get("choices", [])
    )
    hint = f"name it with --jkt (its cnf.jkt), or with --key NAME@N: {choices}"
    return JktRequired(error.message, hint=hint, details=error.details)


class Touches:
    """What touches are waited for; few proofs need one, and the others pay nothing."""

    _waiting: Waiting | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def end(self) -> None:
        """None is waited for any more."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.__exit__()

    def say(self, touch: Touch) -> None:
        """Ask for one."""
        from dpop_agent.cli.waiting import Waiting

        if self._waiting is None:
            self._waiting = Waiting("").__enter__()
        self._waiting.touch(touch)


def access_token(file: str) -> str:
    """What the file has, and nothing but that."""
    from dpop_agent.cli import reading
    from dpop_agent.jose import is_access_token

    text = reading.text(file, "an access token", most=MAX_INPUT).strip()
    if not is_access_token(text):
        raise ConfigurationError(
            f"{reading.name(file)} has to hold an access token and nothing else",
            hint="leave out all else, such as JSON or Bearer",
        )
    return text


def add_verify(parser: arguments.Parser) -> None:
    """`dpop-agent verify`."""
    from dpop_agent.verify import MAX_AGE_S

    parser.description = (
        "Check the proof on standard input against RFC 9449 section 4.3, without an agent."
    )
    parser.add_argument("--htm", required=True, type=arguments.htm, help="the request's method")
    parser.add_argument("--htu", required=True, help="the request's target URI")
    parser.add_argument(
        "--jkt", type=arguments.sha256, help="what the access token is bound to; by default any"
    )
    parser.add_argument(
        "--ath", type=arguments.sha256, help="the access token's hash; by default it isn't checked"
    )
    parser.add_argument(
        "--nonce",
        type=arguments.nonce,
        help="the nonce that the server gave; by default it isn't checked",
    )
    parser.add_argument(
        "--max-age",
        metavar="S",
        type=_seconds,
        help=f"how many seconds old iat may be; by default {MAX_AGE_S}",
    )
    arguments.add_json(parser)
    parser.set_defaults(run=_verify)


def _seconds(text: str) -> int:
    import argparse

    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise argparse.ArgumentTypeError("it has to be a number of seconds")
    return int(text)


def _verify(args: Namespace) -> int:
    from dpop_agent.cli import reading
    from dpop_agent.verify import MAX_AGE_S, verify

    text = reading.text("-", "a proof", most=MAX_INPUT).strip()
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

"""`explain`: what is wrong with a request that failed."""

from __future__ import annotations

from dpop_agent.cli import arguments, output, reading
from dpop_agent.errors import ConfigurationError, DPoPAgentError, InvalidProof

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from dpop_agent.client.explaining.case import Known, Seen, Sources
    from dpop_agent.client.explaining.findings import Explanation

MAX_INPUT = 1024 * 1024
"""Bytes of what is read: the output of curl -v with a long body."""

NOTHING, SOMETHING, UNREADABLE = 0, 1, 2
"""Exit statuses."""


def add_explain(parser: arguments.Parser) -> None:
    """`dpop-agent explain`."""
    parser.description = (
        "Say what is wrong with a request that a server refused, likeliest first, with what shows "
        "it and what to do. It reads the output of curl -v on standard input, the body that curl "
        "printed included: curl -v … 2>&1 | dpop-agent explain. Of several requests the last one "
        "is explained, and the others are evidence. Nothing is sent to any server. What it prints "
        "has no secret: access tokens, signatures, codes, passwords and cookies are left out. "
        "Exit status: 0 nothing wrong found, 1 something found, 2 it can't be read."
    )
    parser.add_argument(
        "--request",
        metavar="FILE",
        help="a raw HTTP request (GET /me HTTP/1.1 …) instead of curl's output; - for standard "
        "input, as in the others",
    )
    parser.add_argument("--response", metavar="FILE", help="the raw response to it")
    parser.add_argument(
        "--metadata",
        metavar="FILE",
        help="the authorization server's metadata, as .well-known/oauth-authorization-server or "
        ".well-known/openid-configuration has them",
    )
    parser.add_argument(
        "--json", action="store_true", help="print findings, and errors, as one JSON object"
    )
    parser.set_defaults(run=_explain, usage=parser.error)


def _explain(args: Namespace) -> int:
    from dpop_agent.client.explaining.messages import Unreadable

    if (args.request is None) != (args.response is None):
        args.usage("give --request and --response together")
    if [args.request, args.response, args.metadata].count("-") > 1:
        args.usage("standard input can be one of them alone; give files for the others")
    try:
        found = _explanation(args)
    except (Unreadable, ConfigurationError) as e:
        error = e if isinstance(e, ConfigurationError) else ConfigurationError(str(e))
        output.report(error, as_json=args.json)
        return UNREADABLE
    if args.json:
        output.print_json(found.to_wire())
    else:
        from dpop_agent.client.explaining.findings import COLUMNS

        print("\n".join(found.lines(output.width() or COLUMNS)))
    return SOMETHING if found else NOTHING


def _explanation(args: Namespace) -> Explanation:
    from dpop_agent.client.explaining.reading import exchanges, messages
    from dpop_agent.client.explaining.verdict import explained

    metadata = None if args.metadata is None else _metadata(args.metadata)
    if args.request is not None:
        request = _text(args.request, "a raw request")
        found = [messages(request, _text(args.response, "a raw response"))]
    else:
        found = exchanges(_text("-", "the output of curl -v, its lines with > and < included,"))
    return explained(found, _sources(metadata))


def _sources(metadata: dict[str, Any] | None) -> Sources:
    import time
    from functools import lru_cache

    from dpop_agent.client.explaining.case import Sources

    return Sources(
        known=_known(),
        metadata=metadata,
        seen=lru_cache(_seen),
        is_signed=lru_cache(_is_signed),
        latest=time.time(),
    )


def _known() -> list[Known] | None:
    """The generations of the agent that runs here; None if none does."""
    from dpop_agent.cli import calls
    from dpop_agent.client.explaining.asking import generations

    try:
        return generations(calls.keys(None, include_destroyed=True))
    except DPoPAgentError:
        return None


def _seen(jti: str) -> Seen | None:
    """What the audit has of a jti."""
    from dpop_agent.cli.audit import recorded
    from dpop_agent.client.explaining.case import Seen

    try:
        entries = [e for e in recorded(jti) if e.get("outcome") == "done"]
    except (DPoPAgentError, OSError):
        return None
    if not entries:
        return None
    first = entries[0]
    name = output.plain(f"{first.get('key')}@{first.get('generation')}")
    return Seen(output.plain(first["time"])[:19] + "Z", len(entries), name)


def _is_signed(proof: str) -> bool | None:
    """Whether the key in a proof's header made its signature; None if that key is no good."""
    from dpop_agent.jose import (
        ALGORITHMS,
        PUBLIC_MEMBERS,
        b64url_decode,
        is_public_jwk,
        json_object,
    )

    signed, _, signature = proof.rpartition(".")
    try:
        header = json_object(b64url_decode(signed.partition(".")[0]))
        jwk, alg = dict(header["jwk"]), ALGORITHMS[header["alg"]]
        public = {name: jwk[name] for name in PUBLIC_MEMBERS[alg.kty]}
        made = b64url_decode(signature)
    except (ValueError, KeyError, TypeError):
        return None
    if not is_public_jwk(public, alg):
        return None
    from dpop_agent.verify import check_signature

    try:
        check_signature(alg.name, public, signed.encode("ascii"), made)
    except InvalidProof:
        return False
    return True


def _metadata(file: str) -> dict[str, Any]:
    from dpop_agent.jose import json_object

    text = _text(file, "the server's metadata")
    try:
        return json_object(text.encode())
    except ValueError as e:
        raise ConfigurationError(
            f"{reading.name(file)} has to be the server's metadata, one JSON object: {e}",
            hint="get them from its .well-known/oauth-authorization-server",
        ) from e


def _text(file: str, wanted: str) -> str:
    return reading.text(file, wanted, most=MAX_INPUT, shorter="leave out the end of a long body")

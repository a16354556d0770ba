"""The proof's nonce (RFC 9449 sections 8 and 9)."""

from __future__ import annotations

from dpop_agent.client.explaining.case import Case
from dpop_agent.client.explaining.judges.opinions import Opinion, opinion
from dpop_agent.client.explaining.redaction import beginning
from dpop_agent.client.explaining.said import nonce_is_foreign


def nonce_missing(case: Case) -> Opinion | None:
    if not case.has_proof or case.claim("nonce") is not None:
        return None
    offered = case.offered_nonce
    return opinion(
        65 if "use_dpop_nonce" in case.errors else 0,
        "The server wants its nonce in the proof, and there is none."
        if not case.is_unseen
        else "The server wants its nonce in the proof: there is none in it, or an old one.",
        "Send the request once more, with a new proof that has the DPoP-Nonce of this response; "
        "the agent's clients do that by themselves.",
        ("nonce in the proof", "can't be seen" if case.is_unseen else "none"),
        ("DPoP-Nonce", _given(offered)),
    )


def _given(nonce: str | None) -> str:
    return "none in the response" if nonce is None else f"{beginning(nonce)} in the response"


def nonce_stale(case: Case) -> Opinion | None:
    nonce = case.claim("nonce")
    if not isinstance(nonce, str):
        return None
    newer = next(
        (
            given
            for each in reversed(case.earlier)
            if each.origin == case.exchange.origin
            for given in each.got("DPoP-Nonce")
        ),
        None,
    )
    is_newer = newer is not None and newer != nonce
    weight = 12
    if "use_dpop_nonce" in case.errors:
        weight = 66
    elif is_newer:
        weight = 40
    offered = case.offered_nonce
    return opinion(
        weight,
        "The nonce in the proof isn't good any more.",
        "Send the request once more, with a new proof that has the newest DPoP-Nonce of this "
        "server; take the nonce of every response, successful ones too.",
        ("nonce in the proof", beginning(nonce)),
        ("DPoP-Nonce", _given(offered)),
        ("given before", beginning(newer) if newer is not None and is_newer else None),
    )


def nonce_of_another_server(case: Case) -> Opinion | None:
    nonce = case.claim("nonce")
    if not isinstance(nonce, str):
        return None
    givers = case.givers
    is_foreign = nonce_is_foreign(case)
    offered = case.offered_nonce
    sizes = None
    if not givers and is_foreign and offered is not None:
        sizes = f"{len(nonce)} characters in the proof, {len(offered)} in what this server gives"
    weight = 14 if "use_dpop_nonce" in case.errors else 0
    if is_foreign:
        weight = 81 if givers else 67
    return opinion(
        weight,
        "The nonce in the proof is another server's.",
        "Keep nonces by the server that gave them: authorization server and API have their own.",
        ("nonce in the proof", beginning(nonce)),
        ("it came from", case.redaction.url(givers[-1]) if givers else None),
        ("its length", sizes),
        ("DPoP-Nonce", _given(offered)),
    )


def nonce_unexpected(case: Case) -> Opinion | None:
    nonce = case.claim("nonce")
    if not isinstance(nonce, str):
        return None
    gives = case.offered_nonce or any(each.got("DPoP-Nonce") for each in case.earlier)
    return opinion(
        0 if gives else 15,
        "The proof has a nonce, and the server has none to give.",
        "Leave the nonce out where the server gave none (dpop-agent proof --no-nonce).",
        ("nonce in the proof", beginning(nonce)),
        ("DPoP-Nonce", _given(case.offered_nonce)),
    )

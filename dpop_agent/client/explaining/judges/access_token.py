"""The access token, and the proof against it (RFC 9449 sections 7 and 6.1)."""

from __future__ import annotations

from dpop_agent.client.explaining.case import SIGNS, Case, date_of, number
from dpop_agent.client.explaining.judges.opinions import (
    MAX_NAME,
    Opinion,
    anew,
    authorization,
    by_its_word,
    opinion,
)
from dpop_agent.client.explaining.messages import is_jwt
from dpop_agent.client.explaining.redaction import is_unfilled


def scheme_bearer(case: Case) -> Opinion | None:
    if case.scheme != "bearer":
        return None
    offers = any(scheme == "dpop" for scheme, _ in case.challenges)
    weight = 42 if offers else 20
    if case.is_bound:
        weight = 96
    elif case.has_proof:
        weight = 85
    return opinion(
        weight,
        "A bound access token is presented as Bearer."
        if case.is_bound
        else "The access token is presented as Bearer, and the server does DPoP.",
        "Send Authorization: DPoP and the access token, beside a proof for it"
        + ("." if case.has_proof else f": {anew(case)}"),
        ("Authorization", authorization(case)),
        ("DPoP header", None if case.has_proof else "none"),
        ("access token", f"bound to {case.name(case.bound_to)}" if case.bound_to else None),
    )


def access_token_not_bound(case: Case) -> Opinion | None:
    if not case.scheme or case.is_bound or case.is_token_request:
        return None
    shown = case.is_bound is False and case.scheme == "dpop"
    return opinion(
        84 if shown else 20 if case.is_opaque else 0,
        "The access token isn't bound to any key."
        if shown
        else "The access token may not be bound to any key.",
        "Get an access token with a proof in the token request; the answer's token_type is DPoP "
        "then. If it was there, the client isn't allowed DPoP at the authorization server.",
        ("access token", "a JWT without cnf.jkt" if not case.is_opaque else "opaque"),
        ("it came with", _token_type(case)),
    )


def _token_type(case: Case) -> str | None:
    if case.issued is None:
        return None
    return case.redaction.text(f"token_type {case.issued.answer.get('token_type')}", 40)


def access_token_of_another_key(case: Case) -> Opinion | None:
    if case.is_token_request or not case.scheme:
        return None
    bound, jkt = case.bound_to, case.jkt
    if bound is not None and bound == jkt:
        return opinion(
            0,
            "The server holds the access token to be bound to another key.",
            "Look at how the server reads cnf.jkt: it is the proof's key here.",
            ("cnf.jkt", case.name(bound)),
        )
    owner, signer = case.generation(bound), case.generation(jkt)
    shown = bound is not None and jkt is not None
    mend = "Sign with the key that the access token was got with, or get a new one."
    if owner is not None and owner.state in SIGNS:
        mend = f"Sign with {owner.key}@{owner.generation}: {anew(case)}"
    elif owner is not None:
        mend = (
            f"Get a new access token: {owner.key}@{owner.generation}, which this one is bound to, "
            f"is {owner.state} and signs no more."
        )
    elif shown and case.sources.known is not None:
        mend = (
            "Get a new access token with this key: the one that this one is bound to isn't known "
            "to the agent here."
        )
    is_unknown = case.is_opaque or case.is_left_out
    return opinion(
        83 if shown else 25 if bound is None and is_unknown else 0,
        "The access token is bound to another key than the proof's."
        if shown
        else "The access token may be bound to another key than the proof's.",
        mend,
        ("access token's key", case.name(bound) if bound else _unseen_key(case)),
        ("proof's key", case.name(jkt) if jkt or signer else None),
    )


def _unseen_key(case: Case) -> str:
    return f"can't be seen: it is {'left out' if case.is_left_out else 'opaque'}"


def access_token_missing(case: Case) -> Opinion | None:
    """A proof alone, or an Authorization header that has no access token in it."""
    if case.is_token_request or case.access_token or case.exchange.status not in (400, 401):
        return None
    value = next(iter(case.exchange.sent("Authorization")), "").strip()
    given = value.rpartition(" ")[2]
    mend = "Send Authorization: DPoP and the access token, beside the proof."
    if is_unfilled(given):
        return opinion(
            93,
            "The access token is a variable that has no value.",
            mend,
            ("Authorization", f"{case.scheme} {given[:MAX_NAME]}"),
        )
    if is_jwt(given) and case.scheme not in ("dpop", "bearer"):
        return opinion(
            90,
            "The Authorization header has an access token, and not the scheme DPoP before it.",
            mend,
            ("Authorization", "a JWT, without DPoP before it"),
        )
    if value or not case.has_proof:
        return None
    return opinion(
        82 if case.exchange.status == 401 or case.challenges else 0,
        "The request has a proof, and no access token.",
        mend,
        ("Authorization", "none"),
        ("DPoP header", "one"),
    )


def access_token_invalid(case: Case) -> Opinion | None:
    if not case.access_token and not case.is_left_out:
        return None
    expired = _expired(case)
    return opinion(
        81 if expired else 30,
        "The access token has expired."
        if expired
        else "The access token isn't valid (any more): expired, revoked, or another server's.",
        "Get a new access token; renew it with the key that the grant was made with.",
        ("access token", expired or _said_of_token(case)),
    )


def _expired(case: Case) -> str | None:
    now, by = case.date, "the response's Date"
    if now is None:
        now, by = case.sources.now, "now"
    exp, issued = number(case.access_claims.get("exp")), case.issued
    if exp is None and issued is not None:
        since, lasts = date_of(issued), number(issued.answer.get("expires_in"))
        exp = None if since is None or lasts is None else since + lasts
    if exp is None or now is None or exp >= now:
        return None
    return f"expired {now - exp:.0f} s before {by}"


def _said_of_token(case: Case) -> str:
    """Issuer and audience of a JWT access token: another API's is as invalid as an old one."""
    if case.is_opaque or case.is_left_out:
        return "opaque" if case.is_opaque else "left out in what was given"
    claims = case.access_claims
    shown = [f"{name} {claims[name]}" for name in ("iss", "aud") if name in claims]
    return case.redaction.text(f"a JWT, {', '.join(shown)}" if shown else "a JWT", 120)


def ath_missing(case: Case) -> Opinion | None:
    if not case.has_proof or case.claim("ath") is not None or case.is_token_request:
        return None
    return opinion(
        86 if case.scheme == "dpop" and not case.is_unseen and case.proof else 0,
        "The proof has no ath, though an access token goes along.",
        f"Put the access token's hash into the proof: {anew(case)}",
        ("ath in the proof", "can't be seen" if case.is_unseen else "none"),
        ("access token's", case.ath),
    )


def ath_mismatch(case: Case) -> Opinion | None:
    ath = case.claim("ath")
    if case.is_token_request:
        return None
    if ath is None:
        return by_its_word(
            case,
            "The proof is for another access token than the one presented",
            "ath in the proof",
            f"Make the proof for the access token that is sent: {anew(case)}",
        )
    shown = case.ath is not None and ath != case.ath
    return opinion(
        85 if shown else 0,
        "The proof is for another access token than the one presented."
        if shown or case.ath is None
        else "The server sees another access token than the proof was made for.",
        f"Make the proof for the access token that is sent: {anew(case)}"
        if shown
        else "See that nothing between client and server changes the Authorization header.",
        ("ath in the proof", case.redaction.text(ath, 60)),
        ("access token's", case.ath or "can't be seen: it isn't in what was given"),
    )


def ath_unexpected(case: Case) -> Opinion | None:
    if case.claim("ath") is None or case.access_token or case.is_left_out:
        return None
    return opinion(
        60 if case.is_token_request else 0,
        "The proof has an ath, and no access token goes along.",
        "Leave ath out of proofs for the authorization server (RFC 9449 section 4.2).",
        ("ath in the proof", case.redaction.text(case.claim("ath"), 60)),
        ("Authorization", case.redaction.text(case.scheme, 20) or "none"),
    )


def scope(case: Case) -> Opinion | None:
    if not case.access_token:
        return None
    wanted = next((p["scope"] for _, p in case.challenges if p.get("scope")), None)
    return opinion(
        0,
        "The access token's scope isn't enough; that is no matter of DPoP.",
        "Get an access token with the scope that the server names.",
        ("scope wanted", case.redaction.text(wanted, 120) if wanted else None),
    )

"""Requests to the authorization server: grant, client, what was issued (RFC 9449 section 5)."""

from __future__ import annotations

from dpop_agent.client.explaining.case import SIGNS, Case, jkt_of, proofs_of
from dpop_agent.client.explaining.judges.opinions import SHOWN, Opinion, opinion
from dpop_agent.client.explaining.messages import jws
from dpop_agent.client.explaining.said import grant_cause


def refresh_token_of_another_key(case: Case) -> Opinion | None:
    return _grant(case, "refresh_token_of_another_key")


def code_of_another_key(case: Case) -> Opinion | None:
    return _grant(case, "code_of_another_key")


def _grant(case: Case, cause: str) -> Opinion | None:
    if not case.is_token_request or not case.has_proof:
        return None
    is_code = cause == "code_of_another_key"
    of_this = "authorization_code" if is_code else "refresh_token"
    if case.grant not in ("", of_this) or (case.is_pushed and not is_code):
        return None
    wanted = case.form.get("dpop_jkt") or _asked_for(case)
    granted = None if is_code else _granted(case)
    weight = 0
    if "invalid_grant" in case.errors:
        weight = 50 if grant_cause(case) == cause else 30
    elif case.grant == of_this or case.is_pushed:
        weight = 32  # what is left where the error is one for everything
    if is_code and wanted is not None and case.jkt is not None and wanted != case.jkt:
        weight = 89
    if granted is not None and case.jkt is not None and granted != case.jkt and weight:
        weight = 89
    told = None
    if not case.grant and not case.is_pushed:
        told = "can't be seen in curl's output; by its length it may be this"
    others = [str(g) for g in case.sources.known or () if g.state in SIGNS and g.jkt != case.jkt]
    what = "authorization code" if is_code else "refresh token"
    return opinion(
        weight,
        f"The {what} is bound to another key than the proof's."
        if weight > SHOWN or any(word in case.words for word in ("jkt", "bound", "confirmation"))
        else f"The {what} is bound to another key than the proof's, or has expired or was used.",
        "Sign the token request with the key whose thumbprint was sent as dpop_jkt, from the "
        "authorization request to the token request; or begin the login anew."
        if is_code
        else "Sign with the key that the grant was made with (a public client's refresh token is "
        "bound to it, RFC 9449 section 5). Don't try others: some servers end the session.",
        ("proof's key", case.name(case.jkt) if case.jkt else None),
        ("dpop_jkt", case.name(wanted) if is_code and wanted else None),
        ("grant's key", case.name(granted) if granted else None),
        ("other keys here", case.redaction.text(", ".join(others[:4])) or None),
        ("request's body", told),
    )


def _granted(case: Case) -> str | None:
    """The key of the proof with which a refresh token was got, in what was given."""
    for each in reversed(case.earlier):
        got = each.answer.get("refresh_token")
        if got and case.form.get("refresh_token", got) == got and len(proofs_of(each)) == 1:
            return jkt_of(jws(proofs_of(each)[0]))
    return None


def _asked_for(case: Case) -> str | None:
    return next((each.form["dpop_jkt"] for each in case.earlier if "dpop_jkt" in each.form), None)


def assertion_key(case: Case) -> Opinion | None:
    if not case.is_token_request:
        return None
    assertion = jws(case.form.get("client_assertion", ""))
    kid = assertion.header.get("kid")
    is_same = kid is not None and kid == case.jkt
    weight = 0
    has_none = case.form.keys() >= {"grant_type"} and "client_assertion" not in case.form
    if "invalid_client" in case.errors and case.scheme != "basic" and not has_none:
        weight = 55
    if is_same:
        weight = 85
    return opinion(
        weight,
        "The client assertion and the proof are by the same key."
        if is_same or "key than the client assertion" in case.words
        else "The client's assertion isn't signed with a key that the server has of this client, "
        "or the client isn't known.",
        "Sign the client assertion with the key that is registered for the client (its jwks), "
        "and the proof with another: servers refuse one key for both.",
        ("proof's key", case.name(case.jkt) if case.jkt else None),
        ("assertion's kid", case.redaction.text(kid, 60) if isinstance(kid, str) else None),
    )


def token_type_bearer(case: Case) -> Opinion | None:
    kind = case.answer.get("token_type")
    if case.failed or "access_token" not in case.answer or not isinstance(kind, str):
        return None
    if kind.lower() == "dpop":
        return None
    return opinion(
        97,
        f"The access token isn't bound: the token response says {case.redaction.text(kind, 20)}.",
        "Turn DPoP on for the client at the authorization server (dpop_bound_access_tokens), or "
        "see that it does DPoP at all: its metadata have dpop_signing_alg_values_supported then. "
        "Don't use this access token as a bound one."
        if case.has_proof
        else "Send a proof with the token request.",
        ("token_type", case.redaction.text(kind, 20)),
        ("DPoP header", "one" if case.has_proof else "none in the request"),
        ("metadata", _no_dpop(case)),
    )


def _no_dpop(case: Case) -> str | None:
    """What the metadata say of a server that doesn't do DPoP (RFC 9449 section 5.1)."""
    metadata = case.sources.metadata
    if not metadata or "dpop_signing_alg_values_supported" in metadata:
        return None
    return "no dpop_signing_alg_values_supported: it doesn't do DPoP, as far as it says"

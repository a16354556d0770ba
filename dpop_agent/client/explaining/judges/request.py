"""The proof against the request that it came with (RFC 9449 section 4.3)."""

from __future__ import annotations

from dpop_agent.client.explaining.case import Case, number, proofs_of
from dpop_agent.client.explaining.judges.opinions import Opinion, anew, by_its_word, opinion
from dpop_agent.client.explaining.messages import jws, split
from dpop_agent.client.explaining.redaction import beginning
from dpop_agent.client.explaining.urls import difference

OLD_S = 60
AHEAD_S = 5
"""Seconds that `iat` may be behind or ahead at most servers (RFC 9449 section 11.1)."""

OLD_FOR_SOME_S = 10
AHEAD_FOR_SOME_S = 2
"""The same at the strictest; a Date has whole seconds, and a request takes some."""

MILLISECONDS = 10**11
"""From here on it is milliseconds since 1970 that a time counts: as seconds, that is year 5138."""


def htm_mismatch(case: Case) -> Opinion | None:
    htm = case.claim("htm")
    mend = f"Make a proof for each request, with its method as it is sent: {anew(case)}"
    if not isinstance(htm, str):
        said = "The proof is for another method than the request's"
        return by_its_word(case, said, "htm in the proof", mend)
    return opinion(
        88 if htm != case.exchange.method else 0,
        "The proof is for another method than the request's.",
        mend,
        ("htm in the proof", case.redaction.text(htm, 40)),
        ("method sent", case.redaction.text(case.exchange.method, 40)),
    )


def htu_mismatch(case: Case) -> Opinion | None:
    htu = case.claim("htu")
    if not isinstance(htu, str):
        return by_its_word(
            case,
            "The proof is for another URL than the request's",
            "htu in the proof",
            "Make the proof for the URL that the client requests; if it was, a proxy before the "
            f"server has another: {anew(case)}",
        )
    found = difference(htu, case.url)
    shown = (
        ("htu in the proof", case.redaction.url(htu)),
        ("URL of the request", case.redaction.url(case.url)),
    )
    if found is None:
        return _unseen_htu(case, shown)
    redirected = any(
        300 <= (each.status or 0) < 400 and case.proofs == proofs_of(each) for each in case.earlier
    )
    mend = f"Make the proof for the URL that the client requests: {anew(case)}"
    if redirected:
        mend = (
            "Don't follow redirects with the proof of the first request: make a new one for each "
            f"hop: {anew(case)}"
        )
    return opinion(
        87 if found.is_real else 40,
        "The proof is for another URL than the request's."
        if not redirected
        else "The proof is for the URL before the redirect.",
        mend,
        *shown,
        ("what differs", case.redaction.text(found.what)),
    )


def _unseen_htu(case: Case, shown: tuple[tuple[str, str], ...]) -> Opinion:
    """The client did it right: the server sees another URL."""
    names = server_names(case)
    hint = "a proxy before the server may change scheme, host, port or path"
    said = "The server expects another htu than the URL of the request: it sees itself elsewhere."
    mend = (
        "Have the proxy pass on X-Forwarded-Proto, -Host, -Port and -Prefix (or Forwarded), and "
        "the server trust them; or request the server by the URL that it knows itself by, which "
        "its metadata name."
    )
    if names:
        hint = f"the server calls itself {case.redaction.url(names[0])}"
    if "%" in split(case.url)[2] and all(_is_same_host(name, case.url) for name in names):
        hint = "the path has escapes, which some servers (Okta, Nimbus) decode before they compare"
        said = "The server expects another htu than the URL of the request."
        mend = (
            "Ask for it by a path without escapes, such as its id; or make the proof for the path "
            "as the server decodes it. If neither helps, it is a proxy that changes the URL."
        )
    return opinion(
        45 if names else 0,
        said,
        mend,
        *shown,
        ("what differs", f"nothing that can be seen here: {hint}"),
    )


def _is_same_host(name: str, url: str) -> bool:
    return split(name)[1].lower() == split(url)[1].lower()


def server_names(case: Case) -> list[str]:
    """URLs that the server goes by, where they are of another origin than the request's."""
    metadata = case.sources.metadata or {}
    path = split(case.url)[2]
    found = [params.get("realm", "") for _, params in case.challenges]
    found += [params.get("authorization_uri", "") for _, params in case.challenges]
    found += [
        each
        for name, each in metadata.items()
        if isinstance(each, str) and name.endswith("_endpoint") and split(each)[2].endswith(path)
    ]
    ours = split(case.url)
    return [
        each
        for each in found
        if each.startswith(("http://", "https://"))
        and (split(each)[1] != ours[1] or (ours[0] and split(each)[0] != ours[0]))
    ]


_IN_TIME = (
    "Make the proof right before it is sent, and a new one for each attempt; if it was, set the "
    "clock of the machine that signs (dpop-agent doctor looks at it)."
)


def iat_old(case: Case) -> Opinion | None:
    age, weight = case.age_s, 0
    iat = number(case.claim("iat"))
    if iat is None:
        return by_its_word(case, "The proof is too old", "iat in the proof", _IN_TIME)
    if age is not None and age > OLD_S:
        weight = 75
    elif age is not None and age > OLD_FOR_SOME_S:
        weight = 60
    issued, since = number(case.access_claims.get("iat")), None
    if age is None and issued is not None and iat < issued - OLD_S:
        weight, since = 75, f"{issued - iat:.0f} s before the access token was issued"
    return opinion(
        weight,
        "The proof is too old for the server.",
        _IN_TIME,
        ("iat in the proof", since or _age(case)),
        ("made by the agent", _recorded(case)),
    )


def _age(case: Case) -> str | None:
    age = case.age_s
    if age is None:
        return "no Date in the response to compare it with"
    by = "the response's Date" if case.date is not None else "the clock here"
    return f"{abs(age)} s {'before' if age >= 0 else 'after'} {by}"


def _recorded(case: Case) -> str | None:
    jti = case.claim("jti")
    found = case.sources.seen(jti) if isinstance(jti, str) else None
    return None if found is None else f"{found.time}, {found.generation} (the audit)"


def iat_ahead(case: Case) -> Opinion | None:
    age, weight = case.age_s, 0
    mend = "Set the clock of the machine that signs; dpop-agent doctor looks at it."
    if case.claim("iat") is None:
        said = "The proof is dated ahead of the server's clock"
        return by_its_word(case, said, "iat in the proof", mend)
    iat = number(case.claim("iat"))
    if iat is not None and iat > MILLISECONDS:
        return opinion(
            90,
            "The proof's iat is in milliseconds.",
            "Give iat in seconds since 1970 (RFC 7519 section 2): divide it by 1000.",
            ("iat in the proof", f"{iat:.0f}"),
        )
    if age is not None and -age > AHEAD_S:
        weight = 76
    elif age is not None and -age > AHEAD_FOR_SOME_S:
        weight = 50
    return opinion(
        weight,
        "The proof is dated ahead of the server's clock.",
        mend,
        ("iat in the proof", _age(case)),
    )


def jti_seen(case: Case) -> Opinion | None:
    jti = case.claim("jti")
    mend = "Make a new proof, with a new jti, for each request: for retries and redirects too."
    if not isinstance(jti, str):
        said = "The server has seen this proof before"
        return by_its_word(case, said, "jti in the proof", mend)
    before = [
        each
        for each in case.earlier
        if any(jws(proof).claims.get("jti") == jti for proof in proofs_of(each))
    ]
    # A nonce challenge's answer with the same proof is the nonce's matter.
    weight = 82 if before else 0
    return opinion(
        weight,
        "The server has seen this proof before.",
        mend,
        ("jti in the proof", beginning(jti)),
        ("sent before", f"{len(before)} times in this output" if before else None),
        ("made by the agent", _recorded(case)),
    )

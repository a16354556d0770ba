"""The causes: one function each, which says what of an exchange speaks for it, and how strongly.

An opinion's weight is what the evidence gives; what the server says is added to it elsewhere. A
weight of 0 means: nothing shows it, and this is what to say if the server names it.
"""

from __future__ import annotations

from collections.abc import Callable
from shlex import quote
from typing import NamedTuple

from dpop_agent.client.explaining.case import SIGNS, Case, date_of, jkt_of, number, proofs_of
from dpop_agent.client.explaining.messages import PRIVATE_MEMBERS, is_jwt, jws, split
from dpop_agent.client.explaining.redaction import beginning, is_unfilled, one_line
from dpop_agent.client.explaining.said import case_nonce_is_foreign, grant_cause
from dpop_agent.client.explaining.urls import difference
from dpop_agent.jose import PUBLIC_MEMBERS

SHOWN = 80
"""The weight from which on the evidence by itself shows the cause."""

OLD_S = 60
AHEAD_S = 5
"""Seconds that `iat` may be behind or ahead at most servers (RFC 9449 section 11.1)."""

OLD_FOR_SOME_S = 10
AHEAD_FOR_SOME_S = 2
"""The same at the strictest; a Date has whole seconds, and a request takes some."""

MILLISECONDS = 10**11
"""From here on it is milliseconds since 1970 that a time counts: as seconds, that is year 5138."""

MAX_NAME = 32
"""Characters that are shown of a variable's name."""

_UNIVERSAL = "ES256"
"""The one algorithm that every server takes."""


class Opinion(NamedTuple):
    """What speaks for a cause, and what to do if it is the one."""

    weight: int
    summary: str
    evidence: tuple[tuple[str, str], ...]
    mend: str


def _opinion(weight: int, summary: str, mend: str, *evidence: tuple[str, str | None]) -> Opinion:
    shown = tuple((of, one_line(is_)) for of, is_ in evidence if is_)
    return Opinion(weight, one_line(summary), shown, one_line(mend))


def _by_its_word(case: Case, said: str, of: str, mend: str) -> Opinion | None:
    """For what the server alone can say, since the proof can't be read in what was given."""
    if not case.is_unseen:
        return None
    return _opinion(0, f"{said}, as the server says.", mend, (of, "can't be seen"))


def _anew(case: Case) -> str:
    """How to make the proof with the agent."""
    jkt = case.bound_to or case.jkt
    which = f" --jkt {jkt}" if jkt and case.generation(jkt) else ""
    token = " --access-token-file FILE" if case.scheme in ("dpop", "bearer") else ""
    url = case.redaction.url(case.url)
    if url.startswith("//"):
        url = f"https:{url}"
    method = case.redaction.text(case.exchange.method, 32)
    return f"dpop-agent proof {quote(method)} {quote(url)}{which}{token}"


# The proof by itself


def no_proof(case: Case) -> Opinion | None:
    is_token = case.is_token_request
    if case.has_proof:
        return _opinion(
            0,
            "The server finds no proof, though the request has one.",
            "See that nothing between client and server drops the DPoP header, and that the "
            "server does DPoP at this endpoint.",
            ("DPoP header", "one, in the request"),
        )
    weight = 0
    misplaced = next((n for n, v in case.exchange.request_headers if _is_proof(v)), None)
    if case.scheme == "dpop" or misplaced:
        weight = 93
    elif is_token and {"invalid_grant", "invalid_request", "invalid_dpop_proof"} & {*case.errors}:
        weight = 70
    elif not is_token and (case.scheme == "" or case.is_bound):
        weight = 60
    return _opinion(
        weight,
        "The proof is in another header than DPoP."
        if misplaced
        else "The request has no proof."
        if case.access_token or is_token or case.scheme
        else "The request has neither an access token nor a proof.",
        f"Send a DPoP header, with a new proof for each request: {_anew(case)}",
        ("DPoP header", "none"),
        ("a proof is in", misplaced and case.redaction.text(misplaced, 40)),
        ("Authorization", _authorization(case)),
    )


def _is_proof(value: str) -> bool:
    return is_jwt(value) and jws(value).header.get("typ") == "dpop+jwt"


def _authorization(case: Case) -> str | None:
    name = {"dpop": "DPoP", "bearer": "Bearer"}.get(case.scheme)
    return name if name is None else f"{name}, an access token"


def several_proofs(case: Case) -> Opinion | None:
    count = len(case.proofs)
    return _opinion(
        95 if count > 1 else 0,
        f"The request has {count} proofs, and one is allowed (RFC 9449 section 4.3)."
        if count > 1
        else "The server finds several proofs in the request.",
        "Find out who else adds a DPoP header: an interceptor that runs twice, a retry that adds "
        "to the headers of the first attempt, a gateway.",
        ("DPoP headers", str(count)),
    )


_IN_FORM = "Make it as RFC 9449 section 4.2 has it; the agent does."


def proof_malformed(case: Case) -> Opinion | None:
    proof = case.proof
    if proof is None:
        said = "Something is wrong with the proof's form"
        return _by_its_word(case, said, "the proof", _IN_FORM)
    if is_unfilled(case.proofs[0]):
        return _opinion(
            94,
            "The proof is a variable that has no value.",
            "See why the program has no proof to put there, or one that isn't ready yet.",
            ("DPoP header", case.proofs[0][:MAX_NAME]),
        )
    wrong = proof.wrong or _wrong_form(proof.header, proof.claims)
    leaked = isinstance(proof.header.get("jwk"), dict) and bool(
        PRIVATE_MEMBERS & proof.header["jwk"].keys()
    )
    mend = _IN_FORM
    if leaked:
        mend = (
            "Never use this key again: whoever saw the request has it. Make another, and put its "
            "public members alone into the header."
        )
    elif proof.wrong:
        mend = "If it was cut while it was copied, paste it whole; else make it anew."
    return _opinion(
        94 if wrong else 0,
        f"The proof {wrong}."
        if wrong
        else "The server finds something wrong with the proof's form.",
        mend,
        ("proof's header", _header(case)),
        ("proof's claims", _claims(case)),
    )


def _header(case: Case) -> str | None:
    header = {} if case.proof is None else case.proof.header
    shown = [f"{name} {header[name]!r:.40}" for name in ("typ", "alg") if name in header]
    shown += ["jwk"] if "jwk" in header else []
    shown += sorted(str(name) for name in header if name not in ("typ", "alg", "jwk"))[:4]
    return case.redaction.text(", ".join(shown)) or None


def _claims(case: Case) -> str | None:
    claims = {} if case.proof is None else case.proof.claims
    return case.redaction.text(", ".join(str(name) for name in list(claims)[:12])) or None


def _wrong_form(header: object, claims: object) -> str:
    """What of a proof isn't as section 4.2 has it, as the end of a sentence."""
    assert isinstance(header, dict)
    assert isinstance(claims, dict)
    jwk = header.get("jwk")
    if header.get("typ") != "dpop+jwt":
        return "has not dpop+jwt as its typ"
    if not isinstance(header.get("alg"), str):
        return "has no alg"
    if not isinstance(jwk, dict):
        return "has no jwk in its header"
    if private := sorted(PRIVATE_MEMBERS & jwk.keys()):
        return f"has the private key in it (jwk's {private[0]})"
    members = PUBLIC_MEMBERS.get(jwk["kty"]) if isinstance(jwk.get("kty"), str) else None
    if members is None or not all(isinstance(jwk.get(each), str) for each in members):
        return "has a jwk that is no public key of RFC 7518"
    if "crit" in header:
        return "has crit in its header, which servers don't know"
    for name in ("jti", "htm", "htu"):
        if not isinstance(claims.get(name), str) or not claims[name]:
            return f"has no {name}" if name not in claims else f"has a {name} that is no text"
    if type(claims.get("iat")) not in (int, float):
        return "has no iat" if "iat" not in claims else "has an iat that is no number"
    return ""


def proof_signature(case: Case) -> Opinion | None:
    if not case.has_proof:
        return None
    is_signed = None
    if case.proof is not None and not case.is_unsigned:
        is_signed = case.sources.is_signed(case.proofs[0])
    told = {True: "by the key in the header", False: "not by the key in the header", None: None}
    return _opinion(
        91 if is_signed is False else 0,
        "The proof's signature isn't by the key in its header.",
        "Sign header and claims as they are sent, with the private key of the jwk in the header; "
        "an ECDSA signature is r and s, never DER (RFC 7518 section 3.4).",
        ("proof's signature", told[is_signed]),
        ("proof's alg", _alg(case)),
    )


def _alg(case: Case) -> str | None:
    alg = None if case.proof is None else case.proof.header.get("alg")
    return case.redaction.text(alg, 40) if isinstance(alg, str) else None


def alg_not_accepted(case: Case) -> Opinion | None:
    alg = _alg(case)
    if alg is None:
        return _by_its_word(
            case,
            "The server doesn't take the proof's algorithm",
            "proof's alg",
            f"Use a key with {_wanted(case.algs)}, which all servers take.",
        )
    algs = case.algs
    weight = 92 if algs is not None and alg not in algs else 0
    if alg == "none" or alg.startswith("HS"):
        weight = 92
    elif algs is None and alg != _UNIVERSAL:
        weight = 35 if alg in ("Ed25519", "EdDSA", "ES384", "ES512") else 10
    wanted = _wanted(algs)
    of_name = ""
    if alg in ("Ed25519", "EdDSA"):
        of_name = (
            " Ed25519 and EdDSA are names for the same; many servers know but one, or neither."
        )
    return _opinion(
        weight,
        f"The server doesn't take the algorithm {alg}.",
        f"Use a key with {wanted}: dpop-agent key create NAME --alg {wanted}.{of_name}",
        ("proof's alg", alg),
        ("the server takes", case.redaction.text(", ".join(algs or [])) or None),
    )


def _wanted(algs: list[str] | None) -> str:
    ours = ("ES256", "PS256", "RS256", "ES384", "ES512", "EdDSA", "Ed25519")
    return next((each for each in ours if algs is None or each in algs), _UNIVERSAL)


# The proof against the request


def htm_mismatch(case: Case) -> Opinion | None:
    htm = case.claim("htm")
    mend = f"Make a proof for each request, with its method as it is sent: {_anew(case)}"
    if not isinstance(htm, str):
        said = "The proof is for another method than the request's"
        return _by_its_word(case, said, "htm in the proof", mend)
    return _opinion(
        88 if htm != case.exchange.method else 0,
        "The proof is for another method than the request's.",
        mend,
        ("htm in the proof", case.redaction.text(htm, 40)),
        ("method sent", case.redaction.text(case.exchange.method, 40)),
    )


def htu_mismatch(case: Case) -> Opinion | None:
    htu = case.claim("htu")
    if not isinstance(htu, str):
        return _by_its_word(
            case,
            "The proof is for another URL than the request's",
            "htu in the proof",
            "Make the proof for the URL that the client requests; if it was, a proxy before the "
            f"server has another: {_anew(case)}",
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
    mend = f"Make the proof for the URL that the client requests: {_anew(case)}"
    if redirected:
        mend = (
            "Don't follow redirects with the proof of the first request: make a new one for each "
            f"hop: {_anew(case)}"
        )
    return _opinion(
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
    return _opinion(
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
        return _by_its_word(case, "The proof is too old", "iat in the proof", _IN_TIME)
    if age is not None and age > OLD_S:
        weight = 75
    elif age is not None and age > OLD_FOR_SOME_S:
        weight = 60
    issued, since = number(case.token.claims.get("iat")), None
    if age is None and issued is not None and iat < issued - OLD_S:
        weight, since = 75, f"{issued - iat:.0f} s before the access token was issued"
    return _opinion(
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
        return _by_its_word(case, said, "iat in the proof", mend)
    iat = number(case.claim("iat"))
    if iat is not None and iat > MILLISECONDS:
        return _opinion(
            90,
            "The proof's iat is in milliseconds.",
            "Give iat in seconds since 1970 (RFC 7519 section 2): divide it by 1000.",
            ("iat in the proof", f"{iat:.0f}"),
        )
    if age is not None and -age > AHEAD_S:
        weight = 76
    elif age is not None and -age > AHEAD_FOR_SOME_S:
        weight = 50
    return _opinion(
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
        return _by_its_word(case, said, "jti in the proof", mend)
    before = [
        each
        for each in case.earlier
        if any(jws(proof).claims.get("jti") == jti for proof in proofs_of(each))
    ]
    # A nonce challenge's answer with the same proof is the nonce's matter.
    weight = 82 if before else 0
    return _opinion(
        weight,
        "The server has seen this proof before.",
        mend,
        ("jti in the proof", beginning(jti)),
        ("sent before", f"{len(before)} times in this output" if before else None),
        ("made by the agent", _recorded(case)),
    )


# The nonce


def nonce_missing(case: Case) -> Opinion | None:
    if not case.has_proof or case.claim("nonce") is not None:
        return None
    offered = case.offered_nonce
    return _opinion(
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
    return _opinion(
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
    givers = [each.origin for each in case.earlier if nonce in each.got("DPoP-Nonce")]
    is_foreign = case_nonce_is_foreign(case)
    offered = case.offered_nonce
    sizes = None
    if not givers and is_foreign and offered is not None:
        sizes = f"{len(nonce)} characters in the proof, {len(offered)} in what this server gives"
    weight = 14 if "use_dpop_nonce" in case.errors else 0
    if is_foreign:
        weight = 81 if givers else 67
    return _opinion(
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
    return _opinion(
        0 if gives else 15,
        "The proof has a nonce, and the server has none to give.",
        "Leave the nonce out where the server gave none (dpop-agent proof --no-nonce).",
        ("nonce in the proof", beginning(nonce)),
        ("DPoP-Nonce", _given(case.offered_nonce)),
    )


# The access token


def scheme_bearer(case: Case) -> Opinion | None:
    if case.scheme != "bearer":
        return None
    offers = any(scheme == "dpop" for scheme, _ in case.challenges)
    weight = 42 if offers else 20
    if case.is_bound:
        weight = 96
    elif case.has_proof:
        weight = 85
    return _opinion(
        weight,
        "A bound access token is presented as Bearer."
        if case.is_bound
        else "The access token is presented as Bearer, and the server does DPoP.",
        "Send Authorization: DPoP and the access token, beside a proof for it"
        + ("." if case.has_proof else f": {_anew(case)}"),
        ("Authorization", _authorization(case)),
        ("DPoP header", None if case.has_proof else "none"),
        ("access token", f"bound to {case.name(case.bound_to)}" if case.bound_to else None),
    )


def access_token_not_bound(case: Case) -> Opinion | None:
    if not case.scheme or case.is_bound or case.is_token_request:
        return None
    shown = case.is_bound is False and case.scheme == "dpop"
    return _opinion(
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
        return _opinion(
            0,
            "The server holds the access token to be bound to another key.",
            "Look at how the server reads cnf.jkt: it is the proof's key here.",
            ("cnf.jkt", case.name(bound)),
        )
    owner, signer = case.generation(bound), case.generation(jkt)
    shown = bound is not None and jkt is not None
    mend = "Sign with the key that the access token was got with, or get a new one."
    if owner is not None and owner.state in SIGNS:
        mend = f"Sign with {owner.key}@{owner.generation}: {_anew(case)}"
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
    return _opinion(
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
    token = value.rpartition(" ")[2]
    mend = "Send Authorization: DPoP and the access token, beside the proof."
    if is_unfilled(token):
        return _opinion(
            93,
            "The access token is a variable that has no value.",
            mend,
            ("Authorization", f"{case.scheme} {token[:MAX_NAME]}"),
        )
    if is_jwt(token) and case.scheme not in ("dpop", "bearer"):
        return _opinion(
            90,
            "The Authorization header has an access token, and not the scheme DPoP before it.",
            mend,
            ("Authorization", "a JWT, without DPoP before it"),
        )
    if value or not case.has_proof:
        return None
    return _opinion(
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
    return _opinion(
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
    exp, issued = number(case.token.claims.get("exp")), case.issued
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
    claims = case.token.claims
    shown = [f"{name} {claims[name]}" for name in ("iss", "aud") if name in claims]
    return case.redaction.text(f"a JWT, {', '.join(shown)}" if shown else "a JWT", 120)


def ath_missing(case: Case) -> Opinion | None:
    if not case.has_proof or case.claim("ath") is not None or case.is_token_request:
        return None
    return _opinion(
        86 if case.scheme == "dpop" and not case.is_unseen and case.proof else 0,
        "The proof has no ath, though an access token goes along.",
        f"Put the access token's hash into the proof: {_anew(case)}",
        ("ath in the proof", "can't be seen" if case.is_unseen else "none"),
        ("access token's", case.ath),
    )


def ath_mismatch(case: Case) -> Opinion | None:
    ath = case.claim("ath")
    if case.is_token_request:
        return None
    if ath is None:
        return _by_its_word(
            case,
            "The proof is for another access token than the one presented",
            "ath in the proof",
            f"Make the proof for the access token that is sent: {_anew(case)}",
        )
    shown = case.ath is not None and ath != case.ath
    return _opinion(
        85 if shown else 0,
        "The proof is for another access token than the one presented."
        if shown or case.ath is None
        else "The server sees another access token than the proof was made for.",
        f"Make the proof for the access token that is sent: {_anew(case)}"
        if shown
        else "See that nothing between client and server changes the Authorization header.",
        ("ath in the proof", case.redaction.text(ath, 60)),
        ("access token's", case.ath or "can't be seen: it isn't in what was given"),
    )


def ath_unexpected(case: Case) -> Opinion | None:
    if case.claim("ath") is None or case.access_token or case.is_left_out:
        return None
    return _opinion(
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
    return _opinion(
        0,
        "The access token's scope isn't enough; that is no matter of DPoP.",
        "Get an access token with the scope that the server names.",
        ("scope wanted", case.redaction.text(wanted, 120) if wanted else None),
    )


# The token endpoint


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
    return _opinion(
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
    return _opinion(
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
    return _opinion(
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


def server_error(case: Case) -> Opinion | None:
    status = case.exchange.status or 0
    if status < 500:
        return None
    fits = []
    if case.age_s is None and case.has_proof:
        fits.append("a proof that is too old (Keycloak answers so), for there is no Date")
    if _alg(case) not in (None, _UNIVERSAL):
        fits.append(f"the algorithm {_alg(case)}")
    fits.append("a server that isn't set up for DPoP")
    return _opinion(
        55,
        f"The server failed ({status}), and doesn't say why.",
        "Look at the server's log. Try a new proof by an ES256 key; if a request without DPoP "
        "fails in the same way, it isn't DPoP.",
        ("what fits", "; ".join(fits)),
    )


JUDGES: dict[str, Callable[[Case], Opinion | None]] = {
    judge.__name__: judge
    for judge in (
        several_proofs,
        proof_malformed,
        no_proof,
        alg_not_accepted,
        proof_signature,
        scheme_bearer,
        htm_mismatch,
        htu_mismatch,
        ath_missing,
        ath_mismatch,
        ath_unexpected,
        access_token_missing,
        access_token_not_bound,
        access_token_of_another_key,
        access_token_invalid,
        jti_seen,
        iat_old,
        iat_ahead,
        nonce_missing,
        nonce_stale,
        nonce_of_another_server,
        nonce_unexpected,
        refresh_token_of_another_key,
        code_of_another_key,
        assertion_key,
        token_type_bearer,
        scope,
        server_error,
    )
}
"""Each cause's function, by the cause's name."""

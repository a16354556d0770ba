"""The proof by itself (RFC 9449 section 4.2)."""

from __future__ import annotations

from dpop_agent.client.explaining.case import Case
from dpop_agent.client.explaining.judges.opinions import (
    MAX_NAME,
    UNIVERSAL,
    Opinion,
    anew,
    authorization,
    by_its_word,
    opinion,
)
from dpop_agent.client.explaining.messages import PRIVATE_MEMBERS, is_jwt, jws
from dpop_agent.client.explaining.redaction import is_unfilled
from dpop_agent.jose import PUBLIC_MEMBERS


def no_proof(case: Case) -> Opinion | None:
    is_token = case.is_token_request
    if case.has_proof:
        return opinion(
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
    return opinion(
        weight,
        "The proof is in another header than DPoP."
        if misplaced
        else "The request has no proof."
        if case.access_token or is_token or case.scheme
        else "The request has neither an access token nor a proof.",
        f"Send a DPoP header, with a new proof for each request: {anew(case)}",
        ("DPoP header", "none"),
        ("a proof is in", misplaced and case.redaction.text(misplaced, 40)),
        ("Authorization", authorization(case)),
    )


def _is_proof(value: str) -> bool:
    return is_jwt(value) and jws(value).header.get("typ") == "dpop+jwt"


def several_proofs(case: Case) -> Opinion | None:
    count = len(case.proofs)
    return opinion(
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
        return by_its_word(case, said, "the proof", _IN_FORM)
    if is_unfilled(case.proofs[0]):
        return opinion(
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
    return opinion(
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
    return opinion(
        91 if is_signed is False else 0,
        "The proof's signature isn't by the key in its header.",
        "Sign header and claims as they are sent, with the private key of the jwk in the header; "
        "an ECDSA signature is r and s, never DER (RFC 7518 section 3.4).",
        ("proof's signature", told[is_signed]),
        ("proof's alg", algorithm(case)),
    )


def algorithm(case: Case) -> str | None:
    alg = None if case.proof is None else case.proof.header.get("alg")
    return case.redaction.text(alg, 40) if isinstance(alg, str) else None


def alg_not_accepted(case: Case) -> Opinion | None:
    alg = algorithm(case)
    if alg is None:
        return by_its_word(
            case,
            "The server doesn't take the proof's algorithm",
            "proof's alg",
            f"Use a key with {_wanted(case.algs)}, which all servers take.",
        )
    algs = case.algs
    weight = 92 if algs is not None and alg not in algs else 0
    if alg == "none" or alg.startswith("HS"):
        weight = 92
    elif algs is None and alg != UNIVERSAL:
        weight = 35 if alg in ("Ed25519", "EdDSA", "ES384", "ES512") else 10
    wanted = _wanted(algs)
    of_name = ""
    if alg in ("Ed25519", "EdDSA"):
        of_name = (
            " Ed25519 and EdDSA are names for the same; many servers know but one, or neither."
        )
    return opinion(
        weight,
        f"The server doesn't take the algorithm {alg}.",
        f"Use a key with {wanted}: dpop-agent key create NAME --alg {wanted}.{of_name}",
        ("proof's alg", alg),
        ("the server takes", case.redaction.text(", ".join(algs or [])) or None),
    )


def _wanted(algs: list[str] | None) -> str:
    ours = ("ES256", "PS256", "RS256", "ES384", "ES512", "EdDSA", "Ed25519")
    return next((each for each in ours if algs is None or each in algs), UNIVERSAL)

"""Which cause a server's own words name.

The wordings are those of Keycloak, Spring Security, oidc-provider, Bluesky, better-auth, Auth0's
libraries, Okta and authlib; what is particular comes before what is general.
"""

from __future__ import annotations

import re

from dpop_agent.client.explaining.case import Case, number

FOREIGN = 1.5
"""How much longer one of two nonces is that different servers gave."""

_CLAIM = r"\b(?:jti|htm|htu|iat|jwk|typ)\b"

_WORDS = [
    (cause, re.compile(pattern.replace(".{", "[^;]{")))
    for cause, pattern in (
        ("access_token_invalid", r"\bexp\b.{0,20}(?:claim|check)|jwt expired"),
        (
            "several",
            r"multiple dpop|single proof|(?:more than one|several|too many) (?:dpop|proof)",
        ),
        ("assertion_key", r"client.?assertion|same key.*assertion|assertion.*same key"),
        (
            "scheme_bearer",
            r"scheme.{0,25}(?:not|must be|expected).{0,10}dpop|authorization header is not dpop"
            r"|requires the dpop (?:\w+ )?scheme|no dpop authorization header"
            r"|expect\w+ authorization header with dpop|expected .?dpop.? scheme"
            r"|bearer scheme cannot|with (?:the )?bearer|bearer token not allowed"
            r"|must be provided via an authorization header",
        ),
        (
            "access_token_missing",
            r"(?:no|missing) (?:access token|authorization header)"
            r"|(?:access token|authorization header) (?:is )?(?:missing|required|not provided)"
            r"(?! \w+ scope)",
        ),
        (
            "access_token_not_bound",
            r"no dpop (?:confirmation|key thumbprint)|no jkt confirmation|jkt claim is required"
            r"|requires a dpop-bound access token|not dpop.?bound|token type is not dpop"
            r"|not bound to a (?:dpop )?key|not sender.?constrained|(?:missing|no) cnf",
        ),
        ("code_of_another_key", r"dpop_jkt"),
        (
            "key",
            r"expected jkt|the bound token|confirmation (?:mismatch|doesn.t match|does not match)",
        ),
        (
            "key",
            r"jkt claim is invalid|jkt (?:verification|mismatch)|binding.{0,20}(?:fail|mismatch)",
        ),
        (
            "key",
            r"(?:key|jwk) .{0,30}(?:thumbprint|cnf)|(?:thumbprint|jkt) .{0,20}match|mismatched key",
        ),
        ("binding", r"key binding"),
        (
            "ath_missing",
            r"no access token hash|missing .?ath\b|\bath\b.{0,25}(?:missing|required|absent)"
            r"|must include an ath",
        ),
        ("ath_unexpected", r"\bath\b.{0,10}(?:not allowed|unexpected|must not)"),
        ("ath_mismatch", r"access token hash mismatch|\bath\b"),
        (
            "nonce_unexpected",
            r"nonces? (?:are|is) not supported|unexpected nonce"
            r"|nonce (?:is )?not (?:allowed|expected)",
        ),
        ("iat", r"not recent enough"),
        ("nonce", r"\bnonces?\b"),
        (
            "jti_seen",
            r"already (?:been )?used|reused?\b|replay|duplicate"
            r"|\bjti\b.{0,20}(?:invalid|not valid|used|seen|unique)",
        ),
        (
            "alg_not_accepted",
            r"unsupported.{0,20}alg|asymmetric|\balg(?:orithm)?\b.{0,40}"
            r"(?:not allowed|unsupported|not supported|not accepted|invalid)",
        ),
        (
            "proof_malformed",
            rf"missing.{{0,20}}{_CLAIM}|{_CLAIM}.{{0,30}}missing|mandatory claims|must include htm"
            r"|must have a|\btyp\b|type in dpop header|\bjwk\b|header verification|private key"
            r"|compact jwt|key type in dpop|public key in dpop|malformed dpop|jti is too large"
            r"|header cannot be empty|not a valid jwt|contain the public key",
        ),
        (
            "no_proof",
            r"(?:dpop proof|dpop proof jwt|dpop.? (?:http )?header|proof header)[^;]{0,12}"
            r"(?:missing|required|not provided|not present|absent|not found)|missing dpop|no dpop"
            r"|requires? a dpop proof|must use dpop|header is empty|jkt is required"
            r"|has to have a dpop",
        ),
        ("proof_signature", r"signature"),
        ("htm_mismatch", r"\bhtm\b|method.{0,12}mismatch"),
        (
            "htu_mismatch",
            r"\bhtu\b|ur[il] mismatch|malformed http url|ur[il] does(?: not|n't) match",
        ),
        (
            "iat",
            r"\biat\b|proof (?:is |has )?(?:not active|expired|too old|stale)|issued at|timestamp"
            r"|clock|skew|proof.{0,30}(?:future|window|expired|too old)",
        ),
        ("scope", r"insufficient_scope|(?:missing|insufficient|required).{0,12}\bscope"),
        (
            "access_token_invalid",
            r"token.{0,30}(?:expired|revoked|inactive|not active|unknown|not found)"
            r"|\baud(?:ience)?\b|\bissuer\b",
        ),
    )
]

# RFC 6749 section 5.2, RFC 6750 section 3.1, RFC 9449 section 12.2.
_CODES = frozenset(
    {
        *("invalid_request", "invalid_token", "invalid_dpop_proof", "use_dpop_nonce"),
        *("invalid_grant", "invalid_client", "insufficient_scope", "invalid_scope"),
    }
)
_NO_OTHER = ("invalid_scope", "unsupported_grant_type", "unauthorized_client", "invalid_target")


def named(case: Case) -> list[str]:
    """The causes that the server names: one, several if it means any of them, or none."""
    if not _is_of_authorization(case):
        return []
    if "use_dpop_nonce" in case.errors and not case.description:
        return [nonce_cause(case)]
    for family, pattern in _WORDS:
        if pattern.search(case.words):
            return _resolved(family, case)
    return [nonce_cause(case)] if "use_dpop_nonce" in case.errors else []


def _is_of_authorization(case: Case) -> bool:
    """Whether it is OAuth that refuses: an API's own words of signatures or methods are others."""
    return (
        case.exchange.status == 401
        or not _CODES.isdisjoint(case.errors)
        or "dpop" in case.words
        or "proof" in case.words
    )


def is_of_something_else(case: Case) -> bool:
    """Whether the error's code is of OAuth's and can't be of DPoP."""
    return any(error in _NO_OTHER for error in case.errors)


def _resolved(family: str, case: Case) -> list[str]:
    if family == "several":
        return ["several_proofs"]
    if family == "no_proof" and case.has_proof and "invalid" in case.description.lower():
        # Spring's words for anything but one proof: "is missing or invalid".
        return ["several_proofs"] if len(case.proofs) > 1 else []
    if family == "proof_signature" and "proof" not in case.words and _is_signed(case):
        return ["access_token_invalid"] if case.access_token else []
    if family == "iat":
        return [iat_cause(case)]
    if family == "nonce":
        return [nonce_cause(case)]
    if family == "binding":
        # oidc-provider's words for whatever is wrong with a proof as a JWS.
        if "invalid_dpop_proof" in case.errors:
            return ["proof_signature", "proof_malformed", "alg_not_accepted", "several_proofs"]
        return [key_cause(case)]
    if family == "key":
        return [key_cause(case)]
    return [family]


def _is_signed(case: Case) -> bool:
    return case.proof is not None and case.sources.is_signed(case.proofs[0]) is True


def nonce_cause(case: Case) -> str:
    """Which of the nonce's causes it is, of a server that says it is one."""
    nonce = case.claim("nonce")
    if nonce is None:
        return "nonce_missing"
    return "nonce_of_another_server" if nonce_is_foreign(case) else "nonce_stale"


def nonce_is_foreign(case: Case) -> bool:
    """Whether the proof's nonce came from another server."""
    nonce, here = case.claim("nonce"), case.exchange.origin.partition("//")[2]
    givers = {origin.partition("//")[2] for origin in case.givers}
    if givers:
        return here not in givers
    offered = case.offered_nonce
    if not isinstance(nonce, str) or offered is None:
        return False
    # A server's nonces are of one form, more or less: an old one isn't of another.
    shorter, longer = sorted((len(nonce), len(offered)))
    return longer >= FOREIGN * shorter


def iat_cause(case: Case) -> str:
    """Whether `iat` lies behind or ahead; where nobody knows the time, behind is likelier."""
    age, iat = case.age_s, number(case.claim("iat"))
    if age is not None:
        return "iat_ahead" if age < 0 else "iat_old"
    # A proof that is ahead of the present was ahead of whatever was before it.
    is_ahead = iat is not None and iat > case.sources.latest
    return (
        "iat_ahead"
        if is_ahead or "future" in case.words or "in the past" in case.words
        else "iat_old"
    )


def key_cause(case: Case) -> str:
    """What is bound to another key."""
    return grant_cause(case) if case.is_token_request else "access_token_of_another_key"


SHORTEST_CODE_REQUEST = 150
LONGEST_CODE_REQUEST = 500
"""Bytes of a body with a code: it has a code, a redirect_uri and a code_verifier too (RFC 7636);
one with a refresh token has that and a client_id, unless the refresh token is a JWT."""


def grant_cause(case: Case) -> str:
    """What a token request presents, as far as it can be seen."""
    if case.grant == "refresh_token":
        return "refresh_token_of_another_key"
    if case.grant == "authorization_code" or case.is_pushed or re.search(r"\bcode\b", case.words):
        return "code_of_another_key"
    length = next(iter(case.exchange.sent("Content-Length")), "")
    if length.isdecimal() and SHORTEST_CODE_REQUEST <= int(length) <= LONGEST_CODE_REQUEST:
        return "code_of_another_key"
    return "refresh_token_of_another_key"

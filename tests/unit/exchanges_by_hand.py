"""Exchanges as `curl -v` shows them, built one by one in the wording of servers' own sources.

What real servers answered, with curl that ran, is in tests/exchanges.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from dpop_agent.client.explaining.case import Known
from dpop_agent.jose import access_token_hash, b64url
from tests.vectors import SoftKey

NOW = 1_795_730_400  # Thu, 26 Nov 2026 22:00:00 GMT
DATE = "Thu, 26 Nov 2026 22:00:00 GMT"
AS, API = "https://as.example", "https://api.example"
TOKEN = f"{AS}/token"
ME = f"{API}/v1/me"

KEY, OLD, GONE, ASSERTION = (SoftKey(seed=seed) for seed in (1, 2, 3, 4))
KNOWN = [
    Known("default", 1, "destroyed", GONE.jkt),
    Known("default", 2, "draining", OLD.jkt),
    Known("default", 3, "active", KEY.jkt),
]
OPAQUE = "UXv2oKOL0E-XHzBvVTjFw-kNM9-kVDbVGfiDvq_GBNd"
NONCE, NEWER, FOREIGN = "n" * 21 + "A", "n" * 21 + "B", "n" * 42 + "C"

Headers = tuple[tuple[str, str], ...]


def jwt(key: SoftKey, header: dict[str, Any], claims: dict[str, Any]) -> str:
    return _signed(key, ".".join(b64url(json.dumps(part).encode()) for part in (header, claims)))


@cache
def _signed(key: SoftKey, signing_input: str) -> str:
    """The same one each time, for ECDSA's signatures are never twice the same."""
    return key.complete(signing_input)


def proof(
    htm: str = "GET",
    htu: str = ME,
    *,
    key: SoftKey = KEY,
    access_token: str | None = None,
    header: dict[str, Any] | None = None,
    without: str = "",
    age: int = 0,
    **claims: Any,
) -> str:
    """A proof, with what is to be wrong in it."""
    whole = {"jti": "jti-of-this-very-proof", "htm": htm, "htu": htu, "iat": NOW - age}
    if access_token is not None:
        whole["ath"] = access_token_hash(access_token)
    whole |= claims
    whole.pop(without, None)
    return jwt(key, {"typ": "dpop+jwt", "alg": key.alg, "jwk": key.jwk} | (header or {}), whole)


def access_token(key: SoftKey | None = KEY, **claims: Any) -> str:
    """A JWT access token, bound to a key or not."""
    cnf = {} if key is None else {"cnf": {"jkt": key.jkt}}
    whole = {"iss": AS, "aud": API, "sub": "alice", "iat": NOW - 60, "exp": NOW + 240}
    return jwt(ASSERTION, {"typ": "at+jwt", "alg": "ES256"}, whole | cnf | claims)


BOUND = access_token()


def curl(
    url: str,
    *proofs: str,
    token: str | None = None,
    scheme: str = "DPoP",
    method: str = "GET",
    status: str = "401 Unauthorized",
    answer: object = None,
    date: bool = True,
    sent: Headers = (),
    got: Headers = (),
    form: str | None = None,
) -> str:
    """What curl -v writes of one request, the body on standard output mixed in."""
    origin, _, path = url.partition("://")[2].partition("/")
    secure = url.startswith("https")
    port = 443 if secure else 80
    out = []
    if form is not None:
        out.append(f"$ curl -v -d '{form}' {url}")
    out += [f"*   Trying 192.0.2.7:{port}...", f"* Connected to {origin} (192.0.2.7) port {port}"]
    if secure:
        out += ["* ALPN: curl offers h2,http/1.1", "} [512 bytes data]"]
        out.append("* SSL connection using TLSv1.3 / TLS_AES_256_GCM_SHA384")
    out += [f"> {method} /{path} HTTP/1.1", f"> Host: {origin}", "> Accept: */*"]
    out += [f"> DPoP: {each}" for each in proofs]
    if token is not None:
        out.append(f"> Authorization: {scheme} {token}")
    out += [*(f"> {name}: {value}" for name, value in sent), "> ", f"< HTTP/1.1 {status}"]
    if date:
        out.append(f"< Date: {DATE}")
    out += [*(f"< {name}: {value}" for name, value in got), "< "]
    body = "" if answer is None else answer if isinstance(answer, str) else json.dumps(answer)
    return "\n".join([*out, f"{body}* Connection #0 to host {origin} left intact", ""])


def resource(*proofs: str, token: str | None = BOUND, url: str = ME, **options: Any) -> str:
    return curl(url, *proofs, token=token, **options)


def token_request(*proofs: str, url: str = TOKEN, **options: Any) -> str:
    options.setdefault("status", "400 Bad Request")
    return curl(url, *proofs, method="POST", **options)


def challenge(error: str, description: str = "", more: str = "") -> Headers:
    said = f', error_description="{description}"' if description else ""
    return (("WWW-Authenticate", f'DPoP error="{error}"{said}{more}'),)


def error(code: str, description: str | None = None) -> dict[str, str]:
    return {"error": code} | ({} if description is None else {"error_description": description})


def at(htm: str = "POST", htu: str = TOKEN, **options: Any) -> str:
    """A proof for the token endpoint."""
    return proof(htm, htu, **options)


class Row(NamedTuple):
    cause: str | None
    server: str
    make: Callable[[], str]
    metadata: dict[str, Any] | None = None


def keycloak(description: str, *proofs: str, **options: Any) -> str:
    """Its token endpoint, which has no Date."""
    answer = error("invalid_request", description)
    return token_request(*proofs, answer=answer, date=False, **options)


def keycloak_userinfo(description: str, *proofs: str, **options: Any) -> str:
    got = challenge("invalid_token", description)
    return resource(*proofs, got=got, date=False, **options)


def spring(*proofs: str, **options: Any) -> str:
    """Its resource server, which says no more than that."""
    return resource(*proofs, got=challenge("invalid_dpop_proof"), **options)


def oidc_provider(code: str, description: str, *proofs: str, **options: Any) -> str:
    return token_request(*proofs, answer=error(code, description), **options)


def oidc_provider_me(code: str, description: str, *proofs: str, **options: Any) -> str:
    got = challenge(code, description, ', algs="ES256 PS256"')
    return resource(*proofs, got=got, answer=error(code, description), **options)


def better_auth(code: str, description: str, *proofs: str, **options: Any) -> str:
    """Challenges of Bearer's, for DPoP's errors."""
    got = (("WWW-Authenticate", f'Bearer error="{code}", error_description="{description}"'),)
    return resource(*proofs, got=got, **options)


def bluesky(code: str, description: str, *proofs: str, **options: Any) -> str:
    return token_request(*proofs, answer=error(code, description), **options)


def bluesky_pds(code: str, description: str, *proofs: str, **options: Any) -> str:
    """`algs=` comes before `error=`."""
    params = f'DPoP algs="RS256 ES256", error="{code}", error_description="{description}"'
    answer = {"error": code, "message": description}
    return resource(*proofs, got=(("WWW-Authenticate", params),), answer=answer, **options)


def auth0(code: str, description: str, *proofs: str, **options: Any) -> str:
    params = f'error="{code}", error_description="{description}", algs="ES256"'
    got = (("WWW-Authenticate", f'Bearer realm="api", DPoP {params}'),)
    return resource(*proofs, got=got, **options)


def okta(code: str, description: str, *proofs: str, **options: Any) -> str:
    params = (
        f'DPoP algs="RS256 RS384 ES256", authorization_uri="{API}/oauth2/v1/authorize", '
        f'realm="{API}", error="{code}", error_description="{description}"'
    )
    options.setdefault("status", "400 Bad Request")
    return resource(*proofs, got=(("WWW-Authenticate", params),), **options)


def rs(*, key: SoftKey = KEY, token: str = BOUND, **options: Any) -> str:
    """A proof for the API."""
    return proof(key=key, access_token=token, **options)


def unsigned(whole: str) -> str:
    """A proof whose signature is another's."""
    return whole.rpartition(".")[0] + "." + rs(key=OLD).rpartition(".")[2]


ES384 = SoftKey("ES384")
PRIVATE = {"jwk": KEY.jwk | {"d": "c2VjcmV0LXByaXZhdGUtcGFydA"}}
REFRESH = "grant_type=refresh_token&refresh_token=rt-very-secret-refresh&client_id=c"
CODE = "grant_type=authorization_code&code=a-very-secret-code&code_verifier=very-secret-verifier"
ISSUED = {"access_token": OPAQUE, "token_type": "DPoP", "expires_in": 300}
OK = "200 OK"


def got_with(key: SoftKey) -> str:
    """The token request that an opaque access token came from."""
    return token_request(at(key=key), status=OK, answer=ISSUED)


BROKEN: list[Row] = [
    Row("no_proof", "Keycloak", lambda: keycloak("DPoP proof is missing")),
    Row(
        "no_proof",
        "oidc-provider",
        lambda: oidc_provider("invalid_grant", "grant request is invalid", form=REFRESH),
    ),
    Row(
        "no_proof",
        "oidc-provider userinfo",
        lambda: oidc_provider_me("invalid_request", "`DPoP` header not provided", token=OPAQUE),
    ),
    Row(
        "no_proof",
        "Okta",
        lambda: token_request(
            answer=error("invalid_dpop_proof", "The DPoP proof JWT header is missing.")
        ),
    ),
    Row(
        "no_proof",
        "better-auth",
        lambda: better_auth("invalid_token", "DPoP proof header is required"),
    ),
    Row(
        "several_proofs",
        "Auth0",
        lambda: auth0("invalid_request", "Multiple DPoP headers are not allowed", rs(), rs()),
    ),
    Row(
        "several_proofs",
        "oidc-provider",
        lambda: oidc_provider("invalid_dpop_proof", "invalid DPoP key binding", f"{at()}, {at()}"),
    ),
    Row(
        "several_proofs",
        "Spring",
        lambda: resource(
            rs(), rs(), got=challenge("invalid_request", "DPoP proof is missing or invalid.")
        ),
    ),
    Row(
        "assertion_key",
        "better-auth",
        lambda: token_request(
            at(),
            status="401 Unauthorized",
            answer=error("invalid_client", "client assertion signature verification failed"),
        ),
    ),
    Row(
        "scope",
        "better-auth",
        lambda: resource(rs(), answer=error("invalid_scope", "Missing required scope")),
    ),
    Row(
        "several_proofs",
        "Bluesky",
        lambda: bluesky(
            "invalid_dpop_proof", "DPoP header must contain a single proof", at(), at()
        ),
    ),
    Row(
        "proof_malformed",
        "Keycloak",
        lambda: keycloak("Invalid or missing type in DPoP header: JWT", at(header={"typ": "JWT"})),
    ),
    Row(
        "proof_malformed",
        "oidc-provider",
        lambda: oidc_provider("invalid_dpop_proof", "invalid DPoP key binding", at(header=PRIVATE)),
    ),
    Row(
        "proof_malformed",
        "better-auth",
        lambda: better_auth(
            "invalid_token",
            "DPoP proof must include htm, htu, jti, and iat claims",
            rs(without="jti"),
        ),
    ),
    Row("proof_malformed", "Spring", lambda: spring(rs(header={"jwk": None}))),
    Row(
        "proof_signature",
        "Keycloak",
        lambda: keycloak("DPoP verification failure: Invalid token signature", unsigned(at())),
    ),
    Row(
        "proof_signature",
        "oidc-provider",
        lambda: oidc_provider("invalid_dpop_proof", "invalid DPoP key binding", unsigned(at())),
    ),
    Row("proof_signature", "Spring", lambda: spring(unsigned(rs()))),
    Row(
        "access_token_missing",
        "oidc-provider",
        lambda: oidc_provider_me(
            "invalid_request",
            "no access token provided",
            rs(),
            token=None,
            status="400 Bad Request",
        ),
    ),
    Row(
        "access_token_missing",
        "Quarkus",
        lambda: resource(rs(), token=None, got=(("WWW-Authenticate", "DPoP"),)),
    ),
    Row(
        "access_token_not_bound",
        "Auth0",
        lambda: auth0(
            "invalid_request",
            "Operation indicated DPoP use but the JWT Access Token has no jkt confirmation claim",
            rs(token=access_token(None)),
            token=access_token(None),
        ),
    ),
    Row(
        "access_token_not_bound",
        "Spring",
        lambda: spring(rs(token=access_token(None)), token=access_token(None)),
    ),
    Row(
        "access_token_not_bound",
        "better-auth",
        lambda: better_auth(
            "invalid_token",
            "DPoP authorization requires a DPoP-bound access token",
            rs(token=OPAQUE),
            token=OPAQUE,
        ),
    ),
    Row(
        "access_token_of_another_key",
        "Keycloak",
        lambda: keycloak_userinfo(
            "DPoP confirmation doesn't match DPoP proof",
            rs(token=access_token(OLD)),
            token=access_token(OLD),
        ),
    ),
    Row(
        "access_token_of_another_key",
        "Spring",
        lambda: spring(rs(token=access_token(GONE)), token=access_token(GONE)),
    ),
    Row(
        "access_token_of_another_key",
        "Bluesky",
        lambda: bluesky_pds(
            "invalid_token", "Invalid DPoP key binding", rs(token=OPAQUE), token=OPAQUE
        ),
    ),
    Row(
        "access_token_of_another_key",
        "oidc-provider",
        lambda: (
            got_with(OLD)
            + oidc_provider_me(
                "invalid_token", "invalid token provided", rs(token=OPAQUE), token=OPAQUE
            )
        ),
    ),
    Row(
        "access_token_invalid",
        "oidc-provider",
        lambda: oidc_provider_me(
            "invalid_token", "invalid token provided", rs(token=OPAQUE), token=OPAQUE
        ),
    ),
    Row(
        "access_token_invalid",
        "Spring",
        lambda: resource(
            rs(token=access_token(exp=NOW - 90)),
            token=access_token(exp=NOW - 90),
            answer=error("invalid_token"),
        ),
    ),
    Row(
        "access_token_invalid",
        "Bluesky",
        lambda: bluesky_pds("invalid_token", "Token expired", rs(token=OPAQUE), token=OPAQUE),
    ),
    Row(
        "ath_missing",
        "Keycloak",
        lambda: keycloak_userinfo("No access token hash in DPoP proof", proof()),
    ),
    Row("ath_missing", "Spring", lambda: spring(proof())),
    Row(
        "ath_missing",
        "Auth0",
        lambda: auth0("invalid_dpop_proof", 'Missing \\"ath\\" claim in DPoP proof', proof()),
    ),
    Row(
        "ath_mismatch",
        "Bluesky",
        lambda: bluesky_pds("invalid_dpop_proof", 'DPoP \\"ath\\" mismatch', rs(token=OPAQUE)),
    ),
    Row("ath_mismatch", "Spring", lambda: spring(rs(token=OPAQUE))),
    Row(
        "ath_unexpected",
        "Bluesky",
        lambda: bluesky(
            "invalid_dpop_proof", 'DPoP "ath" claim not allowed', at(access_token=OPAQUE)
        ),
    ),
    Row(
        "ath_unexpected",
        "a server of few words",
        lambda: token_request(at(access_token=OPAQUE), answer=error("invalid_dpop_proof")),
    ),
    Row("htm_mismatch", "Keycloak", lambda: keycloak("DPoP HTTP method mismatch", at("GET"))),
    Row(
        "htm_mismatch",
        "Auth0",
        lambda: auth0("invalid_dpop_proof", "DPoP Proof htm mismatch", rs(htm="POST")),
    ),
    Row("htm_mismatch", "Spring", lambda: spring(rs(htm="get"))),
    Row(
        "htu_mismatch",
        "Keycloak behind a proxy",
        lambda: keycloak("DPoP HTTP URL mismatch", at()),
        {"issuer": "http://kc.internal:8080", "token_endpoint": "http://kc.internal:8080/token"},
    ),
    Row("htu_mismatch", "Spring, another base path", lambda: spring(rs(htu=f"{API}/me"))),
    Row("htu_mismatch", "Spring, a slash", lambda: spring(rs(htu=f"{ME}/"))),
    Row(
        "htu_mismatch",
        "Nimbus, an escape",
        lambda: spring(rs(htu=f"{API}/v1/caf%C3%A9"), url=f"{API}/v1/café"),
    ),
    Row(
        "htu_mismatch",
        "better-auth, a port",
        lambda: better_auth(
            "invalid_token",
            "DPoP proof htu does not match the request URL",
            rs(htu="https://api.example:8443/v1/me"),
        ),
    ),
    Row(
        "htu_mismatch",
        "Okta, http for https",
        lambda: okta(
            "invalid_dpop_proof",
            "'htu' claim in the DPoP proof JWT is invalid.",
            rs(htu="http://api.example/v1/me"),
        ),
    ),
    Row(
        "htu_mismatch",
        "oidc-provider, after a redirect",
        lambda: (
            resource(rs(), status="302 Found", got=(("Location", "/v2/me"),))
            + oidc_provider_me(
                "invalid_dpop_proof", "DPoP proof htu mismatch", rs(), url=f"{API}/v2/me"
            )
        ),
    ),
    Row(
        "nonce_missing",
        "oidc-provider",
        lambda: oidc_provider(
            "use_dpop_nonce",
            "nonce is required in the DPoP proof",
            at(),
            got=(("DPoP-Nonce", NONCE),),
        ),
    ),
    Row(
        "nonce_missing",
        "Okta",
        lambda: token_request(
            at(),
            answer=error("use_dpop_nonce", "Authorization server requires nonce in DPoP proof."),
            got=(("dpop-nonce", NONCE),),
        ),
    ),
    Row(
        "nonce_stale",
        "oidc-provider",
        lambda: oidc_provider(
            "use_dpop_nonce",
            "invalid nonce in DPoP proof",
            at(nonce=NONCE),
            got=(("DPoP-Nonce", NEWER),),
        ),
    ),
    Row(
        "nonce_stale",
        "Bluesky",
        lambda: bluesky_pds("use_dpop_nonce", 'DPoP \\"nonce\\" mismatch', rs(nonce=NONCE)).replace(
            "< Date", f"< DPoP-Nonce: {NEWER}\n< Date"
        ),
    ),
    Row(
        "nonce_of_another_server",
        "oidc-provider",
        lambda: (
            token_request(at(), answer=error("use_dpop_nonce"), got=(("DPoP-Nonce", NONCE),))
            + oidc_provider_me("use_dpop_nonce", "invalid nonce in DPoP proof", rs(nonce=NONCE))
        ),
    ),
    Row(
        "nonce_of_another_server",
        "Bluesky",
        lambda: bluesky(
            "use_dpop_nonce",
            'DPoP "nonce" mismatch',
            at(nonce=FOREIGN),
            got=(("DPoP-Nonce", NONCE),),
        ),
    ),
    Row(
        "nonce_unexpected",
        "oidc-provider",
        lambda: oidc_provider(
            "invalid_dpop_proof", "DPoP nonces are not supported", at(nonce=NONCE)
        ),
    ),
    Row(
        "nonce_unexpected",
        "another",
        lambda: auth0("invalid_dpop_proof", "unexpected nonce in DPoP proof", rs(nonce=NONCE)),
    ),
    Row("iat_old", "Keycloak", lambda: keycloak("DPoP proof is not active", at(age=25))),
    Row("iat_old", "Spring", lambda: spring(rs(age=61))),
    Row(
        "iat_old",
        "better-auth",
        lambda: better_auth(
            "invalid_token", "DPoP proof iat is outside the accepted window", rs(age=400)
        ),
    ),
    Row(
        "iat_old",
        "oidc-provider",
        lambda: oidc_provider(
            "use_dpop_nonce",
            "DPoP proof iat is not recent enough, use a DPoP nonce instead",
            at(age=400),
            got=(("DPoP-Nonce", NONCE),),
        ),
    ),
    Row("iat_ahead", "Spring", lambda: spring(rs(age=-90))),
    Row(
        "iat_ahead",
        "Bluesky",
        lambda: bluesky(
            "invalid_dpop_proof",
            'Failed to verify DPoP proof: "iat" claim timestamp check failed '
            "(it should be in the past)",
            at(age=-400),
        ),
    ),
    Row(
        "iat_ahead",
        "Auth0",
        lambda: auth0(
            "invalid_dpop_proof",
            'DPoP proof \\"iat\\" is outside the acceptable range',
            rs(age=-40),
        ),
    ),
    Row(
        "alg_not_accepted",
        "Keycloak",
        lambda: keycloak("Unsupported DPoP algorithm: Ed25519", at()),
    ),
    Row(
        "alg_not_accepted",
        "oidc-provider",
        lambda: oidc_provider_me("invalid_dpop_proof", "invalid DPoP key binding", rs(key=ES384)),
    ),
    Row(
        "alg_not_accepted",
        "a server of few words, with metadata",
        lambda: token_request(at(key=ES384), answer=error("invalid_dpop_proof")),
        {"dpop_signing_alg_values_supported": ["ES256"]},
    ),
    Row("jti_seen", "Keycloak", lambda: keycloak("DPoP proof has already been used", at())),
    Row(
        "jti_seen",
        "oidc-provider",
        lambda: oidc_provider_me("invalid_token", "DPoP proof JWT Replay detected", rs()),
    ),
    Row(
        "jti_seen", "Spring, twice in one output", lambda: resource(rs(), status=OK) + spring(rs())
    ),
    Row(
        "jti_seen",
        "Okta",
        lambda: okta("invalid_dpop_proof", "The DPoP proof JWT has already been used.", rs()),
    ),
    Row(
        "token_type_bearer",
        "a server without DPoP",
        lambda: token_request(at(), status=OK, answer=ISSUED | {"token_type": "Bearer"}),
    ),
    Row(
        "token_type_bearer",
        "Keycloak, for a client that may not",
        lambda: token_request(
            at(), status=OK, date=False, answer=ISSUED | {"token_type": "bearer"}
        ),
    ),
    Row(
        "scheme_bearer",
        "Auth0",
        lambda: auth0(
            "invalid_request",
            "Operation indicated DPoP use but the request's Authorization HTTP Header scheme "
            "is not DPoP",
            rs(),
            scheme="Bearer",
        ),
    ),
    Row(
        "scheme_bearer",
        "Keycloak",
        lambda: keycloak_userinfo(
            "The access token type is DPoP but Authorization Header is not DPoP", scheme="Bearer"
        ),
    ),
    Row(
        "scheme_bearer",
        "Spring",
        lambda: resource(
            scheme="Bearer", got=(("WWW-Authenticate", 'Bearer error="invalid_token"'),)
        ),
    ),
    Row(
        "assertion_key",
        "Bluesky",
        lambda: bluesky(
            "invalid_request",
            "The DPoP proof must be signed with a different key than the client assertion",
            at(),
        ),
    ),
    Row(
        "assertion_key",
        "oidc-provider",
        lambda: oidc_provider("invalid_client", "client authentication failed", at()),
    ),
    Row(
        "refresh_token_of_another_key",
        "Bluesky",
        lambda: bluesky(
            "invalid_grant", "DPoP proof does not match the expected JKT", at(), form=REFRESH
        ),
    ),
    Row(
        "refresh_token_of_another_key",
        "oidc-provider",
        lambda: oidc_provider("invalid_grant", "grant request is invalid", at(), form=REFRESH),
    ),
    Row(
        "code_of_another_key",
        "Keycloak",
        lambda: keycloak(
            "DPoP Proof public key thumbprint does not match dpop_jkt", at(), form=CODE
        ),
    ),
    Row(
        "code_of_another_key",
        "oidc-provider",
        lambda: oidc_provider("invalid_grant", "grant request is invalid", at(), form=CODE),
    ),
    Row(
        "server_error",
        "Keycloak",
        lambda: token_request(
            at(), status="500 Internal Server Error", date=False, answer=error("unknown_error")
        ),
    ),
    Row(
        "server_error",
        "oidc-provider",
        lambda: token_request(
            at(),
            status="500 Internal Server Error",
            answer=error("server_error", "oops! something went wrong"),
        ),
    ),
    Row(
        "iat_old",
        "a server that fails instead",
        lambda: token_request(at(age=70), status="500 Internal Server Error"),
    ),
    Row(
        "scope",
        "oidc-provider",
        lambda: oidc_provider_me("insufficient_scope", "access token missing openid scope", rs()),
    ),
    Row(
        "scope",
        "Auth0",
        lambda: auth0("insufficient_scope", "Insufficient Scope", rs(), status="403 Forbidden"),
    ),
]

GOOD: list[tuple[str, Callable[[], str]]] = [
    ("an access token", lambda: token_request(at(), status=OK, answer=ISSUED)),
    ("one without a Date", lambda: token_request(at(), status=OK, answer=ISSUED, date=False)),
    ("a resource", lambda: resource(rs(), status=OK, answer={"sub": "alice"})),
    ("an opaque access token", lambda: resource(rs(token=OPAQUE), token=OPAQUE, status=OK)),
    ("no content", lambda: resource(rs(), status="204 No Content")),
    (
        "a pushed request",
        lambda: token_request(at(htu=f"{AS}/par"), url=f"{AS}/par", status="201 Created"),
    ),
    (
        "a challenge that was answered",
        lambda: (
            token_request(at(), answer=error("use_dpop_nonce"), got=(("DPoP-Nonce", NONCE),))
            + token_request(at(nonce=NONCE, jti="another-jti"), status=OK, answer=ISSUED)
        ),
    ),
    (
        "another access token and the resource",
        lambda: got_with(KEY) + resource(rs(token=OPAQUE), token=OPAQUE, status=OK),
    ),
    (
        "a draining generation",
        lambda: resource(rs(key=OLD, token=access_token(OLD)), token=access_token(OLD), status=OK),
    ),
    ("a redirect", lambda: resource(rs(), status="302 Found", got=(("Location", "/x"),))),
    ("an unchanged resource", lambda: resource(rs(), status="304 Not Modified")),
    (
        "a fresh nonce beside the answer",
        lambda: resource(rs(), status=OK, got=(("DPoP-Nonce", NEWER),)),
    ),
    ("a query", lambda: resource(rs(), url=f"{ME}?page=2&token=secret", status=OK)),
    ("a page of text", lambda: resource(rs(), status=OK, answer="<html>\n* not curl's\n</html>\n")),
    ("what isn't there", lambda: resource(rs(), status="404 Not Found", answer=error("not_found"))),
    (
        "an API's own words",
        lambda: resource(
            rs(),
            status="400 Bad Request",
            answer={"error": "bad_webhook", "message": "the signature is missing; no such method"},
        ),
    ),
    ("what isn't allowed", lambda: resource(rs(), status="403 Forbidden", answer={"title": "no"})),
    ("too many requests", lambda: resource(rs(), status="429 Too Many Requests")),
    ("a conflict", lambda: resource(rs(), status="409 Conflict", answer={"error": "conflict"})),
]

MANGLED: list[tuple[str, str, int | None]] = [
    ("nothing", "", None),
    ("blanks", " \n\t\r\n", None),
    ("prose", "it doesn't work\nplease help\n", 1),
    ("HTML", "<html><body>401</body></html>", 1),
    ("JSON alone", '{"error":"invalid_token"}', 1),
    ("zero bytes", "\0\0\0", 1),
    ("a proof alone", proof(), 1),
    ("a response alone", "< HTTP/1.1 401 Unauthorized\n< Date: x\n< \n", None),
    ("a raw response alone", 'HTTP/1.1 401 Unauthorized\nWWW-Authenticate: DPoP error="x"\n', None),
    ("a request alone", "> GET /me HTTP/1.1\n> Host: api.example\n> \n", 1),
    ("curl that couldn't connect", "*   Trying 192.0.2.7:443...\n* connect failed\n", 1),
    ("a request without its first line", "> Host: a\n> DPoP: x\n> \n< HTTP/1.1 401 x\n", 1),
    ("no status", "> GET / HTTP/1.1\n> Host: a\n> \n< Date: x\n< \n", 4),
    ("a header without a colon", "> GET / HTTP/1.1\n> Host a\n> \n< HTTP/1.1 401 x\n", 2),
    ("a header of the answer", "> GET / HTTP/1.1\n> Host: a\n> \n< HTTP/1.1 401 x\n< so\n", 5),
    ("two answers", "> GET / HTTP/1.1\n> Host: a\n> \n< HTTP/1.1 401 x\n< \n< HTTP/1.1 200 x\n", 6),
    ("the last request has no answer", resource(rs()) + "> GET / HTTP/1.1\n> Host: a\n> \n", 16),
    (
        "--trace-ascii",
        "== Info: Trying\n=> Send header, 99 bytes (0x63)\n0000: GET / HTTP/1.1\n",
        1,
    ),
    ("only the proxy's answer", "> CONNECT a:443 HTTP/1.1\n> Host: a\n> \n< HTTP/1.1 407 x\n", 1),
    ("a command alone", "$ curl -v https://api.example/me \\\n  -H 'DPoP: x'\n", None),
    ("a HAR file", '{"log":{"entries":[{"request":{"method":"GET"}}]}}', 1),
    ("lines in reverse", "\n".join(reversed(resource(rs()).splitlines())), 4),
    ("a raw header without a colon", "GET / HTTP/1.1\nHost a\n\nHTTP/1.1 401 x\n", 2),
]
"""Name, text, and the line that is named, if it is one."""

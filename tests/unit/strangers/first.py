"""What strangers met: servers' words, each with the cause that it was."""

# ruff: noqa: E501  (a case is a row: what was said, and what was sent)
# fmt: off

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.unit.strangers.shown import (
    NOW,
    Hop,
    assertion,
    at,
    coloured,
    curl_1,
    curl_8,
    curl_8_14,
    curl_768,
    curl_788,
    curl_i,
    curl_mac,
    curl_old_mac,
    curl_windows,
    entities,
    hop,
    httpie,
    indented,
    key,
    postman,
    powershell,
    prompted,
    proof,
    raw,
    raw_absolute,
    stamped,
    stripped,
    wrapped,
)

Shown = Callable[[Hop], Any]


class Case(NamedTuple):
    name: str
    causes: str
    """What may be named first, by spaces; none for a good one."""
    shown: Shown
    hops: list[Hop]


KC = "https://sso.example.com/realms/acme/protocol/openid-connect"
OP = "https://op.example.com"
BSKY = "https://bsky.social"
PDS = "https://velvetfoot.us-east.host.bsky.network/xrpc/app.bsky.actor.getProfile?actor=a.bsky.social"
PDS_HTU = PDS.partition("?")[0]
API = "https://api.example.com/v1/orders"
OKTA = "https://acme.okta.com/oauth2/v1/token"
CC = "grant_type=client_credentials&scope=read"
CODE = "grant_type=authorization_code&code=SplxlOBeZQQYbYS6WxSbIA&code_verifier=dBjftJeZ4CVP&client_id=c1"
REFRESH = "grant_type=refresh_token&refresh_token=8xLOxBtZp8tGgJ1&client_id=c1"
OPAQUE = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"
SPRING_ALGS = 'algs="RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512"'
BSKY_ALGS = 'algs="RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES256K ES384 ES512"'
DECODE = "An error occurred while attempting to decode the Jwt: "


def error(code: str, said: str | None = None) -> dict[str, Any]:
    return {"error": code, **({} if said is None else {"error_description": said})}


def keycloak(said: str, dpop: str | list[str] | None, **more: Any) -> Hop:
    more = {"form": CC, "json_": error("invalid_request", said), "date": None, **more}
    url = more.pop("url", f"{KC}/token")
    return hop("POST", url, "400 Bad Request", dpop=dpop, **more)


def spring(said: str, dpop: str | list[str] | None, token: str, **more: Any) -> Hop:
    code = more.pop("code", "invalid_dpop_proof")
    www = f'DPoP error="{code}", error_description="{said}", error_uri="https://tools.ietf.org/html/rfc6750#section-3.1", {SPRING_ALGS}'
    more = {"auth": f"DPoP {token}", "www": www, "got": [("X-Content-Type-Options", "nosniff")]} | more
    return hop(more.pop("method", "GET"), more.pop("url", API), "401 Unauthorized", dpop=dpop, **more)


def op(code: str, said: str | None, dpop: str | list[str] | None, **more: Any) -> Hop:
    more = {"form": CC, "json_": error(code, said)} | more
    status = more.pop("status", "400 Bad Request")
    return hop("POST", more.pop("url", f"{OP}/token"), status, dpop=dpop, **more)


def pds(code: str, said: str, dpop: str | None, token: str, **more: Any) -> Hop:
    www = f'DPoP {BSKY_ALGS}, error="{code}", error_description="{said}"'
    more = {"auth": f"DPoP {token}", "www": www, "json_": {"error": code, "message": said}} | more
    return hop("GET", PDS, "401 Unauthorized", dpop=dpop, **more)


def auth0(code: str, said: str, dpop: Any, auth: str, **more: Any) -> Hop:
    www = f'Bearer realm="api", DPoP error="{code}", error_description="{said}", algs="ES256"'
    more = {"www": www, "json_": {"message": said}, "got": [("X-Powered-By", "Express")]} | more
    status = more.pop("status", "401 Unauthorized")
    return hop(more.pop("method", "GET"), more.pop("url", API), status, dpop=dpop, auth=auth, **more)


def okta(code: str, said: str, dpop: str | None, **more: Any) -> Hop:
    more = {"form": CC, "json_": error(code, said), "got": [("Server", "nginx")]} | more
    return hop("POST", OKTA, "400 Bad Request", dpop=dpop, **more)


def mine(url: str, method: str = "POST", **more: Any) -> str:
    return proof(method, url, **more)


def _with(made: str, change: Callable[[str], str]) -> str:
    head, body, signature = made.split(".")
    return f"{head}.{body}.{change(signature)}"


def broken() -> list[Case]:
    uri = f"{KC}/token"
    bound, other, loose = at(), at("other"), at(None)
    token = f"{OP}/token"
    replayed = mine(token)
    reused = mine(API, "GET", token=bound)
    private = {"jwk": key("mine").as_dict(private=True)}
    rows: list[tuple[str, str, Shown, Hop | list[Hop]]] = [
        # Keycloak
        ("kc-no-proof", "no_proof", curl_768, keycloak("DPoP proof is missing", None)),
        ("kc-htu", "htu_mismatch", curl_1, keycloak("DPoP HTTP URL mismatch", mine(uri), url="http://localhost:8080/realms/acme/protocol/openid-connect/token")),
        ("kc-htu-proxy", "htu_mismatch", curl_8, keycloak("DPoP HTTP URL mismatch", mine(uri))),
        ("kc-htm", "htm_mismatch", curl_8, keycloak("DPoP HTTP method mismatch", mine(uri, "GET"))),
        ("kc-inactive", "iat_old", curl_788, keycloak("DPoP proof is not active", mine(uri, iat=NOW - 90))),
        ("kc-replay", "jti_seen", curl_mac, keycloak("DPoP proof has already been used", mine(uri))),
        ("kc-alg", "alg_not_accepted", curl_8_14, keycloak("Unsupported DPoP algorithm: Ed25519", mine(uri, alg="Ed25519"))),
        ("kc-claims", "proof_malformed", curl_windows, keycloak("DPoP mandatory claims are missing", mine(uri, without="jti"))),
        ("kc-private", "proof_malformed", httpie, keycloak("Private key material must not be present in DPoP JWK", mine(uri, header=private))),
        ("kc-typ", "proof_malformed", curl_1, keycloak("Invalid or missing type in DPoP header: JWT", mine(uri, header={"typ": "JWT"}))),
        ("kc-signature", "proof_signature", curl_8, keycloak("DPoP verification failure: Invalid token signature", _with(mine(uri), lambda s: "A" * 10 + s[10:]))),
        ("kc-userinfo-bearer", "scheme_bearer", curl_8, hop("GET", f"{KC}/userinfo", "401 Unauthorized", auth=f"Bearer {bound}", dpop=mine(f"{KC}/userinfo", "GET", token=bound), date=None, www='Bearer realm="acme", error="invalid_token", error_description="Token verification failed"', json_=error("invalid_token", "Token verification failed"))),
        ("kc-userinfo-key", "access_token_of_another_key", raw, hop("GET", f"{KC}/userinfo", "401 Unauthorized", auth=f"DPoP {other}", dpop=mine(f"{KC}/userinfo", "GET", token=other), date=None, www='DPoP realm="acme", error="invalid_token", error_description="Token verification failed"', json_=error("invalid_token", "Token verification failed"))),
        ("kc-dpop-jkt", "code_of_another_key", curl_8, keycloak("DPoP Proof public key thumbprint does not match dpop_jkt", mine(uri), form=CODE)),
        ("kc-refresh", "refresh_token_of_another_key", curl_768, keycloak("", mine(uri), form=REFRESH, json_=error("invalid_grant", "DPoP proof and token binding verification failed"))),
        ("kc-500", "iat_old", curl_1, hop("POST", uri, "500 Internal Server Error", dpop=mine(uri, iat=NOW - 40), form=CC, json_=error("unknown_error", "For more on this error consult the server log."), got=[("Via", "1.1 proxy")])),
        # Spring Security
        ("spring-htu", "htu_mismatch", curl_windows, spring(DECODE + "The htu claim is not valid", mine(API, "GET", token=bound), bound)),
        ("spring-htm", "htm_mismatch", curl_1, spring(DECODE + "The htm claim is not valid", mine(API, token=bound), bound)),
        ("spring-replay", "jti_seen", raw_absolute, spring(DECODE + "jti claim is invalid.", mine(API, "GET", token=bound), bound)),
        ("spring-old", "iat_old", curl_8, spring(DECODE + "iat claim is invalid.", mine(API, "GET", token=bound), bound, date=NOW + 300)),
        ("spring-ahead", "iat_ahead", httpie, spring(DECODE + "iat claim is invalid.", mine(API, "GET", token=bound), bound, date=NOW - 120)),
        ("spring-ath", "ath_mismatch", curl_1, spring("ath claim is invalid.", mine(API, "GET", token=loose), bound)),
        ("spring-no-ath", "ath_missing", wrapped, spring("ath claim is required.", mine(API, "GET"), bound)),
        ("spring-jkt", "access_token_of_another_key", curl_8, spring("jkt claim is invalid.", mine(API, "GET", token=other), other)),
        ("spring-jkt-opaque", "access_token_of_another_key", curl_8, spring("jkt claim is invalid.", mine(API, "GET", token=OPAQUE), OPAQUE)),
        ("spring-unbound", "access_token_not_bound", curl_i, spring("jkt claim is required.", mine(API, "GET", token=loose), loose)),
        ("spring-eddsa", "alg_not_accepted", curl_8, hop("POST", "http://localhost:9000/oauth2/token", "400 Bad Request", form=CC, dpop=mine("http://localhost:9000/oauth2/token", alg="EdDSA"), json_=error("invalid_dpop_proof", DECODE + "Unsupported alg parameter in JWS Header: EdDSA"))),
        ("spring-no-proof", "no_proof", curl_1, spring("DPoP proof is missing or invalid.", None, bound, code="invalid_request")),
        ("spring-bearer", "scheme_bearer", prompted, spring("", None, bound, auth=f"Bearer {bound}", www='Bearer error="invalid_token", error_description="Invalid bearer token", error_uri="https://tools.ietf.org/html/rfc6750#section-3.1"')),
        # oidc-provider
        ("op-par-htu", "htu_mismatch", curl_8, op("invalid_dpop_proof", "DPoP proof htu mismatch", mine(token), url=f"{OP}/request")),
        ("op-nonce", "nonce_missing", curl_old_mac, op("use_dpop_nonce", "nonce is required in the DPoP proof", mine(token), nonce="8Uh1b2ReFXmVcEhT")),
        ("op-stale", "nonce_stale", curl_8, op("use_dpop_nonce", "invalid nonce in DPoP proof", mine(token, nonce="an-older-one"), nonce="8Uh1b2ReFXmVcEhT")),
        ("op-refresh-two", "refresh_token_of_another_key", curl_1, [
            hop("POST", token, "200 OK", dpop=mine(token, by="other"), form=CODE, json_={"access_token": OPAQUE, "token_type": "DPoP", "expires_in": 300, "refresh_token": "8xLOxBtZp8tGgJ1"}),
            op("invalid_grant", "grant request is invalid", mine(token), form=REFRESH)]),
        ("op-userinfo", "access_token_of_another_key", curl_8, hop("GET", f"{OP}/me", "401 Unauthorized", auth=f"DPoP {other}", dpop=mine(f"{OP}/me", "GET", token=other), www=f'DPoP realm="{OP}", error="invalid_token", error_description="invalid token provided", algs="ES256 PS256"', json_=error("invalid_token", "invalid token provided"))),
        ("op-replay", "jti_seen", postman, op("invalid_dpop_proof", "DPoP proof JWT Replay detected", mine(token))),
        ("op-signature", "proof_signature", curl_8, op("invalid_dpop_proof", "invalid DPoP key binding", _with(mine(token), lambda s: s[:40] + "AAAA" + s[44:]))),
        ("op-no-header", "no_proof", raw, hop("GET", f"{OP}/me", "400 Bad Request", auth=f"DPoP {OPAQUE}", json_=error("invalid_request", "`DPoP` header not provided"))),
        ("op-iat-nonce", "iat_old nonce_missing", curl_8, op("use_dpop_nonce", "DPoP proof iat is not recent enough, use a DPoP nonce instead", mine(token), nonce="8Uh1b2ReFXmVcEhT", date=NOW + 400)),
        ("op-ath", "ath_mismatch", curl_788, hop("GET", f"{OP}/me", "401 Unauthorized", auth=f"DPoP {OPAQUE}", dpop=mine(f"{OP}/me", "GET", token="another"), www=f'DPoP realm="{OP}", error="invalid_dpop_proof", error_description="DPoP proof ath mismatch", algs="ES256"')),
        # Bluesky
        ("bsky-par-nonce", "nonce_missing", curl_mac, op("use_dpop_nonce", "Authorization server requires nonce in DPoP proof", mine(f"{BSKY}/oauth/par"), url=f"{BSKY}/oauth/par", nonce="UqYMkvrzCdY4QsO2bfQhM1sJ", form="client_id=http%3A%2F%2Flocalhost&response_type=code")),
        ("bsky-pds-nonce", "nonce_missing", curl_8, pds("use_dpop_nonce", "Resource server requires nonce in DPoP proof", mine(PDS_HTU, "GET", token=bound), bound, nonce="pdsNonce1")),
        ("bsky-other-nonce", "nonce_of_another_server", curl_8, [
            op("use_dpop_nonce", "Authorization server requires nonce in DPoP proof", mine(f"{BSKY}/oauth/token"), url=f"{BSKY}/oauth/token", nonce="asNonce1", form=REFRESH),
            pds("use_dpop_nonce", 'DPoP \\"nonce\\" mismatch', mine(PDS_HTU, "GET", token=bound, nonce="asNonce1"), bound, nonce="pdsNonce1")]),
        ("bsky-old", "iat_old", curl_768, pds("invalid_dpop_proof", '\\"iat\\" claim timestamp check failed (too far in the past)', mine(PDS_HTU, "GET", token=bound, nonce="n1"), bound, date=NOW + 600)),
        ("bsky-ahead", "iat_ahead", curl_windows, pds("invalid_dpop_proof", '\\"iat\\" claim timestamp check failed (it should be in the past)', mine(PDS_HTU, "GET", token=bound, nonce="n1"), bound, date=None)),
        ("bsky-ath", "ath_unexpected", curl_8, op("invalid_dpop_proof", 'DPoP "ath" claim not allowed', mine(f"{BSKY}/oauth/token", token=bound, nonce="n1"), url=f"{BSKY}/oauth/token", form=REFRESH)),
        ("bsky-replay", "jti_seen", curl_1, op("invalid_dpop_proof", "DPoP proof replayed", mine(f"{BSKY}/oauth/token", nonce="n1"), url=f"{BSKY}/oauth/token", form=REFRESH)),
        ("bsky-typ", "proof_malformed", curl_8, op("invalid_dpop_proof", 'unexpected "typ" JWT header value', mine(f"{BSKY}/oauth/par", header={"typ": "jwt"}), url=f"{BSKY}/oauth/par")),
        ("bsky-htm", "htm_mismatch", indented, op("invalid_dpop_proof", 'DPoP "htm" mismatch', mine(f"{BSKY}/oauth/token", "post"), url=f"{BSKY}/oauth/token", form=REFRESH)),
        ("bsky-bearer", "scheme_bearer", curl_8, hop("GET", PDS, "401 Unauthorized", auth=f"Bearer {bound}", json_={"error": "InvalidToken", "message": "Malformed token"}, www='Bearer error="InvalidToken", error_description="Malformed token"')),
        ("bsky-assertion", "assertion_key", curl_8, op("invalid_client", "The DPoP proof must be signed with a different key than the client assertion", mine(f"{BSKY}/oauth/token", nonce="n1"), url=f"{BSKY}/oauth/token", form=f"{REFRESH}&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&client_assertion={assertion('mine')}")),
        ("bsky-expired", "access_token_invalid", curl_mac, pds("invalid_token", '\\"exp\\" claim timestamp check failed', mine(PDS_HTU, "GET", token=(old := at(exp=NOW - 60)), nonce="n1"), old)),
        ("bsky-refresh", "refresh_token_of_another_key", curl_8, op("invalid_grant", "Invalid DPoP key binding", mine(f"{BSKY}/oauth/token", nonce="n1"), url=f"{BSKY}/oauth/token", form=REFRESH)),
        # better-auth
        ("ba-slash", "htu_mismatch", curl_1, hop("GET", "http://localhost:3000/api/mcp/", "401 Unauthorized", auth=f"DPoP {bound}", dpop=mine("http://localhost:3000/api/mcp", "GET", token=bound), www='Bearer error="invalid_token"', json_=error("invalid_token"))),
        ("ba-es384", "alg_not_accepted", curl_8, hop("POST", "https://app.example.com/api/auth/oauth2/token", "400 Bad Request", dpop=mine("https://app.example.com/api/auth/oauth2/token", alg="ES384"), form=CC, json_=error("invalid_dpop_proof", '"alg" (Algorithm) Header Parameter value not allowed'))),
        ("ba-ahead", "iat_ahead", curl_8, hop("POST", "https://app.example.com/api/auth/oauth2/token", "400 Bad Request", dpop=mine("https://app.example.com/api/auth/oauth2/token", iat=NOW + 9), form=CC, json_=error("invalid_dpop_proof", "Invalid DPoP proof"))),
        # Auth0
        ("a0-scheme", "scheme_bearer", curl_8, auth0("", "", mine(API, "GET", token=bound), f"Bearer {bound}", status="400 Bad Request", www="Bearer realm=\"api\", error=\"invalid_request\", error_description=\"Operation indicated DPoP use but the request's Authorization HTTP Header scheme is not DPoP\", DPoP algs=\"ES256\"")),
        ("a0-unbound", "access_token_not_bound", curl_1, auth0("invalid_token", "JWT Access Token has no jkt confirmation claim", mine(API, "GET", token=loose), f"DPoP {loose}")),
        ("a0-range", "iat_old", stripped, auth0("invalid_dpop_proof", "DPoP proof 'iat' is outside the acceptable range", mine(API, "GET", token=bound), f"DPoP {bound}", date=NOW + 4000)),
        ("a0-two", "several_proofs", curl_8, auth0("", "", [reused, mine(API, "GET", token=bound)], f"DPoP {bound}", status="400 Bad Request", www='Bearer realm="api", DPoP error="invalid_request", algs="ES256"', json_="")),
        ("a0-py-htu", "htu_mismatch", httpie, auth0("invalid_dpop_proof", "DPoP Proof htu mismatch", mine(API.replace("https", "http"), "GET", token=bound), f"DPoP {bound}", status="400 Bad Request", json_={"detail": error("invalid_dpop_proof", "DPoP Proof htu mismatch")})),
        ("a0-confirmation", "access_token_of_another_key", curl_8, auth0("invalid_token", "JWT Access Token confirmation mismatch", mine(API, "GET", token=other), f"DPoP {other}")),
        ("a0-rs256", "alg_not_accepted", curl_8, auth0("invalid_dpop_proof", "Unsupported alg: RS256", mine(API, "GET", token=(rsa := at(None, cnf={"jkt": str(key("mine", "RSA").thumbprint())})), alg="RS256"), f"DPoP {rsa}")),
        ("a0-go-query", "htu_mismatch", curl_8, auth0("invalid_dpop_proof", "DPoP proof JWT validation failed", mine(API + "?page=2", "GET", token=bound), f"DPoP {bound}", url=API + "?page=2", status="400 Bad Request")),
        # Okta
        ("okta-no-proof", "no_proof", curl_8, okta("invalid_dpop_proof", "The DPoP proof JWT header is missing.", None)),
        ("okta-escape", "htu_mismatch", curl_1, hop("GET", "https://acme.okta.com/api/v1/users/a.b%40example.com", "400 Bad Request", auth=f"DPoP {bound}", dpop=mine("https://acme.okta.com/api/v1/users/a.b%40example.com", "GET", token=bound), www="DPoP authorization_uri=\"http://acme.okta.com/oauth2/v1/authorize\", realm=\"http://acme.okta.com\", scope=\"okta.users.read\", error=\"invalid_dpop_proof\", error_description=\"'htu' claim in the DPoP proof JWT is invalid.\", resource=\"/api/v1/users\"")),
        ("okta-nonce", "nonce_missing", postman, okta("use_dpop_nonce", "Authorization server requires nonce in DPoP proof.", mine(OKTA), nonce="mZvNQ7WZxqWUBqJ9hiUv0Xk1")),
        ("okta-jti", "proof_malformed", curl_windows, okta("invalid_dpop_proof", "The DPoP proof JWT is missing the 'jti' claim.", mine(OKTA, without="jti"))),
        ("okta-bearer", "scheme_bearer", curl_8, hop("GET", "https://acme.okta.com/api/v1/users", "401 Unauthorized", auth=f"Bearer {bound}", json_={"errorCode": "E0000011", "errorSummary": "Invalid token provided", "errorLink": "E0000011"})),
        # Others
        ("duende-port", "htu_mismatch", curl_8, hop("POST", "https://localhost:5001/connect/token", "400 Bad Request", form=CC, dpop=mine("https://localhost/connect/token"), json_=error("invalid_dpop_proof", "Invalid 'htu' value."))),
        ("duende-replay", "jti_seen", stamped, hop("GET", API, "401 Unauthorized", auth=f"DPoP {bound}", dpop=reused, www='DPoP error="invalid_dpop_proof", error_description="Detected DPoP proof token replay."')),
        ("nimbus-iat", "iat_old", curl_8, hop("POST", "https://c2id.example.com/token", "400 Bad Request", form=CC, dpop=mine("https://c2id.example.com/token", iat=NOW - 200), json_=error("invalid_dpop_proof", "Invalid DPoP proof: Invalid DPoP JWT: The JWT iat claim is behind the current time by more than 60 seconds"))),
        ("nimbus-nonce", "nonce_unexpected", curl_8, hop("POST", "https://c2id.example.com/token", "400 Bad Request", form=CC, dpop=mine("https://c2id.example.com/token", nonce="made-up"), json_=error("invalid_dpop_proof", "DPoP nonces are not supported"))),
        ("quarkus-htm", "htm_mismatch", coloured, hop("DELETE", API, "401 Unauthorized", auth=f"DPoP {bound}", dpop=mine(API, "GET", token=bound), www="DPoP")),
        ("token-bearer", "token_type_bearer", curl_8, hop("POST", f"{OP}/token", "200 OK", form=CC, dpop=mine(token), json_={"access_token": OPAQUE, "token_type": "Bearer", "expires_in": 3600})),
        ("scope", "scope", httpie, hop("GET", API, "403 Forbidden", auth=f"DPoP {bound}", dpop=reused, www='DPoP error="insufficient_scope", scope="orders:write", algs="ES256"')),
        ("kong-ath", "ath_mismatch", curl_old_mac, hop("GET", API, "401 Unauthorized", auth=f"DPoP {bound}", dpop=mine(API, "GET", token=loose), json_={"message": "Unauthorized"}, got=[("Server", "kong/3.8.0")])),
        ("solid-500", "proof_malformed", curl_768, hop("POST", "https://solidcommunity.net/token", "500 Internal Server Error", form=CODE, dpop=mine("https://solidcommunity.net/token", without="jwk"), json_="Internal Server Error")),
        ("two-wrong", "htu_mismatch", curl_8, keycloak("DPoP HTTP URL mismatch", mine(uri.replace("acme", "other"), iat=NOW - 3600), date=NOW)),
        ("same-twice", "jti_seen", curl_1, [
            hop("POST", token, "200 OK", dpop=replayed, form=CC, json_={"access_token": OPAQUE, "token_type": "DPoP"}),
            op("invalid_dpop_proof", None, replayed)]),
        ("metadata-alg", "alg_not_accepted", curl_8, op("invalid_dpop_proof", None, mine(token), metadata={"issuer": OP, "dpop_signing_alg_values_supported": ["PS256", "RS256"]})),
        ("prefix", "proof_malformed", curl_1, op("invalid_dpop_proof", "Invalid Compact JWS", f"DPoP {mine(token)}")),
        ("no-token", "access_token_missing", curl_8, hop("GET", API, "401 Unauthorized", dpop=mine(API, "GET"), www='DPoP algs="ES256"')),
        ("der", "proof_signature", curl_8, op("invalid_dpop_proof", "signature verification failed", _with(mine(token), lambda s: "MEUCIQC" + s[:89]))),
        ("powershell", "htu_mismatch", powershell, spring(DECODE + "The htu claim is not valid", mine(API.replace("/v1", ""), "GET", token=bound), bound)),
        ("entities", "nonce_missing", entities, op("use_dpop_nonce", "nonce is required in the DPoP proof", mine(token), nonce="8Uh1b2ReFXmVcEhT")),
    ]
    return [Case(n, c, s, h if isinstance(h, list) else [h]) for n, c, s, h in rows]


def good() -> list[Case]:
    bound, loose = at(), at(None)
    token = f"{OP}/token"
    unanswered = mine(token)

    def api(status: str, **more: Any) -> Hop:
        method = more.pop("method", "GET")
        url = more.pop("url", API)
        at_ = more.pop("token", bound)
        made = mine(url.partition("?")[0], method, token=at_, **more.pop("claims", {}))
        return hop(method, url, status, auth=f"DPoP {at_}", dpop=made, **more)

    def as_(status: str, body: Any, **more: Any) -> Hop:
        return hop("POST", token, status, dpop=mine(token), form=more.pop("form", CC), json_=body, **more)

    fine = {"access_token": OPAQUE, "token_type": "DPoP", "expires_in": 300}
    rows: list[tuple[str, Shown, Hop | list[Hop]]] = [
        ("ok-768", curl_768, api("200 OK", json_={"a": 1})),
        ("ok-788", curl_788, api("200 OK", json_={"a": 1}, nonce="fresh")),
        ("ok-8", curl_8, api("200 OK", json_=[])),
        ("ok-814", curl_8_14, api("201 Created", method="POST")),
        ("ok-mac", curl_mac, api("204 No Content", method="DELETE")),
        ("ok-securetransport", curl_old_mac, api("200 OK", json_="<html>error: no</html>")),
        ("ok-windows", curl_windows, api("200 OK", json_={"error": None})),
        ("ok-httpie", httpie, api("200 OK", json_={"a": 1})),
        ("ok-raw", raw, api("200 OK", json_={"a": 1})),
        ("ok-i", curl_i, api("200 OK", json_={"a": 1})),
        ("ok-opaque", curl_8, api("200 OK", token=OPAQUE, json_={"a": 1})),
        ("ok-query", curl_8, api("200 OK", url=API + "?page=2&q=a%20b", json_={"a": 1})),
        ("ok-port", curl_1, api("200 OK", url="http://127.0.0.1:8080/x", json_={"a": 1})),
        ("ok-ids", curl_8, api("200 OK", url="https://api.example.com/users/a%40b.c/%E2%82%AC", json_={"a": 1})),
        ("token", curl_8, as_("200 OK", fine)),
        ("token-lower", raw_absolute, as_("200 OK", {**fine, "token_type": "dpop"})),
        ("nonce-answered", curl_8, [
            op("use_dpop_nonce", "nonce is required in the DPoP proof", unanswered, nonce="n1"),
            hop("POST", token, "200 OK", dpop=mine(token, nonce="n1"), form=CC, json_=fine)]),
        ("not-found", curl_1, api("404 Not Found", json_={"error": "not_found"})),
        ("too-many", curl_8, api("429 Too Many Requests", got=[("Retry-After", "30")])),
        ("redirect", curl_8, api("302 Found", got=[("Location", "https://elsewhere.example.com/")])),
        ("step-up", curl_8, hop("GET", API, "401 Unauthorized", auth=f"DPoP {bound}", dpop=mine(API, "GET", token=bound), www='DPoP error="insufficient_user_authentication", error_description="A different authentication level is required", acr_values="myACR"')),
        ("pending", curl_8, as_("400 Bad Request", error("authorization_pending"), form="grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code&device_code=GmRh&client_id=c1")),
        ("client", httpie, as_("401 Unauthorized", error("invalid_client", "client authentication failed"), www='Basic realm="op"')),
        ("bad-scope", curl_8, as_("400 Bad Request", error("invalid_scope", "requested scope is not allowed"))),
        ("plain-bearer", curl_8, hop("GET", API, "200 OK", auth=f"Bearer {loose}", json_={"a": 1})),
        ("app-400", curl_1, api("400 Bad Request", method="POST", json_={"errors": [{"field": "name", "message": "is required"}]})),
        ("app-403", curl_8, api("403 Forbidden", json_={"message": "You may not see this order"})),
        ("conflict", curl_8, api("409 Conflict", method="PUT", json_={"error": "conflict"})),
    ]
    return [Case(n, "", s, h if isinstance(h, list) else [h]) for n, s, h in rows]

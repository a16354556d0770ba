"""A second lot of what strangers met, made after `explain` was mended for the first."""

# ruff: noqa: E501  (a case is a row: what was said, and what was sent)
# fmt: off

from __future__ import annotations

import hashlib

from tests.unit.strangers.first import (
    API,
    BSKY,
    CC,
    CODE,
    KC,
    OP,
    OPAQUE,
    REFRESH,
    Case,
    Shown,
    error,
    mine,
    op,
)
from tests.unit.strangers.mangled import Mangled
from tests.unit.strangers.shown import (
    NOW,
    Hop,
    at,
    coloured,
    curl_1,
    curl_8,
    curl_8_14,
    curl_768,
    curl_788,
    curl_i,
    curl_mac,
    curl_windows,
    entities,
    hop,
    httpie,
    indented,
    jkt,
    key,
    postman,
    powershell,
    prompted,
    proof,
    quoted,
    raw,
    raw_absolute,
    stamped,
    wrapped,
)


def tunnelled(h: Hop) -> str:
    """Through a company's proxy."""
    host = h.host if ":" in h.host else f"{h.host}:443"
    return (
        f"* Uses proxy env variable https_proxy == 'http://proxy:3128'\n*   Trying 10.0.0.1:3128...\n"
        f"* Connected to proxy (10.0.0.1) port 3128\n* CONNECT tunnel: HTTP/1.1 negotiated\n"
        f"* allocate connect buffer\n* Establish HTTP proxy tunnel to {host}\n"
        f"> CONNECT {host} HTTP/1.1\n> Host: {host}\n> User-Agent: curl/8.5.0\n"
        "> Proxy-Connection: Keep-Alive\n> \n< HTTP/1.1 200 Connection established\n< \n"
        "* CONNECT phase completed\n* CONNECT tunnel established, response 200\n" + curl_8(h)
    )


def continued(h: Hop) -> str:
    """With Expect: 100-continue."""
    text = curl_1(h)
    return text.replace("< HTTP/1.1", "< HTTP/1.1 100 Continue\n< \n< HTTP/1.1", 1)


def http3(h: Hop) -> str:
    return curl_8(h, "8.14.1").replace("HTTP/2", "HTTP/3")


def two_challenges(h: Hop) -> str:
    return curl_8(h).replace("< www-authenticate: ", '< www-authenticate: Bearer realm="api"\n< www-authenticate: ')


def in_ci(h: Hop) -> str:
    """As a log of CI has it."""
    return "".join(f"2026-09-21T14:13:20.1234567Z {x}\n" for x in curl_1(h).splitlines())


def in_a_container(h: Hop) -> str:
    return "".join(f"app-1  | {x}\n" for x in curl_1(h).splitlines())


def numbered(h: Hop) -> str:
    """As a listing with its lines' numbers has it."""
    return "".join(f"{i:4} {x}\n" for i, x in enumerate(curl_1(h).splitlines(), 1))


def broken() -> list[Case]:
    bound, other, loose = at(), at("other"), at(None)
    token = f"{OP}/token"
    dcode = CODE.replace("client_id", "redirect_uri=http%3A%2F%2F127.0.0.1%3A8080%2Fcb&client_id")

    def api(said: str | None, dpop: object, *, code: str = "invalid_dpop_proof", at_: str = bound, **more: object) -> Hop:
        told = "" if said is None else f', error_description="{said}"'
        options = {"auth": f"DPoP {at_}", "www": f'DPoP error="{code}"{told}', **more}
        method, url = str(options.pop("method", "GET")), str(options.pop("url", API))
        status = str(options.pop("status", "401 Unauthorized"))
        return hop(method, url, status, dpop=dpop, **options)  # type: ignore[arg-type]

    fine = mine(API, "GET", token=bound)
    hexed = hashlib.sha256(bound.encode()).hexdigest()
    rows: list[tuple[str, str, Shown, Hop | list[Hop]]] = [
        ("proxy-htu", "htu_mismatch", tunnelled, api("htu mismatch: got https://api.example.com/v1/orders want http://10.2.0.7:8080/v1/orders", fine)),
        ("redirect", "htu_mismatch", curl_1, [
            hop("GET", "http://api.example.com/v1/orders", "301 Moved Permanently", auth=f"DPoP {bound}", dpop=(p := mine("http://api.example.com/v1/orders", "GET", token=bound)), got=[("Location", API)]),
            api("Invalid 'htu' value.", p)]),
        ("continue", "htm_mismatch", continued, api("The DPoP proof is invalid. The 'htm' claim value 'GET' does not match the request method", fine, method="POST", form="a=1")),
        ("http3", "iat_old", http3, api("DPoP proof expired", mine(API, "GET", token=bound, iat=NOW - 1000))),
        ("header-name", "no_proof", curl_8, api("missing DPoP header", None, code="invalid_request", sent=[("DPoP-Proof", fine)], status="400 Bad Request")),
        ("padded", "proof_malformed", curl_1, api("Failed to parse DPoP proof", ".".join(x + "=" * (-len(x) % 4) for x in fine.split(".")))),
        ("milliseconds", "iat_ahead proof_malformed", curl_8, api("DPoP proof iat is in the future", mine(API, "GET", token=bound, iat=NOW * 1000))),
        ("seconds-text", "proof_malformed", curl_8, api("Invalid iat claim (must be integer)", mine(API, "GET", token=bound, iat=str(NOW)))),
        ("htu-bare", "htu_mismatch", curl_mac, api("DPoP proof htu is not a valid URL", mine("api.example.com/v1/orders", "GET", token=bound))),
        ("spring-refresh", "refresh_token_of_another_key", httpie, op("invalid_grant", None, mine(token), form=REFRESH)),
        ("kc-code", "code_of_another_key", prompted, hop("POST", f"{KC}/token", "400 Bad Request", dpop=mine(f"{KC}/token"), form=dcode, json_=error("invalid_grant", "Code not valid"), date=None)),
        ("ath-hex", "ath_mismatch", curl_8, api("Invalid 'ath' value.", mine(API, "GET", ath=hexed))),
        ("bearer-issued", "access_token_not_bound", curl_8, [
            hop("POST", token, "200 OK", form=CC, json_={"access_token": OPAQUE, "token_type": "Bearer", "expires_in": 300}),
            api(None, mine(API, "GET", token=OPAQUE), code="invalid_token", at_=OPAQUE)]),
        ("nonce-stripped", "nonce_missing", curl_8, op("use_dpop_nonce", "Authorization server requires nonce in DPoP proof", mine(f"{BSKY}/oauth/token"), url=f"{BSKY}/oauth/token", form=REFRESH)),
        ("nonce-loop", "nonce_stale", curl_788, [
            op("use_dpop_nonce", None, mine(token), nonce="eyJ1IjoxfQ"),
            op("use_dpop_nonce", None, mine(token, nonce="eyJ1IjoxfQ"), nonce="eyJ1IjoyfQ")]),
        ("short-stale", "nonce_stale", curl_8, op("use_dpop_nonce", "Invalid nonce", mine(token, nonce="old-nonce"), nonce="new-nonce-1")),
        ("jwk-swapped", "proof_signature", curl_8, api(None, proof("GET", API, token=bound, header={"jwk": key("other").as_dict(private=False)}), at_=other, code="invalid_token")),
        ("expired", "access_token_invalid", two_challenges, api("The access token expired", mine(API, "GET", token=OPAQUE), code="invalid_token", at_=OPAQUE)),
        ("audience", "access_token_invalid", curl_8, api("jwt audience invalid. expected: https://api.example.com", fine, code="invalid_token")),
        ("rfc-binding", "access_token_of_another_key", wrapped, api("Invalid DPoP key binding", mine(API, "GET", token=OPAQUE), code="invalid_token", at_=OPAQUE, got=[("Cache-Control", "no-store")])),
        ("joined", "several_proofs", curl_8, api("Invalid DPoP proof", f"{fine}, {mine(API, 'GET', token=bound)}")),
        ("typ-case", "proof_malformed", raw, api("Unexpected JWT 'typ' header parameter value", mine(API, "GET", token=bound, header={"typ": "dpop"}))),
        ("privileges", "scope", quoted, api("The request requires higher privileges than provided by the access token.", fine, code="insufficient_scope", status="403 Forbidden")),
        ("par-jkt", "code_of_another_key", httpie, op("invalid_request", "DPoP proof key thumbprint does not match dpop_jkt", mine(f"{OP}/par"), url=f"{OP}/par", form=f"response_type=code&client_id=c1&dpop_jkt={jkt('other')}")),
        ("undefined", "proof_malformed", curl_8_14, api("Invalid Compact JWS", "undefined")),
        ("promise", "proof_malformed", postman, api(None, "[object Promise]")),
        ("raw-token", "access_token_missing", curl_8, api("Authorization header malformed", fine, auth=bound, code="invalid_request")),
        ("quotes", "proof_malformed", curl_windows, api("Invalid DPoP proof", f'"{fine}"')),
        ("escape-case", "htu_mismatch", entities, api("DPoP Proof htu mismatch", mine("https://api.example.com/v1/a%2fb", "GET", token=bound), url="https://api.example.com/v1/a%2Fb")),
        ("base-path", "htu_mismatch", stamped, api("htu does not match", mine("https://api.example.com/orders", "GET", token=bound))),
        ("micronaut", "htm_mismatch", powershell, hop("PATCH", API, "401 Unauthorized", auth=f"DPoP {bound}", dpop=fine, json_={"timestamp": "2026-09-21T14:13:20Z", "status": 401, "error": "Unauthorized", "path": "/v1/orders"})),
        ("quarkus-bearer", "scheme_bearer", indented, hop("GET", API, "401 Unauthorized", auth=f"Bearer {bound}", www="DPoP")),
        ("api-key", "no_proof", coloured, api("DPoP proof required", None, code="invalid_token")),
        ("private-rsa", "alg_not_accepted", raw_absolute, api("Unsupported algorithm", mine(API, "GET", token=loose, alg="RS256"), www='DPoP error="invalid_dpop_proof", error_description="Unsupported algorithm", algs="ES256 ES384"')),
        ("silent-500", "server_error proof_malformed", curl_768, hop("POST", token, "500 Internal Server Error", form=CC, dpop=mine(token), json_={"error": "server_error", "error_description": "oops! something went wrong"})),
        ("ci", "htu_mismatch", in_ci, api("Invalid htu", mine(API + "x", "GET", token=bound))),
        ("container", "scheme_bearer", in_a_container, hop("GET", API, "401 Unauthorized", auth=f"Bearer {bound}", www="DPoP")),
        ("numbered", "no_proof", numbered, api("DPoP header required", None)),
        ("vi", "jti_seen", curl_i, api("jti already used", fine)),
    ]
    return [Case(n, c, s, h if isinstance(h, list) else [h]) for n, c, s, h in rows]


def good() -> list[Case]:
    bound = at()
    fine = mine(API, "GET", token=bound)

    def api(status: str, **more: object) -> Hop:
        return hop("GET", API, status, auth=f"DPoP {bound}", dpop=fine, **more)  # type: ignore[arg-type]

    rows: list[tuple[str, Shown, Hop | list[Hop]]] = [
        ("ci-ok", in_ci, api("200 OK", json_={"ok": True})),
        ("numbered-ok", numbered, api("404 Not Found", json_={"ok": False})),
        ("unavailable", curl_8, api("503 Service Unavailable", got=[("Retry-After", "10")])),
        ("graphql", curl_8, api("200 OK", json_={"errors": [{"message": "no such field"}]})),
        ("cloudflare", curl_1, api("403 Forbidden", json_="<!DOCTYPE html><title>Just a moment...</title>")),
        ("tunnel-ok", tunnelled, api("200 OK", json_={"ok": True})),
        ("continue-ok", continued, api("200 OK", json_={"ok": True})),
        ("http3-ok", http3, api("206 Partial Content")),
        ("coloured-ok", coloured, api("200 OK", json_={"ok": True})),
        ("entities-ok", entities, api("200 OK", json_={"a": "<b>"})),
        ("powershell-ok", powershell, api("200 OK")),
        ("quoted-ok", quoted, api("200 OK", json_={"ok": True})),
        ("maintenance", curl_8, api("422 Unprocessable Content", json_={"error": "invalid_request", "detail": "date is required"})),
        ("wrong-json", httpie, api("400 Bad Request", json_={"statusCode": 400, "message": "Unexpected token in JSON"})),
        ("redirected", curl_1, [api("307 Temporary Redirect", got=[("Location", "/v2/orders")]), hop("GET", "https://api.example.com/v2/orders", "200 OK", auth=f"DPoP {bound}", dpop=mine("https://api.example.com/v2/orders", "GET", token=bound))]),
    ]
    return [Case(n, "", s, h if isinstance(h, list) else [h]) for n, s, h in rows]


def mangled() -> list[Mangled]:
    bound = at()
    made = mine(API, "GET", token=bound)
    h = hop("GET", API, "401 Unauthorized", auth=f"DPoP {bound}", dpop=made, www='DPoP error="use_dpop_nonce"', nonce="n")
    text = curl_1(h)
    other_key = hop("GET", API, "401 Unauthorized", auth=f"DPoP {bound}", dpop=made, www='DPoP error="invalid_token", error_description="Invalid DPoP key binding"')
    left = "left out or cut off"
    return [
        Mangled("nonce-hidden", text.replace(made, "eyJ0e...[truncated]"), left, "nonce_missing"),
        Mangled("key-hidden", curl_8(other_key).replace(made, "••••••").replace(bound, "••••••"), left, "access_token_of_another_key"),
        Mangled("blocks", curl_8(other_key).replace(made, "████████"), left, "access_token_of_another_key"),
        Mangled("xxx", curl_1(other_key).replace(made, "xxxxx.yyyyy.zzzzz"), left, "access_token_of_another_key"),
        Mangled("jmeter", "Thread Name:Group 1-1\nSample Start:2026-09-21\nResponse code:401\nResponse message:Unauthorized\n", "neither the output"),
        Mangled("wget", "--2026-09-21 12:00:00--  https://api.example.com/v1/orders\nHTTP request sent, awaiting response... 401 Unauthorized\nUsername/Password Authentication Failed.\n", "neither the output"),
        Mangled("only-body", "Unauthorized", "neither the output"),
        Mangled("markdown", "```http\n" + raw(other_key)[0] + "\n```\n", "no response"),
    ]

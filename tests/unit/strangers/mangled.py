"""What can't be read, or not whole, each with what has to be said of it."""

# ruff: noqa: E501  (a case is a row: what was said, and what was sent)
# fmt: off

from __future__ import annotations

import json
import re
from typing import NamedTuple

from tests.unit.strangers.first import API, CC, KC, OPAQUE, error, keycloak
from tests.unit.strangers.shown import (
    NOW,
    Hop,
    at,
    curl_1,
    curl_8,
    curl_768,
    hop,
    httpie,
    powershell,
    proof,
    raw,
)


class Mangled(NamedTuple):
    name: str
    text: str | bytes
    says: str
    """A regular expression, to be found in the refusal or in what isn't known."""
    causes: str | None = None
    """What may be named first all the same; None where it has to be refused."""


def _refused() -> Hop:
    token = at()
    made = proof("GET", API, token=token)
    www = 'DPoP error="invalid_dpop_proof", error_description="DPoP proof htu mismatch"'
    return hop("GET", API, "401 Unauthorized", dpop=made, auth=f"DPoP {token}", www=www)


def _changed(text: str, pattern: str, to: str) -> str:
    found, times = re.subn(pattern, lambda _: to, text, flags=re.MULTILINE)
    assert times, pattern
    return found


def _har(h: Hop) -> str:
    def pairs(headers: list[tuple[str, str]]) -> list[dict[str, str]]:
        return [{"name": n, "value": v} for n, v in headers]

    request = {"method": h.method, "url": h.url, "headers": pairs(h.request("Mozilla/5.0"))}
    response = {"status": 401, "statusText": "Unauthorized", "headers": pairs(h.got)}
    entry = {"request": request, "response": response}
    return json.dumps({"log": {"version": "1.2", "entries": [entry]}}, indent=2)


def mangled() -> list[Mangled]:
    h = _refused()
    text, h2, old = curl_1(h), curl_8(h), curl_768(h)
    the_proof, auth = h.sent[1][1], h.sent[0][1]
    head, body, signature = the_proof.split(".")
    half = text[: text.index("< WWW-Authenticate")]
    devtools = (
        f"Request URL\n{h.url}\nRequest Method\nGET\nStatus Code\n401 Unauthorized\n"
        f"Remote Address\n93.184.216.34:443\n:authority\napi.example.com\ndpop\n{the_proof}\n"
    )
    trace = (
        "== Info:   Trying 127.0.0.1:80...\n=> Send header, 83 bytes (0x53)\n"
        "0000: GET /v1/orders HTTP/1.1\n0019: Host: api.example.com\n0032: DPoP: eyJ0eXAiOiJkcG9w\n"
        "0051: \n<= Recv header, 27 bytes (0x1b)\n0000: HTTP/1.1 401 Unauthorized\n"
    )
    java = (
        "2026-09-21 12:13:20.123 DEBUG 1 --- [nio-8080-exec-1] o.s.web.client.RestTemplate : HTTP GET "
        f"{API}\n2026-09-21 12:13:20.345 DEBUG 1 --- [nio-8080-exec-1] o.s.web.client.RestTemplate : "
        "Response 401 UNAUTHORIZED\n"
    )
    node = (
        "OAuthError: invalid_dpop_proof\n    at processAuthorizationCodeResponse (index.js:1843:9)\n"
        '  cause: { error: "invalid_dpop_proof", error_description: "DPoP proof htu mismatch" },\n'
        '  code: "OAUTH_RESPONSE_BODY_ERROR"\n'
    )
    tls = text[: text.index("* SSL connection")]
    nothing = "neither the output of curl|nothing to read|no request|a command alone|can't be read|response"
    kc = keycloak("DPoP HTTP URL mismatch", proof("POST", f"{KC}/token"))
    redacted = "left out or cut off"
    return [
        Mangled("empty", "", "nothing to read"),
        Mangled("blank", "\n  \n\t\n", "nothing to read"),
        Mangled("binary", bytes(range(256)) * 8, nothing),
        Mangled("zeroes", b"\0" * 4096, nothing),
        Mangled("html", "<!doctype html><html><body><h1>401</h1></body></html>", nothing),
        Mangled("json", json.dumps(error("invalid_dpop_proof", "DPoP proof htu mismatch")), nothing),
        Mangled("har", _har(h), nothing),
        Mangled("devtools", devtools, nothing),
        Mangled("trace-ascii", trace, nothing),
        Mangled("java-log", java, nothing),
        Mangled("node-error", node, nothing),
        Mangled("prose", "My server says 401, and I don't know why. DPoP is on.", nothing),
        Mangled("command", f"$ curl -v -H 'DPoP: {the_proof}' {API}\n", "command alone"),
        Mangled("no-v", "$ curl https://api.example.com/v1/orders\nUnauthorized\n", nothing),
        Mangled("-i", text[text.index("< HTTP/1.1") :].replace("< ", ""), "no request|without the request"),
        Mangled("response-only", text[text.index("< HTTP/1.1") :], "without the request|no request"),
        Mangled("request-only", text[: text.index("< HTTP/1.1")], "no response"),
        Mangled("request-only-raw", raw(h)[0], "no response"),
        Mangled("dns", "* Could not resolve host: api.exampel.com\n* Closing connection 0\ncurl: (6) Could not resolve host: api.exampel.com\n", nothing),
        Mangled("tls", tls + "* TLSv1.3 (OUT), TLS alert, unknown CA (560):\n* SSL certificate problem: self-signed certificate\ncurl: (60) SSL certificate problem\n", nothing),
        Mangled("timeout", text[: text.index("< HTTP/1.1")] + "* Operation timed out after 5001 milliseconds with 0 bytes received\ncurl: (28) Operation timed out\n", "no response"),
        Mangled("status-lost", _changed(text, r"^< HTTP/1.1.*\n", ""), "first line is missing"),
        Mangled("request-line-lost", _changed(text, r"^> GET .*\n", ""), "first line is missing"),
        Mangled("no-colon", _changed(text, r"^> Accept: ", "> Accept "), "no header"),
        Mangled("half", half, r".", "htu_mismatch access_token_of_another_key access_token_invalid"),
        Mangled("cut-dots", text.replace(the_proof, the_proof[:12] + "..."), redacted, "htu_mismatch"),
        Mangled("cut-ellipsis", h2.replace(the_proof, the_proof[:60] + "…"), redacted, "htu_mismatch"),
        Mangled("stars", old.replace(the_proof, "***").replace(the_proof, "***"), redacted, "htu_mismatch"),
        Mangled("redacted-all", text.replace(the_proof, "[REDACTED]").replace(auth, "DPoP [REDACTED]"), "access token: it is left out", "htu_mismatch"),
        Mangled("angle", text.replace(the_proof, "<dpop proof>").replace(auth, "DPoP <access_token>"), redacted, "htu_mismatch"),
        Mangled("env", text.replace(the_proof, "$DPOP_PROOF").replace(auth, "DPoP $ACCESS_TOKEN"), "variable that has no value", "htu_mismatch"),
        Mangled("braces", text.replace(the_proof, "{{dpop}}").replace(auth, "DPoP {{access_token}}"), "variable that has no value", "htu_mismatch"),
        Mangled("payload-gone", text.replace(the_proof, f"{head}.<payload>.{signature}"), redacted, "htu_mismatch"),
        Mangled("signature-gone", text.replace(the_proof, f"{head}.{body}.REDACTED"), "signature is good: it is left out", "htu_mismatch"),
        Mangled("cut-silently", text.replace(the_proof, f"{head}.{body[:30]}"), "cut off|three", "htu_mismatch proof_malformed"),
        Mangled("starred-token", text.replace(auth, "DPoP eyJhbGciOi***"), "access token: it is left out", "htu_mismatch"),
        Mangled("curl-hides", _changed(text, r"^> Authorization: .*", "> Authorization: <redacted>"), r"access token", "htu_mismatch"),
        Mangled("utf-16", b"\xff\xfe" + powershell(h).encode("utf-16-le"), r"", "htu_mismatch"),
        Mangled("httpie-no-request", httpie(h).partition("\n\n\n")[2], "no request"),
        Mangled("long-line", "> GET " + "a" * 900_000, "first line is missing"),
        Mangled("second-response", text + text[text.index("< HTTP/1.1") :], "second response"),
        Mangled("kc-silent", curl_1(kc).replace(kc.sent[0][1], "eyJ0eXAiOi..."), redacted, "htu_mismatch"),
    ]


__all__ = ["CC", "NOW", "OPAQUE", "Mangled", "mangled"]

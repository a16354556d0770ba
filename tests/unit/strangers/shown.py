"""What strangers paste: the same exchange as one program or another shows it.

A case is a request and a response; `curl_768` and the others write it as that program prints it.
The proofs are made anew, with real keys, by joserfc, so that what `explain` shows of them is true.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import cache
from html import escape
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from joserfc import jws
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OKPKey, RSAKey

NOW = 1_790_000_000
Headers = list[tuple[str, str]]


def key(name: str, kind: str = "P-256") -> Any:
    """A key of its own for each name and kind."""
    return _key(name, kind)


@cache
def _key(_: str, kind: str) -> Any:
    if kind == "RSA":
        return RSAKey.generate_key(2048)
    if kind == "Ed25519":
        return OKPKey.generate_key("Ed25519")
    return ECKey.generate_key(kind)


def jkt(name: str = "mine") -> str:
    return str(key(name).thumbprint())


def _b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def ath(token: str) -> str:
    return _b64(hashlib.sha256(token.encode()).digest())


def signed(header: dict[str, Any], claims: dict[str, Any], by: Any) -> str:
    registry = jws.JWSRegistry(algorithms=[header["alg"]], strict_check_header=False)
    with warnings.catch_warnings(category=SecurityWarning, action="ignore"):  # EdDSA's name
        return jws.serialize_compact(header, json.dumps(claims).encode(), by, registry=registry)


def proof(
    htm: str,
    htu: str,
    *,
    by: str = "mine",
    token: str | None = None,
    alg: str = "ES256",
    without: str = "",
    header: dict[str, Any] | None = None,
    **claims: Any,
) -> str:
    """A proof; `without` names claims and header members that it hasn't."""
    kind = {"E": "P-256", "R": "RSA", "P": "RSA"}.get(alg[0], "P-256")
    kind = {"ES384": "P-384", "EdDSA": "Ed25519", "Ed25519": "Ed25519"}.get(alg, kind)
    made = key(by, kind)
    head = {"typ": "dpop+jwt", "alg": alg, "jwk": made.as_dict(private=False), **(header or {})}
    head["jwk"] = {k: v for k, v in head["jwk"].items() if k != "kid"}
    body = {"jti": str(uuid4()), "htm": htm, "htu": htu, "iat": NOW}
    if token is not None:
        body["ath"] = ath(token)
    body |= claims
    for name in without.split():
        head.pop(name, None)
        body.pop(name, None)
    return signed(head, body, made)


def at(bound_to: str | None = "mine", **claims: Any) -> str:
    """An access token that is a JWT."""
    body: dict[str, Any] = {"iss": "https://auth.example.com", "sub": "u1", "exp": NOW + 300}
    if bound_to:
        body["cnf"] = {"jkt": jkt(bound_to)}
    return signed({"typ": "at+jwt", "alg": "ES256", "kid": "as1"}, body | claims, key("server"))


def assertion(by: str = "client", **claims: Any) -> str:
    """A client assertion (RFC 7523)."""
    body = {"iss": "c1", "sub": "c1", "aud": "https://auth.example.com", "jti": str(uuid4())}
    return signed({"alg": "ES256"}, {**body, "iat": NOW, "exp": NOW + 60, **claims}, key(by))


@dataclass
class Hop:
    method: str
    url: str
    sent: Headers
    status: str
    got: Headers
    body: str = ""
    form: str = ""
    metadata: dict[str, Any] | None = None
    version: str = "1.1"
    extra: Headers = field(default_factory=list)

    @property
    def target(self) -> str:
        parts = urlsplit(self.url)
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def request(self, agent: str, *, lower: bool = False) -> Headers:
        headers = [("Host", self.host), ("User-Agent", agent), ("Accept", "*/*"), *self.sent]
        if self.form:
            headers += [
                ("Content-Length", str(len(self.form))),
                ("Content-Type", "application/x-www-form-urlencoded"),
            ]
        return [(n.lower() if lower and n != "Host" else n, v) for n, v in headers]

    def response(self, *, lower: bool = False) -> Headers:
        return [(n.lower() if lower else n, v) for n, v in self.got]


def hop(
    method: str,
    url: str,
    status: str,
    *,
    dpop: str | list[str] | None = None,
    auth: str | None = None,
    www: str | list[str] | None = None,
    nonce: str | None = None,
    json_: dict[str, Any] | str | None = None,
    form: str = "",
    date: int | None = NOW,
    got: Headers | None = None,
    sent: Headers | None = None,
    metadata: dict[str, Any] | None = None,
) -> Hop:
    headers: Headers = []
    if auth is not None:
        headers.append(("Authorization", auth))
    for one in [dpop] if isinstance(dpop, str) else dpop or []:
        headers.append(("DPoP", one))
    answer: Headers = []
    if date is not None:
        answer.append(("Date", formatdate(date, usegmt=True)))
    body = json_ if isinstance(json_, str) else json.dumps(json_) if json_ is not None else ""
    if json_ is not None and not isinstance(json_, str):
        answer.append(("Content-Type", "application/json"))
    for one in [www] if isinstance(www, str) else www or []:
        answer.append(("WWW-Authenticate", one))
    if nonce:
        answer.append(("DPoP-Nonce", nonce))
    answer += got or []
    answer.append(("Content-Length", str(len(body))))
    return Hop(method, url, headers + (sent or []), status, answer, body, form, metadata)


# As programs show it


def _lines(mark: str, headers: Headers) -> list[str]:
    return [f"{mark} {name}: {value}" for name, value in headers]


TLS13 = """* TLSv1.3 (OUT), TLS handshake, Client hello (1):
* TLSv1.3 (IN), TLS handshake, Server hello (2):
* TLSv1.3 (IN), TLS handshake, Encrypted Extensions (8):
* TLSv1.3 (IN), TLS handshake, Certificate (11):
* TLSv1.3 (IN), TLS handshake, CERT verify (15):
* TLSv1.3 (IN), TLS handshake, Finished (20):
* TLSv1.3 (OUT), TLS change cipher, Change cipher spec (1):
* TLSv1.3 (OUT), TLS handshake, Finished (20):"""


def _certificate(name: str) -> list[str]:
    return [
        "* Server certificate:",
        f"*  subject: CN={name}",
        "*  start date: Jul 13 19:39:17 2026 GMT",
        "*  expire date: Oct 11 19:39:16 2026 GMT",
        f'*  subjectAltName: host "{name}" matched cert\'s "{name}"',
        "*  issuer: C=US; O=Let's Encrypt; CN=R11",
        "*  SSL certificate verify ok.",
    ]


def _port(hop: Hop) -> tuple[str, int, bool]:
    parts = urlsplit(hop.url)
    secure = parts.scheme == "https"
    return parts.hostname or "", parts.port or (443 if secure else 80), secure


def curl_768(h: Hop, *, h2: bool = True) -> str:
    """Ubuntu 20.04's."""
    host, port, secure = _port(h)
    h2 = h2 and secure
    out = [f"*   Trying 93.184.216.34:{port}...", "* TCP_NODELAY set"]
    out += [f"* Connected to {host} (93.184.216.34) port {port} (#0)"]
    if secure:
        out += ["* ALPN, offering h2", "* ALPN, offering http/1.1"]
        out += ["* successfully set certificate verify locations:"]
        out += ["*   CAfile: /etc/ssl/certs/ca-certificates.crt", "  CApath: /etc/ssl/certs"]
        out += TLS13.splitlines()
        out += ["* SSL connection using TLSv1.3 / TLS_AES_256_GCM_SHA384"]
        out += [f"* ALPN, server accepted to use {'h2' if h2 else 'http/1.1'}", *_certificate(host)]
    if h2:
        out += ["* Using HTTP2, server supports multi-use"]
        out += ["* Connection state changed (HTTP/2 confirmed)"]
        out += [
            "* Copying HTTP/2 data in stream buffer to connection buffer after upgrade: len=0",
            "* Using Stream ID: 1 (easy handle 0x55c95ec5a0e0)",
        ]
    out += [f"> {h.method} {h.target} HTTP/{'2' if h2 else '1.1'}"]
    out += [*_lines(">", h.request("curl/7.68.0", lower=h2)), "> "]
    if h.form:
        out += [f"* upload completely sent off: {len(h.form)} out of {len(h.form)} bytes"]
    if secure:
        out += ["* TLSv1.3 (IN), TLS handshake, Newsession Ticket (4):"] * 2
        out += ["* old SSL session ID is stale, removing"]
    if h2:
        out += ["* Connection state changed (MAX_CONCURRENT_STREAMS == 128)!"]
        out += [f"< HTTP/2 {h.status.split()[0]} "]
    else:
        out += ["* Mark bundle as not supporting multiuse", f"< HTTP/1.1 {h.status}"]
    out += [*_lines("<", h.response(lower=h2)), "< "]
    return "\n".join(out) + "\n" + h.body + f"* Connection #0 to host {host} left intact\n"


def curl_788(h: Hop) -> str:
    """Debian 12's, its output piped without -s: the progress meter is in it."""
    host, port, secure = _port(h)
    meter = "  0     0    0     0    0     0      0      0 --:--:-- --:--:-- --:--:--     0"
    out = [
        "  % Total    % Received % Xferd  Average Speed   Time    Time     Time  Current",
        "                                 Dload  Upload   Total   Spent    Left  Speed",
        f"\r{meter}*   Trying 93.184.216.34:{port}...",
        f"* Connected to {host} (93.184.216.34) port {port} (#0)",
    ]
    if secure:
        out += ["* ALPN: offers h2,http/1.1", "} [5 bytes data]"]
        for line in TLS13.splitlines():
            out += [line, "{ [122 bytes data]" if "(IN)" in line else "} [512 bytes data]"]
        out += ["*  CAfile: /etc/ssl/certs/ca-certificates.crt", "*  CApath: /etc/ssl/certs"]
        out += ["* SSL connection using TLSv1.3 / TLS_AES_256_GCM_SHA384"]
        out += ["* ALPN: server accepted h2", *_certificate(host), "* using HTTP/2"]
        sent = h.request("curl/7.88.1", lower=True)[1:]
        out += [
            f"* h2h3 [:method: {h.method}]",
            f"* h2h3 [:path: {h.target}]",
            "* h2h3 [:scheme: https]",
            f"* h2h3 [:authority: {h.host}]",
        ]
        out += [f"* h2h3 [{n}: {v}]" for n, v in sent]
        out += ["* Using Stream ID: 1 (easy handle 0x5581f0c7ac80)", "} [5 bytes data]"]
    out += [f"> {h.method} {h.target} HTTP/{'2' if secure else '1.1'}"]
    out += [*_lines(">", h.request("curl/7.88.1", lower=secure)), "> "]
    if h.form:
        out += [f"}} [{len(h.form)} bytes data]", "* We are completely uploaded and fine"]
    out += [f"< HTTP/2 {h.status.split()[0]} " if secure else f"< HTTP/1.1 {h.status}"]
    out += [*_lines("<", h.response(lower=secure)), "< ", f"{{ [{len(h.body)} bytes data]"]
    size = len(h.body)
    out += [f"\r100 {size:5}  100 {size:5}    0     0   2400      0 {'--:--:-- ' * 3} 2400"]
    return "\n".join(out) + f"\n* Connection #0 to host {host} left intact\n" + h.body


def curl_8(h: Hop, version: str = "8.5.0", *, h2: bool = True, include: bool = False) -> str:
    """Ubuntu 24.04's, and later ones'; `include` is -i, which prints the headers again."""
    host, port, secure = _port(h)
    h2 = h2 and secure
    new = version >= "8.6"
    out: list[str] = []
    if new:
        out += [f"* Host {host}:{port} was resolved.", "* IPv6: (none)", "* IPv4: 93.184.216.34"]
    out += [f"*   Trying 93.184.216.34:{port}..."]
    if version < "8.14":
        out += [f"* Connected to {host} (93.184.216.34) port {port}"]
    if secure:
        out += [f"* ALPN: curl offers {'h2,' if h2 else ''}http/1.1", *TLS13.splitlines()]
        out += ["* SSL connection using TLSv1.3 / TLS_AES_256_GCM_SHA384 / X25519 / RSASSA-PSS"]
        out += [f"* ALPN: server accepted {'h2' if h2 else 'http/1.1'}", *_certificate(host)]
        out += ["*   Certificate level 0: Public key type EC/prime256v1 (256/128 Bits/secBits)"]
    if version >= "8.14":
        out += [f"* Connected to {host} (93.184.216.34) port {port}"]
    out += [f"* using HTTP/{'2' if h2 else '1.x'}"]
    if h2:
        out += [f"* [HTTP/2] [1] OPENED stream for {h.url}"]
        out += [f"* [HTTP/2] [1] [:method: {h.method}]", "* [HTTP/2] [1] [:scheme: https]"]
        out += [f"* [HTTP/2] [1] [:authority: {h.host}]", f"* [HTTP/2] [1] [:path: {h.target}]"]
        sent = h.request(f"curl/{version}", lower=True)[1:]
        out += [f"* [HTTP/2] [1] [{n}: {v}]" for n, v in sent]
    out += [f"> {h.method} {h.target} HTTP/{'2' if h2 else '1.1'}"]
    out += [*_lines(">", h.request(f"curl/{version}")), "> "]
    out += [f"* upload completely sent off: {len(h.form)} bytes"] if h.form else []
    out += ["* Request completely sent off"] if not h.form else []
    first = f"HTTP/2 {h.status.split()[0]} " if h2 else f"HTTP/1.1 {h.status}"
    out += [f"< {first}"]
    if include:
        out += [first]
    for n, v in h.response(lower=h2):
        out += [f"< {n}: {v}"] + ([f"{n}: {v}"] if include else [])
    out += ["< "] + ([""] if include else [])
    return "\n".join(out) + "\n" + h.body + f"\n* Connection #0 to host {host} left intact\n"


def curl_8_14(h: Hop) -> str:
    return curl_8(h, "8.14.1")


def curl_i(h: Hop) -> str:
    return curl_8(h, "8.5.0", h2=False, include=True)


def curl_1(h: Hop) -> str:
    return curl_8(h, "8.5.0", h2=False)


def curl_mac(h: Hop) -> str:
    """macOS's, by LibreSSL."""
    out = curl_8(h, "8.7.1").replace("TLSv1.3 (", "(304) (").replace("User-Agent", "User-Agent")
    return out.replace(
        "TLS_AES_256_GCM_SHA384 / X25519 / RSASSA-PSS",
        "AEAD-CHACHA20-POLY1305-SHA256 / [blank] / UNDEF",
    ).replace("93.184.216.34", "2606:2800:21f:cb07:6820:80da:af6b:8b2c")


def curl_old_mac(h: Hop) -> str:
    """An older macOS's, by SecureTransport."""
    host, port, _ = _port(h)
    out = ["*   Trying 93.184.216.34...", "* TCP_NODELAY set"]
    out += [f"* Connected to {host} (93.184.216.34) port {port} (#0)"]
    out += ["* TLS 1.2 connection using TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]
    out += [f"* Server certificate: {host}", "* Server certificate: Let's Encrypt Authority X3"]
    out += [f"> {h.method} {h.target} HTTP/1.1", *_lines(">", h.request("curl/7.54.0")), "> "]
    out += [f"< HTTP/1.1 {h.status}", *_lines("<", h.response()), "< "]
    return "\n".join(out) + "\n" + h.body + f"\n* Connection #0 to host {host} left intact\n"


def curl_windows(h: Hop) -> str:
    """Windows's, by Schannel."""
    host, port, secure = _port(h)
    out = [f"* Host {host}:{port} was resolved.", "* IPv6: (none)", "* IPv4: 93.184.216.34"]
    out += [f"*   Trying 93.184.216.34:{port}..."]
    if secure:
        out += ["* schannel: disabled automatic use of client certificate"]
        out += ["* ALPN: curl offers http/1.1", "* ALPN: server accepted http/1.1"]
    out += [f"* Connected to {host} (93.184.216.34) port {port}", "* using HTTP/1.x"]
    out += [f"> {h.method} {h.target} HTTP/1.1", *_lines(">", h.request("curl/8.13.0")), ">"]
    out += ["* Request completely sent off", "* schannel: remote party requests renegotiation"]
    out += ["* schannel: renegotiating SSL/TLS connection"]
    out += ["* schannel: SSL/TLS connection renegotiated"]
    out += [f"< HTTP/1.1 {h.status}", *_lines("<", h.response()), "<"]
    text = "\n".join(out) + "\n" + h.body + f"* Connection #0 to host {host} left intact\n"
    return text.replace("\n", "\r\n")


def powershell(h: Hop) -> str:
    """The same in PowerShell 5, which takes a first line on standard error for a failure."""
    first, _, rest = curl_windows(h).partition("\r\n")
    noise = [
        f"curl.exe : {first}",
        "At line:1 char:1",
        f'+ curl.exe -v "{h.url}" 2>&1 | Out-File out.txt',
        "+ ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~",
        f"    + CategoryInfo          : NotSpecified: ({first}:String) [], RemoteException",
        "    + FullyQualifiedErrorId : NativeCommandError",
        " ",
    ]
    return "\r\n".join(noise) + "\r\n" + rest


def _message(first: str, headers: Headers, body: str) -> str:
    return "\n".join([first, *(f"{n}: {v}" for n, v in headers)]) + "\n\n" + body


def httpie(h: Hop) -> str:
    """HTTPie's -v: sorted headers, formatted JSON."""
    sent = sorted(h.request("HTTPie/3.2.2"), key=lambda each: each[0].lower())
    body = h.body
    try:
        body = json.dumps(json.loads(body), indent=4)
    except ValueError:
        pass
    first = _message(f"{h.method} {h.target} HTTP/1.1", sent, h.form)
    return first + "\n\n" + _message(f"HTTP/1.1 {h.status}", sorted(h.got), body) + "\n\n"


def postman(h: Hop) -> str:
    """Postman's console, raw."""
    first = _message(f"{h.method} {h.target} HTTP/1.1", h.request("PostmanRuntime/7.43.0"), h.form)
    top = f"{h.method} {h.url}\n{h.status.split()[0]}\n214 ms\n"
    return top + first + "\n \n" + _message(f"HTTP/1.1 {h.status}", h.got, h.body) + "\n"


def raw(h: Hop) -> tuple[str, str]:
    """For --request and --response."""
    return (
        _message(f"{h.method} {h.target} HTTP/1.1", h.request("okhttp/4.12.0"), h.form),
        _message(f"HTTP/1.1 {h.status}", h.got, h.body),
    )


def raw_absolute(h: Hop) -> tuple[str, str]:
    """The same, with the whole URL in the first line, HTTP/2's lower case, and no Host."""
    sent = [(n.lower(), v) for n, v in h.request("undici")[1:]]
    got = [(n.lower(), v) for n, v in h.got]
    return (
        _message(f"{h.method} {h.url} HTTP/2", sent, h.form),
        _message(f"HTTP/2 {h.status.split()[0]}", got, h.body),
    )


def prompted(h: Hop) -> str:
    """With the prompt and the command before it, and the next prompt after it."""
    command = f"me@box:~/api$ curl -v -X {h.method} -H \"DPoP: $P\" '{h.url}'"
    return f"{command}\n{curl_1(h)}me@box:~/api$ \n"


def indented(h: Hop) -> str:
    """As a list in Markdown has it, fenced."""
    return "   ```\n" + "".join(f"   {line}\n" for line in curl_8(h).splitlines()) + "   ```\n"


def quoted(h: Hop) -> str:
    """As a mail's reply has it."""
    return "".join(f"> {line}\n" for line in curl_1(h).splitlines())


def wrapped(h: Hop) -> str:
    """As it comes out of a terminal of 80 columns that was copied by lines."""
    out = []
    for line in curl_1(h).splitlines():
        out += [line[i : i + 80] for i in range(0, len(line), 80)] or [""]
    return "\n".join(out) + "\n"


def entities(h: Hop) -> str:
    """As a page of a forum has it."""
    return escape(curl_1(h))


def stripped(h: Hop) -> str:
    """Without curl's own lines."""
    return "\n".join(x for x in curl_1(h).splitlines() if not x.startswith("*")) + "\n"


def stamped(h: Hop) -> str:
    """As a log with times before each line has it (--trace-time)."""
    return "".join(f"14:03:22.{i:06} {x}\n" for i, x in enumerate(curl_1(h).splitlines()))


def coloured(h: Hop) -> str:
    """As curl writes to a terminal, recorded with its escapes."""
    out = []
    for line in curl_1(h).splitlines():
        if line.startswith("<") and ": " in line:
            name, _, value = line[2:].partition(": ")
            line = f"< \x1b[1m{name}\x1b[0m: {value}"
        out.append(line)
    return "\n".join(out) + "\n"

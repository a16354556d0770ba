from __future__ import annotations

from urllib.parse import urlsplit

import httpx
import pytest
import requests
import urllib3
import yarl
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpop_agent.errors import HtuRefused
from dpop_agent.htu import MAX_URI, origin_of, target

ACCEPTED = [
    ("https://as.example/token?a=1&b=?x#y?z", "https://as.example/token"),
    ("https://as.example/token#f?q", "https://as.example/token"),
    ("https://as.example?x=1", "https://as.example/"),
    ("https://as.example#", "https://as.example/"),
    ("https://as.example", "https://as.example/"),
    ("HTTPS://AS.Example:443/Token", "https://as.example/Token"),
    ("https://as.example:8443/token", "https://as.example:8443/token"),
    ("https://as.example:/token", "https://as.example/token"),
    ("https://as.example:80/token", "https://as.example:80/token"),
    ("https://as.example:65535/", "https://as.example:65535/"),
    ("http://127.0.0.1:80/cb", "http://127.0.0.1/cb"),
    ("http://127.0.0.1:443/cb", "http://127.0.0.1:443/cb"),
    ("https://xn--bcher-kva.example/t", "https://xn--bcher-kva.example/t"),
    ("https://[2001:DB8::1]:443/t", "https://[2001:db8::1]/t"),
    ("https://[2001:db8::1]:/t", "https://[2001:db8::1]/t"),
    ("http://[::1]:8080/t", "http://[::1]:8080/t"),
    ("https://evil.example#@as.example/t", "https://evil.example/"),
    ("https://evil.example?@as.example/t", "https://evil.example/"),
    ("https://as.example/@evil.example", "https://as.example/@evil.example"),
    ("https://as.example/t?x=\\@evil.example", "https://as.example/t"),
    ("https://as.example./t", "https://as.example./t"),
    ("https://my_host/t", "https://my_host/t"),
    ("https://1.example/t", "https://1.example/t"),
]
KEPT_AS_THEY_ARE = [
    "https://as.example/token/",
    "https://as.example//a//b",
    "https://as.example/a%2Fb",
    "https://as.example/users/j%40x.io",
    "https://as.example/%7euser",
    "https://as.example/a...b/.../.well-known/..a/b..",
    "https://as.example/a;v=1,2/(x)!$&'*+=:@~",
]
REFUSED = [
    # dot segments
    "https://as.example/a/../b",
    "https://as.example/a/%2E%2e/b",
    "https://as.example/a/.%2e/b",
    "https://as.example/a/%2e./b",
    "https://as.example/./a",
    "https://as.example/a/.",
    "https://as.example/a/..",
    "https://as.example/%2e",
    "https://as.example/..?x",
    "https://as.example/..#x",
    # a user, or what a parser takes for one
    "https://user:pw@as.example/",
    "https://user@as.example/",
    "https://@as.example/",
    "https://as.example:443@evil.example/",
    "https://as.example\\@evil.example/t",
    "https://as.example\\.evil.example/t",
    "https://as.example%40evil.example/",
    "https:\\\\as.example\\t",
    "https://as.example/\\evil.example",
    # white space, controls, beyond ASCII
    "https://as.example/a\tb",
    "https://as.exa\tmple/",
    "https://as.example/a\rb",
    "https://as.example/a\nb",
    "https://as.example/a b",
    " https://as.example/",
    "https://as.example/ ",
    "\x00https://as.example/",
    "https://as.example/\x7f",
    "https://as.example/?q=\n",
    "https://as.example/café",
    "https://bücher.example/",
    "https://as\u3002example/",
    "https://as.example\u2044t",
    "https://as.example:\uff14\uff14\uff13/",
    "https://as.example/\ud800",
    # addresses
    "https://[fe80::1%25eth0]/",
    "https://[fe80::1%eth0]/",
    "https://[::1",
    "https://[::1]x/",
    "https://[::1]x:443/",
    "https://[]/",
    "https://[v1.a]/",
    "https://[1.2.3.4]/",
    "https://[::1]]/",
    "https://[::1]:8443]/",
    "https://[[::1]]/",
    "https://::1/",
    "https://2001:db8::1/",
    "https://0x7f.0.0.1/",
    "https://0177.0.0.1/",
    "https://127.1/",
    "https://2130706433/",
    "https://1.2.3.4.5/",
    "https://1.2.3.256/",
    "https://1.2.3.4./",
    "https://a.0x1/",
    "https://a.09/",
    "https://a.0X/",
    # ports
    "https://as.example:0443/",
    "https://as.example:0/",
    "https://as.example:65536/",
    "https://as.example:99999999999999999999/",
    "https://as.example:+443/",
    "https://as.example:-1/",
    "https://as.example:4_43/",
    "https://as.example:443:443/",
    "https://as.example:evil/",
    "https://as.example:8443]/",
    "https://as.example:evil.example]:443/",
    # names
    "https://as%2eexample/",
    "https://as..example/",
    "https://.as.example/",
    "https://./",
    "https://-as.example/",
    "https://as-.example/",
    "https://as.example,evil.example/",
    "https://as.example;evil.example/",
    "https://as.example&evil.example/",
    "https://" + "a" * 254 + "/",
    # paths that aren't
    "https://as.example/%zz",
    "https://as.example/%",
    "https://as.example/%4",
    "https://as.example/a|b",
    "https://as.example/[a]",
    'https://as.example/"a"',
    "https://as.example/<a>",
    "https://as.example/a^b",
    "https://as.example/`a`",
    "https://as.example/{a}",
    # not absolute, not http
    "",
    "/token",
    "//as.example/token",
    "as.example/token",
    "as.example:443/token",
    "https:as.example/token",
    "https:/as.example/token",
    "https:///token",
    "https://",
    "https://?x",
    "https://:443/",
    "ftp://as.example/",
    "wss://as.example/",
    "file:///etc/passwd",
    "javascript://as.example/%0aalert(1)",
    "blob:https://as.example/",
    "/x?https://as.example/",
    "https://as.example/" + "a" * MAX_URI,
    "https://as.example/?" + "a" * MAX_URI,
]


@pytest.mark.parametrize(("uri", "htu"), ACCEPTED)
def test_the_authority_is_normalised_and_query_and_fragment_go(uri: str, htu: str) -> None:
    assert target(uri).htu == htu


@pytest.mark.parametrize("uri", KEPT_AS_THEY_ARE)
def test_the_bytes_of_a_path_are_kept(uri: str) -> None:
    assert target(uri).htu == uri


@pytest.mark.parametrize("uri", REFUSED)
def test_what_two_parsers_could_read_differently_is_refused(uri: str) -> None:
    with pytest.raises(HtuRefused) as refused:
        target(uri)
    assert refused.value.hint
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("path", "instead"),
    [
        ("/a|b", "%7C"),
        ("/a^b", "%5E"),
        ("/[a", "%5B"),
        ("/a]", "%5D"),
        ('/"', "%22"),
        ("/{a}", "%7B"),
        ("/a\\b", "%5C"),
        ("/100%", "%25"),
        ("/a%41%zz", "%25"),
        ("/%4", "%25"),
    ],
)
def test_a_path_that_is_refused_is_told_what_to_write_instead(path: str, instead: str) -> None:
    with pytest.raises(HtuRefused) as refused:
        target("https://as.example" + path)
    assert instead in refused.value.hint


def test_an_origin_has_no_wildcards() -> None:
    with pytest.raises(HtuRefused, match="an origin has no wildcards; name each server"):
        origin_of("https://*.example.com")


def test_a_user_name_is_refused_as_what_it_is() -> None:
    with pytest.raises(HtuRefused, match="user name before its host"):
        target("https://user:pw@as.example/")


@pytest.mark.parametrize("uri", ["https://user:canary-pw@as.example/", "https://h/canary-pw|"])
def test_a_refusal_does_not_repeat_the_uri(uri: str) -> None:
    with pytest.raises(HtuRefused) as refused:
        target(uri)
    assert "canary-pw" not in str(refused.value)


@pytest.mark.parametrize(
    "uri",
    [
        "http://localhost:8080/",
        "http://LOCALHOST/",
        "http://127.0.0.1/",
        "http://127.255.0.3/",
        "http://[::1]/",
        "http://[0:0:0:0:0:0:0:1]/",
    ],
)
def test_http_to_loopback_is_not_cleartext_on_a_network(uri: str) -> None:
    assert not target(uri).cleartext


@pytest.mark.parametrize(
    "uri",
    [
        "http://as.example/token",
        "http://keycloak:8080/",
        "http://128.0.0.1/",
        "http://[::2]/",
        "http://[::ffff:7f00:1]/",
        "http://localhost.evil.example/",
        "http://127.0.0.1.evil.example/",
    ],
)
def test_http_to_anywhere_else_is_marked_as_cleartext(uri: str) -> None:
    assert target(uri).cleartext


def test_https_is_never_cleartext() -> None:
    assert not target("https://as.example/").cleartext


@pytest.mark.parametrize(
    ("uri", "origin"),
    [
        ("https://AS.example", "https://as.example"),
        ("https://as.example/", "https://as.example"),
        ("https://as.example:443/", "https://as.example"),
        ("http://keycloak:8080", "http://keycloak:8080"),
        ("https://[::1]:8443/", "https://[::1]:8443"),
    ],
)
def test_an_origin_is_scheme_host_and_port(uri: str, origin: str) -> None:
    assert origin_of(uri) == origin


@pytest.mark.parametrize(
    "uri",
    ["https://h/a", "https://h//", "https://h/?", "https://h?a", "https://h/#", "https://h#a", "*"],
)
def test_an_origin_with_more_than_that_is_refused(uri: str) -> None:
    with pytest.raises(HtuRefused):
        origin_of(uri)


def _urlsplit(uri: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(uri)
    assert parts.username is None
    return parts.scheme, parts.hostname, parts.port


def _httpx(uri: str) -> tuple[str, str | None, int | None]:
    url = httpx.URL(uri)
    return url.scheme, url.raw_host.decode(), url.port


def _requests(uri: str) -> tuple[str, str | None, int | None]:
    prepared = requests.Request("GET", uri).prepare().url
    assert prepared
    url = urllib3.util.parse_url(prepared)
    return url.scheme or "", (url.host or "").strip("[]"), url.port


def _yarl(uri: str) -> tuple[str, str | None, int | None]:
    url = yarl.URL(uri)
    return url.scheme, url.raw_host, url.port


PIECES = [
    "as.example",
    "evil.example",
    "127.0.0.1",
    "[::1]",
    "[2001:DB8::1]",
    "0x7f",
    ":443",
    ":8443",
    "%2e",
    "%2F",
    "%5c",
    "%40",
    "user:pw",
    "xn--bcher-kva",
    "https:",
    "://",
    "..",
    "//",
    *"1.:@\\/?#][;=&_-~'$!(+,aZ0",
]


@settings(max_examples=400, deadline=None)
@example(["127.0.0.1", ":8443", "]"])
@example(["[::1]", ":8443", "]"])
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=7))
def test_http_libraries_connect_to_the_host_that_the_policy_saw(pieces: list[str]) -> None:
    uri = "https://" + "".join(pieces)
    try:
        origin = target(uri).origin
    except HtuRefused:
        return
    parts = urlsplit(origin)
    for read in (_urlsplit, _httpx, _requests, _yarl):
        scheme, host, port = read(uri)
        assert (scheme, (host or "").lower(), port or 443) == (
            parts.scheme,
            parts.hostname,
            parts.port or 443,
        )


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=60) | st.text(max_size=60).map("https://as.example/".__add__))
def test_a_normalised_uri_is_its_own_normal_form(uri: str) -> None:
    try:
        htu = target(uri).htu
    except HtuRefused:
        return
    assert target(htu).htu == htu

"""Which of curl's options are passed on, and how; which aren't, and what is said instead."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpop_agent.cli import curl_options, main
from dpop_agent.cli.curl_options import FLAGS, VALUES, Options, RefusedError
from dpop_agent.cli.curl_run import MAX_HEAD, Head, redacted
from dpop_agent.errors import DPoPAgentError

SECRET = "canary-secret"


def refusal(*words: str) -> str:
    with pytest.raises(RefusedError) as refused:
        Options(words)
    return str(refused.value)


@pytest.mark.parametrize(
    ("words", "passed_on"),
    [
        (["-d", "a=b"], ["--data", "a=b"]),
        (["-da=b"], ["--data", "a=b"]),
        (["-d=b"], ["--data", "=b"]),
        (["-sSfd", "a=b"], ["--data", "a=b"]),
        (["-sSfda=b"], ["--data", "a=b"]),
        (["-4sdL"], ["--ipv4", "--data", "L"]),
        (["--data", "-L"], ["--data", "-L"]),
        (["--data", "--next"], ["--data", "--next"]),
        (["-d", ""], ["--data", ""]),
        (["--data=a=b"], ["--data", "a=b"]),
        (["--data="], ["--data", ""]),
        (["--data-raw", "@x"], ["--data-raw", "@x"]),
        (["--json", "{}"], ["--json", "{}"]),
        (["-H", "Accept: text/event-stream", "-N"], ["--header", "Accept: text/event-stream"]),
        (["-H", "X-Empty;"], ["--header", "X-Empty;"]),
        (["-H", "Accept:"], ["--header", "Accept:"]),
        (["-w", "%{http_code}"], ["--write-out", "%{http_code}"]),
        (["-m", "5", "--connect-timeout", "2"], ["--max-time", "5", "--connect-timeout", "2"]),
        (["--compressed", "--http2"], ["--compressed", "--http2"]),
        (["-i", "-s", "-S", "-v", "-o", "file"], []),
    ],
)
def test_what_is_passed_on_is_written_by_long_names_with_its_value_apart(
    words: list[str], passed_on: list[str]
) -> None:
    assert Options(words).words == passed_on


# Each sends the request elsewhere or again, writes secrets, or reads what nobody checks.
NEVER = [
    *("-L", "--location", "--location-trusted", "--max-redirs=3", "--post301", "--post302"),
    *("--post303", "--proto-redir=http", "-X", "--request", "--url", "--next", "-:"),
    *("--parallel", "-Z", "-G", "--get", "--url-query", "--request-target", "--resolve"),
    *("--connect-to", "--unix-socket", "--abstract-unix-socket", "--doh-url", "--dns-servers"),
    *("--interface", "--alt-svc", "--hsts", "--haproxy-protocol", "--proto-default=http", "-x"),
    *("--proxy", "--preproxy", "--socks4", "--socks4a", "--socks5", "--socks5-hostname"),
    *("--proxy1.0", "-p", "--proxytunnel", "-U", "--proxy-user", "--proxy-header"),
    *("--proxy-insecure", "--noproxy", "-u", "--user", "--oauth2-bearer", "--basic", "--digest"),
    *("--ntlm", "--negotiate", "--anyauth", "--aws-sigv4", "-n", "--netrc", "--netrc-optional"),
    *("--delegation=always", "--sasl-authzid", "-k", "--insecure", "--ssl-allow-beast"),
    *("--tlsv1.0", "--ciphers", "--engine", "-K", "--config", "--libcurl", "--trace"),
    *("--trace-ascii", "--trace-time", "--stderr", "-D", "--dump-header", "--etag-save", "-b"),
    *("--cookie", "-c", "--cookie-jar", "-T", "--upload-file", "-F", "--form", "--form-string"),
    *("--retry", "--retry-all-errors", "--retry-connrefused", "--tls-earlydata"),
    *("--tcp-fastopen", "--false-start", "-J", "--remote-header-name", "--remote-name-all"),
    *("--output-dir", "--create-dirs", "--xattr", "-q", "--disable", "-g", "--globoff"),
    *("--no-globoff", "--path-as-is", "--no-path-as-is", "--no-suppress-connect-headers"),
    *("--http0.9", "--http3", "--http3-only", "--expect100-timeout", "-Q", "--quote", "-a", "-B"),
    *("--use-ascii", "-z", "-C", "-e", "-r", "-Y", "--variable", "--expand-data"),
    *("--expand-header", "--expand-url", "-M", "--manual", "-V", "--version", "-h", "--help"),
    *("-#", "--progress-bar", "--raw", "--ignore-content-length", "--compressed-ssh"),
    *("--referer", "--range"),
]


@pytest.mark.parametrize("option", NEVER)
def test_an_option_that_could_leak_or_lead_elsewhere_is_refused_with_what_to_do(
    option: str,
) -> None:
    for words in ([option, SECRET], [option], ["-s", option], [f"{option}{SECRET}"]):
        if words[0].startswith("--") and words[0] != option and "=" not in option:
            words = [f"{option}={SECRET}"]
        said = refusal(*words)
        what, hint = said.split("; ", 1)
        assert what
        assert hint
        assert SECRET not in said


@pytest.mark.parametrize("letter", [o[1] for o in NEVER if re.fullmatch("-[^-]", o)])
def test_a_letter_that_is_refused_is_found_among_those_that_are_not(letter: str) -> None:
    refusal(f"-sS{letter}f", SECRET)
    refusal(f"-{letter}sS", SECRET)


@pytest.mark.parametrize("name", [*FLAGS, *VALUES])
def test_an_abbreviation_that_curl_would_take_is_refused_and_the_whole_name_is_told(
    name: str,
) -> None:
    short = name[:-1]
    if short in (*FLAGS, *VALUES):
        pytest.fail(f"{short} and {name}: cut off more")
    if short.endswith("-"):
        short = short[:-1]
    said = refusal(f"--{short}", SECRET)
    assert "did you mean --" in said
    assert SECRET not in said


@pytest.mark.parametrize(
    "words",
    [
        ["https://other.example/"],
        ["-"],
        ["--"],
        ["--", "https://other.example/"],
        ["-d"],
        ["--data"],
        ["-sd"],
        ["--silent=1"],
        ["-Ä"],
        ["--Data", "x"],
        [""],
        [f"--{'x' * 1000}"],
        ["-o", "a", "-o", "b"],
        ["-o", "a", "-O"],
        ["-w", "@-"],
        ["-A", "x\r\nDPoP: y"],
        ["-sAx\nHost: y"],
    ],
)
def test_words_that_are_no_option_or_no_whole_one_are_refused(words: list[str]) -> None:
    assert "; " in refusal(*words)


@pytest.mark.parametrize(
    "header",
    [
        *("DPoP:x", "dpop: x", "DPOP;", "Authorization: DPoP x", "authorization:"),
        *("Authorization;", "Host: other.example", "host:", "Forwarded: host=x"),
        *("X-Forwarded-Host: x", "X_Forwarded_Proto: x", "X-Original-URL: /x"),
        *("X-Rewrite-URL: /", "X-HTTP-Method-Override: DELETE", "X-Method-Override: PUT"),
        *("Proxy-Authorization: x", "Content-Length: 1", "Transfer-Encoding: chunked"),
        *("Connection: close", "Upgrade: h2c", "Expect: 100-continue", "TE: trailers"),
        *(":authority: x", " DPoP: x", "DPoP : x", "X", "X x: y", "@file", "@-", "@/dev/fd/0"),
        *("", "X: a\r\nDPoP: b", "X: a\nAuthorization: b", "X: a\0b", "DPoP\t: x"),
    ],
)
def test_a_header_that_is_not_the_callers_to_write_is_refused(header: str) -> None:
    for words in (["-H", header], [f"-H{header}"] if header else ["-H", ""], ["--header", header]):
        assert "; " in refusal(*words)
    assert "; " in refusal(f"--header={header}")


def test_a_headers_value_is_never_said() -> None:
    for header in (f"Authorization: Basic {SECRET}", f"{SECRET}", f"X {SECRET}: y"):
        assert SECRET not in refusal("-H", header)


def test_a_body_from_a_file_can_be_read_again_and_one_from_a_pipe_cannot(tmp_path: Path) -> None:
    file, pipe = tmp_path / "body", tmp_path / "pipe"
    file.write_text("x")
    os.mkfifo(pipe)
    for option in ("-d", "--data-binary", "--json", "--data-urlencode"):
        assert Options([option, f"@{file}"]).repeatable
        for once in (f"@{pipe}", "@-", "@/dev/stdin", "@/dev/fd/0", "@/proc/self/fd/0"):
            assert not Options([option, once]).repeatable
        for stdin in ("@-", "@/dev/stdin", "@/dev/fd/0", "@/proc/self/fd/0"):
            assert Options(["-s", option, stdin]).reads_standard_input
        assert not Options([option, f"@{file}"]).reads_standard_input
    assert not Options(["--data-urlencode", f"name@{pipe}"]).repeatable
    assert Options(["--data-urlencode", f"name=x@{pipe}"]).repeatable
    assert Options(["--data-raw", f"@{pipe}"]).repeatable
    assert not Options(["-d", f"@{file}", "-d", f"@{pipe}"]).repeatable
    with pipe.open("r+b", buffering=0) as one, file.open() as other:
        numbers = [one.fileno(), other.fileno()]
        words = [word for n in (*numbers, 0, 999_999_999) for word in ("-d", f"@/dev/fd/{n}")]
        assert Options(words).descriptors == sorted(numbers)
    assert Options(words).descriptors == [], "they are closed now"


def test_a_value_is_never_taken_for_an_option() -> None:
    found = Options(["-d", "--compressed", "-H", "X: --netrc-file", "-A", "-v", "-w", "--data"])
    assert (found.compressed, found.has_credentials, found.verbose) == (False, False, False)
    assert found.has_body
    assert Options(["--compressed", "--netrc-file", "x"]).compressed
    assert Options(["--compressed", "--netrc-file", "x"]).has_credentials


def test_the_commands_that_refusals_name_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    named = {"curl --help"}
    texts = [refusal("--quote", "x"), refusal("-Q", "x"), *curl_options._REFUSED.values()]
    for text in texts:
        named |= {found.strip() for found in re.findall(r"dpop-agent ([a-z]+ [a-z-]+)", text)}
    assert named == {"curl --help"}
    assert main.main(["curl", "--help"]) == 0
    shown = capsys.readouterr().out
    for name in (*FLAGS, *VALUES):
        assert f"--{name}" in shown.replace("\n", "")


def test_options_that_refusals_name_are_passed_on_or_the_verbs_own() -> None:
    ours = {"access-token-file"}
    for text in (*curl_options._REFUSED.values(), *curl_options._WRITTEN_HERE.values()):
        assert set(re.findall(r"--([a-z]+[a-z-]*)", text)) <= {*FLAGS, *VALUES, *ours}, text


_WORDS = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from([*NEVER, *(f"--{name}" for name in (*FLAGS, *VALUES)), "-", "--", "@-"]),
        st.text("-sSfdoHAwmiIvNOLKxu=", max_size=8).map("-".__add__),
    ),
    max_size=6,
)


@given(_WORDS)
@settings(max_examples=400, deadline=None)
def test_whatever_is_given_curl_gets_listed_names_with_a_value_each_or_nothing(
    words: list[str],
) -> None:
    try:
        rest = iter(Options(words).words)
    except RefusedError:
        return
    for word in rest:
        name = word.removeprefix("--")
        assert name in {*FLAGS, *VALUES}
        if name in VALUES:
            value = next(rest)
            assert not (name in ("header", "user-agent") and set("\r\n") & set(value))


# --- what comes back


def head(*parts: bytes) -> Head:
    found = Head()
    for part in parts:
        found.feed(part)
    return found


ANSWER = b"HTTP/1.1 401 Unauthorized\r\nDPoP-Nonce: a\r\ndpop-nonce:b \r\nX: 1\r\n\t2\r\n\r\n"


def test_an_answers_headers_are_read_in_whatever_pieces_they_come() -> None:
    for found in (head(ANSWER), head(*(bytes([byte]) for byte in ANSWER))):
        assert found.status == 401
        assert found.raw == ANSWER
        assert found.values("DPoP-Nonce") == ["a", "b"]
        assert found.values("x") == ["1 2"]
        assert found.values("Y") == []


@pytest.mark.parametrize("end", ["\r", "\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\xc3\x85"])
def test_what_is_no_line_end_in_http_begins_no_header(end: str) -> None:
    found = head(b"HTTP/1.1 200 OK\r\nX: a%sDPoP-Nonce: b\r\n\r\n" % end.encode("latin-1"))
    assert found.values("DPoP-Nonce") == []
    assert found.values("X") == [f"a{end}DPoP-Nonce: b"]


def test_interim_answers_and_trailers_are_not_the_answer() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nDPoP-Nonce: early\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    found = head(early, ANSWER[:20], ANSWER[20:] + b"DPoP-Nonce: late\r\n\r\n")
    found.feed(b"HTTP/1.1 200 OK\r\nDPoP-Nonce: later\r\n\r\n")
    assert found.status == 401
    assert found.values("DPoP-Nonce") == ["a", "b"]


def test_headers_without_an_end_are_left() -> None:
    found = Head()
    early = b"HTTP/1.1 103 Early Hints\r\nX: " + b"y" * 100 + b"\r\n\r\n"
    found.feed(early * (MAX_HEAD // len(early)))
    with pytest.raises(DPoPAgentError, match="512 KiB"):
        found.feed(early)
    assert found.status is None


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"> DPoP: aa.bb.cc\r", "> DPoP: aa.bb.…\r".encode()),
        (b"> dpop: aa\r", b"> dpop: [redacted]\r"),
        (b"> Authorization: DPoP canary\r", b"> Authorization: DPoP [redacted]\r"),
        (b"> authorization: canary", b"> authorization: [redacted]"),
        (b"> Proxy-Authorization: Basic canary\r", b"> Proxy-Authorization: Basic [redacted]\r"),
        (b"* h2h3 [authorization: DPoP canary]", b"* h2h3 [authorization: DPoP [redacted]"),
        (b"* [HTTP/2] [1] [dpop: aa.bb.cc]", "* [HTTP/2] [1] [dpop: aa.bb.…".encode()),
        (b"< DPoP-Nonce: n\r", b"< DPoP-Nonce: n\r"),
        (b'< WWW-Authenticate: DPoP error="x"\r', b'< WWW-Authenticate: DPoP error="x"\r'),
        (b"> Host: api.example\r", b"> Host: api.example\r"),
        (b"> ry-access-token.Az09-._~+/==\r", b"> [redacted]\r"),
        (b"* canary-access-token.Az", b"* [redacted]"),
        (b"> cc-signature-cc-signature\r", b"> [redacted]\r"),
        (b"< X: t=canary-access-token.Az09-._~+/==&u", b"< X: t=[redacted]&u"),
        (b"< X: canary-access-token.Az09-._~+/== dpop: u", b"< X: [redacted] dpop: [redacted]"),
        (b"* Connected to api.example.com (192.0.2.1) port 443 (#0)",) * 2,
    ],
)
def test_what_v_shows_has_no_access_token_and_no_proof_that_is_one(
    line: bytes, shown: bytes
) -> None:
    secrets = [b"canary-access-token.Az09-._~+/==", b"cc-signature-cc-signature"]
    assert redacted(line, secrets) == shown

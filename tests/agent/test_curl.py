"""`dpop-agent curl`: a real curl, a real agent, and servers that are as they shouldn't be."""

from __future__ import annotations

import gzip
import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived

from dpop_agent import verify
from dpop_agent.cli import curl, curl_options, curl_run
from dpop_agent.cli.curl_options import FLAGS, VALUES, Options, RefusedError
from dpop_agent.jose import access_token_hash, b64url_decode
from tests.agent.places import descendants, until
from tests.emulators import need
from tests.processes import Agent, running
from tests.terminal import Terminal
from tests.unit.certificates import Certificates
from tests.unit.fake_server import FakeServer, Reply, Seen

ACCESS_TOKEN = "canary-access-token.Az09-._~+/=="
Done = subprocess.CompletedProcess[str]


@pytest.fixture(autouse=True)
def here() -> None:
    need("curl")


@pytest.fixture
def access_token(tmp_path: Path) -> str:
    """The file with it."""
    file = tmp_path / "access-token"
    file.write_text(f"{ACCESS_TOKEN}\n")
    return str(file)


def claims(seen: Seen) -> dict[str, Any]:
    (proof,) = seen.proofs
    found: dict[str, Any] = json.loads(b64url_decode(proof.split(".")[1]))
    return found


def wants_nonce(*nonces: str, challenge: Reply | None = None) -> Callable[[Seen], Reply]:
    """Challenges whoever has none of these nonces, with the first of them."""

    def handle(seen: Seen) -> Reply:
        if claims(seen).get("nonce") in nonces:
            return Reply(200, b"the answer\n", Content_Type="text/plain")
        if challenge is not None:
            return challenge
        return Reply(
            401,
            b"the challenge\n",
            DPoP_Nonce=nonces[0],
            WWW_Authenticate='DPoP algs="ES256", error="use_dpop_nonce"',
        )

    return handle


def answers(body: bytes = b"the answer\n", status: int = 200, **headers: str) -> FakeServer:
    return FakeServer(lambda _: Reply(status, body, **headers))


def said(done: Done) -> tuple[int, str, str]:
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


# --- the request


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/v1/me", "/v1/me?q=1", "/?a=b#fragment", "/a%2Fb/%c3%A9;x=1/~%7e", "//two//"),
        *("/{a,b}/[1-3]?{c,d}[4-5]&e=`|^\\\"'<>", "/x?a=../b&c=//d?e", "/a:b@c", "/%7B%7D%20"),
    ],
)
def test_the_proof_names_what_the_server_saw_byte_for_byte(
    path: str, shared_agent: Agent, access_token: str
) -> None:
    with answers() as server:
        url = server.origin.replace("http://127.0.0.1", "HTTP://LOCALHOST") + path
        if re.search(r"[{}\[\]^|\\\"`<>]", path.partition("?")[0]):
            refused = shared_agent.run("curl", "GET", url)
            assert refused.returncode == 1
            assert server.seen == []
            url = f"{server.origin}/?{path.partition('?')[2]}"
        done = shared_agent.run("curl", "GET", url, "--access-token-file", access_token)
        assert said(done) == (0, "the answer\n", "")
        (seen,) = server.seen
    wanted = url.partition("#")[0].partition("//")[2].partition("/")
    assert seen.path == wanted[1] + wanted[2] or (seen.path == "/" and not path)
    (proof,) = seen.proofs
    verify.verify(
        proof,
        htm=seen.method,
        htu=f"http://{seen.headers['Host']}{seen.path.partition('?')[0]}",
        jkt=shared_agent.client().generation("default").jkt,
        ath=access_token_hash(ACCESS_TOKEN),
    )
    assert seen.headers.get_all("Authorization") == [f"DPoP {ACCESS_TOKEN}"]
    assert seen.headers.get_all("Expect") is None


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD"])
def test_the_method_is_the_one_that_the_proof_names(shared_agent: Agent, method: str) -> None:
    with answers(X_Header="shown") as server:
        done = shared_agent.run("curl", method, server.origin, check=True)
        (seen,) = server.seen
    assert (seen.method, claims(seen)["htm"]) == (method, method)
    assert "ath" not in claims(seen)
    assert ("X-Header: shown" in done.stdout) == (method == "HEAD")
    assert ("the answer" in done.stdout) == (method != "HEAD")


@pytest.mark.parametrize(
    "words",
    [
        ["HEAD", "URL", "--", "-d", "x"],
        ["GET", "URL", "--", "-I"],
        ["TRACE", "URL"],
        ["CONNECT", "URL"],
        ["GET", "URL", "--access-token-file", "-", "--", "-d", "@-"],
        ["GET", "URL", "--access-token-file", "FILE", "--", "--netrc-file", "x"],
        ["GET", "URL", "--", "-O"],
        ["GET", "URL", "--", "-L"],
        ["GET", "URL", "-d", "x"],
        ["GET", "URL", "URL"],
        ["GET", "--", "URL"],
        ['GET"', "URL"],
        ["GET\n", "URL"],
    ],
)
def test_what_does_not_go_together_is_a_usage_error_and_nothing_is_sent(
    words: list[str], shared_agent: Agent, access_token: str
) -> None:
    with answers() as server:
        places = {"URL": f"{server.origin}/", "FILE": access_token}
        done = shared_agent.run("curl", *(places.get(word, word) for word in words), stdin="x")
        assert server.seen == []
    status, out, err = said(done)
    assert (status, out) == (2, "")
    assert "dpop-agent curl: error: " in err


@pytest.mark.parametrize(
    "url",
    [
        *("127.0.0.1", "ftp://127.0.0.1/", "file:///etc/passwd", "-K", "http://u:p@127.0.0.1/"),
        *("http://127.0.0.1/a/../b", "http://127.0.0.1/%2e%2e/b", "http://127.1/", "http:///x"),
        *("http://127.0.0.1/\\x", "http://127.0.0.1/ x", "http://127.0.0.1/?a b", "http://é.x/"),
        *("http://127.0.0.1/?a\r\nX: y", 'http://127.0.0.1/"\nurl="http://127.0.0.2/'),
        *("http://192.0.2.1/", "http://api.example.com/x", "http://[::1%25lo]/"),
    ],
)
def test_a_url_that_reads_in_two_ways_or_goes_over_the_wire_in_clear_is_refused(
    url: str, shared_agent: Agent, access_token: str
) -> None:
    words = ["GET", url, "--access-token-file", access_token]
    status, out, err = said(shared_agent.run("curl", *words))
    assert out == ""
    assert status in (1, 2)
    assert "; " in err or "usage:" in err
    assert "curl: (" not in err, "curl was asked"


@pytest.mark.parametrize(
    "text",
    [
        *("", "a b", 'a"\nurl = "http://127.0.0.1:1/', "a\nb", "a\\b", "é", "a\0b", '"x"'),
        *("Bearer x", '{"access_token":"x"}', "x" * 70_000),
    ],
)
def test_an_access_token_that_is_none_is_refused_and_not_shown(
    text: str, shared_agent: Agent, tmp_path: Path
) -> None:
    file = tmp_path / "access-token"
    file.write_text(text)
    with answers() as server:
        words = ["GET", server.origin, "--access-token-file", str(file)]
        status, out, err = said(shared_agent.run("curl", *words))
        assert server.seen == []
    assert (status, out) == (1, "")
    assert err.startswith("dpop-agent: ")
    assert err.count("\n") == 1
    assert not text or text not in err


def test_an_access_token_may_be_long_and_come_from_standard_input(shared_agent: Agent) -> None:
    long = "x" * 60_000
    with answers() as server:
        words = ["GET", server.origin, "--access-token-file", "-"]
        done = shared_agent.run("curl", *words, stdin=long, check=True)
        assert server.seen[0].headers["Authorization"] == f"DPoP {long}"
        assert claims(server.seen[0])["ath"] == access_token_hash(long)
    assert done.stdout == "the answer\n"


def test_bodies_and_headers_go_as_curl_sends_them(shared_agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"\0binary\n")
    binary = ["--data-binary", f"@{tmp_path / 'body'}", "-H", "Content-Type: application/x"]
    with answers() as server:
        for words in (["-d", "a=b", "-d", "c=d"], ["--json", '{"a":"é"}'], binary):
            shared_agent.run("curl", "POST", server.origin, "--", *words, check=True)
        shared_agent.run("curl", "POST", server.origin, "--", "-d", "@-", stdin="in", check=True)
        bodies = [seen.body for seen in server.seen]
        assert bodies == [b"a=b&c=d", '{"a":"é"}'.encode(), b"\0binary\n", b"in"]
        types = [seen.headers["Content-Type"] for seen in server.seen]
        assert types[1:3] == ["application/json", "application/x"]


def test_a_big_body_goes_without_expect_which_would_send_the_proof_twice(
    shared_agent: Agent, tmp_path: Path
) -> None:
    (tmp_path / "body").write_bytes(b"x" * 2_000_000)
    words = ["--data-binary", f"@{tmp_path / 'body'}"]
    with answers() as server:
        shared_agent.run("curl", "PUT", server.origin, "--", *words, check=True)
        (seen,) = server.seen
    assert len(seen.body) == 2_000_000
    assert "Expect" not in seen.headers


def test_a_generation_is_named_by_key_or_jkt_and_never_guessed(
    agent: Agent, access_token: str
) -> None:
    old = agent.create_key("default")["jkt"]
    agent.run("key", "rotate", "default", check=True)
    presents = ["--access-token-file", access_token]

    def jkt_of(seen: Seen) -> str:
        return verify.verify(seen.proofs[0], htm="GET", htu=f"{server.origin}/", max_age_s=600).jkt

    with answers() as server:
        status, out, err = said(agent.run("curl", "GET", server.origin, *presents))
        assert (status, out, server.seen) == (1, "", [])
        assert f"{old} (default@1, draining)" in err
        for words in (["--key", "default@1"], ["--jkt", old]):
            agent.run("curl", "GET", server.origin, *presents, *words, check=True)
        assert [jkt_of(seen) for seen in server.seen] == [old, old]


def test_without_an_agent_nothing_is_sent(shared_agent: Agent, tmp_path: Path) -> None:
    with answers() as server:
        env = {**shared_agent.env, "DPOP_AGENT_SOCK": str(tmp_path / "none.sock")}
        done = _run(["GET", server.origin], env)
        assert (done.returncode, done.stdout, server.seen) == (3, "", [])


def _run(words: Iterable[str], env: dict[str, str], **more: Any) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "dpop_agent", "curl", *words],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **more,
    )


@pytest.mark.parametrize("name", [name for name in VALUES if name != "output"])
def test_no_value_of_an_option_writes_a_header_or_leads_elsewhere(
    name: str, shared_agent: Agent, access_token: str
) -> None:
    with answers() as server, answers() as evil:
        host = evil.origin.removeprefix("http://")
        for value in (
            *(f'x"\r\nDPoP: evil\r\nHost: {host}', f'"\nurl = "{evil.origin}', evil.origin),
            *(
                "--next",
                "-L",
                "-K/dev/stdin",
                "@/dev/stdin",
                f"X: y\n\nGET {evil.origin}/ HTTP/1.1",
            ),
            *(f"Host: {host}", f"x;{evil.origin}", "%{url}", "\\", "5"),
        ):
            words = ["POST", f"{server.origin}/x", "--access-token-file", access_token]
            words += ["--", f"--{name}", value, "-m", "20"]
            done = shared_agent.run("curl", *words, stdin=f"url = {evil.origin}\n")
            assert "Traceback" not in done.stderr
        assert evil.seen == []
        for seen in server.seen:
            assert len(claims(seen)) >= 4
            assert seen.headers.get_all("Authorization") == [f"DPoP {ACCESS_TOKEN}"]
            assert [seen.headers["Host"]] == seen.headers.get_all("Host")
            assert server.origin.endswith(seen.headers["Host"])
            assert (seen.method, seen.path) == ("POST", "/x")


# --- nonces

_JSON = {"Content_Type": "application/json"}
_ERROR = b'{"error": "use_dpop_nonce", "error_description": "the challenge"}'


@pytest.mark.parametrize(
    ("challenge", "words"),
    [
        (Reply(400, _ERROR, DPoP_Nonce="n-1", **_JSON), []),
        (Reply(400, _ERROR, DPoP_Nonce="n-1", **_JSON), ["-f"]),
        (Reply(400, _ERROR, DPoP_Nonce="n-1", **_JSON), ["-i"]),
        (Reply(401, _ERROR, DPoP_Nonce="n-1", **_JSON), ["--fail-with-body"]),
        (Reply(401, _ERROR, DPoP_Nonce="n-1", Content_Type="text/plain"), []),
        (Reply(400, [_ERROR[:9], _ERROR[9:]], DPoP_Nonce="n-1", **_JSON), ["-N"]),
        (
            Reply(400, gzip.compress(_ERROR), DPoP_Nonce="n-1", Content_Encoding="gzip", **_JSON),
            [],
        ),
        (
            Reply(400, gzip.compress(_ERROR), DPoP_Nonce="n-1", Content_Encoding="gzip", **_JSON),
            ["--compressed"],
        ),
        (
            Reply(
                401,
                [b"the challenge"] * 10_000,
                DPoP_Nonce="n-1",
                WWW_Authenticate='DPoP error="use_dpop_nonce"',
            ),
            [],
        ),
    ],
)
def test_a_challenge_of_any_kind_is_answered_once_and_never_shown(
    challenge: Reply, words: list[str], shared_agent: Agent, tmp_path: Path
) -> None:
    with FakeServer(wants_nonce("n-1", challenge=challenge)) as server:
        file = tmp_path / "file"
        for to, where in (([], "the answer\n"), (["-o", str(file)], "")):
            options = ["-d", "a=b", "-w", "%{http_code}", *words, *to]
            done = shared_agent.run("curl", "POST", server.origin, "--", *options)
            assert done.returncode == 0
            assert done.stderr == ""
            assert done.stdout.endswith(f"{where}200")
            assert "challenge" not in done.stdout
        assert file.read_text().endswith("the answer\n")
        assert "challenge" not in file.read_text()
        assert [claims(seen).get("nonce") for seen in server.seen] == [None, "n-1", "n-1"]
        assert [seen.body for seen in server.seen] == [b"a=b"] * 3
        assert len({claims(seen)["jti"] for seen in server.seen}) == 3


def test_a_nonce_that_comes_with_an_answer_is_in_the_next_commands_proof(
    shared_agent: Agent,
) -> None:
    with answers(DPoP_Nonce="n-2") as server:
        for _ in range(2):
            shared_agent.run("curl", "GET", server.origin, check=True)
        assert [claims(seen).get("nonce") for seen in server.seen] == [None, "n-2"]


def test_a_server_that_challenges_again_and_again_is_asked_twice(shared_agent: Agent) -> None:
    numbers = iter(range(99))

    def handle(seen: Seen) -> Reply:
        return Reply(400, _ERROR, DPoP_Nonce=f"n-{next(numbers)}", Content_Type="application/json")

    with FakeServer(handle) as server:
        done = shared_agent.run("curl", "GET", server.origin, "--", "-f")
        assert done.returncode == 22
        assert len(server.seen) == 2
        done = shared_agent.run("curl", "GET", server.origin)
        assert (done.returncode, done.stdout) == (0, _ERROR.decode())
        assert len(server.seen) == 4


@pytest.mark.parametrize(
    "challenge",
    [
        Reply(400, _ERROR, DPoP_Nonce='n"\\', Content_Type="application/json"),
        Reply(400, _ERROR, DPoP_Nonce="a b", Content_Type="application/json"),
        Reply(400, _ERROR, Content_Type="application/json"),
        Reply(401, b"x" * 20_000, DPoP_Nonce="n", Content_Type="application/json"),
        Reply(400, b"{", DPoP_Nonce="n", Content_Type="application/json"),
        Reply(400, _ERROR, DPoP_Nonce="n", Content_Type="text/event-stream"),
        Reply(200, _ERROR, DPoP_Nonce="n", Content_Type="application/json"),
        Reply(403, _ERROR, DPoP_Nonce="n", Content_Type="application/json"),
    ],
)
def test_what_is_no_challenge_is_shown_as_it_came(challenge: Reply, shared_agent: Agent) -> None:
    with FakeServer(lambda _: challenge) as server:
        done = shared_agent.run("curl", "GET", server.origin)
        assert len(server.seen) == 1
    assert isinstance(challenge.body, bytes)
    assert (done.returncode, done.stdout) == (0, challenge.body.decode())


@contextmanager
def raw_server(*replies: bytes, times: int = 1) -> Iterator[tuple[str, list[bytes]]]:
    """Sends the last reply as often as anybody takes it; what came."""
    listener = socket.create_server(("127.0.0.1", 0))
    came: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                came.append(connection.recv(65536))
                try:
                    for reply in replies:
                        connection.sendall(reply)
                    for _ in range(times - 1):
                        connection.sendall(replies[-1])
                except OSError:
                    pass  # it left

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", came
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


_CHALLENGED = b"HTTP/1.1 401 No\r\nWWW-Authenticate: DPoP error=use_dpop_nonce\r\n"


def test_several_nonces_are_none(shared_agent: Agent) -> None:
    many = b"".join(b"DPoP-Nonce: n-%d\r\n" % i for i in range(1000))
    with raw_server(_CHALLENGED + many + b"Content-Length: 2\r\n\r\nno") as (origin, came):
        done = shared_agent.run("curl", "GET", origin)
        assert (done.returncode, done.stdout) == (0, "no")
        assert len(came) == 1


@pytest.mark.parametrize(
    "replies",
    [
        [b"HTTP/1.1 200 OK\r\n", b"X: " + b"y" * 1000 + b"\r\n"],
        [b"HTTP/1.1 103 Early Hints\r\nX: " + b"y" * 1000 + b"\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nX: ", b"y" * 1000],
    ],
)
def test_headers_without_an_end_are_an_error(replies: list[bytes], shared_agent: Agent) -> None:
    with raw_server(*replies, times=100_000) as (origin, _):
        status, out, err = said(shared_agent.run("curl", "GET", origin))
    assert status not in (0, 2, 3)
    assert out == ""
    assert err


def test_heads_long_headers_come_through_though_curl_gives_them_twice(shared_agent: Agent) -> None:
    headers = b"".join(b"X-%d: %s\r\n" % (i, b"y" * 900) for i in range(200))
    with raw_server(b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n") as (origin, _):
        status, out, err = said(shared_agent.run("curl", "HEAD", origin, "--", "-m", "30"))
    assert (status, err) == (0, "")
    assert out.encode().count(b"y" * 900) == 200


def test_a_body_behind_a_101_that_nobody_asked_for_is_no_answer(shared_agent: Agent) -> None:
    reply = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + b"z" * 300_000
    for times in (1, 10):
        with raw_server(reply, times=times) as (origin, _):
            status, out, err = said(shared_agent.run("curl", "GET", origin, "--", "-m", "30"))
        assert (status, out) == (1, "")
        assert err


def test_an_ignored_sigchld_hides_no_failure_of_curls(shared_agent: Agent) -> None:
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfive!"
    ignoring = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
    ignoring += "os.execv(sys.executable, [sys.executable, '-m', 'dpop_agent', *sys.argv[1:]])"
    with raw_server(reply) as (origin, _):
        done = subprocess.run(
            [sys.executable, "-c", ignoring, "curl", "GET", origin],
            env=shared_agent.env,
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout) == (18, b"five!")


def test_a_challenge_whose_body_has_no_end_is_answered_all_the_same(shared_agent: Agent) -> None:
    head = _CHALLENGED + b"DPoP-Nonce: n-1\r\nContent-Type: application/json\r\n\r\n"
    with raw_server(head, b"x" * 10_000, times=100_000) as (origin, came):
        words = ["GET", origin, "--", "-o", "/dev/null", "--fail-with-body", "-m", "3"]
        done = shared_agent.run("curl", *words)
        assert done.returncode in (22, 28)
        assert len(came) == 2


# --- bodies that are there once


def test_a_body_from_standard_input_is_sent_once_and_the_next_command_has_the_nonce(
    shared_agent: Agent,
) -> None:
    with FakeServer(wants_nonce("n-1")) as server:
        words = ["curl", "POST", server.origin, "--", "--data-binary", "@-"]
        status, out, err = said(shared_agent.run(*words, stdin="once"))
        assert (status, out) == (65, "")
        assert err.startswith(f"dpop-agent: {server.origin} asks for a nonce")
        assert "; run the command again" in err
        assert [seen.body for seen in server.seen] == [b"once"]
        assert said(shared_agent.run(*words, stdin="once")) == (0, "the answer\n", "")
        assert [claims(seen).get("nonce") for seen in server.seen] == [None, "n-1"]


def test_a_body_from_a_shells_pipe_is_sent_and_not_taken_for_one_that_can_be_read_twice(
    shared_agent: Agent,
) -> None:
    with FakeServer(wants_nonce("n-1")) as server:
        script = '"$1" -m dpop_agent curl POST "$2" -- --data-binary @<(printf piped)'
        command = ["bash", "-c", script, "bash", sys.executable, server.origin]
        statuses = [
            subprocess.run(command, env=shared_agent.env, capture_output=True).returncode
            for _ in range(2)
        ]
        assert statuses == [65, 0]
        assert [seen.body for seen in server.seen] == [b"piped"] * 2


@pytest.mark.parametrize(
    "words",
    [
        *(["-d", "@/nonexistent"], ["--json", "@/"], ["--data-binary", "@/dev/fd/63"]),
        *(["--data-urlencode", "a@/nonexistent"], ["--netrc-file", "/nonexistent"]),
    ],
)
def test_where_a_file_cannot_be_read_nothing_is_sent_in_its_place(
    words: list[str], shared_agent: Agent
) -> None:
    """curl itself would send an empty body, or no credentials."""
    with answers() as server:
        status, out, err = said(shared_agent.run("curl", "POST", server.origin, "--", *words))
        assert (status, out, server.seen) == (1, "", [])
    assert re.fullmatch(r"dpop-agent: /\S* can't be read; give another file\n", err)


# --- the answer


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_error_that_says_where_it_pointed_without_its_secrets(
    status: int, shared_agent: Agent, access_token: str, tmp_path: Path
) -> None:
    with answers() as other:
        host = other.origin.removeprefix("http://")
        secret = f"{ACCESS_TOKEN}?code=canary-code#canary-fragment"
        location = f"http://canary-user:canary-pw@{host}/next/{secret}"
        with answers(b"canary-body", status, Location=location) as server:
            words = ["-i", "-o", str(tmp_path / "file")]
            presents = ["--access-token-file", access_token]
            done = shared_agent.run("curl", "GET", server.origin, *presents, "--", *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"a redirect to http://{host}/next/…?…" in done.stderr
        assert "canary" not in done.stderr
        assert not (tmp_path / "file").exists()
        assert other.seen == []


def test_where_a_redirect_points_cannot_steer_a_terminal(shared_agent: Agent) -> None:
    reply = b"HTTP/1.1 302 Go\r\nLocation: /\x1b[2J\x07%s\r\nContent-Length: 0\r\n\r\n" % (
        b"a" * 900
    )
    with raw_server(reply) as (origin, _):
        status, _, err = said(shared_agent.run("curl", "GET", origin))
    assert status == 1
    assert "\x1b" not in err
    assert len(err) < 600


def test_a_304_and_a_201_with_a_location_are_answers(shared_agent: Agent) -> None:
    for status in (304, 201, 300):
        with answers(b"", status, Location="/new") as server:
            done = shared_agent.run("curl", "GET", server.origin, "--", "-w", "%{http_code}")
            assert (done.returncode, done.stdout) == (0, str(status))


def test_the_output_options_do_as_curls_do(shared_agent: Agent, tmp_path: Path) -> None:
    with answers(X_Header="shown") as server:

        def go(*words: str, method: str = "GET") -> str:
            done = _run(
                [method, f"{server.origin}/name?q", "--", *words], shared_agent.env, cwd=tmp_path
            )
            assert (done.returncode, done.stderr) == (0, "")
            return done.stdout

        assert re.fullmatch(
            r"HTTP/1\.1 200 OK\n(.+\n)+X-Header: shown\n(.+\n)+\nthe answer\n", go("-i")
        )
        assert go("-o", "file", "-w", "%{size_download}") == "11"
        assert (tmp_path / "file").read_text() == "the answer\n"
        assert go("-sSO") == ""
        assert (tmp_path / "name").read_text() == "the answer\n"
        assert go("-o-") == "the answer\n"
        for words in (["-sI"], ["-i"], []):
            shown = go(*words, method="HEAD")
            assert shown.startswith("HTTP/1.1 200 OK\n")
            assert shown.count("X-Header: shown") == 1
        go("-o", "head", method="HEAD")
        assert "X-Header: shown" in (tmp_path / "head").read_text()
        assert "the answer" not in (tmp_path / "head").read_text()


def test_a_file_that_cannot_be_written_is_named(shared_agent: Agent) -> None:
    with answers() as server:
        status, out, err = said(
            shared_agent.run("curl", "GET", server.origin, "--", "-o", "/nonexistent/file")
        )
    assert (status, out) == (1, "")
    assert err.startswith("dpop-agent: /nonexistent/file: ")


def test_an_error_of_the_server_fails_where_that_is_asked_for(shared_agent: Agent) -> None:
    with answers(b"why\n", 404) as server:

        def go(*words: str) -> tuple[int, str, str]:
            return said(shared_agent.run("curl", "GET", server.origin, "--", *words))

        told = f"dpop-agent: {server.origin} answers 404\n"
        assert go() == (0, "why\n", "")
        assert go("-f") == (22, "", told)
        assert go("--fail-with-body") == (22, "why\n", told)
        assert go("-sf", "-w", "%{http_code}") == (22, "404", "")
        assert go("-sSf") == (22, "", told)
    over = threading.Event()

    def parts() -> Iterator[bytes]:
        yield b"why"
        over.wait(30)

    with FakeServer(lambda _: Reply(500, parts())) as server:
        assert go("-f")[0] == 22
        assert not over.is_set(), "the body isn't waited for"
        over.set()


def test_curls_own_failures_are_its_own_exit_statuses_and_words(shared_agent: Agent) -> None:
    def go(*words: str) -> tuple[int, str, str]:
        return said(shared_agent.run("curl", *words))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        status, out, err = go("GET", f"http://127.0.0.1:{port}/", "--", "-m", "0.3")
        assert (status, out) == (28, "")
        assert err.startswith("curl: (28) ")
        assert go("GET", f"http://127.0.0.1:{port}/", "--", "-s", "-m", "0.3")[2] == ""
    status, out, err = go("GET", f"http://127.0.0.1:{port}/", "--", "-w", "%{http_code}")
    assert (status, out) == (7, "000")
    with raw_server(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf") as (origin, _):
        status, out, err = go("GET", origin)
        assert (status, out) == (18, "half")
    with raw_server(b"") as (origin, _):
        assert go("GET", origin)[0] == 52
    status, out, err = go("GET", f"http://127.0.0.1:{port}/", "--", "-m", "soon")
    assert (status, out) == (1, "")
    assert "dpop-agent: curl ended with status 2; " in err


def test_where_there_is_no_curl_or_an_old_one_that_is_said(
    shared_agent: Agent, tmp_path: Path
) -> None:
    def go(path: Path) -> tuple[int, str, str]:
        return said(_run(["GET", "http://127.0.0.1/"], {**shared_agent.env, "PATH": str(path)}))

    status, out, err = go(tmp_path)
    assert (status, out) == (1, "")
    assert err == "dpop-agent: there is no curl on the PATH; install it, as by: apt install curl\n"
    old = tmp_path / "curl"
    old.write_text("#!/bin/sh\necho 'curl: option --x: is unknown' >&2\nexit 2\n")
    old.chmod(0o755)
    status, out, err = go(tmp_path)
    assert (status, out) == (1, "")
    assert "too old" in err
    old.chmod(0o644)
    assert go(tmp_path)[0] == 1


# --- while it runs


@contextmanager
def started(agent: Agent, *words: str, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The command, in a process group of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dpop_agent", "curl", *words],
        env=agent.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **more,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_from(process: subprocess.Popen[bytes]) -> bytes:
    """What comes next on its standard output."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 30)
    assert ready, "nothing came"
    return os.read(process.stdout.fileno(), 65536)


def test_a_curl_that_is_cut_off_from_us_sends_nothing_without_a_proof(
    shared_agent: Agent, access_token: str, tmp_path: Path
) -> None:
    """As where a signal ends us when curl runs and has its configuration not yet, or half."""
    stub = tmp_path / "bin" / "curl"
    stub.parent.mkdir()
    stub.write_text(f"""#!/bin/sh
        printf '%s\\n' "$@" > {tmp_path}/words
        while [ "$1" != --config ]; do shift; done
        cat "$2" > {tmp_path}/told
    """)
    stub.chmod(0o755)
    path = f"{stub.parent}:{os.environ['PATH']}"
    query = "?a=\\"
    with answers() as server:
        words = ["POST", f"{server.origin}/{query}", "--access-token-file", access_token]
        _run([*words, "--", "-d", "a=b"], {**shared_agent.env, "PATH": path})
        given = (tmp_path / "words").read_text().splitlines()
        assert not any(server.origin in word for word in given)
        told = (tmp_path / "told").read_text().splitlines(keepends=True)
        assert [line.split()[0] for line in told] == ["header", "header", "url"]
        for config, seen in ((told[:0], 0), (told[:1], 0), (told[:2], 0), (told, 1)):
            (tmp_path / "config").write_text("".join(config))
            descriptor = given[given.index("--config") + 1]
            curl_ = [str(tmp_path / "config") if word == descriptor else word for word in given]
            curl_ = ["/dev/null" if word.startswith("/dev/fd/") else word for word in curl_]
            subprocess.run(["curl", *curl_], capture_output=True, check=False, timeout=60)
            assert len(server.seen) == seen
        assert server.seen[0].path == f"/{query}"


@pytest.mark.parametrize("status", [200, 401])
def test_a_stream_comes_through_as_it_arrives(status: int, shared_agent: Agent) -> None:
    seen_by_reader = threading.Semaphore(0)

    def parts() -> Iterator[bytes]:
        for i in range(3):
            yield b"data: %d\n\n" % i
            assert seen_by_reader.acquire(timeout=30)

    reply = Reply(status, parts(), Content_Type="text/event-stream", DPoP_Nonce="n")
    with (
        FakeServer(lambda _: reply) as server,
        started(shared_agent, "GET", server.origin) as process,
    ):
        for i in range(3):
            assert read_from(process) == b"data: %d\n\n" % i
            seen_by_reader.release()
        assert process.wait(30) == 0


def test_a_large_answer_comes_through_whole(shared_agent: Agent, tmp_path: Path) -> None:
    part = os.urandom(1_000_000)
    with FakeServer(lambda _: Reply(200, [part] * 20)) as server:
        file = tmp_path / "file"
        shared_agent.run("curl", "GET", server.origin, "--", "-o", str(file), check=True)
        assert file.read_bytes() == part * 20


@pytest.mark.parametrize(
    ("number", "to_all", "status"),
    [
        (signal.SIGINT, True, 130),
        (signal.SIGINT, False, 130),
        (signal.SIGTERM, False, 143),
        (signal.SIGHUP, False, 129),
    ],
)
@pytest.mark.parametrize("answered", [True, False])
def test_what_ends_the_command_ends_curl(
    number: signal.Signals, to_all: bool, status: int, answered: bool, shared_agent: Agent
) -> None:
    asked, over = threading.Event(), threading.Event()

    def parts() -> Iterator[bytes]:
        yield b"first"
        over.wait(30)

    def handle(_seen: Seen) -> Reply:
        asked.set()
        if not answered:
            over.wait(30)
        return Reply(200, parts())

    hears_it = partial(signal.signal, number, signal.SIG_DFL)  # nohup would have it ignored
    with (
        FakeServer(handle) as server,
        started(shared_agent, "GET", server.origin, preexec_fn=hears_it) as process,
    ):
        try:
            assert asked.wait(30)
            if answered:
                assert read_from(process) == b"first"
            below = descendants(process.pid)
            assert below
            (os.killpg if to_all else os.kill)(process.pid, number)
            assert process.wait(30) == status
            until(lambda: not any(running(pid) for pid in below))
        finally:
            over.set()


def test_a_reader_that_leaves_ends_curl_without_a_word(shared_agent: Agent) -> None:
    over = threading.Event()

    def parts() -> Iterator[bytes]:
        while not over.is_set():
            yield b"x" * 10_000

    with (
        FakeServer(lambda _: Reply(200, parts())) as server,
        started(shared_agent, "GET", server.origin) as process,
    ):
        assert read_from(process)
        below = descendants(process.pid)
        assert process.stdout
        process.stdout.close()
        process.wait(30)
        over.set()
        assert process.stderr
        assert process.stderr.read() == b""
        assert not any(running(pid) for pid in below)
        process.stdout = None


def test_a_binary_is_not_written_to_a_terminal_unless_that_is_said(shared_agent: Agent) -> None:
    def shown(*options: str) -> tuple[int, str]:
        with Terminal(shared_agent, "curl", "GET", server.origin, *options) as terminal:
            return terminal.end()

    with answers(b"\0binary") as server:
        status, refused = shown()
        assert status == 1
        assert "binary, and standard output is a terminal; " in refused
        assert "\0" not in refused
        assert shown("--", "-o", "-") == (0, "\0binary")
    with answers(b"text") as server:
        assert shown() == (0, "text")


def test_a_body_that_takes_its_time_is_waited_for_no_longer_than_that_and_nothing_of_it_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(curl_run, "MAX_CHALLENGE_S", 0.2)
    over = threading.Event()

    def parts() -> Iterator[bytes]:
        yield b"{"
        over.wait(30)
        yield b"}"

    with FakeServer(lambda _: Reply(401, parts())) as server:
        run = curl_run.Run(server.origin, [], "a.b.c", None, silent=True, shown=None)
        try:
            run.wait_for_head()
            assert run.head.status == 401
            assert run.read() is None
            over.set()
            body = bytearray()
            assert run.deliver(body.extend) == 0
            assert body == b"{}"
        finally:
            run.kill()
    assert server.seen[0].proofs == ["a.b.c"]


def where_others_look(pids: Iterable[int], *folders: Path) -> dict[str, bytes]:
    """Arguments and environment of everybody, open files of these processes, files of folders."""
    found: dict[str, bytes] = {}

    def look(name: str, path: Path) -> None:
        try:
            if path.is_file():
                found[name] = path.read_bytes()
        except OSError:
            pass  # it is gone, or nobody's to read

    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ", "comm"):
            look(f"{process}/{name}", process / name)
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            look(str(descriptor), descriptor)
    for folder in folders:
        for path in folder.rglob("*"):
            look(str(path), path)
    return found


@pytest.mark.parametrize("words", [[], ["-v"]])
def test_access_token_and_proof_are_nowhere_that_others_read_while_it_runs(
    words: list[str], shared_agent: Agent, access_token: str, tmp_path: Path
) -> None:
    """Searched once curl has sent them, before the challenge and before the answer."""
    home = Path(os.environ["HOME"])
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    found: list[dict[str, bytes]] = []
    processes: list[subprocess.Popen[bytes]] = []
    ready = threading.Event()
    judge = wants_nonce("n-secret")

    def handle(seen: Seen) -> Reply:
        assert ready.wait(30)
        pids = {processes[0].pid, *descendants(processes[0].pid)}
        assert len(pids) == 2
        folders = (home, temporary, Path("/dev/shm"))
        found.append(where_others_look(pids, *folders))
        return judge(seen)

    env = {"TMPDIR": str(temporary), "SSLKEYLOGFILE": str(temporary / "keys")}
    agent_env = shared_agent.env
    with FakeServer(handle) as server:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "dpop_agent", "curl", "GET", f"{server.origin}/canary"),
                *("--access-token-file", access_token, "--", "-H", "X-Control: in-arguments"),
                *words,
            ],
            env={**agent_env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        processes.append(process)
        ready.set()
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, b"the answer\n")
        assert len(found) == len(server.seen) == 2
        proofs = [seen.proofs[0] for seen in server.seen]
    texts = [text for each in found for text in each.values()]
    assert any(b"curl\0" in text and b"in-arguments" in text for text in texts), "the search works"
    signatures = [proof.split(".")[2] for proof in proofs]
    for secret in (ACCESS_TOKEN, *proofs, *signatures, "n-secret"):
        hits = [name for each in found for name, text in each.items() if secret.encode() in text]
        assert hits == []
    for secret in (ACCESS_TOKEN, *proofs, *signatures):
        assert secret.encode() not in err
    assert (b"> GET /canary HTTP/1.1" in err) == bool(words)
    assert (b"> Authorization: DPoP [redacted]" in err) == bool(words)


# --- https, and what environments and files of the user's would change


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure(certificates: Certificates) -> Iterator[FakeServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.server)
    with FakeServer(wants_nonce("n-1"), tls=context) as server:
        yield server


def test_a_server_is_trusted_by_its_authority_and_no_other(
    secure: FakeServer, certificates: Certificates, shared_agent: Agent, access_token: str
) -> None:
    words = ["GET", f"{secure.origin}/me", "--access-token-file", access_token, "--"]
    status, out, err = said(shared_agent.run("curl", *words))
    assert (status, out, secure.seen) == (60, "", [])
    assert err.startswith("curl: (60) ")
    done = shared_agent.run("curl", *words, "--cacert", certificates.authority[0])
    assert said(done) == (0, "the answer\n", "")
    assert [claims(seen)["htu"] for seen in secure.seen] == [f"{secure.origin}/me"] * 2


def test_files_and_variables_that_curl_would_read_change_nothing(
    secure: FakeServer, certificates: Certificates, shared_agent: Agent, tmp_path: Path
) -> None:
    keys, traced = tmp_path / "keys", tmp_path / "traced"
    (tmp_path / ".curlrc").write_text(f'insecure\ntrace-ascii = "{traced}"\nheader = "X-Rc: x"\n')
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login canary password canary\n")
    (tmp_path / ".netrc").chmod(0o600)
    env = {
        "HOME": str(tmp_path),
        "CURL_HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
        "SSLKEYLOGFILE": str(keys),
        "http_proxy": "http://127.0.0.1:1",
        "CURL_CA_BUNDLE": certificates.authority[0],
    }
    with answers() as server:
        for origin in (secure.origin, server.origin):
            done = _run(["GET", origin], {**shared_agent.env, **env, "ALL_PROXY": ""})
            assert (done.returncode, done.stdout) == (0, "the answer\n"), done.stderr
        for seen in (*secure.seen, *server.seen):
            assert "Authorization" not in seen.headers
            assert "X-Rc" not in seen.headers
    assert not keys.exists()
    assert not traced.exists()


@contextmanager
def tunnel() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that answers CONNECT; and all that it saw."""
    listener = socket.create_server(("127.0.0.1", 0))
    saw: list[bytes] = []
    threads: list[threading.Thread] = []

    def pump(here: socket.socket, there: socket.socket) -> None:
        try:
            while data := here.recv(65536):
                saw.append(data)
                there.sendall(data)
            there.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            asked = client.recv(65536)
            saw.append(asked)
            host, port = asked.split()[1].decode().split(":")
            with client, socket.create_connection((host, int(port))) as server:
                client.sendall(b"HTTP/1.1 200 Yes\r\nDPoP-Nonce: the-proxys\r\n\r\n")
                back = threading.Thread(target=pump, args=(server, client))
                back.start()
                pump(client, server)
                back.join()

    threads.append(threading.Thread(target=serve))
    threads[0].start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", saw
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        threads[0].join()


def test_the_environments_proxy_is_used_for_https_alone_and_sees_no_secret(
    secure: FakeServer, certificates: Certificates, shared_agent: Agent, access_token: str
) -> None:
    with tunnel() as (proxy, saw), answers() as server:
        names = ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY")
        env = {**shared_agent.env, **dict.fromkeys(names, proxy), "no_proxy": "", "NO_PROXY": ""}
        presents = ["--access-token-file", access_token, "--"]
        done = _run(["GET", server.origin, *presents], env)
        assert (done.returncode, done.stdout, saw) == (0, "the answer\n", [])
        words = ["-i", "--cacert", certificates.authority[0]]
        done = _run(["GET", secure.origin, *presents, *words], env)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("\nthe answer\n")
        assert done.stdout.count("HTTP/1.1") == 1
        assert [claims(seen).get("nonce") for seen in secure.seen] == [None, "n-1"]
    assert sum(text.startswith(b"CONNECT 127.0.0.1:") for text in saw) == 2
    everything = b"".join(saw)
    for secret in (ACCESS_TOKEN.encode(), b"canary", b"DPoP:", b"dpop", b"Authorization"):
        assert secret not in everything


def test_user_and_password_come_from_a_file_and_reach_that_host_alone(
    shared_agent: Agent, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login client password secret\n")
    with answers() as server:
        for host in ("127.0.0.1", "localhost"):
            url = server.origin.replace("127.0.0.1", host)
            words = ["POST", url, "--", "--netrc-file", str(netrc), "-d", "a=b", "-v"]
            done = shared_agent.run("curl", *words, check=True)
            assert "Y2xpZW50OnNlY3JldA" not in done.stderr
        assert [seen.headers["Authorization"] for seen in server.seen] == [
            "Basic Y2xpZW50OnNlY3JldA==",
            None,
        ]


def test_v_shows_no_secret_of_http_2_either(
    certificates: Certificates, shared_agent: Agent, access_token: str
) -> None:
    """There curl says the headers twice, in other words."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.server)
    context.set_alpn_protocols(["h2"])
    came: list[dict[str, str]] = []

    def serve() -> None:
        plain, _ = listener.accept()
        with context.wrap_socket(plain, server_side=True) as connection:
            http = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
            http.initiate_connection()
            connection.sendall(http.data_to_send())
            while not came:
                for event in http.receive_data(connection.recv(65536)):
                    if isinstance(event, RequestReceived):
                        came.append({str(name): str(value) for name, value in event.headers})
                        headers = [(":status", "200"), ("x-header", "shown")]
                        http.send_headers(event.stream_id, headers)
                        http.send_data(event.stream_id, b"over h2", end_stream=True)
                connection.sendall(http.data_to_send())
            while connection.recv(65536):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/me"
        words = ["-v", "-i", "--http2", "--cacert", certificates.authority[0]]
        presents = ["--access-token-file", access_token]
        done = shared_agent.run("curl", "GET", url, *presents, "--", *words)
        thread.join()
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace("\r", "").startswith("HTTP/2 200 \nx-header: shown\n\nover h2")
    (seen,) = came
    assert seen["authorization"] == f"DPoP {ACCESS_TOKEN}"
    assert done.stderr.count("[redacted]") >= 2
    for secret in (ACCESS_TOKEN, seen["dpop"].rpartition(".")[2], ACCESS_TOKEN[:12]):
        assert secret not in done.stderr


# --- curl itself


def test_every_option_of_this_machines_curl_that_isnt_listed_is_refused() -> None:
    shown = subprocess.run(["curl", "--help", "all"], capture_output=True, text=True, check=True)
    names = set(re.findall(r"^ *(?:-., )?--([a-z0-9.-]+)", shown.stdout, re.M))
    assert len(names) > 200
    for name in {*names, *(f"no-{name}" for name in names)} - {*FLAGS, *VALUES}:
        with pytest.raises(RefusedError, match="; "):
            Options([f"--{name}", "value"])
    assert {*FLAGS, *VALUES} - curl_options._OURS <= names


def test_curls_help_says_its_exit_statuses_and_what_is_passed_on(shared_agent: Agent) -> None:
    shown = " ".join(shared_agent.run("curl", "--help", check=True).stdout.split())
    for status in (curl.REFUSED_BY_SERVER, curl.NOT_TWICE, 1, 2, 3):
        assert re.search(rf"\b{status}\b", shown)
    for name in (*FLAGS, *VALUES):
        assert f"--{name}" in shown

"""`dpop-agent curl`, each request by a run of its own."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from dpop_agent.cli import curl, main
from dpop_agent.client import AgentClient
from tests.kit.adapter import BlockingAdapter, Came, Case, Request

_ITS_OWN = "the URL's server is the one that is meant: there is no list"
_NO_COOKIES = "no cookie is kept, nor sent again"


class _EndedError(Exception):
    """curl failed, and said why."""


class _Output:
    """Standard output as a pipe: what comes first are the headers, which -i writes."""

    def __init__(self, read: str, release: Callable[[], None]) -> None:
        self.status = 0
        self.body = b""
        self._read = read
        self._release = release
        self.buffer = self

    def write(self, data: bytes) -> None:
        if not data:
            return
        if not self.status:
            found = re.match(rb"HTTP/1\.1 ([0-9]{3}) ", data)
            assert found, data
            self.status = int(found[1])
            if self._read == "none":
                raise BrokenPipeError
            return
        if not self.body and self._read == "first":
            self._release()
        self.body += data

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


class Curl(BlockingAdapter):
    name = "curl"
    http_errors = (_EndedError,)
    cannot = {  # noqa: RUF012
        "renewal": "it has one access token and renews none",
        "multipart": "it passes on whole bodies alone",
        "environment": "http is for this machine, and no proxy's",
        "raw headers": "the caller's Authorization header is refused, whatever it has",
        "repeated headers": "the caller's Authorization header is refused, whatever it has",
        "the_clients_own_authentication_stays": "that comes from a file",
        "a_header_with_an_access_token_is_hashed_into_the_proof": "the caller's is refused",
        "an_access_token_of_another_key_is_refused": "the caller's Authorization is refused",
        "a_proof_of_the_callers_own_is_dropped": "the caller's DPoP header is refused",
        "credentials in URLs": "they are refused",
        "an_access_token_with_a_newline_is_refused": "a file's last line end is none of its text",
        **dict.fromkeys(
            (
                "an_unlisted_server_gets_no_proof",
                "an_access_token_for_an_unlisted_server_is_not_sent",
                "a_header_with_an_access_token_is_not_sent_to_an_unlisted_server",
            ),
            _ITS_OWN,
        ),
        **dict.fromkeys(
            (
                "a_challenges_cookie_goes_with_the_retry",
                "a_challenges_cookie_is_kept",
                "a_challenges_cookie_goes_beside_others",
                "a_challenges_cookie_for_another_path_or_host_stays_here",
                "the_last_answers_cookie_wins",
            ),
            _NO_COOKIES,
        ),
        **dict.fromkeys(
            (
                "challenges_in_headers_leave_the_connection_open",
                "challenges_in_bodies_leave_the_connection_open",
                "a_kept_connection_that_breaks_sends_no_proof_twice",
            ),
            "a run of curl is one request, and its connection ends with it",
        ),
    }

    def why_not(self, case: Case) -> str | None:
        leads_on = any(300 < answer.get("status", 200) < 309 for answer in case.get("answers", ()))
        return "no redirect is followed" if leads_on else super().why_not(case)

    @contextmanager
    def client(self, agent: AgentClient, case: Case) -> Iterator[tuple[Case, Path]]:
        with (
            tempfile.TemporaryDirectory() as folder,
            patch.dict(os.environ, DPOP_AGENT_SOCK=agent.path),
            patch.object(curl, "_end_on_signals", lambda: lambda: None),  # no main thread's
        ):
            yield case["client"], Path(folder)

    def send(
        self, client: tuple[Case, Path], request: Request, release: Callable[[], None]
    ) -> Came:
        with ExitStack() as opened:
            return self._send(client, request, release, opened)

    def _send(
        self,
        client: tuple[Case, Path],
        request: Request,
        release: Callable[[], None],
        opened: ExitStack,
    ) -> Came:
        wanted, folder = client
        words = [request.get("method", "GET"), request["url"]]
        token = request.get("access_token")
        if (jkt := request.get("jkt") or (token and token["jkt"])) is not None:
            words += ["--jkt", jkt]
        elif wanted["key"]:
            words += ["--key", wanted["key"]]
        if token:
            (folder / "access-token").write_text(token["access_token"])
            words += ["--access-token-file", str(folder / "access-token")]
        words += [
            "--",
            "-s",
            "-i",
            "--compressed",
            *self._body(request.get("body"), folder, opened),
        ]
        for header in request.get("headers", []):
            words += ["-H", ": ".join(header)]
        output = _Output(request.get("read", "all"), release)
        args = main._parser("curl").parse_args(words)
        with patch("sys.stdout", output), patch("sys.stderr", SimpleNamespace(write=_drop)):
            try:
                status = args.run(args)
            except BrokenPipeError:
                status = 0
        if status == curl.NOT_TWICE:
            return {"error": "nonce_required", "shown": ""}
        if status:
            raise _EndedError(status)
        return {"status": output.status, "body": output.body.decode()}

    def _body(self, body: dict[str, Any] | None, folder: Path, opened: ExitStack) -> list[str]:
        if body is None:
            return []
        if "text" in body:
            return ["--data-raw", body["text"]]
        if "form" in body:
            return [
                word
                for name, value in body["form"].items()
                for word in ("--data-urlencode", f"{name}={value}")
            ]
        if "file" in body:
            (folder / "body").write_text(body["file"][body.get("from", 0) :])
            return ["--data-binary", f"@{folder / 'body'}"]
        reads, writes = os.pipe()
        with os.fdopen(writes, "w") as stream:
            stream.write("".join(body["generator"]))
        opened.callback(os.close, reads)
        return ["--data-binary", f"@/dev/fd/{reads}"]


def _drop(_text: str) -> None:
    pass

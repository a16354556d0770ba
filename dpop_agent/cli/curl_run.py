"""One run of curl: what it is told on a descriptor, and what comes back on others.

The proof and the access token are in neither its arguments nor its environment nor a file: curl
reads them from a pipe, as lines of a `--config`. The answer's headers come on a second pipe, its
body on a third, and what `-w` writes on standard output, so that none is taken for another. The
body is left in its pipe until somebody wants it.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import time

from dpop_agent.client.refusal import MAX_CHALLENGE_BODY
from dpop_agent.errors import DPoPAgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PROGRAM = "curl"

MAX_HEAD = 512 * 1024
"""Bytes of an answer's headers, and of those that come before it (1xx): curl itself takes 300 KiB
for one answer, and in some versions any number of answers."""

MAX_CHALLENGE_S = 10.0
"""Seconds for a body that may name an error: who takes longer isn't listened to."""

_CHUNK = 64 * 1024
_EVERYWHERE = ("-q", "--globoff", "--path-as-is", "--no-buffer", "--suppress-connect-headers")
_NO_EXPECT = ("--header", "Expect:")  # after a 417 curl would send the same proof again

_KEPT = frozenset(
    (
        *("PATH", "HOME", "TERM", "COLUMNS", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "CURL_SSL_BACKEND"),
        *("OPENSSL_CONF", "OPENSSL_MODULES"),
        *("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"),
    )
)
"""Variables that curl gets: others have it write what it sends, such as SSLKEYLOGFILE."""

_BLANK = " \t\r"
_STATUS = re.compile(rb"HTTP/[0-9.]+ ([0-9]{3})")
_CUT = "…".encode()
_SHORT = 8
"""Characters of a secret from which on it is looked for where it may be part of a word."""

_RUN = re.compile(rb"[A-Za-z0-9._~+/=-]{16,}")
_HEADER = re.compile(rb"\b(authorization|dpop)(\]?[ \t]*:[ \t]*)(.*)", re.I | re.S)


class EndedError(Exception):
    """curl ended without an answer.

    Attributes:
        status: as a shell has it.
        written: what `-w` had it write.
    """

    def __init__(self, status: int, written: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.written = written


class Head:
    """An answer's status line and headers, read as they come.

    Attributes:
        status: None until all of it is there.
        raw: its bytes.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        self.raw = b""
        self._lines: list[bytes] = []
        self._rest = b""
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Take in what came; after the end, trailers, which nobody wants.

        Raises:
            DPoPAgentError: there is no end of it.
        """
        if self.status is not None:
            return
        self._size += len(data)
        if self._size > MAX_HEAD:
            raise DPoPAgentError(
                f"the answer's headers have more than {MAX_HEAD // 1024} KiB",
                hint="ask the server's operator",
            )
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._lines.append(line + b"\n")
            if not line.rstrip(b"\r"):
                self._block()

    def _block(self) -> None:
        """One answer's headers: those of an interim one (RFC 9110 section 15.2) are nobody's."""
        lines, self._lines = self._lines, []
        found = _STATUS.match(lines[0])
        if found and self.status is None and not found[1].startswith(b"1"):
            self.status = int(found[1])
            self.raw = b"".join(lines)

    def values(self, name: str) -> list[str]:
        """The value of each header line of that name."""
        wanted, found = name.lower(), list[str]()
        taken = False
        # A line feed ends a line (RFC 9112 section 2.2), and nothing else that Unicode has for one.
        for line in self.raw.decode("latin-1").split("\n")[1:]:
            if line[:1] in (" ", "\t"):  # RFC 9112 section 5.2: it goes on
                if taken:
                    found[-1] += f" {line.strip(_BLANK)}"
                continue
            before, colon, value = line.partition(":")
            taken = bool(colon) and before.strip(_BLANK).lower() == wanted
            if taken:
                found.append(value.strip(_BLANK))
        return found


class Run:
    """A curl that runs.

    Args:
        url: where it sends the request, in ASCII, without blanks.
        words: its options.
        proof: for the DPoP header. Neither this nor the access token has a character that means
            something in a configuration of curl's: both were checked where they came from.
        access_token: for the Authorization header; None for none.
        silent: whether it says nothing of errors.
        shown: gets what `-v` says, without the secrets; None where that isn't wanted.
        descriptors: further ones that it is to have.
    """

    def __init__(
        self,
        url: str,
        words: Sequence[str],
        proof: str,
        access_token: str | None,
        *,
        silent: bool,
        shown: Callable[[bytes], object] | None,
        descriptors: Sequence[int] = (),
    ) -> None:
        self.head = Head()
        self.written = bytearray()
        self._held = bytearray()
        self._open: dict[int, Callable[[bytes], object]] = {}
        self._shown = shown
        self._line = b""
        self._secrets = [proof.rpartition(".")[2].encode()]
        lines = [f'header = "DPoP: {proof}"\n']
        if access_token is not None:
            self._secrets.append(access_token.encode())
            lines.append(f'header = "Authorization: DPoP {access_token}"\n')
        # The URL comes last: a curl that a signal cuts off from here sends nothing without a proof.
        escaped = url.replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'url = "{escaped}"\n')
        told, tells = os.pipe()
        theirs = [told]
        try:
            head, self._body, written, said = (self._pipe(theirs) for _ in range(4))
            self._open[head] = self.head.feed
            self._open[self._body] = self._held.extend
            self._open[written] = self.written.extend
            self._open[said] = self._say
            self._process = subprocess.Popen(
                [
                    PROGRAM,
                    *_EVERYWHERE,
                    *("--config", f"/dev/fd/{told}"),
                    *("--dump-header", f"/dev/fd/{theirs[1]}"),
                    *("--output", f"/dev/fd/{theirs[2]}"),
                    "--silent",
                    *(() if silent else ("--show-error",)),
                    *(() if shown is None else ("--verbose",)),
                    *_NO_EXPECT,
                    *words,
                ],
                stdout=theirs[3],
                stderr=None if shown is None else theirs[4],
                pass_fds=(*theirs[:3], *descriptors),
                env=_environment(),
            )
        except BaseException:
            os.close(tells)
            self._close()
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        try:
            with os.fdopen(tells, "wb") as stream:
                stream.write("".join(lines).encode("ascii"))
        except BrokenPipeError:
            pass  # it ended before it read them, and says why
        except BaseException:
            self.kill()
            raise

    def _pipe(self, theirs: list[int]) -> int:
        ours, other = os.pipe()
        theirs.append(other)
        return ours

    def wait_for_head(self) -> None:
        """Wait until the answer's status and headers are there.

        What comes of a body is taken in meanwhile, as HEAD's headers, which curl gives as one too:
        who can't write sees no -m.

        Raises:
            EndedError: curl ended before.
            DPoPAgentError: there is no end of them.
        """
        try:
            self._take_head()
        except BaseException:
            self.kill()
            raise
        if self.head.status is None:
            status = self._wait()
            self.kill()
            raise EndedError(status, bytes(self.written))

    def _take_head(self) -> None:
        while self._receive():
            if self.head.status is not None:
                return
            if len(self._held) > MAX_HEAD:
                raise DPoPAgentError(
                    "the answer has a body without headers before it",
                    hint="ask the server's operator",
                )

    def read(self) -> bytes | None:
        """A short body, which stays where it is; None where it is too long, or takes too long."""
        deadline = time.monotonic() + MAX_CHALLENGE_S
        while len(self._held) <= MAX_CHALLENGE_BODY and self._body in self._open:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            self._receive(left_s=left_s)
        return bytes(self._held) if len(self._held) <= MAX_CHALLENGE_BODY else None

    def deliver(self, write: Callable[[bytes], object]) -> int:
        """Give the body away as it comes; curl's exit status, as a shell has it."""
        if self._held:
            write(bytes(self._held))
        if self._body in self._open:
            self._open[self._body] = write
        while self._receive():
            pass
        return self._wait()

    def kill(self) -> None:
        """End it, wherever it is."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._close()

    def _receive(self, *, left_s: float | None = None) -> bool:
        """Take in what came, if need be after a while; False where nothing can come any more."""
        if not self._open:
            return False
        poll = select.poll()
        for descriptor in self._open:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(None if left_s is None else left_s * 1000):
            data = os.read(descriptor, _CHUNK)
            if data:
                self._open[descriptor](data)
            else:
                del self._open[descriptor]
                os.close(descriptor)
        return True

    def _say(self, data: bytes) -> None:
        assert self._shown is not None
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._shown(redacted(line, self._secrets) + b"\n")

    def _wait(self) -> int:
        status = self._process.wait()
        if self._line and self._shown is not None:
            self._shown(redacted(self._line, self._secrets) + b"\n")
            self._line = b""
        return status if status >= 0 else 128 - status

    def _close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[0])


def redacted(line: bytes, secrets: Sequence[bytes] = ()) -> bytes:
    """A line of `-v` without what is good for anything: a proof is shown without its signature.

    A header that doesn't go out at once may go on in a line of its own: `secrets` are looked for.
    """
    found = _HEADER.search(line)
    if found is None:
        return _without(line, secrets)
    end = b"\r" if line.endswith(b"\r") else b""
    parts = found[3].strip().split(b".")
    before = _without(line[: found.start(3)], secrets)
    if found[1].lower() == b"dpop" and len(parts) == 3:
        return before + b".".join((*parts[:2], _CUT)) + end
    scheme, blank, _ = found[3].partition(b" ")
    return before + (scheme + blank if blank else b"") + b"[redacted]" + end


def _without(text: bytes, secrets: Sequence[bytes]) -> bytes:
    """A text without secrets, nor longer parts of them."""
    for secret in secrets:
        if len(secret) >= _SHORT:
            text = text.replace(secret, b"[redacted]")
    return _RUN.sub(
        lambda run: b"[redacted]" if any(run[0] in each for each in secrets) else run[0], text
    )


def _environment() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("LC_")
    }

"""Reads what people paste: the output of `curl -v`, or raw HTTP messages (RFC 9112)."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from html import unescape

from dpop_agent.client.explaining.messages import Exchange, Unreadable
from dpop_agent.proof import TCHAR

MAX_INPUT = 1024 * 1024
"""Characters that are looked at; a body may be long."""

MAX_HEADERS = 500
"""Headers of a message, far more than servers take."""

MAX_COMMANDS = 64
"""Command lines whose bodies are looked at, the last ones."""

MAX_LINE = 64 * 1024
"""Characters of a line; a header has less, and a body that has more says nothing of DPoP."""

# What CI's logs, containers' logs and numbered listings begin each line with.
_PREFIXES = (
    re.compile(r"^\d{4}-\d\d-\d\d[T ][\d:.,]{1,20}(?:Z|[+-]\d\d:?\d\d)?(?: |$)"),
    re.compile(r"^[\w.-]{1,60} {1,60}\|(?: |$)"),
    re.compile(r"^ {0,8}\d{1,6}[:|]?(?: |$)"),
)

FULL_LINES, NARROWEST, WIDEST = 3, 40, 300
"""Lines of one length, the longest, from which on a terminal of these columns broke them."""

MAX_BROKEN = 100
"""Lines that a header between quotation marks goes on in, at most."""

# curl's --trace-time and --trace-ids, which -vv means too.
_STAMP = re.compile(r"\s*\d\d:\d\d:\d\d\.\d+ (?:\[[0-9x-]+\] )?(?=[*<>{}])")
_ESCAPED = re.compile(r"^[ \t]*&[gl]t; ?\S", re.MULTILINE)
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_QUOTED = re.compile(r"\s*> ?[<>] ")
_REQUEST = re.compile(rf"([{TCHAR}]{{1,32}}) (\S+) (HTTP/[0-9.]+)\s*")
_STATUS = re.compile(r"HTTP/[0-9.]+ ([1-5][0-9]{2})(?:\s.*)?")
_FAILED = re.compile(r"\s*(?:dpop-agent(?: curl: error)?: (.+)|curl: \(([0-9]{1,3})\) .*)")
_HEADER = re.compile(rf":?([{TCHAR}]+)\s*:[ \t]*(.*)")
_MARKED = re.compile(r"([<>*])(?: (.*)|)")
_DATA = re.compile(r"[{}] \[\d+ bytes data\]")
# curl's progress, which ends in a carriage return alone, so that a line of its own may follow it.
_PROGRESS = re.compile(
    r"\s*(?:% Total\b.*|Dload\s+Upload\b.*|[-=#]{20,}\s*\d*\.?\d*%?|\d+\s+[\d.]+[kMGTP]?\s+\d+\s.*?"
    r"(?:--:--:--|\d+:\d\d:\d\d|\d+[dhms])\s+[\d.]+[kMGTP]?(?=\s*$|[*<>{}] |  ))"
)
# What curl says right behind a body that has no line end.
_AFTER_BODY = re.compile(
    r"\* (?:Connection #|Closing connection|Issue another|Re-using|Reusing|Found bundle|Hostname"
    r"|Ignoring|Excess|transfer closed|we are |Mark |Curl_|TLS|schannel|Host |  ?Trying)"
)
_CONNECTED = re.compile(r"\* (?:Connected to|Re-?using existing .*?connection.*? with host) (\S+)")
_PORT = re.compile(r"\bport (\d+)")
_TLS = re.compile(
    r"\* (?:SSL connection|TLSv|SSL certificate|ALPN|schannel:|Server certificate"
    r"|.*\[:scheme: https)"
)
_WHOLE_URL = re.compile(
    r"\* (?:Issue another request to this URL: '|.*\bstream for |.*\bUsing Stream ID.*for )"
    r"(https?://[^\s']+)"
)
_COMMAND = re.compile(r"(?:\S*[$#%>+]\s*)?(?:curl|curl\.exe)\s+\S")
_DATA_OPTIONS = ("-d", "--data", "--data-raw", "--data-binary", "--data-ascii", "--data-urlencode")
_CONTINUED = re.compile(r"[A-Za-z0-9._~+/=-]+")


@dataclass(slots=True)
class _Recorded:
    """An exchange while it is read."""

    line: int
    method: str
    target: str
    version: str
    scheme: str = ""
    whole_url: str = ""
    request_headers: list[tuple[str, str]] = field(default_factory=list)
    response_headers: list[tuple[str, str]] = field(default_factory=list)
    status: int | None = None
    request_body: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)

    def exchange(self, data: str | None) -> Exchange:
        sent = "\n".join(self.request_body).strip() or data
        got = _without_head("\n".join(self.body).strip())
        return Exchange(
            method=self.method,
            url=self._url,
            request_headers=tuple(self.request_headers),
            status=self.status,
            response_headers=tuple(self.response_headers),
            request_body=None if sent is None else sent.encode("utf-8", "replace"),
            response_body=got.encode("utf-8", "replace") if got else None,
        )

    @property
    def is_open(self) -> bool:
        """Whether a quotation mark of the last header isn't closed: a line break is in it."""
        return bool(self.response_headers) and self.response_headers[-1][1].count('"') % 2 == 1

    @property
    def _url(self) -> str:
        if "://" in self.target:  # to a proxy
            return self.target
        host = next((v for n, v in self.request_headers if n.lower() in ("host", ":authority")), "")
        path = self.target if self.target.startswith("/") else f"/{self.target.lstrip('*')}"
        if self.whole_url and not host:
            return self.whole_url
        scheme = self.scheme or ("https" if self.version in ("HTTP/2", "HTTP/3") else "")
        return f"{scheme}://{host}{path}" if scheme else f"//{host}{path}"


def _without_head(body: str) -> str:
    """A body without the response's head, which `curl -i` writes before it."""
    while _STATUS.fullmatch(body.partition("\n")[0].rstrip()):
        body = body.partition("\n\n")[2].lstrip("\n")
    return body


def exchanges(text: str) -> list[Exchange]:
    """All exchanges in what somebody pasted, the last one being what it is about.

    Args:
        text: what `curl -v` wrote, with the body on standard output mixed in or left out; or one
            raw request and its response.

    Raises:
        Unreadable: there is no request, or no response to the last one.
    """
    numbered = _lines(text)
    try:
        return _exchanges([line for _, line in numbered])
    except Unreadable as e:
        raise Unreadable(e.what, None if e.line is None else numbered[e.line - 1][0]) from None


def _exchanges(lines: list[str]) -> list[Exchange]:
    if not any(line.strip() for line in lines):
        raise Unreadable(
            "there is nothing to read; curl -v writes to standard error: "
            "curl -v … 2>&1 | dpop-agent explain"
        )
    sent = _take_commands(lines)
    marked = any((m := _MARKED.fullmatch(line)) and m[1] == ">" and m[2] for line in lines)
    recorded = _of_curl(lines) if marked else _of_messages(lines)
    to_proxies = [each for each in recorded if each.method == "CONNECT"]
    recorded = [each for each in recorded if each.method != "CONNECT"]
    if to_proxies and not recorded:
        raise Unreadable("only the proxy answered; no request came through", to_proxies[-1].line)
    if not recorded:
        raise _no_request(lines)
    last = recorded[-1]
    if last.status is None:
        raise Unreadable(
            "this request has no response after it; paste all that curl -v wrote", last.line
        )
    return [each.exchange(_before(each.line, sent)) for each in recorded]


def messages(request: str, response: str) -> Exchange:
    """The exchange of a raw request and a raw response.

    Raises:
        Unreadable: one of them isn't what it is to be.
    """
    for text, form, what in (
        (request, _REQUEST, "the request has to begin with a line such as GET /me HTTP/1.1"),
        (response, _STATUS, "the response has to begin with a line such as HTTP/1.1 401"),
    ):
        first = next((line for _, line in _lines(text) if line.strip()), "")
        if not form.fullmatch(first):
            raise Unreadable(what, 1)
    return exchanges(f"{request.strip()}\n\n{response.strip()}\n")[-1]


def _lines(text: str) -> list[tuple[int, str]]:
    """Lines without what pasting did to them: line ends, indents, HTML's escapes, progress.

    With their numbers, as an editor counts: what a carriage return parts is one line there.
    """
    found: list[tuple[int, str]] = []
    whole = _COLOUR.sub("", text[:MAX_INPUT].removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}"))
    if _ESCAPED.search(whole):
        whole = unescape(whole)
    lines = [
        (number, part[:MAX_LINE].expandtabs(1))
        for number, line in enumerate(whole.split("\n"), 1)
        for part in line.removesuffix("\r").split("\r")
    ]
    lines = _unwrapped(_without_prefix(lines))
    is_quoted = any(_QUOTED.match(line) for _, line in lines)  # as in a mail
    for number, line in lines:
        own = line.lstrip().removeprefix(">").removeprefix(" ") if is_quoted else line
        if stamp := _STAMP.match(own):
            own = own[stamp.end() :]
        bare = _PROGRESS.sub("", own, count=1) if _PROGRESS.match(own) else own
        if bare != own and not bare.strip():
            continue
        trimmed = bare.strip()
        if _MARKED.fullmatch(trimmed):
            found.append((number, trimmed))
        else:
            found.append((number, bare.rstrip()))
    return found


def _without_prefix(lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Lines without what a log or a listing has before each of them."""
    told = [line for _, line in lines if line.strip()]
    for prefix in _PREFIXES:
        if told and all(map(prefix.match, told)):
            return [(number, prefix.sub("", line, count=1)) for number, line in lines]
    return lines


def _unwrapped(lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Lines as they were before a terminal broke them at its width, and somebody copied that."""
    width = max((len(line) for _, line in lines), default=0)
    full = sum(len(line) == width for _, line in lines)
    if full < FULL_LINES or not NARROWEST <= width <= WIDEST:
        return lines
    found: list[tuple[int, str]] = []
    is_broken = False
    for number, line in lines:
        if is_broken and len(found[-1][1]) < MAX_LINE and not _MARKED.match(line):
            found[-1] = (found[-1][0], found[-1][1] + line)
        else:
            found.append((number, line))
        is_broken = len(line) == width
    return found


def _no_request(lines: list[str]) -> Unreadable:
    first = next((number for number, line in enumerate(lines, 1) if line.strip()), None)
    if first is None:
        return Unreadable("there is a command alone, and nothing that it wrote")
    for failed in filter(None, map(_FAILED.fullmatch, lines)):
        said = failed[1] or f"curl ended with status {failed[2]}"
        return Unreadable(f"no request was sent: {said}")
    if any(_STATUS.fullmatch(line.strip().removeprefix("<").strip()) for line in lines):
        return Unreadable(
            "there is a response, and no request before it; run curl with -v, whose lines with > "
            "have the request"
        )
    return Unreadable(
        "this is neither the output of curl -v, which reaches a pipe with 2>&1, nor a raw request "
        "(GET /me HTTP/1.1) with its response",
        first,
    )


def _of_curl(lines: list[str]) -> list[_Recorded]:
    reader = _Curl()
    for number, line in enumerate(lines, 1):
        reader.take(number, line)
    return reader.done()


class _Curl:
    """Reads the output of `curl -v`, line by line."""

    def __init__(self) -> None:
        self._found: list[_Recorded] = []
        self._in: str = ""  # ">" or "<": the head that is being read
        self._before: list[str] = []
        self._schemes: dict[str, str] = {}
        self._host = ""
        self._whole_url = ""
        self._broken = 0  # lines that the header being read goes on in

    def take(self, number: int, line: str) -> None:
        marked = _MARKED.fullmatch(line)
        if marked is None:
            self._unmarked(line)
            return
        self._broken = 0
        if marked[1] == "*":
            self._in = ""
            self._told(line)
        elif marked[1] == ">":
            self._request(number, marked[2] or "")
        else:
            self._response(number, marked[2] or "")

    def done(self) -> list[_Recorded]:
        if self._found and not "".join(self._found[-1].body).strip():
            self._found[-1].body = self._before
        return self._found

    def _told(self, line: str) -> None:
        if connected := _CONNECTED.match(line):
            self._host = connected[1].lower()
            port = _PORT.search(line)
            if line.startswith("* Connected"):
                self._schemes[self._host] = "https" if port and port[1] == "443" else "http"
        elif _TLS.match(line) and self._host:
            self._schemes[self._host] = "https"
        if url := _WHOLE_URL.match(line):
            self._whole_url = url[1]

    def _request(self, number: int, text: str) -> None:
        if begun := _REQUEST.fullmatch(text):
            scheme = self._schemes.get(self._host, "")
            if self._whole_url:
                scheme = self._whole_url.partition(":")[0]
            self._found.append(_Recorded(number, begun[1], begun[2], begun[3], scheme))
            self._found[-1].whole_url, self._whole_url = self._whole_url, ""
            self._in = ">"
        elif text.strip() and self._in != ">" and not self._found:
            raise Unreadable(
                "a request's first line is missing: such as > GET /me HTTP/1.1", number
            )
        elif self._found:
            self._in = ">" if text.strip() else ""
            self._header(number, text, self._found[-1].request_headers)

    def _response(self, number: int, text: str) -> None:
        if not self._found:
            if _STATUS.fullmatch(text):
                raise Unreadable(
                    "a response without the request before it; the lines with > are missing", number
                )
            return
        last = self._found[-1]
        if status := _STATUS.fullmatch(text):
            if last.status is not None and last.status >= 200:
                raise Unreadable("a second response to one request", number)
            last.status = int(status[1])
            last.response_headers.clear()
            self._in = "<"
        else:
            if text.strip() and last.status is None:
                raise Unreadable(
                    "a response's first line is missing: such as < HTTP/1.1 401 Unauthorized",
                    number,
                )
            self._in = "<" if text.strip() else ""
            self._header(number, text, last.response_headers)

    def _header(self, number: int, text: str, headers: list[tuple[str, str]]) -> None:
        if not text.strip():
            return
        header = _HEADER.fullmatch(text)
        if header is None:
            raise Unreadable("this is no header, which is a name, a colon and a value", number)
        _append(headers, number, header)

    def _unmarked(self, line: str) -> None:
        if _DATA.fullmatch(line.strip()):
            return
        # A terminal's own line break, in the middle of a header.
        is_broken = self._in and self._found and _CONTINUED.fullmatch(line.strip())
        if is_broken and self._continue(line.strip()):
            return
        if self._is_in_quotes(line) and self._continue(f" {line.strip()}"):
            return
        text, told = line, ""
        if after := _AFTER_BODY.search(line):
            text, told = line[: after.start()], line[after.start() :]
        if not self._found:
            self._before.append(text)
        elif self._found[-1].status is None:
            self._found[-1].request_body.append(text)
        else:
            self._found[-1].body.append(text)
        if told:
            self._told(told)

    def _is_in_quotes(self, line: str) -> bool:
        """Whether a line goes on in the middle of what a challenge has between quotation marks."""
        is_short = self._broken < MAX_BROKEN and self._in == "<" and bool(line.strip())
        return is_short and bool(self._found) and self._found[-1].is_open

    def _continue(self, rest: str) -> bool:
        last = self._found[-1]
        headers = last.request_headers if self._in == ">" else last.response_headers
        if not headers or len(headers[-1][1]) >= MAX_LINE:
            return False
        name, value = headers.pop()
        headers.append((name, value + rest))
        self._broken += 1
        return True


def _of_messages(lines: list[str]) -> list[_Recorded]:
    """Raw messages, one after the other; a body goes on to the next first line."""
    found: list[_Recorded] = []
    in_head = False
    for number, line in enumerate(lines, 1):
        bare = line.strip()
        if (begun := _REQUEST.fullmatch(bare)) and not (found and found[-1].status is None):
            found.append(_Recorded(number, begun[1], begun[2], begun[3]))
            in_head = True
        elif not found:
            continue
        elif (status := _STATUS.fullmatch(bare)) and (found[-1].status or 100) < 200:
            found[-1].status = int(status[1])
            found[-1].response_headers.clear()
            in_head = True
        elif in_head and not bare:
            in_head = False
        elif in_head:
            _add_header(found[-1], number, line)
        elif found[-1].status is None:
            found[-1].request_body.append(line)
        else:
            found[-1].body.append(line)
    return found


def _add_header(recorded: _Recorded, number: int, line: str) -> None:
    headers = recorded.request_headers if recorded.status is None else recorded.response_headers
    folded = line[:1] == " " and headers and len(headers[-1][1]) < MAX_LINE
    if folded and _HEADER.fullmatch(line.strip()) is None:
        name, value = headers.pop()
        headers.append((name, f"{value} {line.strip()}"))
        return
    header = _HEADER.fullmatch(line.strip())
    if header is None:
        raise Unreadable("this is no header, which is a name, a colon and a value", number)
    _append(headers, number, header)


def _append(headers: list[tuple[str, str]], number: int, header: re.Match[str]) -> None:
    if len(headers) >= MAX_HEADERS:
        raise Unreadable(f"a message with more than {MAX_HEADERS} headers", number)
    headers.append((header[1], header[2].strip()))


def _take_commands(lines: list[str]) -> list[tuple[int, str | None]]:
    """Take curl's own command lines out; the bodies that they gave, whose output has none."""
    commands: list[tuple[int, list[str]]] = []
    for number, line in enumerate(lines, 1):
        if commands and commands[-1][1][-1].endswith("\\"):
            commands[-1][1].append(line.strip())
        elif _COMMAND.match(line.strip()):
            commands.append((number, [line.strip()]))
        else:
            continue
        lines[number - 1] = ""
    return [
        (number, _data(" ".join(part.removesuffix("\\") for part in parts)))
        for number, parts in commands[-MAX_COMMANDS:]
    ]


def _before(line: int, sent: list[tuple[int, str | None]]) -> str | None:
    """What the command before a line sent."""
    return next((data for number, data in reversed(sent) if number < line), None)


def _data(command: str) -> str | None:
    """The body that a command gives."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    given: list[str] = []
    for word, after in zip(words, [*words[1:], ""], strict=True):
        option, _, value = word.partition("=")
        if word in _DATA_OPTIONS:
            given.append(after)
        elif option in _DATA_OPTIONS and option.startswith("--"):
            given.append(value)
    return "&".join(each for each in given if not each.startswith("@")) or None

"""Which of curl's options `dpop-agent curl` passes on, and how they are written.

Only what shapes the request's body, its harmless headers, the output and the time it may take. All
else is refused: it could send the access token or the proof elsewhere, send a proof twice, or write
either where others read. What is passed on is written anew, by long names, so that curl's reading
of abbreviations and of letters in a row is nobody's concern.
"""

from __future__ import annotations

import os
import re
import stat

from dpop_agent.proof import TCHAR
from dpop_agent.spelling import near

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FLAGS = {
    "include": "i",
    "head": "I",
    "silent": "s",
    "show-error": "S",
    "fail": "f",
    "fail-with-body": "",
    "verbose": "v",
    "no-buffer": "N",
    "compressed": "",
    "http1.1": "",
    "http2": "",
    "ipv4": "4",
    "ipv6": "6",
    "remote-name": "O",
}
"""Those without a value, and the letter of each that has one."""

VALUES = {
    "data": "d",
    "data-raw": "",
    "data-binary": "",
    "data-urlencode": "",
    "json": "",
    "header": "H",
    "user-agent": "A",
    "output": "o",
    "write-out": "w",
    "max-time": "m",
    "connect-timeout": "",
    "cacert": "",
    "cert": "E",
    "key": "",
    "netrc-file": "",
}
"""Those with one."""

_OURS = frozenset(
    (
        *("include", "silent", "show-error", "fail", "fail-with-body", "verbose", "no-buffer"),
        *("remote-name", "output", "head"),
    )
)
"""What is done here, or is so anyway: curl isn't told."""

_BODIES = frozenset(("data", "data-raw", "data-binary", "data-urlencode", "json"))

_FILES = frozenset(("cacert", "cert", "key", "netrc-file"))

_ELSEWHERE = "it sends the request elsewhere than the URL says; leave it out"
_CREDENTIALS = (
    "others can read arguments; put user and password into a file, and give it as --netrc-file"
)
_WRITES_SECRETS = "it writes the access token and the proof; -v shows all else"
_TWICE = "it sends a proof twice, and each is good for once; run the command again"
_ANOTHER = "it makes another request, for which the proof isn't; run a command for each"
_PROXY = "the environment names the proxy; set https_proxy"

_REFUSED = {
    "location": "the proof is for this URL alone; run a command for the URL that a redirect names",
    "location-trusted": "the access token is for this server alone; leave it out",
    "max-redirs": "no redirect is followed; leave it out",
    "request": "the method is METHOD, for the proof names it; put it before the URL",
    "get": "it makes another URL; write the query into the URL",
    "url-query": "it makes another URL; write the query into the URL",
    "url": _ANOTHER,
    "next": _ANOTHER,
    "parallel": _ANOTHER,
    "config": "options in a file are checked by nobody; give them here",
    "disable": "that is so anyway; leave it out",
    "globoff": "that is so anyway; leave it out",
    "path-as-is": "that is so anyway; leave it out",
    "request-target": _ELSEWHERE,
    "resolve": _ELSEWHERE,
    "connect-to": _ELSEWHERE,
    "unix-socket": _ELSEWHERE,
    "abstract-unix-socket": _ELSEWHERE,
    "doh-url": _ELSEWHERE,
    "dns-servers": _ELSEWHERE,
    "alt-svc": _ELSEWHERE,
    "hsts": "it makes another URL; write https:// in the URL",
    "proxy": _PROXY,
    "proxy1.0": _PROXY,
    "preproxy": _PROXY,
    "proxytunnel": _PROXY,
    "proxy-user": _PROXY,
    "proxy-header": _PROXY,
    "socks4": _PROXY,
    "socks4a": _PROXY,
    "socks5": _PROXY,
    "socks5-hostname": _PROXY,
    "user": _CREDENTIALS,
    "netrc": "it takes whatever that file has for the host; name a file: --netrc-file FILE",
    "oauth2-bearer": "a bound access token isn't a bearer's; "
    "give it before --, as --access-token-file FILE",
    "insecure": "the access token would go to whoever answers; "
    "give the server's certificate authority: --cacert FILE",
    "upload-file": "it may add a file's name to the URL; give METHOD PUT and --data-binary @FILE",
    "form": "only whole bodies are; make it yourself: --data-binary @FILE",
    "cookie": "its file is for other servers too; give a cookie as -H 'Cookie: NAME=VALUE'",
    "cookie-jar": "no cookie is kept from one command to the next; see them with -i",
    "retry": _TWICE,
    "retry-all-errors": _TWICE,
    "retry-connrefused": _TWICE,
    "tls-earlydata": _TWICE,
    "trace": _WRITES_SECRETS,
    "trace-ascii": _WRITES_SECRETS,
    "libcurl": _WRITES_SECRETS,
    "stderr": "the shell does that; write 2>FILE",
    "dump-header": "the headers of a nonce's challenge would be in it; -i shows the answer's",
    "remote-header-name": "the server would choose the file's name; give it: -o FILE",
    "progress-bar": "the answer alone is shown; leave it out",
    "http3": "it was never tried; leave it out",
}
"""Why not, and what instead, for those that somebody may well try."""

_LETTERS = {
    **{letter: name for options in (FLAGS, VALUES) for name, letter in options.items() if letter},
    "L": "location",
    "X": "request",
    "G": "get",
    "K": "config",
    "x": "proxy",
    "u": "user",
    "U": "proxy-user",
    "T": "upload-file",
    "F": "form",
    "b": "cookie",
    "c": "cookie-jar",
    "n": "netrc",
    "k": "insecure",
    "D": "dump-header",
    "J": "remote-header-name",
    "q": "disable",
    "g": "globoff",
    "Z": "parallel",
    ":": "next",
    "#": "progress-bar",
    "p": "proxytunnel",
}

_NAME = re.compile(r"--([a-z0-9][a-z0-9.-]{0,63})(?:=|\Z)")
_HEADER = re.compile(rf"([{TCHAR}]+)(?::[^\r\n\0]*|;)\Z")

_WRITTEN_HERE = {
    "dpop": "the proof is written by dpop-agent; leave it out",
    "authorization": "the access token is; give it before --, as --access-token-file FILE, "
    "and a user and password as --netrc-file FILE",
}
_FRAMING = (
    *("connection", "content-length", "expect", "http2-settings", "keep-alive", "te", "trailer"),
    *("transfer-encoding", "upgrade"),
)
_TARGET = (
    *("host", "forwarded", "x-forwarded-", "x-host", "x-original-", "x-rewrite-"),
    *("x-http-method", "x-method-override", "proxy-"),
)

_FROM_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/([0-9]{1,9})\Z")


class RefusedError(Exception):
    """An option that isn't passed on: what, why, and what instead."""


class Options:
    """The options, read.

    Attributes:
        words: for curl, one after the other.
        include: whether the answer's headers are shown.
        silent: whether curl says nothing of errors.
        verbose: whether the exchange is shown.
        fail: whether an answer of 400 or more is a failure.
        fail_with_body: whether it is one, and its body is shown.
        compressed: whether curl decodes the body.
        write_out: whether curl says something of the transfer.
        has_credentials: whether it has a user and a password.
        output: the file for the body, None for standard output.
        remote_name: whether that file has the name that the URL ends with.
        has_body: whether the request has one.
        files: what its body, credentials and certificates are read from, `-` being standard input.
        needed: those of them without which curl would go on, and say nothing.
        descriptors: those of them that are open ones of ours, as a shell's `<(…)` has it.
    """

    def __init__(self, words: Sequence[str]) -> None:
        """Read them.

        Raises:
            RefusedError: one of them isn't passed on.
        """
        self.words: list[str] = []
        self.files: list[str] = []
        self.needed: list[str] = []
        self.output: str | None = None
        self.has_body = False
        self.has_credentials = False
        self.write_out = False
        flags = set()
        for name, value in _read(words):
            if value is None:
                flags.add(name)
                if name not in _OURS:
                    self.words.append(f"--{name}")
                continue
            self._take(name, value)
            if name not in _OURS:
                self.words += [f"--{name}", value]
        self.include = "include" in flags
        self.head = "head" in flags
        self.silent = "silent" in flags and "show-error" not in flags
        self.verbose = "verbose" in flags
        self.fail_with_body = "fail-with-body" in flags
        self.fail = "fail" in flags or self.fail_with_body
        self.compressed = "compressed" in flags
        self.remote_name = "remote-name" in flags
        if self.remote_name and self.output is not None:
            raise RefusedError("there is one answer; give -o or -O, not both")
        found = {number for file in self.files if (number := _descriptor(file)) is not None}
        self.descriptors = sorted(number for number in found if number > 2 and _is_open(number))

    def _take(self, name: str, value: str) -> None:
        if name == "header":
            _check_header(value)
        elif name == "user-agent" and re.search(r"[\r\n]", value):
            raise RefusedError("-A has a line end, and would be several headers; leave that out")
        elif name == "write-out":
            self.write_out = True
            if value == "@-":
                raise RefusedError("-w isn't read from standard input; give the format, or @FILE")
        elif name == "output":
            if self.output is not None:
                raise RefusedError("there is one answer; give -o once")
            self.output = value
        elif name in _FILES:
            self.files.append(value)
            if name == "netrc-file":
                self.has_credentials = True
                self.needed.append(value)
        elif name in _BODIES:
            self.has_body = True
            if (file := _file_of(name, value)) is not None:
                self.files.append(file)
                self.needed.append(file)

    @property
    def reads_standard_input(self) -> bool:
        return any(file in ("-", "/dev/stdin") or _descriptor(file) == 0 for file in self.files)

    @property
    def repeatable(self) -> bool:
        """Whether what the files have is there a second time."""
        return all(
            not file.startswith(("/dev/", "/proc/")) and _is_regular(file) for file in self.files
        )


def _read(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Each option's long name, and its value where it takes one."""
    rest = iter(words)
    for word in rest:
        if word.startswith("--"):
            name = _long(word)
            _, equals, value = word.partition("=")
            if name in FLAGS:
                if equals:
                    raise RefusedError(f"--{name} takes no value; leave it out")
                yield name, None
            else:
                yield name, value if equals else _next(rest, f"--{name}")
        elif word.startswith("-") and word != "-":
            yield from _short(word[1:], rest)
        else:
            raise RefusedError(
                "a word after -- is no option of curl's; the URL comes before --, and there is one"
            )


def _long(word: str) -> str:
    found = _NAME.match(word)
    if found is None:
        raise RefusedError("a word after -- is no option of curl's; leave it out")
    name = found[1]
    if name in FLAGS or name in VALUES:
        return name
    if name in _REFUSED:
        raise RefusedError(f"--{name} isn't passed on: {_REFUSED[name]}")
    # What curl takes for one of these options: its beginning.
    begun = [known for known in (*FLAGS, *VALUES) if known.startswith(name)]
    meant = begun[0] if len(begun) == 1 else near(name, (*FLAGS, *VALUES))
    raise RefusedError(
        f"--{name} isn't among the options that are passed on to curl; "
        + (f"did you mean --{meant}?" if meant else "see: dpop-agent curl --help")
    )


def _short(letters: str, rest: Iterator[str]) -> Iterator[tuple[str, str | None]]:
    """`-sSfd BODY` and `-dBODY`, as curl reads them."""
    for i, letter in enumerate(letters, 1):
        name = _LETTERS.get(letter)
        if name is None:
            raise RefusedError(
                "there is a letter among the options that isn't passed on to curl; "
                "see: dpop-agent curl --help"
            )
        if name in _REFUSED:
            raise RefusedError(f"-{letter} (--{name}) isn't passed on: {_REFUSED[name]}")
        if name in VALUES:
            yield name, letters[i:] or _next(rest, f"-{letter}")
            return
        yield name, None


def _next(rest: Iterator[str], option: str) -> str:
    value = next(rest, None)
    if value is None:
        raise RefusedError(f"{option} needs a value; write it after it")
    return value


def _check_header(text: str) -> None:
    """Refuse what isn't one header, or is one that somebody else writes."""
    if text.startswith("@"):
        raise RefusedError("headers in a file are checked by nobody; give each by an -H")
    found = _HEADER.match(text)
    if found is None:
        raise RefusedError("-H has to be one header; write it as NAME: VALUE")
    # To a server's scripts both are one (RFC 3875 section 4.1.18).
    name = found[1].lower().replace("_", "-")
    if name in _WRITTEN_HERE:
        raise RefusedError(f"-H {found[1]} isn't passed on: {_WRITTEN_HERE[name]}")
    if name in _FRAMING:
        raise RefusedError(f"-H {found[1]} isn't passed on: curl writes it; leave it out")
    if name.startswith(_TARGET):
        raise RefusedError(
            f"-H {found[1]} isn't passed on: a server may take the request for another one than "
            "the proof is for; leave it out"
        )


def _file_of(name: str, value: str) -> str | None:
    """The file that a body is read from, by curl's rules."""
    if name == "data-raw":
        return None
    if name == "data-urlencode":
        _, at, file = value.partition("@")
        return file if at and "=" not in value else None
    return value[1:] if value.startswith("@") else None


def _descriptor(file: str) -> int | None:
    found = _FROM_DESCRIPTOR.match(file)
    return int(found[1]) if found else None


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except (OSError, OverflowError):
        return False
    return True


def _is_regular(file: str) -> bool:
    """Whether it can be read twice; what isn't there, curl says."""
    if file == "-":
        return False
    try:
        return stat.S_ISREG(os.stat(file).st_mode)
    except (OSError, ValueError):
        return True

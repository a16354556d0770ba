"""`curl`: one request by the system's curl, with a proof.

Each run of curl sends one request, with one proof. What the answer's headers mean for the next one
is `hop`'s to say, as for every HTTP library.
"""

from __future__ import annotations

import os
import re
import sys
from functools import partial

from dpop_agent.cli import arguments, output, proofs
from dpop_agent.cli.curl_options import FLAGS, VALUES, Options, RefusedError
from dpop_agent.errors import (
    ConfigurationError,
    DPoPAgentError,
    HtuRefused,
    JktRequired,
    NonceRequired,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable
    from types import FrameType
    from typing import BinaryIO

    from dpop_agent.cli.curl_run import Run
    from dpop_agent.client.answers import Proof
    from dpop_agent.client.refusal import Answer
    from dpop_agent.htu import Target

OURS = 3
"""The last exit status that means something of our own; curl's are passed on from the next on."""

REFUSED_BY_SERVER, NOT_TWICE = 22, 65
"""What curl's own exit statuses are for -f, and for a body that would have to be sent again."""

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_SHOWN = 200
"""Characters of a redirect's target that are shown."""


def add_curl(parser: arguments.Parser) -> None:
    """`dpop-agent curl`."""
    parser.passes_on_to = "curl"
    parser.usage = (
        "%(prog)s METHOD URL [--key NAME[@N] | --jkt JKT] [--access-token-file FILE] [-- OPTIONS]"
    )
    names = ", ".join(
        f"-{letter} (--{name})" if letter else f"--{name}"
        for name, letter in {**VALUES, **FLAGS}.items()
    )
    parser.description = (
        "Send a request by curl, with a proof. A server that asks for a nonce gets it, by a second "
        "request; no redirect is followed. "
        f"OPTIONS are curl's, and these alone are passed on: {names}. -v shows all but the access "
        "token and the proof's signature. "
        "Exit status: curl's, from 4 on, 22 with -f among them; 65 where the server asks for a "
        "nonce and the body, which can't be read twice, has to be given anew; 1 refused or "
        "failed, 2 usage, 3 no agent there."
    )
    parser.add_argument("htm", metavar="METHOD", type=arguments.htm, help="such as GET")
    parser.add_argument("uri", metavar="URL", help="its query is sent; no proof names it")
    proofs.add_signer(parser)
    proofs.add_access_token_file(parser)
    parser.set_defaults(run=_curl, usage=parser.error)


def _curl(args: Namespace) -> int:
    try:
        options = Options(args.passed_on)
        where, url, words = _request(args, options)
        to = _file(options, where)
    except RefusedError as e:
        args.usage(str(e))
        raise  # never: that was the end
    _require(options.needed)
    access_token = None
    if args.access_token_file is not None:
        access_token = proofs.access_token(args.access_token_file)
    restore = _end_on_signals()
    try:
        return _exchange(args, options, where, url, words, access_token, to)
    finally:
        restore()


def _require(files: list[str]) -> None:
    """Refuse a file that can't be read, rather than have curl send nothing in its place."""
    for file in files:
        if file != "-" and (os.path.isdir(file) or not os.access(file, os.R_OK)):
            raise ConfigurationError(f"{file} can't be read", hint="give another file")


def _request(args: Namespace, options: Options) -> tuple[Target, str, list[str]]:
    """Where the request goes, its URL, and the words by which curl makes it.

    Raises:
        RefusedError: what was given doesn't go together.
        HtuRefused: it isn't one URL with one reading.
    """
    from dpop_agent.client.answers import bare_uri
    from dpop_agent.htu import target

    where = target(bare_uri(args.uri))
    _, mark, query = args.uri.partition("#")[0].partition("?")
    if not re.fullmatch(r"[!-~]*", query):
        raise HtuRefused(
            "the URL's query has white space, control or non-ASCII characters",
            hint="percent-encode it",
        )
    method = ["--request", args.htm]
    if args.htm == "HEAD":
        method = ["--head"]
        options.include = False  # they are what curl shows then
        if options.has_body:
            raise RefusedError("a HEAD request has no body; give POST as METHOD, or leave it out")
    elif options.head:
        raise RefusedError("-I makes another request; give HEAD as METHOD")
    if args.htm in ("CONNECT", "TRACE"):
        raise RefusedError(
            f"{args.htm} isn't sent: "
            + ("its target is no URL" if args.htm == "CONNECT" else "its answer shows the secrets")
            + "; give another METHOD"
        )
    if args.access_token_file is not None and options.has_credentials:
        raise RefusedError(
            "--netrc-file and --access-token-file both write the Authorization header; give one"
        )
    from_standard_input = args.access_token_file == "-"  # noqa: S105  (a file's name)
    if from_standard_input and options.reads_standard_input:
        raise RefusedError(
            "the access token and the body can't both be read from standard input; "
            "give a file for one"
        )
    # Between here and a server that speaks http nobody may read it.
    proxy = ["--noproxy", "*"] if where.origin.startswith("http://") else []
    # curl is given what the proof says: its own reading of a URL is nobody's concern.
    return where, where.htu + mark + query, [*method, *proxy, *options.words]


def _file(options: Options, where: Target) -> str | None:
    """The file that the body goes to; None for standard output.

    Raises:
        RefusedError: -O, and the URL doesn't end with a name.
    """
    if options.remote_name:
        name = where.path.rpartition("/")[2]
        if not name:
            raise RefusedError("the URL doesn't end with a name for -O; give one: -o FILE")
        return name
    return None if options.output == "-" else options.output


def _exchange(
    args: Namespace,
    options: Options,
    where: Target,
    url: str,
    words: list[str],
    access_token: str | None,
    to: str | None,
) -> int:
    from dpop_agent.cli.curl_run import EndedError
    from dpop_agent.client.exchange import blocking, exchange
    from dpop_agent.client.hop import Origins, hop
    from dpop_agent.client.sync import AgentClient

    key, jkt = proofs.signer(args)
    steps = hop(
        htm=args.htm,
        authority=where.origin,
        path=where.path,
        authorization=(),
        access_token=access_token,
        origins=Origins([where.origin]),
        key=key,
        jkt=jkt,
        replayable=options.repeatable,
        redirected_body=False,
    )
    try:
        with proofs.Touches() as touches, AgentClient(on_touch=touches.say) as agent:
            run, _ = blocking(exchange(steps, agent, _Sender(url, words, options, touches)))
    except JktRequired as e:
        raise proofs.with_choices(e, key) from e
    except NonceRequired:
        output.report(
            DPoPAgentError(
                f"{where.origin} asks for a nonce in the proof, and the body, which can't be read "
                "twice, is gone",
                hint="run the command again: the agent knows the nonce now",
            ),
            as_json=False,
        )
        return NOT_TWICE
    except EndedError as e:
        _write(e.written)
        if not e.status:
            raise DPoPAgentError("curl ended without an answer", hint="try again") from e
        return _passed_on(e.status)
    try:
        return _show(run, options, where, to, access_token)
    finally:
        run.kill()


class _Sender:
    """What `exchange` has curl do."""

    def __init__(
        self, url: str, words: list[str], options: Options, touches: proofs.Touches
    ) -> None:
        self._url = url
        self._words = words
        self._options = options
        self._touches = touches

    def send(self, proof: Proof | None, access_token: str | None, /) -> Run:
        from dpop_agent.cli.curl_run import Run

        self._touches.end()
        try:
            run = Run(
                self._url,
                self._words,
                str(proof),
                access_token,
                silent=self._options.silent,
                shown=_say if self._options.verbose else None,
                descriptors=self._options.descriptors,
            )
        except FileNotFoundError as e:
            raise DPoPAgentError(
                "there is no curl on the PATH", hint="install it, as by: apt install curl"
            ) from e
        run.wait_for_head()
        return run

    def answer(self, run: Run, /) -> Answer:
        from dpop_agent.client.refusal import Answer

        assert run.head.status is not None
        return Answer(run.head.status, run.head.values)

    def read(self, run: Run, /) -> bytes | None:
        from dpop_agent.client.refusal import decoded

        body = run.read()
        if body is None or self._options.compressed:  # then curl has decoded it
            return body
        return decoded(body, run.head.values("Content-Encoding"))

    def close(self, run: Run, /) -> None:
        run.kill()

    def again(self, run: Run, /) -> None:
        pass


def _show(
    run: Run, options: Options, where: Target, to: str | None, access_token: str | None
) -> int:
    """Give the answer to who asked for it; the exit status."""
    status = run.head.status
    assert status is not None
    if status in _REDIRECTS and (locations := run.head.values("Location")):
        leads_to = _without_secrets(locations[0], access_token)
        raise DPoPAgentError(
            f"{where.origin} answers {status}, a redirect to {leads_to}, which "
            "isn't followed: the proof is for this URL alone",
            hint="run a command for that URL, if it may have what you send",
        )
    failed = options.fail and status >= 400
    if failed and not options.fail_with_body:
        ended = run.deliver(lambda _: None) if options.write_out else 0
    elif to is None:
        guarded = sys.stdout.isatty() and options.output is None
        ended = _deliver(run, options, _write_text if guarded else _write)
    else:
        with open(to, "wb") as file:
            ended = _deliver(run, options, partial(_write_to, file))
    _write(bytes(run.written))
    if failed:
        if not options.silent:
            _say(f"dpop-agent: {where.origin} answers {status}\n".encode())
        ended = ended or REFUSED_BY_SERVER
    return _passed_on(ended)


def _deliver(run: Run, options: Options, write: Callable[[bytes], object]) -> int:
    if options.include:
        write(run.head.raw)
    return run.deliver(write)


def _without_secrets(location: str, access_token: str | None) -> str:
    """Where a redirect points to, without what may be a secret in it."""
    if access_token is not None:
        location = location.replace(access_token, "…")
    rest, mark, _ = location.partition("#")[0].partition("?")
    scheme, separator, after = rest.partition("//")
    if separator:
        authority, slash, path = after.partition("/")
        rest = f"{scheme}//{authority.rpartition('@')[2]}{slash}{path}"
    return output.cut(output.plain(rest), _SHOWN) + (mark and "?…")


def _passed_on(status: int) -> int:
    if 0 < status <= OURS:
        raise DPoPAgentError(
            f"curl ended with status {status}",
            hint="it says why above; a curl that doesn't know an option is too old",
        )
    return status


def _write(data: bytes) -> None:
    _write_to(sys.stdout.buffer, data)


def _write_text(data: bytes) -> None:
    """To a terminal, which a binary may steer."""
    if b"\0" in data:
        raise DPoPAgentError(
            "the answer is binary, and standard output is a terminal",
            hint="name a file for it, -- -o FILE, or have it shown all the same by -- -o -",
        )
    _write(data)


def _say(data: bytes) -> None:
    _write_to(sys.stderr.buffer, data)


def _write_to(file: BinaryIO, data: bytes) -> None:
    """Write it now: somebody may be reading along."""
    file.write(data)
    file.flush()


def _end_on_signals() -> Callable[[], None]:
    """Have what would end this process end curl too; how to undo that."""
    import signal

    from dpop_agent.cli import running

    running.hear_of_ends()

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {
        number: signal.signal(number, end)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_DFL
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore

"""Applications: AgentClient, and httpx over a loopback server, beside proofs made in process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import truediv

import httpx

from dpop_agent.client import DPoPTransport
from tests.bench.figures import P50, Column, Step, in_rounds
from tests.bench.loads import timed
from tests.bench.setting import Setting
from tests.bench.software import Prover, with_pyjwt
from tests.processes import end

ROUNDS = 15
HTU = "https://api.example.com/v1/me"
ACCESS_TOKEN = "x" * 40
CLIENT, PYJWT = "a proof by AgentClient", "a proof by PyJWT"
PLAIN, TRANSPORT = "httpx, no proof", "httpx, DPoPTransport"

SERVER = """
import socket, threading
ANSWER = b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok"
def serve(sock):
    while data := sock.recv(65536):
        while not data.endswith(b"\\r\\n\\r\\n"):
            data += sock.recv(65536)
        sock.sendall(ANSWER)
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


class InProcess(httpx.Auth):
    """A proof by a key in memory with each request."""

    def __init__(self, prove: Prover) -> None:
        self._prove = prove

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"DPoP {ACCESS_TOKEN}"
        request.headers["DPoP"] = self._prove(request.method, str(request.url), ACCESS_TOKEN)
        yield request


@contextmanager
def loopback() -> Iterator[str]:
    """The origin of a server that answers everything with "ok"."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            end(process)


def measure(setting: Setting) -> None:
    """In rounds."""
    with ExitStack() as stack:
        agent = setting.serving(stack, setting.this, setting.new_token())
        origin = stack.enter_context(loopback())
        uri = f"{origin}/me"
        client = agent.client()

        def http(**settings: object) -> httpx.Client:
            return stack.enter_context(httpx.Client(**settings))  # type: ignore[arg-type]

        transport = DPoPTransport(agent.client(), key="default", origins=[origin])
        by_agent = http(transport=transport, headers={"Authorization": f"DPoP {ACCESS_TOKEN}"})
        plain, by_pyjwt = http(), http(auth=InProcess(with_pyjwt()))
        steps = [
            Step(CLIENT, partial(timed, lambda: client.proof("GET", HTU), 500)),
            Step(PYJWT, partial(timed, partial(with_pyjwt(), "GET", HTU), 500)),
            Step(PLAIN, partial(timed, partial(plain.get, uri), 250)),
            Step(TRANSPORT, partial(timed, partial(by_agent.get, uri), 250)),
            Step("httpx, a proof by PyJWT", partial(timed, partial(by_pyjwt.get, uri), 250)),
        ]
        in_rounds(steps, setting.rounds(ROUNDS), setting.figures)
    derive = setting.figures.derive
    derive(
        "a proof by AgentClient ÷ one by PyJWT with a key in memory, p50",
        truediv,
        Column(CLIENT, P50),
        Column(PYJWT, P50),
    )
    derive(
        "a request through DPoPTransport ÷ one without a proof, p50",
        truediv,
        *(Column(TRANSPORT, P50), Column(PLAIN, P50)),
    )

"""What dpop-agent is measured against: a PKCS#11 token alone, and others that sign with it."""

from __future__ import annotations

import glob
import hashlib
import os
import socket
import struct
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.figures import CPU, CannotMeasure, Measures
from tests.bench.loads import Asked, connected, connected_soon, measures
from tests.bench.usage import with_cpu
from tests.processes import ROOT, START_S, Token, end

SIGNING_INPUT = b"x" * 300
"""About as long as a proof's."""


class TokenLoop:
    """token_loop.c, logged in to a PKCS#11 token.

    Args:
        program: token_loop.c, built.
        token: with at least one private key.
        module: to be used in place of the token's own.
        env: variables for the module.
        apart: whether one process asks, another passes that on, and a third signs.
    """

    def __init__(
        self,
        program: Path,
        token: Token,
        *,
        module: str | None = None,
        env: Mapping[str, str] | None = None,
        apart: bool = False,
    ) -> None:
        words = [str(program), module or token.module, token.label, str(token.pin_file)]
        self._process = subprocess.Popen(
            [*words, "apart"] if apart else words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **token.env, **(env or {})},
        )

    def sign(self, count: int, *, pause: float = 0.0) -> Measures:
        """So many signatures one after the other, with a pause of so many seconds before each."""
        asked, answer = self._process.stdin, self._process.stdout
        assert asked
        assert answer

        def run() -> Measures:
            os.write(asked.fileno(), f"{count} {int(pause * 1e6)}\n".encode())
            took = array("Q", answer.read(8 * (count + 1)))
            if len(took) != count + 1:
                raise CannotMeasure("token_loop ended")
            return measures([each / 1e9 for each in took[:-1]], took[-1] / 1e9)

        return with_cpu(run, {CPU: self._process.pid}, count)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def python_pkcs11(token: Token) -> Callable[[], object]:
    """Makes a signature in this process, as a Python program would with python-pkcs11."""
    os.environ.update(token.env)
    import pkcs11
    from pkcs11 import Attribute, Mechanism, ObjectClass

    session = pkcs11.lib(token.module).get_token(token_label=token.label).open(user_pin=token.pin)
    key: Any = next(iter(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY})))

    def sign() -> object:
        return key.sign(hashlib.sha256(SIGNING_INPUT).digest(), mechanism=Mechanism.ECDSA)

    return sign


ECHO = """
import socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
while data := sock.recv(65536):
    sock.sendall(data)
"""


@contextmanager
def echo() -> Iterator[socket.socket]:
    """A connection to a process that sends back what it gets."""
    ours, its = socket.socketpair()
    command = [sys.executable, "-c", ECHO, str(its.fileno())]
    with its:
        process = subprocess.Popen(command, pass_fds=[its.fileno()])
    with ours:
        yield ours
    process.wait()


def echoed(request: bytes) -> Asked:
    """A request that comes back as it is."""
    return Asked(request, lambda _: 1, lambda data: len(data) >= len(request))


# draft-miller-ssh-agent section 5.
REQUEST_IDENTITIES, IDENTITIES_ANSWER, SIGN_REQUEST, SIGN_RESPONSE = 11, 12, 13, 14


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _is_complete(data: bytes) -> bool:
    return len(data) >= 4 and len(data) >= 4 + int(struct.unpack_from(">I", data)[0])


def _signed(data: bytes) -> int:
    if data[4] != SIGN_RESPONSE:
        raise CannotMeasure(f"ssh-agent refused: {data[:64]!r}")
    return 1


class SshAgent:
    """ssh-agent with the keys of a PKCS#11 token, through its own helper process.

    Attributes:
        asked: a signature by the first of them.
        pids: it and its helper.
    """

    def __init__(self, token: Token, folder: Path) -> None:
        folder.mkdir()
        self.path = str(folder / "agent.sock")
        askpass = folder / "askpass"
        askpass.write_text(f"#!/bin/sh\nexec cat '{token.pin_file}'\n")
        askpass.chmod(0o700)
        env = {
            **os.environ,
            **token.env,
            "SSH_AUTH_SOCK": self.path,
            "SSH_ASKPASS": str(askpass),
            "SSH_ASKPASS_REQUIRE": "force",
        }
        self._process = subprocess.Popen(
            ["ssh-agent", "-D", "-a", self.path],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            connected_soon(self.path).close()
            subprocess.run(
                ["ssh-add", "-q", "-s", token.module],
                env=env,
                stdin=subprocess.DEVNULL,
                check=True,
                timeout=START_S,
            )
            self.asked = self._sign_request()
        except BaseException:
            self.close()
            raise
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        (helper,) = children.read_text().split()
        self.pids = (self._process.pid, int(helper))

    def _sign_request(self) -> Asked:
        with connected(self.path) as sock:
            sock.sendall(_string(bytes([REQUEST_IDENTITIES])))
            data = b""
            while not _is_complete(data):
                data += sock.recv(65536)
        (count,) = struct.unpack_from(">I", data, 5)
        if data[4] != IDENTITIES_ANSWER or not count:
            raise CannotMeasure("ssh-agent found no key in the PKCS#11 token")
        (size,) = struct.unpack_from(">I", data, 9)
        key = data[13 : 13 + size]
        flags = struct.pack(">I", 0)
        body = bytes([SIGN_REQUEST]) + _string(key) + _string(SIGNING_INPUT) + flags
        return Asked(_string(body), _signed, _is_complete)

    def close(self) -> None:
        """End it."""
        end(self._process)


def p11_kit_client() -> str:
    """The module through which programs use a PKCS#11 token that p11-kit serves."""
    return glob.glob("/usr/lib/*/pkcs11/p11-kit-client.so")[0]


@contextmanager
def p11_kit_server(token: Token, folder: Path) -> Iterator[dict[str, str]]:
    """A PKCS#11 token, served to other processes: the variables for `p11_kit_client`."""
    folder.mkdir()
    path = folder / "pkcs11.sock"
    process = subprocess.Popen(
        [
            *("p11-kit", "server", "--foreground", "--name", path, "--provider", token.module),
            f"pkcs11:token={token.label}",
        ],
        env={**os.environ, **token.env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        connected_soon(str(path)).close()
        yield {"P11_KIT_SERVER_ADDRESS": f"unix:path={path}"}
    finally:
        end(process)


def built(source: str, folder: Path) -> Path:
    """A program of one of the benchmark's C files, in a folder."""
    program = folder / Path(source).stem
    words = ("-O2", "-Wall", "-Werror", "-o", program, ROOT / "tests" / "bench" / source)
    subprocess.run(["gcc", *words], check=True)
    return program

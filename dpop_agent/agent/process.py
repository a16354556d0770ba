"""A signer process and its channel."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from typing import TYPE_CHECKING

from dpop_agent.channel import Frames, Malformed

if TYPE_CHECKING:
    from dpop_agent.agent.signers import Signer

log = logging.getLogger("dpop_agent.process")


class SignerProcess(asyncio.Protocol):
    """One signer process and its channel."""

    def __init__(self, signer: Signer, popen: subprocess.Popen[bytes]) -> None:
        self._signer = signer
        self._frames = Frames()
        self.popen = popen
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for answer in self._frames.feed(data):
                self._signer.answered(self, answer)
        except Malformed as e:
            log.warning("signer of store %s: %s", self._signer.config.name, e)
            self.kill()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        self._signer.died(self)

    def kill(self) -> None:
        """End it, hanging or not; `died` follows. Its child dies with it."""
        self.popen.kill()
        self.transport.abort()

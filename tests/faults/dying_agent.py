"""`dpop-agent serve` that kills itself, as `kill -9` would, at one step of its first key operation.

    python -m tests.faults.dying_agent STEP agent|all …

A step is a place before or after anything durable: a ledger's write, its replace, a signer's work.
`all` kills the signers as well. What follows on the command line is ignored.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpop_agent.agent.handler import Handler
from dpop_agent.agent.ledger import Ledger
from dpop_agent.agent.signers import Signer
from dpop_agent.cli.main import main

OPERATIONS = ("key.create", "key.rotate", "key.activate", "key.destroy", "key.adopt")


class Steps:
    """Counts from the first key operation on."""

    def __init__(self, deadly: int, *, signers_too: bool) -> None:
        self.armed = False
        self._left = deadly
        self._signers_too = signers_too

    def step(self) -> None:
        if not self.armed:
            return
        self._left -= 1
        if self._left == 0:
            if self._signers_too:
                for pid in (
                    Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
                ):
                    os.killpg(int(pid), signal.SIGKILL)  # who forks signers, and they
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any, **kwargs: Any) -> Any:
            self.step()
            result = function(*args, **kwargs)
            self.step()
            return result

        return stepping

    def around_async(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def stepping(*args: Any, **kwargs: Any) -> Any:
            self.step()
            result = await function(*args, **kwargs)
            self.step()
            return result

        return stepping

    def arming(self, handle: Callable[..., Any]) -> Callable[..., Any]:
        def arm(handler: Any, call: Any) -> Any:
            self.armed = self.armed or call.request.method in OPERATIONS
            return handle(handler, call)

        return arm


if __name__ == "__main__":
    steps = Steps(int(sys.argv[1]), signers_too=sys.argv[2] == "all")
    os.replace = steps.around(os.replace)  # the ledger's own step
    Ledger.write = steps.around(Ledger.write)  # type: ignore[method-assign]
    Signer.ask = steps.around_async(Signer.ask)  # type: ignore[method-assign]
    Handler.handle = steps.arming(Handler.handle)  # type: ignore[method-assign]
    sys.exit(main(["serve"]))

"""An agent in a thread of the test's own, on real sockets; its store is a dictionary."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import tempfile
import threading
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self, TypeVar, cast
from unittest.mock import Mock

import uvloop

from dpop_agent import protocol
from dpop_agent.agent.acceptor import Acceptor
from dpop_agent.agent.asking import NotAgreed
from dpop_agent.agent.background import Background
from dpop_agent.agent.call import Call
from dpop_agent.agent.connection import Connection
from dpop_agent.agent.consent import Consents
from dpop_agent.agent.handler import Handler
from dpop_agent.agent.intake import Intake
from dpop_agent.agent.inventory import Inventory
from dpop_agent.agent.leases import Earlier, Leases
from dpop_agent.agent.ledger import Ledger
from dpop_agent.agent.lifecycle import Lifecycle
from dpop_agent.agent.listener import Listener
from dpop_agent.agent.making import Making
from dpop_agent.agent.nonces import Nonces
from dpop_agent.agent.proofs import Proofs
from dpop_agent.agent.queue import Job
from dpop_agent.agent.rates import Rates
from dpop_agent.agent.records import Records
from dpop_agent.agent.recovery import Recovery
from dpop_agent.agent.signers import Signer, Signers
from dpop_agent.agent.sockets import Sockets
from dpop_agent.agent.stores import Stores
from dpop_agent.agent.trails import Trace, Trails
from dpop_agent.agent.upkeep import Upkeep
from dpop_agent.agent.views import Views
from dpop_agent.channel import parse_asked
from dpop_agent.errors import KeyMissing
from dpop_agent.jose import thumbprint
from dpop_agent.peer import Peer
from tests.faults.test_machine import DictStore, Fate, public_of

T = TypeVar("T")

SLOT, SLOT_REF = "82", "05"


class Store(DictStore):
    """A store that signs, after a fashion.

    Attributes:
        has_slot: it has one place for keys, and nothing deletes what is there.
    """

    def __init__(self) -> None:
        super().__init__(Fate())
        self.config = SimpleNamespace(
            name="dict", type="pkcs11", module="/none.so", backend=None, signers=1
        )
        self.place: dict[str, Any] = {}
        self.error, self.fewer, self.pid, self.pids = None, None, 1, [1]
        self.has_slot = False
        self.locks = 0
        self.may_be_looked_at = True

    async def lock(self) -> None:
        """Note that somebody said so; it signs on, as if it had been unlocked since."""
        self.locks += 1

    def submit(self, job: Job) -> None:
        """Sign at once."""
        asked = job.make()
        assert isinstance(asked, bytes)
        ref, jkt, _ = parse_asked(asked.partition(b"\n")[0])
        if self.objects.get(ref) == jkt:
            job.finish(bytes(64))
        else:
            job.finish(KeyMissing("the store has no such key"))

    def _reserve(self, alg: str, **rest: Any) -> dict[str, Any]:
        if self.has_slot:
            return {"ref": SLOT_REF, "slot": SLOT}
        return super()._reserve(alg, **rest)

    def _generate(self, ref: str, **rest: Any) -> dict[str, Any]:
        if not self.has_slot:
            return super()._generate(ref, **rest)
        self._in_slot = public_of(f"{next(self._refs)}")
        self.objects[ref] = thumbprint(self._in_slot)
        return self._info(ref)

    def _info(self, ref: str) -> dict[str, Any]:
        info = super()._info(ref)
        return {**info, "slot": SLOT, "jwk": self._in_slot} if self.has_slot else info


class AgentInProcess:
    """What the agent has around its records, behind its sockets.

    Attributes:
        socket, admin_socket: the paths of agent.sock and of admin.sock.
        store: the one that it has.
        state: the folder of its ledger.
        trials: requests that try a nonce.
        leases: those that it gave out.
        connections: those that are open.
    """

    def __init__(self, *, audit: str = "on", noted: dict[str, Any] | None = None) -> None:
        """`noted` is what an earlier agent wrote down of its leases."""
        self._audit = audit
        self._folder = Path(tempfile.mkdtemp(prefix="dpop-", dir="/tmp"))
        self.state = self._folder / "state"
        if noted is not None:
            self.state.mkdir(mode=0o700)
            (self.state / "leases.json").write_text(json.dumps(noted))
        self.socket = str(self._folder / "agent.sock")
        self.admin_socket = str(self._folder / "admin.sock")
        self.store = Store()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self._begin())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        shutil.rmtree(self._folder)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Have the agent's thread do it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _begin(self) -> None:
        self._ledger = Ledger(str(self.state))
        self.records = records = Records(self._ledger)
        signers = Signers({"dict": cast("Signer", self.store)})
        background = self._background = Background()
        inventory = Inventory(records, signers)
        making = Making(records, signers, inventory, background)
        self.trails = Trails(records, mode=self._audit, max_bytes=2**20)
        self.upkeep = Upkeep(records, making, inventory, background, self.trails)
        nonces = Nonces()
        consents = Consents(self._nobody_asks, background)
        views = Views(records, signers, inventory, nonces)
        proofs = Proofs(records, signers, inventory, nonces, consents, Rates())
        self.trials = proofs._trials
        self.leases = Leases(Earlier(str(self.state), background))
        self._handler = Handler(
            cast("Any", self),
            proofs=proofs,
            lifecycle=Lifecycle(records, signers, inventory, making, background),
            recovery=Recovery(records, signers, inventory, making),
            stores=Stores(
                records, signers, inventory, views, background, socket_folder=str(self._folder)
            ),
            views=views,
            sockets=Sockets(records, background, cast("Any", self), agent_socket=self.socket),
            leases=self.leases,
            background=background,
        )
        self._numbers, self._intake = itertools.count(), Intake(self._loop)
        self._listeners, self._acceptors = [], []
        self.connections: set[Connection] = set()
        for name, methods in (
            ("agent", protocol.AGENT_METHODS),
            ("admin", protocol.ADMIN_METHODS),
        ):
            listener = Listener(str(self._folder / f"{name}.sock"))
            self._listeners.append(listener.__enter__())
            connect = self._connect(name, protocol.Decoder(methods))
            self._acceptors.append(Acceptor(listener.socket, connect, Mock()))

    def _connect(self, name: str, requests: protocol.Decoder) -> Any:
        def connect(peer: Peer) -> Connection:
            flow = (peer.uid, next(self._numbers))
            trace = Trace(self.trails.of(name), peer)
            connection = Connection(self, requests, self._intake, flow, trace, str(peer))
            self.connections.add(connection)
            return connection

        return connect

    async def _end(self) -> None:
        for acceptor in self._acceptors:
            await acceptor.close()
        for connection in self.connections:
            connection.abort()
        await asyncio.sleep(0.01)  # uvloop doesn't close while one is open
        await self._background.cancel(within_s=5)
        for listener in self._listeners:
            listener.__exit__()
        await self.trails.close(within_s=5)
        self._ledger.close()

    # What connections and the handler ask of it

    default_store = "dict"

    def handle(self, call: Call) -> None:
        self._handler.handle(call)

    def disconnected(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._handler.disconnected(connection.flow)

    def describe(self) -> dict[str, Any]:
        return {"connections": 1, "config": "-", "ledger": self.records.path}

    async def _nobody_asks(self, question: str) -> None:
        raise NotAgreed(f"nobody is there to be asked: {question}")

    async def reload(self) -> None:
        await self.upkeep.reconcile("dict")

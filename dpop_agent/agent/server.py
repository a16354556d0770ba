"""The agent's start and end: its stores, its keys, its sockets, put together."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import stat
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import uvloop

from dpop_agent import paths, protocol
from dpop_agent.agent import asking, descriptors, telling, terminal
from dpop_agent.agent.acceptor import Acceptor
from dpop_agent.agent.background import Background
from dpop_agent.agent.call import Call
from dpop_agent.agent.connection import Connection
from dpop_agent.agent.consent import ANSWER_S, Consents
from dpop_agent.agent.excerpts import Excerpt
from dpop_agent.agent.filters import Filter
from dpop_agent.agent.folders import Folders
from dpop_agent.agent.forker import Forker
from dpop_agent.agent.handler import FilteredHandler, Handler, ending
from dpop_agent.agent.intake import Intake
from dpop_agent.agent.inventory import Inventory
from dpop_agent.agent.leases import Earlier, Leases
from dpop_agent.agent.ledger import Ledger
from dpop_agent.agent.lifecycle import Lifecycle
from dpop_agent.agent.listener import Listener, is_dead
from dpop_agent.agent.lock import holder_of
from dpop_agent.agent.making import Making
from dpop_agent.agent.nonces import MAX_ORIGINS_THERE, Nonces
from dpop_agent.agent.process import spawn_program
from dpop_agent.agent.proofs import Proofs
from dpop_agent.agent.rates import Rates
from dpop_agent.agent.records import Records
from dpop_agent.agent.recovery import Recovery
from dpop_agent.agent.signers import Signer, Signers
from dpop_agent.agent.sockets import Served, Sockets
from dpop_agent.agent.stores import Stores
from dpop_agent.agent.trails import Trace, Trails
from dpop_agent.agent.upkeep import Upkeep
from dpop_agent.agent.views import Views
from dpop_agent.channel import is_secret_socket
from dpop_agent.config import Config, StoreConfig, load
from dpop_agent.errors import (
    ConfigurationError,
    DPoPAgentError,
    NotDurable,
    SignerFailed,
    TooManyConnections,
)
from dpop_agent.peer import Peer
from dpop_agent.protocol import Decoder
from dpop_agent.systemd import Service

log = logging.getLogger("dpop_agent.server")

IDLE_LOOK_S = 1.0
"""Seconds between looks for stores to lock or release."""

FINISH_S = 3.0
"""Seconds at the end for what is under way; then it is refused."""

PART_S = 1.0
"""Seconds at the end for clients to read their answers."""

PLACE_LOOK_S = 1.0
"""Seconds between looks whether sockets and terminal are still there, where nothing tells."""

PLACE_REST_S = 15.0
"""Those where the kernel tells: it doesn't of what is mounted over a folder, or unmounted."""

SETTLED_S = 0.1
"""Seconds from a change to the look, for others may follow."""

PLACE_TRIES = 3
"""Tries to listen anew, a look apart, before it ends: a folder is remade in several steps."""


class Agent:
    """The running agent: its stores, its keys, its sockets."""

    def __init__(
        self,
        config: Config,
        *,
        agent_socket: str,
        ledger: Ledger,
        forked: tuple[int, socket.socket] | None,
        service: Service,
        options: Mapping[str, Any],
    ) -> None:
        """Inside a running event loop; `run` opens stores and sockets."""
        self._forker = None if forked is None else Forker(*forked, on_end=self._no_more_signers)
        self._service = service
        self._options = options
        self.signers = Signers()
        self._config = replace(config, **options)
        self._agent_socket = agent_socket
        self._starting: defaultdict[str | None, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._reloading = asyncio.Lock()
        self._reconfigured = asyncio.Event()
        self._ended = asyncio.Event()
        self._connections: dict[Connection, str] = {}  # and what they're counted under
        self._on: Counter[str] = Counter()  # how many of them, by that
        self._open_at_start = descriptors.open_now()
        self._records = Records(ledger)
        self._room = self._make_room(config)
        self._acceptors: dict[Listener, Acceptor] = {}
        self._has_terminal = terminal.ends_us()
        self._failure: DPoPAgentError | None = None
        self._parted = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._admin_intake, self._intake = Intake(loop), Intake(loop)
        self._numbers = itertools.count(1)
        self._trails = Trails(self._records, mode=config.audit, max_bytes=config.audit_mib * 2**20)
        background = self._background = Background()
        inventory = Inventory(self._records, self.signers)
        making = Making(self._records, self.signers, inventory, background)
        lifecycle = Lifecycle(self._records, self.signers, inventory, making, background)
        self._upkeep = Upkeep(self._records, making, inventory, background, self._trails)
        nonces = Nonces()
        self._consents = Consents(self._ask, background)
        self._rates = Rates()
        self._inventory = inventory
        self._sockets = Sockets(self._records, background, self, agent_socket=agent_socket)
        self._earlier = Earlier(os.path.dirname(self._records.path), background)
        views = Views(self._records, self.signers, inventory, nonces)
        self._handler = Handler(
            self,
            proofs=Proofs(
                *(self._records, self.signers, inventory, nonces, self._consents, self._rates)
            ),
            lifecycle=lifecycle,
            recovery=Recovery(self._records, self.signers, inventory, making),
            stores=Stores(
                self._records,
                self.signers,
                inventory,
                views,
                background,
                socket_folder=os.path.dirname(agent_socket),
            ),
            views=views,
            sockets=self._sockets,
            leases=Leases(self._earlier),
            background=background,
        )

    async def _ask(self, question: str) -> None:
        """Put it to a person, as the configuration says how."""
        await asking.ask(question, command=self._config.confirm_command, within_s=ANSWER_S)

    @property
    def default_store(self) -> str:
        """The store of keys that name none."""
        return self._config.default_store

    def describe(self) -> dict[str, Any]:
        """The agent's own members of `status`."""
        return {
            "connections": len(self._connections),
            "config": self._config.path,
            "ledger": self._records.path,
            "audit": self._trails.describe(),
            **({} if self._forker is None else {"forking_pid": self._forker.pid}),
        }

    def answering(self, excerpt: Excerpt, socket: Filter) -> FilteredHandler:
        """What answers on a filtered socket: with nonces, leases, choices and a rate of its own."""
        nonces = Nonces(MAX_ORIGINS_THERE)
        proofs = Proofs(
            *(excerpt, self.signers, self._inventory, nonces, self._consents, self._rates),
            socket=socket,
        )
        views = Views(excerpt, self.signers, self._inventory, nonces)
        return FilteredHandler(proofs, views, Leases(self._earlier))

    def accept(self, listener: Listener, served: Served) -> Acceptor:
        """Take in connections on a filtered socket from now on."""
        requests = Decoder(protocol.AGENT_METHODS)

        def connect(peer: Peer) -> Connection:
            try:
                connection = self._connect(listener, requests, peer, served)
            except TooManyConnections as e:
                raise telling.error(e) from e
            served.connections.add(connection)
            return connection

        return Acceptor(listener.socket, connect, partial(self._refused, listener))

    def ended(self, socket: str) -> None:
        """A filtered socket is gone by itself, with its time or its connection."""
        self._trails.itself("socket.end", filtered=socket)

    def make_room(self) -> None:
        """Have room for the files of one filtered socket more.

        Raises:
            ConfigurationError: there is none.
        """
        self._room = self._make_room(self._config, more=1)

    def _connect(
        self, listener: Listener, requests: Decoder, peer: Peer, served: Served | None = None
    ) -> Connection:
        """A connection that is counted in.

        Raises:
            TooManyConnections: there is no room on its socket.
        """
        counted = listener.path if listener.name == paths.EXEC else listener.name  # each by itself
        self._room.require(self._on, counted)
        is_admin = requests.methods is protocol.ADMIN_METHODS
        intake = self._admin_intake if is_admin else self._intake
        flow = (peer.uid, listener.path, next(self._numbers))
        trace = Trace(self._trails.of(listener.name), peer)
        connection = Connection(
            served or self, requests, intake, flow, trace, str(peer), is_filtered=served is not None
        )
        self._connections[connection] = counted
        self._on[counted] += 1
        return connection

    def _refused(self, listener: Listener, peer: Peer, error: DPoPAgentError) -> None:
        """Somebody wasn't let in."""
        Trace(self._trails.of(listener.name), peer).refused(error)

    def disconnected(self, connection: Connection) -> None:
        """Count a connection out, and drop what it waited for."""
        counted = self._connections.pop(connection, None)
        if counted is not None:
            self._on[counted] -= 1
            if not self._on[counted]:
                del self._on[counted]
            for signer in self.signers.values():
                signer.drop(connection.flow)
            self._consents.drop(connection.flow)
            self._handler.disconnected(connection.flow)
            self._sockets.disconnected(connection.flow)
            if not self._connections:
                self._parted.set()

    def handle(self, call: Call) -> None:
        """Answer a request, now or later."""
        self._handler.handle(call)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, or until the terminal has gone that it was started in; as
        a service's, SIGHUP reads the configuration again.

        Raises:
            DPoPAgentError: why it ended where nobody asked for that.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, partial(self.end, signal.Signals(number).name))
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        with ExitStack() as entered:
            listeners = {
                entered.enter_context(listener): requests
                for listener, requests in self._listeners().items()
            }
            await self._save(clean=False)
            self._tidy_up()
            self._open_stores()
            for listener, requests in listeners.items():
                self._acceptors[listener] = self._acceptor(listener, requests)
            await self._sockets.start()
            log.info("serving %s", ", ".join(listener.path for listener in listeners))
            self._service.tell("READY=1")
            self._background.start(self._upkeep.watch_time())
            self._background.start(self._watch_idle())
            places = self._background.start(self._watch_places(listeners))
            await self._ended.wait()
            places.cancel()  # no socket comes back from now on
            await asyncio.wait([places])
            self._service.tell("STOPPING=1")
            await self._close()
        log.info("the agent has ended")
        if self._failure is not None:
            raise self._failure

    def _listeners(self) -> dict[Listener, Decoder]:
        """Where it is to listen, and what can be asked there."""
        names = {
            self._agent_socket: paths.AGENT,
            paths.admin_socket(self._agent_socket): paths.ADMIN,
        }
        mounted = paths.mounted_socket(self._agent_socket)
        try:
            paths.check_socket_path(mounted)
        except ConfigurationError as e:
            log.warning("there is no socket for containers, %s: %s", mounted, e)
        else:
            names[mounted] = paths.MOUNTED
        # The folder `mount` outlives the agent and has nothing else, so that it can be mounted.
        locks = {mounted: paths.mounted_lock(mounted)}
        agents = Decoder(protocol.AGENT_METHODS)
        requests = {paths.ADMIN: Decoder(protocol.ADMIN_METHODS)}
        given = self._service.sockets(names)
        return {
            Listener(
                path, name=name, lock_path=locks.get(path), given=given.get(path)
            ): requests.get(name, agents)
            for path, name in names.items()
        }

    def _acceptor(self, listener: Listener, requests: Decoder) -> Acceptor:
        return Acceptor(
            listener.socket,
            partial(self._connect, listener, requests),
            partial(self._refused, listener),
        )

    async def _watch_places(self, listeners: Mapping[Listener, Decoder]) -> None:
        """Listen anew where a socket was removed; end where that can't be done, unless it is the
        one in `mount`, or where the terminal has gone.
        """
        failed = 0
        failing: str | None = None
        folders = Folders({os.path.dirname(at.path) for at in listeners}, self._sockets.changed)
        with closing(folders):
            while not self._end_without_terminal():
                await self._until_places_change(folders, tries_again=bool(failed or failing))
                try:
                    for listener, requests in listeners.items():
                        if listener.name == paths.MOUNTED:
                            failing = await self._look_for_mounted(listener, requests, failing)
                        elif listener.lost:
                            await self._listen_again(listener, requests)
                    await self._sockets.look()
                    failed = 0
                except DPoPAgentError as e:
                    failed += 1
                    if failed == PLACE_TRIES:
                        self._failure = e
                        self._ended.set()
                        return

    async def _until_places_change(self, folders: Folders, *, tries_again: bool) -> None:
        """Wait until the kernel tells of it, so that an agent at rest sleeps; else for a second."""
        is_told = folders.watch()
        if not is_told or tries_again or self._has_terminal or self._records.sockets:
            await asyncio.sleep(PLACE_LOOK_S)
            return
        changed = self._sockets.changed
        with suppress(TimeoutError):
            async with asyncio.timeout(PLACE_REST_S):
                await changed.wait()
        changed.clear()
        await asyncio.sleep(SETTLED_S)

    async def _look_for_mounted(
        self, listener: Listener, requests: Decoder, failing: str | None
    ) -> str | None:
        """Listen anew where the socket in `mount` was removed; why that can't be done, which is
        logged unless it was `failing` for that before.
        """
        try:
            if listener.lost:
                await self._listen_again(listener, requests)
        except DPoPAgentError as e:
            if str(e) != failing:
                log.warning("nobody can connect to %s: %s", listener.path, e)
            return str(e)
        return None

    async def _listen_again(self, listener: Listener, requests: Decoder) -> None:
        listener.listen_again()
        old, self._acceptors[listener] = (
            self._acceptors[listener],
            self._acceptor(listener, requests),
        )
        log.warning("%s had gone, and is served again", listener.path)
        await old.close()

    def _end_without_terminal(self) -> bool:
        """End in order where the terminal that the agent was started in has gone."""
        if not (self._has_terminal and terminal.is_lost()):
            return False
        log.warning("the terminal has gone, so the agent ends; run as a service, it keeps going")
        self._ended.set()
        return True

    def _tidy_up(self) -> None:
        """Remove the sockets that a killed agent's signers left, and nothing that may be another
        program's: what isn't named and made as ours are, and what somebody listens at.
        """
        for entry in os.scandir(os.path.dirname(self._agent_socket)):
            if not is_secret_socket(entry.name):
                continue
            info = entry.stat(follow_symlinks=False)
            made_so = (info.st_mode, info.st_uid) == (stat.S_IFSOCK | 0o600, os.getuid())
            if made_so and is_dead(entry.path):
                os.unlink(entry.path)

    def _open_stores(self) -> None:
        for name, store in self._config.stores.items():
            if name not in self.signers:
                self.signers[name] = self._new_signer(store)
            self.signers[name].start()

    def _new_signer(self, store: StoreConfig) -> Signer:
        state_folder = os.path.dirname(self._records.path)
        return Signer(
            store,
            lock_file=paths.signer_lock(state_folder, store.name),
            starting=self._starting[store.module],
            max_waiting=self._config.max_waiting,
            on_ready=self._reconcile,
            on_refused=self._not_opened,
            on_end=self._end_after_the_last_signer,
            spawn=spawn_program if self._forker is None else self._forker.spawn,
        )

    def _no_more_signers(self) -> None:
        """The forking process has gone: what is open serves on, and nothing is opened any more."""
        log.error(
            "the process that starts signers has ended: open stores keep working, but no other can "
            "be opened; restart the agent"
        )
        self._end_after_the_last_signer()

    def _end_after_the_last_signer(self) -> None:
        if self._ended.is_set() or not self._starts_no_signers:
            return
        if not any(signer.has_process for signer in self.signers.values()):
            self._failure = SignerFailed(
                "the process that starts signers ended, and so did the last signer",
                hint="restart the agent",
            )
            self._ended.set()

    @property
    def _starts_no_signers(self) -> bool:
        return self._forker is not None and self._forker.pid is None

    def _reconcile(self, signer: Signer) -> None:
        self._trails.itself("store.open", store=signer.config.name)
        self._background.start(self._upkeep.reconcile(signer.config.name))

    def _not_opened(self, method: str, signer: Signer, error: DPoPAgentError) -> None:
        """A PIN didn't open a store, and whoever it is of has had his answer, or asked nothing."""
        self._trails.itself(method, outcome=error.type, store=signer.config.name)

    async def reload(self) -> None:
        """Read the configuration again; stores that changed or aren't open are opened anew.

        Raises:
            ConfigurationError: it can't be right; the old one stays.
        """
        async with self._reloading:
            if self._ended.is_set():
                return
            self._service.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                await self._reload()
            finally:
                self._service.tell("READY=1")

    async def _reload(self) -> None:
        self._config = replace(load(self._config.path), **self._options)
        self._reconfigured.set()
        self._room = self._make_room(self._config)
        self._trails.configure(mode=self._config.audit, max_bytes=self._config.audit_mib * 2**20)
        for name, signer in list(self.signers.items()):
            signer.max_waiting = self._config.max_waiting
            store = self._config.stores.get(name)
            if store is None:
                del self.signers[name]
                await signer.close()
            elif store != signer.config:
                # There at once, so that requests wait for it; started once the old one has ended.
                self.signers[name] = successor = self._new_signer(store)
                async with self._starting[store.module]:
                    await signer.close(successor=successor)
        self._open_stores()
        for name, signer in list(self.signers.items()):
            was_open = signer.state == "ready"  # one that is opened now is looked into by itself
            if signer.state != "locked":  # by somebody who may be typing for a minute
                await signer.started()
            if was_open:
                await self._upkeep.reconcile(name, anew=True)

    def _make_room(self, config: Config, *, more: int = 0) -> descriptors.Room:
        return descriptors.make_room(
            config.max_connections,
            each=config.max_socket_connections,
            signers=sum(store.signers for store in config.stores.values()),
            filtered=len(self._records.sockets) + more,
            others=self._open_at_start,
        )

    def _hang_up(self) -> None:
        if self._end_without_terminal():
            return

        async def reload() -> None:
            try:
                await self.reload()
            except DPoPAgentError as e:
                log.warning("the old configuration stays: %s", e)

        self._background.start(reload())

    async def _watch_idle(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._config.lock_after_s is None and self._config.release_after_s is None:
                self._reconfigured.clear()
                await self._reconfigured.wait()
            began = loop.time()
            await asyncio.sleep(IDLE_LOOK_S)
            if loop.time() - began > 2 * IDLE_LOOK_S:
                continue  # the agent stood still: what was sent meanwhile comes first
            for signer in list(self.signers.values()):
                if signer.look_idle(
                    lock_after_s=self._config.lock_after_s,
                    release_after_s=self._config.release_after_s,
                ):
                    self._trails.itself("lock", store=signer.config.name)

    async def _save(self, *, clean: bool) -> None:
        try:
            await self._records.save(clean=clean)
        except NotDurable as e:
            log.warning("%s", e)

    def end(self, why: str) -> None:
        """Begin to end; a second signal ends the process as if there were no handler."""
        log.info("the agent is ending: %s", why)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        self._ended.set()

    async def _close(self) -> None:
        """Whatever came is answered, by what it asked for or by a refusal, before we part."""
        for listener, acceptor in self._acceptors.items():
            listener.hide()
            await acceptor.close()
        await self._sockets.stop()
        self._handler.take_no_more()
        under_way = [
            asyncio.ensure_future(intake.settled()) for intake in (self._admin_intake, self._intake)
        ]
        _, late = await asyncio.wait(under_way, timeout=FINISH_S)
        for waiting in late:
            waiting.cancel()
        await self._background.cancel(within_s=PART_S)
        async with self._reloading:
            closing = [
                asyncio.ensure_future(signer.close(ending())) for signer in self.signers.values()
            ]
            await self._part()
            await asyncio.gather(*closing)
        if self._forker is not None:
            await self._forker.close()
        self._sockets.leave()
        await self._save(clean=True)
        await self._trails.close(within_s=PART_S)

    async def _part(self) -> None:
        """Close connections once everybody has read his answers, or had the time to."""
        await asyncio.sleep(0)  # until signers have refused what is under way there
        if not self._connections:
            return
        self._parted.clear()
        for connection in list(self._connections):
            connection.end()
        try:
            async with asyncio.timeout(PART_S):
                await self._parted.wait()
        except TimeoutError:
            for connection in list(self._connections):
                connection.abort()


def run(
    config: Config,
    *,
    agent_socket: str,
    state_folder: str,
    forked: tuple[int, socket.socket] | None,
    service: Service,
    options: Mapping[str, Any],
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        config: the stores.
        agent_socket: where `agent.sock` goes, `admin.sock` beside it.
        state_folder: where the ledger is.
        forked: the process that forks signers, and the channel to it; None where they come by exec.
        service: what systemd gave.
        options: of the configuration's `IDLE` what is otherwise, whatever a reload finds there.

    Raises:
        DPoPAgentError: why the agent doesn't start.
    """
    ledger = Ledger(state_folder, holder=holder_of(agent_socket))

    async def serve() -> None:
        await Agent(
            config,
            agent_socket=agent_socket,
            ledger=ledger,
            forked=forked,
            service=service,
            options=options,
        ).run()

    try:
        uvloop.run(serve())
    finally:
        ledger.close()

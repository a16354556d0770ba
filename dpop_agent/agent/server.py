"""The sockets: who connects, which lines come, which go. And the agent's start and end."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import select
import signal
import socket
import stat
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from dpop_agent import paths, protocol
from dpop_agent.agent.background import Background
from dpop_agent.agent.handler import MAX_REQUESTS, Handler
from dpop_agent.agent.inventory import Inventory
from dpop_agent.agent.ledger import Ledger
from dpop_agent.agent.lifecycle import Lifecycle
from dpop_agent.agent.making import Making
from dpop_agent.agent.records import Records
from dpop_agent.agent.signers import Signer, Signers
from dpop_agent.agent.upkeep import Upkeep
from dpop_agent.channel import is_secret_socket
from dpop_agent.config import Config, load
from dpop_agent.errors import (
    Busy,
    ConfigurationError,
    DPoPAgentError,
    NotDurable,
    ParseError,
    ProtocolError,
    Timeout,
    TooManyConnections,
    UnsafeSocket,
)
from dpop_agent.hardening import harden
from dpop_agent.peer import peer_of, require_own_uid

log = logging.getLogger("dpop_agent.server")

MAX_CONNECTIONS, MAX_ADMIN = 512, 64
"""Open connections on `agent.sock` and on `admin.sock`, to which clients of the first leave room;
half of the usual limit of descriptors."""

LINE_TIMEOUT_S = 5.0
"""Seconds for the rest of a line that has begun."""

BACKLOG = 128

IDLE_LOOK_S = 1.0
"""Seconds between looks for stores to lock or release."""


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, agent: Agent, methods: Mapping[str, Mapping[str, protocol.Param]]) -> None:
        self._agent = agent
        self.methods = methods
        self._rest = b""
        self._under_way = 0
        self._no_more = False
        self._unread = False
        self._late: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        try:
            require_own_uid(
                peer_of(transport.get_extra_info("socket")), what="the program that connected"
            )
        except (UnsafeSocket, OSError) as e:
            log.warning("refused a connection: %s", e)
            transport.abort()
            return
        if not self._agent.connected(self):
            self._fail(
                TooManyConnections("as many connections are open as can be", hint="close some")
            )

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        self._stop_clock()
        self._agent.disconnected(self)

    def pause_writing(self) -> None:
        """The client doesn't read its answers: take no more requests until it does."""
        self._unread = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._unread = False
        self._transport.resume_reading()
        self.data_received(b"")

    def data_received(self, data: bytes) -> None:
        self._rest += data
        begin = 0
        while not (self._unread or self._transport.is_closing()):
            end = self._rest.find(b"\n", begin)
            if end < 0:
                break
            self._line(self._rest[begin:end])
            begin = end + 1
        self._rest = self._rest[begin:]
        if self._unread or self._transport.is_closing():
            self._stop_clock()
            return
        if len(self._rest) >= protocol.MAX_LINE:
            self._fail(_too_long())
        elif begin or not self._rest:
            self._stop_clock()
        if self._rest and self._late is None and not self._transport.is_closing():
            self._late = asyncio.get_running_loop().call_later(LINE_TIMEOUT_S, self._too_slow)

    def eof_received(self) -> bool:
        """A client may close its sending half and still read the answers; one that went may not."""
        self._no_more = self._under_way > 0 and not self._hung_up()
        return self._no_more

    def _hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), 0)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def _line(self, line: bytes) -> None:
        if len(line) >= protocol.MAX_LINE:
            self._fail(_too_long())
            return
        try:
            request = protocol.decode_request(line, self.methods)
        except ProtocolError as e:
            self._write(protocol.encode_error(e.request_id, e))
            return
        if self._under_way >= MAX_REQUESTS:
            error = Busy(
                f"{MAX_REQUESTS} requests are under way on this connection",
                hint="read answers before sending more",
            )
            self._write(protocol.encode_error(request.id, error))
            return
        log.debug("%s", request.method)
        self._under_way += 1

        def respond(what: dict[str, Any] | DPoPAgentError) -> None:
            self._under_way -= 1
            self._write(_encoded(request.id, what))
            if self._no_more and not self._under_way:
                self.close()

        self._agent.handler.handle(request, self, respond)

    def tell(self, event: str, params: Mapping[str, Any]) -> None:
        """Send what answers no request, to a client that subscribed to it."""
        self._write(protocol.encode_event(event, params))

    def _write(self, line: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(line)

    def _fail(self, error: DPoPAgentError) -> None:
        """Say why, and close."""
        self._write(protocol.encode_error(None, error))
        self._rest = b""
        self.close()

    def close(self) -> None:
        """Close after what was written went out."""
        self._transport.close()

    def _too_slow(self) -> None:
        self._late = None
        self._fail(
            Timeout(f"a line wasn't complete after {LINE_TIMEOUT_S:g} s", hint="send whole lines")
        )

    def _stop_clock(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def _too_long() -> ParseError:
    return ParseError(
        f"a line has more than {protocol.MAX_LINE} bytes, and the connection is closed",
        hint="shorten the request",
    )


def _encoded(request_id: str | int, what: dict[str, Any] | DPoPAgentError) -> bytes:
    if isinstance(what, DPoPAgentError):
        return protocol.encode_error(request_id, what)
    try:
        return protocol.encode_result(request_id, what)
    except ProtocolError as e:
        return protocol.encode_error(request_id, e)


class Agent:
    """The running agent: its stores, its keys, its sockets."""

    def __init__(
        self,
        config: Config,
        *,
        agent_socket: str,
        ledger: Ledger,
        lock_after_s: float | None,
        release_after_s: float | None,
    ) -> None:
        """Inside a running event loop; `run` opens stores and sockets."""
        self._lock_after_s = lock_after_s
        self._release_after_s = release_after_s
        self.signers = Signers()
        self._config = config
        self._agent_socket = agent_socket
        self._starting: defaultdict[str | None, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._reloading = asyncio.Lock()
        self._ended = asyncio.Event()
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._records = Records(ledger)
        background = Background()
        inventory = Inventory(self._records, self.signers)
        making = Making(self._records, self.signers, inventory, background)
        lifecycle = Lifecycle(self._records, self.signers, inventory, making, background)
        self._upkeep = Upkeep(self._records, making, inventory, background)
        self.handler = Handler(self._records, self.signers, inventory, lifecycle, self)

    @property
    def default_store(self) -> str:
        """The store of keys that name none."""
        return self._config.default_store

    @property
    def socket_folder(self) -> str:
        """The folder of the agent's sockets, which is the user's alone."""
        return os.path.dirname(self._agent_socket)

    def describe(self) -> dict[str, Any]:
        """The agent's own members of `status`."""
        return {
            "connections": len(self._connections),
            "config": self._config.path,
            "ledger": self._records.path,
        }

    def connected(self, connection: Connection) -> bool:
        """Count a connection in, if there is room on its socket."""
        same = sum(c.methods is connection.methods for c in self._connections)
        if same >= (MAX_CONNECTIONS if connection.methods is protocol.AGENT_METHODS else MAX_ADMIN):
            return False
        self._connections.add(connection)
        return True

    def disconnected(self, connection: Connection) -> None:
        """Count it out, and drop what it waited for."""
        if connection in self._connections:
            self._connections.discard(connection)
            self.handler.gone(connection)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; SIGHUP reads the configuration again."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        admin_socket = paths.admin_socket(self._agent_socket)
        with Listener(self._agent_socket) as agent_sock, Listener(admin_socket) as admin_sock:
            await self._save(clean=False)
            self._tidy_up()
            self._open_stores()
            for sock, methods in (
                (agent_sock, protocol.AGENT_METHODS),
                (admin_sock, protocol.ADMIN_METHODS),
            ):
                self._servers.append(
                    await loop.create_unix_server(
                        lambda methods=methods: Connection(self, methods),  # type: ignore[misc]
                        sock=sock,
                        backlog=BACKLOG,
                    )
                )
            log.info("serving %s and %s", self._agent_socket, admin_socket)
            watching = [
                loop.create_task(self._upkeep.watch_time()),
                loop.create_task(self._watch_idle()),
            ]
            await self._ended.wait()
            for task in watching:
                task.cancel()
            await asyncio.wait(watching)
            await self._close()

    def _tidy_up(self) -> None:
        """Remove the sockets that a killed agent's signers left; the folder is this one's alone."""
        for entry in os.scandir(self.socket_folder):
            if is_secret_socket(entry.name):
                os.unlink(entry.path)

    def _open_stores(self) -> None:
        for name, store in self._config.stores.items():
            if name not in self.signers:
                self.signers[name] = Signer(
                    store,
                    lock_file=os.path.join(
                        os.path.dirname(self._records.path), f"signer-{name}.lock"
                    ),
                    starting=self._starting[store.module],
                    on_ready=self._reconcile,
                )
            self.signers[name].start()

    def _reconcile(self, signer: Signer) -> None:
        task = asyncio.get_running_loop().create_task(self._upkeep.reconcile(signer.config.name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def reload(self) -> None:
        """Read the configuration again; stores that changed or aren't open are opened anew.

        Raises:
            ConfigurationError: it can't be right; the old one stays.
        """
        async with self._reloading:
            if not self._ended.is_set():
                await self._reload()

    async def _reload(self) -> None:
        config = load(self._config.path)
        for name, signer in list(self.signers.items()):
            if config.stores.get(name) != signer.config:
                del self.signers[name]
                await signer.close()
        self._config = config
        self._open_stores()
        for name, signer in list(self.signers.items()):
            was_open = signer.state == "ready"  # one that is opened now is looked into by itself
            if not signer.locked:  # by somebody who may be typing for a minute
                await signer.started()
            if was_open:
                await self._upkeep.reconcile(name)

    def _hang_up(self) -> None:
        async def reload() -> None:
            try:
                await self.reload()
            except DPoPAgentError as e:
                log.warning("the old configuration stays: %s", e)

        task = asyncio.get_running_loop().create_task(reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch_idle(self) -> None:
        if self._lock_after_s is None and self._release_after_s is None:
            return
        while True:
            await asyncio.sleep(IDLE_LOOK_S)
            for signer in list(self.signers.values()):
                signer.look_idle(
                    lock_after_s=self._lock_after_s, release_after_s=self._release_after_s
                )

    async def _save(self, *, clean: bool) -> None:
        try:
            await self._records.save(clean=clean)
        except NotDurable as e:
            log.warning("%s", e)

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.close()
        async with self._reloading:
            for signer in self.signers.values():
                await signer.close()
        await self._save(clean=True)


class Listener:
    """A listening socket at a path that is this agent's alone.

    Raises, when entered:
        ConfigurationError: another agent listens there, or something that isn't a socket is there.
        UnsafeSocket: others can change the folder.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> socket.socket:
        paths.check_socket_path(self._path)
        folder = os.path.dirname(self._path)
        try:
            paths.make_private_folder(folder)
            paths.check_socket_folder(self._path)
            self._lock = os.open(
                self._path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError as e:
            raise ConfigurationError(
                f"the socket's folder {folder} can't be used ({e.strerror})",
                hint="set DPOP_AGENT_SOCK to a path in a folder of your own",
            ) from e
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise ConfigurationError(
                f"another agent serves {self._path}",
                hint="use that one, or set DPOP_AGENT_SOCK to another path",
            ) from e
        self._unlink_stale()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        umask = os.umask(0o177)
        try:
            sock.bind(self._path)
        except OSError as e:
            raise ConfigurationError(
                f"the socket {self._path} can't be made ({e.strerror})",
                hint="set DPOP_AGENT_SOCK to another path",
            ) from e
        finally:
            os.umask(umask)
        return sock

    def __exit__(self, *exc: object) -> None:
        # Under the lock nobody else's socket can be at the path.
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass
        os.close(self._lock)

    def _unlink_stale(self) -> None:
        """Remove a socket that nobody listens at; anything else stays."""
        try:
            info = os.lstat(self._path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(info.st_mode):
            raise ConfigurationError(
                f"{self._path} is there and isn't a socket", hint="move it away"
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(self._path)
            except ConnectionRefusedError:
                os.unlink(self._path)
                return
            except OSError:
                pass
        raise ConfigurationError(
            f"some other program listens at {self._path}", hint="end it, or use another path"
        )


def run(
    config: Config,
    *,
    agent_socket: str,
    state_folder: str,
    lock_after_s: float | None = None,
    release_after_s: float | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        config: the stores.
        agent_socket: where `agent.sock` goes, `admin.sock` beside it.
        state_folder: where the ledger is.
        lock_after_s: seconds without use after which a store is locked; None for never.
        release_after_s: seconds after which other programs may have it; None for never.

    Raises:
        DPoPAgentError: why the agent doesn't start.
    """
    harden()
    ledger = Ledger(state_folder)

    async def serve() -> None:
        await Agent(
            config,
            agent_socket=agent_socket,
            ledger=ledger,
            lock_after_s=lock_after_s,
            release_after_s=release_after_s,
        ).run()

    try:
        asyncio.run(serve())
    finally:
        ledger.close()

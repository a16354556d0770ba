"""Filtered sockets: added, listed, removed, and served until their time is over.

Each is `agent.sock` alone in a folder, which can be mounted into a container: the folder is made
when the socket is added and removed with it, and stays over restarts of the agent in between.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from dpop_agent import paths
from dpop_agent.agent.acceptor import Acceptor
from dpop_agent.agent.background import Background
from dpop_agent.agent.call import Call
from dpop_agent.agent.connection import Connection
from dpop_agent.agent.excerpts import Excerpt
from dpop_agent.agent.filters import Filter
from dpop_agent.agent.keys import Key, Keys
from dpop_agent.agent.listener import Listener, is_dead, was_held_for
from dpop_agent.agent.policy import allowing, allowing_origin
from dpop_agent.agent.queue import Flow
from dpop_agent.agent.records import Records, now_text, text_of
from dpop_agent.agent.rules import ANYTHING, Rule, Rules, named
from dpop_agent.errors import (
    ConfigurationError,
    DPoPAgentError,
    InvalidParams,
    KeyDestroyed,
    LimitReached,
    NotDurable,
    SocketExists,
    SocketUnknown,
)
from dpop_agent.htu import is_below, target
from dpop_agent.protocol import MAX_LINE, is_socket_name, seconds_of

log = logging.getLogger("dpop_agent.sockets")

MAX_SOCKETS = 64
"""Filtered sockets of one agent: each takes two of its files, and some memory."""

MAX_NAMED = 32
"""Those that `status` names."""

PAGE = MAX_LINE - 1024
"""Bytes of a page of sockets, the envelope left free; one has 52 KiB at the most."""


_OPTIONS = {
    Rule.ORIGINS: ("--origin", "origins"),
    Rule.METHODS: ("--method", "methods"),
    Rule.PATHS: ("--path", "paths"),
}


class Answering(Protocol):
    """What answers the requests of one socket."""

    @property
    def made(self) -> int:
        """How many proofs it gave out."""

    def handle(self, call: Call) -> None:
        """Answer a request, now or later."""

    def disconnected(self, flow: Flow) -> None:
        """A connection has gone: drop what it waited for, and end what it held."""

    def take_no_more(self) -> None:
        """Refuse what comes from now on: the agent is ending."""


class Door(Protocol):
    """What is asked of the server."""

    def answering(self, excerpt: Excerpt, socket: Filter) -> Answering:
        """What answers on a filtered socket."""

    def accept(self, listener: Listener, served: Served) -> Acceptor:
        """Take in connections from now on."""

    def disconnected(self, connection: Connection) -> None:
        """Count a connection out, and drop what it waited for."""

    def ended(self, socket: str) -> None:
        """A filtered socket is gone by itself, with its time or its connection."""

    def make_room(self) -> None:
        """Have room for the files of one socket more.

        Raises:
            ConfigurationError: there is none.
        """


class Served:
    """A filtered socket that is served.

    Attributes:
        listener: where.
        excerpt: what its clients see.
        connections: those that are open.
        failing: why nobody can connect now; None if somebody can, as far as is known.
    """

    def __init__(
        self, door: Door, listener: Listener, excerpt: Excerpt, answering: Answering
    ) -> None:
        self._door = door
        self._answering = answering
        self._acceptor: Acceptor | None = None
        self.listener = listener
        self.excerpt = excerpt
        self.connections: set[Connection] = set()
        self.failing: str | None = None

    @property
    def made(self) -> int:
        """How many proofs were given out."""
        return self._answering.made

    def accept(self) -> None:
        """Take in connections from now on."""
        self._acceptor = self._door.accept(self.listener, self)

    def handle(self, call: Call) -> None:
        """Answer a request, now or later."""
        self._answering.handle(call)

    def disconnected(self, connection: Connection) -> None:
        """Count a connection out, and drop what it waited for."""
        self.connections.discard(connection)
        self._answering.disconnected(connection.flow)
        self._door.disconnected(connection)

    async def listen_again(self) -> None:
        """Listen anew where its socket was removed; whoever is connected stays so.

        Raises:
            ConfigurationError, UnsafeSocket: that can't be done.
        """
        self.listener.listen_again()
        old = self._acceptor
        self.accept()
        if old is not None:
            await old.close()

    async def stop(self) -> None:
        """Take in no connection any more."""
        self.listener.hide()
        if self._acceptor is not None:
            await self._acceptor.close()
            self._acceptor = None

    def take_no_more(self) -> None:
        """Refuse what comes from now on."""
        self._answering.take_no_more()

    def leave(self) -> None:
        """Let another agent have the place."""
        self.listener.__exit__()

    def shut(self) -> None:
        """From now on nothing leaves here, whatever is under way."""
        self.excerpt.close()
        self.listener.hide()

    async def end(self) -> None:
        """Close all there is of it."""
        self.shut()
        await self.stop()
        for connection in list(self.connections):
            connection.abort()
        self.leave()


class Sockets:
    """The filtered sockets, and what people have done to them.

    Attributes:
        changed: is set when somebody has to `look`: there is another, or, as others find, something
            has changed where they are.
    """

    def __init__(
        self, records: Records, background: Background, door: Door, *, agent_socket: str
    ) -> None:
        self._records = records
        self._background = background
        self._door = door
        self._agent_socket = agent_socket
        self._folder = paths.filtered_sockets(agent_socket)
        self._served: dict[str, Served] = {}
        self._failing: dict[str, str] = {}  # why one isn't served
        self._to_serve: set[str] = set()  # those of them that are tried again
        self._of_connection: defaultdict[Flow, list[str]] = defaultdict(list)
        self._changing = asyncio.Lock()
        self._stopped = False
        self.changed = asyncio.Event()
        self._made_before = 0  # by those that are gone

    @property
    def made(self) -> int:
        """How many proofs all of them gave out."""
        return self._made_before + sum(served.made for served in self._served.values())

    def describe(self) -> dict[str, Any]:
        """What `status` says of them."""
        names = sorted(self._records.sockets)
        return {"sockets": names[:MAX_NAMED], "sockets_count": len(names)}

    # Verbs; each takes the wire's parameters and raises what errors.py has for it

    async def add(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """`socket.add`: a socket that is kept over a restart."""
        name = params["socket"]
        async with self._changing:
            if self._records.repeated("socket.add", params):
                if name in self._records.sockets:
                    return self._shown(name)
                raise SocketUnknown(
                    f"the socket {name} was added by that very request, and is gone since",
                    hint="to add it again, use another request_id",
                )
            added = self._new(params)
            served = self._listen(added)
            try:
                await self._records.write(
                    sockets=lambda sockets: {**sockets, name: added},
                    command=("socket.add", params),
                )
            except BaseException:
                self._records.drop_socket(name)  # it may be in the ledger, if not durably
                await self._end(name, served)
                raise
            self._added(added, served)
            return self._shown(name)

    def add_with_connection(self, params: Mapping[str, Any], flow: Flow) -> dict[str, Any]:
        """`socket.add`: one that is gone with the connection that added it.

        Raises:
            InvalidParams: with a request_id, which is for what lasts.
        """
        if "request_id" in params:
            raise InvalidParams(
                "socket.add: a socket that goes with its connection is added once",
                hint="leave out request_id",
            )
        added = self._new(params)
        served = self._listen(added)
        self._records.hold_socket(added)
        self._of_connection[flow].append(added.name)
        self._added(added, served)
        return self._shown(added.name)

    def disconnected(self, flow: Flow) -> None:
        """A connection has gone, and with it the sockets that were for as long as it lasts."""
        for name in self._of_connection.pop(flow, ()) if not self._stopped else ():
            found = self._records.sockets.get(name)
            if found is not None and found.with_connection:
                self._drop(name, "its connection has ended")

    async def remove(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """`socket.remove`: nothing leaves there from now on, what is under way included.

        Raises:
            NotDurable: a restart of the agent brings it back.
            SocketUnknown
        """
        name = params["socket"]
        if not self._records.repeated("socket.remove", params) and name in self._served:
            self._served[name].shut()
        async with self._changing:
            if self._records.repeated("socket.remove", params):
                return {"sockets": []}
            found = self._records.sockets.get(name)
            if found is None:
                raise self._unknown(name)
            if found.with_connection:
                self._drop(name, "it was removed")
                return {"sockets": []}
            self._to_serve.discard(name)
            served = self._served.pop(name, None)
            if served is not None:
                self._made_before += served.made
                await self._end(name, served, keep_folder=True)
            self._failing[name] = "it was removed, but that isn't in the ledger yet"
            try:
                await self._records.write(
                    sockets=lambda sockets: {n: f for n, f in sockets.items() if n != name},
                    command=("socket.remove", params),
                )
            except NotDurable as e:
                raise NotDurable(
                    f"the socket {name} is closed, but a restart of the agent opens it again: "
                    f"{e.message}",
                    hint=f"free space, then again: dpop-agent socket remove {name}",
                ) from e
            self._failing.pop(name, None)
            self._remove_folder(name)
            log.info("the socket %s is gone: it was removed", name)
            return {"sockets": []}

    def page(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """`socket.list`: all of them, by name, or the one of a name."""
        sockets = self._records.sockets
        if "socket" in params:
            return self._shown(params["socket"])
        names, listed, size = sorted(sockets), list[dict[str, Any]](), 0
        for name in names[bisect_left(names, params.get("cursor", "")) :]:
            members = self._members(sockets[name])
            size += len(json.dumps(members))
            if size > PAGE and listed:
                return {"sockets": listed, "cursor": name}
            listed.append(members)
        return {"sockets": listed}

    # What becomes of them

    async def start(self) -> None:
        """Serve those that the ledger has and whose time isn't over, and tidy up after others."""
        now, now_s = time.time(), self._records.now_s
        over = [n for n, found in self._records.sockets.items() if found.is_over(now, now_s)]
        for name in over:
            self._records.drop_socket(name)
            log.info("the socket %s is gone: its time was over", name)
        if over:
            self._background.start(self._background.quietly("ledger", self._records.write()))
        self._tidy_up(over)
        for name, found in self._records.sockets.items():
            self._to_serve.add(name)
            self._try_to_serve(found)

    def _try_to_serve(self, found: Filter) -> None:
        try:
            served = self._listen(found)
        except DPoPAgentError as e:
            if self._failing.get(found.name) != str(e):
                log.warning("the socket %s isn't served: %s", found.name, e)
            self._failing[found.name] = str(e)
            return
        self._to_serve.discard(found.name)
        self._failing.pop(found.name, None)
        self._serve(found.name, served)

    async def look(self) -> None:
        """End those whose time is over, or was when a request came; listen anew where a socket was
        removed, and where that couldn't be done at the start.
        """
        now, now_s = time.time(), self._records.now_s
        for name, found in self._records.sockets.items():
            here = self._served.get(name)
            was_over = here is not None and here.excerpt.has_expired
            if was_over or found.is_over(now, now_s):
                self._drop(name, "its time is over")
        for name in list(self._to_serve):
            self._try_to_serve(self._records.sockets[name])
        for name, served in list(self._served.items()):
            try:
                if self._served.get(name) is served and served.listener.lost:
                    await served.listen_again()
                    log.warning("%s had gone, and is served again", served.listener.path)
                served.failing = None
            except DPoPAgentError as e:
                if served.failing is None:
                    log.warning("nobody can connect to the socket %s: %s", name, e)
                served.failing = str(e)

    async def stop(self) -> None:
        """The agent is ending: take in no connection any more, and no request."""
        self._stopped = True
        for served in self._served.values():
            await served.stop()
            served.take_no_more()

    def leave(self) -> None:
        """Their connections are closed: leave the folders of those alone that are kept."""
        for name, served in self._served.items():
            served.leave()
            found = self._records.sockets.get(name)
            if found is not None and found.with_connection:
                self._remove_folder(name)

    def _drop(self, name: str, why: str) -> None:
        """It is gone from now on; from the ledger as soon as that can be written."""
        found = self._records.sockets[name]
        self._records.drop_socket(name)
        self._to_serve.discard(name)
        self._failing.pop(name, None)
        served = self._served.pop(name, None)
        log.info("the socket %s is gone: %s", name, why)
        self._door.ended(name)

        async def end() -> None:
            if served is not None:
                await self._end(name, served)
            if not found.with_connection:
                await self._background.quietly("ledger", self._records.write())

        if served is not None:
            served.shut()
            self._made_before += served.made
        self._background.start(end())

    async def _end(self, name: str, served: Served, *, keep_folder: bool = False) -> None:
        await served.end()
        if not keep_folder and name not in self._served:
            self._remove_folder(name)

    def _listen(self, found: Filter) -> Served:
        """Listen at its place; nobody is taken in yet.

        Raises:
            ConfigurationError, UnsafeSocket: that can't be done.
        """
        name = found.name
        path = paths.filtered_socket(self._agent_socket, name)
        length = len(os.fsencode(path))
        if length > paths.MAX_SOCKET_PATH:
            raise ConfigurationError(
                f"the path of the socket {name} would have {length} bytes, more than the "
                f"{paths.MAX_SOCKET_PATH} that work: {path}",
                hint="use a shorter name, or set DPOP_AGENT_SOCK to a shorter path",
            )
        recorded = paths.EXEC if found.with_connection else name
        listener = Listener(path, name=recorded, lock_path=self._lock_of(name))
        listener.__enter__()
        excerpt = Excerpt(self._records, name)
        return Served(self._door, listener, excerpt, self._door.answering(excerpt, found))

    def _added(self, added: Filter, served: Served) -> None:
        rules = {name: value for name, value in added.rules.members().items() if value}
        log.info(
            "the socket %s is new: for the keys %s%s, %s",
            added.name,
            ", ".join(added.keys),
            "".join(f", {name} {value}" for name, value in rules.items()),
            _until(added),
        )
        self._serve(added.name, served)

    def _serve(self, name: str, served: Served) -> None:
        self._served[name] = served
        served.accept()
        self.changed.set()
        log.info("serving the socket %s at %s", name, served.listener.path)

    def _lock_of(self, name: str) -> str:
        return paths.filtered_lock(self._folder, name)

    def _remove_folder(self, name: str) -> None:
        """Remove what is left of a socket, and nothing that isn't ours."""
        with suppress(OSError):  # somebody put something there, or removed it
            os.rmdir(os.path.dirname(paths.filtered_socket(self._agent_socket, name)))
        with suppress(OSError):
            os.unlink(self._lock_of(name))

    def _tidy_up(self, over: Collection[str]) -> None:
        """Remove what a killed agent left of sockets that aren't any more, and nothing that another
        program may have put there: what neither was in the ledger nor has a lock of an agent's.
        """
        try:
            entries = os.listdir(self._folder)
        except OSError:
            return
        for entry in entries:
            name = paths.filtered_of_lock(entry) or entry
            if name in self._records.sockets or not is_socket_name(name):
                continue
            path = paths.filtered_socket(self._agent_socket, name)
            if name not in over and not was_held_for(self._lock_of(name), path):
                continue
            if paths.socket_at(path) is not None and is_dead(path):
                with suppress(OSError):
                    os.unlink(path)
            self._remove_folder(name)

    # What is asked for, checked

    def _new(self, params: Mapping[str, Any]) -> Filter:
        """The socket that somebody asks for.

        Raises:
            SocketExists, LimitReached, KeyUnknown, KeyDestroyed, InvalidParams, HtuRefused
        """
        name, records = params["socket"], self._records
        if name in records.sockets:
            raise SocketExists(
                f"there is a socket {name} already",
                hint=f"see: dpop-agent socket show {name}; or use another name",
            )
        if len(records.sockets) >= MAX_SOCKETS:
            raise LimitReached(
                f"there are {MAX_SOCKETS} sockets already, as many as one agent has",
                hint="remove one: dpop-agent socket remove NAME",
            )
        names = tuple(dict.fromkeys(params["keys"]))
        rules = ANYTHING.given(params)
        _require_use_of_all(rules, [_usable(records.keys, key) for key in names])
        expires_at, expires_s = self._expiry(params)
        try:
            self._door.make_room()
        except ConfigurationError as e:
            raise LimitReached(e.message, hint=e.hint) from e
        return Filter(
            name,
            names,
            now_text(),
            rules,
            expires_at=expires_at,
            expires_s=expires_s,
            with_connection=params.get("with_connection", False),
        )

    def _expiry(self, params: Mapping[str, Any]) -> tuple[int | None, int | None]:
        """When it ends, in seconds since 1970 and by the agent's own clock."""
        now = int(time.time())
        if "expires" in params and "expires_s" in params:
            raise InvalidParams(
                "socket.add: expires and expires_s are both there", hint="leave out one"
            )
        if "expires_s" in params:
            left_s = params["expires_s"]
        elif "expires" in params:
            try:
                left_s = seconds_of(params["expires"]) - now
            except ValueError as e:
                raise InvalidParams("socket.add: expires isn't a date") from e
            if left_s <= 0:
                raise InvalidParams(
                    f"the socket {params['socket']} would expire in the past, at "
                    f"{params['expires']}; it is {now_text()}",
                    hint="give a later time, in UTC, or a duration such as 8h",
                )
        else:
            return None, None
        return now + left_s, self._records.now_s + left_s

    def _unknown(self, name: str) -> SocketUnknown:
        names = sorted(self._records.sockets)
        hint = f"there are: {', '.join(names[:8])}" if names else "there are none"
        return SocketUnknown(f"there is no socket {name}", hint=hint)

    # What is shown

    def _shown(self, name: str) -> dict[str, Any]:
        found = self._records.sockets.get(name)
        if found is None:
            raise self._unknown(name)
        return {"sockets": [self._members(found)]}

    def _members(self, found: Filter) -> dict[str, Any]:
        served = self._served.get(found.name)
        reason = self._failing.get(found.name) if served is None else served.failing
        expires = found.expires_at
        return {
            "socket": found.name,
            "path": paths.filtered_socket(self._agent_socket, found.name),
            "state": "open" if served is not None and reason is None else "closed",
            "reason": reason,
            "keys": list(found.keys),
            "unusable": _unusable(found, self._records.keys),
            **found.rules.members(),
            "created": found.created,
            "expires": None if expires is None else text_of(expires),
            "with_connection": found.with_connection,
            "connections": 0 if served is None else len(served.connections),
            "proofs": 0 if served is None else served.made,
        }


def _until(added: Filter) -> str:
    if added.expires_at is not None:
        return f"until {text_of(added.expires_at)}"
    return "until its connection ends" if added.with_connection else "until it is removed"


def _usable(keys: Keys, name: str) -> Key:
    """A key that a socket can be for.

    Raises:
        KeyUnknown, KeyDestroyed
    """
    key = keys.named(name)
    if key.is_destroyed:
        raise KeyDestroyed(f"all generations of the key {name} are destroyed", hint=key.way_on)
    return key


def _unusable(found: Filter, keys: Keys) -> dict[str, str]:
    """By name, those of its keys by which it gives no proof, and why."""
    why = dict.fromkeys(found.gone, "it was forgotten; a new key of that name isn't meant")
    for key in found.keys_of(keys):
        shown = found.of(key)
        if isinstance(shown, Rule):
            why[key.name] = f"its {_OPTIONS[shown][1]} and the socket's have nothing in common"
        elif key.policy_lost:
            why[key.name] = "what it is for was lost with the ledger"
        elif not key.signing:
            states = ", ".join(f"{key.name}@{g.generation} is {g.state}" for g in key.generations)
            why[key.name] = f"no generation of it signs: {states[-200:]}"
    return why


def _require_use_of_all(rules: Rules, keys: list[Key]) -> None:
    """Refuse what is for none of the keys, and keys of which nothing is left.

    Raises:
        InvalidParams: a value of one of the rules, or a key.
    """
    for origin in rules.origins:
        where = target(f"{origin}/")
        if not any(k.rules.has_origin(where) for k in keys):
            way = allowing_origin(keys[0], origin)
            raise _matches_nothing("--origin", origin, [k.rules.origins for k in keys], keys, way)
    for htm in rules.methods:
        if not any(not k.rules.methods or htm in k.rules.methods for k in keys):
            way = allowing(keys[0], "--method", keys[0].rules.methods, htm)
            raise _matches_nothing("--method", htm, [k.rules.methods for k in keys], keys, way)
    for path in rules.paths:
        if not any(_has_path(k.rules.paths, path) for k in keys):
            way = allowing(keys[0], "--path", keys[0].rules.paths, path)
            raise _matches_nothing("--path", path, [k.rules.paths for k in keys], keys, way)
    for key in keys:
        found = key.rules.narrowed(rules)
        if isinstance(found, Rule):
            option, what = _OPTIONS[found]
            raise InvalidParams(
                f"nothing would be left of the key {key.name}: its {what} and the socket's have "
                "nothing in common",
                hint=f"leave out the key, or add {option} for it; see: dpop-agent key show "
                f"{key.name}",
            )


def _has_path(paths_of_key: Iterable[str], path: str) -> bool:
    prefixes = list(paths_of_key)
    return not prefixes or any(is_below(path, p) or is_below(p, path) for p in prefixes)


def _matches_nothing(
    option: str, value: str, has: list[tuple[str, ...]], keys: list[Key], way: str
) -> InvalidParams:
    """The refusal of a value that none of the keys is for; `way` lets the first have it."""
    names = ", ".join(key.name for key in keys)
    whose = f"the key {names}" if len(keys) == 1 else f"any of the keys {names}"
    allowed = named(tuple(dict.fromkeys(one for values in has for one in values)))
    hint = f"give one of {allowed}" if allowed else "use https"
    return InvalidParams(
        f"{option} {value} matches nothing: it is outside of what {whose} may be used for",
        hint=f"{hint}, or {way}",
    )

"""`TokenStore`: one renews, the others read again, and what a dead process left is told."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import requests
import trio

from dpop_agent import paths
from dpop_agent.client import (
    AgentClient,
    AsyncAgentClient,
    AsyncDPoPAuth,
    AsyncDPoPTransport,
    BoundToken,
    DPoPAdapter,
    DPoPAuth,
    DPoPTransport,
    TokenStore,
)
from dpop_agent.client import requests as dpop_requests
from dpop_agent.client import stores as module
from dpop_agent.client.aiohttp import DPoPMiddleware
from dpop_agent.errors import ConfigurationError, NotDurable, Timeout
from tests.unit.fake_agent import JKT, FakeAgent
from tests.unit.fake_server import FakeServer, Reply, Seen

CANARY = "canary-refresh-token"


def token(number: int = 1, *, expires_in: float | None = 3600.0) -> BoundToken:
    expires_at = None if expires_in is None else time.time() + expires_in
    return BoundToken(f"access-{number}", JKT, expires_at, f"{CANARY}-{number}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "private" / "token"


@pytest.fixture
def store(path: Path) -> TokenStore:
    return TokenStore(path, timeout=30)


# The file


def test_what_was_saved_is_loaded_by_whoever_has_the_path(path: Path, store: TokenStore) -> None:
    assert store.load() is None
    for saved in (token(1), token(2, expires_in=None), BoundToken("a", JKT)):
        store.save(saved)
        assert TokenStore(path).load() == saved
    store.clear()
    store.clear()
    assert store.load() is None


def test_its_file_and_lock_are_its_users_alone(path: Path, store: TokenStore) -> None:
    before = os.umask(0)
    try:
        store.save(token())
    finally:
        os.umask(before)
    modes = {found.name: stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()}
    assert modes == {"token": 0o600, "token.lock": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_link_to_the_file_is_the_same_store(path: Path, store: TokenStore) -> None:
    store.save(token(1))
    link = path.parent.parent / "link"
    link.symlink_to(path)
    TokenStore(link).save(token(2))
    assert link.is_symlink()
    assert store.load() == TokenStore(link).load() is not None
    with store.hold(), pytest.raises(Timeout), TokenStore(link, timeout=0.01).hold():
        pass


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_can_read_or_change_is_refused(
    path: Path, store: TokenStore, mode: int
) -> None:
    store.save(token())
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="others can") as caught:
        store.load()
    assert "chmod" in caught.value.hint


def test_a_folder_that_others_can_change_is_refused(path: Path, store: TokenStore) -> None:
    path.parent.mkdir(mode=0o700)
    path.parent.chmod(0o777)
    with pytest.raises(ConfigurationError, match="others can"):
        store.save(token())
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"access_token": 1, "jkt": "x"}', "{}"])
def test_what_isnt_an_access_token_is_refused_and_not_shown(
    path: Path, store: TokenStore, text: str
) -> None:
    store.save(token())
    path.write_text(text + CANARY if text == "{" else text)
    with pytest.raises(ConfigurationError) as caught:
        store.load()
    assert CANARY not in f"{caught.value!r}{caught.value}{caught.value.__cause__!r}"


def test_a_token_that_nobody_could_read_again_leaves_what_was_there(store: TokenStore) -> None:
    before = token(1)
    store.save(before)
    with pytest.raises(ConfigurationError) as refused:
        store.save(BoundToken("geheim" * 200_000, JKT))
    assert "geheim" not in str(refused.value)
    assert store.load() == before


def test_no_repr_and_no_log_shows_what_is_in_it(
    store: TokenStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store.save(token())
    with store.hold() as held:
        held.begin()
    with store.hold() as held:
        assert held.abandoned
        assert CANARY not in f"{store!r}{store}{held!r}{held.token!r}"
    assert "didn't finish" in caplog.text
    assert CANARY not in caplog.text


def test_a_full_disk_leaves_what_was_there_and_says_so(
    path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(token(1))

    def full(place: str, text: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paths, "replace_file", full)
    with store.hold() as held:
        held.begin()
        with pytest.raises(NotDurable, match="No space left"):
            held.keep(token(2))
    monkeypatch.undo()
    with store.hold() as held:
        assert held.abandoned, "what the server gave is lost"
        assert held.token == TokenStore(path).load()


# The lock


def test_one_at_a_time_holds_it_and_who_waited_reads_again(store: TokenStore, path: Path) -> None:
    inside = most = 0
    seen: list[str] = []

    def work(number: int) -> None:
        nonlocal inside, most
        with TokenStore(path, timeout=30).hold() as held:
            inside += 1
            most = max(most, inside)
            seen.append(held.token.access_token if held.token else "")
            held.begin()
            time.sleep(0.002)
            inside -= 1
            held.keep(token(number))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert len(set(seen)) == 8, "each saw what the one before had stored"
    assert store.load() is not None


def test_who_waits_too_long_is_told_whose_process_holds_it(store: TokenStore, path: Path) -> None:
    with store.hold() as held:
        held.begin()
        with pytest.raises(Timeout, match=f"the process {os.getpid()} has held"):
            TokenStore(path, timeout=0.02).save(token())
    with pytest.raises(ConfigurationError, match="isn't held"):
        held.keep(token())


def test_a_lock_that_somebody_removed_is_made_anew(store: TokenStore, path: Path) -> None:
    with store.hold():
        os.unlink(f"{path}.lock")
        with TokenStore(path).hold():
            assert os.path.exists(f"{path}.lock")
    store.save(token())


def test_a_child_keeps_no_lock_of_its_parents(store: TokenStore, path: Path) -> None:
    with store.hold() as held:
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        held.keep(token())
    try:
        with open(f"{path}.lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


HOLDER = """
import os, sys
from dpop_agent.client import TokenStore

with TokenStore(sys.argv[1]).hold() as held:
    if sys.argv[2] == "begun":
        held.begin()
    child = os.fork()
    if child == 0:
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("what", ["begun", "not"])
def test_a_holder_that_is_killed_lets_go_and_what_it_had_begun_is_told(
    store: TokenStore, path: Path, what: str
) -> None:
    """Its child lives on, and keeps nothing."""
    store.save(token())
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path, what], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with store.hold() as held:
            assert held.abandoned is (what == "begun")
            assert held.token is not None
            held.keep(held.token)
        with store.hold() as held:
            assert not held.abandoned


# Event loops


Run = Callable[[Callable[[], Any]], Any]


@pytest.fixture(params=[asyncio, trio], ids=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    if request.param is trio:
        return lambda work: trio.run(work)
    return lambda work: asyncio.run(work())


def test_a_task_that_waits_leaves_the_event_loop_to_others(store: TokenStore, run: Run) -> None:
    turns = 0

    async def work() -> None:
        nonlocal turns
        pause = module.AWAITING.pause
        with store.hold():
            try:
                async with TokenStore(str(store), timeout=0.2).hold_async():
                    raise AssertionError("somebody else has it")
            except Timeout:
                pass
        async with store.hold_async() as held:
            assert held.token is None
            await held.begin()
            await pause(0)
            await held.keep(token())
            turns += 1
        assert not (await _held_now(store)).abandoned

    run(work)
    assert turns == 1
    assert store.load() is not None


async def _held_now(store: TokenStore) -> Any:
    async with store.hold_async() as held:
        return held


def test_a_cancelled_wait_takes_nothing_and_a_cancelled_write_is_finished_first(
    store: TokenStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = threading.Event()
    goes_on = threading.Event()
    real = TokenStore._write

    def slow(self: TokenStore, new: BoundToken) -> None:
        writes.set()
        assert goes_on.wait(30)
        real(self, new)

    monkeypatch.setattr(TokenStore, "_write", slow)

    async def keep() -> None:
        async with store.hold_async() as held:
            await held.begin()
            await held.keep(token(2))

    async def work() -> None:
        keeping = asyncio.create_task(keep())
        while not writes.is_set():
            await asyncio.sleep(0.002)
        waiting = asyncio.create_task(_held_now(TokenStore(path)))
        await asyncio.sleep(0.02)
        for task in (waiting, keeping):
            task.cancel()
        await asyncio.sleep(0.02)
        keeping.cancel()
        await asyncio.sleep(0.02)
        assert waiting.cancelled()
        assert not keeping.done(), "its thread still writes"
        with pytest.raises(Timeout), TokenStore(path, timeout=0).hold():
            pass
        goes_on.set()
        await asyncio.wait([keeping])
        assert keeping.cancelled()

    asyncio.run(work())
    with store.hold() as held:
        assert held.token is not None
        assert (held.token.access_token, held.abandoned) == ("access-2", False)


# With an auth


class Server:
    """Rotates refresh tokens, and takes each once: a second use ends the session."""

    def __init__(self) -> None:
        self.refreshes = self.logins = self.reuses = 0
        self.valid: str | None = None
        self._refresh: str | None = None
        self._issued = 0
        self.lock = threading.Lock()
        self.before_answer: Callable[[], None] = lambda: None

    def expire(self) -> None:
        self.valid = None

    def __call__(self, seen: Seen) -> Reply:
        with self.lock:
            return self._token(seen.body.decode()) if seen.path == "/token" else self._me(seen)

    def _me(self, seen: Seen) -> Reply:
        if seen.headers["Authorization"] == f"DPoP {self.valid}":
            return Reply(200, b"{}")
        return Reply(401, WWW_Authenticate='DPoP error="invalid_token"')

    def _token(self, refresh_token: str) -> Reply:
        json = {"Content_Type": "application/json"}
        if not refresh_token:
            self.logins += 1
        elif refresh_token != self._refresh:
            self.reuses += 1
            self._refresh = self.valid = None
            return Reply(400, b'{"error":"invalid_grant"}', **json)
        else:
            self.refreshes += 1
        self._issued += 1
        self.valid, self._refresh = f"access-{self._issued}", f"refresh-{self._issued}"
        self.before_answer()
        text = (
            f'{{"token_type":"DPoP","access_token":"{self.valid}","expires_in":3600,'
            f'"refresh_token":"{self._refresh}"}}'
        )
        return Reply(200, text.encode(), **json)


class Application:
    """What a process has: a client, an auth, and the store that it shares."""

    def __init__(self, agent: AgentClient, origin: str, store: TokenStore) -> None:
        self.origin = origin
        self.renewals: list[BoundToken | None] = []
        self.http = httpx.Client(transport=DPoPTransport(agent, origins=[origin]))
        self.auth = DPoPAuth(self._renew, store=store)

    def _renew(self, old: BoundToken | None) -> BoundToken:
        self.renewals.append(old)
        response = self.http.post(
            f"{self.origin}/token", content=(old.refresh_token or "") if old else ""
        )
        body = response.raise_for_status().json()
        return BoundToken.from_response(body, jkt=response.extensions["dpop"].jkt)

    def me(self) -> int:
        return self.http.get(f"{self.origin}/me", auth=self.auth).status_code


@pytest.fixture
def server_of() -> Server:
    return Server()


@pytest.fixture
def application(agent: FakeAgent, client: AgentClient, server_of: Server, path: Path) -> Any:
    made: list[Application] = []
    with FakeServer(server_of) as server:

        def make() -> Application:
            made.append(Application(client, server.origin, TokenStore(path, timeout=30)))
            return made[-1]

        yield make
        for each in made:
            each.http.close()


Make = Callable[[], Application]


def test_many_at_once_share_one_renewal_each_time(application: Make, server_of: Server) -> None:
    everybody = [application() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for number in range(5):
            assert list(pool.map(Application.me, everybody)) == [200] * 8
            assert (server_of.logins, server_of.refreshes, server_of.reuses) == (1, number, 0)
            server_of.expire()


def test_a_new_process_uses_what_is_there_and_asks_nobody(
    application: Make, server_of: Server
) -> None:
    assert application().me() == 200
    another = application()
    assert another.me() == 200
    assert another.renewals == []
    assert server_of.logins == 1


def test_after_an_abandoned_renewal_the_refresh_token_is_tried_once_and_then_a_new_grant_begins(
    application: Make, server_of: Server, store: TokenStore
) -> None:
    first = application()
    first.me()
    saved = store.load()
    with store.hold() as held:  # a process that was killed before it stored what it had got
        held.begin()
        first._renew(held.token)
    server_of.expire()

    second = application()
    assert second.me() == 200
    assert second.renewals == [saved, None]
    assert (server_of.logins, server_of.reuses) == (2, 1)
    server_of.expire()
    assert second.me() == 200
    assert (server_of.logins, server_of.reuses) == (2, 1)


def test_an_abandoned_renewal_whose_refresh_token_is_good_costs_no_new_grant(
    application: Make, server_of: Server, store: TokenStore
) -> None:
    application().me()
    with store.hold() as held:
        held.begin()
    server_of.expire()
    assert application().me() == 200
    assert (server_of.logins, server_of.refreshes, server_of.reuses) == (1, 1, 0)


def test_a_refresh_that_is_refused_for_no_such_reason_is_the_callers_to_know(
    application: Make, server_of: Server, store: TokenStore
) -> None:
    application().me()
    with store.hold() as held:
        assert held.token is not None
        held.keep(BoundToken("gone", JKT, None, "revoked"))
    server_of.expire()
    with pytest.raises(httpx.HTTPStatusError):
        application().me()
    assert server_of.logins == 1


def test_what_couldnt_be_stored_is_used_here_and_stored_the_next_time(
    application: Make, server_of: Server, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = application()
    first.me()
    server_of.expire()

    def full(self: TokenStore, new: BoundToken) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(TokenStore, "_write", full)
        with pytest.raises(NotDurable):
            first.me()
        assert first.me() == 200
        assert store.load() != first.auth._grant._access_token
    server_of.expire()
    assert first.me() == 200
    assert store.load() == first.auth._grant._access_token
    assert (server_of.logins, server_of.refreshes, server_of.reuses) == (1, 2, 0)


def test_whoever_removes_the_file_logs_everybody_out(
    application: Make, server_of: Server, store: TokenStore
) -> None:
    first = application()
    first.me()
    store.clear()
    server_of.expire()
    assert first.me() == 200
    assert first.renewals == [None, None]


def test_an_access_token_that_is_given_beside_a_store_is_refused(store: TokenStore) -> None:
    with pytest.raises(ConfigurationError, match="both token and store"):
        DPoPAuth(lambda old: token(), token=token(), store=store)


def test_a_renewal_that_is_cancelled_is_an_abandoned_one(
    agent: FakeAgent, server_of: Server, store: TokenStore
) -> None:
    begun = threading.Event()

    async def renew(old: BoundToken | None) -> BoundToken:
        begun.set()
        await asyncio.sleep(60)
        raise AssertionError("it was cancelled")

    async def work(origin: str) -> None:
        async with AsyncAgentClient(agent.path) as client:
            transport = AsyncDPoPTransport(client, origins=[origin])
            async with httpx.AsyncClient(transport=transport) as http:
                auth = AsyncDPoPAuth(renew, store=store)
                asking = asyncio.create_task(http.get(f"{origin}/me", auth=auth))
                while not begun.is_set():
                    await asyncio.sleep(0.002)
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
        async with store.hold_async() as held:
            assert held.abandoned

    with FakeServer(server_of) as server:
        asyncio.run(work(server.origin))


# Over the other libraries


def me_by_requests(agent: FakeAgent, origin: str, store: TokenStore) -> tuple[int, list[Any]]:
    renewals: list[Any] = []

    def renew(old: BoundToken | None) -> BoundToken:
        renewals.append(old)
        said = (old.refresh_token or "") if old else ""
        response: Any = session.post(f"{origin}/token", data=said, auth=("id", "secret"))
        response.raise_for_status()
        return BoundToken.from_response(response.json(), jkt=response.dpop.jkt)

    with AgentClient(agent.path) as client, requests.Session() as session:
        session.mount(origin, DPoPAdapter(client, origins=[origin]))
        auth = dpop_requests.DPoPAuth(renew, store=store)
        return session.get(f"{origin}/me", auth=auth).status_code, renewals


def me_by_aiohttp(agent: FakeAgent, origin: str, store: TokenStore) -> tuple[int, list[Any]]:
    renewals: list[Any] = []

    async def ask() -> int:
        async with AsyncAgentClient(agent.path) as client, aiohttp.ClientSession() as http:
            sign = DPoPMiddleware(client, origins=[origin])

            async def renew(old: BoundToken | None) -> BoundToken:
                renewals.append(old)
                said = (old.refresh_token or "") if old else ""
                response: Any = await http.post(f"{origin}/token", data=said, middlewares=[sign])
                response.raise_for_status()
                return BoundToken.from_response(await response.json(), jkt=response.dpop.jkt)

            me = sign.presenting(renew, store=store)
            async with http.get(f"{origin}/me", middlewares=[me]) as response:
                return response.status

    return asyncio.run(ask()), renewals


@pytest.mark.parametrize("me_by", [me_by_requests, me_by_aiohttp])
def test_requests_and_aiohttp_share_a_store_as_httpx_does(
    me_by: Callable[[FakeAgent, str, TokenStore], tuple[int, list[Any]]],
    agent: FakeAgent,
    application: Make,
    server_of: Server,
    store: TokenStore,
) -> None:
    first = application()
    first.me()
    assert me_by(agent, first.origin, store) == (200, [])
    saved = store.load()
    server_of.expire()
    assert me_by(agent, first.origin, store) == (200, [saved])
    saved = store.load()
    with store.hold() as held:  # a process that was killed before it stored what it had got
        held.begin()
        first._renew(held.token)
    server_of.expire()
    assert me_by(agent, first.origin, store) == (200, [saved, None])
    assert (server_of.logins, server_of.reuses) == (2, 1)


# The keychain's names


@pytest.mark.parametrize("name", ["", "A", "../x", "a/b", "x" * 65])
def test_a_name_that_no_item_can_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError):
        TokenStore.in_keychain(name)

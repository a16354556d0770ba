"""One request finds out whether a nonce is still good, and others wait for that."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from dpop_agent.agent import nonces, trials
from dpop_agent.agent.nonces import DOUBTFUL_S, NONCE_LIFETIME_S, Nonces
from dpop_agent.agent.queue import Job
from dpop_agent.client import AgentClient, AsyncAgentClient, AsyncDPoPTransport, DPoPTransport
from dpop_agent.errors import KeyUnknown, SignerFailed
from dpop_agent.jose import b64url_decode
from tests.agent.places import until
from tests.agent.wire import Wire, request
from tests.unit.agent_in_process import AgentInProcess
from tests.unit.fake_server import FakeServer, Reply, Seen

A = "https://a.example"
AT_ONCE = 16
TARGET = {"htm": "GET", "htu": f"{A}/me", "shares_nonce": True}


@pytest.fixture
def agent() -> Iterator[AgentInProcess]:
    with AgentInProcess() as running:
        with AgentClient(running.admin_socket) as admin:
            admin.call("key.create", {"key": "default", "origins": []})
        yield running


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial keeps the others waiting for as long as a test may take."""
    monkeypatch.setattr(trials, "TRY_S", 60.0)
    monkeypatch.setattr(trials, "AGAIN_S", 60.0)


# What is doubtful


def test_an_unknown_server_is_doubtful_and_one_without_nonces_isnt() -> None:
    known = Nonces()
    assert known.is_doubtful(A, 0.0)
    known.observe(A, nonce=None, clock_offset_s=None, now=0.0)
    assert not known.is_doubtful(A, NONCE_LIFETIME_S)


def test_a_nonce_is_doubtful_once_nothing_was_heard_of_it_for_two_minutes() -> None:
    known = Nonces()
    for began in (0.0, 1000.0):
        known.observe(A, nonce="n", clock_offset_s=None, now=began)
        assert not known.is_doubtful(A, began + DOUBTFUL_S)
        assert known.is_doubtful(A, began + DOUBTFUL_S + 0.1)


def test_a_server_whose_nonce_was_refused_without_another_is_doubtful() -> None:
    known = Nonces()
    known.observe(A, nonce="n", clock_offset_s=None, now=0.0)
    known.observe(A, nonce=None, clock_offset_s=None, now=1.0, refused_nonce="n")
    assert known.is_doubtful(A, 1.0)


# What comes over the socket


class Asking:
    """A proof that somebody asks for, on a connection of his own."""

    def __init__(self, agent: AgentInProcess, **params: Any) -> None:
        self.wire = Wire(agent.socket, timeout=30)
        self.wire.send(request("proof", TARGET | params))

    def wait(self) -> dict[str, Any]:
        """Its result, or what the error says."""
        answer = self.wire.next()
        found: dict[str, Any] = answer["result"] if "result" in answer else answer["error"]["data"]
        return found

    @property
    def waits(self) -> bool:
        return self.wire.silent


Ask = Callable[..., Asking]


@pytest.fixture
def ask(agent: AgentInProcess) -> Iterator[Ask]:
    """Asks for a proof on a new connection."""
    asked: list[Asking] = []

    def begin(**params: Any) -> Asking:
        asked.append(Asking(agent, **params))
        return asked[-1]

    yield begin
    for each in asked:
        each.wire.close()


def waiting(agent: AgentInProcess) -> int:
    """How many requests wait for another's trial."""
    return sum(len(trial.waiting) for trial in agent.trials._by_origin.values())


def wait_for(agent: AgentInProcess, count: int) -> None:
    until(lambda: waiting(agent) == count)


def ask_all(agent: AgentInProcess, ask: Ask, count: int = AT_ONCE) -> tuple[Asking, list[Asking]]:
    """The one that tries, and the others, which wait."""
    first = ask()
    assert first.wait()["tries_nonce"]
    others = [ask() for _ in range(count - 1)]
    wait_for(agent, count - 1)
    return first, others


@pytest.mark.usefixtures("patient")
def test_one_request_tries_and_the_others_have_what_it_heard(
    agent: AgentInProcess,
    ask: Ask,
) -> None:
    _first, others = ask_all(agent, ask)
    assert all(other.waits for other in others)

    with AgentClient(agent.socket) as client:
        client.observe([{"htu": f"{A}/other", "nonce": "n-1"}])

    answers = [other.wait() for other in others]
    assert [answer["nonce"] for answer in answers] == ["n-1"] * (AT_ONCE - 1)
    assert not any("tries_nonce" in answer for answer in answers)
    assert "tries_nonce" not in ask().wait(), "nothing is doubtful any more"


@pytest.mark.usefixtures("patient")
def test_a_server_without_nonces_is_tried_once(
    agent: AgentInProcess,
    ask: Ask,
) -> None:
    _first, others = ask_all(agent, ask)
    with AgentClient(agent.socket) as client:
        client.observe([{"htu": f"{A}/"}])
    assert {other.wait()["nonce"] for other in others} == {None}
    assert "tries_nonce" not in ask().wait()


@pytest.mark.usefixtures("patient")
def test_who_doesnt_promise_to_tell_waits_for_nobody_and_nobody_for_him(
    agent: AgentInProcess,
    ask: Ask,
) -> None:
    plain = {"shares_nonce": False}
    for params in (plain, plain, {"nonce": "own"}, {"nonce": None}):
        assert "tries_nonce" not in ask(**params).wait()
    first = ask()
    assert first.wait()["tries_nonce"]
    assert "tries_nonce" not in ask(**plain).wait()
    assert "tries_nonce" not in ask(nonce="own").wait()


@pytest.mark.usefixtures("patient")
def test_when_the_connection_of_the_one_that_tries_goes_the_next_one_tries(
    agent: AgentInProcess,
    ask: Ask,
) -> None:
    first = ask()
    first.wait()
    others = [ask() for _ in range(3)]
    wait_for(agent, 3)

    for left in (2, 1, 0):
        first.wire.close()
        wait_for(agent, left)
        until(lambda: any(not other.waits for other in others))
        (first,) = [other for other in others if not other.waits]
        assert first.wait()["tries_nonce"]
        others.remove(first)


@pytest.mark.usefixtures("patient")
def test_a_request_whose_connection_goes_waits_for_nothing_any_more(
    agent: AgentInProcess,
    ask: Ask,
) -> None:
    _first, others = ask_all(agent, ask, 3)
    others[0].wire.close()
    wait_for(agent, 1)
    with AgentClient(agent.socket) as client:
        client.observe([{"htu": A + "/", "nonce": "n-1"}])
    assert others[1].wait()["nonce"] == "n-1"


@pytest.mark.usefixtures("patient")
def test_where_the_one_that_tries_gets_no_proof_the_next_one_tries(
    agent: AgentInProcess, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Job] = []
    monkeypatch.setattr(agent.store, "submit", held.append)
    asking = [ask()]
    until(lambda: held != [])
    asking += [ask() for _ in range(2)]
    wait_for(agent, 2)
    monkeypatch.undo()

    async def fail() -> None:
        held[0].finish(SignerFailed("it died"))

    monkeypatch.setattr(trials, "TRY_S", 60.0)
    agent.run(fail())
    assert asking[0].wait()["type"] == "signer_failed"
    wait_for(agent, 1)
    with AgentClient(agent.socket) as client:
        client.observe([{"htu": A + "/", "nonce": "n-1"}])
    tried = [each.wait().get("tries_nonce", False) for each in asking[1:]]
    assert sorted(tried) == [False, True]


def test_where_nobody_tells_the_others_go_on_and_later_ones_dont_wait(
    agent: AgentInProcess, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "TRY_S", 0.2)
    monkeypatch.setattr(trials, "AGAIN_S", 600.0)
    _first, others = ask_all(agent, ask, 4)
    assert all(other.wait()["proof"] for other in others)
    monkeypatch.setattr(trials, "TRY_S", 0.0)
    assert ask().wait().keys() == {"proof", "key", "jkt", "state", "nonce"}
    assert waiting(agent) == 0


@pytest.mark.usefixtures("patient")
def test_who_waited_while_the_agent_was_stopped_is_answered_though_another_tries_now(
    agent: AgentInProcess, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    _first, others = ask_all(agent, ask, 3)
    soon = ask(timeout_ms=4000)
    wait_for(agent, 3)
    monkeypatch.setattr(trials, "AGAIN_S", 0.0)
    assert ask().wait()["tries_nonce"]
    assert soon.wait()["proof"]
    with AgentClient(agent.socket) as client:
        client.observe([{"htu": A + "/", "nonce": "n-1"}])
    assert [other.wait()["nonce"] for other in others] == ["n-1"] * 2


@pytest.mark.usefixtures("patient")
def test_who_waits_is_answered_within_his_own_time(
    agent: AgentInProcess,
    ask: Ask,
) -> None:
    first = ask()
    assert first.wait()["tries_nonce"]
    assert ask(timeout_ms=100).wait()["proof"]


@pytest.mark.usefixtures("patient")
def test_who_waits_for_one_server_keeps_nobody_from_another(
    agent: AgentInProcess,
    ask: Ask,
) -> None:
    _first, others = ask_all(agent, ask, 4)
    assert ask(htu="https://b.example/").wait()["tries_nonce"]
    assert all(other.waits for other in others)


@pytest.mark.usefixtures("patient")
def test_a_key_that_is_gone_meanwhile_signs_for_nobody_who_waited(
    agent: AgentInProcess,
    ask: Ask,
) -> None:
    _first, others = ask_all(agent, ask, 3)
    with AgentClient(agent.admin_socket) as admin:
        admin.call("key.compromise", {"key": "default"})
        admin.observe([{"htu": A + "/", "nonce": "n-1"}])
    assert {other.wait()["type"] for other in others} == {"no_active"}


def test_a_refusal_comes_before_any_wait(agent: AgentInProcess) -> None:
    with AgentClient(agent.socket) as client, pytest.raises(KeyUnknown):
        client.proof("GET", f"{A}/", key="unknown", shares_nonce=True)
    assert waiting(agent) == 0


# With servers


class Nonce:
    """A server that takes one nonce alone, and counts its challenges."""

    def __init__(self, nonce: str) -> None:
        self.nonce = nonce
        self.challenges = 0
        self._lock = threading.Lock()

    def __call__(self, seen: Seen) -> Reply:
        (proof,) = seen.proofs
        with self._lock:
            if json.loads(b64url_decode(proof.split(".")[1])).get("nonce") == self.nonce:
                return Reply(200, b"{}", DPoP_Nonce=self.nonce)
            self.challenges += 1
        challenge = 'DPoP error="use_dpop_nonce"'
        return Reply(401, WWW_Authenticate=challenge, DPoP_Nonce=self.nonce)


def get(agent: AgentInProcess, origin: str, together: threading.Barrier) -> int:
    """As a process of its own does it."""
    with (
        AgentClient(agent.socket) as client,
        httpx.Client(transport=DPoPTransport(client, origins=[origin])) as http,
    ):
        together.wait()
        return http.get(f"{origin}/me").status_code


def over_threads(agent: AgentInProcess, origin: str) -> list[int]:
    together = threading.Barrier(AT_ONCE)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = [pool.submit(get, agent, origin, together) for _ in range(AT_ONCE)]
        return [each.result(60) for each in asked]


def over_asyncio(agent: AgentInProcess, origin: str, count: int = 3 * AT_ONCE) -> list[int]:
    async def ask() -> list[int]:
        async with AsyncAgentClient(agent.socket) as client:
            transport = AsyncDPoPTransport(client, origins=[origin])
            async with httpx.AsyncClient(transport=transport, timeout=60) as http:
                asked = [http.get(f"{origin}/me") for _ in range(count)]
                return [response.status_code for response in await asyncio.gather(*asked)]

    return asyncio.run(ask())


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("ask", [over_threads, over_asyncio])
def test_16_at_once_cost_one_challenge_at_first_and_one_at_a_nonces_end(
    agent: AgentInProcess,
    ask: Callable[[AgentInProcess, str], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server_of = Nonce("n-1")
    with FakeServer(server_of) as server:
        assert set(ask(agent, server.origin)) == {200}
        assert server_of.challenges == 1
        assert set(ask(agent, server.origin)) == {200}
        assert server_of.challenges == 1

        server_of.nonce = "n-2"
        real, at = Nonces.is_doubtful, nonces.DOUBTFUL_S
        monkeypatch.setattr(Nonces, "is_doubtful", lambda s, o, now: real(s, o, now + at))
        assert set(ask(agent, server.origin)) == {200}
        assert server_of.challenges == 2


@pytest.mark.usefixtures("patient")
def test_16_at_once_wait_for_one_where_the_nonce_is_still_good(
    agent: AgentInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_of = Nonce("n-1")
    with FakeServer(server_of) as server:
        over_threads(agent, server.origin)
        real, at = Nonces.is_doubtful, nonces.DOUBTFUL_S
        monkeypatch.setattr(Nonces, "is_doubtful", lambda s, o, now: real(s, o, now + at))
        assert set(over_threads(agent, server.origin)) == {200}
        assert server_of.challenges == 1


def test_a_server_that_is_known_costs_no_further_call(
    agent: AgentInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real = AgentClient.call

    def call(self: AgentClient, method: str, params: Any = None) -> dict[str, Any]:
        calls.append(method)
        return real(self, method, params)

    monkeypatch.setattr(AgentClient, "call", call)
    with FakeServer(lambda _: Reply(200, b"{}")) as server:
        for _ in range(3):
            get(agent, server.origin, threading.Barrier(1))
    assert calls == ["proof", "observe", "proof", "proof"]

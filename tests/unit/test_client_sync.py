"""`AgentClient` against agents that behave, misbehave, or aren't ours."""

from __future__ import annotations

import copy
import importlib
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import dpop_agent.client
from dpop_agent.client import AgentClient, BoundToken, Proof, Touch
from dpop_agent.client import connection as connection_module
from dpop_agent.client import sync as sync_module
from dpop_agent.errors import (
    AgentUnavailable,
    ConfigurationError,
    InvalidParams,
    KeyRetired,
    KeyUnknown,
    NoActive,
    ProtocolError,
    Timeout,
    TokenNotBound,
    TooManyConnections,
    UnsafeSocket,
)
from dpop_agent.jose import b64url
from dpop_agent.peer import Peer
from dpop_agent.protocol import MAX_LINE, encode_error
from tests.rows import Reached
from tests.timing import ratio
from tests.unit.fake_agent import (
    HANG_UP,
    JKT,
    NOTHING,
    OTHER_JKT,
    TOUCH,
    TOUCH_DUE,
    FakeAgent,
    Raw,
)

URI = "https://api.example.com/me"
ACCESS_TOKEN = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"
ATH = "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"  # RFC 9449 section 7.1


# --- what is sent and what comes back


def test_a_proof_is_the_value_of_its_header(client: AgentClient) -> None:
    proof = client.proof("GET", URI, key="default")
    assert str(proof) == f"{proof}" == proof.value == "e30.e30.proof-1"
    assert (proof.key, proof.jkt, proof.state, proof.nonce) == ("default", JKT, "active", None)


def test_a_proof_shows_itself_in_no_repr_and_cannot_be_changed(client: AgentClient) -> None:
    proof = client.proof("GET", URI)
    assert "e30.e30.proof-1" not in repr(proof)
    with pytest.raises(AttributeError):
        proof.value = "another"
    with pytest.raises(AttributeError):
        del proof.value
    assert pickle.loads(pickle.dumps(proof)) == copy.deepcopy(proof) == proof
    assert hash(copy.copy(proof)) == hash(proof)


def test_query_fragment_and_access_token_stay_with_the_client(
    agent: FakeAgent, client: AgentClient
) -> None:
    client.proof("GET", URI + "?code=secret#more", jkt=JKT, access_token=ACCESS_TOKEN)
    client.observe([{"htu": URI + "?code=secret", "nonce": "n1"}])
    client.proof("GET", "https://api.example.com#f?q")
    first, second = agent.proofs
    assert first == {"htm": "GET", "htu": URI, "jkt": JKT, "ath": ATH, "timeout_ms": 10_000}
    assert second["htu"] == "https://api.example.com"
    assert agent.observed == [{"htu": URI, "nonce": "n1"}]
    assert "secret" not in repr(agent.requests)


def test_a_nonce_left_out_is_the_agents_to_choose(agent: FakeAgent, client: AgentClient) -> None:
    client.proof("GET", URI)
    client.proof("GET", URI, nonce=None)
    client.proof("GET", URI, nonce="n1", seen=[{"htu": URI, "nonce": "n1"}])
    left_out, none, given = agent.proofs
    assert "nonce" not in left_out
    assert none["nonce"] is None
    assert given["nonce"] == "n1"
    assert given["seen"] == [{"htu": URI, "nonce": "n1"}]


def test_an_access_token_that_is_not_ascii_is_refused_without_its_text(
    agent: FakeAgent, client: AgentClient
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        client.proof("GET", URI, access_token="geheim-é")
    assert "geheim" not in str(caught.value)
    assert caught.value.__context__ is None
    with pytest.raises(ConfigurationError, match="both access_token and ath"):
        client.proof("GET", URI, access_token="a", ath=ATH)
    assert agent.requests == []


def test_the_agent_hears_the_timeout_up_to_its_limit(agent: FakeAgent) -> None:
    with AgentClient(agent.path, timeout=600) as patient, AgentClient(agent.path, 0.25) as hasty:
        patient.proof("GET", URI)
        hasty.proof("GET", URI)
    assert [params["timeout_ms"] for params in agent.proofs] == [60_000, 250]


@pytest.mark.parametrize("timeout", [0, -1, 3601, float("nan"), float("inf")])
def test_a_timeout_that_can_not_be_meant_is_refused(timeout: float) -> None:
    with pytest.raises(ConfigurationError, match="timeout"):
        AgentClient("/run/agent.sock", timeout)


def test_a_refusal_keeps_its_type_and_the_connection(agent: FakeAgent, client: AgentClient) -> None:
    agent.script = [KeyRetired("default@1 is retired")]
    with pytest.raises(KeyRetired, match="default@1 is retired"):
        client.proof("GET", URI, jkt=JKT)
    assert client.proof("GET", URI).jkt == JKT
    assert agent.connections == 1


def _key(name: str, *generations: tuple[int, str]) -> dict[str, Any]:
    return {
        "key": name,
        "store": "soft",
        "alg": "ES256",
        "generations": [
            {
                "generation": number,
                "jkt": JKT if state == "active" else OTHER_JKT,
                "state": state,
                "jwk": {"kty": "EC"},
                "exportable": False,
                "protection": "software-token",
            }
            for number, state in generations
        ],
    }


def test_pages_of_keys_are_one_list(agent: FakeAgent, client: AgentClient) -> None:
    agent.script = [
        {"keys": [_key("a", (1, "draining"))], "cursor": "c1"},
        {"keys": [_key("a", (2, "active")), _key("b")], "cursor": "c2"},
        {"keys": [_key("c", (1, "active"))]},
    ]
    keys = client.keys(include_destroyed=True)
    assert [(k["key"], len(k["generations"])) for k in keys] == [("a", 2), ("b", 0), ("c", 1)]
    assert [params for _, params in agent.requests] == [
        {"include_destroyed": True},
        {"include_destroyed": True, "cursor": "c1"},
        {"include_destroyed": True, "cursor": "c2"},
    ]


def test_a_listing_without_end_is_given_up(
    agent: FakeAgent, client: AgentClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpop_agent.client.answers.MAX_PAGES", 3)
    agent.script = [{"keys": [], "cursor": "again"}] * 5
    with pytest.raises(ProtocolError, match="pages"):
        client.keys()


def test_a_keys_generation_is_its_active_one(agent: FakeAgent, client: AgentClient) -> None:
    agent.script = [{"keys": [_key("a", (1, "draining"), (2, "active"))]}]
    found = client.generation("a")
    assert (found.generation, found.jkt, found.state, found.alg) == (2, JKT, "active", "ES256")
    assert str(found) == "a@2"
    assert agent.requests == [("key.list", {"key": "a"})]
    agent.script = [{"keys": [_key("a", (1, "draining"))]}, {"keys": []}]
    with pytest.raises(NoActive):
        client.generation("a")
    with pytest.raises(KeyUnknown):
        client.generation("a")


# --- whose socket it is


def _foreign(listener: socket.socket, path: str) -> int:
    """A child of another uid that listens; its pid."""
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setuid(65534)
            listener.listen(8)  # the kernel shows whoever called listen(2)
            os.write(done, b"1")
            connection, _ = listener.accept()
            os.write(done, b"!" + connection.recv(100))
        finally:
            os._exit(0)
    os.close(done)
    assert os.read(ready, 1) == b"1"
    os.set_blocking(ready, True)
    _foreign_pipes[pid] = ready
    return pid


_foreign_pipes: dict[int, int] = {}


@pytest.mark.row(23)
def test_a_client_sends_nothing_to_a_foreign_listener(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: Reached
) -> None:
    if os.getuid() == 0:
        fake = FakeAgent(tmp_path / "run", serve=False)
        pid = _foreign(fake.listener, fake.path)
        fake.listener.close()
        with AgentClient(fake.path) as client, pytest.raises(UnsafeSocket, match="65534"):
            client.proof("GET", URI)
        heard = _foreign_pipes.pop(pid)
        sent = os.read(heard, 100).removeprefix(b"!")
        assert sent == b""
        reached("bytes that a client sent to a foreign place", len(sent))
        os.close(heard)
        os.waitpid(pid, 0)
        return
    monkeypatch.setattr(connection_module, "peer_of", lambda _: Peer(1, os.getuid() + 1, 0))
    with FakeAgent(tmp_path / "run") as fake:
        with AgentClient(fake.path) as client, pytest.raises(UnsafeSocket, match="runs as uid"):
            client.proof("GET", URI)
        assert fake.bytes == 0


@pytest.mark.row(23)
@pytest.mark.skipif(os.getuid() != 0, reason="to give a folder to another user takes root")
def test_a_client_connects_in_no_folder_of_another_user_and_says_whose_it_is(
    agent: FakeAgent, client: AgentClient, reached: Reached
) -> None:
    folder = Path(agent.path).parent
    refused = 0
    for foreign in (folder, folder.parent):
        os.chown(foreign, 65534, 65534)
        try:
            with pytest.raises(
                UnsafeSocket, match=f"{foreign}(, above the socket,)? belongs to uid 65534"
            ):
                client.proof("GET", URI)
        finally:
            os.chown(foreign, 0, 0)
        refused += 1
    assert (agent.connections, agent.bytes) == (0, 0)
    reached("foreign folders, its own and one above, that a client refused, saying whose", refused)
    reached("bytes that a client sent to a foreign place", agent.bytes)


@pytest.mark.row(23)
@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_a_client_does_not_connect_in_a_folder_that_others_reach(
    agent: FakeAgent, client: AgentClient, mode: int, reached: Reached
) -> None:
    folder = os.path.dirname(agent.path)
    os.chmod(folder, mode)
    with pytest.raises(UnsafeSocket, match=f"{mode:04o}"):
        client.proof("GET", URI)
    os.chmod(folder, 0o700)
    assert agent.connections == 0
    reached("bytes that a client sent to a foreign place", agent.bytes)


def test_nobody_at_the_socket_is_agent_unavailable(tmp_path: Path) -> None:
    gone = FakeAgent(tmp_path / "run")
    gone.stop()
    (tmp_path / "file").write_text("")
    for path in (gone.path, str(tmp_path / "run/none.sock"), str(tmp_path / "no/agent.sock")):
        with pytest.raises(AgentUnavailable, match=r"no agent listens at .*dpop-agent serve"):
            AgentClient(path).hello()
    with pytest.raises(AgentUnavailable, match="can't be reached"):
        AgentClient(str(tmp_path / "file/x/agent.sock")).hello()


def test_a_path_no_socket_can_have_is_a_configuration_error() -> None:
    for path in ("agent.sock", "/" + "x" * 200):
        with pytest.raises(ConfigurationError):
            AgentClient(path).hello()


# --- answers that aren't


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"garbage\n", ProtocolError),
        (b"\xff\xfe\n", ProtocolError),
        (b"[" * 50_000 + b"\n", ProtocolError),
        (b"[]\n", ProtocolError),
        (b'{"jsonrpc":"2.0","id":$ID,"result":7}\n', ProtocolError),
        (b'{"jsonrpc":"2.0","id":99999,"result":{}}\n', ProtocolError),
        (b'{"jsonrpc":"2.0","id":$ID,"result":{}}\n', ProtocolError),
        (b'{"jsonrpc":"2.0","id":$ID,"result":{}}\n{"more', ProtocolError),
        (b'{"jsonrpc":"2.0","id":$ID,"result":{"proof":7,"key":"a","jkt":"b"}}\n', ProtocolError),
        (b'{"jsonrpc":"2.0","id":$ID,"error":7}\n', ProtocolError),
        (b'{"jsonrpc":"2.0","method":"touch"}\n', ProtocolError),
        (b'{"jsonrpc":"2.0","method":"touch","params":{"id":$ID,"key":7}}\n', ProtocolError),
        (b'{"jsonrpc":"2.0","id":$ID,"res', AgentUnavailable),
        (b"x" * (MAX_LINE + 1), ProtocolError),
        (b"x" * MAX_LINE + b"\n", ProtocolError),
        (b"", AgentUnavailable),
    ],
)
def test_an_answer_that_is_none_is_a_typed_error_and_the_next_call_works(
    agent: FakeAgent, client: AgentClient, answer: bytes, error: type[Exception]
) -> None:
    agent.script = [Raw(answer)]
    with pytest.raises(error):
        client.proof("GET", URI)
    assert client.proof("GET", URI).value == "e30.e30.proof-1"


@pytest.mark.parametrize(
    "proof",
    ["", "a.b", "a.b.", "a.b.c.d", "a.b.c\r\nX: y", "a.b.c ", "a.b.ü", "a.b.c=", "a b.c.d", "a..c"],
)
def test_a_proof_that_isnt_a_signed_jwt_becomes_no_header(
    agent: FakeAgent, client: AgentClient, proof: str
) -> None:
    agent.script = [
        {"proof": proof, "key": "default", "jkt": JKT, "state": "active", "nonce": None}
    ]
    with pytest.raises(ProtocolError, match="isn't a signed JWT"):
        client.proof("GET", URI)


def test_a_proof_by_another_generation_is_not_used(agent: FakeAgent, client: AgentClient) -> None:
    wrong = {"proof": "p", "key": "default", "jkt": OTHER_JKT, "state": "active", "nonce": None}
    agent.script = [wrong]
    with pytest.raises(ProtocolError, match=OTHER_JKT):
        client.proof("GET", URI, jkt=JKT)


def test_an_agent_that_is_full_says_so(agent: FakeAgent, client: AgentClient) -> None:
    agent.greeting = Raw(encode_error(None, TooManyConnections("256 connections are open")))
    with pytest.raises(TooManyConnections, match="256 connections"):
        client.proof("GET", URI)


def test_a_call_ends_at_its_deadline_and_its_connection_is_not_used_again(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_module, "GRACE", 0.02)
    agent.script = [NOTHING, Raw(b'{"jsonrpc":', keep=True)]
    with AgentClient(agent.path, timeout=0.05) as client:
        for _ in range(2):
            with pytest.raises(Timeout):
                client.proof("GET", URI)
        client.timeout = 5
        assert client.proof("GET", URI).value == "e30.e30.proof-1"
    assert agent.connections == 3


def unanswered(agent: FakeAgent, timeout: float, *, said: str | None = None) -> None:
    """A call that ends at its deadline."""
    with AgentClient(agent.path, timeout) as client, pytest.raises(Timeout, match=said):
        client.proof("GET", URI)


def test_a_call_with_an_earlier_deadline_ends_earlier(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_module, "GRACE", 0.02)
    agent.script = [NOTHING] * 2
    hasty, patient = partial(unanswered, agent, 0.05), partial(unanswered, agent, 1.0)
    assert ratio(hasty, patient, rounds=1) < 0.5


def test_a_full_backlog_ends_at_the_deadline_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_module, "GRACE", 0.02)
    fake = FakeAgent(tmp_path / "run", serve=False)
    fake.listener.listen(0)
    waiting = [AgentClient(fake.path, timeout=0.05) for _ in range(3)]
    for client in waiting:
        with pytest.raises(Timeout):
            client.proof("GET", URI)
    fake.listener.close()


# --- a touch that is due


def test_a_touch_is_told_and_has_a_deadline_of_its_own(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_module, "GRACE", 0.02)
    agent.touch_s = 1.0
    told: list[Touch] = []
    with AgentClient(agent.path, timeout=0.5, on_touch=told.append) as client:
        assert client.proof("GET", URI).value == "e30.e30.proof-1"
        assert client.proof("GET", URI).value == "e30.e30.proof-2"
    assert told == [Touch(**TOUCH)] * 2
    assert str(told[0]) == "touch the card of the store yubikey to sign with shop"
    with AgentClient(agent.path, timeout=0.5) as unasked:
        assert unasked.proof("GET", URI).value == "e30.e30.proof-3"
    assert [params["timeout_ms"] for params in agent.proofs] == [500] * 3
    assert agent.subscriptions == [{"events": ["touch"]}] * 2
    assert agent.connections == 2


def test_a_touch_that_never_comes_ends_the_call_at_the_touchs_deadline(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_module, "GRACE", 0.02)
    monkeypatch.setattr(sync_module, "TOUCH_TIMEOUT_S", 2.0)
    agent.script = [TOUCH_DUE, NOTHING]
    touch = partial(unanswered, agent, 0.5, said="within 2 s")
    nothing = partial(unanswered, agent, 0.5, said=r"within 0\.5 s")
    assert 1.5 < ratio(touch, nothing, rounds=1) < 50
    agent.script = [TOUCH_DUE]
    agent.connections = 0
    with AgentClient(agent.path, timeout=0.5) as client:
        with pytest.raises(Timeout):
            client.proof("GET", URI)
        client.timeout = 5
        assert client.proof("GET", URI).value == "e30.e30.proof-1"
    assert agent.connections == 2


def test_a_touch_does_not_shorten_a_longer_timeout(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_module, "TOUCH_TIMEOUT_S", 0.01)
    monkeypatch.setattr(sync_module, "GRACE", 0.01)
    agent.touch_s = 0.2
    with AgentClient(agent.path) as client:
        assert client.proof("GET", URI).value == "e30.e30.proof-1"


def test_an_agent_that_has_no_events_serves_as_well(agent: FakeAgent, client: AgentClient) -> None:
    agent.knows_subscribe = False
    assert [client.proof("GET", URI).value for _ in range(2)] == [
        "e30.e30.proof-1",
        "e30.e30.proof-2",
    ]
    assert agent.connections == 1


def test_an_agent_that_knows_no_shared_nonces_serves_as_well(
    agent: FakeAgent, client: AgentClient
) -> None:
    agent.script = [InvalidParams("proof takes no shares_nonce")]
    for _ in range(2):
        assert not client.proof("GET", URI, shares_nonce=True).tries_nonce
    assert [params.get("shares_nonce") for params in agent.proofs] == [True, None, None]


def test_what_on_touch_raises_ends_that_call_alone(agent: FakeAgent) -> None:
    agent.touch_s = 0.05

    def refuse(touch: Touch) -> None:
        raise LookupError(touch.store)

    with AgentClient(agent.path, on_touch=refuse) as client:
        with pytest.raises(LookupError, match="yubikey"):
            client.proof("GET", URI, nonce="one")
        agent.touch_s = None
        assert client.proof("GET", URI, nonce="two").nonce == "two"
    assert agent.connections == 2


def test_events_that_are_another_requests_or_unknown_are_passed_over(agent: FakeAgent) -> None:
    other = TOUCH_DUE.data.replace(b"$ID", b"77")
    unsaid = b'{"jsonrpc":"2.0","method":"store","params":{}}\n'
    answer = b'{"jsonrpc":"2.0","id":$ID,"result":{"n":1}}\n'
    agent.script = [Raw(other + unsaid + answer, keep=True)]
    told: list[Touch] = []
    with AgentClient(agent.path, on_touch=told.append) as client:
        assert client.hello() == {"n": 1}
    assert told == []


def test_a_client_keeps_its_on_touch_where_it_is_pickled(agent: FakeAgent) -> None:
    again: AgentClient = pickle.loads(pickle.dumps(AgentClient(agent.path, on_touch=print)))
    assert again.on_touch is print


# --- connections over time


def test_calls_in_a_row_share_a_connection(agent: FakeAgent, client: AgentClient) -> None:
    for _ in range(5):
        client.proof("GET", URI)
    assert agent.connections == 1


def test_an_agent_started_anew_is_found_by_the_next_call(
    agent: FakeAgent, client: AgentClient
) -> None:
    client.proof("GET", URI)
    agent.restart()
    assert client.proof("GET", URI).value == "e30.e30.proof-2"
    agent.script = [HANG_UP]
    assert client.proof("GET", URI).value == "e30.e30.proof-3"


def test_what_must_not_happen_twice_is_sent_once(agent: FakeAgent, client: AgentClient) -> None:
    client.hello()
    agent.script = [HANG_UP]
    with pytest.raises(AgentUnavailable):
        client.call("key.create", {"key": "a"})
    agent.script = [HANG_UP]
    client.call("key.create", {"key": "a", "request_id": "12345678"})
    created = [params for method, params in agent.requests if method == "key.create"]
    assert created == [{"key": "a"}] + [{"key": "a", "request_id": "12345678"}] * 2


def test_what_must_not_happen_twice_survives_an_agent_started_anew(
    agent: FakeAgent, client: AgentClient
) -> None:
    client.hello()
    agent.restart()
    assert client.call("key.create", {"key": "a"}) == {"method": "key.create"}


def test_half_an_answer_is_not_asked_for_again(agent: FakeAgent, client: AgentClient) -> None:
    client.proof("GET", URI)
    agent.script = [Raw(b'{"jsonrpc"')]
    with pytest.raises(AgentUnavailable, match="middle"):
        client.proof("GET", URI)
    assert len(agent.proofs) == 2


def test_threads_get_their_own_answers(agent: FakeAgent, client: AgentClient) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        for turn in range(20):
            nonce = f"{number}-{turn}"
            try:
                if client.proof("GET", URI, nonce=nonce).nonce != nonce:
                    wrong.append(nonce)
            except Exception as e:
                wrong.append(e)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len({params["nonce"] for params in agent.proofs}) == 400
    assert len(client._idle) <= sync_module.MAX_IDLE


def test_idle_connections_are_few(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_module, "MAX_IDLE", 2)
    together = threading.Barrier(6)

    def wait(params: dict[str, Any]) -> Raw:
        together.wait(5)
        return Raw(b'{"jsonrpc":"2.0","id":$ID,"result":{}}\n', keep=True)

    agent.script = [wait] * 6
    with AgentClient(agent.path) as client:
        threads = [threading.Thread(target=client.hello) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert agent.connections == 6
        assert len(client._idle) == 2


def _in_child(work: Callable[[], bytes]) -> bytes:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, work())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    return said


def test_a_child_uses_a_connection_of_its_own_and_leaves_the_parents_alone(
    agent: FakeAgent, client: AgentClient
) -> None:
    client.proof("GET", URI)

    def work() -> bytes:
        said = str(client.proof("GET", URI)).encode()
        client.close()
        return said

    assert _in_child(work) == b"e30.e30.proof-2"
    assert agent.connections == 2
    assert str(client.proof("GET", URI)) == "e30.e30.proof-3"
    assert agent.connections == 2


def test_a_pickled_client_has_no_connection(agent: FakeAgent, client: AgentClient) -> None:
    client.proof("GET", URI)
    again: AgentClient = pickle.loads(pickle.dumps(client))
    assert (again.path, again.timeout, len(again._idle)) == (agent.path, 10.0, 0)
    with again:
        assert str(again.proof("GET", URI)) == "e30.e30.proof-2"
    assert agent.connections == 2


def test_a_forgotten_client_closes_quietly(agent: FakeAgent) -> None:
    # pytest turns the ResourceWarning of an open socket into a failure.
    AgentClient(agent.path).hello()
    assert agent.connections == 1


# --- what importing costs, and what it offers


def test_the_client_loads_nothing_heavy(agent: FakeAgent) -> None:
    program = (
        "import sys; from dpop_agent.client import AgentClient\n"
        f"AgentClient({agent.path!r}).proof('GET', 'https://h/')\n"
        "heavy = {'pkcs11', 'keyring', 'cryptography', 'asyncio', 'typing', 'dataclasses',"
        " 'pathlib', 'platformdirs', 'httpx', 'requests', 'inspect', 'email'}\n"
        "print(*sorted(heavy & sys.modules.keys()))"
    )
    # -S: site-packages' .pth files load things of their own.
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "\n"


def test_every_export_is_listed_and_there() -> None:
    assert dpop_agent.client.__all__ == sorted(dpop_agent.client._PLACES)
    for name in dpop_agent.client.__all__:
        assert getattr(dpop_agent.client, name).__name__ == name
        assert name in dir(dpop_agent.client)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = dpop_agent.client.Nothing


@pytest.mark.parametrize(("name", "extra"), [("DPoPAuth", "httpx"), ("DPoPAdapter", "requests")])
def test_a_missing_extra_is_named(name: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded in [m for m in sys.modules if m == f"dpop_agent.client.{extra}"]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, extra, None)
    monkeypatch.delattr(dpop_agent.client, name, raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'dpop-agent\[{extra}\]'"):
        getattr(dpop_agent.client, name)


def test_a_missing_httpx2_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "dpop_agent.client.httpx2", raising=False)
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ImportError, match=r"pip install 'dpop-agent\[httpx2\]'"):
        importlib.import_module("dpop_agent.client.httpx2")


# --- BoundToken


def _jwt(payload: str) -> str:
    return f"{b64url(b'{}')}.{b64url(payload.encode())}.sig"


def test_a_bound_token_keeps_its_secrets_out_of_its_repr() -> None:
    token = BoundToken.from_response(
        {
            "access_token": "geheim-1",
            "refresh_token": "geheim-2",
            "token_type": "dpop",
            "expires_in": 60,
        },
        jkt=JKT,
    )
    assert "geheim" not in repr(token)
    assert (token.access_token, token.refresh_token, token.jkt) == ("geheim-1", "geheim-2", JKT)
    assert token.expires_at == pytest.approx(time.time() + 60, abs=5)


@pytest.mark.parametrize(
    ("expires_in", "known"),
    [("60", True), (60.5, True), (None, False), (True, False), ("soon", False), (-1, False)],
)
def test_expires_in_is_a_number_or_unknown(expires_in: object, known: bool) -> None:
    body = {"access_token": "a", "token_type": "DPoP", "expires_in": expires_in}
    assert (BoundToken.from_response(body, jkt=JKT).expires_at is not None) == known


@pytest.mark.parametrize(
    "body",
    [
        {"access_token": "geheim", "token_type": "Bearer"},
        {"access_token": "geheim"},
        {"access_token": "geheim", "token_type": "DPoP", "cnf": {"jkt": OTHER_JKT}},
        {"access_token": _jwt(f'{{"cnf":{{"jkt":"{OTHER_JKT}"}}}}'), "token_type": "DPoP"},
        {"error": "invalid_grant"},
        {"access_token": 7, "token_type": "DPoP"},
    ],
)
def test_a_response_that_bound_nothing_or_another_key_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(TokenNotBound) as caught:
        BoundToken.from_response(body, jkt=JKT)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    "access_token",
    [
        "opaque",
        "a.b.c",
        _jwt("[]"),
        _jwt('{"cnf":7}'),
        _jwt('{"sub":"x"}'),
        _jwt(f'{{"cnf":{{"jkt":"{JKT}"}}}}'),
    ],
)
def test_an_access_token_that_shows_no_other_key_is_taken(access_token: str) -> None:
    body = {"access_token": access_token, "token_type": "DPoP", "cnf": {"jkt": JKT}}
    assert BoundToken.from_response(body, jkt=JKT).access_token == access_token


def test_the_proof_type_is_exported() -> None:
    assert Proof.__module__ == "dpop_agent.client.answers"

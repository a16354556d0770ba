"""`AsyncAgentClient`: many calls on one connection, none of which spoils another."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.client import AsyncAgentClient, Touch
from dpop_agent.client import aio as aio_module
from dpop_agent.client import connection as connection_module
from dpop_agent.errors import (
    AgentUnavailable,
    InvalidParams,
    KeyRetired,
    ProtocolError,
    Timeout,
    TooManyConnections,
    UnsafeSocket,
)
from dpop_agent.peer import Peer
from dpop_agent.protocol import MAX_LINE, encode_error
from tests.rows import Reached
from tests.unit.fake_agent import HANG_UP, JKT, NOTHING, TOUCH, TOUCH_DUE, FakeAgent, Raw

URI = "https://api.example.com/me"
SILENT = Raw(b"", keep=True)


def _answer(number: str, result: str) -> bytes:
    return f'{{"jsonrpc":"2.0","id":{number},"result":{result}}}\n'.encode()


async def until_asked(agent: FakeAgent, requests: int) -> None:
    """Wait until the agent has been asked so often."""
    async with asyncio.timeout(10):
        while len(agent.requests) < requests:
            await asyncio.sleep(0.005)


def test_calls_side_by_side_share_a_connection_and_get_their_own_answers(agent: FakeAgent) -> None:
    async def main() -> None:
        async with AsyncAgentClient(agent.path) as client:
            nonces = [f"n{n}" for n in range(200)]
            proofs = await asyncio.gather(*(client.proof("GET", URI, nonce=n) for n in nonces))
            assert [p.nonce for p in proofs] == nonces

    asyncio.run(main())
    assert agent.connections == 1


def test_no_more_requests_are_under_way_than_an_agent_takes(agent: FakeAgent) -> None:
    async def main() -> None:
        agent.script = [SILENT] * 100
        async with AsyncAgentClient(agent.path) as client:
            calls = [asyncio.create_task(client.hello()) for _ in range(100)]
            await until_asked(agent, aio_module.MAX_UNDER_WAY)
            await asyncio.sleep(0.1)
            assert len(agent.requests) == aio_module.MAX_UNDER_WAY
            for call in calls:
                call.cancel()
            done = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(d, asyncio.CancelledError) for d in done)

    asyncio.run(main())


def test_answers_out_of_order_and_in_pieces_find_their_calls(agent: FakeAgent) -> None:
    first, second = _answer("1", '{"n":1}'), _answer("2", '{"n":2}')
    agent.script = [SILENT, Raw(second[:9], keep=True), Raw(second[9:] + first, keep=True)]

    async def main() -> None:
        async with AsyncAgentClient(agent.path) as client:
            calls = [asyncio.create_task(client.hello()) for _ in range(2)]
            await until_asked(agent, 2)
            third = asyncio.create_task(client.hello())
            assert await asyncio.gather(*calls) == [{"n": 1}, {"n": 2}]
            third.cancel()

    asyncio.run(main())


def test_a_cancelled_calls_late_answer_is_dropped(agent: FakeAgent) -> None:
    agent.script = [SILENT, Raw(_answer("1", '{"late":1}') + _answer("2", '{"mine":1}'), keep=True)]

    async def main() -> None:
        async with AsyncAgentClient(agent.path) as client:
            cancelled = asyncio.create_task(client.hello())
            await until_asked(agent, 1)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            assert await client.hello() == {"mine": 1}
            assert (await client.proof("GET", URI)).jkt == JKT

    asyncio.run(main())
    assert agent.connections == 1


def test_a_timeout_leaves_other_calls_alone_and_the_next_connects_anew(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio_module, "GRACE", 0.0)
    released = threading.Event()

    def later(params: dict[str, Any]) -> Raw:
        released.wait(5)
        return Raw(_answer("2", '{"n":2}'), keep=True)

    agent.script = [NOTHING, later]

    async def main() -> None:
        async with AsyncAgentClient(agent.path, timeout=0.5) as client:
            hasty = asyncio.create_task(client.hello())
            await asyncio.sleep(0.01)
            client.timeout = 5
            patient = asyncio.create_task(client.hello())
            with pytest.raises(Timeout, match="didn't answer"):
                await hasty
            assert (await client.proof("GET", URI)).value == "e30.e30.proof-1"
            assert agent.connections == 2
            released.set()
            assert await patient == {"n": 2}

    asyncio.run(main())


def test_a_touch_is_told_and_has_a_deadline_of_its_own(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio_module, "GRACE", 0.02)
    agent.touch_s = 1.0
    told: list[Touch] = []

    async def main() -> None:
        async with AsyncAgentClient(agent.path, timeout=0.5, on_touch=told.append) as client:
            assert (await client.proof("GET", URI)).value == "e30.e30.proof-1"
        async with AsyncAgentClient(agent.path, timeout=0.5) as unasked:
            assert (await unasked.proof("GET", URI)).value == "e30.e30.proof-2"

    asyncio.run(main())
    assert told == [Touch(**TOUCH)]
    assert agent.subscriptions == [{"events": ["touch"]}] * 2


def test_a_touch_is_the_one_calls_whose_it_is_and_ends_it_at_its_own_deadline(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio_module, "GRACE", 0.02)
    monkeypatch.setattr(aio_module, "TOUCH_TIMEOUT_S", 2.0)
    agent.script = [TOUCH_DUE, SILENT]

    async def main() -> None:
        async with AsyncAgentClient(agent.path, timeout=0.5) as client:
            waits = asyncio.create_task(client.proof("GET", URI))
            other = asyncio.create_task(client.hello())
            with pytest.raises(Timeout, match=r"within 0\.5 s"):
                await other
            assert not waits.done()
            with pytest.raises(Timeout, match=r"within 2 s"):
                await waits

    asyncio.run(main())


def test_what_on_touch_raises_ends_that_call_alone(agent: FakeAgent) -> None:
    agent.touch_s = 0.05

    def refuse(touch: Touch) -> None:
        raise LookupError(touch.store)

    async def main() -> None:
        async with AsyncAgentClient(agent.path, on_touch=refuse) as client:
            with pytest.raises(LookupError, match="yubikey"):
                await client.proof("GET", URI, nonce="one")
            agent.touch_s = None
            assert (await client.proof("GET", URI, nonce="two")).nonce == "two"

    asyncio.run(main())
    assert agent.connections == 1


def test_an_agent_that_has_no_events_serves_as_well(agent: FakeAgent) -> None:
    agent.knows_subscribe = False

    async def main() -> None:
        async with AsyncAgentClient(agent.path) as client:
            assert (await client.proof("GET", URI)).value == "e30.e30.proof-1"
            assert (await client.proof("GET", URI)).value == "e30.e30.proof-2"

    asyncio.run(main())
    assert agent.connections == 1


def test_an_agent_started_anew_is_found_by_the_next_call(agent: FakeAgent) -> None:
    async def main() -> None:
        async with AsyncAgentClient(agent.path) as client:
            await client.proof("GET", URI)
            agent.restart()
            assert (await client.proof("GET", URI)).value == "e30.e30.proof-2"
            agent.script = [HANG_UP]
            assert (await client.proof("GET", URI)).value == "e30.e30.proof-3"
            agent.script = [HANG_UP]
            with pytest.raises(AgentUnavailable):
                await client.call("key.create", {"key": "a"})
            await client.hello()
            agent.script = [Raw(b'{"json')]
            with pytest.raises(AgentUnavailable, match="middle"):
                await client.hello()

    asyncio.run(main())
    assert [m for m, _ in agent.requests].count("key.create") == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage\n",
        b'{"jsonrpc":"2.0","id":12345,"result":{}}\n',
        b'{"jsonrpc":"2.0","id":[],"result":{}}\n',
        b'{"jsonrpc":"2.0","method":"touch","params":[]}\n',
        b"x" * (MAX_LINE + 1),
        b"x" * MAX_LINE + b"\n",
    ],
)
def test_an_answer_that_is_none_fails_the_calls_and_the_next_one_works(
    agent: FakeAgent, answer: bytes
) -> None:
    agent.script = [SILENT, Raw(answer, keep=True)]

    async def main() -> None:
        async with AsyncAgentClient(agent.path) as client:
            done = await asyncio.gather(client.hello(), client.hello(), return_exceptions=True)
            assert [type(d) for d in done] == [ProtocolError, ProtocolError]
            assert (await client.proof("GET", URI)).value == "e30.e30.proof-1"

    asyncio.run(main())


def test_a_loop_that_was_blocked_over_an_agents_restart_goes_on_without_a_word(
    agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with AsyncAgentClient(agent.path) as client:
            await client.proof("GET", URI)
            agent.restart()  # the loop hears nothing of it meanwhile
            proofs = await asyncio.gather(*(client.proof("GET", URI) for _ in range(24)))
            assert {proof.jkt for proof in proofs} == {JKT}

    asyncio.run(main())
    assert agent.connections == 2
    assert caplog.messages == []


def test_refusals_keep_their_types(agent: FakeAgent) -> None:
    async def main() -> None:
        async with AsyncAgentClient(agent.path) as client:
            agent.script = [KeyRetired("default@1 is retired")]
            with pytest.raises(KeyRetired):
                await client.proof("GET", URI)

    asyncio.run(main())


def test_an_agent_that_is_full_says_so(agent: FakeAgent) -> None:
    agent.greeting = Raw(encode_error(None, TooManyConnections("256 connections are open")))

    async def main() -> None:
        for _ in range(20):  # the agent's close and the client's request race
            async with AsyncAgentClient(agent.path) as client:
                with pytest.raises(TooManyConnections):
                    await client.proof("GET", URI)

    asyncio.run(main())


@pytest.mark.row(23)
def test_nothing_is_sent_to_a_foreign_listener(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, reached: Reached
) -> None:
    monkeypatch.setattr(connection_module, "peer_of", lambda _: Peer(1, os.getuid() + 1, 0))

    async def main() -> None:
        async with AsyncAgentClient(agent.path) as client:
            with pytest.raises(UnsafeSocket):
                await client.proof("GET", URI)

    asyncio.run(main())
    assert agent.bytes == 0
    reached("bytes that a client sent to a foreign place", agent.bytes)


def test_no_agent_is_agent_unavailable(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)

    async def main() -> None:
        with pytest.raises(AgentUnavailable):
            await AsyncAgentClient(str(tmp_path / "run/agent.sock")).hello()

    asyncio.run(main())


def test_closing_ends_calls_under_way_and_the_client_can_be_used_again(agent: FakeAgent) -> None:
    async def main() -> None:
        agent.script = [NOTHING]
        client = AsyncAgentClient(agent.path)
        call = asyncio.create_task(client.hello())
        await until_asked(agent, 1)
        await client.aclose()
        with pytest.raises(AgentUnavailable, match="closed"):
            await call
        assert (await client.proof("GET", URI)).value == "e30.e30.proof-1"
        await client.aclose()
        await client.aclose()

    asyncio.run(main())


def test_each_event_loop_has_a_connection_of_its_own(agent: FakeAgent) -> None:
    client = AsyncAgentClient(agent.path)

    async def main() -> str:
        async with client:
            return str(await client.proof("GET", URI))

    assert [asyncio.run(main()) for _ in range(3)] == [
        "e30.e30.proof-1",
        "e30.e30.proof-2",
        "e30.e30.proof-3",
    ]
    assert agent.connections == 3
    assert len(client._loops) == 0
    client.on_touch = print
    again: AsyncAgentClient = pickle.loads(pickle.dumps(client))
    assert (again.path, again.timeout, again.on_touch) == (client.path, client.timeout, print)


def test_a_child_leaves_the_parents_connection_alone(agent: FakeAgent) -> None:
    async def main() -> None:
        async with AsyncAgentClient(agent.path) as client:
            await client.proof("GET", URI)
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:

                    async def child() -> None:
                        os.write(write, str(await client.proof("GET", URI)).encode())
                        await client.aclose()

                    asyncio.run(child())
                finally:
                    os._exit(0)
            os.close(write)
            with open(read, "rb") as answer:
                assert answer.read() == b"e30.e30.proof-2"
            os.waitpid(pid, 0)
            assert str(await client.proof("GET", URI)) == "e30.e30.proof-3"

    asyncio.run(main())
    assert agent.connections == 2


def test_an_agent_that_knows_no_shared_nonces_serves_as_well(agent: FakeAgent) -> None:
    agent.script = [InvalidParams("proof takes no shares_nonce")]

    async def ask() -> None:
        async with AsyncAgentClient(agent.path) as client:
            for _ in range(2):
                assert not (await client.proof("GET", URI, shares_nonce=True)).tries_nonce

    asyncio.run(ask())
    assert [params.get("shares_nonce") for params in agent.proofs] == [True, None, None]

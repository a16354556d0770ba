"""One driver for blocking and for async libraries: what it calls, and what it leaves closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import pytest

from dpop_agent.client.answers import Proof
from dpop_agent.client.exchange import awaiting, blocking, exchange
from dpop_agent.client.hop import Done, Read, Send, Sign, Tell
from dpop_agent.client.refusal import Answer
from dpop_agent.errors import AgentUnavailable
from tests.unit.fake_agent import JKT

PROOF = Proof(value="proof-1", key="default", jkt=JKT, state="active", nonce=None)
STEPS = (Sign(htm="GET"), Send(PROOF), Read(), Sign(htm="GET"), Send(PROOF), Tell({"nonce": "n"}))


def hop_of(*steps: Sign | Send | Read | Tell) -> Generator[Any, Any, Done]:
    """A hop with these steps, which checks what comes of each."""
    for step in steps:
        result = yield step
        assert isinstance(result, {Sign: Proof, Send: Answer, Read: bytes}.get(type(step), object))
    return Done(PROOF)


class Library:
    """An agent and a sender; `calls` are what was asked of them, `failing` raises."""

    def __init__(self, *, failing: str = "", error: BaseException | None = None) -> None:
        self.calls: list[str] = []
        self.content_length = ["100"]
        self._failing = failing
        self._error = error or OSError("no network")

    def _called(self, name: str, result: Any = None) -> Any:
        self.calls.append(name)
        if name == self._failing:
            raise self._error
        return result

    def proof(self, **arguments: Any) -> Any:
        return self._called("proof", PROOF)

    def observe(self, seen: Any) -> Any:
        return self._called("observe")

    def send(self, proof: Proof | None, access_token: str | None) -> Any:
        return self._called(f"send {self.calls.count('send 0')}", object())

    def answer(self, response: object) -> Answer:
        return Answer(401, {"Content-Length": self.content_length}.__getitem__)

    def read(self, response: object) -> Any:
        return self._called("read", b"")

    def close(self, response: object) -> Any:
        return self._called("close")

    def again(self, response: object) -> None:
        self._called("again")


class AsyncLibrary(Library):
    """The same, to be awaited."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in ("proof", "observe", "send", "read", "close"):
            return found

        async def later(*arguments: Any, **named: Any) -> Any:
            await asyncio.sleep(0)
            return found(*arguments, **named)

        return later


def run_blocking(hop: Any, library: Any) -> Any:
    return blocking(exchange(hop, library, library))


def run_awaiting(hop: Any, library: Any) -> Any:
    async def main() -> Any:
        return await awaiting(exchange(hop, library, library))

    return asyncio.run(main())


each = pytest.mark.parametrize(
    ("kind", "run"),
    [(Library, run_blocking), (AsyncLibrary, run_awaiting)],
    ids=["blocking", "async"],
)
Kind = Callable[..., Library]
Run = Callable[[Any, Any], Any]


@each
def test_a_response_is_closed_before_the_request_is_sent_again(kind: Kind, run: Run) -> None:
    library = kind()
    _, done = run(hop_of(*STEPS), library)
    assert done.proof is PROOF
    assert library.calls == [
        *("proof", "send 0", "read"),
        *("proof", "close", "again", "send 1", "observe"),
    ]


UNREAD = (Sign(htm="GET"), Send(PROOF), Sign(htm="GET"), Send(PROOF))


@each
@pytest.mark.parametrize("failing", ["", "read"])
def test_a_body_that_nobody_read_is_drained_before_the_request_is_sent_again_if_it_can_be(
    kind: Kind, run: Run, failing: str
) -> None:
    library = kind(failing=failing)
    run(hop_of(*UNREAD), library)
    assert library.calls == ["proof", "send 0", "proof", "read", "close", "again", "send 1"]


@each
@pytest.mark.parametrize("length", [[], ["16385"], ["10", "10"], ["ten"], ["-1"]], ids=str)
def test_a_body_that_may_be_long_or_take_its_time_is_not_waited_for(
    kind: Kind, run: Run, length: list[str]
) -> None:
    library = kind()
    library.content_length = length
    run(hop_of(*UNREAD), library)
    assert library.calls == ["proof", "send 0", "proof", "close", "again", "send 1"]


@each
@pytest.mark.parametrize("failing", ["read", "again", "send 1"])
@pytest.mark.parametrize("error", [OSError("no network"), KeyboardInterrupt(), StopIteration()])
def test_no_response_is_left_open_by_a_failure(
    kind: Kind, run: Run, failing: str, error: BaseException
) -> None:
    library = kind(failing=failing, error=error)
    with pytest.raises((type(error), RuntimeError)):  # a generator raises no StopIteration
        run(hop_of(*STEPS), library)
    assert library.calls[-2:] == [failing, "close"]


@each
def test_nothing_is_closed_where_nothing_was_sent(kind: Kind, run: Run) -> None:
    library = kind(failing="proof", error=AgentUnavailable("gone"))
    with pytest.raises(AgentUnavailable):
        run(hop_of(*STEPS), library)
    assert library.calls == ["proof"]


@each
def test_a_response_outlives_an_agent_that_can_not_be_told(kind: Kind, run: Run) -> None:
    library = kind(failing="observe", error=AgentUnavailable("gone"))
    _, done = run(hop_of(*STEPS), library)
    assert done.proof is PROOF
    assert library.calls[-1] == "observe"

"""Does what `hop` asks for: once, for every HTTP library, blocking or async.

Theory of operation: `exchange` knows what follows what, and makes no call that may wait. It yields
each of them, to be sent the result or to have the exception thrown in. `blocking` makes the calls,
`awaiting` awaits them as well; generators that are built out of such generators run under either.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from dpop_agent.client.hop import Send, Sign, Tell
from dpop_agent.client.refusal import MAX_CHALLENGE_BODY
from dpop_agent.errors import DPoPAgentError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from dpop_agent.client.aio import AsyncAgentClient
    from dpop_agent.client.answers import Proof
    from dpop_agent.client.hop import Done, Steps
    from dpop_agent.client.refusal import Answer
    from dpop_agent.client.sync import AgentClient

    Result = TypeVar("Result")
    Calls = Generator[Callable[[], Any], Any, Result]

Response = TypeVar("Response")


class Sender(Protocol[Response]):
    """What an HTTP library does with one request; where the library is async, it is awaited."""

    def send(
        self, proof: Proof | None, access_token: str | None, /
    ) -> Response | Awaitable[Response]:
        """Send the request, as `Send` has it."""

    def answer(self, response: Response, /) -> Answer:
        """What `hop` looks at; never awaited."""

    def read(self, response: Response, /) -> bytes | Awaitable[bytes | None] | None:
        """The body, decoded, as `Read` has it; None where it is too long or broken."""

    def close(self, response: Response, /) -> object:
        """Nobody reads this response any more."""

    def again(self, response: Response, /) -> None:
        """After this response, which is closed, the request is about to be sent again.

        Its body from where it began, and with the response's cookies. Never awaited.
        """


def exchange(
    steps: Steps, agent: AgentClient | AsyncAgentClient, sender: Sender[Response]
) -> Calls[tuple[Response, Done]]:
    """Do the steps of a hop.

    Args:
        steps: a `hop`.
        agent: gives the proofs.
        sender: the request that the hop is about.

    Returns:
        The last response, and what came of the hop.

    Raises:
        Exception: what `steps`, the agent or the sender raises; no response is left open.
    """
    response: Response | None = None
    was_read = False
    result: Any = None
    try:
        while True:
            try:
                step = steps.send(result)
            except StopIteration as done:
                assert response is not None
                return response, done.value
            result = None
            if isinstance(step, Sign):
                result = yield partial(agent.proof, **step.arguments)
            elif isinstance(step, Send):
                if response is not None:
                    yield from leave(response, sender, was_read=was_read)
                response = yield partial(sender.send, step.proof, step.access_token)
                assert response is not None
                was_read, result = False, sender.answer(response)
            elif isinstance(step, Tell):
                try:
                    yield partial(agent.observe, [step.seen])
                except DPoPAgentError:
                    pass  # the response is worth more than the nonce
            else:
                assert response is not None
                was_read, result = True, (yield partial(sender.read, response))
    except BaseException:
        if response is not None:
            yield partial(sender.close, response)
        raise


def leave(response: Response, sender: Sender[Response], *, was_read: bool = False) -> Calls[None]:
    """Close a response whose request is about to be sent again."""
    if not was_read:
        yield from _drain(response, sender)
    yield partial(sender.close, response)
    sender.again(response)


def _drain(response: Response, sender: Sender[Response]) -> Calls[None]:
    """Read a short body to its end, so that its connection serves on.

    Only one that says how short it is: another may take its time, or have no end.
    """
    length = sender.answer(response).headers("Content-Length")
    if len(length) != 1 or not length[0].isdecimal() or int(length[0]) > MAX_CHALLENGE_BODY:
        return
    try:
        yield partial(sender.read, response)
    except Exception:  # noqa: S110  (the library's; only this connection is lost by it)
        pass


def blocking(calls: Calls[Result]) -> Result:
    """Make the calls; what comes of them all."""
    try:
        call = next(calls)
        while True:
            try:
                result = call()
            except BaseException as e:
                call = calls.throw(e)
            else:
                call = calls.send(result)
    except StopIteration as done:
        outcome: Result = done.value
        return outcome


async def awaiting(calls: Calls[Result]) -> Result:
    """Make the calls and await each; what comes of them all."""
    try:
        call = next(calls)
        while True:
            try:
                result = await call()
            except BaseException as e:
                call = calls.throw(e)
            else:
                call = calls.send(result)
    except StopIteration as done:
        outcome: Result = done.value
        return outcome

"""Which method is answered by what. Knows no socket."""

from __future__ import annotations

import asyncio
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from dpop_agent.agent.background import Background
from dpop_agent.agent.call import Call
from dpop_agent.agent.keys import Key
from dpop_agent.agent.leases import Leases
from dpop_agent.agent.lifecycle import Lifecycle
from dpop_agent.agent.proofs import Proofs
from dpop_agent.agent.queue import Flow
from dpop_agent.agent.recovery import Recovery
from dpop_agent.agent.sockets import Sockets
from dpop_agent.agent.stores import Stores
from dpop_agent.agent.views import Views, hello
from dpop_agent.errors import AgentUnavailable, DPoPAgentError, ProtocolError

log = logging.getLogger("dpop_agent.handler")

_Params = dict[str, Any]
_Result = dict[str, Any]
_Answer = Callable[[Call], Awaitable[_Result]]
_Method = Callable[[Call], None]


class Agent(Protocol):
    """What methods ask of the agent as a whole."""

    @property
    def default_store(self) -> str:
        """The store of keys that name none."""

    async def reload(self) -> None:
        """Read the configuration again, and open what isn't open."""

    def end(self, why: str) -> None:
        """Begin to end, as at SIGTERM."""

    def describe(self) -> dict[str, Any]:
        """The agent's own members of `status`."""


class _Answering(ABC):
    """Answers requests, by the methods that every socket has and by more."""

    def __init__(self, proofs: Proofs, views: Views, leases: Leases) -> None:
        self._proofs = proofs
        self._views = views
        self._leases = leases
        self._takes_no_more = False
        self._methods: dict[str, _Method] = {
            "hello": _hello,
            "proof": proofs.proof,
            "proof.sign": proofs.sign_proof,
            "observe": _at_once(proofs.observe),
            "key.list": _at_once(views.page),
            "lease": leases.lease,
            "release": self._release,
            "status": self._status,
            "subscribe": _subscribe,
        }

    @abstractmethod
    def _status(self, call: Call) -> None:
        """`status`."""

    def _release(self, call: Call) -> None:
        call.respond(self._leases.release(call))

    def disconnected(self, flow: Flow) -> None:
        """A connection has gone: drop what it waited for, and end what it held."""
        self._proofs.drop(flow)
        self._leases.drop(flow)

    def handle(self, call: Call) -> None:
        """Answer a request, now or later."""
        if self._takes_no_more:
            call.respond(ending())
            return
        try:
            self._methods[call.request.method](call)
        except Exception as e:
            call.respond(_error(e))

    def take_no_more(self) -> None:
        """Refuse what comes from now on: the agent is ending."""
        self._takes_no_more = True
        self._leases.take_no_more()


class Handler(_Answering):
    """Answers the requests of all sockets that give all keys."""

    def __init__(
        self,
        agent: Agent,
        *,
        proofs: Proofs,
        lifecycle: Lifecycle,
        recovery: Recovery,
        stores: Stores,
        views: Views,
        sockets: Sockets,
        leases: Leases,
        background: Background,
    ) -> None:
        super().__init__(proofs, views, leases)
        self._agent = agent
        self._lifecycle = lifecycle
        self._stores = stores
        self._recovery = recovery
        self._sockets = sockets
        self._background = background
        self._methods |= {
            "key.create": self._later(self._create),
            "key.rotate": self._later(self._rotate),
            "key.activate": self._later(self._activate),
            "key.adopt": self._later(self._adopt),
            "key.adopt_all": self._later(self._adopt_all),
            "key.suspend": self._later(self._showing(lifecycle.suspend)),
            "key.resume": self._later(self._showing(lifecycle.resume)),
            "key.compromise": self._later(self._showing(lifecycle.compromise)),
            "key.destroy": self._later(self._showing(lifecycle.destroy)),
            "key.forget": self._later(self._forget),
            "key.set": self._later(self._showing(lifecycle.set)),
            "key.attestation": self._later(_of_params(stores.attestation)),
            "store.authorize": self._later(_of_params(stores.authorize)),
            "store.self_test": self._later(_of_params(stores.self_test)),
            "socket.add": self._add_socket,
            "socket.list": _at_once(sockets.page),
            "socket.remove": self._later(_of_params(sockets.remove)),
            "lock": self._later(_of_params(stores.lock)),
            "unlock": self._later(_of_params(stores.unlock)),
            "reload": self._later(self._reload),
            "stop": self._stop,
        }

    def _later(self, answer: _Answer) -> _Method:
        async def run(call: Call) -> None:
            try:
                call.respond(await answer(call))
            except Exception as e:
                call.respond(_error(e))

        def start(call: Call) -> None:
            def ended(task: asyncio.Task[None]) -> None:
                if task.cancelled():
                    call.respond(_unfinished())

            # Of a task that is cancelled before its first step nothing runs.
            self._background.start(run(call)).add_done_callback(ended)

        return start

    def _showing(self, verb: Callable[[_Params], Awaitable[Key]]) -> _Answer:
        async def answer(call: Call) -> _Result:
            return self._views.key(await verb(call.params))

        return answer

    def _status(self, call: Call) -> None:
        if call.params.get("look"):
            self._later(self._status_after_a_look)(call)
        else:
            call.respond(self._status_now())

    async def _status_after_a_look(self, call: Call) -> _Result:  # noqa: ARG002  (one signature)
        await self._stores.look()
        return self._status_now()

    def _status_now(self) -> _Result:
        return self._views.status(
            agent=self._agent.describe() | self._sockets.describe() | self._leases.describe(),
            proofs=self._proofs.made + self._sockets.made,
        )

    def _add_socket(self, call: Call) -> None:
        if call.params.get("with_connection"):  # at once, while the connection is there
            call.respond(self._sockets.add_with_connection(call.params, call.owner.flow))
        else:
            self._later(_of_params(self._sockets.add))(call)

    async def _create(self, call: Call) -> _Result:
        return self._views.key(await self._lifecycle.create(call.params, self._agent.default_store))

    async def _adopt(self, call: Call) -> _Result:
        key = await self._lifecycle.adopt(
            call.params, self._agent.default_store, on_touch=call.on_touch
        )
        return self._views.key(key)

    async def _adopt_all(self, call: Call) -> _Result:
        return await self._recovery.adopt_all(call.params, self._agent.default_store)

    async def _forget(self, call: Call) -> _Result:
        await self._lifecycle.forget(call.params)
        return {"keys": []}

    async def _rotate(self, call: Call) -> _Result:
        key, old = await self._lifecycle.rotate(call.params)
        return self._views.swap(key, old, key.staged if call.params.get("stage") else key.active)

    async def _activate(self, call: Call) -> _Result:
        key, old = await self._lifecycle.activate(call.params)
        return self._views.swap(key, old, key.generation(call.params["generation"]))

    def _stop(self, call: Call) -> None:
        call.respond({"pid": os.getpid()})
        self._agent.end(f"asked to by {call.owner.client}")

    async def _reload(self, call: Call) -> _Result:  # noqa: ARG002  (one signature)
        await self._agent.reload()
        return {"stores": self._views.stores()}


class FilteredHandler(_Answering):
    """Answers the requests of a filtered socket."""

    @property
    def made(self) -> int:
        """How many proofs it gave out."""
        return self._proofs.made

    def _status(self, call: Call) -> None:
        """As it was seen last: what stores have is nobody's business there."""
        call.respond(self._views.status_of_own(proofs=self._proofs.made))


def _at_once(answer: Callable[[_Params], _Result]) -> _Method:
    return lambda call: call.respond(answer(call.params))


def _of_params(answer: Callable[[_Params], Awaitable[_Result]]) -> _Answer:
    return lambda call: answer(call.params)


def _hello(call: Call) -> None:
    if "client" in call.params:
        call.owner.introduce(call.params["client"])
    call.respond(hello())


def _subscribe(call: Call) -> None:
    call.owner.subscribe(call.params["events"])
    call.respond({})


def ending() -> AgentUnavailable:
    """The refusal of whoever asks an agent that is ending."""
    return AgentUnavailable("the agent is ending")


def _unfinished() -> AgentUnavailable:
    return AgentUnavailable(
        "the agent is ending, and this wasn't finished",
        hint="start it again, then see: dpop-agent key list; what is half made by now is finished "
        "or undone at the start",
    )


def _error(e: Exception) -> DPoPAgentError:
    """What the client is told; what nobody foresaw goes to the log."""
    if isinstance(e, DPoPAgentError):
        return e
    log.error("unexpected error while handling a request", exc_info=e)
    return ProtocolError("the agent met an unexpected error")

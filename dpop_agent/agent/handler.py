"""A request and who asks for it → the answer. Knows no socket.

Proofs are answered by callback, without a task each: they are what the agent is for, and a task
costs as much as the rest of the agent's work for one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from dpop_agent import __version__
from dpop_agent.agent import drains
from dpop_agent.agent.inventory import Inventory
from dpop_agent.agent.keys import Generation, Key, Keys, State
from dpop_agent.agent.lifecycle import Lifecycle
from dpop_agent.agent.nonces import Nonces
from dpop_agent.agent.policy import require_allowed
from dpop_agent.agent.records import Records, now_text
from dpop_agent.agent.signers import SIGN_TIMEOUT_S, Job, Signers
from dpop_agent.errors import (
    DPoPAgentError,
    HtuRefused,
    InvalidParams,
    KeyMissing,
    PolicyRefused,
    ProtocolError,
)
from dpop_agent.htu import Target, target
from dpop_agent.jose import is_sha256
from dpop_agent.proof import TYP, header, is_htm, is_nonce, parse_signing_input, signing_input
from dpop_agent.protocol import (
    ADMIN_METHODS,
    AGENT_METHODS,
    MAX_LINE,
    MAX_SEEN,
    MAX_TIMEOUT_MS,
    PROTOCOL_VERSION,
    Request,
)

log = logging.getLogger("dpop_agent.handler")

MAX_REQUESTS = 64
"""Requests under way on one connection."""

MAX_AGE_S = 2.0
"""Seconds after which a proof is stale before its client has it; it is made anew, once."""

SIGN_PROOF_WINDOW_S = 5
"""Seconds that the `iat` of somebody else's proof may be old (`proof.sign`)."""

PAGE = MAX_LINE - 8 * 1024
"""Bytes of a page of keys, the envelope and one generation more left free."""

MAX_UNKNOWN = 32
"""Objects that aren't the agent's, as `status` lists them for each store."""

MAX_DUE = 32
"""Keys whose rotation is due, as `status` lists them."""

MAX_LISTINGS = 8
"""Listings under way: moments kept for their next pages."""

_CURSOR = re.compile(r"([0-9]{1,20}):([a-z0-9._-]{1,64})@([0-9]{1,10})")

_Later = Callable[[dict[str, Any]], Coroutine[Any, Any, dict[str, Any]]]
Respond = Callable[[dict[str, Any] | DPoPAgentError], None]


class Peer(Hashable, Protocol):
    """The connection that a request came on."""

    def tell(self, event: str, params: Mapping[str, Any]) -> None:
        """Send what answers no request."""


class Stores(Protocol):
    """What the handler asks of the agent as a whole."""

    @property
    def default_store(self) -> str:
        """The store of keys that name none."""

    @property
    def socket_folder(self) -> str:
        """The folder of the agent's sockets, which is the user's alone."""

    async def reload(self) -> None:
        """Read the configuration again, and open what isn't open."""

    def describe(self) -> dict[str, Any]:
        """The agent's own members of `status`."""


class Handler:
    """Answers requests.

    Args:
        records: the keys.
        signers: the stores.
        inventory: what they have of the keys.
        lifecycle: what is done to keys.
        stores: the agent as a whole.
    """

    def __init__(
        self,
        records: Records,
        signers: Signers,
        inventory: Inventory,
        lifecycle: Lifecycle,
        stores: Stores,
    ) -> None:
        self._records = records
        self._signers = signers
        self._inventory = inventory
        self._lifecycle = lifecycle
        self._stores = stores
        self._nonces = Nonces()
        self._loop = asyncio.get_running_loop()
        self._headers: dict[tuple[str, str], str] = {}
        self._listings: OrderedDict[int, Keys] = OrderedDict()
        self._moments = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscribed: dict[Hashable, frozenset[str]] = {}
        self._proofs = 0
        self._started = now_text()
        self._now: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "hello": self._hello,
            "observe": self._observe_answers,
            "key.list": self._key_list,
            "status": self._status,
        }
        self._later: dict[str, _Later] = {
            "key.create": self._key_create,
            "key.rotate": self._key_rotate,
            "key.activate": self._key_activate,
            "key.suspend": self._shown_after(lifecycle.suspend),
            "key.resume": self._shown_after(lifecycle.resume),
            "key.compromise": self._shown_after(lifecycle.compromise),
            "key.destroy": self._shown_after(lifecycle.destroy),
            "key.set": self._shown_after(lifecycle.set),
            "key.attestation": self._key_attestation,
            "store.authorize": self._store_authorize,
            "lock": self._lock,
            "unlock": self._unlock,
            "reload": self._reload,
        }

    def handle(self, request: Request, owner: Peer, respond: Respond) -> None:
        """Answer a request, now or later; `respond` is called once.

        Args:
            request: as `protocol.decode_request` checked it.
            owner: the connection; see `gone`.
            respond: takes the result or the error.
        """
        try:
            if request.method == "proof":
                self._proof(request, owner, respond)
            elif request.method == "proof.sign":
                self._proof_sign(request, owner, respond)
            elif request.method == "subscribe":
                self._subscribed[owner] = frozenset(request.params["events"])
                respond({})
            elif request.method == "key.adopt":
                self._in_a_task(self._key_adopt(request, owner), respond)
            elif request.method in self._now:
                respond(self._now[request.method](request.params))
            else:
                self._in_a_task(self._later[request.method](request.params), respond)
        except DPoPAgentError as e:
            respond(e)
        except Exception:
            log.exception("a request failed in a way that nobody thought of")
            respond(ProtocolError("the agent failed inside"))

    def gone(self, owner: Hashable) -> None:
        """A connection closed: what it waits for needn't be done any more."""
        self._subscribed.pop(owner, None)
        for signer in self._signers.values():
            signer.drop(owner)

    def _in_a_task(self, work: Coroutine[Any, Any, dict[str, Any]], respond: Respond) -> None:
        async def run() -> None:
            try:
                respond(await work)
            except DPoPAgentError as e:
                respond(e)
            except Exception:
                log.exception("a request failed in a way that nobody thought of")
                respond(ProtocolError("the agent failed inside"))

        task = self._loop.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Proofs

    def _proof(self, request: Request, owner: Peer, respond: Respond) -> None:
        params = request.params
        self._observe(params.get("seen", ()))
        where = target(params["htu"])
        ath = params.get("ath")
        key, generation = self._records.keys.signer(
            params.get("key"), params.get("jkt"), presents_access_token=ath is not None
        )
        require_allowed(key, where)
        signer = self._signers.named(key.store)
        on_touch = self._on_touch(key, generation, request, owner)
        deadline = self._loop.time() + params.get("timeout_ms", SIGN_TIMEOUT_S * 1000) / 1000
        head = self._header(key.alg, generation)
        nonce: str | None = None
        made = ""
        made_at = 0.0
        anew = on_touch is None  # nobody touches twice for one proof

        def make() -> dict[str, Any]:
            nonlocal nonce, made, made_at
            self._still_signing(generation)
            made_at = self._loop.time()
            nonce = (
                params["nonce"] if "nonce" in params else self._nonces.nonce(where.origin, made_at)
            )
            made = signing_input(
                head,
                htm=params["htm"],
                htu=where.htu,
                iat=int(time.time() - self._nonces.backdating_s(where.origin)),
                ath=ath,
                nonce=nonce,
            )
            return self._sign_frame(key, generation, made)

        def done(what: dict[str, Any] | DPoPAgentError) -> None:
            nonlocal anew
            try:
                state, signature = self._signed(what, generation)
            except DPoPAgentError as e:
                respond(e)
                return
            if anew and self._loop.time() - made_at > MAX_AGE_S:
                anew = False
                submit()
                return
            self._count(generation, where)
            respond(
                {
                    "proof": f"{made}.{signature}",
                    "key": key.name,
                    "jkt": generation.jkt,
                    "state": state,
                    "nonce": nonce,
                }
            )

        def submit() -> None:
            signer.submit(Job(owner, make, done, deadline=deadline, again=True, on_touch=on_touch))

        submit()

    def _signed(
        self, what: dict[str, Any] | DPoPAgentError, generation: Generation
    ) -> tuple[State, str]:
        """The generation's state now, and the signature, if it may still be given out.

        Raises:
            DPoPAgentError: the signer's, or KeyUnusable.
        """
        if isinstance(what, DPoPAgentError):
            raise self._seen_missing(what, generation)
        return self._still_signing(generation), what["signature"]

    def _count(self, generation: Generation, where: Target) -> None:
        """A proof is given out."""
        self._proofs += 1
        self._records.used(generation.jkt, where.origin)
        self._inventory.missing.discard(generation.jkt)

    def _on_touch(
        self, key: Key, generation: Generation, request: Request, owner: Peer
    ) -> Callable[[], None] | None:
        """What announces that the request waits for a touch; None if it never does."""
        if not key.may_want_touch(generation):
            return None

        def announce() -> None:
            log.info(
                "%s@%d waits for a touch, in the store %s",
                key.name,
                generation.generation,
                key.store,
            )
            if "touch" in self._subscribed.get(owner, ()):
                owner.tell(
                    "touch",
                    {
                        "id": request.id,
                        "key": key.name,
                        "jkt": generation.jkt,
                        "store": key.store,
                    },
                )

        return announce

    def _proof_sign(self, request: Request, owner: Peer, respond: Respond) -> None:
        params = request.params
        jkt, text = params["jkt"], params["signing_input"]
        key, generation = self._records.keys.signer(None, jkt, presents_access_token=False)
        if not key.allow_sign_proof:
            raise PolicyRefused(
                f"the key {key.name} doesn't sign proofs that its clients built",
                hint=f"use proof, or allow it: dpop-agent key set {key.name} --allow-sign-proof",
            )
        where = self._require_proof(text, key, generation)
        signer = self._signers.named(key.store)

        def make() -> dict[str, Any]:
            self._still_signing(generation)
            return self._sign_frame(key, generation, text)

        def done(what: dict[str, Any] | DPoPAgentError) -> None:
            try:
                _, signature = self._signed(what, generation)
            except DPoPAgentError as e:
                respond(e)
                return
            self._count(generation, where)
            respond({"signature": signature})

        signer.submit(
            Job(
                owner,
                make,
                done,
                deadline=self._loop.time() + SIGN_TIMEOUT_S,
                again=True,
                on_touch=self._on_touch(key, generation, request, owner),
            )
        )

    def _require_proof(self, text: str, key: Key, generation: Generation) -> Target:
        """Let pass what is a proof of this very key, as the agent could have made it.

        Returns where it is for.

        Raises:
            InvalidParams, HtuRefused, PolicyRefused
        """
        try:
            head, claims = parse_signing_input(text)
        except ValueError as e:
            raise InvalidParams(f"proof.sign: signing_input is no proof: {e}") from e
        wrong = None
        if head != {"typ": TYP, "alg": key.alg, "jwk": dict(generation.jwk)}:
            wrong = f"its header isn't exactly typ {TYP}, alg {key.alg} and the generation's jwk"
        elif (
            not {"jti", "htm", "htu", "iat"}
            <= claims.keys()
            <= {
                "jti",
                "htm",
                "htu",
                "iat",
                "ath",
                "nonce",
            }
        ):
            wrong = "its claims aren't jti, htm, htu, iat and, where needed, ath and nonce"
        elif not (isinstance(claims["jti"], str) and 16 <= len(claims["jti"]) <= 64):
            wrong = "its jti isn't a text of 16 to 64 characters"
        elif not is_htm(claims["htm"]):
            wrong = "its htm isn't an HTTP method"
        elif "ath" in claims and not is_sha256(claims["ath"]):
            wrong = "its ath isn't the SHA-256 of an access token"
        elif "nonce" in claims and not is_nonce(claims["nonce"]):
            wrong = "its nonce isn't one (RFC 9449 section 8.1)"
        elif type(claims["iat"]) is not int or not (
            0 <= int(time.time()) - claims["iat"] <= SIGN_PROOF_WINDOW_S
        ):
            wrong = f"its iat isn't within {SIGN_PROOF_WINDOW_S} seconds before now"
        if wrong:
            raise InvalidParams(f"proof.sign: signing_input is refused: {wrong}")
        if not isinstance(claims["htu"], str) or target(claims["htu"]).htu != claims["htu"]:
            raise HtuRefused(
                "proof.sign: htu isn't in the form that servers compare",
                hint="no query, no fragment, host in lower case, no default port",
            )
        where = target(claims["htu"])
        require_allowed(key, where)
        return where

    def _header(self, alg: str, generation: Generation) -> str:
        encoded = self._headers.get((alg, generation.jkt))
        if encoded is None:
            encoded = self._headers[alg, generation.jkt] = header(alg, generation.jwk)
        return encoded

    @staticmethod
    def _sign_frame(key: Key, generation: Generation, text: str) -> dict[str, Any]:
        return {
            "op": "sign",
            "ref": generation.ref,
            "jkt": generation.jkt,
            "alg": key.alg,
            "input": text,
        }

    def _still_signing(self, generation: Generation) -> State:
        """The generation's state now: it may have been compromised while it signed.

        Raises:
            KeyUnusable
        """
        key, current = self._records.keys.by_jkt[generation.jkt]
        current.require_signing(key.name)
        return current.state

    def _seen_missing(self, error: DPoPAgentError, generation: Generation) -> DPoPAgentError:
        if isinstance(error, KeyMissing):
            self._inventory.missing.add(generation.jkt)
        return error

    # What servers said

    def _observe_answers(self, params: dict[str, Any]) -> dict[str, Any]:
        self._observe(params["seen"])
        return {}

    def _observe(self, seen: list[dict[str, str]]) -> None:
        for item in seen:
            where = target(item["htu"])
            date = item.get("date")
            self._nonces.observe(
                where.origin,
                nonce=item.get("nonce"),
                clock_offset_s=None if date is None else _seconds(date) - time.time(),
                now=self._loop.time(),
            )

    # Keys

    async def _key_create(self, params: dict[str, Any]) -> dict[str, Any]:
        return self._shown(await self._lifecycle.create(params, self._stores.default_store))

    async def _key_adopt(self, request: Request, owner: Peer) -> dict[str, Any]:
        key = await self._lifecycle.adopt(
            request.params,
            self._stores.default_store,
            on_touch=lambda key, generation: self._on_touch(key, generation, request, owner),
        )
        return self._shown(key)

    async def _key_rotate(self, params: dict[str, Any]) -> dict[str, Any]:
        key, old = await self._lifecycle.rotate(params)
        return self._shown_swap(key, old, key.staged if params.get("stage") else key.active)

    async def _key_activate(self, params: dict[str, Any]) -> dict[str, Any]:
        key, old = await self._lifecycle.activate(params)
        return self._shown_swap(key, old, key.generation(params["generation"]))

    def _shown_after(self, verb: Callable[[dict[str, Any]], Awaitable[Key]]) -> _Later:
        async def answer(params: dict[str, Any]) -> dict[str, Any]:
            return self._shown(await verb(params))

        return answer

    def _shown_swap(
        self, key: Key, old: Generation | None, new: Generation | None
    ) -> dict[str, Any]:
        return self._shown(key) | {
            "new": new and self._generation_members(key, new),
            "old": old and self._generation_members(key, old),
        }

    def _shown(self, key: Key) -> dict[str, Any]:
        """The key with as many of its newest generations as fit."""
        newest: list[dict[str, Any]] = []
        size = 0
        for generation in reversed(key.generations):
            members = self._generation_members(key, generation)
            size += len(json.dumps(members))
            if size > PAGE // 2:
                break
            newest.insert(0, members)
        return {"keys": [self._key_members(key) | {"generations": newest}]}

    def _key_list(self, params: dict[str, Any]) -> dict[str, Any]:
        """One page; the cursor names a moment, and the generation that the next one begins with."""
        moment, first = _cursor(params.get("cursor"))
        keys = self._listings.get(moment)
        if keys is None:
            keys, moment = self._records.keys, 0
        names = [keys.named(params["key"]).name] if "key" in params else sorted(keys)
        page: list[dict[str, Any]] = []
        size = 0
        for name in names:
            key = keys[name]
            listed: list[dict[str, Any]] = []
            for generation in key.generations:
                if (name, generation.generation) < first or (
                    generation.state is State.DESTROYED
                    and not params.get("include_destroyed", False)
                ):
                    continue
                members = self._generation_members(key, generation)
                size += len(json.dumps(members))
                if not listed:
                    size += len(json.dumps(self._key_members(key)))
                if size > PAGE:
                    if listed:
                        page.append(self._key_members(key) | {"generations": listed})
                    cursor = f"{self._keep(keys, moment)}:{name}@{generation.generation}"
                    return {"keys": page, "cursor": cursor}
                listed.append(members)
            if listed:
                page.append(self._key_members(key) | {"generations": listed})
        return {"keys": page}

    def _keep(self, keys: Keys, moment: int) -> int:
        """Remember a moment's keys for the next page, so that no page contradicts another."""
        if not moment:
            self._moments += 1
            moment = self._moments
        self._listings[moment] = keys
        self._listings.move_to_end(moment)
        if len(self._listings) > MAX_LISTINGS:
            self._listings.popitem(last=False)
        return moment

    def _key_members(self, key: Key) -> dict[str, Any]:
        signer = self._signers.get(key.store)
        return {
            "key": key.name,
            "store": key.store,
            "store_state": None if signer is None else signer.state,
            "alg": key.alg,
            "origins": list(key.origins),
            "allow_sign_proof": key.allow_sign_proof,
            "rotate_every_s": key.rotate_every_s,
            "drain_s": key.drain_s,
            "max_drain_s": key.max_drain_s,
            "rotation_due": drains.is_rotation_due(key, datetime.now(UTC)),
            "touch": key.touch,
        }

    def _generation_members(self, key: Key, generation: Generation) -> dict[str, Any]:
        generation = self._records.current(generation)
        draining = generation.state is State.DRAINING
        return {
            "generation": generation.generation,
            "jkt": generation.jkt or None,
            "state": generation.state,
            "jwk": dict(generation.jwk),
            "exportable": generation.exportable,
            "protection": generation.protection,
            "local": generation.local,
            "missing": generation.jkt in self._inventory.missing,
            "shared": generation.shared,
            "slot": generation.slot,
            "object_left": generation.object_left,
            "touch": generation.touch,
            "created": generation.created,
            "changed": generation.changed,
            "last_used": generation.last_used,
            "origins_used": dict(generation.origins_used),
            "drain_left_s": key.drain_left_s(generation) if draining else None,
        }

    async def _key_attestation(self, params: dict[str, Any]) -> dict[str, Any]:
        key = self._records.keys.named(params["key"])
        generation = key.generation(params["generation"])
        answer = await self._signers.named(key.store).ask(
            "attestation", ref=generation.ref, jkt=generation.jkt
        )
        return {
            "key": key.name,
            "generation": generation.generation,
            "jkt": generation.jkt,
            "certificates": answer["certificates"],
        }

    async def _store_authorize(self, params: dict[str, Any]) -> dict[str, Any]:
        signer = self._signers.named(params["store"])
        answer = await signer.ask("authorize", folder=self._stores.socket_folder, again=False)
        return {"store": params["store"], "socket": answer["path"]}

    # The agent

    def _hello(self, params: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002  (one signature)
        return {
            "protocol": PROTOCOL_VERSION,
            "agent": __version__,
            "methods": list(AGENT_METHODS),
            "admin_methods": [name for name in ADMIN_METHODS if name not in AGENT_METHODS],
            "limits": {
                "line": MAX_LINE,
                "timeout_ms": MAX_TIMEOUT_MS,
                "requests": MAX_REQUESTS,
                "seen": MAX_SEEN,
            },
        }

    def _status(self, params: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        now = self._loop.time()
        return {
            "agent": __version__,
            "protocol": PROTOCOL_VERSION,
            "pid": os.getpid(),
            "started": self._started,
            "proofs": self._proofs,
            **self._stores.describe(),
            "stores": self._store_members(),
            "rotations_due": [
                key.name
                for key in self._records.keys.values()
                if drains.is_rotation_due(key, datetime.now(UTC))
            ][:MAX_DUE],
            "origins": [
                {
                    "origin": origin,
                    "nonce_age_s": None if server.nonce is None else int(now - server.nonce_at),
                    "clock_offset_s": (
                        None if server.clock_offset_s is None else round(server.clock_offset_s)
                    ),
                }
                for origin, server in list(self._nonces)[-32:]
            ],
        }

    def _store_members(self) -> list[dict[str, Any]]:
        return [
            {
                "store": name,
                "type": signer.config.type,
                "state": signer.state,
                "reason": signer.error and signer.error.message,
                "hint": signer.error and signer.error.hint,
                "module": signer.config.module,
                "backend": signer.config.backend,
                "label": signer.place.get("label"),
                "serial": signer.place.get("serial"),
                "model": signer.place.get("model"),
                "signer_pid": signer.pid,
                "slots": self._inventory.slots.get(name) if signer.state == "ready" else None,
                "unknown": self._inventory.unknown.get(name, [])[:MAX_UNKNOWN],
                "unknown_count": len(self._inventory.unknown.get(name, [])),
            }
            for name, signer in self._signers.items()
        ]

    async def _lock(self, params: dict[str, Any]) -> dict[str, Any]:
        names = [params["store"]] if "store" in params else list(self._signers)
        for name in names:
            await self._signers.named(name).lock()
        return {"stores": self._store_members()}

    async def _unlock(self, params: dict[str, Any]) -> dict[str, Any]:
        signer = self._signers.named(params["store"])
        asked = await signer.unlock(self._stores.socket_folder)
        return {
            "store": params["store"],
            "state": signer.state,
            "pin_socket": asked.socket,
            "pin_pad": asked.pad,
        }

    async def _reload(self, params: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        await self._stores.reload()
        return {"stores": self._store_members()}


def _seconds(date: str) -> float:
    """RFC 3339 UTC → seconds since 1970.

    Raises:
        InvalidParams: a date that there isn't.
    """
    try:
        return datetime.fromisoformat(date[:19]).replace(tzinfo=UTC).timestamp()
    except ValueError as e:
        raise InvalidParams("seen: date isn't a date") from e


def _cursor(text: str | None) -> tuple[int, tuple[str, int]]:
    """A moment, and the key and generation that its page begins with."""
    if text is None:
        return 0, ("", 0)
    found = _CURSOR.fullmatch(text)
    if found is None:
        raise InvalidParams("key.list: cursor isn't one of an earlier answer", hint="leave it out")
    moment, name, number = found.groups()
    return int(moment), (name, int(number))

"""The way of a proof: from a request to what leaves the agent (RFC 9449 section 4).

Proofs are answered by callback, without a task each: they are what the agent is for, and a task
costs as much as the rest of the agent's work for one.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

from dpop_agent.agent.call import Call
from dpop_agent.agent.inventory import Inventory
from dpop_agent.agent.keys import Generation, Key, State
from dpop_agent.agent.nonces import Nonces
from dpop_agent.agent.policy import require_allowed
from dpop_agent.agent.records import Records
from dpop_agent.agent.signers import SIGN_TIMEOUT_S, Job, Signers
from dpop_agent.errors import (
    DPoPAgentError,
    HtuRefused,
    InvalidParams,
    KeyMissing,
    PolicyRefused,
)
from dpop_agent.htu import Target, target
from dpop_agent.jose import is_sha256
from dpop_agent.proof import TYP, header, is_htm, is_nonce, parse_signing_input, signing_input

MAX_AGE_S = 2.0
"""Seconds after which a proof is stale before its client has it; it is made anew, once."""

SIGN_PROOF_WINDOW_S = 5
"""Seconds that the `iat` of somebody else's proof may be old (`proof.sign`)."""


class Proofs:
    """Makes proofs, and has them signed.

    Attributes:
        made: how many were given out.
    """

    def __init__(
        self, records: Records, signers: Signers, inventory: Inventory, nonces: Nonces
    ) -> None:
        self._records = records
        self._signers = signers
        self._inventory = inventory
        self._nonces = nonces
        self._loop = asyncio.get_running_loop()
        self._headers: dict[tuple[str, str], str] = {}
        self.made = 0

    def proof(self, call: Call) -> None:
        """`proof`: made here, signed by the generation that was asked for."""
        params, respond = call.params, call.respond
        self._observe(params.get("seen", ()))
        where = target(params["htu"])
        ath = params.get("ath")
        key, generation = self._records.keys.signer(
            params.get("key"), params.get("jkt"), presents_access_token=ath is not None
        )
        require_allowed(key, where)
        signer = self._signers.named(key.store)
        on_touch = call.on_touch(key, generation)
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
            signer.submit(
                Job(call.owner, make, done, deadline=deadline, again=True, on_touch=on_touch)
            )

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
        self.made += 1
        self._records.used(generation.jkt, where.origin)
        self._inventory.missing.discard(generation.jkt)

    def sign_proof(self, call: Call) -> None:
        """`proof.sign`: built by a client, let pass only as the agent could have made it."""
        params, respond = call.params, call.respond
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
                call.owner,
                make,
                done,
                deadline=self._loop.time() + SIGN_TIMEOUT_S,
                again=True,
                on_touch=call.on_touch(key, generation),
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

    def observe(self, params: dict[str, Any]) -> dict[str, Any]:
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


def _seconds(date: str) -> float:
    """RFC 3339 UTC → seconds since 1970.

    Raises:
        InvalidParams: a date that there isn't.
    """
    try:
        return datetime.fromisoformat(date[:19]).replace(tzinfo=UTC).timestamp()
    except ValueError as e:
        raise InvalidParams("seen: date isn't a date") from e

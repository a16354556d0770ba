"""The way of a proof: from a request to what leaves the agent (RFC 9449 section 4).

Proofs are answered by callback, without a task each: they are what the agent is for, and a task
costs as much as the rest of the agent's work for one.
"""

from __future__ import annotations

import json
import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic
from typing import Any

from dpop_agent.agent import audit, drains
from dpop_agent.agent.call import Call
from dpop_agent.agent.consent import Consents, Wish, changed_meanwhile
from dpop_agent.agent.excerpts import Excerpt
from dpop_agent.agent.filters import Filter
from dpop_agent.agent.frames import Form, Outcome, signature_form
from dpop_agent.agent.inventory import Inventory
from dpop_agent.agent.keys import Generation, Key, Keys, State
from dpop_agent.agent.nonces import Nonces
from dpop_agent.agent.policy import rate_exceeded, require_allowed, socket_rate_exceeded
from dpop_agent.agent.queue import SIGN_TIMEOUT_S, Flow, Job
from dpop_agent.agent.rates import Allowance, Rates
from dpop_agent.agent.records import Records
from dpop_agent.agent.signers import Signer, Signers
from dpop_agent.agent.trails import Written
from dpop_agent.agent.trials import Trials
from dpop_agent.channel import asked_of
from dpop_agent.errors import (
    DPoPAgentError,
    HtuRefused,
    InvalidParams,
    KeyMissing,
    Locked,
    PolicyRefused,
)
from dpop_agent.htu import Target, target
from dpop_agent.jose import b64url, is_sha256
from dpop_agent.proof import (
    TYP,
    header,
    is_htm,
    is_jti,
    is_nonce,
    new_jti,
    parse_signing_input,
    signing_input,
)
from dpop_agent.protocol import seconds_of

log = logging.getLogger("dpop_agent.proofs")

MAX_CHOICES = 256
"""Choices kept: of the longest targets they take some four megabytes."""

MAX_CHOICES_THERE = 32
"""Those of a filtered socket, of which there may be many."""

MAX_AGE_S = 2.0
"""Seconds after which a proof is stale before its client has it; it is made anew, once."""

SIGN_PROOF_WINDOW_S = 5
"""Seconds that the `iat` of somebody else's proof may be old (`proof.sign`)."""


class Proofs:
    """Answers `proof`, `proof.sign` and `observe`, on all sockets that give all keys, or on a
    filtered one.

    Attributes:
        records: the keys that it may use.
        nonces: what servers said, for those that it serves.
        made: how many were given out.
    """

    def __init__(
        self,
        records: Records | Excerpt,
        signers: Signers,
        inventory: Inventory,
        nonces: Nonces,
        consents: Consents,
        rates: Rates,
        socket: Filter | None = None,
    ) -> None:
        """`rates` are the keys', whichever socket they are used on; `socket` the filtered one."""
        self.records = records
        self._signers = signers
        self._inventory = inventory
        self.nonces = nonces
        self._trials = Trials()
        self._consents = consents
        self._choices: dict[_Asked, Choice] = {}
        self._signatories: dict[str, Signatory] = {}
        self._keys = records.keys  # those of the choices
        self._rates = rates
        self._max_choices = MAX_CHOICES if socket is None else MAX_CHOICES_THERE
        self._socket = None if socket is None else socket.name
        own_rate = None if socket is None else socket.rules.rate
        self._own = None if own_rate is None else Allowance(own_rate, monotonic())
        self.made = 0

    def proof(self, call: Call) -> None:
        """`proof`: made here, signed by the generation that was asked for."""
        params = call.params
        if "seen" in params:
            self._observe(params["seen"])
        has_ath = "ath" in params
        asked = (params.get("key"), params.get("jkt"), has_ath, params["htu"], params["htm"])
        choice = self._choice(asked)
        if "shares_nonce" in params and self._is_doubtful(choice, call):
            origin = choice.where.origin
            self._trials.take(origin, call, partial(self._go_on, call, asked, origin))
        else:
            self._make(call, choice)

    def _make(self, call: Call, choice: Choice, **how: Any) -> None:
        """Have it signed, if the rules let it; `how` is for the proof."""
        if choice.is_admitted_at_once:
            self.signer(choice.key).submit(_OwnProof(self, call, choice, **how))
        else:
            self._admit(partial(_OwnProof, self, call, choice, **how), call, choice)

    def _is_doubtful(self, choice: Choice, call: Call) -> bool:
        """Whether nobody knows that the server takes the nonce which the proof would have."""
        params = call.params
        if "nonce" in params or not params["shares_nonce"]:
            return False
        return self.nonces.is_doubtful(choice.where.origin, call.began)

    def _go_on(self, call: Call, asked: _Asked, origin: str, tries_nonce: bool) -> None:
        """Have it signed, after it may have waited until another tried the nonce."""
        if tries_nonce:
            respond = call.respond

            def answered(what: dict[str, Any] | bytes | DPoPAgentError) -> None:
                respond(what)
                if isinstance(what, DPoPAgentError):
                    self._trials.failed(origin, call)

            call.respond = answered
        waited_s = monotonic() - call.began
        try:
            choice = self._choice(asked)  # keys may have changed meanwhile
            self._make(call, choice, tries_nonce=tries_nonce, waited_s=waited_s)
        except DPoPAgentError as e:
            call.respond(e)

    def drop(self, flow: Flow) -> None:
        """A connection has gone: nothing of it waits, and nobody waits for it."""
        self._trials.drop(flow)

    def sign_proof(self, call: Call) -> None:
        """`proof.sign`: built by a client, let pass only as the agent could have made it."""
        jkt, text = call.params["jkt"], call.params["signing_input"]
        key, generation = self.records.keys.signer(None, jkt, presents_access_token=False)
        _require_signing_allowed(key)
        where, claims = _require_proof(text, key, generation)
        htm, presents = claims["htm"], "ath" in claims
        require_allowed(key, where, htm, presents_access_token=presents, socket=self._socket)
        choice = Choice(
            *(self.records.keys, Signatory(key, generation), where, htm),
            presents_access_token=presents,
            built_by_client=True,
            socket_has_rate=self._own is not None,
        )
        self._admit(partial(_ClientsProof, self, call, choice, claims), call, choice)

    def _admit(self, new: Callable[[], _Signing], call: Call, choice: Choice) -> None:
        """Have it signed if the key's rules that are asked each time let it, a person maybe."""
        key = choice.key
        self._require_rate(key)  # so that nobody is asked in vain
        signer = self.signer(key)
        if key.rules.confirm_s is None:
            signer.submit(new())
            return
        wish = Wish(
            key=key,
            locks=(signer, signer.locks),
            origin=choice.where.origin,
            htm=choice.htm,
            process=call.owner.trace.process,
            flow=call.owner.flow,
            socket=self._socket,
        )
        if self._consents.holds(wish):
            signer.submit(new())
            return

        def answered(error: DPoPAgentError | None) -> None:
            if error is None and self.records.keys.get(key.name) is not key:
                error = changed_meanwhile(key)
            if error is None:
                try:
                    # Only now, so that its time begins now.
                    self.signer(key).submit(new())
                except DPoPAgentError as e:
                    error = e
            if error is not None:
                call.respond(error)

        announce = partial(call.tell_that_a_person_is_asked, key, choice.generation)
        self._consents.start(wish, announce=announce, then=answered)

    def _require_rate(self, key: Key) -> list[Allowance]:
        """What is left of a key's rate, and of its socket's, where they have one.

        Raises:
            RateExceeded: nothing, for now.
        """
        now = monotonic()
        allowances = []
        if self._own is not None:
            wait_s = self._own.wait_s(now)
            if wait_s > 0:
                raise socket_rate_exceeded(self._own.rate, wait_s)
            allowances.append(self._own)
        rate = key.rules.rate
        if rate is not None:
            allowance = self._rates.allowance(key.name, rate, now)
            wait_s = allowance.wait_s(now)
            if wait_s > 0:
                raise rate_exceeded(key, rate, wait_s, socket=self._socket)
            allowances.append(allowance)
        return allowances

    def count(self, choice: Choice) -> None:
        """A proof gets its turn.

        Raises:
            KeyUnknown: its socket gives nothing any more.
            RateExceeded: not by the rates of its key and its socket, for now.
        """
        for allowance in self._require_rate(self.records.keys.named(choice.key.name)):
            allowance.take()

    def _choice(self, asked: _Asked) -> Choice:
        """Who signs, and for where: the same for the same question, until the keys change.

        Raises:
            KeyUnusable, JktRequired, HtuRefused, PolicyRefused
        """
        keys = self.records.keys
        if self._keys is not keys:
            self._keys = keys
            self._choices.clear()
            self._signatories.clear()
        elif len(self._choices) >= self._max_choices:
            self._choices.clear()
        choice = self._choices.get(asked)
        if choice is None:
            name, jkt, presents, htu, htm = asked
            where = target(htu)
            key, generation = keys.signer(name, jkt, presents_access_token=presents)
            require_allowed(key, where, htm, presents_access_token=presents, socket=self._socket)
            signatory = self._signatories.get(generation.jkt)
            if signatory is None:
                signatory = self._signatories[generation.jkt] = Signatory(key, generation)
            choice = self._choices[asked] = Choice(
                *(keys, signatory, where, htm),
                presents_access_token=presents,
                socket_has_rate=self._own is not None,
            )
        return choice

    def signer(self, key: Key) -> Signer:
        """The signer of a key's store.

        Raises:
            StoreUnknown
        """
        return self._signers[key.store]

    def require_still_signing(self, choice: Choice) -> State:
        """The generation's state now: its key may have changed since it was chosen.

        Raises:
            KeyUnusable, HtuRefused, PolicyRefused, ConsentRefused
        """
        key, current = self.records.keys.signer(
            choice.key.name, choice.generation.jkt, presents_access_token=False
        )
        require_allowed(
            *(key, choice.where, choice.htm),
            presents_access_token=choice.presents_access_token,
            socket=self._socket,
        )
        if choice.built_by_client:
            _require_signing_allowed(key)
        if key.rules.confirm_s is not None and key.rules != choice.key.rules:
            raise changed_meanwhile(key)
        return current.state

    def given_out(self, choice: Choice, client: str) -> None:
        """A proof leaves the agent.

        The log has no more of its target than the origin: paths and queries can be secrets.
        """
        generation, origin = choice.generation, choice.where.origin
        self.made += 1
        if log.isEnabledFor(logging.DEBUG):
            log.debug(
                "%s@%d signed a proof for %s, asked by %s",
                choice.key.name,
                generation.generation,
                origin,
                client,
            )
        self.records.used(generation.jkt, origin)
        self._inventory.missing.discard(generation.jkt)

    def drain_left_s(self, generation: Generation) -> int | None:
        """Seconds that it still signs if nobody uses it meanwhile; None unless it is draining."""
        key, current = self.records.keys.by_jkt.get(generation.jkt, (None, generation))
        if key is None or current.state is not State.DRAINING:
            return None
        return drains.drain_left_s(key, current, self.records.seen)

    def not_signed(self, error: DPoPAgentError, generation: Generation) -> None:
        """A signer says why there is no signature."""
        if isinstance(error, KeyMissing):
            self._inventory.missing.add(generation.jkt)

    def observe(self, params: dict[str, Any]) -> dict[str, Any]:
        self._observe(params["seen"])
        return {}

    def _observe(self, seen: list[dict[str, Any]]) -> None:
        for item in seen:
            where = target(item["htu"])
            if self._socket is not None and not self._is_for(where):
                continue
            date = item.get("date")
            self.nonces.observe(
                where.origin,
                nonce=item.get("nonce"),
                clock_offset_s=None if date is None else _date(date) - time.time(),
                now=monotonic(),
                refused_nonce=item.get("refused_nonce"),
                iat_refused=item.get("iat_refused", False),
            )
            self._trials.heard(where.origin)

    def _is_for(self, where: Target) -> bool:
        """Whether any key here is for an origin."""
        return any(key.rules.has_origin(where) for key in self.records.keys.values())


class Signatory:
    """A generation that signs, with what is the same for all its proofs until its key changes.

    Attributes:
        key: its key.
        generation: it.
        header: its proofs', encoded.
        form: of a signature by it.
        may_want_touch: a signature may wait for a person.
    """

    __slots__ = ("_asked", "form", "generation", "header", "key", "may_want_touch")

    def __init__(self, key: Key, generation: Generation) -> None:
        self.key = key
        self.generation = generation
        self.header = header(key.alg, generation.jwk)
        self.form: Form = signature_form(key.alg, generation.jwk)
        self.may_want_touch = key.may_want_touch(generation)
        self._asked = asked_of(generation.ref, generation.jkt, key.alg)

    def frame(self, signing_input: str) -> bytes:
        """What asks the signer for a signature."""
        return self._asked + signing_input.encode("ascii")


class Choice:
    """Who signs a proof, and for where; with what is the same for all such proofs.

    Attributes:
        keys: as they were then.
        by: who signs.
        key: its key.
        generation: the one that signs.
        where: what it is for.
        htm: with which method.
        presents_access_token: whether it has an `ath`.
        is_admitted_at_once: whether none of the key's rules, or its socket's, is asked each time.
        recorded: what the audit says of it.
        built_by_client: it is for `proof.sign`.
    """

    __slots__ = (
        "built_by_client",
        "by",
        "generation",
        "htm",
        "is_admitted_at_once",
        "key",
        "keys",
        "presents_access_token",
        "recorded",
        "where",
    )

    def __init__(
        self,
        keys: Keys,
        by: Signatory,
        where: Target,
        htm: str,
        *,
        presents_access_token: bool,
        built_by_client: bool = False,
        socket_has_rate: bool = False,
    ) -> None:
        key, generation = by.key, by.generation
        self.keys = keys
        self.by = by
        self.key = key
        self.generation = generation
        self.where = where
        self.htm = htm
        self.presents_access_token = presents_access_token
        self.built_by_client = built_by_client
        self.is_admitted_at_once = (
            not socket_has_rate and key.rules.rate is None and key.rules.confirm_s is None
        )
        method = "proof.sign" if built_by_client else "proof"
        self.recorded = audit.signed(method, key, generation, where.origin)


_Asked = tuple[str | None, str | None, bool, str, str]
"""A key's name, a generation's jkt, whether an access token is presented, htu and htm."""


class _Signing(Job):
    """One request on its way to a signature and out again."""

    __slots__ = (
        "_call",
        "_choice",
        "_is_uncounted",
        "_jti",
        "_made_at",
        "_may_be_made_anew",
        "_proofs",
        "_tries_nonce",
    )

    def __init__(
        self,
        proofs: Proofs,
        call: Call,
        choice: Choice,
        *,
        tries_nonce: bool = False,
        waited_s: float = 0.0,
    ) -> None:
        by = choice.by
        timeout_ms = call.params.get("timeout_ms", SIGN_TIMEOUT_S * 1000)
        super().__init__(
            call.owner.flow,
            monotonic() + timeout_ms / 1000 - waited_s,
            again=True,
            form=by.form,
            on_touch=call.on_touch(by.key, by.generation) if by.may_want_touch else None,
        )
        self._proofs = proofs
        self._call = call
        self._choice = choice
        self._is_uncounted = not choice.is_admitted_at_once
        self._tries_nonce = tries_nonce
        self._may_be_made_anew = self.on_touch is None  # nobody touches twice for one proof
        self._jti = ""

    def make(self) -> bytes:
        """Right before it is sent, so that what it says of the time is true."""
        proofs, choice = self._proofs, self._choice
        if choice.keys is not proofs.records.keys:
            proofs.require_still_signing(choice)
        if self._is_uncounted:
            proofs.count(choice)
            self._is_uncounted = False
        self._made_at = monotonic()
        return choice.by.frame(self._signing_input())

    def done(self, what: Outcome) -> None:
        if not isinstance(what, bytes):
            assert isinstance(what, DPoPAgentError)  # so the form says
            self._proofs.not_signed(what, self._choice.generation)
            self._call.respond(what)
            return
        choice = self._choice
        state = choice.generation.state
        if choice.keys is not self._proofs.records.keys:
            try:
                state = self._proofs.require_still_signing(choice)
            except DPoPAgentError as e:
                self._call.respond(e)
                return
        now = monotonic()
        if now - self._made_at > MAX_AGE_S and self._may_be_made_anew:
            self._submit_again()
            return
        result = self._result(b64url(what), state)
        if self._call.owner.trace.trail.holds:
            self._hold(result, now)
            return
        self._call.respond(result)  # first: the client goes on while the rest is noted
        self._record(_nobody_waits, now)
        self._proofs.given_out(choice, self._call.owner.client)

    def _hold(self, result: dict[str, Any] | bytes, now: float) -> None:
        """Let it leave once its line is written."""
        try:
            signer = self._proofs.signer(self._choice.key)
        except DPoPAgentError as e:  # its store isn't configured any more
            self._call.respond(e)
            return
        locks = signer.locks
        self._record(lambda error: self._recorded(error, result, signer, locks), now)

    def _record(self, written: Written, now: float) -> None:
        call = self._call
        trace = call.owner.trace
        trace.trail.proof(
            trace.who(now),
            self._choice.recorded,
            htm=self._choice.htm,
            jti=self._jti,
            took_s=now - call.began,
            written=written,
        )

    def _recorded(
        self,
        error: DPoPAgentError | None,
        result: dict[str, Any] | bytes,
        signer: Signer,
        locks: int,
    ) -> None:
        """Its line is written, or not. Meanwhile somebody may have said `compromise` or `lock`."""
        try:
            if error is not None:
                raise error
            self._proofs.require_still_signing(self._choice)
            if signer.locks != locks:
                raise _locked_meanwhile(self._choice.key)
        except DPoPAgentError as e:
            self._call.respond(e)
            return
        self._proofs.given_out(self._choice, self._call.owner.client)
        self._call.respond(result)

    def _submit_again(self) -> None:
        self._may_be_made_anew = False
        self.is_wanted = self.again = True
        try:
            self._proofs.signer(self._choice.key).submit(self)
        except DPoPAgentError as e:  # its store isn't configured any more
            self.finish(e)

    @abstractmethod
    def _signing_input(self) -> str:
        """What the signer gets; `_jti` is its jti, as JSON, from then on."""

    @abstractmethod
    def _result(self, signature: str, state: State) -> dict[str, Any] | bytes:
        """What the client gets."""


class _OwnProof(_Signing):
    """A proof that the agent makes; anew, once, if it was signed too late."""

    __slots__ = ("_made", "_nonce")

    def _signing_input(self) -> str:
        params, where = self._call.params, self._choice.where
        nonce, backdating_s = self._proofs.nonces.told(where.origin, self._made_at)
        self._nonce: str | None = params.get("nonce", nonce)
        jti = new_jti()
        self._jti = f'"{jti}"'
        self._made = signing_input(
            self._choice.by.header,
            htm=params["htm"],
            htu=where.htu,
            iat=int(time.time() - backdating_s),
            ath=params.get("ath"),
            nonce=self._nonce,
            jti=jti,
        )
        return self._made

    def _result(self, signature: str, state: State) -> bytes:
        choice = self._choice
        left_s = self._proofs.drain_left_s(choice.generation) if state is State.DRAINING else None
        # None of these has a character that JSON escapes.
        nonce = "null" if self._nonce is None else f'"{self._nonce}"'
        left = "" if left_s is None else f',"drain_left_s":{left_s}'
        if self._tries_nonce:
            left += ',"tries_nonce":true'
        return (
            f'{{"proof":"{self._made}.{signature}","key":"{choice.key.name}",'
            f'"jkt":"{choice.generation.jkt}","state":"{state}","nonce":{nonce}{left}}}'
        ).encode("ascii")


class _ClientsProof(_Signing):
    """A proof that a client built: signed as it is, or not at all."""

    __slots__ = ("_iat",)

    def __init__(
        self, proofs: Proofs, call: Call, choice: Choice, claims: Mapping[str, Any]
    ) -> None:
        super().__init__(proofs, call, choice)
        self._iat, self._jti = claims["iat"], json.dumps(claims["jti"])
        self._may_be_made_anew = False

    def _signing_input(self) -> str:
        if not _is_recent(self._iat):  # it waited: for a person, or for its turn
            raise _wrong_proof(_NOT_RECENT, hint="build another, with the time of now")
        text: str = self._call.params["signing_input"]
        return text

    def _result(self, signature: str, state: State) -> dict[str, Any]:  # noqa: ARG002
        return {"signature": signature}


def _locked_meanwhile(key: Key) -> Locked:
    return Locked(
        f"the store {key.store} was locked before the proof left",
        hint=f"dpop-agent unlock {key.store}",
    )


def _nobody_waits(error: DPoPAgentError | None) -> None:
    """A line is written some time."""


def _require_signing_allowed(key: Key) -> None:
    if not key.allow_sign_proof:
        raise PolicyRefused(
            f"the key {key.name} doesn't sign proofs that its clients built",
            hint=f"use proof, or allow it: dpop-agent key set {key.name} --allow-sign-proof",
            details={"rule": "allow_sign_proof"},
        )


def _require_proof(text: str, key: Key, generation: Generation) -> tuple[Target, Mapping[str, Any]]:
    """Let pass what is a proof of this very key, as the agent could have made it.

    Returns where it is for, and its claims.

    Raises:
        InvalidParams, HtuRefused
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
    elif not is_jti(claims["jti"]):
        wrong = "its jti isn't a text of 16 to 64 visible ASCII characters"
    elif not is_htm(claims["htm"]):
        wrong = "its htm isn't an HTTP method"
    elif "ath" in claims and not is_sha256(claims["ath"]):
        wrong = "its ath isn't the SHA-256 of an access token"
    elif "nonce" in claims and not is_nonce(claims["nonce"]):
        wrong = "its nonce isn't one (RFC 9449 section 8.1)"
    elif type(claims["iat"]) is not int or not _is_recent(claims["iat"]):
        wrong = _NOT_RECENT
    if wrong:
        raise _wrong_proof(wrong)
    where = target(claims["htu"]) if isinstance(claims["htu"], str) else None
    if where is None or where.htu != claims["htu"]:
        raise HtuRefused(
            "proof.sign: htu isn't in the form that servers compare",
            hint="no query, no fragment, host in lower case, no default port",
        )
    return where, claims


_NOT_RECENT = f"its iat isn't within {SIGN_PROOF_WINDOW_S} seconds before now"


def _is_recent(iat: int) -> bool:
    return 0 <= int(time.time()) - iat <= SIGN_PROOF_WINDOW_S


def _wrong_proof(why: str, *, hint: str = "") -> InvalidParams:
    return InvalidParams(f"proof.sign: signing_input is refused: {why}", hint=hint)


def _date(text: str) -> int:
    try:
        return seconds_of(text)
    except ValueError as e:
        raise InvalidParams("seen: date isn't a date") from e

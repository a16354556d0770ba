"""What is kept for the next proof is what would be decided anew."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from dpop_agent.agent.keys import Generation, Key, Keys, State
from dpop_agent.agent.nonces import Nonces
from dpop_agent.agent.policy import require_allowed
from dpop_agent.agent.proofs import MAX_CHOICES, Choice, Proofs, Signatory
from dpop_agent.agent.rates import Rates
from dpop_agent.agent.rules import Rules
from dpop_agent.client import AgentClient
from dpop_agent.errors import ConsentRefused, DPoPAgentError, KeyUnusable, PolicyRefused
from dpop_agent.htu import target
from dpop_agent.jose import b64url, b64url_decode
from dpop_agent.protocol import encode_made, encode_result
from tests.rows import Reached
from tests.state_folder import new_public_key
from tests.unit.agent_in_process import AgentInProcess

AT = "2026-11-20T19:05:00Z"
STATES = [State.STAGED, State.ACTIVE, State.DRAINING, State.COMPROMISED, State.SUSPENDED]
TARGETS = [
    "https://api.example.com/v1",
    "HTTPS://API.EXAMPLE.COM:443/v1?q",
    "https://b.example/%2e%2e/",
    "http://c.example/",
    "http://localhost:8080/",
]

Asked = tuple[str | None, str | None, bool, str, str]
"""A key's name, a jkt, whether an access token is presented, htu and htm."""


class Ledger:
    """Stands for the records: keys alone."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys


def proofs_of(records: Ledger) -> Proofs:
    none: Any = None
    return Proofs(cast("Any", records), none, none, Nonces(), none, Rates())


class Chance:
    """Keys and questions about them, at random."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._publics = [new_public_key() for _ in range(4)]

    def keys(self) -> Keys:
        pick = self._random.choice
        keys = []
        for name, publics in (("default", self._publics[:2]), ("shop", self._publics[2:])):
            generations = [
                Generation(number, pick(STATES), f"{number:032x}", AT, AT, **public)
                for number, public in enumerate(publics, 1)
            ]
            if [g.state for g in generations].count(State.ACTIVE) > 1:
                generations[0] = replace(generations[0], state=State.DRAINING)
            origins = pick(((), ("https://api.example.com",), ("http://c.example",)))
            rules = Rules(
                origins,
                methods=pick(((), (), ("GET",))),
                paths=pick(((), (), ("/v1",))),
                require_ath=pick((False, False, True)),
            )
            keys.append(Key(name, "work", "ES256", AT, rules, generations=tuple(generations)))
        return Keys(keys[: pick((1, 2, 2))])

    def asked(self) -> Asked:
        pick = self._random.choice
        jkts = [None, *(public["jkt"] for public in self._publics)]
        key, htm = pick((None, "default", "shop")), pick(("GET", "POST"))
        return key, pick(jkts), pick((True, False)), pick(TARGETS), htm

    def happens(self, share: float) -> bool:
        return self._random.random() < share


def decided(keys: Keys, asked: Asked) -> Any:
    """What a look at everything says."""
    name, jkt, presents_access_token, htu, htm = asked
    where = target(htu)
    key, generation = keys.signer(name, jkt, presents_access_token=presents_access_token)
    require_allowed(key, where, htm, presents_access_token=presents_access_token)
    return key, generation, where.htu, where.origin


def outcome(decide: Any) -> Any:
    try:
        return decide()
    except DPoPAgentError as e:
        return type(e), e.message, e.hint


def kept(proofs: Proofs, asked: Asked) -> Any:
    choice = proofs._choice(asked)
    return choice.key, choice.generation, choice.where.htu, choice.where.origin


def compare_choices(count: int, seed: int) -> None:
    async def story() -> None:
        chance = Chance(seed)
        records = Ledger(chance.keys())
        proofs = proofs_of(records)
        good = 0
        for _ in range(count):
            if chance.happens(0.02):
                records.keys = chance.keys()
            asked = chance.asked()
            found = outcome(lambda: kept(proofs, asked))  # noqa: B023  (called at once)
            assert found == outcome(lambda: decided(records.keys, asked))  # noqa: B023
            good += isinstance(found[0], Key)
        assert good > count / 50

    asyncio.run(story())


def test_a_choice_that_is_kept_is_what_would_be_decided_anew() -> None:
    compare_choices(20_000, 1)


@pytest.mark.long
def test_of_three_million_questions_each_is_answered_as_if_it_were_new() -> None:
    compare_choices(3_000_000, 2)


def test_a_choice_outlives_no_change_of_its_key() -> None:
    async def story() -> None:
        public = new_public_key()
        active = Generation(1, State.ACTIVE, "00", AT, AT, **public)
        key = Key("default", "work", "ES256", AT, generations=(active,))
        records = Ledger(Keys([key]))
        proofs = proofs_of(records)
        choice = proofs._choice((None, None, False, TARGETS[0], "GET"))
        assert proofs.require_still_signing(choice) is State.ACTIVE
        records.keys = Keys([key.with_(replace(active, state=State.DRAINING))])
        assert proofs.require_still_signing(choice) is State.DRAINING
        records.keys = Keys([key.with_(replace(active, state=State.COMPROMISED))])
        with pytest.raises(KeyUnusable):
            proofs.require_still_signing(choice)
        with pytest.raises(KeyUnusable):
            proofs._choice((None, None, False, TARGETS[0], "GET"))

    asyncio.run(story())


@pytest.mark.parametrize(
    ("becomes", "refused"),
    [
        (lambda keys: keys.with_(replace(keys["default"], policy_lost=True)), PolicyRefused),
        (lambda keys: with_rules(keys, origins=("https://b",)), PolicyRefused),
        (lambda keys: with_rules(keys, methods=("PUT",)), PolicyRefused),
        (lambda keys: with_rules(keys, paths=("/v2",)), PolicyRefused),
        (lambda keys: with_rules(keys, require_ath=True), PolicyRefused),
        (lambda keys: with_rules(keys, confirm_s=900), ConsentRefused),
        (lambda keys: destroyed(keys), KeyUnusable),
        (lambda keys: destroyed(keys).forget("default"), KeyUnusable),
        (lambda keys: Keys([replace(keys["default"], name="shop")]), KeyUnusable),
        (lambda keys: Keys([]), KeyUnusable),
    ],
    ids=[
        *("policy lost", "other origins", "other methods", "other paths", "access tokens alone"),
        *("consent", "destroyed", "forgotten", "another's", "gone"),
    ],
)
def test_a_proof_that_waits_is_refused_where_its_key_is_for_it_no_more(
    becomes: Callable[[Keys], Keys], refused: type[DPoPAgentError]
) -> None:
    async def story() -> None:
        active = Generation(1, State.ACTIVE, "00", AT, AT, **new_public_key())
        records = Ledger(Keys([Key("default", "work", "ES256", AT, generations=(active,))]))
        proofs = proofs_of(records)
        choice = proofs._choice((None, None, False, TARGETS[0], "GET"))
        records.keys = becomes(records.keys)
        with pytest.raises(refused):
            proofs.require_still_signing(choice)

    asyncio.run(story())


def test_a_clients_own_proof_that_waits_is_refused_once_its_key_signs_none() -> None:
    async def story() -> None:
        active = Generation(1, State.ACTIVE, "00", AT, AT, **new_public_key())
        key = Key("default", "work", "ES256", AT, generations=(active,), allow_sign_proof=True)
        records = Ledger(Keys([key]))
        proofs = proofs_of(records)
        where = target(TARGETS[0])
        choice = Choice(
            *(records.keys, Signatory(key, active), where, "GET"),
            presents_access_token=False,
            built_by_client=True,
        )
        records.keys = Keys([replace(key, drain_s=7)])
        assert proofs.require_still_signing(choice) is State.ACTIVE
        records.keys = Keys([replace(key, allow_sign_proof=False)])
        with pytest.raises(PolicyRefused):
            proofs.require_still_signing(choice)

    asyncio.run(story())


def with_rules(keys: Keys, **rules: Any) -> Keys:
    key = keys["default"]
    return keys.with_(replace(key, rules=replace(key.rules, **rules)))


def destroyed(keys: Keys) -> Keys:
    (generation,) = keys["default"].generations
    gone = generation.become(State.COMPROMISED, AT).become(State.DESTROYED, AT)
    return keys.with_(keys["default"].with_(gone.buried()))


def test_no_more_choices_are_kept_than_their_limit() -> None:
    async def story() -> None:
        active = Generation(1, State.ACTIVE, "00", AT, AT, **new_public_key())
        keys = Keys([Key("default", "work", "ES256", AT, generations=(active,))])
        proofs = proofs_of(Ledger(keys))
        for number in range(3 * MAX_CHOICES):
            proofs._choice((None, None, False, f"https://a.example/{number}", "GET"))
            assert len(proofs._choices) <= MAX_CHOICES

    asyncio.run(story())


@pytest.mark.parametrize("request_id", [0, -1, 2**53 - 1, "", 'a"\\', "ä\n", "x" * 64])
def test_a_result_that_is_json_already_makes_the_line_that_encoding_it_makes(
    request_id: str | int,
) -> None:
    result = {"proof": "e30.e30.sig", "nonce": None}
    made = encode_made(request_id, json.dumps(result, separators=(",", ":")).encode())
    assert made == encode_result(request_id, result)


@pytest.mark.row(16)
def test_each_jti_is_asked_of_the_operating_system_and_none_is_kept_ahead(
    monkeypatch: pytest.MonkeyPatch, reached: Reached
) -> None:
    """What is kept ahead, a fork would give out twice."""
    read, given = os.urandom, list[bytes]()

    def noted(size: int) -> bytes:
        given.append(read(size))
        return given[-1]

    with AgentInProcess() as agent, AgentClient(agent.socket) as client:
        with AgentClient(agent.admin_socket) as admin:
            admin.call("key.create", {"key": "default", "origins": []})
        client.proof("GET", TARGETS[0])
        monkeypatch.setattr(os, "urandom", noted)
        for _ in range(50):
            before = len(given)
            claims = str(client.proof("GET", TARGETS[0])).split(".")[1]
            (asked,) = given[before:]
            assert json.loads(b64url_decode(claims))["jti"] == b64url(asked)
            assert len(asked) == 16
            reached("bytes that the operating system is asked for, for each proof", len(asked))

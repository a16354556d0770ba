"""`kill -9` at any instant: no key is lost, none is on the PKCS#11 token that the ledger lacks."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.agent.places import store, until, until_open
from tests.agent.wire import Wire, request
from tests.bench.bars import RECOVERED
from tests.processes import Agent, Token
from tests.state_folder import changed
from tests.stores import on_token
from tests.timing import Measured

INSTANTS = 30
LONGEST_STEP_S = 0.04
STRANGER_ID = "00112233445566778899aabbccddeeff"
TARGET = {"htm": "GET", "htu": "https://api.example.com/"}


def ledger(agent: Agent) -> list[dict[str, Any]]:
    """Every generation in the ledger, each with its key's `name`."""
    document = json.loads((agent.state / "ledger.json").read_text())
    return [g | {"name": key["name"]} for key in document["keys"] for g in key["generations"]]


def holds(token: Token, count: int) -> bool:
    """Whether so many objects are on a SoftHSM token: by its files, which is quick.

    Or by listing them: a file that a signer was killed over in the middle, as one is that still
    generates some time after its agent's death, can't be read by anybody and is no object.
    """
    files = (token.folder / "tokens").glob("*/*.object")
    return (
        sum(file.name != "token.object" for file in files) == count
        or len(on_token.objects(token)) == count
    )


def settled(agent: Agent, token: Token, strangers: int) -> bool:
    """Whether nothing is half done, and what is on the PKCS#11 token is what the ledger has."""
    found = ledger(agent)
    live = [g for g in found if g["state"] == "active"]
    return (
        store(agent)["state"] == "ready"
        and len(live) == sum(g["state"] != "destroyed" for g in found)
        and not any(g["object_left"] for g in found)
        and holds(token, 2 * len(live) + strangers)
    )


def test_no_instant_of_a_kill_loses_a_key_or_leaves_one_that_isnt_listed(
    make_agent: Callable[..., Agent], token: Token, measured: Measured
) -> None:
    chance = random.Random(7638)
    on_token.make_stranger(token, key_id=STRANGER_ID)
    agent = make_agent(token.config).start()
    agent.create_key("default")
    live: dict[str, str] = {}
    for n in range(INSTANTS):
        if n % 3 == 2 and live:
            method, params = "key.destroy", {"key": min(live), "generation": 1}
        else:
            alg = chance.choice(["ES256", "ES256", "Ed25519", "RS256"])
            method, params = "key.create", {"key": f"k-{n:03}", "origins": [], "alg": alg}
        asked = params | {"request_id": f"request-{n}"}
        with Wire(agent.admin_socket) as admin:
            admin.send(request(method, asked))
            time.sleep(chance.uniform(0, LONGEST_STEP_S))
            agent.kill()
            answer = admin.line()
        agent.start()
        with measured(RECOVERED):
            until(lambda: settled(agent, token, strangers=2))

        with Wire(agent.admin_socket) as admin:
            for name, jkt in live.items():
                if (method, name) != ("key.destroy", params["key"]):
                    assert admin.result("proof", **TARGET, key=name)["jkt"] == jkt
            if answer is not None:
                assert "result" in answer, answer
                (told,) = answer["result"]["keys"][0]["generations"]
                (kept,) = [g for g in ledger(agent) if g["name"] == params["key"]]
                assert (kept["state"], kept["jkt"]) == (told["state"], told["jkt"])
            # Whoever lost the answer asks again, and gets what was asked for, once.
            (key,) = admin.result(method, **asked)["keys"]
            (generation,) = key["generations"]
        if method == "key.create":
            assert generation["state"] == "active"
            live[key["key"]] = generation["jkt"]
        else:
            assert generation["state"] == "destroyed"
            assert live.pop(key["key"]) == generation["jkt"]
        assert settled(agent, token, strangers=2)
    refs = [g["ref"] for g in ledger(agent) if g["state"] == "active"]
    assert on_token.private_ids(token) == sorted([*refs, STRANGER_ID])
    assert len(live) + 1 == len(refs)


@pytest.mark.parametrize("wait_s", [0.0, 0.02, 0.1])
def test_an_agent_killed_while_its_signer_generates_finishes_or_undoes_it(
    make_agent: Callable[..., Agent], token: Token, wait_s: float
) -> None:
    agent = make_agent(token.config).start()
    until_open(agent)
    asked = {"key": "slow", "origins": [], "alg": "RS256", "request_id": "create-slow"}
    with Wire(agent.admin_socket) as admin:
        admin.send(request("key.create", asked))
        until(lambda: '"pending"' in (agent.state / "ledger.json").read_text())
        time.sleep(wait_s)
        agent.kill()
    agent.start()
    until(lambda: settled(agent, token, strangers=0))
    with Wire(agent.admin_socket) as admin:
        (key,) = admin.result("key.create", **asked)["keys"]
        assert [g["state"] for g in key["generations"]] == ["active"]
    assert on_token.private_ids(token) == [g["ref"] for g in ledger(agent)]


def test_what_the_ledger_has_no_jkt_for_is_never_deleted(
    make_agent: Callable[..., Agent], token: Token
) -> None:
    """An intent whose id somebody else's object has: it is finished or left, not destroyed."""
    agent = make_agent(token.config).start()
    agent.create_key("default")
    agent.kill()
    on_token.make_stranger(token, key_id=STRANGER_ID)
    with changed(agent.state / "ledger.json") as document:
        (key,) = document["keys"]
        intent = key["generations"][0] | {"state": "pending", "jkt": "", "jwk": {}}
        intent["ref"] = "ff" * 16
        document["keys"].append(key | {"name": "half", "generations": [intent]})
    agent.start()
    until(lambda: settled(agent, token, strangers=2))
    assert [g["name"] for g in ledger(agent)] == ["default"]
    assert STRANGER_ID in on_token.private_ids(token)

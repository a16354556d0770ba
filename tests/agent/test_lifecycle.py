"""Keys from their making to their end, on the PKCS#11 token and in the ledger."""

from __future__ import annotations

import json
import os
import secrets
import signal
import stat
import time
from collections.abc import Callable
from typing import Any

import pytest

from dpop_agent.jose import ALGORITHMS
from tests.agent.places import store, until, until_open, write_config
from tests.agent.wire import Wire, request
from tests.processes import Agent, Token, running
from tests.state_folder import changed, new_public_key
from tests.stores import on_token

TARGET = {"htm": "GET", "htu": "https://api.example.com/"}
KEY_ID = "00112233445566778899aabbccddeeff"


@pytest.fixture
def agent(make_agent: Callable[..., Agent], token: Token) -> Agent:
    """A running agent with its store open; its PKCS#11 token is `token`."""
    agent = make_agent(token.config).start()
    until_open(agent)  # two processes that initialise SoftHSM at once can miss a PKCS#11 token
    return agent


def generations(agent: Agent, **which: Any) -> list[dict[str, Any]]:
    with Wire(agent.socket) as wire:
        keys = wire.result("key.list", **which)["keys"]
    return [generation for key in keys for generation in key["generations"]]


def refs(agent: Agent, *, live: bool = True) -> list[str]:
    """The refs of the ledger's generations, sorted."""
    ledger = json.loads((agent.state / "ledger.json").read_text())
    return sorted(
        generation["ref"]
        for key in ledger["keys"]
        for generation in key["generations"]
        if not live or generation["state"] != "destroyed"
    )


def is_being_made(agent: Agent) -> bool:
    """Whether the ledger has an intent."""
    try:
        return '"pending"' in (agent.state / "ledger.json").read_text()
    except FileNotFoundError:
        return False


def object_files(token: Token) -> dict[str, bytes]:
    """SoftHSM's files, one for each object, by name."""
    return {
        file.name: file.read_bytes()
        for file in (token.folder / "tokens").glob("*/*.object")
        if file.name != "token.object"
    }


# What is on the PKCS#11 token


def test_every_key_is_one_pair_that_signs_and_can_never_leave_the_token(
    agent: Agent, token: Token
) -> None:
    for alg in ALGORITHMS:
        agent.create_key(alg.lower(), alg=alg)
    found = on_token.objects(token)
    assert len(found) == 2 * len(ALGORITHMS)
    private = {o["label"]: o for o in found if o["class"] == "PRIVATE_KEY"}
    public = {o["label"]: o for o in found if o["class"] == "PUBLIC_KEY"}
    labels = {f"dpop-agent {alg.lower()}@1" for alg in ALGORITHMS}
    assert private.keys() == public.keys() == labels
    for label, key in private.items():
        assert key["SENSITIVE"] is True
        assert key["EXTRACTABLE"] is False
        assert key["ALWAYS_SENSITIVE"] is True
        assert key["NEVER_EXTRACTABLE"] is True
        assert key["LOCAL"] is True
        assert key["TOKEN"] is True
        assert key["uses"] == ["SIGN"]
        assert len(bytes.fromhex(key["id"])) == 16
        assert key["id"] == public[label]["id"]
    assert sorted(key["id"] for key in private.values()) == refs(agent)


def test_no_two_keys_have_the_same_id(agent: Agent, token: Token) -> None:
    for name in ("a", "b", "c"):
        agent.create_key(name)
    assert len(set(refs(agent))) == 3
    assert on_token.private_ids(token) == refs(agent)


def test_destroying_a_key_deletes_its_pair_and_nothing_else(agent: Agent, token: Token) -> None:
    kept, gone = agent.create_key("kept"), agent.create_key("gone")
    on_token.make_stranger(token, key_id=KEY_ID)
    with Wire(agent.admin_socket) as admin:
        admin.result("key.destroy", key="gone", generation=1)
        assert admin.error("proof", **TARGET, key="gone")["type"] == "no_active"
        assert admin.error("proof", **TARGET, jkt=gone["jkt"])["type"] == "key_destroyed"
        assert admin.result("proof", **TARGET, key="kept")["jkt"] == kept["jkt"]
    assert on_token.private_ids(token) == sorted([*refs(agent), KEY_ID])
    assert len(on_token.objects(token)) == 4


def test_a_destroyed_generation_stays_known_and_is_listed_on_request(agent: Agent) -> None:
    made = agent.create_key("shop")
    with Wire(agent.admin_socket) as admin:
        (answered,) = admin.result("key.destroy", key="shop", generation=1)["keys"]
        (generation,) = answered["generations"]
        assert (generation["state"], generation["jkt"]) == ("destroyed", made["jkt"])
        (listed,) = admin.result("key.list")["keys"]  # its name is taken
        assert [g["state"] for g in listed["generations"]] == ["destroyed"]
        error = admin.error("key.destroy", key="shop", generation=1)
        assert (error["type"], error["retry"]) == ("illegal_transition", "no")
        assert admin.error("key.create", key="shop", origins=[])["type"] == "key_exists"
    agent.stop()
    agent.start()
    (listed,) = generations(agent, include_destroyed=True)
    assert (listed["state"], listed["jkt"]) == ("destroyed", made["jkt"])
    with Wire(agent.socket) as wire:
        assert wire.error("proof", **TARGET, jkt=made["jkt"])["type"] == "key_destroyed"


def test_a_forgotten_key_leaves_nothing_on_the_token_and_its_jkt_known(
    agent: Agent, token: Token
) -> None:
    made = agent.create_key("shop")
    with Wire(agent.admin_socket) as admin:
        assert admin.error("key.forget", key="shop")["type"] == "illegal_transition"
        admin.result("key.destroy", key="shop", generation=1)
        assert admin.result("key.forget", key="shop") == {"keys": []}
        assert admin.result("key.list", include_destroyed=True) == {"keys": []}
        assert admin.error("key.forget", key="shop")["type"] == "key_unknown"
    assert on_token.private_ids(token) == []
    agent.stop()
    agent.start()
    with Wire(agent.admin_socket) as admin:
        assert admin.error("proof", **TARGET, jkt=made["jkt"])["type"] == "key_destroyed"
        until_open(agent)
        (key,) = admin.result("key.create", key="shop", origins=[])["keys"]
        assert admin.result("proof", **TARGET, key="shop")["jkt"] != made["jkt"]
    assert [g["generation"] for g in key["generations"]] == [1]


def test_somebody_elses_objects_are_never_touched(agent: Agent, token: Token) -> None:
    on_token.make_stranger(token, key_id=KEY_ID)
    on_token.make_stranger(token, key_id="", label="dpop-agent shop@1")
    before = object_files(token)
    assert len(before) == 4
    agent.create_key("shop")
    agent.kill()
    agent.start()
    with Wire(agent.admin_socket) as admin:
        assert admin.result("proof", **TARGET, key="shop")["state"] == "active"
        admin.result("key.destroy", key="shop", generation=1)
    assert object_files(token) == before


def test_an_object_with_the_same_id_stops_that_key_alone_and_neither_is_touched(
    agent: Agent, token: Token
) -> None:
    agent.create_key("shop")
    (ref,) = refs(agent)
    agent.create_key("other")
    on_token.make_stranger(token, key_id=ref)
    before = object_files(token)
    agent.stop()
    agent.start()
    signer = until_open(agent)["signer_pid"]
    with Wire(agent.admin_socket) as admin:
        for _ in range(5):
            error = admin.error("proof", **TARGET, key="shop")
            assert error["type"] == "signer_failed"
            assert "2 private and 2 public keys" in error["message"]
            assert admin.result("proof", **TARGET, key="other")["key"] == "other"
        assert admin.error("key.destroy", key="shop", generation=1)["type"] == "signer_failed"
        assert object_files(token) == before
        assert store(agent)["signer_pid"] == signer
        on_token.delete(token, ref, label="somebody else's")
        assert admin.result("proof", **TARGET, key="shop")["key"] == "shop"


def test_another_key_under_the_same_id_never_signs(agent: Agent, token: Token) -> None:
    made = agent.create_key("shop")
    (ref,) = refs(agent)
    agent.stop()
    on_token.delete(token, ref)
    on_token.make_stranger(token, key_id=ref)
    before = object_files(token)
    agent.start()
    with Wire(agent.admin_socket) as admin:
        for how in ({"key": "shop"}, {"jkt": made["jkt"]}):
            assert admin.error("proof", **TARGET, **how)["type"] == "key_missing"
        admin.ask("key.destroy", key="shop", generation=1)
    assert object_files(token) == before


# Missing


def test_a_deleted_object_is_missing_and_its_generation_is_never_forgotten(
    agent: Agent, token: Token
) -> None:
    made, other = agent.create_key("shop"), agent.create_key("other")
    (files,) = {tuple(object_files(token).items())}
    with Wire(agent.socket) as wire:
        assert wire.result("proof", **TARGET, key="shop")["jkt"] == made["jkt"]
        (ref,) = set(refs(agent)) - {_ref_of(agent, "other")}
        on_token.delete(token, ref)
        for _ in range(2):
            error = wire.error("proof", **TARGET, key="shop")
            assert (error["type"], error["retry"]) == ("key_missing", "no")
            assert error["hint"]
        assert wire.result("proof", **TARGET, key="other")["jkt"] == other["jkt"]
        (listed,) = generations(agent, key="shop")
        assert (listed["missing"], listed["state"], listed["jkt"]) == (True, "active", made["jkt"])
        (listed,) = generations(agent, key="other")
        assert listed["missing"] is False

    agent.stop()
    agent.start()
    until(lambda: generations(agent, key="shop")[0]["missing"])
    assert f"jkt {made['jkt']}" in agent.log.read_text()

    agent.stop()
    _put_back(token, dict(files))
    agent.start()
    with Wire(agent.socket) as wire:
        assert wire.result("proof", **TARGET, key="shop")["jkt"] == made["jkt"]
    until(lambda: not generations(agent, key="shop")[0]["missing"])


def test_an_object_that_comes_back_signs_again_without_a_restart(
    agent: Agent, token: Token
) -> None:
    made = agent.create_key("shop")
    files = object_files(token)
    on_token.delete(token, refs(agent)[0])
    with Wire(agent.socket) as wire:
        assert wire.error("proof", **TARGET, key="shop")["type"] == "key_missing"
        _put_back(token, files)
        until(lambda: "result" in wire.ask("proof", **TARGET, key="shop"))
        assert wire.result("proof", **TARGET, key="shop")["jkt"] == made["jkt"]
    until(lambda: not generations(agent)[0]["missing"])


def _ref_of(agent: Agent, name: str) -> str:
    ledger = json.loads((agent.state / "ledger.json").read_text())
    (key,) = [key for key in ledger["keys"] if key["name"] == name]
    ref: str = key["generations"][0]["ref"]
    return ref


def _put_back(token: Token, files: dict[str, bytes]) -> None:
    (folder,) = (token.folder / "tokens").iterdir()
    for name, data in files.items():
        if not (folder / name).exists():
            (folder / name).write_bytes(data)
    # SoftHSM looks at its folder again when this counter changes.
    counter = folder / "generation"
    number = int.from_bytes(counter.read_bytes(), "big") + 1
    counter.write_bytes(number.to_bytes(8, "big"))


# Asking again


@pytest.mark.parametrize(
    ("method", "params", "other"),
    [
        ("key.create", {"key": "new", "origins": []}, {"key": "new", "alg": "ES384"}),
        (
            "key.create",
            {"key": "new", "origins": [], "alg": "ES384"},
            {"key": "newer", "alg": "ES384"},
        ),
        ("key.destroy", {"key": "old", "generation": 1}, {"key": "older", "generation": 1}),
        ("key.set", {"key": "old", "origins": ["https://a.example"]}, {"key": "old"}),
    ],
)
def test_a_request_id_gives_the_same_answer_again_even_after_a_restart(
    agent: Agent, token: Token, method: str, params: dict[str, Any], other: dict[str, Any]
) -> None:
    agent.create_key("old")
    agent.create_key("older")
    with Wire(agent.admin_socket) as admin:
        first = admin.result(method, **params, request_id="request-1")
        assert admin.result(method, **params, request_id="request-1") == first
        objects = on_token.private_ids(token)
        agent.kill()
        agent.start()
    with Wire(agent.admin_socket) as admin:
        until_open(agent)
        assert admin.result(method, **params, request_id="request-1") == first
        error = admin.error(method, **other, request_id="request-1")
        assert (error["type"], error["retry"]) == ("request_id_reused", "no")
        error = admin.error("key.create", key="third", origins=[], request_id="request-1")
        assert error["type"] == "request_id_reused"
        assert generations(agent, key="older")[0]["state"] == "active"
    assert on_token.private_ids(token) == objects


def test_a_client_that_lost_the_answer_asks_again_and_nothing_happens_twice(
    agent: Agent, token: Token
) -> None:
    asked = {"key": "shop", "origins": [], "request_id": "create-shop-1"}
    with Wire(agent.admin_socket) as going:
        going.send(request("key.create", asked))
    with Wire(agent.admin_socket) as admin:
        (key,) = admin.result("key.create", **asked)["keys"]
    assert [g["state"] for g in key["generations"]] == ["active"]
    assert on_token.private_ids(token) == refs(agent)
    assert len(refs(agent)) == 1


def test_one_name_asked_for_at_once_by_many_becomes_one_key(agent: Agent, token: Token) -> None:
    wires = [Wire(agent.admin_socket) for _ in range(8)]
    for wire in wires:
        wire.send(request("key.create", {"key": "shop", "origins": []}))
    answers = [wire.next() for wire in wires]
    for wire in wires:
        wire.close()
    assert sum("result" in answer for answer in answers) == 1
    assert {a["error"]["data"]["type"] for a in answers if "error" in a} == {"key_exists"}
    assert on_token.private_ids(token) == refs(agent)


def test_a_generation_that_is_being_made_gives_no_proof_and_is_listed_as_pending(
    agent: Agent,
) -> None:
    until_open(agent)
    with Wire(agent.socket) as wire, Wire(agent.admin_socket) as admin:
        admin.send(request("key.create", {"key": "slow", "origins": [], "alg": "RS256"}))
        until(lambda: wire.result("key.list")["keys"])
        pid = store(agent)["signer_pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            (key,) = wire.result("key.list")["keys"]
            if key["generations"][0]["state"] == "pending":
                assert (key["generations"][0]["jkt"], key["generations"][0]["jwk"]) == (None, {})
                assert wire.error("proof", **TARGET, key="slow")["type"] in (
                    "no_active",
                    "key_pending",
                )
        finally:
            os.kill(pid, signal.SIGCONT)
        assert "result" in admin.next()
        assert wire.result("proof", **TARGET, key="slow")["state"] == "active"


# Signers that end


def test_a_killed_signer_is_replaced_before_anybody_notices(agent: Agent) -> None:
    made = agent.create_key("default")
    pid = agent.pid
    for _ in range(2):
        signer = until_open(agent)["signer_pid"]
        os.kill(signer, signal.SIGKILL)
        until(lambda pid=signer: not running(pid))  # type: ignore[misc]
        with Wire(agent.socket) as wire:
            result = wire.result("proof", **TARGET)
            assert result["jkt"] == made["jkt"]
            status = wire.result("status")
        assert status["pid"] == pid
        assert status["stores"][0]["signer_pid"] != signer
        time.sleep(0.3)  # longer than the first back-off: this is about one death at a time


def test_requests_in_flight_survive_the_signers_death(agent: Agent) -> None:
    agent.create_key("default")
    signer = store(agent)["signer_pid"]
    with Wire(agent.socket) as wire:
        os.kill(signer, signal.SIGSTOP)
        wire.send(b"".join(request("proof", TARGET, number=n) for n in range(40)))
        wire.send(request("status", number="sent"))
        assert wire.next()["id"] == "sent"
        os.kill(signer, signal.SIGKILL)
        answers = wire.lines(40)
    assert sorted(a["id"] for a in answers) == list(range(40))
    assert all("result" in a for a in answers)
    assert len({a["result"]["proof"] for a in answers}) == 40


def test_a_signer_that_dies_all_the_time_is_an_error_and_never_the_agents_end(
    agent: Agent,
) -> None:
    made = agent.create_key("default")
    deadline = time.monotonic() + 1.5
    kinds = set()
    with Wire(agent.socket) as wire:
        while time.monotonic() < deadline:
            signer = store(agent)["signer_pid"]
            if signer is not None:
                os.kill(signer, signal.SIGKILL)
            answer = wire.ask("proof", **TARGET)
            kinds.add(answer["error"]["data"]["type"] if "error" in answer else "proof")
            time.sleep(0.02)
        assert kinds <= {"proof", "signer_failed"}
        until(lambda: "result" in wire.ask("proof", **TARGET))
        assert wire.result("proof", **TARGET)["jkt"] == made["jkt"]
        assert wire.result("status")["pid"] == agent.pid


# A ledger that can't be written


def test_a_ledger_that_cant_be_written_stops_changes_and_not_proofs(
    agent: Agent, token: Token
) -> None:
    made = agent.create_key("default")
    objects = on_token.private_ids(token)
    ledger = agent.state / "ledger.json"
    before = ledger.read_bytes()
    in_the_way = agent.state / "ledger.json.new"
    in_the_way.mkdir()
    with Wire(agent.socket) as wire, Wire(agent.admin_socket) as admin:
        for method, params in (
            ("key.create", {"key": "shop", "origins": []}),
            ("key.set", {"key": "default", "origins": ["https://other.example"]}),
            ("key.destroy", {"key": "default", "generation": 1}),
        ):
            error = admin.error(method, **params)
            assert (error["type"], error["retry"]) == ("not_durable", "later")
            assert str(ledger) in error["message"]
        assert ledger.read_bytes() == before
        assert wire.result("proof", **TARGET)["jkt"] == made["jkt"]
        assert on_token.private_ids(token) == objects
        in_the_way.rmdir()
        assert "keys" in admin.result("key.create", key="shop", origins=[])
        assert wire.result("proof", **TARGET)["jkt"] == made["jkt"]
    assert on_token.private_ids(token) == refs(agent)


def test_a_key_whose_making_couldnt_be_recorded_is_finished_when_it_is_asked_for_again(
    agent: Agent, token: Token
) -> None:
    until_open(agent)
    asked = {"key": "shop", "origins": [], "alg": "RS256", "request_id": "create-shop-1"}
    in_the_way = agent.state / "ledger.json.new"
    with Wire(agent.admin_socket) as admin:
        admin.send(request("key.create", asked))
        # The intent is there; RSA gives the time to be in the way of the rest.
        until(lambda: is_being_made(agent))
        in_the_way.mkdir()
        answer = admin.next()
        in_the_way.rmdir()
        if "error" in answer:
            assert answer["error"]["data"]["type"] == "not_durable"
        (key,) = admin.result("key.create", **asked)["keys"]
        assert [g["state"] for g in key["generations"]] == ["active"]
    assert on_token.private_ids(token) == refs(agent)
    assert len(refs(agent)) == 1


# The ledger's file


def test_what_a_key_is_is_the_same_after_a_restart(agent: Agent, token: Token) -> None:
    agent.create_key("default", origins=["https://api.example.com"], allow_sign_proof=True)
    agent.create_key("ed", alg="Ed25519")
    with Wire(agent.socket) as wire:
        wire.result("proof", **TARGET)
        before = wire.result("key.list")
        assert before["keys"][0]["generations"][0]["last_used"] is not None
    assert agent.stop() == 0
    agent.start()
    until_open(agent)
    with Wire(agent.socket) as wire:
        assert wire.result("key.list") == before
    mode = (agent.state / "ledger.json").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    assert token.pin not in (agent.state / "ledger.json").read_text()


def test_key_list_comes_in_pages_that_fit_a_line(agent: Agent) -> None:
    template = agent.create_key("k-000")
    agent.stop()
    with changed(agent.state / "ledger.json") as document:
        (key,) = document["keys"]
        for n in range(1, 150):
            other = key["generations"][0] | {"ref": secrets.token_hex(16)} | new_public_key()
            document["keys"].append(dict(key, name=f"k-{n:03}", generations=[other]))
    agent.start()
    names: list[str] = []
    pages, cursor = 0, dict[str, str]()
    with Wire(agent.socket) as wire:
        while True:
            page = wire.result("key.list", **cursor)
            names += [k["key"] for k in page["keys"]]
            pages += 1
            if "cursor" not in page:
                break
            cursor = {"cursor": page["cursor"]}
    assert pages > 1
    assert names == [f"k-{n:03}" for n in range(150)]
    assert len(agent.client().keys()) == 150
    assert agent.client().generation("k-000").jkt == template["jkt"]


def test_a_changed_store_keeps_its_keys(agent: Agent, token: Token) -> None:
    made = agent.create_key("default")
    write_config(token, uri=f"pkcs11:token={token.label};model=SoftHSM%20v2")
    before = store(agent)["signer_pid"]
    with Wire(agent.admin_socket) as admin:
        (told,) = admin.result("reload")["stores"]
        assert told["state"] == "ready"
        assert told["signer_pid"] != before
        assert admin.result("proof", **TARGET)["jkt"] == made["jkt"]

"""Filtered sockets of an agent that runs: what they give, what they don't, how they come and go."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.agent.sockets import MAX_SOCKETS
from dpop_agent.client import AgentClient
from dpop_agent.errors import AgentUnavailable
from tests.agent.places import until, until_logged, until_open
from tests.agent.test_rules import Person, asked_for, claims_of
from tests.agent.wire import Wire, refusal, request
from tests.processes import Agent, Token, new_token, running

MakeAgent = Callable[..., Agent]

API, SHOP = "https://api.example.com", "https://shop.example.com"
OTHER_JKT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent with two keys."""
    folder = tmp_path_factory.mktemp("sockets")
    agent = Agent(new_token(folder / "token").config, folder / "state")
    with agent.serving("other"):
        agent.create_key("shop", origins=[API, SHOP], methods=["GET", "POST"])
        yield agent


@pytest.fixture
def admin(agent: Agent) -> Iterator[Wire]:
    """Its owner's connection; what was added on it is gone with it."""
    with Wire(agent.admin_socket) as wire:
        yield wire
    until(lambda: not agent.admin().call("socket.list", {})["sockets"])


def path_of(agent: Agent, name: str) -> str:
    return str(agent.runtime / "sockets" / name / "agent.sock")


def add(admin: Wire, name: str = "ci", **rules: Any) -> Wire:
    """A connection to a new socket that is gone with the owner's."""
    params = {"keys": ["shop"], **rules}
    (added,) = admin.result("socket.add", socket=name, with_connection=True, **params)["sockets"]
    return Wire(added["path"])


def names(agent: Agent) -> list[str]:
    return [found["socket"] for found in agent.admin().call("socket.list", {})["sockets"]]


def proof(wire: Wire, htu: str = f"{API}/", **params: Any) -> dict[str, Any]:
    return wire.ask("proof", **{"key": "shop", "htm": "GET", "htu": htu, **params})


# What it gives


def test_it_gives_proofs_that_the_key_and_the_socket_allow_both(admin: Wire) -> None:
    with add(admin, origins=[API], methods=["GET"], paths=["/v1"]) as wire:
        assert proof(wire, f"{API}/v1/me")["result"]["key"] == "shop"
        for params, rule in (
            ({"htu": f"{SHOP}/v1"}, "origins"),
            ({"htu": f"{API}/v1", "htm": "POST"}, "methods"),
            ({"htu": f"{API}/v2"}, "paths"),
        ):
            error = refusal(proof(wire, **params))
            assert (error["type"], error["rule"]) == ("policy_refused", rule)
            assert SHOP not in error["message"].partition(", only ")[2]
            assert "key set" not in error["hint"], "which wouldn't help, and isn't there to know"


def test_a_rule_that_the_key_gets_later_holds_on_its_sockets_at_once(
    agent: Agent, admin: Wire
) -> None:
    agent.create_key("later")
    with add(admin, keys=["later"]) as wire:
        assert "result" in proof(wire, key="later")
        admin.result("key.set", key="later", origins=[SHOP])
        assert refusal(proof(wire, key="later"))["rule"] == "origins"
        admin.result("key.set", key="later", origins=[])
        assert "result" in proof(wire, key="later")
        admin.result("key.compromise", key="later")
        assert refusal(proof(wire, key="later"))["type"] == "no_active"
        (shown,) = admin.result("socket.list", socket="ci")["sockets"]
        assert shown["unusable"] == {"later": "no generation of it signs: later@1 is compromised"}


def test_where_the_keys_rules_leave_nothing_of_the_socket_the_key_isnt_there(
    agent: Agent, admin: Wire
) -> None:
    agent.create_key("narrowed")
    with add(admin, keys=["narrowed"], origins=[API]) as wire:
        admin.result("key.set", key="narrowed", origins=[SHOP])
        unknown = refusal(proof(wire, key="narrowed"))
        assert unknown["type"] == "key_unknown"
        assert "key create" not in unknown["hint"], "nothing here makes keys"
        (shown,) = admin.result("socket.list", socket="ci")["sockets"]
    why = "its origins and the socket's have nothing in common"
    assert shown["unusable"] == {"narrowed": why}


def test_a_name_and_a_jkt_that_arent_its_own_are_told_from_none_that_there_is(
    agent: Agent, admin: Wire
) -> None:
    with Wire(agent.socket) as whole:
        (other,) = whole.result("key.list", key="other")["keys"]
    jkt = other["generations"][0]["jkt"]
    with add(admin) as wire:
        for ours, nobodys in (
            ({"key": "other"}, {"key": "nosuch"}),
            ({"key": "shop", "jkt": jkt}, {"key": "shop", "jkt": OTHER_JKT}),
        ):
            answers = [json.dumps(proof(wire, **params)) for params in (ours, nobodys)]
            words = [
                (answer.replace("other", "nosuch").replace(jkt, OTHER_JKT)) for answer in answers
            ]
            assert refusal(json.loads(words[0])) == refusal(json.loads(words[1])), words
        assert wire.error("key.list", key="other")["type"] == "key_unknown"
        (listed,) = wire.result("key.list", include_destroyed=True)["keys"]
        assert listed["key"] == "shop"


def test_what_others_did_with_its_key_isnt_shown_and_what_it_did_is(
    agent: Agent, admin: Wire
) -> None:
    with Wire(agent.socket) as whole, add(admin, origins=[API]) as wire:
        assert "result" in proof(whole, f"{SHOP}/")

        def shown() -> dict[str, Any]:
            (listed,) = wire.result("key.list")["keys"]
            assert listed["origins"] == [API]
            found: dict[str, Any] = listed["generations"][0]
            return found

        assert (shown()["last_used"], shown()["origins_used"]) == (None, {})
        assert "result" in proof(wire)
        assert list(shown()["origins_used"]) == [API]
        (whole_listed,) = whole.result("key.list", key="shop")["keys"]
        assert {API, SHOP} <= whole_listed["generations"][0]["origins_used"].keys()


def test_its_status_tells_whether_its_keys_can_sign_and_nothing_else(
    agent: Agent, admin: Wire
) -> None:
    with add(admin) as wire:
        status = wire.result("status", look=True)
        assert status.keys() == {
            *("agent", "protocol", "pid", "started", "proofs", "stores", "rotations_due"),
            *("destroyed", "origins", "origins_count"),
        }
        assert status["stores"] == [
            {"store": "softhsm", "state": "ready", "reason": None, "hint": None}
        ]
        assert status["proofs"] == 0
        assert "result" in proof(wire)
        assert wire.result("status")["proofs"] == 1
        with Wire(agent.socket) as whole:
            assert whole.result("status")["sockets"] == ["ci"]
    counted = admin.result("status")["proofs"]
    admin.result("socket.remove", socket="ci")
    assert admin.result("status")["proofs"] == counted, "what a socket gave stays counted"


@pytest.mark.parametrize(
    ("setting", "other", "state"),
    [
        ("pin_source", "file:/nowhere/of-mine/pin", "locked"),
        ("module", "/nowhere/of-mine/module.so", "absent"),
        ("uri", "pkcs11:token=of-mine", "absent"),
    ],
)
def test_where_a_store_is_and_what_it_says_isnt_told_there_and_is_in_the_log(
    make_agent: MakeAgent, token: Token, setting: str, other: str, state: str
) -> None:
    agent = make_agent(token.config)
    with (
        agent.serving("shop"),
        Wire(agent.admin_socket) as admin,
        add(admin) as wire,
        Wire(agent.socket) as whole,
    ):
        text = token.config.read_text()
        token.config.write_text(re.sub(rf'\n{setting} = ".*"', f'\n{setting} = "{other}"', text))
        admin.ask("reload")
        (shown,) = wire.result("status")["stores"]
        assert shown["state"] == state
        answers = [shown, proof(wire), wire.ask("key.list")]
        for word in ("of-mine", str(token.folder), "dpop-agent'", "PIN file", "token="):
            assert word not in json.dumps(answers)
        told, known = refusal(answers[1]), refusal(proof(whole))
        assert told["type"] == known["type"]
        assert told["message"] == shown["reason"] != known["message"]
        assert "ask whoever runs the agent" in told["hint"]
        assert "of-mine" in json.dumps(known), "on agent.sock it is told"
        until_logged(agent, f"refused on the socket exec: {known['message']}")


def test_what_others_see_of_its_keys_is_there_member_by_member(agent: Agent, admin: Wire) -> None:
    with add(admin) as wire, Wire(agent.socket) as whole:
        (here,), (there,) = (one.result("key.list", key="shop")["keys"] for one in (wire, whole))
        assert here.keys() == there.keys()
        assert here["generations"][0].keys() == there["generations"][0].keys()
        assert wire.result("hello") == whole.result("hello")


def test_nonces_go_into_no_proofs_of_other_sockets_and_none_of_theirs_come_in(
    agent: Agent, admin: Wire
) -> None:
    def seen(nonce: str, origin: str = API) -> dict[str, Any]:
        return {"seen": [{"htu": f"{origin}/", "nonce": nonce}]}

    def nonce(wire: Wire, origin: str = API) -> object:
        return proof(wire, f"{origin}/")["result"]["nonce"]

    with (
        Wire(agent.socket) as whole,
        add(admin, "one", origins=[API]) as one,
        add(admin, "two") as two,
    ):
        whole.result("observe", **seen("whole"))
        one.result("observe", **seen("one"))
        assert (nonce(whole), nonce(one), nonce(two)) == ("whole", "one", None)
        one.result("observe", **seen("poison", SHOP))
        assert "result" in proof(one, seen=seen("poison", SHOP)["seen"])
        assert (nonce(whole, SHOP), nonce(two, SHOP)) == (None, None)
        assert one.result("status")["origins_count"] == 1
        assert claims_of(proof(one)["result"])["nonce"] == "one"


def test_leases_there_are_no_other_sockets_and_end_with_it(agent: Agent, admin: Wire) -> None:
    with (
        Wire(agent.socket) as outside,
        Wire(agent.admin_socket) as owner,
        add(admin, "one") as one,
        add(admin, "two") as two,
    ):
        for wire in (outside, one, two):
            assert wire.result("lease", name="a", wait_ms=0)["previous"] == "none"
        for wire in (owner, Wire(path_of(agent, "one"))):
            with wire:
                refused = wire.error("lease", name="a", wait_ms=0)
            assert refused["type"] == "lease_unavailable"
            assert "somebody else has the lease 'a'" in refused["message"]
        one.close()
        with Wire(path_of(agent, "one")) as wire:
            assert wire.result("lease", name="a")["previous"] == "abandoned"


def test_a_nonce_is_tried_for_its_own_sockets_requests_alone(admin: Wire) -> None:
    with add(admin, "one") as one, add(admin, "two") as two:
        for wire in (one, two):
            assert proof(wire, shares_nonce=True)["result"]["tries_nonce"]
        one.result("observe", seen=[{"htu": f"{API}/", "nonce": "n-1"}])
        told = proof(one, shares_nonce=True)["result"]
        assert told["nonce"] == "n-1"
        assert "tries_nonce" not in told


def test_admin_methods_arent_answered_there(admin: Wire) -> None:
    with add(admin) as wire:
        for method in wire.result("hello")["admin_methods"]:
            assert wire.error(method)["type"] == "method_not_found"


def test_a_socket_has_a_rate_of_its_own_and_the_keys_is_shared(agent: Agent, admin: Wire) -> None:
    agent.create_key("rated", rate={"per_minute": 1, "burst": 3})

    def had(wire: Wire) -> int:
        for count in range(9):
            answer = proof(wire, key="rated")
            if "error" in answer:
                error = refusal(answer)
                assert (error["type"], error["rule"]) == ("rate_exceeded", "rate")
                assert error["retry_after_ms"] > 0
                return count
        return 9

    with (
        add(admin, "one", keys=["rated"], rate={"per_minute": 1, "burst": 2}) as one,
        add(admin, "two", keys=["rated"]) as two,
        Wire(agent.socket) as whole,
    ):
        assert (had(one), had(two), had(whole)) == (2, 1, 0)


def test_a_sockets_own_rate_holds_for_proof_as_for_proof_sign(agent: Agent, admin: Wire) -> None:
    agent.create_key("built", allow_sign_proof=True)
    with add(admin, keys=["built"], rate={"per_minute": 1, "burst": 3}) as wire:
        answers = [a for _ in range(3) for a in asked_for(wire, "built", "GET", f"{API}/", None)]
    assert ["result" in answer for answer in answers] == [True] * 3 + [False] * 3
    assert {refusal(answer)["type"] for answer in answers[3:]} == {"rate_exceeded"}


def test_a_person_is_asked_where_the_socket_wants_it_and_only_who_asked_is_told(
    token: Token, make_agent: MakeAgent, tmp_path: Path
) -> None:
    person = Person(tmp_path / "person")
    agent = make_agent(token.config, env=person.env).start()
    agent.create_key("shop", confirm_s=900)
    with (
        Wire(agent.admin_socket) as admin,
        add(admin, confirm_s=0) as wire,
        add(admin, "theirs") as theirs,
        Wire(agent.socket) as whole,
    ):
        for one in (wire, theirs):
            one.result("subscribe", events=["touch"])
        for _ in range(2):
            assert "result" in proof(whole)
        assert len(person.asked) == 1
        assert wire.silent
        for number in range(2):
            wire.send(request("proof", {"key": "shop", "htm": "GET", "htu": API}, number=number))
            for _ in range(2):  # that it waits, and that it is asked
                assert wire.event()["params"]["id"] == number
            assert "result" in wire.next()
        assert len(person.asked) == 3, "each time there, the stricter of both"
        assert ["by the filtered socket ci\n" in shown for _, shown in person.asked] == [0, 1, 1]
        assert theirs.silent, "of others' questions nothing is told"


# How it ends


def test_a_proof_that_waits_on_a_socket_isnt_given_out_once_it_is_removed(
    token: Token, make_agent: MakeAgent, tmp_path: Path
) -> None:
    person = Person(tmp_path / "person")
    agent = make_agent(token.config, env=person.env).start()
    agent.create_key("shop", confirm_s=0)
    person.says("wait")
    agent.run("socket", "add", "ci", "--key", "shop", check=True)
    with Wire(path_of(agent, "ci")) as wire, Wire(path_of(agent, "ci")) as idle:
        idle.result("hello")
        answers: list[object] = []
        waiting = threading.Thread(target=lambda: answers.append(_closed(wire)))
        waiting.start()
        until(lambda: len(person.asked) == 1)
        agent.run("socket", "remove", "ci", check=True)
        person.says("OK")
        waiting.join(10)
        assert answers == [True]
        assert idle.line() is None
    assert agent.client().status()["proofs"] == 0
    assert not (agent.runtime / "sockets" / "ci").exists()


def _closed(wire: Wire) -> bool:
    wire.send(request("proof", {"key": "shop", "htm": "GET", "htu": f"{API}/"}))
    return wire.line() is None


def test_one_whose_time_is_over_is_gone_with_its_connections(agent: Agent, admin: Wire) -> None:
    with add(admin, expires_s=2) as wire:
        assert "result" in proof(wire)
        until(lambda: wire.line() is None)
    assert admin.error("socket.list", socket="ci")["type"] == "socket_unknown"
    until(lambda: not (agent.runtime / "sockets" / "ci").exists())
    until_logged(agent, "the socket ci is gone: its time is over")


def test_it_is_there_after_a_restart_in_the_same_folder_unless_its_time_is_over(
    make_agent: MakeAgent,
) -> None:
    agent = make_agent().start()
    agent.create_key("shop")
    agent.run("socket", "add", "ci", "--key", "shop", "--origin", API, check=True)
    agent.run("socket", "add", "brief", "--key", "shop", "--expires", "1s", check=True)
    folder = agent.runtime / "sockets" / "ci"
    before = folder.stat()
    assert before.st_mode & 0o777 == 0o700
    assert [file.name for file in folder.iterdir()] == ["agent.sock"]
    assert agent.stop() == 0
    assert list(folder.iterdir()) == []
    time.sleep(1.1)  # until the other's time is over
    agent.start()
    until_open(agent)
    assert (folder.stat().st_dev, folder.stat().st_ino) == (before.st_dev, before.st_ino)
    assert names(agent) == ["ci"]
    assert not (agent.runtime / "sockets" / "brief").exists()
    with Wire(path_of(agent, "ci")) as wire:
        assert "result" in proof(wire)
        assert refusal(proof(wire, f"{SHOP}/"))["rule"] == "origins"
    agent.admin().call("reload", {})
    assert names(agent) == ["ci"]
    agent.kill()
    agent.start()
    until_open(agent)
    assert folder.stat().st_ino == before.st_ino
    with Wire(path_of(agent, "ci")) as wire:
        assert "result" in proof(wire)


def test_a_socket_file_that_was_removed_comes_back(agent: Agent, admin: Wire) -> None:
    with add(admin) as wire:
        Path(path_of(agent, "ci")).unlink()
        until_logged(agent, f"{path_of(agent, 'ci')} had gone, and is served again")
        assert "result" in proof(wire), "whoever is connected stays so"
        with Wire(path_of(agent, "ci")) as again:
            assert "result" in proof(again)


def test_a_key_that_is_forgotten_is_given_no_more_though_another_gets_its_name(
    make_agent: MakeAgent,
) -> None:
    agent = make_agent().start()
    agent.create_key("shop")
    agent.run("socket", "add", "ci", "--key", "shop", check=True)
    admin = agent.admin()
    admin.call("key.destroy", {"key": "shop", "generation": 1})
    admin.call("key.forget", {"key": "shop"})
    agent.create_key("shop")
    for _ in ("before", "after a restart"):
        with Wire(path_of(agent, "ci")) as wire:
            assert refusal(proof(wire))["type"] == "key_unknown"
        shown = agent.run("socket", "show", "ci", check=True).stdout
        assert "ci: gives no proof by shop: it was forgotten" in shown
        assert agent.stop() == 0
        agent.start()
        until_open(agent)


def test_what_a_killed_agent_left_of_a_commands_socket_is_tidied_up(
    make_agent: MakeAgent,
) -> None:
    agent = make_agent().start()
    agent.create_key("shop")
    strangers = agent.runtime / "sockets" / "strangers"
    with Wire(agent.admin_socket) as admin:
        add(admin).close()
        strangers.mkdir(mode=0o700)
        (strangers / "file").touch()
        agent.kill()
    assert Path(path_of(agent, "ci")).exists()
    agent.start()
    assert os.listdir(agent.runtime / "sockets") == ["strangers"]
    assert (strangers / "file").exists(), "what isn't its own stays"


# What is refused


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["add", "x", "--key", "nosuch"], "there is no key nosuch; there are: "),
        (
            ["add", "x", "--key", "shop", "--origin", "https://evil.example"],
            "--origin https://evil.example matches nothing: it is outside of what the key shop may "
            f"be used for; give one of {API}, {SHOP}, or allow it too: dpop-agent key set shop "
            f"--origin {API} --origin {SHOP} --origin https://evil.example",
        ),
        (
            ["add", "x", "--key", "shop", "--method", "PUT"],
            "--method PUT matches nothing: it is outside of what the key shop may be used for; "
            "give one of GET, POST, or allow it too: dpop-agent key set shop --method GET "
            "--method POST --method PUT",
        ),
        (
            ["add", "x", "--key", "other", "--origin", "http://plain.example"],
            "--origin http://plain.example matches nothing: it is outside of what the key other "
            "may be used for; use https, or make a key for it: dpop-agent key create NAME --origin "
            "http://plain.example",
        ),
        (
            ["add", "x", "--key", "shop", "--key", "other", "--origin", "https://b.example"],
            "nothing would be left of the key shop: its origins and the socket's have nothing in "
            "common; leave out the key, or add --origin for it; see: dpop-agent key show shop",
        ),
        (
            ["add", "x", "--key", "shop", "--expires", "2001-01-01T00:00Z"],
            "the socket x would expire in the past, at 2001-01-01T00:00:00Z; it is ",
        ),
        (["remove", "nosuch"], "there is no socket nosuch; there are none"),
        (["show", "nosuch"], "there is no socket nosuch; there are none"),
    ],
)
def test_what_cant_be_is_refused_in_one_line(agent: Agent, words: list[str], says: str) -> None:
    run = agent.run("socket", *words)
    assert run.returncode == 1, run.stdout
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"dpop-agent: {says}")
    assert not (agent.runtime / "sockets" / "x").exists()
    assert run.stdout == ""


def test_a_name_that_another_socket_has_is_refused(agent: Agent, admin: Wire) -> None:
    add(admin).close()
    error = admin.error("socket.add", socket="ci", keys=["shop"])
    assert error["type"] == "socket_exists"
    assert error["hint"] == "see: dpop-agent socket show ci; or use another name"


@pytest.mark.parametrize(
    "name", ["agent", "admin", "mount", "exec", "Ci", ".ci", "a/b", "x" * 65, ""]
)
def test_a_name_that_no_socket_can_have_is_refused(admin: Wire, name: str) -> None:
    assert admin.error("socket.add", socket=name, keys=["shop"])["type"] == "invalid_params"


def test_a_path_that_is_too_long_is_refused_with_a_shorter_way(make_agent: MakeAgent) -> None:
    agent = make_agent()
    folder = agent.runtime / "x".ljust(60, "x")
    agent.socket = agent.env["DPOP_AGENT_SOCK"] = str(folder / "agent.sock")
    agent.admin_socket = str(folder / "admin.sock")
    agent.start()
    agent.create_key("shop")
    run = agent.run("socket", "add", "y" * 40, "--key", "shop")
    assert run.returncode == 1
    assert "more than the 107 that work: " in run.stderr
    assert "use a shorter name, or set DPOP_AGENT_SOCK to a shorter path" in run.stderr
    assert agent.run("socket", "list").stdout.startswith("there are no sockets; add one with: ")


def test_there_are_so_many_sockets_at_most(agent: Agent, admin: Wire) -> None:
    for number in range(MAX_SOCKETS):
        add(admin, f"n{number}").close()
    assert admin.error("socket.add", socket="more", keys=["shop"])["type"] == "limit_reached"
    pages: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = admin.result("socket.list", **cursor)
        pages += page["sockets"]
        if "cursor" not in page:
            break
        cursor = {"cursor": page["cursor"]}
    assert [found["socket"] for found in pages] == sorted(f"n{n}" for n in range(MAX_SOCKETS))


def test_a_folder_that_others_can_reach_closes_that_socket_alone_and_until_they_cant(
    make_agent: MakeAgent,
) -> None:
    agent = make_agent().start()
    agent.create_key("shop")
    for name in ("ci", "two"):
        agent.run("socket", "add", name, "--key", "shop", check=True)
    assert agent.stop() == 0
    folder = agent.runtime / "sockets" / "ci"
    folder.chmod(0o755)
    agent.start()
    shown = agent.run("socket", "show", "ci", check=True).stdout
    assert f"ci: {folder} has mode 0755: others can reach it; chmod 700 {folder}" in shown
    with Wire(path_of(agent, "two")) as wire:
        assert wire.result("hello")["protocol"] == 1
    folder.chmod(0o700)
    until(lambda: Path(path_of(agent, "ci")).exists())
    assert "open" in agent.run("socket", "show", "ci", check=True).stdout
    with Wire(path_of(agent, "ci")) as wire:
        assert wire.result("hello")["protocol"] == 1


# What is recorded


def test_each_socket_has_an_audit_of_its_own_and_its_adding_and_end_are_in_the_owners(
    agent: Agent,
) -> None:
    agent.run(*("socket", "add", "audited", "--key", "shop", "--origin", API), check=True)
    with Wire(path_of(agent, "audited")) as wire:
        assert "result" in proof(wire)
        assert "error" in proof(wire, key="other")
    agent.run("socket", "remove", "audited", check=True)
    with Wire(agent.admin_socket) as owner, add(owner, "command", expires_s=1) as wire:
        assert "result" in proof(wire)
        until(lambda: wire.line() is None)

    def lines(name: str) -> list[dict[str, Any]]:
        run = agent.run("log", name, "--json")
        return [json.loads(line) for line in run.stdout.splitlines()]

    def ended(line: dict[str, Any]) -> bool:
        return (line["method"], line.get("filtered")) == ("socket.end", "command")

    until(lambda: any(map(ended, lines("admin"))))
    there = [(line["outcome"], line["key"], line["origin"]) for line in lines("audited")]
    assert there == [("done", "shop", API), ("key_unknown", "other", API)]
    assert {line["socket"] for line in lines("audited")} == {"audited"}
    assert "proof" in [line["method"] for line in lines("exec")]
    about = [
        (line["method"], line["filtered"], line.get("keys"))
        for line in lines("admin")
        if line.get("filtered") in ("audited", "command")
    ]
    assert about == [
        ("socket.add", "audited", ["shop"]),
        ("socket.remove", "audited", None),
        ("socket.add", "command", ["shop"]),
        ("socket.end", "command", None),
    ]
    assert "socket.add audited" in agent.run("log", "admin").stdout


# exec and env


def test_exec_runs_a_command_with_a_socket_of_its_own_that_is_gone_with_it(agent: Agent) -> None:
    ask = f"exec '{sys.executable}' -m dpop_agent proof GET"
    run = agent.run(
        *("exec", "--key", "shop", "--origin", API, "--", "sh", "-c"),
        f'echo "$DPOP_AGENT_SOCK"; ({ask} {API}/ --key shop); ({ask} {SHOP}/ --key shop); exit 7',
    )
    path, made = run.stdout.splitlines()
    assert (run.returncode, len(made.split("."))) == (7, 3)
    assert f"the key shop on this socket isn't for {SHOP}" in run.stderr
    until(lambda: not Path(path).parent.exists())
    assert names(agent) == []


def test_exec_and_env_use_a_socket_that_is_there(agent: Agent) -> None:
    agent.run("socket", "add", "ci", "--key", "shop", check=True)
    try:
        run = agent.run("exec", "--socket", "ci", "--", "printenv", "DPOP_AGENT_SOCK")
        assert run.stdout == f"{path_of(agent, 'ci')}\n"
        exports = f"export DPOP_AGENT_SOCK={path_of(agent, 'ci')}\n"
        assert agent.run("env", "ci").stdout == exports
    finally:
        agent.run("socket", "remove", "ci", check=True)
    for words in (("env", "ci"), ("exec", "--socket", "ci", "--", "true")):
        run = agent.run(*words)
        assert run.returncode == 1
        assert run.stderr == "dpop-agent: there is no socket ci; see: dpop-agent socket list\n"


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "kill -9 $$"], 137),
        (["nosuch-command"], 127),
        (["/"], 126),
    ],
)
def test_exec_ends_with_its_commands_status_as_shells_do(
    agent: Agent, command: list[str], status: int
) -> None:
    run = agent.run("exec", "--key", "shop", "--", *command)
    assert run.returncode == status
    assert len(run.stderr.splitlines()) == (status in (126, 127))


def test_exec_becomes_the_command_where_the_socket_is_there(agent: Agent, admin: Wire) -> None:
    add(admin, "there").close()
    exec_there = ("exec", "--socket", "there", "--")
    with subprocess.Popen(
        [sys.executable, "-m", "dpop_agent", *exec_there, "sh", "-c", "echo $$; exit 3"],
        env=agent.env,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert int(process.stdout.read()) == process.pid
        assert process.wait(10) == 3
    run = agent.run(*exec_there, "nosuch-command")
    assert run.returncode == 127
    assert run.stderr == "dpop-agent: nosuch-command can't be run: No such file or directory\n"


def test_who_uses_a_filtered_socket_is_told_that_it_changes_nothing(
    agent: Agent, admin: Wire
) -> None:
    add(admin).close()
    for words in ("socket list", "key create x --any-origin", "exec --key shop -- true"):
        run = agent.run(
            "exec", "--socket", "ci", "--", sys.executable, "-m", "dpop_agent", *words.split()
        )
        assert run.returncode == 1
        assert run.stderr == (
            f"dpop-agent: the socket {path_of(agent, 'ci')} gives proofs and nothing else; unset "
            "DPOP_AGENT_SOCK, or set it to the agent's own socket\n"
        )


def test_exec_hands_its_commands_words_on_as_they_are(agent: Agent) -> None:
    words = ["--json", "--jkt", "x", "--", "--key", "--nonce", "y", "--nosuch"]
    run = agent.run("exec", "--key", "shop", "--", "printf", "<%s>", *words)
    assert run.stdout == "".join(f"<{word}>" for word in words)
    run = agent.run("exec", "--key", "shop", "--", "/nosuch", "--json")
    assert run.stderr == "dpop-agent: /nosuch can't be run: No such file or directory\n"


def test_exec_passes_signals_on_to_its_command(agent: Agent) -> None:
    script = "trap 'echo told; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(
        [*(sys.executable, "-m", "dpop_agent", "exec", "--key", "shop"), "--", "sh", "-c", script],
        env=agent.env,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.read() == "told\n"
        assert process.wait(10) == 5


def test_the_socket_of_an_exec_that_is_killed_is_gone(agent: Agent) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "dpop_agent", "exec", "--key", "shop", "--", "sh", "-c"),
            'echo $$ "$DPOP_AGENT_SOCK"; exec sleep 60',
        ],
        env=agent.env,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    pid, path = process.stdout.readline().split()
    with Wire(path) as wire:
        assert "result" in proof(wire)
        process.kill()
        process.wait(10)
        assert wire.line() is None
    until(lambda: names(agent) == [])
    assert running(int(pid)), "the command goes on, without a socket"
    os.kill(int(pid), signal.SIGKILL)
    process.stdout.close()
    with pytest.raises(AgentUnavailable), AgentClient(path) as client:
        client.hello()


def test_help_says_that_exec_guards_against_accidents_only(agent: Agent) -> None:
    said = " ".join(agent.run("exec", "--help", check=True).stdout.split())
    assert "Without a sandbox this guards against accidents only" in said

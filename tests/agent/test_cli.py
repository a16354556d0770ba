"""`dpop-agent key …` and `proof` as processes of their own, against a real agent."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from dpop_agent.errors import KeyCompromised
from tests.agent.places import until, until_open, until_state
from tests.processes import Agent, Token
from tests.stores import on_token

ORIGIN = "https://as.example.com"
JKT = r"[A-Za-z0-9_-]{43}"


@pytest.fixture
def agent(agent: Agent) -> Agent:
    """With a key that has signed for one origin."""
    agent.create_key("default")
    agent.run("proof", "GET", f"{ORIGIN}/me", check=True)
    return agent


def shown(agent: Agent, *words: str) -> dict[str, Any]:
    """What `--json` prints."""
    found: dict[str, Any] = json.loads(agent.run(*words, "--json", check=True).stdout)
    return found


def generations(agent: Agent, name: str = "default") -> dict[int, dict[str, Any]]:
    [key] = shown(agent, "key", "list", name, "--all")["keys"]
    return {g["generation"]: g for g in key["generations"]}


def states(agent: Agent, name: str = "default") -> list[str]:
    return [g["state"] for g in generations(agent, name).values()]


def test_a_rotation_tells_both_jkts_when_the_old_one_ends_and_whom_it_touches(
    agent: Agent,
) -> None:
    out = agent.run("key", "rotate", "default", "--drain", "12h", check=True).stdout

    old, new = generations(agent).values()
    assert (old["state"], new["state"]) == ("draining", "active")
    assert f"new: default@2 is active, jkt {new['jkt']}\n" in out
    assert f"old: default@1 is draining, jkt {old['jkt']}\n" in out
    assert re.search(r"until \d{4}-\d\d-\d\d \d\d:\d\d UTC\n", out)
    assert f"ago    {ORIGIN}\n" in out
    assert 12 * 3600 - 60 < old["drain_left_s"] <= 12 * 3600


def test_what_rotate_says_to_type_goes_back(agent: Agent) -> None:
    out = agent.run("key", "rotate", "default", check=True).stdout
    _, _, command = out.rstrip().rpartition("to go back: dpop-agent ")
    agent.run(*command.split(), check=True)
    assert states(agent) == ["active", "draining"]


def test_a_staged_generation_is_announced_and_activated_by_what_it_says_to_type(
    agent: Agent,
) -> None:
    out = agent.run("key", "rotate", "default", "--stage", check=True).stdout
    assert states(agent) == ["active", "staged"]
    assert f"new: default@2 is staged, jkt {generations(agent)[2]['jkt']}\n" in out

    _, _, command = out.rstrip().rpartition("then: dpop-agent ")
    agent.run(*command.split(), check=True)
    assert states(agent) == ["draining", "active"]


def test_json_has_the_new_and_the_old_generation(agent: Agent) -> None:
    result = shown(agent, "key", "rotate", "default")
    [key] = result["keys"]
    assert [result["old"], result["new"]] == key["generations"]
    assert (result["old"]["generation"], result["new"]["generation"]) == (1, 2)


def test_a_suspended_generation_comes_back_by_the_key_s_bare_name(agent: Agent) -> None:
    assert "default@1 is suspended" in agent.run("key", "suspend", "default", check=True).stdout
    assert states(agent) == ["suspended"]
    assert agent.run("proof", "GET", ORIGIN).returncode == 1
    assert "default@1 is active" in agent.run("key", "resume", "default", check=True).stdout
    assert agent.run("proof", "GET", ORIGIN).returncode == 0


def test_a_bare_name_that_could_mean_two_generations_changes_nothing(agent: Agent) -> None:
    agent.run("key", "rotate", "default", check=True)
    before = states(agent)
    for words in (["suspend"], ["destroy", "--yes"]):
        refused = agent.run("key", words[0], "default", *words[1:])
        assert refused.returncode == 1
        assert "default@1 (draining), default@2 (active)" in refused.stderr
    assert states(agent) == before


def test_a_compromised_key_signs_no_more_and_the_jkts_to_revoke_are_told(agent: Agent) -> None:
    agent.run("key", "rotate", "default", check=True)
    jkts = [g["jkt"] for g in generations(agent).values()]
    refused = agent.run("key", "compromise", "default", stdin="yes\n")
    assert refused.returncode == 1
    assert "--yes" in refused.stderr
    assert states(agent) == ["draining", "active"]

    out = agent.run("key", "compromise", "default", "--yes", check=True).stdout
    assert re.findall(rf"jkt ({JKT}) \(default@", out) == jkts
    assert ORIGIN in out
    assert states(agent) == ["compromised", "compromised"]
    for jkt in jkts:
        with pytest.raises(KeyCompromised):
            agent.client().proof("GET", ORIGIN, jkt=jkt)


def test_a_compromise_that_cannot_be_written_is_told_as_blocked_and_not_durable(
    agent: Agent,
) -> None:
    [jkt] = [g["jkt"] for g in generations(agent).values()]
    elsewhere = agent.state.with_name("elsewhere")
    agent.state.rename(elsewhere)
    try:
        done = agent.run("key", "compromise", "default@1", "--yes")
        assert done.returncode == 1
        assert "default@1 is blocked for as long as this agent runs\n" in done.stdout
        assert f"jkt {jkt} (default@1)\n" in done.stdout
        assert done.stderr.startswith("dpop-agent: default is blocked, but that isn't durable: ")
        assert done.stderr.count("\n") == 1
        with pytest.raises(KeyCompromised):
            agent.client().proof("GET", ORIGIN, jkt=jkt)
    finally:
        elsewhere.rename(agent.state)


def import_key(token: Token, key_id: str, pem: Path) -> None:
    """A key pair that was made outside, and so can be known outside."""
    made = ec.generate_private_key(ec.SECP256R1())
    pem.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    words = ["--token", token.label, "--pin", token.pin, "--id", key_id, "--label", "imported"]
    subprocess.run(
        ["softhsm2-util", "--import", pem, *words],
        env={**os.environ, "SOFTHSM2_CONF": str(token.softhsm_conf)},
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=30,
    )


def test_what_status_lists_as_unknown_can_be_adopted_and_signs_once_activated(
    token: Token, make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    on_token.make_stranger(token, key_id="0badcafe", label="proxy key")
    import_key(token, "c0ffee", tmp_path / "key.pem")
    agent = make_agent(token.config).start()
    until(lambda: "left alone" in agent.run("status", check=True).stdout)
    out = agent.run("status", check=True).stdout
    assert "2 private keys that the ledger doesn't list, left alone\n" in out
    assert re.search(r"^0badcafe +proxy key$", out, re.MULTILINE)
    assert re.search(r"^c0ffee +imported$", out, re.MULTILINE)

    out = agent.run("key", "adopt", "proxy", "--ref", "0badcafe", "--any-origin", check=True).stdout
    assert "proxy@1 is staged" in out
    assert "copy" not in out
    out = agent.run("key", "adopt", "copied", "--ref", "C0FFEE", "--any-origin", check=True).stdout
    assert "somebody may have a copy of the private key" in out
    listed = agent.run("key", "list", check=True).stdout
    assert re.search(r"^copied@1 +staged +exportable, shared ", listed, re.MULTILINE)
    assert re.search(r"^proxy@1 +staged +shared ", listed, re.MULTILINE)
    assert "left alone" not in agent.run("status", check=True).stdout

    agent.run("key", "activate", "proxy", check=True)
    proven = shown(agent, "proof", "GET", ORIGIN, "--key", "proxy")
    assert proven["jkt"] == generations(agent, "proxy")[1]["jkt"]


def test_settings_are_taken_at_creation_and_changed_later(agent: Agent) -> None:
    words = ["--rotate-every", "30d", "--drain", "15m", "--max-drain", "4w"]
    [key] = shown(agent, "key", "create", "other", "--any-origin", *words)["keys"]
    names = ("rotate_every_s", "drain_s", "max_drain_s")
    assert [key[name] for name in names] == [2_592_000, 900, 2_419_200]
    [key] = shown(agent, "key", "set", "other", "--rotate-every", "never")["keys"]
    assert [key[name] for name in names] == [None, 900, 2_419_200]
    out = agent.run("key", "show", "other", check=True).stdout
    assert "  rotation    only by command\n  drain       15m without use, 28d at most\n" in out


@pytest.mark.parametrize(
    "words",
    [
        ["rotate", "nobody"],
        ["activate", "default"],
        ["activate", "default@1"],
        ["activate", "default@9"],
        ["suspend", "nobody"],
        ["resume", "default@1"],
        ["resume", "default"],
        ["compromise", "nobody", "--yes"],
        ["compromise", "default@9"],
        ["adopt", "default", "--ref", "00"],
        ["adopt", "default", "--ref", "00", "--alg", "PS256"],
        ["adopt", "new", "--ref", "00", "--store", "none"],
        ["set", "nobody", "--drain", "1d"],
    ],
)
def test_what_the_agent_refuses_is_one_line_and_changes_nothing(
    agent: Agent, words: list[str]
) -> None:
    before = shown(agent, "key", "list", "--all")
    refused = agent.run("key", *words)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("dpop-agent: ")
    assert refused.stderr.count("\n") == 1
    assert "defect" not in refused.stderr
    assert shown(agent, "key", "list", "--all") == before


def test_reload_looks_anew_which_keys_there_are(
    token: Token, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent(token.config).start()
    agent.create_key("default")
    on_token.make_stranger(token, key_id="0badcafe")
    out = agent.run("reload", check=True).stdout
    assert "softhsm" in out
    assert "ready" in out
    (store,) = agent.client().status()["stores"]
    assert [found["ref"] for found in store["unknown"]] == ["0badcafe"]


def test_status_shows_which_keys_a_store_has_now(
    token: Token, make_agent: Callable[..., Agent]
) -> None:
    """Not those at the last reload."""
    agent = make_agent(token.config).start()
    agent.create_key("default")

    def seen() -> tuple[list[str], list[bool]]:
        (store,) = shown(agent, "status")["stores"]
        [key] = shown(agent, "key", "list")["keys"]
        return [found["ref"] for found in store["unknown"]], [
            g["missing"] for g in key["generations"]
        ]

    assert seen() == ([], [False])
    on_token.make_stranger(token, key_id="0badcafe")
    assert seen() == (["0badcafe"], [False])
    on_token.delete(token, "0badcafe")
    assert seen() == ([], [False])
    (ours,) = on_token.private_ids(token)
    on_token.delete(token, ours)
    assert seen() == ([], [True])
    agent.client().status()  # which looks at nothing
    assert agent.log.read_text().count("is missing") == 1


def test_status_shows_that_a_pkcs11_token_has_come_back(
    token: Token, make_agent: Callable[..., Agent]
) -> None:
    tokens = token.folder / "tokens"
    away = tokens.rename(token.folder / "away")
    tokens.mkdir()
    agent = make_agent(token.config).start()

    def state() -> str:
        (store,) = shown(agent, "status")["stores"]
        return str(store["state"])

    until(lambda: state() == "absent")
    tokens.rmdir()
    away.rename(tokens)
    until(lambda: state() == "ready")


def test_status_opens_no_locked_store_and_takes_no_card_that_was_left_to_others(
    token: Token, make_agent: Callable[..., Agent]
) -> None:
    text = token.config.read_text()
    idle = 'release_after = "1s"\nlock_after = "3s"'
    token.config.write_text(text.replace("[agent]\n", f"[agent]\n{idle}\n"))
    agent = make_agent(token.config).start()
    until_open(agent)
    while "is released" not in agent.log.read_text():
        shown(agent, "status")  # which is no use of the store
    on_token.make_stranger(token, key_id="0badcafe")
    (store,) = shown(agent, "status")["stores"]
    assert (store["state"], store["unknown"]) == ("ready", [])
    until_state(agent, "locked")
    (store,) = shown(agent, "status")["stores"]
    assert store["state"] == "locked"
    assert agent.log.read_text().count("is released") == 1

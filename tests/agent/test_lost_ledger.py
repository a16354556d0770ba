"""A ledger that is kept as a copy, and one that is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dpop_agent.errors import KeySuspended, NoActive, PolicyRefused
from tests.agent.places import add_store, refused_to_serve, until, until_logged
from tests.processes import Agent, Token, new_token
from tests.stores import on_token

MakeAgent = Callable[..., Agent]


def said(agent: Agent, *words: str) -> str:
    """What a verb says where it is refused: one line, and status 1."""
    run = agent.run(*words)
    assert (run.returncode, run.stdout) == (1, "")
    (line,) = run.stderr.splitlines()
    return line.removeprefix("dpop-agent: ")


def known(agent: Agent) -> list[tuple[str, list[str], list[tuple[int, str, str]]]]:
    """Names, origins, and generations with state and jkt."""
    return [
        (
            key["key"],
            key["origins"],
            [(g["generation"], g["state"], g["jkt"]) for g in key["generations"]],
        )
        for key in agent.client().keys(include_destroyed=True)
    ]


# A copy


def test_a_copy_of_the_ledger_is_written_while_the_agent_runs_and_serves_another_one(
    make_agent: MakeAgent, tmp_path: Path
) -> None:
    agent = make_agent().start()
    agent.create_key("default", origins=["https://a.example"])
    agent.create_key("shop")
    agent.admin().call("key.rotate", {"key": "shop"})
    copy = tmp_path / "copy"
    run = agent.run("ledger", "export", str(copy), check=True)
    assert run.stdout == f"{copy} is sound: 2 keys, 3 generations\n"
    assert copy.stat().st_mode & 0o777 == 0o600
    assert agent.run("ledger", "export", check=True).stdout == copy.read_text()
    assert copy.read_bytes() == (agent.state / "ledger.json").read_bytes()
    keys = known(agent)
    agent.stop()
    shutil.rmtree(agent.state)
    agent.state.mkdir(mode=0o700)
    shutil.copy(copy, agent.state / "ledger.json")
    agent.start()
    assert known(agent) == keys


def test_a_copy_never_overwrites_a_file(agent: Agent, tmp_path: Path) -> None:
    agent.create_key("default")
    (tmp_path / "diary").write_text("dear diary")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("diary", "link"):
        line = said(agent, "ledger", "export", str(tmp_path / name))
        assert line == (
            f"{tmp_path / name} is there already, and isn't overwritten; name another file"
        )
    assert (tmp_path / "diary").read_text() == "dear diary"
    assert not (tmp_path / "nowhere").exists()


def test_a_ledger_is_checked_while_an_agent_uses_it_and_without_one(agent: Agent) -> None:
    agent.create_key("default")
    ledger = agent.state / "ledger.json"
    for stops in (True, False):
        assert agent.run("ledger", "check", check=True).stdout == (
            f"{ledger} is sound: 1 key, 1 generation\n"
        )
        told = json.loads(agent.run("ledger", "check", "--json", check=True).stdout)
        assert told == {"ledger": str(ledger), "keys": 1, "generations": 1}
        if stops:
            agent.stop()


def test_the_running_agents_ledger_is_the_one_that_is_meant_unless_another_is_set(
    agent: Agent, tmp_path: Path
) -> None:
    agent.create_key("default")
    agent.env.pop("DPOP_AGENT_STATE_DIR")
    assert agent.run("ledger", "check", check=True).stdout.startswith(str(agent.state))
    agent.env["DPOP_AGENT_STATE_DIR"] = str(tmp_path / "none")
    assert f"there is no ledger {tmp_path / 'none' / 'ledger.json'}" in said(
        agent, "ledger", "check"
    )
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("name", "old", "new", "why"),
    [
        ("ledger.json", '"shop"', '"shap"', "line 4: its checksum doesn't fit"),
        ("uses.json", '"unclean_s"', '"unclear_s"', "line 1: its checksum doesn't fit"),
        ("ledger.json", '"version": 2', '"version": 3', "it has version 3, this agent reads 1 to"),
        ("ledger.json", "\n]}\n", "\n]", "line 7 isn't ]}"),
        ("blocks", "    \n", "   x\n", "line 1: "),
    ],
)
def test_a_ledger_that_no_agent_would_start_on_is_told_with_the_line_as_it_would(
    agent: Agent, name: str, old: str, new: str, why: str
) -> None:
    agent.create_key("default")
    agent.create_key("shop")
    agent.stop()
    file = agent.state / name
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    line = said(agent, "ledger", "check")
    assert f"{file} can't be read ({why}" in line
    assert refused_to_serve(agent) == f"dpop-agent: {line}"
    assert said(agent, "ledger", "export") == line
    if name == "ledger.json":
        assert f"the ledger {file} can't be read ({why}" in said(
            agent, "ledger", "check", str(file)
        )


def test_a_copy_that_isnt_there_is_told(agent: Agent, tmp_path: Path) -> None:
    line = said(agent, "ledger", "check", str(tmp_path / "copy"))
    assert line == (
        f"the ledger {tmp_path / 'copy'} can't be read (No such file or directory); "
        "use another copy"
    )


# None


LONG = "a".ljust(64, "z")
HTU = "https://a.example/me"


def start(agent: Agent) -> None:
    """Start it, and wait for its stores."""
    agent.start()
    until(lambda: all(s["state"] != "starting" for s in agent.client().status()["stores"]))


def lose_ledger(agent: Agent) -> None:
    agent.stop()
    shutil.rmtree(agent.state)
    start(agent)


def adopted(agent: Agent, *words: str) -> str:
    return agent.run("key", "adopt", "--all", *words, check=True).stdout


@pytest.fixture
def lost(agent: Agent) -> tuple[Agent, list[tuple[str, list[tuple[int, str, str]]]]]:
    """An agent whose ledger was lost, and what was in it."""
    agent.create_key("default", origins=["https://a.example"])
    agent.create_key(LONG)
    for name, alg in (("rsa", "RS256"), ("ed", "EdDSA"), ("p521", "ES512")):
        agent.create_key(name, alg=alg)
    for _ in range(2):
        agent.admin().call("key.rotate", {"key": "default"})
    before = [(name, generations) for name, _, generations in known(agent)]
    lose_ledger(agent)
    return agent, before


def test_after_a_lost_ledger_names_and_generations_are_found_by_labels_and_are_suspended(
    lost: tuple[Agent, list[tuple[str, list[tuple[int, str, str]]]]],
) -> None:
    agent, before = lost
    assert agent.client().keys() == []
    until_logged(agent, "if the ledger was lost: dpop-agent key adopt --all")
    told = adopted(agent)
    found = [(name, generations) for name, _, generations in known(agent)]
    assert found == [
        (name, [(number, "suspended", jkt) for number, _, jkt in generations])
        for name, generations in before
    ]
    keys = agent.client().keys()
    algs = {key["key"]: key["alg"] for key in keys}
    assert algs == {
        "default": "ES256",
        LONG: "ES256",
        "rsa": "RS256",
        "ed": "EdDSA",
        "p521": "ES512",
    }
    for key in keys:
        assert key["policy_lost"] is True
        assert all(g["shared"] and not g["exportable"] for g in key["generations"])
    assert f"default@3 is suspended, jkt {dict(before)['default'][2][2]}" in told
    assert "dpop-agent key resume default --origin ORIGIN (or --any-origin)" in told
    with pytest.raises(NoActive, match="default@3 is suspended"):
        agent.client().proof("GET", HTU)
    assert agent.client().status()["stores"][0]["unknown"] == []
    assert adopted(agent).startswith("softhsm: nothing to adopt")
    lose_ledger(agent)
    adopted(agent)
    assert [(name, generations) for name, _, generations in known(agent)] == found


def test_a_key_from_a_lost_ledger_is_resumed_with_its_policy_set_anew(
    lost: tuple[Agent, list[tuple[str, list[tuple[int, str, str]]]]],
) -> None:
    agent, _ = lost
    adopted(agent)
    line = said(agent, "key", "resume", "default")
    assert "what the key default may be used for was lost with its ledger" in line
    assert "--any-origin" in line
    shown = agent.run("key", "show", "default", check=True).stdout
    assert "signs       nothing: what it is for was lost with the ledger" in shown
    resumed = agent.run("key", "resume", "default", "--origin", "https://a.example", check=True)
    assert resumed.stdout.startswith("default@3 is active")
    assert "still suspended: default@1, default@2" in resumed.stdout
    client = agent.client()
    active = client.proof("GET", HTU)
    with pytest.raises(PolicyRefused):
        client.proof("GET", "https://b.example/")
    (key,) = client.keys("default")
    assert "policy_lost" not in key
    with pytest.raises(KeySuspended):
        client.proof("GET", HTU, jkt=key["generations"][0]["jkt"])
    line = said(agent, "key", "resume", "default@1", "--any-origin")
    assert line.startswith("key.resume: the key default keeps the origins that it has")
    agent.run("key", "resume", "default@1", check=True)
    assert client.proof("GET", HTU, jkt=key["generations"][0]["jkt"]).state == "draining"
    agent.stop()
    start(agent)
    assert agent.client().proof("GET", HTU).jkt == active.jkt


def test_a_key_whose_policy_is_lost_signs_nothing_by_any_other_verb_either(
    lost: tuple[Agent, list[tuple[str, list[tuple[int, str, str]]]]],
) -> None:
    agent, _ = lost
    adopted(agent)
    assert "is suspended" in said(agent, "key", "activate", "default@3")
    agent.run("key", "rotate", "default", check=True)
    with pytest.raises(PolicyRefused, match="was lost with its ledger"):
        agent.client().proof("GET", HTU)
    agent.run("key", "set", "default", "--drain", "1d", check=True)
    with pytest.raises(PolicyRefused, match="was lost with its ledger"):
        agent.client().proof("GET", HTU)
    agent.run("key", "set", "default", "--any-origin", check=True)
    assert agent.client().proof("GET", HTU).state == "active"


def test_where_no_ledger_was_lost_there_is_nothing_to_adopt(agent: Agent) -> None:
    agent.create_key("default")
    before = (agent.state / "ledger.json").read_bytes()
    assert adopted(agent) == "softhsm: nothing to adopt\n"
    assert (agent.state / "ledger.json").read_bytes() == before


def test_a_name_that_is_in_use_again_and_strangers_that_look_like_ours_are_left_alone(
    make_agent: MakeAgent, token: Token
) -> None:
    agent = make_agent(token.config).start()
    agent.create_key("shop")
    agent.create_key("default")
    on_token.make_stranger(token, key_id="abcd", label="dpop-agent stranger@1")
    on_token.make_stranger(
        token, key_id="ab" * 16, label="dpop-agent imported@1", was_extractable=True
    )
    for number in (1, 2):
        on_token.make_stranger(token, key_id=f"{number:032x}", label="dpop-agent twice@7")
    on_token.make_stranger(token, key_id="cd" * 16, label="dpop-agent default@1234567")
    (old,) = (
        o["id"]
        for o in on_token.objects(token)
        if o["label"] == "dpop-agent shop@1" and o["class"] == "PRIVATE_KEY"
    )
    lose_ledger(agent)
    agent.create_key("shop")
    lines = adopted(agent).splitlines()
    assert [(n, [g[:2] for g in gs]) for n, _, gs in known(agent)] == [
        ("default", [(1, "suspended")]),
        ("shop", [(1, "active")]),
    ]
    for label, ref, reason in (
        ("shop@1", old, "there is a key shop that is in use"),
        ("stranger@1", "abcd", "it isn't one of dpop-agent's: its id has another length"),
        ("imported@1", "ab" * 16, "it isn't one of dpop-agent's: it can leave the store"),
        ("twice@7", "", "2 private keys have this label"),
    ):
        (line,) = (line for line in lines if f"'dpop-agent {label}'" in line)
        assert ref in line
        assert reason in line
    assert any("1 more private key without a label of dpop-agent's" in line for line in lines)
    agent.run("key", "adopt", "old-shop", "--ref", old, "--any-origin", check=True)


def test_stores_that_cant_be_asked_are_told_and_the_others_are_adopted_from(
    make_agent: MakeAgent, token: Token, tmp_path: Path
) -> None:
    add_store(token.config, "other", new_token(tmp_path / "other", "other"))
    agent = make_agent(token.config)
    start(agent)
    agent.create_key("default")
    agent.create_key("elsewhere", store="other")
    agent.stop()
    shutil.rmtree(agent.state)
    token.pin_file.unlink()
    start(agent)
    run = agent.run("key", "adopt", "--all")
    assert run.returncode == 1
    assert "PIN" in run.stderr
    assert [name for name, *_ in known(agent)] == ["elsewhere"]
    assert agent.run("key", "adopt", "--all", "--store", "other", check=True).stdout == (
        "other: nothing to adopt\n"
    )


@pytest.mark.parametrize(
    "words",
    [["--all", "default"], ["--all", "--ref", "ab"], [], ["default"], ["--ref", "ab"]],
)
def test_either_one_key_or_all_are_adopted(agent: Agent, words: list[str]) -> None:
    run = agent.run("key", "adopt", *words)
    assert run.returncode == 2
    assert "--all" in run.stderr

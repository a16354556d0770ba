"""Several stores at once: each has its own state, and none holds up another."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dpop_agent.errors import DPoPAgentError, Locked, StoreAbsent
from dpop_agent.verify import verify
from tests.agent.places import add_store, hurried, until
from tests.processes import Agent, Token
from tests.timing import Measured, ratio

HTU = "https://api.example.com/v1/me"


def configure(file: Path, tokens: dict[str, Token]) -> Path:
    """A configuration with a store for each of these PKCS#11 tokens, the first the default."""
    text = f'[agent]\ndefault_store = "{next(iter(tokens))}"\n'
    file.write_text(text)
    for name, token in tokens.items():
        add_store(file, name, token)
    return file


def states(agent: Agent) -> dict[str, str]:
    """Each store's, as `status` has it."""
    return {s["store"]: s["state"] for s in agent.client().status()["stores"]}


@pytest.fixture
def tokens(make_token: Callable[..., Token]) -> dict[str, Token]:
    return {name: make_token(name) for name in ("work", "home", "spare")}


@pytest.fixture
def agent(tmp_path: Path, tokens: dict[str, Token], make_agent: Callable[..., Agent]) -> Agent:
    """An agent with three stores, and a key named after each."""
    agent = make_agent(configure(tmp_path / "config.toml", tokens)).start()
    for name in tokens:
        agent.create_key(name, store=name)
    return agent


def test_each_store_signs_with_its_own_keys(agent: Agent) -> None:
    for name in ("work", "home", "spare"):
        (key,) = agent.client().keys(name)
        assert (key["store"], key["store_state"]) == (name, "ready")
        proof = agent.client().proof("GET", HTU, key=name)
        assert proof.jkt == key["generations"][0]["jkt"]
        verify(str(proof), htm="GET", htu=HTU, jkt=proof.jkt)


def test_status_and_key_list_show_each_stores_state(agent: Agent) -> None:
    assert states(agent) == {"work": "ready", "home": "ready", "spare": "ready"}
    assert "store " not in agent.run("key", "list", check=True).stdout
    agent.run("lock", "home", check=True)
    text = agent.config.read_text()
    agent.config.write_text(text[: text.index("[stores.spare]")])
    agent.run("reload", check=True)
    assert states(agent) == {"work": "ready", "home": "locked"}

    listed = agent.run("key", "list", check=True).stdout.splitlines()
    (home,), (spare,), (work,) = (
        [line for line in listed if line.startswith(name)] for name in ("home", "spare", "work")
    )
    assert "store locked" in home
    assert "store not in the configuration" in spare
    assert "store" not in work
    assert "store home, which is locked" in agent.run("key", "show", "home").stdout
    found = json.loads(agent.run("key", "list", "--json", check=True).stdout)["keys"]
    assert {key["key"]: key["store_state"] for key in found} == {
        "work": "ready",
        "home": "locked",
        "spare": None,
    }


def test_a_store_that_is_locked_or_absent_holds_up_no_other(
    agent: Agent, tokens: dict[str, Token]
) -> None:
    agent.stop()
    (tokens["spare"].folder / "tokens").rename(tokens["spare"].folder / "elsewhere")
    (tokens["spare"].folder / "tokens").mkdir()
    tokens["home"].pin_file.unlink()
    agent.start()
    until(lambda: states(agent) == {"work": "ready", "home": "locked", "spare": "absent"})
    client = agent.client()
    for _ in range(3):
        with pytest.raises(Locked):
            client.proof("GET", HTU, key="home")
        with pytest.raises(StoreAbsent):
            client.proof("GET", HTU, key="spare")
        assert client.proof("GET", HTU, key="work").key == "work"


def test_unlock_opens_every_store_that_can_be_and_tells_of_the_others(
    agent: Agent, tokens: dict[str, Token]
) -> None:
    agent.run("lock", check=True)
    for name in ("work", "home"):
        tokens[name].pin_file.chmod(0o644)
    ran = agent.run("unlock")
    assert (ran.returncode, ran.stdout) == (1, "the store spare is open\n")
    work, home = ran.stderr.splitlines()
    assert str(tokens["work"].pin_file) in work
    assert str(tokens["home"].pin_file) in home
    assert states(agent) == {"work": "locked", "home": "locked", "spare": "ready"}


def test_unlock_tries_a_store_that_isnt_there_and_says_why_it_stays_closed(agent: Agent) -> None:
    stored = agent.config.read_text()
    agent.config.write_text(stored.replace("token=home", "token=nowhere"))
    agent.run("reload", check=True)
    assert states(agent)["home"] == "absent"
    ran = agent.run("unlock")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "there is no PKCS#11 token pkcs11:token=nowhere" in ran.stderr


def test_lock_of_one_store_tells_of_that_one(agent: Agent) -> None:
    assert agent.run("lock", "work").stdout == "the store work is locked\n"
    assert agent.run("lock", "home").stdout == "the store home is locked\n"


def test_a_store_that_hangs_in_its_module_holds_up_another_of_that_module_for_seconds_alone(
    tmp_path: Path,
    token: Token,
    make_token: Callable[..., Token],
    make_agent: Callable[..., Agent],
    measured: Measured,
) -> None:
    hanging = make_token("hanging")
    hanging.softhsm_conf.unlink()
    os.mkfifo(hanging.softhsm_conf, 0o600)  # which C_Initialize waits for
    stores = {"hanging": hanging, "work": token}
    agent = make_agent(configure(tmp_path / "config.toml", stores)).start()
    with measured("a key is made behind a store that hangs in the same module"):
        agent.create_key("shop", store="work")
    assert states(agent) == {"hanging": "starting", "work": "ready"}


def test_three_stores_that_hang_hold_up_another_no_longer_than_one_does(
    tmp_path: Path, make_token: Callable[..., Token], make_agent: Callable[..., Agent]
) -> None:
    def behind(hanging: int) -> Callable[[], object]:
        """A key is made in a store behind so many of its module that hang."""
        stores = {}
        for n in range(hanging):
            stores[f"hanging{n}"] = stuck = make_token(f"hanging{n}")
            stuck.softhsm_conf.unlink()
            os.mkfifo(stuck.softhsm_conf, 0o600)
        stores["work"] = make_token("work")
        config = configure(tmp_path / f"behind{hanging}.toml", stores)
        agent = make_agent(config, preexec=hurried("starting.APART_S=2"))
        return lambda: agent.start().create_key("shop", store="work")

    assert ratio(behind(3), behind(1), rounds=1) < 2


def test_requests_wait_for_a_store_whose_configuration_changes(agent: Agent, token: Token) -> None:
    stored = agent.config.read_text()
    errors: list[DPoPAgentError] = []
    proofs = 0
    ended = threading.Event()

    def ask() -> None:
        nonlocal proofs
        client = agent.client()
        while not ended.is_set():
            try:
                client.proof("GET", HTU, key="work")
            except DPoPAgentError as e:
                errors.append(e)
            else:
                proofs += 1

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    for n in range(6):
        seen = proofs
        changed = stored.replace('type = "pkcs11"', 'type = "pkcs11"\nverify = "always"')
        agent.config.write_text(stored if n % 2 else changed)
        agent.run("reload", check=True)
        while proofs < seen + 10:
            time.sleep(0.01)
    ended.set()
    for thread in asking:
        thread.join()
    assert errors == []

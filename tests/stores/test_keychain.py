"""The keychain as a store, on a real gnome-keyring: the agent, its signer and the daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import secretstorage
from cryptography.hazmat.primitives.serialization import load_der_private_key
from secretstorage.util import format_secret

from dpop_agent.client import AgentClient
from dpop_agent.config import default_backend
from dpop_agent.errors import DPoPAgentError, Locked, SignerFailed, StoreAbsent
from dpop_agent.jose import ALGORITHMS, ec_jwk, thumbprint
from dpop_agent.signer.keychain import access
from dpop_agent.signer.keychain.store import KeychainStore
from dpop_agent.verify import verify
from tests.agent.places import add_store
from tests.bench.bars import WHILE_ANOTHER
from tests.emulators import Keyring
from tests.processes import Agent, Token, children, running
from tests.stores.conformance import AwayConformance, StoreConformance
from tests.timing import Measured

API = "https://api.example/v1"


@pytest.fixture
def desktop(keyring: Keyring) -> Keyring:
    return keyring


@pytest.fixture
def config(desktop: Keyring, tmp_path: Path) -> Path:
    file = tmp_path / "config.toml"
    file.write_text(
        f'[stores.desktop]\ntype = "keychain"\nenv = {{ {variables(desktop)} }}\n', "utf-8"
    )
    file.chmod(0o600)
    return file


def variables(desktop: Keyring) -> str:
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in desktop.env.items())


@pytest.fixture
def agent(config: Path, make_agent: Callable[..., Agent]) -> Agent:
    return make_agent(config).start()


@pytest.fixture
def both(config: Path, token: Token, make_agent: Callable[..., Agent]) -> Agent:
    """An agent with the keychain and a PKCS#11 token, and the keys `default` and `soft`."""
    config.write_text(f'[agent]\ndefault_store = "desktop"\n\n{config.read_text()}')
    add_store(config, "soft", token)
    agent = make_agent(config).start()
    agent.create_key("default")
    agent.create_key("soft", store="soft")
    return agent


def stores(agent: Agent) -> list[dict[str, Any]]:
    with AgentClient(agent.socket) as client:
        return list(client.status()["stores"])


def store(agent: Agent) -> dict[str, Any]:
    """The keychain as `status` has it."""
    (keychain_store,) = (s for s in stores(agent) if s["type"] == "keychain")
    return keychain_store


def works(agent: Agent, key: str = "default", *, timeout: float = 10.0) -> str:
    """A proof by that key, which holds; its jkt."""
    with AgentClient(agent.socket, timeout=timeout) as client:
        proof = client.proof("GET", API, key=key)
    return verify(str(proof), htm="GET", htu=API, jkt=proof.jkt).jkt


def works_again(agent: Agent) -> str:
    """The jkt of the first proof that there is."""
    deadline = time.monotonic() + 15
    while True:
        try:
            return works(agent)
        except DPoPAgentError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def restart_signer(agent: Agent) -> None:
    """End the process that hosts the keychain, with all that it has loaded."""
    pid = store(agent)["signer_pid"]
    os.kill(pid, signal.SIGKILL)
    while running(pid):
        time.sleep(0.01)


def found(desktop: Keyring, what: str) -> list[str]:
    """`secret` or `attribute.username` of all items that dpop-agent has there."""
    done = subprocess.run(
        ["secret-tool", "search", "--all", "application", "Python keyring library"],
        env={**os.environ, **desktop.env},
        check=False,  # 1 where there is none
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # where it prints attributes
        text=True,
        timeout=20,
    )
    lines = (line.partition(" = ") for line in done.stdout.splitlines())
    return sorted(value for name, _, value in lines if name == what)


def items(desktop: Keyring) -> list[str]:
    """What another program of the same user reads: the values of all items."""
    return found(desktop, "secret")


def end_daemon(desktop: Keyring) -> None:
    """End gnome-keyring for good, its D-Bus stays."""
    folder = os.path.dirname(desktop.env["DBUS_SESSION_BUS_ADDRESS"].removeprefix("unix:path="))
    (pid,) = (
        pid
        for pid, words in children().items()
        if words.startswith("gnome-keyring-daemon") and folder in words
    )
    os.kill(pid, signal.SIGKILL)
    while running(pid):
        time.sleep(0.01)


class TestGnomeKeyring(StoreConformance, AwayConformance):
    ALGS = tuple(ALGORITHMS)
    EXPORTABLE = True
    PROTECTION = "keychain"
    LISTS = False
    LABELS = False

    @pytest.fixture
    def agent(self, config: Path, make_agent: Callable[..., Agent]) -> Agent:
        return make_agent(config).start()

    @pytest.fixture
    def held(self, desktop: Keyring) -> Callable[[], list[str]]:
        return lambda: found(desktop, "attribute.username")

    @pytest.fixture
    def delete(self, agent: Agent, desktop: Keyring) -> Callable[[str], None]:
        def delete(ref: str) -> None:
            subprocess.run(
                ["secret-tool", "clear", "username", ref],
                env={**os.environ, **desktop.env},
                check=True,
                timeout=20,
            )
            restart_signer(agent)  # it has the key, and signs on, until it ends

        return delete

    @pytest.fixture
    def taken_away(self, desktop: Keyring) -> Callable[[], AbstractContextManager[None]]:
        @contextmanager
        def away() -> Iterator[None]:
            bus = Path(desktop.env["DBUS_SESSION_BUS_ADDRESS"].removeprefix("unix:path="))
            elsewhere = bus.rename(bus.with_name("elsewhere"))
            yield
            elsewhere.rename(bus)

        return away


def test_a_store_isnt_unlocked_before_its_keychain_is(agent: Agent, desktop: Keyring) -> None:
    jkt = agent.create_key()["jkt"]
    agent.run("lock", check=True)
    desktop.lock()
    refused = agent.run("unlock", "desktop")
    assert refused.returncode == 1
    assert "the keychain is locked; unlock it" in refused.stderr
    desktop.unlock()
    assert agent.run("unlock", "desktop").returncode == 0
    assert works(agent) == jkt


def test_another_program_of_the_user_reads_the_key_and_the_key_says_so(
    agent: Agent, desktop: Keyring
) -> None:
    made = agent.create_key()
    assert (made["exportable"], made["protection"], made["local"]) == (True, "keychain", True)
    assert "keychain, exportable, made there\n" in agent.run("key", "show", "default").stdout
    (value,) = items(desktop)
    version, _, text = value.partition(".")
    assert version == "v1"
    decoded = subprocess.run(["base64", "-d"], input=text.encode(), check=True, capture_output=True)
    private: Any = load_der_private_key(decoded.stdout, None)
    point = private.public_key().public_numbers()
    jwk = ec_jwk("P-256", point.x.to_bytes(32, "big"), point.y.to_bytes(32, "big"))
    assert thumbprint(jwk) == made["jkt"]

    assert "exportable" in agent.run("key", "list", check=True).stdout
    shown = agent.run("key", "show", "default", check=True).stdout
    assert "keychain, exportable" in shown


def test_no_part_of_the_key_is_in_the_log_or_the_ledger(agent: Agent, desktop: Keyring) -> None:
    agent.create_key()
    works(agent)
    (value,) = items(desktop)
    kept = [agent.log, *(file for file in agent.state.rglob("*") if file.is_file())]
    for file in kept:
        assert value[3:40] not in file.read_text(errors="replace")


def test_a_key_outlives_the_agent(
    agent: Agent, desktop: Keyring, make_agent: Callable[..., Agent]
) -> None:
    jkt = agent.create_key()["jkt"]
    agent.stop()
    agent.start()
    assert works_again(agent) == jkt
    assert len(items(desktop)) == 1


def test_a_destroyed_key_is_gone_from_the_keychain(agent: Agent, desktop: Keyring) -> None:
    agent.create_key()
    assert len(items(desktop)) == 1
    assert agent.run("key", "destroy", "default@1", "--yes").returncode == 0
    assert items(desktop) == []


def test_a_locked_keychain_is_told_at_once_without_a_prompt_and_used_once_it_is_unlocked(
    agent: Agent, desktop: Keyring, measured: Measured
) -> None:
    jkt = agent.create_key()["jkt"]
    desktop.lock()
    with pytest.raises(Locked, match="the keychain is locked") as caught:
        agent.create_key("another")
    assert "unlock it" in caught.value.hint
    assert works(agent) == jkt  # loaded before
    restart_signer(agent)
    with (
        measured("a proof from a locked keychain is refused"),
        pytest.raises(Locked) as caught,
    ):
        works(agent)
    assert "unlock it" in caught.value.hint
    assert store(agent)["state"] == "locked"

    desktop.unlock()
    with measured("a keychain that answers again is used"):
        assert works_again(agent) == jkt
    assert store(agent)["state"] == "ready"
    pid = agent.pid
    agent.create_key("another")
    assert agent.pid == pid


def test_a_stuck_daemon_holds_up_neither_loaded_keys_nor_other_stores(
    both: Agent, desktop: Keyring, measured: Measured
) -> None:
    jkt = works(both)
    desktop.freeze()
    with measured("`key create` in a keychain that is stuck ends after its 5 s"):
        waiting = subprocess.Popen(
            [sys.executable, "-m", "dpop_agent", "key", "create", "another", "--any-origin"],
            env=both.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        served = 0
        while waiting.poll() is None:
            with measured(WHILE_ANOTHER):
                works(both, "soft")
            served += 1
            time.sleep(0.05)
        error = waiting.communicate()[1]
    assert waiting.returncode == 1
    assert "didn't answer" in error
    assert error.count("\n") == 1
    assert served > 10
    assert works(both) == jkt

    desktop.thaw()
    both.create_key("another")
    assert works(both, "another") != jkt
    assert len(items(desktop)) == 2


def test_a_daemon_that_is_stuck_when_the_signer_starts_is_used_once_it_answers(
    both: Agent, desktop: Keyring, measured: Measured
) -> None:
    jkt = works(both)
    desktop.freeze()
    restart_signer(both)
    with (
        measured("a keychain that is stuck is told after its 5 s"),
        pytest.raises(SignerFailed, match="didn't answer"),
    ):
        works(both, timeout=30)
    assert store(both)["state"] in ("failed", "starting")
    with measured(WHILE_ANOTHER):
        works(both, "soft")
    desktop.thaw()
    with measured("a keychain that answers again is used"):
        assert works_again(both) == jkt


def test_a_write_that_was_cut_short_is_known_once_the_daemon_answers(
    desktop: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in desktop.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(access, "CALL_TIMEOUT_S", 1.0)
    store = KeychainStore(backend=default_backend())
    ref = store.reserve("ES256")

    def freeze_before_it_is_sent(*arguments: Any) -> Any:
        desktop.freeze()
        return format_secret(*arguments)

    monkeypatch.setattr(secretstorage.collection, "format_secret", freeze_before_it_is_sent)
    with pytest.raises(SignerFailed, match="didn't answer"):
        store.generate(ref, "ES256", "")
    with pytest.raises(SignerFailed, match="didn't answer"):
        store.find(ref, "ES256", self_test=True)
    desktop.thaw()
    assert store.find(ref, "ES256", self_test=True) is not None
    assert len(items(desktop)) == 1


def test_no_descriptor_is_left_by_errors(desktop: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in desktop.env.items():
        monkeypatch.setenv(name, value)
    store = KeychainStore(backend=default_backend())
    store.open()
    before = len(os.listdir("/proc/self/fd"))
    desktop.lock()
    for _ in range(20):
        with pytest.raises(Locked):
            store.find("aa", "ES256", self_test=False)
    end_daemon(desktop)
    for _ in range(20):
        with pytest.raises(StoreAbsent):
            store.find("aa", "ES256", self_test=False)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_daemon_that_ended_is_told_and_loaded_keys_sign_on(
    agent: Agent, desktop: Keyring
) -> None:
    jkt = agent.create_key()["jkt"]
    end_daemon(desktop)
    with pytest.raises(StoreAbsent) as caught:
        agent.create_key("another")
    assert caught.value.hint
    assert works(agent) == jkt
    restart_signer(agent)
    with pytest.raises(StoreAbsent):
        works(agent)
    assert store(agent)["state"] == "absent"
    listed = agent.run("key", "list", "--json", check=True).stdout
    (key,) = json.loads(listed)["keys"]
    (generation,) = key["generations"]
    assert (key["key"], generation["state"], generation["missing"]) == ("default", "active", False)


def test_without_a_d_bus_the_store_is_absent_and_says_what_it_needs(
    tmp_path: Path, make_agent: Callable[..., Agent]
) -> None:
    config = tmp_path / "config.toml"
    for env in ("", f'env = {{ DBUS_SESSION_BUS_ADDRESS = "unix:path={tmp_path}/none" }}\n'):
        config.write_text(f'[stores.desktop]\ntype = "keychain"\n{env}')
        config.chmod(0o600)
        agent = make_agent(config).start()
        with pytest.raises(StoreAbsent) as caught:
            agent.create_key()
        assert "D-Bus" in caught.value.hint
        assert store(agent)["state"] == "absent"
        agent.stop()


def test_a_plaintext_keychain_is_refused_before_anything_starts(
    tmp_path: Path, make_agent: Callable[..., Agent]
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        '[stores.desktop]\ntype = "keychain"\nbackend = "keyrings.alt.file.PlaintextKeyring"\n'
    )
    config.chmod(0o600)
    run = make_agent(config).run("serve")
    assert run.returncode == 1
    assert "isn't accepted" in run.stderr
    assert "keep private keys in files" in run.stderr


def test_init_writes_a_configuration_that_works_and_says_exportable(
    desktop: Keyring, tmp_path: Path, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent(tmp_path / "places" / "config.toml", env=desktop.env)
    said = agent.run("init", "--keychain", check=True).stdout
    assert "exportable" in said
    assert "'Login'" in said or "'login'" in said
    assert agent.run("config", "check").returncode == 0
    agent.start()
    assert agent.create_key()["protection"] == "keychain"
    works(agent)
    desktop.lock()
    agent.config.unlink()
    assert "locked" in agent.run("init", "--keychain", check=True).stdout


def test_a_stuck_daemon_does_not_hang_init(
    desktop: Keyring, make_agent: Callable[..., Agent], measured: Measured
) -> None:
    agent = make_agent(env=desktop.env)
    agent.config.unlink()
    desktop.freeze()
    with measured("`init` with a keychain that is stuck ends after its 5 s"):
        run = agent.run("init", "--keychain")
    assert run.returncode == 1
    assert "didn't answer" in run.stderr
    assert not agent.config.exists()

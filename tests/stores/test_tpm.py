"""A TPM 2.0 as a store: swtpm, tpm2-abrmd and tpm2-pkcs11, the agent and its signer."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from tests.agent.places import store, until, until_open, until_state
from tests.agent.wire import Wire
from tests.bench.bars import ABSENT
from tests.emulators import Tpm
from tests.processes import Agent, Token
from tests.stores import on_token
from tests.stores.conformance import (
    TARGET,
    AwayConformance,
    PinConformance,
    SeenByPkcs11,
    StoreConformance,
    other_pin,
)
from tests.timing import Measured

STRANGER = "aa" * 16


@pytest.fixture
def agent(make_agent: Callable[..., Agent], tpm: Tpm) -> Agent:
    agent = make_agent(tpm.token.config).start()
    until_open(agent)  # two programs that open tpm2-pkcs11's database at once lock each other out
    return agent


class TestTpm(SeenByPkcs11, StoreConformance, PinConformance, AwayConformance):
    ALGS = ("ES256", "ES384", "RS256", "PS256")
    PROTECTION = "hardware"

    @pytest.fixture
    def agent(self, agent: Agent) -> Agent:
        return agent

    @pytest.fixture
    def token(self, tpm: Tpm) -> Token:
        return tpm.token

    @pytest.fixture
    def delete(self, tpm: Tpm, agent: Agent) -> Callable[[str], None]:
        def delete(ref: str) -> None:
            on_token.delete(tpm.token, ref)
            # tpm2-pkcs11 keeps the keys that it has loaded for as long as its process lives.
            signer = until_open(agent)["signer_pid"]
            os.kill(signer, signal.SIGKILL)
            until(lambda: store(agent)["signer_pid"] not in (None, signer))

        return delete

    @pytest.fixture
    def wrong_pin(self, tpm: Tpm) -> Callable[[], AbstractContextManager[None]]:
        @contextmanager
        def wrong() -> Iterator[None]:
            with other_pin(tpm.token, "another"):
                yield
            assert tpm.wrong_pins() == 1

        return wrong

    @pytest.fixture
    def taken_away(self, tpm: Tpm) -> Callable[[], AbstractContextManager[None]]:
        @contextmanager
        def away() -> Iterator[None]:
            tpm.stop()
            yield
            tpm.start()

        return away


def make(agent: Agent) -> str:
    """A new key's jkt."""
    return str(agent.create_key("shop")["jkt"])


def prove(agent: Agent) -> str:
    """The jkt of a proof, as soon as there is one."""
    with Wire(agent.socket, timeout=60) as wire:
        until(lambda: "result" in wire.ask("proof", **TARGET, key="shop"))
        return str(wire.result("proof", **TARGET, key="shop")["jkt"])


def test_a_key_can_only_sign_and_can_never_leave_the_tpm(agent: Agent, tpm: Tpm) -> None:
    for alg in TestTpm.ALGS:
        agent.create_key(alg.lower(), alg=alg)
    private = [found for found in on_token.objects(tpm.token) if found["class"] == "PRIVATE_KEY"]
    assert len(private) == len(TestTpm.ALGS)
    for found in private:
        assert found["SENSITIVE"] is found["ALWAYS_SENSITIVE"] is True
        assert found["EXTRACTABLE"] is False
        assert found["NEVER_EXTRACTABLE"] is True
        # A TPM has one bit for signing and encrypting, which tpm2-pkcs11 shows as both.
        assert set(found["uses"]) <= {"SIGN", "ENCRYPT"}


def test_a_strangers_key_stays_when_the_agents_are_destroyed(agent: Agent, tpm: Tpm) -> None:
    on_token.make_stranger(tpm.token, key_id="aa" * 16)
    make(agent)
    with Wire(agent.admin_socket, timeout=60) as wire:
        wire.result("key.destroy", key="shop", generation=1)
    assert {found["id"] for found in on_token.objects(tpm.token)} == {"aa" * 16}
    assert len(on_token.objects(tpm.token)) == 2


def test_a_tpm_switched_off_under_the_agent_is_told_at_once_and_used_when_it_is_back(
    agent: Agent, tpm: Tpm, measured: Measured
) -> None:
    jkt = make(agent)
    tpm.stop()
    with Wire(agent.socket, timeout=60) as wire:
        for _ in range(3):
            with measured(ABSENT):
                assert wire.error("proof", **TARGET, key="shop")["type"] == "store_absent"
    assert store(agent)["state"] == "absent"
    tpm.start()
    assert prove(agent) == jkt
    assert tpm.wrong_pins() == 0


def test_a_tpm_that_locked_itself_says_so_and_works_again_once_it_is_reset(
    agent: Agent, tpm: Tpm
) -> None:
    jkt = make(agent)
    agent.stop()
    with other_pin(tpm.token, "wrong 1"):
        agent.start()
        until_state(agent, "locked")
    for count in (2, 3):
        assert tpm.wrong_pins() == count - 1
        with other_pin(tpm.token, f"wrong {count}"):
            assert agent.run("unlock").returncode == 1
    assert tpm.wrong_pins() == 3
    with Wire(agent.admin_socket, timeout=60) as wire:
        error = wire.error("proof", **TARGET, key="shop")
        assert error["type"] == "pin_refused"
        name = store(agent)["store"]
        assert "locked" in wire.error("unlock", store=name)["message"]
        agent.stop()
        agent.start()
    with Wire(agent.admin_socket, timeout=60) as wire:
        assert "locked" in wire.error("proof", **TARGET, key="shop")["message"]
        tpm.forget_wrong_pins()
        wire.result("unlock", store=name)
    until_open(agent)
    assert prove(agent) == jkt


def test_what_another_program_made_or_deleted_is_seen_by_reload(agent: Agent, tpm: Tpm) -> None:
    jkt = make(agent)
    signer = until_open(agent)["signer_pid"]
    with Wire(agent.admin_socket, timeout=60) as wire:
        for refs in ([STRANGER], []):
            if refs:
                on_token.make_stranger(tpm.token, key_id=STRANGER)
            else:
                on_token.delete(tpm.token, STRANGER)
            wire.result("reload")
            assert [found["ref"] for found in store(agent)["unknown"]] == refs
    assert prove(agent) == jkt
    assert store(agent)["signer_pid"] == signer


def test_a_key_that_another_program_just_made_can_be_adopted(agent: Agent, tpm: Tpm) -> None:
    on_token.make_stranger(tpm.token, key_id=STRANGER)
    with Wire(agent.admin_socket, timeout=60) as wire:
        wire.result("key.adopt", key="shop", origins=[], ref=STRANGER)
        wire.result("key.activate", key="shop", generation=1)
        on_token.make_stranger(tpm.token, key_id="bb" * 16, label="another")
        wire.result("key.adopt", key="other", origins=[], label="another")
    prove(agent)

"""SoftHSM2: the store of the tests, in files of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from dpop_agent.jose import ALGORITHMS
from tests.agent.places import changed_config, until, until_open, until_state
from tests.agent.wire import Wire
from tests.bench.bars import ABSENT
from tests.emulators import built, need
from tests.processes import Agent, Token, new_token
from tests.state_folder import changed
from tests.stores import on_token
from tests.stores.conformance import (
    TARGET,
    AwayConformance,
    PinConformance,
    SeenByPkcs11,
    StoreConformance,
    until_back,
)
from tests.timing import Measured


class TestSoftHsm(SeenByPkcs11, StoreConformance, PinConformance, AwayConformance):
    ALGS = tuple(ALGORITHMS)
    PROTECTION = "software-token"

    @pytest.fixture
    def agent(self, make_agent: Callable[..., Agent], token: Token) -> Agent:
        agent = make_agent(token.config).start()
        until_open(agent)  # two processes that initialise SoftHSM at once can miss a token
        return agent

    @pytest.fixture
    def taken_away(self, token: Token) -> Callable[[], AbstractContextManager[None]]:
        @contextmanager
        def away() -> Iterator[None]:
            tokens = token.folder / "tokens"
            kept = tokens.rename(token.folder / "kept")
            tokens.mkdir()
            yield
            tokens.rmdir()
            kept.rename(tokens)

        return away


def initialise_again(token: Token, *, pin: str) -> None:
    """What another program does that has the PKCS#11 token's officer PIN; its label stays."""
    serial = on_token.serial(token)
    # It takes PINs from its arguments alone; these are of no use to anybody.
    subprocess.run(
        [
            *("softhsm2-util", "--init-token", "--serial", serial, "--label", token.label),
            *("--so-pin", (token.folder / "so-pin").read_text().strip(), "--pin", pin),
        ],
        env={**os.environ, **token.env},
        check=True,
        timeout=20,
        stdout=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("same_pin", [True, False])
def test_a_token_that_was_initialised_again_has_no_key_and_never_signs_by_another(
    make_agent: Callable[..., Agent], token: Token, measured: Measured, *, same_pin: bool
) -> None:
    agent = make_agent(token.config).start()
    until_open(agent)
    with Wire(agent.admin_socket, timeout=60) as wire:
        agent.create_key("shop")
        initialise_again(token, pin=token.pin if same_pin else "another")
        with measured(ABSENT):
            assert wire.error("proof", **TARGET, key="shop")["type"] != "timeout"
        if same_pin:
            on_token.make_stranger(token, key_id="aa" * 16)
            agent.create_key("new")
            for _ in range(3):
                assert wire.error("proof", **TARGET, key="shop")["type"] == "key_missing"
            (key,) = wire.result("key.list", key="shop")["keys"]
            assert key["generations"][0]["missing"]
        else:
            until_state(agent, "locked")
            for _ in range(3):
                assert wire.error("proof", **TARGET, key="shop")["type"] == "pin_refused"


def test_a_module_that_crashes_is_told_by_the_settings_that_may_be_wrong(
    token: Token, make_agent: Callable[..., Agent]
) -> None:
    need("gcc", "libc6-dev")
    module = built("crashing_module.c", token.folder)
    agent = make_agent(changed_config(token, module=str(module))).start()
    told = until_state(agent, "failed")
    assert (
        told["hint"] == "its module may have crashed: see the store's module, module_args and env"
    )


def test_a_token_that_was_made_after_the_start_is_opened_by_the_first_request(
    make_agent: Callable[..., Agent], token: Token, measured: Measured
) -> None:
    (token.folder / "tokens").rename(token.folder / "none")
    (token.folder / "tokens").mkdir()
    agent = make_agent(token.config).start()
    with Wire(agent.admin_socket, timeout=60) as wire:
        assert wire.error("key.create", key="shop", origins=[])["type"] == "store_absent"
        new_token(token.folder, token.label)
        until_back(lambda: "result" in wire.ask("key.create", key="shop", origins=[]), measured)


def test_a_private_key_that_somebody_put_beside_a_destroyed_one_is_not_deleted_with_it(
    token: Token, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent(token.config).start()
    agent.create_key("shop")
    agent.stop()
    (ref,) = on_token.private_ids(token)
    with changed(agent.state / "ledger.json") as contents:  # as of one killed before it deleted
        contents["keys"][0]["generations"][0] |= {"state": "destroyed", "object_left": True}
    on_token.make_stranger(token, key_id=ref)
    on_token.delete(token, ref, label="somebody else's", public_alone=True)
    agent.start()
    until(lambda: "isn't the agent's key any more" in agent.log.read_text())
    assert on_token.private_ids(token) == [ref, ref]

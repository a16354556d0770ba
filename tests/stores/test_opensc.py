"""OpenSC's module, for a card whose keys it can use, and neither make nor delete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent.places import store, until, until_open
from tests.agent.wire import Wire
from tests.emulators import OPENSC, YubiKey, file_of, need
from tests.processes import Agent
from tests.stores.conformance import HTU

SIGNATURE, ITS_CERTIFICATE = 0x9C, "5fc10a"
"""NIST SP 800-73-4 part 1 table 4b."""


@pytest.fixture
def agent(make_agent: Callable[..., Agent], yubikey: YubiKey, tmp_path: Path) -> Agent:
    """An agent with a configuration as `init` writes it, and a card with one key."""
    need(*OPENSC)
    yubikey.card.make_key(SIGNATURE)
    yubikey.card.certify(SIGNATURE, ITS_CERTIFICATE)
    agent = make_agent(tmp_path / "written" / "config.toml", env=yubikey.token.env)
    words = ("--module", file_of("opensc-pkcs11"), "--pin-file", str(yubikey.token.pin_file))
    agent.run("init", *words, check=True)
    agent.start()
    until_open(agent)
    return agent


def adopt(agent: Agent) -> str:
    """The jkt of the card's key, which is the agent's `default` now."""
    with Wire(agent.admin_socket, timeout=60) as wire:
        (key,) = wire.result("key.adopt", key="default", ref="02", origins=[])["keys"]
        wire.result("key.activate", key="default", generation=1)
        return str(key["generations"][0]["jkt"])


def test_a_key_that_is_on_the_card_can_be_adopted_and_signs_again_and_again(agent: Agent) -> None:
    jkt = adopt(agent)
    for _ in range(3):
        assert agent.client().proof("POST", HTU).jkt == jkt


def test_a_new_key_is_refused_with_what_to_do_instead(agent: Agent) -> None:
    refused = agent.run("key", "create", "shop", "--any-origin")
    assert refused.returncode == 1
    assert "can't make keys for ES256; make one with its vendor's tool" in refused.stderr


def test_a_key_that_cannot_be_deleted_is_left_without_disturbing_the_store(agent: Agent) -> None:
    adopt(agent)
    signer = store(agent)["signer_pid"]
    with Wire(agent.admin_socket, timeout=60) as wire:
        error = wire.error("key.destroy", key="default", generation=1)
        assert (error["type"], error["retry"]) == ("object_left", "no")
        (key,) = wire.result("key.list", include_destroyed=True)["keys"]
        (generation,) = key["generations"]
        assert (generation["state"], generation["object_left"]) == ("destroyed", True)
    assert until_open(agent)["signer_pid"] == signer
    agent.stop()
    agent.start()  # what is left is tried again when the store is opened
    signer = until_open(agent)["signer_pid"]
    until(lambda: "doesn't let this key be deleted" in agent.log.read_text())
    assert store(agent)["signer_pid"] == signer

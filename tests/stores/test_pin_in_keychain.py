"""`pin_source = "keychain"`: real PKCS#11 tokens, whose PIN a real gnome-keyring keeps."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dpop_agent.client import AgentClient
from tests.agent.places import add_store, changed_config, until_open, until_state
from tests.agent.wire import Wire, request
from tests.bench.bars import WHILE_ANOTHER
from tests.emulators import Keyring, YubiKey
from tests.piv_card import PIN_TRIES
from tests.processes import Agent, Token
from tests.stores.conformance import TARGET, signs, until_back
from tests.stores.test_yubikey import Authorizing
from tests.terminal import Terminal, unlock
from tests.timing import Measured

HTU = "https://api.example.com/v1/me"


def configured(token: Token, keyring: Keyring) -> Path:
    """The PKCS#11 token with its PIN in that keychain."""
    return changed_config(token, env=keyring.env, pin_source="keychain")


@pytest.fixture
def agent(make_agent: Callable[..., Agent], token: Token, keyring: Keyring) -> Agent:
    """An agent with a key, whose PIN the keychain doesn't have yet."""
    agent = make_agent(token.config).start()
    agent.create_key("shop")
    agent.stop()
    return make_agent(configured(token, keyring), state=agent.state).start()


def opens(agent: Agent, pin: str) -> None:
    """Somebody types the PIN, and the store opens."""
    status, shown = unlock(agent, pin)
    assert status == 0, shown


def uri(token: Token) -> str:
    """What names the PKCS#11 token, in its configuration and in the keychain."""
    found = re.search('^uri = "(.*)"$', token.config.read_text(), flags=re.M)
    assert found
    return found[1]


def kept(keyring: Keyring, token: Token) -> str | None:
    """What any program of the same user reads."""
    done = subprocess.run(
        ["secret-tool", "lookup", "service", "dpop-agent/pin", "username", uri(token)],
        env={**os.environ, **keyring.env},
        check=False,
        stdout=subprocess.PIPE,
        text=True,
        timeout=20,
    )
    return done.stdout if done.returncode == 0 else None


def keep(keyring: Keyring, token: Token, pin: str) -> None:
    """Have the item that the agent's signers write: with fewer attributes it would be another."""
    subprocess.run(
        [
            "secret-tool",
            "store",
            "--label=PIN",
            "service",
            "dpop-agent/pin",
            "username",
            uri(token),
            "application",
            "Python keyring library",
        ],
        env={**os.environ, **keyring.env},
        check=True,
        input=pin,
        text=True,
        timeout=20,
    )


def proves(agent: Agent, *, key: str = "shop") -> None:
    with AgentClient(agent.socket) as client:
        client.proof("GET", HTU, key=key)


def test_a_pin_is_typed_once_and_later_starts_read_it_from_the_keychain(
    agent: Agent, token: Token, keyring: Keyring
) -> None:
    reason = until_state(agent, "locked")["reason"]
    assert "the keychain has no PIN for the store softhsm yet" in reason
    assert agent.run("unlock").returncode == 1  # nobody is there to type
    opens(agent, token.pin)
    assert kept(keyring, token) == token.pin
    proves(agent)
    assert agent.stop() == 0
    agent.start()
    proves(agent)
    assert token.pin not in agent.log.read_text()


def test_who_types_a_pin_that_will_be_stored_is_told_so_before(agent: Agent, token: Token) -> None:
    until_state(agent, "locked")
    with Terminal(agent, "unlock") as terminal:
        terminal.until("PIN of the store")
        assert "will be stored in the operating system's keychain" in terminal.shown
        terminal.type(f"{token.pin}\n")
        assert terminal.end()[0] == 0
    agent.run("lock", check=True)
    with Terminal(agent, "unlock") as terminal:  # it is there by now
        status, shown = terminal.end()
    assert (status, "will be stored" in shown) == (0, False)


def test_a_wrong_pin_that_is_typed_isnt_put_into_the_keychain(
    agent: Agent, token: Token, keyring: Keyring
) -> None:
    status, shown = unlock(agent, "99999999")
    assert status == 1
    assert "refused its PIN" in shown
    assert kept(keyring, token) is None
    opens(agent, token.pin)
    assert kept(keyring, token) == token.pin


def test_after_lock_nothing_logs_in_before_unlock_which_asks_nobody(
    agent: Agent, token: Token, keyring: Keyring
) -> None:
    opens(agent, token.pin)
    agent.run("lock", check=True)
    assert kept(keyring, token) == token.pin
    with Wire(agent.admin_socket) as wire:
        wire.result("reload")
        assert wire.error("proof", **TARGET, key="shop")["type"] == "locked"
    assert agent.run("unlock").stdout == "the store softhsm is open\n"
    proves(agent)


@pytest.mark.parametrize("deletable", [True, False])
def test_a_pin_from_the_keychain_that_was_refused_costs_one_try_whatever_is_started_again(
    make_agent: Callable[..., Agent], yubikey: YubiKey, keyring: Keyring, *, deletable: bool
) -> None:
    keep(keyring, yubikey.token, "000000")
    if not deletable:
        keyring.forbid_deleting()
    agent = make_agent(configured(yubikey.token, keyring)).start()
    assert "refused its PIN" in until_state(agent, "locked")["reason"]
    assert (kept(keyring, yubikey.token) is None) is deletable
    with Wire(agent.admin_socket) as wire:
        wire.result("reload")
        assert wire.error("key.create", key="shop", origins=[])["type"] in ("locked", "pin_refused")
    for _ in range(2):
        agent.stop()
        agent.start()
        until_state(agent, "locked")
    assert yubikey.card.tries == PIN_TRIES - 1
    opens(agent, yubikey.token.pin)
    assert kept(keyring, yubikey.token) == yubikey.token.pin
    agent.stop()
    agent.start()
    until_open(agent)
    assert yubikey.card.tries == PIN_TRIES


def test_a_pin_that_was_typed_kept_and_then_refused_costs_one_try_and_leaves_the_keychain(
    make_agent: Callable[..., Agent], yubikey: YubiKey, keyring: Keyring
) -> None:
    agent = make_agent(configured(yubikey.token, keyring)).start()
    unlock(agent, yubikey.card.pin)
    with Authorizing(agent.admin_socket, yubikey) as wire:
        wire.make("always", slot="9c")
        yubikey.card.pin = "94949494"
        for _ in range(3):
            error = wire.error("proof", **TARGET, key="always")
            assert error["type"] in ("pin_refused", "locked")
        wire.result("reload")
    assert yubikey.card.tries == PIN_TRIES - 1
    assert kept(keyring, yubikey.token) is None


def test_a_locked_keychain_is_told_at_once_asks_nobody_and_is_read_when_it_is_unlocked(
    agent: Agent, token: Token, keyring: Keyring, measured: Measured
) -> None:
    opens(agent, token.pin)
    agent.stop()
    keyring.lock()
    agent.start()
    with Wire(agent.admin_socket) as wire:
        with measured("a proof from a locked keychain is refused"):
            error = wire.error("proof", **TARGET, key="shop")
        assert (error["type"], error["retry"]) == ("locked", "later")
        assert "the keychain is locked" in error["message"]
        assert "unlock it, as the login does" in error["hint"]
        assert wire.error("unlock", store="softhsm")["message"] == "the keychain is locked"
        keyring.unlock()
        until_back(lambda: signs(wire), measured)


def test_without_a_keychain_the_store_is_absent_and_nobody_is_asked(
    make_agent: Callable[..., Agent], token: Token, keyring: Keyring
) -> None:
    keyring.env["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={token.folder}/none"
    agent = make_agent(configured(token, keyring)).start()
    with Wire(agent.admin_socket) as wire:
        error = wire.error("key.create", key="shop", origins=[])
        assert (error["type"], error["retry"]) == ("store_absent", "later")
        assert "D-Bus" in error["hint"]
        assert wire.error("unlock", store="softhsm")["type"] == "store_absent"


def test_a_stuck_keychain_is_told_in_time_and_holds_up_no_other_store(
    agent: Agent,
    token: Token,
    keyring: Keyring,
    make_token: Callable[..., Token],
    measured: Measured,
) -> None:
    opens(agent, token.pin)
    add_store(agent.config, "other", make_token("other"))
    agent.run("reload", check=True)
    agent.create_key("quick", store="other")
    agent.run("lock", "softhsm", check=True)
    keyring.freeze()
    with (
        Wire(agent.admin_socket) as wire,
        measured("a keychain that is stuck is told after its 5 s"),
    ):
        wire.send(request("unlock", {"store": "softhsm"}))
        served = 0
        while wire.silent:
            with measured(WHILE_ANOTHER):
                proves(agent, key="quick")
            served += 1
            time.sleep(0.1)
        answer = wire.next()
    assert served > 10
    assert answer["error"]["data"]["type"] == "signer_failed"
    assert "didn't answer" in answer["error"]["message"]
    keyring.thaw()
    with Wire(agent.socket) as wire:
        until_back(lambda: signs(wire), measured)


def test_a_pin_in_the_keychain_is_tried_on_no_other_token(
    keyring: Keyring, make_token: Callable[..., Token], make_agent: Callable[..., Agent]
) -> None:
    one, other = make_token("one"), make_token("other")
    agent = make_agent(configured(one, keyring)).start()
    opens(agent, one.pin)
    agent.stop()
    later = make_agent(configured(other, keyring), state=agent.state).start()
    assert "has no PIN" in until_state(later, "locked")["reason"]
    opens(later, other.pin)
    assert (kept(keyring, one), kept(keyring, other)) == (one.pin, other.pin)

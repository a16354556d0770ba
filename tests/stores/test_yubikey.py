"""A YubiKey as a store: the emulated card, a real pcscd, Yubico's own module, and a signer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.emulators import YubiKey, file_of
from tests.emulators import yubikey as new_yubikey
from tests.piv_card import PIN_TRIES
from tests.processes import Agent

OPEN_S = 5.0
"""Seconds in which a signer finds the card and logs in."""


def tokens(yubikey: YubiKey) -> list[dict[str, Any]]:
    """What the signer lists of Yubico's module."""
    done = subprocess.run(
        [sys.executable, "-m", "dpop_agent.signer", "--tokens", file_of("ykcs11")],
        env={**os.environ, **yubikey.token.env},
        stdout=subprocess.PIPE,
        text=True,
        timeout=20,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def serials(yubikey: YubiKey) -> list[str]:
    return [token["serial"] for token in tokens(yubikey)]


def test_yubicos_module_shows_the_card_and_listing_it_asks_for_no_pin(yubikey: YubiKey) -> None:
    serial = str(yubikey.card.serial)
    assert serials(yubikey) == [serial]
    (token,) = tokens(yubikey)
    assert token["label"] == yubikey.token.label == f"YubiKey PIV #{serial}"
    assert token["manufacturer"] == "Yubico (www.yubico.com)"
    assert token["initialized"] is True
    assert yubikey.card.pins == 0


def test_a_card_is_gone_when_pulled_and_back_when_put_in_again(yubikey: YubiKey) -> None:
    serial = str(yubikey.card.serial)
    assert serials(yubikey) == [serial]
    yubikey.pull()
    assert tokens(yubikey) == []
    yubikey.plug()
    assert serials(yubikey) == [serial]


def test_a_card_is_back_after_pcscd_was_restarted(yubikey: YubiKey) -> None:
    serial = str(yubikey.card.serial)
    assert serials(yubikey) == [serial]
    yubikey.stop_pcscd()
    yubikey.start_pcscd()
    assert serials(yubikey) == [serial]


def test_each_emulated_card_is_seen_in_its_own_reader_alone(yubikey: YubiKey) -> None:
    with new_yubikey() as other:
        assert other.card.serial != yubikey.card.serial
        assert serials(yubikey) == [str(yubikey.card.serial)]
        assert serials(other) == [str(other.card.serial)]


def test_a_card_that_another_program_holds_is_not_shown_until_it_lets_go(
    yubikey: YubiKey,
) -> None:
    assert serials(yubikey) == [str(yubikey.card.serial)]
    with yubikey.held():
        assert tokens(yubikey) == []
    assert serials(yubikey) == [str(yubikey.card.serial)]


def test_an_agent_logs_in_to_the_card_with_one_pin(
    yubikey: YubiKey, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent(yubikey.token.config).start()
    deadline = time.monotonic() + OPEN_S
    with agent.client() as client:
        while (store := client.status()["stores"][0])["state"] == "starting":
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert store["state"] == "ready"
    assert store["serial"] == str(yubikey.card.serial)
    assert (yubikey.card.pins, yubikey.card.tries) == (1, PIN_TRIES)

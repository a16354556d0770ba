"""Real modules behind p11-kit's proxy, whose CK_INFO is its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent.places import changed_config, store, until, until_open
from tests.agent.wire import Wire
from tests.emulators import P11KIT, Tpm, YubiKey, file_of, need
from tests.processes import Agent, Token
from tests.stores import on_token
from tests.stores.conformance import HTU

STRANGER = "aa" * 16

# Which modules it shows is root's to say, and this agent's view of that is its own.
_SHOWING = 'mount --bind "$1" "$2"; shift 2; exec "$@"'

Behind = Callable[[Token], Agent]


@pytest.fixture
def behind(make_agent: Callable[..., Agent], own_mounts: None, tmp_path: Path) -> Behind:
    """An agent that reaches a PKCS#11 token's module through the proxy alone."""
    need(*P11KIT)

    def start(token: Token) -> Agent:
        shown = tmp_path / "shown"
        shown.mkdir()
        (shown / "one.module").write_text(f"module: {token.module}\n")
        modules = str(Path(file_of("p11-kit-modules")).parent)
        preexec = ["unshare", "--mount", "sh", "-ec", _SHOWING, "sh", str(shown), modules]
        config = changed_config(token, module=file_of("libp11-kit0"))
        agent = make_agent(config, preexec=preexec).start()
        until_open(agent)
        return agent

    return start


def signs_on(agent: Agent, *algs: str) -> None:
    """It makes keys, and signs by them after a restart; a stranger's is seen and adopted."""
    made = {alg.lower(): agent.create_key(alg.lower(), alg=alg)["jkt"] for alg in algs}
    agent.stop()
    agent.start()
    for name, jkt in made.items():
        assert agent.client().proof("POST", HTU, key=name).jkt == jkt


def adopts(agent: Agent, token: Token) -> None:
    """What another program made is seen, and signs."""
    signer = until_open(agent)["signer_pid"]
    on_token.make_stranger(token, key_id=STRANGER)
    with Wire(agent.admin_socket, timeout=60) as wire:
        wire.result("reload")
        assert [found["ref"] for found in store(agent)["unknown"]] == [STRANGER]
        wire.result("key.adopt", key="foreign", origins=[], ref=STRANGER)
        wire.result("key.activate", key="foreign", generation=1)
    agent.client().proof("POST", HTU, key="foreign")
    assert store(agent)["signer_pid"] == signer


def test_softhsm_behind_the_proxy_makes_keys_signs_and_shows_what_others_made(
    behind: Behind, token: Token
) -> None:
    agent = behind(token)
    signs_on(agent, "ES256", "RS256", "EdDSA")
    adopts(agent, token)


def test_a_tpm_behind_the_proxy_makes_keys_signs_and_shows_what_others_made(
    behind: Behind, tpm: Tpm
) -> None:
    agent = behind(tpm.token)
    signs_on(agent, "ES256", "RS256")
    adopts(agent, tpm.token)


def test_a_yubikey_behind_the_proxy_has_slots_and_doesnt_offer_its_attestation_key(
    behind: Behind, yubikey: YubiKey
) -> None:
    yubikey.card.make_key(0x9A)
    agent = behind(yubikey.token)
    until(lambda: store(agent)["slots"])  # it is looked into once it is open
    told = store(agent)
    assert [found["ref"] for found in told["unknown"]] == ["01"]
    assert told["slots"] == {"total": 24, "free": 23}
    with Wire(agent.admin_socket, timeout=60) as wire:
        assert wire.error("key.adopt", key="f9", origins=[], ref="19")["type"] == "key_missing"
        wire.result("key.adopt", key="shop", origins=[], ref="01")
        wire.result("key.activate", key="shop", generation=1)
    agent.client().proof("POST", HTU, key="shop")

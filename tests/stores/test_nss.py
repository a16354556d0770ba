"""NSS's softoken: a module that wants arguments, and has two PKCS#11 tokens."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from dpop_agent.signer.pkcs11.token import FRESH_S
from tests.agent.places import changed_config, serve_with, store, until, until_logged, until_open
from tests.agent.wire import Wire
from tests.emulators import NSS, certutil, need, nss
from tests.processes import Agent, Token
from tests.stores import on_token
from tests.stores.conformance import (
    HTU,
    TARGET,
    AwayConformance,
    PinConformance,
    SeenByPkcs11,
    StoreConformance,
)

EC_KEY = ("-k", "ec", "-q", "nistp256", "-z", __file__)
"""certutil's words for a new key; it wants some noise too."""


@pytest.fixture
def token(tmp_path: Path) -> Token:
    need(*NSS)
    return nss(tmp_path / "nss")


@pytest.fixture
def agent(make_agent: Callable[..., Agent], token: Token) -> Agent:
    agent = make_agent(token.config).start()
    until_open(agent)
    return agent


class TestNss(SeenByPkcs11, StoreConformance, PinConformance, AwayConformance):
    ALGS = ("ES256", "ES384", "ES512", "RS256", "PS256")
    PROTECTION = "software-token"
    LOCAL = False  # so it says of keys that were made in it

    @pytest.fixture
    def agent(self, agent: Agent) -> Agent:
        return agent

    @pytest.fixture
    def taken_away(self, token: Token) -> Callable[[], AbstractContextManager[None]]:
        @contextmanager
        def away() -> Iterator[None]:
            kept = (token.folder / "db").rename(token.folder / "kept")
            yield
            kept.rename(token.folder / "db")

        return away


def refusal(agent: Agent) -> str:
    """Why the store can't be used, and what next."""
    until(lambda: store(agent)["reason"])
    assert "Traceback" not in agent.log.read_text()
    told = store(agent)
    return f"{told['reason']}; {told['hint']}"


def test_a_key_can_only_sign_and_can_never_leave_the_database(agent: Agent, token: Token) -> None:
    for alg in TestNss.ALGS:
        agent.create_key(alg.lower(), alg=alg)
    private = [found for found in on_token.objects(token) if found["class"] == "PRIVATE_KEY"]
    assert len(private) == len(TestNss.ALGS)
    for found in private:
        assert found["SENSITIVE"] is found["ALWAYS_SENSITIVE"] is True
        assert found["EXTRACTABLE"] is False
        assert found["NEVER_EXTRACTABLE"] is True
        assert found["uses"] == ["SIGN"]


def test_a_key_that_certutil_made_is_shown_as_exportable_and_stays(
    agent: Agent, token: Token
) -> None:
    certutil(token, "-S", "-x", "-n", "own", "-s", "CN=own", "-t", ",,", *EC_KEY)
    (ref,) = on_token.private_ids(token)
    agent.create_key("shop")
    with Wire(agent.admin_socket, timeout=60) as wire:
        (key,) = wire.result("key.adopt", key="own", ref=ref, alg="ES256", origins=[])["keys"]
        (adopted,) = key["generations"]
        assert (adopted["exportable"], adopted["shared"]) == (True, True)
        wire.result("key.destroy", key="shop", generation=1)
    assert on_token.private_ids(token) == [ref]
    assert "own" in certutil(token, "-K")


def test_a_key_that_could_leave_before_is_shown_as_exportable(agent: Agent, token: Token) -> None:
    on_token.make_stranger(token, key_id="aa" * 16, was_extractable=True)
    with Wire(agent.admin_socket, timeout=60) as wire:
        (key,) = wire.result("key.adopt", key="own", ref="aa" * 16, alg="ES256", origins=[])["keys"]
    assert key["generations"][0]["exportable"] is True


def test_what_certutil_does_meanwhile_disturbs_nothing(agent: Agent, token: Token) -> None:
    jkt = agent.create_key("default")["jkt"]
    for number in range(3):
        certutil(token, "-S", "-x", "-n", f"{number}", "-s", f"CN={number}", "-t", ",,", *EC_KEY)
        assert agent.client().proof("POST", HTU).jkt == jkt
    assert len(on_token.private_ids(token)) == 4
    agent.create_key("another")


def test_a_released_database_is_taken_again_with_its_arguments(
    make_agent: Callable[..., Agent], token: Token
) -> None:
    agent = make_agent(token.config, preexec=serve_with("--release-after", "1s")).start()
    jkt = agent.create_key("default")["jkt"]
    signer = until_open(agent)["signer_pid"]
    for times in (1, 2):
        until_logged(agent, "is released", times=times)
        assert agent.client().proof("POST", HTU).jkt == jkt
    assert store(agent)["signer_pid"] == signer


def test_a_key_deleted_long_after_opening_is_missing_and_the_others_sign_on(
    agent: Agent, token: Token
) -> None:
    agent.create_key("shop")
    (ref,) = on_token.private_ids(token)
    kept = agent.create_key("other")["jkt"]
    on_token.delete(token, ref)
    time.sleep(FRESH_S)
    with Wire(agent.socket, timeout=60) as wire:
        assert wire.error("proof", **TARGET, key="shop")["type"] == "key_missing"
        assert wire.result("proof", **TARGET, key="other")["jkt"] == kept


def test_its_token_for_computing_alone_is_refused_for_having_no_login(
    make_agent: Callable[..., Agent], token: Token
) -> None:
    config = changed_config(token, uri="pkcs11:token=NSS%20Generic%20Crypto%20Services")
    said = refusal(make_agent(config).start())
    assert 'has no login: it wants no PIN; set pin_source = "none"' in said


@pytest.fixture
def without_password(token: Token) -> Path:
    """The configuration of a database that nobody logs in to, with a PIN file all the same."""
    new = token.folder / "new"
    new.mkdir()
    subprocess.run(["certutil", "-N", "-d", f"sql:{new}", "--empty-password"], check=True)
    return changed_config(token, module_args=f"configdir='sql:{new}'")


def write_anew(config: Path, **settings: str) -> None:
    for name, value in settings.items():
        text, times = re.subn(
            f"^{name} = .*$", f'{name} = "{value}"', config.read_text(), flags=re.M
        )
        assert times == 1
        config.write_text(text)


def test_a_database_without_a_password_says_so_instead_of_refusing_every_pin(
    make_agent: Callable[..., Agent], without_password: Path
) -> None:
    said = refusal(make_agent(without_password).start())
    assert 'NSS%20Certificate%20DB has no login: it wants no PIN; set pin_source = "none"' in said


def test_a_database_without_a_password_is_used_without_a_login(
    make_agent: Callable[..., Agent], without_password: Path
) -> None:
    write_anew(without_password, pin_source="none")
    agent = make_agent(without_password).start()
    until_open(agent)
    jkt = agent.create_key("shop")["jkt"]
    for verb in ("lock", "unlock"):
        agent.run(verb, check=True)
    assert agent.client().proof("POST", HTU, key="shop").jkt == jkt
    agent.stop()
    agent.start()
    assert agent.client().proof("POST", HTU, key="shop").jkt == jkt


def test_a_database_with_a_password_isnt_opened_without_a_login(
    make_agent: Callable[..., Agent], token: Token
) -> None:
    said = refusal(make_agent(changed_config(token, pin_source="none")).start())
    assert 'wants a login, and its pin_source is "none"; set pin_source to "prompt"' in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "wants arguments (CKR_ARGUMENTS_BAD); give them as module_args"),
        ("configdir='sql:/nonexistent'", "doesn't work with its module_args (C_Initialize: 0x"),
        ("nonsense", "module_args"),  # crashes, or is refused, by whether it may write to /
    ],
)
def test_missing_or_wrong_arguments_are_told_by_the_name_of_their_setting(
    make_agent: Callable[..., Agent], token: Token, arguments: str, said: str
) -> None:
    config = changed_config(token, module_args=arguments)
    assert said in refusal(make_agent(config).start())


def test_a_module_that_takes_no_arguments_refuses_them(
    make_agent: Callable[..., Agent], make_token: Callable[..., Token]
) -> None:
    token = make_token()
    token.config.write_text(f"{token.config.read_text()}module_args = 'x'\n")
    assert "doesn't work with its module_args (C_Initialize: 0x7)" in refusal(
        make_agent(token.config).start()
    )


def test_init_finds_the_database_and_writes_its_arguments(
    make_agent: Callable[..., Agent], token: Token, tmp_path: Path
) -> None:
    written = tmp_path / "written" / "config.toml"
    agent = make_agent(written)
    words = ("init", "--module", token.module, "--pin-file", str(token.pin_file))
    refused = agent.run(*words)
    assert refused.returncode == 1
    assert "init's --module-args" in refused.stderr
    assert not written.exists()
    crashed = agent.run(*words, "--module-args", "nonsense")
    assert crashed.returncode == 1
    assert "correct --module-args" in crashed.stderr
    agent.run(*words, "--module-args", token.module_args, check=True)
    agent.run("config", "check", check=True)
    assert token.module_args in agent.run("config", "show", check=True).stdout
    agent.start()
    until_open(agent)
    assert agent.create_key("shop")["protection"] == "software-token"

"""What a module says of PKCS#11 tokens and keys is odd at times, and used as far as it can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.verify import verify
from tests.agent.places import store, until, until_open, until_state
from tests.agent.wire import Wire
from tests.faulty import Faulty
from tests.processes import Agent, new_token
from tests.stores import on_token

HTM, HTU = "GET", "https://api.example.com/v1/me"
FOREIGN = "aa"

MakeAgent = Callable[..., Agent]


def refusal(agent: Agent) -> str:
    """Why the store can't be used, and what next."""
    until(lambda: store(agent)["reason"])
    told = store(agent)
    return f"{told['reason']}; {told['hint']}"


def proves(agent: Agent, key: str) -> str:
    """The jkt of a proof by a key, which is right."""
    with Wire(agent.socket, timeout=60) as wire:
        proof = wire.result("proof", htm=HTM, htu=HTU, key=key)["proof"]
    return verify(proof, htm=HTM, htu=HTU).jkt


@pytest.fixture
def agent(faulty_token: Faulty, make_agent: MakeAgent) -> Agent:
    """With a key of its own."""
    agent = make_agent(faulty_token.config()).start()
    until_open(agent)
    agent.create_key("own")
    return agent


@pytest.fixture
def wire(agent: Agent) -> Iterator[Wire]:
    """Whatever is asked there, no signer is replaced for it, and the agent's own key signs on."""
    signer = until_open(agent)["signer_pid"]
    with Wire(agent.admin_socket, timeout=60) as wire:
        yield wire
    proves(agent, "own")
    assert store(agent)["signer_pid"] == signer


def adopt(wire: Wire, **params: Any) -> dict[str, Any]:
    """The foreign key's generation, which is active."""
    (key,) = wire.result("key.adopt", key="foreign", origins=[], **params)["keys"]
    wire.result("key.activate", key="foreign", generation=1)
    return dict(key["generations"][0])


# Flags


def test_a_pin_that_no_flag_tells_of_is_used(faulty_token: Faulty, make_agent: MakeAgent) -> None:
    faulty_token.rules("flags clear 0x8")
    agent = make_agent(faulty_token.config()).start()
    jkt = agent.create_key("own")["jkt"]
    assert proves(agent, "own") == jkt


def test_a_missing_pin_is_told_once_c_login_says_so_and_leaves_no_mark(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    faulty_token.rules("C_Login return 0x102")
    agent = make_agent(faulty_token.config()).start()
    assert "has no user PIN; set one with the tool that came with its module" in refusal(agent)
    faulty_token.rules()
    agent.run("reload", check=True)
    until_open(agent)


def test_without_login_a_pin_is_refused_by_the_name_of_the_setting(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    faulty_token.rules("flags clear 0x4")
    agent = make_agent(faulty_token.config()).start()
    assert 'has no login: it wants no PIN; set pin_source = "none"' in refusal(agent)
    assert faulty_token.logins == 0


# Names


@pytest.mark.parametrize(
    "label", ["64706f7000935fa1", "fffefdfc", "44fc73736c", "-"], ids=["rest", "none", "latin", ""]
)
def test_what_init_writes_for_an_odd_label_is_what_the_agent_finds(
    faulty_token: Faulty, make_agent: MakeAgent, tmp_path: Path, label: str
) -> None:
    faulty_token.rules(f"token label {label}")
    agent = make_agent(
        tmp_path / "written" / "config.toml", env=faulty_token.token.env | faulty_token.env
    )
    pin_file = str(faulty_token.token.pin_file)
    agent.run("init", "--module", str(faulty_token.module), "--pin-file", pin_file, check=True)
    agent.start()
    until_open(agent)
    agent.create_key("own")


@pytest.mark.parametrize("uri", ["pkcs11:token=%20held;", "pkcs11:token=%20held%20%20;x-own=1"])
def test_a_blank_before_a_label_counts_and_those_after_it_dont(
    faulty_token: Faulty, make_agent: MakeAgent, uri: str
) -> None:
    faulty_token.rules("token label 2068656c64")
    agent = make_agent(faulty_token.config(uri=uri)).start()
    assert until_open(agent)["label"] == " held"
    other = make_agent(faulty_token.config(uri="pkcs11:token=held")).start()
    assert "there is no PKCS#11 token pkcs11:token=held" in refusal(other)


def test_an_empty_label_is_named_by_an_empty_value(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    faulty_token.rules("token label -")
    agent = make_agent(faulty_token.config(uri="pkcs11:token=")).start()
    until_open(agent)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([], "give serial in uri"),
        (["token serial 31"], "give token in uri"),
        (["token serial 31", "token label 31"], "have the module show one of them alone"),
    ],
)
def test_several_pkcs11_tokens_that_fit_are_told_apart_by_what_differs(
    faulty_token: Faulty, make_agent: MakeAgent, rules: list[str], said: str
) -> None:
    new_token(faulty_token.token.folder, "other")
    faulty_token.rules(*rules)
    agent = make_agent(faulty_token.config(uri="pkcs11:model=SoftHSM%20v2")).start()
    until_state(agent, "absent")
    assert said in refusal(agent)


def test_a_card_behind_another_module_is_known_by_the_pkcs11_tokens_manufacturer(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    faulty_token.rules("token manufacturer " + b"Yubico (www.yubico.com)".hex())
    on_token.make_stranger(faulty_token.token, key_id="19")  # where a card's attestation key is
    agent = make_agent(faulty_token.config()).start()
    until(lambda: store(agent)["slots"])
    assert store(agent)["unknown"] == []
    with Wire(agent.admin_socket, timeout=60) as wire:
        assert wire.error("key.adopt", key="foreign", origins=[], ref="19")["type"] == "key_missing"


# Keys that somebody else made


@pytest.mark.parametrize("times", [1, 2])
def test_a_key_with_a_certificate_and_no_public_key_is_used(
    faulty_token: Faulty, agent: Agent, wire: Wire, times: int
) -> None:
    on_token.make_stranger(faulty_token.token, key_id=FOREIGN)
    on_token.certify(faulty_token.token, key_id=FOREIGN, times=times)
    wire.result("reload")
    until(lambda: store(agent)["unknown"])
    jkt = adopt(wire, ref=FOREIGN)["jkt"]
    assert proves(agent, "foreign") == jkt
    wire.result("reload")
    (key,) = wire.result("key.list", key="foreign")["keys"]
    assert key["generations"][0]["missing"] is False
    wire.result("key.destroy", key="foreign", generation=1)
    left = [o["class"] for o in on_token.objects(faulty_token.token) if o["id"] == FOREIGN]
    assert left == ["CERTIFICATE"] * times


def test_a_certificate_of_another_key_is_found_out_before_the_key_is_adopted(
    faulty_token: Faulty, wire: Wire
) -> None:
    on_token.make_stranger(faulty_token.token, key_id=FOREIGN)
    on_token.certify(faulty_token.token, key_id=FOREIGN, wrongly=True)
    error = wire.error("key.adopt", key="foreign", origins=[], ref=FOREIGN)
    assert "signature isn't its public key's" in error["message"]


def test_a_key_with_neither_public_key_nor_certificate_is_told_what_it_lacks(
    faulty_token: Faulty, wire: Wire
) -> None:
    on_token.make_stranger(faulty_token.token, key_id=FOREIGN)
    on_token.delete(faulty_token.token, FOREIGN, public_alone=True)
    error = wire.error("key.adopt", key="foreign", origins=[], ref=FOREIGN)
    assert "neither a public key nor a certificate" in error["message"]
    assert error["hint"] == "put one of both there with its vendor's tool, with the same id"


def test_a_key_without_an_id_is_adopted_by_its_label(
    faulty_token: Faulty, agent: Agent, wire: Wire
) -> None:
    on_token.make_stranger(faulty_token.token, key_id="", label="no id")
    wire.result("reload")
    shown = agent.run("status", check=True).stdout
    assert "to adopt one: dpop-agent key adopt NAME --label LABEL --store softhsm" in shown
    assert "--ref" not in shown
    agent.run("key", "adopt", "foreign", "--label", "no id", "--any-origin", check=True)
    wire.result("key.activate", key="foreign", generation=1)
    jkt = proves(agent, "foreign")
    assert store(agent)["unknown"] == []
    wire.result("reload")
    assert proves(agent, "foreign") == jkt


def test_a_key_with_an_id_can_be_adopted_by_its_label_too(
    faulty_token: Faulty, agent: Agent, wire: Wire
) -> None:
    on_token.make_stranger(faulty_token.token, key_id=FOREIGN, label="theirs")
    jkt = adopt(wire, label="theirs")["jkt"]
    assert proves(agent, "foreign") == jkt


@pytest.mark.parametrize(
    ("ids", "hint"),
    [
        (("aa", "bb"), "give the ref of one, as dpop-agent status shows it"),
        (("", ""), "have its vendor's tool give them ids"),
    ],
)
def test_a_label_that_two_keys_have_is_refused(
    faulty_token: Faulty, wire: Wire, ids: tuple[str, str], hint: str
) -> None:
    for key_id in ids:
        on_token.make_stranger(faulty_token.token, key_id=key_id, label="twice")
    error = wire.error("key.adopt", key="foreign", origins=[], label="twice")
    assert (error["type"], error["hint"]) == ("invalid_params", hint)
    assert wire.error("key.adopt", key="foreign", origins=[], label="none")["type"] == "key_missing"
    for params in ({}, {"label": "twice", "ref": "aa"}):
        assert (
            wire.error("key.adopt", key="foreign", origins=[], **params)["type"] == "invalid_params"
        )


@pytest.mark.parametrize("alg", ["RS256", "PS256"])
def test_an_rsa_key_of_3072_bits_is_adopted_and_signs(
    faulty_token: Faulty, agent: Agent, wire: Wire, alg: str
) -> None:
    on_token.make_stranger(faulty_token.token, key_id=FOREIGN, kind="3072")
    jkt = adopt(wire, ref=FOREIGN, alg=alg)["jkt"]
    for _ in range(2):
        assert proves(agent, "foreign") == jkt


UNSUITABLE = {
    "short RSA": ("1024", "RS256", "RSA with 1024 bits, 2048 to 4096 are taken"),
    "RSA for ES256": ("2048", "ES256", "isn't one for ES256; it is one for RS256 or PS256"),
    "P-384 for ES256": ("secp384r1", "ES256", "isn't one for ES256; it is one for ES384"),
    "another curve": ("secp256k1", "ES256", "has an unknown form"),
    "P-256 for EdDSA": ("secp256r1", "EdDSA", "isn't one for EdDSA; it is one for ES256"),
}


@pytest.mark.parametrize(("kind", "alg", "said"), UNSUITABLE.values(), ids=UNSUITABLE)
def test_an_unsuitable_key_is_refused_before_it_signs(
    faulty_token: Faulty, wire: Wire, kind: str, alg: str, said: str
) -> None:
    on_token.make_stranger(faulty_token.token, key_id=FOREIGN, kind=kind)
    faulty_token.rules("C_SignInit count")
    error = wire.error("key.adopt", key="foreign", origins=[], ref=FOREIGN, alg=alg)
    assert said in f"{error['message']}; {error['hint']}"
    assert faulty_token.calls("C_SignInit") == []


def test_a_key_that_isnt_for_signing_is_refused_before_it_signs(
    faulty_token: Faulty, wire: Wire
) -> None:
    on_token.make_stranger(faulty_token.token, key_id=FOREIGN, label="no")
    faulty_token.rules("C_SignInit count", "attribute no 0x108 value 00")
    error = wire.error("key.adopt", key="foreign", origins=[], ref=FOREIGN)
    assert (error["type"], "CKA_SIGN is false" in error["message"]) == (
        "algorithm_unsupported",
        True,
    )
    assert faulty_token.calls("C_SignInit") == []


@pytest.mark.parametrize("alg", ["ES256", "EdDSA"])
def test_a_key_that_the_module_wont_sign_with_has_its_error_alone(
    faulty_token: Faulty, agent: Agent, wire: Wire, alg: str
) -> None:
    wire.result("key.create", key="other", origins=[], alg=alg)
    for call, code in product(("C_SignInit", "C_Sign"), (0x62, 0x63, 0x68, 0x70, 0x71)):
        faulty_token.rules(f"{call} return {code:#x}")
        error = wire.error("proof", htm=HTM, htu=HTU, key="other")
        assert (error["type"], error["retry"]) == ("key_refused", "no")
        faulty_token.rules()
        proves(agent, "other")


@pytest.mark.parametrize("attribute", [0x100, 0x103, 0x162, 0x180, 0x181, 0x202])
def test_a_key_of_our_own_that_cant_be_read_has_its_error_alone(
    faulty_token: Faulty, agent: Agent, wire: Wire, attribute: int
) -> None:
    wire.result("key.create", key="other", origins=[])
    for how in ("return 0x6", "return 0x30", "value fffe"):
        faulty_token.rules(f"attribute dpop-agent%20other@1 {attribute:#x} {how}")
        wire.result("reload")
        wire.ask("proof", htm=HTM, htu=HTU, key="other")
        proves(agent, "own")
    faulty_token.rules()
    wire.result("reload")
    proves(agent, "other")


# Algorithms


def test_where_there_is_no_ec_the_hint_names_an_algorithm_that_works(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    faulty_token.rules("mechanism hide 0x1040")
    agent = make_agent(faulty_token.config()).start()
    until_open(agent)
    refused = agent.run("key", "create", "shop", "--any-origin")
    assert "can't make keys for ES256; give --alg RS256, which it can" in refused.stderr
    agent.run("key", "create", "shop", "--any-origin", "--alg", "RS256", check=True)
    proves(agent, "shop")


def test_where_no_key_can_be_made_the_hint_names_adoption(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    faulty_token.rules(*(f"mechanism hide {m:#x}" for m in (0x0, 0x1040, 0x1055)))
    agent = make_agent(faulty_token.config()).start()
    until_open(agent)
    refused = agent.run("key", "create", "shop", "--any-origin")
    assert "can't make keys for ES256; make one with its vendor's tool" in refused.stderr


def test_a_module_that_takes_a_buffer_of_64_bytes_alone_signs_with_ed25519(
    faulty_token: Faulty, agent: Agent
) -> None:
    faulty_token.rules("C_Sign exact 64")
    agent.create_key("ed", alg="EdDSA")
    proves(agent, "ed")


def test_a_key_that_doesnt_sign_once_it_is_made_leaves_nothing_behind(
    faulty_token: Faulty, wire: Wire
) -> None:
    before = on_token.objects(faulty_token.token)
    faulty_token.rules("C_SignInit return 0x68")
    assert wire.error("key.create", key="shop", origins=[])["type"] == "key_refused"
    faulty_token.rules()
    assert on_token.objects(faulty_token.token) == before

"""The keychain's store against keychains that misbehave: what it says, and what it never does."""

from __future__ import annotations

import os
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import keyring.core
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked, PasswordSetError

from dpop_agent.config import BACKENDS
from dpop_agent.errors import (
    AlgorithmUnsupported,
    DPoPAgentError,
    KeyMissing,
    Locked,
    SignerFailed,
    StoreAbsent,
)
from dpop_agent.jose import ALGORITHMS
from dpop_agent.signer.keychain import access
from dpop_agent.signer.keychain.store import MAX_ITEM, KeychainStore
from dpop_agent.signer.store import ListsKeys, TellsHalfMade
from dpop_agent.verify import check_signature

KWALLET = "keyring.backends.kwallet.DBusKeyring"  # the one that needs no look at a Secret Service
DATA = b"header.claims"


class Memory(KeyringBackend):
    """A keychain in this process; a test replaces what is to go wrong."""

    priority = 0

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # keyring's
        self.items: dict[tuple[str, str], str] = {}
        self.reads = 0
        self.before: Callable[[], None] = lambda: None

    def get_password(self, service: str, username: str) -> str | None:
        self.reads += 1
        self.before()
        return self.items.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.before()
        self.items[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        self.before()
        del self.items[service, username]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    memory = Memory()
    monkeypatch.setattr(keyring.core, "load_keyring", {KWALLET: memory}.__getitem__)
    return memory


@pytest.fixture
def store(memory: Memory) -> KeychainStore:
    return opened()


def opened() -> KeychainStore:
    """As a new signer process has it: nothing loaded."""
    store = KeychainStore(backend=KWALLET)
    store.open()
    return store


def item(private: Any, version: str = "v1.") -> str:
    der = private.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return version + b64encode(der).decode()


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_key_is_written_once_and_found_by_another_process(memory: Memory, alg: str) -> None:
    store = opened()
    ref = store.reserve(alg)
    made = store.generate(ref, alg, "dpop-agent default@1")
    assert (made.exportable, made.protection, made.local) == (True, "keychain", None)
    assert list(memory.items) == [(f"dpop-agent/{ref}", ref)]
    written = dict(memory.items)

    other = opened()
    assert other.find(ref, alg, self_test=True) == made
    signature = other.sign(ref, made.jkt, alg, DATA)
    assert len(signature) == ALGORITHMS[alg].signature_size
    check_signature(alg, made.jwk, DATA, signature)
    assert memory.items == written


def test_a_coordinate_that_begins_with_zeros_keeps_its_width(memory: Memory) -> None:
    store = opened()
    short = 0
    for number in range(1, 2000):
        private = ec.derive_private_key(number, ec.SECP256R1())
        numbers = private.public_key().public_numbers()
        if min(numbers.x, numbers.y).bit_length() > 248:
            continue
        short += 1
        memory.items["dpop-agent/aa", "aa"] = item(private)
        found = store.find("aa", "ES256", self_test=True)
        assert found is not None
        assert {len(found.jwk["x"]), len(found.jwk["y"])} == {43}
    assert short > 3


def test_a_ref_is_new_each_time_and_long(store: KeychainStore) -> None:
    refs = {store.reserve("ES256") for _ in range(100)}
    assert len(refs) == 100
    assert all(len(bytes.fromhex(ref)) == 16 for ref in refs)
    with pytest.raises(AlgorithmUnsupported):
        store.reserve("HS256")


def test_a_keychain_that_is_away_reserves_nothing(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(name: str) -> None:
        raise RuntimeError("the daemon isn't running")

    store = KeychainStore(backend=KWALLET)
    monkeypatch.setattr(keyring.core, "load_keyring", away)
    with pytest.raises(StoreAbsent, match="the daemon isn't running"):
        store.reserve("ES256")


def test_a_key_is_read_once_and_stays(memory: Memory) -> None:
    ref, made = made_key(opened())
    store = opened()
    memory.reads = 0
    for _ in range(10):
        store.sign(ref, made.jkt, "ES256", DATA)
    assert memory.reads == 1


def made_key(store: KeychainStore, alg: str = "ES256") -> tuple[str, Any]:
    ref = store.reserve(alg)
    return ref, store.generate(ref, alg, "")


@pytest.mark.parametrize("goes_wrong", [RuntimeError, OSError, KeyringLocked, "stuck"])
def test_a_loaded_key_signs_on_while_the_keychain_is_away(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, goes_wrong: Any
) -> None:
    monkeypatch.setattr(access, "CALL_TIMEOUT_S", 0.5)
    store = opened()
    ref, made = made_key(store)
    memory.before = fails(goes_wrong)
    for wanted in (ref, store.reserve("ES256")):
        with pytest.raises(DPoPAgentError):
            store.find(wanted, "ES256", self_test=False)
    with pytest.raises(DPoPAgentError):
        store.generate(store.reserve("ES256"), "ES256", "")
    assert not store.broken
    store.release()
    assert store.open()["model"] == "kwallet"
    check_signature("ES256", made.jwk, DATA, store.sign(ref, made.jkt, "ES256", DATA))
    memory.before = lambda: None
    assert store.find(ref, "ES256", self_test=True) == made


def fails(how: Any, came_back: Callable[[], None] = lambda: None) -> Callable[[], None]:
    def fail() -> None:
        if how == "stuck":
            time.sleep(60)
            came_back()
        raise how("v1.secret of the item")

    return fail


@pytest.mark.parametrize(
    ("goes_wrong", "expected", "said"),
    [
        (RuntimeError, SignerFailed, "RuntimeError"),
        (ValueError, SignerFailed, "ValueError"),
        (PasswordSetError, SignerFailed, "PasswordSetError"),
        (EOFError, SignerFailed, "EOFError"),
        (KeyringLocked, Locked, "locked"),
        ("stuck", SignerFailed, "didn't answer for 0.5 s"),
    ],
)
@pytest.mark.parametrize("call", ["find", "sign", "destroy", "generate"])
def test_an_error_is_typed_and_never_means_missing(
    memory: Memory,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    goes_wrong: Any,
    expected: type[DPoPAgentError],
    said: str,
) -> None:
    monkeypatch.setattr(access, "CALL_TIMEOUT_S", 0.5)
    ref, made = made_key(opened())
    store = opened()
    came_back = threading.Event()
    memory.before = fails(goes_wrong, came_back.set)
    calls: dict[str, Callable[[], object]] = {
        "find": lambda: store.find(ref, "ES256", self_test=True),
        "sign": lambda: store.sign(ref, made.jkt, "ES256", DATA),
        "destroy": lambda: store.destroy(ref, made.jkt),
        "generate": lambda: store.generate(store.reserve("ES256"), "ES256", ""),
    }
    with pytest.raises(expected) as caught:
        calls[call]()
    assert not came_back.is_set()
    assert said in caught.value.message
    assert caught.value.hint
    assert "secret" not in str(caught.value)
    memory.before = lambda: None
    assert store.find(ref, "ES256", self_test=True) == made


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v1.",
        "v1.!!!!",
        "v1.AAAA",
        "v1.MC4C",
        "somebody's password",
        item(ec.derive_private_key(7, ec.SECP256R1()), "v2."),
        item(ec.derive_private_key(7, ec.SECP256R1())) + "\n",
        item(ec.derive_private_key(7, ec.SECP256R1())) + "A" * MAX_ITEM,
        item(ec.derive_private_key(7, ec.SECP256K1())),
        item(ec.derive_private_key(7, ec.SECP384R1())),
        item(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))),
        item(x25519.X25519PrivateKey.from_private_bytes(bytes(32))),
        item(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
    ],
)
def test_an_item_that_is_not_the_key_is_neither_used_nor_missing_nor_touched(
    memory: Memory, text: str
) -> None:
    store = opened()
    memory.items["dpop-agent/aa", "aa"] = text
    calls: list[Callable[[], object]] = [
        lambda: store.find("aa", "ES256", self_test=True),
        lambda: store.sign("aa", "x" * 43, "ES256", DATA),
        lambda: store.generate("aa", "ES256", ""),
    ]
    for call in calls:
        with pytest.raises(SignerFailed) as caught:
            call()
        assert len(text) < 8 or text not in str(caught.value)
    with pytest.raises((SignerFailed, KeyMissing)):
        store.destroy("aa", "x" * 43)
    assert memory.items == {("dpop-agent/aa", "aa"): text}


def test_a_key_of_another_thumbprint_never_signs_and_is_never_deleted(memory: Memory) -> None:
    ref, made = made_key(opened())
    memory.items[f"dpop-agent/{ref}", ref] = item(ec.generate_private_key(ec.SECP256R1()))
    store = opened()
    with pytest.raises(KeyMissing, match="isn't the one it was"):
        store.sign(ref, made.jkt, "ES256", DATA)
    with pytest.raises(KeyMissing, match="isn't the agent's key any more"):
        store.destroy(ref, made.jkt)
    assert len(memory.items) == 1


def test_only_none_means_missing(memory: Memory) -> None:
    store = opened()
    ref, made = made_key(store)
    store.destroy(ref, made.jkt)
    assert memory.items == {}
    assert store.find(ref, "ES256", self_test=True) is None
    assert not isinstance(store, TellsHalfMade)
    with pytest.raises(KeyMissing, match="has no item"):
        store.sign(ref, made.jkt, "ES256", DATA)
    store.destroy(ref, made.jkt)


def test_an_item_that_is_there_is_never_overwritten(memory: Memory) -> None:
    store = opened()
    ref, _ = made_key(store)
    before = dict(memory.items)
    with pytest.raises(SignerFailed, match="already"):
        store.generate(ref, "ES256", "")
    assert memory.items == before


@pytest.mark.parametrize(
    "kept", [lambda text: None, lambda text: item(ec.generate_private_key(ec.SECP256R1()))]
)
def test_a_key_that_is_not_given_back_as_it_was_written_is_refused(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, kept: Callable[[str], str | None]
) -> None:
    def keep(service: str, username: str, text: str) -> None:
        changed = kept(text)
        if changed is not None:
            memory.items[service, username] = changed

    monkeypatch.setattr(memory, "set_password", keep)
    with pytest.raises(SignerFailed, match="doesn't give back"):
        made_key(opened())


def test_a_key_that_was_not_deleted_is_told(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened()
    ref, made = made_key(store)
    monkeypatch.setattr(memory, "delete_password", lambda service, username: None)
    with pytest.raises(SignerFailed, match="still has"):
        store.destroy(ref, made.jkt)


def test_a_keychain_cant_list_its_keys(store: KeychainStore) -> None:
    assert not isinstance(store, ListsKeys)


def test_only_a_known_keychain_is_loaded() -> None:
    for backend in ("keyrings.alt.file.PlaintextKeyring", "keyring.backends.null.Keyring", ""):
        with pytest.raises(SignerFailed, match="isn't a keychain"):
            KeychainStore(backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_keychain_that_is_not_here_is_absent(backend: str) -> None:
    with pytest.raises(StoreAbsent) as caught:
        KeychainStore(backend=backend).open()
    assert caught.value.hint


def test_kwallet_names_the_package_that_it_lacks() -> None:
    if find_spec("dbus") is not None:
        pytest.skip("dbus-python is here")
    with pytest.raises(StoreAbsent) as caught:
        KeychainStore(backend="keyring.backends.kwallet.DBusKeyring").open()
    assert "install the package dbus-python (Debian: python3-dbus)" in caught.value.hint


def test_the_environment_does_not_choose_the_place_or_the_backend(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYRING_PROPERTY_PREFERRED_COLLECTION", "/somewhere/else")
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
    store = opened()
    assert "KEYRING_PROPERTY_PREFERRED_COLLECTION" not in os.environ
    made_key(store)
    assert len(memory.items) == 1

"""Keys with fixed places, and the management key that makes them."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from dpop_agent.agent import drains
from dpop_agent.agent.keys import RETIRED_S, Generation, Key, Keys, State
from dpop_agent.agent.uses import Seen
from dpop_agent.config import TokenUri
from dpop_agent.errors import AuthorizationRequired, StoreAbsent
from dpop_agent.signer import authority as management
from dpop_agent.signer import secret_socket
from dpop_agent.signer.authority import Authority
from dpop_agent.signer.brake import TokenName
from dpop_agent.signer.pkcs11 import discovery, vendors
from dpop_agent.signer.pkcs11.token import Token

NOW = "2026-11-20T19:05:00Z"


def generation(
    number: int, state: State, *, slot: str | None = "82", ref: str = "05"
) -> Generation:
    return Generation(number, state, ref, NOW, NOW, jkt=f"jkt-{number}", slot=slot)


def key(*generations: Generation, every_s: int | None = None) -> Key:
    return Key("shop", "yubikey", "ES256", NOW, rotate_every_s=every_s, generations=generations)


def test_a_retired_generation_in_a_slot_is_never_destroyed_by_the_clock() -> None:
    old, seen = generation(1, State.RETIRED), Seen(10 * RETIRED_S)
    assert drains.to_destroy(key(old), seen) == []
    assert drains.events_s(key(old), seen, datetime.now(UTC)) == []
    assert len(drains.to_destroy(key(replace(old, slot=None)), seen)) == 1


def test_a_rotation_that_waits_for_a_person_keeps_nobody_busy() -> None:
    due = key(generation(1, State.ACTIVE), every_s=1)
    assert drains.is_rotation_due(due, Seen(0), datetime.now(UTC))
    assert drains.is_rotation_by_hand(due)
    assert drains.events_s(due, Seen(0), datetime.now(UTC)) == []
    staged = due.with_(generation(2, State.STAGED, slot="83", ref="06"))
    assert not drains.is_rotation_by_hand(staged)
    assert drains.events_s(staged, Seen(0), datetime.now(UTC)) == [0]


def test_a_slot_that_was_used_again_has_destroyed_what_it_had_and_nothing_else() -> None:
    keys = Keys(
        [
            key(
                generation(1, State.RETIRED),
                replace(generation(2, State.DESTROYED), object_left=True),
                generation(3, State.RETIRED, slot="83", ref="06"),
                generation(4, State.ACTIVE),
            )
        ]
    )
    after = keys.overwritten("yubikey", "05", "jkt-4", NOW)["shop"].generations
    assert [(g.state, g.object_left) for g in after] == [
        (State.DESTROYED, False),
        (State.DESTROYED, False),
        (State.RETIRED, False),
        (State.ACTIVE, False),
    ]
    assert keys.overwritten("other", "05", "jkt-4", NOW) is keys


def test_a_key_may_want_a_touch_unless_somebody_says_otherwise() -> None:
    unknown = generation(1, State.ACTIVE)
    assert key().may_want_touch(unknown)
    assert not key().may_want_touch(replace(unknown, slot=None))
    assert not key().may_want_touch(replace(unknown, touch="never"))
    assert key().may_want_touch(replace(unknown, touch="cached"))
    assert not replace(key(), touch=False).may_want_touch(replace(unknown, touch="always"))
    assert replace(key(), touch=True).may_want_touch(replace(unknown, touch="never"))


def test_a_card_has_24_places_and_the_attestation_keys_isnt_one() -> None:
    slots = vendors.slots("Yubico (www.yubico.com)")
    assert slots is not None
    assert len(slots.refs) == 24
    assert (slots.refs["9a"], slots.refs["9e"], slots.refs["82"]) == ("01", "04", "05")
    assert slots.refs["95"] == "18"
    assert slots.reserved.isdisjoint(slots.refs.values())
    assert (slots.chosen[0], slots.chosen[-1], len(slots.chosen)) == ("82", "95", 20)
    assert vendors.slots("SoftHSM") is None


def type_in(authority: Authority, folder: Path, line: bytes) -> object:
    """What whoever sends that line is told."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(authority.listen(str(folder)))
        for part in (line[:5], line[5:]):
            sock.sendall(part)
            for _ in range(2):
                authority.serve(authority.waits_for())
        answer: dict[str, object] = json.loads(sock.recv(4096))
        return answer.get("ok") or answer["error"]


class TestAuthority:
    @pytest.fixture
    def authority(self) -> Authority:
        return Authority(default="01" * 24)

    def test_a_management_key_is_taken_once(self, authority: Authority, tmp_path: Path) -> None:
        assert type_in(authority, tmp_path, b"Ab" * 24 + b"\n") is True
        authority.require()
        assert authority.take() == "Ab" * 24
        with pytest.raises(AuthorizationRequired):
            authority.take()
        assert list(tmp_path.iterdir()) == []
        assert authority.left_s() is None

    def test_it_is_forgotten_after_a_while(
        self, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(management, "AUTHORITY_S", 0.0)
        assert type_in(authority, tmp_path, b"ab" * 24 + b"\n") is True
        with pytest.raises(AuthorizationRequired):
            authority.require()
        assert authority.left_s() is None

    def test_a_socket_that_nobody_uses_goes(
        self, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(secret_socket, "PROMPT_TIMEOUT_S", 0.0)
        authority.listen(str(tmp_path))
        authority.serve(())
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("line", [b"zz" * 24, b"ab" * 23, b"ab" * 200, b"\xff" * 48])
    def test_what_isnt_a_management_key_is_refused(
        self, authority: Authority, tmp_path: Path, line: bytes
    ) -> None:
        error = type_in(authority, tmp_path, line + b"\n")
        assert isinstance(error, dict)
        assert error["data"]["type"] == "authorization_refused"
        with pytest.raises(AuthorizationRequired):
            authority.require()

    def test_an_empty_line_is_the_one_that_cards_come_with(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        path = authority.listen(str(tmp_path))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.sendall(b"\n")
            authority.serve(authority.waits_for())
            authority.serve(authority.waits_for())
        assert authority.take() == "01" * 24

    def test_whoever_hangs_up_has_authorized_nothing(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        path = authority.listen(str(tmp_path))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            authority.serve(authority.waits_for())
        authority.serve(authority.waits_for())
        with pytest.raises(AuthorizationRequired):
            authority.require()


def test_a_view_is_old_as_soon_as_another_card_is_in_the_readers_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, other = (TokenName("Yubico", "YubiKey", serial, "work") for serial in ("1", "2"))
    there: list[TokenName] = [own]

    def find(_module: object, _uri: object) -> tuple[object, TokenName]:
        if not there:
            raise StoreAbsent("no card is there")
        return object(), there[0]

    monkeypatch.setattr(discovery, "find", find)
    nothing = cast("Any", None)
    token = Token(module=nothing, uri=TokenUri(token="work"), pin=nothing, brake=nothing)
    token._find()
    token._opened = time.monotonic()
    assert not token.is_view_old()
    there[:] = [other]
    assert token.is_view_old()
    there.clear()
    assert token.is_view_old()

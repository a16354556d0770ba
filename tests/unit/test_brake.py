"""Marks: what they stand against, and what takes them away."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dpop_agent.errors import Locked, PinRefused
from dpop_agent.signer import brake
from dpop_agent.signer.brake import CUT_SHORT, REFUSED, Brake, TokenName

CARD = TokenName("Yubico", "YubiKey", "123456", "work")
BESIDE = replace(CARD, label="other", shared=True)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Brake]:
    """`make(store="work", retries=0)`: as a new signer of that store has it."""

    def made(store: str = "work", *, retries: int = 0) -> Brake:
        before = str(tmp_path / f"{store}.refused")
        return Brake(str(tmp_path), store=store, retries=retries, before=before)

    return made


def login(
    brake: Brake,
    token: TokenName = CARD,
    *,
    how: str | None = REFUSED,
    attended: bool = False,
    stored: bool = True,
) -> None:
    """One that ends so; None is CKR_OK."""
    with brake.login(token, attended=attended, stored=stored, hint="correct it") as under_way:
        under_way.how = how or ""
        under_way.accepted = how is None


def _fails(*_: object) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def braked(brake: Brake, token: TokenName = CARD) -> bool:
    """Whether it is the brake that refuses, as it says."""
    stands = brake.stands(token)
    try:
        login(brake, token, how=None)
    except PinRefused:
        assert stands
        return True
    assert not stands
    return False


def test_the_mark_is_on_the_disk_before_the_login(
    make: Callable[..., Brake], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bool] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.path.isdir(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with make().login(CARD, attended=False, stored=True, hint=""):
        assert synced == [False, True]  # the file, and the folder that has it


def test_marks_that_cant_be_read_keep_no_later_login_waiting(
    make: Callable[..., Brake], monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened() -> set[str]:
        return set(os.listdir("/proc/self/fd"))

    login(make(), how=None)
    before = opened()
    with monkeypatch.context() as broken:
        broken.setattr("dpop_agent.signer.brake.os.pread", _fails)
        assert not make().stands(CARD)
        with pytest.raises(Locked, match="that can't be noted in"):
            login(make())
    assert opened() == before
    login(make("another"), how=None)


def test_an_accepted_login_leaves_nothing(make: Callable[..., Brake]) -> None:
    login(make(), how=None)
    assert not braked(make())


@pytest.mark.parametrize("how", [REFUSED, CUT_SHORT, "DeviceError"])
def test_any_other_end_leaves_a_mark_for_every_store(make: Callable[..., Brake], how: str) -> None:
    login(make(), how=how)
    assert braked(make())
    assert braked(make("another"))
    assert braked(make(), replace(CARD, label="renamed"))
    assert not braked(make(), replace(CARD, serial="654321"))


def test_an_exception_in_the_middle_leaves_a_mark(make: Callable[..., Brake]) -> None:
    with pytest.raises(MemoryError), make().login(CARD, attended=False, stored=True, hint=""):
        raise MemoryError
    assert braked(make())


def test_a_login_that_wasnt_judged_leaves_what_was_there_before(make: Callable[..., Brake]) -> None:
    for _ in range(3):
        with make().login(CARD, attended=False, stored=True, hint="") as under_way:
            under_way.judged = False
    assert not make().stands(CARD)
    login(make())
    with make().login(CARD, attended=True, stored=True, hint="") as under_way:
        under_way.judged = False
    assert braked(make())


def test_a_person_has_one_login_each_time_and_a_right_pin_lifts_the_mark(
    make: Callable[..., Brake],
) -> None:
    login(make())
    for _ in range(3):
        login(make(), attended=True)
        assert braked(make())
    login(make(), attended=True, how=None)
    assert not braked(make())


def test_a_typed_pin_that_is_wrong_makes_no_mark_and_lifts_none(make: Callable[..., Brake]) -> None:
    login(make(), attended=True, stored=False)
    assert not braked(make())
    login(make())
    login(make(), attended=True, stored=False)
    assert braked(make())


def test_where_serials_are_shared_the_label_tells_whose_mark_it_is(
    make: Callable[..., Brake],
) -> None:
    login(make(), replace(CARD, shared=True))
    assert not braked(make(), BESIDE)
    assert braked(make(), replace(CARD, shared=True))
    assert braked(make(), CARD)  # the other one was pulled
    assert not braked(make(), replace(BESIDE, shared=False))  # this one was pulled


def test_a_mark_that_was_made_while_nothing_shared_its_serial_is_still_its_own(
    make: Callable[..., Brake],
) -> None:
    login(make(), CARD)
    assert braked(make(), replace(CARD, shared=True))
    assert not braked(make(), BESIDE)


def test_where_serials_are_blank_the_label_tells_whose_mark_it_is(
    make: Callable[..., Brake],
) -> None:
    blank = replace(CARD, serial="")
    login(make(), blank)
    assert braked(make(), blank)
    assert not braked(make(), replace(blank, label="other"))
    assert not braked(make(), CARD)


def test_lifting_one_mark_leaves_the_others(make: Callable[..., Brake]) -> None:
    one = replace(CARD, shared=True)
    login(make(), one)
    login(make(), BESIDE)
    login(make(), BESIDE, attended=True, how=None)
    assert braked(make(), one)
    assert not braked(make(), BESIDE)


def test_retries_are_counted_wait_for_growing_pauses_and_end(
    make: Callable[..., Brake], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    pauses = []
    login(make(retries=3))
    for _ in range(3):
        with pytest.raises(Locked, match="after a pause") as caught:
            login(make(retries=3))
        assert not isinstance(caught.value, PinRefused)
        pauses.append(make().next_try_s(CARD) or make(retries=3).next_try_s(CARD))
        now[0] += pauses[-1] or 0
        login(make(retries=3))
    assert pauses == [1, 2, 4]
    assert braked(make(retries=3))
    assert make(retries=3).next_try_s(CARD) is None


def test_a_clock_that_was_set_back_gives_no_more_tries(
    make: Callable[..., Brake], monkeypatch: pytest.MonkeyPatch
) -> None:
    login(make(retries=1))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    login(make(retries=1))
    assert braked(make(retries=1))


def test_a_store_whose_pin_an_earlier_version_refused_takes_that_over(
    make: Callable[..., Brake], tmp_path: Path
) -> None:
    (tmp_path / "work.refused").write_text("1:2:3")
    with make("work").login(CARD, attended=True, stored=False, hint="") as under_way:
        under_way.judged = False
    assert braked(make("work"))
    assert not (tmp_path / "work.refused").exists()
    assert braked(make("another"))


def test_a_login_waits_for_another_to_the_same_token_and_not_for_ever(
    make: Callable[..., Brake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brake, "LOGIN_WAIT_S", 0.1)
    with make().login(CARD, attended=False, stored=True, hint="") as under_way:
        with pytest.raises(Locked, match="another store is logging in"):
            login(make("another"), attended=True)
        login(make("another"), replace(CARD, serial="654321"), how=None)
        under_way.accepted = True
    assert not braked(make())


def test_a_mark_that_cant_be_made_stops_a_stored_pin_and_no_other(
    make: Callable[..., Brake], tmp_path: Path
) -> None:
    missing = Brake(str(tmp_path / "none"), store="work", retries=0, before=str(tmp_path / "no"))
    with pytest.raises(Locked, match="that can't be noted in") as caught:
        login(missing, how=None)
    assert caught.value.hint == "mend the folder, then: dpop-agent unlock work"
    with pytest.raises(Locked, match="that can't be noted in"):
        login(missing, how=None, attended=True)
    login(missing, how=None, stored=False)
    login(missing, how=None, attended=True, stored=False)


@pytest.mark.parametrize("failing", ["open", "write"])
def test_an_accepted_pin_that_is_refused_while_the_disk_fails_is_noted_once_it_works(
    make: Callable[..., Brake], monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    name = {"open": "_opened", "write": "os.fsync"}[failing]

    with monkeypatch.context() as broken:
        broken.setattr(f"dpop_agent.signer.brake.{name}", _fails)
        under_way = make().login(CARD, attended=False, stored=False, hint="correct it")
        ended = under_way.__enter__()
    ended.how = REFUSED
    under_way.__exit__(None, None, None)
    with pytest.raises(PinRefused, match="was refused before"):
        login(make())


def test_a_typed_pin_that_is_refused_while_the_disk_fails_is_not_noted(
    make: Callable[..., Brake], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(brake, "_opened", _fails)
        under_way = make().login(CARD, attended=True, stored=False, hint="")
        under_way.__enter__()
    under_way.__exit__(None, None, None)
    assert not braked(make())


def test_a_pin_that_was_accepted_before_heeds_a_mark_too(make: Callable[..., Brake]) -> None:
    login(make("another"))
    with pytest.raises(PinRefused):
        login(make(), stored=False, how=None)


def test_a_mark_is_written_through_no_link_and_without_it_nothing_is_tried(
    make: Callable[..., Brake], tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    diary.write_text("a diary")
    Path(brake._path(str(tmp_path), CARD)).symlink_to(diary)
    with pytest.raises(Locked, match=r"no login .* is tried with a stored PIN"):
        login(make())
    assert diary.read_text() == "a diary"

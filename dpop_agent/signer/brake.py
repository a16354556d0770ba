"""The brake on PINs: whether a login that nobody asked for may be tried.

Three wrong PINs lock a card. So before each C_Login with a PIN that nobody types now, the PKCS#11
token gets a mark in the agent's state folder, which is durable before the PIN is sent. Only CKR_OK
takes it away, or an error that is known to come before a PIN is judged. A login that was refused,
that failed, that crashed the module, hung or met a power cut leaves it, and with it no store of
this agent logs in to that PKCS#11 token by itself, before a person runs `dpop-agent unlock`.

The mark names what it is for: manufacturer, model, serial, and the label where the serial doesn't
tell PKCS#11 tokens apart. It depends neither on a store's name nor on where its PIN comes from, and
nothing in it is derived from a PIN. Another module may name the same PKCS#11 token otherwise, and
another agent has another state folder: they aren't recognised.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Self

from dpop_agent import paths
from dpop_agent.errors import Locked, PinRefused
from dpop_agent.signer.lock import take_lock

LOGIN_WAIT_S = 5.0
"""Seconds to wait for another store that logs in to the same PKCS#11 token; slow cards take 4."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
"""Seconds between the tries that `login_retries` allows, doubled each time."""

REFUSED, LOCKED, CUT_SHORT = "refused", "locked", "cut short"

_SIZE = 512  # bytes that are there from the first mark on
_MAX_SIZE = 1024 * 1024
_MANY = 10**6  # tries; more than `login_retries` can be


@dataclass(frozen=True, slots=True)
class TokenName:
    """What tells a PKCS#11 token from others, by its CK_TOKEN_INFO (PKCS#11 3.0 section 3.2).

    `shared` says that others are there with the same manufacturer, model and serial.
    """

    manufacturer: str
    model: str
    serial: str
    label: str
    shared: bool = False

    @property
    def goes_by_label(self) -> bool:
        """Serials are blank or all the same on some modules, such as openCryptoki."""
        return self.shared or not self.serial

    def __str__(self) -> str:
        serial = f", serial {self.serial}" if self.serial else ""
        return f"the PKCS#11 token {self.label!r}{serial}"


class Standing(NamedTuple):
    """What stands against a PKCS#11 token.

    Attributes:
        tries: logins since the last that was accepted.
        ended: how the last of them did, as part of a sentence.
    """

    tries: int
    ended: str


def standing(folder: str, token: TokenName) -> Standing | None:
    """The mark against a PKCS#11 token in an agent's state folder, which is only read."""
    mark = _seen(folder, token)
    return None if mark is None else Standing(mark.tries, mark.ended)


@dataclass(frozen=True, slots=True)
class _Mark:
    """The logins to one PKCS#11 token since the last that was accepted.

    Attributes:
        tries: how many.
        at: when the last one began, seconds since the epoch.
        how: it ended: REFUSED, LOCKED, CUT_SHORT or the name of an error.
        shared: others were there that its label alone told it from.
    """

    tries: int
    at: float
    how: str
    shared: bool

    @classmethod
    def read(cls, mark: dict[str, Any]) -> Self:
        """From what was written.

        Raises:
            ValueError, KeyError, TypeError, AttributeError, OverflowError: it is something else.
        """
        tries = min(_MANY, max(1, int(mark["tries"])))
        return cls(tries, float(mark["at"]), str(mark["how"]), bool(mark["shared"]))

    @property
    def ended(self) -> str:
        """How the last one did, as part of a sentence."""
        return {
            REFUSED: "was refused before",
            LOCKED: "found its PIN locked before",
            CUT_SHORT: "was cut short before, and counts as refused",
        }.get(self.how, f"failed before ({self.how}), and counts as refused")

    def pause_left_s(self) -> float:
        """Seconds until the next try that `login_retries` may allow."""
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self.tries - 1, 16))
        ago_s = time.time() - self.at
        # Tries are counted: a clock that was set back makes one come early, and no more of them.
        return pause_s - ago_s if ago_s >= 0 else 0.0


class Login:
    """One C_Login that is under way, and what it leaves behind: the mark, if nothing else is said.

    Attributes:
        accepted: CKR_OK.
        judged: False once it is known to have ended before anything looked at the PIN.
        how: it ended.
    """

    def __init__(self) -> None:
        self.accepted = False
        self.judged = True
        self.how = CUT_SHORT


class Brake:
    """The marks that one store's signer makes and heeds.

    Args:
        folder: the agent's state folder.
        store: the store's name.
        retries: how many more logins may be tried than the first; 0 where a PIN can be locked.
        before: where dpop-agent 0.1 remembered a refused PIN of the store; that counts as a mark.

    Attributes:
        unlock: what a person does to have one more login tried.
    """

    def __init__(self, folder: str, *, store: str, retries: int, before: str) -> None:
        self._folder = folder
        self.unlock = f"dpop-agent unlock {store}"
        self._retries = retries
        self._before = before

    def stands(self, token: TokenName) -> bool:
        """Whether a mark keeps every login from it that nobody asks for."""
        return os.path.lexists(self._before) or self._refusing(self._seen(token))

    def next_try_s(self, token: TokenName) -> float | None:
        """Seconds until `login_retries` allows the next login; None if a person has to unlock."""
        mark = self._seen(token)
        return None if mark is None or self._refusing(mark) else max(0.0, mark.pause_left_s())

    @contextmanager
    def login(
        self, token: TokenName, *, attended: bool, stored: bool, hint: str
    ) -> Iterator[Login]:
        """One C_Login, while no other store logs in to the same PKCS#11 token.

        Args:
            token: where.
            attended: a person asked for it, and answers for this one try.
            stored: its PIN is read from somewhere, and could be read and tried again. One that is
                typed now, or was accepted from this very process before, is tried though the mark
                can't be made.
            hint: what to do after a refused PIN.

        Raises:
            PinRefused: a mark stands.
            Locked: not now, or the mark can't be made.
        """
        marks = self._begin(token, attended=attended, stored=stored, hint=hint)
        login = Login()
        try:
            yield login
        finally:
            self._end(marks, login, token, attended=attended)

    def _begin(self, token: TokenName, *, attended: bool, stored: bool, hint: str) -> _Marks | None:
        marks = None
        try:
            marks = _Marks.locked(self._folder, token)
            self._take_over(marks)
            if not attended:
                self._require_none(marks.standing, token, hint)
            if stored or not attended:
                marks.add()
        except OSError as e:
            if stored:
                if marks is not None:
                    marks.close()
                raise Locked(
                    f"no login to {token} is tried with a stored PIN: that can't be noted in "
                    f"{self._folder} ({e.strerror})",
                    hint=f"mend the folder, then: {self.unlock}",
                ) from e
            if not attended:
                self._require_none(marks.standing if marks else self._seen(token), token, hint)
        except BaseException:
            if marks is not None:
                marks.close()
            raise
        return marks

    def _end(self, marks: _Marks | None, login: Login, token: TokenName, *, attended: bool) -> None:
        failed = login.judged and not login.accepted
        with suppress(OSError, Locked):  # then all stays as it is
            if marks is None:
                if attended or not failed:
                    return
                marks = _Marks.locked(self._folder, token)
            with marks:
                if failed:
                    if not (attended or marks.has_added):
                        marks.add()  # the disk may have come back meanwhile
                    marks.tell(login.how)
                elif login.accepted:
                    marks.lift()
                else:
                    marks.take_back()

    def _require_none(self, mark: _Mark | None, token: TokenName, hint: str) -> None:
        if mark is None:
            return
        if self._refusing(mark):
            raise PinRefused(
                f"a login to {token} {mark.ended}: none is tried again by itself",
                hint={
                    REFUSED: hint,
                    LOCKED: f"unblock it by its vendor's tool, then: {self.unlock}",
                }.get(mark.how, self.unlock),
            )
        left_s = mark.pause_left_s()
        if left_s > 0:
            raise Locked(
                f"a login to {token} didn't succeed, and the next is tried after a pause",
                hint=f"wait, or: {self.unlock}",
                retry_after_ms=int(left_s * 1000) + 1,
            )

    def _refusing(self, mark: _Mark | None) -> bool:
        return mark is not None and mark.tries > self._retries

    def _seen(self, token: TokenName) -> _Mark | None:
        return _seen(self._folder, token)

    def _take_over(self, marks: _Marks) -> None:
        if os.path.lexists(self._before):
            marks.take_over()
            os.unlink(self._before)


def _seen(folder: str, token: TokenName) -> _Mark | None:
    """The mark that stands, as far as it can be read."""
    try:
        with _Marks.seen(folder, token) as marks:
            return marks.standing
    except OSError:
        return None


class _Marks:
    """The file with the marks of PKCS#11 tokens of one manufacturer, model and serial.

    It is written in place: once it is there, a mark needs no room on the disk. What can't be read
    in it counts as a mark of each of them.
    """

    def __init__(self, descriptor: int, folder: str, token: TokenName) -> None:
        self._descriptor = descriptor
        self._folder = folder
        self._token = token
        try:
            self._marks = self._read()
        except BaseException:
            self.close()
            raise
        self._added: _Mark | None = None
        self._before: _Mark | None = None

    @classmethod
    def seen(cls, folder: str, token: TokenName) -> Self:
        """As they are now.

        Raises:
            OSError: there are none, or they can't be read.
        """
        return cls(_opened(_path(folder, token), os.O_RDONLY), folder, token)

    @classmethod
    def locked(cls, folder: str, token: TokenName) -> Self:
        """To be changed by nobody else before `close`.

        Raises:
            OSError: they can't be written.
            Locked: somebody else is changing them.
        """
        descriptor = _opened(_path(folder, token), os.O_RDWR | os.O_CREAT)
        try:
            is_ours = take_lock(descriptor, within_s=LOGIN_WAIT_S)
        except BaseException:
            os.close(descriptor)
            raise
        if not is_ours:
            os.close(descriptor)
            raise Locked(f"another store is logging in to {token}", hint="try again later")
        return cls(descriptor, folder, token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)

    @property
    def standing(self) -> _Mark | None:
        """The one against this PKCS#11 token; the worst, where it may be several."""
        if self._marks is None:
            return _Mark(tries=_MANY, at=0.0, how=CUT_SHORT, shared=False)
        against = [self._marks[label] for label in self._against()]
        return max(against, key=lambda mark: mark.tries, default=None)

    @property
    def has_added(self) -> bool:
        """Whether `add` noted the login that is under way."""
        return self._added is not None

    def add(self) -> None:
        """One more login begins. It is on the disk when this returns."""
        before = self.standing
        tries = 1 if before is None else min(_MANY, before.tries + 1)
        added = _Mark(tries, time.time(), CUT_SHORT, self._token.shared)
        self._write((self._marks or {}) | {self._token.label: added})
        self._added, self._before = added, before

    def take_over(self) -> None:
        """A login was refused before there were marks. It is on the disk when this returns."""
        if self.standing is None:
            refused = _Mark(1, time.time(), REFUSED, self._token.shared)
            self._write((self._marks or {}) | {self._token.label: refused})

    def tell(self, how: str) -> None:
        """How the login ended that was added."""
        if self._added is not None:
            self._write((self._marks or {}) | {self._token.label: replace(self._added, how=how)})

    def take_back(self) -> None:
        """It was no login after all."""
        if self._added is not None:
            before = {} if self._before is None else {self._token.label: self._before}
            self._write(self._others([self._token.label]) | before)

    def lift(self) -> None:
        """A login was accepted: nothing stands against this PKCS#11 token."""
        if self.standing is not None:
            self._write(self._others(self._against()))

    def _others(self, labels: list[str]) -> dict[str, _Mark]:
        return {label: mark for label, mark in (self._marks or {}).items() if label not in labels}

    def _against(self) -> list[str]:
        """The labels of the marks that may be this PKCS#11 token's."""
        token = self._token
        return [
            label
            for label, mark in (self._marks or {}).items()
            if label == token.label or not (token.goes_by_label or mark.shared)
        ]

    def _read(self) -> dict[str, _Mark] | None:
        text = os.pread(self._descriptor, _MAX_SIZE, 0).strip(b" \n\0")
        if not text:
            return {}  # made, and no login begun
        try:
            marks = json.loads(text)["marks"]
            return {str(label): _Mark.read(mark) for label, mark in marks.items()}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return None

    def _write(self, marks: dict[str, _Mark]) -> None:
        token = self._token
        named = {name: getattr(token, name) for name in ("manufacturer", "model", "serial")}
        written = {label: asdict(mark) for label, mark in marks.items()}
        data = json.dumps(named | {"marks": written}).encode("ascii") + b"\n"
        data = data.ljust(max(_SIZE, os.fstat(self._descriptor).st_size))
        if os.pwrite(self._descriptor, data, 0) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._descriptor)
        paths.sync_folder(self._folder)
        self._marks = marks


def _path(folder: str, token: TokenName) -> str:
    named = json.dumps([token.manufacturer, token.model, token.serial]).encode("ascii")
    return os.path.join(folder, f"logins-{hashlib.sha256(named).hexdigest()[:32]}")


def _opened(path: str, flags: int) -> int:
    """A file of ours.

    Raises:
        OSError: it isn't one, or can't be opened.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode) or info.st_uid != os.getuid():
        os.close(descriptor)
        raise OSError(errno.EPERM, f"{path} isn't the agent's file")
    return descriptor

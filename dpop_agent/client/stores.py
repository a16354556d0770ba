"""`TokenStore`: an access token and its refresh token that several processes share.

Theory of operation

Servers that rotate refresh tokens take each one once, so only one process at a time may renew. It
holds a lock (flock) from before it reads the refresh token until the new one is durable; whoever
waited for the lock reads again, and mostly finds nothing left to do.

Between the server's answer and the write the holder can die. Then the server has given a new
refresh token that nobody has, and the one in the store is used up. So it writes into the lock's
file that it begins, before it sends anything, and empties it once all is stored. Whoever finds
something in there has an `abandoned` renewal: it tries the stored refresh token once, and if the
server refuses that (`invalid_grant`), a new grant is the only way on.

A renewal that failed in a process that lives is an abandoned one too: whether the server took the
refresh token before the connection broke, nobody knows.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from dpop_agent import paths
from dpop_agent.client.exchange import awaiting, blocking
from dpop_agent.client.token import BoundToken
from dpop_agent.errors import (
    ConfigurationError,
    DPoPAgentError,
    Locked,
    NotDurable,
    StoreAbsent,
    Timeout,
)
from dpop_agent.jose import json_object

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from dpop_agent.client.exchange import Calls

log = logging.getLogger("dpop_agent.client")

T = TypeVar("T")

TIMEOUT_S = 60.0
"""Seconds that one process waits for another's renewal."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.002, 0.1
"""Seconds between two looks for the lock: it is asked for without waiting in the kernel, so that a
wait has an end, and can be cancelled, in threads and in event loops."""

KEYCHAIN_S = 10.0
"""Seconds for one call of the keychain: it takes some hundredths, and waits for ever if it is
locked and its prompt is answered by nobody."""

MAX_BYTES = 1024 * 1024

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_WHAT = "the file of an access token"
_INSTEAD = "name another file, in a folder of your own"


class Doing(Protocol):
    """How what may take its time is done: in a thread's own time, or in an event loop's."""

    def do(self, work: Callable[[], T], /) -> T | Awaitable[T]:
        """Do it."""

    def pause(self, seconds: float, /) -> Awaitable[None] | None:
        """Wait."""


class _Blocking:
    def do(self, work: Callable[[], T]) -> T:
        return work()

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)


class _Awaiting:
    """On asyncio or on trio."""

    async def do(self, work: Callable[[], T]) -> T:
        """Do it in a thread, and leave none behind: whoever is cancelled waits for its end."""
        import asyncio

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            import trio

            return await trio.to_thread.run_sync(work)
        done = loop.run_in_executor(None, work)
        cancelled: BaseException | None = None
        while not done.done():
            try:
                await asyncio.wait([done])
            except asyncio.CancelledError as e:
                cancelled = e
        if cancelled is not None:
            done.exception()
            raise cancelled
        return done.result()

    async def pause(self, seconds: float) -> None:
        import asyncio

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            import trio

            await trio.sleep(seconds)
        else:
            await asyncio.sleep(seconds)


BLOCKING, AWAITING = _Blocking(), _Awaiting()


class Held:
    """The store while nobody else has it.

    Attributes:
        token: what is in it, read after the lock was taken; None if it is empty.
        waited: somebody else held it.
        abandoned: whoever renewed last didn't store what came of it. The refresh token of `token`
            may be used up: try it once, and if the server refuses it, begin a new grant.
    """

    def __init__(self, store: TokenStore, descriptor: int, *, waited: bool) -> None:
        self._store = store
        self._descriptor: int | None = descriptor
        self.waited = waited
        self.token: BoundToken | None = None
        self.abandoned = False

    def read(self) -> None:
        """Take in what is there: after the lock was taken, whoever had it before."""
        self.abandoned = os.fstat(self._open()).st_size > 0
        self.token = self._store.load()

    def begin(self) -> None:
        """Say that a refresh token is about to be used, durably: call it before you send it.

        Raises:
            NotDurable: that can't be written, and neither could what the server answers.
        """
        descriptor = self._open()
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, b"%d\n" % os.getpid())
            os.fsync(descriptor)
        except OSError as e:
            raise NotDurable(
                f"{self._store} can't be written: {e.strerror}, so nothing was renewed",
                hint="free space there",
            ) from e

    def keep(self, token: BoundToken) -> None:
        """Store a new one, durably, and let others have the store.

        Raises:
            NotDurable: it couldn't be stored, and is lost with this process.
        """
        descriptor = self._open()
        try:
            self._store._write(token)
            self.token = token
            os.ftruncate(descriptor, 0)
        except OSError as e:
            raise NotDurable(
                f"the new access token couldn't be stored in {self._store}: "
                f"{e.strerror or type(e).__name__}",
                hint="free space there; others will need a new grant",
            ) from e
        finally:
            self.release()

    def release(self) -> None:
        """Let others have the store."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child of ours may have it open too
            os.close(descriptor)
            _held.discard(self)

    def leave(self) -> None:
        """In a child: the parent holds it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _open(self) -> int:
        if self._descriptor is None:
            raise ConfigurationError(
                f"{self._store} isn't held any more", hint="hold it again: with store.hold()"
            )
        return self._descriptor


class AsyncHeld:
    """`Held`, for tasks."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self.token, self.waited, self.abandoned = held.token, held.waited, held.abandoned

    async def begin(self) -> None:
        """`Held.begin`."""
        await AWAITING.do(self._held.begin)

    async def keep(self, token: BoundToken) -> None:
        """`Held.keep`."""
        await AWAITING.do(partial(self._held.keep, token))
        self.token = token


_held: weakref.WeakSet[Held] = weakref.WeakSet()


def _leave_all() -> None:
    for held in list(_held):
        held.leave()
    _held.clear()


os.register_at_fork(after_in_child=_leave_all)


class TokenStore:
    """One access token with its refresh token, shared by the processes of a user.

    Goes with `DPoPAuth(renew, store=TokenStore(path))`: whatever process needs a new access token
    renews it, the others use it.

    Args:
        path: its file, which is made with mode 0600, in a folder that only you can change. Beside
            it is a lock, `path` and `.lock`, which stays.
        timeout: seconds to wait while another process renews.

    What is done with it raises:
        ConfigurationError: others can read or change the file, or it isn't one of ours.
        Timeout: another process renews for longer than that.
        NotDurable: it can't be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = TIMEOUT_S) -> None:
        place = os.path.realpath(os.path.expanduser(path))
        self._place: _File | _Keychain = _File(place)
        self._lock_path = place + ".lock"
        self._timeout = timeout

    @classmethod
    def in_keychain(cls, name: str, *, timeout: float = TIMEOUT_S) -> Self:
        """One in the operating system's keychain, where any program of the user can read it.

        Args:
            name: a-z, 0-9, dot, dash, underscore; 64 characters at most.
            timeout: seconds to wait while another process renews.
        """
        if _NAME.fullmatch(name) is None:
            raise ConfigurationError(
                f"{name!r:.80} is no name for an access token",
                hint="use a-z, 0-9, dot, dash, underscore, 64 characters at most",
            )
        store = cls.__new__(cls)
        store._place = _Keychain(name)
        store._lock_path = paths.token_lock(paths.state_folder(), name)
        store._timeout = timeout
        return store

    def __str__(self) -> str:
        return str(self._place)

    def __repr__(self) -> str:
        return f"<TokenStore {self}>"

    def load(self) -> BoundToken | None:
        """What is in it; None if it is empty."""
        data = self._place.read()
        if data is None:
            return None
        try:
            return _decoded(data)
        except (ValueError, TypeError, KeyError):
            raise ConfigurationError(
                f"{self} has something else than an access token in it",
                hint="move it away, and log in anew",
            ) from None  # its text may have the tokens in it

    def save(self, token: BoundToken) -> None:
        """Store what you got elsewhere, in place of what is there."""
        with self.hold() as held:
            held.keep(token)

    def clear(self) -> None:
        """Forget what is in it: whoever needs an access token begins a new grant."""
        with self.hold():
            self._place.remove()

    @contextmanager
    def hold(self) -> Iterator[Held]:
        """`with store.hold() as held:` nobody else has it.

        To renew by hand: look at `held.token`, which another process may have renewed since, say
        `held.begin()`, ask the server, `held.keep(new)`.
        """
        held = blocking(self.taken(BLOCKING))
        try:
            yield held
        finally:
            held.release()

    @asynccontextmanager
    async def hold_async(self) -> AsyncIterator[AsyncHeld]:
        """`async with store.hold_async() as held:` the same for tasks."""
        held = await awaiting(self.taken(AWAITING))
        try:
            yield AsyncHeld(held)
        finally:
            held.release()

    def taken(self, doing: Doing) -> Calls[Held]:
        """Hold it, by calls that are made or awaited; `release` it."""
        yield partial(doing.do, self._make_folder)
        deadline = time.monotonic() + self._timeout
        pause_s, waited = FIRST_PAUSE_S, False
        while (descriptor := self._try_lock()) is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise self._late()
            waited = True
            yield partial(doing.pause, min(pause_s, left_s))
            pause_s = min(1.5 * pause_s, LONGEST_PAUSE_S)
        held = Held(self, descriptor, waited=waited)
        _held.add(held)
        try:
            yield partial(doing.do, held.read)
        except BaseException:
            held.release()
            raise
        if held.abandoned:
            log.warning("whoever renewed the access token in %s last didn't finish", self)
        return held

    def _make_folder(self) -> None:
        folder = os.path.dirname(self._lock_path)
        try:
            paths.make_private_folder(folder, "the folder of access tokens", instead=_INSTEAD)
            paths.check_only_ours(folder, "the folder of access tokens", instead=_INSTEAD)
        except OSError as e:
            raise ConfigurationError(
                f"the folder {folder} can't be used: {e.strerror}", hint=_INSTEAD
            ) from e

    def _try_lock(self) -> int | None:
        """The lock's descriptor, if nobody else has it."""
        try:
            descriptor = paths.open_to_append(self._lock_path)
        except OSError as e:
            raise ConfigurationError(
                f"the lock {self._lock_path} can't be opened: {e.strerror}", hint=_INSTEAD
            ) from e
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(self._lock_path)):
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass  # somebody else has it, or removed it
        except BaseException as e:
            os.close(descriptor)
            if isinstance(e, OSError):
                raise ConfigurationError(
                    f"{self._lock_path} can't be locked: {e.strerror}", hint=_INSTEAD
                ) from e
            raise
        os.close(descriptor)
        return None

    def _late(self) -> Timeout:
        try:
            with open(self._lock_path, encoding="ascii", errors="replace") as file:
                pid = file.read(16).strip()
        except OSError:
            pid = ""
        who = f"the process {pid}" if pid.isdecimal() else "another process"
        return Timeout(
            f"{who} has held {self} for {self._timeout:g} s",
            hint="try again; if it hangs, end it",
        )

    def _write(self, token: BoundToken) -> None:
        data = _encoded(token)
        if len(data) > MAX_BYTES:  # nobody would read it
            raise ConfigurationError(
                f"the new access token and its refresh token have more than {MAX_BYTES} bytes, and "
                f"weren't stored in {self}",
                hint="ask the server's operator why they are so long",
            )
        self._place.write(data)


def _encoded(token: BoundToken) -> bytes:
    return json.dumps(
        {
            "access_token": token.access_token,
            "jkt": token.jkt,
            "expires_at": token.expires_at,
            "refresh_token": token.refresh_token,
        }
    ).encode("ascii")


def _decoded(data: bytes) -> BoundToken:
    members = json_object(data)
    access_token, jkt, expires_at, refresh_token = (
        members.get(name) for name in ("access_token", "jkt", "expires_at", "refresh_token")
    )
    if not (isinstance(access_token, str) and isinstance(jkt, str)):
        raise TypeError
    if not (isinstance(expires_at, int | float | None) and isinstance(refresh_token, str | None)):
        raise TypeError
    return BoundToken(access_token, jkt, expires_at, refresh_token)


class _File:
    """A file of mode 0600."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __str__(self) -> str:
        return self._path

    def read(self) -> bytes | None:
        try:
            descriptor = paths.open_only_ours(self._path, _WHAT, instead=_INSTEAD)
        except FileNotFoundError:
            return None
        except OSError as e:
            raise self._unreadable(e) from e
        with open(descriptor, "rb") as file:
            if (mode := os.fstat(descriptor).st_mode & 0o777) & 0o077:
                raise ConfigurationError(
                    f"others can read {self._path} (mode {mode:04o}), which has an access token",
                    hint=f"chmod 600 {self._path}; or log in anew, as somebody may have read it",
                )
            try:
                return file.read(MAX_BYTES)
            except OSError as e:
                raise self._unreadable(e) from e

    def _unreadable(self, e: OSError) -> ConfigurationError:
        return ConfigurationError(f"{self._path} can't be read: {e.strerror}", hint=_INSTEAD)

    def write(self, data: bytes) -> None:
        paths.replace_file(self._path, [data])
        paths.sync_folder(os.path.dirname(self._path))

    def remove(self) -> None:
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            return
        except OSError as e:
            raise NotDurable(f"{self._path} can't be removed: {e.strerror}") from e
        paths.sync_folder(os.path.dirname(self._path))


class _Keychain:
    """An item of the operating system's keychain."""

    def __init__(self, name: str) -> None:
        self._service = f"dpop-agent/access-token/{name}"
        self._name = name

    def __str__(self) -> str:
        return f"the keychain's item {self._service}"

    def read(self) -> bytes | None:
        found = self._call("get_password", self._service, self._name)
        return None if found is None else str(found).encode()

    def write(self, data: bytes) -> None:
        self._call("set_password", self._service, self._name, data.decode("ascii"))

    def remove(self) -> None:
        if self.read() is not None:
            self._call("delete_password", self._service, self._name)

    def _call(self, method: str, *arguments: str) -> Any:
        """In a thread, which may hang as its daemon does."""
        outcome: list[Any] = []

        def work() -> None:
            try:
                outcome.append(getattr(_backend(), method)(*arguments))
            except DPoPAgentError as e:
                outcome.append(e)
            except Exception as e:  # whatever: its text may have the item in it
                outcome.append(_failed(e))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(KEYCHAIN_S)
        if not outcome:
            raise Timeout(
                f"the keychain didn't answer within {KEYCHAIN_S:g} s",
                hint="check whether it waits for you to answer a prompt",
            )
        if isinstance(outcome[0], DPoPAgentError):
            raise outcome[0]
        return outcome[0]


def _backend() -> Any:
    """A keychain that is known to be one: `keyring` by itself may take a plain file."""
    from dpop_agent.config import default_backend

    try:
        from keyring.core import load_keyring

        return load_keyring(default_backend())
    except (RuntimeError, ImportError, AttributeError, OSError) as e:
        raise StoreAbsent("there is no keychain here", hint="use a file: TokenStore(path)") from e


def _failed(e: Exception) -> DPoPAgentError:
    from keyring.errors import KeyringLocked

    if isinstance(e, KeyringLocked):
        return Locked("the keychain is locked", hint="unlock it, as the login does")
    return StoreAbsent(f"the keychain failed ({type(e).__name__})", hint="check its daemon")

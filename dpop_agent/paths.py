"""Where the sockets, the configuration and the ledger are, and whether those places are safe."""

from __future__ import annotations

import errno
import os
import stat
import sys

from dpop_agent import users
from dpop_agent.errors import ConfigurationError, UnsafeSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

APP = "dpop-agent"

MAX_SOCKET_PATH = 103 if sys.platform == "darwin" else 107
"""Bytes of a socket's path: sun_path less its terminating zero (unix(7))."""

ANOTHER_SOCKET = "set DPOP_AGENT_SOCK to a path in a folder of your own"
ANOTHER_CONFIG_FILE = "set DPOP_AGENT_CONFIG to another file"
ANOTHER_STATE_FOLDER = "set DPOP_AGENT_STATE_DIR to a folder of your own"
"""What else somebody can do whose place isn't safe."""

AGENT, ADMIN, MOUNTED = "agent", "admin", "mount"
"""The names of the sockets that every agent has; `MOUNTED` is its folder's name too."""

EXEC = "exec"
"""Under this name all filtered sockets are recorded that go with their connection: there is a new
one for each command."""

_ADMIN = "admin.sock"
_AUDIT = "audit"
_LINES = ".jsonl"
_OLDER = ".1"
_SOCKETS = "sockets"
_SIGNER = "signer-"
_TOKENS = "tokens"
_LOCK = ".lock"


NEW = ".new"
"""After a file's name: what is to replace it."""

File = tuple[int, int]
"""Device and inode: what a path leads to."""


def agent_socket() -> str:
    """`$DPOP_AGENT_SOCK`, else `dpop-agent/agent.sock` in the user's runtime folder."""
    return os.environ.get("DPOP_AGENT_SOCK") or os.path.join(_runtime_folder(), "agent.sock")


def admin_socket(agent_socket: str) -> str:
    """`admin.sock` beside the agent's socket."""
    return os.path.join(os.path.dirname(agent_socket), _ADMIN)


def mounted_socket(agent_socket: str) -> str:
    """`agent.sock` alone in a folder, which can be mounted into a container."""
    return os.path.join(os.path.dirname(agent_socket), MOUNTED, "agent.sock")


def filtered_sockets(agent_socket: str) -> str:
    """The folder of the filtered sockets' folders."""
    return os.path.join(os.path.dirname(agent_socket), _SOCKETS)


def filtered_socket(agent_socket: str, name: str) -> str:
    """`agent.sock` alone in a folder, which gives what the filtered socket of that name gives."""
    return os.path.join(filtered_sockets(agent_socket), name, "agent.sock")


def config_file() -> str:
    """`$DPOP_AGENT_CONFIG`, else `dpop-agent/config.toml` in the user's configuration folder."""
    if path := os.environ.get("DPOP_AGENT_CONFIG"):
        return path
    import platformdirs

    return os.path.join(platformdirs.user_config_dir(APP), "config.toml")


def state_folder() -> str:
    """`$DPOP_AGENT_STATE_DIR`, else `dpop-agent` in the user's state folder."""
    if path := os.environ.get("DPOP_AGENT_STATE_DIR"):
        return path
    import platformdirs

    return platformdirs.user_state_dir(APP)


def audit_folder(state_folder: str) -> str:
    """Where the audit of an agent with that state folder is."""
    return os.path.join(state_folder, _AUDIT)


def audit_file(folder: str, socket: str) -> str:
    """The file of a socket's audit."""
    return os.path.join(folder, socket + _LINES)


def older_audit_file(path: str) -> str:
    """The one that was full before it."""
    return path + _OLDER


def socket_lock(socket: str) -> str:
    """The lock of who serves a socket of the agent's own."""
    return socket + _LOCK


def mounted_lock(socket: str) -> str:
    """The same of the socket in `mount`: beside its folder, which has nothing else."""
    return os.path.dirname(socket) + _LOCK


def filtered_lock(folder: str, name: str) -> str:
    """The same of a filtered socket, in the folder of all: no socket's name begins with a dot."""
    return os.path.join(folder, f".{name}{_LOCK}")


def filtered_of_lock(file: str) -> str | None:
    """The filtered socket whose lock a file of that name is; None for others."""
    is_one = file.startswith(".") and file.endswith(_LOCK) and len(file) > len(f".{_LOCK}")
    return file.removeprefix(".").removesuffix(_LOCK) if is_one else None


def signer_lock(state_folder: str, store: str) -> str:
    """The lock of a store, which one signer of all agents with that state folder holds."""
    return os.path.join(state_folder, f"{_SIGNER}{store}{_LOCK}")


def store_of_lock(file: str) -> str | None:
    """The store whose lock a file of that name is; None for others."""
    is_one = file.startswith(_SIGNER) and file.endswith(_LOCK)
    return file.removeprefix(_SIGNER).removesuffix(_LOCK) if is_one else None


def token_lock(state_folder: str, name: str) -> str:
    """The lock of an access token of that name in the keychain, which clients share."""
    return os.path.join(state_folder, _TOKENS, name + _LOCK)


def socket_of(file: str) -> str | None:
    """The socket whose audit has a file of that name; None for the older one, and for others."""
    return file.removesuffix(_LINES) if file.endswith(_LINES) else None


def _runtime_folder() -> str:
    # What platformdirs would answer, without its import, which is half a client's start-up.
    if sys.platform == "linux" and (runtime := os.environ.get("XDG_RUNTIME_DIR")):
        return os.path.join(runtime, APP)
    import warnings

    import platformdirs

    with warnings.catch_warnings():
        # It warns that the folder is in /tmp; whether it is safe there, check_socket_folder tells.
        warnings.simplefilter("ignore")
        return platformdirs.user_runtime_dir(APP)


def check_socket_path(path: str) -> None:
    """Refuse what bind(2) and connect(2) can't take.

    Raises:
        ConfigurationError: not absolute, or longer than the system allows.
    """
    if not os.path.isabs(path):
        raise ConfigurationError(
            f"the socket's path {path!r} isn't absolute", hint="set DPOP_AGENT_SOCK to a full path"
        )
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH:
        raise ConfigurationError(
            f"the socket's path has {length} bytes, more than the {MAX_SOCKET_PATH} that work",
            hint="set DPOP_AGENT_SOCK to a shorter path",
        )


def check_socket_folder(path: str, *, client: bool = False) -> None:
    """Refuse a socket whose folder somebody else could change.

    The folder is ours and has mode 0700 or less, and only we and root can change the way to it. For
    a client it may also be root's, where nobody else can write to it: a sandbox's, into which the
    socket was mounted. A client asks for the listener's uid afterwards, so where root isn't mapped
    the overflow uid passes for root's.

    Raises:
        UnsafeSocket: names the folder and what is wrong with it; for a client also, that the
            runtime folder, in which it would be, isn't there.
        FileNotFoundError: there is no such folder.
    """
    folder = os.path.dirname(path)
    way = _Way("the socket", instead=ANOTHER_SOCKET, client=client)
    try:
        above = way.into(os.path.dirname(folder))
    except FileNotFoundError as e:
        if not client:
            raise
        raise UnsafeSocket(
            f"there is no folder {e.filename}, which the socket's folder is to be in",
            hint="start the agent: dpop-agent serve; or set DPOP_AGENT_SOCK",
        ) from e
    except ConfigurationError as e:
        raise UnsafeSocket(e.message, hint=e.hint) from None
    info = os.lstat(os.path.join(above, os.path.basename(folder)))
    if stat.S_ISLNK(info.st_mode):
        raise UnsafeSocket(f"{folder} is a symbolic link", hint="name the folder itself")
    if not stat.S_ISDIR(info.st_mode):
        raise UnsafeSocket(f"{folder} isn't a folder", hint="set DPOP_AGENT_SOCK to another path")
    if users.is_own(info.st_uid):
        if info.st_mode & 0o077:
            raise UnsafeSocket(
                f"{_mode(folder, info)}: others can reach it", hint=f"chmod 700 {_typed(folder)}"
            )
    elif not (client and way.is_roots(folder, info)):
        raise UnsafeSocket(
            f"{folder} belongs to uid {info.st_uid}, not to uid {os.getuid()}",
            hint=ANOTHER_SOCKET,
        )
    elif info.st_mode & _OTHERS_WRITE:
        raise UnsafeSocket(
            f"{_mode(folder, info)}: others can replace what is in it", hint=ANOTHER_SOCKET
        )


def socket_at(path: str) -> File | None:
    """The socket at a path, whatever it is called; None if there is none."""
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return (info.st_dev, info.st_ino) if stat.S_ISSOCK(info.st_mode) else None


def check_only_ours(path: str, what: str, *, instead: str) -> None:
    """Refuse a file or folder that anybody but us and root can change, or put another in place of.

    Symbolic links are followed one by one; each of them, and each folder on the way, is ours or
    root's and is writable for nobody else, unless it is sticky (as `/tmp` is). What this lets pass
    stays so: only we and root could change that.

    Permissions alone count: POSIX ACLs show in them, those of NFS and macOS don't.

    Args:
        path: the file or folder.
        what: what it is to people, as in `the configuration`.
        instead: for the hint: what else they can do.

    Raises:
        ConfigurationError: names the place and what is wrong with it.
        OSError: there is none, or no way to it.
    """
    way = _Way(what, instead=instead)
    place, info = way.to(path)
    way.check_end(place, info)


def open_only_ours(path: str, what: str, *, instead: str) -> int:
    """A descriptor for reading a file that `check_only_ours` lets pass; it was checked too.

    Raises:
        ConfigurationError: the same, or it isn't a regular file.
        OSError
    """
    way = _Way(what, instead=instead)
    place, info = way.to(path)
    way.check_file(place, info)  # before it is opened: of a device that may have an effect
    descriptor = os.open(
        place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    )
    return way.checked(place, descriptor)


def make_private_folder(folder: str, what: str, *, instead: str) -> None:
    """Make `folder` with mode 0700 where it isn't there yet; one that is there stays as it is.

    Raises:
        ConfigurationError: others can change it or the way to it; nothing is made there.
        OSError: it can't be made.
    """
    way = _Way(what, instead=instead, make=True)
    place, info = way.to(folder)
    if not stat.S_ISDIR(info.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), place)


def create(path: str) -> int:
    """A descriptor for writing a new file of mode 0600, in place of what is there.

    Raises:
        OSError
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    return _create_new(path)


def _create_new(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def open_to_append(path: str) -> int:
    """A descriptor for adding to a file of ours, which is made with mode 0600 where there is none.

    Raises:
        ConfigurationError: something else is there, or others can change it.
        OSError
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    descriptor = os.open(path, flags, 0o600)
    return _Way("the file", instead="move it away").checked(path, descriptor)


def write_new(path: str, pieces: Iterable[bytes]) -> None:
    """Write a new file of mode 0600, durably, or none.

    Raises:
        OSError: FileExistsError where there is one.
    """
    descriptor = _create_new(path)
    try:
        with open(descriptor, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(os.path.dirname(os.path.abspath(path)))
    except BaseException:
        os.unlink(path)  # half of one would be in the way of the next
        raise


def replace_file(path: str, text: Iterable[bytes]) -> None:
    """Replace a file as a whole; durable once its folder is synchronised too.

    Raises:
        OSError: the old one is there still.
    """
    new = path + NEW
    descriptor = create(new)
    with open(descriptor, "wb") as file:
        file.writelines(text)
        file.flush()
        os.fsync(descriptor)
    os.replace(new, path)


def sync_folder(folder: str) -> None:
    """Make durable which files a folder has.

    Raises:
        OSError
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_OTHERS_WRITE = 0o022
_MAX_LINKS = 40  # as the kernel has it (path_resolution(7))


class _Way:
    """The way to a place, checked from the root on, so that what was checked can't change later."""

    def __init__(
        self, what: str, *, instead: str, make: bool = False, client: bool = False
    ) -> None:
        self._what = what
        self._instead = instead
        self._make = make
        self._client = client

    def into(self, folder: str) -> str:
        """The folder without links, fit to go on from."""
        place, info = self.to(folder, end=False)
        self._check_entered(place, info)
        return place

    def to(self, path: str, *, end: bool = True) -> tuple[str, os.stat_result]:
        """The place that `path` leads to, without links, and what is there; its owner is checked,
        its mode isn't.
        """
        if not os.path.isabs(path):
            path = os.path.join(os.getcwd(), path)
        place, names, links = "/", _names(path), 0
        info = os.lstat(place)
        self._check_owner(place, info, end=end and not names)
        while names:
            self._check_entered(place, info)
            name = names.pop()
            found = os.path.dirname(place) if name == ".." else os.path.join(place, name)
            info = self._look(found, private=not names)
            if not stat.S_ISLNK(info.st_mode):
                self._check_owner(found, info, end=end and not names)
                place = found
                continue
            self._check_owner(found, info, end=False)
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink(found)
            names += _names(target)
            if os.path.isabs(target):
                place = "/"
            info = os.lstat(place)
        return place, info

    def _look(self, place: str, *, private: bool) -> os.stat_result:
        try:
            return os.lstat(place)
        except FileNotFoundError:
            if not self._make:
                raise
        try:
            os.mkdir(place, 0o700 if private else 0o755)
        except FileExistsError:
            pass
        return os.lstat(place)

    def check_end(self, place: str, info: os.stat_result) -> None:
        if not info.st_mode & _OTHERS_WRITE:
            return
        if stat.S_ISDIR(info.st_mode):
            raise ConfigurationError(
                f"others can write to {self._what} {place} (mode {stat.S_IMODE(info.st_mode):04o})",
                hint=f"look through it, then: chmod 700 {_typed(place)}; or {self._instead}",
            )
        raise ConfigurationError(
            f"{_mode(f'{self._what} {place}', info)}: others can change it",
            hint=f"look through it, then: chmod go-w {_typed(place)}; or {self._instead}",
        )

    def checked(self, place: str, descriptor: int) -> int:
        """The descriptor of a file that is ours; that of another is closed."""
        try:
            self.check_file(place, os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def check_file(self, place: str, info: os.stat_result) -> None:
        if stat.S_ISDIR(info.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), place)
        if not stat.S_ISREG(info.st_mode):
            raise ConfigurationError(f"{self._what} {place} isn't a file", hint=self._instead)
        self._check_owner(place, info, end=True)
        self.check_end(place, info)

    def is_roots(self, place: str, info: os.stat_result) -> bool:
        if info.st_uid == 0:
            return True
        if not users.may_be_root(info.st_uid):
            return False
        if self._client:
            return True
        mounted = os.path.dirname(place) if stat.S_ISLNK(info.st_mode) else place
        return bool(os.statvfs(mounted).f_flag & os.ST_RDONLY)

    def _check_owner(self, place: str, info: os.stat_result, *, end: bool) -> None:
        if not users.is_own(info.st_uid) and not self.is_roots(place, info):
            owner = f"belongs to uid {info.st_uid}"
            raise ConfigurationError(
                f"{self._what} {place} {owner}, not to uid {os.getuid()}"
                if end
                else f"{place}, above {self._what}, {owner}",
                hint=self._instead,
            )

    def _check_entered(self, place: str, info: os.stat_result) -> None:
        writable = info.st_mode & _OTHERS_WRITE and not info.st_mode & stat.S_ISVTX
        if stat.S_ISDIR(info.st_mode) and writable:
            raise ConfigurationError(
                f"{_mode(f'{place}, above {self._what},', info)}: others can replace what is in it",
                hint=f"chmod go-w {_typed(place)}; or {self._instead}",
            )


def _names(path: str) -> list[str]:
    """What a path goes through, the first name last."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _typed(path: str) -> str:
    """A path in a command that is to be typed."""
    from shlex import quote  # costs every client its start-up, and few this

    return quote(path)


def _mode(what: str, info: os.stat_result) -> str:
    return f"{what} has mode {stat.S_IMODE(info.st_mode):04o}"

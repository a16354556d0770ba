"""Where the sockets, the configuration and the ledger are, and whether those places are safe."""

from __future__ import annotations

import os
import stat
import sys

from dpop_agent.errors import ConfigurationError, UnsafeSocket

APP = "dpop-agent"

MAX_SOCKET_PATH = 103 if sys.platform == "darwin" else 107
"""Bytes of a socket's path: sun_path less its terminating zero (unix(7))."""

_ADMIN = "admin.sock"


def agent_socket() -> str:
    """`$DPOP_AGENT_SOCK`, else `dpop-agent/agent.sock` in the user's runtime folder."""
    return os.environ.get("DPOP_AGENT_SOCK") or os.path.join(_runtime_folder(), "agent.sock")


def admin_socket(agent_socket: str) -> str:
    """`admin.sock` beside the agent's socket."""
    return os.path.join(os.path.dirname(agent_socket), _ADMIN)


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


def check_socket_folder(path: str) -> None:
    """Refuse a socket whose folder somebody else could change.

    The folder is ours and has mode 0700 or less; each folder above it belongs to us or to root and
    is writable for nobody else, unless it is sticky (as `/tmp` is). Symbolic links above it are
    ours or root's, and what holds for folders holds for those that they lead through.

    Raises:
        UnsafeSocket: names the folder and what is wrong with it.
        FileNotFoundError: there is no such folder.
    """
    folder = os.path.dirname(path)
    info = os.lstat(folder)
    if stat.S_ISLNK(info.st_mode):
        raise UnsafeSocket(f"{folder} is a symbolic link", hint="name the folder itself")
    if not stat.S_ISDIR(info.st_mode):
        raise UnsafeSocket(f"{folder} isn't a folder", hint="set DPOP_AGENT_SOCK to another path")
    if info.st_uid != os.getuid():
        raise UnsafeSocket(
            f"{folder} belongs to uid {info.st_uid}, not to uid {os.getuid()}",
            hint="set DPOP_AGENT_SOCK to a path in a folder of your own",
        )
    if info.st_mode & 0o077:
        raise UnsafeSocket(
            f"{folder} has mode {stat.S_IMODE(info.st_mode):04o}: others can reach it",
            hint=f"chmod 700 {folder}",
        )
    _check_above(folder)


def _check_above(path: str) -> None:
    """Each folder on the way to `path`, and on the way that a symbolic link there takes."""
    while (above := os.path.dirname(path)) != path:
        info = os.lstat(above)
        if info.st_uid not in (0, os.getuid()):
            raise UnsafeSocket(
                f"{above}, above the socket, belongs to uid {info.st_uid}",
                hint="set DPOP_AGENT_SOCK to a path in a folder of your own",
            )
        if stat.S_ISLNK(info.st_mode):
            _check_above(os.path.join(os.path.dirname(above), os.readlink(above), "."))
        elif info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX:
            raise UnsafeSocket(
                f"{above}, above the socket, has mode {stat.S_IMODE(info.st_mode):04o}: "
                "others can replace what is in it",
                hint="set DPOP_AGENT_SOCK to a path in a folder of your own",
            )
        path = above


def make_private_folder(folder: str) -> None:
    """Make `folder` with mode 0700 where it isn't there yet; one that is there stays as it is."""
    os.makedirs(os.path.dirname(folder), mode=0o755, exist_ok=True)
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass

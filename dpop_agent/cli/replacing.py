"""The configuration is changed as a whole, checked before, or stays as it was."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager

from dpop_agent import config, paths
from dpop_agent.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Check = Callable[[config.Config, config.Config | None], None]
    """Refuses what can't work of the first, where the second, which is in place, hasn't it too."""

NEXT = "next:  dpop-agent reload"


@contextmanager
def locked(path: str) -> Iterator[None]:
    """While others who ask for it wait to change the configuration in `path`."""
    import fcntl

    try:
        descriptor = os.open(os.path.dirname(os.path.realpath(path)), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # told by whoever reads the file
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: what was read is compared all the same
            pass
        yield
    finally:
        os.close(descriptor)


def require_sound(text: str, path: str, before: str, check: Check) -> None:
    """Refuse a text that the agent can't use in place of the one before.

    Raises:
        ConfigurationError: as `config check` does; `path` is where the text is, or will be.
    """
    new = config.parse(text, path)
    try:
        old = config.parse(before, path)
    except ConfigurationError:
        old = None
    check(new, old)


def replace(path: str, before: str, text: str) -> None:
    """Put another text in the place of the one before, durably; call it `locked`.

    Mode and owner stay, and where `path` is a symbolic link, that does too.

    Raises:
        ConfigurationError: somebody else changed it since it was read, or it can't be written.
    """
    import tempfile

    if config.read(path) != before:
        raise ConfigurationError(
            f"{path} was changed by somebody else meanwhile, and stays as it is now",
            hint="begin anew with what it says now",
        )
    place = os.path.realpath(path)
    folder = os.path.dirname(place)
    try:
        info = os.stat(place)
        descriptor, new = tempfile.mkstemp(prefix=".config-", dir=folder)
        try:
            with open(descriptor, "wb") as file:
                made = os.fstat(descriptor)
                if (made.st_uid, made.st_gid) != (info.st_uid, info.st_gid):
                    os.fchown(descriptor, info.st_uid, info.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(info.st_mode))
                file.write(text.encode())
                file.flush()
                os.fsync(descriptor)
            os.replace(new, place)
        except BaseException:
            os.unlink(new)
            raise
        paths.sync_folder(folder)
    except OSError as e:
        raise ConfigurationError(
            f"{path} can't be replaced: {e.strerror}", hint="correct that, or edit it as its owner"
        ) from e

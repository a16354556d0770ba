"""Units as files: known by a mark, so that nobody else's is touched; and what they need."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress

from dpop_agent import config, paths
from dpop_agent.cli import units
from dpop_agent.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from dpop_agent.cli.systemctl import Systemd

UNCHANGED = "it was installed like this already"

_MARK = re.compile(r"# Written by dpop-agent service install; sha256 of what follows: (\S+)\n")

VANISHING = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # noqa: S108  (nothing is put there)
"""Folders that are emptied, at the next start at the latest."""


def require_lasting(what: str, path: str, instead: str) -> None:
    """Refuse a place that will vanish.

    Raises:
        ConfigurationError: it is in a folder that is emptied; `instead` says what else to do.
    """
    import tempfile

    home = os.path.expanduser("~")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    folders = {*VANISHING, tempfile.gettempdir(), cache, os.path.join(home, "Library", "Caches")}
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    real = os.path.realpath(path)
    if what == "the socket" and runtime and is_below(real, runtime):
        return
    for folder in sorted(folders):
        if is_below(real, folder):
            raise ConfigurationError(
                f"{what} is in {folder}, which is emptied now and then: {path}", hint=instead
            )


def is_below(path: str, folder: str) -> bool:
    """Whether a path without links is in that folder."""
    return path.startswith(os.path.realpath(folder).rstrip("/") + "/")


def require_credentials(found: config.Config, places: units.Places) -> None:
    """Refuse what systemd would find missing.

    Raises:
        ConfigurationError: there is no file with a PIN that the configuration names.
    """
    for name in units.credentials(found):
        path = os.path.join(places.credentials, name)
        if not os.path.isfile(path):
            raise ConfigurationError(
                f"there is no {path}, where systemd is to have the credential {name} from",
                hint=f"(umask 077; mkdir -p {places.credentials}; cat > {path}), and type the PIN",
            )


def unit_path(unit: str) -> str:
    """Where a unit of the user's goes."""
    folder = os.environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(folder):  # as systemd and the XDG specification have it
        folder = os.path.expanduser("~/.config")
    return os.path.join(folder, "systemd", "user", unit)


def marked(text: str) -> str:
    """A unit with its mark, by which it is known again, and known to be unchanged."""
    return (
        "# Written by dpop-agent service install; sha256 of what follows: "
        f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}"
    )


def read(path: str) -> str | None:
    """The text of a unit; None where there is no file: what else is there may never end."""
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def state_of(path: str) -> str:
    """`absent`, `ours`, `changed` by hand since, or `foreign`."""
    found = read(path)
    if found is None:
        return "foreign" if os.path.lexists(path) else "absent"
    mark = _MARK.match(found)
    if mark is None:
        return "foreign"
    return "ours" if marked(found[mark.end() :]) == found else "changed"


def refuse_another(path: str, systemd: Systemd) -> None:
    """Refuse a unit that systemd would take in place of the one at that path, or beside it.

    Raises:
        ConfigurationError
    """
    fragment = systemd.show(os.path.basename(path), "FragmentPath")["FragmentPath"]
    if fragment and os.path.realpath(fragment) != os.path.realpath(path):
        raise ConfigurationError(
            f"there is another service of that name: {fragment}",
            hint="remove it where it came from, such as a package of your distribution",
        )


def refuse_changed(path: str, *, discard: bool) -> None:
    """Refuse to replace or remove what somebody else wrote.

    Raises:
        ConfigurationError
    """
    state = state_of(path)
    if state == "foreign":
        raise ConfigurationError(
            f"{path} is another service of that name, which this program didn't write",
            hint="move it away if you don't need it",
        )
    if state == "changed" and not discard:
        scope = "" if path.startswith(units.SYSTEM_UNITS) else " --user"
        raise ConfigurationError(
            f"{path} was changed by hand since it was installed, and stays as it is",
            hint=f"keep your changes with: systemctl{scope} edit {os.path.basename(path)}; then "
            "say --discard-changes",
        )


def write_unit(path: str, text: str) -> bool:
    """Write a unit with its mark, whole or not at all; whether that changed anything."""
    if read(path) == text:
        return False
    new = path + paths.NEW
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(paths.create(new), "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        os.replace(new, path)
    except OSError as e:
        raise ConfigurationError(
            f"{path} can't be written: {e.strerror}", hint="correct that"
        ) from e
    return True


def remove(there: Sequence[str], systemd: Systemd) -> None:
    """End units and remove their files, also of those that systemd can't read or doesn't know.

    Raises:
        ServiceFailed
    """
    shown = {
        unit: systemd.show(unit, "LoadState", "ActiveState")
        for unit in map(os.path.basename, there)
    }
    if known := [unit for unit, its in shown.items() if its["LoadState"] != "not-found"]:
        systemd.do("disable", "--quiet", *known)
    if running := [unit for unit, its in shown.items() if its["ActiveState"] != "inactive"]:
        systemd.do("stop", *running)
    for path in there:
        with suppress(FileNotFoundError):  # a link, which went with `disable`
            os.unlink(path)
    systemd.do("daemon-reload")

"""Places that are nobody's, for a process and what it starts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

USERS_OWN = (
    *("CLICOLOR", "DBUS_", "DPOP_", "FORCE_COLOR", "NODE_", "NO_COLOR", "PYTHON_KEYRING_"),
    *("SOFTHSM2_", "SSH_", "XDG_"),
)


@contextmanager
def private_places() -> Iterator[Path]:
    """HOME and all that is found from there: nothing of the user's own is read or touched."""
    with (
        tempfile.TemporaryDirectory(prefix="dpop-home-") as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        home = Path(name).resolve()
        for variable in list(os.environ):
            if variable.startswith(USERS_OWN) or variable.upper().endswith("_PROXY"):
                patch.delenv(variable)
        patch.setenv("HOME", str(home))
        for variable, folder in {
            "XDG_CONFIG_HOME": ".config",
            "XDG_STATE_HOME": ".local/state",
            "XDG_DATA_HOME": ".local/share",
            "XDG_CACHE_HOME": ".cache",
            "XDG_RUNTIME_DIR": "run",
        }.items():
            (home / folder).mkdir(mode=0o700, parents=True)
            patch.setenv(variable, str(home / folder))
        patch.setenv("DPOP_AGENT_SOCK", str(home / "run" / "none.sock"))
        patch.setenv("DPOP_AGENT_CONFIG", str(home / ".config" / "none.toml"))
        patch.setenv("DPOP_AGENT_STATE_DIR", str(home / ".local" / "state" / "none"))
        yield home

"""systemd itself reads the units, and has nothing to say of them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dpop_agent.cli import units
from tests.emulators import need
from tests.unit.test_units import KEYCHAIN, NETWORK, SOFTHSM, configured, token


@pytest.fixture
def runtime(tmp_path: Path) -> str:
    need("systemd")
    folder = tmp_path / "runtime"
    folder.mkdir(mode=0o700)
    return str(folder)


def verified(runtime: str, *words: str) -> str:
    """What systemd-analyze says; it ends well where a setting isn't known, too."""
    env = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": runtime, "HOME": runtime}
    command = ["systemd-analyze", "--man=no", *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    return done.stderr + f"status {done.returncode}" * (done.returncode != 0)


STORES = [
    [SOFTHSM],
    [KEYCHAIN],
    [NETWORK, SOFTHSM],
    [token("/x/a.so", pin="credential:one"), token("/x/b.so", pin="credential:two")],
    [token("/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so")],
]


@pytest.mark.parametrize("stores", STORES)
@pytest.mark.parametrize("home", ["/home/u", "/home/100% of u"])
def test_systemd_has_nothing_to_say_of_the_users_units(
    tmp_path: Path, runtime: str, stores: list[str], home: str
) -> None:
    where = units.Places(
        config=f"{home}/config.toml", state=f"{home}/state", socket=f"{home}/s/agent.sock"
    )
    service, socket = tmp_path / units.SERVICE, tmp_path / units.SOCKET
    service.write_text(units.users_service(configured(*stores), where))
    socket.write_text(units.users_socket(where))
    assert verified(runtime, "--user", "verify", str(service), str(socket)) == ""


@pytest.mark.parametrize("stores", [*STORES, None])
def test_systemd_has_nothing_to_say_of_the_systems_unit(
    tmp_path: Path, runtime: str, stores: list[str] | None
) -> None:
    found = None if stores is None else configured(*stores)
    service = tmp_path / units.SERVICE
    service.write_text(units.systems_service(found, units.systems_places()))
    assert verified(runtime, "verify", str(service)) == ""


def test_a_setting_that_systemd_doesnt_know_would_be_seen(tmp_path: Path, runtime: str) -> None:
    service = tmp_path / units.SERVICE
    where = units.systems_places()
    text = units.users_service(configured(SOFTHSM), where)
    service.write_text(text.replace("[Service]", "[Service]\nNoNewPrivilege=yes"))
    (tmp_path / units.SOCKET).write_text(units.users_socket(where))
    assert "NoNewPrivilege" in verified(runtime, "--user", "verify", str(service))

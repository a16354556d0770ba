"""Units: what is in them follows from the configuration, and nobody else's is touched."""

from __future__ import annotations

import os
import plistlib
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpop_agent import __version__, config
from dpop_agent.cli import main as cli
from dpop_agent.cli import service, system_service, unit_files, units
from dpop_agent.errors import ConfigurationError

FAILING = (  # by systemd 252, for a user
    *("CapabilityBoundingSet", "PrivateDevices", "ProtectClock", "DynamicUser", "ProtectSystem"),
    *("ProtectHome", "PrivateNetwork", "PrivateUsers", "StateDirectory", "ConfigurationDirectory"),
    *("User", "Group", "SupplementaryGroups"),
)


def configured(*stores: str, path: str = "/home/u/.config/dpop-agent/config.toml") -> config.Config:
    text = "".join(f"[stores.s{n}]\n{store}\n" for n, store in enumerate(stores))
    return config.parse(f'[agent]\ndefault_store = "s0"\n{text}', path)


def token(module: str, *, pin: str = "prompt", env: str = "{}") -> str:
    return (
        f'type = "pkcs11"\nmodule = "{module}"\nuri = "pkcs11:token=t"\n'
        f'pin_source = "{pin}"\nenv = {env}'
    )


KEYCHAIN = 'type = "keychain"'
SOFTHSM = token("/usr/lib/softhsm/libsofthsm2.so")
NETWORK = token("/opt/vendor/libhsm.so")


def places(**more: str) -> units.Places:
    at = {
        "config": "/home/u/.config/dpop-agent/config.toml",
        "state": "/home/u/.local/state/dpop-agent",
        "socket": "/run/user/1000/dpop-agent/agent.sock",
    }
    return units.Places(**(at | more))


def settings(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


LOCAL = "AF_UNIX"
ANY = "AF_UNIX AF_INET AF_INET6 AF_NETLINK"


@pytest.mark.parametrize(
    ("stores", "families"),
    [
        ([SOFTHSM], LOCAL),
        ([KEYCHAIN], LOCAL),
        ([token("/usr/lib/x86_64-linux-gnu/libykcs11.so.2"), SOFTHSM, KEYCHAIN], LOCAL),
        ([token("/usr/lib/x86_64-linux-gnu/opensc-pkcs11.so")], LOCAL),
        ([token("/usr/lib/x86_64-linux-gnu/libsoftokn3.so")], LOCAL),
        ([token("/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so")], LOCAL),
        ([token("/x/libtpm2_pkcs11.so.1", env='{TPM2_PKCS11_TCTI = "tabrmd"}')], LOCAL),
        ([token("/x/libtpm2_pkcs11.so.1", env='{TPM2_PKCS11_TCTI = "device:/dev/tpmrm0"}')], LOCAL),
        ([token("/x/libtpm2_pkcs11.so.1", env='{TPM2_PKCS11_TCTI = "swtpm:port=2"}')], ANY),
        ([NETWORK], ANY),
        ([KEYCHAIN, NETWORK], ANY),
        ([token("/usr/lib/x86_64-linux-gnu/p11-kit-proxy.so")], ANY),
    ],
)
def test_only_a_store_that_may_be_elsewhere_opens_the_network(
    stores: list[str], families: str
) -> None:
    for text in (
        units.users_service(configured(*stores), places()),
        units.systems_service(configured(*stores), units.systems_places()),
    ):
        assert settings(text)["RestrictAddressFamilies"] == [families]


def test_the_users_unit_has_nothing_that_fails_or_does_nothing_there() -> None:
    text = units.users_service(configured(SOFTHSM, NETWORK, KEYCHAIN), places())
    assert not set(settings(text)) & set(FAILING)


def test_the_agent_can_finish_and_its_folder_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    found = settings(units.users_service(configured(SOFTHSM), places()))
    for name, value in {
        "Type": "notify",
        "KillMode": "mixed",
        "TimeoutStopSec": "10",
        "RuntimeDirectory": "dpop-agent",
        "RuntimeDirectoryPreserve": "yes",
        "Requires": "dpop-agent.socket",
    }.items():
        assert found[name] == [value]
    elsewhere = units.users_service(configured(SOFTHSM), places(socket="/home/u/s/agent.sock"))
    assert "RuntimeDirectory" not in settings(elsewhere)


def test_a_credential_is_read_by_systemd_from_beside_the_configuration() -> None:
    named = configured(token("/x/a.so", pin="credential:one"), token("/x/b.so", pin="prompt"))
    assert settings(units.users_service(named, places()))["LoadCredential"] == [
        "one:/home/u/.config/dpop-agent/credentials/one"
    ]
    assert "LoadCredential" not in settings(units.users_service(configured(SOFTHSM), places()))


def test_a_credential_that_isnt_there_is_told_with_its_place(tmp_path: Path) -> None:
    named = configured(token("/x/a.so", pin="credential:one"))
    where = places(config=str(tmp_path / "config.toml"))
    with pytest.raises(ConfigurationError, match=f"there is no {tmp_path}/credentials/one"):
        unit_files.require_credentials(named, where)
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "one").touch()
    unit_files.require_credentials(named, where)


def test_what_systemd_would_read_otherwise_is_written_so_that_it_means_itself() -> None:
    text = units.users_socket(places(socket="/home/50% of u/agent.sock"))
    assert "ListenStream=/home/50%% of u/admin.sock" in text.splitlines()
    for odd in ('a"b', "a\\b", "a\nb", "a\x1bb"):
        with pytest.raises(ConfigurationError, match="can't be in a unit"):
            units.users_service(configured(SOFTHSM), places(state=f"/home/{odd}"))


def test_a_path_that_systemd_would_take_for_another_or_for_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="can't be in a unit"):
        units.users_socket(places(socket="/home/u/agent.sock "))
    quoted = places()
    quoted.python = "/home/it's/bin/python"
    with pytest.raises(ConfigurationError, match="can't be in a unit"):
        units.users_service(configured(SOFTHSM), quoted)


def test_the_systems_unit_is_for_a_user_of_its_own_and_nothing_listens_for_it() -> None:
    found = settings(units.systems_service(configured(SOFTHSM), units.systems_places()))
    assert found["User"] == found["Group"] == ["dpop-agent"]
    assert "Requires" not in found
    assert found["StateDirectory"] == found["RuntimeDirectory"] == ["dpop-agent"]
    assert "SupplementaryGroups" not in found
    assert found["PrivateDevices"] == ["yes"]


def test_the_group_tss_is_for_a_tpm_alone_and_its_device_isnt_hidden() -> None:
    tpm = configured(token("/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so"))
    found = settings(units.systems_service(tpm, units.systems_places()))
    assert found["SupplementaryGroups"] == ["tss"]
    assert "PrivateDevices" not in found


@pytest.mark.parametrize(
    ("store", "wanted"),
    [
        (SOFTHSM, False),
        (KEYCHAIN, False),
        (token("/usr/lib/libykcs11.so"), True),
        (token("/usr/lib/opensc-pkcs11.so"), True),
        (NETWORK, True),
    ],
)
def test_a_rule_for_pcscd_is_printed_where_a_card_may_be_behind_it(
    store: str, wanted: bool
) -> None:
    assert units.wants_pcscd(configured(store)) is wanted
    assert f'subject.user == "{units.USER}"' in units.polkit_rule()


def test_the_property_list_is_one_and_runs_serve_where_its_files_are() -> None:
    found: dict[str, Any] = plistlib.loads(units.plist(places()))
    assert found["ProgramArguments"] == [sys.executable, "-P", "-m", "dpop_agent", "serve"]
    assert found["EnvironmentVariables"] == places().environment
    assert found["KeepAlive"] == {"SuccessfulExit": False}
    assert "Sockets" not in found
    assert f"{found['Label']}.plist" == Path(units.PLIST).name


def test_on_a_mac_the_list_is_printed_and_nothing_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cli.main(["service", "print"]) == 0
    printed, _ = capsysbinary.readouterr()
    assert plistlib.loads(printed)["RunAtLoad"] is True
    for verb in ("install", "start", "status"):
        assert cli.main(["service", verb]) == 1
        _, err = capsysbinary.readouterr()
        assert b"never tried on a Mac" in err
        assert b"dpop-agent service print" in err


def test_a_unit_is_known_as_ours_as_changed_or_as_somebody_elses(tmp_path: Path) -> None:
    path = tmp_path / "new" / "dpop-agent.service"
    assert unit_files.state_of(str(path)) == "absent"
    text = unit_files.marked("[Unit]\nDescription=ä\n")
    assert unit_files.write_unit(str(path), text)
    assert not unit_files.write_unit(str(path), text)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert unit_files.state_of(str(path)) == "ours"
    path.write_text(path.read_text() + "Nice=1\n")
    assert unit_files.state_of(str(path)) == "changed"
    path.write_text("[Unit]\n")
    assert unit_files.state_of(str(path)) == "foreign"
    path.unlink()
    path.symlink_to("/dev/none/of/it")
    assert unit_files.state_of(str(path)) == "foreign"
    assert [file.name for file in path.parent.iterdir()] == [path.name], "nothing else is left"


@pytest.mark.parametrize("what", ["fifo", "folder", "link to a device", "link to itself"])
def test_what_isnt_a_file_is_no_unit_of_ours_and_isnt_read(tmp_path: Path, what: str) -> None:
    path = tmp_path / "dpop-agent.service"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if what == "link to a device" else path)
    assert unit_files.read(str(path)) is None
    with pytest.raises(ConfigurationError, match="which this program didn't write"):
        unit_files.refuse_changed(str(path), discard=True)


def test_a_configuration_folder_that_isnt_absolute_is_ignored_as_systemd_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    for folder in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", folder)
        assert unit_files.unit_path("x") == "/home/u/.config/systemd/user/x"
    monkeypatch.setenv("XDG_CONFIG_HOME", "/etc/u")
    assert unit_files.unit_path("x") == "/etc/u/systemd/user/x"


@pytest.mark.parametrize(
    ("path", "vanishes"),
    [
        ("/tmp/venv", True),
        ("/var/tmp/x/config.toml", True),
        ("/dev/shm/x", True),
        ("/run/x/config.toml", True),
        ("{home}/.cache/uv/archive-v0/x", True),
        ("{tmp}/x", True),
        ("{home}/.local/share/pipx/venvs/dpop-agent", False),
        ("/usr", False),
        ("/opt/tmp/x", False),
    ],
)
def test_a_place_that_is_emptied_is_no_place_for_a_service(
    monkeypatch: pytest.MonkeyPatch, path: str, vanishes: bool
) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/scratch")
    path = path.format(home="/home/u", tmp="/scratch")
    if not vanishes:
        unit_files.require_lasting("this program", path, "elsewhere")
        return
    with pytest.raises(ConfigurationError, match=r"is emptied now and then: .*; elsewhere"):
        unit_files.require_lasting("this program", path, "elsewhere")


def test_the_socket_alone_may_be_in_the_runtime_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    unit_files.require_lasting("the socket", "/run/user/1000/dpop-agent/agent.sock", "x")
    with pytest.raises(ConfigurationError):
        unit_files.require_lasting("the configuration", "/run/user/1000/config.toml", "x")


def test_where_systemd_doesnt_run_the_machine_it_is_said_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("dpop_agent.cli.systemctl._BOOTED", str(tmp_path / "none"))
    for verb in ("install", "start", "stop", "restart", "status", "log"):
        assert cli.main(["service", verb]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "systemd doesn't run this machine" in err
        assert "dpop-agent serve" in err


def test_without_a_service_there_is_nothing_to_uninstall(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["service", "uninstall"]) == 1
    assert "dpop-agent service install" in capsys.readouterr().err
    assert service._serves_here() is False


def test_what_only_root_can_do_is_printed_for_whoever_isnt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.getuid", lambda: 54321)
    assert cli.main(["service", "install", "--system"]) == 1
    out, err = capsys.readouterr()
    assert "nothing was done" in err
    for line in ("useradd --system ", "systemctl daemon-reload", "systemctl enable --now "):
        assert any(printed.startswith(line) for printed in out.splitlines())
    unit = out.partition("/etc/systemd/system/dpop-agent.service <<'END'\n")[2].partition("END")[0]
    assert "User=dpop-agent" in unit
    assert cli.main(["service", "print", "--system"]) == 0
    assert unit in capsys.readouterr().out


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, f"dpop-agent=={__version__}"),
        ("{", f"dpop-agent=={__version__}"),
        ('{"url": "file:///home/some%20body/dpop-agent", "dir_info": {}}', "'/home/some body/d"),
        ('{"url": "https://example.com/a.whl", "archive_info": {}}', "https://example.com/a.whl"),
        (
            '{"url": "https://example.com/a", "vcs_info": {"vcs": "git", "commit_id": "0a1b"}}',
            "git+https://example.com/a@0a1b",
        ),
    ],
)
def test_root_is_told_to_install_what_is_installed_here(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    origin: str | None,
    expected: str,
) -> None:
    found = SimpleNamespace(read_text=lambda _: origin)
    monkeypatch.setattr("importlib.metadata.distribution", lambda _: found)
    monkeypatch.setattr(system_service, "_is_machines", lambda _: False)
    assert cli.main(["service", "print", "--system"]) == 0
    assert f"/opt/dpop-agent/bin/pip install {expected}" in capsys.readouterr().out


def test_the_unit_that_is_printed_for_root_is_known_as_ours(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["service", "print", "--system"]) == 0
    printed = capsys.readouterr().out
    unit = printed.partition("dpop-agent.service <<'END'\n")[2].partition("END\n")[0]
    path = tmp_path / "dpop-agent.service"
    path.write_text(unit)
    assert unit_files.state_of(str(path)) == "ours"

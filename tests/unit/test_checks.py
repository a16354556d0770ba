"""What `doctor` finds of things that a test can't break for real: service, clock, libraries."""

from __future__ import annotations

import os
import shlex
import socket
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from dpop_agent import paths
from dpop_agent.cli.checks import machine
from dpop_agent.cli.checks.finding import OK, WARNING, WRONG, Finding
from dpop_agent.cli.checks.leftovers import leftovers
from dpop_agent.cli.checks.service import service
from dpop_agent.errors import ConfigurationError, UnsafeSocket


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A systemctl of the test's own, which runs that shell code, on a machine with systemd."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("dpop_agent.cli.systemctl._BOOTED", str(tmp_path))

    def runs(code: str) -> None:
        program = tmp_path / "systemctl"
        program.write_text(f"#!/bin/sh\n{code}\n")
        program.chmod(0o700)

    return runs


class TestService:
    """What a real one says is in tests/agent/test_user_service.py."""

    @pytest.mark.parametrize(
        ("shown", "socket", "level", "says", "command"),
        [
            ("not-found inactive success", "inactive", OK, "none is installed", ""),
            ("loaded activating success", "active", OK, "is activating", ""),
            ("loaded inactive success", "active", OK, "is inactive", ""),
            ("loaded inactive success", "inactive", WARNING, "doesn't run", "service start"),
            ("loaded failed exit-code", "active", WRONG, "failed: exit-code", "service start"),
            (
                "loaded failed exit-code 203",
                "failed",
                WRONG,
                "its program isn't",
                "service install",
            ),
            ("loaded inactive success", "failed", WRONG, ".socket failed", "service start"),
            ("bad-setting inactive success", "inactive", WRONG, "(bad-setting)", "--user cat"),
        ],
    )
    def test_a_unit_is_told_as_systemd_shows_it(
        self,
        systemctl: Callable[[str], None],
        shown: str,
        socket: str,
        level: str,
        says: str,
        command: str,
    ) -> None:
        loaded, active, result, *status = shown.split()
        systemctl(
            f'case "$*" in *.socket) echo ActiveState={socket};; *) '
            f"printf '%s\\n' LoadState={loaded} ActiveState={active} Result={result} "
            f"ExecMainStatus={''.join(status) or 0};; esac"
        )
        (found,) = service()
        assert (found.level, says in found.what) == (level, True), found
        assert command in found.mend

    @pytest.mark.parametrize("code", ["exit 0", "echo 'Failed to connect to bus: x' >&2; exit 1"])
    def test_where_there_is_nobody_to_ask_that_is_fine(
        self, systemctl: Callable[[str], None], code: str
    ) -> None:
        systemctl(code)
        assert [found.level for found in service()] == [OK]

    def test_a_manager_that_doesnt_answer_holds_nobody_up(
        self, systemctl: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dpop_agent.cli.systemctl.ANSWER_S", 0.1)
        systemctl("exec sleep 600")
        (found,) = service()
        assert found.level == WRONG
        assert "systemd didn't answer within 0.1 s" in found.what
        assert found.mend

    def test_where_there_is_no_systemctl_that_is_fine(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert [found.level for found in service()] == [OK]


def origin(**members: Any) -> dict[str, Any]:
    return {"origin": "https://as.example", "clock_offset_s": None, "iat_refused_age_s": None} | (
        members
    )


class TestClock:
    @pytest.mark.parametrize(
        ("told", "says"),
        [
            (origin(clock_offset_s=40), "40 s behind the server's"),
            (origin(clock_offset_s=-400), "400 s ahead of the server's"),
            (origin(iat_refused_age_s=3), "check this machine's clock"),
        ],
    )
    def test_what_servers_say_of_it_is_told(
        self, tmp_path: Path, told: dict[str, Any], says: str
    ) -> None:
        (found,) = machine.clock(str(tmp_path), [origin(clock_offset_s=0), told])
        assert (found.level, says in found.what) == (WARNING, True)

    def test_one_that_servers_agree_with_is_fine(self, tmp_path: Path) -> None:
        (found,) = machine.clock(str(tmp_path), [origin(clock_offset_s=1)])
        assert found.level == OK
        assert found.what.endswith("UTC, as 1 server said")

    def test_one_that_was_set_back_is_found_out_by_the_ledger(self, tmp_path: Path) -> None:
        ledger = tmp_path / "ledger.json"
        ledger.touch()
        os.utime(ledger, (time.time() + 9000,) * 2)
        (found,) = machine.clock(str(tmp_path), [])
        assert found.level == WARNING
        assert "ledger.json is of 2 h from now" in found.what

    def test_one_without_a_battery_is_wrong(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(time, "time", lambda: 86400.0)
        (found,) = machine.clock(str(tmp_path), [])
        assert (found.level, found.what) == (WRONG, "it says 1970-01-02, before this was written")


class TestLibraries:
    def test_each_that_is_needed_is_there_with_its_version(self) -> None:
        (found,) = machine.libraries()
        assert found.level == OK
        for name in ("python-pkcs11", "cryptography", "keyring", "uvloop"):
            assert f"{name} {metadata.version(name)}" in found.what
        assert "httpx" not in found.what

    def test_one_that_is_missing_or_too_old_is_named_with_what_installs_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        has = {"cryptography": "42.0.8"}

        def version(name: str) -> str:
            if name not in has:
                raise metadata.PackageNotFoundError(name)
            return has[name]

        monkeypatch.setattr(metadata, "requires", lambda _: ["cryptography>=43", "uvloop>=0.21"])
        monkeypatch.setattr(metadata, "version", version)
        old, missing, _ = machine.libraries()
        assert (old.level, old.what) == (WRONG, "cryptography 42.0.8; 43 or later is needed")
        assert (missing.level, missing.what) == (
            WRONG,
            "uvloop is missing; 0.21 or later is needed",
        )
        assert missing.mend.endswith("-m pip install 'uvloop>=0.21'")


class TestLeftovers:
    @pytest.fixture
    def places(self, tmp_path: Path) -> dict[str, Any]:
        (tmp_path / "state").mkdir()
        (tmp_path / "run").mkdir()
        return {
            "state_folder": str(tmp_path / "state"),
            "agent_socket": str(tmp_path / "run" / "agent.sock"),
        }

    def test_what_another_program_put_there_is_left_alone(
        self, tmp_path: Path, places: dict[str, Any]
    ) -> None:
        for name in ("other.new", "signer.txt", "notes.lock"):
            (tmp_path / "state" / name).touch()
        (tmp_path / "run" / "pin-0a1b2c").touch()  # no socket
        (tmp_path / "run" / "pin-code").touch()
        for runs in (True, False):
            (found,) = leftovers(**places, stores=set(), runs=runs)
            assert (found.level, found.what) == (OK, "none")

    def test_a_file_that_is_being_written_is_none_and_neither_is_a_socket_that_serves(
        self, tmp_path: Path, places: dict[str, Any]
    ) -> None:
        (tmp_path / "state" / "ledger.json.new").touch()
        (tmp_path / "state" / "signer-work.lock").touch()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(places["agent_socket"])
            listener.listen()
            (found,) = leftovers(**places, stores={"work"}, runs=True)
        assert found.level == OK

    def test_where_no_agent_runs_a_half_written_file_is_one_however_new(
        self, tmp_path: Path, places: dict[str, Any]
    ) -> None:
        (tmp_path / "state" / "uses.json.new").touch()
        (found,) = leftovers(**places, stores=set(), runs=False)
        assert (found.level, found.mend) == (WARNING, f"rm {tmp_path}/state/uses.json.new")


def test_a_finding_keeps_each_command_on_one_line() -> None:
    command = f"chmod go-w {'/a/long/folder' * 8}"
    mend = f"look through it, then: {command}; or not"
    lines = Finding("state folder", WRONG, "word " * 30, mend).lines
    assert lines[0].startswith("wrong    state folder: word")
    assert all(len(line) <= 80 for line in lines[:-2])
    assert lines[-2:] == [f"         mend: look through it, then: {command}", " " * 15 + "or not"]
    write = "write the PIN into it: (umask 077; cat > /a)"
    assert Finding("a", WRONG, "b", f"{write}{'x' * 80}; or not").lines[1].endswith("x" * 80)


@pytest.mark.parametrize("what", ["a folder above", "the folder", "the file"])
def test_a_command_in_a_hint_works_for_a_name_with_a_blank(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir(mode=0o700)
    place = folder / "it's"
    place.touch(0o600)
    if what == "the file":
        place.chmod(0o666)
    else:
        folder.chmod(0o777)
    check = partial(paths.check_only_ours, str(place), "the file", instead="name another")
    if what == "the folder":
        check = partial(paths.check_socket_folder, str(folder / "agent.sock"))
    with pytest.raises((ConfigurationError, UnsafeSocket)) as refused:
        check()
    command = refused.value.hint.partition(";")[0].rpartition(": ")[2]
    if what == "the file":
        command = refused.value.hint.split(": ")[1].partition(";")[0]
    verb, mode, path = shlex.split(command)
    assert (verb, path) == ("chmod", str(place if what == "the file" else folder))
    assert mode in ("go-w", "700")

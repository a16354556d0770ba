"""`config edit`, `set` and `unset` change what was asked for, or nothing."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from dpop_agent import config
from dpop_agent.cli import editing
from dpop_agent.cli.main import main
from dpop_agent.errors import ConfigurationError
from tests.processes import ROOT

Capture = pytest.CaptureFixture[str]

TEXT = """\
# where keys live

[agent]
default_store = "kc"      # mine
lock_after    = "1h"      # soon enough

# The one at home
[stores.kc]
type = "keychain"
env = { A = "1" }   # for D-Bus

# The one at work
[stores.kc.two]
type = "keychain"
"""
TEXT = TEXT.replace("[stores.kc.two]", '[stores."kc.two"]')


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration, of two keychains that nobody looks for."""
    folder = tmp_path / "conf"
    folder.mkdir(mode=0o700)
    path = folder / "config.toml"
    path.write_text(TEXT)
    path.chmod(0o640)
    monkeypatch.setenv("DPOP_AGENT_CONFIG", str(path))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "copies"))
    (tmp_path / "copies").mkdir(mode=0o700)
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("dpop_agent.cli.discovery.keychain", lambda backend, env: {})
    return path


def copies(path: Path) -> list[Path]:
    """What `edit` left behind."""
    return list((path.parent.parent / "copies").rglob("config.toml"))


EDIT = "; to edit it: dpop-agent config edit"
"""What the check says of any problem, and a change doesn't."""


def edited_by(monkeypatch: pytest.MonkeyPatch, script: str, name: str = "EDITOR") -> None:
    """From here on the editor is a shell's script, which has the file as `$1`."""
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)
    monkeypatch.setenv(name, f"sh -ec {shlex.quote(script)} sh")


def version(path: Path) -> tuple[int, int]:
    """What writing a file changes, and reading it doesn't."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def refused(capsys: Capture, *words: str) -> str:
    """What a command says that fails."""
    assert main(["config", *words]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert err.count("\n") == 1
    return err


class TestSet:
    @pytest.mark.parametrize(
        ("words", "old", "new"),
        [
            ("agent.lock_after 15m", '"1h" ', '"15m" '),
            ("agent.audit_mib 64", "enough\n", "enough\naudit_mib = 64\n"),
            ("agent.audit required", "enough\n", 'enough\naudit = "required"\n'),
            ("stores.kc.env.A 2", 'A = "1" }', 'A = "2" }'),
            ("stores.kc.env.B 2", 'A = "1" }', 'A = "1",B = "2" }'),
            (
                "stores.kc.backend keyring.backends.SecretService.Keyring",
                "D-Bus\n",
                'D-Bus\nbackend = "keyring.backends.SecretService.Keyring"\n',
            ),
            (
                "stores.kc.two.env.B 2",
                None,
                '[stores."kc.two"]\ntype = "keychain"\nenv = {B = "2"}\n',
            ),
            (
                "agent.confirm_command /bin/sh ask",
                "enough\n",
                'enough\nconfirm_command = ["/bin/sh", "ask"]\n',
            ),
            (
                "agent.confirm_command -- /bin/sh -c",
                "enough\n",
                'enough\nconfirm_command = ["/bin/sh", "-c"]\n',
            ),
            (
                "agent.confirm_command \"/bin/sh 'a b'\"",
                "enough\n",
                'enough\nconfirm_command = ["/bin/sh", "a b"]\n',
            ),
            (
                'agent.confirm_command \'["/bin/sh", "-c"]\'',
                "enough\n",
                'enough\nconfirm_command = ["/bin/sh", "-c"]\n',
            ),
        ],
    )
    def test_it_changes_one_setting_and_nothing_else(
        self, path: Path, capsys: Capture, words: str, old: str | None, new: str
    ) -> None:
        assert main(["config", "set", *shlex.split(words)]) == 0
        if old is None:
            assert path.read_text().endswith(new)
        else:
            assert path.read_text() == TEXT.replace(old, new)
        out, err = capsys.readouterr()
        assert err == ""
        assert out.splitlines()[-1] == "next:  dpop-agent reload"
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert os.listdir(path.parent) == ["config.toml"]

    def test_each_setting_that_there_is_can_be_set(self, path: Path) -> None:
        for name, kind in config.AGENT.items():
            value = {"default_store": "kc", "audit": "off", "confirm_command": "/bin/sh"}.get(
                name, "64" if kind is int else "2h"
            )
            assert main(["config", "set", f"agent.{name}", value]) == 0
        assert set(tomllib.loads(path.read_text())["agent"]) == set(config.AGENT)
        config.load()

    def test_each_setting_is_written_as_the_check_wants_it(self) -> None:
        """The table says of each what it is written as; a value of another kind is refused."""
        wrong = {str: 1, int: "text", list: "text", dict: "text"}
        right = {"type": "pkcs11", "module": "/m.so", "uri": "pkcs11:token=a", "pin_source": "none"}
        tables = [("agent", config.AGENT, {"stores": {"a": {"type": "keychain"}}})]
        for type_, settings in config.SETTINGS_BY_TYPE.items():
            base = right if type_ == "pkcs11" else {"type": type_}
            tables.append(("stores.a", settings, {"stores": {"a": base}}))
        for where, settings, document in tables:
            for name, kind in settings.items():
                text = _toml(document, where, name, wrong[kind])
                with pytest.raises(ConfigurationError, match=f"{where}.{name}"):
                    config.parse(text, "x")

    def test_where_there_is_no_section_it_is_made(self, path: Path) -> None:
        path.write_text('[stores.kc]\ntype = "keychain"\n')
        assert main(["config", "set", "agent.lock_after", "15m"]) == 0
        assert path.read_text() == (
            '[stores.kc]\ntype = "keychain"\n\n[agent]\nlock_after = "15m"\n'
        )

    @pytest.mark.parametrize(
        "text",
        [
            'agent.lock_after = "1h"\nstores.kc.type = "keychain"\n',
            'agent = { lock_after = "1h" }\nstores = { kc = { type = "keychain" } }\n',
            '[stores]\nkc = { type = "keychain" }\n',
            '[stores.kc]\ntype="keychain"\n[agent]\naudit="on"\n[stores.b]\ntype="keychain"\n',
            '[stores.kc]\ntype="keychain"\n[agent]\naudit="on"',
            "[stores.kc]\r\ntype='keychain'\r\n\r\n# above\r\n[agent]\r\ndefault_store = 'kc'\r\n",
            '\ufeff[stores.kc]\ntype = "keychain" # \u00fc\n',
            '[stores.kc]\ntype = """\\\n  keychain"""\n[stores.kc.env]\nA = "1"\n',
        ],
    )
    def test_it_takes_whatever_way_a_configuration_can_be_written(
        self, path: Path, text: str
    ) -> None:
        if "[stores.b]" in text:
            text = text.replace("[agent]", '[agent]\ndefault_store = "kc"')
        path.write_bytes(text.encode())
        expected = tomllib.loads(text.removeprefix("\ufeff"))
        for name, value in (("agent.lock_after", "15m"), ("stores.kc.env.NEW", "x")):
            assert main(["config", "set", name, value]) == 0
        expected.setdefault("agent", {})["lock_after"] = "15m"
        expected["stores"]["kc"].setdefault("env", {})["NEW"] = "x"
        found = path.read_bytes().decode()
        assert tomllib.loads(found) == expected
        assert found.count("\r\n") == (found.count("\n") if "\r\n" in text else 0)

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("agent.lock_aftr", "agent.lock_after"),
            ("lock_after", "agent.lock_after"),
            ("stores.kc.bakend", "stores.kc.backend"),
            ("stores.kcs.backend", "stores.kc.backend"),
            ("AGENT.AUDIT", None),
            ("stores.kc.env.", None),
            ("stores.kc.signers", None),
            ("agent", None),
            ("", None),
        ],
    )
    @pytest.mark.parametrize("verb", [["set"], ["unset"]])
    def test_an_unknown_setting_is_told_what_it_was_to_be(
        self, path: Path, capsys: Capture, verb: list[str], name: str, meant: str | None
    ) -> None:
        said = refused(capsys, *verb, name, *["15m"] * (verb == ["set"]))
        assert f"there is no setting {name!r} here" in said
        if meant:
            assert f"did you mean {meant}?" in said
        assert path.read_text() == TEXT

    @pytest.mark.parametrize(
        ("name", "value", "by_hand"),
        [
            ("agent.lock_after", "900", '"900"'),
            ("agent.lock_after", "0s", '"0s"'),
            ("agent.audit_mib", "many", '"many"'),
            ("agent.audit_mib", "0", "0"),
            ("agent.audit_mib", "-1", "-1"),
            ("agent.audit_mib", "6.4", '"6.4"'),
            ("agent.audit_mib", "9" * 400, f'"{"9" * 400}"'),
            ("agent.audit", "true", '"true"'),
            ("agent.confirm_command", "kdialog --yesno", '["kdialog", "--yesno"]'),
            ("agent.confirm_command", "'", '"\'"'),
            ("agent.confirm_command", "[1, 2", '"[1, 2"'),
            ("agent.confirm_command", "[1]", "[1]"),
            ("agent.confirm_command", "", "[]"),
            ("agent.default_store", "work", '"work"'),
            ("stores.kc.type", "paper", '"paper"'),
            ("stores.kc.env", "A", '"A"'),
            ("stores.kc.env.LD_PRELOAD", "x", '"x"'),
            ("stores.kc.env.A-B", "x", '"x"'),
        ],
    )
    def test_a_value_of_the_wrong_kind_gets_the_error_of_the_check(
        self, path: Path, capsys: Capture, name: str, value: str, by_hand: str
    ) -> None:
        said = refused(capsys, "set", name, "--", value)
        assert path.read_text() == TEXT
        *above, setting = name.split(".")
        document = tomllib.loads(TEXT)
        table = document
        for step in above:
            table = table[step]
        table |= tomllib.loads(f"{setting} = {by_hand}")
        path.write_text(tomlkit.dumps(document))
        assert refused(capsys, "check").replace(EDIT, "") == said

    def test_a_pin_that_is_no_source_is_not_repeated(self, path: Path, capsys: Capture) -> None:
        path.write_text(
            '[stores.work]\ntype="pkcs11"\nmodule="/m.so"\nuri="pkcs11:token=a"\n'
            'pin_source="prompt"\n'
        )
        said = refused(capsys, "set", "stores.work.pin_source", "731954")
        assert "isn't a source of PINs" in said
        assert "731954" not in said

    def test_what_would_not_work_here_is_refused_and_what_did_not_before_is_left(
        self, path: Path, capsys: Capture
    ) -> None:
        path.write_text(
            '[stores.work]\ntype="pkcs11"\nmodule="/none/m.so"\nuri="pkcs11:token=a"\n'
            'pin_source="prompt"\n'
        )
        assert main(["config", "set", "agent.lock_after", "15m"]) == 0
        assert main(["config", "set", "stores.work.signers", "4"]) == 0
        capsys.readouterr()
        said = refused(capsys, "set", "stores.work.module", "/none/other.so")
        assert "there is no PKCS#11 module at /none/other.so" in said
        said = refused(capsys, "set", "stores.work.pin_source", "file:/none/pin")
        assert "the PIN file /none/pin can't be read" in said
        said = refused(capsys, "set", "agent.confirm_command", "/none/ask")
        assert "there is no program at /none/ask" in said
        assert config.load().stores["work"].signers == 4

    def test_what_it_says_already_is_left_as_it_is(self, path: Path, capsys: Capture) -> None:
        before = version(path)
        assert main(["config", "set", "agent.lock_after", "1h"]) == 0
        assert 'is as it was: agent.lock_after = "1h"' in capsys.readouterr().out
        assert version(path) == before

    def test_a_link_stays_and_what_it_leads_to_is_changed(self, path: Path, tmp_path: Path) -> None:
        (tmp_path / "dotfiles").mkdir(mode=0o700)
        target = tmp_path / "dotfiles" / "dpop.toml"
        path.rename(target)
        path.symlink_to(target)
        assert main(["config", "set", "agent.lock_after", "15m"]) == 0
        assert path.is_symlink()
        assert config.load(str(target)).lock_after_s == 15 * 60
        assert stat.S_IMODE(target.stat().st_mode) == 0o640
        assert os.listdir(target.parent) == ["dpop.toml"]

    def test_json_says_whether_something_was_changed(self, path: Path, capsys: Capture) -> None:
        for changed in (True, False):
            assert main(["config", "set", "agent.audit", "off", "--json"]) == 0
            told = json.loads(capsys.readouterr().out)
            assert told == {"path": str(path), "changed": changed}

    def test_without_a_configuration_it_says_how_to_make_one(
        self, path: Path, capsys: Capture
    ) -> None:
        path.unlink()
        for words in (["set", "agent.audit", "off"], ["unset", "agent.audit"], ["edit"]):
            assert "write one with: dpop-agent init" in refused(capsys, *words)
        shutil.rmtree(path.parent)
        assert "write one with: dpop-agent init" in refused(capsys, "set", "agent.audit", "off")

    def test_one_that_is_no_toml_is_told_by_its_line(self, path: Path, capsys: Capture) -> None:
        path.write_text(TEXT + "oops\n")
        assert f"line {TEXT.count(chr(10)) + 1}" in refused(capsys, "set", "agent.audit", "off")

    @pytest.mark.parametrize(
        "text", ["agent = 1\n", "stores = 1\n", "[stores]\nkc = 1\n", "[stores.kc]\nenv = 1\n"]
    )
    def test_what_is_no_table_is_refused_as_the_check_does(
        self, path: Path, capsys: Capture, text: str
    ) -> None:
        path.write_text(text)
        words = ["stores.kc.env.A"] if "env" in text else ["agent.audit"]
        for verb in (["set", *words, "on"], ["unset", *words]):
            said = refused(capsys, "check").replace(EDIT, "")
            assert refused(capsys, *verb) == said

    def test_where_the_library_would_change_more_nothing_is_changed(
        self, path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tomlkit, "dumps", lambda document: TEXT.replace("kc.two", "kc.three"))
        assert "dpop-agent config edit" in refused(capsys, "set", "agent.audit", "off")
        assert path.read_text() == TEXT

    def test_of_several_at_once_none_is_lost(self, path: Path) -> None:
        names = ["lock_after", "release_after", "audit_mib", "max_waiting", "max_connections"]

        def change(name: str) -> None:
            value = "15m" if name.endswith("after") else "99"
            subprocess.run(
                [sys.executable, "-m", "dpop_agent", "config", "set", f"agent.{name}", value],
                check=True,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
            )

        threads = [threading.Thread(target=change, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(names) <= set(tomllib.loads(path.read_text())["agent"])


def _without(text: str, setting: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(setting))


def _toml(document: dict[str, Any], where: str, name: str, value: object) -> str:
    made: Any = tomlkit.parse(tomlkit.dumps(document))
    table = made
    for step in where.split("."):
        table = table.setdefault(step, {})
    table[name] = value
    return str(tomlkit.dumps(made))


class TestUnset:
    def test_a_setting_is_left_out_and_nothing_else(self, path: Path, capsys: Capture) -> None:
        assert main(["config", "unset", "agent.lock_after"]) == 0
        assert path.read_text() == _without(TEXT, "lock_after")
        assert "without agent.lock_after" in capsys.readouterr().out
        assert main(["config", "unset", "agent.lock_after"]) == 0
        assert "is as it was: without agent.lock_after" in capsys.readouterr().out

    def test_a_variable_is_left_out(self, path: Path) -> None:
        assert main(["config", "unset", "stores.kc.env.A"]) == 0
        assert config.load().stores["kc"].env == {}
        assert main(["config", "unset", "stores.kc.env"]) == 0
        assert "env" not in path.read_text()

    def test_what_has_to_be_there_stays(self, path: Path, capsys: Capture) -> None:
        assert "stores.kc.type is missing" in refused(capsys, "unset", "stores.kc.type")
        assert "agent.default_store is missing" in refused(capsys, "unset", "agent.default_store")
        assert path.read_text() == TEXT


@pytest.mark.parametrize("name", ["stores.kc.env", "agent.confirm_command"])
def test_a_value_that_is_nested_without_end_is_refused(
    path: Path, capsys: Capture, name: str
) -> None:
    assert "has to be" in refused(capsys, "set", name, "[" * 5000)
    assert path.read_text() == TEXT


class TestEdit:
    @pytest.mark.parametrize("name", ["VISUAL", "EDITOR"])
    def test_what_the_editor_wrote_is_put_in_place(
        self, path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        edited_by(monkeypatch, 'sed -i "s/1h/15m/" "$1"', name)
        if name == "VISUAL":
            monkeypatch.setenv("EDITOR", "false")
        assert main(["config", "edit"]) == 0
        assert path.read_text() == TEXT.replace("1h", "15m")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert capsys.readouterr().out == f"wrote {path}\nnext:  dpop-agent reload\n"
        assert copies(path) == []
        assert os.listdir(path.parent) == ["config.toml"]

    def test_the_copy_is_for_nobody_else(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        edited_by(monkeypatch, f'stat -c %a "$1" "${{1%/*}}" > {tmp_path}/modes')
        assert main(["config", "edit"]) == 0
        assert (tmp_path / "modes").read_text().split() == ["600", "700"]

    def test_an_editor_that_replaces_the_file_and_widens_its_mode_changes_no_mode(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        edited_by(
            monkeypatch, 'sed "s/1h/15m/" "$1" >"$1~"; chmod 644 "$1~"; mv "$1~" "$1"; >"$1.bak"'
        )
        assert main(["config", "edit"]) == 0
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert config.load().lock_after_s == 15 * 60

    def test_where_nothing_was_changed_it_says_so(
        self, path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = version(path)
        edited_by(monkeypatch, "true")
        assert main(["config", "edit"]) == 0
        out = capsys.readouterr().out
        assert "nothing was changed" in out
        assert "EDITOR='code --wait'" in out
        assert version(path) == before
        assert copies(path) == []

    @pytest.mark.parametrize("how", ["exit 3", "kill -9 $$"])
    def test_an_editor_that_fails_changes_nothing(
        self, path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        edited_by(monkeypatch, how)
        said = refused(capsys, "edit")
        assert "sh ended " in said
        assert copies(path) == []
        edited_by(monkeypatch, f'sed -i "s/1h/15m/" "$1"; {how}')
        said = refused(capsys, "edit")
        (copy,) = copies(path)
        assert f"what you wrote is in {copy}" in said
        assert path.read_text() == TEXT

    @pytest.mark.parametrize(
        ("script", "says"),
        [
            ('sed -i "s/1h/soon/" "$1"', "agent.lock_after: a duration is"),
            ('sed -i "s/lock_after/lock_aftr/" "$1"', "did you mean lock_after?"),
            ('echo oops >>"$1"', f"line {TEXT.count(chr(10)) + 1}"),
            ('printf "\\\\377" >>"$1"', "isn't UTF-8"),
            (': >"$1"', "there is no [stores.NAME]"),
            ('rm "$1"; mkdir "$1"', "Is a directory"),
            ('rm "$1"; mkfifo "$1"', "isn't a file"),
            ('ln -sf /dev/zero "$1"', "isn't a file"),
            ('rm "$1"', "your editor left no file"),
            ('chmod 666 "$1"', "others can change it"),
        ],
    )
    def test_what_does_not_check_is_not_put_in_place(
        self, path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, script: str, says: str
    ) -> None:
        edited_by(monkeypatch, script)
        said = refused(capsys, "edit")
        assert says in said
        assert path.read_text() == TEXT
        for copy in copies(path):
            assert copy.is_dir() or f"what you wrote is in {copy}" in said

    def test_the_command_that_it_names_puts_a_corrected_copy_in_place(
        self, path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        edited_by(monkeypatch, 'sed -i "s/1h/soon/" "$1"')
        said = refused(capsys, "edit")
        (copy,) = copies(path)
        copy.write_text(TEXT.replace("1h", "2h"))
        _, _, command = said.strip().partition("then: ")
        checks, _, copies_it = command.partition(" && ")
        assert checks == f"DPOP_AGENT_CONFIG={copy} dpop-agent config check"
        subprocess.run(["sh", "-ec", copies_it], check=True)
        assert config.load().lock_after_s == 2 * 3600
        assert stat.S_IMODE(path.stat().st_mode) == 0o640

    def test_a_file_that_somebody_changed_meanwhile_is_not_overwritten(
        self, path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        edited_by(monkeypatch, f'sed -i "s/1h/15m/" "$1"; echo "# theirs" >> {path}')
        said = refused(capsys, "edit")
        assert "was changed by somebody else meanwhile" in said
        (copy,) = copies(path)
        assert f"what you wrote is in {copy}" in said
        assert path.read_text() == f"{TEXT}# theirs\n"
        assert copy.read_text() == TEXT.replace("1h", "15m")

    def test_one_that_is_wrong_already_can_be_mended(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path.write_text(f"oops\n{TEXT}")
        edited_by(monkeypatch, 'sed -i 1d "$1"')
        assert main(["config", "edit"]) == 0
        assert path.read_text() == TEXT

    @pytest.mark.parametrize(
        ("editor", "says"),
        [
            ("/none/editor -x", "there is no program '/none/editor', which EDITOR names"),
            ("'unclosed", "a quote in it isn't closed"),
        ],
    )
    def test_an_editor_that_is_none_is_told(
        self,
        path: Path,
        capsys: Capture,
        monkeypatch: pytest.MonkeyPatch,
        editor: str,
        says: str,
    ) -> None:
        monkeypatch.delenv("VISUAL", raising=False)
        monkeypatch.setenv("EDITOR", editor)
        assert says in refused(capsys, "edit")
        assert path.read_text() == TEXT

    def test_without_a_name_the_first_editor_that_is_here_is_taken(
        self, path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("VISUAL", raising=False)
        monkeypatch.setenv("EDITOR", " ")
        (tmp_path / "bin").mkdir()
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        assert "there is no editor" in refused(capsys, "edit")
        for program in reversed(editing.EDITORS):
            script = tmp_path / "bin" / program
            script.write_text(f'#!/bin/sh\necho "# {program}" >> "$1"\n')
            script.chmod(0o700)
            assert main(["config", "edit"]) == 0
            assert path.read_text().endswith(f"# {program}\n")

    def test_a_disk_that_is_full_leaves_the_old_one_and_the_copy(
        self, path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        edited_by(monkeypatch, 'sed -i "s/1h/15m/" "$1"')
        original = os.fsync
        calls: list[int] = []

        def fsync(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) > 2:  # the copy's, and its folder's
                full(descriptor)
            original(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        said = refused(capsys, "edit")
        assert "can't be replaced: No space left on device" in said
        assert path.read_text() == TEXT
        assert os.listdir(path.parent) == ["config.toml"]
        assert len(copies(path)) == 1

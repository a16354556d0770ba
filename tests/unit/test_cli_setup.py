"""`init` writes a configuration that works and overwrites none; `config` shows and checks it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpop_agent import config
from dpop_agent.cli import discovery
from dpop_agent.cli.main import main
from tests.processes import children

Capture = pytest.CaptureFixture[str]
PIN = "73195"
VARIABLES = ("SOFTHSM2_CONF", "KRYOPTIC_CONF", "TPM2_PKCS11_STORE", "P11_KIT_SERVER_ADDRESS")


def token(label: str = "work", serial: str = "0a1b", **changes: Any) -> dict[str, Any]:
    return {
        "label": label,
        "serial": serial,
        "manufacturer": "SoftHSM project",
        "model": "SoftHSM v2",
        "initialized": True,
        "has_login": True,
        "has_pin": True,
    } | changes


class Machine:
    """What `init` finds: module files, and a program in the signer's place that lists tokens, and
    has nothing against a PIN file.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.config = folder / "conf" / "config.toml"
        self.pin_file = folder / "work.pin"
        self.pin_file.write_text(PIN)
        self.pin_file.chmod(0o600)
        program = folder / "python"
        program.write_text(
            '#!/bin/sh\nfor it; do [ ! -e "$it" ] || break; done\n'
            f'exec "{folder}/lists/${{it##*/}}" "$@"\n'
        )
        program.chmod(0o700)
        (folder / "lists").mkdir()
        reads = folder / "lists" / self.pin_file.name
        reads.write_text("#!/bin/sh\necho '{\"problem\": null}'\n")
        reads.chmod(0o700)
        (folder / "lib" / "softhsm").mkdir(parents=True)
        monkeypatch.setattr(sys, "executable", str(program))
        monkeypatch.setattr(discovery, "_LINUX", (str(folder / "lib"),))
        monkeypatch.setattr(discovery, "_MACOS", (str(folder / "lib"),))
        monkeypatch.setenv("DPOP_AGENT_CONFIG", str(self.config))

    def module(self, file: str, *tokens: dict[str, Any], says: str | None = None) -> str:
        path = self.folder / "lib" / file
        path.write_bytes(b"")
        shows = self.folder / "lists" / path.name
        shows.write_text(says or f"#!/bin/sh\ncat <<'END'\n{json.dumps(tokens)}\nEND\n")
        shows.chmod(0o700)
        return str(path)

    def keychain(self, label: str = "Login", says: str | None = None, **shows: Any) -> None:
        """A keychain, as its signer shows it."""
        shown = {"label": label, "serial": None, "model": "x"} | shows
        program = self.folder / "lists" / config.default_backend()
        program.write_text(says or f"#!/bin/sh\ncat <<'END'\n{json.dumps(shown)}\nEND\n")
        program.chmod(0o700)

    def softhsm(self, *tokens: dict[str, Any]) -> str:
        return self.module("softhsm/libsofthsm2.so", *tokens or (token(),))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return Machine(tmp_path, monkeypatch)


def init(machine: Machine, *words: str) -> int:
    return main(["init", "--pin-file", str(machine.pin_file), *words])


def error_of(capsys: Capture) -> str:
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert PIN not in out + err
    return err


class TestInit:
    def test_it_writes_a_configuration_that_works(
        self, machine: Machine, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = machine.softhsm(token(label='the "work" ü;one', serial="0a1b"))
        monkeypatch.setenv("SOFTHSM2_CONF", "/etc/my softhsm.conf")
        assert init(machine) == 0
        assert machine.config.stat().st_mode & 0o777 == 0o600
        assert machine.config.parent.stat().st_mode & 0o777 == 0o700
        found = config.load(str(machine.config))
        assert found.default_store == "soft"
        store = found.stores["soft"]
        assert store.module == module
        assert store.uri == config.TokenUri(token='the "work" ü;one', serial="0a1b")
        assert store.pin_source == config.PinSource("file", str(machine.pin_file))
        assert dict(store.env) == {"SOFTHSM2_CONF": "/etc/my softhsm.conf"}
        out, err = capsys.readouterr()
        assert err == ""
        assert "dpop-agent serve" in out
        assert "dpop-agent key create" in out
        assert PIN not in out + machine.config.read_text()
        assert main(["config", "check"]) == 0

    @pytest.mark.parametrize(
        ("file", "kept"),
        [
            ("libsofthsm2.so", ["SOFTHSM2_CONF"]),
            ("libkryoptic_pkcs11.so", ["KRYOPTIC_CONF"]),
            ("libtpm2_pkcs11.so.1", ["TPM2_PKCS11_STORE"]),
            ("p11-kit-client.so", ["P11_KIT_SERVER_ADDRESS"]),
            ("libykcs11.so", []),
            ("p11-kit-proxy.so", [*VARIABLES]),
            ("another.so", [*VARIABLES]),
        ],
    )
    def test_what_it_took_to_find_it_goes_into_the_configuration(
        self,
        machine: Machine,
        capsys: Capture,
        monkeypatch: pytest.MonkeyPatch,
        file: str,
        kept: list[str],
    ) -> None:
        module = machine.module(file, token())
        monkeypatch.chdir(machine.folder)
        set_to = dict.fromkeys(VARIABLES, 'a "folder"/conf')
        set_to["P11_KIT_SERVER_ADDRESS"] = "unix:path=/run/p11-kit/pkcs11"
        for name, value in set_to.items():
            monkeypatch.setenv(name, value)
        for name in VARIABLES:
            if not name.startswith("P11_KIT"):
                set_to[name] = f"{machine.folder}/{set_to[name]}"
        assert init(machine, "--module", module) == 0
        (store,) = config.load().stores.values()
        assert dict(store.env) == {name: set_to[name] for name in kept}
        out = capsys.readouterr().out
        assert [name for name in VARIABLES if f"found by:  {name}={set_to[name]}," in out] == kept
        for name in VARIABLES:
            monkeypatch.delenv(name)
        assert main(["config", "check"]) == 0

    @pytest.mark.parametrize("words", [[], ["--module", "libsofthsm2.so"]])
    @pytest.mark.parametrize(
        "says", ["#!/bin/sh\necho '[]'\n", "#!/bin/sh\necho 'it fails; see' >&2\nexit 1\n"]
    )
    def test_where_softhsm_shows_none_the_variable_is_named_that_tells_it_where_they_are(
        self,
        machine: Machine,
        capsys: Capture,
        monkeypatch: pytest.MonkeyPatch,
        words: list[str],
        says: str,
    ) -> None:
        module = machine.module("softhsm/libsofthsm2.so", says=says)
        words = [module if word == "libsofthsm2.so" else word for word in words]
        assert main(["init", *words]) == 1
        assert "or set SOFTHSM2_CONF" in error_of(capsys)
        monkeypatch.setenv("SOFTHSM2_CONF", "/none.conf")
        assert main(["init", *words]) == 1
        assert "or correct SOFTHSM2_CONF, which is /none.conf" in error_of(capsys)

    def test_it_never_overwrites_one(self, machine: Machine, capsys: Capture) -> None:
        machine.softhsm()
        machine.config.parent.mkdir()
        machine.config.write_text("# mine\n")
        assert init(machine) == 1
        assert "stays as it is" in error_of(capsys)
        assert machine.config.read_text() == "# mine\n"

    def test_one_that_appears_meanwhile_is_not_overwritten(
        self, machine: Machine, capsys: Capture
    ) -> None:
        machine.config.parent.mkdir()
        appears = f"#!/bin/sh\necho '# mine' > '{machine.config}'\necho '{json.dumps([token()])}'\n"
        machine.module("softhsm/libsofthsm2.so", says=appears)
        assert init(machine) == 1
        assert "stays as it is" in error_of(capsys)
        assert machine.config.read_text() == "# mine\n"

    def test_a_link_to_nowhere_is_not_written_through(
        self, machine: Machine, capsys: Capture
    ) -> None:
        machine.softhsm()
        machine.config.parent.mkdir()
        machine.config.symlink_to(machine.folder / "elsewhere")
        assert init(machine) == 1
        assert "stays as it is" in error_of(capsys)
        assert not (machine.folder / "elsewhere").exists()

    def test_a_dry_run_prints_what_it_would_write_and_writes_nothing(
        self, machine: Machine, capsys: Capture
    ) -> None:
        machine.softhsm()
        assert init(machine, "--dry-run") == 0
        printed = capsys.readouterr().out
        assert not machine.config.parent.exists()
        assert init(machine) == 0
        assert printed.partition("\n")[2] == machine.config.read_text()

    def test_json_tells_what_was_written(self, machine: Machine, capsys: Capture) -> None:
        machine.softhsm()
        assert init(machine, "--json") == 0
        assert json.loads(capsys.readouterr().out) == {
            "config": str(machine.config),
            "written": True,
            "text": machine.config.read_text(),
        }

    def test_without_a_pin_file_the_pin_is_asked_for_by_unlock(
        self, machine: Machine, capsys: Capture
    ) -> None:
        machine.softhsm()
        assert main(["init"]) == 0
        assert "dpop-agent unlock" in capsys.readouterr().out
        (store,) = config.load().stores.values()
        assert store.pin_source == config.PinSource("prompt")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda f: f.chmod(0o640), "chmod 600"),
            (lambda f: f.unlink(), "No such file"),
            (lambda f: f.write_text(""), "is empty"),
            (lambda f: (f.unlink(), f.mkdir()), "isn't a file"),
        ],
    )
    def test_a_pin_file_that_will_not_do_is_refused(
        self, machine: Machine, capsys: Capture, change: Callable[[Path], None], said: str
    ) -> None:
        machine.softhsm()
        change(machine.pin_file)
        assert init(machine) == 1
        assert said in error_of(capsys)
        assert not machine.config.exists()

    def test_a_yubikey_that_opensc_shows_too_is_taken_with_yubicos_module(
        self, machine: Machine
    ) -> None:
        card = machine.module("libykcs11.so", token(label="YubiKey PIV #1", serial="1"))
        other = machine.module("opensc-pkcs11.so", token(label="PIV_II", serial="00000000"))
        assert init(machine) == 0
        assert card in machine.config.read_text()
        machine.config.unlink()
        assert init(machine, "--token", "PIV_II") == 0
        assert other in machine.config.read_text()

    def test_several_pkcs11_tokens_are_listed_and_one_has_to_be_named(
        self, machine: Machine, capsys: Capture
    ) -> None:
        machine.softhsm(token("work", "01"), token("home", "02"), token("", "", initialized=False))
        assert init(machine) == 1
        out, err = capsys.readouterr()
        module = machine.folder / "lib" / "softhsm" / "libsofthsm2.so"
        assert out.splitlines() == [
            "pkcs11:token=work;serial=01",
            f"  SoftHSM v2, {module}",
            "pkcs11:token=home;serial=02",
            f"  SoftHSM v2, {module}",
        ]
        assert "there are 2" in err
        assert "--token" in err
        assert init(machine, "--json") == 1
        data = json.loads(capsys.readouterr().err)["error"]["data"]
        assert [t["uri"] for t in data["tokens"]] == [
            "pkcs11:token=work;serial=01",
            "pkcs11:token=home;serial=02",
        ]
        assert init(machine, "--token", "lost") == 1
        assert "no PKCS#11 token here" in capsys.readouterr().err
        assert not machine.config.exists()

    @pytest.mark.parametrize("name", ["home", "pkcs11:token=home", "pkcs11:serial=02"])
    def test_a_named_pkcs11_token_is_taken(self, machine: Machine, name: str) -> None:
        machine.softhsm(token("work", "01"), token("home", "02"))
        assert init(machine, "--token", name) == 0
        assert config.load().stores["soft"].uri == config.TokenUri(token="home", serial="02")

    @pytest.mark.parametrize(
        "uri", [f"pkcs11:token=work?pin-value={PIN}", f"pkcs11:{PIN}", "pkcs11:slot-id=1"]
    )
    def test_a_uri_with_a_pin_or_a_slot_is_refused(
        self, machine: Machine, capsys: Capture, uri: str
    ) -> None:
        machine.softhsm()
        assert init(machine, "--token", uri) == 1
        assert "pkcs11: URI" in error_of(capsys)

    def test_a_pkcs11_token_that_says_it_has_no_pin_is_taken_with_a_note(
        self, machine: Machine, capsys: Capture
    ) -> None:
        machine.softhsm(token(has_pin=False))
        assert init(machine) == 0
        out, _ = capsys.readouterr()
        assert "note:  it says that it has no user PIN: unless it has, set one" in out

    def test_a_pkcs11_token_without_login_has_no_source_of_pins(self, machine: Machine) -> None:
        machine.softhsm(token(has_login=False, has_pin=False))
        assert main(["init"]) == 0
        store = config.load(str(machine.config)).stores["soft"]
        assert store.pin_source == config.PinSource("none")

    def test_a_pin_for_a_pkcs11_token_without_login_is_refused(
        self, machine: Machine, capsys: Capture
    ) -> None:
        machine.softhsm(token(has_login=False))
        assert init(machine) == 1
        assert "has no login: it wants no PIN; leave out --pin-file" in error_of(capsys)
        assert not machine.config.exists()

    def test_one_without_a_login_is_no_choice_beside_one_that_has_one(
        self, machine: Machine
    ) -> None:
        machine.softhsm(token("computes", has_login=False), token("keeps"))
        assert init(machine) == 0
        uri = config.load(str(machine.config)).stores["soft"].uri
        assert uri == config.TokenUri(token="keeps", serial="0a1b")

    @pytest.mark.parametrize(
        "label", ["tpm\0\x93\x01", "tpm\0abc", "\ufffd\ufffd", "a\nb", "\x9b31m", "\x7f"]
    )
    def test_a_pkcs11_token_whose_label_isnt_text_is_named_by_its_serial(
        self, machine: Machine, label: str
    ) -> None:
        machine.softhsm(token(label), token("other", serial="1"))
        assert init(machine, "--token", "pkcs11:serial=0a1b") == 0
        uri = config.load(str(machine.config)).stores["soft"].uri
        assert uri == config.TokenUri(serial="0a1b")

    def test_a_pkcs11_token_that_nothing_names_is_refused_and_nothing_is_written(
        self, machine: Machine, capsys: Capture
    ) -> None:
        odd = token("\0\ufffd", serial="\ufffd", manufacturer="", model="\x01")
        machine.softhsm(odd)
        assert init(machine) == 1
        assert "can't be named" in error_of(capsys)
        assert not machine.config.exists()

    @pytest.mark.parametrize(
        ("others", "uri"),
        [
            ([{"serial": "1"}], "pkcs11:token=work;serial=0a1b"),
            (
                [{"model": "x"}],
                "pkcs11:token=work;serial=0a1b;manufacturer=SoftHSM%20project;model=SoftHSM%20v2",
            ),
        ],
    )
    def test_it_writes_the_shortest_uri_that_names_no_other(
        self, machine: Machine, others: list[dict[str, Any]], uri: str
    ) -> None:
        machine.softhsm(token(), *(token(**other) for other in others))
        whole = "pkcs11:token=work;serial=0a1b;model=SoftHSM%20v2"
        assert init(machine, "--token", whole) == 0
        assert str(config.load(str(machine.config)).stores["soft"].uri) == uri

    def test_two_pkcs11_tokens_that_look_the_same_are_told_so(
        self, machine: Machine, capsys: Capture
    ) -> None:
        machine.softhsm(token(), token())
        assert init(machine) == 1
        error = error_of(capsys)
        assert "no URI tells them apart: have the module show one of them alone" in error
        assert "--token" not in error
        assert not machine.config.exists()

    def test_a_card_by_opensc_is_named_by_its_serial(self, machine: Machine) -> None:
        card = token("PIV_II", serial="00000000", manufacturer="piv_II")
        machine.module("opensc-pkcs11.so", card)
        assert init(machine) == 0
        uri = config.load(str(machine.config)).stores["smartcard"].uri
        assert uri == config.TokenUri(serial="00000000")

    def test_a_modules_arguments_reach_it_and_the_configuration(
        self, machine: Machine, capsys: Capture
    ) -> None:
        arguments = "configdir='sql:/a b' x=\"y\""
        (machine.folder / "arguments").write_text(arguments)
        module = machine.module(
            "libsoftokn3.so",
            says="#!/bin/sh\nfor it; do :; done\n"
            f'[ "$it" = "$(cat {machine.folder}/arguments)" ] || exit 1\n'
            f"cat <<'END'\n{json.dumps([token()])}\nEND\n",
        )
        assert init(machine, "--module", module, "--module-args", arguments) == 0
        assert config.load().stores["softokn3"].module_args == arguments
        capsys.readouterr()
        assert main(["config", "show"]) == 0
        assert f"module_args  {arguments}" in capsys.readouterr().out
        assert main(["config", "show", "--json"]) == 0
        (shown,) = json.loads(capsys.readouterr().out)["stores"]
        assert shown["module_args"] == arguments

    @pytest.mark.parametrize("where", [(), ("--keychain",)])
    def test_arguments_without_their_module_are_refused(
        self, machine: Machine, capsys: Capture, where: tuple[str, ...]
    ) -> None:
        machine.softhsm()
        machine.keychain()
        assert main(["init", "--module-args", "x", *where]) == 1
        assert "give the module's path with --module" in error_of(capsys)

    def test_a_named_module_is_the_only_one_asked(self, machine: Machine) -> None:
        machine.softhsm()
        module = machine.module("libykcs11.so", token("YubiKey PIV #1", "1"))
        assert init(machine, "--module", module) == 0
        found = config.load()
        assert found.stores["yubikey"].module == module
        assert dict(found.stores["yubikey"].env) == {}

    def test_an_unknown_module_gives_its_name_to_the_store(self, machine: Machine) -> None:
        module = machine.module("libCryptoki2_64.so", token())
        assert init(machine, "--module", module) == 0
        assert config.load().default_store == "cryptoki2_64"

    def test_a_module_that_fails_does_not_hide_the_others(self, machine: Machine) -> None:
        machine.softhsm()
        machine.module("opensc-pkcs11.so", says="#!/bin/sh\necho broken >&2\nexit 1\n")
        machine.module("libykcs11.so", says="#!/bin/sh\nkill -SEGV $$\n")
        assert init(machine) == 0
        assert config.load().default_store == "soft"

    @pytest.mark.parametrize(
        ("says", "said"),
        [
            ("#!/bin/sh\necho 'noise\nit needs pcscd; start it' >&2\nexit 1\n", "it needs pcscd"),
            ("#!/bin/sh\nkill -SEGV $$\n", "status -11"),
            ("#!/bin/sh\necho oops\n", "an answer that can't be read"),
            ("#!/bin/sh\necho '[1]'\n", "a form that can't be read"),
            ("#!/bin/sh\necho '[]'\n", "no initialised PKCS#11 token"),
        ],
    )
    def test_a_module_that_shows_nothing_is_told_in_one_line(
        self, machine: Machine, capsys: Capture, says: str, said: str
    ) -> None:
        module = machine.module("x.so", says=says)
        assert init(machine, "--module", module) == 1
        assert said in error_of(capsys)

    def test_a_module_that_hangs_is_ended(
        self, machine: Machine, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = machine.module("x.so", says="#!/bin/sh\nexec sleep 60\n")
        monkeypatch.setattr(discovery, "LOOK_TIMEOUT_S", 0.2)
        assert init(machine, "--module", module) == 1
        assert "didn't answer" in error_of(capsys)
        assert "sleep 60" not in children().values()

    def test_no_module_at_all_says_what_to_install(self, machine: Machine, capsys: Capture) -> None:
        assert init(machine) == 1
        assert "apt install softhsm2" in error_of(capsys)

    def test_one_library_under_two_names_is_asked_once(self, machine: Machine) -> None:
        module = machine.module("libykcs11.so", token())
        os.symlink(module, module + ".2")
        assert init(machine) == 0

    def test_a_folder_that_cannot_be_written_is_told(
        self, machine: Machine, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine.softhsm()
        (machine.folder / "file").write_text("")
        monkeypatch.setenv("DPOP_AGENT_CONFIG", str(machine.folder / "file" / "config.toml"))
        assert init(machine) == 1
        assert "can't be written: Not a directory" in error_of(capsys)


class TestInitOfAKeychain:
    TEXT = """\
# dpop-agent: where keys live.

[agent]
default_store = "keychain"

# Exportable: any program of this user can read the private keys there.
[stores.keychain]
type = "keychain"
"""

    def test_it_is_taken_when_asked_for_and_called_exportable(
        self, machine: Machine, capsys: Capture
    ) -> None:
        machine.softhsm()
        machine.keychain()
        assert main(["init", "--keychain"]) == 0
        assert machine.config.read_text() == self.TEXT
        out, err = capsys.readouterr()
        assert err == ""
        assert "the operating system's keychain 'Login'" in out
        assert "exportable: any program of yours can read them there" in out
        assert "locked" not in out
        assert main(["config", "check"]) == 0

    def test_it_is_taken_where_there_is_no_pkcs11_token_and_the_reason_is_told(
        self, machine: Machine, capsys: Capture
    ) -> None:
        machine.softhsm(token(initialized=False))
        machine.keychain()
        assert main(["init"]) == 0
        assert machine.config.read_text() == self.TEXT
        out = capsys.readouterr().out
        assert "no initialised PKCS#11 token in" in out
        assert "exportable" in out

    def test_it_is_taken_where_softhsm_was_never_set_up_for_this_user(
        self, machine: Machine, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        says = "#!/bin/sh\necho 'it fails; see' >&2\nexit 1\n"
        module = machine.module("softhsm/libsofthsm2.so", says=says)
        machine.keychain()
        monkeypatch.setenv("SOFTHSM2_CONF", "/set/up")  # then it is told what fails
        assert main(["init"]) == 1
        assert (
            "it fails; see; or give another --module, or correct SOFTHSM2_CONF, which is /set/up"
            in error_of(capsys)
        )
        monkeypatch.delenv("SOFTHSM2_CONF")
        assert main(["init"]) == 0
        assert machine.config.read_text() == self.TEXT
        out = capsys.readouterr().out
        assert f"no initialised PKCS#11 token in {Path(module).name}, so it is the keychain" in out
        assert "or set SOFTHSM2_CONF" in out

    def test_it_is_not_taken_where_a_module_fails_which_is_told(
        self, machine: Machine, capsys: Capture
    ) -> None:
        machine.keychain()
        machine.softhsm(token(initialized=False))
        failed = machine.module("libykcs11.so", says="#!/bin/sh\nexit 1\n")
        said = "no initialised PKCS#11 token in libsofthsm2.so, and no answer from libykcs11.so"
        assert main(["init"]) == 1
        error = error_of(capsys)
        assert said in error
        assert (
            "make one with its vendor's tool (for SoftHSM2 see docs/getting-started.md), or set"
            in error
        )
        assert f"dpop-agent init --module {failed}; or" in error
        assert "exportable: dpop-agent init --keychain" in error
        assert not machine.config.exists()

    def test_it_is_not_taken_where_there_is_a_pkcs11_token(
        self, machine: Machine, capsys: Capture
    ) -> None:
        machine.softhsm()
        machine.keychain()
        assert init(machine) == 0
        assert config.load().default_store == "soft"

    @pytest.mark.parametrize(
        "words", [["--token", "work"], ["--module", "libx.so"], ["--pin-file", "work.pin"]]
    )
    def test_it_is_not_taken_by_whoever_names_a_pkcs11_token(
        self, machine: Machine, capsys: Capture, monkeypatch: pytest.MonkeyPatch, words: list[str]
    ) -> None:
        monkeypatch.chdir(machine.folder)
        module = machine.module("libx.so")
        machine.keychain()
        if words[0] == "--module":
            words = ["--module", module]
        assert main(["init", *words]) == 1
        assert "PKCS#11" in error_of(capsys)
        assert not machine.config.exists()

    def test_a_module_that_fails_is_told_and_not_replaced_by_a_keychain(
        self, machine: Machine, capsys: Capture
    ) -> None:
        machine.module("libykcs11.so", says="#!/bin/sh\necho 'it needs pcscd' >&2\nexit 1\n")
        machine.keychain()
        assert main(["init"]) == 1
        assert "it needs pcscd" in error_of(capsys)
        assert not machine.config.exists()

    def test_a_locked_one_is_told(self, machine: Machine, capsys: Capture) -> None:
        machine.keychain(says="#!/bin/sh\necho '{\"locked\": true}'\n")
        assert main(["init", "--keychain"]) == 0
        assert "it is locked now" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("says", "said"),
        [
            ("#!/bin/sh\necho 'there is no keychain here; log in' >&2\nexit 1\n", "no keychain"),
            ("#!/bin/sh\nkill -SEGV $$\n", "status -11"),
            ("#!/bin/sh\necho oops\n", "an answer that can't be read"),
            ("#!/bin/sh\necho 1\n", "an answer that can't be read"),
        ],
    )
    def test_one_that_does_not_work_is_refused(
        self, machine: Machine, capsys: Capture, says: str, said: str
    ) -> None:
        machine.keychain(says=says)
        assert main(["init", "--keychain"]) == 1
        assert said in error_of(capsys)
        assert not machine.config.exists()
        assert main(["init"]) == 1
        assert "apt install softhsm2" in error_of(capsys)

    def test_one_that_hangs_is_ended(
        self, machine: Machine, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine.keychain(says="#!/bin/sh\nexec sleep 60\n")
        monkeypatch.setattr(discovery, "LOOK_TIMEOUT_S", 0.2)
        assert main(["init", "--keychain"]) == 1
        assert "didn't answer" in error_of(capsys)
        assert "sleep 60" not in children().values()

    def test_it_has_neither_pin_nor_pkcs11_token(self, machine: Machine, capsys: Capture) -> None:
        machine.keychain()
        assert init(machine, "--keychain") == 1
        assert "leave out --token and --pin-file" in error_of(capsys)
        assert main(["init", "--keychain", "--module", "/x.so"]) == 2

    def test_json_says_exportable(self, machine: Machine, capsys: Capture) -> None:
        machine.keychain()
        assert main(["init", "--keychain", "--dry-run", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {
            "config": str(machine.config),
            "written": False,
            "text": self.TEXT,
            "exportable": True,
        }

    def test_show_and_check_know_it(self, machine: Machine, capsys: Capture) -> None:
        machine.keychain()
        assert main(["init", "--keychain"]) == 0
        capsys.readouterr()
        assert main(["config", "show"]) == 0
        shown = capsys.readouterr().out
        assert f"backend      {config.default_backend()}" in shown
        assert "exportable" in shown
        assert main(["config", "show", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["stores"] == [
            {
                "store": "keychain",
                "type": "keychain",
                "backend": config.default_backend(),
                "env": {},
            }
        ]
        machine.keychain(says="#!/bin/sh\necho 'there is no keychain here' >&2\nexit 1\n")
        assert main(["config", "check"]) == 1
        assert "stores.keychain: there is no keychain here" in error_of(capsys)


class TestConfig:
    def test_path_tells_where_it_is_even_if_it_is_not(
        self, machine: Machine, capsys: Capture
    ) -> None:
        assert main(["config", "path"]) == 0
        assert capsys.readouterr().out == f"{machine.config}\n"
        assert main(["config", "path", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"path": str(machine.config)}

    def test_show_shows_every_setting(self, machine: Machine, capsys: Capture) -> None:
        module = machine.softhsm()
        assert init(machine) == 0
        capsys.readouterr()
        assert main(["config", "show"]) == 0
        out = capsys.readouterr().out
        for part in (str(machine.config), "soft", module, "pkcs11:token=work;serial=0a1b"):
            assert part in out
        assert main(["config", "show", "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["stores"] == [
            {
                "store": "soft",
                "type": "pkcs11",
                "module": module,
                "uri": "pkcs11:token=work;serial=0a1b",
                "pin_source": f"file:{machine.pin_file}",
                "verify": "first",
                "env": {},
            }
        ]

    def test_show_tells_of_several_signers(self, machine: Machine, capsys: Capture) -> None:
        machine.softhsm()
        assert init(machine) == 0
        machine.config.write_text(f"{machine.config.read_text()}signers = 4\n")
        capsys.readouterr()
        assert main(["config", "show", "--json"]) == 0
        (shown,) = json.loads(capsys.readouterr().out)["stores"]
        assert shown["signers"] == "4"

    def test_show_tells_after_how_long_stores_are_locked_or_released(
        self, machine: Machine, capsys: Capture
    ) -> None:
        machine.softhsm()
        assert init(machine) == 0
        text = machine.config.read_text()
        capsys.readouterr()
        assert main(["config", "show"]) == 0
        assert "\nlock after     never\nrelease after  never\n" in capsys.readouterr().out
        machine.config.write_text(text.replace("[agent]", '[agent]\nlock_after = "90m"'))
        assert main(["config", "show"]) == 0
        assert "\nlock after     90m\nrelease after  never\n" in capsys.readouterr().out
        assert main(["config", "show", "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert (shown["lock_after_s"], shown["release_after_s"]) == (5400, None)

    def test_check_tells_every_problem(self, machine: Machine, capsys: Capture) -> None:
        module = machine.softhsm()
        assert init(machine) == 0
        os.unlink(module)
        machine.pin_file.chmod(0o644)
        capsys.readouterr()
        assert main(["config", "check"]) == 1
        out, err = capsys.readouterr()
        first, second = err.splitlines()
        assert "stores.soft" not in out
        assert "is fine" not in out
        assert f"stores.soft: there is no PKCS#11 module at {module}" in first
        assert f"chmod 600 {machine.pin_file}" in second
        assert main(["config", "check", "--json"]) == 1
        assert len(json.loads(capsys.readouterr().err)["error"]["data"]["problems"]) == 2

    def test_check_says_of_each_store_what_is_there(
        self, machine: Machine, capsys: Capture
    ) -> None:
        module = machine.softhsm(token("work", "0a1b"), token("home", "02"))
        machine.keychain()
        assert init(machine, "--token", "work") == 0
        text = machine.config.read_text()
        machine.config.write_text(f'{text}[stores.keychain]\ntype = "keychain"\n')
        capsys.readouterr()
        assert main(["config", "check"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert out.endswith(
            "ok       stores.soft: found PKCS#11 token 'work', serial 0a1b\n"
            f"ok       stores.keychain: found keychain 'Login'\n{machine.config} is fine\n"
        )
        assert main(["config", "check", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert {one["level"] for one in told.pop("findings")} == {"ok"}
        assert told == {
            "path": str(machine.config),
            "problems": [],
            "found": {
                "soft": "PKCS#11 token 'work', serial 0a1b",
                "keychain": "keychain 'Login'",
            },
        }
        (machine.folder / "lists" / Path(module).name).unlink()
        machine.softhsm(token("home", "02"))
        assert main(["config", "check"]) == 1
        out, err = capsys.readouterr()
        assert out.endswith("ok       stores.keychain: found keychain 'Login'\n")
        assert "stores.soft: not found: PKCS#11 token pkcs11:token=work;serial=0a1b; plug" in err
        assert "or set SOFTHSM2_CONF" in err
        assert err.count("\n") == 1

    @pytest.mark.parametrize(
        ("shown", "said"),
        [
            ([], "not found: PKCS#11 token pkcs11:token=work"),
            ([token(initialized=False)], "not found: PKCS#11 token pkcs11:token=work"),
            ([token(serial="01"), token(serial="02")], "2 PKCS#11 tokens fit pkcs11:token=work"),
        ],
    )
    def test_check_finds_exactly_the_pkcs11_token_that_the_uri_names(
        self, machine: Machine, capsys: Capture, shown: list[dict[str, Any]], said: str
    ) -> None:
        machine.softhsm()
        assert init(machine) == 0
        text = machine.config.read_text().replace(";serial=0a1b", "")
        machine.config.write_text(text)
        machine.module("softhsm/libsofthsm2.so", says=f"#!/bin/sh\necho '{json.dumps(shown)}'\n")
        capsys.readouterr()
        assert main(["config", "check"]) == 1
        assert said in error_of(capsys)

    @pytest.mark.parametrize(
        ("says", "said"),
        [
            ("#!/bin/sh\nkill -SEGV $$\n", "status -11"),
            ("#!/bin/sh\necho 'it needs pcscd; start it' >&2\nexit 1\n", "it needs pcscd"),
            ("#!/bin/sh\nexec sleep 60\n", "didn't answer"),
        ],
    )
    def test_check_tells_of_a_module_that_cannot_say_what_is_there(
        self,
        machine: Machine,
        capsys: Capture,
        monkeypatch: pytest.MonkeyPatch,
        says: str,
        said: str,
    ) -> None:
        machine.softhsm()
        assert init(machine) == 0
        monkeypatch.setattr(discovery, "LOOK_TIMEOUT_S", 0.3)
        machine.module("softhsm/libsofthsm2.so", says=says)
        capsys.readouterr()
        assert main(["config", "check"]) == 1
        assert "stores.soft: " in (error := error_of(capsys))
        assert said in error

    def test_check_looks_by_the_environment_and_the_arguments_of_the_store(
        self, machine: Machine, capsys: Capture
    ) -> None:
        module = machine.softhsm()
        assert init(machine) == 0
        text = machine.config.read_text()
        machine.config.write_text(
            f"{text}env = {{ SOFTHSM2_CONF = '/of/store' }}\nmodule_args='x'\n"
        )
        wants = '[ "$SOFTHSM2_CONF" = /of/store ] && for it; do :; done && [ "$it" = x ] || exit 1'
        shown = json.dumps([token()])
        machine.module("softhsm/libsofthsm2.so", says=f"#!/bin/sh\n{wants}\necho '{shown}'\n")
        assert Path(module).exists()
        assert main(["config", "check"]) == 0

    def test_check_looks_for_the_keychain_that_is_to_have_a_pin(
        self, machine: Machine, capsys: Capture
    ) -> None:
        machine.softhsm()
        machine.keychain(says="#!/bin/sh\necho 'there is no keychain here' >&2\nexit 1\n")
        assert main(["init"]) == 0
        text = machine.config.read_text()
        machine.config.write_text(text.replace('"prompt"', '"keychain"'))
        capsys.readouterr()
        assert main(["config", "check"]) == 1
        assert "stores.soft: there is no keychain here" in error_of(capsys)
        machine.keychain()
        assert main(["config", "check"]) == 0

    def test_check_looks_at_the_program_that_asks_for_consent(
        self, machine: Machine, tmp_path: Path, capsys: Capture
    ) -> None:
        machine.softhsm()
        assert init(machine) == 0
        program = tmp_path / "ask"
        text = machine.config.read_text()
        machine.config.write_text(
            text.replace("[agent]\n", f'[agent]\nconfirm_command = ["{program}"]\n')
        )
        for mode, says in (
            (None, f"agent.confirm_command: there is no program at {program}"),
            (0o600, f"agent.confirm_command: there is no program at {program}"),
            (0o722, "the program that asks for consent"),
        ):
            if mode is not None:
                program.touch()
                program.chmod(mode)
            capsys.readouterr()
            assert main(["config", "check"]) == 1
            assert says in error_of(capsys)
        program.chmod(0o700)
        assert main(["config", "check"]) == 0

    def test_check_of_one_that_others_can_change_fails(
        self, machine: Machine, capsys: Capture
    ) -> None:
        machine.softhsm()
        assert init(machine) == 0
        machine.config.chmod(0o666)
        capsys.readouterr()
        assert main(["config", "check"]) == 1
        assert "others can change it" in error_of(capsys)

    @pytest.mark.parametrize("place", "cmpsr")
    def test_check_names_the_folder_in_which_others_could_swap_what_is_used(
        self,
        machine: Machine,
        tmp_path: Path,
        capsys: Capture,
        monkeypatch: pytest.MonkeyPatch,
        place: str,
    ) -> None:
        """Those of configuration, module, PIN file, state and runtime."""
        machine.softhsm()
        assert init(machine) == 0
        monkeypatch.setenv("DPOP_AGENT_STATE_DIR", str(tmp_path / "s" / "state"))
        monkeypatch.setenv("DPOP_AGENT_SOCK", str(tmp_path / "r" / "run" / "agent.sock"))
        for name in ("s/state", "r/run", "c", "m", "p"):
            (tmp_path / name).mkdir(mode=0o700, parents=True)
        text = machine.config.read_text()
        for name, old in (("m", Path(machine.softhsm())), ("p", machine.pin_file)):
            (tmp_path / name / old.name).write_bytes(old.read_bytes())
            (tmp_path / name / old.name).chmod(0o600)
            text = text.replace(str(old), str(tmp_path / name / old.name))
        (tmp_path / "c" / "config.toml").write_text(text)
        monkeypatch.setenv("DPOP_AGENT_CONFIG", str(tmp_path / "c" / "config.toml"))
        capsys.readouterr()
        assert main(["config", "check"]) == 0

        folder = tmp_path / place
        folder.chmod(0o770)
        capsys.readouterr()
        assert main(["config", "check"]) == 1
        said = error_of(capsys)
        assert f"{folder}, above the " in said
        assert "has mode 0770: others can replace what is in it" in said
        assert f"chmod go-w {folder}" in said

"""The configuration: what it takes, and one line for each thing that can't be right."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from dpop_agent import config
from dpop_agent.errors import ConfigurationError

STORE = """\
[stores.work]
type = "pkcs11"
module = "/usr/lib/softhsm/libsofthsm2.so"
uri = "pkcs11:token=work"
pin_source = "file:/home/alice/work.pin"
"""
SECRET = "73195"


def write(folder: Path, text: str | bytes, mode: int = 0o600) -> str:
    file = folder / "config.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    file.chmod(mode)
    return str(file)


def changed(setting: str, value: str) -> str:
    lines = [line for line in STORE.splitlines() if not line.startswith(f"{setting} =")]
    return "\n".join([*lines, f"{setting} = {value}", ""])


def refusal(folder: Path, text: str | bytes) -> ConfigurationError:
    path = write(folder, text)
    with pytest.raises(ConfigurationError) as caught:
        config.load(path)
    assert path in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


def test_a_whole_configuration_is_read(tmp_path: Path) -> None:
    text = (
        '[agent]\ndefault_store = "other"\n'
        + STORE
        + 'env = { SOFTHSM2_CONF = "/etc/softhsm2.conf" }\n'
        + STORE.replace("stores.work", "stores.other").replace("token=work", "serial=0a%20b")
    )
    path = write(tmp_path, text)
    found = config.load(path)
    assert found.path == path
    assert found.default_store == "other"
    assert list(found.stores) == ["work", "other"]
    store = found.stores["work"]
    assert (store.name, store.type, store.module) == (
        "work",
        "pkcs11",
        "/usr/lib/softhsm/libsofthsm2.so",
    )
    assert store.uri == config.TokenUri(token="work")
    assert store.pin_source == config.PinSource("file", "/home/alice/work.pin")
    assert dict(store.env) == {"SOFTHSM2_CONF": "/etc/softhsm2.conf"}
    assert found.stores["other"].uri == config.TokenUri(serial="0a b")


def test_a_modules_arguments_are_read_as_they_are_written(tmp_path: Path) -> None:
    arguments = "configdir='sql:~/.pki/nssdb' flags=\"readOnly\""
    written = changed("module_args", f"'''{arguments}'''")
    assert config.load(write(tmp_path, written)).stores["work"].module_args == arguments
    assert config.load(write(tmp_path, STORE)).stores["work"].module_args == ""


def test_a_login_is_retried_only_where_the_configuration_says_so(tmp_path: Path) -> None:
    assert config.load(write(tmp_path, STORE)).stores["work"].login_retries == 0
    found = config.load(write(tmp_path, f"{STORE}login_retries = 3\n"))
    assert found.stores["work"].login_retries == 3


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("-1", "use a number from 0 to 1000"),
        ("1001", "use a number from 0 to 1000"),
        ('"3"', "has to be a number, not text"),
        ("true", "has to be a number, not true or false"),
        ("1.5", "has to be a number"),
    ],
)
def test_retries_that_are_no_number_of_them_are_refused(
    tmp_path: Path, value: str, said: str
) -> None:
    assert said in str(refusal(tmp_path, f"{STORE}login_retries = {value}\n"))


def test_one_store_is_the_default_store(tmp_path: Path) -> None:
    assert config.load(write(tmp_path, STORE)).default_store == "work"


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/bob")
    path = write(tmp_path, changed("pin_source", '"file:~/pin"'))
    assert config.load(path).stores["work"].pin_source == config.PinSource("file", "/home/bob/pin")


def test_a_configuration_cannot_be_changed_after_it_was_read(tmp_path: Path) -> None:
    found = config.load(write(tmp_path, STORE))
    with pytest.raises(TypeError):
        found.stores["x"] = found.stores["work"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        found.default_store = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no [stores.NAME]"),
        ("[stores]", "there is no [stores.NAME]"),
        ("[stores.work", "isn't TOML: "),
        (STORE + "uri = 1\n", "isn't TOML: Cannot overwrite a value (at line 6"),
        ("a = " + "[" * 5000, "nested too deeply"),
        (b"a = '\xff'", "isn't UTF-8 (byte 5)"),
        ("stores = 1", "stores has to be a table, not a number"),
        ("[stores]\nwork = 'x'", "stores.work has to be a table, not text"),
        ("agent = [1]\n" + STORE, "agent has to be a table, not a list"),
        ("[agents]\n" + STORE, "unknown setting 'agents'; did you mean agent?"),
        ("[agent]\ndefault = 'x'\n" + STORE, "agent has the unknown setting 'default'"),
        ("[agent]\ndefault_sotre = 'x'\n" + STORE, "did you mean default_store?"),
        ("[agent]\ndefault_store = 7\n" + STORE, "agent.default_store has to be text, not a num"),
        ("[agent]\ndefault_store = 'wrk'\n" + STORE, "isn't configured; did you mean work?"),
        (STORE + STORE.replace("work", "b"), "default_store is missing, and there are several"),
        ("[stores.Work]\n", "'Work' can't be a store's name"),
        (f"[stores.{'a' * 65}]\n", "can't be a store's name"),
        ("[stores.work]\n", "stores.work.type is missing; add type"),
        (
            "[stores.work]\ntype = 'pkcs11'\nmodule = '/m'\n",
            "toml: stores.work.uri is missing; add",
        ),
        ("[stores.work]\ntipe = 'pkcs11'\n", "'tipe' isn't a setting"),
        (changed("type", '"yubikey"'), "this version doesn't have; there are: pkcs11, keychain"),
        (changed("type", "true"), "stores.work.type has to be text, not true or false"),
        (changed("module", "1.5"), "stores.work.module has to be text, not a number"),
        (changed("module", '"libsofthsm2.so"'), "stores.work.module isn't a full path"),
        (changed("uri", "1979-05-27"), "stores.work.uri has to be text, not a date or time"),
        (changed("uri", '"work"'), "stores.work.uri: the URI doesn't begin with pkcs11:"),
        (changed("pin_sorce", '"file:/p"'), "did you mean pin_source?"),
        (changed("env", "1"), "stores.work.env has to be a table, not a number"),
        (changed("env", "{ A = 1 }"), "stores.work.env.A has to be text, not a number"),
        (changed("env", '{ "A=B" = "1" }'), "isn't the name of a variable"),
        (changed("env", '{ A = "\\u0000" }'), "stores.work.env.A has a zero byte"),
        *(
            (changed("env", f'{{ {name} = "1" }}'), f"stores.work.env has {name}, which works only")
            for name in (
                *("LD_PRELOAD", "LD_LIBRARY_PATH", "GLIBC_TUNABLES", "MALLOC_ARENA_MAX"),
                *("PYTHONPATH", "LANG", "LC_ALL", "OPENSSL_CONF"),
            )
        ),
        (changed("module_args", "['a']"), "stores.work.module_args has to be text, not a list"),
        (changed("module_args", '"a\\u0000"'), "stores.work.module_args has a zero byte"),
        (changed("module_arg", '"a"'), "did you mean module_args?"),
        (changed("verify", '"never"'), "stores.work.verify has to be 'first' or 'always'"),
        (changed("verify", "true"), "stores.work.verify has to be text, not true or false"),
        ("x = " + "1" * 5000, "isn't TOML"),
        (STORE + "\0", "isn't TOML: Invalid statement"),
        (changed("module", '"/a\0b"'), "isn't TOML: Illegal character '\\x00'"),
        (changed("module", '"/a\x1bb"'), "isn't TOML: Illegal character '\\x1b'"),
        (STORE.encode("utf-16"), "isn't UTF-8 (byte 0)"),
        ("#" * (config.MAX_SIZE + 1), f"more than {config.MAX_SIZE} bytes"),
    ],
)
def test_what_cannot_be_right_is_told_in_one_line(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    assert said in str(refusal(tmp_path, text))


KEYCHAIN = '[stores.desktop]\ntype = "keychain"\n'


@pytest.mark.parametrize(
    ("platform", "backend"),
    [
        ("linux", "keyring.backends.SecretService.Keyring"),
        ("darwin", "keyring.backends.macOS.Keyring"),
    ],
)
def test_the_platforms_own_keychain_is_used_where_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, backend: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    store = config.load(write(tmp_path, KEYCHAIN)).stores["desktop"]
    assert (store.type, store.backend, dict(store.env)) == ("keychain", backend, {})
    assert (store.module, store.uri, store.pin_source) == (None, None, None)


@pytest.mark.parametrize("backend", config.BACKENDS)
def test_a_keychain_can_be_named(tmp_path: Path, backend: str) -> None:
    text = KEYCHAIN + f'backend = "{backend}"\nenv = {{ A = "1" }}\n'
    store = config.load(write(tmp_path, text)).stores["desktop"]
    assert store.backend == backend
    assert dict(store.env) == {"A": "1"}


@pytest.mark.parametrize(
    ("backend", "why"),
    [
        ("keyrings.alt.file.PlaintextKeyring", "keep private keys in files"),
        ("keyrings.alt.file.EncryptedKeyring", "keep private keys in files"),
        ("keyring.backends.null.Keyring", "it stores nothing"),
        ("keyring.backends.fail.Keyring", "where there is no keychain"),
        ("keyring.backends.chainer.ChainerBackend", "plain files included"),
        ("keyring.backends.Windows.WinVaultKeyring", "isn't a keychain known here"),
        ("keyring.backends.SecretService.keyring", "isn't a keychain known here"),
        ("os.system", "isn't a keychain known here"),
        ("", "isn't a keychain known here"),
    ],
)
def test_a_keychain_that_keeps_keys_badly_is_refused_with_the_reason(
    tmp_path: Path, backend: str, why: str
) -> None:
    error = refusal(tmp_path, KEYCHAIN + f'backend = "{backend}"\n')
    assert f"stores.desktop.backend names '{backend}', which isn't accepted" in error.message
    assert why in error.message
    assert all(name in error.hint for name in config.BACKENDS)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ('module = "/x.so"', "unknown setting 'module'; there are: type, backend, env"),
        ('uri = "pkcs11:token=x"', "unknown setting 'uri'"),
        (f'pin_source = "{SECRET}"', "unknown setting 'pin_source'"),
        ('backand = "x"', "unknown setting 'backand'; did you mean backend?"),
        ("backend = 1", "stores.desktop.backend has to be text, not a number"),
    ],
)
def test_a_keychain_has_no_settings_of_pkcs11(tmp_path: Path, setting: str, said: str) -> None:
    error = refusal(tmp_path, KEYCHAIN + setting + "\n")
    assert said in str(error)
    assert SECRET not in str(error)


def test_a_pkcs11_token_has_no_backend(tmp_path: Path) -> None:
    error = refusal(tmp_path, STORE + 'backend = "keyring.backends.SecretService.Keyring"\n')
    assert "stores.work has the unknown setting 'backend'" in error.message


@pytest.mark.parametrize(
    ("value", "kind", "argument"),
    [
        ("prompt", "prompt", ""),
        ("keychain", "keychain", ""),
        ("none", "none", ""),
        ("credential:work-pin", "credential", "work-pin"),
        ("file:/home/alice/pin", "file", "/home/alice/pin"),
    ],
)
def test_a_pin_comes_from_one_of_four_sources_or_there_is_none(
    tmp_path: Path, value: str, kind: str, argument: str
) -> None:
    source = config.load(write(tmp_path, changed("pin_source", f'"{value}"')))
    assert source.stores["work"].pin_source == config.PinSource(kind, argument)
    assert str(source.stores["work"].pin_source) == value


@pytest.mark.parametrize(
    "value",
    [
        f'"{SECRET}"',
        SECRET,
        f'"pin:{SECRET}"',
        f'"prompt:{SECRET}"',
        f'"file:{SECRET}"',
        f'"keychain:{SECRET}"',
        f'"none:{SECRET}"',
        f'"credential:../{SECRET}"',
        '"file:"',
        '"credential:"',
        f'["{SECRET}"]',
    ],
)
def test_a_source_of_pins_that_is_not_one_is_refused_and_not_told(
    tmp_path: Path, value: str
) -> None:
    error = refusal(tmp_path, changed("pin_source", value))
    assert "stores.work.pin_source" in error.message
    assert SECRET not in str(error)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("pkcs11:token=work", config.TokenUri(token="work")),
        ("PKCS11:serial=01%2f2", config.TokenUri(serial="01/2")),
        (
            "pkcs11:model=SoftHSM%20v2;manufacturer=S&Co;token=a=b",
            config.TokenUri(model="SoftHSM v2", manufacturer="S&Co", token="a=b"),
        ),
        ("pkcs11:token=%C3%BCber", config.TokenUri(token="über")),
        ("pkcs11:token=%20held", config.TokenUri(token=" held")),
        ("pkcs11:token=held%20%20;serial=1%00%00", config.TokenUri(token="held", serial="1")),
        ("pkcs11:token=" + "a" * 30 + "%20" * 12, config.TokenUri(token="a" * 30)),
        ("pkcs11:token=", config.TokenUri(token="")),
        ("pkcs11:token=%20%20;serial=1", config.TokenUri(token="", serial="1")),
        ("pkcs11:token=a;", config.TokenUri(token="a")),
        ("pkcs11:token=a?", config.TokenUri(token="a")),
        ("pkcs11:token=a;?x-own=1&", config.TokenUri(token="a")),
        ("pkcs11:x-own=1;token=a;x-own=2;X-Model=%zz", config.TokenUri(token="a")),
    ],
)
def test_a_uri_names_a_pkcs11_token(uri: str, expected: config.TokenUri) -> None:
    assert config.parse_token_uri(uri) == expected
    assert config.parse_token_uri(str(expected)) == expected


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("token=work", "doesn't begin with pkcs11:"),
        ("pkcs12:token=work", "doesn't begin with pkcs11:"),
        ("pkcs11:", "name=value"),
        ("pkcs11:work", "name=value"),
        ("pkcs11:;", "name=value"),
        ("pkcs11:token=a;;serial=1", "name=value"),
        ("pkcs11:x-own=1", "names no PKCS#11 token"),
        ("pkcs11:token", "name=value"),
        ("pkcs11:token=a?&token=b", "name=value"),
        ("pkcs11:token=" + "a" * 33, "has 33 bytes, 32 at most"),
        ("pkcs11:serial=" + "a" * 17, "has 17 bytes, 16 at most"),
        ("pkcs11:token=a%00b", "zero byte"),
        ("pkcs11:token=%ff", "isn't UTF-8"),
        ("pkcs11:token=a b", "a space is %20"),
        ("pkcs11:token=über", "percent-encode"),
        ("pkcs11:token=%zz", "percent-encode"),
        ("pkcs11:token=a%2", "percent-encode"),
        ("pkcs11:token=a;token=b", "token twice"),
        ("pkcs11:tokn=a", "did you mean token?"),
        ("pkcs11:token=a;slot-id=3", "slot numbers change"),
        ("pkcs11:token=a;object=key", "keys get their names from"),
        ("pkcs11:token=a;id=%01", "keys get their names from"),
        ("pkcs11:token=a;type=private", "keys get their names from"),
        ("pkcs11:token=a?module-path=/lib/x.so", "in the setting module"),
    ],
)
def test_a_uri_that_does_not_name_a_pkcs11_token_is_refused(uri: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config.parse_token_uri(uri)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        f"pkcs11:token=a?pin-value={SECRET}",
        f"pkcs11:token=a;pin-value={SECRET}",
        f"pkcs11:token=a?pin-source=file:{SECRET}",
        f"pkcs11:token=a?pin-valeu={SECRET}",
        f"pkcs11:token=a&pin-value={SECRET} ",
        f"pkcs11:{SECRET}",
        f"pkcs11:token=a;{SECRET}",
        f"pkcs11:token=a?{SECRET}",
        f"pkcs11:token={SECRET}%zz",
        SECRET,
    ],
)
def test_a_pin_in_a_uri_is_refused_and_not_told(tmp_path: Path, uri: str) -> None:
    error = refusal(tmp_path, changed("uri", f'"{uri}"'))
    assert SECRET not in str(error)
    assert SECRET not in str(error.to_wire())


def test_the_padding_of_a_pkcs11_token_s_own_texts_does_not_count() -> None:
    uri = config.TokenUri(token="work", serial="1")
    assert uri.matches(label="work" + " " * 28, serial="1\0", manufacturer="", model="")
    assert not uri.matches(label="work", serial="2", manufacturer="", model="")
    assert not uri.matches(label=" work", serial="1", manufacturer="", model="")
    uri = config.parse_token_uri("pkcs11:token=%20work")
    assert uri.matches(label=" work ", serial="", manufacturer="", model="")
    assert not uri.matches(label="work", serial="", manufacturer="", model="")


def test_an_empty_value_matches_a_pkcs11_token_that_has_none() -> None:
    uri = config.parse_token_uri("pkcs11:token=;serial=1")
    assert uri.matches(label=" " * 32, serial="1", manufacturer="m", model="")
    assert not uri.matches(label="work", serial="1", manufacturer="m", model="")


def test_a_vendors_own_attribute_is_ignored_with_a_line_in_the_log_without_its_value(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, changed("uri", f'"pkcs11:token=work;x-acme={SECRET}"'))
    store = config.load(path).stores["work"]
    assert str(store.uri) == "pkcs11:token=work"
    (line,) = caplog.messages
    assert line == f"{path}: stores.work.uri has the attribute x-acme, which isn't known: ignored"
    assert store == config.load(write(tmp_path, STORE)).stores["work"]


@pytest.mark.parametrize(
    ("tokens", "apart"),
    [
        ((("a", "1", "m", "x"), ("b", "1", "m", "x")), ("token",)),
        ((("a", "1", "m", "x"), ("a", "2", "m", "x")), ("serial",)),
        ((("a", "1", "m", "x"), ("b", "2", "m", "x")), ("serial",)),
        ((("a", "1", "m", "x"), ("a", "1", "m", "y")), ("model",)),
        ((("a", "1", "m", "x"), ("a", "2", "m", "x"), ("b", "2", "m", "x")), ("serial", "token")),
        ((("a", "1", "m", "x"), ("a", "1", "m", "x")), ()),
        ((("a", "1", "m", "x"), ("b", "2", "m", "x"), ("b", "2", "m", "x")), ()),
        ((("a\0\x93", "", "m", "x"), ("a\ufffd", "", "m", "x")), ()),
    ],
)
def test_pkcs11_tokens_are_told_apart_by_the_fewest_attributes_that_can(
    tokens: tuple[tuple[str, str, str, str], ...], apart: tuple[str, ...]
) -> None:
    found = [
        config.uri_of(label=label, serial=serial, manufacturer=manufacturer, model=model)
        for label, serial, manufacturer, model in tokens
    ]
    assert config.telling_apart(found) == apart


@pytest.mark.parametrize("begins", [b"\xef\xbb\xbf", b""])
def test_a_byte_order_mark_is_no_part_of_the_configuration(tmp_path: Path, begins: bytes) -> None:
    path = write(tmp_path, begins + STORE.encode())
    assert config.load(path).default_store == "work"


def test_a_missing_configuration_names_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="dpop-agent init"):
        config.load(str(tmp_path / "none.toml"))


def test_a_configuration_is_found_where_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPOP_AGENT_CONFIG", write(tmp_path, STORE))
    assert config.load().default_store == "work"


def test_the_number_of_connections_is_read_where_it_is_said(tmp_path: Path) -> None:
    assert config.load(write(tmp_path, STORE)).max_connections is None
    text = f"[agent]\nmax_connections = 6000\n{STORE}"
    assert config.load(write(tmp_path, text)).max_connections == 6000


def test_what_asks_for_consent_is_pinentry_or_a_program_by_its_full_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    assert config.load(write(tmp_path, STORE)).confirm_command == ()
    for words, command in (
        (["/usr/bin/kdialog", "--yesno"], ("/usr/bin/kdialog", "--yesno")),
        (["~/bin/ask"], ("/home/alice/bin/ask",)),
    ):
        path = write(tmp_path, f"[agent]\nconfirm_command = {json.dumps(words)}\n{STORE}")
        assert config.load(path).confirm_command == command


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ('"/usr/bin/kdialog"', r"agent\.confirm_command has to be a list, not text"),
        ("[]", r"agent\.confirm_command is empty"),
        ('["kdialog"]', r"agent\.confirm_command\[0\] isn't a full path"),
        ("[1]", r"agent\.confirm_command has to be text, not a number"),
        ('["/bin/a", "b\\u0000"]', r"agent\.confirm_command has a zero byte"),
    ],
)
def test_what_cant_ask_for_consent_is_refused(tmp_path: Path, value: str, says: str) -> None:
    path = write(tmp_path, f"[agent]\nconfirm_command = {value}\n{STORE}")
    with pytest.raises(ConfigurationError, match=says) as refused:
        config.load(path)
    assert refused.value.hint


@pytest.mark.parametrize(
    ("name", "usual", "values", "not_values"),
    [
        ("max_socket_connections", 128, ["1", "5000"], ["0", "100001", "true", '"9"', "1.0"]),
        ("max_waiting", 8192, ["64", "1000000"], ["63", "1000001", "true", '"99"', "99.0"]),
        ("audit_mib", 32, ["1", "16384"], ["0", "16385", "true", '"32"', "0.5"]),
        ("audit", "on", ['"required"', '"off"'], ['"yes"', '""', "true", "false", "1"]),
    ],
)
def test_limits_and_the_audit_have_a_usual_value_and_others_that_make_sense(
    tmp_path: Path, name: str, usual: object, values: list[str], not_values: list[str]
) -> None:
    assert getattr(config.load(write(tmp_path, STORE)), name) == usual
    for value in values:
        found = config.load(write(tmp_path, f"[agent]\n{name} = {value}\n{STORE}"))
        assert getattr(found, name) == json.loads(value)
    for value in not_values:
        path = write(tmp_path, f"[agent]\n{name} = {value}\n{STORE}")
        with pytest.raises(ConfigurationError, match=rf"agent\.{name} (is|has to be)") as refused:
            config.load(path)
        assert refused.value.hint


@pytest.mark.parametrize("name", ["lock_after", "release_after"])
def test_stores_are_left_alone_unless_the_configuration_says_after_how_long_not(
    tmp_path: Path, name: str
) -> None:
    found = config.load(write(tmp_path, STORE))
    assert (found.lock_after_s, found.release_after_s) == (None, None)
    found = config.load(write(tmp_path, f'[agent]\n{name} = "15m"\n{STORE}'))
    assert [getattr(found, idle) for idle in config.IDLE if getattr(found, idle)] == [900]
    assert getattr(found, f"{name}_s") == 900


@pytest.mark.parametrize("name", ["lock_after", "release_after"])
@pytest.mark.parametrize("value", ["900", "true", '"900"', '"0s"', '"never"', '""', '"11000000d"'])
def test_what_is_no_time_without_use_is_refused_by_its_name(
    tmp_path: Path, name: str, value: str
) -> None:
    path = write(tmp_path, f"[agent]\n{name} = {value}\n{STORE}")
    with pytest.raises(ConfigurationError, match=rf"agent\.{name}(:| has to be text)") as caught:
        config.load(path)
    assert caught.value.hint


@pytest.mark.parametrize("value", ["0", "-1", "100001", "true", '"512"', "512.0", "[512]"])
def test_a_number_of_connections_that_is_none_is_refused(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, f"[agent]\nmax_connections = {value}\n{STORE}")
    with pytest.raises(ConfigurationError, match=r"agent\.max_connections (is|has to be)"):
        config.load(path)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o660])
def test_a_configuration_that_others_can_change_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path, STORE, mode)
    with pytest.raises(ConfigurationError, match="others can change it"):
        config.load(path)


def test_a_configuration_that_others_can_read_is_fine(tmp_path: Path) -> None:
    assert config.load(write(tmp_path, STORE, 0o644)).default_store == "work"


def test_a_configuration_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, STORE)
    if os.getuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ConfigurationError, match="belongs to uid"):
        config.load(path)


def test_what_is_not_a_file_is_refused_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    for path in (tmp_path, fifo):
        with pytest.raises(ConfigurationError, match=r"isn't a file|can't be read"):
            config.load(str(path))


def test_a_pkcs11_token_has_one_signer_unless_the_configuration_says_more(tmp_path: Path) -> None:
    assert config.load(write(tmp_path, STORE)).stores["work"].signers == 1
    for many in (1, 4, 16):
        found = config.load(write(tmp_path, f"{STORE}signers = {many}\n"))
        assert found.stores["work"].signers == many


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("0", "stores.work.signers is 0; use a number from 1 to 16"),
        ("-1", "use a number from 1 to 16"),
        ("17", "use a number from 1 to 16"),
        ("1000", "use a number from 1 to 16"),
        ("1.5", "has to be a number"),
        ('"4"', "has to be a number, not text"),
        ("true", "has to be a number, not true or false"),
        ("[4]", "has to be a number, not a list"),
    ],
)
def test_signers_that_are_no_number_of_them_are_refused(
    tmp_path: Path, value: str, said: str
) -> None:
    assert said in str(refusal(tmp_path, f"{STORE}signers = {value}\n"))


def test_a_keychain_with_signers_is_refused_with_the_reason(tmp_path: Path) -> None:
    error = refusal(tmp_path, '[stores.k]\ntype = "keychain"\nsigners = 4\n')
    assert "stores.k.signers is for a PKCS#11 token that makes several signatures" in str(error)


def test_several_signers_are_refused_where_none_can_hand_on_a_pin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpop_agent.forking.is_possible", lambda: False)
    assert "which only Linux has" in str(refusal(tmp_path, f"{STORE}signers = 2\n"))
    assert config.load(write(tmp_path, f"{STORE}signers = 1\n")).stores["work"].signers == 1

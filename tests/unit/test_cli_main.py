"""The command line as a whole: exit statuses, and never a traceback."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dpop_agent import __version__, verify
from dpop_agent.agent import keys
from dpop_agent.cli import arguments, output
from dpop_agent.cli import main as cli
from dpop_agent.cli.arguments import Parser

JKT = "-" * 42 + "A"
SECRET = "Kz~8mXK1EalYznwH-LC"
VERBS = [
    ["init"],
    ["serve"],
    ["key"],
    ["key", "create"],
    ["key", "list"],
    ["key", "show"],
    ["key", "set"],
    ["key", "rotate"],
    ["key", "activate"],
    ["key", "suspend"],
    ["key", "resume"],
    ["key", "compromise"],
    ["key", "destroy"],
    ["key", "adopt"],
    ["ledger"],
    ["ledger", "export"],
    ["ledger", "check"],
    ["proof"],
    ["verify"],
    ["status"],
    ["reload"],
    ["lock"],
    ["unlock"],
    ["config"],
    ["config", "show"],
    ["config", "check"],
    ["config", "edit"],
    ["config", "set"],
    ["config", "unset"],
    ["config", "path"],
    ["env"],
]


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_verb(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    for verb in ("init", "serve", "key", "proof", "verify", "status", "config", "env"):
        assert f"\n  {verb} " in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("words", VERBS)
def test_every_verb_has_help(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert cli.main([*words, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: dpop-agent {' '.join(words)} ")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dpop-agent {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["stauts"],
        ["--verbose"],
        ["key"],
        ["key", "make"],
        ["key", "create"],
        ["key", "create", "a"],
        ["key", "create", "a", "--any-origin", "--origin", "https://a.example"],
        ["key", "create", "Default", "--any-origin"],
        ["key", "create", "a", "--any-origin", "--alg", "HS256"],
        ["key", "create", "a", "--origin", "https://a.example/path"],
        ["key", "create", "a", "--orig", "https://a.example"],
        ["key", "destroy", "default@0"],
        ["key", "destroy", "default@"],
        ["key", "destroy", "default@two"],
        ["key", "destroy", "default@99999999999999"],
        ["key", "destroy", "default@²"],
        ["key", "set", "default"],
        ["key", "set", "default", "--drain"],
        ["key", "set", "default", "--rotate-every", "0d"],
        ["key", "set", "default", "--drain", "never"],
        ["key", "rotate"],
        ["key", "rotate", "default@1"],
        ["key", "activate", "default@0"],
        ["key", "suspend", "Default"],
        ["key", "forget"],
        ["key", "forget", "default@1"],
        ["key", "resume", "default@1", "default@2"],
        ["key", "compromise"],
        ["key", "adopt", "default"],
        ["key", "adopt", "default@1", "--ref", "00"],
        ["key", "adopt", "a", "--ref", "00", "--origin", "https://a.example", "--any-origin"],
        ["key", "set", "default", "--any-origin", "--origin", "https://a.example"],
        ["key", "set", "default", "--allow-sign-proof", "--no-allow-sign-proof"],
        ["proof"],
        ["proof", "GET"],
        ["proof", "G ET", "https://a.example"],
        ["proof", "", "https://a.example"],
        ["proof", "GET", "https://a.example", "--jkt"],
        ["proof", "GET", "https://a.example", "--jkt", "short"],
        ["proof", "GET", "https://a.example", "--jkt", JKT, "--key", "a"],
        ["proof", "GET", "https://a.example", "--ath", "short"],
        ["proof", "GET", "https://a.example", "--nonce", 'a"b'],
        ["proof", "GET", "https://a.example", "--nonce", "a", "--no-nonce"],
        ["proof", "GET", "https://a.example", "--header", "--json"],
        ["proof", "GET", "https://a.example", "one more"],
        ["verify", "--htm", "GET"],
        ["verify", "--htm", "GET", "--htu", "https://a.example", "--max-age", "-1"],
        ["status", "now"],
        ["config"],
        ["config", "set"],
        ["config", "set", "agent.lock_after"],
        ["config", "unset"],
        ["config", "edit", "this"],
        ["env", "--shell"],
        ["serve", "--port", "80"],
    ],
)
def test_a_command_that_is_not_one_ends_with_2(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: dpop-agent" in err or err.startswith("dpop-agent: there is no such")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "words",
    [
        ["proof", "GET", "https://a.example", "--access-token", SECRET],
        ["proof", "GET", "https://a.example", f"--access-token={SECRET}"],
        ["proof", "GET", "https://a.example", SECRET],
        ["proof", "GET", "https://a.example", f"--ath={SECRET}"],
        ["proof", "GET", "https://a.example", f"-t{SECRET}"],
        ["verify", "--htm", "GET", "--htu", "https://a.example", SECRET],
        [SECRET],
    ],
)
def test_an_argument_that_is_not_understood_is_not_told(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert err
    assert SECRET not in out + err


@pytest.mark.parametrize(
    "words",
    [
        ["key", "create", "default", "--any-origin"],
        ["key", "list"],
        ["key", "show", "default"],
        ["key", "destroy", "default@1", "--yes"],
        ["key", "forget", "default"],
        ["key", "set", "default", "--any-origin"],
        ["key", "rotate", "default"],
        ["key", "activate", "default"],
        ["key", "suspend", "default@1"],
        ["key", "resume", "default"],
        ["key", "compromise", "default", "--yes"],
        ["key", "adopt", "default", "--ref", "00"],
        ["proof", "GET", "https://a.example"],
        ["status"],
    ],
)
def test_no_agent_there_ends_with_3(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
) -> None:
    monkeypatch.setenv("DPOP_AGENT_SOCK", str(tmp_path / "agent.sock"))
    assert cli.main(words) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "dpop-agent serve" in err
    assert cli.main([*words, "--json"]) == 3
    assert json.loads(capsys.readouterr().err)["error"]["data"]["type"] == "agent_unavailable"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["proof", "GET", "https://a.example", "--access-token-file", "{tmp}/none"], "can't be"),
        (["proof", "GET", "https://a.example", "--access-token-file", "{tmp}"], "can't be read"),
        (["proof", "GET", "https://a.example", "--access-token-file", "{tmp}/two"], "nothing else"),
        (
            ["proof", "GET", "https://a.example", "--access-token-file", "{tmp}/empty"],
            "nothing else",
        ),
        (
            ["proof", "GET", "https://a.example", "--access-token-file", "{tmp}/json"],
            "leave out all else, such as JSON",
        ),
        (["proof", "GET", "https://a.example", "--access-token-file", "{tmp}/long"], "more than"),
        (["proof", "GET", "https://a.example", "--access-token-file", "a\0b"], "zero byte"),
        (["config", "show"], "dpop-agent init"),
        (["config", "check"], "dpop-agent init"),
        (["serve"], "dpop-agent init"),
        (["init", "--module", "{tmp}/none.so"], "no PKCS#11 module"),
        (["init", "--module", "{tmp}/none.so", "--token", "pkcs11:slot-id=1"], "slot numbers"),
    ],
)
def test_what_is_refused_ends_with_1_and_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.setenv("DPOP_AGENT_CONFIG", str(tmp_path / "none.toml"))
    (tmp_path / "two").write_text(f"Bearer {SECRET}\n")
    (tmp_path / "json").write_text(f'{{"access_token":"{SECRET}"}}')
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "long").write_text("a" * 100_000)
    words = [word.replace("{tmp}", str(tmp_path)) for word in words]
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dpop-agent: ")
    assert err.count("\n") == 1
    assert said in err
    assert SECRET not in err


@pytest.mark.parametrize("verb", ["proof", "curl"])
def test_who_leaves_out_the_method_is_told_that_it_comes_before_the_url(
    capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert cli.main([verb, "https://a.example"]) == 2
    assert "an HTTP method, such as GET, comes before the URL" in capsys.readouterr().err


def test_a_defect_is_told_in_one_line_without_the_values_in_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise RuntimeError(SECRET)

    monkeypatch.setattr("dpop_agent.paths.agent_socket", fail)
    assert cli.main(["env"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "RuntimeError (test_cli_main.py, line " in err
    assert err.count("\n") == 1
    assert SECRET not in err


def test_an_interrupt_ends_with_130_and_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("dpop_agent.paths.agent_socket", interrupted)
    assert cli.main(["env"]) == 130
    assert capsys.readouterr() == ("", "")


def parser_of(verb: list[str]) -> Parser:
    found = cli._parser(verb[0])
    for below in verb[1:]:
        assert found.verbs is not None
        found = found.verbs.choices[below]
    return found


def optional(parser: Parser) -> list[argparse.Action]:
    """What takes a value and may be left out."""
    return [
        action
        for action in parser._actions
        if (not action.required and action.nargs != 0) or action.nargs == "?"
    ]


GROUPS = [["key"], ["ledger"], ["config"]]
# One of --origin and --any-origin has to be given for a new key; of one that is there it stays.
# One key is adopted by its name and --ref or --label, many by --all.
WITHOUT_DEFAULT = ("--origin", "--ref", "--label", "key")


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in GROUPS])
def test_help_says_what_holds_where_something_is_not_given(verb: list[str]) -> None:
    for action in optional(parser_of(verb)):
        if not {*action.option_strings, action.dest} & set(WITHOUT_DEFAULT):
            assert "by default " in (action.help or ""), action.option_strings or action.dest


def test_the_defaults_in_help_are_those_that_hold() -> None:
    says = {
        action.option_strings[0]: action.help or ""
        for verb in (["key", "create"], ["verify"], ["serve"])
        for action in optional(parser_of(verb))
    }
    assert f"by default {output.duration(keys.DRAIN_S)}" in says["--drain"]
    assert f"by default {output.duration(keys.MAX_DRAIN_S)}" in says["--max-drain"]
    assert keys.Key("default", "soft", "ES256", "now").rotate_every_s is None
    assert "by default never" in says["--rotate-every"]
    assert f"by default {verify.MAX_AGE_S}" in says["--max-age"]
    assert "else never" in says["--lock-after"]


@pytest.mark.parametrize("verb", VERBS)
def test_what_help_gives_as_examples_is_taken(verb: list[str]) -> None:
    for action in parser_of(verb)._actions:
        found = re.search(r"such as (.+?)(?:: |; |$)", action.help or "")
        for example in re.split(", | or ", found[1]) if found else ():
            assert callable(action.type), action.dest
            action.type(example)


MISSPELT = [
    (["stauts"], "status"),
    (["Status"], "status"),
    (["version"], "--version"),
    (["--verison"], "--version"),
    (["--hlep"], "--help"),
    (["rotate", "default"], "key rotate"),
    (["creat", "default"], "key create"),
    (["show"], "key show, socket show or config show"),
    (["key", "lst"], "list"),
    (["key", "Create", "default"], "create"),
    (["config", "chekc"], "check"),
    (["status", "--jsno"], "--json"),
    (["status", "-json"], "--json"),
    (["serve", "--lock-afer", "15m"], "--lock-after"),
    (["serve", "--verbos"], "--verbose"),
    (["verify", "--htm", "GET", "--hut", "https://a.example"], "--htu"),  # which is missing too
    (["proof", "GET", "https://a.example", "--access-token", SECRET], "--access-token-file"),
    (["proof", "GET", "https://a.example", f"--nonse={SECRET}"], "--nonce"),
    (["proof", "GET", "https://a.example", "--jkt", JKT, "--headr"], "--header"),
    (["key", "set", "default", "--any-orign"], "--any-origin"),
    (["key", "destroy", "default@1", "--yse"], "--yes"),
    (["config", "show", "--jso"], "--json"),
    (["init", "--dryrun"], "--dry-run"),
]


@pytest.mark.parametrize(("words", "meant"), MISSPELT)
def test_a_verb_or_an_option_that_is_misspelt_is_told_what_was_meant(
    capsys: pytest.CaptureFixture[str], words: list[str], meant: str
) -> None:
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(f"; did you mean {meant}?\n")
    assert SECRET not in err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_and_every_option_is_found_though_a_letter_is_missing(
    capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    *group, last = verb
    assert cli.main([*group, f"{last[:-2]}{last[-1]}x" if len(last) < 4 else last[:-1]]) == 2
    assert f" {last}" in capsys.readouterr().err.rpartition("did you mean")[2]
    assert cli.main([*verb, "--help"]) == 0
    usage = capsys.readouterr().out
    for option in re.findall(r"--[a-z-]{4,}", usage.partition("\n\n")[0]):
        assert cli.main([*verb, option[:-1]]) == 2
        assert f"; did you mean {option}?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["sh", "-c", "true"], ["ls", "--color"]])
def test_the_options_of_a_command_without_dashes_before_it_are_told_to_need_them(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert cli.main(["exec", "--key", "shop", *words]) == 2
    assert "if it is the command's, put -- before the command" in capsys.readouterr().err


def run(words: list[str], *, stdout: int) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "dpop_agent", *words],
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
        timeout=30,
    )


def test_a_reader_that_went_away_is_no_news() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run(["--help"], stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("words", ["--version", "key --help", "config path"])
@pytest.mark.parametrize("closed", [">&-", "<&- >&-"])
def test_closed_standard_output_is_one_line_and_a_failure(words: str, closed: str) -> None:
    run = subprocess.run(
        ["sh", "-c", f'exec "$0" -m dpop_agent {words} {closed}', sys.executable],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (run.returncode, run.stderr) == (1, "dpop-agent: standard output is closed\n")


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_what_needs_no_closed_descriptor_works_without_it(closed: str) -> None:
    run = subprocess.run(
        ["sh", "-c", f'exec "$0" -m dpop_agent config path {closed}', sys.executable],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (run.returncode, run.stdout.count("\n"), run.stderr) == (0, 1, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_output_that_cannot_be_written_is_a_failure() -> None:
    with open("/dev/full", "wb") as full:
        done = run(["env"], stdout=full.fileno())
    assert done.returncode == 1
    assert done.stderr.startswith(b"dpop-agent: ")
    assert done.stderr.count(b"\n") == 1


def test_env_prints_a_line_that_a_shell_takes_as_it_is_meant(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPOP_AGENT_SOCK", "/run/it's $HOME/agent.sock")
    assert cli.main(["env"]) == 0
    script = capsys.readouterr().out + 'printf %s "$DPOP_AGENT_SOCK"'
    shown = subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout
    assert shown == b"/run/it's $HOME/agent.sock"
    assert cli.main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"DPOP_AGENT_SOCK": "/run/it's $HOME/agent.sock"}


def test_proof_loads_nothing_that_it_does_not_need() -> None:
    script = (
        "import sys\n"
        "from dpop_agent.cli.main import main\n"
        "status = main(['proof', 'GET', 'https://a.example'])\n"
        "heavy = ['asyncio', 'pkcs11', 'keyring', 'cryptography', 'typing', 'dataclasses',\n"
        "         'pathlib', 'platformdirs', 'hashlib', 'locale', 'shutil',\n"
        "         'dpop_agent.cli.keys']\n"
        "print(status, *(m for m in heavy if m in sys.modules))\n"
    )
    before = "import sys\nprint(0, *sys.modules)\n"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=30
        ).stdout.split()
        for text in (script, before)
    ]
    assert outputs[0][0] == "3"
    assert set(outputs[0][1:]) <= set(outputs[1][1:])


def test_the_agent_s_and_a_pkcs11_token_s_texts_do_not_steer_the_terminal() -> None:
    assert output.plain("a\x1b[31mb\nc\x9bd\u202ee") == "a?[31mb?c?d?e"
    assert output.table(("A", "B"), [("x\x1b", None)]) == ["A   B", "x?  -"]


def test_a_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    head, rows = ("KEY", "STORE", "JKT"), [("default@1", "soft", JKT), ("b@12", "soft", JKT)]
    monkeypatch.setattr(output, "width", lambda: None)
    assert output.table(head, rows)[1] == f"default@1  soft   {JKT}"
    for columns in (60, 40, 30, 22):
        monkeypatch.setattr(output, "width", lambda: columns)  # noqa: B023  (read at once)
        lines = output.table(head, rows, drop=("STORE",))
        assert max(map(len, lines)) <= columns
        assert ("STORE" in lines[0]) == (columns >= 30)
        assert lines[1].startswith("default@1  ")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172800, "2 d"), (None, None)],
)
def test_a_duration_is_told_in_its_largest_unit(seconds: int | None, expected: str | None) -> None:
    assert output.span(seconds) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0s", 0),
        ("90s", 90),
        ("15m", 900),
        ("12h", 43_200),
        ("30d", 2_592_000),
        ("4w", 2_419_200),
        ("007d", 604_800),
        ("3660d", 316_224_000),
    ],
)
def test_a_duration_is_a_number_and_its_unit(text: str, expected: int) -> None:
    assert arguments.duration(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "d",
        "7",
        "7 d",
        "7D",
        "-7d",
        "+7d",
        "1.5d",
        "7d12h",
        "٣d",
        "²d",
        "1y",
        "3661d",
        f"{10**98}d",
    ],
)
def test_what_is_no_duration_is_a_usage_error_that_says_what_one_is(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    for option in ("--drain", "--max-drain", "--rotate-every"):
        assert cli.main(["key", "set", "default", f"{option}={text}"]) == 2
        err = capsys.readouterr().err
        assert f"argument {option}: a duration " in err
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--path", "api"], "argument --path: a path begins with a slash; write it as in /api"),
        (["--path", "/api/"], "argument --path: a path ends with no slash"),
        (["--path", "/a/../b"], "argument --path: the path could be read in another way"),
        (["--path", "/a/*"], "argument --path: a path has no wildcards"),
        (["--path", "/a?b"], "argument --path: a path has no query"),
        (["--path", "/a", "--any-path"], "not allowed with"),
        (["--method", "GET POST"], "argument --method: it has to be an HTTP method"),
        (["--method", ""], "argument --method: it has to be an HTTP method"),
        (["--method", "GET", "--any-method"], "not allowed with"),
        (["--require-ath", "--no-require-ath"], "not allowed with"),
        *((["--rate", text], "a rate is a number of proofs a minute") for text in ("60", "0/min")),
        *(([f"--rate={text}"], "60/min") for text in ("-1/min", "1/h", "\u0663/min", "1.5/min")),
        (["--rate", "60/min", "--any-rate"], "not allowed with"),
        (["--rate", "60/min", "--burst", "0"], "argument --burst: it has to be a number from 1"),
        (["--burst", "5"], "--burst goes with --rate"),
        (["--any-rate", "--burst", "5"], "--burst goes with --rate"),
        *((["--confirm", text], "it has to be never, each, or the time") for text in ("0s", "yes")),
        (["--any-orgin"], "did you mean --any-origin?"),
        (["--metod", "GET"], "did you mean --method?"),
        ([], "nothing to set: give --origin, --any-origin, --method"),
    ],
)
def test_a_rule_that_is_none_is_one_line_that_says_what_to_write(
    capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert cli.main(["key", "set", "default", *words]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err


@pytest.mark.parametrize("text", ["", "0", "0g", "0x00", "00 00", "ab:cd", "é0", "00" * 65])
def test_what_is_no_object_s_id_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert cli.main(["key", "adopt", "default", f"--ref={text}"]) == 2
    assert "the object's id" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0s"), (90, "90s"), (900, "15m"), (86_400, "1d"), (5400, "90m"), (None, "-")],
)
def test_a_setting_is_shown_as_it_is_typed(seconds: int | None, expected: str) -> None:
    assert output.duration(seconds) == expected


@pytest.mark.parametrize("option", ["--name", "--pin", "--any", "--out", "--store"])
def test_options_that_have_little_more_than_dashes_in_common_arent_what_was_meant(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["key", "rotate", "shop", option, "x"]) == 2
    err = capsys.readouterr().err
    assert f"unknown: {option}" in err
    assert "did you mean" not in err


@pytest.mark.parametrize(("typed", "meant"), [("--drian", "--drain"), ("--jsn", "--json")])
def test_a_misspelt_option_is_told_the_right_one(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["key", "rotate", "shop", typed]) == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err

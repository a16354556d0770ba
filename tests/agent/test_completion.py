"""TAB in real shells, at a terminal, as an ordinary user has it."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dpop_agent.agent import lock
from dpop_agent.cli import completing
from tests.agent.places import until
from tests.emulators import file_of, need
from tests.newcomer import BUILD, Newcomer, newcomer, wheels
from tests.processes import ROOT, end
from tests.shells import LOADED, SHELLS, TypedShell
from tests.unit.fake_agent import FakeAgent

PIN, SO_PIN = "73195", "86420"

KEYS = (
    "key create default --any-origin",
    "key rotate default",
    "key rotate default --stage",
    "key create shop --any-origin --store soft",
    "key suspend shop@1",
    "key create gone --any-origin",
    "key destroy gone@1 --yes",
    "socket add coder --key default",
    "config set agent.audit_mib 64",
)
"""What is there: default@1 draining, @2 active, @3 staged; shop@1 suspended; gone@1 destroyed."""


class Setting(NamedTuple):
    """A user who has dpop-agent in a virtual environment, an agent that serves, and its pid."""

    user: Newcomer
    env: dict[str, str]
    agent: int

    @property
    def runtime(self) -> Path:
        return Path(self.env["XDG_RUNTIME_DIR"]) / "dpop-agent"

    def run(self, *words: str) -> str:
        done = subprocess.run(
            [*self.user._become, *words],
            env=self.env,
            cwd=self.user.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout


@pytest.fixture(scope="module")
def setting() -> Iterator[Setting]:
    need("tmux")
    with tempfile.TemporaryDirectory(prefix="wheels-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        wheels(folder, "dpop-agent", *BUILD)
        with newcomer(folder) as user, user.terminal() as terminal:
            venv = user.home / "venv"
            conf = user.home / "softhsm2.conf"
            for line in (
                f"python3 -m venv {venv}",
                f"{venv}/bin/pip install -q .",
                f"install -d -m 700 {user.home}/tokens",
                f"printf 'directories.tokendir = %s\\n' {user.home}/tokens > {conf}",
                f"export SOFTHSM2_CONF={conf}",
                f"softhsm2-util --init-token --free --label work --pin {PIN} --so-pin {SO_PIN}",
                f"(umask 77; printf {PIN} > {user.home}/pin)",
                f"{venv}/bin/dpop-agent init --pin-file {user.home}/pin",
            ):
                terminal.run(line, asked={}, serving=None)
            env = {**user._env, "PATH": f"{venv}/bin:{user._env['PATH']}"}
            agent = subprocess.Popen(
                [*user._become, f"{venv}/bin/dpop-agent", "serve"],
                env={**env, "SOFTHSM2_CONF": str(conf)},
                stdin=subprocess.DEVNULL,
            )
            try:
                found = Setting(user, env, agent.pid)
                until((found.runtime / "admin.sock").exists)
                for line in KEYS:
                    found.run("dpop-agent", *line.split())
                yield found
            finally:
                end(agent)


@pytest.fixture(scope="module", params=SHELLS)
def shell(setting: Setting, request: pytest.FixtureRequest) -> Iterator[TypedShell]:
    if request.param != "bash":
        need(request.param)
    with TypedShell(setting.user, request.param, setting.env) as found:
        yield found


OFFERED = {
    "dpop-agent ke": {"key"},
    "dpop-agent key re": {"resume"},
    "dpop-agent key set default --tou": {"--touch"},
    "dpop-agent key set default --touch ": {"yes", "no", "auto"},
    "dpop-agent key create new --alg E": {"ES256", "ES384", "ES512", "EdDSA", "Ed25519"},
    "dpop-agent completion ": {"bash", "zsh", "fish"},
    "dpop-agent proof P": {"POST", "PUT", "PATCH"},
    # Key names and generations, of those that the verb takes.
    "dpop-agent key rotate ": {"default", "shop"},
    "dpop-agent key list ": {"default", "shop", "gone"},
    "dpop-agent key forget ": {"gone"},
    "dpop-agent key activate ": {"default@1", "default@3"},
    "dpop-agent key activate default@": {"default@1", "default@3"},
    "dpop-agent key suspend default@": {"default@1", "default@2", "default@3"},
    "dpop-agent key resume ": {"shop@1"},
    "dpop-agent key show default@": {"default@1", "default@2", "default@3"},
    "dpop-agent key show gone@": {"gone@1"},
    "dpop-agent key show ": {"default", "shop", "gone"},
    "dpop-agent key compromise ": {"default", "shop"},
    "dpop-agent proof GET https://api.example.com:8443/v1/me --key default@": {
        "default@1",
        "default@2",
    },
    "dpop-agent proof GET https://api.example.com:8443/v1/me --key=default@": {
        "--key=default@1",
        "--key=default@2",
    },
    "dpop-agent key set default --touch=n": {"--touch=no"},
    "dpop-agent socket add new --key ": {"default", "shop"},
    "dpop-agent log --key s": {"shop"},
    # Stores, sockets, settings.
    "dpop-agent key create new --store ": {"soft"},
    "dpop-agent unlock ": {"soft"},
    "dpop-agent socket remove ": {"coder"},
    "dpop-agent exec --socket ": {"coder"},
    "dpop-agent log a": {"admin"},
    "dpop-agent config set agent.l": {"agent.lock_after"},
    "dpop-agent config set stores.soft.s": {"stores.soft.signers"},
    "dpop-agent config unset agent.": {"agent.default_store", "agent.audit_mib"},
    # Nothing beyond.
    "dpop-agent key create ": set[str](),
    "dpop-agent socket add ": set[str](),
    "dpop-agent key rotate default ": set[str](),
    "dpop-agent key nothing ": set[str](),
    "dpop-agent nothing ": set[str](),
    "dpop-agent proof GET -- --": set[str](),
    "dpop-agent status ": set[str](),
}


@pytest.mark.parametrize("line", OFFERED)
def test_tab_offers_what_there_is_at_this_place_and_nothing_beyond(
    shell: TypedShell, line: str
) -> None:
    expected = OFFERED[line]
    if len(expected) == 1:
        (word,) = expected
        assert shell.completed(line) == f"{line[: line.rindex(' ')]} {word} "
    else:
        offered = shell.offered(line)
        if shell.shell == "bash" and line.endswith("@"):  # it shows what comes from there on
            expected = {word[word.index("@") :] for word in expected}
        assert offered == expected


def test_the_shell_completes_files_where_a_file_is_wanted(
    setting: Setting, shell: TypedShell
) -> None:
    (setting.user.home / "access token.txt").write_text("secret")
    for line, completed in {
        "dpop-agent ledger check acc": r"dpop-agent ledger check access\ token.txt ",
        "dpop-agent proof GET https://api.example.com/ --access-token-file acc": (
            "dpop-agent proof GET https://api.example.com/ --access-token-file "
            r"access\ token.txt "
        ),
        "dpop-agent proof GET https://api.example.com/ --access-token-file=acc": (
            "dpop-agent proof GET https://api.example.com/ --access-token-file="
            r"access\ token.txt "
        ),
    }.items():
        assert shell.completed(line) == completed


@pytest.mark.parametrize("verb", ["exec --key shop", "lease shop --wait 1m"])
def test_the_shell_completes_a_command_after_two_dashes(shell: TypedShell, verb: str) -> None:
    begins = f"dpop-agent {verb} -- "
    assert shell.completed(f"{begins}setpri") == f"{begins}setpriv "
    assert shell.completed(f"{begins}setpriv dpop-ag").startswith(f"{begins}setpriv dpop-agent")


@pytest.mark.parametrize(
    "before",
    [
        "dpop-agent proof GET https://api.example.com/ | ",
        "cd / && ",
        "TZ=UTC ",
    ],
)
def test_what_stands_before_the_command_is_in_nobodys_way(shell: TypedShell, before: str) -> None:
    assert shell.completed(f"{before}dpop-agent key ro") == f"{before}dpop-agent key rotate "


def test_what_fish_makes_of_the_man_page_comes_not_beside_it(setting: Setting) -> None:
    need("fish")
    made = setting.user.home / ".local/share/fish/generated_completions/dpop-agent.fish"
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text("complete -c dpop-agent -l of-another-verb\n")
    with TypedShell(setting.user, "fish", setting.env) as shell:
        assert shell.offered("dpop-agent key rotate --o") == set()
        assert shell.offered("dpop-agent key rotate --st") == {"--stage"}


def test_a_word_whose_quote_is_open_is_completed(shell: TypedShell) -> None:
    begins = "dpop-agent key resume "
    assert shell.completed(f"{begins}'sh").startswith(f"{begins}'shop@1'")


@pytest.mark.parametrize("program", ["~/venv/bin/dpop-agent", "venv/bin/dpop-agent"])
def test_a_program_that_is_named_by_its_path_completes_too(shell: TypedShell, program: str) -> None:
    assert shell.completed(f"{program} key rotate sh") == f"{program} key rotate shop "


NOTHING_LIVE = ("key rotate ", "key activate ", "key show default@", "unlock ", "socket show ")


def offers_nothing_live(shell: TypedShell) -> None:
    for words in NOTHING_LIVE:
        line = f"dpop-agent {words}"
        assert shell.offered(line) == set()
        if shell.shell != "fish":
            assert shell.completed(line) == line, "and nothing is said"
    assert shell.offered("dpop-agent key rotate --st") in ({"--stage"}, set())
    assert shell.completed("dpop-agent key rotate --st") == "dpop-agent key rotate --stage "


def test_an_agent_that_hangs_gives_no_words_and_no_error(
    setting: Setting, shell: TypedShell
) -> None:
    os.kill(setting.agent, signal.SIGSTOP)
    try:
        offers_nothing_live(shell)
    finally:
        os.kill(setting.agent, signal.SIGCONT)
    assert shell.completed("dpop-agent key rotate sh") == "dpop-agent key rotate shop "


@contextmanager
def another(setting: Setting, shell: str, **env: str) -> Iterator[TypedShell]:
    if shell != "bash":
        need(shell)
    with tempfile.TemporaryDirectory(dir=setting.env["XDG_RUNTIME_DIR"]) as folder:
        os.chown(folder, *owner(setting))
        found = TypedShell(
            setting.user, shell, {**setting.env, "DPOP_AGENT_SOCK": f"{folder}/agent.sock", **env}
        )
        with found:
            yield found


def owner(setting: Setting) -> tuple[int, int]:
    info = setting.user.home.stat()
    return info.st_uid, info.st_gid


@pytest.mark.parametrize("name", SHELLS)
def test_where_no_agent_is_there_are_no_words_and_no_error(setting: Setting, name: str) -> None:
    with another(setting, name) as shell:
        offers_nothing_live(shell)


@pytest.mark.parametrize("name", SHELLS)
def test_tab_starts_no_agent_where_systemd_would_at_a_connection(
    setting: Setting, name: str
) -> None:
    need("systemd")
    with another(setting, name) as shell:
        path = shell.env["DPOP_AGENT_SOCK"]
        admin = str(Path(path).with_name("admin.sock"))
        program = subprocess.run(
            ["sh", "-c", "command -v dpop-agent"],
            env=shell.env,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        listening = subprocess.Popen(
            [
                *(*setting.user._become, file_of("systemd"), f"--listen={path}"),
                *(f"--listen={admin}", "--fdname=agent:admin", program, "serve"),
            ],
            env=shell.env,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until(lambda: os.path.exists(admin))
            offers_nothing_live(shell)
            assert is_waiting(listening.pid)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                until(lambda: not is_waiting(listening.pid))
        finally:
            listening.kill()
            listening.wait()


def is_waiting(pid: int) -> bool:
    """Whether it is systemd's program still, and not the agent that the first connection starts."""
    return b"socket-activate" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_each_socket_gives_the_words_of_its_own_keys(setting: Setting) -> None:
    need("fish")
    for place, keys in (("mount", {"default", "shop"}), ("sockets/coder", {"default"})):
        path = str(setting.runtime / place / "agent.sock")
        with TypedShell(setting.user, "fish", {**setting.env, "DPOP_AGENT_SOCK": path}) as shell:
            assert shell.offered("dpop-agent key rotate ") == keys


def test_a_name_that_no_store_can_have_isnt_offered(setting: Setting) -> None:
    path = setting.user.home / "another.toml"
    path.write_text('[stores."$(touch here)"]\ntype = "pkcs11"\n[stores.good]\ntype = "pkcs11"\n')
    os.chown(path, *owner(setting))
    with TypedShell(setting.user, "bash", {**setting.env, "DPOP_AGENT_CONFIG": str(path)}) as shell:
        assert shell.completed("dpop-agent config unset stores.") == (
            "dpop-agent config unset stores.good.type "
        )


WORDS = (
    *("$(touch made)", "a;touch made", "`touch made`", "a b", "a\nb", "a\x1b[2J", "*", "~", "'"),
    "good",
)


def asked(line: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The program, asked how a line goes on as bash asks it."""
    program = "import sys; sys.argv[0] = 'dpop-agent'; from dpop_agent.cli import main; "
    told = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1"}
    told |= {"_ARGCOMPLETE_SHELL": "fish", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_DFS": "\t"}
    told["_ARGCOMPLETE_SUPPRESS_SPACE"] = "1"
    shell = ["sh", "-c", 'exec "$@" 8>&1', "sh"]
    return subprocess.run(
        [*shell, sys.executable, "-c", f"{program}main.program()", *words],
        env={**os.environ, **told, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_words_of_a_wrong_agent_that_are_no_names_arent_offered(tmp_path: Path) -> None:
    generation = {"generation": 1, "state": "active", "jkt": "j" * 43}
    key = {"store": "s\x1b[2J\n$(touch made)", "generations": [generation]}

    def listed(_: Any) -> dict[str, Any]:
        return {"keys": [{"key": word, **key} for word in WORDS]}

    with FakeAgent(tmp_path / "run") as wrong:
        wrong.script = [listed] * 2
        held = lock.take(f"{wrong.path}.lock", holder=lock.holder_of(wrong.path))
        try:
            env = {"DPOP_AGENT_SOCK": wrong.path}
            rotated = asked("dpop-agent key rotate ", **env)
            suspended = asked("dpop-agent key suspend good@", **env)
        finally:
            os.close(held)
    assert rotated.stdout == "good\tin s?[2J?$(touch made)"
    assert suspended.stdout == "good@1\tactive"


def test_what_a_shell_asks_by_changes_no_command_and_writes_no_file(tmp_path: Path) -> None:
    told = asked("dpop-agent ke", _ARGCOMPLETE_STDOUT_FILENAME=str(tmp_path / "made"))
    assert told.stdout.partition("\t")[0] == "key"
    assert not (tmp_path / "made").exists()
    assert asked("another program's ", "--version").stdout.startswith("dpop-agent ")


def test_a_commands_name_is_put_into_the_line_as_one_word_whatever_it_is(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("zz;touch made", "zz$(touch made)", "zz*", "zz-good"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    (tmp_path / "zz-here").touch()
    stub = tmp_path / "dpop-agent"
    stub.write_text(f"#!/bin/sh\nexit {completing.COMMAND}\n")
    stub.chmod(0o755)
    script = f"""
        . {shlex.quote(str(ROOT / "dpop_agent/cli/shell/dpop-agent.bash"))}
        COMP_WORDS=(dpop-agent lease shop -- zz) COMP_CWORD=4
        _dpop_agent {shlex.quote(str(stub))} zz -- 2>/dev/null
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={"PATH": f"{programs}:{os.environ['PATH']}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    words = {r"zz\;touch\ made", r"zz\$\(touch\ made\)", r"zz\*", "zz-good"}
    assert set(done.stdout.splitlines()) == words
    assert not (tmp_path / "made").exists()


def test_the_documents_and_help_say_how_each_shell_loads_its_completions(setting: Setting) -> None:
    told = setting.run("dpop-agent", "completion", "--help")
    for line in LOADED.values():
        assert line in told
        for part in line.split(" > "):
            assert part in (ROOT / "docs" / "shell.md").read_text()


def test_man_finds_the_page_of_a_virtual_environment_that_is_on_the_path(setting: Setting) -> None:
    need("man-db")
    page = setting.user.home / "venv" / "share" / "man" / "man1" / "dpop-agent.1"
    assert setting.run("man", "-w", "dpop-agent").strip() == str(page)
    assert "dpop-agent key activate" in setting.run("man", "-P", "cat", "dpop-agent")

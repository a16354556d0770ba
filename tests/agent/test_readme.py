"""The documents are what a newcomer can do: their commands run as they stand, in their order."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.agent.trails import FLUSH_S
from dpop_agent.cli import main as cli
from tests.documents import Block, commands, documents, parsed
from tests.emulators import need
from tests.newcomer import BUILD, Newcomer, Shell, newcomer, wheels
from tests.processes import ROOT, Agent
from tests.unit.fake_server import FakeServer, Reply, Seen

DOCUMENTS = ("README.md", *(name for name in documents() if name.startswith("docs/")))
DPOP_AGENT = f'dpop-agent() {{ "{sys.executable}" -m dpop_agent "$@"; }}'
START = (ROOT / "docs" / "getting-started.md").read_text("utf-8")
PIN, SO_PIN = "73195", "86420"

ASKED = {
    r"Please (re)?enter SO PIN: ": SO_PIN,
    r"Please (re)?enter user PIN: ": PIN,
    r"PIN of the store \S+: ": PIN,
    r"Type yes: ": "yes",
}
"""What somebody types where a command asks."""

SERVING = {"softhsm/run": "serving until Ctrl-C", "dpop-agent serve": "admin.sock"}
"""Commands that stay in the foreground, and what each shows then."""


@pytest.fixture(scope="module")
def wheelhouse() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wheels-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        wheels(folder, "dpop-agent[httpx,requests]", *BUILD, "editables")
        yield folder


@pytest.fixture
def user(wheelhouse: Path) -> Iterator[Newcomer]:
    with newcomer(wheelhouse) as found:
        yield found


def typed_by(user: Newcomer, todo: list[Block]) -> list[Shell]:
    """Type all of it: into the terminal that was opened last, or into a new one while that serves.

    Where the document has `…`, somebody types what an earlier command showed.
    """
    with ExitStack() as opened:
        terminals = [opened.enter_context(user.terminal())]
        for block in todo:
            if terminals[-1].serves:
                terminals.append(opened.enter_context(user.terminal()))
            for line, shows in commands(block):
                if line.endswith("…"):
                    begins = re.escape(line.removesuffix("…"))
                    found = re.findall(rf"^{begins}\S+", terminals[0].shown, re.M)
                    assert found, f"nothing showed {line}"
                    line = found[-1]
                if line.startswith("dpop-agent log"):  # nobody's hands are faster than its lines
                    time.sleep(2 * FLUSH_S)
                serving = next((s for c, s in SERVING.items() if line.startswith(c)), None)
                shown = terminals[-1].run(line, asked=ASKED, serving=serving)
                assert re.search(re.escape(shows.strip()).replace("…", r"\S+"), shown), shown
        assert [terminal.serves for terminal in terminals] == [True, False]
        shell = terminals[0]
        assert shell.interrupt() in (0, 130)
    return terminals


ACTIVATE = re.search(r"^\. \S+/activate", START, re.M)


@pytest.mark.runs("README.md", "Try it")
def test_the_first_commands_of_the_readme_serve_a_key_from_an_empty_home(
    user: Newcomer, blocks: list[Block]
) -> None:
    _, second = typed_by(user, blocks)
    assert re.search(r"default@1 +active ", second.shown)
    assert list(user.home.iterdir()) == [user.project], "nothing is left beside the project"


@pytest.mark.runs("docs/getting-started.md")
@pytest.mark.runs("docs/shell.md", "A proof")
@pytest.mark.runs("docs/shell.md", "What a proof says")
@pytest.mark.runs("docs/shell.md", "Completions")
@pytest.mark.runs("docs/rotating.md")
@pytest.mark.runs("docs/audit.md")
@pytest.mark.runs("docs/backups.md")
def test_the_commands_of_the_documents_lead_from_a_new_pkcs11_token_to_a_rotated_key(
    user: Newcomer, blocks: list[Block]
) -> None:
    *todo, lost = blocks
    user.write("at.txt", "at-1")
    first, second = typed_by(user, todo)
    assert (user.home / ".config/dpop-agent/config.toml").stat().st_uid != 0
    assert re.search(r"soft: found PKCS#11 token 'work', serial\s+\w+", first.shown)
    assert "sound: 0 warnings" in second.shown
    assert re.search(r"^ok jkt=\S+ alg=ES256 ", second.shown, re.M)
    assert "default@1 is compromised, and never signs again" in second.shown
    listed = second.shown[second.shown.rindex("dpop-agent key list") :]
    listed, _, log = listed.partition("dpop-agent log")
    # Where a pid has many digits, what was asked for is on a line of its own.
    assert re.search(r"\d\d:\d\d:\d\d  agent +dpop-agent \d+ +default@1\s+GET https://api", log)
    assert re.search(r"admin +dpop-agent \d+ +default@2\s+key.rotate", log)
    assert re.findall(r"(default@\d) +(\w+)", listed) == [
        ("default@1", "compromised"),
        ("default@2", "draining"),
        ("default@3", "staged"),
    ]
    jkts = re.findall(r"jkt (\S{43})\r\n", listed)
    assert len(set(jkts)) == 3, "each whole, in 80 columns"
    find_the_keys_of_a_lost_ledger(user, lost)
    for shown in (first.shown, second.shown):
        assert PIN not in shown
        assert SO_PIN not in shown


def find_the_keys_of_a_lost_ledger(user: Newcomer, lost: Block) -> None:
    shutil.rmtree(user.home / ".local" / "state" / "dpop-agent")
    assert ACTIVATE
    with user.terminal() as first, user.terminal() as second:
        first.run(ACTIVATE[0], asked=ASKED, serving=None)
        first.run("dpop-agent serve", asked=ASKED, serving=SERVING["dpop-agent serve"])
        for line in (ACTIVATE[0], "dpop-agent unlock"):
            second.run(line, asked=ASKED, serving=None)
        for line, _ in commands(lost):
            second.run(line, asked=ASKED, serving=None)
        listed = second.run("dpop-agent key list", asked=ASKED, serving=None)
        assert re.findall(r"(default@\d) +(\w+)", listed) == [
            ("default@1", "draining"),
            ("default@2", "suspended"),
            ("default@3", "active"),
        ]
        first.interrupt()


@pytest.mark.runs("docs/tutorials/ai-agent-in-a-container.md", "Five commands")
@pytest.mark.runs("docs/tutorials/ai-agent-in-a-container.md", "Give it an access token")
@pytest.mark.runs("docs/tutorials/ai-agent-in-a-container.md", "See that it is confined")
@pytest.mark.runs("docs/agents-in-containers.md")
@pytest.mark.runs("docs/tutorials/ai-agent-in-a-container.md", "Undo it")
def test_five_commands_lead_from_nothing_to_a_confined_agent_and_the_others_work_too(
    user: Newcomer, blocks: list[Block]
) -> None:
    need("bubblewrap")
    first_ones = [line for block in blocks[:2] for line, _ in commands(block)]
    assert len(first_ones) == 5
    _, second = typed_by(user, blocks)
    assert re.search(r"^coder +open +api ", second.shown, re.M)
    assert "the socket coder is gone" in second.shown
    assert re.search(r"/sockets/exec-\w+/agent\.sock\r\n", second.shown)


STANDS_FOR = {
    "STORE": "work",
    "REF": "0badcafe",
    "TIME": "15m",
    "NAME": "default",
    "NAME@N": "default@1",
    "K": "default",
}
"""What the document writes where somebody puts a name of theirs."""


def mentioned() -> list[str]:
    """The commands in the text between the blocks."""
    text = "\n".join(
        token.content
        for name in DOCUMENTS
        for token in parsed((ROOT / name).read_text("utf-8"))
        if token.type == "inline"
    )
    verbs = "|".join(cli._VERBS)
    found = re.findall(rf"`(?:dpop-agent )?((?:{verbs}) [^`]+)`", text)
    systems = re.findall(r"`(curl [^`]+)`", text)
    return sorted({" ".join(words.split()) for words in found if words not in systems})


def test_commands_are_mentioned_in_the_text_too() -> None:
    assert len(mentioned()) > 8


@pytest.mark.parametrize("text", mentioned())
def test_a_command_that_the_documents_mention_is_one(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    for one in _alternatives(text):
        verb, *words = [STANDS_FOR.get(word, word) for word in shlex.split(one)]
        try:
            cli._parser(verb).parse_args(words)
        except SystemExit as e:
            # What isn't said there may be needed too.
            assert e.code == 0 or " required" in capsys.readouterr().err  # noqa: PT017


def _alternatives(text: str) -> list[str]:
    """`key create|rotate NAME` is two; what is left out, or comes after a pipe, isn't ours."""
    text = text.partition(" | ")[0].replace("…", "")
    found = re.search(r"(\w+)\|(\w+)", text)
    if not found:
        return [text]
    return [text.replace(found[0], word) for word in found.groups()]


def answer(seen: Seen) -> Reply:
    """An authorization server's token endpoint, and a resource server."""
    if seen.method == "POST":
        body = {"access_token": "at-1", "token_type": "DPoP", "expires_in": 300}
        return Reply(200, json.dumps(body).encode(), Content_Type="application/json")
    return Reply(200, b"{}", Content_Type="application/json")


@pytest.mark.runs("README.md", languages=("python",))
def test_the_python_of_the_readme_gets_an_access_token_and_presents_it(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, blocks: list[Block]
) -> None:
    (block,) = blocks
    agent.create_key("default")
    monkeypatch.setenv("DPOP_AGENT_SOCK", agent.socket)
    with FakeServer(answer) as server:
        names: dict[str, Any] = {
            "ID": "i",
            "SECRET": "s",
            "AS": server.origin,
            "API": server.origin,
        }
        exec(compile(block.text, block.document, "exec", dont_inherit=True), names)
        for name in ("http", "agent"):
            names[name].close()
        assert [(seen.path, len(seen.proofs)) for seen in server.seen] == [
            ("/token", 1),
            ("/me", 1),
        ]
        assert server.seen[-1].headers["Authorization"] == "DPoP at-1"


@pytest.mark.runs("docs/python.md")
def test_the_python_of_the_documents_runs_and_every_request_has_a_proof(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, blocks: list[Block]
) -> None:
    agent.create_key("default")
    monkeypatch.setenv("DPOP_AGENT_SOCK", agent.socket)
    with FakeServer(answer) as server, ExitStack() as opened:
        names: dict[str, Any] = {
            "ID": "i",
            "SECRET": "s",
            "token_endpoint": f"{server.origin}/token",
        }
        names |= {"AS": server.origin, "API": server.origin}
        for block in blocks:
            # Where it has `...` somebody puts in what is theirs.
            text = block.text.replace("=...", '={"grant_type": "authorization_code"}')
            exec(compile(text, block.document, "exec", dont_inherit=True), names)
        for name in ("agent", "http", "session"):
            opened.callback(names[name].close)
        assert [len(seen.proofs) for seen in server.seen] == [1] * 8
        presented = [seen.headers["Authorization"] for seen in server.seen if seen.path == "/me"]
        assert presented == ["DPoP at-1"] * 3


@pytest.mark.runs("README.md", "From the shell")
@pytest.mark.runs("docs/shell.md", "A request by curl")
def test_the_requests_of_the_documents_by_curl_have_a_proof_and_the_access_token(
    agent: Agent, tmp_path: Path, blocks: list[Block]
) -> None:
    need("curl")
    agent.create_key("default")
    (tmp_path / "at.txt").write_text("at-1\n")
    with FakeServer(answer) as server:
        for line, _ in (typed for block in blocks for typed in commands(block)):
            script = f"{DPOP_AGENT}\n{line.replace('https://api.example.com', server.origin)}"
            done = subprocess.run(
                ["bash", "-ec", script],
                cwd=tmp_path,
                env=agent.env,
                capture_output=True,
                check=True,
            )
            assert done.stderr == b""
        assert [(seen.method, seen.path, seen.body) for seen in server.seen] == [
            ("GET", "/v1/me", b""),
            ("GET", "/v1/me", b""),
            ("POST", "/v1/things", b'{"name": "thing"}'),
        ]
        assert [len(seen.proofs) for seen in server.seen] == [1, 1, 1]
        assert {seen.headers["Authorization"] for seen in server.seen} == {"DPoP at-1"}


@pytest.mark.runs("docs/shell.md", "When a server refuses a request")
def test_what_a_server_refuses_is_explained_by_the_document_s_one_line(
    agent: Agent, tmp_path: Path, blocks: list[Block]
) -> None:
    need("curl")
    agent.create_key("default")
    (tmp_path / "at.txt").write_text("at-1\n")
    ((line, _),) = (typed for block in blocks for typed in commands(block))
    challenge = 'DPoP error="invalid_dpop_proof", error_description="DPoP proof htu mismatch"'
    with FakeServer(lambda _: Reply(401, b"", WWW_Authenticate=challenge)) as server:
        done = subprocess.run(
            [
                "bash",
                "-c",
                f"{DPOP_AGENT}\n{line.replace('https://api.example.com', server.origin)}",
            ],
            cwd=tmp_path,
            env=agent.env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert len(server.seen) == 1
    assert (done.returncode, done.stderr) == (1, "")
    assert "The server expects another htu than the URL of the request" in done.stdout
    assert "left out or cut off" not in done.stdout
    assert "at-1" not in done.stdout


@pytest.mark.runs("docs/http-clients.md")
def test_each_http_client_of_the_documents_signs_each_request(
    agent: Agent,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    blocks: list[Block],
) -> None:
    jkt = agent.create_key("default")["jkt"]
    monkeypatch.setenv("DPOP_AGENT_SOCK", agent.socket)
    for number, block in enumerate(blocks):
        assert block.language == "python", number
    with FakeServer(answer) as server, FakeServer(answer) as api, ExitStack() as opened:
        names: dict[str, Any] = {"ID": "i", "SECRET": "s", "AS": server.origin, "API": api.origin}
        for block in blocks:
            # requests_oauth2client takes plain http as a test alone.
            text = block.text.replace("session=requests.", "testing=True, session=requests.")
            exec(compile(text, block.document, "exec", dont_inherit=True), names)
        for closed in (names["client"].session, names["session"], names["agent"]):
            opened.callback(closed.close)
        for name in ("oauth", "over_httpx2"):
            opened.callback(names[name].close)
        for each in (server, api):
            assert [len(seen.proofs) for seen in each.seen] == [1] * len(blocks)
        presented = [seen.headers["Authorization"] for seen in api.seen]
        assert presented == ["DPoP at-1"] * len(blocks)
    assert capsys.readouterr().out == f"200 {jkt}\n"


def test_the_line_that_help_shows_sets_the_socket_in_a_shell(agent: Agent) -> None:
    shown = agent.run("env", "--help", check=True).stdout
    (line,) = re.findall(r'eval "[^"]+"', " ".join(shown.split()))
    command = f'dpop-agent() {{ "{sys.executable}" -m dpop_agent "$@"; }}'
    script = f'{command}\n{line}\nunset -f dpop-agent\nprintf %s "$DPOP_AGENT_SOCK"'
    done = subprocess.run(
        ["bash", "-c", script], env=agent.env, capture_output=True, text=True, check=True
    )
    assert done.stdout == agent.socket

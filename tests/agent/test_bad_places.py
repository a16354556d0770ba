"""Stores, PINs, sockets and ledgers that aren't as they should be: a clear answer, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent.places import (
    descendants,
    refused_to_serve,
    signers_of,
    store,
    until,
    until_open,
    until_state,
    write_config,
)
from tests.agent.wire import Wire
from tests.bench.bars import BACK
from tests.processes import Agent, Token, new_token
from tests.rows import Reached
from tests.timing import Measured

TARGET = {"htm": "GET", "htu": "https://api.example.com/"}

MakeAgent = Callable[..., Agent]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `token` and `state` of an agent with an active key `default`."""
    folder = tmp_path_factory.mktemp("original")
    agent = Agent(new_token(folder / "token").config, folder / "state")
    try:
        agent.start().create_key("default")
        agent.stop()
    finally:
        agent.close()
    return folder


@pytest.fixture
def token(original: Path, tmp_path: Path) -> Token:
    """A copy of the original's PKCS#11 token."""
    shutil.copytree(original / "token", tmp_path / "token")
    token = Token(tmp_path / "token", "dpop-agent")
    for file in (token.config, token.softhsm_conf):
        file.write_text(file.read_text().replace(str(original), str(tmp_path)))
    return token


@pytest.fixture
def once_fine(make_agent: MakeAgent, original: Path, token: Token) -> Agent:
    """A stopped agent whose ledger has an active key on the PKCS#11 token."""
    state = token.folder.parent / "state"
    shutil.copytree(original / "state", state)
    return make_agent(token.config, state=state)


def _jkt(agent: Agent) -> str:
    ledger = json.loads((agent.state / "ledger.json").read_text())
    jkt: str = ledger["keys"][0]["generations"][0]["jkt"]
    return jkt


def _no_module(token: Token) -> None:
    write_config(token, module="/nonexistent/libvendor.so")


def _no_library(token: Token) -> None:
    write_config(token, module=str(token.softhsm_conf))


def _no_token(token: Token) -> None:
    write_config(token, uri="pkcs11:token=another")


def _several(token: Token) -> None:
    new_token(token.folder, "a-second-one")
    write_config(token, uri="pkcs11:manufacturer=SoftHSM%20project")


def _shared_module(token: Token) -> None:
    shared = token.folder / "shared"
    shared.mkdir()
    shutil.copy(token.module, shared / "module.so")
    shared.chmod(0o777)
    write_config(token, module=str(shared / "module.so"))


def _no_pin(token: Token) -> None:
    write_config(token, pin_source=f"file:{token.folder}/nowhere")


def _open_pin(token: Token) -> None:
    token.pin_file.chmod(0o644)


def _empty_pin(token: Token) -> None:
    token.pin_file.write_text("")


@pytest.mark.parametrize(
    ("spoil", "kind", "state", "says"),
    [
        (_no_module, "store_absent", "absent", "there is no PKCS#11 module /nonexistent/"),
        (_no_library, "store_absent", "absent", "doesn't work"),
        (_no_token, "store_absent", "absent", "there is no PKCS#11 token pkcs11:token=another"),
        (_several, "store_absent", "absent", "2 PKCS#11 tokens fit"),
        (
            _shared_module,
            "store_absent",
            "absent",
            "/shared, above the PKCS#11 module, has mode 0777",
        ),
        (_no_pin, "locked", "locked", "can't be opened (No such file or directory)"),
        (_open_pin, "locked", "locked", "others can read the PIN file"),
        (_empty_pin, "locked", "locked", "has no PIN"),
    ],
)
def test_a_store_that_cant_be_opened_says_why_until_it_is_mended_and_no_key_is_lost(
    once_fine: Agent,
    token: Token,
    spoil: Callable[[Token], None],
    kind: str,
    state: str,
    says: str,
) -> None:
    pin = token.pin
    spoil(token)
    agent = once_fine.start()
    with Wire(agent.socket) as wire, Wire(agent.admin_socket) as admin:
        for error in (
            wire.error("proof", **TARGET),
            admin.error("key.create", key="second", origins=[]),
        ):
            assert error["type"] == kind
            assert says in error["message"]
            assert error["hint"]
        told = until_state(agent, state)
        assert says in told["reason"]
        assert told["hint"]
        assert told["signer_pid"] is None
        (key,) = wire.result("key.list")["keys"]
        assert key["generations"][0]["jkt"] == _jkt(agent)

        token.pin_file.write_text(pin)
        token.pin_file.chmod(0o600)
        write_config(token)
        (mended,) = admin.result("reload")["stores"]
        assert (mended["state"], mended["reason"]) == ("ready", None)
        assert wire.result("proof", **TARGET)["jkt"] == _jkt(agent)
    assert pin not in agent.log.read_text()


def test_a_refused_pin_is_tried_once_and_again_only_by_command(
    once_fine: Agent, token: Token, measured: Measured
) -> None:
    pin = token.pin
    token.pin_file.write_text("wrong-canary-71\n")
    agent = once_fine.start()
    until_state(agent, "locked")
    with Wire(agent.socket) as wire, Wire(agent.admin_socket) as admin:
        # From now on any further try would succeed, and show.
        token.pin_file.write_text(pin)
        with measured("a hundred proofs with a PIN that was refused before are refused"):
            errors = [wire.error("proof", **TARGET) for _ in range(100)]
        for error in errors:
            assert (error["type"], error["retry"]) == ("pin_refused", "no")
            assert "refused its PIN" in error["message"]
            assert "dpop-agent unlock softhsm" in error["hint"]
        assert admin.error("key.create", key="second", origins=[])["type"] == "pin_refused"
        assert admin.error("key.destroy", key="default", generation=1)["type"] == "pin_refused"
        assert store(agent)["state"] == "locked"
        until(lambda: signers_of(agent) == set())
        assert agent.log.read_text().count("refused its PIN") == 1

        (told,) = admin.result("reload")["stores"]
        assert told["state"] == "locked"
        assert admin.result("unlock", store="softhsm")["state"] == "ready"
        assert wire.result("proof", **TARGET)["jkt"] == _jkt(agent)
    assert "wrong-canary-71" not in agent.log.read_text()


def test_a_signer_that_dies_with_a_refused_pin_in_sight_doesnt_lead_to_a_second_try(
    once_fine: Agent, token: Token
) -> None:
    agent = once_fine.start()
    opened = until_open(agent)
    pin = token.pin
    token.pin_file.write_text("wrong-canary-72\n")
    os.kill(opened["signer_pid"], 9)
    until_state(agent, "locked")
    token.pin_file.write_text(pin)
    with Wire(agent.socket) as wire:
        for _ in range(20):
            assert wire.error("proof", **TARGET)["type"] == "pin_refused"
    assert store(agent)["state"] == "locked"


def test_a_store_that_comes_back_is_found_without_a_command(
    once_fine: Agent, token: Token, measured: Measured
) -> None:
    tokens, away = token.folder / "tokens", token.folder / "away"
    tokens.rename(away)
    tokens.mkdir()
    agent = once_fine.start()
    with Wire(agent.socket) as wire:
        error = wire.error("proof", **TARGET)
        assert (error["type"], error["retry"]) == ("store_absent", "later")
        tokens.rmdir()
        away.rename(tokens)
        with measured(BACK):
            until(lambda: "result" in wire.ask("proof", **TARGET))
        assert wire.result("proof", **TARGET)["jkt"] == _jkt(agent)


def test_reload_with_a_broken_configuration_keeps_the_old_one(
    once_fine: Agent, token: Token
) -> None:
    agent = once_fine.start()
    with Wire(agent.socket) as wire, Wire(agent.admin_socket) as admin:
        before = until_open(agent)
        write_config(token, more='modul_args = "x"')
        error = admin.error("reload")
        assert error["type"] == "configuration"
        assert "modul_args" in error["message"]
        assert wire.result("proof", **TARGET)["jkt"] == _jkt(agent)
        assert store(agent) == before


def test_a_key_of_a_store_that_the_configuration_lost_is_store_unknown(
    once_fine: Agent, token: Token
) -> None:
    text = token.config.read_text()
    token.config.write_text(text.replace("softhsm]", "other]").replace('"softhsm"', '"other"'))
    agent = once_fine.start()
    with Wire(agent.socket) as wire, Wire(agent.admin_socket) as admin:
        error = wire.error("proof", **TARGET)
        assert error["type"] == "store_unknown"
        assert "softhsm" in error["message"]
        token.config.write_text(text)
        admin.result("reload")
        assert wire.result("proof", **TARGET)["jkt"] == _jkt(agent)


# The agent's own places: it says what is wrong and doesn't start


@pytest.mark.parametrize("length", [108, 200])
def test_a_socket_path_that_is_too_long_is_refused_with_its_length(
    make_agent: MakeAgent, length: int
) -> None:
    agent = make_agent()
    folder = str(agent.runtime)
    agent.env["DPOP_AGENT_SOCK"] = f"{folder}/".ljust(length, "x")
    assert f"has {length} bytes, more than the 107 that work" in refused_to_serve(agent)


def test_a_second_agent_on_one_socket_is_refused_and_the_first_goes_on(
    make_agent: MakeAgent,
) -> None:
    first, second = make_agent().start(), make_agent()
    second.env["DPOP_AGENT_SOCK"] = first.socket
    assert (
        f"another agent serves {first.socket}: process {first.pid}, which serves {first.socket};"
    ) in refused_to_serve(second)
    assert first.client().status()["pid"] == first.pid


def test_a_second_agent_on_one_state_folder_is_refused_and_the_first_goes_on(
    make_agent: MakeAgent,
) -> None:
    first = make_agent().start()
    second = make_agent(state=first.state)
    line = refused_to_serve(second)
    assert f"another agent uses the state folder {first.state}: " in line
    assert f"process {first.pid}, which serves {first.socket};" in line
    assert not Path(second.socket).exists()
    assert first.client().status()["pid"] == first.pid


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"version": 2', '"version": 99'),
        lambda text: "[" * 100_000,
    ],
    ids=["empty", "cut off", "of a later version", "nested without end"],
)
def test_a_ledger_that_cant_be_read_stops_the_agent_and_stays_as_it_is(
    once_fine: Agent, spoil: Callable[[str], str]
) -> None:
    ledger = once_fine.state / "ledger.json"
    good = ledger.read_text()
    bad = spoil(good)
    assert bad != good
    ledger.write_text(bad)
    line = refused_to_serve(once_fine)
    assert f"the ledger {ledger} can't be read" in line
    assert ledger.read_text() == bad
    ledger.write_text(good)
    assert once_fine.start().client(timeout=20).proof("GET", "https://h.example/").state == "active"


def test_a_later_ledger_is_told_by_its_version(once_fine: Agent) -> None:
    ledger = once_fine.state / "ledger.json"
    ledger.write_text(ledger.read_text().replace('"version": 2', '"version": 3'))
    assert "it has version 3, this agent reads 1 to 2" in refused_to_serve(once_fine)


def test_a_state_folder_that_others_can_write_to_is_refused(make_agent: MakeAgent) -> None:
    agent = make_agent()
    agent.state.mkdir()
    agent.state.chmod(0o777)
    assert f"others can write to the state folder {agent.state} (mode 0777)" in refused_to_serve(
        agent
    )


def test_a_state_folder_below_one_that_others_can_write_to_is_refused(
    make_agent: MakeAgent, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "link").symlink_to(tmp_path)
    for state in (shared / "a" / "state", shared / "link" / "state"):
        said = refused_to_serve(make_agent(state=state))
        assert f"{shared}, above the state folder, has mode 0777" in said
    assert not (shared / "a").exists()


def test_a_ledger_that_others_can_change_is_refused(once_fine: Agent) -> None:
    ledger = once_fine.state / "ledger.json"
    ledger.chmod(0o666)
    assert "has mode 0666: others can change it" in refused_to_serve(once_fine)


def test_a_ledger_is_written_past_what_is_in_the_place_of_its_new_file(once_fine: Agent) -> None:
    other = once_fine.state.parent / "diary"
    other.write_text("a diary")
    (once_fine.state / "ledger.json.new").symlink_to(other)
    once_fine.start().create_key("second")
    assert other.read_text() == "a diary"
    assert not (once_fine.state / "ledger.json").is_symlink()


@pytest.mark.parametrize("name", ["ledger.lock", "agent.sock.lock"])
def test_a_lock_that_is_a_link_is_refused(make_agent: MakeAgent, name: str) -> None:
    agent = make_agent()
    agent.state.mkdir(mode=0o700)
    place = (agent.state if name.startswith("ledger") else agent.runtime) / name
    place.symlink_to(agent.state / "elsewhere")
    assert "can't be used (Too many levels of symbolic links)" in refused_to_serve(agent)
    assert not (agent.state / "elsewhere").exists()


def test_a_socket_folder_that_others_reach_is_refused(make_agent: MakeAgent) -> None:
    agent = make_agent()
    agent.runtime.chmod(0o750)
    assert "has mode 0750: others can reach it" in refused_to_serve(agent)


def test_a_socket_folder_that_is_a_symbolic_link_is_refused(make_agent: MakeAgent) -> None:
    agent = make_agent()
    link = agent.runtime / "link"
    (agent.runtime / "folder").mkdir(mode=0o700)
    link.symlink_to("folder")
    agent.env["DPOP_AGENT_SOCK"] = str(link / "agent.sock")
    assert "is a symbolic link" in refused_to_serve(agent)


NOBODY = 65534


def _foreign(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


@pytest.mark.row(19)
@pytest.mark.skipif(os.getuid() != 0, reason="to give a folder to another user takes root")
def test_each_kind_of_unsafe_socket_folder_is_refused_and_named(
    make_agent: MakeAgent, reached: Reached
) -> None:
    refused = 0
    for kind, says in (
        ("mode 0770", "{run} has mode 0770: others can reach it"),
        ("mode 0707", "{run} has mode 0707: others can reach it"),
        ("mode 0750", "{run} has mode 0750: others can reach it"),
        ("mode 0701", "{run} has mode 0701: others can reach it"),
        ("foreign", "{run} belongs to uid 65534, not to uid 0"),
        ("link", "{run} is a symbolic link"),
        ("file", "{run} can't be used (Not a directory)"),
        ("above 0777", "{above}, above the socket, has mode 0777"),
        ("above 0770", "{above}, above the socket, has mode 0770"),
        ("above foreign", "{above}, above the socket, belongs to uid 65534"),
        ("foreign link above", "{above}, above the socket, "),
    ):
        agent = make_agent()
        above = agent.runtime / "above"
        run = above / "run"
        run.mkdir(parents=True, mode=0o700)
        above.chmod(0o755)
        what, _, mode = kind.rpartition(" ")
        if kind == "foreign":
            _foreign(run)
        elif kind == "link":
            run.rename(above / "real")
            run.symlink_to("real")
        elif kind == "file":
            run.rmdir()
            run.write_text("")
        elif kind == "above foreign":
            _foreign(above)
        elif kind == "foreign link above":
            above.rename(agent.runtime / "real")
            above.symlink_to("real")
            _foreign(above)
        else:
            (above if what == "above" else run).chmod(int(mode, 8))
        agent.env["DPOP_AGENT_SOCK"] = str(run / "agent.sock")
        line = refused_to_serve(agent)
        assert says.format(run=run, above=above) in line, kind
        refused += 1
    reached("kinds of unsafe folders that an agent refused, and named", refused)
    reached("unsafe folders in which an agent served", 0)


@pytest.mark.row(20)
def test_a_stale_socket_is_replaced(make_agent: MakeAgent, reached: Reached) -> None:
    agent = make_agent()
    for path in (agent.socket, agent.admin_socket):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(path)
    agent.start()
    assert agent.client().status()["pid"] == agent.pid
    assert agent.admin().status()["pid"] == agent.pid
    reached("stale sockets that were replaced", 2)


def test_the_socket_of_a_killed_agent_is_replaced(make_agent: MakeAgent) -> None:
    agent = make_agent().start()
    agent.kill()
    assert Path(agent.socket).is_socket()
    agent.start()
    assert agent.client().status()["pid"] == agent.pid


@pytest.mark.row(20)
@pytest.mark.parametrize("which", ["socket", "admin_socket"])
def test_a_socket_that_somebody_listens_at_is_never_replaced(
    make_agent: MakeAgent, which: str, reached: Reached
) -> None:
    agent = make_agent()
    path = getattr(agent, which)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        assert f"some other program listens at {path}" in refused_to_serve(agent)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            other.settimeout(10)
            other.accept()[0].close()
    reached("live sockets, and files of other kinds, that were replaced", 0)


@pytest.mark.row(20)
@pytest.mark.parametrize("kind", ["file", "folder", "pipe", "link", "link to nothing"])
def test_what_isnt_a_socket_is_never_replaced(
    make_agent: MakeAgent, kind: str, reached: Reached
) -> None:
    agent = make_agent()
    path, diary = Path(agent.socket), agent.runtime / "diary"
    diary.write_text("a diary")
    if kind == "file":
        diary.rename(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(diary if kind == "link" else "nothing")
    before = path.lstat()
    assert "is there and isn't a socket" in refused_to_serve(agent)
    after = path.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert kind != "file" or path.read_text() == "a diary"
    reached("live sockets, and files of other kinds, that were replaced", 0)


def test_a_setting_that_is_unknown_stops_the_agent_with_the_nearest_one(
    make_agent: MakeAgent, token: Token
) -> None:
    agent = make_agent(write_config(token, more='pin_sauce = "prompt"'))
    line = refused_to_serve(agent)
    assert "stores.softhsm has the unknown setting 'pin_sauce'" in line
    assert "did you mean pin_source?" in line


def test_an_agent_leaves_nothing_when_it_is_asked_to_end(make_agent: MakeAgent) -> None:
    agent = make_agent().start()
    until_open(agent)
    below = descendants(agent.pid)
    assert len(below) == 2  # the signer, and the process that forks signers
    assert agent.stop() == 0
    assert not Path(agent.socket).exists()
    assert not Path(agent.admin_socket).exists()
    for pid in below:
        assert not Path(f"/proc/{pid}").exists()


def test_an_agent_that_was_killed_leaves_no_signer(
    make_agent: MakeAgent, measured: Measured
) -> None:
    agent = make_agent().start()
    until_open(agent)
    below = descendants(agent.pid)
    agent.kill()
    with measured("a signer whose agent was killed ends"):
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below & _alive()))


def _alive() -> set[int]:
    return descendants(os.getpid())


def test_the_ledger_is_for_its_owner_alone(once_fine: Agent) -> None:
    for name in ("ledger.json", "ledger.lock"):
        assert (once_fine.state / name).stat().st_mode & 0o777 == 0o600
    assert once_fine.state.stat().st_mode & 0o777 == 0o700


def test_the_sockets_are_for_their_owner_alone(shared_agent: Agent) -> None:
    for path in (shared_agent.socket, shared_agent.admin_socket):
        assert Path(path).stat().st_mode & 0o777 == 0o600


def test_an_agent_makes_the_folders_that_it_needs_private(make_agent: MakeAgent) -> None:
    agent = make_agent()
    agent.log = agent.state.parent / "log"
    agent.runtime.rmdir()
    agent.start()
    assert agent.runtime.stat().st_mode & 0o777 == 0o700
    assert agent.state.stat().st_mode & 0o777 == 0o700

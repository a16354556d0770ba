"""A login that nobody asked for is tried once, whatever comes; counted in front of SoftHSM2."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from dpop_agent.client import AgentClient
from dpop_agent.errors import PinRefused, SignerFailed
from tests.agent.places import (
    descendants,
    hurried,
    serve_with,
    signers_of,
    store,
    until,
    until_logged,
    until_open,
    until_state,
)
from tests.agent.wire import Wire
from tests.faulty import Faulty
from tests.processes import Agent, Token, new_token, running
from tests.terminal import unlock

HTU = "https://api.example.com/v1/me"
TARGET = {"htm": "GET", "htu": HTU}

USER, CONTEXT_SPECIFIC = "C_Login 1", "C_Login 2"

MakeAgent = Callable[..., Agent]


@pytest.fixture
def right(token: Token) -> str:
    """The PIN's file as it is right; the PKCS#11 token's PIN file has a wrong one now."""
    text = token.pin_file.read_text()
    token.pin_file.write_text("00000000\n")
    return text


def add_again(
    config: Path,
    *,
    pin_file: Path | None = None,
    module: Path | None = None,
    uri: str | None = None,
) -> None:
    """Let a configuration name the PKCS#11 token in a second store, with other settings."""
    again = config.read_text().partition("[stores.softhsm]")[2]
    if pin_file is not None:
        again = re.sub('file:[^"]*', f"file:{pin_file}", again)
    if module is not None:
        again = re.sub("module = .*", f'module = "{module}"', again)
    if uri is not None:
        again = re.sub("uri = .*", f'uri = "{uri}"', again)
    config.write_text(f"{config.read_text()}\n[stores.again]{again}")


def linked(faulty: Faulty) -> Path:
    """Another name of the same module: the agent starts stores of one name one by one."""
    link = faulty.token.folder / "linked.so"
    link.symlink_to(faulty.module)
    return link


def ask(agent: Agent, *, times: int = 5) -> list[str]:
    """The types of the errors that requests get."""
    with Wire(agent.admin_socket, timeout=30) as wire:
        return [wire.error("key.create", key="none", origins=[])["type"] for _ in range(times)]


def refused(agent: Agent) -> None:
    """It says so: in `status`, to requests, and what a person does about it."""
    told = until_state(agent, "locked")
    assert told["hint"].endswith(f"dpop-agent unlock {told['store']}"), told
    assert set(ask(agent)) == {"pin_refused"}


def tried_once(agent: Agent, faulty: Faulty) -> None:
    refused(agent)
    agent.run("reload", check=True)
    refused(agent)
    agent.stop()
    agent.start()
    refused(agent)
    assert faulty.calls("C_Login") == [USER]


FAULTS = {
    "refused": "C_Login return 0xA0",
    "too-short": "C_Login return 0xA2",
    "invalid": "C_Login return 0xA1",
    "expired": "C_Login return 0xA3",
    "arguments-bad": "C_Login return 0x7",
    "general-error": "C_Login return 0x5",
    "function-failed": "C_Login return 0x6",
    "device-error": "C_Login return 0x30",
    "device-memory": "C_Login return 0x31",
    "device-removed": "C_Login return 0x32",
    "host-memory": "C_Login return 0x2",
    "cancelled": "C_Login return 0x50",
    "session-closed": "C_Login return 0xB0",
    "not-logged-in": "C_Login return 0x101",
    "vendor's own": "C_Login return 0x80000001",
    "failed afterwards": "C_Login after return 0x6",
    "crash": "C_Login crash",
    "crash afterwards": "C_Login after crash",
}


@pytest.mark.parametrize("rule", FAULTS.values(), ids=FAULTS)
def test_a_login_that_didnt_succeed_is_the_last_that_nobody_asked_for(
    faulty_token: Faulty, make_agent: MakeAgent, rule: str
) -> None:
    faulty_token.rules(rule)
    agent = make_agent(faulty_token.config()).start()
    until(lambda: faulty_token.logins)
    until(lambda: ask(agent, times=1) == ["pin_refused"])
    faulty_token.rules()  # from now on any further try would succeed, and show
    tried_once(agent, faulty_token)
    agent.run("unlock", check=True)
    until_open(agent)
    assert faulty_token.logins == 2
    agent.stop()
    agent.start()
    until_open(agent)
    agent.create_key("shop")


BEFORE = {
    "session-count": 0xB1,
    "session-handle-invalid": 0xB3,
    "slot-id-invalid": 0x3,
    "token-not-present": 0xE0,
    "token-not-recognized": 0xE1,
    "token-write-protected": 0xE2,
    "user-already-logged-in": 0x100,
    "another-user-logged-in": 0x104,
    "too-many-user-types": 0x105,
    "no-pin-yet": 0x102,
}


@pytest.mark.parametrize("code", BEFORE.values(), ids=BEFORE)
def test_an_error_that_comes_before_a_pin_is_judged_stops_no_later_login(
    faulty_token: Faulty, make_agent: MakeAgent, code: int
) -> None:
    faulty_token.rules(f"C_Login 1 return {code:#x}")
    agent = make_agent(faulty_token.config()).start()
    with Wire(agent.admin_socket, timeout=30) as wire:
        until(lambda: "result" in wire.ask("key.create", key="shop", origins=[]))
    assert faulty_token.logins == 2


def test_a_session_that_is_refused_costs_no_login(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    faulty_token.rules("C_OpenSession return 0x30")
    agent = make_agent(faulty_token.config()).start()
    assert set(ask(agent)) == {"store_absent"}
    assert faulty_token.logins == 0
    faulty_token.rules()
    with Wire(agent.admin_socket, timeout=30) as wire:
        until(lambda: "result" in wire.ask("key.create", key="shop", origins=[]))


def _kill_signer(agent: Agent) -> None:
    for pid in signers_of(agent):
        os.kill(pid, signal.SIGKILL)


def test_a_hang_in_a_login_that_is_killed_is_the_last_one(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    faulty_token.rules("C_Login hang")
    preexec = hurried("starting.START_TIMEOUT_S=1")
    agent = make_agent(faulty_token.config(), preexec=preexec).start()
    until_logged(agent, "didn't answer")
    faulty_token.rules()
    until(lambda: ask(agent, times=1) == ["pin_refused"])
    tried_once(agent, faulty_token)


def test_a_signer_that_is_killed_in_its_login_doesnt_lead_to_a_second_one(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    faulty_token.rules("C_Login hang")
    agent = make_agent(faulty_token.config()).start()
    until(lambda: faulty_token.logins)
    _kill_signer(agent)
    faulty_token.rules()
    until(lambda: ask(agent, times=1) == ["pin_refused"])
    tried_once(agent, faulty_token)


def test_an_agent_that_is_killed_in_a_login_doesnt_lead_to_a_second_one(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    faulty_token.rules("C_Login hang")
    agent = make_agent(faulty_token.config()).start()
    until(lambda: faulty_token.logins)
    signers = descendants(agent.pid)
    agent.kill()
    until(lambda: not any(running(pid) for pid in signers))
    faulty_token.rules()
    agent.start()
    tried_once(agent, faulty_token)


# What doesn't lift it


def _requests(agent: Agent) -> None:
    ask(agent, times=50)


def _reload(agent: Agent) -> None:
    agent.run("reload", check=True)


def _hang_up(agent: Agent) -> None:
    os.kill(agent.pid, signal.SIGHUP)
    time.sleep(0.5)


def _restart(agent: Agent) -> None:
    agent.stop()
    agent.start()


def _kill(agent: Agent) -> None:
    agent.kill()
    agent.start()


def _rename(agent: Agent) -> None:
    text = agent.config.read_text()
    agent.config.write_text(
        text.replace("[stores.softhsm]", "[stores.other]").replace(
            'default_store = "softhsm"', 'default_store = "other"'
        )
    )
    agent.run("reload", check=True)


def _touch(agent: Agent) -> None:
    os.utime(_pin_file(agent))
    agent.run("reload", check=True)


def _write_the_same(agent: Agent) -> None:
    file = _pin_file(agent)
    text = file.read_text()
    file.unlink()
    file.write_text(text)
    file.chmod(0o600)
    agent.run("reload", check=True)


def _another_file(agent: Agent) -> None:
    other = _pin_file(agent).with_name(f"{_pin_file(agent).name}-2")
    shutil.copy(_pin_file(agent), other)
    text = agent.config.read_text()
    agent.config.write_text(re.sub('file:[^"]*', f"file:{other}", text))
    agent.run("reload", check=True)


def _by_serial(agent: Agent) -> None:
    text = agent.config.read_text()
    uri = "pkcs11:manufacturer=SoftHSM%20project;token=dpop-agent"
    agent.config.write_text(re.sub("uri = .*", f'uri = "{uri}"', text))
    agent.run("reload", check=True)


def _second_store(agent: Agent) -> None:
    if "[stores.again]" not in agent.config.read_text():
        add_again(agent.config)
    agent.run("reload", check=True)


def _lock(agent: Agent) -> None:
    agent.run("lock", check=True)
    agent.run("reload", check=True)
    agent.stop()
    agent.start()


def _pin_file(agent: Agent) -> Path:
    found = re.search('file:([^"]*)', agent.config.read_text())
    assert found
    return Path(found[1])


@pytest.mark.parametrize(
    "step",
    [
        _requests,
        _reload,
        _hang_up,
        _restart,
        _kill,
        _rename,
        _touch,
        _write_the_same,
        _another_file,
        _by_serial,
        _second_store,
        _lock,
    ],
)
def test_a_wrong_pin_in_a_file_costs_one_login_over(
    step: Callable[[Agent], None], faulty_token: Faulty, make_agent: MakeAgent, right: str
) -> None:
    agent = make_agent(faulty_token.config()).start()
    refused(agent)
    for _ in range(2):
        step(agent)
        with Wire(agent.socket) as wire:
            until(
                lambda wire=wire: all(  # type: ignore[misc]
                    s["state"] == "locked" for s in wire.result("status")["stores"]
                )
            )
        assert faulty_token.calls("C_Login") == [USER]


def test_the_right_pin_in_the_file_is_tried_by_unlock_and_by_nothing_else(
    faulty_token: Faulty, make_agent: MakeAgent, right: str
) -> None:
    agent = make_agent(faulty_token.config()).start()
    refused(agent)
    faulty_token.token.pin_file.write_text(right)
    tried_once(agent, faulty_token)
    agent.run("unlock", "softhsm", check=True)
    until_open(agent)
    assert faulty_token.logins == 2


def test_each_unlock_of_a_store_with_a_wrong_pin_is_one_login(
    faulty_token: Faulty, make_agent: MakeAgent, right: str
) -> None:
    agent = make_agent(faulty_token.config()).start()
    refused(agent)
    for number in (2, 3):
        ran = agent.run("unlock", "softhsm")
        assert ran.returncode == 1
        assert "refused its PIN; correct the PIN in" in ran.stderr
        refused(agent)
        assert faulty_token.logins == number


def test_a_second_store_of_one_token_whose_right_pin_opens_it_lifts_the_mark_for_both(
    faulty_token: Faulty, make_agent: MakeAgent, right: str
) -> None:
    config = faulty_token.config()
    agent = make_agent(config).start()
    refused(agent)
    other = faulty_token.token.folder / "right-pin"
    other.write_text(right)
    other.chmod(0o600)
    add_again(config, pin_file=other)
    agent.run("reload", check=True)
    with Wire(agent.admin_socket) as wire:
        error = wire.error("key.create", key="shop", store="again", origins=[])
        assert (error["type"], faulty_token.logins) == ("pin_refused", 1)
        assert error["hint"].endswith("dpop-agent unlock again")
        assert wire.result("unlock", store="again")["state"] == "ready"
    assert faulty_token.logins == 2


def test_two_stores_of_one_token_that_open_at_once_try_a_wrong_pin_once(
    faulty_token: Faulty, make_agent: MakeAgent, right: str
) -> None:
    faulty_token.rules("C_Login delay 300")
    config = faulty_token.config()
    agent = make_agent(config)
    add_again(config, module=linked(faulty_token))
    agent.start()
    with Wire(agent.socket) as wire:
        until(lambda: all(s["state"] == "locked" for s in wire.result("status")["stores"]))
    assert faulty_token.calls("C_Login") == [USER]


def test_two_stores_of_one_token_that_open_at_once_both_open_with_the_right_pin(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    faulty_token.rules("C_Login delay 300")
    config = faulty_token.config()
    agent = make_agent(config)
    add_again(config, module=linked(faulty_token))
    agent.start()
    with Wire(agent.socket) as wire:
        until(lambda: all(s["state"] == "ready" for s in wire.result("status")["stores"]))
    assert faulty_token.logins == 2


# Tokens that are told apart by their labels


@pytest.mark.parametrize("serial", ["-", "313233"])
def test_a_mark_is_of_one_token_where_all_have_the_same_serial(
    faulty_token: Faulty, make_agent: MakeAgent, serial: str
) -> None:
    token = faulty_token.token
    new_token(token.folder, "other")  # with the same PIN
    faulty_token.rules(f"token serial {serial}")
    config = faulty_token.config(uri="pkcs11:token=dpop-agent")
    wrong = token.folder / "wrong-pin"
    wrong.write_text("00000000")
    wrong.chmod(0o600)
    add_again(config, pin_file=wrong, uri="pkcs11:token=other")
    agent = make_agent(config).start()
    for _ in range(2):
        with Wire(agent.socket) as wire:
            until(
                lambda wire=wire: (
                    sorted(s["state"] for s in wire.result("status")["stores"])  # type: ignore[misc]
                    == ["locked", "ready"]
                )
            )
        agent.stop()
        agent.start()
    until(lambda: faulty_token.logins == 4)  # three of the right one's, one of the other's


# Where the mark can't be made


def _mounted(state: Path, commands: str) -> list[str]:
    """Before the agent: with other mounts, which nobody else sees."""
    state.mkdir(exist_ok=True)
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    return [*words, f'{commands} && exec "$@"', str(state)]


def _unnotable(
    make_agent: MakeAgent, faulty: Faulty, state: Path, commands: str, **settings: str
) -> Agent:
    """An agent whose state folder was made, and then was mounted so that no mark fits in."""
    before = make_agent(faulty.config(uri="pkcs11:token=another"), state=state).start()
    until_state(before, "absent")
    before.stop()
    config = faulty.config(**settings)
    agent: Agent = make_agent(config, state=state, preexec=_mounted(state, commands))
    return agent.start()


NO_NEW_FILE = (  # but those that are there can be written
    'mkdir -p "$0.rw" && mount --bind "$0" "$0.rw" && '
    'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && '
    'for file in "$0.rw"/*; do mount --bind "$file" "$0/${file##*/}" || exit; done'
)
FULL = (
    'mount -t tmpfs -o size=64k,mode=0700 tmpfs "$0" && '
    '{ dd if=/dev/zero of="$0/filler" bs=4096 2>/dev/null; true; }'
)


@pytest.mark.usefixtures("own_mounts")
@pytest.mark.parametrize("commands", [NO_NEW_FILE, FULL], ids=["read-only", "full"])
def test_where_the_mark_cant_be_made_no_stored_pin_is_tried(
    faulty_token: Faulty, make_agent: MakeAgent, tmp_path: Path, commands: str
) -> None:
    state = tmp_path / "state"
    agent = _unnotable(make_agent, faulty_token, state, commands)
    for _ in range(3):
        told = until_state(agent, "locked")
        assert "no login to the PKCS#11 token" in told["reason"]
        assert str(state) in told["reason"]
        assert told["hint"] == "mend the folder, then: dpop-agent unlock softhsm"
        assert set(ask(agent)) == {"locked"}
        unlocked = agent.run("unlock")
        assert unlocked.returncode == 1
        assert f"can't be noted in {state}" in unlocked.stderr
        agent.run("reload", check=True)
        agent.stop()
        agent.start()
    assert faulty_token.logins == 0


@pytest.mark.usefixtures("own_mounts")
@pytest.mark.parametrize("commands", [NO_NEW_FILE, FULL], ids=["read-only", "full"])
def test_where_the_mark_cant_be_made_a_typed_pin_has_its_one_try(
    faulty_token: Faulty, make_agent: MakeAgent, tmp_path: Path, commands: str
) -> None:
    agent = _unnotable(make_agent, faulty_token, tmp_path / "state", commands, pin_source="prompt")
    assert unlock(agent, "99999999")[0] == 1
    ask(agent)
    assert faulty_token.logins == 1
    assert unlock(agent, faulty_token.token.pin)[0] == 0
    assert faulty_token.logins == 2


def test_a_stored_pin_is_tried_once_though_its_mark_couldnt_be_made_at_first(
    faulty_token: Faulty, make_agent: MakeAgent, right: str
) -> None:
    agent = make_agent(faulty_token.config()).start()
    refused(agent)
    agent.stop()
    (file,) = agent.state.glob("logins-*")
    file.unlink()
    file.mkdir()
    agent.start()
    until_state(agent, "locked")
    assert agent.run("unlock").returncode == 1
    file.rmdir()
    assert faulty_token.logins == 1
    agent.stop()
    agent.start()
    refused(agent)
    agent.stop()
    agent.start()
    refused(agent)
    assert faulty_token.logins == 2  # the first one's mark was taken away by hand


@pytest.mark.usefixtures("own_mounts")
def test_a_disk_that_fills_up_later_costs_a_wrong_pin_no_second_login(
    faulty_token: Faulty, make_agent: MakeAgent, tmp_path: Path
) -> None:
    mount = 'mount -t tmpfs -o size=256k,mode=0700 tmpfs "$0"'
    state = tmp_path / "state"
    agent = make_agent(faulty_token.config(), state=state, preexec=_mounted(state, mount)).start()
    signer = until_open(agent)["signer_pid"]
    filled = Path(f"/proc/{agent.pid}/root{state}/filler")
    with filled.open("wb", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    faulty_token.token.pin_file.write_text("00000000\n")
    os.kill(signer, signal.SIGKILL)
    until(lambda: ask(agent, times=1) == ["pin_refused"])
    agent.run("reload", check=True)
    refused(agent)
    assert faulty_token.logins == 2  # the first one was accepted


@pytest.mark.parametrize("what", ["link", "fifo", "folder", "garbage", "deep", "numbers"])
def test_what_isnt_a_mark_in_its_place_counts_as_one_and_is_not_followed(
    faulty_token: Faulty, make_agent: MakeAgent, tmp_path: Path, what: str
) -> None:
    agent = make_agent(faulty_token.config()).start()
    until_open(agent)
    agent.stop()
    (file,) = agent.state.glob("logins-*")
    file.unlink()
    elsewhere = tmp_path / "elsewhere"
    if what == "link":
        file.symlink_to(elsewhere)
    elif what == "fifo":
        os.mkfifo(file)
    elif what == "folder":
        file.mkdir()
    else:
        texts = {
            "garbage": "x" * 99,
            "deep": "[" * 100_000,
            "numbers": '{"marks": {"a": {"tries": 1e999}}}',
        }
        file.write_text(texts[what])
    agent.start()
    until_state(agent, "locked")
    ask(agent)
    assert faulty_token.logins == 1
    assert not elsewhere.exists()
    if what in {"link", "fifo", "folder"}:
        assert agent.run("unlock").returncode == 1
        assert faulty_token.logins == 1
        file.rmdir() if what == "folder" else file.unlink()
    agent.run("unlock", check=True)
    until_open(agent)
    assert faulty_token.logins == 2


def test_a_state_folder_that_is_replaced_doesnt_make_a_running_agent_try_again(
    faulty_token: Faulty, make_agent: MakeAgent, right: str
) -> None:
    agent = make_agent(faulty_token.config()).start()
    refused(agent)
    agent.state.rename(agent.state.with_name("before"))
    agent.state.mkdir(mode=0o700)
    refused(agent)
    agent.run("reload", check=True)
    refused(agent)
    assert faulty_token.logins == 1


def test_the_mark_names_the_token_and_nothing_that_comes_from_a_pin(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    faulty_token.token.pin_file.write_text("canary-4711\n")
    agent = make_agent(faulty_token.config()).start()
    refused(agent)
    (file,) = agent.state.glob("logins-*")
    assert file.stat().st_mode & 0o777 == 0o600
    noted = json.loads(file.read_text())
    assert noted.keys() == {"manufacturer", "model", "serial", "marks"}
    assert noted["marks"]["dpop-agent"].keys() == {"tries", "at", "how", "shared"}
    assert "canary" not in "".join(f.read_text() for f in agent.state.iterdir() if f.is_file())


@pytest.mark.parametrize("left", ["tried: 1:2:3", "1:2:3", "5e"])
def test_a_pin_that_an_earlier_version_remembered_as_refused_stays_so_until_unlock(
    faulty_token: Faulty, make_agent: MakeAgent, left: str
) -> None:
    agent = make_agent(faulty_token.config())
    agent.state.mkdir(mode=0o700)
    before = agent.state / "signer-softhsm.lock.refused"
    before.write_text(left)
    agent.start()
    tried = until_state(agent, "locked")
    assert "was refused before" in tried["reason"]
    assert not before.exists()
    _rename(agent)
    refused(agent)
    assert faulty_token.logins == 0
    agent.run("unlock", check=True)
    until_open(agent)


# Sources


def test_a_refused_credential_costs_one_login_though_each_start_of_a_unit_has_new_files(
    faulty_token: Faulty, make_agent: MakeAgent, tmp_path: Path
) -> None:
    config = faulty_token.config(pin_source="credential:hsm-pin")
    state = tmp_path / "state"
    pins = "00000000", "00000000", faulty_token.token.pin
    for number, pin in enumerate(pins):
        folder = tmp_path / f"credentials-{number}"
        folder.mkdir(mode=0o700)
        (folder / "hsm-pin").write_text(pin)
        (folder / "hsm-pin").chmod(0o400)
        agent = make_agent(config, state=state, env={"CREDENTIALS_DIRECTORY": str(folder)}).start()
        refused(agent)
        assert faulty_token.logins == 1
        if pin == pins[-1]:
            agent.run("unlock", check=True)
            until_open(agent)
        agent.stop()
    assert faulty_token.logins == 2


def test_a_typed_pin_has_one_try_while_a_mark_stands_and_a_right_one_lifts_it(
    faulty_token: Faulty, make_agent: MakeAgent, right: str
) -> None:
    agent = make_agent(faulty_token.config()).start()
    refused(agent)
    agent.stop()
    prompts = faulty_token.config(pin_source="prompt")
    asking = make_agent(prompts, state=agent.state).start()
    assert unlock(asking, "99999999")[0] == 1
    assert faulty_token.logins == 2
    assert unlock(asking, right.strip())[0] == 0
    assert faulty_token.logins == 3
    asking.stop()
    faulty_token.token.pin_file.write_text(right)
    again = make_agent(faulty_token.config(), state=agent.state).start()
    until_open(again)


def test_a_wrong_pin_that_was_typed_keeps_no_store_with_a_stored_one_from_its_login(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    asking = make_agent(faulty_token.config(pin_source="prompt")).start()
    assert unlock(asking, "99999999")[0] == 1
    asking.stop()
    agent = make_agent(faulty_token.config(), state=asking.state).start()
    until_open(agent)


# An accepted PIN


RELEASING = serve_with("--release-after", "1s")


@pytest.mark.parametrize("pin_source", ["file", "prompt"])
def test_an_accepted_pin_that_is_refused_later_is_tried_once(
    faulty_token: Faulty, make_agent: MakeAgent, pin_source: str
) -> None:
    pin = faulty_token.token.pin
    config = faulty_token.config(**({"pin_source": "prompt"} if pin_source == "prompt" else {}))
    agent = make_agent(config, preexec=RELEASING).start()
    if pin_source == "prompt":
        assert unlock(agent, pin)[0] == 0
    until_open(agent)
    until_logged(agent, "is released")
    faulty_token.rules("C_Login 2 return 0xA0")
    assert set(ask(agent)) <= {"pin_refused", "locked"}
    agent.run("reload", check=True)
    assert store(agent)["state"] == "locked"
    agent.stop()
    agent.start()
    assert until_state(agent, "locked")
    assert faulty_token.calls("C_Login") == [USER, USER]


@pytest.mark.usefixtures("own_mounts")
@pytest.mark.parametrize("how", ["ro", "gone"])
def test_an_accepted_pin_is_used_again_from_memory_though_the_disk_fails(
    faulty_token: Faulty, make_agent: MakeAgent, tmp_path: Path, how: str
) -> None:
    state = tmp_path / "state"
    mount = 'mount -t tmpfs -o size=256k,mode=0700 tmpfs "$0"'
    agent = make_agent(
        faulty_token.config(pin_source="prompt"),
        state=state,
        preexec=[*_mounted(state, mount), *RELEASING],
    ).start()
    assert unlock(agent, faulty_token.token.pin)[0] == 0
    agent.create_key("shop")
    enter = ["nsenter", "--target", str(agent.pid), "--mount", "--"]
    if how == "ro":
        subprocess.run([*enter, "mount", "-o", "remount,ro", state], check=True)
    else:
        for file in Path(f"/proc/{agent.pid}/root{state}").glob("logins-*"):
            file.unlink()
            file.mkdir()
    until_logged(agent, "is released")
    with AgentClient(agent.socket) as client:
        client.proof("GET", HTU, key="shop")
    assert faulty_token.logins == 2


ALWAYS = "attribute dpop-agent%20shop@1 0x202 value 01"


def _asking_for_each(make_agent: MakeAgent, faulty_token: Faulty) -> Agent:
    """With a key that wants the PIN for each signature; SoftHSM2 knows nothing of it."""
    agent = make_agent(faulty_token.config()).start()
    agent.create_key("shop")
    agent.stop()
    agent.start()
    until_open(agent)
    faulty_token.rules(ALWAYS, "C_Login context return 0x0")
    agent.run("reload", check=True)
    return agent


@pytest.mark.parametrize("code", [0xA0, 0x6, 0x30])
def test_a_pin_that_a_signature_wants_and_that_isnt_accepted_is_tried_once(
    faulty_token: Faulty, make_agent: MakeAgent, code: int
) -> None:
    agent = _asking_for_each(make_agent, faulty_token)
    logins = faulty_token.logins
    with AgentClient(agent.socket) as client:
        for _ in range(3):
            client.proof("GET", HTU, key="shop")
        assert faulty_token.calls("C_Login")[logins:] == [CONTEXT_SPECIFIC] * 3
        faulty_token.rules(ALWAYS, f"C_Login return {code:#x}")
        for _ in range(3):
            with pytest.raises(PinRefused):
                client.proof("GET", HTU, key="shop")
    faulty_token.rules()
    refused(agent)
    agent.stop()
    agent.start()
    refused(agent)
    assert faulty_token.calls("C_Login")[logins + 3 :] == [CONTEXT_SPECIFIC]


@pytest.mark.parametrize("flag", [0x20000, 0x40000], ids=["final-try", "locked"])
def test_a_signature_spends_no_last_try_on_a_pin_that_nobody_types(
    faulty_token: Faulty, make_agent: MakeAgent, flag: int
) -> None:
    agent = _asking_for_each(make_agent, faulty_token)
    with AgentClient(agent.socket) as client:
        client.proof("GET", HTU, key="shop")
    logins = faulty_token.logins
    faulty_token.rules(ALWAYS, f"flags set {flag:#x}", "C_Login return 0xA0")
    with AgentClient(agent.socket) as client:
        for _ in range(3):
            with pytest.raises(PinRefused, match=r"one PIN try left|PIN is locked"):
                client.proof("GET", HTU, key="shop")
        assert faulty_token.logins == logins
        faulty_token.rules(ALWAYS)
        agent.run("unlock", check=True)
        faulty_token.rules(ALWAYS, "C_Login return 0x0")
        client.proof("GET", HTU, key="shop")
    assert faulty_token.calls("C_Login")[logins:] == [USER, CONTEXT_SPECIFIC]


def test_a_signer_that_is_killed_while_a_signature_waits_leaves_its_right_pin_alone(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    agent = _asking_for_each(make_agent, faulty_token)
    accepted = "C_Login context return 0x0"
    faulty_token.rules(ALWAYS, accepted, "C_Sign hang")
    with AgentClient(agent.socket, timeout=30) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.proof, "GET", HTU, key="shop")
        until(lambda: faulty_token.calls("C_Sign"))
        assert faulty_token.calls("C_Login")[-1] == CONTEXT_SPECIFIC
        faulty_token.rules(ALWAYS, accepted)
        _kill_signer(agent)
        with suppress(SignerFailed):
            asked.result()
    agent.stop()
    agent.start()
    until_open(agent)
    with AgentClient(agent.socket) as client:
        client.proof("GET", HTU, key="shop")


def test_a_signature_that_fails_after_its_login_costs_no_later_login(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    agent = _asking_for_each(make_agent, faulty_token)
    accepted = "C_Login context return 0x0"
    faulty_token.rules(ALWAYS, accepted, "C_Sign return 0x30")
    with AgentClient(agent.socket) as client, pytest.raises(SignerFailed, match="DeviceError"):
        client.proof("GET", HTU, key="shop")
    faulty_token.rules(ALWAYS, accepted)
    with Wire(agent.admin_socket, timeout=30) as wire:
        until(lambda: "result" in wire.ask("proof", key="shop", **TARGET))


# An HSM that never locks


def test_login_retries_allows_so_many_more_with_growing_pauses_and_then_none(
    faulty_token: Faulty, make_agent: MakeAgent, right: str
) -> None:
    config = faulty_token.config()
    config.write_text(
        config.read_text().replace("[stores.softhsm]", "[stores.softhsm]\nlogin_retries = 2")
    )
    agent = make_agent(config).start()
    at: list[float] = []
    with Wire(agent.admin_socket, timeout=30) as wire:
        while (error := wire.error("key.create", key="shop", origins=[]))["type"] != "pin_refused":
            assert (error["type"], error["retry"]) == ("locked", "later")
            assert error["retry_after_ms"] > 0
            if len(at) < faulty_token.logins:
                at.append(time.monotonic())
            time.sleep(0.05)
    at.append(time.monotonic())
    assert len(at) == faulty_token.logins == 3
    assert at[2] - at[1] > at[1] - at[0]
    agent.stop()
    agent.start()
    refused(agent)
    assert faulty_token.logins == 3
    faulty_token.token.pin_file.write_text(right)
    agent.run("unlock", check=True)
    until_open(agent)


def test_login_retries_opens_a_store_whose_login_failed_now_and_then(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    faulty_token.rules("C_Login 1 return 0x6")
    config = faulty_token.config()
    config.write_text(
        config.read_text().replace("[stores.softhsm]", "[stores.softhsm]\nlogin_retries = 1")
    )
    agent = make_agent(config).start()
    with Wire(agent.admin_socket, timeout=30) as wire:
        until(lambda: "result" in wire.ask("key.create", key="shop", origins=[]))
    assert faulty_token.logins == 2

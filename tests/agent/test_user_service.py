"""The agent as a service of a real user manager's, as an ordinary user has it."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.agent.places import until
from tests.documents import Block, commands
from tests.user_manager import HOME, PYTHON, RUNTIME, UserManager, user_manager

SERVICE, SOCKET = "dpop-agent.service", "dpop-agent.socket"
UNITS = f"{HOME}/.config/systemd/user"
CONFIG = f"{HOME}/.config/dpop-agent/config.toml"
AGENT_SOCK = f"{RUNTIME}/dpop-agent/agent.sock"
PROOF = ("proof", "GET", "https://api.example.com/")


@pytest.fixture(scope="module")
def manager() -> Iterator[UserManager]:
    with user_manager() as manager:
        yield manager


@pytest.fixture
def user(manager: UserManager) -> Iterator[UserManager]:
    """Someone without a service, and with a configuration that works."""
    config = manager.read(CONFIG)
    yield manager
    manager.write(CONFIG, config)
    manager.agent("service", "uninstall", "--discard-changes", check=False)
    manager.run("sh", "-c", f"rm -rf '{UNITS}' '{HOME}/.local/state' '{RUNTIME}/dpop-agent'")
    manager.run("systemctl", "--user", "daemon-reload")


@pytest.fixture
def installed(user: UserManager) -> UserManager:
    user.agent("service", "install")
    return user


def is_proof(text: str) -> bool:
    return re.fullmatch(r"ey[\w-]+\.ey[\w-]+\.[\w-]{86}\n", text) is not None


def pid_of(user: UserManager) -> int:
    return int(user.show(SERVICE, "MainPID"))


def test_install_gives_a_service_that_serves_and_says_how_to_undo_it(user: UserManager) -> None:
    said = user.agent("service", "install").stdout
    for unit in (SOCKET, SERVICE):
        assert f"wrote {UNITS}/{unit}" in said
    assert "dpop-agent service uninstall" in said
    assert "loginctl enable-linger" in said
    assert user.show(SERVICE, "ActiveState") == "active"
    user.agent("key", "create", "default", "--any-origin")
    assert is_proof(user.agent(*PROOF).stdout)
    user.agent("service", "uninstall")
    assert not user.exists(f"{UNITS}/{SERVICE}")
    assert not user.exists(AGENT_SOCK)
    assert user.show(SERVICE, "LoadState") == "not-found"
    assert user.agent(*PROOF, check=False).returncode == 3


@pytest.mark.runs("docs/service.md")
def test_the_commands_of_the_document_are_right_one_after_the_other(
    user: UserManager, blocks: list[Block]
) -> None:
    path = f"{HOME}/venv/bin:/usr/bin:/bin"
    (block,) = blocks
    for line, _ in commands(block):
        user.run("sh", "-c", line, PATH=path)
    assert not user.exists(f"{UNITS}/{SERVICE}")


def test_the_first_use_of_a_socket_starts_the_agent(installed: UserManager) -> None:
    installed.run("systemctl", "--user", "stop", SERVICE)
    assert pid_of(installed) == 0
    installed.agent("key", "create", "default", "--any-origin")
    assert pid_of(installed) > 0
    installed.run("systemctl", "--user", "stop", SERVICE)
    assert is_proof(installed.agent(*PROOF).stdout)
    assert installed.agent("service", "status").stdout.count("active") == 2


def test_doctor_says_how_the_service_is_and_what_it_says_to_type_mends_it(
    installed: UserManager,
) -> None:
    installed.agent("key", "create", "default", "--any-origin")
    sound = installed.agent("doctor").stdout
    assert f"ok       service: {SERVICE} is active" in sound
    assert "default@1 signs (self-test)" in sound

    right = installed.read(CONFIG)
    installed.write(CONFIG, "[agent\n")
    installed.agent("service", "restart", check=False)
    failed = installed.agent("doctor", check=False)
    assert failed.returncode == 1
    assert f"wrong    service: {SERVICE} failed" in failed.stdout
    installed.write(CONFIG, right)
    assert "once that is mended: dpop-agent service start" in failed.stdout
    installed.agent("service", "start")
    mended = installed.agent("doctor").stdout  # 0: what it warns of is other tests' keys
    assert f"ok       service: {SERVICE} is active" in mended


def test_the_socket_starts_with_the_users_manager(installed: UserManager) -> None:
    wants = f"{UNITS}/sockets.target.wants/{SOCKET}"
    assert installed.run("readlink", wants).stdout.strip() == f"{UNITS}/{SOCKET}"


def test_a_killed_agent_comes_back(installed: UserManager) -> None:
    installed.agent("key", "create", "default", "--any-origin")
    before = pid_of(installed)
    installed.run("kill", "-9", str(before))
    assert is_proof(installed.agent(*PROOF).stdout)
    assert pid_of(installed) not in (0, before)


TRIED = """
import ctypes, json, mmap, os, resource, socket, sys

libc = ctypes.CDLL(None, use_errno=True)

def errno_of(what):
    ctypes.set_errno(0)
    try:
        what()
    except OSError as e:
        return e.errno
    return ctypes.get_errno()

print(json.dumps({
    "unix": errno_of(lambda: socket.socket(socket.AF_UNIX)),
    "inet": errno_of(lambda: socket.socket(socket.AF_INET)),
    "namespace": errno_of(lambda: libc.unshare(0x10000000)),
    "executable": errno_of(lambda: mmap.mmap(-1, 4096, prot=7)),
    "personality": errno_of(lambda: libc.personality(8)),
    "mount": errno_of(lambda: libc.mount(b"x", b"/x", b"tmpfs", 0, None)),
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "privileges": [line.split()[1] for line in open("/proc/self/status") if "NoNewPrivs" in line],
}))
"""


def test_what_its_unit_forbids_is_forbidden(installed: UserManager) -> None:
    """Another program tries it, in a unit with the same settings."""
    status = installed.read(f"/proc/{pid_of(installed)}/status")
    assert re.search(r"^Seccomp:\s+2$", status, re.M)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.M)
    unit = installed.read(f"{UNITS}/{SERVICE}")
    settings = unit[unit.index("NoNewPrivileges=") : unit.index("[Install]")]
    installed.write(f"{HOME}/tried.py", TRIED)
    installed.write(
        f"{UNITS}/tried.service",
        f'[Service]\nType=oneshot\nExecStart="{PYTHON}" "{HOME}/tried.py"\n'
        f"StandardOutput=file:{HOME}/outcome\n{settings}",
    )
    installed.run("systemctl", "--user", "start", "tried.service")
    assert json.loads(installed.read(f"{HOME}/outcome")) == {
        "unix": 0,
        "inet": errno.EAFNOSUPPORT,
        "namespace": errno.EPERM,
        "executable": errno.EPERM,
        "personality": errno.EPERM,
        "mount": errno.EPERM,
        "core": [0, 0],
        "privileges": ["1"],
    }


def test_stop_ends_the_socket_too_and_start_brings_both_back(installed: UserManager) -> None:
    installed.agent("service", "stop")
    assert installed.show(SOCKET, "ActiveState") == "inactive"
    assert installed.agent("status", check=False).returncode == 3
    assert installed.agent("service", "status", check=False).returncode == 3
    installed.agent("service", "start")
    assert installed.show(SOCKET, "ActiveState") == "active"
    assert installed.agent("status").returncode == 0


def test_a_service_that_systemd_hasnt_loaded_yet_starts(installed: UserManager) -> None:
    installed.run("systemctl", "--user", "disable", SOCKET)
    installed.agent("service", "stop")
    lost = installed.run("systemctl", "--user", "reset-failed", SERVICE, check=False)
    assert "not loaded" in lost.stderr
    installed.agent("service", "start")
    assert installed.agent("status").returncode == 0


def test_dpop_agent_stop_ends_a_service_through_systemd_and_says_what_starts_it(
    installed: UserManager,
) -> None:
    said = installed.agent("stop").stdout
    assert "dpop-agent service start" in said
    assert installed.show(SOCKET, "ActiveState") == "inactive"
    assert installed.agent("stop", check=False).returncode == 3


def test_a_restart_gives_another_agent_at_the_same_sockets(installed: UserManager) -> None:
    before, inode = pid_of(installed), installed.run("stat", "-c%i", AGENT_SOCK).stdout
    installed.agent("service", "restart")
    assert pid_of(installed) not in (0, before)
    assert installed.run("stat", "-c%i", AGENT_SOCK).stdout == inode


def test_a_removed_socket_comes_back_and_is_systemds_again_after_stop_and_start(
    installed: UserManager,
) -> None:
    installed.run("rm", AGENT_SOCK)
    until(lambda: installed.exists(AGENT_SOCK))
    until(lambda: installed.agent("status", check=False).returncode == 0)
    installed.agent("service", "stop")
    assert not installed.exists(AGENT_SOCK)
    installed.agent("service", "start")
    installed.run("systemctl", "--user", "stop", SERVICE)
    assert installed.exists(AGENT_SOCK)
    assert installed.agent("status").returncode == 0


def test_systemctls_reload_reads_the_configuration_again(installed: UserManager) -> None:
    config = installed.read(CONFIG)
    name = re.findall(r"^\[stores\.(\S+)\]", config, re.M)[0]
    installed.write(CONFIG, config + config[config.index("[stores.") :].replace(name, "more", 1))
    installed.run("systemctl", "--user", "reload", SERVICE)
    assert "more" in installed.agent("status").stdout
    installed.write(CONFIG, "nonsense")
    assert installed.run("systemctl", "--user", "reload", SERVICE, check=False).returncode == 1
    assert installed.show(SERVICE, "ActiveState") == "active"


def test_installing_again_keeps_keys_and_configuration_and_starts_what_is_installed_now(
    installed: UserManager,
) -> None:
    jkt = installed.agent("key", "create", "default", "--any-origin", "--json").stdout
    before, config = pid_of(installed), installed.read(CONFIG)
    assert "installed like this already" in installed.agent("service", "install").stdout
    assert pid_of(installed) != before
    assert installed.read(CONFIG) == config
    listed = installed.agent("key", "list", "--json").stdout
    assert re.findall(r'"jkt": "[^"]+"', listed) == re.findall(r'"jkt": "[^"]+"', jkt)
    installed.agent("service", "uninstall")
    assert installed.exists(f"{HOME}/.local/state/dpop-agent/ledger.json")
    assert installed.read(CONFIG) == config


def test_a_unit_of_an_older_version_is_replaced(installed: UserManager) -> None:
    script = (
        "import sys; from dpop_agent.cli import unit_files as u\n"
        "p = sys.argv[1]; t = u.read(p).partition('\\n')[2]\n"
        "t = t.replace('RestartSec=2', 'RestartSec=7')\n"
        "u.write_unit(p, u.marked(t))"
    )
    installed.run(PYTHON, "-c", script, f"{UNITS}/{SERVICE}")
    assert "dpop-agent service install" in installed.agent("service", "status").stdout
    said = installed.agent("service", "install").stdout
    assert said.count("wrote ") == 1
    assert "RestartSec=2" in installed.read(f"{UNITS}/{SERVICE}")
    assert installed.agent("status").returncode == 0


def test_a_unit_that_was_changed_by_hand_is_kept(installed: UserManager) -> None:
    changed = installed.read(f"{UNITS}/{SERVICE}") + "\n[Service]\nNice=3\n"
    installed.write(f"{UNITS}/{SERVICE}", changed)
    shown = installed.agent("service", "status").stdout
    assert "changed by hand" in shown
    assert "dpop-agent service install --discard-changes" in shown
    for verb in ("install", "uninstall"):
        done = installed.agent("service", verb, check=False)
        assert done.returncode == 1
        assert "was changed by hand" in done.stderr
        assert "--discard-changes" in done.stderr
        assert installed.read(f"{UNITS}/{SERVICE}") == changed
    installed.agent("service", "install", "--discard-changes")
    assert "Nice" not in installed.read(f"{UNITS}/{SERVICE}")


def test_changes_beside_the_unit_stay_and_count(installed: UserManager) -> None:
    installed.write(f"{UNITS}/{SERVICE}.d/override.conf", "[Service]\nNice=3\n", "644")
    installed.agent("service", "install")
    assert installed.show(SERVICE, "Nice") == "3"


def test_a_program_whose_path_has_a_variables_name_is_run_from_there(user: UserManager) -> None:
    here = f"{HOME}/${{ELSEWHERE}}$HOME"
    user.run("cp", "-r", f"{HOME}/venv", here)
    user.run("systemctl", "--user", "set-environment", "ELSEWHERE=/none")
    user.run(f"{here}/bin/python", "-P", "-m", "dpop_agent", "service", "install")
    command = user.read(f"/proc/{pid_of(user)}/cmdline").split("\0")
    assert command[0] == f"{here}/bin/python"


def test_a_service_that_systemd_cant_read_is_uninstalled(installed: UserManager) -> None:
    installed.agent("service", "stop")
    installed.write(f"{UNITS}/{SERVICE}.d/override.conf", "[Service]\nExecStart=\n", "644")
    installed.run("systemctl", "--user", "daemon-reload")
    assert installed.show(SERVICE, "LoadState") == "bad-setting"
    installed.agent("service", "uninstall")
    for unit in (SERVICE, SOCKET):
        assert not installed.exists(f"{UNITS}/{unit}")
    assert installed.exists(f"{UNITS}/{SERVICE}.d/override.conf")


def test_units_that_the_manager_doesnt_look_for_are_uninstalled(user: UserManager) -> None:
    other = f"{HOME}/elsewhere"

    def elsewhere(verb: str) -> int:
        done = user.agent(
            "service", verb, check=False, XDG_CONFIG_HOME=other, DPOP_AGENT_CONFIG=CONFIG
        )
        return done.returncode

    assert elsewhere("install") == 1
    assert user.exists(f"{other}/systemd/user/{SERVICE}")
    assert elsewhere("uninstall") == 0
    assert user.run("ls", f"{other}/systemd/user").stdout == ""


def test_of_a_unit_that_is_a_link_the_link_is_removed_and_the_file_stays(
    installed: UserManager,
) -> None:
    unit, own = f"{UNITS}/{SERVICE}", f"{HOME}/own.service"
    installed.run("mv", unit, own)
    installed.run("ln", "-s", own, unit)
    installed.run("systemctl", "--user", "daemon-reload")
    installed.agent("service", "uninstall")
    assert not installed.exists(unit)
    assert not installed.exists(f"{UNITS}/{SOCKET}")
    assert installed.exists(own)


def test_another_service_of_that_name_is_left_alone(user: UserManager) -> None:
    theirs = "[Service]\nExecStart=/bin/true\n"
    for folder in (UNITS, f"{RUNTIME}/systemd/user"):
        path = f"{folder}/{SERVICE}"
        user.write(path, theirs, "644")
        user.run("systemctl", "--user", "daemon-reload")
        done = user.agent("service", "install", check=False)
        assert done.returncode == 1
        assert "another service of that name" in done.stderr
        assert path in done.stderr
        assert user.read(path) == theirs
        user.run("rm", path)
        user.run("systemctl", "--user", "daemon-reload")


def test_what_lies_where_it_vanishes_is_refused(user: UserManager) -> None:
    vanishing = f"{RUNTIME}/config.toml"
    user.write(vanishing, user.read(CONFIG))
    done = user.agent("service", "install", check=False, DPOP_AGENT_CONFIG=vanishing)
    assert done.returncode == 1
    assert (
        f"the configuration is in /run, which is emptied now and then: {vanishing}" in done.stderr
    )
    assert not user.exists(UNITS)


def test_without_a_configuration_nothing_is_installed(user: UserManager) -> None:
    done = user.agent("service", "install", check=False, DPOP_AGENT_CONFIG=f"{HOME}/none.toml")
    assert done.returncode == 1
    assert "dpop-agent init" in done.stderr
    assert not user.exists(UNITS)


def test_where_no_bus_leads_to_the_manager_it_is_said_what_to_do(user: UserManager) -> None:
    for verb in ("install", "status", "start"):
        done = user.agent("service", verb, check=False, without=("XDG_RUNTIME_DIR",))
        assert done.returncode == 1
        assert "systemd can't be asked: Failed to connect to bus" in done.stderr
        assert "by ssh" in done.stderr
        assert "Traceback" not in done.stderr


@contextmanager
def serving(user: UserManager) -> Iterator[None]:
    """An agent that was started by hand."""
    script = f"'{PYTHON}' -P -m dpop_agent serve >'{HOME}/serve.log' 2>&1 & echo $!"
    pid = user.run("sh", "-c", script).stdout.strip()
    try:
        until(lambda: user.agent("status", check=False).returncode == 0)
        yield
    finally:
        user.run("kill", pid, check=False)


def test_an_agent_that_was_started_by_hand_keeps_its_sockets_until_it_is_stopped(
    user: UserManager,
) -> None:
    with serving(user):
        done = user.agent("service", "install", check=False)
        assert done.returncode == 1
        assert f"an agent serves {AGENT_SOCK} already" in done.stderr
        assert "dpop-agent stop" in done.stderr
        assert user.agent("status").returncode == 0
        user.agent("stop")
        user.agent("service", "install")
        assert user.agent("status").returncode == 0


def test_an_agent_that_is_started_by_hand_beside_the_service_is_told_of_it(
    installed: UserManager,
) -> None:
    installed.run("systemctl", "--user", "stop", SERVICE)
    done = installed.agent("serve", check=False)
    assert done.returncode == 1
    assert "dpop-agent service stop" in done.stderr


def test_a_pin_comes_as_a_credential_and_is_asked_of_nobody(user: UserManager) -> None:
    config, pin = user.read(CONFIG), user.read(f"{HOME}/token/pin")
    user.write(CONFIG, re.sub(r"(?m)^pin_source = .*", 'pin_source = "credential:work"', config))
    done = user.agent("service", "install", check=False)
    place = f"{HOME}/.config/dpop-agent/credentials/work"
    assert done.returncode == 1
    assert f"there is no {place}" in done.stderr
    user.write(place, pin)
    user.agent("service", "install")
    user.agent("key", "create", "default", "--any-origin")
    assert is_proof(user.agent(*PROOF).stdout)
    assert pin.strip() not in user.agent("service", "log").stdout


def test_a_service_that_doesnt_start_says_why_and_starts_once_that_is_mended(
    installed: UserManager,
) -> None:
    config = installed.read(CONFIG)
    installed.write(CONFIG, config + "nonsense = 1\n")
    for words in (("restart",), ("start",)):
        done = installed.agent("service", *words, check=False)
        assert done.returncode == 1
        assert "the service doesn't start" in done.stderr
        assert "'nonsense'" in done.stderr
    done = installed.agent("service", "status", check=False)
    assert done.returncode == 3
    assert "'nonsense'" in done.stdout
    assert installed.agent("status", check=False).returncode == 3, "nobody waits for an answer"
    installed.write(CONFIG, config)
    installed.agent("service", "start")
    assert installed.agent("status").returncode == 0


def test_the_log_has_what_the_agent_said_at_its_level_and_with_one_time(
    installed: UserManager,
) -> None:
    until(lambda: f"]: serving {AGENT_SOCK}" in installed.agent("service", "log").stdout)
    listed = installed.agent("service", "log", "--json").stdout.splitlines()
    served = [line for line in map(json.loads, listed) if line["MESSAGE"].startswith("serving ")]
    assert {line["PRIORITY"] for line in served} == {"6"}


def test_the_log_goes_on_with_what_comes_where_it_is_followed(installed: UserManager) -> None:
    follow = f"setsid '{PYTHON}' -P -m dpop_agent service log --follow > '{HOME}/followed' 2>&1"
    pid = installed.run("sh", "-c", f"{follow} & echo $!").stdout.strip()
    try:
        until(lambda: f"]: serving {AGENT_SOCK}" in installed.read(f"{HOME}/followed"))
        installed.agent("service", "stop")
        until(lambda: "]: the agent has ended" in installed.read(f"{HOME}/followed"))
        assert "]: the agent is ending: SIGTERM" in installed.read(f"{HOME}/followed")
    finally:
        installed.run("kill", "--", f"-{pid}")


def test_a_service_whose_program_went_is_told_with_what_installs_it_anew(
    installed: UserManager,
) -> None:
    installed.run("mv", f"{HOME}/venv", f"{HOME}/moved")
    other = installed.read(f"{HOME}/moved/bin/dpop-agent").replace("/venv/", "/moved/")
    installed.write(f"{HOME}/moved/bin/other", other, "700")
    try:
        done = installed.run(f"{HOME}/moved/bin/other", "service", "restart", check=False)
        assert "its program isn't where it was when the service was installed" in done.stderr
        told = installed.run(f"{HOME}/moved/bin/other", "doctor", check=False).stdout
        assert "its program isn't where it was" in " ".join(told.split())
        for shown in (done.stderr, told):
            assert "dpop-agent service install" in shown
        installed.run(f"{HOME}/moved/bin/other", "service", "install")
        assert installed.run(f"{HOME}/moved/bin/other", "status").returncode == 0
    finally:
        installed.run("mv", f"{HOME}/moved", f"{HOME}/venv")
        installed.agent("service", "install")


def test_what_is_printed_is_what_is_installed(user: UserManager) -> None:
    printed = user.agent("service", "print").stdout
    assert not user.exists(UNITS)
    user.agent("service", "install")
    for unit in (SOCKET, SERVICE):
        assert user.read(f"{UNITS}/{unit}").strip() in printed


def test_only_root_changes_the_machines_service(user: UserManager) -> None:
    done = user.agent("service", "install", "--system", check=False)
    assert done.returncode == 1
    assert "systemctl enable --now dpop-agent.service" in done.stdout
    assert "nothing was done" in done.stderr


def test_everything_that_the_manager_ran_ends_with_the_agent(installed: UserManager) -> None:
    until(lambda: "ready" in installed.agent("status").stdout)
    group = installed.show(SERVICE, "ControlGroup")
    processes = f"/sys/fs/cgroup{group}/cgroup.procs"
    assert len(installed.read(processes).split()) == 3
    installed.agent("service", "stop")
    assert not installed.exists(processes)
    assert installed.show(SERVICE, "Result") == "success", "nothing had to be killed"

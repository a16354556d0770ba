"""`doctor` on set-ups that are broken: it names the cause, and what it says to type mends it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dpop_agent.cli.checks import running
from dpop_agent.cli.main import main
from tests.agent.places import (
    add_store,
    store,
    until,
    until_open,
    until_state,
    write_config,
)
from tests.agent.wire import Wire
from tests.faulty import Faulty
from tests.processes import ROOT, Agent, Token, new_token
from tests.stores import on_token
from tests.terminal import Terminal
from tests.unit.fake_agent import FakeAgent

MakeAgent = Callable[..., Agent]
Finding = dict[str, str]

COMMAND = re.compile(r"\(umask [^)]*\)|(?:dpop-agent|chmod|rm|mv|export|unset) [^;,]*[^;, ]")
"""What is typed of a mend: it ends where the next part begins."""

STEPS = 8
"""Mends that one set-up may take, one after the other."""


class Patient:
    """A terminal of somebody whose agent doesn't work, and who types what `doctor` says.

    Attributes:
        agent: it, running or not.
        token: its PKCS#11 token.
        env: the terminal's environment.
        preexec: words before each command.
        typed: the commands that were typed.
    """

    def __init__(self, agent: Agent, token: Token, folder: Path) -> None:
        self.agent = agent
        self.token = token
        self.env = agent.env
        self.preexec: list[str] = []
        self.typed: list[str] = []
        self._bin = folder / "bin"
        self._bin.mkdir()
        self._program("dpop-agent", f'exec {shlex.quote(sys.executable)} -m dpop_agent "$@"')
        self.env |= {"PATH": f"{self._bin}:{self.env['PATH']}", "PYTHONPATH": str(ROOT)}

    def _program(self, name: str, text: str) -> Path:
        path = self._bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o700)
        return path

    def edits_to(self, text: str) -> None:
        """From now on somebody corrects the configuration to that, in his editor."""
        right = self._bin / "right"
        right.write_text(text)
        self.env["EDITOR"] = str(self._program("editor", f'cat {right} > "$1"'))

    def doctor(self) -> tuple[int, list[Finding]]:
        """Its exit status, and what isn't fine."""
        done = subprocess.run(
            [*self.preexec, "dpop-agent", "doctor", "--json"],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.stderr == ""
        assert PIN[0] not in done.stdout
        told = json.loads(done.stdout)
        assert told["sound"] == (done.returncode == 0)
        bad = [found for found in told["findings"] if found["level"] != "ok"]
        assert all(found["mend"] for found in bad), bad
        return done.returncode, bad

    def type(self, command: str) -> None:
        """Type a command, and what it asks for: the PIN, or yes."""
        self.typed.append(command)
        if command == "dpop-agent doctor":
            time.sleep(0.2)  # a store was being opened; it is asked again in any case
        elif command == "dpop-agent serve":
            self.agent.start()
        elif command == "dpop-agent stop":
            assert self.agent.run("stop").returncode == 0
            self.agent.stop()  # it has ended already
        elif command.startswith(("dpop-agent unlock", "dpop-agent key destroy")):
            self._type_at_a_terminal(*shlex.split(command)[1:])
        else:
            done = subprocess.run(
                ["sh", "-c", f"{command}\nstatus=$?; env -0; exit $status"],
                env=self.env,
                input=f"{PIN[0]}\n",
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            if command.startswith(("export", "unset")):
                new = dict(v.split("=", 1) for v in done.stdout.split("\0") if "=" in v)
                self.env.clear()
                self.env.update(new)

    def _type_at_a_terminal(self, *words: str) -> None:
        with Terminal(self.agent, *words, env=self.env) as terminal:
            while terminal._read():
                for prompt, answer in (("PIN of the store", PIN[0]), ("Type yes", "yes")):
                    if prompt in terminal.shown:
                        terminal.shown = ""
                        terminal.type(f"{answer}\n")
            status, shown = terminal.end()
        assert status == 0, shown

    def follow(self, case: Case) -> None:
        """Do what is said, from the top, until all is sound."""
        status, bad = self.doctor()
        assert any(case.says in found["what"] for found in bad), bad
        assert status == int(not case.warns), bad
        while bad and len(self.typed) < STEPS:
            named = [f for f in bad if case.by_hand is not None and case.says in f["what"]]
            found = next(f for f in bad if COMMAND.search(f["mend"]) or f in named)
            commands = COMMAND.findall(found["mend"])
            if found in named and case.by_hand is not None:
                case.by_hand(self)
            chosen = [c for c in commands if case.prefer in c] or commands
            for command in chosen[:1]:
                self.type(command)
            _, bad = self.doctor()
        assert not bad, (bad, self.typed)


PIN = [""]


@dataclass(frozen=True)
class Case:
    """A set-up that is broken.

    Attributes:
        spoil: breaks it.
        says: what `doctor` says of it.
        runs: the agent runs when it is broken.
        warns: it works all the same, so that the exit status is 0.
        prefer: what is in the command that is typed of a mend with several.
        by_hand: what a person does beside it, as the mend says.
        proves: there is a proof in the end.
    """

    spoil: Callable[[Patient], None]
    says: str
    runs: bool = True
    warns: bool = False
    prefer: str = ""
    by_hand: Callable[[Patient], None] | None = None
    proves: bool = True


def _config(patient: Patient) -> Path:
    return patient.token.config


def _edited(old: str, new: str) -> Callable[[Patient], None]:
    """A mistake in the configuration, which somebody then corrects."""

    def spoil(patient: Patient) -> None:
        text = _config(patient).read_text()
        patient.edits_to(text)
        assert old in text
        _config(patient).write_text(text.replace(old, new, 1))

    return spoil


def _restart_with(spoil: Callable[[Patient], None]) -> Callable[[Patient], None]:
    def restart(patient: Patient) -> None:
        patient.agent.stop()
        spoil(patient)
        patient.agent.start()

    return restart


def _mode(place: Callable[[Patient], Path], mode: int) -> Callable[[Patient], None]:
    return lambda patient: place(patient).chmod(mode)


def _pin_file(text: str | None) -> Callable[[Patient], None]:
    def spoil(patient: Patient) -> None:
        if text is None:
            patient.token.pin_file.unlink()
        else:
            patient.token.pin_file.write_text(text)

    return spoil


def _right_pin(patient: Patient) -> None:
    patient.token.pin_file.write_text(f"{PIN[0]}\n")


def _wrong_pin(patient: Patient) -> None:
    _pin_file("not it\n")(patient)
    patient.agent.start()
    until_state(patient.agent, "locked")


def _wrong_pin_and_gone(patient: Patient) -> None:
    _wrong_pin(patient)
    patient.agent.stop()


def _own_module(patient: Patient) -> Path:
    """The store's module, as a copy in a folder of its own."""
    folder = patient.token.folder / "lib"
    folder.mkdir()
    module = folder / "module.so"
    shutil.copy(patient.token.module, module)
    module.chmod(0o644)
    write_config(patient.token, module=str(module))
    return module


def _module_writable(patient: Patient) -> None:
    _own_module(patient).chmod(0o666)


def _above_module_writable(patient: Patient) -> None:
    _own_module(patient).parent.chmod(0o777)


def _several_tokens(patient: Patient) -> None:
    new_token(patient.token.folder, "a-second-one")
    write_config(patient.token)
    patient.edits_to(_config(patient).read_text())
    write_config(patient.token, uri="pkcs11:manufacturer=SoftHSM%20project")


def _renamed_store(patient: Patient) -> None:
    text = _config(patient).read_text()
    patient.edits_to(text)
    renamed = text.replace("stores.softhsm", "stores.soft").replace('= "softhsm"', '= "soft"')
    _config(patient).write_text(renamed)


def _prompt(patient: Patient) -> None:
    write_config(patient.token, pin_source="prompt")


def _lock(patient: Patient) -> None:
    patient.agent.run("lock", check=True)


def _kill(patient: Patient) -> None:
    patient.agent.kill()


def _kill_with_socket(patient: Patient) -> None:
    """One that served a command's own socket."""
    with Wire(patient.agent.admin_socket) as wire:
        wire.result("socket.add", socket="job", keys=["default"], with_connection=True)
        patient.agent.kill()


def _no_configuration(patient: Patient) -> None:
    shutil.rmtree(patient.agent.state)
    for ref in on_token.private_ids(patient.token):
        on_token.delete(patient.token, ref)
    _config(patient).unlink()
    patient.env["SOFTHSM2_CONF"] = str(patient.token.softhsm_conf)


def _no_socket(patient: Patient) -> None:
    Path(patient.agent.socket).write_text("")


def _elsewhere(patient: Patient) -> None:
    patient.env["DPOP_AGENT_SOCK"] = str(patient.agent.runtime / "other" / "agent.sock")


def _other_config(patient: Patient) -> None:
    other = patient.token.folder / "other.toml"
    shutil.copy(_config(patient), other)
    patient.env["DPOP_AGENT_CONFIG"] = str(other)


def _no_config_here(patient: Patient) -> None:
    patient.env["DPOP_AGENT_CONFIG"] = str(patient.token.folder / "nobody-wrote-it.toml")


def _another_store(patient: Patient) -> None:
    add_store(_config(patient), "second", new_token(patient.token.folder / "second", "second"))


def _deleted_key(patient: Patient) -> None:
    until_open(patient.agent)
    (ref,) = on_token.private_ids(patient.token)
    on_token.delete(patient.token, ref)
    patient.agent.run("proof", "GET", "https://api.example.com/")
    until_open(patient.agent)


def _lost_ledger(patient: Patient) -> None:
    shutil.rmtree(patient.agent.state)
    patient.agent.start()
    until(lambda: store(patient.agent)["unknown"])


def _spoilt_ledger(patient: Patient) -> None:
    ledger = patient.agent.state / "ledger.json"
    shutil.copy(ledger, patient.token.folder / "copy.json")
    ledger.write_text(ledger.read_text().replace("active", "activf", 1))


def _restore_ledger(patient: Patient) -> None:
    shutil.copy(patient.token.folder / "copy.json", patient.agent.state / "ledger.json")


def _half_written(patient: Patient) -> None:
    left = patient.agent.state / "ledger.json.new"
    left.write_text("{")
    os.utime(left, (time.time() - 3600,) * 2)


def _lock_of_a_store(patient: Patient) -> None:
    (patient.agent.state / "signer-old store.lock").touch(0o600)


def _pin_socket(patient: Patient) -> None:
    """What a signer that was killed while a PIN was typed leaves behind."""
    program = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])"
    path = patient.agent.runtime / "pin-0a1b2c"
    subprocess.run([sys.executable, "-c", program, path], check=True)
    path.chmod(0o600)


def _few_files(patient: Patient) -> None:
    text = _config(patient).read_text()
    patient.edits_to(text)
    _config(patient).write_text(text.replace("[agent]", "[agent]\nmax_connections = 5000"))
    patient.preexec = ["prlimit", "--nofile=512:512"]
    patient.edits_to(text)


def _more_files(patient: Patient) -> None:
    patient.preexec = []


def _no_forking(patient: Patient) -> None:
    with Wire(patient.agent.socket) as wire:
        os.kill(wire.result("status")["forking_pid"], signal.SIGKILL)
        while wire.result("status")["forking_pid"] is not None:
            time.sleep(0.02)


def _stop(patient: Patient) -> None:
    patient.agent.stop()


def _state_above(patient: Patient) -> Path:
    return patient.agent.state.parent


CASES: dict[str, Case] = {
    "no configuration": Case(
        _no_configuration, "there is no configuration at", runs=False, proves=False
    ),
    "a configuration that isn't TOML": Case(_edited("[agent]", "[agent"), "isn't TOML"),
    "a setting that is misspelt": Case(
        _edited("default_store", "defalt_store"), "the unknown setting 'defalt_store'", runs=False
    ),
    "a configuration that others can change": Case(
        _mode(_config, 0o666), "has mode 0666: others can change it"
    ),
    "a folder above the configuration that others can change": Case(
        _mode(lambda p: _config(p).parent, 0o777), "above the configuration, has mode 0777"
    ),
    "a state folder that others can change": Case(
        _mode(lambda p: p.agent.state, 0o777), "others can write to the state folder"
    ),
    "a folder above the state folder that others can change": Case(
        _mode(_state_above, 0o777), "above the state folder, has mode 0777", runs=False
    ),
    "a socket's folder that others can enter": Case(
        _mode(lambda p: p.agent.runtime, 0o755), "has mode 0755: others can reach it"
    ),
    "a PIN file that others can read": Case(
        _mode(lambda p: p.token.pin_file, 0o644), "has mode 0644: others can read it"
    ),
    "no PIN file": Case(_pin_file(None), "can't be read: No such file"),
    "an empty PIN file": Case(_pin_file(""), "is empty"),
    "a PIN file with two lines": Case(_pin_file("1234\n5678\n"), "has no PIN on its first line"),
    "a PIN that was refused": Case(
        _wrong_pin, "was refused before: none is tried again", runs=False, by_hand=_right_pin
    ),
    "a PIN that was refused, by an agent that is gone": Case(
        _wrong_pin_and_gone,
        "was refused before: none is tried again",
        runs=False,
        by_hand=_right_pin,
    ),
    "no module": Case(
        _edited('libsofthsm2.so"', 'libsofthsm3.so"'), "there is no PKCS#11 module at", runs=False
    ),
    "a module that isn't one": Case(
        _restart_with(_edited("/usr/lib/softhsm/libsofthsm2.so", "/etc/passwd")),
        "doesn't work",
    ),
    "a module that others can change": Case(_restart_with(_module_writable), "has mode 0666"),
    "a folder above the module that others can change": Case(
        _restart_with(_above_module_writable), "above the PKCS#11 module, has mode 0777"
    ),
    "no PKCS#11 token of that name": Case(
        _restart_with(_edited("token=dpop-agent", "token=dpop-agant")),
        "not found: PKCS#11 token pkcs11:token=dpop-agant",
    ),
    "two PKCS#11 tokens that fit": Case(
        _restart_with(_several_tokens), "2 PKCS#11 tokens fit pkcs11:manufacturer"
    ),
    "a module that is told to look elsewhere": Case(
        _restart_with(_edited("/softhsm2.conf", "/softhsm.conf")), "PKCS#11"
    ),
    "a PKCS#11 token whose login isn't configured": Case(
        _restart_with(lambda p: _edited(f"file:{p.token.pin_file}", "none")(p)),
        'it wants a login, and its pin_source is "none"',
    ),
    "no agent": Case(_stop, "no agent listens at"),
    "an agent that was killed": Case(_kill, "left by an agent that was killed"),
    "an agent that was killed with a command's socket": Case(
        _kill_with_socket, "/sockets/job/agent.sock"
    ),
    "an agent at another socket": Case(_elsewhere, "serves that state folder at another socket"),
    "something else in the socket's place": Case(
        _no_socket, "is there and isn't a socket", runs=False
    ),
    "an agent that reads another configuration": Case(
        _other_config, "the agent reads another one", warns=True
    ),
    "an agent that reads a configuration, and none where it is looked for": Case(
        _no_config_here, "there is none at", warns=True
    ),
    "a configuration that changed since it was read": Case(
        _another_store, "the agent hasn't read it since it changed: second", warns=True
    ),
    "an agent that can start no signer": Case(
        _no_forking, "the process that starts signers has ended"
    ),
    "a store that is locked": Case(_lock, "the store softhsm is locked", warns=True),
    "a store that wants its PIN": Case(
        _restart_with(_prompt), "the store softhsm wants its PIN", warns=True
    ),
    "a key that was deleted": Case(
        _deleted_key, "default@1: missing", prefer="key destroy", proves=False
    ),
    "a lost ledger": Case(
        _lost_ledger,
        "that an agent made and the ledger doesn't list",
        runs=False,
        warns=True,
        prefer="adopt --all",
        proves=False,
    ),
    "a ledger that isn't as it was written": Case(
        _spoilt_ledger, "can't be read (line ", runs=False, by_hand=_restore_ledger
    ),
    "a key whose store isn't configured": Case(
        _restart_with(_renamed_store),
        "default: the configuration has no store softhsm",
    ),
    "a program for consent that isn't there": Case(
        _edited("[agent]", '[agent]\nconfirm_command = ["/nowhere"]'),
        "there is no program at /nowhere",
    ),
    "more connections than files may be open": Case(
        _few_files, "and this process may open 512 files", runs=False, by_hand=_more_files
    ),
    "a file that was to replace another": Case(_half_written, "ledger.json.new", warns=True),
    "the lock of a store that is gone": Case(_lock_of_a_store, "signer-old store.lock", warns=True),
    "a socket for a PIN that nobody reads": Case(_pin_socket, "pin-0a1b2c", warns=True),
}


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
def patient(original: Path, tmp_path: Path, make_agent: MakeAgent) -> Patient:
    """Somebody whose agent, which doesn't run yet, has all it needs."""
    folder = tmp_path / "a folder"  # commands have to quote it
    shutil.copytree(original / "token", tmp_path / "token")
    token = Token(tmp_path / "token", "dpop-agent")
    for file in (token.config, token.softhsm_conf):
        file.write_text(file.read_text().replace(str(original), str(tmp_path)))
    shutil.copytree(original / "state", folder / "state")
    PIN[0] = token.pin
    return Patient(make_agent(token.config, state=folder / "state"), token, tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_it_names_the_cause_and_what_it_says_to_type_mends_it(name: str, patient: Patient) -> None:
    case = CASES[name]
    if case.runs:
        until_open(patient.agent.start())
    case.spoil(patient)
    patient.follow(case)
    assert patient.doctor() == (0, [])
    if case.proves:
        words = ["dpop-agent", "proof", "GET", "https://api.example.com/"]
        subprocess.run(words, env=patient.env, check=True, timeout=60, capture_output=True)


TOLD = {
    "two PIN tries left": ("flags set 0x10000", None),
    "one PIN try left": ("flags set 0x20000", "one PIN try is left"),
    "a PIN that is locked": ("flags set 0x40000", "its PIN is locked"),
    "no user PIN": ("flags clear 0x8", "it says that it has no user PIN"),
    "a module that crashes": ("C_GetSlotList crash", "status -11"),
    "a module that fails": ("C_Initialize return 0x5", "doesn't work (GeneralError)"),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_a_pkcs11_token_tells_of_its_pin_and_a_module_of_itself_is_told_without_a_login(
    name: str, faulty_token: Faulty, make_agent: MakeAgent, tmp_path: Path
) -> None:
    """SoftHSM2 says that tries are low after any wrong PIN, and never locks."""
    rule, says = TOLD[name]
    patient = Patient(make_agent(faulty_token.config()), faulty_token.token, tmp_path)
    PIN[0] = faulty_token.token.pin
    healthy = patient.doctor()
    faulty_token.rules(rule)
    _, bad = patient.doctor()
    told = [found for found in bad if found["check"] == "stores.softhsm"]
    assert (told[0]["what"].count(says), len(told)) == (1, 1) if says else told == []
    faulty_token.rules()
    assert patient.doctor() == healthy
    assert faulty_token.logins == 0


def test_a_signature_that_fails_is_told_and_once_it_works_all_is_sound(
    faulty_token: Faulty, make_agent: MakeAgent, tmp_path: Path
) -> None:
    patient = Patient(make_agent(faulty_token.config()).start(), faulty_token.token, tmp_path)
    PIN[0] = faulty_token.token.pin
    until_open(patient.agent)
    patient.agent.create_key("default")
    faulty_token.rules("C_Sign return 0x5")
    status, (failed,) = patient.doctor()
    assert status == 1
    assert "its self-test failed: signing for a self-test failed in the PKCS#11" in failed["what"]
    faulty_token.rules()
    (command,) = COMMAND.findall(failed["mend"])
    patient.type(command)
    until_open(patient.agent)
    assert patient.doctor() == (0, [])


def test_on_a_sound_one_it_says_so_and_spends_nothing(
    faulty_token: Faulty, make_agent: MakeAgent, tmp_path: Path
) -> None:
    faulty_token.rules("C_SignInit count", "C_SetPIN count", "C_Logout count")
    agent = make_agent(faulty_token.config()).start()
    until_open(agent)
    agent.create_key("default", rate={"per_minute": 1})

    def spent() -> object:
        counted = [len(faulty_token.calls(name)) for name in ("C_Login", "C_SetPIN", "C_Logout")]
        with Wire(agent.socket) as wire:
            kept = {path: path.read_bytes() for path in agent.state.glob("l*")}
            return counted, wire.result("key.list"), wire.result("status")["proofs"], kept

    before, signatures = spent(), len(faulty_token.calls("C_SignInit"))
    done = agent.run("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert "default@1 signs (self-test)" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("sound: 0 warnings, ")
    assert spent() == before
    assert len(faulty_token.calls("C_SignInit")) == signatures + 1
    assert agent.run("config", "check").returncode == 0
    assert spent() == before
    assert agent.run("proof", "GET", "https://api.example.com/").returncode == 0  # of its one


def test_its_lines_fit_in_80_columns_but_for_what_is_to_be_copied(patient: Patient) -> None:
    _edited("token=dpop-agent", "token=nowhere")(patient)
    shown = patient.agent.run("doctor").stdout
    assert "wrong    stores.softhsm: not found" in shown
    for line in shown.splitlines():
        is_word = len(line.split()) == 1
        assert len(line) <= 80 or is_word or line.startswith(" " * 9), line
        assert (
            line.startswith(("ok  ", "warning  ", "wrong  ", " " * 9))
            or "wrong, " in line
            or not line
        )


def test_in_a_sandbox_it_says_that_little_can_be_seen(agent: Agent) -> None:
    agent.create_key("default")
    with Wire(agent.admin_socket) as wire:
        path = wire.result("socket.add", socket="box", keys=["default"])["sockets"][0]["path"]
    agent.env["DPOP_AGENT_SOCK"] = path
    done = agent.run("doctor", "--json")
    told = json.loads(done.stdout)
    (seen,) = [found for found in told["findings"] if found["check"] == "agent"]
    assert (seen["level"], done.returncode) == ("warning", 0)
    assert "gives some keys' proofs alone" in seen["what"]
    assert not any("self-test" in found["what"] for found in told["findings"])


def test_an_agent_of_another_version_is_told_and_asked_for_no_more(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DPOP_AGENT_CONFIG", "DPOP_AGENT_STATE_DIR", "DPOP_AGENT_SOCK"):
        monkeypatch.setenv(name, agent.env[name])
    monkeypatch.setattr(running, "__version__", "99.0")
    assert main(["doctor"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "this command is version 99.0 mend: dpop-agent stop then: dpop-agent serve" in shown
    assert "self-test" not in shown


def test_a_variable_that_the_agent_hasnt_is_named(patient: Patient) -> None:
    """The terminal's environment leads to the PKCS#11 token, and the agent's doesn't."""
    text = _config(patient).read_text()
    _config(patient).write_text(re.sub("env = .*", "", text))
    patient.agent.start()
    until_state(patient.agent, "absent")
    patient.env["SOFTHSM2_CONF"] = str(patient.token.softhsm_conf)
    _, bad = patient.doctor()
    assert any("put SOFTHSM2_CONF of this terminal into its env" in f["mend"] for f in bad), bad


@pytest.mark.parametrize("said", [{}, {"agent": "1", "pid": 1, "stores": [1]}])
def test_a_program_that_answers_and_is_no_agent_is_told(
    patient: Patient, said: dict[str, object]
) -> None:
    with FakeAgent(patient.agent.runtime) as fake:
        fake.script = [said] * 2
        _, bad = patient.doctor()
        assert any("isn't an agent" in f["what"] and f["mend"] for f in bad), bad
        assert "isn't an agent" in patient.agent.run("config", "check").stderr


@pytest.mark.parametrize("what", ["free", "left", "held", "a file", "another program"])
def test_config_check_says_who_has_the_sockets_place(patient: Patient, what: str) -> None:
    place = Path(patient.agent.socket)
    says = f"{place} is free"
    with socket.socket(socket.AF_UNIX) as other:
        if what == "left":
            patient.agent.start()
            patient.agent.kill()
        elif what == "held":
            patient.agent.start()
            says = f"is served by process {patient.agent.pid}, which reads {_config(patient)}"
        elif what == "a file":
            place.write_text("")
            says = f"{place} is there and isn't a socket"
        elif what == "another program":
            other.bind(str(place))
            place.chmod(0o600)
            other.listen()
            threading.Thread(target=lambda: other.accept()[0].close(), daemon=True).start()
            says = "isn't an agent that answers"
        done = patient.agent.run("config", "check")
        shown = " ".join(done.stdout.split()) + done.stderr
        assert says in shown
        assert done.returncode == (what in ("a file", "another program"))

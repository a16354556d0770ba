"""One PKCS#11 token, several signers: all sign, and a PIN is typed and tried as for one."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from dpop_agent.client import AgentClient
from dpop_agent.errors import KeyRefused, Locked
from dpop_agent.verify import verify
from tests.agent.places import memory_of, serve_with, signers_of, store, until, until_state
from tests.agent.wire import Wire
from tests.faulty import Faulty
from tests.processes import Agent, running
from tests.terminal import unlock
from tests.timing import ratio

HTU = "https://api.example.com/v1/me"
MANY = 3

MakeAgent = Callable[..., Agent]


def config(faulty: Faulty, signers: int = MANY, **settings: str) -> Path:
    path = faulty.config(**settings)
    path.write_text(f"{path.read_text()}\nsigners = {signers}\n")
    return path


def until_many(agent: Agent, signers: int = MANY) -> list[int]:
    """Wait until so many sign; which those are."""
    until(lambda: len(store(agent)["signer_pids"]) == signers)
    found: list[int] = store(agent)["signer_pids"]
    return found


def until_none_of(agent: Agent, pids: list[int]) -> None:
    """Wait until the agent knows that these have gone."""
    until(lambda: not set(store(agent).get("signer_pids", [])) & set(pids))


def until_without(agent: Agent, pid: int) -> None:
    """Wait until the agent knows that a signer is gone."""
    until(lambda: pid not in store(agent)["signer_pids"])


def proofs(agent: Agent, count: int, *, clients: int = 8, key: str = "shop") -> list[str]:
    """The jkts of so many proofs for each of so many clients at once."""

    def ask(_: int) -> list[str]:
        with AgentClient(agent.socket, timeout=30) as client:
            made = [str(client.proof("GET", HTU, key=key)) for _ in range(count)]
        return [verify(proof, htm="GET", htu=HTU).jkt for proof in made]

    with ThreadPoolExecutor(clients) as pool:
        return [jkt for jkts in pool.map(ask, range(clients)) for jkt in jkts]


@pytest.fixture
def agent(faulty_token: Faulty, make_agent: MakeAgent) -> Agent:
    """One whose token has a key and several signers."""
    agent = make_agent(config(faulty_token)).start()
    agent.create_key("shop")
    until_many(agent)
    return agent


@pytest.fixture
def typed(faulty_token: Faulty, make_agent: MakeAgent) -> Agent:
    """One whose PIN was typed."""
    first = make_agent(config(faulty_token)).start()
    first.create_key("shop")
    first.stop()
    agent = make_agent(config(faulty_token, pin_source="prompt"), state=first.state).start()
    assert unlock(agent, faulty_token.token.pin)[0] == 0
    until_many(agent)
    return agent


@contextmanager
def load(agent: Agent) -> Iterator[list[Exception]]:
    """Proofs as fast as they come while the block runs; what went wrong with them."""
    over, wrong = threading.Event(), list[Exception]()

    def ask(_: int) -> None:
        with AgentClient(agent.socket, timeout=30) as client:
            while not over.is_set():
                try:
                    client.proof("GET", HTU, key="shop")
                except Exception as e:
                    wrong.append(e)

    with ThreadPoolExecutor(8) as pool:
        asking = pool.map(ask, range(8))
        try:
            yield wrong
        finally:
            over.set()
            list(asking)


def test_all_sign_and_each_logged_in_once(agent: Agent, faulty_token: Faulty) -> None:
    faulty_token.rules("C_Sign delay 5")
    proofs(agent, 10)
    assert set(faulty_token.callers("C_Sign")) == set(until_many(agent))
    assert faulty_token.logins == MANY
    shown = agent.run("status", check=True).stdout
    assert f"{MANY} signers" in shown


def test_a_token_that_takes_many_at_once_gives_as_many_times_the_proofs(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    faulty_token.rules("C_Sign delay 60")
    one = make_agent(config(faulty_token, 1)).start()
    one.create_key("shop")
    several = make_agent(config(faulty_token, 4)).start()
    several.create_key("shop")
    until_many(several, 4)
    assert ratio(lambda: proofs(one, 3), lambda: proofs(several, 3), rounds=3) > 2


def test_under_load_each_death_is_its_own_and_the_pin_comes_from_one_that_lives(
    typed: Agent, faulty_token: Faulty
) -> None:
    logins, killed = faulty_token.logins, 3
    with load(typed) as wrong:
        for turn in range(killed):
            gone = until_many(typed)[turn % 2]  # the first, and one beside it
            os.kill(gone, signal.SIGKILL)
            until_without(typed, gone)
            assert store(typed)["state"] == "ready"
        until_many(typed)
    assert wrong == []
    assert faulty_token.logins == logins + killed


def test_where_all_died_a_pin_that_was_typed_is_asked_for_again(typed: Agent) -> None:
    for pid in until_many(typed):
        os.kill(pid, signal.SIGKILL)
    until_state(typed, "locked")
    until(lambda: signers_of(typed) == set())
    with pytest.raises(Locked):
        proofs(typed, 1, clients=1)


def test_where_all_died_a_store_with_a_stored_pin_comes_back_whole(agent: Agent) -> None:
    pids = until_many(agent)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until_none_of(agent, pids)
    proofs(agent, 2)
    assert not set(until_many(agent)) & set(pids)


def test_a_refused_pin_is_tried_once_in_all(faulty_token: Faulty, make_agent: MakeAgent) -> None:
    faulty_token.token.pin_file.write_text("00000000\n")
    agent = make_agent(config(faulty_token)).start()
    until_state(agent, "locked")
    agent.run("reload", check=True)
    until_state(agent, "locked")
    assert faulty_token.logins == 1


def test_an_accepted_pin_that_an_heir_has_refused_is_tried_once_and_the_others_sign_on(
    agent: Agent, faulty_token: Faulty
) -> None:
    faulty_token.rules("C_Login return 0xA0")
    for fewer in (1, 2):
        with load(agent) as wrong:
            os.kill(store(agent)["signer_pids"][-1], signal.SIGKILL)
            until_many(agent, MANY - fewer)
            until(lambda: store(agent)["signers_reason"])
        assert wrong == []
        assert faulty_token.logins == MANY + 1
    told = store(agent)
    assert (told["state"], told["signers_hint"]) == (
        "ready",
        "dpop-agent lock softhsm, then: dpop-agent unlock softhsm",
    )
    assert f"softhsm: 1 of {MANY} signers: " in agent.run("status", check=True).stdout
    faulty_token.rules()
    agent.run("lock", check=True)
    agent.run("unlock", check=True)
    until_many(agent)


def test_what_is_made_rotated_and_destroyed_is_so_for_all(agent: Agent) -> None:
    with Wire(agent.admin_socket, timeout=60) as admin:
        jkts = []
        for _ in range(3):
            made = admin.result("key.create", key="new", origins=[])["keys"][0]["generations"]
            jkts.append(made[0]["jkt"])
            assert set(proofs(agent, 6, key="new")) == {jkts[-1]}
            swapped = admin.result("key.rotate", key="new")["new"]["jkt"]
            assert set(proofs(agent, 6, key="new")) == {swapped}
            for generation in (1, 2):
                admin.result("key.destroy", key="new", generation=generation)
            assert admin.error("proof", htm="GET", htu=HTU, key="new")["type"] == "no_active"
            admin.result("key.forget", key="new")
    assert len(set(jkts)) == 3


def test_after_a_lock_there_is_nobody_to_hand_the_pin_on(typed: Agent) -> None:
    pids = until_many(typed)
    typed.run("lock", check=True)
    assert not any(map(running, pids))
    assert signers_of(typed) == set()
    with pytest.raises(Locked):
        proofs(typed, 1, clients=1)
    assert signers_of(typed) == set()


def test_a_lock_while_heirs_log_in_ends_them_too(typed: Agent, faulty_token: Faulty) -> None:
    typed.run("lock", check=True)
    logins = faulty_token.logins
    assert unlock(typed, faulty_token.token.pin)[0] == 0
    faulty_token.rules("C_Login delay 300")
    until(lambda: faulty_token.logins > logins + 1)
    typed.run("lock", check=True)
    assert signers_of(typed) == set()
    assert store(typed)["state"] == "locked"


def test_a_reload_changes_how_many_there_are(agent: Agent, faulty_token: Faulty) -> None:
    for many in (1, 4, 2):
        before = store(agent)["signer_pids"]
        config(faulty_token, many)
        agent.run("reload", check=True)
        until_many(agent, many)
        assert not any(map(running, before))
        proofs(agent, 2)
        assert len(signers_of(agent)) == many


def test_idle_stores_are_released_and_locked_with_all_of_their_signers(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    idle = serve_with("--release-after", "1s", "--lock-after", "4s")
    agent = make_agent(config(faulty_token), preexec=idle).start()
    agent.create_key("shop")
    pids = until_many(agent)
    logins = faulty_token.logins
    until(lambda: "is released" in agent.log.read_text())
    faulty_token.rules("C_Sign delay 5")
    proofs(agent, 6)
    assert until_many(agent) == pids
    assert logins < faulty_token.logins <= logins + MANY, "each that was used logged in again"
    until_state(agent, "locked")
    until(lambda: signers_of(agent) == set())


def test_released_signers_open_their_store_one_after_the_other(
    faulty_token: Faulty, make_agent: MakeAgent
) -> None:
    faulty_token.rules("C_Initialize count")
    agent = make_agent(config(faulty_token), preexec=serve_with("--release-after", "1s")).start()
    agent.create_key("shop")
    until_many(agent)
    until(lambda: "is released" in agent.log.read_text())
    before = len(faulty_token.called)
    faulty_token.rules("C_Initialize count", "C_Login delay 300", "C_Sign delay 50")
    proofs(agent, 4, clients=8)
    opened = [call for call in faulty_token.called[before:] if call[0] != "C_Sign"]
    assert [name for name, _ in opened] == ["C_Initialize", "C_Login"] * MANY
    assert [pid for _, pid in opened[::2]] == [pid for _, pid in opened[1::2]]
    assert len({pid for _, pid in opened}) == MANY


def test_the_stores_lock_is_held_as_long_as_one_of_its_signers_lives(agent: Agent) -> None:
    first, *others = until_many(agent)
    agent.kill()
    lock = os.open(agent.state / "signer-softhsm.lock", os.O_RDONLY)
    try:
        until(lambda: not any(map(running, (first, *others))))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(lock)
    agent.start()
    heir = until_many(agent)[1]
    first = store(agent)["signer_pid"]
    os.kill(first, signal.SIGKILL)
    until_without(agent, first)
    assert store(agent)["signer_pid"] == heir
    lock = os.open(agent.state / "signer-softhsm.lock", os.O_RDONLY)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(lock)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            "token manufacturer " + b"Yubico (www.yubico.com)".hex(),
            "is on a card, which makes one signature after the other",
        ),
        ("flags set 0x100", "takes its PIN at its own pad"),
    ],
    ids=["card", "pad"],
)
def test_a_place_that_signs_one_after_the_other_is_refused_with_the_reason(
    faulty_token: Faulty, make_agent: MakeAgent, rule: str, said: str
) -> None:
    faulty_token.rules(rule)
    agent = make_agent(config(faulty_token)).start()
    told = until_state(agent, "failed")
    assert said in told["reason"]
    assert "leave signers out" in told["hint"]
    assert faulty_token.logins == 0


def test_a_key_that_wants_its_pin_for_each_signature_is_refused_alone(
    agent: Agent, faulty_token: Faulty
) -> None:
    agent.create_key("each")
    faulty_token.rules("attribute dpop-agent%20each@1 0x202 value 01")
    agent.run("reload", check=True)
    pids = until_many(agent)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until_none_of(agent, pids)
    proofs(agent, 2)
    with pytest.raises(KeyRefused, match="which several signers can't give at once"):
        proofs(agent, 1, clients=1, key="each")


@pytest.mark.skipif(os.getuid() != 0, reason="reads the memory of processes that forbid it")
def test_neither_agent_nor_forking_process_has_the_pin_that_signers_hand_on(
    typed: Agent, faulty_token: Faulty
) -> None:
    pin = faulty_token.token.pin.encode()
    gone = until_many(typed)[0]
    os.kill(gone, signal.SIGKILL)
    until_without(typed, gone)
    proofs(typed, 4)
    pids = until_many(typed)
    with Wire(typed.socket) as wire:
        forking = wire.result("status")["forking_pid"]
    assert all(pin in memory_of(pid) for pid in pids), "so that its absence means something"
    assert pin not in memory_of(typed.pid)
    assert pin not in memory_of(forking)
    assert faulty_token.token.pin not in typed.log.read_text()


@pytest.mark.skipif(
    os.getuid() != 0, reason="the descriptors of a closed process are root's to see"
)
def test_the_forking_process_keeps_no_end_of_what_a_pin_goes_over(
    agent: Agent, faulty_token: Faulty
) -> None:
    def sockets(pid: int) -> int:
        held = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        return len([what for what in held if what.startswith("socket:")])

    with Wire(agent.socket) as wire:
        forking = wire.result("status")["forking_pid"]
    assert sockets(forking) == 1 + MANY, "the agent's channel, and a line to each signer"
    pids = until_many(agent)
    assert [sockets(pid) for pid in pids] == [2] * MANY, "the agent's channel, and its line"
    os.kill(pids[1], signal.SIGKILL)
    until_without(agent, pids[1])
    until_many(agent)
    assert sockets(forking) == 1 + MANY
    config(faulty_token, 1)
    agent.run("reload", check=True)
    until_many(agent, 1)
    until(lambda: sockets(forking) == 2)

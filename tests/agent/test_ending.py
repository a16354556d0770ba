"""The agent ends in order: who asked is answered or refused, and nothing is done in secret."""

from __future__ import annotations

import os
import re
import selectors
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.agent.places import descendants, hurried, store, until
from tests.agent.wire import Wire, refusal, request
from tests.processes import Agent, Token, new_token, running

TARGET = {"htm": "GET", "htu": "https://api.example.com/"}


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Token:
    return new_token(tmp_path_factory.mktemp("ending") / "token")


@pytest.fixture
def agent(token: Token, tmp_path: Path) -> Iterator[Agent]:
    with Agent(token.config, tmp_path / "state").serving("default") as agent:
        yield agent


def rest_of(wire: Wire) -> list[dict[str, Any]]:
    """All the answers that still come, to the end of file."""
    answers = []
    while (answer := wire.line()) is not None:
        answers.append(answer)
    return answers


def ended(agent: Agent) -> None:
    """It was told to end, and does in order; a second signal would end it at once."""
    assert agent.process.wait(10) == 0
    agent.stop()


def is_refusal(answer: dict[str, Any]) -> bool:
    error = refusal(answer)
    return error["type"] == "agent_unavailable" and "the agent is ending" in error["message"]


def end_with_much_in_flight(agent: Agent, name: str) -> None:
    """160 proofs on 16 connections and a `key.create`, SIGTERM; then the agent again."""
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(agent.socket)) for _ in range(16)]
        owner = stack.enter_context(Wire(agent.admin_socket))
        for wire in wires:
            wire.send(b"".join(request("proof", TARGET, number=n) for n in range(10)))
        asked = {"key": name, "origins": [], "request_id": f"create-{name}"}
        owner.send(request("key.create", asked))
        agent.process.terminate()
        for wire in wires:
            answers = rest_of(wire)
            assert sorted(answer["id"] for answer in answers) == list(range(10))
            assert all("result" in answer or is_refusal(answer) for answer in answers)
        (created,) = rest_of(owner)
    ended(agent)
    agent.start()
    with Wire(agent.admin_socket) as owner:
        until(lambda: store(agent)["state"] == "ready")
        (made,) = owner.result("key.create", **asked)["keys"]
        if "result" in created:
            assert created["result"]["keys"][0]["generations"] == made["generations"]
        else:
            assert is_refusal(created)
        listed = owner.result("key.list", key=name)["keys"][0]["generations"]
        assert [g["state"] for g in listed] == ["active"]


def test_at_sigterm_160_proofs_and_a_key_create_are_each_answered_or_refused(agent: Agent) -> None:
    for n in range(3):
        end_with_much_in_flight(agent, f"new-{n}")


@pytest.mark.long
def test_at_sigterm_everybody_is_answered_or_refused_a_hundred_times(agent: Agent) -> None:
    for n in range(100):
        end_with_much_in_flight(agent, f"new-{n}")


def test_who_asks_again_and_again_is_answered_each_time_to_the_end(agent: Agent) -> None:
    """A line that the agent's socket took is answered; the next one can't be sent."""
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(agent.socket)) for _ in range(8)]
        sent = dict.fromkeys(wires, 1)
        got = dict.fromkeys(wires, 0)
        told_to_end = False
        selector = stack.enter_context(selectors.DefaultSelector())
        for wire in wires:
            selector.register(wire.sock, selectors.EVENT_READ, wire)
            wire.send(request("proof", TARGET))
        while selector.get_map():
            if sum(got.values()) >= 400 and not told_to_end:
                agent.process.terminate()
                told_to_end = True
            for event, _ in selector.select(15):
                wire = event.data
                answer = wire.line()
                if answer is None:
                    selector.unregister(wire.sock)
                    continue
                assert "result" in answer or is_refusal(answer)
                got[wire] += 1
                try:
                    wire.send(request("proof", TARGET))
                except BrokenPipeError:
                    continue
                sent[wire] += 1
        assert sum(got.values()) >= 400
        assert got == sent


def test_while_the_agent_ends_what_is_new_is_refused_and_what_is_under_way_is_finished(
    agent: Agent,
) -> None:
    pid = store(agent)["signer_pid"]
    with Wire(agent.socket) as waits, Wire(agent.socket) as late:
        late.result("hello")
        os.kill(pid, signal.SIGSTOP)
        try:
            waits.send(request("proof", TARGET))
            waits.send(request("hello", number="read"))
            assert waits.next()["id"] == "read"
            agent.process.terminate()
            until(lambda: "error" in late.ask("hello"))
            assert is_refusal(late.ask("proof", **TARGET))
            with (
                socket.socket(socket.AF_UNIX) as sock,
                pytest.raises(FileNotFoundError),
            ):
                sock.connect(agent.socket)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert "proof" in waits.next()["result"]
        assert rest_of(waits) == rest_of(late) == []
    ended(agent)


def test_what_a_hanging_store_doesnt_answer_is_refused_and_the_agent_ends(
    token: Token, tmp_path: Path
) -> None:
    agent = Agent(token.config, tmp_path / "state", preexec=hurried("server.FINISH_S=0.5"))
    with agent.serving("default"):
        pid = store(agent)["signer_pid"]
        with Wire(agent.socket) as wire, Wire(agent.admin_socket) as owner:
            os.kill(pid, signal.SIGSTOP)
            wire.send(b"".join(request("proof", TARGET, number=n) for n in range(80)))
            owner.send(request("key.create", {"key": "new", "origins": []}))
            owner.send(request("hello", number="read"))
            assert owner.next()["id"] == "read"
            agent.process.terminate()
            answers = rest_of(wire)
            assert sorted(answer["id"] for answer in answers) == list(range(80))
            assert all(map(is_refusal, answers))
            (created,) = rest_of(owner)
            assert is_refusal(created)
            assert "finished or undone at the start" in refusal(created)["hint"]
        ended(agent)


def test_a_second_sigterm_ends_the_agent_at_once(agent: Agent) -> None:
    pid = store(agent)["signer_pid"]
    below = descendants(agent.pid)
    with Wire(agent.socket) as waits, Wire(agent.socket) as other:
        os.kill(pid, signal.SIGSTOP)
        try:
            waits.send(request("proof", TARGET))
            waits.send(request("hello", number="read"))
            assert waits.next()["id"] == "read"
            agent.process.terminate()
            until(lambda: "error" in other.ask("hello"))
            agent.process.terminate()
            assert agent.process.wait(10) == -signal.SIGTERM
            assert rest_of(waits) == []
        finally:
            os.kill(pid, signal.SIGCONT)
    until(lambda: not any(map(running, below)))
    agent.stop()
    agent.start()
    with Wire(agent.socket) as wire:
        assert "proof" in wire.result("proof", **TARGET)


def test_a_client_that_reads_nothing_doesnt_keep_the_agent_from_ending(agent: Agent) -> None:
    with Wire(agent.socket) as deaf:
        deaf.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            deaf.send(b"".join(request("status", number=n) for n in range(100_000)))
        agent.process.terminate()
        ended(agent)
    assert (agent.state / "clean-stop").exists()


def test_the_log_says_that_the_agent_ended_and_who_asked_for_that(agent: Agent) -> None:
    stopped = agent.run("stop", check=True)
    assert "the agent has ended" in stopped.stdout
    agent.stop()
    said = agent.log.read_text()
    assert re.search(r"INFO the agent is ending: asked to by pid [0-9]+, uid [0-9]+", said)
    assert said.splitlines()[-1].endswith("INFO the agent has ended")
    agent.start()
    agent.process.send_signal(signal.SIGINT)
    agent.process.wait(20)
    assert "INFO the agent is ending: SIGINT\n" in agent.log.read_text()

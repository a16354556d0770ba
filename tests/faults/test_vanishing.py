"""Clients that go before their signatures come leave nothing, and no work for the PKCS#11 token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dpop_agent.agent.queue import MAX_WINDOW
from tests.agent.places import until, until_open
from tests.agent.wire import Wire, request
from tests.faulty import Faulty
from tests.processes import Agent
from tests.rows import Reached

TARGET = {"htm": "GET", "htu": "https://api.example.com/"}
ASKED = 20
"""Proofs that each client asks for: more than its signer begins at once."""


def open_files(*pids: int) -> int:
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)


@pytest.mark.parametrize(
    "clients", [200, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.row(6)])]
)
def test_clients_that_go_mid_signature_leave_no_descriptor_no_session_and_no_work(
    make_agent: Callable[..., Agent], faulty_token: Faulty, clients: int, reached: Reached
) -> None:
    counted = ["C_OpenSession count", "C_CloseSession count", "C_SignInit count"]
    faulty_token.rules(*counted, "C_Sign delay 1")
    agent = make_agent(faulty_token.config()).start()
    agent.create_key("default")

    def calls(name: str) -> int:
        return len(faulty_token.calls(name))

    def sessions() -> int:
        return calls("C_OpenSession") - calls("C_CloseSession")

    with Wire(agent.socket) as honest:
        honest.result("proof", **TARGET)
        signer = until_open(agent)["signer_pid"]
        until(lambda: honest.result("status")["connections"] == 1)
        files, had, signed = open_files(agent.pid, signer), sessions(), calls("C_SignInit")
        answered = 0
        for _ in range(clients):
            with Wire(agent.socket) as going:
                going.send(b"".join(request("proof", TARGET, number=n) for n in range(ASKED)))
                going.send(request("status", number="taken in"))
                while going.next()["id"] != "taken in":
                    answered += 1
            honest.result("proof", **TARGET)
            answered += 1
        until(lambda: honest.result("status")["connections"] == 1)
        assert until_open(agent)["signer_pid"] == signer
        for_the_dead = calls("C_SignInit") - signed - answered
        assert for_the_dead < clients * (ASKED - 1), "none of them went mid-signature"
        # The audit's file is open for a moment, now and then.
        until(lambda: open_files(agent.pid, signer) <= files)
        left = max(0, open_files(agent.pid, signer) - files)
        assert sessions() == had
        too_many = max(0, for_the_dead - clients * MAX_WINDOW)
        assert too_many == 0
    reached("clients that went mid-signature", clients)
    reached("descriptors that they left, of the agent and of the signer", left)
    reached("sessions of the PKCS#11 token that they left", sessions() - had)
    reached("signatures for a dead client, beyond those that its signer had begun", too_many)

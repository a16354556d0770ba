"""No clock's jump destroys anything: only time that the agent was there to observe counts."""

from __future__ import annotations

import base64
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from dpop_agent.client import DPoPTransport
from dpop_agent.errors import ProofRefused
from tests.faults.invariants import HTU
from tests.faults.odd_clock_agent import LOOK_S
from tests.processes import Agent, new_token
from tests.unit.fake_server import FakeServer, Reply, Seen

HOUR, DAY, YEAR = 3600, 24 * 3600, 365 * 24 * 3600
SETTLE_S = 10 * LOOK_S


class OddClocks:
    """An agent that comes and goes, and the clocks that it sees."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "clocks"
        self._token = new_token(folder / "token")
        self._wall = self._boot = 0.0
        self.move()

    def move(self, *, wall: float = 0.0, boot: float = 0.0) -> None:
        """Seconds by which the clocks jump."""
        self._wall += wall
        self._boot += boot
        new = self._file.with_suffix(".new")
        new.write_text(f"{self._wall} {self._boot}")
        new.rename(self._file)

    @property
    def now(self) -> float:
        return time.time() + self._wall

    @contextmanager
    def agent(self) -> Iterator[Agent]:
        agent = Agent(
            self._token.config,
            self._folder / "state",
            preexec=[sys.executable, "-m", "tests.faults.odd_clock_agent", str(self._file)],
        )
        try:
            yield agent.start()
        finally:
            agent.close()


@pytest.fixture
def clocks(tmp_path: Path) -> OddClocks:
    return OddClocks(tmp_path)


def states(agent: Agent) -> list[str]:
    (key,) = agent.client().keys("default", include_destroyed=True)
    return [g["state"] for g in key["generations"]]


def wait_for(agent: Agent, wanted: list[str]) -> None:
    deadline = time.monotonic() + 15
    while states(agent) != wanted and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    assert states(agent) == wanted


def rotate(agent: Agent, **settings: Any) -> None:
    agent.admin().call("key.rotate", {"key": "default", **settings})


@pytest.mark.parametrize("jump", [HOUR, -HOUR, YEAR, -YEAR], ids=["+1 h", "-1 h", "+1 y", "-1 y"])
def test_a_jump_of_the_wall_clock_retires_and_destroys_nothing(
    clocks: OddClocks, jump: int
) -> None:
    with clocks.agent() as agent:
        agent.create_key("default", drain_s=HOUR // 2)
        rotate(agent)
        clocks.move(wall=jump)
        time.sleep(SETTLE_S)
        assert states(agent) == ["draining", "active"]
        before = math.floor(clocks.now)
        proof = str(agent.client().proof("GET", HTU))
        after = clocks.now
    claims = json.loads(base64.urlsafe_b64decode(proof.split(".")[1] + "=="))
    assert before <= claims["iat"] <= after


class TakesSixtySeconds:
    """Takes `iat` of a minute ago to a minute ahead, by a clock that is right; or has none."""

    def __init__(self, *, dated: bool) -> None:
        self.iats: list[int] = []
        self._dated = dated

    def __call__(self, seen: Seen) -> Reply:
        claims = json.loads(base64.urlsafe_b64decode(seen.proofs[0].split(".")[1] + "=="))
        self.iats.append(claims["iat"])
        good = abs(time.time() - claims["iat"]) < 60
        challenge = 'DPoP error="invalid_dpop_proof"'
        reply = Reply(200) if good else Reply(401, WWW_Authenticate=challenge)
        reply.dated = self._dated
        return reply


def ask(agent: Agent, server: FakeServer) -> int:
    transport = DPoPTransport(
        agent.client(), origins=[server.origin], transport=httpx.HTTPTransport(verify=False)
    )
    with httpx.Client(transport=transport) as http:
        return http.get(server.origin).status_code


def test_a_clock_that_is_90_s_wrong_is_made_up_for_or_told_with_the_offset(
    clocks: OddClocks,
) -> None:
    with (
        FakeServer(dated := TakesSixtySeconds(dated=True)) as server,
        FakeServer(silent := TakesSixtySeconds(dated=False)) as another,
        clocks.agent() as agent,
    ):
        agent.create_key("default")
        clocks.move(wall=90)
        assert [ask(agent, server) for _ in range(2)] == [200, 200]
        assert len(dated.iats) == 3
        # One server's Date moves no other's `iat`.
        with pytest.raises(ProofRefused, match="clock may be wrong, and the answer has no Date"):
            ask(agent, another)
        assert abs(silent.iats[0] - time.time() - 90) < 10
        status = agent.run("status", check=True).stdout
        assert f"{another.origin}: refused a proof" in status
        assert f"{server.origin}: " not in status

        clocks.move(wall=-180)
        with pytest.raises(ProofRefused, match=r"is (89|90|91) s behind; .*never dated ahead"):
            ask(agent, server)
        status = agent.run("status", check=True).stdout
        assert f"{server.origin}: this machine's clock is " in status
        assert max(dated.iats[3:]) < time.time() - 80  # never ahead of the agent's own clock


def test_a_month_off_retires_and_destroys_nothing(clocks: OddClocks) -> None:
    with clocks.agent() as agent:
        agent.create_key("default")
        rotate(agent)
    clocks.move(wall=30 * DAY, boot=30 * DAY)
    with clocks.agent() as agent:
        time.sleep(SETTLE_S)
        assert states(agent) == ["draining", "active"]


def test_a_drain_that_was_observed_to_be_idle_ends_and_its_object_goes_after_a_week_more(
    clocks: OddClocks,
) -> None:
    with clocks.agent() as agent:
        agent.create_key("default")
        rotate(agent)
        clocks.move(boot=7 * DAY - 60)
        time.sleep(SETTLE_S)
        assert states(agent) == ["draining", "active"]
        clocks.move(boot=61)
        wait_for(agent, ["retired", "active"])
        clocks.move(boot=7 * DAY - 60)
        time.sleep(SETTLE_S)
        assert states(agent) == ["retired", "active"]
        clocks.move(boot=61)
        wait_for(agent, ["destroyed", "active"])
        assert agent.client().status()["stores"][0]["unknown"] == []


def test_use_within_a_drain_extends_it_up_to_max_drain(clocks: OddClocks) -> None:
    with clocks.agent() as agent:
        old = agent.create_key("default", max_drain_s=20 * DAY)
        rotate(agent)
        for _ in range(3):
            clocks.move(boot=5 * DAY)
            time.sleep(SETTLE_S)
            agent.client().proof("GET", HTU, jkt=old["jkt"])
            time.sleep(SETTLE_S)
        assert states(agent) == ["draining", "active"]
        clocks.move(boot=5 * DAY)
        wait_for(agent, ["retired", "active"])


def test_an_unclean_stop_counts_as_use(clocks: OddClocks) -> None:
    with clocks.agent() as agent:
        agent.create_key("default")
        rotate(agent)
        clocks.move(boot=6 * DAY)
        time.sleep(SETTLE_S)
        agent.kill()
    with clocks.agent() as agent:
        clocks.move(boot=6 * DAY)
        time.sleep(SETTLE_S)
        assert states(agent) == ["draining", "active"]
        clocks.move(boot=DAY + 60)
        wait_for(agent, ["retired", "active"])


def test_a_scheduled_rotation_comes_on_time_and_is_caught_up_after_the_agent_was_off(
    clocks: OddClocks,
) -> None:
    with clocks.agent() as agent:
        agent.create_key("default", rotate_every_s=DAY)
        clocks.move(wall=DAY - 60, boot=DAY - 60)
        time.sleep(SETTLE_S)
        assert states(agent) == ["active"]
        clocks.move(wall=61, boot=61)
        wait_for(agent, ["draining", "active"])
    clocks.move(wall=30 * DAY, boot=30 * DAY)
    with clocks.agent() as agent:
        wait_for(agent, ["draining", "draining", "active"])
        time.sleep(SETTLE_S)
        assert states(agent) == ["draining", "draining", "active"]


def test_a_clock_that_was_set_back_doesnt_put_a_rotation_off(clocks: OddClocks) -> None:
    with clocks.agent() as agent:
        agent.create_key("default", rotate_every_s=DAY)
        clocks.move(wall=-YEAR)
        clocks.move(boot=DAY + 1)
        wait_for(agent, ["draining", "active"])

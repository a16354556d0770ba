"""What has to hold of an agent whatever happened to it before."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from dpop_agent.client import AgentClient
from dpop_agent.errors import DPoPAgentError
from dpop_agent.verify import verify
from tests.processes import START_S, Agent, Token

HTU = "https://api.example.com/v1/me"

_LISTING = """
import json, sys
import pkcs11
from pkcs11 import Attribute, ObjectClass
module, label, pin = sys.argv[1], sys.argv[2], sys.stdin.read()
token = next(t for t in (s.get_token() for s in pkcs11.lib(module).get_slots(token_present=True))
             if t.label.strip() == label)
session = token.open(user_pin=pin)
print(json.dumps({
    kind: sorted(o[Attribute.ID].hex() for o in session.get_objects({Attribute.CLASS: value}))
    for kind, value in (("private", ObjectClass.PRIVATE_KEY), ("public", ObjectClass.PUBLIC_KEY))
}))
"""


def objects_on(token: Token) -> dict[str, list[str]]:
    """The ids of all keys on a PKCS#11 token, seen by somebody else than the agent."""
    listed = subprocess.run(
        [sys.executable, "-c", _LISTING, token.module, token.label],
        input=token.pin,
        env={"SOFTHSM2_CONF": str(token.softhsm_conf)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    found: dict[str, list[str]] = json.loads(listed.stdout)
    return found


def ledger_of(agent: Agent) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((agent.state / "ledger.json").read_text())
    return document


def wait_until_recovered(agent: Agent) -> None:
    """Wait until nothing is half done any more."""
    deadline = time.monotonic() + START_S
    with AgentClient(agent.socket) as client:
        while True:
            status = client.status()
            half_done = [
                (key["name"], g["generation"], g["state"])
                for key in ledger_of(agent)["keys"]
                for g in key["generations"]
                if g["state"] == "pending" or g["object_left"]
            ]
            if all(s["state"] == "ready" for s in status["stores"]) and not half_done:
                return
            assert time.monotonic() < deadline, (status, half_done, agent.log.read_text())
            time.sleep(0.01)


def check(agent: Agent, token: Token, *, had_active: set[str], strangers: Sequence[str]) -> None:
    """No lost key, no object that the ledger doesn't list, at most one active generation, and one
    wherever one was.

    Args:
        had_active: the keys that had an active generation.
        strangers: ids of objects that aren't this agent's.
    """
    listed = {
        g["ref"]
        for key in ledger_of(agent)["keys"]
        for g in key["generations"]
        if g["state"] != "destroyed"
    }
    there = {kind: set(found) for kind, found in objects_on(token).items()}
    with AgentClient(agent.socket, timeout=10) as client:
        assert there["private"] == listed | set(strangers), (there, agent.log.read_text())
        assert there["public"] == there["private"], (there, agent.log.read_text())
        keys = client.keys()
        for key in keys:
            active = [g for g in key["generations"] if g["state"] == "active"]
            assert len(active) <= 1, key
            assert not [g for g in key["generations"] if g["missing"]], key
            for generation in key["generations"]:
                if generation["state"] in ("active", "draining"):
                    proof = client.proof("GET", HTU, jkt=generation["jkt"])
                    verify(str(proof), htm="GET", htu=HTU, jkt=generation["jkt"])
        assert had_active <= {
            key["key"] for key in keys for g in key["generations"] if g["state"] == "active"
        }


def attempt(agent: Agent, method: str, **params: Any) -> bool:
    """One admin request; whether it was answered with a result."""
    try:
        with AgentClient(agent.admin_socket, timeout=20) as admin:
            admin.call(method, params)
    except (DPoPAgentError, OSError):
        return False
    return True

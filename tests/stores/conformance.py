"""What every store does for an agent, whatever it is: a store's tests subclass these classes.

`StoreConformance` is for all; `PinConformance` for those with a PIN; `AwayConformance` for those
that can be taken away. A subclass gives the fixtures `agent` (running, without keys) and, where it
can look into the store without the agent, `held`.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import joserfc.jwk
import pytest

from dpop_agent.jose import ALGORITHMS
from dpop_agent.verify import verify
from tests.agent.places import descendants, store, until, until_open, until_state
from tests.agent.wire import Wire
from tests.bench.bars import BACK
from tests.processes import Agent, Token, running
from tests.stores import on_token
from tests.timing import Measured

HTM, HTU = "POST", "https://as.example.com/token"
TARGET = {"htm": HTM, "htu": HTU}


def signs(wire: Wire) -> bool:
    """Whether there is a proof by the key `shop`."""
    return "result" in wire.ask("proof", **TARGET, key="shop")


def until_back(holds: Callable[[], bool], measured: Measured) -> None:
    """Wait until a store serves again."""
    with measured(BACK):
        until(holds)


class StoreConformance:
    """Creates, lists, signs, reads back, destroys; and tells the truth about it.

    Class attributes:
        ALGS: the algorithms that the store has.
        EXPORTABLE, PROTECTION, LOCAL: what its keys show.
        LISTS: whether it can say which keys it has; LABELS: whether they have the agent's labels.
    """

    ALGS: ClassVar[tuple[str, ...]] = ()
    EXPORTABLE: ClassVar[bool] = False
    PROTECTION: ClassVar[str] = ""
    LOCAL: ClassVar[bool] = True
    LISTS: ClassVar[bool] = True
    LABELS: ClassVar[bool] = True

    @pytest.fixture
    def agent(self) -> Agent:
        """A running agent with this store alone and no key."""
        raise NotImplementedError

    @pytest.fixture
    def held(self) -> Callable[[], list[str]]:
        """The refs of the private keys that are in the store, sorted, seen without the agent."""
        raise NotImplementedError

    @pytest.fixture
    def wire(self, agent: Agent) -> Iterator[Wire]:
        """A connection to its `admin.sock`."""
        with Wire(agent.admin_socket, timeout=60) as wire:
            yield wire

    def create(self, wire: Wire, name: str, alg: str | None = None) -> dict[str, Any]:
        """A new key's generation, as the agent shows it."""
        (key,) = wire.result("key.create", key=name, alg=alg or self.ALGS[0], origins=[])["keys"]
        (generation,) = key["generations"]
        return dict(generation)

    def prove(self, wire: Wire, name: str) -> str:
        """The jkt of a proof that is right."""
        result = wire.result("proof", **TARGET, key=name, nonce="n-1", timeout_ms=60_000)
        return verify(result["proof"], htm=HTM, htu=HTU, nonce="n-1").jkt

    def test_a_key_of_each_algorithm_is_made_in_the_store_and_its_proofs_are_right(
        self, wire: Wire, held: Callable[[], list[str]]
    ) -> None:
        assert self.ALGS
        assert held() == []
        for number, alg in enumerate(self.ALGS, 1):
            made = self.create(wire, alg.lower(), alg)
            assert made["state"] == "active"
            assert made["exportable"] is self.EXPORTABLE
            assert made["protection"] == self.PROTECTION
            assert made["local"] is self.LOCAL
            assert made["missing"] is False
            public = joserfc.jwk.import_key(dict(made["jwk"]))
            assert not public.is_private
            assert public.thumbprint() == made["jkt"]
            for _ in range(3):
                assert self.prove(wire, alg.lower()) == made["jkt"]
            assert len(held()) == number

    def test_an_algorithm_that_the_store_hasnt_is_refused_before_anything_is_made(
        self, wire: Wire, held: Callable[[], list[str]]
    ) -> None:
        others = set(ALGORITHMS) - set(self.ALGS)
        for alg in others:
            error = wire.error("key.create", key="shop", alg=alg, origins=[])
            assert (error["type"], error["retry"]) == ("algorithm_unsupported", "no")
        assert wire.result("key.list")["keys"] == []
        assert held() == []
        self.create(wire, "shop")

    def test_a_key_is_read_back_as_it_was_after_a_restart(self, agent: Agent, wire: Wire) -> None:
        made = {alg.lower(): self.create(wire, alg.lower(), alg) for alg in self.ALGS}
        assert agent.stop() == 0
        agent.start()
        until_open(agent)
        with Wire(agent.admin_socket, timeout=60) as again:
            for name, generation in made.items():
                (key,) = again.result("key.list", key=name)["keys"]
                assert key["generations"] == [generation]
                assert self.prove(again, name) == generation["jkt"]

    def test_a_lost_ledgers_key_is_found_by_its_label_where_the_store_keeps_one(
        self, agent: Agent, wire: Wire
    ) -> None:
        made = self.create(wire, "shop")
        agent.stop()
        shutil.rmtree(agent.state)
        until_open(agent.start())
        with Wire(agent.admin_socket, timeout=60) as again:
            found = again.result("key.adopt_all")
            expected = [{"key": "shop", "generation": 1, "jkt": made["jkt"]}] if self.LABELS else []
            assert (found["listed"], found["adopted"]) == (self.LISTS, expected), found
            assert not signs(again)
            if expected:
                again.result("key.resume", key="shop", generation=1, origins=[])
                assert self.prove(again, "shop") == made["jkt"]

    def test_a_destroyed_key_is_gone_from_the_store_and_the_others_stay(
        self, wire: Wire, held: Callable[[], list[str]]
    ) -> None:
        self.create(wire, "first")
        (kept,) = held()
        made = self.create(wire, "second")
        assert len(held()) == 2
        self.prove(wire, "second")
        wire.result("key.destroy", key="second", generation=1)
        assert held() == [kept]
        error = wire.error("proof", **TARGET, jkt=made["jkt"])
        assert (error["type"], error["retry"]) == ("key_destroyed", "no")
        self.prove(wire, "first")

    def test_a_killed_signer_is_replaced_and_the_key_is_the_same(
        self, agent: Agent, wire: Wire
    ) -> None:
        made = self.create(wire, "shop")
        signer = until_open(agent)["signer_pid"]
        os.kill(signer, signal.SIGKILL)
        until(lambda: "result" in wire.ask("proof", **TARGET, key="shop"))
        assert self.prove(wire, "shop") == made["jkt"]
        assert until_open(agent)["signer_pid"] != signer

    def test_a_self_test_signs_and_is_no_use_of_the_key(self, agent: Agent, wire: Wire) -> None:
        made = self.create(wire, "shop")
        name = until_open(agent)["store"]
        before = wire.result("key.list")
        told = wire.result("store.self_test", store=name)
        assert (told["key"], told["jkt"], told["reason"]) == ("shop", made["jkt"], None)
        assert wire.result("key.list") == before
        assert self.prove(wire, "shop") == made["jkt"]

    def test_a_locked_store_signs_nothing_before_unlock(self, agent: Agent, wire: Wire) -> None:
        made = self.create(wire, "shop")
        signer = until_open(agent)["signer_pid"]
        (told,) = wire.result("lock")["stores"]
        assert (told["state"], told["signer_pid"]) == ("locked", None)
        assert not running(signer)
        wire.result("reload")
        for _ in range(3):
            error = wire.error("proof", **TARGET, key="shop")
            assert (error["type"], error["retry"]) == ("locked", "later")
            assert error["hint"] == f"dpop-agent unlock {told['store']}"
        assert store(agent)["state"] == "locked"
        opened = wire.result("unlock", store=told["store"])
        assert (opened["state"], opened["pin_socket"], opened["pin_pad"]) == ("ready", None, False)
        assert self.prove(wire, "shop") == made["jkt"]

    def test_status_tells_where_the_keys_are(self, agent: Agent) -> None:
        told = until_open(agent)
        assert (told["reason"], told["hint"]) == (None, None)
        assert told["signer_pid"] in descendants(agent.pid)


@contextmanager
def other_pin(token: Token, pin: str) -> Iterator[None]:
    """The agent's source has another PIN than the PKCS#11 token."""
    right = token.pin_file.read_text()
    token.pin_file.write_text(f"{pin}\n")
    yield
    token.pin_file.write_text(right)


class SeenByPkcs11:
    """Fixtures for a PKCS#11 token that other programs may use meanwhile."""

    @pytest.fixture
    def held(self, token: Token) -> Callable[[], list[str]]:
        return lambda: on_token.private_ids(token)

    @pytest.fixture
    def delete(self, token: Token) -> Callable[[str], None]:
        return lambda ref: on_token.delete(token, ref)

    @pytest.fixture
    def wrong_pin(self, token: Token) -> Callable[[], AbstractContextManager[None]]:
        return lambda: other_pin(token, "another")


class PinConformance:
    """A refused PIN is tried once, and again only by command."""

    @pytest.fixture
    def wrong_pin(self) -> Callable[[], AbstractContextManager[None]]:
        """`with wrong_pin():` the agent's source has another PIN than the store."""
        raise NotImplementedError

    def test_a_refused_pin_is_tried_once_and_again_only_by_command(
        self,
        agent: Agent,
        wire: Wire,
        wrong_pin: Callable[[], AbstractContextManager[None]],
    ) -> None:
        (key,) = wire.result("key.create", key="shop", origins=[])["keys"]
        assert agent.stop() == 0
        with wrong_pin():
            agent.start()
            until_state(agent, "locked")
        # The right one is there now: a second try would succeed, and show.
        with Wire(agent.admin_socket, timeout=60) as again:
            for _ in range(20):
                error = again.error("proof", **TARGET, key="shop")
                assert (error["type"], error["retry"]) == ("pin_refused", "no")
            again.result("reload")
            assert store(agent)["state"] == "locked"
            again.result("unlock", store=store(agent)["store"])
            until_open(agent)
            result = again.result("proof", **TARGET, key="shop")
            assert result["jkt"] == key["generations"][0]["jkt"]


class AwayConformance:
    """A store that goes and comes back, and a key that somebody else deleted."""

    @pytest.fixture
    def taken_away(self) -> Callable[[], AbstractContextManager[None]]:
        """`with taken_away():` the store isn't there."""
        raise NotImplementedError

    @pytest.fixture
    def delete(self) -> Callable[[str], None]:
        """Deletes what has a ref from the store, not through the agent."""
        raise NotImplementedError

    def test_a_store_that_went_is_absent_and_serves_again_when_it_is_back(
        self,
        agent: Agent,
        wire: Wire,
        taken_away: Callable[[], AbstractContextManager[None]],
        measured: Measured,
    ) -> None:
        (key,) = wire.result("key.create", key="shop", origins=[])["keys"]
        assert agent.stop() == 0
        with taken_away():
            agent.start()
            with Wire(agent.socket, timeout=60) as again:
                error = again.error("proof", **TARGET, key="shop")
                assert (error["type"], error["retry"]) == ("store_absent", "later")
                assert error["hint"]
        with Wire(agent.socket, timeout=60) as again:
            until_back(lambda: signs(again), measured)
            result = again.result("proof", **TARGET, key="shop")
            assert result["jkt"] == key["generations"][0]["jkt"]

    def test_a_deleted_key_is_missing_and_never_forgotten(
        self,
        agent: Agent,
        wire: Wire,
        held: Callable[[], list[str]],
        delete: Callable[[str], None],
    ) -> None:
        (key,) = wire.result("key.create", key="shop", origins=[])["keys"]
        wire.result("proof", **TARGET, key="shop")
        (ref,) = held()
        wire.result("key.create", key="other", origins=[])
        delete(ref)
        error = wire.error("proof", **TARGET, key="shop")
        assert (error["type"], error["retry"]) == ("key_missing", "no")
        (listed,) = wire.result("key.list", key="shop")["keys"]
        (generation,) = listed["generations"]
        assert (generation["missing"], generation["state"]) == (True, "active")
        assert generation["jkt"] == key["generations"][0]["jkt"]
        assert wire.result("proof", **TARGET, key="other")["state"] == "active"

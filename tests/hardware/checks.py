"""The conformance class on a PKCS#11 token of somebody's own; `tests/hardware/run` starts it.

What would cost a PIN try, or wants a hand at the token, is left out and told.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import pytest

from tests.agent.places import store, until, until_open
from tests.agent.wire import Wire
from tests.hardware.places import Run
from tests.processes import HARDWARE_RUN, Agent
from tests.stores.conformance import (
    AwayConformance,
    PinConformance,
    StoreConformance,
)

RUN = Run(Path(os.environ[HARDWARE_RUN]))
SEEN = RUN.seen
HAS_SLOTS = bool(SEEN["slots"])
PROOFS = 20

CANT_BE_DELETED = (
    "it would make a key, and a private key in a slot of this card can't be deleted again"
)


class CountingWire(Wire):
    """One that notes each key that was made."""

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        answer = super().ask(method, **params)
        if method == "key.create" and "result" in answer:
            with RUN.made.open("a") as made:
                made.write(".")
        return answer


class OnHardware(StoreConformance, PinConformance, AwayConformance):
    PROTECTION: ClassVar[str] = SEEN["protection"]

    @pytest.fixture(autouse=True)
    def nothing_is_left(self) -> Iterator[None]:
        """Before the agent, so that it is gone when this looks."""
        if RUN.is_over() or RUN.place.look()["few_tries"]:
            RUN.give_up()
            pytest.skip("a login was refused before, and none is tried again")
        yield
        if not RUN.is_over():
            assert RUN.delete_ours() == []

    @pytest.fixture
    def agent(self, nothing_is_left: None, make_agent: Callable[..., Agent]) -> Agent:
        agent = make_agent(RUN.config).start()
        until(lambda: store(agent)["state"] not in ("starting", "closed"))
        if RUN.is_over():
            pytest.fail("the login was refused")
        until_open(agent)
        return agent

    @pytest.fixture
    def wire(self, agent: Agent) -> Iterator[Wire]:
        with CountingWire(agent.admin_socket, timeout=60) as wire:
            yield wire

    @pytest.fixture
    def held(self) -> Callable[[], list[str]]:
        return lambda: sorted(o.ref for o in RUN.new_objects() if o.kind == "PRIVATE_KEY")

    @pytest.fixture
    def delete(self, agent: Agent) -> Callable[[str], None]:
        def delete(ref: str) -> None:
            RUN.place.delete(RUN.pin, [o for o in RUN.new_objects() if o.ref == ref])
            # Some modules keep what they have seen for as long as their process lives.
            signer = until_open(agent)["signer_pid"]
            os.kill(signer, signal.SIGKILL)
            until(lambda: store(agent)["signer_pid"] not in (None, signer))

        return delete

    @pytest.fixture
    def wrong_pin(self) -> Callable[[], AbstractContextManager[None]]:
        pytest.skip("it would cost a PIN try")

    @pytest.fixture
    def taken_away(self) -> Callable[[], AbstractContextManager[None]]:
        pytest.skip("somebody would have to pull it out and put it back")

    def test_a_lost_ledgers_key_is_found_by_its_label_where_the_store_keeps_one(
        self, agent: Agent, wire: Wire
    ) -> None:
        if RUN.has_an_agents_keys:
            pytest.skip("it would adopt keys of an agent of yours too")
        super().test_a_lost_ledgers_key_is_found_by_its_label_where_the_store_keeps_one(agent, wire)

    def test_proofs_one_after_the_other(
        self, wire: Wire, record_property: Callable[[str, object], None]
    ) -> None:
        """How long one takes is in the report."""
        made = self.create(wire, "shop")
        took = []
        for _ in range(PROOFS):
            began = time.perf_counter()
            assert self.prove(wire, "shop") == made["jkt"]
            took.append(time.perf_counter() - began)
        (RUN.folder / "proof-ms").write_text(f"{1000 * median(took):.1f} ms ({self.ALGS[0]})")


if not HAS_SLOTS:

    class TestToken(OnHardware):
        ALGS: ClassVar[tuple[str, ...]] = tuple(SEEN["algs"])

else:

    class TestCard(OnHardware):
        """Nothing is made: keys that are there are adopted by an agent that forgets them."""

        ALGS: ClassVar[tuple[str, ...]] = ("ES256",)
        LABELS: ClassVar[bool] = False

        @pytest.fixture(autouse=True)
        def only_what_makes_nothing(self, request: pytest.FixtureRequest) -> None:
            if request.function.__name__ not in self.MAKES_NOTHING:
                pytest.skip(CANT_BE_DELETED)

        MAKES_NOTHING = (
            "test_status_tells_where_the_keys_are",
            "test_a_killed_signer_is_replaced_and_the_key_is_the_same",
            "test_a_locked_store_signs_nothing_before_unlock",
            "test_a_refused_pin_is_tried_once_and_again_only_by_command",
            "test_a_store_that_went_is_absent_and_serves_again_when_it_is_back",
            "test_proofs_one_after_the_other",
        )

        def create(self, wire: Wire, name: str, alg: str | None = None) -> dict[str, Any]:
            wire.result("reload")  # it returns once the card was looked through
            (told,) = wire.result("status")["stores"]
            theirs = [found for found in told["unknown"] if found.get("alg") == "ES256"]
            if not theirs:
                pytest.skip("there is no key for ES256 on the card to sign with")
            adopted = {"key": name, "ref": theirs[0]["ref"], "alg": "ES256", "origins": []}
            wire.result("key.adopt", **adopted)
            (key,) = wire.result("key.activate", key=name, generation=1)["keys"]
            (generation,) = key["generations"]
            return dict(generation)

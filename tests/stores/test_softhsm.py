"""SoftHSM2: the store of the tests, in files of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from dpop_agent.jose import ALGORITHMS
from tests.agent.places import until_open
from tests.processes import Agent, Token
from tests.stores import on_token
from tests.stores.conformance import AwayConformance, PinConformance, StoreConformance


class TestSoftHsm(StoreConformance, PinConformance, AwayConformance):
    ALGS = tuple(ALGORITHMS)
    PROTECTION = "software-token"

    @pytest.fixture
    def agent(self, make_agent: Callable[..., Agent], token: Token) -> Agent:
        agent = make_agent(token.config).start()
        until_open(agent)  # two processes that initialise SoftHSM at once can miss a token
        return agent

    @pytest.fixture
    def held(self, token: Token) -> Callable[[], list[str]]:
        return lambda: on_token.private_ids(token)

    @pytest.fixture
    def delete(self, token: Token) -> Callable[[str], None]:
        return lambda ref: on_token.delete(token, ref)

    @pytest.fixture
    def wrong_pin(self, token: Token) -> Callable[[], AbstractContextManager[None]]:
        @contextmanager
        def wrong() -> Iterator[None]:
            pin = token.pin_file.read_text()
            token.pin_file.write_text("another\n")
            yield
            token.pin_file.write_text(pin)

        return wrong

    @pytest.fixture
    def taken_away(self, token: Token) -> Callable[[], AbstractContextManager[None]]:
        @contextmanager
        def away() -> Iterator[None]:
            tokens = token.folder / "tokens"
            kept = tokens.rename(token.folder / "kept")
            tokens.mkdir()
            yield
            tokens.rmdir()
            kept.rename(tokens)

        return away

"""NSS's softoken: a module that wants arguments, and has two PKCS#11 tokens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.agent.places import store, until, until_open
from tests.agent.wire import Wire
from tests.emulators import NSS, certutil, need, nss
from tests.processes import Agent, Token
from tests.stores import on_token
from tests.stores.conformance import (
    TARGET,
    AwayConformance,
    PinConformance,
    StoreConformance,
)


@pytest.fixture
def token(tmp_path: Path) -> Token:
    need(*NSS)
    return nss(tmp_path / "nss")


@pytest.fixture
def agent(make_agent: Callable[..., Agent], token: Token) -> Agent:
    agent = make_agent(token.config).start()
    until_open(agent)
    return agent


class TestNss(StoreConformance, PinConformance, AwayConformance):
    ALGS = ("ES256", "ES384", "ES512", "RS256", "PS256")
    PROTECTION = "software-token"
    LOCAL = False  # so it says of keys that were made in it

    @pytest.fixture
    def agent(self, agent: Agent) -> Agent:
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
            kept = (token.folder / "db").rename(token.folder / "kept")
            yield
            kept.rename(token.folder / "db")

        return away

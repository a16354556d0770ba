"""Fixtures: Node, and an authorization server that nobody here wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.places import hurried
from tests.processes import Agent, NodeServer, new_token
from tests.servers import node


@pytest.fixture(scope="session")
def node_packages() -> Path:
    """The folder that holds node_modules; a skip where it isn't installed."""
    try:
        node.node()
        return node.packages()
    except node.MissingError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def authorization_server(
    node_packages: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NodeServer]:
    """oidc-provider, which wants a nonce in every proof."""
    yield from start(node_packages, tmp_path_factory.mktemp("authorization_server"))


@pytest.fixture
def new_authorization_server(node_packages: Path, tmp_path: Path) -> Iterator[NodeServer]:
    """One that nobody has asked for a nonce yet."""
    yield from start(node_packages, tmp_path)


@pytest.fixture(scope="module")
def rotating_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """A running agent without keys, which sees a drain's end at once instead of in a minute."""
    folder = tmp_path_factory.mktemp("rotating")
    agent = Agent(
        new_token(folder / "token").config,
        folder / "state",
        preexec=hurried("upkeep.SAVE_S=0.2", "upkeep.MIN_TICK_S=0.2"),
    )
    try:
        yield agent.start()
    finally:
        agent.close()


def start(node_packages: Path, folder: Path) -> Iterator[NodeServer]:
    server = NodeServer(
        [node.node(), node.HERE / "authorization_server.mjs", node_packages], log=folder / "log"
    )
    yield server
    server.close()

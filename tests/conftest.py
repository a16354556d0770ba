"""Fixtures: private places, a PKCS#11 token, an agent; and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import emulators, faulty, places
from tests.documents import Block, Runs
from tests.processes import Agent, Token, adopt_orphans, end_leftovers, new_token
from tests.rows import Reached
from tests.timing import Measured


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-all", action="store_true", help="a part that is missing is a failure"
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Its reports say which rows it is of, however it ends."""
    for marker in item.iter_markers("row"):
        (number,) = marker.args
        item.user_properties.append(("row", number))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.config.getoption("--require-all"):
        _no_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if collector.config.getoption("--require-all"):
        _no_skip(report)
    return report


def _no_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"--require-all: {report.longrepr}"


@pytest.fixture(scope="session", autouse=True)
def private_places() -> Iterator[Path]:
    """Nothing of the user's own is read or touched."""
    with places.private_places() as home:
        yield home


@pytest.fixture(scope="session", autouse=True)
def no_proxies() -> None:
    """The tests' servers are on this machine, whatever proxies its environment names."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Every process that a test starts ends with it, its children too."""
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", 143))  # and clean up
    # A shell's background job ignores SIGINT, and what it starts does so for good.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert end_leftovers() == {}


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Measured:
    """`with measured(BAR):` a block whose seconds `tests/bench` judges, and no test."""
    return Measured(record_property)


@pytest.fixture
def reached(record_property: Callable[[str, object], None]) -> Reached:
    """`reached(WHAT, value)`: a figure that `tests/run rows` holds against its bar."""
    return Reached(record_property)


@pytest.fixture
def make_token(tmp_path: Path) -> Callable[..., Token]:
    """`make_token(label="dpop-agent")`: a new PKCS#11 token, in a folder of its own."""

    def make(label: str = "dpop-agent") -> Token:
        return new_token(Path(tempfile.mkdtemp(prefix="token-", dir=tmp_path)), label)

    return make


@pytest.fixture
def token(make_token: Callable[..., Token]) -> Token:
    """A new PKCS#11 token."""
    return make_token()


@pytest.fixture(scope="session")
def faulty_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared object of faulty.c."""
    return faulty.module(tmp_path_factory.mktemp("faulty"))


@pytest.fixture
def faulty_token(token: Token, faulty_module: Path) -> faulty.Faulty:
    """A new PKCS#11 token whose module has faults."""
    return faulty.Faulty(token, faulty_module)


@pytest.fixture(scope="session")
def made_tpm() -> Iterator[emulators.Tpm]:
    """A TPM with a PKCS#11 token in it, switched off."""
    emulators.need(*emulators.TPM)
    with emulators.tpm() as found:
        found.stop()
        yield found


@pytest.fixture
def tpm(made_tpm: emulators.Tpm) -> Iterator[emulators.Tpm]:
    """A TPM of this test alone, with a PKCS#11 token in it."""
    with emulators.tpm(like=made_tpm) as found:
        yield found


@pytest.fixture
def keyring() -> Iterator[emulators.Keyring]:
    """A gnome-keyring of this test alone, unlocked."""
    emulators.need(*emulators.KEYRING)
    with emulators.keyring() as found:
        yield found


@pytest.fixture
def yubikey() -> Iterator[emulators.YubiKey]:
    """An emulated YubiKey of this test alone, in its reader."""
    emulators.need(*emulators.YUBIKEY)
    with emulators.yubikey() as found:
        yield found


@pytest.fixture
def make_agent(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    """`make_agent(config=None, **settings)`: an agent that isn't started yet, and ends with the
    test; with a new PKCS#11 token where no configuration is named.
    """

    def make(config: Path | None = None, *, state: Path | None = None, **settings: Any) -> Agent:
        folder = Path(tempfile.mkdtemp(prefix="agent-", dir=tmp_path))
        agent = Agent(
            config or new_token(folder / "token").config, state or folder / "state", **settings
        )
        agents.callback(agent.close)
        return agent

    with ExitStack() as agents:
        yield make


@pytest.fixture
def own_mounts() -> None:
    """What a test mounts for its agent nobody else sees."""
    probe = subprocess.run(
        ["unshare", "--mount", "true"], check=False, capture_output=True, text=True
    )
    if probe.returncode:
        pytest.skip(f"needs its own mounts, which root alone may make here: {probe.stderr}")


@pytest.fixture
def agent(make_agent: Callable[..., Agent]) -> Agent:
    """A running agent of this test alone, with a new PKCS#11 token and no key."""
    return make_agent().start()


@pytest.fixture(scope="session")
def shared_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """A running agent with the keys `default` and `other`; tests leave them as they are."""
    folder = tmp_path_factory.mktemp("shared")
    agent = Agent(new_token(folder / "token").config, folder / "state")
    with agent.serving("default", "other"):
        yield agent


@pytest.fixture
def blocks(request: pytest.FixtureRequest) -> list[Block]:
    """Those blocks of the documents that the test's markers `runs` name, in their order."""
    markers = reversed([*request.node.iter_markers("runs")])
    return [b for marker in markers for b in Runs(*marker.args, **marker.kwargs).blocks()]

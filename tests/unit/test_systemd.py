"""What systemd hands over is taken only if it is what the agent would have made itself."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dpop_agent import systemd
from dpop_agent.agent.listener import Listener
from dpop_agent.errors import ConfigurationError, UnsafeSocket
from dpop_agent.peer import Peer

Give = Callable[..., systemd.Service]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dpop-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Give:
    """What systemd would say of one descriptor, wherever it is here."""

    def give(descriptor: int, **variables: str) -> systemd.Service:
        monkeypatch.setattr(systemd, "FIRST", descriptor)
        return systemd.Service({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", **variables})

    return give


@pytest.fixture
def listening(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "agent.sock"))
        sock.listen()
        yield sock


def expected(folder: Path) -> dict[str, str]:
    return {str(folder / "agent.sock"): "agent", str(folder / "admin.sock"): "admin"}


@pytest.mark.parametrize("name", ["agent", "dpop-agent.socket", "", "unknown"])
def test_a_socket_at_a_path_of_the_agents_is_taken_whatever_its_unit_is_called(
    folder: Path, listening: socket.socket, give: Give, name: str
) -> None:
    service = give(os.dup(listening.fileno()), LISTEN_FDNAMES=name)
    taken = service.sockets(expected(folder))
    assert list(taken) == [str(folder / "agent.sock")]
    (sock,) = taken.values()
    assert not sock.get_inheritable()
    sock.close()


def test_what_is_for_another_process_is_left_alone(
    folder: Path, listening: socket.socket, give: Give
) -> None:
    service = give(listening.fileno(), LISTEN_PID=str(os.getpid() + 1))
    assert service.sockets(expected(folder)) == {}
    assert systemd.Service({}).sockets(expected(folder)) == {}


def _elsewhere(folder: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(folder / "other.sock"))
    sock.listen()
    return sock


def _abstract(folder: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(f"\0{folder}")
    sock.listen()
    return sock


def _silent(folder: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(folder / "agent.sock"))
    return sock


def _datagrams(folder: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(folder / "agent.sock"))
    return sock


def _tcp(folder: Path) -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_elsewhere, "where this agent serves nothing"),
        (_abstract, "where this agent serves nothing"),
        (_silent, "isn't a Unix stream socket that listens"),
        (_datagrams, "isn't a Unix stream socket that listens"),
        (_tcp, "isn't a Unix stream socket that listens"),
    ],
)
def test_any_other_socket_is_refused_with_the_reason(
    folder: Path, give: Give, make: Callable[[Path], socket.socket], why: str
) -> None:
    with make(folder) as sock, pytest.raises(ConfigurationError, match=why):
        give(os.dup(sock.fileno())).sockets(expected(folder))


def test_a_descriptor_that_is_no_socket_or_closed_is_refused(folder: Path, give: Give) -> None:
    with open(os.devnull, "rb") as file, pytest.raises(ConfigurationError, match="isn't a socket"):
        give(file.fileno()).sockets(expected(folder))
    closed = os.dup(0)
    os.close(closed)
    with pytest.raises(ConfigurationError, match="isn't a socket"):
        give(closed).sockets(expected(folder))


def test_a_socket_with_another_ones_name_is_refused(
    folder: Path, listening: socket.socket, give: Give
) -> None:
    service = give(os.dup(listening.fileno()), LISTEN_FDNAMES="admin")
    with pytest.raises(ConfigurationError, match=r"'admin'.*is the socket 'agent'"):
        service.sockets(expected(folder))


@pytest.mark.parametrize("many", ["", "-1", "x", "٣"])
def test_a_number_that_is_none_is_refused(folder: Path, give: Give, many: str) -> None:
    with pytest.raises(ConfigurationError, match="LISTEN_FDS"):
        give(0, LISTEN_FDS=many).sockets(expected(folder))


def test_a_socket_that_another_user_listens_at_is_refused(
    folder: Path, listening: socket.socket, give: Give, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "peer_of", lambda sock: Peer(1, os.getuid() + 1, 0))
    with pytest.raises(UnsafeSocket, match="no client would use it"):
        give(os.dup(listening.fileno())).sockets(expected(folder))


def test_nobody_who_is_started_later_finds_what_systemd_gave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC"):
        monkeypatch.setenv(name, "1")
    systemd.take()
    assert not [name for name in os.environ if name.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG"))]


@pytest.mark.parametrize("form", ["path", "abstract"])
def test_systemd_is_told_in_one_datagram(folder: Path, form: str) -> None:
    path = str(folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path if form == "path" else f"\0{path}")
        sock.settimeout(10)
        address = path if form == "path" else f"@{path}"
        systemd.Service({"NOTIFY_SOCKET": address}).tell("READY=1", "STATUS=fine")
        assert sock.recv(100) == b"READY=1\nSTATUS=fine"


def test_whoever_cant_be_told_is_a_line_in_the_log(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    systemd.Service({}).tell("READY=1")
    assert not caplog.records
    systemd.Service({"NOTIFY_SOCKET": str(folder / "none")}).tell("READY=1")
    assert "systemd can't be told READY" in caplog.text


def inode(path: Path) -> int:
    info = path.lstat()
    assert stat.S_ISSOCK(info.st_mode)
    return info.st_ino


def test_a_socket_that_was_given_stays_when_the_agent_goes(
    folder: Path, listening: socket.socket
) -> None:
    path = folder / "agent.sock"
    before = inode(path)
    with Listener(str(path), given=listening.dup()) as listener:
        assert not listener.lost
        assert not listener.socket.getblocking()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            listener.socket.accept()[0].close()
    assert inode(path) == before


def test_where_only_the_lock_was_removed_the_given_socket_is_kept(
    folder: Path, listening: socket.socket
) -> None:
    path = folder / "agent.sock"
    before = inode(path)
    with Listener(str(path), given=listening.dup()) as listener:
        os.unlink(f"{path}.lock")
        assert listener.lost
        first = listener.socket
        listener.listen_again()
        first.close()
        assert not listener.lost
        assert inode(path) == before


def test_a_given_socket_that_was_removed_comes_back_as_one_of_the_agents_own(
    folder: Path, listening: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "agent.sock"
    with Listener(str(path), given=listening.dup()) as listener:
        path.unlink()
        assert listener.lost
        first = listener.socket
        listener.listen_again()
        first.close()
        assert not listener.lost
        assert "has gone from there" in caplog.text
    assert not path.exists()


@pytest.mark.parametrize("left", ["nothing", "a stale socket"])
def test_a_given_socket_that_isnt_at_its_path_any_more_is_replaced_at_the_start(
    folder: Path, listening: socket.socket, left: str
) -> None:
    path = folder / "agent.sock"
    path.unlink()
    with ExitStack() as stack:
        if left != "nothing":
            with socket.socket(socket.AF_UNIX) as killed:
                killed.bind(str(path))
        listener = stack.enter_context(Listener(str(path), given=listening.dup()))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            listener.socket.accept()[0].close()


def test_where_some_other_program_took_the_place_of_a_given_socket_nothing_is_served(
    folder: Path, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpop_agent.agent import listener as module

    pids = iter([1, 2])
    monkeypatch.setattr(module, "peer_of", lambda sock: Peer(next(pids), os.getuid(), 0))
    with (
        pytest.raises(ConfigurationError, match="some other program listens"),
        Listener(str(folder / "agent.sock"), given=listening.dup()),
    ):
        pass
    assert inode(folder / "agent.sock")


def test_a_given_socket_that_others_could_connect_to_is_for_its_user_alone(
    folder: Path, listening: socket.socket
) -> None:
    """As systemd makes one whose unit says no SocketMode=."""
    path = folder / "agent.sock"
    path.chmod(0o666)
    with Listener(str(path), given=listening.dup()):
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600


def test_a_given_socket_in_a_folder_that_others_can_reach_is_refused(
    folder: Path, listening: socket.socket
) -> None:
    folder.chmod(0o755)
    with (
        pytest.raises(UnsafeSocket, match="others can reach it"),
        Listener(str(folder / "agent.sock"), given=listening.dup()),
    ):
        pass

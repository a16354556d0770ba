"""Sockets for one secret: what is removed with them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from dpop_agent.signer import secret_socket


@pytest.mark.parametrize("what", ["pin", "key"])
def test_a_socket_for_a_secret_leaves_no_file(tmp_path: Path, what: str) -> None:
    listener, path = secret_socket.listen(str(tmp_path), what)
    assert Path(path).stat().st_mode & 0o777 == 0o600
    listener.close()
    assert list(tmp_path.iterdir()) == []


def test_what_took_the_place_of_a_socket_for_a_secret_stays(tmp_path: Path) -> None:
    listener, path = secret_socket.listen(str(tmp_path), "key")
    Path(path).unlink()
    with socket.socket(socket.AF_UNIX) as newer:
        newer.bind(path)
        listener.close()
        assert Path(path).is_socket()
    listener, path = secret_socket.listen(str(tmp_path), "pin")
    Path(path).rename(tmp_path / "moved")
    Path(path).write_text("a diary")
    listener.close()
    assert Path(path).read_text() == "a diary"


def test_a_socket_for_a_secret_that_was_tidied_up_is_closed_all_the_same(tmp_path: Path) -> None:
    listener, path = secret_socket.listen(str(tmp_path), "pin")
    Path(path).unlink()
    listener.close()
    listener.close()
    assert listener.fileno() == -1

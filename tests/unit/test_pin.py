"""PIN files: what is in them, and whose they are."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dpop_agent.errors import Locked
from dpop_agent.signer.pin import PinCredential, PinFile


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "pin"
    file.write_text("12345678\n")
    file.chmod(0o600)
    return file


def source(file: Path) -> PinFile:
    return PinFile("work", str(file))


def test_the_line_end_is_no_part_of_the_pin(file: Path) -> None:
    assert source(file).get() == "12345678"


def test_after_a_refusal_it_says_which_file_to_correct_and_which_store_to_unlock(
    file: Path,
) -> None:
    assert source(file).after_refusal == f"correct the PIN in {file}, then: dpop-agent unlock work"


def let_open_files_look_like(uid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        info = list(real(descriptor)[:10])
        info[stat.ST_UID] = uid
        return os.stat_result(info)

    monkeypatch.setattr(os, "fstat", fstat)


@pytest.fixture
def of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    let_open_files_look_like(0, monkeypatch)


def credential(file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> PinCredential:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    return PinCredential("work", str(file.relative_to(folder)))


@pytest.mark.usefixtures("of_root")
@pytest.mark.parametrize("mode", [0o400, 0o440])
def test_a_credential_of_a_unit_with_another_user_is_taken(
    file: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    file.chmod(mode)
    assert credential(file, file.parent, monkeypatch).get() == "12345678"


@pytest.mark.usefixtures("of_root")
@pytest.mark.parametrize("mode", [0o640, 0o444, 0o404, 0o450, 0o460])
def test_a_credential_that_others_can_read_is_not_taken(
    file: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    file.chmod(mode)
    with pytest.raises(Locked):
        credential(file, file.parent, monkeypatch).get()


@pytest.mark.usefixtures("of_root")
@pytest.mark.parametrize("where", ["below", "linked"])
def test_mode_0440_is_a_credentials_alone(
    file: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    file.chmod(0o440)
    with pytest.raises(Locked, match="others can read"):
        source(file).get()
    if where == "below":
        pin = credential(file, file.parent.parent, monkeypatch)
    else:
        folder = file.parent / "credentials"
        folder.mkdir(mode=0o700)
        (folder / "pin").symlink_to(file)
        pin = credential(folder / "pin", folder, monkeypatch)
    with pytest.raises(Locked, match="others can read"):
        pin.get()


def test_a_credential_of_mode_0440_that_isnt_roots_is_not_taken(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.chmod(0o440)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    let_open_files_look_like(4711, monkeypatch)
    with pytest.raises(Locked):
        credential(file, file.parent, monkeypatch).get()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_pin_that_others_can_read_is_not_taken(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(Locked, match="others can read"):
        source(file).get()


def test_a_pin_below_a_folder_that_others_can_write_to_is_not_taken(file: Path) -> None:
    file.parent.chmod(0o777)
    with pytest.raises(Locked, match="above the PIN file, has mode 0777") as caught:
        source(file).get()
    assert f"chmod go-w {file.parent}" in caught.value.hint


@pytest.mark.parametrize("text", ["", "\n", "1" * 256, "12\n34\n"])
def test_what_is_no_pin_is_not_taken_and_not_shown(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(Locked, match="no PIN on its first line") as caught:
        source(file).get()
    assert "1" not in str(caught.value).replace(str(file), "")


@pytest.mark.parametrize(
    ("data", "pin"),
    [
        (b"\xef\xbb\xbf12345678\n", "12345678"),
        (b"\xef\xbb\xbf12345678\r\n", "12345678"),
        (b"\xef\xbb\xbf" + b"1" * 255 + b"\r\n", "1" * 255),
        ("gr\u00fcn 1".encode(), "gr\u00fcn 1"),
    ],
)
def test_a_byte_order_mark_is_no_part_of_the_pin(file: Path, data: bytes, pin: str) -> None:
    file.write_bytes(data)
    assert source(file).get() == pin


@pytest.mark.parametrize(
    "pin",
    [
        "1234\0",
        "12\x0034",
        "\x1b[A1234",
        "1234\t",
        "12\r34",
        "1234\x7f",
        "1234\x85",
        "12\ufeff34",
        "1234\u200b",
        "\u202a1234",
        "1234\u2028",
    ],
)
def test_what_nobody_sees_in_a_pin_is_refused_before_a_try_is_spent(file: Path, pin: str) -> None:
    file.write_text(f"{pin}\n", newline="")
    with pytest.raises(Locked, match="can't be seen: no try was spent") as caught:
        source(file).get()
    assert pin not in str(caught.value)
    assert "dpop-agent unlock" in caught.value.hint


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_a_pin_in_another_encoding_is_refused_before_a_try_is_spent(
    file: Path, encoding: str
) -> None:
    file.write_bytes("p\u00efn 1234".encode(encoding))
    with pytest.raises(Locked, match=r"isn't UTF-8|can't be seen"):
        source(file).get()

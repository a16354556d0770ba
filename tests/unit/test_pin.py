"""PIN files: what is in them, and whose they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpop_agent.errors import Locked
from dpop_agent.signer.pin import PinFile


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

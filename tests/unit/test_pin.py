"""PIN files: a PIN that was refused is not tried again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dpop_agent.errors import Locked, PinRefused
from dpop_agent.signer.pin import PinFile


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "pin"
    file.write_text("12345678\n")
    file.chmod(0o600)
    return file


def source(file: Path) -> PinFile:
    return PinFile(str(file), memory=str(file.with_name("refused")))


def test_the_line_end_is_no_part_of_the_pin(file: Path) -> None:
    assert source(file).get(tries_low=False) == "12345678"


def test_a_refused_pin_is_not_given_again_to_a_later_process(file: Path) -> None:
    first = source(file)
    first.get(tries_low=False)
    first.refused()
    with pytest.raises(PinRefused, match="refused before"):
        source(file).get(tries_low=False)


def test_a_file_that_was_written_since_is_tried(file: Path) -> None:
    first = source(file)
    first.get(tries_low=False)
    first.refused()
    file.write_text("87654321\n")
    os.utime(file, ns=(0, 0))
    assert source(file).get(tries_low=False) == "87654321"


def test_an_accepted_pin_is_forgotten_to_have_been_refused(file: Path) -> None:
    first = source(file)
    first.get(tries_low=False)
    first.refused()
    first.accepted("12345678")
    assert source(file).get(tries_low=False) == "12345678"


def test_a_refusal_that_cant_be_remembered_is_still_a_refusal_and_no_error(file: Path) -> None:
    unwritable = PinFile(str(file), memory=str(file.parent / "no" / "folder"))
    unwritable.get(tries_low=False)
    unwritable.refused()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_pin_that_others_can_read_is_not_taken(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(Locked, match="others can read"):
        source(file).get(tries_low=False)


def test_a_pin_below_a_folder_that_others_can_write_to_is_not_taken(file: Path) -> None:
    file.parent.chmod(0o777)
    with pytest.raises(Locked, match="above the PIN file, has mode 0777") as caught:
        source(file).get(tries_low=False)
    assert f"chmod go-w {file.parent}" in caught.value.hint


def test_the_memory_of_a_refused_pin_takes_the_place_of_a_link(file: Path) -> None:
    other = file.with_name("diary")
    other.write_text("a diary")
    file.with_name("refused").symlink_to(other)
    source(file).get(tries_low=False)
    assert other.read_text() == "a diary"


@pytest.mark.parametrize("text", ["", "\n", "1" * 256, "12\n34\n"])
def test_what_is_no_pin_is_not_taken_and_not_shown(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(Locked, match="no PIN on its first line") as caught:
        source(file).get(tries_low=False)
    assert "1" not in str(caught.value).replace(str(file), "")


def test_a_try_that_was_cut_short_counts_as_refused_where_tries_are_low(file: Path) -> None:
    source(file).get(tries_low=False)
    assert source(file).get(tries_low=False) == "12345678"
    with pytest.raises(PinRefused, match="refused before"):
        source(file).get(tries_low=True)
    with pytest.raises(PinRefused, match="refused before"):
        source(file).get(tries_low=False)
    file.write_text("87654321\n")
    os.utime(file, ns=(0, 0))
    assert source(file).get(tries_low=True) == "87654321"

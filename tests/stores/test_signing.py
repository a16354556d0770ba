"""Signatures by C_SignInit and C_Sign are what python-pkcs11's are, their errors too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pkcs11 import Mechanism

from dpop_agent.signer.pkcs11.signing import Signing
from tests.faulty import Faulty
from tests.processes import ROOT, Token

# What the two functions may return (PKCS#11 3.0 sections 5.1 and 5.13), and a vendor's own.
CODES = [0x2, 0x5, 0x6, 0x7, 0x20, 0x21, 0x30, 0x31, 0x32, 0x50, 0x54, 0x60, 0x62, 0x63, 0x68, 0x70]
CODES += [0x71, 0x82, 0x90, 0x91, 0xA3, 0xB0, 0xB3, 0xE0, 0x101, 0x200, 0x201, 0x80000001]


class Program:
    """One of this folder's programs, seen from a test."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def say(self, line: str) -> None:
        """Give it a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        """The next line that it says."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def both_ways(self, name: str) -> tuple[str, str]:
        """What signing gave by C_SignInit and C_Sign, and by python-pkcs11."""
        self.say(name)
        return self.answer(), self.answer()


@contextmanager
def program(name: str, *words: str | Path, env: Mapping[str, str]) -> Iterator[Program]:
    """It runs until it is left."""
    with subprocess.Popen(
        [sys.executable, "-m", f"tests.stores.{name}", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **env},
    ) as process:
        assert process.stdin is not None
        yield Program(process)
        process.stdin.close()


@pytest.fixture
def signing(faulty_token: Faulty) -> Iterator[Program]:
    token = faulty_token.token
    env = {**token.env, **faulty_token.env}
    with program("sign_both_ways", faulty_token.module, token.label, env=env) as signing:
        signing.say(token.pin)
        assert signing.answer() == "ready"
        yield signing


@pytest.mark.parametrize("name", ["ecdsa", "pkcs", "sha256 pkcs", "pss"])
def test_a_signature_is_good_whoever_calls_c_sign(signing: Program, name: str) -> None:
    for _ in range(3):
        assert signing.both_ways(name) == ("True", "True")


@pytest.mark.parametrize("function", ["C_SignInit", "C_Sign"])
def test_an_error_of_a_module_has_one_name_whoever_calls_c_sign(
    signing: Program, faulty_token: Faulty, function: str
) -> None:
    told = {}
    for code in CODES:
        faulty_token.rules(f"{function} {'after ' * (function == 'C_Sign')}return {code:#x}")
        told[hex(code)] = signing.both_ways("ecdsa")
    assert {code: ways for code, ways in told.items() if ways[0] != ways[1]} == {}
    assert "True" not in {name for ways in told.values() for name in ways}


@pytest.mark.parametrize("function", ["C_SignInit", "C_Sign"])
def test_a_key_that_signed_before_gives_what_one_gives_that_is_looked_up(
    faulty_token: Faulty, tmp_path: Path, function: str
) -> None:
    """Its signatures and its errors, and whether they end the signer."""
    rules = [f"{function} return {code:#x}" for code in CODES]
    if function == "C_Sign":
        rules += ["C_Sign delay 1", "C_Sign exact 64"]
        rules += ["C_SignInit delay 1100\nC_Sign return 0x101"]  # a touch that never came
    told: dict[str, list[str]] = {}
    with program("sign_again", faulty_token.config(), tmp_path, env={}) as signer:
        for rule in rules:
            told[rule] = []
            for way in ("prepared", "looked up"):
                faulty_token.rules()
                signer.say("another")
                assert signer.answer() == "ready"
                faulty_token.rules(rule)
                signer.say(way)
                told[rule].append(signer.answer())
    assert {rule: ways for rule, ways in told.items() if ways[0] != ways[1]} == {}
    assert len({ways[0] for ways in told.values()}) > len(CODES) / 2
    if function == "C_Sign":
        assert "nobody touched the card in time" in told[rules[-1]][0]


def test_a_prepared_key_signs_for_no_other_once_the_token_was_opened_anew(
    token: Token, tmp_path: Path
) -> None:
    """Handles begin anew then, and the numbers that one key had are another's."""
    with program("sign_again", token.config, tmp_path, env={}) as signer:
        signer.say("opened anew")
        told = json.loads(signer.answer())
    assert told == ["first", "first", "second", "first", "second", "first"]


def test_a_module_that_tells_a_size_beyond_its_buffer_is_given_no_other_memory() -> None:
    def c_sign(_session: int, _data: bytes, _size: int, _buffer: Any, told: Any) -> int:
        told._obj.value = 1 << 20
        return 0

    functions = SimpleNamespace(C_SignInit=lambda *_: 0, C_Sign=c_sign)
    private = SimpleNamespace(session=SimpleNamespace(handle=1), handle=2)
    prepared = Signing(functions, private).prepared(mechanism=Mechanism.ECDSA, room=64)
    assert prepared(b"digest") == bytes(64)

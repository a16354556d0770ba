"""Whatever a signer says, no bad signature leaves, and whoever waits is answered."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
from pathlib import Path
from typing import Any, cast

import pytest

from dpop_agent.agent import keys
from dpop_agent.agent.forms import key_from, key_members
from dpop_agent.agent.frames import (
    FORMS,
    Outcome,
    is_some_signature,
    outcome,
    result_form,
    signature_form,
)
from dpop_agent.agent.hosts import Host
from dpop_agent.agent.keys import Generation, Key
from dpop_agent.agent.making import as_staged
from dpop_agent.agent.process import SignerProcess, spawn_program
from dpop_agent.agent.queue import CallbackJob
from dpop_agent.agent.signers import Signer
from dpop_agent.agent.states import State
from dpop_agent.channel import Frames, Malformed, frame, sign_frame
from dpop_agent.config import PinSource, StoreConfig, TokenUri
from dpop_agent.errors import DPoPAgentError
from dpop_agent.jose import ALGORITHMS, b64url, ec_jwk, okp_jwk, rsa_jwk, thumbprint
from tests.processes import resident_kib
from tests.rows import Reached

EC = ec_jwk("P-256", b"x" * 32, b"y" * 32)
JWKS = {
    "ES256": EC,
    "ES384": ec_jwk("P-384", b"x" * 48, b"y" * 48),
    "ES512": ec_jwk("P-521", b"x" * 66, b"y" * 66),
    "RS256": rsa_jwk(1 << 2047, 65537),
    "PS256": rsa_jwk(1 << 3071, 65537),
    "EdDSA": okp_jwk("Ed25519", b"x" * 32),
    "Ed25519": okp_jwk("Ed25519", b"x" * 32),
}
SIZES = {"ES256": 64, "ES384": 96, "ES512": 132, "RS256": 256, "PS256": 384}
KEY = {
    "ref": "00ff",
    "jwk": EC,
    "jkt": thumbprint(EC),
    "exportable": False,
    "protection": "hardware",
    "local": True,
    "slot": "9a",
    "touch": "never",
}
GOOD: dict[str, list[dict[str, Any]]] = {
    "listen": [{"path": "/run/pin-000000", "pad": False}, {"path": None, "pad": True}],
    "open": [{"label": "work", "serial": None, "model": "", "pid": 7}],
    "tell": [{}],
    "release": [{}],
    "hand_on": [{}],
    "look_anew": [{}],
    "authorize": [{"path": None}],
    "reserve": [{"ref": "00ff", "slot": None}],
    "generate": [KEY, {**KEY, "local": None, "slot": None, "touch": None}],
    "find": [{"key": KEY, "half": None}, {"key": None, "half": thumbprint(EC)}],
    "self_test": [{"outcome": "signed"}, {"outcome": "attended"}, {"outcome": "stale"}],
    "destroy": [{}],
    "objects": [
        {"objects": None, "more": False, "slots": None},
        {"objects": [], "more": True, "slots": None},
        {
            "objects": [
                {"ref": "", "label": "", "jkt": None, "alg": None},
                {"ref": "01", "label": "a", "jkt": thumbprint(EC), "alg": "ES256"},
                {"ref": "label:61", "label": "a", "jkt": None, "alg": None},
            ],
            "more": False,
            "slots": {"total": 24, "free": 3},
        },
    ],
    "attestation": [{"certificates": ["-----BEGIN CERTIFICATE-----"]}],
}
ODD: list[Any] = [None, True, 0, -1, 1.5, "", "\n", "ä", [], [1], {}, {"a": 1}]
MAY_BE_NULL = {
    "objects",
    "path",
    "label",
    "serial",
    "model",
    "slot",
    "local",
    "touch",
    "key",
    "half",
    "slots",
}


def test_every_operation_has_a_form_and_a_good_answer_fits_it() -> None:
    assert set(GOOD) == set(FORMS)
    for op, answers in GOOD.items():
        for answer in answers:
            assert outcome({"id": 1, "ok": answer}, FORMS[op]) == answer
    assert outcome((1, b"s" * 64), is_some_signature) == b"s" * 64


@pytest.mark.parametrize("op", GOOD)
def test_an_answer_with_a_member_too_many_too_few_or_of_another_kind_is_a_dead_signers(
    op: str,
) -> None:
    form = FORMS[op]
    for good in GOOD[op]:
        assert not form({**good, "more": 1})
        for name, value in good.items():
            assert not form({n: v for n, v in good.items() if n != name})
            for odd in ODD:
                if type(odd) is type(value) or (odd is None and name in MAY_BE_NULL):
                    continue
                if value is None:  # what it is when it isn't null, another good answer says
                    continue
                assert not form({**good, name: odd}), (name, odd)


@pytest.mark.parametrize(
    ("member", "wrong"),
    [
        ("jkt", thumbprint(JWKS["EdDSA"])),
        ("jwk", {**EC, "x": b64url(b"x" * 31)}),
        ("jwk", {**EC, "crv": "P-384"}),
        ("jwk", {**EC, "d": b64url(b"x" * 32)}),
        ("jwk", {**EC, "kty": "oct"}),
        ("ref", "00f"),
        ("ref", "00FF"),
        ("protection", "some"),
        ("touch", "sometimes"),
        ("slot", "9a\n"),
        ("slot", "9z"),
        ("ref", "00" * 65),
    ],
)
def test_a_key_that_contradicts_itself_is_a_dead_signers(member: str, wrong: object) -> None:
    assert not FORMS["generate"]({**KEY, member: wrong})


@pytest.mark.parametrize("bits", [1024, 2047, 4097, 8192])
def test_an_rsa_key_that_is_never_adopted_is_a_dead_signers(bits: int) -> None:
    jwk = rsa_jwk((1 << bits - 1) + 1, 65537)
    request = {"op": "find", "alg": "RS256"}
    found = {"key": {**KEY, "jwk": jwk, "jkt": thumbprint(jwk)}, "half": None}
    assert not result_form(request)(found)


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_key_that_a_signer_may_answer_with_is_one_that_the_ledger_reads_again(alg: str) -> None:
    now = "2026-01-01T00:00:00Z"
    key = Key("shop", "work", alg, now)
    for asked in ("generate", "find"):
        form = result_form({"op": asked, "alg": alg})
        for jwk in JWKS.values():
            answer = {**KEY, "jwk": jwk, "jkt": thumbprint(jwk), "ref": "0a" * 64, "slot": "ff"}
            fits = form(answer if asked == "generate" else {"key": answer, "half": None})
            pending = Generation(1, keys.State.PENDING, str(answer["ref"]), now, now)
            written = key_members("shop", key.with_(as_staged(pending, answer)))
            assert fits == is_read(written), (asked, jwk)
    assert result_form({"op": "find", "alg": alg})({"key": None, "half": None})


def is_read(written: dict[str, Any]) -> bool:
    try:
        key_from(json.loads(json.dumps(written)))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_signature_has_its_algorithms_length_an_rsa_one_its_moduluss(alg: str) -> None:
    form = signature_form(alg, JWKS[alg])
    size = SIZES.get(alg, 64)
    good = b"\xff" * size
    assert form(good)
    for wrong in (good[1:], good + b"\0", b"", b64url(good), size, None, [good]):
        assert not form(wrong), wrong
    assert not form({"signature": good})
    assert not form({})


@pytest.mark.parametrize(
    "answer",
    [
        {"id": 1},
        {"id": 1, "ok": None},
        {"id": 1, "ok": []},
        {"id": 1, "ok": {}, "error": {}},
        {"id": 1, "error": None},
        {"id": 1, "error": "text"},
        {"id": 1, "error": []},
        {"id": 1, "error": {}},
        {"id": 1, "error": {"message": 1}},
        {"id": 1, "error": {"message": "a", "data": []}},
        *(
            {"id": 1, "error": {"message": "a", "data": {"retry_after_ms": odd}}}
            for odd in (-1, True, 1.5, "1", 10**400)
        ),
    ],
)
def test_a_frame_that_is_neither_a_result_nor_an_error_is_a_dead_signers(
    answer: dict[str, Any],
) -> None:
    with pytest.raises(Malformed):
        outcome(answer, FORMS["tell"])


class Mad:
    """A signer's process that answers each frame with something near the right answer."""

    def __init__(self, signer: Signer, chance: random.Random) -> None:
        self._signer = signer
        self._host = Host("work", signer._work, signer)
        self._host.pid = 1
        self._host._process = cast("SignerProcess", self)
        signer._work.begin(self._host)
        signer._work.take(self._host)
        signer._state = State.READY
        self._chance = chance
        self._frames = Frames()
        self._good = b"s" * 64
        self.alive = True

    def send(self, frame_id: int, _what: bytes) -> None:
        data = bytearray(sign_frame(frame_id, self._good))
        for _ in range(self._chance.choice((0, 1, 1, 2, 5))):
            at = self._chance.randrange(len(data) - 1)
            if self._chance.random() < 0.3:
                del data[at]
            else:
                data[at] = self._chance.choice(b'S\0\x01@{}[]",:0123456789abcnulltrue_-\\ \xff\n')
        if self._chance.random() < 0.1:
            odd, text = self._chance.choice(ODD), b64url(self._good)
            frames = [
                frame(id=odd, ok={"signature": text}),
                frame(id=frame_id, ok={"signature": odd}),
                frame(id=frame_id, ok=odd),
                frame(id=frame_id, error=odd),
                frame(id=frame_id, ok={"signature": text}, broken=odd),
                sign_frame(frame_id, text.encode()),
                sign_frame(frame_id + 1, self._good),
                sign_frame(frame_id, b""),
                b"\0\0\0\x01S",
                b"\0\0\0\0",
            ]
            data[:] = self._chance.choice(frames)
        asyncio.get_running_loop().call_soon(self._deliver, bytes(data))

    def _deliver(self, data: bytes) -> None:
        if not self.alive:
            return
        try:
            for answer in self._frames.feed(data):
                self._host._heard(answer)
            self._signer.heard()
        except Malformed:
            self.kill()

    def kill(self) -> None:
        self.alive = False
        asyncio.get_running_loop().call_soon(self._signer.died, self._host)

    def close(self) -> None:
        self.kill()

    def reap(self, within_s: float = 0.0) -> None:
        """There is no process."""


async def mad_signers(folder: Path, *, count: int) -> tuple[int, int]:
    """How many of so many requests got a signature, and how many an error."""
    config = StoreConfig(
        name="work",
        type="pkcs11",
        env={},
        module=str(folder / "none.so"),
        uri=TokenUri(token="work"),
        pin_source=PinSource("keychain"),
    )
    chance = random.Random(20260926)
    form = signature_form("ES256", EC)
    loop = asyncio.get_running_loop()
    signed = failed = 0
    while signed + failed < count:
        # A signer of its own each time: one that was killed would be started anew.
        signer = Signer(
            config,
            lock_file=str(folder / "lock"),
            max_waiting=100,
            starting=asyncio.Lock(),
            on_ready=lambda _signer: None,
            on_refused=lambda _method, _signer, _error: None,
            on_end=lambda: None,
            spawn=spawn_program,
        )
        Mad(signer, chance)
        signer.start = lambda: None  # type: ignore[method-assign]
        told: list[list[Outcome]] = [[] for _ in range(8)]
        for one in told:
            signer.submit(
                CallbackJob(
                    ("one",),
                    lambda: b"00 jkt ES256\ninput",
                    one.append,
                    deadline=loop.time() + 60,
                    again=False,
                    form=form,
                )
            )
        for _ in range(20):
            await asyncio.sleep(0)
        # Whoever waits still, for an answer that a mutation took away, is told at his deadline.
        signer._work.look(loop.time() + 61)
        if signer._tick is not None:
            signer._tick.cancel()
        for one in told:
            (what,) = one
            if isinstance(what, DPoPAgentError):
                failed += 1
            else:
                assert form(what)
                signed += 1
    return signed, failed


def test_of_mutated_frames_no_bad_signature_leaves_and_every_request_is_answered(
    tmp_path: Path,
) -> None:
    signed, failed = asyncio.run(mad_signers(tmp_path, count=20_000))
    assert signed > 1_000
    assert failed > 1_000


@pytest.mark.long
@pytest.mark.row(1)
def test_of_a_million_mutated_frames_no_bad_signature_leaves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reached: Reached
) -> None:
    caplog.set_level(logging.CRITICAL)  # pytest keeps each line that is logged in memory
    asyncio.run(mad_signers(tmp_path, count=10_000))
    before = resident_kib(os.getpid())
    signed, failed = asyncio.run(mad_signers(tmp_path, count=1_000_000))
    assert signed > 1_000
    assert failed > 1_000
    grew_kib = resident_kib(os.getpid()) - before
    assert grew_kib < 10 * 1024
    reached("malformed frames of a signer in process", signed + failed)
    reached("MiB that memory grew by for malformed lines and frames", grew_kib / 1024)

"""A signer that is asked for a second signature by one key, as a program of its own.

    python -m tests.stores.sign_again CONFIG FOLDER

For each line of standard input it opens the configuration's store anew, makes a key and signs with
it once; it says `ready`, and signs again after the next line: as a key that it has prepared, or, if
that line is `looked up`, as one that it hasn't. On a line it says what the signer answered, whether
that ended it, and what a third signature gave.

If the first of the two lines is `opened anew`, there are two keys, and the signature by the second
one has the PKCS#11 token opened anew. It says whose the last one by the first key is.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from dpop_agent.agent.opening import open_frame
from dpop_agent.channel import Frames, asked_of
from dpop_agent.config import StoreConfig, load
from dpop_agent.errors import InvalidProof
from dpop_agent.signer.pkcs11 import keys
from dpop_agent.signer.pkcs11.token import Token
from dpop_agent.signer.serving import _Signer
from dpop_agent.verify import check_signature

DATA = b"e30.e30"


def main(config: str, folder: str) -> None:
    (store,) = load(config).stores.values()
    os.environ |= store.env
    for number, line in enumerate(sys.stdin):
        pid = os.fork()
        if pid == 0:
            signer = Asked(store, Path(folder) / f"lock-{number}")
            told = opened_anew(signer) if line == "opened anew\n" else signed_again(signer)
            print(json.dumps(told), flush=True)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert status == 0


class Asked:
    """A signer whose store is open."""

    def __init__(self, store: StoreConfig, lock: Path) -> None:
        self.signer = _Signer(None)
        self.ask(**open_frame(store, lock_file=str(lock), attended=True))

    def ask(self, op: str, **members: Any) -> dict[str, Any]:
        """An operation's result."""
        (answer,) = Frames().feed(self.signer.answer({"id": 1, "op": op, **members}))
        assert isinstance(answer, dict)
        result: dict[str, Any] = answer["ok"]
        return result

    def new_key(self) -> dict[str, Any]:
        """One that it has just made."""
        ref = self.ask("reserve", alg="ES256", slot=None)["ref"]
        return self.ask("generate", ref=ref, alg="ES256", label="again")

    def sign(self, key: dict[str, Any]) -> dict[str, Any] | bytes:
        """A signature of DATA, or why there is none."""
        frame = asked_of(key["ref"], key["jkt"], "ES256") + DATA
        (answer,) = Frames().feed(self.signer.answer((2, frame)))
        return answer[1] if isinstance(answer, tuple) else answer


def signed_again(asked: Asked) -> list[object]:
    key, signer = asked.new_key(), asked.signer

    def signed() -> object:
        answer = asked.sign(key)
        if isinstance(answer, bytes):
            return f"{len(answer)} bytes"
        return json.loads(json.dumps(answer).replace(key["ref"], "REF"))

    assert signed() == "64 bytes"
    assert signer._prepared
    print("ready", flush=True)
    if sys.stdin.readline() == "looked up\n":
        signer._prepared.clear()
    return [signed(), signer.broken, signed(), signer.broken]


def opened_anew(asked: Asked) -> list[str]:
    made = [asked.new_key(), asked.new_key()]
    asked.ask("look_anew")
    first, second = made
    pair, opened = keys.pair, Token.open
    hidden = True

    def seen(token: Token, ref: str) -> Any:
        """Modules go on showing what they saw when they opened the PKCS#11 token."""
        return None if hidden and ref == second["ref"] else pair(token, ref)

    def open_anew(token: Token) -> dict[str, Any]:
        nonlocal hidden
        hidden = False
        return opened(token)

    with patch.object(keys, "pair", seen), patch.object(Token, "open", open_anew):
        signatures = [asked.sign(key) for key in (first, first, second, first, second, first)]
    assert not hidden
    return [whose(signature, made) for signature in signatures]


def whose(signature: dict[str, Any] | bytes, made: list[dict[str, Any]]) -> str:
    if not isinstance(signature, bytes):
        return "nobody's"
    for name, key in zip(("first", "second"), made, strict=True):
        with suppress(InvalidProof):
            check_signature("ES256", key["jwk"], DATA, signature)
            return name
    return "somebody else's"


if __name__ == "__main__":
    main(*sys.argv[1:])

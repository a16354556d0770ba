"""A signer that is asked for a second signature by one key, as a program of its own.

    python -m tests.stores.sign_again CONFIG FOLDER

For each line of standard input it opens the configuration's store anew, makes a key and signs with
it once; it says `ready`, and signs again after the next line: as a key that it has prepared, or, if
that line is `looked up`, as one that it hasn't. On a line it says what the signer answered, whether
that ended it, and what a third signature gave.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from dpop_agent.agent.opening import open_frame
from dpop_agent.channel import Frames, asked_of
from dpop_agent.config import StoreConfig, load
from dpop_agent.signer.serving import _Signer


def main(config: str, folder: str) -> None:
    (store,) = load(config).stores.values()
    os.environ |= store.env
    for number, _ in enumerate(sys.stdin):
        pid = os.fork()
        if pid == 0:
            print(json.dumps(signed_again(store, Path(folder) / f"lock-{number}")), flush=True)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert status == 0


def signed_again(store: StoreConfig, lock: Path) -> list[object]:
    signer = _Signer(None)

    def asked(op: str, **members: Any) -> dict[str, Any]:
        (answer,) = Frames().feed(signer.answer({"id": 1, "op": op, **members}))
        assert isinstance(answer, dict)
        result: dict[str, Any] = answer["ok"]
        return result

    asked(**open_frame(store, lock_file=str(lock), attended=True))
    ref = asked("reserve", alg="ES256", slot=None)["ref"]
    jkt = asked("generate", ref=ref, alg="ES256", label="again")["jkt"]
    frame = asked_of(ref, jkt, "ES256") + b"e30.e30"

    def signed() -> object:
        (answer,) = Frames().feed(signer.answer((2, frame)))
        if isinstance(answer, tuple):
            return f"{len(answer[1])} bytes"
        return json.loads(json.dumps(answer).replace(ref, "REF"))

    assert signed() == "64 bytes"
    assert signer._prepared
    print("ready", flush=True)
    if sys.stdin.readline() == "looked up\n":
        signer._prepared.clear()
    return [signed(), signer.broken, signed(), signer.broken]


if __name__ == "__main__":
    main(*sys.argv[1:])

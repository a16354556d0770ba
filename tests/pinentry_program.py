"""A pinentry that answers as a file says, and writes down what it was told.

The folder in FAKE_PINENTRY has `answer`: `OK`, an `ERR …` line, or `wait` for as long as it says
so. A line in `asked` is a question: the program's pid, and its text as one line; one in `answered`
is the time at which it was.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from urllib.parse import unquote

LOOK_S = 0.02


def note(folder: Path, name: str, line: str) -> None:
    with (folder / name).open("a") as file:
        file.write(f"{line}\n")


def main() -> None:
    """Speak Assuan until the other side ends."""
    folder = Path(os.environ["FAKE_PINENTRY"])
    told: dict[str, str] = {}
    print("OK Pleased to meet you", flush=True)
    for line in sys.stdin:
        command, _, argument = line.rstrip("\n").partition(" ")
        told[command] = unquote(argument)
        said = "OK"
        if command == "CONFIRM":
            note(folder, "asked", f"{os.getpid()} {told['SETDESC']!r}")
            end = time.monotonic() + int(told["SETTIMEOUT"])
            while (said := (folder / "answer").read_text().strip()) == "wait":
                time.sleep(LOOK_S)
                if time.monotonic() > end:
                    said = "ERR 83886142 Timeout <Pinentry>"
                    break
            note(folder, "answered", str(time.time()))
        print(said, flush=True)
        if command == "BYE":
            return


main()

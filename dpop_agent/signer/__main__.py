"""A signer by exec, where no process forks them: `python -I -m dpop_agent.signer FD`.

It serves the channel on descriptor FD. `--tokens MODULE [ARGUMENTS]` lists a module's PKCS#11
tokens as JSON instead, and `--pin-file PATH` tells as JSON what is wrong with the PIN in a file.
"""

from __future__ import annotations

import json
import os
import socket
import sys

from dpop_agent import paths
from dpop_agent.errors import DPoPAgentError
from dpop_agent.hardening import harden


def _list_tokens(*module: str) -> int:
    from dpop_agent.signer.pkcs11 import pcsc
    from dpop_agent.signer.pkcs11.discovery import tokens
    from dpop_agent.signer.pkcs11.module import Module

    try:
        print(json.dumps(tokens(Module(*module), paths.state_folder())), flush=True)
        if pcsc.is_used():
            # Without C_Finalize, in which libykcs11 resets the card: an agent that has it open
            # would lose the PIN that somebody typed. pcscd leaves the card as it is.
            os._exit(0)
    except DPoPAgentError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


def _look_at_pin_file(path: str) -> int:
    """As a login would read it; what is read goes nowhere."""
    from dpop_agent.signer.pin import PinFile

    problem = None
    try:
        PinFile("", path).get()
    except DPoPAgentError as e:
        problem = e.message
    print(json.dumps({"problem": problem}), flush=True)
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--tokens":
        sys.exit(_list_tokens(*sys.argv[2:]))
    harden()
    if sys.argv[1] == "--pin-file":
        sys.exit(_look_at_pin_file(sys.argv[2]))
    from dpop_agent.signer.serving import serve

    serve(socket.socket(fileno=int(sys.argv[1])))

"""Look for the keychain: `python -I -m dpop_agent.signer.keychain BACKEND`.

It tells as JSON whether one is here and unlocked.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from dpop_agent.errors import DPoPAgentError, Locked
from dpop_agent.signer.keychain.store import KeychainStore


def _look(backend: str) -> int:
    """For `init`: nothing is read or written."""
    try:
        place: dict[str, Any] = KeychainStore(backend=backend).open()
    except Locked:
        place = {"locked": True}
    except DPoPAgentError as e:
        print(e, file=sys.stderr)
        return 1
    print(json.dumps(place), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(_look(sys.argv[1]))

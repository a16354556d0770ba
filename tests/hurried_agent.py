"""`dpop-agent serve` with other times.

    python -m tests.hurried_agent upkeep.SAVE_S=0.2 … …

sets such names of `dpop_agent.agent`; what follows on the command line is ignored.
"""

import sys
from importlib import import_module
from itertools import takewhile

from dpop_agent.cli.main import main

if __name__ == "__main__":
    for word in takewhile(lambda word: "=" in word, sys.argv[1:]):
        name, _, seconds = word.partition("=")
        place, _, constant = name.partition(".")
        module = import_module(f"dpop_agent.agent.{place}")
        assert hasattr(module, constant)
        setattr(module, constant, float(seconds))
    sys.exit(main(["serve"]))

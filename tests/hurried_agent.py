"""`dpop-agent serve` that waits for signers as long as it is told.

    python -m tests.hurried_agent NAME=SECONDS … …

What follows on the command line is ignored.
"""

import sys
from itertools import takewhile

from dpop_agent.agent import signers
from dpop_agent.cli.main import main

if __name__ == "__main__":
    for words in takewhile(lambda word: "=" in word, sys.argv[1:]):
        name, _, seconds = words.partition("=")
        assert hasattr(signers, name)
        setattr(signers, name, float(seconds))
    sys.exit(main(["serve"]))

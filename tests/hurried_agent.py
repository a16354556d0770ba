"""`dpop-agent serve` that waits for signers as long as it is told: NAME=SECONDS …"""

import sys

from dpop_agent.agent import signers
from dpop_agent.cli.main import main

if __name__ == "__main__":
    for words in sys.argv[1:]:
        name, _, seconds = words.partition("=")
        assert hasattr(signers, name)
        setattr(signers, name, float(seconds))
    sys.exit(main(["serve"]))

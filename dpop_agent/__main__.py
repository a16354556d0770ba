"""`python -m dpop_agent` is `dpop-agent`."""

import sys

from dpop_agent.cli.main import main

sys.exit(main())

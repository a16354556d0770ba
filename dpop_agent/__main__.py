"""`python -m dpop_agent` is `dpop-agent`."""

from dpop_agent.cli.main import program

program()

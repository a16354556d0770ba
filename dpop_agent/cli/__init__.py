"""The command line: `dpop-agent`."""

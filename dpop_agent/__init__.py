"""dpop-agent: the ssh-agent for DPoP (RFC 9449). Applications use `dpop_agent.client`."""

__version__ = "0.2.0.dev0"

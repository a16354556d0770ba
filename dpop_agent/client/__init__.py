"""What applications use: proofs from the agent, and HTTP clients that carry them.

Nothing is loaded before its name is used: a command-line client pays for blocking sockets alone.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dpop_agent.client.aio import AsyncAgentClient
    from dpop_agent.client.answers import Generation, Lease, Proof, Touch
    from dpop_agent.client.explaining.asking import explain
    from dpop_agent.client.explaining.findings import Explanation, Finding
    from dpop_agent.client.httpx import AsyncDPoPAuth, AsyncDPoPTransport, DPoPAuth, DPoPTransport
    from dpop_agent.client.requests import BoundTokenAuth, DPoPAdapter
    from dpop_agent.client.stores import TokenStore
    from dpop_agent.client.sync import AgentClient
    from dpop_agent.client.token import BoundToken

__all__ = [
    "AgentClient",
    "AsyncAgentClient",
    "AsyncDPoPAuth",
    "AsyncDPoPTransport",
    "BoundToken",
    "BoundTokenAuth",
    "DPoPAdapter",
    "DPoPAuth",
    "DPoPTransport",
    "Explanation",
    "Finding",
    "Generation",
    "Lease",
    "Proof",
    "TokenStore",
    "Touch",
    "explain",
]

_PLACES = {
    "AgentClient": "sync",
    "AsyncAgentClient": "aio",
    "AsyncDPoPAuth": "httpx",
    "AsyncDPoPTransport": "httpx",
    "BoundToken": "token",
    "BoundTokenAuth": "requests",
    "DPoPAdapter": "requests",
    "DPoPAuth": "httpx",
    "DPoPTransport": "httpx",
    "Explanation": "explaining.findings",
    "Finding": "explaining.findings",
    "Generation": "answers",
    "Lease": "answers",
    "Proof": "answers",
    "TokenStore": "stores",
    "Touch": "answers",
    "explain": "explaining.asking",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

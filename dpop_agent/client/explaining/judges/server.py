"""A server that fails by itself."""

from __future__ import annotations

from dpop_agent.client.explaining.case import Case
from dpop_agent.client.explaining.judges.opinions import UNIVERSAL, Opinion, opinion
from dpop_agent.client.explaining.judges.proof import algorithm


def server_error(case: Case) -> Opinion | None:
    status = case.exchange.status or 0
    if status < 500:
        return None
    fits = []
    if case.age_s is None and case.has_proof:
        fits.append("a proof that is too old (Keycloak answers so), for there is no Date")
    if algorithm(case) not in (None, UNIVERSAL):
        fits.append(f"the algorithm {algorithm(case)}")
    fits.append("a server that isn't set up for DPoP")
    return opinion(
        55,
        f"The server failed ({status}), and doesn't say why.",
        "Look at the server's log. Try a new proof by an ES256 key; if a request without DPoP "
        "fails in the same way, it isn't DPoP.",
        ("what fits", "; ".join(fits)),
    )

"""The verdict on an exchange: what the evidence shows, then what the server says."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dpop_agent.client.explaining.case import Case, Sources
from dpop_agent.client.explaining.findings import Explanation, Finding
from dpop_agent.client.explaining.judges.opinions import SHOWN, Opinion
from dpop_agent.client.explaining.judges.table import JUDGES
from dpop_agent.client.explaining.messages import Exchange
from dpop_agent.client.explaining.said import is_of_something_else, named

NAMED = 100
"""What the server's naming one cause adds to its weight."""

ONE_OF = 50
"""The same where its words mean any of several; a little less for those that are less likely."""

LEAST = 12
"""The weight below which a cause isn't worth naming."""

EVIDENT = 35
"""The weight from which on a cause is worth naming beside the one that the server names."""

_UNSPECIFIC = frozenset({"invalid_token", "invalid_request", "invalid_dpop_proof", "invalid_grant"})

# What is left where a server says no more than its error's code, and nothing else shows.
_LEFT = {
    "invalid_dpop_proof": {"htu_mismatch": 33, "jti_seen": 31, "iat_old": 25, "iat_ahead": 20},
    "invalid_token": {"htu_mismatch": 15, "jti_seen": 13, "iat_old": 14},
    "invalid_request": {"iat_old": 20, "jti_seen": 18, "htu_mismatch": 16},
    "invalid_grant": {"jti_seen": 16},
}
_OF_THE_TOKEN = ("access_token_invalid", "access_token_of_another_key", "access_token_not_bound")

_OF_ACCESS = re.compile(r"dpop|proof|jwt|access.?token|bearer|unauthori[sz]ed")
"""What an API speaks of that refuses access, whatever status it has."""

_ELSEWHERE = frozenset({404, 405, 406, 409, 410, 411, 412, 413, 414, 415, 422, 429, 502, 503, 504})
"""Statuses of what comes after authentication, or of a gateway that reached no server."""


def explained(exchanges: Sequence[Exchange], sources: Sources | None = None) -> Explanation:
    """What is wrong with the last of some exchanges; the earlier ones are evidence."""
    case = Case(exchanges, sources or Sources())
    findings = [
        Finding(cause, opinion.summary, opinion.evidence, opinion.mend, opinion.weight >= SHOWN)
        for cause, opinion in _weighed(case)
    ]
    method = case.redaction.text(case.exchange.method, 32)
    return Explanation(
        tuple(findings),
        f"{method} {case.redaction.url(case.exchange.url)}",
        case.says,
        tuple(_notes(case, findings)),
    )


def _weighed(case: Case) -> list[tuple[str, Opinion]]:
    opinions = {cause: judge(case) for cause, judge in JUDGES.items()}
    weights = _weights(case, opinions)
    found = [
        (weight, cause, opinion)
        for cause, opinion in opinions.items()
        if opinion is not None and (weight := weights.get(cause, 0)) >= LEAST
    ]
    found.sort(key=lambda each: -each[0])  # stable: the order of the table breaks ties
    # Beside what is shown, or named by the server, a guess is only noise.
    least = EVIDENT if found and found[0][0] >= SHOWN else LEAST
    return [(cause, opinion) for weight, cause, opinion in found if weight >= least]


def _weights(case: Case, opinions: dict[str, Opinion | None]) -> dict[str, int]:
    if not case.failed:
        bearer = opinions["token_type_bearer"]
        return {"token_type_bearer": bearer.weight} if bearer else {}
    evidence = {cause: opinion.weight for cause, opinion in opinions.items() if opinion}
    said = [cause for cause in named(case) if cause in evidence]
    weights = dict(evidence)
    if case.exchange.status in _ELSEWHERE or is_of_something_else(case):
        weights = {cause: weight for cause, weight in evidence.items() if weight >= SHOWN}
    elif said or not _leaves_open(case):
        weights = {
            cause: weight
            for cause, weight in evidence.items()
            if weight >= SHOWN or (weight >= EVIDENT and cause not in _OF_THE_TOKEN)
        }
    else:
        for code in [*case.errors, "invalid_token"][:1] if case.has_proof else []:
            for cause, weight in _LEFT.get(code, {}).items():
                if cause in evidence:
                    weights[cause] = max(weights[cause], _if_unseen(case, cause, weight))
    for place, cause in enumerate(said):
        weights[cause] = evidence.get(cause, 0) + (NAMED if len(said) == 1 else ONE_OF - place)
    return weights


def _leaves_open(case: Case) -> bool:
    """Whether the server's words leave open what it refuses."""
    if case.exchange.status not in (400, 401, 403):
        return False
    if not case.errors:
        # An API refuses with 400 and JSON what it checks after the proof.
        is_apis = bool(case.answer) and not _OF_ACCESS.search(case.words)
        return case.exchange.status == 401 or (
            case.exchange.status == 400 and case.has_proof and not is_apis
        )
    return not _UNSPECIFIC.isdisjoint(case.errors)


def _if_unseen(case: Case, cause: str, weight: int) -> int:
    """A time that the Date shows to be right isn't left as a cause."""
    seen = case.age_s is not None and cause in ("iat_old", "iat_ahead")
    return 0 if seen else weight


def _notes(case: Case, findings: list[Finding]) -> list[str]:
    notes: list[str] = []
    if not case.failed:
        return notes
    causes = {finding.cause for finding in findings}
    if case.is_redacted:
        notes.append(
            "what the proof says: it is left out or cut off in what was given. Nothing secret of "
            "it is printed here."
        )
    if case.is_opaque and causes & {*_OF_THE_TOKEN, "scheme_bearer"} and case.bound_to is None:
        notes.append(
            "what the access token is bound to, and whether it is still good: it is opaque, and "
            "the authorization server alone can say (introspection, RFC 7662)."
        )
    if case.is_unsigned:
        notes.append("whether the proof's signature is good: it is left out in what was given.")
    if case.is_left_out:
        notes.append("the access token: it is left out in what was given.")
    if case.exchange.url.startswith("//") and "htu_mismatch" in causes:
        notes.append("whether it was http or https: curl's lines about the connection are missing.")
    if case.age_s is None and causes & {"iat_old", "iat_ahead"}:
        notes.append("the server's time: its response has no Date.")
    if case.sources.known is None and case.jkt is not None:
        notes.append("which keys are here: no agent was asked, or none answered.")
    return notes

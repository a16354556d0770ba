"""`dpop-agent curl` runs the cases of the kit, as the HTTP libraries do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.emulators import need
from tests.kit.adapters.curl import Curl
from tests.kit.kit import Kit, cases

CASES = cases()
CURL = Curl()


@pytest.fixture(scope="module")
def kit() -> Iterator[Kit]:
    need("curl")
    with Kit() as made:
        yield made


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name) for name, case in CASES.items() if CURL.why_not(case) is None],
)
def test_curl_does_as_the_kit_has_it(kit: Kit, case: dict[str, Any]) -> None:
    run = kit.begin(case)
    try:
        came = CURL.run(run.case, kit.socket, run.release)
    finally:
        run.close()
    assert run.end(came) == []


def test_what_curl_cannot_do_is_a_case_or_what_cases_need() -> None:
    known = {*CASES, *(need for case in CASES.values() for need in case["needs"])}
    assert set(CURL.cannot) <= known

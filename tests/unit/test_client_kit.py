"""Every client runs every case of the kit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.kit.adapter import Adapter
from tests.kit.adapters import ALL
from tests.kit.kit import Kit, cases

CASES = cases()


@pytest.fixture(scope="module")
def kit() -> Iterator[Kit]:
    with Kit() as made:
        yield made


# Under trio the libraries leave their own generators to the garbage collector where a part is read.
@pytest.mark.filterwarnings("ignore:Async generator 'httpcore:ResourceWarning")
@pytest.mark.parametrize(
    ("adapter", "case"),
    [
        pytest.param(adapter, case, id=f"{adapter.name}-{name}")
        for adapter in ALL
        for name, case in CASES.items()
        if adapter.why_not(case) is None
    ],
)
def test_a_client_does_as_the_kit_has_it(kit: Kit, adapter: Adapter, case: dict[str, Any]) -> None:
    run = kit.begin(case)
    try:
        came = adapter.run(run.case, kit.socket, run.release)
    finally:
        run.close()
    assert run.end(came) == []


@pytest.mark.parametrize("adapter", ALL, ids=lambda adapter: adapter.name)
def test_what_a_client_cannot_do_is_a_case_or_what_cases_need(adapter: Adapter) -> None:
    known = {*CASES, *(need for case in CASES.values() for need in case["needs"])}
    assert set(adapter.cannot) <= known
    assert all(adapter.cannot.values())

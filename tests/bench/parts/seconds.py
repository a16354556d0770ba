"""What the suite's own tests measure on the way, by their fixture `measured`."""

from __future__ import annotations

from typing import cast

import pytest

from tests.bench.figures import CannotMeasure
from tests.bench.setting import Setting


class Tests:
    """Of all tests those that measure; a plugin of pytest.

    Attributes:
        measured: seconds by bar.
    """

    def __init__(self) -> None:
        self.measured: dict[str, list[float]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if "measured" in getattr(item, "fixturenames", ())]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            for name, value in report.user_properties:
                if name == "measured":
                    bar, seconds = cast("tuple[str, float]", value)
                    self.measured.setdefault(bar, []).append(seconds)


def measure(setting: Setting) -> None:
    """Each once, as the suite runs them."""
    tests = Tests()
    # What other parts imported has a plugin of pytest's, which comes too late to be rewritten.
    imported = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
    words = ["-q", "-m", "not long", "-p", "no:cacheprovider", *imported]
    ran = pytest.main(words, plugins=[tests])
    if ran != pytest.ExitCode.OK:
        raise CannotMeasure("a test failed")
    setting.figures.derived.update(tests.measured)

"""What holds for every ring: no test may skip where CI says so, but for a missing GPU."""

import os
from collections.abc import Iterator

import pytest

FORBIDDEN = os.environ.get("RERAIL_FORBID_SKIPS") == "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A skip is a failure where skips are forbidden; tests marked `gpu` may skip anywhere."""
    report = yield
    expected = hasattr(report, "wasxfail") or item.get_closest_marker("gpu") is not None
    if FORBIDDEN and report.skipped and not expected:
        report.outcome = "failed"
        report.longrepr = f"skipped, and skips are forbidden here: {report.longrepr}"
    return report

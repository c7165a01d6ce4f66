"""What holds for every ring: no skips where CI forbids them but for a missing GPU, no deadline for examples."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# How long one example takes says how busy the machine is, and nothing of the code.
settings.register_profile("rerail", deadline=None)
settings.load_profile("rerail")

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

"""Fixtures of the end-to-end rings: one cluster per module, nothing left behind by any test."""

from collections.abc import Iterator

import pytest

from tests.cluster.rig import ControlPlane, Options

from .yard import Yard

NODES = 4


@pytest.fixture(scope="module")
def opened_yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    # Silence of a node is played by kwok; the node controller's own clock must not strike under load.
    with ControlPlane(Options(node_grace_seconds=300)) as cluster:
        yard = Yard(cluster, tmp_path_factory.mktemp("yard"), NODES)
        yard.open()
        try:
            yield yard
            yard.check_garbage()
        finally:
            yard.close()


@pytest.fixture
def yard(opened_yard: Yard) -> Iterator[Yard]:
    """The yard with one operator, empty before and after."""
    opened_yard.operate(1)
    yield opened_yard
    opened_yard.operate(1)
    opened_yard.delete_jobs()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failed test shows what the cluster and the operators had to say."""
    report = yield
    if report.failed and call.when in ("setup", "call"):
        for place in getattr(item, "funcargs", {}).values():
            if hasattr(place, "evidence"):
                report.sections.append(("cluster", place.evidence()))
                break
    return report

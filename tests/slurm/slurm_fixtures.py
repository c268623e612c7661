"""One cluster for all tests of this directory; their jobs run concurrently."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

CONCURRENT = 3  # cases; more of them on two processors slow down each other's starts
# Concurrently with them: those that wait for minutes while nothing computes.
WAITING = (
    "a_rank_that_hangs_inside_a_library",
    "a_rank_that_hangs",
    "the_warning_before_a_real_time_limit",
    "a_time_limit_without_a_warning",
)


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker("slurm")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    from slurm_cluster import Cluster, missing

    reason = missing()
    if reason:
        pytest.skip(f"no SLURM here: {reason}")
    with Cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def scenario_name(item) -> str:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return parameters.get("case") or getattr(item, "originalname", item.name).removeprefix("test_")


@pytest.fixture(scope="session")
def cases(request, cluster):
    """Start the scenario `case_NAME` of every collected test; return the futures by name.

    NAME is that of the test, or its parameter `case`. A failed scenario fails its test.
    """
    pool, waiting, futures = ThreadPoolExecutor(CONCURRENT), ThreadPoolExecutor(len(WAITING)), {}
    references = [pool.submit(cluster.reference, nodes) for nodes in (2, 1)]
    for item in request.session.items:
        name = scenario_name(item)
        scenario = getattr(getattr(item, "module", None), f"case_{name}", None)
        if scenario is not None and name not in futures:
            futures[name] = (waiting if name in WAITING else pool).submit(scenario, cluster)
    yield futures
    for future in [*references, *futures.values()]:
        future.cancel()
    pool.shutdown()
    waiting.shutdown()


@pytest.fixture
def case(request, cases):
    """Return the result of the scenario of a test."""
    future: Future = cases[scenario_name(request.node)]
    return future.result()

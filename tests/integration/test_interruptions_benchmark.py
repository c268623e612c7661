"""benchmarks/interruptions.py: what it compares of trainings that ran out of time."""

import pytest
from conftest import ROOT


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import interruptions

    return interruptions


def test_only_steps_that_both_did_are_compared(benchmark):
    """Of one cut off early, the other's further steps are no other rows; without common steps nothing agrees."""
    one = {step: {"rows": [step], "loss": 1.0} for step in (1, 2, 3)}
    assert benchmark.rows_agree({1: one[1]}, one) and benchmark.rows_agree(one, {3: one[3]})
    assert not benchmark.rows_agree(one, {**one, 2: {"rows": [7]}})
    assert benchmark.rows_agree(one, {}) is None and benchmark.distance(one, {}) == {}

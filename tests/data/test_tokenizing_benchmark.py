"""benchmarks/tokenizing.py: what is recorded of a measurement."""

import json
import sys

import pytest
from conftest import ROOT


@pytest.fixture
def measured(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import record
    import tokenizing

    monkeypatch.setattr(record, "RESULTS", tmp_path)
    return tokenizing


def test_hours_and_loader_processes_follow_from_the_rates(measured):
    encoding = {
        "plain": {"images_per_s": 100.0, "ratio": 1.0, "equal_codes": 1.0},
        "tf32, batch 64": {"images_per_s": 140.0, "ratio": 1.4, "equal_codes": 0.9},
        "tf32, batch 256": {"images_per_s": 160.0, "ratio": 1.6, "equal_codes": 0.9},
        "tf32, batch 256, contiguous *": {"images_per_s": 170.0, "ratio": 1.7, "equal_codes": 0.9},
    }
    (row,) = measured.summary(encoding, [{"views": 10, "images_per_s_and_core": 8.0}])
    assert (row["path"], row["aim"], row["reached"]) == ("tf32, batch 256", 1.5, True)
    assert row["imagenet_hours_by_views"]["10"] == pytest.approx(12_811_670 / 160 / 3600)
    assert row["loader_processes_by_views"] == {"10": 2.0}  # 16 images a second, each with 10 views


def test_the_loader_alone_is_recorded(measured, monkeypatch, tmp_path):
    small = measured.loader_rates
    monkeypatch.setattr(measured, "loader_rates", lambda size, repeats: small(32, count=2, repeats=1))
    monkeypatch.setattr(sys, "argv", ["tokenizing.py", "--images", "0"])
    measured.main()
    (path,) = tmp_path.glob("tokenizing_*.json")
    result = json.loads(path.read_text())
    assert {"commit", "hardware", "date", "command"} <= result.keys()
    assert [row["views"] for row in result["rows"]] == [1, 10, 20]
    assert all(row["images_per_s_and_core"] > 0 and row["imagenet_core_hours"] > 0 for row in result["rows"])

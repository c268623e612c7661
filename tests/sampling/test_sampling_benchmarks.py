"""The benchmarks of sampling: what the search for shapes keeps, and that what it tries can run."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from aim_lightning.models import AiMConfig
from aim_lightning.sampling.fast.buffers import PARTS
from aim_lightning.sampling.fast.shapes import shapes_for, table


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    """What the benchmarks give with tiny sizes (tests/sampling/benchmarks_on_cpu.py)."""
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    environment |= {"FOLDER": str(tmp_path_factory.mktemp("benchmarks")), "PATH": "/usr/bin:/bin"}
    script = ROOT / "tests/sampling/benchmarks_on_cpu.py"
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_the_search_keeps_what_is_faster_and_draws_the_same(report):
    found = report["searched"]
    assert (found["best"], found["kept"]) == (16, [16])
    assert found["late"] == 8 and "time is up" in found["log"]
    assert found["read"] and found["others"] and found["rows"] == len(table()) + 1
    slower, refused, better = found["log"].splitlines()[:3]
    assert slower == "  1.0000 -> 2.0000 s {'choose_warps': 4}"
    assert refused == "  REFUSED, logits are 5.0e-01 apart: {'choose_warps': 32}"
    assert better == "  1.0000 -> 0.9000 s * {'choose_warps': 16}"


def test_what_counts_as_the_same(report):
    assert report["alike"][:2] == [None, None]
    words = ["apart", "logits are nan apart", "equally likely", "begin with another code"]
    assert all(word in found for word, found in zip(words, report["alike"][2:], strict=True))


def test_every_form_is_measured(report):
    forms = {row["form"]: row for row in report["forms"]}
    assert list(forms) == ["recurrence, bfloat16 state", "recurrence, float32 state", "dual"]
    assert forms["recurrence, float32 state"]["bytes"] == 2 * 2 * 4 * 16 * 16 * 4
    assert forms["dual"]["bytes"] == 2 * 8 * ((64 + 16) * 2 + 4 * 4)
    assert all(row["us"] > 0 for row in forms.values())


def test_kernels_count_from_end_to_end(report):
    assert report["kernels"] == [
        {"kernel": "a, then b", "launches_a_step": 0.5, "us": 4.0},
        {"kernel": "b, then b", "launches_a_step": 1.0, "us": 2.0},
        {"kernel": "b, then a", "launches_a_step": 0.5, "us": 4.0},
        {"kernel": "b, then copy", "launches_a_step": 0.5, "us": 4.0},
    ]


def test_a_row_tells_the_first_calls_apart(report):
    row = report["row"]
    assert row["capture_s"] > 0 and row["compile_s"] > 0 and row["fast_s"] > 0


def test_what_the_search_tries_fits_the_presets(monkeypatch):
    """Nothing is cut to what a network allows: a trial is what it says."""
    from dataclasses import replace
    from unittest import mock

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import trials

    from aim_lightning.sampling.fast import shapes

    assert set(trials.KNOWN) == set(table())
    for place, own in table().items():
        preset = {768: "AiM-B", 1024: "AiM-L", 1536: "AiM-XL"}[place[0]]
        for change in trials.changes(*place):
            wanted = replace(own, **change)
            with mock.patch.object(shapes, "table", lambda place=place, wanted=wanted: {place: wanted}):
                assert shapes_for(AiMConfig.preset(preset), place[1], torch.bfloat16) == wanted
            assert wanted.split <= PARTS and wanted.project.deep % wanted.line == 0

"""The benchmarks of sampling: the search for launch configurations keeps valid and faster ones."""

import random
from unittest import mock

import pytest
import torch
from conftest import ROOT
from helpers import script_output, skip_without

from aim_lightning.models import AiMConfig
from aim_lightning.sampling.fast import kernel_configs
from aim_lightning.sampling.fast.kernel_configs import kernel_configs_for, table

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    """Return the results of the benchmarks with tiny sizes."""
    skip_without("g++")  # for torch.compile
    directory = str(tmp_path_factory.mktemp("benchmarks"))
    return script_output("sampling/benchmarks_on_cpu.py", "benchmarks", DIRECTORY=directory)


def test_the_search_keeps_faster_configurations_with_equal_codes(report):
    result = report["searched"]
    assert (result["best"], result["kept"]) == (16, [16])
    assert result["late"] == 8
    assert result["read"] and result["others"] and result["rows"] == len(table()) + 1
    _, refused, better, tried, _, late = result["log"].splitlines()  # slower proposals are not logged
    assert refused == "  REFUSED, logits are 5.0e-01 apart: {'sample_warps': 32}"
    assert better == "  1.0000 -> 0.9000 s {'sample_warps': 16}"
    assert (tried, late) == ("  3 tried", "  0 tried")


def test_the_search_proposes_nothing_twice_and_compiles_ahead(report):
    expected = {"again": True, "other": True, "twice": 0, "best": False, "ahead": 5, "in_order": True}
    assert report["proposed"] == expected


def test_equal_samples_up_to_rounding(report):
    assert report["same"][:2] == [None, None]
    words = ["apart", "logits are nan apart", "equally likely", "begin with another code"]
    assert all(word in result for word, result in zip(words, report["same"][2:], strict=True))


def test_every_form_is_measured(report):
    forms = {row["form"]: row for row in report["forms"]}
    assert list(forms) == ["recurrence, bfloat16 state", "recurrence, float32 state", "dual"]
    assert forms["recurrence, float32 state"]["bytes"] == 2 * 2 * 4 * 16 * 16 * 4
    assert forms["dual"]["bytes"] == 2 * 8 * ((64 + 16) * 2 + 4 * 4)
    assert all(row["us"] > 0 for row in forms.values())


def test_kernels_are_timed_from_end_to_end(report):
    assert report["kernels"] == [
        {"kernel": "a, then b", "launches_a_step": 0.5, "us": 4.0},
        {"kernel": "b, then b", "launches_a_step": 1.0, "us": 2.0},
        {"kernel": "b, then a", "launches_a_step": 0.5, "us": 4.0},
        {"kernel": "b, then copy", "launches_a_step": 0.5, "us": 4.0},
    ]


def test_a_row_separates_the_first_calls(report):
    row = report["row"]
    assert row["capture_s"] > 0 and row["compile_s"] > 0 and row["fast_s"] > 0


def test_pixels_are_measured_alone_and_with_codes(report):
    kinds = [(row["what"], row["batch"], row.get("variant"), row.get("mode")) for row in report["pixels"]]
    alone = [("decoder", 2, "float32", None), ("decoder", 2, "autocast", None)]
    assert kinds == [*alone, ("codes", 2, None, None), ("codes and pixels", 2, None, "in series")]
    assert all(row["images_per_s"] > 0 for row in report["pixels"])
    assert report["pixels"][0]["difference"] == 0 < report["pixels"][1]["difference"] < 0.05


def test_the_transformer_is_compared_at_equal_parameters(report):
    rows = [(row["what"], row["network"], row["method"], row["batch"]) for row in report["baseline"]]
    assert rows == [
        ("training", "AiM", "eager", 4), ("training", "GPT", "eager", 4),
        ("sampling", "AiM", "fast", 2), ("sampling", "GPT", "captured", 2),
        ("sampling", "AiM", "plain", 2), ("sampling", "GPT", "plain", 2),
    ]  # fmt: skip
    assert all(row["codes"] == 16 and row["images_per_s"] > 0 for row in report["baseline"])
    assert all(row["seconds_per_image"] == row["seconds"] / 2 for row in report["baseline"][2:])
    assert all(gpt == pytest.approx(aim, rel=0.01) for aim, gpt in report["sizes"])


def test_captured_sequences_are_those_of_the_plain_decoder(report):
    assert report["captured"] == [True, True, True]


def test_proposals_of_the_search_fit_the_presets(monkeypatch):
    """No trial is reduced to the sizes of a network."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import trials

    rng = random.Random(0)
    for rows in (2, 18, 24, 80, 128):  # also numbers that are no power of two
        config = AiMConfig.preset("AiM-B")
        for shared in (92 * 1024, kernel_configs.SHARED_BYTES):
            assert trials.allowed(kernel_configs_for(config, rows, torch.bfloat16, shared), config, rows, shared)
    for key, measured in table().items():
        config, tried = AiMConfig.preset({768: "AiM-B", 1024: "AiM-L", 1536: "AiM-XL"}[key[0]]), set()
        assert trials.allowed(measured, config, key[1])
        for _ in range(400):
            proposal = trials.trial(rng, trials.trial(rng, measured))
            if not trials.allowed(proposal, config, key[1]):
                continue
            with mock.patch.object(kernel_configs, "table", lambda key=key, proposal=proposal: {key: proposal}):
                assert kernel_configs_for(config, key[1], torch.bfloat16) == proposal
            assert proposal.project.block_k % proposal.line == 0
            tried.add(proposal)
        kernels = {name for shape in tried for name, value in vars(shape).items() if value != getattr(measured, name)}
        assert not measured.out.streamed or any(shape.out.streamed not in (0, measured.out.streamed) for shape in tried)
        assert len(tried) > 50 and kernels >= {"project", "out", "head", "sample_warps"}
        assert kernels >= ({"mix", "ahead"} if measured.dual >= 256 else {"state"})

"""The sampling kernels give the codes of the filters, by candidates and by all logits."""

import pytest
from helpers import script_output
from sampling.kernels_on_cpu import OPTIONS
from sampling.sample_token_on_cpu import IMAGES, LOGITS, MORE

from aim_lightning.sampling.fast.buffers import candidate_sizes


@pytest.fixture(scope="module")
def sampled() -> dict:
    """Return the results of the Triton kernels on a CPU."""
    return script_output("sampling/sample_token_on_cpu.py")


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("vocabulary", [61, 97, 7])
def test_codes_are_those_of_the_filters(sampled, logits, vocabulary):
    """This holds under every set of options, also for equal or nearly equal logits in several chunks."""
    shares = sampled["equal"][f"{logits} {vocabulary}"]
    assert shares == [1.0] * len(OPTIONS + MORE if vocabulary == 61 else MORE)


def test_all_logits_are_searched_only_where_candidates_do_not_decide(sampled):
    assert sampled["all"]["skewed"] == sampled["all"]["equal"] == IMAGES
    assert sampled["all"]["random"] < IMAGES


def test_candidates_are_the_largest_of_their_chunk_in_order(sampled):
    """They fill at least three quarters of the slots where no entries are equal."""
    assert sampled["wrong_candidates"] == []


def test_logits_that_are_not_finite_are_reported(sampled):
    """A search over such values would never end."""
    assert sampled["diverged"] == [1] * 45 + [0] * 15


def test_a_sample_from_a_presets_number_of_codes(sampled):
    assert sampled["large"]


def test_chunks_by_the_number_of_codes():
    expected = [(8, 8, 1), (64, 64, 1), (1024, 128, 2), (1024, 128, 16), (4096, 128, 16)]
    assert [candidate_sizes(codes) for codes in (7, 40, 2000, 16384, 60000)] == expected

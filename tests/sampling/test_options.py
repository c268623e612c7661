"""Sampler settings are checked where they are made."""

import pytest
from helpers import assert_user_error

from aim_lightning.cli.main import main
from aim_lightning.sampling import SamplingOptions, filters

CASES = [
    ("cfg_scale", "abc"),
    ("cfg_scale", -1),
    ("cfg_scale", float("nan")),
    ("cfg_schedule", "foo"),
    ("cfg_power", 0),
    ("cfg_interval", [0.5]),
    ("cfg_interval", ["a", 1]),
    ("temperature", 0),
    ("temperature", None),
    ("top_p", 1.1),
    ("top_k", 1.5),
    ("top_k", True),
    ("batch_size", 0),
    ("seed", 0.5),
    ("position_offset", 2),
]


@pytest.mark.parametrize(("name", "value"), CASES)
def test_values_out_of_range_are_refused(name, value):
    assert_user_error(rf"{name}.* is .*; ", SamplingOptions, **{name: value})


def test_whole_numbers_and_lists_do_for_numbers_and_intervals():
    options = SamplingOptions(cfg_scale=2, temperature=1, cfg_interval=[0, 1], cfg_schedule="interval")
    assert options.options()["cfg_scale"] == 2


def test_the_fast_decoder_refuses_a_filter_that_its_kernels_lack(monkeypatch):
    monkeypatch.setattr(filters, "FAST_FILTERS", ("temperature", "top_k"))
    assert SamplingOptions(top_k=3, temperature=2).filters().fast_obstacle() is None
    assert SamplingOptions(top_p=0.5).filters().fast_obstacle() == "its kernels have no top_p; use decoder plain"


def test_every_filter_is_an_option_with_the_same_default():
    """A filter takes a field in each of the two classes."""
    assert SamplingOptions().filters() == filters.Filters()


def test_a_command_reports_it_in_one_line(capsys):
    words = ["evaluate", "--weights", "nowhere", "--sampling.top_p", "0", "--trainer.accelerator", "cpu"]
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert error == "error: sampling: top_p is 0; it must be above 0 and at most 1"

"""Sampler settings are checked where they are made."""

from aim_lightning.cli.main import main
from aim_lightning.sampling import SamplingOptions, filters


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
    assert error == "error: command line: sampling.top_p is 0; it must be above 0 and at most 1"

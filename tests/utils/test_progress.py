"""What a long job shows of itself."""

import pytest

from aim_lightning.utils import progress
from aim_lightning.utils.progress import ProgressBar, watched


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test sets."""
    seconds = [1000.0]
    monkeypatch.setattr(progress, "monotonic", lambda: seconds[0])
    return seconds


def test_a_log_gets_a_line_about_every_minute(clock, capsys):
    with ProgressBar("train", 1_281_167, done=100_000) as report:
        for second in range(1, 131):
            clock[0] = 1000.0 + second
            report.advance(690)
    assert capsys.readouterr().out.splitlines() == [
        "train: 141,400 of 1,281,167 images, 690 images/s, 28 min left",
        "train: 182,800 of 1,281,167 images, 690 images/s, 27 min left",
    ]


def test_other_processes_and_short_jobs_are_silent(clock, capsys):
    with ProgressBar("val", 10, shown=False) as report:
        clock[0] += 100
        report.advance(5)
    assert list(watched([1, 2], "looking")) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_slow_job_and_a_note(clock, capsys):
    with ProgressBar("sampling", 50_000, "images") as report:
        clock[0] += 100
        report.advance(50, "peak 1.0 GiB")
    assert capsys.readouterr().out == "sampling: 50 of 50,000 images, 0.5 images/s, 27.8 h left, peak 1.0 GiB\n"


def test_the_last_line_stays_where_asked_for(clock, capsys):
    for done in (0, 10):
        with ProgressBar("val", 10, done=done, leave=True) as report:
            clock[0] += 2
            report.advance(10 - done)
    assert capsys.readouterr().out == "val: 10 of 10 images, 5 images/s, 0 s left\n"  # nothing to do, nothing to say


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with ProgressBar("train", 10, done=4) as report:
        report.advance(6)
        report._bar.refresh()
    shown = capsys.readouterr().out
    assert "train" in shown and "10/10" in shown and "images" in shown and shown.startswith("\r")

"""Bars in a terminal and lines in a log."""

import pytest

from aim_lightning.utils.progress import ProgressBar, progress


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock by seconds that the test sets."""
    seconds = [1000.0]
    monkeypatch.setattr("aim_lightning.utils.progress.monotonic", lambda: seconds[0])
    return seconds


def test_a_log_gets_one_line_per_minute(clock, capsys):
    with ProgressBar("train", 1_281_167, done=100_000) as bar:
        for second in range(1, 131):
            clock[0] = 1000.0 + second
            bar.advance(690)
    assert capsys.readouterr().out.splitlines() == [
        "train: 141,400 of 1,281,167 images, 690 images/s, 28 min left",
        "train: 182,800 of 1,281,167 images, 690 images/s, 27 min left",
    ]


def test_other_ranks_and_short_loops_are_silent(clock, capsys):
    with ProgressBar("val", 10, shown=False) as bar:
        clock[0] += 100
        bar.advance(5)
    assert list(progress([1, 2], "looking")) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_slow_loop_shows_hours_and_a_note(clock, capsys):
    with ProgressBar("sampling", 50_000, "images") as bar:
        clock[0] += 100
        bar.advance(50, "peak 1.0 GiB")
    assert capsys.readouterr().out == "sampling: 50 of 50,000 images, 0.5 images/s, 27.8 h left, peak 1.0 GiB\n"


def test_leave_prints_a_last_line(clock, capsys):
    for done in (0, 10):
        with ProgressBar("val", 10, done=done, leave=True) as bar:
            clock[0] += 2
            bar.advance(10 - done)
    assert capsys.readouterr().out == "val: 10 of 10 images, 5 images/s, 0 s left\n"  # nothing for the second


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with ProgressBar("train", 10, done=4) as bar:
        bar.advance(6)
        bar._bar.refresh()
    shown = capsys.readouterr().out
    assert "train" in shown and "10/10" in shown and "images" in shown and shown.startswith("\r")

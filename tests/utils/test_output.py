"""Encodings and pipes never end a command; paths that cannot be created are one line; progress bars and lines."""

import subprocess
import sys
import warnings
from pathlib import Path

import lightning
import pytest
from conftest import ROOT, python

from aim_lightning.utils.files import make_directory, write_text
from aim_lightning.utils.progress import ProgressBar, progress

BAR = """
from aim_lightning.utils.logging import log
from aim_lightning.utils.progress import ProgressBar
sys.stdout.isatty = lambda: True
with ProgressBar("training", 10) as bar:
    bar.advance(3)
    log("a message")
"""
PROTECT = "import sys; from aim_lightning.utils.logging import protect_output, show_log; protect_output(); "


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}])
def test_characters_without_encoding_are_replaced(environment):
    code = r"print('Fr\u00e9chet \u2588'); print('Fr\u00e9chet', file=sys.stderr)"
    result = python("-c", PROTECT + code, PYTHONCOERCECLOCALE="0", **environment)
    assert result.returncode == 0 and result.stdout.startswith("Fr") and result.stderr.count("\n") == 1


def test_a_command_continues_silently_after_the_reader_of_its_output_has_exited(tmp_path):
    path = str(tmp_path / "file")
    code = "print(1, flush=True); sys.stdin.read(); [print('x' * 9999) for _ in range(99)]; "
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", f"{PROTECT}{code}open({path!r}, 'w').close()"], cwd=ROOT, **pipes)
    assert process.stdout.readline() == b"1\n"
    process.stdout.close()
    process.stdin.close()
    assert process.wait(timeout=60) == 0 and process.stderr.read() == b"" and (tmp_path / "file").exists()


def test_closed_standard_output_is_ignored():
    command = f"'{sys.executable}' -m aim_lightning --help >&-"
    result = subprocess.run(command, shell=True, cwd=ROOT, stderr=subprocess.PIPE, timeout=60)
    assert result.returncode == 0 and result.stderr == b""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_directory_that_cannot_be_created_is_one_line(fail, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (Path("/proc/none/file"), tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError):
            make_directory(path.parent / "x")
        with pytest.raises(OSError):
            write_text(path, "text")
    monkeypatch.setattr("aim_lightning.cli.main.run", lambda argv: write_text("/proc/none/file", "text"))
    error = fail()
    assert "/proc/none" in error and "choose another path" in error


def test_a_message_does_not_continue_the_line_of_an_open_bar():
    result = python("-c", f"import sys{BAR}", COLUMNS="0")
    assert result.returncode == 0 and "training:   0%" in result.stdout
    assert "a message" in result.stdout.splitlines()


def test_warnings_of_libraries_are_one_line_without_path():
    result = python("-c", PROTECT + r"import warnings; show_log(); warnings.warn('two\nlines')")
    assert result.returncode == 0 and result.stderr == "warning: two lines\n"


def test_warnings_of_lightning_have_no_path_either(monkeypatch):
    from aim_lightning.cli.build.trainer_cli import quiet  # imports Lightning, which replaces the format

    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    quiet()
    assert warnings.formatwarning("text", UserWarning, lightning.__file__, 3) == "warning: text\n"


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


def test_items_without_a_note_may_wait_for_more_intervals(clock, capsys):
    with ProgressBar("training", 100, "steps") as bar:
        for _ in range(4):
            clock[0] += 40
            bar.advance(1, intervals=2)
    assert capsys.readouterr().out == "training: 3 of 100 steps, 0.025 steps/s, 65 min left\n"


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

"""Encodings and pipes never end a command; paths that cannot be created are one line."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from aim_lightning.cli.main import main
from aim_lightning.utils.files import make_directory, write_text

PROTECTED = "import sys; from aim_lightning.utils.logging import protect_output; protect_output(); "


def python(code: str, **environment: str) -> list[str]:
    """Return a command that runs code with protected output."""
    return ["env", *(f"{name}={value}" for name, value in environment.items()), sys.executable, "-c", PROTECTED + code]


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}])
def test_characters_without_encoding_are_replaced(environment):
    code = r"print('Fr\u00e9chet \u2588'); print('Fr\u00e9chet', file=sys.stderr)"
    done = subprocess.run(
        python(code, PYTHONCOERCECLOCALE="0", **environment), cwd=ROOT, capture_output=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.startswith(b"Fr") and done.stderr.count(b"\n") == 1


def test_a_command_continues_silently_after_the_reader_of_its_output_has_exited(tmp_path):
    path = str(tmp_path / "file")
    code = "print(1, flush=True); sys.stdin.read(); [print('x' * 9999) for _ in range(99)]; "
    code += f"open({path!r}, 'w').close()"
    process = subprocess.Popen(
        python(code), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"1\n"
    process.stdout.close()
    process.stdin.close()
    assert process.wait(timeout=60) == 0 and process.stderr.read() == b"" and (tmp_path / "file").exists()


def test_closed_standard_output_is_ignored():
    command = f"'{sys.executable}' -m aim_lightning --help >&-"
    done = subprocess.run(command, shell=True, cwd=ROOT, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 0 and done.stderr == b""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_directory_that_cannot_be_created_is_one_line(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (Path("/proc/none/file"), tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError):
            make_directory(path.parent / "x")
        with pytest.raises(OSError):
            write_text(path, "text")
    monkeypatch.setattr("aim_lightning.cli.main.run", lambda argv: write_text("/proc/none/file", "text"))
    assert main([]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "/proc/none" in error and "choose another path" in error


def test_warnings_of_libraries_are_one_line_without_path(capsys):
    code = "from aim_lightning.utils.logging import show_log; import warnings; show_log(); warnings.warn('two\\nlines')"
    done = subprocess.run(python(code), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "warning: two lines\n"

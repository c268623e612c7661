"""The hub's own client against a hub on this machine, and without any."""

import errno
import json
import os
import subprocess
import sys
from unittest import mock

import pytest
from weights.hub_server import COMMIT, hub
from weights.makers import aim, vq

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import sha256_file
from aim_lightning.weights import export_aim
from aim_lightning.weights.fetch import FORMAT, PUBLISHED, fetch, main

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return export_aim(aim(), tmp_path_factory.mktemp("hub") / "aim-base", tokenizer=vq())


@pytest.fixture
def python(root, tmp_path):
    """A fresh interpreter whose hub is at `endpoint`, with a cache of its own."""

    def call(endpoint: str, *arguments: str) -> subprocess.CompletedProcess:
        hub_options = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        environment = {**os.environ, **hub_options, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)

    return call


def test_fetch_records_sizes_and_hashes(python, repository, tmp_path):
    out, fetched = tmp_path / "weights", ("-m", "aim_lightning.weights.fetch", "AiM-B", "--out", tmp_path / "weights")
    with hub("hp-l33/aim-base", repository) as endpoint:
        done = python(endpoint, *fetched)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((out / "aim_b" / "fetched.json").read_text())
    assert (record["repository"], record["revision"]) == ("hp-l33/aim-base", COMMIT)
    for row in record["files"]:
        file = repository / row["name"]
        assert (row["bytes"], row["sha256"]) == (file.stat().st_size, sha256_file(file))
        assert row["sha256"] in done.stdout
    names = sorted(path.name for path in (out / "aim_b").iterdir())
    assert names == ["config.json", "fetched.json", "model.safetensors"]
    assert [path.name for path in out.iterdir()] == ["aim_b"]
    assert fetch("AiM-B", out) == out / "aim_b"  # nothing to do, and nobody is asked
    (out / "aim_b" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="is not the file that was fetched"):
        fetch("AiM-B", out)


RECORD = {"format": FORMAT, "files": [{"name": "config.json", "bytes": 2, "sha256": "x"}]}


@pytest.mark.parametrize(
    "record",
    [None, [], {}, {**RECORD, "format": "other"}, {**RECORD, "files": []}, {**RECORD, "files": [{"name": "a"}]}],
)
def test_a_directory_that_was_not_fetched(tmp_path, capsys, record):
    (tmp_path / "aim_b").mkdir()
    if record is not None:
        (tmp_path / "aim_b" / "fetched.json").write_text(json.dumps(record))
    assert main(["AiM-B", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{tmp_path / 'aim_b'} holds files that were not fetched by this command" in error
    assert "use them as they are, or remove it and fetch again" in error


def test_a_download_that_is_not_what_the_hub_says(python, repository, tmp_path):
    with hub("hp-l33/aim-base", repository, lie_about="model.safetensors") as endpoint:
        done = python(endpoint, "-m", "aim_lightning.weights.fetch", "AiM-B", "--out", tmp_path / "weights")
    assert done.returncode == 2 and "another sha256 than the hub says" in done.stderr
    assert not (tmp_path / "weights" / "aim_b").exists()


FROM_PRETRAINED = """
from aim_lightning import AiMPipeline
from aim_lightning.utils.errors import UserError
print(tuple(AiMPipeline.from_pretrained("some/aim").generate([0, 1]).shape))
print(tuple(AiMPipeline.from_pretrained("some/aim", local_files_only=True).generate([0]).shape))
try:
    AiMPipeline.from_pretrained("some/other")
except UserError as error:
    print(error)
"""


def test_from_pretrained_with_a_hub_id(python, repository):
    with hub("some/aim", repository) as endpoint:
        done = python(endpoint, "-c", FROM_PRETRAINED)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second, third = done.stdout.strip().splitlines()
    assert (first, second) == ("(2, 3, 4, 4)", "(1, 3, 4, 4)")
    assert "there is no some/other here, and the hub has no such repository" in third


def test_offline_is_one_clear_line(python, tmp_path):
    done = python(NOWHERE, "-m", "aim_lightning.weights.fetch", "VQ-16", "--out", tmp_path / "weights")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "error: FoundationVision/LlamaGen" in done.stderr and "hub cannot be reached" in done.stderr
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Data processing error: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_no_missing_connection(monkeypatch, tmp_path, error):
    facts = {"revision": COMMIT, "files": {}}
    monkeypatch.setattr("aim_lightning.weights.fetch._ask_hub", lambda published: facts)
    monkeypatch.setattr("aim_lightning.weights.fetch.hf_hub_download", mock.Mock(side_effect=error))
    with pytest.raises(UserError, match=r"LlamaGen could not be written here \(No space left on device\); make room"):
        fetch("VQ-16", tmp_path)


def test_a_directory_that_cannot_be_written_is_one_line(python, repository):
    with hub("hp-l33/aim-base", repository) as endpoint:
        done = python(endpoint, "-m", "aim_lightning.weights.fetch", "AiM-B", "--out", "/proc/x")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot be reached" not in done.stderr
    assert "the files of hp-l33/aim-base could not be written here (No such file or directory)" in done.stderr


def test_what_is_not_published():
    with pytest.raises(UserError, match="AiM-1B is not published; use one of AiM-B"):
        fetch("AiM-1B")
    assert {entry.repository for entry in PUBLISHED.values()} == {
        "hp-l33/aim-base", "hp-l33/aim-large", "hp-l33/aim-xlarge", "FoundationVision/LlamaGen",
    }  # fmt: skip


def test_neither_a_path_nor_a_hub_id():
    from aim_lightning import AiMPipeline

    with pytest.raises(UserError, match="does not exist, and it is no hub id"):
        AiMPipeline.from_pretrained("no/such/directory")

"""The hub's client with a hub on this machine, and offline."""

import errno
import json
import subprocess
from types import SimpleNamespace
from unittest import mock

import pytest
from conftest import python
from helpers import assert_contains, assert_user_error
from weights.hub_server import COMMIT, hub
from weights.makers import aim, vq

from aim_lightning import AiMPipeline
from aim_lightning.utils.files import sha256_file
from aim_lightning.weights import export_aim
from aim_lightning.weights.download import DOWNLOADS, FORMAT, HubFiles, download

COMMAND = ("-m", "aim_lightning", "download")
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return export_aim(aim(), tmp_path_factory.mktemp("hub") / "aim-base", tokenizer=vq())


@pytest.fixture
def run(tmp_path):
    """Return a function that runs Python with the hub at `endpoint` and an empty cache."""

    def call(endpoint: str, *arguments) -> subprocess.CompletedProcess:
        offline = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
        return python(*arguments, HF_ENDPOINT=endpoint, **offline)

    return call


def test_download_records_sizes_and_hashes(run, repository, tmp_path):
    out = tmp_path / "weights"
    with hub("hp-l33/aim-base", repository) as endpoint:
        done = run(endpoint, *COMMAND, "AiM-B", "--root", tmp_path)
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
    assert download(DOWNLOADS["AiM-B"], tmp_path) == out / "aim_b"  # no request is sent
    (out / "aim_b" / "model.safetensors").write_bytes(b"other")
    assert_user_error("is not the downloaded file", download, DOWNLOADS["AiM-B"], tmp_path)


FILES = [{"name": "config.json", "bytes": 2, "sha256": "x"}]
RECORDS = [None, [], {}, *({"format": FORMAT, "files": files} for files in ([], [{"name": "a"}]))]


@pytest.mark.parametrize("record", [*RECORDS, {"format": "other", "files": FILES}])
def test_a_directory_that_was_not_downloaded(tmp_path, fail, record):
    (tmp_path / "weights/aim_b").mkdir(parents=True)
    if record is not None:
        (tmp_path / "weights/aim_b/fetched.json").write_text(json.dumps(record))
    error = fail("download", "AiM-B", "--root", tmp_path)
    assert "aim_b holds files that this command did not download" in error
    assert "use them as they are, or remove the directory and download again" in error


def test_a_download_with_another_hash_than_on_the_hub(run, repository, tmp_path):
    with hub("hp-l33/aim-base", repository, lie_about="model.safetensors") as endpoint:
        done = run(endpoint, *COMMAND, "AiM-B", "--root", tmp_path)
    assert done.returncode == 2 and "another sha256 than on the hub" in done.stderr
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


def test_from_pretrained_with_a_hub_id(run, repository):
    with hub("some/aim", repository) as endpoint:
        done = run(endpoint, "-c", FROM_PRETRAINED)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second, third = done.stdout.strip().splitlines()
    assert (first, second) == ("(2, 3, 4, 4)", "(1, 3, 4, 4)")
    assert "there is no some/other here, and the hub has no such repository" in third


def test_offline_is_one_clear_line(run, tmp_path):
    done = run(NOWHERE, *COMMAND, "VQ-16", "--root", tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "error: FoundationVision/LlamaGen" in done.stderr and "hub cannot be reached" in done.stderr
    assert not (tmp_path / "weights").exists()


CASES = [
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("Data processing error: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", CASES)
def test_a_full_disk_is_not_reported_as_a_missing_connection(monkeypatch, tmp_path, error):
    info = SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename="vq_ds16_c2i.pt", size=1, lfs=None)])
    monkeypatch.setattr("aim_lightning.weights.download.HfApi.model_info", lambda *_, **__: info)
    monkeypatch.setattr("aim_lightning.weights.download.hf_hub_download", mock.Mock(side_effect=error))
    message = r"LlamaGen could not be written here \(No space left on device\); free disk space"
    assert_user_error(message, download, DOWNLOADS["VQ-16"], tmp_path)


def test_a_directory_that_cannot_be_written_is_one_line(run, repository):
    with hub("hp-l33/aim-base", repository) as endpoint:
        done = run(endpoint, *COMMAND, "AiM-B", "--root", "/proc/x")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot be reached" not in done.stderr
    assert "the files of hp-l33/aim-base could not be written here (No such file or directory)" in done.stderr


def test_unknown_names_are_refused(fail):
    assert_contains(fail("download", "AiM-1B"), ["AiM-1B", "AiM-B"])
    repositories = {entry.repository for entry in DOWNLOADS.values() if isinstance(entry, HubFiles)}
    assert repositories == {
        *(f"hp-l33/aim-{size}" for size in ("base", "large", "xlarge")),
        "FoundationVision/LlamaGen",
    }


def test_neither_a_path_nor_a_hub_id():
    assert_user_error("does not exist, and it is not a hub id", AiMPipeline.from_pretrained, "no/such/directory")

"""Shards from URLs: http on loopback, pipes, the cache, reads that fail for a while."""

import errno
import http.server
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest
from data.test_tokens import global_batches, module
from helpers import assert_user_error, skip_without, write_tokens

from aim_lightning.data.tokens.format.manifest import TokenManifest, file_url, is_remote
from aim_lightning.data.tokens.read import fetch
from aim_lightning.data.tokens.read.fetch import Fetcher
from aim_lightning.data.tokens.verify import verify_directory
from aim_lightning.utils.errors import TransientError
from aim_lightning.utils.files import sha256_file

SHARDS = [13, 9, 17, 5]


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a directory; `faults` maps a path to the faults of its next requests: a status, "cut" or "stall"."""

    def __init__(self, *args, faults, requests, **options):
        self.faults, self.requests = faults, requests
        super().__init__(*args, **options)

    def do_GET(self):
        self.requests.append(self.path)
        pending = self.faults.get(self.path) or []
        fault = pending.pop(0) if pending else None
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault is None:
            super().do_GET()
        else:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            if fault == "stall":
                time.sleep(4)
            self.wfile.write(b"x" * 700)  # then the connection closes

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stored")
    for split, rows in (("train", SHARDS), ("val", [11, 4])):
        write_tokens(directory / split, rows, views=3, seed=len(split))
    return directory


@pytest.fixture
def served(stored):
    """(URL, faults by path, requested paths)."""
    skip_without("curl")  # webdataset reads http URLs with it
    faults, requests = {}, []
    handler = partial(Server, directory=str(stored), faults=faults, requests=requests)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", faults, requests
    server.shutdown()
    server.server_close()


def batches(path, **options):
    return global_batches(path, fetch={"retry_pause": 0.01, **options})


@pytest.mark.parametrize("template", ["pipe:cat {directory}/{{}}", "pipe:cat {directory}", "file:{directory}"])
def test_any_opener_gives_the_stream_of_the_directory(stored, template):
    assert batches(template.format(directory=stored)) == global_batches(stored)


def test_http_gives_the_stream_of_the_directory_also_to_workers(stored, served):
    expected = global_batches(stored)
    assert batches(served[0]) == expected
    assert global_batches(served[0], workers=2, world=2) == expected


def test_transient_errors_are_retried(stored, served, caplog):
    url, faults, requests = served
    faults["/train/tokens-000002.tar"] = [404, "cut"]
    faults["/val/manifest.json"] = ["cut"]
    assert batches(url) == global_batches(stored)
    assert requests.count("/train/tokens-000002.tar") == 3 and requests.count("/train/tokens-000001.tar") == 1
    assert "tokens-000002.tar: its command ended with exit code 22; trying again in 0.01 s" in caplog.text
    assert "exit code 18; trying again in 0.02 s" in caplog.text


def test_a_busy_server_gets_as_many_requests_as_the_options_allow(served, caplog):
    """curl itself would repeat the request for a minute at 503 without a log line."""
    url, faults, requests = served
    path = "/train/tokens-000001.tar"
    faults[path] = [503, 503, 429]
    assert len(Fetcher(retries=3, pause=0.01).fetch(url + path).data) > 1000
    assert requests.count(path) == 4 and caplog.text.count("exit code 22; trying again") == 3
    faults[path] = [503] * 99
    with pytest.raises(TransientError, match="cannot be read in 2 attempts"):  # the job is requeued
        Fetcher(retries=1, pause=0.01).fetch(url + path)
    assert requests.count(path) == 6


def test_a_stalled_transfer_is_aborted_and_retried(served, monkeypatch, caplog):
    url, faults, requests = served
    path = "/train/tokens-000001.tar"
    monkeypatch.setattr(fetch, "STALL_SECONDS", 1)
    faults[path] = ["stall"]
    assert len(Fetcher(pause=0.01).fetch(url + path).data) > 1000
    assert requests.count(path) == 2 and "exit code 28; trying again" in caplog.text


def test_a_permanent_failure_is_one_line(served):
    url, faults, requests = served
    faults["/train/tokens-000001.tar"] = [404] * 99
    caught = assert_user_error("cannot be read in 3 attempts", batches, url, retries=2)
    assert f"{url}/train/tokens-000001.tar" in str(caught)
    assert requests.count("/train/tokens-000001.tar") == 3


def test_an_unfinished_command_and_a_missing_one(stored):
    assert_user_error(r"pipe:exit 3; echo/train/manifest.json .* exit code 3", batches, "pipe:exit 3; echo", retries=0)
    assert_user_error("cannot be read", batches, "nosuch://host/tokens", retries=0)


def test_pauses_double(monkeypatch):
    slept = []
    monkeypatch.setattr(fetch, "time", SimpleNamespace(sleep=slept.append))
    assert_user_error("in 4 attempts", Fetcher(retries=3, pause=0.5).fetch, "pipe:exit 1")
    assert slept == [0.5, 1.0, 2.0]


def test_transient_errors_of_a_network_file_system_are_retried(stored, monkeypatch):
    """EIO and ESTALE are transient for files of a directory too."""
    expected, read, failures = global_batches(stored), fetch._read, [errno.EIO, errno.ESTALE]

    def failing(url):
        if url.endswith("tokens-000001.tar") and failures:
            raise OSError(failures.pop(), "transient")
        return read(url)

    monkeypatch.setattr(fetch, "_read", failing)
    assert batches(stored) == expected and not failures


def test_a_missing_local_file_is_not_retried(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "time", SimpleNamespace(sleep=lambda _: pytest.fail("slept")))
    assert_user_error(r"cannot be read \(", Fetcher().fetch, str(tmp_path / "none.tar"))


def test_the_cache_is_filled_once_and_checked(stored, served, tmp_path, caplog):
    url, _, requests = served
    cache = tmp_path / "cache"
    expected = global_batches(stored)
    assert batches(url, cache_dir=str(cache)) == expected
    files = sorted(cache.glob("*.tar"))
    assert sorted(sha256_file(path) for path in files) == [path.stem for path in files] and len(files) == len(SHARDS)
    before = sum(path.endswith(".tar") for path in requests)
    files[0].write_bytes(files[0].read_bytes()[:-700] + b"\1" * 700)  # damaged in the cache
    files[1].unlink()
    half = cache / f".{files[1].name}.123.tmp"
    half.write_bytes(b"half")  # left by a killed process of another machine, long ago
    os.utime(half, (0, 0))
    assert batches(url, cache_dir=str(cache)) == expected
    assert sum(path.endswith(".tar") for path in requests) == before + 2 and "damaged and fetched again" in caplog.text
    assert sorted(cache.glob("*.tar")) == files and not list(cache.glob(".*.tmp"))


def test_two_processes_fetch_a_shard_once(stored, served, tmp_path):
    url, _, requests = served
    name, expected = "tokens-000000.tar", (stored / "train" / "tokens-000000.tar").read_bytes()
    fetch = partial(Fetcher(cache_dir=tmp_path / "cache").fetch, f"{url}/train/{name}")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(fetch, [sha256_file(stored / "train" / name)] * 4))
    assert [f.data for f in results] == [expected] * 4 and requests == [f"/train/{name}"]


def test_an_unwritable_cache_is_not_used(stored, served, tmp_path, caplog):
    (tmp_path / "file").touch()
    assert batches(served[0], cache_dir=str(tmp_path / "file")) == global_batches(stored)
    assert "reading without it" in caplog.text


def test_urls():
    assert file_url("data/tokens", "train", "a.tar") == "data/tokens/train/a.tar"
    assert file_url("pipe:aws s3 cp s3://b/{} -", "val", "a.tar") == "pipe:aws s3 cp s3://b/val/a.tar -"
    assert file_url("https://h/x/", "val", "a.tar") == "https://h/x/val/a.tar"
    assert [is_remote(p) for p in ("data/x", "/data", "pipe:x", "https://h", "C:/x")] == [0, 0, 1, 1, 0]


def test_negative_numbers_are_refused(stored):
    for name in ("retries", "retry_pause", "skip_limit"):
        assert_user_error(rf"data\.{name} is -1", module, stored, fetch={name: -1})


def test_only_regular_files_are_read(tmp_path):
    write_tokens(tmp_path / "train", [5])
    shard = tmp_path / "train" / "tokens-000000.tar"
    shard.unlink()
    os.mkfifo(shard)
    assert_user_error(r"tokens-000000\.tar is not a regular file; remove it", Fetcher().fetch, str(shard))
    assert str(next(iter(verify_directory(tmp_path / "train")))) == "tokens-000000.tar: no regular file"
    manifest = tmp_path / "train" / "manifest.json"
    manifest.unlink()
    os.mkfifo(manifest)
    assert_user_error(r"manifest\.json is not a regular file", TokenManifest.load, tmp_path / "train")

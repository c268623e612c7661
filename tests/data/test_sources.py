"""Shards from URLs: http on loopback, pipes, the cache, reads that fail for a while."""

import errno
import http.server
import logging
import os
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest
from data.test_tokens import global_batches, module
from helpers import assert_user_error, write_tokens

from aim_lightning.data.tokens.format.manifest import Location, TokenManifest
from aim_lightning.data.tokens.read import fetch
from aim_lightning.data.tokens.read.fetch import Fetcher
from aim_lightning.data.tokens.verify import verify_directory
from aim_lightning.utils.errors import TransientError
from aim_lightning.utils.files import sha256_file

SHARDS = [13, 9, 17, 5]


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a directory; `trouble` maps a path to what happens to its next requests: a status, "cut" or "stall"."""

    def __init__(self, *args, trouble, asked, **options):
        self.trouble, self.asked = trouble, asked
        super().__init__(*args, **options)

    def do_GET(self):
        self.asked.append(self.path)
        todo = self.trouble.get(self.path) or []
        what = todo.pop(0) if todo else None
        if isinstance(what, int):
            self.send_error(what)
        elif what == "stall":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            time.sleep(4)
        elif what == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"x" * 700)  # then the connection closes
        else:
            super().do_GET()

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
    """(URL, trouble by path, paths asked for)."""
    trouble, asked = {}, []
    handler = partial(Server, directory=str(stored), trouble=trouble, asked=asked)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", trouble, asked
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


def test_what_fails_for_a_while_is_tried_again(stored, served, caplog):
    url, trouble, asked = served
    trouble["/train/tokens-000002.tar"] = [404, "cut"]
    trouble["/val/manifest.json"] = ["cut"]
    with caplog.at_level(logging.WARNING):
        assert batches(url) == global_batches(stored)
    assert asked.count("/train/tokens-000002.tar") == 3 and asked.count("/train/tokens-000001.tar") == 1
    assert "tokens-000002.tar: its command ended with exit code 22; trying again in 0.01 s" in caplog.text
    assert "exit code 18; trying again in 0.02 s" in caplog.text


def test_a_busy_server_is_asked_as_often_as_the_options_say(served, caplog):
    """curl itself would go on for a minute at 503 before anybody hears of it."""
    url, trouble, asked = served
    path = "/train/tokens-000001.tar"
    trouble[path] = [503, 503, 429]
    with caplog.at_level(logging.WARNING):
        assert len(Fetcher(retries=3, pause=0.01).fetch(url + path).data) > 1000
    assert asked.count(path) == 4 and caplog.text.count("exit code 22; trying again") == 3
    trouble[path] = [503] * 99
    with pytest.raises(TransientError, match="cannot be read in 2 attempts"):  # the job comes back
        Fetcher(retries=1, pause=0.01).fetch(url + path)
    assert asked.count(path) == 6


def test_a_transfer_that_stalls_is_broken_off_and_tried_again(served, monkeypatch, caplog):
    url, trouble, asked = served
    path = "/train/tokens-000001.tar"
    monkeypatch.setattr(fetch, "STALL_SECONDS", 1)
    trouble[path] = ["stall"]
    with caplog.at_level(logging.WARNING):
        assert len(Fetcher(pause=0.01).fetch(url + path).data) > 1000
    assert asked.count(path) == 2 and "exit code 28; trying again" in caplog.text


def test_what_keeps_failing_is_one_clear_error(served):
    url, trouble, asked = served
    trouble["/train/tokens-000001.tar"] = [404] * 99
    caught = assert_user_error("cannot be read in 3 attempts", batches, url, retries=2)
    assert f"{url}/train/tokens-000001.tar" in str(caught)
    assert asked.count("/train/tokens-000001.tar") == 3


def test_an_unfinished_command_and_a_missing_one(stored):
    assert_user_error(r"pipe:exit 3; echo/train/manifest.json .* exit code 3", batches, "pipe:exit 3; echo", retries=0)
    assert_user_error("cannot be read", batches, "nosuch://host/tokens", retries=0)


def test_pauses_double(monkeypatch):
    slept = []
    monkeypatch.setattr(fetch, "time", SimpleNamespace(sleep=slept.append))
    assert_user_error("in 4 attempts", Fetcher(retries=3, pause=0.5).fetch, "pipe:exit 1")
    assert slept == [0.5, 1.0, 2.0]


def test_a_network_file_system_may_stumble(stored, monkeypatch):
    """Files of a directory too: EIO or ESTALE pass."""
    expected, read, failures = global_batches(stored), fetch._read, [errno.EIO, errno.ESTALE]

    def stumbling(url):
        if url.endswith("tokens-000001.tar") and failures:
            raise OSError(failures.pop(), "stumbled")
        return read(url)

    monkeypatch.setattr(fetch, "_read", stumbling)
    assert batches(stored) == expected and not failures


def test_a_missing_local_file_is_not_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "time", SimpleNamespace(sleep=lambda _: pytest.fail("slept")))
    assert_user_error(r"cannot be read \(", Fetcher().fetch, str(tmp_path / "none.tar"))


def test_the_cache_is_filled_once_and_checked(stored, served, tmp_path, caplog):
    url, _, asked = served
    cache = tmp_path / "cache"
    expected = global_batches(stored)
    assert batches(url, cache_dir=str(cache)) == expected
    files = sorted(cache.glob("*.tar"))
    assert sorted(sha256_file(path) for path in files) == [path.stem for path in files] and len(files) == len(SHARDS)
    before = sum(path.endswith(".tar") for path in asked)
    files[0].write_bytes(files[0].read_bytes()[:-700] + b"\1" * 700)  # damaged in the cache
    files[1].unlink()
    half = cache / f".{files[1].name}.123.tmp"
    half.write_bytes(b"half")  # left by a killed process of another machine, long ago
    os.utime(half, (0, 0))
    with caplog.at_level(logging.WARNING):
        assert batches(url, cache_dir=str(cache)) == expected
    assert sum(path.endswith(".tar") for path in asked) == before + 2 and "damaged and fetched again" in caplog.text
    assert sorted(cache.glob("*.tar")) == files and not list(cache.glob(".*.tmp"))


def test_two_processes_fetch_a_shard_once(stored, served, tmp_path):
    url, _, asked = served
    name, expected = "tokens-000000.tar", (stored / "train" / "tokens-000000.tar").read_bytes()
    fetcher, found = Fetcher(cache_dir=tmp_path / "cache"), []
    sha256 = sha256_file(stored / "train" / name)
    threads = [
        threading.Thread(target=lambda: found.append(fetcher.fetch(f"{url}/train/{name}", sha256))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [f.data for f in found] == [expected] * 4 and asked == [f"/train/{name}"]


def test_a_cache_that_cannot_be_written_is_done_without(stored, served, tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert batches(served[0], cache_dir=str(tmp_path / "file")) == global_batches(stored)
    assert "reading without it" in caplog.text


def test_urls():
    assert Location("data/tokens").url("train", "a.tar") == "data/tokens/train/a.tar"
    assert Location("pipe:aws s3 cp s3://b/{} -").url("val", "a.tar") == "pipe:aws s3 cp s3://b/val/a.tar -"
    assert Location("https://h/x/").url("val", "a.tar") == "https://h/x/val/a.tar"
    assert [Location(p).is_remote for p in ("data/x", "/data", "pipe:x", "https://h", "C:/x")] == [0, 0, 1, 1, 0]


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

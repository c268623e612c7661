"""Downloads over a real connection to this machine: verified, recorded, complete or absent."""

import hashlib
import http.server
import io
import threading

import numpy as np
import pytest
from helpers import assert_user_error

from aim_lightning.metrics.features import InceptionFeatures
from aim_lightning.utils.files import read_json
from aim_lightning.weights.download import DOWNLOADS, UrlFile, download

CUT = hashlib.sha256(b"x" * 510).hexdigest()


@pytest.fixture(scope="module")
def server():
    """Serve /whole, /cut (promises more than it sends) and /npz."""
    buffer = io.BytesIO()
    np.savez(buffer, mu=np.zeros(2))
    contents = {"/whole": b"weights" * 1000, "/cut": b"x" * 500, "/npz": buffer.getvalue()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = contents.get(self.path)
            self.send_response(200 if content else 404)
            self.send_header("Content-Length", str(len(content or b"") + (10 if self.path == "/cut" else 0)))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_good_file_is_recorded_and_downloaded_once(server, tmp_path):
    sha256 = hashlib.sha256(b"weights" * 1000).hexdigest()
    entry = UrlFile(f"{server}/whole", "weights/x.pth", sha256[:8])
    path = download(entry, tmp_path)
    assert path.read_bytes() == b"weights" * 1000
    assert read_json(tmp_path / "weights/x.pth.json", "record")["sha256"] == sha256
    assert download(entry, tmp_path) == path
    path.write_bytes(b"changed")
    assert_user_error("sha256 differs", download, entry, tmp_path)
    assert_user_error("records; remove both", download, UrlFile(f"{server}/whole", "weights/x.pth"), tmp_path)


CASES = [
    ("/whole", {"sha256": "00000000"}, 'expected "00000000"'),
    ("/cut", {"sha256": CUT}, "invalid hash|cannot be downloaded"),
    ("/cut", {"arrays": ("mu",)}, "no .npz file|cannot be downloaded"),
    ("/none", {}, "cannot be downloaded"),
    ("/npz", {"arrays": ("mu", "sigma")}, "holds no sigma"),
    ("/whole", {"arrays": ("mu",)}, "no .npz file"),
]


@pytest.mark.parametrize(("path", "options", "words"), CASES)
def test_a_bad_file_leaves_nothing(server, tmp_path, path, options, words):
    assert_user_error(words, download, UrlFile(server + path, "x", **options), tmp_path)
    assert not list(tmp_path.iterdir())


def test_offline_is_one_line(tmp_path, monkeypatch, fail):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(DOWNLOADS, "inception", UrlFile("http://127.0.0.1:9/weights.pth", "weights/x.pth"))
    error = fail("download", "inception")
    assert error.startswith("error: http://127.0.0.1:9/weights.pth cannot be downloaded")


def test_the_downloaded_inception_is_the_one_that_is_read():
    entry = DOWNLOADS["inception"]
    assert entry.sha256 == InceptionFeatures.SHA256 and entry.path == InceptionFeatures().weights

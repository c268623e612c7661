"""A hub with one repository on a port of this machine, for the requests of huggingface_hub."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _facts(path: Path) -> dict:
    size = path.stat().st_size
    return {"size": size, "lfs": {"sha256": _digest(path), "oid": _digest(path), "size": size, "pointerSize": 130}}


@contextmanager
def hub(repository: str, directory: Path, lie_about: str | None = None) -> Iterator[str]:
    """Serve a directory as `repository`; yields the address. The hash reported for `lie_about` is wrong."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = self.path.partition("?")[0]
            api, resolve = f"/api/models/{repository}", f"/{repository}/resolve/"
            if path == f"{api}/tree/{COMMIT}":
                files = directory.iterdir()
                self._json([{"type": "file", "path": p.name, "oid": _digest(p)[:40], **_facts(p)} for p in files])
            elif path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                siblings = [{"rfilename": p.name, **_facts(p)} for p in sorted(directory.iterdir())]
                for sibling in siblings:
                    if sibling["rfilename"] == lie_about:
                        sibling["lfs"]["sha256"] = "0" * 64
                self._json({"id": repository, "sha": COMMIT, "siblings": siblings})
            elif path.startswith(resolve) and (directory / path.rpartition("/")[2]).is_file():
                file = directory / path.rpartition("/")[2]
                self._answer(200, file.read_bytes(), {"ETag": f'"{_digest(file)}"', "X-Repo-Commit": COMMIT})
            else:
                self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def _json(self, value):
            self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _answer(self, code, body, headers):
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()

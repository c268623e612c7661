"""A hub on a port of this machine that accepts uploads as huggingface_hub sends them: repositories, LFS and commits."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_write"
COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


@dataclass
class UploadHub:
    """State of the hub: repositories with their visibility, and the files of each commit by name.

    Args:
        refuse: part of a path; requests to it are answered with status 403.
    """

    refuse: str | None = None
    endpoint: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)  # LFS content by sha256
    requests: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, body: bytes, authorization: str) -> tuple[int, dict]:
        """Return status and JSON for a request."""
        if self.refuse and self.refuse in path:
            return 403, {"error": "forbidden by the owner"}
        if method == "PUT" and path.startswith("/objects/"):  # presigned: without a token
            oid = hashlib.sha256(body).hexdigest()
            self.objects[oid] = body
            return (200, {}) if path.endswith(oid) else (400, {"error": "other content"})
        if authorization != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        repository = path.removeprefix("/api/models/").partition("/preupload")[0].partition("/commit")[0]
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/preupload/main"):
            modes = [(file["path"], "lfs" if file["path"].endswith(".safetensors") else "regular") for file in
                     json.loads(body)["files"]]  # fmt: skip
            return 200, {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes]}
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._action(item) for item in json.loads(body)["objects"]]}
        if path.endswith("/commit/main"):
            return self._commit(repository, [json.loads(line) for line in body.splitlines()])
        if repository in self.private:
            return 200, {"id": repository, "private": self.private[repository], "sha": COMMIT, "siblings": []}
        return 404, {"error": f"unexpected request {method} {path}"}

    def _create(self, request: dict) -> tuple[int, dict]:
        name = f"{request['organization']}/{request['name']}"
        if name in self.private:
            return 409, {"error": "You already created this model repo", "url": f"{self.endpoint}/{name}"}
        self.private[name] = request.get("visibility") == "private" or request.get("private") is True
        return 200, {"url": f"{self.endpoint}/{name}", "name": name}

    def _action(self, item: dict) -> dict:
        return {**item, "actions": {"upload": {"href": f"{self.endpoint}/objects/{item['oid']}", "header": {}}}}

    def _commit(self, repository: str, lines: list[dict]) -> tuple[int, dict]:
        files = {}
        for line in (line for line in lines if line["key"] != "header"):
            value = line["value"]
            assert line["key"] in ("file", "lfsFile")
            files[value["path"]] = (
                base64.b64decode(value["content"]) if line["key"] == "file" else self.objects[value["oid"]]
            )
        self.commits.append((repository, files))
        return 200, {"commitUrl": f"{self.endpoint}/{repository}/commit/{COMMIT}", "commitOid": COMMIT}


@contextmanager
def upload_hub(refuse: str | None = None) -> Iterator[UploadHub]:
    """Serve an empty hub."""
    hub = UploadHub(refuse)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            hub.requests.append(f"{self.command} {path}")
            status, value = hub.answer(self.command, path, body, self.headers.get("Authorization") or "")
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()

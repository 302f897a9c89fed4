"""A Hugging Face Hub on loopback: the endpoints that the real client calls, and faults on request.

`hf-local-hub` from PyPI was looked at: it starts a separate server binary and cannot be told to fail, so this is a
small one. It keeps repositories in memory: each commit is a full tree of files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """A repository: commits in order, names of commits, and who may read it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add files to a branch; the commit's sha."""
        tree = {**self.commits.get(self.refs.get(branch, ""), {}), **files}
        text = json.dumps({k: hashlib.sha1(v).hexdigest() for k, v in tree.items()}, sort_keys=True)
        sha = hashlib.sha1(f"{len(self.commits)} {text}".encode()).hexdigest()
        self.commits[sha] = tree
        self.refs[branch] = sha
        return sha


class Hub(ThreadingHTTPServer):
    """The server and its state.

    Attributes:
        repos: by "owner/name".
        log: "METHOD path" of every request.
        cut_after: bytes of a file after which the connection is closed, once.
        altered: names of files of which a byte is wrong on the way out.
        status: answers every request with this status.
        token: what a private repository and uploads want.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.log: list[str] = []
        self.ranges: list[str] = []
        self.cut_after: int | None = None
        self.altered: set[str] = set()
        self.status: int | None = None
        self.token = "hf_right"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serve() -> Iterator[Hub]:
    """A running hub."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.log.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.status:
            return self._send(self.server.status, {"error": "the server has a fault"})
        for pattern, handler in self.ROUTES:
            if match := re.fullmatch(pattern, path):
                return handler(self, *match.groups())
        return self._send(404, {"error": f"no route {path}"})

    def _send(self, status: int, value: object = None, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def _tree(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files; or an error has been sent."""
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not self._authorised()):
            # the Hub answers 401 for what is private and for what does not exist, so that nobody can tell
            self._send(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            self._send(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return sha, repo.commits[sha]

    def _info(self, name: str, revision: str | None = None) -> None:
        if found := self._tree(name, revision or "main"):
            sha, files = found
            siblings = [{"rfilename": f, "size": len(b)} for f, b in files.items()]
            self._send(200, {"_id": "1", "id": name, "sha": sha, "private": False, "tags": [], "downloads": 0,
                             "likes": 0, "siblings": siblings})  # fmt: skip

    def _list(self, name: str, revision: str) -> None:
        if found := self._tree(name, revision):
            entries = [{"type": "file", "path": f, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                       for f, b in found[1].items()]  # fmt: skip
            self._send(200, entries)

    def _resolve(self, name: str, revision: str, file: str) -> None:
        found = self._tree(name, revision)
        if found is None:
            return None
        sha, files = found
        if file not in files:
            return self._send(
                404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            )
        data = files[file]
        etag = hashlib.sha256(data).hexdigest()
        if file in self.server.altered:
            data = data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        status, total, first = 200, len(data), 0
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            self.server.ranges.append(self.headers["Range"])
            first, last = int(wanted[1]), min(int(wanted[2] or total - 1), total - 1)
            status, data = 206, data[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{total}"
        cut = self.server.cut_after
        if cut is not None and self.command == "GET" and len(data) > cut:
            self.server.cut_after = None
            self.send_response(status)
            for key, text in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, text)
            self.end_headers()
            self.wfile.write(data[:cut])
            self.wfile.flush()
            self.close_connection = True
            return self.connection.shutdown(2)
        return self._send(status, data, headers)

    def _create(self) -> None:
        if not self._authorised():
            return self._send(401, {"error": "Invalid username or password."})
        value = json.loads(self.body)
        name = f"{value['organization']}/{value['name']}" if value.get("organization") else value["name"]
        status = 409 if name in self.server.repos else 200
        self.server.repos.setdefault(
            name, Repo(private=bool(value.get("private") or value.get("visibility") == "private"))
        )
        return self._send(status, {"url": f"{self.server.url}/{name}", "name": name, "id": name})

    def _yaml(self) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def _preupload(self, name: str, revision: str) -> None:
        files = [{"path": f["path"], "shouldIgnore": False,
                  "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                 for f in json.loads(self.body)["files"]]  # fmt: skip
        self._send(200, {"files": files})

    def _batch(self, name: str) -> None:
        objects = [{"oid": o["oid"], "size": o["size"],
                    "actions": {"upload": {"href": f"{self.server.url}/blobs/{o['oid']}"}}}
                   for o in json.loads(self.body)["objects"]]  # fmt: skip
        self._send(200, {"transfer": "basic", "objects": objects})

    def _blob(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._send(400, {"error": "sha256 does not match"})
        self.server.blobs[oid] = self.body
        return self._send(200, {})

    def _commit(self, name: str, revision: str) -> None:
        if not self._authorised():
            return self._send(401, {"error": "Invalid username or password."})
        files = {}
        for line in self.body.decode().splitlines():
            value = json.loads(line)
            if value["key"] == "file":
                files[value["value"]["path"]] = base64.b64decode(value["value"]["content"])
            elif value["key"] == "lfsFile":
                files[value["value"]["path"]] = self.server.blobs[value["value"]["oid"]]
        sha = self.server.repos[name].commit(files, revision)
        url = f"{self.server.url}/{name}/commit/{sha}"
        return self._send(200, {"success": True, "commitOid": sha, "commitUrl": url})

    ROUTES = (
        (r"/api/models/([^/]+/[^/]+)", _info),
        (r"/api/models/([^/]+/[^/]+)/revision/(.+)", _info),
        (r"/api/models/([^/]+/[^/]+)/tree/([^/]+).*", _list),
        (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", _resolve),
        (r"/api/repos/create", _create),
        (r"/api/validate-yaml", _yaml),
        (r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", _preupload),
        (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", _batch),
        (r"/blobs/([0-9a-f]+)", _blob),
        (r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", _commit),
    )

"""Serve a study on this computer alone: the page, its images, and answers that are on the disk before they are confirmed.

    GET  /api/state?reader=R     how far a reader is
    POST /api/answer             {"study", "reader", "phase", "item", "answer"} -> {"saved": count}
    POST /api/finish             {"reader", "export"} -> {"saved": count, "sha256"}
    GET  /phase2.js?reader=R     403 until phase 1 of that reader is complete

It listens on 127.0.0.1 and has no password: who may log in to this computer may read, and answer as anybody. Another
computer gets in through a tunnel (``ssh -L 8765:127.0.0.1:8765``), never directly.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kecae_training.reader_study.canonical import FormatError, parse_json
from kecae_training.reader_study.folder import PHASE2, Folder, open_folder
from kecae_training.reader_study.store import AnswerStore, RefusedError

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
LARGEST = 64 * 1024  # bytes of an answer
ITEM_LARGEST = 2 * LARGEST  # bytes of an item in a finished study: its answer, its place in the order
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class StudyServer(ThreadingHTTPServer):
    """A study and its answers behind 127.0.0.1.

    Args:
        opened: the study.
        store: of the answers.
        port: 0 takes a free one; ``server_port`` says which.
    """

    daemon_threads = True

    def __init__(self, opened: Folder, store: AnswerStore, port: int) -> None:
        self.opened, self.store = opened, store
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no error; anything else is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def open_server(
    folder: Path, answers: Path, port: int = 8765, warn: Callable[[str], None] | None = None
) -> StudyServer:
    """A server that is bound, but does not serve yet.

    Args:
        folder: of the study.
        answers: folder of the answers, made if it is not there.
        port: of 127.0.0.1.
        warn: gets a line for what was wrong in answers; to the standard error by default.

    Raises:
        ValueError: a folder that is no intact study, or answers inside it.
        OSError: a port that is taken.
    """
    opened = open_folder(folder)
    if answers.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"answers={str(answers)!r}: inside the study's folder; readers' answers go elsewhere"
        )
    if not 0 <= port < 2**16:
        raise ValueError(f"port={port}: accepted are 0 to 65535")
    store = AnswerStore(
        answers, opened.study, warn or (lambda line: print(line, file=sys.stderr, flush=True))
    )
    try:
        return StudyServer(opened, store, port)
    except OSError as error:
        raise OSError(f"port={port}: {error.strerror}; give another --port, 0 takes a free one") from None


def serve(folder: Path, answers: Path, port: int = 8765) -> None:
    """Serve until interrupted, and print where; see :func:`open_server`."""
    with open_server(folder, answers, port) as server:
        address = f"http://127.0.0.1:{server.server_port}/"
        print(f"{address}  (answers go to {answers}; Ctrl-C ends, nothing is lost)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(f"stopped; the answers are in {answers}", flush=True)


class _Handler(BaseHTTPRequestHandler):
    server: StudyServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "kecae-aug", ""
    timeout = 60  # seconds without a byte

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for every image helps nobody, and names readers."""

    def _answer(self, work: Callable[[], None]) -> None:
        """Do it; whatever is refused or fails is answered as JSON."""
        try:
            self._check_host()
            work()
        except RefusedError as error:
            self._json(error.status, {"error": str(error)})
        except OSError as error:
            if isinstance(error, ConnectionError | TimeoutError):
                raise
            print(f"{self.command} {urlsplit(self.path).path}: {error}", file=sys.stderr, flush=True)
            if error.errno in FULL:
                self._json(507, {"error": "not saved: the disk is full; make room, the page sends it again"})
            else:
                self._json(500, {"error": f"the server could not read or write: {error.strerror}"})

    def _check_host(self) -> None:
        """Refuse other names than loopback's: a page elsewhere may give this address a name of its own."""
        host = self.headers.get("Host", "")
        if host.rpartition(":")[0] not in LOOPBACK and host not in LOOPBACK:
            raise RefusedError(403, f"Host {host!r}: accepted is 127.0.0.1 or localhost")
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            raise RefusedError(403, f"Origin {origin!r}: accepted is this server's own page")

    def _get(self) -> None:
        url = urlsplit(self.path)
        name = url.path.removeprefix("/") or "index.html"
        reader = parse_qs(url.query).get("reader", [""])[-1]
        if name == "api/state":
            state = self.server.store.state(reader)
            self._json(200, {"study": self.server.opened.study["id"], **vars(state)})
            return
        path = self.server.opened.files.get(name)  # the name as it is: nothing can lead out of this list
        if path is None:
            raise RefusedError(404, f"{url.path}: no file of this study")
        if name == PHASE2:
            self.server.store.open_phase2(reader)
        self._send(200, TYPES[path.suffix], path.read_bytes())

    def _post(self) -> None:
        store = self.server.store
        if self.path == "/api/answer":
            given = self._body(LARGEST, ("study", "reader", "phase", "item", "answer"))
            if given["study"] != self.server.opened.study["id"]:
                raise RefusedError(409, "the answer is to another study; reload the page")
            count = store.save(given["reader"], given["phase"], given["item"], given["answer"])
            self._json(200, {"saved": count})
        elif self.path == "/api/finish":
            items = len(store.scope.phase1) + len(store.scope.phase2)
            given = self._body(LARGEST + items * ITEM_LARGEST, ("reader", "export"))
            count = store.finish(given["reader"], given["export"])
            self._json(200, {"saved": count, "sha256": given["export"]["sha256"]})
        else:
            self.close_connection = True  # its body is not read
            raise RefusedError(404, f"{self.path}: accepted are /api/answer and /api/finish")

    def _body(self, largest: int, names: tuple[str, ...]) -> dict[str, Any]:
        """The request's object, with exactly these fields."""
        length, kind = self.headers.get("Content-Length", ""), self.headers.get_content_type()
        self.close_connection = True  # unless the body is read: what follows is not ours to read
        if kind != "application/json":  # a form of another page can send anything but this without asking
            raise RefusedError(400, f"Content-Type {kind!r}: accepted is application/json")
        if not (length.isascii() and length.isdigit() and len(length) < 12):
            raise RefusedError(400, "Content-Length: accepted is a number of bytes")
        if int(length) > largest:
            raise RefusedError(400, f"{length} bytes: accepted are up to {largest}; shorten the remark")
        raw = self.rfile.read(int(length))
        if len(raw) < int(length):
            raise RefusedError(400, "the request ended early")
        self.close_connection = False
        try:
            value = parse_json(raw, "request")
        except FormatError as error:
            raise RefusedError(400, str(error)) from None
        if not isinstance(value, dict) or set(value) != set(names):
            raise RefusedError(400, f"request: accepted is an object with {', '.join(names)}")
        return value

    def _json(self, status: int, value: dict[str, Any]) -> None:
        self._send(status, TYPES[".json"], json.dumps(value).encode())

    def _send(self, status: int, kind: str, raw: bytes) -> None:
        self.send_response(status)
        for name, text in {"Content-Type": kind, "Content-Length": str(len(raw)), **HEADERS}.items():
            self.send_header(name, text)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(raw)

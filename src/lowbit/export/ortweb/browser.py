"""The page's model in headless Chromium, asked over loopback: what the browser's own WebAssembly makes of it."""

from __future__ import annotations

import json
import os
import queue
import secrets
import shutil
import struct
import subprocess
import tempfile
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from lowbit.errors import RunError
from lowbit.types import Array, Feeds

SECONDS = 120.0
"""After which a browser that does not answer is given up."""

_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-first-run",
)
_TYPES = {".mjs": "text/javascript", ".wasm": "application/wasm", ".json": "application/json", ".html": "text/html; charset=utf-8"}
_SCRIPT = Path(__file__).with_name("answer_browser.mjs")


def chromium() -> str | None:
    """The browser's program; None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """Chromium with a folder's model loaded."""

    def __init__(self, folder: Path) -> None:
        """Starts it and waits until the model is loaded.

        Args:
            folder: What the target wrote, with onnxruntime-web in it.

        Raises:
            RunError: there is no browser, or the model does not load in it.
        """
        program = chromium()
        if program is None:
            raise RunError("Chromium is not installed.", "Install it, e.g. apt-get install chromium.")
        self._desk = _Desk(folder)
        self._profile = tempfile.TemporaryDirectory(prefix="lowbit-chromium-", ignore_cleanup_errors=True)
        threading.Thread(target=self._desk.serve_forever, daemon=True).start()
        # Chromium's sandbox does not start for root; the page is ours, and it reaches loopback alone.
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        command = [program, *_FLAGS, *sandbox, f"--user-data-dir={self._profile.name}", self._desk.address]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self._answer()
        except RunError:
            self.close()
            raise

    def ask(self, feeds: Feeds) -> dict[str, Array]:
        """Answers samples.

        Raises:
            RunError: the model fails, or the browser is gone.
        """
        if self._process.poll() is not None:
            raise RunError("The browser is closed.", "Open it again.")
        self._desk.questions.put(_pack(feeds))
        return _unpack(self._answer())

    def close(self) -> None:
        """Ends the browser; closing twice is fine."""
        self._desk.questions.put(b"")
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._desk.shutdown()
        self._desk.server_close()
        self._profile.cleanup()

    def _answer(self) -> bytes:
        try:
            body = self._desk.answers.get(timeout=SECONDS)
        except queue.Empty:
            raise RunError(f"The browser has not answered within {SECONDS:g} s.") from None
        if body.startswith(b'{"error"'):
            raise RunError(f"onnxruntime-web failed: {json.loads(body)['error']}")
        return body


class _Desk(ThreadingHTTPServer):
    """Hands out the page's files, questions, and takes answers; under a path that nobody else knows."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.secret = folder.resolve(), secrets.token_urlsafe(16)
        self.questions: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{self.secret}/"


class _Handler(BaseHTTPRequestHandler):
    server: _Desk

    def do_GET(self) -> None:
        match self.path.removeprefix(f"/{self.server.secret}"):
            case "/":
                self._give(b'<!doctype html><script type="module" src="answer.mjs"></script>', ".html")
            case "/answer.mjs":
                self._give(_SCRIPT.read_bytes(), ".mjs")
            case "/next":
                self._question()
            case path:
                self._file(path)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.removeprefix(f"/{self.server.secret}") in ("/ready", "/answer", "/failed"):
            self.server.answers.put(body)
            self._give(b"", ".json")
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _question(self) -> None:
        try:
            question = self.server.questions.get(timeout=20)
        except queue.Empty:
            self._give(b"", ".bin", 204)
            return
        self._give(question, ".bin", 200 if question else 410)

    def _file(self, asked: str) -> None:
        """A file of the folder, under /page/."""
        path = (self.server.folder / asked.removeprefix("/page/")).resolve()
        if asked.startswith("/page/") and path.is_relative_to(self.server.folder) and path.is_file():
            self._give(path.read_bytes(), path.suffix)
        else:
            self.send_error(404)

    def _give(self, body: bytes, suffix: str, status: int = 200) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            self.send_header("Content-Type", _TYPES.get(suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)


def _pack(feeds: Feeds) -> bytes:
    arrays = {name: np.ascontiguousarray(values) for name, values in feeds.items()}
    described = [
        {"name": name, "shape": list(array.shape), "dtype": array.dtype.name, "bytes": array.nbytes} for name, array in arrays.items()
    ]
    header = json.dumps({"arrays": described}).encode()
    return b"".join([struct.pack("<I", len(header)), header, *(array.tobytes() for array in arrays.values())])


def _unpack(body: bytes) -> dict[str, Array]:
    (length,) = struct.unpack_from("<I", body)
    at, found = 4 + length, {}
    for entry in json.loads(body[4:at])["arrays"]:
        dtype = np.dtype(entry["dtype"])
        found[entry["name"]] = np.frombuffer(body, dtype, entry["bytes"] // dtype.itemsize, at).reshape(entry["shape"]).copy()
        at += entry["bytes"]
    return found

"""A Hugging Face hub of our own: the requests that the client makes for a public model, and a log of them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves the folder ``root``/org/name as the model and dataset org/name at COMMIT (and at its branch "main").

    Other revisions, such as "refs/pr/1", are those that ``branches`` names; ``discussions`` are the repositories' pull
    requests, as the hub lists them. Files whose names end as one of ``large`` are in large file storage. Of paths that
    begin with a key of ``fails`` the answer is its status, and of those with a key of ``moved`` where to ask instead.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.branches = {"main"}
        self.discussions: list[dict] = []
        self.requests: list[str] = []
        self.large: tuple[str, ...] = ("of none",)
        self.fails: dict[str, int] = {}
        self.moved: dict[str, str] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self, with_body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, with_body=False)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def hashes(self, path: Path) -> dict:
        """What the hub says of a file of a dataset: of one in large file storage, as Parquet, its sha256 too."""
        content = path.read_bytes()
        size, sha256 = len(content), hashlib.sha256(content).hexdigest()
        lfs = {"lfs": {"size": size, "sha256": sha256, "pointerSize": 130}} if path.suffix == ".parquet" else {}
        return {"size": size, "blobId": hashlib.sha1(b"blob %d\0%s" % (size, content)).hexdigest(), **lfs}

    def stored(self, path: Path) -> dict:
        """What the list of a model's files says of one in large file storage."""
        if not path.name.endswith(self.large):
            return {}
        content = path.read_bytes()
        return {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}}

    def answer(self, request: BaseHTTPRequestHandler, with_body: bool) -> None:
        self.requests.append(f"{request.command} {request.path}")
        status = next((status for start, status in self.fails.items() if request.path.startswith(start)), None)
        if status:
            request.send_error(status)
            return
        if old := next((old for old in self.moved if old in request.path), None):
            request.send_response(307)
            request.send_header("Location", request.path.replace(old, self.moved[old]))
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        parts = [unquote(part) for part in request.path.split("?")[0].strip("/").removeprefix("datasets/").split("/")]
        if len(parts) < 4:  # something else than a model
            request.send_error(404)
            return
        if parts[:2] == ["api", "datasets"]:
            repo, revision, file = self.root / parts[2] / parts[3], parts[5] if len(parts) > 5 else "main", None
            files = [p for p in sorted(repo.rglob("*")) if p.is_file()]
            siblings = [{"rfilename": str(p.relative_to(repo)), **self.hashes(p)} for p in files]
            body = json.dumps({"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings}).encode()
        elif parts[:2] == ["api", "models"] and parts[4:] == ["discussions"]:
            body = json.dumps({"discussions": self.discussions, "count": len(self.discussions), "start": 0}).encode()
            repo, revision, file = self.root / parts[2] / parts[3], "main", None
        elif parts[:2] == ["api", "models"]:
            repo, revision = self.root / parts[2] / parts[3], parts[5] if len(parts) > 5 else "main"
            files = [p for p in sorted(repo.rglob("*")) if p.is_file()]
            paths = [str(p.relative_to(repo)) for p in files]
            info = {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": [{"rfilename": path} for path in paths]}
            tree = [
                {
                    "type": "file",
                    "path": path,
                    "size": p.stat().st_size,
                    "oid": hashlib.sha1(p.read_bytes()).hexdigest(),
                    **self.stored(p),
                }
                for path, p in zip(paths, files, strict=True)
            ]
            body = json.dumps(tree if parts[4:5] == ["tree"] else info).encode()
            file = None
        else:
            repo, revision = self.root / parts[0] / parts[1], parts[3]
            file = repo.joinpath(*parts[4:])
            body = file.read_bytes() if file.is_file() else b""
        error = None
        if not repo.is_dir():
            error = "RepoNotFound"
        elif revision not in {COMMIT, *self.branches}:
            error = "RevisionNotFound"
        elif file is not None and not file.is_file():
            error = "EntryNotFound"
        request.send_response(404 if error else 200)
        if error:
            request.send_header("X-Error-Code", error)
            body = b""
        request.send_header("X-Repo-Commit", COMMIT)
        digest = hashlib.sha256 if file is not None and file.name.endswith(self.large) else hashlib.sha1
        request.send_header("ETag", f'"{digest(body).hexdigest()}"')
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if with_body:
            request.wfile.write(body)


@contextmanager
def running(hub: Any) -> Iterator[Any]:
    """A hub that answers in a thread of its own."""
    threading.Thread(target=hub.server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()


def serving(root: Path) -> AbstractContextManager[Hub]:
    return running(Hub(root))

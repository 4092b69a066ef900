"""A Hugging Face hub to push to: repositories in memory, what the client sends for a commit, and a log of it all."""

from __future__ import annotations

import base64
import dataclasses
import fnmatch
import hashlib
import json
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub import running

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"


@dataclasses.dataclass
class Repository:
    """Branches, and pull requests, each the files of its last commit; ``ignored`` are its .gitignore's patterns."""

    private: bool
    branches: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=lambda: {"main": {".gitattributes": b""}})
    ignored: tuple[str, ...] = ()


class WritableHub:
    """``fails`` gives a path's beginning and the status and body that are answered there."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.log: list[tuple[str, str, bytes]] = []
        self.fails: tuple[str, int, dict[str, Any]] | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do(self) -> None:
                hub.handle(self)

            do_GET = do_POST = do_PUT = do

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        path, query = urlsplit(request.path).path, parse_qs(urlsplit(request.path).query)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.log.append((request.command, path, body))
        allowed = request.headers.get("Authorization") == f"Bearer {TOKEN}" or path.startswith("/lfs/")
        status, answer = (401, {"error": "Invalid username or password."})
        if self.fails and path.startswith(self.fails[0]):
            status, answer = self.fails[1:]
        elif allowed:
            status, answer = self.answer(request.command, path, query, body)
        content = json.dumps(answer).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[0] == "lfs":
            self.objects[parts[1]] = body
            return 200, {}
        if parts[:2] == ["api", "validate-yaml"]:
            return 200, {"errors": [], "warnings": []}
        if parts[:3] == ["api", "repos", "create"]:
            return self.create(json.loads(body))
        if parts[0] != "api":  # owner/name.git/info/lfs/objects/batch
            return 200, {"transfer": "basic", "objects": [self.upload(each) for each in json.loads(body)["objects"]]}
        name, verb = "/".join(parts[2:4]), parts[4] if len(parts) > 4 else "info"
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        repository, branch = self.repositories[name], parts[5] if len(parts) > 5 else "main"
        if verb == "branch":
            fresh = branch not in repository.branches
            repository.branches.setdefault(branch, dict(repository.branches["main"]))
            return (200, {}) if fresh else (409, {"error": "Reference already exists"})
        if branch not in repository.branches:
            return 404, {"error": "Revision not found"}
        files = repository.branches[branch]
        if verb == "preupload":
            return 200, {"files": [self.mode(repository, each) for each in json.loads(body)["files"]]}
        if verb == "commit":
            return self.commit(name, branch, [json.loads(line) for line in body.splitlines()], "create_pr" in query)
        if verb == "tree":
            listed = [{"type": "file", "path": path, "size": len(data), "oid": "0"} for path, data in files.items()]
            return 200, listed
        siblings = [{"rfilename": path} for path in files]
        return 200, {"id": name, "sha": "f" * 40, "private": repository.private, "siblings": siblings}

    def create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
        self.repositories[name] = Repository(asked.get("visibility") == "private" or bool(asked.get("private")))
        return 200, {"url": f"{self.url}/{name}"}

    def upload(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {**asked, "actions": {"upload": {"href": f"{self.url}/lfs/{asked['oid']}"}}}

    def mode(self, repository: Repository, asked: dict[str, Any]) -> dict[str, Any]:
        large = asked["path"].endswith((".safetensors", ".onnx"))
        ignored = any(fnmatch.fnmatch(asked["path"], pattern) for pattern in repository.ignored)
        return {"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": ignored}

    def commit(self, name: str, branch: str, lines: list[dict[str, Any]], proposed: bool) -> tuple[int, Any]:
        files = dict(self.repositories[name].branches[branch])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
                assert hashlib.sha256(files[value["path"]]).hexdigest() == value["oid"]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = hashlib.sha1(repr(sorted(files)).encode()).hexdigest()
        target = "refs/pr/1" if proposed else branch
        self.repositories[name].branches |= {target: files, commit: files}
        url = f"{self.url}/{name}"
        return 200, {"success": True, "commitUrl": f"{url}/commit/{commit}", "commitOid": commit,
                     "pullRequestUrl": f"{url}/discussions/1" if proposed else None}  # fmt: skip


def writable() -> AbstractContextManager[WritableHub]:
    return running(WritableHub())

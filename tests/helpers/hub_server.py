"""A model hub in memory, which answers the requests of huggingface_hub that make a repository and commit files to it."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

LARGE = (".safetensors", ".parquet")


@dataclass
class Repository:
    """A repository's files, whether it is private, and its commits: the files that each changed."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)


class Hub(ThreadingHTTPServer):
    """`repositories` by kind and name ("models/me/ual"), `tokens` that requests came with; `refuses`: with status 403."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuses = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        if self.server.refuses:
            self.refuse()
            return
        repository = self.repository()
        siblings = [{"rfilename": name} for name in repository.files]
        self.answer({"id": "me/ual", "sha": "0" * 40, "private": repository.private, "siblings": siblings})

    def do_PUT(self) -> None:
        content = self.body()
        self.server.objects[hashlib.sha256(content).hexdigest()] = content
        self.answer({})

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self.body()
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.refuses:
            self.refuse()
        elif path == "/api/repos/create":
            asked = json.loads(body)
            kind = asked.get("type", "model")
            private = asked.get("private", asked.get("visibility") == "private")
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repositories.setdefault(f"{kind}s/{name}", Repository(private))
            self.answer({"url": f"{self.server.url}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self.answer({})
        elif "/preupload/" in path:
            self.answer({"files": [self.planned(file) for file in json.loads(body)["files"]]})
        elif path.endswith("/info/lfs/objects/batch"):
            self.answer({"transfer": "basic", "objects": [self.transfer(entry) for entry in json.loads(body)["objects"]]})
        else:
            self.commit([json.loads(line) for line in body.splitlines()])

    def refuse(self) -> None:
        self.answer({"error": f"no write access with {self.headers.get('Authorization')}"}, 403)

    def planned(self, file: dict[str, Any]) -> dict[str, Any]:
        name, kept = file["path"], self.repository().files.get(file["path"])
        large = name.endswith(LARGE)
        oid = None
        if kept is not None:
            oid = hashlib.sha256(kept).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()
        return {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def transfer(self, entry: dict[str, Any]) -> dict[str, Any]:
        return {**entry, "actions": {"upload": {"href": f"{self.server.url}/objects/{entry['oid']}"}}}

    def commit(self, entries: list[dict[str, Any]]) -> None:
        repository, changed = self.repository(), []
        for entry in entries[1:]:
            value = entry["value"]
            changed.append(value["path"])
            if entry["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repository.files[value["path"]] = self.server.objects[value["oid"]]
            else:
                assert entry["key"] == "deletedFile"
                del repository.files[value["path"]]
        repository.commits.append(changed)
        self.answer({"commitUrl": f"{self.server.url}/me/ual/commit/1", "commitOid": "0" * 40})

    def repository(self) -> Repository:
        kind, owner, name = urlsplit(self.path).path.split("/")[2:5]
        return self.server.repositories[f"{kind}/{owner}/{name}"]

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, content: dict[str, Any], status: int = 200) -> None:
        raw = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

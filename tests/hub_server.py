"""As much of the Hugging Face hub's protocol as huggingface_hub needs to upload and download small models."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_test"


class Hub(ThreadingHTTPServer):
    """A hub at ``url``; ``repos`` has the files of every repository, and ``asked`` what was asked of it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []

    def use(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Let huggingface_hub in this process, which may have read its environment before, take this one for the hub."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)

    def sha(self, repo: str) -> str:
        files = sorted(self.repos[repo].items())
        return hashlib.sha1(json.dumps([[name, _oid(data)] for name, data in files]).encode()).hexdigest()


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


def _oid(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def _answer(self, status: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _parts(self) -> list[str]:
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {path}")
        return [unquote(part) for part in path.strip("/").split("/")]

    def do_GET(self) -> None:
        match self._parts():
            case ["api", "models", owner, name, *rest] if (repo := f"{owner}/{name}") in self.server.repos:
                files, sha = self.server.repos[repo], self.server.sha(repo)
                if rest[:1] == ["tree"]:
                    entries = [
                        {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
                        for path, data in files.items()
                    ]
                    self._answer(200, entries)
                elif rest[1:] in ([], ["main"], [sha]):
                    self._answer(200, {"id": repo, "sha": sha, "siblings": [{"rfilename": path} for path in files]})
                else:
                    self._answer(404, {"error": "no such revision"}, X_Error_Code="RevisionNotFound")
            case [owner, name, "resolve", _, file] if file in self.server.repos.get(repo := f"{owner}/{name}", {}):
                data = self.server.repos[repo][file]
                self._answer(200, data, ETag=f'"{_oid(data)}"', X_Repo_Commit=self.server.sha(repo))
            case _:
                self._answer(404, {"error": "no such repository"}, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        parts, data = self._parts(), self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(401, {"error": "log in first"})
            return
        match parts:
            case ["api", "repos", "create"]:
                asked = json.loads(data)
                repo = f"{asked['organization']}/{asked['name']}"
                if repo in self.server.repos:
                    self._answer(409, {"error": "it is there", "url": f"{self.server.url}/{repo}"})
                    return
                self.server.repos[repo], self.server.private[repo] = {}, asked.get("visibility") == "private"
                self._answer(200, {"url": f"{self.server.url}/{repo}", "id": repo})
            case ["api", "validate-yaml"]:
                self._answer(200, {"errors": [], "warnings": []})
            case ["api", "models", _, _, "preupload", "main"]:
                files = json.loads(data)["files"]
                modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
                self._answer(200, {"files": modes})
            case ["api", "models", owner, name, "commit", "main"]:
                repo = f"{owner}/{name}"
                for line in map(json.loads, data.splitlines()):
                    if line["key"] == "file":
                        self.server.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                sha = self.server.sha(repo)
                self._answer(200, {"commitUrl": f"{self.server.url}/{repo}/commit/{sha}", "commitOid": sha})
            case _:
                self._answer(404, {"error": self.path})

    def log_message(self, *_: object) -> None:
        """Say nothing."""

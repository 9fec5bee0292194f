"""A stand-in for the Hugging Face Hub on loopback: what huggingface_hub asks, to fetch and to send.

It keeps repositories in memory, as branches of commits, and answers as the Hub does: with its headers, and
with the codes of errors by which the package tells one from another.
"""

import base64
import contextlib
import dataclasses
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_test"


@dataclasses.dataclass
class Repository:
    """Files by name of each commit, commits by branch; who may read them."""

    commits: dict = dataclasses.field(default_factory=dict)
    branches: dict = dataclasses.field(default_factory=dict)
    messages: list = dataclasses.field(default_factory=list)
    private: bool = False
    gated: bool = False

    def commit(self, files, branch="main", message=""):
        """A new commit of all these files; returns its name."""
        name = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[name], self.branches[branch] = dict(files), name
        self.messages.append(message)
        return name

    @property
    def files(self):
        return self.commits[self.branches["main"]]

    def find(self, revision):
        return self.branches.get(revision, revision if revision in self.commits else None)


@dataclasses.dataclass
class Hub:
    """``asked`` has (method, path, token) of every request; ``broken`` is a status for all of them.

    ``wrong_card`` is what is wrong with every card.
    """

    address: str = ""
    repositories: dict = dataclasses.field(default_factory=dict)
    stored: dict = dataclasses.field(default_factory=dict)
    asked: list = dataclasses.field(default_factory=list)
    broken: int | None = None
    wrong_card: str | None = None

    def add(self, name, files=None, **options):
        self.repositories[name] = repository = Repository(**options)
        repository.commit(files or {})
        return repository


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self, status=200, body=b"", code=None, message=None, **headers):
        self.send_response(status)
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {
            "X-Error-Code": code,
            "X-Error-Message": message,
            "Content-Length": str(len(body)),
            **headers,
        }
        for name, value in named.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _all(self):
        hub = self.server.hub
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while (size := int(self.rfile.readline(), 16)) or self.rfile.readline() is None:
                body += self.rfile.read(size)
                self.rfile.readline()
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        hub.asked.append((self.command, path, token))
        if hub.broken:
            self._answer(hub.broken, message="out of order")
        elif found := re.fullmatch(r"/api/repos/create", path):
            self._create(json.loads(body), token)
        elif path == "/api/validate-yaml":
            wrong = [{"message": hub.wrong_card}] if hub.wrong_card else []
            self._answer(400 if wrong else 200, {"errors": wrong, "warnings": []})
        elif found := re.fullmatch(r"/put/(\w+)", path):
            hub.stored[found[1]] = body
            self._answer()
        elif found := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            objects = [
                {**{k: o[k] for k in ("oid", "size")},
                 "actions": {"upload": {"href": f"{hub.address}/put/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]  # fmt: skip
            self._answer(body={"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+?)(?:/(\w+)/(.+))?", path):
            if (repository := self._open(found[1], token)) is not None:
                self._api(repository, found[1], found[2], found[3], body, parse_qs(parts.query), token)
        elif found := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)", path):
            if (repository := self._open(found[1], token)) is not None:
                self._file(repository, found[2], found[3])
        else:
            self._answer(404, message=f"the stand-in has no {path}")

    do_GET = do_HEAD = do_POST = do_PUT = _all

    def _open(self, name, token):
        repository = self.server.hub.repositories.get(name)
        if repository is None or (repository.private and token != TOKEN):
            self._answer(404 if token == TOKEN else 401, code="RepoNotFound", message="Repository not found")
            return None
        if repository.gated and token != TOKEN:
            self._answer(401, code="GatedRepo", message=f"Access to model {name} is restricted")
            return None
        return repository

    def _file(self, repository, revision, file):
        commit = repository.find(revision)
        if commit is None:
            self._answer(404, code="RevisionNotFound", message=f"Invalid rev id: {revision}")
        elif file not in repository.commits[commit]:
            self._answer(404, code="EntryNotFound", message="Entry not found", X_Repo_Commit=commit)
        else:
            content = repository.commits[commit][file]
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            self._answer(200, content, X_Repo_Commit=commit, ETag=tag, X_Linked_Size=str(len(content)))

    def _api(self, repository, name, what, rest, body, query, token):
        if what in ("preupload", "commit") and token != TOKEN:
            self._answer(403, message="you may not write here")
        elif what == "preupload":
            files = [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in json.loads(body)["files"]
            ]  # fmt: skip
            self._answer(body={"files": files})
        elif what == "commit":
            self._commit(repository, name, rest, body, query)
        elif (commit := repository.find(rest or "main")) is None:
            self._answer(404, code="RevisionNotFound", message=f"Invalid rev id: {rest}")
        elif what == "tree":
            self._answer(body=[
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in repository.commits[commit].items()
            ])  # fmt: skip
        else:
            files = [{"rfilename": path} for path in repository.commits[commit]]
            self._answer(body={"id": name, "sha": commit, "siblings": files, "private": repository.private})

    def _create(self, asked, token):
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if token != TOKEN:
            self._answer(401, message="Invalid username or password.")
            return
        new = name not in self.server.hub.repositories
        if new:
            self.server.hub.add(
                name, private=bool(asked.get("private")) or asked.get("visibility") == "private"
            )
        url = f"{self.server.hub.address}/{name}"
        self._answer(200 if new else 409, {"url": url, "name": name, "id": name})

    def _commit(self, repository, name, branch, body, query):
        lines = [json.loads(line) for line in body.splitlines()]
        (header,) = (line["value"] for line in lines if line["key"] == "header")
        files = dict(repository.commits[repository.branches.get(branch, repository.branches["main"])])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.hub.stored[value["oid"]]
        proposed = query.get("create_pr") == ["1"]
        branch = "refs/pr/1" if proposed else branch
        made = repository.commit(files, branch, header["summary"])
        url = f"{self.server.hub.address}/{name}/commit/{made}"
        more = {"pullRequestUrl": f"{self.server.hub.address}/{name}/discussions/1"} if proposed else {}
        self._answer(body={"commitUrl": url, "commitOid": made, "success": True, **more})


@contextlib.contextmanager
def serve():
    """A Hub with its ``address`` set, for as long as the context lasts."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        server.hub = hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()

"""A Hub on this machine: as much of its API as publishing and loading a model need, and faults on demand.

`rules` are asked before each request: the first that fits decides it, `times` times. What it keeps is there to be
looked at: repositories with their commits, and the large files that have arrived.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

TOKEN, USER, ORGANISATION = "hf_a-token-nobody-may-see", "ann", "lab"
FIRST = "0" * 39 + "1"
LARGE = (".safetensors", ".bin")


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Rule:
    """What becomes of requests of this method whose path matches: a status, or the connection is dropped (0)."""

    method: str
    path: str
    status: int
    message: str = ""
    times: int = 10**9


@dataclass
class Repo:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {FIRST: {".gitattributes": b"*"}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": FIRST})
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        return (
            self.branches.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)
        )

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """What a user sees there."""
        return {path: data for path, data in self.commits[self.commit(revision)].items() if path[0] != "."}


@dataclass
class Hub:
    repos: dict[str, Repo] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    slow: threading.Event | None = None
    """While it is not set, large files are taken and nothing is answered."""
    url: str = ""

    def put(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """A commit by somebody else."""
        one = self.repos.setdefault(repo, Repo(private=True))
        sha = hashlib.sha1(repr((sorted(files.items()), len(one.commits))).encode()).hexdigest()
        one.commits[sha] = files
        one.branches[branch] = sha
        return sha

    def sent(self, method: str, path: str) -> int:
        """Requests that were made."""
        return sum(bool(re.match(f"{method} .*{path}", one)) for one in self.asked)


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        path, _, query = self.path.partition("?")
        self.hub.asked.append(f"{self.command} {path}")
        for rule in self.hub.rules:
            if rule.times and rule.method == self.command and re.search(rule.path, path):
                rule.times -= 1
                if rule.status == 0:
                    self.rfile.read(length // 2)
                    self.close_connection = True
                    self.connection.close()
                    return
                self.rfile.read(length)
                self.answer({"error": rule.message or "no"}, rule.status)
                return
        body = self.rfile.read(length) if "chunked" not in self.headers.get("Transfer-Encoding", "") else self.chunks()
        if path.startswith("/lfs/"):
            self.large_file(path.rpartition("/")[2], body)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid credentials"}, 401)
        else:
            self.route(path, query, body)

    do_GET = do_POST = do_PUT = do_HEAD = handle_any

    def chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, body: object, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if not isinstance(body, bytes):
            self.send_header("Content-Type", "application/json")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def large_file(self, oid: str, body: bytes) -> None:
        if self.command == "PUT":
            assert hashlib.sha256(body).hexdigest() == oid
            self.hub.large[oid] = body
            if self.hub.slow is not None:
                self.hub.slow.wait(60)
        self.answer({})

    def route(self, path: str, query: str, body: bytes) -> None:
        if path == "/api/whoami-v2":
            return self.answer({"name": USER, "type": "user", "orgs": [{"name": ORGANISATION}]})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization'] or USER}/{asked['name']}"
            if name in self.hub.repos:
                return self.answer({"error": "You already created this model repo"}, 409)
            self.hub.repos[name] = Repo(private=asked.get("visibility", "private") == "private")
            return self.answer({"url": f"{self.hub.url}/{name}"})
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return self.answer({"objects": [self.instructions(one) for one in json.loads(body)["objects"]]})
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(found[1], unquote(found[2]), unquote(found[3]))
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)(?:/([^/]+))?(?:/(.*))?)?", path)
        repo = self.hub.repos.get(found[1]) if found else None
        if repo is None:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        return self.of_repo(found[1], repo, found[2] or "revision", unquote(found[3] or "main"), body)

    def instructions(self, asked: dict) -> dict:
        known = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] in self.hub.large:
            return known
        return known | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}}

    def of_repo(self, name: str, repo: Repo, what: str, revision: str, body: bytes) -> None:
        if what == "branch":
            if revision in repo.branches:
                return self.answer({"error": "Reference already exists"}, 409)
            repo.branches[revision] = repo.branches["main"]
            return self.answer({})
        commit = repo.commit(revision)
        if what == "refs":
            shown = {kind: [{"name": k, "ref": k, "targetCommit": v} for k, v in refs.items()]
                     for kind, refs in (("branches", repo.branches), ("tags", repo.tags))}  # fmt: skip
            return self.answer(shown | {"converts": []})
        if commit is None:
            return self.answer({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        files = repo.commits[commit]
        if what == "revision":
            shown = [{"rfilename": path, **described(path, data)} for path, data in files.items()]
            return self.answer({"id": name, "sha": commit, "private": repo.private, "siblings": shown})
        if what == "tree":
            shown = [{"type": "file", "path": path, "oid": git_hash(data), **described(path, data)}
                     for path, data in files.items()]  # fmt: skip
            return self.answer(shown)
        if what == "tag":
            repo.tags[json.loads(body)["tag"]] = commit
            return self.answer({})
        if what == "preupload":
            ignored = files.get(".gitignore", b"").decode().split()
            return self.answer({"files": [
                {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
                 "shouldIgnore": one["path"] in ignored}
                for one in json.loads(body)["files"]
            ]})  # fmt: skip
        return self.make_commit(name, repo, revision, [json.loads(line) for line in body.splitlines()])

    def make_commit(self, name: str, repo: Repo, branch: str, lines: list[dict]) -> None:
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.branches[branch]):
            return self.answer({"error": "A commit has happened since. Please refresh and try again."}, 412)
        files = dict(repo.commits[repo.branches[branch]])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.hub.large[value["oid"]]
        sha = self.hub.put(name, files, branch)
        return self.answer({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.hub.repos.get(name)
        commit = repo.commit(revision) if repo is not None else None
        if commit is None:
            return self.answer(
                {"error": "no"}, 404, X_Error_Code="RepoNotFound" if repo is None else "RevisionNotFound"
            )
        data = repo.commits[commit].get(path)
        if data is None:
            return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        return self.answer(data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=commit)

    def log_message(self, *_: object) -> None: ...


class Quiet(ThreadingHTTPServer):
    """A client that is gone is no news."""

    def handle_error(self, request: object, client_address: object) -> None: ...


def described(path: str, data: bytes) -> dict:
    large = {"lfs": {"oid": hashlib.sha256(data).hexdigest(), "sha256": hashlib.sha256(data).hexdigest(),
                     "size": len(data), "pointerSize": 130}}  # fmt: skip
    return {"size": len(data), "blobId": git_hash(data)} | (large if path.endswith(LARGE) else {})


@contextmanager
def hub():
    """A server on a free port."""
    one = Hub()
    handler = type("OwnHandler", (Handler,), {"hub": one})
    server = Quiet(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    one.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield one
    finally:
        server.shutdown()
        server.server_close()


def environment(hub: Hub, home: object, token: str | None = TOKEN) -> dict[str, str]:
    """For a process whose Hub this is; its client sends large files in one piece, as it does without Xet."""
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
           "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*"}  # fmt: skip
    return own if token is None else own | {"HF_TOKEN": token}

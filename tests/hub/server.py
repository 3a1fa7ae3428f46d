"""The HTTP side: routes, tokens, redirects, ranges, faults."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, unquote, urlsplit

from .faults import Fault
from .repository import Commit, Entry, Repository, git_object, pointer, typed
from .storage import SIGNED_FOR, Refused, StorageRoutes

REPO = r"(?P<repo>[^/]+/[^/]+?)"


class Hub:
    """A running hub; use it as a context manager.

    Args:
        repositories: ``owner/name`` → repository, or a directory that is served as its ``main``.
        tokens: what an Authorization header may carry.
        page_size: files a page of a listing.
        faults: what goes wrong; may be changed while it runs.
        xet: offer large files by Xet too.
        log: a file that gets one JSON object a request; ``requests`` has the same in memory.
    """

    def __init__(
        self,
        repositories: Mapping[str, Repository | str | Path],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tokens: Sequence[str] = (),
        page_size: int = 1000,
        faults: Sequence[Fault] = (),
        log: Path | None = None,
        xet: bool = False,
    ) -> None:
        self.repositories = {
            name: r if isinstance(r, Repository) else Repository({"main": r})
            for name, r in repositories.items()
        }
        self.tokens = tuple(tokens)
        self.page_size = page_size
        self.faults = list(faults)
        self._requests: list[dict[str, Any]] = []
        self.running = 0
        self.xet = xet
        self._log = log
        self._lock = threading.Lock()
        self._secret = os.urandom(16)
        self._server = _Server((host, port), _Handler)
        self._server.hub = self
        self.host, self.port = host, self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The requests so far: a client may have its answer a moment before the answer is recorded."""
        deadline = time.monotonic() + 0.5
        while self.running and time.monotonic() < deadline:
            time.sleep(0.001)
        return self._requests

    def begin(self) -> None:
        with self._lock:
            self.running += 1

    def record(self, row: dict[str, Any]) -> None:
        with self._lock:
            self.running -= 1
            self._requests.append(row)
            if self._log:
                with self._log.open("a") as f:
                    f.write(json.dumps(row) + "\n")

    def sign(self, sha256: str, expires: int) -> str:
        return hashlib.sha256(self._secret + f"{sha256} {expires}".encode()).hexdigest()


# /api/datasets/owner/name, /api/resolve-cache/datasets/owner/name, /datasets/owner/name.
DATASET = re.compile(r"^(/|/api/|/api/resolve-cache/)datasets/(?=[^/]+/[^/]+(/|$))")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    hub: Hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error of the hub's."""


class _Handler(StorageRoutes, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and a small body leave as one segment, without waiting for an acknowledgement.
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024
    server: _Server

    routes: ClassVar[list[tuple[re.Pattern[str], str]]] = [
        (re.compile(pattern), name)
        for pattern, name in (
            (rf"/api/models/{REPO}(/revision/(?P<revision>[^/]+))?", "info"),
            (rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)(/(?P<path>.*))?", "tree"),
            (rf"/api/models/{REPO}/refs", "refs"),
            (rf"/api/models/{REPO}/auth-check", "auth_check"),
            (rf"/api/models/{REPO}/paths-info/(?P<revision>[^/]+)", "paths_info"),
            (rf"/api/resolve-cache/models/{REPO}/(?P<revision>[^/]+)/(?P<path>.+)", "small"),
            (r"/blobs/(?P<sha256>[0-9a-f]{64})", "blob"),
            (rf"/api/models/{REPO}/xet-read-token/(?P<revision>[^/]+)", "xet_token"),
            (r"/xet/v1/reconstructions/(?P<sha256>[0-9a-f]{64})", "xet_file"),
            (r"/xorbs/(?P<sha256>[0-9a-f]{64})/(?P<number>\d+)", "xorb"),
            (rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
            (rf"/{REPO}(\.git)?/info/lfs/objects/batch", "lfs_batch"),
            (rf"/{REPO}(\.git)?/info/refs", "git_refs"),
            (rf"/{REPO}(\.git)?/HEAD", "git_head"),
            (rf"/{REPO}(\.git)?/objects/(?P<sha>[0-9a-f]{{2}}/[0-9a-f]{{38}})", "git_object"),
        )
    ]

    def do_GET(self) -> None:
        hub = self.server.hub
        hub.begin()
        url = urlsplit(self.path)
        self.query = {k: v[-1] for k, v in parse_qs(url.query).items()}
        self.status, self.sent = 0, 0
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else b""
        try:
            # A dataset's addresses are a model's but for one segment; its repository is named with it.
            plain = DATASET.sub(lambda m: f"{m[1]}models/" if m[1] != "/" else "/", url.path)
            for pattern, name in self.routes:
                if m := pattern.fullmatch(plain):
                    self.route = name
                    self.words = {k: unquote(v) for k, v in m.groupdict().items() if v is not None}
                    if plain != url.path and "repo" in self.words:
                        self.words["repo"] = f"datasets/{self.words['repo']}"
                    self._maybe_status(name)
                    getattr(self, f"_{name}")(**self.words)
                    break
            else:
                raise Refused(404, None, "Not Found")
        except Refused as e:
            self._refuse(e)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            hub.record(
                {
                    "method": self.command,
                    "path": self.path,
                    "host": self.headers.get("Host"),
                    "range": self.headers.get("Range"),
                    "authorization": self.headers.get("Authorization"),
                    "status": self.status,
                    "sent": self.sent,
                }
            )

    do_HEAD = do_GET
    do_POST = do_GET

    # ---- what every answer needs

    def log_message(self, *_: Any) -> None:
        """Silent: ``requests`` and ``--log`` have it all."""

    def _start(self, status: int, headers: Mapping[str, str | int]) -> None:
        self.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _json(self, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self._bytes(json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _bytes(self, body: bytes, headers: Mapping[str, str] | None = None, status: int = 200) -> None:
        self._start(status, {**(headers or {}), "Content-Length": len(body)})
        if self.command != "HEAD":
            self.wfile.write(body)
            self.sent += len(body)

    def _refuse(self, e: Refused) -> None:
        headers = {"X-Error-Message": e.message, **({"X-Error-Code": e.code} if e.code else {}), **e.headers}
        body = json.dumps({"error": e.message}).encode()
        self._bytes(body, {"Content-Type": "application/json", **headers}, e.status)

    def _fault(self, kind: str, on: str, path: str) -> Fault | None:
        return next((f for f in self.server.hub.faults if f.kind == kind and f.strikes(on, path)), None)

    def _maybe_status(self, name: str) -> None:
        on = "resolve" if name == "small" else name
        path = self.words.get("path") or self._name_of(self.words.get("sha256")) or self.words.get("repo", "")
        if fault := self._fault("status", on, path):
            wait = {"Retry-After": f"{fault.seconds:g}"} if fault.seconds else {}
            raise Refused(fault.code, None, fault.text or "a fault on demand", wait)

    def _name_of(self, sha256: str | None) -> str:
        for repository in self.server.hub.repositories.values():
            if sha256 and (entry := repository.blob(sha256)):
                return entry.path
        return ""

    def _token(self) -> str | None:
        words = (self.headers.get("Authorization") or "").split()
        if not words:
            return None
        if words[0] != "Bearer" or words[-1] not in self.server.hub.tokens:
            raise Refused(401, None, "Invalid credentials in Authorization header")
        return words[-1]

    def _repository(self, repo: str) -> Repository:
        found = self.server.hub.repositories.get(repo.removesuffix(".git"))
        token = self._token()
        if found is None or (found.private and not token):
            # The Hub does not say whether a repository exists to those who may not see it.
            if token:
                raise Refused(404, "RepoNotFound", "Repository not found")
            raise Refused(401, "RepoNotFound", "Invalid username or password.")
        return found

    def _commit(self, repo: str, revision: str) -> Commit:
        commit = self._repository(repo).commit(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _allowed(self, repo: str) -> None:
        """Whether files may be read: a gated repository's listing is public, its files are not."""
        if not self._repository(repo).gated:
            return
        page = f"{self._base()}/{repo}"
        if not self._token():
            raise Refused(401, "GatedRepo", f"Access to model {repo} is restricted. Please log in. {page}")
        if self._fault("not-accepted", "resolve", repo):
            raise Refused(
                403, "GatedRepo", f"Access to model {repo} is restricted. Visit {page} to ask for access."
            )

    def _base(self) -> str:
        return f"http://{self.headers.get('Host') or self.server.hub.endpoint.removeprefix('http://')}"

    # ---- the API

    def _info(self, repo: str, revision: str = "main") -> None:
        repository, commit = self._repository(repo), self._commit(repo, revision)
        blobs = "blobs" in self.query
        siblings = []
        for e in commit.entries.values():
            row: dict[str, Any] = {"rfilename": e.path}
            if blobs:
                row |= {"size": e.size, "blobId": e.oid}
                if e.sha256:
                    length = len(pointer(e.sha256, e.size))
                    row["lfs"] = {"sha256": e.sha256, "size": e.size, "pointerSize": length}
            siblings.append(row)
        card = _card(commit)
        self._json(
            {
                "_id": commit.sha[:24],
                "id": repo.removeprefix("datasets/"),
                "modelId": repo,
                "author": repo.split("/")[-2],
                "sha": commit.sha,
                "lastModified": "2024-01-01T00:00:00.000Z",
                "createdAt": "2024-01-01T00:00:00.000Z",
                "private": repository.private,
                "gated": repository.gated,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [f"license:{card['license']}"] if "license" in card else [],
                "cardData": card,
                "siblings": siblings,
            },
            {"X-Repo-Commit": commit.sha},
        )

    def _tree(self, repo: str, revision: str, path: str = "") -> None:
        commit = self._commit(repo, revision)
        if garbage := self._fault("garbage", "tree", repo):
            return self._bytes(garbage.text.encode(), {"Content-Type": "application/json"})
        prefix = f"{path.strip('/')}/" if path.strip("/") else ""
        recursive = self.query.get("recursive", "").lower() in ("1", "true")
        expand = self.query.get("expand", "").lower() in ("1", "true")
        rows = [
            {"type": "directory", "path": name, "oid": sha, "size": 0}
            for name, sha in commit.trees.items()
            if name.startswith(prefix) and (recursive or "/" not in name[len(prefix) :])
        ]
        for e in commit.entries.values():
            if e.path.startswith(prefix) and (recursive or "/" not in e.path[len(prefix) :]):
                rows.append(self._row(e, expand))
                if self._fault("twin", "tree", e.path):
                    rows.append({**rows[-1], "path": e.path.upper()})
        for fault in self.server.hub.faults:
            if fault.kind == "extra-path" and fault.strikes("tree", repo):
                rows.append(
                    {"type": "file", "path": fault.text, "oid": git_object("blob", b"x")[0], "size": 1}
                )
        if not rows and prefix:
            raise Refused(404, "EntryNotFound", f"{path} does not exist")
        rows.sort(key=lambda row: str(row["path"]))
        start = int(self.query.get("cursor") or 0)
        limit = min(int(self.query.get("limit") or 10**6), self.server.hub.page_size)
        headers = {"X-Repo-Commit": commit.sha}
        if start + limit < len(rows):
            kept = "".join(f"&{k}={quote(v)}" for k, v in self.query.items() if k != "cursor")
            where = f"{self._base()}{urlsplit(self.path).path}?cursor={start + limit}{kept}"
            headers["Link"] = f'<{where}>; rel="next"'
        self._json(rows[start : start + limit], headers)

    def _row(self, e: Entry, expand: bool = False) -> dict[str, Any]:
        row: dict[str, Any] = {"type": "file", "oid": e.oid, "size": e.size, "path": e.path}
        if e.sha256:
            sha256 = e.sha256
            for kind in ("wrong-oid", "wrong-pointer"):
                if fault := self._fault(kind, "tree", e.path):
                    sha256 = fault.text or f"{int(sha256[0], 16) ^ 1:x}{sha256[1:]}"
                    if kind == "wrong-pointer":
                        row["oid"] = git_object("blob", pointer(sha256, e.size))[0]
            row["lfs"] = {"oid": sha256, "size": e.size, "pointerSize": len(pointer(sha256, e.size))}
        if expand:
            row["lastCommit"] = {"id": "0" * 40, "title": "Content", "date": "2024-01-01T00:00:00.000Z"}
            row["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
        return row

    def _paths_info(self, repo: str, revision: str) -> None:
        commit = self._commit(repo, revision)
        if self.body[:1] == b"{":
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        self._json([self._row(commit.entries[p]) for p in paths if p in commit.entries])

    def _refs(self, repo: str) -> None:
        repository = self._repository(repo)
        heads = {name: repository.head(name) for name in repository.branches}
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": c.sha}
            for name, c in heads.items()
            if c
        ]
        self._json({"branches": branches, "tags": [], "converts": []})

    def _auth_check(self, repo: str) -> None:
        self._allowed(repo)
        self._json({})

    # ---- files

    def _entry(self, repo: str, revision: str, path: str) -> tuple[Commit, Entry]:
        commit = self._commit(repo, revision)
        self._allowed(repo)
        if path not in commit.entries:
            commit_header = {"X-Repo-Commit": commit.sha}
            raise Refused(404, "EntryNotFound", f"Entry {path} does not exist", commit_header)
        return commit, commit.entries[path]

    def _headers(self, repo: str, commit: Commit, e: Entry) -> dict[str, str | int]:
        headers: dict[str, str | int] = {
            "X-Repo-Commit": commit.sha,
            "Accept-Ranges": "bytes",
            "X-Linked-Size": e.size,
            "X-Linked-Etag": f'"{e.etag}"',
            "ETag": f'"{e.etag}"',
        }
        headers |= self._xet_headers(repo, commit.sha, e)
        if self._fault("no-commit", "resolve", e.path):
            del headers["X-Repo-Commit"]
        return headers

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        commit, e = self._entry(repo, revision, path)
        if e.sha256 is None:
            # Small files live on the Hub itself, behind a relative redirect to a page that may be cached.
            where = f"/api/resolve-cache/{typed(repo)}/{commit.sha}/{quote(path)}"
            return self._bytes(b"", {**self._headers(repo, commit, e), "Location": where}, 307)
        expires = int(time.time()) + (-1 if self._fault("expired", "resolve", path) else SIGNED_FOR)
        base = self._base()
        if self._fault("other-host", "resolve", path):
            base = f"http://localhost:{self.server.hub.port}"
        signed = f"Expires={expires}&Signature={self.server.hub.sign(e.sha256, expires)}&commit={commit.sha}"
        self._bytes(
            b"", {**self._headers(repo, commit, e), "Location": f"{base}/blobs/{e.sha256}?{signed}"}, 302
        )

    def _small(self, repo: str, revision: str, path: str) -> None:
        commit, e = self._entry(repo, revision, path)
        self._file(e, "resolve", self._headers(repo, commit, e))

    def _blob(self, sha256: str) -> None:
        expires = int(self.query.get("Expires") or 0)
        if self.query.get("Signature") != self.server.hub.sign(sha256, expires) or expires < time.time():
            raise Refused(403, None, "Access denied: the signed address is wrong or expired")
        elsewhere = self.headers.get("Host") != self.server.hub.endpoint.removeprefix("http://")
        if self.headers.get("Authorization") and elsewhere:
            # As S3 answers: a signed address and an Authorization header exclude each other.
            raise Refused(400, None, "Only one auth mechanism allowed")
        for repo, repository in self.server.hub.repositories.items():
            if e := repository.blob(sha256):
                # huggingface_hub follows a HEAD that stays on the host, and wants the commit here too.
                shown = "commit" in self.query and not self._fault("no-commit", "blob", e.path)
                more: dict[str, str | int] = {"Accept-Ranges": "bytes", "ETag": f'"{sha256}"'}
                if shown:
                    more["X-Repo-Commit"] = self.query["commit"]
                    more |= self._xet_headers(repo, self.query["commit"], e)
                return self._file(e, "blob", more)
        raise Refused(404, None, "Not Found")

    def _file(self, e: Entry, on: str, headers: dict[str, str | int]) -> None:
        size = len(e.source) if isinstance(e.source, bytes) else e.source.stat().st_size
        start, stop, status = 0, size, 200
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if asked and asked[0] != "bytes=-" and not self._fault("no-range", on, e.path):
            first, last = asked.groups()
            start = int(first) if first else max(size - int(last), 0)
            stop = min(int(last) + 1, size) if first and last else size
            if start >= size or stop <= start:
                raise Refused(
                    416, None, "Requested range not satisfiable", {"Content-Range": f"bytes */{size}"}
                )
            status = 206
        get = self.command == "GET"
        if get and (fault := self._fault("truncate", on, e.path)):
            stop = min(stop, start + fault.at)
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        headers |= {"Content-Length": stop - start, "Content-Type": "application/octet-stream"}
        self._start(status, headers)
        if not get:
            return
        self.wfile.flush()
        if fault := self._fault("cut", on, e.path):
            self._send(e.source, start, min(stop, start + fault.at))
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault := self._fault("stall", on, e.path):
            middle = min(stop, start + fault.at)
            self._send(e.source, start, middle)
            time.sleep(fault.seconds)
            start = middle
        flip = next((f for f in self.server.hub.faults if f.kind == "flip" and start <= f.at < stop), None)
        if flip and flip.strikes(on, e.path):
            self._send(e.source, start, flip.at)
            self._send(bytes([_byte(e.source, flip.at) ^ 1]), 0, 1)
            start = flip.at + 1
        self._send(e.source, start, stop)

    def _send(self, source: Path | bytes, start: int, stop: int) -> None:
        if isinstance(source, bytes):
            self.connection.sendall(source[start:stop])
            self.sent += stop - start
            return
        with source.open("rb") as f:
            while start < stop:
                done = os.sendfile(self.connection.fileno(), f.fileno(), start, stop - start)
                if not done:
                    break
                start += done
                self.sent += done


def _byte(source: Path | bytes, at: int) -> int:
    if isinstance(source, bytes):
        return source[at]
    with source.open("rb") as f:
        f.seek(at)
        return f.read(1)[0]


def _card(commit: Commit) -> dict[str, str]:
    """The plain ``key: value`` lines of README.md's front matter."""
    entry = commit.entries.get("README.md")
    if entry is None:
        return {}
    text = (entry.source if isinstance(entry.source, bytes) else entry.source.read_bytes()).decode(
        "utf-8", "replace"
    )
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    pairs = re.findall(r"^([a-z_]+):[ \t]*([^\s\[{|>-].*)$", front[1] if front else "", re.MULTILINE)
    return {key: value.strip("'\" ") for key, value in pairs}

"""The routes beside the Hub's own: Xet storage for hf_xet, git's dumb protocol and LFS for clones."""

from __future__ import annotations

import json
import re
import time
import zlib
from collections.abc import Mapping
from typing import Any

from . import xet
from .repository import Entry, typed

SIGNED_FOR = 3600  # seconds that a signed address holds


class Refused(Exception):
    """A request is answered with an error, as the Hub words it."""

    def __init__(
        self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})


class StorageRoutes:
    """Mixed into the handler, which has the rest."""

    server: Any
    headers: Any
    body: bytes
    _base: Any
    _commit: Any
    _repository: Any
    _allowed: Any
    _json: Any
    _bytes: Any
    _file: Any
    _name_of: Any

    # ---- Xet: what hf_xet reads

    def _xet_headers(self, repo: str, commit: str, e: Entry) -> dict[str, str]:
        if not self.server.hub.xet or e.sha256 is None:
            return {}
        route = f"{self._base()}/api/{typed(repo)}/xet-read-token/{commit}"
        return {"X-Xet-Hash": e.sha256, "X-Xet-Refresh-Route": route}

    def _xet_token(self, repo: str, revision: str) -> None:
        self._commit(repo, revision)
        self._allowed(repo)
        headers = {
            "X-Xet-Cas-Url": f"{self._base()}/xet",
            "X-Xet-Access-Token": "xet-token",
            "X-Xet-Token-Expiration": str(int(time.time()) + SIGNED_FOR),
        }
        self._json({}, headers)

    def _large(self, sha256: str) -> Entry:
        for repository in self.server.hub.repositories.values():
            if e := repository.blob(sha256):
                return e
        raise Refused(404, None, "Not Found")

    def _xet_file(self, sha256: str) -> None:
        e = self._large(sha256)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        start, stop = (int(asked[1]), int(asked[2]) + 1) if asked else (0, e.size)
        if start >= e.size:
            raise Refused(416, None, "Requested range not satisfiable")
        self._json(xet.reconstruction(sha256, e.size, self._base(), start, stop))

    def _xorb(self, sha256: str, number: str) -> None:
        data = xet.xorb(self._large(sha256).source, int(number))
        self._file(
            Entry(self._name_of(sha256), len(data), "", None, data), "xorb", {"Accept-Ranges": "bytes"}
        )

    # ---- git and git-lfs, for clones: the dumb protocol and the batch API

    def _git_refs(self, repo: str) -> None:
        repository = self._repository(repo)
        rows = [(name, repository.head(name)) for name in sorted(repository.branches)]
        self._bytes("".join(f"{c.sha}\trefs/heads/{name}\n" for name, c in rows if c).encode())

    def _git_head(self, repo: str) -> None:
        branches = self._repository(repo).branches
        self._bytes(f"ref: refs/heads/{'main' if 'main' in branches else next(iter(branches))}\n".encode())

    def _git_object(self, repo: str, sha: str) -> None:
        found = self._repository(repo).object(sha.replace("/", ""))
        if found is None:
            raise Refused(404, None, "Not Found")
        header, body = found
        self._bytes(zlib.compress(header + (body if isinstance(body, bytes) else body.read_bytes()), 1))

    def _lfs_batch(self, repo: str) -> None:
        self._allowed(repo.removesuffix(".git"))
        objects = []
        for row in json.loads(self.body)["objects"]:
            expires = int(time.time()) + SIGNED_FOR
            signed = f"Expires={expires}&Signature={self.server.hub.sign(row['oid'], expires)}"
            href = f"{self._base()}/blobs/{row['oid']}?{signed}"
            objects.append({**row, "authenticated": True, "actions": {"download": {"href": href}}})
        body = json.dumps({"transfer": "basic", "objects": objects}).encode()
        self._bytes(body, {"Content-Type": "application/vnd.git-lfs+json"})

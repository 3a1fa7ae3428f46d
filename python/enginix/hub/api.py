"""Read a repository's commit, list of files and small files from a hub.

This module writes nothing to disk. Answers are bounded, checked and typed; any other answer is a HubError.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from enginix.credentials import has_secret
from enginix.errors import HashMismatch, HubError, LockError
from enginix.hub import hub_errors, lock, session
from enginix.hub.hub_errors import make_answer_error

LONGEST_ANSWER = 64 << 20  # bytes of one page of the API
MOST_FILES = 200_000
SMALL = 64 << 20  # bytes; the Hub stores nothing larger than 10 MB outside LFS
TRIES = 5


@dataclass(frozen=True)
class RepoInfo:
    """A repository at one commit.

    Attributes:
        repo: its address, as :func:`lock.format_address` gives it.
        current_name: as the hub names it now; another one than in ``repo`` after it was renamed.
    """

    repo: str
    revision: str
    license: str | None
    gated: Literal[False, "auto", "manual"]
    current_name: str


@dataclass(frozen=True)
class RemoteFile:
    """One file of a commit.

    Attributes:
        oid: git's name of the blob: the content's, or for a large file that of its LFS pointer.
        sha256: of the content, for large files; None for small ones.
    """

    path: str
    size: int
    oid: str
    sha256: str | None


def fetch_repo_info(repo: str, revision: str = "main") -> RepoInfo:
    """Resolve a branch, tag or commit.

    Raises:
        LockError: ``repo`` is not a repository name.
        HubError: not found, not allowed, unreachable, or an invalid answer.
    """
    _check_repo(repo)
    if not revision or not revision.isprintable():
        raise LockError(
            f"revision {ascii(revision)[:100]} is not a valid branch, tag or commit",
            where=repo,
            fix="pass a branch, tag or commit",
        )
    raw, _ = _fetch_json(f"{_build_api_path(repo)}/revision/{quote(revision, safe='')}", repo)
    sha, gated = (raw.get("sha"), raw.get("gated")) if isinstance(raw, dict) else (None, None)
    if not isinstance(raw, dict) or not isinstance(sha, str) or not lock.COMMIT.fullmatch(sha):
        raise make_answer_error(repo, "the answer has no commit")
    if gated not in (None, False, "auto", "manual"):
        raise make_answer_error(repo, "gated is neither false, auto nor manual")
    name = raw.get("id")
    is_name = isinstance(name, str) and lock.REPO.fullmatch(name) is not None and not has_secret(name)
    current_name = str(name) if is_name else repo.removeprefix(lock.DATASETS)
    return RepoInfo(repo, sha, _read_license(raw), gated or False, current_name)


def list_files(repo: str, commit: str) -> tuple[RemoteFile, ...]:
    """Return every file of a commit, from all pages of the listing, sorted by path.

    The git oid of a large file is that of its LFS pointer, so it confirms the sha256 and the size.

    Raises:
        HubError: as :func:`fetch_repo_info`; also a listing that contradicts itself.
    """
    _check_repo(repo)
    files: list[RemoteFile] = []
    page: str | None = f"{_build_api_path(repo)}/tree/{commit}?recursive=true&expand=false"
    seen: set[str] = set()
    while page is not None:
        if page in seen or len(files) > MOST_FILES:
            raise make_answer_error(repo, "the listing does not end")
        seen.add(page)
        rows, page = _fetch_json(page, repo)
        if not isinstance(rows, list):
            raise make_answer_error(repo, "the listing is not a list")
        for row in rows:
            if not isinstance(row, dict) or row.get("type") not in ("file", "directory"):
                raise make_answer_error(repo, "the listing has an entry that is neither file nor directory")
            if row["type"] == "file":
                refuse_echo(str(row.get("path")), "the listing", repo)
                files.append(_parse_remote_file(row, repo))
    return tuple(sorted(files, key=lambda f: f.path))


def refuse_echo(text: str, what: str, repo: str) -> None:
    """Refuse an answer that contains the user's token, which would end up in a lock or manifest.

    Raises:
        HubError: the answer contains the token.
    """
    if has_secret(text):
        raise HubError(
            f"{what} contains the token: {session.read_endpoint()} sends it back",
            where=repo,
            fix="do not use this hub, and make a new token",
        )


def read_small(repo: str, commit: str, file: RemoteFile) -> bytes:
    """Return the content of a small file, checked against its git oid (or its sha256 if LFS stores it).

    Raises:
        HashMismatch: the bytes do not match the listing.
        HubError: as :func:`fetch_repo_info`.
    """
    if file.size > SMALL:
        raise make_answer_error(repo, f"{file.path} has {file.size} bytes, too many for a small file")
    data = _fetch_body(_build_resolve_path(repo, commit, file.path), repo, file.path, SMALL)
    if file.sha256 is not None:
        kind, expected, actual = "sha256", file.sha256, hashlib.sha256(data).hexdigest()
    else:
        kind, expected, actual = "git oid", file.oid, compute_git_oid(data)
    if expected != actual:
        raise HashMismatch(
            f"{kind} is {actual}, and the listing promises {expected}",
            where=f"{repo}: {file.path}",
            fix="run again",
        )
    return data


def read_range(repo: str, commit: str, path: str, start: int, stop: int) -> bytes:
    """Return bytes ``start`` to ``stop`` (exclusive) of a file; fewer where the file ends earlier.

    They are not verified, because no hash covers a part of a file. Use them to inspect, not to build.

    Raises:
        HubError: as :func:`fetch_repo_info`; also a hub that sends the whole file instead.
    """
    if stop <= start:
        return b""
    return _fetch_body(_build_resolve_path(repo, commit, path), repo, path, stop - start, (start, stop - 1))


def compute_git_oid(data: bytes) -> str:
    """Return git's name of a blob with this content: SHA-1 over a header and the content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def format_lfs_pointer(sha256: str, size: int) -> bytes:
    """Return the pointer that git stores in place of a large file (git-lfs's docs/spec.md)."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _check_repo(repo: str) -> None:
    if lock.split_address(repo) is None:
        raise LockError("not a Hub repository name", where=ascii(repo)[:100], fix="pass owner/name")


def _build_api_path(repo: str) -> str:
    """Return a repository's path in the API, which names the type of models, unlike an address."""
    return (
        f"/api/{repo}" if repo.startswith(lock.DATASETS) and repo.count("/") == 2 else f"/api/models/{repo}"
    )


def _build_resolve_path(repo: str, commit: str, path: str) -> str:
    return f"/{repo}/resolve/{commit}/{quote(path)}"


def _parse_remote_file(row: dict[str, Any], repo: str) -> RemoteFile:
    path, size, oid, lfs = (row.get(k) for k in ("path", "size", "oid", "lfs"))
    if not isinstance(path, str) or type(size) is not int or not 0 <= size <= lock.LARGEST_FILE:
        raise make_answer_error(repo, "the listing has a file without path or size")
    if not isinstance(oid, str) or not lock.COMMIT.fullmatch(oid):
        raise make_answer_error(repo, f"the listing has no git oid for {hub_errors.clean_text(path)}")
    if lfs is None:
        return RemoteFile(path, size, oid, None)
    sha256 = lfs.get("oid") if isinstance(lfs, dict) else None
    if not isinstance(sha256, str) or not lock.SHA256.fullmatch(sha256) or lfs.get("size") != size:
        raise make_answer_error(
            repo, f"the listing has no sha256 or another size for {hub_errors.clean_text(path)}"
        )
    pointer = format_lfs_pointer(sha256, size)
    # Another length means a pointer with extensions, whose oid cannot be computed from this text.
    if lfs.get("pointerSize") == len(pointer) and compute_git_oid(pointer) != oid:
        raise HubError(
            f"the listing contradicts itself: sha256 {sha256} does not belong to git oid {oid}",
            where=f"{repo}: {hub_errors.clean_text(path)}",
            fix="do not use this listing; check HF_ENDPOINT and proxies, then run again",
        )
    return RemoteFile(path, size, oid, sha256)


def _read_license(raw: dict[str, Any]) -> str | None:
    card, tags = raw.get("cardData"), raw.get("tags")
    card = card if isinstance(card, dict) else {}
    license_name = card.get("license")
    if isinstance(license_name, list) and license_name:
        license_name = license_name[0]
    if license_name == "other" and isinstance(card.get("license_name"), str):
        license_name = card["license_name"]
    if not isinstance(license_name, str) and isinstance(tags, list):
        license_name = next((t[8:] for t in tags if isinstance(t, str) and t.startswith("license:")), None)
    return hub_errors.clean_text(license_name) or None if isinstance(license_name, str) else None


def _fetch_json(path: str, repo: str) -> tuple[Any, str | None]:
    """Return an answer of the API and the path of its next page."""
    links: dict[str, str] = {}
    data = _fetch_body(path, repo, None, LONGEST_ANSWER, links=links)
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise make_answer_error(repo, "the answer is not JSON") from e
    following = links.get("next")
    home = session.read_endpoint()
    if following is None:
        return value, None
    if not session.is_same_host(following, home) or not following.startswith(f"{home}/"):
        raise make_answer_error(repo, "the next page is on another host")
    return value, following[len(home) :]


def _fetch_body(
    path: str,
    repo: str,
    file: str | None,
    limit: int,
    span: tuple[int, int] | None = None,
    links: dict[str, str] | None = None,
) -> bytes:
    """Return the body at ``path``, at most ``limit`` bytes; retry after failures of network or hub."""
    session.prepare_hub_client()
    from huggingface_hub import hf_raise_for_status
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import http_stream_backoff  # type: ignore[attr-defined]

    http = session.import_http_client()
    headers = session.build_hub_headers() | {"accept-encoding": "identity"}
    if span:
        headers["range"] = f"bytes={span[0]}-{span[1]}"
    for attempt in range(TRIES):
        try:
            with http_stream_backoff(
                "GET",
                session.read_endpoint() + path,
                headers=headers,
                timeout=session.TIMEOUT,
                follow_redirects=True,
                retry_on_exceptions=(),
            ) as response:
                if span and response.status_code == 416:
                    return b""
                hf_raise_for_status(response)
                if span and response.status_code != 206:
                    raise HubError("the hub does not answer range requests", where=f"{repo}: {file}")
                if links is not None and (following := response.links.get("next", {}).get("url")):
                    links["next"] = following
                body = bytearray()
                for piece in response.iter_bytes(1 << 20):
                    body += piece
                    if len(body) > limit:
                        raise make_answer_error(repo, f"the answer is longer than {limit} bytes")
                return bytes(body)
        except (http.TransportError, HfHubHTTPError) as e:
            if attempt + 1 == TRIES or not isinstance(e, http.TransportError):
                raise hub_errors.translate_hub_error(e, repo, file) from e
            time.sleep(min(0.5 * 2**attempt, 8))
        except (http.HTTPError, http.InvalidURL, OSError) as e:
            raise hub_errors.translate_hub_error(e, repo, file) from e
    raise AssertionError("unreachable")

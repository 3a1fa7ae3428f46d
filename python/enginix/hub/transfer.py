"""Download one file from the hub: resumed, retried, and verified before it appears.

huggingface_hub transfers the bytes (its Xet path included); this module hashes them on the way, bounds them
by the pinned size, and requests them again where the network failed.
"""

from __future__ import annotations

import errno
import hashlib
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from enginix.errors import HashMismatch, HubError
from enginix.hub import hub_errors, lock, session

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

TRIES = 6  # attempts in a row that bring no new byte
LONGEST_PAUSE = 8.0  # seconds
BLOCK = 1 << 20
_RELOCK_FIX = "write the lock again with `enginix lock` and review what changed"


@dataclass(frozen=True)
class FileDigest:
    """A file and the digest that its bytes must have.

    Attributes:
        kind: ``sha256`` of the content, or ``git``: SHA-1 as git names the blob.
    """

    path: str
    size: int
    kind: Literal["sha256", "git"]
    digest: str

    def hasher(self) -> Any:
        """Return a fresh hash object for the content."""
        if self.kind == "sha256":
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)

    def matches(self, file: Path) -> bool:
        """Return whether ``file`` exists with these bytes."""
        try:
            if file.is_symlink() or not file.is_file() or file.stat().st_size != self.size:
                return False
            with file.open("rb") as f:
                return _feed_digest(self.hasher(), f) == self.digest
        except OSError:
            return False


class TransferStopped(Exception):
    """The transfer ended early, because another file failed or the user interrupted."""


def download_file(
    repo: str,
    commit: str,
    expected: FileDigest,
    part: Path,
    *,
    moved: Callable[[int], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> None:
    """Complete ``part`` to the expected file; bytes that it has already are kept and not requested again.

    Args:
        part: the file to write; kept for the next run when the network fails for good, and removed when the
            bytes are wrong.
        moved: called with the number of new bytes as they arrive (negative when some are thrown away).
        stop: ends the transfer with :class:`TransferStopped` soon after it is set.

    Raises:
        HashMismatch: the hub promises or sends other bytes; both hashes are shown.
        HubError: not found, not allowed, or the network failed for good.
        MachineError: the disk is full or cannot be written.
    """
    session.prepare_hub_client()
    http = session.import_http_client()
    stop = stop or threading.Event()
    where = f"{repo}: {expected.path}"
    failures, mismatches, use_xet = 0, 0, True
    while True:
        start_size = part.stat().st_size if part.exists() else 0
        if start_size > expected.size:
            part.unlink()
            moved(-start_size)
            start_size = 0
        try:
            if stop.is_set():
                raise TransferStopped
            with part.open("ab+", buffering=0) as f:
                sink = _Sink(f, expected, moved, stop)
                if start_size < expected.size or start_size == 0:
                    with _closed_client_as_lost_connection():
                        _attempt_download(repo, commit, expected, sink, part, use_xet, stop)
                actual = sink.hexdigest()
            if actual == expected.digest and part.stat().st_size == expected.size:
                return
            raise HashMismatch(
                f"{_format_digest_name(expected)} is {actual}, and {expected.digest} is pinned",
                where=where,
                fix="check HF_ENDPOINT and proxies, or write the lock again and review what changed",
            )
        except HashMismatch:
            have = part.stat().st_size if part.exists() else 0
            part.unlink(missing_ok=True)
            moved(-have)
            mismatches += 1
            use_xet = False
            # A single mismatch may come from a bad cable, or from a part that a crash left damaged.
            if mismatches == 2 or not have:
                raise
        except (http.HTTPError, http.InvalidURL, OSError, ValueError, _XetFailed) as e:
            error = hub_errors.translate_hub_error(e, repo, expected.path)
            new = (part.stat().st_size if part.exists() else 0) - start_size
            failures = 0 if new > 0 else failures + 1
            use_xet = use_xet and not isinstance(e, _XetFailed)
            if not _is_retryable(e) or failures >= TRIES:
                raise error from e
            stop.wait(min(0.25 * 2**failures, LONGEST_PAUSE))


@contextmanager
def _closed_client_as_lost_connection() -> Iterator[None]:
    """Report the shared client as a lost connection where another thread's failure closed it."""
    http = session.import_http_client()
    try:
        yield
    except (RuntimeError, AttributeError) as e:
        # Closed before this thread's request, or gone (None) between its look-up and its use.
        if not re.search(
            "client has been closed|'NoneType' object has no attribute '(request|stream)'", str(e)
        ):
            raise
        raise http.ConnectError("the connection was lost with another file's") from e


class _XetFailed(Exception):
    """The Xet path failed; plain HTTP is tried next."""


class _SizeExceeded(HubError):
    """More bytes than the size that was promised."""


class _Sink:
    """The file that huggingface_hub writes to; it hashes the bytes and never grows beyond the pinned size."""

    def __init__(
        self, file: Any, expected: FileDigest, moved: Callable[[int], None], stop: threading.Event
    ) -> None:
        self._file, self._expected, self._moved, self._stop = file, expected, moved, stop
        self._hash = expected.hasher()
        file.seek(0)
        _feed_digest(self._hash, file)
        self.size: int = file.tell()
        self._claimed = 0

    def write(self, data: bytes) -> int:
        if self._stop.is_set():
            raise TransferStopped
        if self.size + len(data) > self._expected.size:
            raise _SizeExceeded(
                "the hub sends more bytes than are pinned", where=self._expected.path, fix="run again"
            )
        view = memoryview(data)
        while view:
            done = self._file.write(view)
            self._hash.update(view[:done])
            self.size += done
            self._moved(done)
            view = view[done:]
        return len(data)

    def tell(self) -> int:
        return self.size

    def seek(self, to: int) -> int:
        """Start again: ``truncate`` follows, because the hub ignored the range and sends the whole file."""
        return to

    def truncate(self) -> int:
        self._file.truncate(0)
        self._file.seek(0)
        self._moved(-self.size - self._claimed)
        self._hash, self.size, self._claimed = self._expected.hasher(), 0, 0
        return 0

    def claim(self, n: int) -> None:
        """Count ``n`` bytes that another writer reports to have written into the file."""
        self._claimed += n
        self._moved(n)

    def reread(self) -> None:
        """Hash the whole file, after another writer wrote it."""
        self._hash = self._expected.hasher()
        self._file.seek(0)
        _feed_digest(self._hash, self._file)
        self.size = self._file.tell()
        self._moved(self.size - self._claimed)
        self._claimed = 0

    def hexdigest(self) -> str:
        return str(self._hash.hexdigest())


def _attempt_download(
    repo: str,
    commit: str,
    expected: FileDigest,
    sink: _Sink,
    part: Path,
    use_xet: bool,
    stop: threading.Event,
) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._runtime import is_xet_available

    home = session.read_endpoint()
    headers = session.build_hub_headers()
    name, type_ = lock.split_address(repo) or (repo, "model")
    url = hf_hub_url(name, expected.path, repo_type=type_, revision=commit, endpoint=home)
    metadata = get_hf_file_metadata(
        url,
        headers=headers,
        token=session.read_hub_token() or False,
        timeout=15,
        endpoint=home,
        retry_on_errors=True,
    )
    _check_metadata(metadata, repo, commit, expected)
    if expected.size == 0:
        return
    xet = metadata.xet_file_data
    if use_xet and xet is not None and is_xet_available() and session.is_same_host(xet.refresh_route, home):
        _download_by_xet(xet, headers, expected, sink, part, stop)
        return
    if not session.is_same_host(metadata.location, home):
        headers.pop("authorization", None)
    http_get(
        metadata.location,
        cast(BinaryIO, sink),
        resume_size=sink.size,
        headers=headers,
        expected_size=expected.size,
        displayed_filename=expected.path,
    )


def _check_metadata(metadata: HfFileMetadata, repo: str, commit: str, expected: FileDigest) -> None:
    """Refuse, before the first byte, an answer that does not describe the expected file."""
    where = f"{repo}: {expected.path}"
    if metadata.commit_hash is None:
        raise hub_errors.make_answer_error(where, "no commit in its answer")
    if metadata.commit_hash != commit:
        raise HubError(
            f"the hub answers with commit {hub_errors.clean_text(metadata.commit_hash)}, "
            f"and {commit} is pinned",
            where=where,
            fix="check HF_ENDPOINT, or write the lock again",
        )
    if metadata.size is not None and metadata.size != expected.size:
        what = f"the hub has {metadata.size} bytes, and {expected.size} are pinned"
        raise HashMismatch(what, where=where, fix=_RELOCK_FIX)
    promised = metadata.etag or ""
    pattern = lock.SHA256 if expected.kind == "sha256" else lock.COMMIT
    if pattern.fullmatch(promised) and promised != expected.digest:
        name = _format_digest_name(expected)
        what = f"the hub promises {name} {promised}, and {expected.digest} is pinned"
        raise HashMismatch(what, where=where, fix=_RELOCK_FIX)


class _XetBar:
    """Stands in place of hf_xet's progress bar and receives the number of bytes written."""

    total: int | None = None

    def __init__(self, sink: _Sink) -> None:
        self.update = sink.claim

    def set_postfix_str(self, text: str, refresh: bool = False) -> None:
        """Do nothing: ``Progress`` shows the speed."""

    update_transfer = set_transfer_postfix_str = refresh = lambda *_, **__: None


def abort_xet_transfers() -> None:
    """End the Xet transfers of other threads; nothing where huggingface_hub is too old to have a session."""
    if "hf_xet" in sys.modules:
        from huggingface_hub.utils import _xet

        if abort := getattr(_xet, "abort_xet_session", None):
            abort()


def _download_by_xet(
    xet: Any, headers: dict[str, str], expected: FileDigest, sink: _Sink, part: Path, stop: threading.Event
) -> None:
    from huggingface_hub.file_download import xet_get

    if sink.size:
        sink.truncate()
    try:
        xet_get(
            incomplete_path=part,
            xet_file_data=xet,
            headers=headers,
            expected_size=expected.size,
            displayed_filename=expected.path,
            _tqdm_bar=cast(Any, _XetBar(sink)),
        )
    except Exception as e:
        sink.truncate()
        if stop.is_set():
            raise TransferStopped from e
        if isinstance(e, OSError) and e.errno == errno.ENOSPC:
            raise
        raise _XetFailed(f"Xet: {e}") from e
    sink.reread()


def _is_retryable(e: Exception) -> bool:
    """Return whether the same request may succeed a moment later."""
    http = session.import_http_client()
    from huggingface_hub import errors

    if isinstance(e, _XetFailed):
        return True
    if isinstance(e, errors.HfHubHTTPError):
        gone = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError)
        if isinstance(e, gone) or e.response.headers.get("X-Error-Code"):
            return False
        # 400, 401 and 403 without the Hub's own code come from storage, when a signed address expired.
        home = session.is_same_host(str(e.response.url), session.read_endpoint())
        return (
            e.response.status_code >= 500
            or e.response.status_code in (408, 416, 429)
            or (
                e.response.status_code in (400, 401, 403) and not (home and "/resolve" in e.response.url.path)
            )
        )
    if isinstance(e, http.HTTPError):
        return isinstance(e, http.TransportError) and not isinstance(e, http.UnsupportedProtocol)
    # huggingface_hub says "consistency check failed" as an OSError without number.
    return isinstance(e, OSError) and e.errno is None


def _format_digest_name(expected: FileDigest) -> str:
    return "sha256" if expected.kind == "sha256" else "git oid"


def _feed_digest(digest: Any, f: Any) -> str:
    while block := f.read(BLOCK):
        digest.update(block)
    return str(digest.hexdigest())

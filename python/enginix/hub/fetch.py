"""Fetch the files of one commit into a directory: in parallel, resumable, whole or absent.

Until the output is whole, everything lies in the work directory beside it (``enginix.work_directory``):
``tree/`` has finished files, ``part/`` has unfinished ones by digest. A later run continues with both, after
checking them.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from enginix.console import format_bytes, print_message
from enginix.digests import ContentDigest
from enginix.errors import MachineError, ManifestError, UsageError
from enginix.hub import hub_errors, lock, model_metadata, session
from enginix.hub.lock import COMMIT, Lock
from enginix.hub.transfer import FileDigest, TransferStopped, abort_xet_transfers, download_file
from enginix.manifest import UNLISTED_FILES, Manifest
from enginix.manifest import read_manifest as read_manifest
from enginix.output_path import refuse_link, require_absent
from enginix.progress import BYTES, ProgressStep, track_step
from enginix.work_directory import WorkDirectory, hold_work_directory, release_work_directory

JOBS = 4
SLACK = 1 << 20  # bytes that a file system may need for directories


@dataclass(frozen=True)
class FetchResult:
    """The outcome of a fetch.

    Attributes:
        moved: bytes that came over the network.
        kept: files that an earlier run had finished.
    """

    directory: Path
    files: int
    size: int
    moved: int
    kept: int


def fetch_locked_files(pinned: Lock, out: Path, jobs: int = JOBS) -> FetchResult:
    """Fetch the files of a lock into ``out``, with a manifest; do nothing if ``out`` has them already.

    Raises:
        HubError, HashMismatch: as :func:`transfer.download_file`; finished files are kept for the next run.
        MachineError: too little free space, or a file cannot be written.
        UsageError: ``out`` holds something else, or another fetch is filling it.
    """
    expected_files = [FileDigest(f.path, f.size, "sha256", f.sha256) for f in pinned.files]
    manifest = Manifest(
        artefact=pinned.type,
        name=pinned.repo.rpartition("/")[2].lower(),
        model=pinned.model,
        inputs={
            "repo": pinned.repo,
            "revision": pinned.revision,
            "license": pinned.license,
            "files": {f.path: f.sha256 for f in pinned.files},
        },
    )
    return fetch_files(
        pinned.address,
        pinned.revision,
        expected_files,
        out,
        jobs=jobs,
        manifest=manifest,
        check=lambda directory: require_lock_metadata(pinned, directory),
    )


def require_lock_metadata(pinned: Lock, directory: Path) -> None:
    """Compare a lock's model metadata with the configuration that it pins.

    A value that an older enginix did not write may be missing.

    Raises:
        LockError: a value differs from the configuration.
        ModelError: the configuration is not a JSON object.
    """
    paths = {f.path for f in pinned.files}
    content = {p: (directory / p).read_bytes() for p in model_metadata.FILES if p in paths}
    model_metadata.require_metadata(pinned.model, content, pinned.repo)


def fetch_file(repo: str, commit: str, expected: FileDigest, out: Path) -> FetchResult:
    """Fetch one file to ``out``: write it beside ``out``, verify it, rename it.

    Raises:
        HubError, HashMismatch, MachineError, UsageError: as :func:`fetch_locked_files`.
    """
    require_commit(repo, commit)
    out = Path(os.path.abspath(out))
    refuse_link(out)
    if out.exists():
        if not out.is_dir() and expected.matches(out):
            return FetchResult(out, 1, expected.size, 0, 1)
        raise UsageError("output exists already", where=out, fix="choose another -o, or remove it")
    moved = 0

    def count(n: int) -> None:
        nonlocal moved
        moved += n
        progress.advance(n)

    with (
        _hold_fetch_directory(out, keep=False) as work_directory,
        track_step(expected.path, expected.size, BYTES) as progress,
    ):
        require_free_space(work_directory.directory, expected.size, out)
        part = work_directory.make_folder("part") / expected.digest
        download_file(repo, commit, expected, part, moved=count)
        part.chmod(0o644)
        os.replace(part, out)
    return FetchResult(out, 1, expected.size, moved, 0)


def fetch_files(
    repo: str,
    commit: str,
    expected_files: Sequence[FileDigest],
    out: Path,
    *,
    jobs: int = JOBS,
    manifest: Manifest | None = None,
    keep: bool = True,
    check: Callable[[Path], None] = lambda _: None,
) -> FetchResult:
    """Fetch ``expected_files`` into the new directory ``out``.

    Args:
        manifest: what to write as its manifest; None for none.
        check: called with the whole directory before it appears; raises to refuse it.
        keep: keep finished files beside ``out`` when it fails, for the next run.

    Raises:
        HubError, HashMismatch, MachineError, UsageError: as :func:`fetch_locked_files`.
    """
    require_commit(repo, commit)
    out = Path(os.path.abspath(out))
    size = sum(w.size for w in expected_files)
    existing = FetchResult(out, len(expected_files), size, 0, len(expected_files))
    if _is_fetched(out, expected_files, manifest):
        return _finish_existing(existing, manifest, expected_files, check)
    with _hold_fetch_directory(out, keep=keep) as work_directory:
        # Once more with the lock held: another process may just have finished it.
        if _is_fetched(out, expected_files, manifest):
            return _finish_existing(existing, manifest, expected_files, check)
        tree, parts = work_directory.make_folder("tree"), work_directory.make_folder("part")
        # Before fetching, too: a path may be a file in one lock and a directory in another.
        _remove_unexpected_files(tree, expected_files)
        run = _ParallelFetch(repo, commit, tree, parts, jobs)
        with track_step(repo, size, BYTES) as progress:
            run.fetch_all(expected_files, progress, out)
        _remove_unexpected_files(tree, expected_files)
        check(tree)
        if manifest is not None:
            manifest.write(tree, known=_list_pinned(expected_files))
        for folder, _, _ in os.walk(tree):
            os.chmod(folder, 0o755)
        os.rename(tree, out)  # an empty directory is replaced
    return FetchResult(out, len(expected_files), size, run.moved, run.kept)


def require_commit(repo: str, revision: str) -> None:
    """Refuse a branch or tag.

    Raises:
        UsageError: not 40 hex digits.
    """
    if not COMMIT.fullmatch(revision):
        shown_revision = ascii(revision)[:100]
        raise UsageError(
            f"revision {shown_revision} is not a commit of 40 hex digits; a branch or tag can move",
            where=repo,
            fix=f"pin it: enginix lock {_format_lock_argument(repo)} "
            f"--revision {ascii(revision)[1:-1][:100]} -o FILE",
        )


def _format_lock_argument(address: str) -> str:
    """Return the argument of ``enginix lock`` for a repository."""
    name_and_type = lock.split_address(address)
    return (
        f"--dataset {name_and_type[0]}"
        if name_and_type is not None and name_and_type[1] == "dataset"
        else address
    )


def require_free_space(directory: Path, need: int, out: Path) -> None:
    """Refuse a download that the disk has no space for.

    Raises:
        MachineError: fewer than ``need`` bytes are free.
    """
    free = shutil.disk_usage(directory).free
    if need > max(free - SLACK, 0):
        raise MachineError(
            f"{format_bytes(need)} are needed, {format_bytes(free)} are free",
            where=out,
            fix=f"free {format_bytes(need + SLACK - free)}, or choose another -o",
        )


class _ParallelFetch:
    def __init__(self, repo: str, commit: str, tree: Path, parts: Path, jobs: int) -> None:
        self.repo, self.commit, self.tree, self.parts, self.jobs = repo, commit, tree, parts, jobs
        self.stop = threading.Event()
        self.moved = self.kept = self.files = self.done = 0
        self._lock = threading.Lock()

    def fetch_all(self, expected_files: Sequence[FileDigest], progress: ProgressStep, out: Path) -> None:
        self.files = len(expected_files)
        # Equal content is fetched once, and files of one digest never write to the same part.
        groups: dict[tuple[str, str, int], list[FileDigest]] = {}
        for w in expected_files:
            groups.setdefault((w.kind, w.digest, w.size), []).append(w)
        order = sorted(groups.values(), key=lambda g: (-g[0].size, g[0].path))
        with ThreadPoolExecutor(max(self.jobs, 1), thread_name_prefix="fetch") as pool:
            try:
                missing = []
                for g, finished in zip(order, pool.map(self._is_finished, order), strict=True):
                    if not finished:
                        missing.append(g)
                        continue
                    self.kept += len(g)
                    for w in g:
                        progress.resume(w.size)
                        self._count_file(progress)
                have = 0
                for g in missing:
                    part = self.parts / g[0].digest
                    resumed_bytes = min(part.stat().st_size, g[0].size) if part.exists() else 0
                    progress.resume(resumed_bytes)
                    have += resumed_bytes
                require_free_space(self.tree, sum(w.size for g in missing for w in g) - have, out)
                tasks = [pool.submit(self._fetch_group, g, progress) for g in missing]
                done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
                for task in done:
                    task.result()
            except BaseException as e:
                self.stop.set()
                abort_xet_transfers()
                pool.shutdown(wait=True, cancel_futures=True)
                if isinstance(e, OSError):
                    raise hub_errors.translate_hub_error(e, self.repo) from e
                raise

    def _count_file(self, progress: ProgressStep) -> None:
        with self._lock:
            self.done += 1
            progress.note = f"{self.done} of {self.files} files"

    def _is_finished(self, group: list[FileDigest]) -> bool:
        """Return whether an earlier run left every file of the group with the right bytes."""
        return all(w.matches(self.tree / w.path) for w in group)

    def _fetch_group(self, group: list[FileDigest], progress: ProgressStep) -> None:
        def count(n: int) -> None:
            progress.advance(n)
            with self._lock:
                self.moved += n

        first = group[0]
        part = self.parts / first.digest
        try:
            download_file(self.repo, self.commit, first, part, moved=count, stop=self.stop)
            part.chmod(0o644)
            for w in group:
                target = self.tree / w.path
                if target.is_dir() and not target.is_symlink():
                    shutil.rmtree(target)
                target.parent.mkdir(parents=True, exist_ok=True)
                if w is group[-1]:
                    os.replace(part, target)
                else:
                    shutil.copyfile(part, target)
                if w is not first:
                    progress.resume(w.size)
                self._count_file(progress)
        except TransferStopped:
            return
        except OSError as e:
            raise hub_errors.translate_hub_error(e, self.repo, first.path) from e


@contextmanager
def _hold_fetch_directory(out: Path, *, keep: bool) -> Iterator[WorkDirectory]:
    """Hold the work directory; remove it on failure, unless ``keep`` is set and it has finished files."""
    with hold_work_directory(out, doing="fetching") as work_directory:
        work_directory.remove("hf")
        session.set_private_caches(work_directory.path / "hf")
        try:
            yield work_directory
        except BaseException as e:
            kept_bytes = sum(
                Path(folder, name).lstat().st_size
                for part in ("tree", "part")
                for folder, _, names in os.walk(work_directory.directory / part)
                for name in names
            )
            if keep and kept_bytes and isinstance(e, (Exception, KeyboardInterrupt)):
                print_message(
                    f"kept {format_bytes(kept_bytes)} in {work_directory.path}; "
                    "run the same command again to continue from there"
                )
            else:
                release_work_directory(work_directory)
            if isinstance(e, OSError):
                raise hub_errors.translate_hub_error(e, str(work_directory.path)) from e
            raise
        release_work_directory(work_directory)


def _list_pinned(expected_files: Sequence[FileDigest]) -> dict[str, ContentDigest]:
    """Return the digests of files whose bytes were compared with them."""
    return {f.path: ContentDigest(f.digest, f.size) for f in expected_files if f.kind == "sha256"}


def _finish_existing(
    existing: FetchResult,
    manifest: Manifest | None,
    expected_files: Sequence[FileDigest],
    check: Callable[[Path], None],
) -> FetchResult:
    """Check the files that exist already, and write this lock's manifest if theirs differs."""
    check(existing.directory)
    # Another commit may have the same files: then only the manifest, which names the commit, is out of date.
    if manifest is not None and not _has_same_manifest(existing.directory, manifest):
        manifest.write(existing.directory, known=_list_pinned(expected_files))
    return existing


def _is_fetched(out: Path, expected_files: Sequence[FileDigest], manifest: Manifest | None) -> bool:
    """Return whether ``out`` already holds exactly the expected files, with or without a manifest.

    Raises:
        UsageError: it holds something else.
    """
    if not os.path.lexists(out) or (out.is_dir() and not out.is_symlink() and not any(out.iterdir())):
        require_absent(out)
        return False
    refuse_link(out)
    fix = "choose another -o, or remove it"
    if not out.is_dir():
        raise UsageError("output exists and is not a directory", where=out, fix=fix)
    for w in expected_files:
        if not w.matches(out / w.path):
            raise UsageError(
                f"output exists, and {w.path} in it differs from the pinned file", where=out, fix=fix
            )
    known = {w.path for w in expected_files} | (set(UNLISTED_FILES) if manifest else set())
    for entry in sorted(out.rglob("*")):
        name = entry.relative_to(out).as_posix()
        if entry.is_symlink() or (not entry.is_dir() and name not in known):
            raise UsageError(f"output exists, and {name} in it is not pinned", where=out, fix=fix)
    return True


def _has_same_manifest(out: Path, manifest: Manifest) -> bool:
    """Return whether the manifest in ``out`` agrees with ``manifest`` on artefact, model and inputs."""
    try:
        existing_manifest = read_manifest(out)
    except ManifestError:
        return False
    if existing_manifest.files is None:  # of an earlier enginix
        return False
    return (existing_manifest.artefact, existing_manifest.model, existing_manifest.inputs) == (
        manifest.artefact,
        manifest.model,
        manifest.inputs,
    )


def _remove_unexpected_files(tree: Path, expected_files: Sequence[FileDigest]) -> None:
    """Remove the files that an earlier run for another lock left."""
    known = {w.path for w in expected_files}
    for folder, _, names in os.walk(tree, topdown=False):
        for name in names:
            path = Path(folder, name)
            if path.relative_to(tree).as_posix() not in known:
                path.unlink()
        if Path(folder) != tree and not os.listdir(folder):
            os.rmdir(folder)

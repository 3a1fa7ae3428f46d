"""Many files of one commit into a directory: parallel, resumable across runs, all or nothing.

While it fills, everything lies in the work directory beside the output (``enginix.files``): ``tree/`` has
finished files, ``part/`` has unfinished ones by digest. A later run takes both up again, and checks what it
finds.
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

from enginix.console import human_bytes, say
from enginix.errors import LockError, MachineError, ManifestError, UsageError
from enginix.files import WorkDirectory, check_free, hold_work_directory, refuse_link, release
from enginix.hub import facts, faults, lock, session
from enginix.hub.lock import COMMIT, Lock
from enginix.hub.progress import Progress
from enginix.hub.transfer import Stopped, Wanted, abort, download, free_bytes
from enginix.manifest import FILE, Manifest
from enginix.manifest import read as read_manifest

JOBS = 4
SLACK = 1 << 20  # bytes that a file system may need for directories


@dataclass(frozen=True)
class Fetched:
    """What a fetch did.

    Attributes:
        moved: bytes that came over the network.
        kept: files that an earlier run had finished.
    """

    directory: Path
    files: int
    size: int
    moved: int
    kept: int


def fetch(pinned: Lock, out: Path, jobs: int = JOBS) -> Fetched:
    """Fetches what a lock pins into ``out``, with a manifest; does nothing when it is there already.

    Raises:
        HubError, HashMismatch: see ``transfer.download``; finished files are kept for the next run.
        MachineError: no room for the files, or the disk refuses.
        UsageError: ``out`` holds something else, or another fetch is filling it.
    """
    wanted = [Wanted(f.path, f.size, "sha256", f.sha256) for f in pinned.files]
    note = Manifest(
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
    return collect(
        pinned.address,
        pinned.revision,
        wanted,
        out,
        jobs=jobs,
        note=note,
        check=lambda directory: require_facts(pinned, directory),
    )


def require_facts(pinned: Lock, directory: Path) -> None:
    """Compares a lock's facts with those of the configuration that it pins.

    A fact that an older enginix did not write may be missing.

    Raises:
        LockError: a fact that the configuration does not say.
        ModelError: the configuration is not a JSON object.
    """
    stated = {k: v for k, v in pinned.model.items() if k not in facts.FORMER}
    if not stated:
        return
    paths = {f.path for f in pinned.files}
    content = {p: (directory / p).read_bytes() for p in facts.FILES if p in paths}
    derived = facts.model_facts(content, pinned.repo)
    for name, value in sorted(stated.items()):
        known = derived.get(name)
        if name not in derived or known != value or type(known) is not type(value):
            found = f"{ascii(known)[:100]}" if name in derived else "nothing of it"
            raise LockError(
                f"model.{name} is {ascii(value)[:100]}, and the pinned configuration says {found}",
                where=pinned.repo,
                fix="write the lock again with `enginix lock`, and ask who changed it",
            )


def fetch_file(repo: str, commit: str, wanted: Wanted, out: Path) -> Fetched:
    """Fetches one file straight to ``out``: written beside it, verified, renamed. Nothing else is left.

    Raises:
        HubError, HashMismatch, MachineError, UsageError: as ``fetch``.
    """
    require_commit(repo, commit)
    out = Path(os.path.abspath(out))
    refuse_link(out)
    if out.exists():
        if not out.is_dir() and wanted.matches(out):
            return Fetched(out, 1, wanted.size, 0, 1)
        raise UsageError("output exists already", where=str(out), fix="choose another -o, or remove it")
    moved = 0

    def count(n: int) -> None:
        nonlocal moved
        moved += n
        progress.moved(n)

    with _state(out, keep=False) as held, Progress(wanted.path, wanted.size, 1) as progress:
        require_room(held.directory, wanted.size, out)
        part = held.folder("part") / wanted.digest
        download(repo, commit, wanted, part, moved=count)
        part.chmod(0o644)
        os.replace(part, out)
    return Fetched(out, 1, wanted.size, moved, 0)


def collect(
    repo: str,
    commit: str,
    wanted: Sequence[Wanted],
    out: Path,
    *,
    jobs: int = JOBS,
    note: Manifest | None = None,
    keep: bool = True,
    check: Callable[[Path], None] = lambda _: None,
) -> Fetched:
    """Fetches ``wanted`` into the new directory ``out``.

    Args:
        note: manifest to write into it.
        check: looks at the whole directory before it appears, and refuses it by raising.
        keep: keep finished files beside ``out`` when it fails, for the next run.

    Raises:
        HubError, HashMismatch, MachineError, UsageError: as ``fetch``.
    """
    require_commit(repo, commit)
    out = Path(os.path.abspath(out))
    size = sum(w.size for w in wanted)
    there = Fetched(out, len(wanted), size, 0, len(wanted))
    if _is_there(out, wanted, note):
        return _noted(there, note, check)
    with _state(out, keep=keep) as held:
        # Once more with the lock held: another process may just have finished it.
        if _is_there(out, wanted, note):
            return _noted(there, note, check)
        tree, parts = held.folder("tree"), held.folder("part")
        # First, too: what is a file in one lock may be a directory in another.
        _remove_strangers(tree, wanted)
        run = _Run(repo, commit, tree, parts, jobs)
        with Progress(f"fetch {repo}", size, len(wanted)) as progress:
            run.go(wanted, progress, out)
        _remove_strangers(tree, wanted)
        check(tree)
        if note is not None:
            note.write(tree)
        for folder, _, _ in os.walk(tree):
            os.chmod(folder, 0o755)
        os.rename(tree, out)  # an empty directory is replaced
    return Fetched(out, len(wanted), size, run.moved, run.kept)


def require_commit(repo: str, revision: str) -> None:
    """Refuses a branch or tag.

    Raises:
        UsageError: not 40 hex digits.
    """
    if not COMMIT.fullmatch(revision):
        raise UsageError(
            f"revision {ascii(revision)[:100]} is not a commit of 40 hex digits; a branch or tag can move",
            where=repo,
            fix=f"pin it: enginix lock {_words(repo)} --revision {ascii(revision)[1:-1][:100]} -o FILE",
        )


def _words(address: str) -> str:
    """What ``enginix lock`` is given for a repository."""
    found = lock.split(address)
    return f"--dataset {found[0]}" if found is not None and found[1] == "dataset" else address


def require_room(directory: Path, need: int, out: Path) -> None:
    """Says before the download that the disk is too small.

    Raises:
        MachineError: fewer than ``need`` bytes are free.
    """
    free = free_bytes(directory)
    if need > max(free - SLACK, 0):
        raise MachineError(
            f"{human_bytes(need)} are needed, {human_bytes(free)} are free",
            where=str(out),
            fix=f"free {human_bytes(need + SLACK - free)}, or choose another -o",
        )


class _Run:
    def __init__(self, repo: str, commit: str, tree: Path, parts: Path, jobs: int) -> None:
        self.repo, self.commit, self.tree, self.parts, self.jobs = repo, commit, tree, parts, jobs
        self.stop = threading.Event()
        self.moved = self.kept = 0
        self._lock = threading.Lock()

    def go(self, wanted: Sequence[Wanted], progress: Progress, out: Path) -> None:
        # Equal content is fetched once, and files of one digest never write to the same part.
        groups: dict[tuple[str, str, int], list[Wanted]] = {}
        for w in wanted:
            groups.setdefault((w.kind, w.digest, w.size), []).append(w)
        order = sorted(groups.values(), key=lambda g: (-g[0].size, g[0].path))
        with ThreadPoolExecutor(max(self.jobs, 1), thread_name_prefix="fetch") as pool:
            try:
                missing = []
                for g, finished in zip(order, pool.map(self._finished, order), strict=True):
                    if not finished:
                        missing.append(g)
                        continue
                    self.kept += len(g)
                    for w in g:
                        progress.had(w.size)
                        progress.file()
                have = 0
                for g in missing:
                    part = self.parts / g[0].digest
                    had = min(part.stat().st_size, g[0].size) if part.exists() else 0
                    progress.had(had)
                    have += had
                require_room(self.tree, sum(w.size for g in missing for w in g) - have, out)
                tasks = [pool.submit(self._one, g, progress) for g in missing]
                done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
                for task in done:
                    task.result()
            except BaseException as e:
                self.stop.set()
                abort()
                pool.shutdown(wait=True, cancel_futures=True)
                if isinstance(e, OSError):
                    raise faults.translate(e, self.repo) from e
                raise

    def _finished(self, group: list[Wanted]) -> bool:
        """Whether an earlier run left every file of the group, with the right bytes."""
        return all(w.matches(self.tree / w.path) for w in group)

    def _one(self, group: list[Wanted], progress: Progress) -> None:
        def count(n: int) -> None:
            progress.moved(n)
            with self._lock:
                self.moved += n

        first = group[0]
        part = self.parts / first.digest
        try:
            download(self.repo, self.commit, first, part, moved=count, stop=self.stop)
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
                    progress.had(w.size)
                progress.file()
        except Stopped:
            return
        except OSError as e:
            raise faults.translate(e, self.repo, first.path) from e


@contextmanager
def _state(out: Path, *, keep: bool) -> Iterator[WorkDirectory]:
    """The work directory, held by one process at a time; removed on failure unless it is worth keeping."""
    with hold_work_directory(out, doing="fetching") as held:
        held.remove("hf")
        session.private_caches(held.path / "hf")
        try:
            yield held
        except BaseException as e:
            kept = sum(
                Path(folder, name).lstat().st_size
                for part in ("tree", "part")
                for folder, _, names in os.walk(held.directory / part)
                for name in names
            )
            if keep and kept and isinstance(e, (Exception, KeyboardInterrupt)):
                say(
                    f"kept {human_bytes(kept)} in {held.path}; run the same command again to go on from there"
                )
            else:
                release(held)
            if isinstance(e, OSError):
                raise faults.translate(e, str(held.path)) from e
            raise
        release(held)


def _noted(there: Fetched, note: Manifest | None, check: Callable[[Path], None]) -> Fetched:
    """What was there already, with the manifest of this lock."""
    check(there.directory)
    # Another commit may have the same files: then only what names the commit is out of date.
    if note is not None and not _names(there.directory, note):
        note.write(there.directory)
    return there


def _is_there(out: Path, wanted: Sequence[Wanted], note: Manifest | None) -> bool:
    """Whether ``out`` holds exactly what is wanted already, with or without a manifest.

    Raises:
        UsageError: it holds something else.
    """
    if not os.path.lexists(out) or (out.is_dir() and not out.is_symlink() and not any(out.iterdir())):
        check_free(out)
        return False
    refuse_link(out)
    fix = "choose another -o, or remove it"
    if not out.is_dir():
        raise UsageError("output exists and is not a directory", where=str(out), fix=fix)
    for w in wanted:
        if not w.matches(out / w.path):
            raise UsageError(
                f"output exists, and {w.path} in it is not what is pinned", where=str(out), fix=fix
            )
    known = {w.path for w in wanted} | ({FILE} if note else set())
    for found in sorted(out.rglob("*")):
        name = found.relative_to(out).as_posix()
        if found.is_symlink() or (not found.is_dir() and name not in known):
            raise UsageError(f"output exists, and {name} in it is not pinned", where=str(out), fix=fix)
    return True


def _names(out: Path, note: Manifest) -> bool:
    """Whether the manifest in ``out`` says what ``note`` says of model and lock."""
    try:
        found = read_manifest(out)
    except ManifestError:
        return False
    return (found.artefact, found.model, found.inputs) == (note.artefact, note.model, note.inputs)


def _remove_strangers(tree: Path, wanted: Sequence[Wanted]) -> None:
    """Removes what an earlier run for another lock left."""
    known = {w.path for w in wanted}
    for folder, _, names in os.walk(tree, topdown=False):
        for name in names:
            found = Path(folder, name)
            if found.relative_to(tree).as_posix() not in known:
                found.unlink()
        if Path(folder) != tree and not os.listdir(folder):
            os.rmdir(folder)

"""Outputs that are either whole or absent; files outside of them stay untouched.

Until an output is whole, all of it lies beside ``OUT`` under hidden names: one process at a time holds
``.OUT.partial`` and fills a directory of a fresh name, or (when fetching) continues with the files of an
earlier run. The next run removes the leftovers of a killed one. Links below these names are never followed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from enginix.console import print_message
from enginix.errors import MachineError, OutputTaken, UsageError
from enginix.files import is_unfinished_name, refuse_damage
from enginix.output_path import OTHER_OUTPUT_FIX, require_absent

_LOCK = "lock"
_STATE = frozenset({_LOCK, "tree", "part", "hf"})  # names that a run may leave in a work directory
_ATTEMPTS = 100  # times that a directory may vanish between two calls


@dataclass(frozen=True)
class WorkDirectory:
    """``.OUT.partial``, held by this process.

    Attributes:
        path: its name, for people.
        directory: the same directory by its open descriptor, valid in this process only: a link that later
            takes the place of the name is not followed.
        lock: descriptor of the lock file.
    """

    path: Path
    directory: Path
    lock: int

    def remove(self, name: str) -> None:
        """Remove an entry of any type; of a link only the link itself."""
        _remove_path(self.directory / name)

    def make_folder(self, name: str) -> Path:
        """Return the directory of that name, made if needed; anything else of that name is removed first."""
        directory = self.directory / name
        if not _is_own(directory, stat.S_ISDIR):
            _remove_path(directory)
            directory.mkdir()
        for folder, folders, files in os.walk(directory):
            for child in (*folders, *files):
                entry = Path(folder, child)
                if not _is_own(entry, stat.S_ISDIR if child in folders else stat.S_ISREG):
                    _remove_path(entry)
            folders[:] = [f for f in folders if Path(folder, f).is_dir()]
        return directory

    def record(self, work: Path) -> None:
        """Record the directory of a fresh name that this run fills, so that the next run can remove it."""
        text = json.dumps({"work": work.name, "inode": os.lstat(work).st_ino}).encode()
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, text, 0)

    def find_recorded_work(self) -> Path | None:
        """Return the directory that a killed run recorded; None if it was replaced since."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            note = json.loads(os.pread(self.lock, 4096, 0))
            name = note["work"]
            leftover = self.path.with_name(name)
            if name == leftover.name and is_unfinished_name(name):
                status = os.lstat(leftover)
                if stat.S_ISDIR(status.st_mode) and (status.st_ino, status.st_uid) == (
                    note["inode"],
                    os.geteuid(),
                ):
                    return leftover
        return None


def _is_own(path: Path, kind: Any) -> bool:
    """Return whether a path has that file type and belongs to this user; a file must have one name only."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    single = stat.S_ISDIR(status.st_mode) or status.st_nlink == 1
    return bool(kind(status.st_mode)) and status.st_uid == os.geteuid() and single


def _remove_path(path: Path) -> None:
    import shutil

    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)


@contextmanager
def hold_work_directory(out: Path, *, doing: str = "writing") -> Iterator[WorkDirectory]:
    """Hold ``.OUT.partial``; the caller removes it with :func:`release_work_directory`.

    Raises:
        UsageError: another process holds it, or no earlier run created the file of that name.
        MachineError: it cannot be made.
    """
    path = out.with_name(f".{out.name}.partial")
    # In a directory of many users, as a Nix store is, the leftover of another user must not fail this run.
    with suppress(OSError):
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode) and status.st_uid != os.geteuid():
            path = out.with_name(f".{out.name}.{os.geteuid()}.partial")
    folder, lock = _open_held(path, doing)
    try:
        yield WorkDirectory(path, Path(f"/proc/self/fd/{folder}"), lock)
    finally:
        os.close(lock)
        os.close(folder)


def is_being_written(out: Path) -> bool:
    """Tell whether a process on this machine holds the work directory of an output; takes no lock itself."""
    with suppress(OSError):
        held = Path("/proc/locks").read_text("ascii").splitlines()
        for name in (f".{out.name}.partial", f".{out.name}.{os.geteuid()}.partial"):
            with suppress(FileNotFoundError):
                inode = os.stat(out.with_name(name) / _LOCK).st_ino
                if any(" FLOCK " in line and f":{inode} " in line for line in held):
                    return True
    return False


def release_work_directory(work_directory: WorkDirectory) -> None:
    """Remove a work directory with the files of earlier runs."""
    with suppress(OSError):
        for name in sorted(_STATE & set(os.listdir(work_directory.directory))):
            work_directory.remove(name)
        os.rmdir(work_directory.path)


def _open_held(path: Path, doing: str) -> tuple[int, int]:
    """Return descriptors of the directory and of the locked file in it."""
    vanished = 0
    while True:
        folder = lock = -1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)
            try:
                folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError as e:
                if e.errno in (errno.ELOOP, errno.ENOTDIR):
                    _refuse_leftover(path, "a link, or not a directory")
                raise
            _check_work_directory(path, folder)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            lock = os.open(_LOCK, flags, 0o600, dir_fd=folder)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(lock)
            if status.st_nlink:  # else the previous holder just removed it
                if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or status.st_uid != os.geteuid():
                    _refuse_leftover(path, f"{_LOCK} in it is not an earlier run's")
                return folder, lock
        except BlockingIOError as e:
            _close_descriptors(lock, folder)
            raise OutputTaken(
                f"another enginix is {doing} to the same place", where=path, fix="wait for it"
            ) from e
        except OSError as e:
            _close_descriptors(lock, folder)
            if e.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                _refuse_leftover(path, f"{_LOCK} in it is not an earlier run's")
            # The previous holder may just have finished and removed it; /proc does not let it be made again.
            if not isinstance(e, FileNotFoundError) or vanished == _ATTEMPTS:
                raise MachineError(
                    f"cannot write: {e.strerror}", where=path, fix="choose another -o, or make it writable"
                ) from e
        except BaseException:
            _close_descriptors(lock, folder)
            raise
        else:
            _close_descriptors(lock, folder)
        vanished += 1


def _close_descriptors(*descriptors: int) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)


def _check_work_directory(path: Path, folder: int) -> None:
    status = os.fstat(folder)
    if status.st_uid != os.geteuid():
        _refuse_leftover(path, f"it belongs to user {status.st_uid}")
    if status.st_mode & 0o022:
        _refuse_leftover(path, f"others may write to it (mode {stat.S_IMODE(status.st_mode):04o})")
    if unexpected := sorted(set(os.listdir(folder)) - _STATE):
        _refuse_leftover(path, f"{ascii(unexpected[0])[1:-1][:100]} in it is not an earlier run's")


def _refuse_leftover(path: Path, why: str) -> NoReturn:
    raise UsageError(
        f"the place of unfinished output holds something that no earlier run left: {why}",
        where=path,
        fix="look at it and move it away, or choose another -o",
    )


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Yield a directory to fill beside ``out``; rename it to ``out`` on success, remove it on failure.

    A process killed midway leaves hidden ``.OUT.*partial`` beside it, never ``out``; the next one for the
    same output removes them.

    Raises:
        UsageError: ``out`` exists already and is not an empty directory, or another process is making it.
        MachineError: the file system refuses, for instance because it is full.
    """
    # Imported late: a command that only reads a manifest is to start in milliseconds.
    import tempfile

    out = Path(os.path.abspath(out))
    require_absent(out)
    with hold_work_directory(out) as work_directory:
        try:
            # Once more with the lock held: another process may just have finished it.
            require_absent(out)
            fix = "choose another -o, or make it writable"
            with refuse_damage(MachineError, out, fix, what="cannot write"):
                if (leftover := work_directory.find_recorded_work()) is not None:
                    print_message(f"note: removing {leftover.name}, left by a run that was ended")
                    _remove_path(leftover)
                partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
                work_directory.record(partial)
            identity = os.lstat(partial).st_ino
            try:
                yield partial
                _require_same(partial, identity)
                partial.chmod(0o755)
                os.rename(partial, out)  # an empty directory is replaced
            except OSError as e:
                taken = e.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY)
                raise MachineError(
                    f"cannot write: {e.strerror or e}",
                    where=out,
                    fix=OTHER_OUTPUT_FIX if taken else "free disk space, or choose another -o",
                ) from e
            finally:
                with suppress(OSError):
                    if os.lstat(partial).st_ino == identity:
                        _remove_path(partial)
        finally:
            release_work_directory(work_directory)


def _require_same(partial: Path, identity: int) -> None:
    status = os.lstat(partial)
    if not stat.S_ISDIR(status.st_mode) or status.st_ino != identity:
        raise MachineError(
            "the directory was replaced by another one while it was filled",
            where=partial,
            fix="choose a -o that others cannot write to",
        )

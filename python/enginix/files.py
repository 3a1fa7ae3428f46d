"""Outputs that are either whole or absent; files outside of them stay untouched.

Every command follows one rule. ``OUT`` does not exist yet, or is an empty directory; a symbolic link and a
mount point are refused before any work. Until the output is whole, all of it lies beside ``OUT`` under hidden
names: one process at a time holds ``.OUT.partial`` and fills a directory of a fresh name, or (when fetching)
continues with the files of an earlier run. The next run removes the leftovers of a killed one. Links below
these names are never followed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from enginix.console import print_message
from enginix.errors import EnginixError, MachineError, OutputTaken, UsageError

_OTHER_OUTPUT_FIX = "choose another -o, or remove it"
_LOCK = "lock"
_STATE = frozenset({_LOCK, "tree", "part", "hf"})  # names that a run may leave in a work directory
_ATTEMPTS = 100  # times that a directory may vanish between two calls


def find_user_cache() -> Path:
    """Return the directory of everything that enginix keeps for this user, and can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "enginix"


def dump_json(value: Any) -> str:
    """Return canonical JSON: sorted keys, two spaces, a final newline; the same bytes on every machine."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def read_json_object(
    path: Path, error: type[EnginixError], fix: str | None = None, missing: EnginixError | None = None
) -> dict[str, Any]:
    """Read a JSON object that another stage or a user wrote.

    Args:
        error: class of what is raised where the file is unreadable, or no object.
        fix: of that error.
        missing: raised where there is no such file; None raises ``error``.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        if missing is not None and isinstance(e, FileNotFoundError):
            raise missing from e
        raise error(f"unreadable: {e}", where=str(path), fix=fix) from e
    if not isinstance(content, dict):
        raise error("not a JSON object", where=str(path), fix=fix)
    return content


def write_text(path: Path, text: str) -> None:
    """Write a file beside ``path`` under a fresh name and rename it, so that no reader sees half a file."""
    import tempfile

    beside: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        beside = Path(name)
        with open(handle, "w", encoding="utf-8") as f:
            os.fchmod(handle, 0o666 & ~_read_umask())
            f.write(text)
        os.replace(beside, path)
    except BaseException as e:
        if beside is not None:
            beside.unlink(missing_ok=True)
        if isinstance(e, OSError):
            raise MachineError(f"cannot write: {e.strerror}", where=str(path)) from e
        raise


def write_new_text(path: Path, text: str) -> Path:
    """Write a file that replaces none: NAME-2 where another run has made it meanwhile; return its path."""
    candidate, number = path, 1
    while True:
        try:
            # Reserves the name.
            os.close(os.open(candidate, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
            continue
        except OSError as e:
            raise MachineError(f"cannot write: {e.strerror}", where=str(path)) from e
        write_text(candidate, text)
        return candidate


def _read_umask() -> int:
    """Read the process's umask without changing it, which other threads would see."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes, read in 1 MiB blocks."""
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the hex SHA-256 of a value's canonical JSON."""
    import hashlib

    return hashlib.sha256(dump_json(value).encode()).hexdigest()


def refuse_link(out: Path) -> None:
    """Refuse an output that is a symbolic link, dangling or not.

    Raises:
        UsageError: it is a symbolic link.
    """
    if out.is_symlink():
        raise UsageError(
            f"output is a symbolic link to {ascii(os.readlink(out))[1:-1]}",
            where=str(out),
            fix="pass the path that it leads to, or remove the link",
        )


def is_unfinished_name(name: str) -> bool:
    """Return whether a file or directory has a name of this module for output that is not whole yet."""
    return name.startswith(".") and name.endswith(".partial")


def refuse_output_in_input(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output inside a directory that is read: it would change what it, and others, read.

    Args:
        inputs: paths that a command reads; files and what does not exist hold no output.

    Raises:
        UsageError: ``out`` lies inside one of them, also through links.
    """
    parent = Path(os.path.realpath(os.path.abspath(out.parent)))
    for given in inputs:
        directory = Path(os.path.realpath(given))
        if (parent == directory or directory in parent.parents) and directory.is_dir():
            beside = directory.with_name(f"{directory.name}-{out.name}")
            raise UsageError(
                f"output lies inside {given}, which is read",
                where=str(out),
                fix=f"choose another -o, for instance beside it: -o {beside}",
            )


def require_absent(out: Path) -> None:
    """Refuse an output directory that exists, before anything is computed.

    Raises:
        UsageError: it exists and is not an empty directory that can be replaced.
        MachineError: it cannot be read.
    """
    out = Path(os.path.abspath(out))
    refuse_link(out)
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputTaken("output exists already", where=str(out), fix=_OTHER_OUTPUT_FIX)
    except OSError as e:
        raise MachineError(f"cannot be read: {e.strerror}", where=str(out), fix=_OTHER_OUTPUT_FIX) from e
    if _is_mount_point(out):
        raise UsageError(
            "output is a mount point, which a finished directory cannot replace",
            where=str(out),
            fix=f"choose a directory below it: -o {out / 'NAME'}",
        )


def require_absent_file(out: Path) -> None:
    """Refuse an output file that exists, or whose directory does not, before anything is computed.

    Raises:
        UsageError: it exists, or has no directory.
    """
    if out.is_dir():
        raise UsageError("is a directory", where=str(out), fix="pass a file to -o")
    require_absent(out)
    if not out.absolute().parent.is_dir():
        raise UsageError("its directory does not exist", where=str(out), fix=f"mkdir -p {out.parent}")


def _is_mount_point(path: Path) -> bool:
    """Return whether a file system is mounted there, bind mounts of the same file system included."""
    if os.path.ismount(path):
        return True
    with suppress(OSError):
        points = Path("/proc/self/mountinfo").read_bytes().splitlines()
        name = os.fsencode(os.path.realpath(path))
        for plain, escaped in ((b"\\", b"\\134"), (b" ", b"\\040"), (b"\t", b"\\011"), (b"\n", b"\\012")):
            name = name.replace(plain, escaped)
        return any(line.split()[4] == name for line in points)
    return False


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
            if name == leftover.name and name.startswith(".") and name.endswith(".partial"):
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
                f"another enginix is {doing} to the same place", where=str(path), fix="wait for it"
            ) from e
        except OSError as e:
            _close_descriptors(lock, folder)
            if e.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                _refuse_leftover(path, f"{_LOCK} in it is not an earlier run's")
            # The previous holder may just have finished and removed it; /proc does not let it be made again.
            if not isinstance(e, FileNotFoundError) or vanished == _ATTEMPTS:
                raise MachineError(
                    f"cannot write: {e.strerror}",
                    where=str(path),
                    fix="choose another -o, or make it writable",
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
        where=str(path),
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
            try:
                if (leftover := work_directory.find_recorded_work()) is not None:
                    print_message(f"note: removing {leftover.name}, left by a run that was ended")
                    _remove_path(leftover)
                partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
                work_directory.record(partial)
            except OSError as e:
                raise MachineError(
                    f"cannot write: {e.strerror or e}",
                    where=str(out),
                    fix="choose another -o, or make it writable",
                ) from e
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
                    where=str(out),
                    fix=_OTHER_OUTPUT_FIX if taken else "free disk space, or choose another -o",
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
            where=str(partial),
            fix="choose a -o that others cannot write to",
        )

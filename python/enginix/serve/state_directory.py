"""A server's private directory, which its supervisor holds, and what killed supervisors left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from enginix.errors import MachineError
from enginix.files import refuse_damage

PREFIX = "enginix-serve-"
# Exists once the supervisor holds the directory's lock, which it does as long as it lives.
HELD = "held"


class StateDirectory:
    """A new private directory below TMPDIR; directories of supervisors that were killed are removed first.

    Attributes:
        path: the directory; its name is unpredictable, and only this user may enter it.

    Raises:
        MachineError: there is no writable directory for temporary files.
    """

    def __init__(self) -> None:
        where, fix = os.environ.get("TMPDIR", "/tmp"), "set TMPDIR to a writable directory"
        with refuse_damage(MachineError, where, fix, what="no place for temporary files"):
            _remove_leftovers(Path(tempfile.gettempdir()))
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
            self._lock = _open_directory(self.path)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            (self.path / HELD).touch(0o600)

    def remove(self) -> None:
        """Remove the directory with all that is in it; may be called twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _remove_leftovers(parent: Path) -> None:
    """Remove this user's directories whose supervisor does not live any more."""
    for path in parent.glob(f"{PREFIX}*"):
        # Not a directory, another user's, held, or gone meanwhile.
        with contextlib.suppress(OSError):
            lock = _open_directory(path)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_uid == os.getuid() and (path / HELD).exists():
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _open_directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

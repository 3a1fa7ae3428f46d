"""Which paths an output may have: decided before any work.

``OUT`` does not exist yet, or is an empty directory; a symbolic link and a mount point are refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from enginix.errors import MachineError, OutputTaken, UsageError
from enginix.files import refuse_damage

OTHER_OUTPUT_FIX = "choose another -o, or remove it"


def refuse_link(out: Path) -> None:
    """Refuse an output that is a symbolic link, dangling or not.

    Raises:
        UsageError: it is a symbolic link.
    """
    if out.is_symlink():
        raise UsageError(
            f"output is a symbolic link to {ascii(os.readlink(out))[1:-1]}",
            where=out,
            fix="pass the path that it leads to, or remove the link",
        )


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
                where=out,
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
    with refuse_damage(MachineError, out, OTHER_OUTPUT_FIX, what="cannot be read"):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputTaken("output exists already", where=out, fix=OTHER_OUTPUT_FIX)
    if _is_mount_point(out):
        raise UsageError(
            "output is a mount point, which a finished directory cannot replace",
            where=out,
            fix=f"choose a directory below it: -o {out / 'NAME'}",
        )


def require_absent_file(out: Path) -> None:
    """Refuse an output file that exists, or whose directory does not, before anything is computed.

    Raises:
        UsageError: it exists, or has no directory.
    """
    if out.is_dir():
        raise UsageError("is a directory", where=out, fix="pass a file to -o")
    require_absent(out)
    if not out.absolute().parent.is_dir():
        raise UsageError("its directory does not exist", where=out, fix=f"mkdir -p {out.parent}")


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

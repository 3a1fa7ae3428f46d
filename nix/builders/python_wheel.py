"""Unpack a wheel as the wheel format has it, and compile its modules: python_wheel.py WHEEL OUT."""

import compileall
import os
import py_compile
import shutil
import sys
from pathlib import Path, PurePosixPath
from zipfile import ZipFile


def target_of(name: str, out: Path, site: Path) -> Path:
    """Return where a member of the archive belongs."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts:
        raise SystemExit(f"error: the wheel has a member outside of its root: {name}")
    if not parts[0].endswith(".data"):
        return site.joinpath(*parts)
    schemes = {
        "purelib": site,
        "platlib": site,
        "scripts": out / "bin",
        "data": out,
        "headers": out / "include",
    }
    if len(parts) < 3 or parts[1] not in schemes:
        raise SystemExit(f"error: the wheel has a member of an unknown scheme: {name}")
    return schemes[parts[1]].joinpath(*parts[2:])


def main() -> None:
    wheel, out = Path(sys.argv[1]), Path(sys.argv[2])
    site = out / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    site.mkdir(parents=True)
    with ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            target = target_of(member.filename, out, site)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("xb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            if member.external_attr >> 16 & 0o111 or target.parent == out / "bin":
                target.chmod(0o755)
    # Never compared with the source: the store keeps no time stamps. Templates are not all Python.
    compileall.compile_dir(
        site,
        quiet=2,
        workers=int(os.environ.get("NIX_BUILD_CORES", "1")),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


if __name__ == "__main__":
    main()

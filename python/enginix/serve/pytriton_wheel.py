"""The tritonserver inside nvidia-pytriton's wheel: fetch it by its hash, unpack it for one Python, find it.

The wheel holds one server, its libraries, and a Python stub for each version of Python. Triton looks for the
stub beside its Python backend, so each directory made here is for one version.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
import zipfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from enginix import process
from enginix.credentials import redact_secrets
from enginix.errors import MachineError, UsageError
from enginix.files import find_user_cache, refuse_damage, sha256_file
from enginix.optional_libraries import format_tritonserver_command, is_in_nix_store
from enginix.tables import load_table
from enginix.work_directory import new_directory

STUB = "triton_python_backend_stub"
PACKAGE = Path("pytriton", "tritonserver")
LIBRARIES = "nvidia_pytriton.libs"
# Variables that pip reads, besides the few that every program gets.
_PIP_VARIABLES = re.compile(
    r"PIP_\w+|(https?|no|all)_proxy|HOME|XDG_CONFIG_HOME|NETRC|REQUESTS_CA_BUNDLE", re.I
)


def python_version() -> str:
    """Return the version of this Python as the wheel names its stubs: ``3.11``."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def wheel_row() -> dict[str, Any]:
    """Return the pinned wheel: file, sha256, platform, Python versions."""
    row: dict[str, Any] = load_table("tritonserver_wheel")
    return row


def check_machine() -> None:
    """Refuse a machine or a Python that the wheel does not support.

    Raises:
        MachineError: names both, and the alternatives.
    """
    row, python = wheel_row(), python_version()
    machine = f"{platform.machine()}-{sys.platform}"
    wheel = f"{row['project']} {row['version']}"
    if machine != f"{row['machine']}-linux":
        raise MachineError(
            f"{wheel} is for {row['machine']}-linux, this machine is {machine}",
            fix="run it on such a machine, or pass another tritonserver to enginix serve --tritonserver",
        )
    if python not in row["pythons"]:
        raise MachineError(
            f"{wheel} has no stub for Python {python}; it has them for {', '.join(row['pythons'])}",
            where=sys.executable,
            fix=f"install enginix into a Python {row['pythons'][-2]} and run it from there",
        )
    library, version = platform.libc_ver()
    if library != "glibc" or _release_numbers(version) < _release_numbers(row["glibc"]):
        raise MachineError(
            f"{wheel} needs glibc {row['glibc']} or later, this machine has {library or 'another C library'} "
            f"{version}".rstrip(),
            fix="run it on Debian 12, Ubuntu 22.04 or later, or take kind reference through Nix",
        )


def download_wheel(directory: Path) -> Path:
    """Fetch the pinned wheel into ``directory`` by this Python's pip.

    Raises:
        MachineError: pip is missing, or does not find or get the wheel.
    """
    row = wheel_row()
    pinned_release = f"{row['project']}=={row['version']}"
    by_hand = f"get {row['file']} from a Python package index elsewhere, and pass it as --wheel FILE"
    if find_spec("pip") is None:
        raise MachineError(
            f"this Python has no pip to fetch {pinned_release} with",
            where=sys.executable,
            fix=f"{format_tritonserver_command()}\n       or {by_hand}" if is_in_nix_store() else by_hand,
        )
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{pinned_release} --hash=sha256:{row['sha256']}\n")
    done = process.run_program(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--only-binary", ":all:", "--require-hashes"),
            *("--requirement", requirements, "--dest", directory),
        ],
        env={name: value for name, value in os.environ.items() if _PIP_VARIABLES.fullmatch(name)},
        check=False,
    )
    wheel = directory / str(row["file"])
    if done.returncode != 0 or not wheel.is_file():
        error_lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
            "no reason given"
        ]
        raise MachineError(
            f"pip does not get {pinned_release}: {redact_secrets(error_lines[-1])}", fix=by_hand
        )
    return wheel


def install_wheel(wheel: Path, out: Path) -> None:
    """Unpack the wheel into ``out`` for this Python: bin, backends, caches, as Triton expects them.

    Raises:
        UsageError: ``out`` exists, or ``wheel`` is not the pinned one.
        MachineError: a library that the server is linked against is missing; the disk is full.
    """
    row = wheel_row()
    if not wheel.is_file():
        raise UsageError("no such file", where=wheel, fix=f"pass {row['file']}")
    if (digest := sha256_file(wheel)) != row["sha256"]:
        raise UsageError(
            f"not {row['file']}: its sha256 is {digest}, that of the pinned wheel is {row['sha256']}",
            where=wheel,
            fix="leave --wheel out, and pip fetches the right one",
        )
    with new_directory(out) as partial:
        site = partial / "lib" / "site-packages"
        _unpack_wheel(wheel, site)
        server = site / PACKAGE
        stubs = server / "python_backend_stubs"
        os.replace(stubs / python_version() / STUB, server / "backends" / "python" / STUB)
        shutil.rmtree(stubs)
        for part in ("bin", "backends", "caches"):
            (partial / part).symlink_to(Path("lib", "site-packages") / PACKAGE / part)
        described = {"name": "reference", "version": row["tritonServer"], "python": python_version()}
        described |= {"wheel": row["file"], "sha256": row["sha256"]}
        (partial / "runtime.json").write_text(json.dumps(described, indent=2) + "\n")
        _link_libpython(site / LIBRARIES)
        _check_libraries(partial)


def _unpack_wheel(wheel: Path, site: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            # Licences and metadata, the server and its libraries, without pytriton's own Python.
            if member.is_dir() or not member.filename.startswith((f"{PACKAGE}/", "nvidia_pytriton")):
                continue
            path = Path(archive.extract(member, site))
            # The wheel's own modes allow everybody to write.
            path.chmod(0o755 if member.external_attr >> 16 & 0o111 else 0o644)


def _link_libpython(libraries: Path) -> None:
    """Link this Python's own libpython beside the server's libraries, where the loader misses it."""
    name, directory = sysconfig.get_config_var("INSTSONAME"), sysconfig.get_config_var("LIBDIR")
    if name and directory and ".so" in name and sys.base_prefix != "/usr" and Path(directory, name).is_file():
        (libraries / name).symlink_to(Path(directory, name))


def _check_libraries(directory: Path) -> None:
    ldd = shutil.which("ldd")
    if ldd is None:
        return
    missing: set[str] = set()
    for program in (Path("bin", "tritonserver"), Path("backends", "python", STUB)):
        # By its real path: the programs find their libraries relative to it.
        done = process.run_program([ldd, (directory / program).resolve()], check=False)
        missing |= set(re.findall(r"^\s*(\S+) => not found", done.stdout, re.M))
    if missing:
        names = " ".join(sorted(missing))
        python = f"libpython{python_version()}"
        fix = f"install {python} (apt-get install {python}), or take a Python built with --enable-shared"
        if not any(name.startswith("libpython") for name in missing):
            fix = "install the packages of your distribution that have them"
        raise MachineError(f"tritonserver is linked against {names}, which this machine lacks", fix=fix)


def record_tritonserver(directory: Path) -> Path:
    """Record ``directory`` as this user's tritonserver for this Python; returns the link that records it."""
    link = recorded_link()
    fix = f"export ENGINIX_TRITONSERVER={directory}"
    with refuse_damage(MachineError, link, fix, what="cannot write"):
        link.parent.mkdir(parents=True, exist_ok=True)
        temporary_link = Path(tempfile.mkdtemp(prefix=".link-", dir=link.parent)) / "link"
        temporary_link.symlink_to(os.path.abspath(directory))
        os.replace(temporary_link, link)
        temporary_link.parent.rmdir()
    return link


def recorded_link() -> Path:
    """Return the link to the tritonserver that ``enginix tritonserver`` made last for this Python."""
    base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(base) / "enginix" / f"tritonserver-python{python_version()}"


def find_recorded() -> Path | None:
    """Return the directory that :func:`record_tritonserver` recorded, if it still exists."""
    link = recorded_link()
    return link.resolve() if (link / "bin" / "tritonserver").is_file() else None


def find_installed() -> Path | None:
    """Return a layout of links over this Python's installed nvidia-pytriton; None if it is not installed.

    Raises:
        MachineError: the release is not the pinned one, or has no stub for this Python.
    """
    try:
        distribution = metadata.distribution(wheel_row()["project"])
    except metadata.PackageNotFoundError:
        return None
    row = wheel_row()
    if distribution.version != row["version"]:
        raise MachineError(
            f"{row['project']} {distribution.version} is installed, and enginix knows {row['version']} alone",
            where=sys.executable,
            fix=f"{sys.executable} -m pip install {row['project']}=={row['version']}, "
            "or enginix tritonserver -o DIR",
        )
    server = Path(str(distribution.locate_file(PACKAGE))).resolve()
    stub = server / "python_backend_stubs" / python_version() / STUB
    if not stub.is_file():
        check_machine()
        return None
    key = re.sub(r"\W+", "-", str(server)).strip("-")
    layout = find_user_cache() / "tritonserver" / f"{key}-{python_version()}"
    if not (layout / "backends" / "python" / STUB).exists():
        shutil.rmtree(layout, ignore_errors=True)
        with new_directory(layout) as partial:
            backend = partial / "backends" / "python"
            backend.mkdir(parents=True)
            for part in (server / "bin", server / "caches"):
                (partial / part.name).symlink_to(part)
            for part in (*(server / "backends" / "python").iterdir(), stub):
                if part.name != STUB or part == stub:
                    (backend / part.name).symlink_to(part)
    return layout


def _release_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:2])

"""A tritonserver installation: its parts, its runtime, and the needs of its Python stub."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix.errors import MachineError, UsageError
from enginix.files import refuse_damage
from enginix.kinds.registry import DEFAULT_KIND, find_triton_support, get_kind
from enginix.manifest import Manifest
from enginix.optional_libraries import format_install_command, format_tritonserver_command
from enginix.process import query_python
from enginix.runtime import table as runtimes
from enginix.runtime.table import Runtime
from enginix.serve import pytriton_wheel
from enginix.tables import load_table

RUNTIME_FILE = "runtime.json"
# Of a tritonserver without a runtime of NVIDIA's.
PORTABLE_RUNTIME = "reference"
STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class TritonServer:
    """A directory with ``bin/tritonserver`` and ``backends/python``.

    Attributes:
        directory: path as the server itself sees it: inside ``rootfs``, if there is one.
        runtime: name of the runtime that it is part of (a key of data/runtime/runtimes.json, or one that its
            user describes).
        version: version of tritonserver; the oldest possible one if the installation does not name it.
        rootfs: root file system of the runtime's image, inside which it runs; None runs it on the host.
        description: of a runtime that the table does not have, as a manifest has it.
    """

    directory: Path
    runtime: str
    version: str = "2.51.0"
    rootfs: Path | None = None
    description: Mapping[str, Any] | None = None

    def find_runtime(self, kind: str | None = None, pin: Path | None = None) -> Runtime:
        """Return the runtime that it is part of (:func:`enginix.runtime.table.find_runtime`)."""
        return runtimes.find_runtime(self.description or self.runtime, kind, pin)

    @property
    def program(self) -> Path:
        """Return the path of the executable."""
        return self.directory / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        return self.directory / "backends"

    @property
    def stub(self) -> Path:
        """Return the path of the program that runs Python models."""
        return self.backends / "python" / STUB


def find_tritonserver(
    directory: Path | None, runtime: str | None = None, described: Mapping[str, Any] | None = None
) -> TritonServer:
    """Find and check an installation.

    Args:
        directory: ``--tritonserver``; by default $ENGINIX_TRITONSERVER, then the directory that
            ``enginix tritonserver`` made for this Python, then this Python's installed nvidia-pytriton.
        runtime: name of its runtime; by default that of its ``runtime.json``, else ``reference``.
        described: runtime of the repository's manifest, for one that the table does not have.

    Raises:
        UsageError: the named directory holds no tritonserver.
        MachineError: no installation is named, or parts are missing.
    """
    if directory is None:
        named = os.environ.get("ENGINIX_TRITONSERVER")
        default_directory = (
            Path(named) if named else pytriton_wheel.find_recorded() or pytriton_wheel.find_installed()
        )
        if default_directory is None:
            raise MachineError(
                "no tritonserver is named, and none was made for this Python",
                where="--tritonserver",
                fix=f"{format_tritonserver_command()}\n       or --tritonserver DIR of another "
                "(docs/reference/triton.md)",
            )
        directory = default_directory
    elif not directory.is_dir():
        raise UsageError(
            f"{directory} is no directory",
            where="--tritonserver",
            fix="pass the directory that has bin/tritonserver",
        )
    directory = Path(os.path.abspath(directory))
    _check_parts(directory)
    runtime = runtime or _read_runtime_file(directory).get("name", "reference")
    if described is not None and runtime == described.get("id") and "like" in described:
        stack = runtimes.find_runtime(described)
        version = _read_version(directory, stack.row)
        return TritonServer(directory, stack.id, version, description=described)
    row = load_table("runtimes")["runtimes"].get(runtime, {})
    return TritonServer(directory, runtime, _read_version(directory, row))


def find_in_image(rootfs: Path, runtime: str | Mapping[str, Any]) -> TritonServer:
    """Check the installation inside a runtime's image.

    Args:
        runtime: its name, or what a repository's manifest says of it.

    Raises:
        MachineError: the image lacks parts of it.
        UsageError: the runtime is unknown, or its image has no tritonserver.
    """
    stack = runtimes.find_runtime(runtime)
    row, runtime = stack.row, stack.id
    inside = runtimes.require_triton(stack, str(rootfs))
    rootfs = Path(os.path.abspath(rootfs))
    outside = Path(f"{rootfs}{inside}")
    _check_parts(outside)
    description = None if stack.is_verified else stack.describe()
    return TritonServer(Path(inside), runtime, _read_version(outside, row), rootfs, description)


def _check_parts(directory: Path) -> None:
    for part in ("bin/tritonserver", "backends/python/libtriton_python.so", f"backends/python/{STUB}"):
        path = directory / part
        if not path.is_file() or (part.endswith(("tritonserver", STUB)) and not os.access(path, os.X_OK)):
            raise MachineError(
                f"{part} is missing or not executable",
                where=directory,
                fix="pass a tritonserver with its Python backend; docs/reference/triton.md shows the layout",
            )


def _read_runtime_file(directory: Path) -> dict[str, str]:
    path = directory / RUNTIME_FILE
    if not path.is_file():
        return {}
    with refuse_damage(MachineError, path, '{"name": "<runtime>"}'):
        described = json.loads(path.read_text("utf-8"))
        if described["name"] not in load_table("runtimes")["runtimes"]:
            raise ValueError(f"unknown runtime {described['name']!r}")
    return {key: str(value) for key, value in described.items()}


def _read_version(directory: Path, row: Mapping[str, Any]) -> str:
    """Read the version from NVIDIA's file TRITON_VERSION or runtime.json; else the runtime's oldest one."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = (directory / "TRITON_VERSION").read_text("utf-8").strip()
        if re.fullmatch(r"\d+\.\d+\.\d+", text):
            return text
    with contextlib.suppress(MachineError, KeyError):
        return _read_runtime_file(directory)["version"]
    return str((row.get("tritonServer") or [load_table("triton_flags")["oldest"]])[0])


def find_refusal(repository: Manifest, server: TritonServer) -> str | None:
    """Return the reason why this installation's runtime cannot serve a repository, or ``None``."""
    try:
        row = server.find_runtime().row
    except UsageError:
        known = ", ".join(runtimes.list_runtimes())
        return f"the server's runtime is {server.runtime!r}, which is unknown (known: {known})"
    kind = get_kind(repository.kind)
    support = None if kind is None or kind.is_portable else kind.triton
    if support is not None and support.extra is not None:
        # Its models run in a Python of this package, by any tritonserver with a Python backend.
        if server.runtime == PORTABLE_RUNTIME:
            return None
        return f"kind {repository.kind} runs in a Python of this package, not in {server.runtime}"
    engine_runtime = repository.runtime.get("id")
    if engine_runtime is not None and engine_runtime != server.runtime:
        return f"the engine is for runtime {engine_runtime}, the server's runtime is {server.runtime}"
    if repository.kind not in row["kinds"]:
        runs = ", ".join(row["kinds"])
        return f"the engine is of kind {repository.kind}, the server's runtime {server.runtime} runs {runs}"
    return None


def check_python(python: Path, server: TritonServer, kind: str = DEFAULT_KIND) -> None:
    """Check that the Python environment fits the stub: the same version, all packages, a NumPy that it reads.

    Triton's Python stub links one libpython and finds the environment by the first ``python3`` on PATH. Built
    with pybind11 before 2.12, it reads NumPy 2's arrays wrongly: every request would crash it.

    Raises:
        UsageError: no program of that name.
        MachineError: the environment does not fit; has the reason.
    """
    if python.name != "python3" or not os.access(python, os.X_OK):
        raise UsageError("not an executable named python3", where=python, fix="--python DIR/bin/python3")
    binary = server.stub.read_bytes()
    linked = re.search(rb"libpython3\.(\d+)\.so", binary)
    support = find_triton_support(kind)
    names = support.packages
    script = (
        "import importlib.util, json, sys\n"
        "from importlib.metadata import version\n"
        "found = [n for n in sys.argv[1:] if importlib.util.find_spec(n)]\n"
        "print(json.dumps([sys.version_info[1], found, version('numpy') if 'numpy' in found else '']))"
    )
    minor, importable, numpy = query_python(python, script, *names, failure="does not run")
    if linked and int(linked[1]) != minor:
        raise MachineError(
            f"Python 3.{minor}, but this Triton's stub is for 3.{int(linked[1])}",
            where=python,
            fix=f"--python of a Python 3.{int(linked[1])}, or a tritonserver for 3.{minor}: "
            f"enginix tritonserver -o DIR, run by a Python 3.{minor}",
        )
    missing = [n for n in names if n not in importable]
    if missing:
        raise MachineError(
            f"lacks {', '.join(missing)}, which the repository's models import",
            where=python,
            fix=f"{format_install_command(support.extra, 'serve', str(python))}\n"
            "       or --python of an environment that has them"
            if support.extra is not None
            else "--python of the runtime's image",
        )
    if numpy.split(".")[0] not in ("0", "1") and b"numpy._core" not in binary:
        raise MachineError(
            f"NumPy {numpy}, but this Triton's Python stub reads arrays of NumPy 1 only and would crash",
            where=python,
            fix=f"{python} -m pip install 'numpy<2', or a tritonserver of 24.11 or later",
        )

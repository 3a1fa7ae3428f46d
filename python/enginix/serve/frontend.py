"""Triton's own OpenAI frontend: main.py of NVIDIA's image in place of tritonserver, in one process with it.

The image has its source and, as wheels, Triton's Python bindings; NVIDIA's README installs those with pip in
the running container. :func:`prepare` unpacks them once, without pip and network; the server then reads that
directory and writes nowhere (data/triton_openai.json has the sources).
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from enginix.credentials import locate
from enginix.errors import MachineError, UsageError
from enginix.files import new_directory
from enginix.runtime import table as runtimes
from enginix.runtime.table import Runtime
from enginix.serve.flags import admin_key
from enginix.serve.options import Program
from enginix.tables import table

if TYPE_CHECKING:
    from enginix.serve.supervisor import Supervised
    from enginix.serve.tritonserver import TritonServer

TABLE = "triton_openai"
SITE, SOURCE = "site", "openai_frontend"
HEADER = "authorization"
DEBIAN = "/usr/lib/python3/dist-packages"
MAIN = Program(
    option="--openai-flag",
    name="Triton's OpenAI frontend",
    of_version="the frontend of tritonserver {}",
    table=TABLE,
    rows="options",
    spelled={"int": (r"[1-9][0-9]{0,8}", "a whole number above 0")},
)


@dataclass(frozen=True)
class Frontend:
    """What :func:`prepare` made, and how it is started.

    Attributes:
        directory: with ``site`` (the bindings) and ``openai_frontend`` (main.py).
        python: of the image.
        tokenizer: the engine's, for its chat template.
        port: of OpenAI's interface.
        flags: options of main.py that a user added, checked (:func:`checked`).
        key: what clients send as their api_key; ``None`` asks for none.
    """

    directory: Path
    python: str
    tokenizer: Path
    port: int
    flags: tuple[str, ...] = ()
    key: str | None = field(default=None, repr=False)

    def url(self, host: str) -> str:
        """The base_url of OpenAI's clients."""
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"

    def command(
        self, repository: Path, host: str, http: int, grpc: int, verbose: int, mark: str
    ) -> list[str]:
        """The command line.

        Args:
            repository: what it reads.
            mark: of the process, by which the supervisor knows it; Python keeps it and nobody reads it.
        """
        words = [self.python, "-X", mark, str(self.directory / SOURCE / "main.py")]
        words += ["--model-repository", str(repository), "--tokenizer", str(self.tokenizer)]
        words += ["--tritonserver-log-verbose-level", str(verbose), "--host", host]
        words += ["--openai-port", str(self.port), "--enable-kserve-frontends"]
        words += ["--kserve-http-port", str(http), "--kserve-grpc-port", str(grpc)]
        if self.key is not None:
            # The frontend takes it in no other way than this.
            apis = ",".join(table(TABLE)["restricted"])
            words += ["--openai-restricted-api", apis, HEADER, f"Bearer {self.key}"]
        return [*words, *self.flags]

    def environment(self, added: Mapping[str, str]) -> dict[str, str]:
        """Variables besides the image's own.

        Args:
            added: a user's.
        """
        # README.md has the backend's orchestrator mode; its leader mode does not work in it.
        return {"TRTLLM_ORCHESTRATOR": "1", **added, "PYTHONPATH": str(self.directory / SITE)}


def checked(given: Iterable[str], version: str) -> tuple[str, ...]:
    """``NAME=VALUE`` of a user, as main.py of that tritonserver takes them (:meth:`Program.checked`)."""
    return tuple(w for name, value in MAIN.checked(given, version) for w in (f"--{name}", value or ""))


def refusal(kind: str, ranks: int) -> str | None:
    """Why an engine cannot be served by it, or ``None``."""
    kinds = table(TABLE)["kinds"]
    if kind not in kinds:
        return f"the frontend is part of TensorRT-LLM's images, and the engine is of kind {kind}"
    if kinds[kind] is not None:
        return f"the frontend does not fit kind {kind}: {kinds[kind]}"
    return None if ranks == 1 else f"the frontend serves one rank, the engine has {ranks}"


def around(server: TritonServer) -> Runtime:
    """The runtime inside whose image this process is, as a container or a unit with that root has it.

    The frontend is the image's own program: its Python and the library of its bindings are found where the
    image has them and nowhere else.

    Raises:
        UsageError: this is no such place.
    """
    runtime = runtimes.find(server.runtime)
    triton = runtime.row.get("paths", {}).get("triton")
    if str(server.directory) != triton or not os.access(runtime.python, os.X_OK):
        here = f"{server.directory} on this root is not in that of {runtime.id}"
        raise UsageError(
            f"it is part of a runtime's image, and {here}",
            where="--openai-frontend",
            fix="pass --rootfs; or run enginix serve inside the image, with the image's own --tritonserver",
        )
    return runtime


def find(
    directory: Path, runtime: Runtime, tokenizer: Path, port: int, flags: tuple[str, ...], key: Path | None
) -> Frontend:
    """Checks what :func:`prepare` made.

    Args:
        key: file with what clients send; a relative path is the name of a systemd credential.

    Raises:
        MachineError: something of it is missing.
        UsageError: the key's file is not one.
    """
    directory = directory.absolute()
    for part in (f"{SOURCE}/main.py", *(f"{SITE}/{name}" for name in table(TABLE)["wheels"])):
        if not (directory / part).exists():
            raise MachineError(
                f"{part} is missing",
                where=str(directory),
                fix="make it with enginix openai-frontend",
            )
    given = None if key is None else admin_key(locate(str(key)), "--openai-key-file")
    return Frontend(directory, runtime.python, tokenizer, port, flags, given)


def prepare(rootfs: Path, runtime: Runtime, out: Path, source: Path | None = None) -> dict[str, str]:
    """Unpacks the bindings and copies the frontend out of an image.

    Args:
        rootfs: the image's root file system.
        out: where ``site`` and ``openai_frontend`` go; new.
        source: directory ``python/openai`` of Triton's sources, where the image has none.

    Returns:
        Versions of the bindings and of what the frontend imports.

    Raises:
        MachineError: the image lacks the frontend, a wheel, or a package that the frontend imports.
    """
    rows = table(TABLE)
    inside, packages = runtime.row.get("paths", {}).get("triton"), runtime.site_packages
    if inside is None or packages is None:
        raise MachineError(
            f"runtime {runtime.id} has no Triton, and so no OpenAI frontend of Triton's",
            where=str(rootfs),
            fix="use mkServe, which is trtllm-serve",
        )
    triton = rootfs / inside.lstrip("/")
    main = triton / rows["main"] if source is None else source / SOURCE / "main.py"
    if not main.is_file():
        raise MachineError(
            "no OpenAI frontend of Triton's: main.py is missing",
            where=str(main),
            fix="pass python/openai of Triton's sources of the image's version, or use mkServe",
        )
    wheels = {name: _wheel(triton / "python", name) for name in rows["wheels"]}
    # Debian's own packages are on the path of its Python, not on that of an environment.
    places = [DEBIAN, packages] if packages.startswith("/usr/") else [packages]
    installed: dict[str, str] = {}
    for place in places:
        installed |= _distributions(rootfs / place.lstrip("/"))
    if lacks := sorted(set(rows["needs"]) - set(installed)):
        raise MachineError(
            f"the image lacks {', '.join(lacks)}, which Triton's OpenAI frontend imports",
            where=packages,
            fix="use mkServe, which is trtllm-serve",
        )
    with new_directory(out) as made:
        for path in wheels.values():
            _unpack(path, made / SITE)
        shutil.copytree(main.parent, made / SOURCE, ignore=shutil.ignore_patterns("__pycache__"))
    return {name: path.name.split("-")[1] for name, path in wheels.items()} | {
        name: installed[name] for name in sorted(rows["needs"])
    }


def _wheel(directory: Path, name: str) -> Path:
    found = sorted(directory.glob(f"{name}-*.whl"))
    if len(found) != 1:
        raise MachineError(
            f"{len(found)} wheels of {name}, 1 is needed",
            where=str(directory),
            fix="take the runtime's own image; NVIDIA's have one each",
        )
    return found[0]


def _unpack(wheel: Path, site: Path) -> None:
    """A wheel is a zip of what belongs into site-packages (PEP 427)."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            for name in names:
                if name.startswith("/") or ".." in Path(name).parts:
                    raise MachineError(f"{name} leads out of it", where=str(wheel))
            archive.extractall(site)
    except (OSError, zipfile.BadZipFile) as e:
        raise MachineError(f"not a wheel: {e}", where=str(wheel)) from e


def _distributions(site: Path) -> dict[str, str]:
    """Installed distributions by normalized name (PEP 503)."""
    found = {}
    for path in site.glob("*.dist-info"):
        name, _, version = path.name.removesuffix(".dist-info").partition("-")
        found[re.sub(r"[-_.]+", "-", name).lower()] = version
    return found


def await_answer(frontend: Frontend, host: str, server: Supervised, seconds: float) -> None:
    """Waits until OpenAI's interface is ready; ``health`` is not restricted.

    Raises:
        StartError: the server ended, or was not ready in time.
    """
    start = time.monotonic()
    while not _ready(frontend, host):
        server.check_running()
        if (waited := time.monotonic() - start) > max(seconds, 1):
            raise server.not_ready(waited)
        time.sleep(0.1)


def _ready(frontend: Frontend, host: str) -> bool:
    connection = http.client.HTTPConnection(host, frontend.port, timeout=5)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()

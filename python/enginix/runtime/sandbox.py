"""Sandboxes for commands of a runtime: bubblewrap around the image's root file system and listed paths.

Inside are: the image, read-only; ``/nix/store``, read-only; the driver below ``/run/opengl-driver``;
NVIDIA's device nodes; ``/w``, a private work directory; the caller's binds. No other file of the host is
visible. Without a root file system the command runs on the host's files, with the same private environment,
as in a container of the image.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from enginix.errors import MachineError
from enginix.machine import driver as drivers
from enginix.machine.driver import Driver
from enginix.runtime.table import Runtime
from enginix.tables import load_table

WORK = Path("/w")
DRIVER_LIB = f"{drivers.DRIVER_HOME}/lib"
STORE = Path("/nix/store")
# Mounted empty inside, instead of the image's own.
REMADE_DIRECTORIES = {"proc", "dev", "sys", "tmp", "run", "nix", "etc", "w"}
# Not taken from the image: people keep models and checkouts below them, and a path of the host cannot be
# bound below a read-only directory of the image.
HIDDEN_DIRECTORIES = {"home", "media", "mnt", "root", "srv"}
# Variables that a container of the image has set, for commands without a root file system.
CONTAINER_VARIABLES = (
    "PATH",
    "LD_LIBRARY_PATH",
    "OPAL_PREFIX",
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "VIRTUAL_ENV",
)
# sun_path of unix(7) is 108 bytes; OpenMPI puts about 60 behind TMPDIR.
LONGEST_WORK_PATH = 40

_NO_NAMESPACES = re.compile(
    r"No permissions to create (a )?new namespace|Creating new namespace failed|setting up uid map|"
    r"Failed to (create|make) .*namespace|unshare|clone|NEWUSER|Operation not permitted",
    re.IGNORECASE,
)

# The kernel lets a user namespace mount /proc only where one is wholly visible (fs/namespace.c,
# mnt_already_visible): covers over parts of it, as systemd and Docker make them, are in the way.
_NO_PROC = re.compile(r"Can't mount proc", re.IGNORECASE)


@dataclass(frozen=True)
class Bind:
    """A path of the host, seen at the same path inside unless ``at`` says otherwise."""

    path: Path
    writable: bool = False
    at: Path | None = None


@dataclass(frozen=True)
class Sandbox:
    """A sandbox for commands of a runtime.

    Attributes:
        runtime: the runtime, for its environment.
        rootfs: the image's root file system; None runs on the host's.
        work: private directory of the host; ``/w`` inside.
        driver: the GPU driver's files.
        binds: paths of the host that are visible inside.
        network: make the host's network visible; builds have no network.
    """

    runtime: Runtime
    rootfs: Path | None
    work: Path
    driver: Driver = field(default_factory=lambda: Driver(None))
    binds: tuple[Bind, ...] = ()
    network: bool = False
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def inside(self) -> Path:
        """Return the path of the work directory inside."""
        return self.work if self.rootfs is None else WORK

    def environment(self) -> dict[str, str]:
        """Return every variable that a command sees: the private directories of
        data/runtime/environment.json, then the image's.
        """
        private = {
            name: row["value"].replace("@work@", str(self.inside))
            for name, row in load_table("environment")["variables"].items()
        }
        private |= {"USER": "enginix", "LOGNAME": "enginix", "LANG": "C.UTF-8"}
        if self.rootfs is None:
            env = {k: os.environ[k] for k in CONTAINER_VARIABLES if k in os.environ}
            libraries = str(self.driver.root / "lib") if self.driver.root else None
        else:
            env = dict(self.runtime.environment)
            env["PATH"] = f"{env.get('PATH', '/usr/bin:/bin')}:{drivers.DRIVER_HOME}/bin"
            libraries = DRIVER_LIB
        if self.network and "CUDA_VISIBLE_DEVICES" in os.environ:
            env["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]
        env |= private
        if libraries:
            env["LD_LIBRARY_PATH"] = ":".join(filter(None, [libraries, env.get("LD_LIBRARY_PATH")]))
        return env | dict(self.extra)

    def prepare(self) -> None:
        """Make the private directories, and check that they are writable.

        Raises:
            MachineError: one cannot be made or written, or the work directory's path is too long.
        """
        if self.rootfs is None and len(str(self.work)) > LONGEST_WORK_PATH:
            raise MachineError(
                f"the path is longer than {LONGEST_WORK_PATH} characters; sockets of OpenMPI below it would "
                f"not fit",
                where=self.work,
                fix="set TMPDIR to a short path, such as /tmp",
            )
        inside = str(self.inside)
        for name, value in self.environment().items():
            if not value.startswith(f"{inside}/"):
                continue
            path = self.work / value[len(inside) + 1 :]
            try:
                path.mkdir(parents=True, exist_ok=True)
                probe = path / ".enginix"
                probe.touch()
                probe.unlink()
            except OSError as e:
                raise MachineError(f"{name} cannot be written: {e.strerror}", where=path) from e

    def command(self, words: Sequence[str], info: int | None = None) -> list[str]:
        """Return the command line that runs ``words`` inside.

        Args:
            info: file descriptor that bubblewrap writes the inner process to.
        """
        if self.rootfs is None:
            return list(words)
        line = [find_bubblewrap(), "--unshare-user", "--unshare-pid", "--die-with-parent", "--clearenv"]
        if not self.network:
            line += ["--unshare-net"]
        if info is not None:
            line += ["--info-fd", str(info)]
        # bubblewrap is started in the work directory.
        line += self._mounts(Path(os.path.abspath(self.rootfs)))
        for name, value in sorted(self.environment().items()):
            line += ["--setenv", name, value]
        return [*line, "--chdir", str(WORK), "--", *words]

    def _mounts(self, rootfs: Path) -> list[str]:
        line: list[str] = []
        mount_points, memory_directories = [bind.at or bind.path for bind in self.binds], list[Path]()
        for entry in sorted(rootfs.iterdir()):
            if entry.name not in REMADE_DIRECTORIES | HIDDEN_DIRECTORIES:
                line += _mount_image_part(entry, Path("/") / entry.name, mount_points, memory_directories)
        line += ["--tmpfs", "/tmp", "--tmpfs", "/run", "--proc", "/proc", "--dev", "/dev"]
        if (rootfs / "var/tmp").is_dir():
            line += ["--tmpfs", "/var/tmp"]
        if Path("/sys").is_dir():
            line += ["--ro-bind", "/sys", "/sys"]
        line += ["--dir", "/etc"]
        etc_files = self._etc(rootfs)
        if (rootfs / "etc").is_dir():
            for entry in sorted((rootfs / "etc").iterdir()):
                if entry.name not in etc_files:
                    line += _mount_entry(entry, Path("/etc") / entry.name)
        for name, path in etc_files.items():
            line += ["--ro-bind", str(path), f"/etc/{name}"]
        if STORE.is_dir():
            line += ["--ro-bind", str(STORE), str(STORE)]
        for device in drivers.list_devices():
            line += ["--dev-bind-try", str(device), str(device)]
        line += self._driver()
        line += ["--bind", str(self.work), str(WORK)]
        for bind in self.binds:
            flag = "--bind" if bind.writable else "--ro-bind"
            line += [flag, str(bind.path), str(bind.at or bind.path)]
        # The root itself is memory: read-only, so that writing beside the mounts fails.
        for directory in (*memory_directories, Path("/")):
            line += ["--remount-ro", str(directory)]
        return line

    def _etc(self, rootfs: Path) -> dict[str, Path]:
        """Return the files of /etc that name this user and this host, which the image lacks."""
        directory = self.work / "etc"
        directory.mkdir(parents=True, exist_ok=True)

        def image(name: str) -> str:
            try:
                return (rootfs / "etc" / name).read_text("utf-8", "replace")
            except OSError:
                return ""

        uid, gid = os.getuid(), os.getgid()
        user_files = {
            "passwd": f"enginix:x:{uid}:{gid}::{WORK}/home:/bin/sh\n" + image("passwd"),
            "group": f"enginix:x:{gid}:\n" + image("group"),
            "hosts": "127.0.0.1 localhost\n::1 localhost\n",
        }
        for name, text in user_files.items():
            (directory / name).write_text(text, "utf-8")
        files = {name: directory / name for name in user_files}
        resolver = Path("/etc/resolv.conf")
        if self.network and resolver.exists():
            files["resolv.conf"] = Path(os.path.realpath(resolver))
        return files

    def _driver(self) -> list[str]:
        line = []
        if self.driver.root is not None:
            root = Path(os.path.realpath(self.driver.root))
            line += ["--ro-bind", str(root), str(drivers.DRIVER_HOME)]
            for path in drivers.find_store_closure(root):
                if STORE not in path.parents:
                    line += ["--ro-bind-try", str(path), str(path)]
        for path in self.driver.libraries:
            line += ["--ro-bind", os.path.realpath(path), f"{DRIVER_LIB}/{path.name}"]
        for path in self.driver.programs:
            line += ["--ro-bind", os.path.realpath(path), f"{drivers.DRIVER_HOME}/bin/{path.name}"]
        return line


def _mount_entry(entry: Path, inside_path: Path) -> list[str]:
    if entry.is_symlink():
        return ["--symlink", os.readlink(entry), str(inside_path)]
    return ["--ro-bind", str(entry), str(inside_path)]


def _mount_image_part(
    entry: Path, inside_path: Path, mount_points: Sequence[Path], memory_directories: list[Path]
) -> list[str]:
    """Return the mounts that show a part of the image.

    A directory that lacks a mount point below it (a model in /opt or /var/lib) is made in memory, with each
    of its entries mounted: bubblewrap cannot make a directory in one that is mounted read-only.

    Args:
        memory_directories: receives the directories made in memory.
    """
    inner_points = [place for place in mount_points if inside_path in place.parents]
    if (
        entry.is_symlink()
        or not entry.is_dir()
        or all((entry / p.relative_to(inside_path)).exists() for p in inner_points)
    ):
        return _mount_entry(entry, inside_path)
    memory_directories.append(inside_path)
    line = ["--tmpfs", str(inside_path)]
    for child in sorted(entry.iterdir()):
        line += _mount_image_part(child, inside_path / child.name, inner_points, memory_directories)
    return line


def make_read_binds(paths: Iterable[Path]) -> tuple[Bind, ...]:
    """Return binds for directories that a command reads, and for the targets of links in them."""
    bound_paths: dict[Path, None] = {}
    for path in paths:
        path = Path(os.path.abspath(path))
        if STORE in path.parents:
            continue
        bound_paths[path] = None
        if path.is_dir():
            for link in (p for p in path.rglob("*") if p.is_symlink()):
                real = Path(os.path.realpath(link))
                if real.exists() and STORE not in real.parents and path not in real.parents:
                    bound_paths[real] = None
    return tuple(Bind(p) for p in bound_paths)


def find_bubblewrap() -> str:
    """Return the path of the bubblewrap program.

    Raises:
        MachineError: bubblewrap is not installed, or $ENGINIX_BWRAP names something else.
    """
    named = os.environ.get("ENGINIX_BWRAP")
    program = shutil.which(named or "bwrap")
    if not program and named:
        fix = "unset it, or name bubblewrap"
        raise MachineError(f"{named} is no program", where="ENGINIX_BWRAP", fix=fix)
    if not program:
        raise MachineError(
            "bubblewrap is not installed",
            where="bwrap",
            fix="install it (package bubblewrap), or use mkRuntime, which brings it",
        )
    return program


def check_namespaces() -> None:
    """Check that bubblewrap works here, as every command in a runtime needs.

    Raises:
        MachineError: this user may not make user namespaces; says what to enable.
    """
    program = find_bubblewrap()
    options = "--unshare-user --unshare-pid --ro-bind / / --proc /proc --dev /dev --"
    line = [program, *options.split(), program, "--version"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    message = (done.stderr.strip().splitlines() or ["no output"])[-1]
    if _NO_PROC.search(message):
        raise MachineError(
            f"/proc cannot be mounted anew here, because parts of it are covered ({message})",
            where=program,
            fix="uncover it:\n"
            "    a systemd unit:     ProtectKernelTunables=no and ProtectKernelLogs=no\n"
            "    Docker, Podman:     --security-opt systempaths=unconfined (Podman: unmask=ALL), or run "
            "enginix in NVIDIA's image without --rootfs",
        )
    if not _NO_NAMESPACES.search(message):
        raise MachineError(f"bubblewrap does not work here: {message}", where=program)
    raise MachineError(
        f"user namespaces are not allowed here ({message})",
        where=program,
        fix="enable user namespaces:\n"
        "    all distributions:  sysctl user.max_user_namespaces=15000\n"
        "    Debian:             sysctl kernel.unprivileged_userns_clone=1\n"
        "    Ubuntu 23.10+:      sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor "
        "profile for bwrap\n"
        "    NixOS:              security.allowUserNamespaces = true; security.unprivilegedUsernsClone "
        "= true\n"
        "    a systemd unit:     no RestrictNamespaces=, and @mount in SystemCallFilter=\n"
        "    Docker:             --security-opt seccomp=unconfined, or run enginix in NVIDIA's image "
        "without --rootfs",
    )

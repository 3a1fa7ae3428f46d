"""The GPU driver's files of this machine: they belong to its kernel module, so no image and no store path
has them.

NixOS keeps them below ``/run/opengl-driver``; other distributions among their libraries. Inside a runtime
they are always below ``/run/opengl-driver``, where nixpkgs' programs look as well.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DRIVER_HOME = Path("/run/opengl-driver")
# User-mode driver parts that CUDA programs load (NVIDIA container toolkit: the capabilities compute and
# utility).
DRIVER_LIBRARIES = (
    "libcuda.so*", "libcudadebugger.so*", "libnvidia-ml.so*", "libnvidia-ptxjitcompiler.so*",
    "libnvidia-nvvm*.so*", "libnvidia-gpucomp.so*", "libnvidia-nscq.so*", "libnvidia-cfg.so*",
    "libnvidia-pkcs11*.so*",
)  # fmt: skip
LIBRARY_DIRECTORIES = (
    "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib", "/usr/lib",
)  # fmt: skip
DEVICE_PATTERNS = (
    "/dev/nvidia[0-9]*", "/dev/nvidiactl", "/dev/nvidia-uvm*", "/dev/nvidia-modeset", "/dev/nvidia-caps*",
    "/dev/dxg",
)  # fmt: skip


@dataclass(frozen=True)
class Driver:
    """Paths of the GPU driver's files.

    Attributes:
        root: a directory with ``lib`` (and maybe ``bin``); None if the files lie among other libraries.
        libraries: single files, when ``root`` is None.
        programs: ``nvidia-smi``, when ``root`` is None and it exists.
    """

    root: Path | None
    libraries: tuple[Path, ...] = ()
    programs: tuple[Path, ...] = ()

    @property
    def is_present(self) -> bool:
        return self.root is not None or bool(self.libraries)

    def library(self, name: str) -> Path | None:
        if self.root is not None:
            path = self.root / "lib" / name
            return path if path.exists() else None
        return next((p for p in self.libraries if p.name == name), None)

    def program(self, name: str) -> Path | None:
        """Return a program by its name, from the driver or from PATH."""
        if self.root is not None and (self.root / "bin" / name).exists():
            return self.root / "bin" / name
        import shutil

        program_path = next((p for p in self.programs if p.name == name), None) or shutil.which(name)
        return Path(program_path) if program_path else None


def find_driver(root: Path | None = None) -> Driver:
    """Return the driver at ``root``, in ``/run/opengl-driver``, or among the host's libraries."""
    if root is not None:
        # Commands inside a runtime have another working directory.
        return Driver(Path(os.path.abspath(root)))
    if DRIVER_HOME.exists():
        return Driver(DRIVER_HOME)
    import glob
    import shutil

    for directory in LIBRARY_DIRECTORIES:
        libraries = sorted(
            Path(p) for pattern in DRIVER_LIBRARIES for p in glob.glob(f"{directory}/{pattern}")
        )
        if any(p.name.startswith("libcuda.so") for p in libraries):
            smi = shutil.which("nvidia-smi")
            return Driver(None, tuple(libraries), (Path(smi),) if smi else ())
    return Driver(None)


def list_devices() -> list[Path]:
    """List the device nodes of NVIDIA's driver."""
    import glob

    return sorted(Path(p) for pattern in DEVICE_PATTERNS for p in glob.glob(pattern))


def find_store_closure(root: Path) -> list[Path]:
    """Return the directories outside a driver root that its links lead to: on NixOS its libraries are links
    into the driver's package.
    """
    outside_paths = set()
    for path in [root, *root.glob("*"), *root.glob("lib/*"), *root.glob("bin/*")]:
        real = Path(os.path.realpath(path))
        if root not in real.parents and real != root and real.exists():
            outside_paths.add(real)
    return sorted(outside_paths)

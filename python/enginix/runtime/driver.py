"""The GPU driver's files of this machine: they belong to its kernel module, so no image and no store path
has them.

NixOS keeps them below ``/run/opengl-driver``; other distributions among their libraries. Inside a runtime
they are always below ``/run/opengl-driver``, where nixpkgs' programs look as well.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

HOME = Path("/run/opengl-driver")
# User-mode driver parts that CUDA programs load (NVIDIA container toolkit: the capabilities compute and
# utility).
LIBRARIES = (
    "libcuda.so*",
    "libcudadebugger.so*",
    "libnvidia-ml.so*",
    "libnvidia-ptxjitcompiler.so*",
    "libnvidia-nvvm*.so*",
    "libnvidia-gpucomp.so*",
    "libnvidia-nscq.so*",
    "libnvidia-cfg.so*",
    "libnvidia-pkcs11*.so*",
)
PLACES = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
    "/usr/lib",
)
DEVICES = (
    "/dev/nvidia[0-9]*",
    "/dev/nvidiactl",
    "/dev/nvidia-uvm*",
    "/dev/nvidia-modeset",
    "/dev/nvidia-caps*",
    "/dev/dxg",
)


@dataclass(frozen=True)
class Driver:
    """Where the driver's files are.

    Attributes:
        root: a directory with ``lib`` (and maybe ``bin``); None where they lie among other libraries.
        libraries: single files, when ``root`` is None.
        programs: ``nvidia-smi``, when ``root`` is None and it exists.
    """

    root: Path | None
    libraries: tuple[Path, ...] = ()
    programs: tuple[Path, ...] = ()

    @property
    def found(self) -> bool:
        """Whether there is a driver at all."""
        return self.root is not None or bool(self.libraries)

    def library(self, name: str) -> Path | None:
        """A library by its file name."""
        if self.root is not None:
            path = self.root / "lib" / name
            return path if path.exists() else None
        return next((p for p in self.libraries if p.name == name), None)

    def program(self, name: str) -> Path | None:
        """A program by its name, from the driver or from PATH."""
        if self.root is not None and (self.root / "bin" / name).exists():
            return self.root / "bin" / name
        import shutil

        found = next((p for p in self.programs if p.name == name), None) or shutil.which(name)
        return Path(found) if found else None


def find(root: Path | None = None) -> Driver:
    """The driver at ``root``, in ``/run/opengl-driver``, or among the host's libraries."""
    if root is not None:
        # Commands inside a runtime have another working directory.
        return Driver(Path(os.path.abspath(root)))
    if HOME.exists():
        return Driver(HOME)
    import glob
    import shutil

    for place in PLACES:
        found = sorted(Path(p) for pattern in LIBRARIES for p in glob.glob(f"{place}/{pattern}"))
        if any(p.name.startswith("libcuda.so") for p in found):
            smi = shutil.which("nvidia-smi")
            return Driver(None, tuple(found), (Path(smi),) if smi else ())
    return Driver(None)


def devices() -> list[Path]:
    """Device nodes of NVIDIA's driver."""
    import glob

    return sorted(Path(p) for pattern in DEVICES for p in glob.glob(pattern))


def store_closure(root: Path) -> list[Path]:
    """Where a driver root's links lead outside it: on NixOS its libraries are links into the driver's
    package.
    """
    outside = set()
    for path in [root, *root.glob("*"), *root.glob("lib/*"), *root.glob("bin/*")]:
        real = Path(os.path.realpath(path))
        if root not in real.parents and real != root and real.exists():
            outside.add(real)
    return sorted(outside)

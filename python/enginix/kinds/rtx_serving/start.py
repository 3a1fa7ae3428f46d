"""What the start of a server of kind ``rtx`` checks and sets; see ``StartModule`` of the registry."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from enginix.compatibility.check import require_versions
from enginix.console import print_message
from enginix.errors import MachineError
from enginix.files import find_user_cache
from enginix.manifest import Manifest
from enginix.process import query_python

# Directory of compiled kernels, which ``enginix serve`` sets.
CACHE_VARIABLE = "ENGINIX_RTX_CACHE"
NEVER_EXECUTED = (
    "this server's executor was never run before its release, for want of a GPU that TensorRT for RTX takes: "
    "enginix gate ENGINE --reference MODEL compares its answers with the model's"
)
INTERPRETED = (
    "enginix's interpreter executes the network, in PyTorch on the CPU, for tests: NVIDIA's runtime and the "
    "plan take no part"
)
# Prints as JSON the version of the library, and whether torch is a build for CPUs alone.
_PROBE = (
    "import json, importlib.metadata as m, tensorrt_rtx_bindings as t\n"
    "print(json.dumps([t.__version__, m.version('torch')]))"
)


def needs_gpu(options: Mapping[str, Any]) -> bool:
    """Return whether NVIDIA's runtime executes a repository with these options of its manifest."""
    return options.get("interpreter") is not True


def list_variables(name: str) -> dict[str, str]:
    """Return the variable with the directory of compiled kernels: the unit's state, or the user's cache."""
    state = os.environ.get("STATE_DIRECTORY")
    return {CACHE_VARIABLE: str((Path(state.split(":")[0]) if state else find_user_cache()) / "rtx-kernels")}


def read_installed_versions() -> dict[str, str]:
    """Return the version of the library in this Python; say where it has none."""
    try:
        return {"tensorrtRtx": version("tensorrt-rtx-cu13-bindings")}
    except PackageNotFoundError:
        print_message("note: TensorRT for RTX is not in this Python: its version was not compared")
        return {}


def check_environment(python: Path, directory: Path, repository: Manifest) -> list[str]:
    """Check the library's version, and that PyTorch has CUDA where a GPU serves; return notes.

    Raises:
        MachineError: the library cannot be imported, or PyTorch is a build without CUDA.
        Mismatch: the library has another version than the one that built the engine.
    """
    rtx_version, torch_version = query_python(
        python,
        _PROBE,
        failure="does not import TensorRT for RTX",
        fix="install tensorrt-rtx-cu13-libs and tensorrt-rtx-cu13-bindings",
    )
    require_versions(repository, directory, {"tensorrtRtx": rtx_version})
    if not needs_gpu(repository.options):
        return [INTERPRETED]
    if torch_version.endswith("+cpu"):
        raise MachineError(
            f"PyTorch {torch_version} has no CUDA, and the engine's buffers on the GPU are PyTorch's",
            where=python,
            fix="--python of an environment whose PyTorch has CUDA (docs/how-to/environments.md)",
        )
    return [NEVER_EXECUTED]

"""The rows of ``data/runtime/runtimes.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix import console
from enginix.errors import UsageError
from enginix.manifest import NOT_VERIFIED
from enginix.runtime.unlisted import KEYS, make_unlisted_row, read_description
from enginix.tables import load_table
from enginix.wording import list_known

# Of engines that name no runtime, as mkEngine has it.
DEFAULT_RUNTIME = "trtllm-1.2.1"


@dataclass(frozen=True)
class Runtime:
    """One pinned software stack.

    Attributes:
        id: key of the table, for instance ``trtllm-1.2.1``; of one that its user describes
            ``trtllm-1.4.0rc2-unverified``.
        kinds: kinds of engines that it executes.
        version: of TensorRT-LLM; None for runtimes without it.
        tensorrt: version of TensorRT, as the image has it.
        cuda: version of the CUDA toolkit.
        driver: least driver; None where it is not known.
        site_packages: where the image keeps Python packages.
        python: the image's interpreter.
        environment: variables of the image.
    """

    id: str
    kinds: tuple[str, ...]
    version: str | None
    tensorrt: str | None
    cuda: str | None
    driver: str | None
    site_packages: str | None
    python: str
    environment: dict[str, str]
    row: dict[str, Any]

    @property
    def engine_path(self) -> bool:
        """Tell whether the runtime builds and runs TensorRT engines."""
        return bool(self.row["enginePath"])

    @property
    def is_verified(self) -> bool:
        """Tell whether the table has the runtime; else its user describes it."""
        return bool(self.row.get("verified", True))

    def describe(self) -> dict[str, Any]:
        """Return what a manifest says of the runtime, with the user's description of an unlisted one."""
        described = {} if self.is_verified else {"verified": False, **self.row["description"]}
        return {
            "id": self.id,
            "tensorrtLlm": self.version,
            "tensorrt": self.tensorrt,
            "cuda": self.cuda,
            "driverFloor": self.driver,
            **described,
        }


def list_runtimes() -> list[str]:
    """List the runtimes' names, sorted."""
    return sorted(load_table("runtimes")["runtimes"])


def find_runtime(name: str | Mapping[str, Any], kind: str | None = None, pin: Path | None = None) -> Runtime:
    """Return the runtime of that name, or the one that a description describes.

    Args:
        name: key of the table; or a description: as an object, as a manifest has it, or the path of its file,
            which ends in ``.json``. A described runtime is told to be not verified.
        kind: kind of engine that it must be able to execute.
        pin: file of ``enginix runtime pin``; its environment, read from the image, overrides the table's.

    Raises:
        UsageError: the name is unknown, with the nearest known name; or the runtime cannot execute the kind,
            with the runtimes that can; or the description is wrong.
    """
    rows = load_table("runtimes")["runtimes"]
    name, row = _find_row(name)
    if kind is not None and kind not in row["kinds"]:
        capable_runtimes = [n for n in list_runtimes() if kind in rows[n]["kinds"]]
        why = (
            "; NVIDIA removed the engine path from TensorRT-LLM in July 2026"
            if kind == "tensorrt" and "llmapi" in row["kinds"]
            else ""
        )
        raise UsageError(
            f"runtime {name} has no kind {kind}{why}",
            fix=f"use one of {', '.join(capable_runtimes)}"
            + (", or kind llmapi if its PyTorch backend has the model's class" if why else ""),
        )
    paths = row.get("paths", {})
    return Runtime(
        id=name,
        kinds=tuple(row["kinds"]),
        version=row.get("tensorrtLlm"),
        tensorrt=row.get("tensorrt"),
        cuda=row.get("cuda"),
        driver=row.get("driver"),
        site_packages=paths.get("sitePackages"),
        python=paths.get("python", "python3"),
        environment={**row.get("environment", {}), **(_read_pin_environment(pin, name) if pin else {})},
        row=row,
    )


def require_triton(runtime: Runtime, where: str) -> str:
    """Return the directory of the tritonserver in a runtime's image.

    Raises:
        UsageError: the image has none; with the way without Triton, and the runtimes with it. mkTritonRepo
            and mkTritonServer refuse the same (nix/check/runtime.nix).
    """
    directory = runtime.row.get("paths", {}).get("triton")
    if directory is None:
        rows = load_table("runtimes")["runtimes"]
        with_triton = [name for name in list_runtimes() if rows[name].get("paths", {}).get("triton")]
        raise UsageError(
            f"the image of runtime {runtime.id} has no Triton",
            where=where,
            fix="serve the engine by trtllm-serve, which has OpenAI's interface: enginix runner ENGINE "
            f"--rootfs ROOT; or build it for a runtime of Triton's images: {', '.join(with_triton)}",
        )
    return str(directory)


def _find_row(name: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    rows = load_table("runtimes")["runtimes"]
    if isinstance(name, Mapping):
        if name.get("verified", True) is not False and "like" not in name:
            return _find_row(str(name.get("id")))
        # A manifest's fields, or the description alone.
        described = {key: name[key] for key in KEYS if key in name} if "id" in name else name
    elif name in rows:
        return name, rows[name]
    elif name.endswith(".json"):
        described = read_description(Path(name))
    else:
        raise UsageError(f"unknown runtime {name!r}", fix=_suggest_runtime(name))
    unlisted, row = make_unlisted_row(described)
    _warn_once(unlisted, row["description"])
    return unlisted, row


def _suggest_runtime(name: str) -> str:
    """Return the runtime that is meant, and all; nothing near another release is meant by it."""
    known = list_runtimes()
    release = re.fullmatch(r"(?:trtllm-)?([0-9]+\.[0-9]+\.[0-9]+.*)", name)
    own = f"trtllm-{release[1]}" if release else ""
    if release is None:
        listed = list_known(name, known)
    else:
        listed = f"did you mean {own}? " * (own in known) + f"known: {', '.join(known)}"
    return f"{listed}; or the file of a description, which ends in .json: enginix runtime --help shows one"


_warned: set[str] = set()


def _warn_once(name: str, described: Mapping[str, Any]) -> None:
    if name not in _warned:
        _warned.add(name)
        console.print_message(
            f"warning: runtime {name} is {NOT_VERIFIED}: its user describes it, like {described['like']}, "
            f"image {described['image']}"
        )


def _read_pin_environment(pin: Path, name: str) -> dict[str, str]:
    try:
        content = json.loads(pin.read_text("utf-8"))
        pinned_runtime, environment = content["runtime"], content.get("environment", {})
        if not all(isinstance(k, str) and isinstance(v, str) for k, v in environment.items()):
            raise ValueError("environment is not of texts")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UsageError(f"unreadable: {e}", where=pin, fix="write it again with enginix runtime pin") from e
    if pinned_runtime != name:
        raise UsageError(f"the pin is of runtime {pinned_runtime}, not of {name}", where=pin)
    return dict(environment)

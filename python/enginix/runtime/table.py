"""The rows of ``data/runtime/runtimes.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix.errors import UsageError
from enginix.tables import load_table
from enginix.wording import list_known

# Of engines that name no runtime, as mkEngine has it.
DEFAULT_RUNTIME = "trtllm-1.2.1"


@dataclass(frozen=True)
class Runtime:
    """One pinned software stack.

    Attributes:
        id: key of the table, for instance ``trtllm-1.2.1``.
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


def list_runtimes() -> list[str]:
    """List the runtimes' names, sorted."""
    return sorted(load_table("runtimes")["runtimes"])


def find_runtime(name: str, kind: str | None = None, pin: Path | None = None) -> Runtime:
    """Return the runtime of that name.

    Args:
        kind: kind of engine that it must be able to execute.
        pin: file of ``enginix runtime pin``; its environment, read from the image, overrides the table's.

    Raises:
        UsageError: the name is unknown, with the nearest known name; or the runtime cannot execute the kind,
            with the runtimes that can.
    """
    rows = load_table("runtimes")["runtimes"]
    if name not in rows:
        raise UsageError(f"unknown runtime {name!r}", fix=list_known(name, list_runtimes()))
    row = rows[name]
    if kind is not None and kind not in row["kinds"]:
        capable_runtimes = [n for n in list_runtimes() if kind in rows[n]["kinds"]]
        why = (
            "; NVIDIA removed the engine path from TensorRT-LLM in July 2026"
            if kind == "tensorrt" and "llmapi" in row["kinds"]
            else ""
        )
        raise UsageError(
            f"runtime {name} has no kind {kind}{why}",
            fix=f"use one of {', '.join(capable_runtimes)}" + (", or --kind llmapi" if why else ""),
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


def _read_pin_environment(pin: Path, name: str) -> dict[str, str]:
    try:
        content = json.loads(pin.read_text("utf-8"))
        pinned_runtime, environment = content["runtime"], content.get("environment", {})
        if not all(isinstance(k, str) and isinstance(v, str) for k, v in environment.items()):
            raise ValueError("environment is not of texts")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UsageError(
            f"unreadable: {e}", where=str(pin), fix="write it again with enginix runtime pin"
        ) from e
    if pinned_runtime != name:
        raise UsageError(f"the pin is of runtime {pinned_runtime}, not of {name}", where=str(pin))
    return dict(environment)

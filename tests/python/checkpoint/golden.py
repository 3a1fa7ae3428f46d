"""The golden archive: unpacked once a user and digest, read as plain data."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import io
import json
import os
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARCHIVES = Path(__file__).resolve().parents[2] / "golden"
ROPE_CONSTANTS = (
    "embed_positions",
    "rotary_inv_freq",
    "long_rope_embed_positions",
    "long_rope_rotary_inv_freq",
)


@functools.cache
def unpack_archive(name: str) -> Path:
    """Return the directory of an archive of tests/golden, unpacked once a user and digest.

    Args:
        name: of the archive, without .tar.xz, and of the directory in it.
    """
    archive = ARCHIVES / f"{name}.tar.xz"
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()[:16]
    cache = Path(tempfile.gettempdir()) / f"enginix-{name}-{os.getuid()}-{digest}"
    cache.mkdir(mode=0o700, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / "complete").exists():
            with tarfile.open(archive) as tar:
                tar.extractall(cache)  # our own archive; older Pythons know no filter
            (cache / "complete").touch()
    return cache / name


def add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file to an archive of tests/golden: no time and no owner, so that the same is written again."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    tar.addfile(info, io.BytesIO(data))


def root() -> Path:
    """Directory of the golden checkpoints."""
    return unpack_archive("golden")


@dataclass(frozen=True)
class Conversion:
    """One row of ``index.json`` with its arguments from ``case.json``."""

    case: str
    label: str
    ok: bool
    defect: str | None
    error: str | None
    architecture: str
    format: str
    tensor_parallel: int
    pipeline_parallel: int
    expert_parallel: int
    route: str
    dtype: str | None
    arguments: dict[str, Any]
    quantization: dict[str, Any] | None

    @property
    def id(self) -> str:
        return f"{self.case}/{self.label}"

    @property
    def model(self) -> Path:
        return root() / self.case / "hf"

    @property
    def output(self) -> Path:
        return root() / self.case / self.label


@functools.cache
def conversions() -> list[Conversion]:
    """Every conversion of the archive (not the ``load-*`` cases, which start from ModelOpt's output)."""
    found = []
    index = [r for r in json.loads((root() / "index.json").read_text()) if r["kind"] == "convert"]
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in index:
        if row["case"] not in cases:
            cases[row["case"]] = json.loads((root() / row["case"] / "case.json").read_text())["conversions"]
        detail = cases[row["case"]].pop(0)
        assert detail["result"] == row["result"] and detail["mapping"] == row["mapping"], row
        error = detail.get("error")
        found.append(
            Conversion(
                case=row["case"],
                label=row["label"],
                ok=row["result"] == "ok",
                defect=detail.get("known_defect"),
                error=f"{error['type']}: {error['message']}" if error else None,
                architecture=row["architecture"],
                format=row["format"],
                tensor_parallel=row["mapping"]["tp_size"],
                pipeline_parallel=row["mapping"]["pp_size"],
                expert_parallel=row["mapping"]["moe_ep_size_argument"] or 1,
                route=row["route"],
                dtype=row["dtype"],
                arguments=detail["extra_arguments"] or {},
                quantization=detail["quant_config_argument"],
            )
        )
    return found


def tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name → dtype, shape, bytes of a safetensors file, parsed by the few lines that the format needs."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    base = 8 + length
    return {
        name: (e["dtype"], tuple(e["shape"]), data[base + e["data_offsets"][0] : base + e["data_offsets"][1]])
        for name, e in header.items()
    }


def is_rope_constant(name: str) -> bool:
    return name.startswith(ROPE_CONSTANTS)

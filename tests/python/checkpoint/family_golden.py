"""Golden data of further families: models, and the digests of what TensorRT-LLM's own scripts made of them.

tests/golden/families.tar.xz is an excerpt of the complete archive: inputs whole; of outputs config.json, and
dtype, shape and SHA-256 of each tensor. It is made again from the unpacked archive:

  python tests/python/checkpoint/family_golden.py GOLDEN_FAMILIES tests/golden/families.tar.xz
"""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golden import add_file, tensors, unpack_archive


@dataclass(frozen=True)
class FamilyConversion:
    """One conversion by an example script of TensorRT-LLM 0.17.

    Attributes:
        ranks: of each rank, tensor name → dtype, shape, digest.
        defect: why the output is wrong; None for a right one.
        error: text of the refusal; None for an output.
    """

    case: str
    label: str
    tensor_parallel: int
    pipeline_parallel: int
    expert_parallel: int
    dtype: str | None
    parallel_embedding: bool
    embedding_sharding_dim: int
    variant: str | None
    defect: str | None
    error: str | None
    config: dict[str, Any]
    ranks: list[dict[str, list[Any]]]

    @property
    def id(self) -> str:
        return f"{self.case}/{self.label}"

    @property
    def model(self) -> Path:
        return root() / self.case / "hf"


def root() -> Path:
    """Return the directory of the unpacked excerpt."""
    return unpack_archive("families")


def list_family_conversions() -> list[FamilyConversion]:
    return [FamilyConversion(**row) for row in json.loads((root() / "conversions.json").read_text())]


def digest_tensors(path: Path) -> dict[str, list[Any]]:
    """Return name → dtype, shape, digest of a rank file."""
    return {
        name: [dtype, list(shape), hashlib.sha256(data).hexdigest()[:32]]
        for name, (dtype, shape, data) in tensors(path).items()
    }


_VARIANTS = ("--chatglm_version", "--model_version")


def _describe(case: Path, entry: dict[str, Any], number: int) -> dict[str, Any]:
    command, size = entry.get("command", []), entry["mapping"]
    output = case / (entry.get("directory") or f"refused-{number}")
    has_output = entry["result"] == "ok"

    def argument(name: str, default: int) -> int:
        return int(command[command.index(name) + 1]) if name in command else default

    mapping = f"tp{size['tp_size']}" + (f"pp{size['pp_size']}" if size["pp_size"] > 1 else "")
    error = entry.get("error")
    return {
        "case": case.name,
        "label": output.name.removeprefix("trtllm-") if has_output else f"refused-{mapping}",
        "tensor_parallel": size["tp_size"],
        "pipeline_parallel": size["pp_size"],
        "expert_parallel": argument("--moe_ep_size", 1),
        "dtype": None
        if entry.get("dtype_argument") == "auto"
        else entry.get("dtype_argument", entry.get("dtype")),
        "parallel_embedding": "--use_parallel_embedding" in command,
        "embedding_sharding_dim": argument("--embedding_sharding_dim", 0),
        "variant": next((command[command.index(a) + 1] for a in _VARIANTS if a in command), None),
        "defect": entry.get("known_defect") or None,
        "error": f"{error['type']}: {error.get('message') or error.get('text')}"[:300] if error else None,
        "config": json.loads((output / "config.json").read_text()) if has_output else {},
        "ranks": [digest_tensors(output / f"rank{r}.safetensors") for r in range(size["world_size"])]
        if has_output
        else [],
    }


def write_excerpt(source: Path, target: Path) -> None:
    """Write the excerpt of an unpacked archive: the cases that example scripts converted."""
    rows: list[dict[str, Any]] = []
    with tarfile.open(target, "w:xz", preset=9) as tar:
        for case in sorted(p for p in source.iterdir() if (p / "case.json").exists()):
            description = json.loads((case / "case.json").read_text())
            if "examples/" not in description["tool"]:
                continue
            rows += [_describe(case, entry, n) for n, entry in enumerate(description["conversions"])]
            for path in sorted((case / "hf").iterdir()):
                add_file(tar, f"families/{case.name}/hf/{path.name}", path.read_bytes())
        add_file(tar, "families/conversions.json", json.dumps(rows).encode())


if __name__ == "__main__":
    write_excerpt(Path(sys.argv[1]), Path(sys.argv[2]))

"""Our conversion of a golden case beside TensorRT-LLM's: differences of configuration and of tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from enginix.checkpoint.convert import ON_LOAD, ConversionSpec, ConvertOptions, convert_model
from enginix.checkpoint.describe import LEFT_OUT
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.errors import EnginixError
from golden import Conversion, is_rope_constant, tensors

INTENDED = json.loads((Path(__file__).parent / "intended_differences.json").read_text())["rows"]


def options(case: Conversion) -> ConvertOptions:
    """The same request, in our words."""
    asked = case.quantization or {}
    described = (case.model / "hf_quant_config.json").exists()
    stored = (
        json.loads((case.model / "hf_quant_config.json").read_text())["quantization"] if described else {}
    )
    on_load = None if described else asked.get("quant_algo")
    assert on_load in (None, *ON_LOAD), case.id
    kv_cache = asked.get("kv_cache_quant_algo")
    return ConvertOptions(
        dtype=case.dtype,
        mapping=CheckpointMapping(case.tensor_parallel, case.pipeline_parallel, case.expert_parallel),
        parallel_embedding=case.arguments.get("use_parallel_embedding", False),
        embedding_sharding_dim=case.arguments.get("embedding_sharding_dim", 0),
        quantize=on_load,
        kv_cache=kv_cache if kv_cache != stored.get("kv_cache_quant_algo") else None,
        kind="tensorrt",
    )


@dataclass(frozen=True)
class Result:
    """What ours did: a plan, or a refusal."""

    plan: ConversionSpec | None
    refusal: EnginixError | None


def ours(case: Conversion, out: Path) -> Result:
    try:
        return Result(convert_model(case.model, out, options(case)), None)
    except EnginixError as e:
        return Result(None, e)


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, dict) and entry:
            found.update(flat(entry, f"{prefix}{key}."))
        else:
            found[prefix + key] = entry
    return found


ABSENT = "(absent)"


def loaded(path: Path) -> dict[str, Any]:
    """A config.json as the loader has it: absent keys of mapping and quantization hold their default."""
    raw = json.loads(path.read_text())
    return flat(raw | {section: defaults | raw[section] for section, defaults in LEFT_OUT.items()})


def config_differences(case: Conversion, out: Path) -> dict[str, tuple[Any, Any]]:
    """Key → theirs, ours, where they differ once loaded."""
    theirs, mine = loaded(case.output / "config.json"), loaded(out / "config.json")
    pairs = {key: (theirs.get(key, ABSENT), mine.get(key, ABSENT)) for key in theirs.keys() | mine.keys()}
    return {key: pair for key, pair in sorted(pairs.items()) if pair[0] != pair[1]}


def intended(case: Conversion, key: str) -> dict[str, str] | None:
    for row in INTENDED:
        if row["key"] == key and fnmatchcase(case.id, row["only"]):
            return dict(row)
    return None


def tensor_differences(case: Conversion, out: Path) -> list[str]:
    found = []
    for rank in range(case.tensor_parallel * case.pipeline_parallel):
        theirs = {
            name: tensor
            for name, tensor in tensors(case.output / f"rank{rank}.safetensors").items()
            if not is_rope_constant(name)
        }
        mine = tensors(out / f"rank{rank}.safetensors")
        for name in sorted(theirs.keys() | mine.keys()):
            if name not in mine or name not in theirs:
                found.append(f"rank {rank}: {name}: {'missing' if name in theirs else 'extra'}")
            elif theirs[name] != mine[name]:
                what = (
                    "bytes" if theirs[name][:2] == mine[name][:2] else f"{theirs[name][:2]} {mine[name][:2]}"
                )
                found.append(f"rank {rank}: {name}: {what}")
    return found

"""The command line of ``trtllm-serve`` around an engine: backend and tokenizer by its kind."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix.engine.llmapi import FILE
from enginix.errors import ManifestError
from enginix.files import dump_json, write_text
from enginix.manifest import Manifest
from enginix.tables import table


@dataclass(frozen=True)
class Serving:
    """How an engine is served.

    Attributes:
        kv_cache_fraction: of the memory that is free once the engine is loaded; None leaves TensorRT-LLM's.
        work: directory for arguments that are the engine's and the server's together; None makes one.
        inside: path of ``work`` as the server sees it; None is the same.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    kv_cache_fraction: float | None = None
    log_level: str = "info"
    work: Path | None = None
    inside: Path | None = None


def command(engine: Path, made: Manifest, serving: Serving) -> list[str]:
    """The command line; the directory is seen under the same path inside the runtime.

    Raises:
        ManifestError: a kind that trtllm-serve does not serve, a size that is none, arguments that are none.
    """
    tables = table("llm_args")["serve"]
    flags = tables["flags"]
    if made.kind not in tables["backends"]:
        raise ManifestError(
            f"trtllm-serve does not serve the kind {made.kind}",
            where=str(engine),
            fix="use mkTritonRepo and mkTritonServer, or an engine of kind tensorrt or llmapi",
        )
    # Since 1.0 the default backend is PyTorch, which refuses an engine directory.
    model = engine / ("engine" if made.kind == "tensorrt" else "model")
    words = ["trtllm-serve", str(model), flags["backend"], tables["backends"][made.kind]]
    words += [
        flags["tokenizer"],
        str(engine / "tokenizer"),
        flags["host"],
        serving.host,
        flags["port"],
        str(serving.port),
    ]
    limits = made.options.get("limits", {})
    if not isinstance(limits, dict):
        raise ManifestError(f"limits are {limits!r}", where=str(engine), fix="build this engine again")
    for name in ("maxBatchSize", "maxNumTokens", "maxSeqLen", "maxBeamWidth"):
        if name in limits:
            words += [flags[name], _size(engine, name, limits[name])]
    if made.kind == "tensorrt" and "maxInputLen" in limits and "maxNumTokens" in limits:
        prompt, step = (int(_size(engine, n, limits[n])) for n in ("maxInputLen", "maxNumTokens"))
        # TensorRT-LLM refuses such a prompt otherwise; an llmapi engine says it in its arguments.
        words += [flags["chunkedPrefill"]] if prompt > step else []
    for name in ("tensorParallel", "pipelineParallel"):
        if made.options.get(name, 1) != 1:
            words += [flags[name], _size(engine, name, made.options[name])]
    if serving.kv_cache_fraction is not None:
        words += [flags["kvCacheFraction"], str(serving.kv_cache_fraction)]
    if made.kind == "llmapi" and (arguments := _arguments(engine / FILE)):
        words += [flags["options"], str(_merged(engine, arguments, serving))]
    return [*words, flags["logLevel"], serving.log_level]


def _merged(engine: Path, arguments: dict[str, Any], serving: Serving) -> Path:
    """Return the file of arguments: the engine's, or one with the server's share of the memory in it.

    The file wins over flags, and its kv_cache_config replaces what the flag made as a whole.
    """
    own = arguments.get("kv_cache_config")
    if own is None or serving.kv_cache_fraction is None:
        return engine / FILE
    if not isinstance(own, dict):
        raise ManifestError(
            f"kv_cache_config is {own!r}", where=str(engine / FILE), fix="build this engine again"
        )
    work = serving.work or Path(tempfile.mkdtemp(prefix="enginix-"))
    work.mkdir(parents=True, exist_ok=True)
    whole = arguments | {
        "kv_cache_config": own | {"free_gpu_memory_fraction": serving.kv_cache_fraction},
    }
    write_text(work / FILE, dump_json(whole))
    return (serving.inside or work) / FILE


def _size(engine: Path, name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ManifestError(f"{name} is {value!r}", where=str(engine), fix="build this engine again")
    return str(value)


def _arguments(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise ManifestError(f"unreadable: {e}", where=str(path), fix="build this engine again") from e
    if not isinstance(found, dict):
        raise ManifestError("not a JSON object", where=str(path), fix="build this engine again")
    return found

"""The command line of ``trtllm-serve`` for an engine: backend and tokenizer by its kind."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginix.errors import ManifestError
from enginix.files import dump_json, read_json_object, write_text
from enginix.kinds.llmapi.llmapi_engine import LLM_ARGUMENTS_FILE
from enginix.kinds.registry import find_kind
from enginix.manifest import Manifest
from enginix.model.attention_window import read_engine_windows
from enginix.tables import load_table


@dataclass(frozen=True)
class Serving:
    """Options for serving an engine.

    Attributes:
        kv_cache_fraction: share of the memory that is free once the engine is loaded; None for TensorRT-LLM's
            default.
        work: directory for the merged arguments of engine and server; None makes one.
        inside: path of ``work`` as the server sees it; None is the same path.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    kv_cache_fraction: float | None = None
    log_level: str = "info"
    work: Path | None = None
    inside: Path | None = None


def make_serve_command(engine: Path, engine_manifest: Manifest, serving: Serving) -> list[str]:
    """Return the command line; the engine has the same path inside the runtime.

    Raises:
        ManifestError: trtllm-serve does not serve the kind, or sizes or arguments are invalid.
    """
    tables = load_table("llm_args")["serve"]
    flags = tables["flags"]
    if engine_manifest.kind not in tables["backends"]:
        raise ManifestError(
            f"trtllm-serve does not serve the kind {engine_manifest.kind}",
            where=str(engine),
            fix="use mkTritonRepo and mkTritonServer, or an engine of kind tensorrt or llmapi",
        )
    # Since 1.0 the default backend is PyTorch, which refuses an engine directory.
    is_compiled = find_kind(engine_manifest.kind).is_compiled
    model = engine / ("engine" if is_compiled else "model")
    words = ["trtllm-serve", str(model), flags["backend"], tables["backends"][engine_manifest.kind]]
    words += [flags["tokenizer"], str(engine / "tokenizer")]
    words += [flags["host"], serving.host, flags["port"], str(serving.port)]
    limits = engine_manifest.options.get("limits", {})
    if not isinstance(limits, dict):
        raise ManifestError(f"limits are {limits!r}", where=str(engine), fix="build this engine again")
    for name in ("maxBatchSize", "maxNumTokens", "maxSeqLen", "maxBeamWidth"):
        if name in limits:
            words += [flags[name], _format_size(engine, name, limits[name])]
    if is_compiled and "maxInputLen" in limits and "maxNumTokens" in limits:
        prompt, step = (int(_format_size(engine, n, limits[n])) for n in ("maxInputLen", "maxNumTokens"))
        # Otherwise TensorRT-LLM refuses such a prompt; an llmapi engine has the setting in its arguments.
        words += [flags["chunkedPrefill"]] if prompt > step else []
    for name in ("tensorParallel", "pipelineParallel"):
        if engine_manifest.options.get(name, 1) != 1:
            words += [flags[name], _format_size(engine, name, engine_manifest.options[name])]
    if serving.kv_cache_fraction is not None:
        words += [flags["kvCacheFraction"], str(serving.kv_cache_fraction)]
    arguments = (
        _make_engine_arguments(engine, engine_manifest)
        if is_compiled
        else read_json_object(engine / LLM_ARGUMENTS_FILE, ManifestError, "build this engine again")
    )
    if arguments:
        words += [flags["options"], str(_place_arguments(engine, arguments, serving, is_compiled))]
    return [*words, flags["logLevel"], serving.log_level]


def _make_engine_arguments(engine: Path, engine_manifest: Manifest) -> dict[str, Any]:
    """Return what a compiled engine cannot say itself: the model's sliding windows."""
    limits = engine_manifest.options.get("limits", {})
    longest = int(_format_size(engine, "maxSeqLen", limits["maxSeqLen"])) if "maxSeqLen" in limits else None
    windows = read_engine_windows(engine_manifest, longest, str(engine))
    return {"kv_cache_config": {"max_attention_window": windows}} if windows else {}


def _place_arguments(engine: Path, arguments: dict[str, Any], serving: Serving, is_compiled: bool) -> Path:
    """Return the file of arguments: the engine's, or one of ``work`` with the server's share of the memory.

    The file overrides flags, and its kv_cache_config replaces the flag's as a whole.
    """
    cache_config = arguments.get("kv_cache_config")
    if not is_compiled and (cache_config is None or serving.kv_cache_fraction is None):
        return engine / LLM_ARGUMENTS_FILE
    if not isinstance(cache_config, dict):
        raise ManifestError(
            f"kv_cache_config is {cache_config!r}",
            where=str(engine / LLM_ARGUMENTS_FILE),
            fix="build this engine again",
        )
    work = serving.work or Path(tempfile.mkdtemp(prefix="enginix-"))
    work.mkdir(parents=True, exist_ok=True)
    fraction = serving.kv_cache_fraction
    share = {} if fraction is None else {"free_gpu_memory_fraction": fraction}
    merged = arguments | {"kv_cache_config": cache_config | share}
    write_text(work / LLM_ARGUMENTS_FILE, dump_json(merged))
    return (serving.inside or work) / LLM_ARGUMENTS_FILE


def _format_size(engine: Path, name: str, value: Any) -> str:
    if type(value) is not int or value < 1:
        raise ManifestError(f"{name} is {value!r}", where=str(engine), fix="build this engine again")
    return str(value)

"""Engine of kind ``llmapi``: no compiled plan; a pinned model and the arguments of TensorRT-LLM's PyTorch
backend.

<engine>/
  enginix.json     manifest
  llm_args.yaml    for --extra_llm_api_options; JSON, which YAML reads
  model            link to the model, or a copy of its files
  tokenizer/       tokenizer, chat template, generation defaults
"""

from __future__ import annotations

import difflib
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from enginix import __version__
from enginix.engine import options as build_options
from enginix.engine.options import Limits
from enginix.engine.target import Target, target
from enginix.engine.tensorrt_checkpoint import Checkpoint, model_identity
from enginix.engine.tensorrt_request import check_shape, count, profile_of
from enginix.errors import UsageError
from enginix.files import dump_json, new_directory, write_text
from enginix.manifest import Manifest, name_of
from enginix.model.attention_window import read_windows
from enginix.model.end_tokens import KEY, read_end_tokens
from enginix.model.tokenizer_files import copy_tokenizer_files
from enginix.runtime import table as runtimes
from enginix.runtime.table import Runtime
from enginix.tables import table

FILE = "llm_args.yaml"


@dataclass(frozen=True)
class Wanted:
    """An artefact as it was asked for."""

    name: str | None
    target: Target | None
    runtime: Runtime
    limits: dict[str, int] = field(default_factory=dict)
    tensor_parallel: int = 1
    arguments: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def parse(asked: dict[str, Any]) -> Wanted:
        """From the JSON that Nix writes, or from flags in the same shape.

        Raises:
            UsageError: a field is wrong, or an argument is unknown to the runtime.
        """
        check_shape(asked)
        if not asked.get("runtime"):
            raise UsageError(
                "--runtime is needed for this kind", fix="for instance --runtime trtllm-1.3.0rc26"
            )
        if asked.get("options"):
            raise UsageError("options of trtllm-build do not apply to the kind llmapi", fix="use --llm-arg")
        runtime = runtimes.find(str(asked["runtime"]), "llmapi")
        profile = profile_of(asked.get("profile"))
        return Wanted(
            name=asked.get("name"),
            target=target(str(asked["target"])) if asked.get("target") else None,
            runtime=runtime,
            limits={
                k: v for k, v in {**profile["limits"], **(asked.get("limits") or {})}.items() if v is not None
            },
            tensor_parallel=count("tensorParallel", asked.get("tensorParallel")),
            arguments=check(asked.get("llmArgs") or {}, runtime.id),
        )


def check(arguments: dict[str, Any], runtime: str) -> dict[str, Any]:
    """Names and types of LLM arguments: the class forbids names that it does not know, and says so late.

    Raises:
        UsageError: unknown, of the TensorRT backend alone, enginix's own, or mistyped.
    """
    tables = table("llm_args")
    rows = tables["arguments"]
    for name, value in arguments.items():
        where = f"argument {name}"
        if name in tables["own"]:
            raise UsageError("enginix writes it itself", where=where, fix=f"it is {tables['own'][name]}")
        if name in tables["tensorrtOnly"]["names"]:
            raise UsageError(
                "is of the TensorRT backend alone", where=where, fix="leave it out for the kind llmapi"
            )
        if name not in rows or runtime not in rows[name]["runtimes"]:
            near = difflib.get_close_matches(name, rows, 1)
            raise UsageError(
                f"unknown to the runtime {runtime}",
                where=where,
                fix=f"did you mean {near[0]}?" if near else None,
            )
        _typed(where, rows[name], value)
        if name == "kv_cache_config":
            for key, inner in value.items():
                if key not in tables["kv_cache_config"]:
                    near = difflib.get_close_matches(key, tables["kv_cache_config"], 1)
                    raise UsageError(
                        f"unknown key {key!r}", where=where, fix=f"did you mean {near[0]}?" if near else None
                    )
                _typed(f"{where}.{key}", tables["kv_cache_config"][key], inner)
    return arguments


def _typed(where: str, row: dict[str, Any], value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = {
        "int": isinstance(value, int) and not isinstance(value, bool),
        "number": number,
        "bool": isinstance(value, bool),
        "string": isinstance(value, str),
        "enum": value in (row.get("choices") or ()),
        "object": isinstance(value, dict),
        "list": isinstance(value, list),
    }[row["type"]]
    if not fits and value is not None:
        raise UsageError(
            f"is {value!r}",
            where=where,
            fix=f"pass {', '.join(row['choices']) if row.get('choices') else row['type']}",
        )


def describe(wanted: Wanted, model: Path, out: Path, *, link: bool) -> Manifest:
    """Writes the artefact; whole or absent.

    Raises:
        UsageError: a limit contradicts another or the model's context.
        ModelError: not a model, or one without a tokenizer.
    """
    facts = Checkpoint.of_model(model, wanted.tensor_parallel)
    limits: Limits = build_options.defaults(facts.context, wanted.limits)
    names = table("llm_args")["limits"]
    arguments = {names[k]: v for k, v in asdict(limits).items()} | {
        "tensor_parallel_size": wanted.tensor_parallel,
        **wanted.arguments,
    }
    with new_directory(out) as partial:
        write_text(partial / FILE, dump_json(arguments))
        if link:
            (partial / "model").symlink_to(os.path.abspath(model), target_is_directory=True)
        else:
            shutil.copytree(model, partial / "model")
        copy_tokenizer_files(model, partial / "tokenizer")
        runtime, gpu = wanted.runtime, wanted.target
        made = Manifest(
            artefact="engine",
            name=wanted.name or name_of(model),
            kind="llmapi",
            model={
                "architecture": facts.architecture,
                "quantization": facts.quantization,
                "kvCacheQuantization": facts.kv_cache,
                "dtype": facts.dtype,
                "maxPositionEmbeddings": facts.context,
                **read_windows(model),
                KEY: list(read_end_tokens(model)),
            },
            inputs={"model": model_identity(model)},
            options={
                "limits": asdict(limits),
                "llmArgs": wanted.arguments,
                "tensorParallel": wanted.tensor_parallel,
            },
            target={"name": gpu.name, "sm": gpu.sm, "count": wanted.tensor_parallel} if gpu else {},
            runtime={
                "id": runtime.id,
                "tensorrtLlm": runtime.version,
                "tensorrt": runtime.tensorrt,
                "cuda": runtime.cuda,
                "driverFloor": runtime.driver,
            },
            tools={"enginix": __version__},
            results={"gates": "not gated"},
        )
        made.write(partial)
    return made

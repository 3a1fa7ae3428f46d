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
from collections.abc import Mapping
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
    profile: dict[str, int] = field(default_factory=dict)

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
            limits={k: v for k, v in (asked.get("limits") or {}).items() if v is not None},
            profile=profile["limits"],
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
        _check_value(where, rows[name], value, runtime)
    return arguments


def _check_value(where: str, row: Mapping[str, Any], value: Any, runtime: str) -> None:
    """Check a value down to the fields of its class, as nix/check/llmapi.nix does."""
    if value is None and row.get("null", False):
        return
    if not _fits(row, value):
        raise UsageError(f"is {value!r}", where=where, fix=f"pass {_expected(row)}")
    fields = _fields(where, row, value)
    if fields is None:
        return
    tables = table("llm_args")
    for key, inner in value.items():
        if key == tables["dispatch"].get(row.get("dispatch"), {}).get("key"):
            continue
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            known = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(fields))}"
            unread = f" (of the 1.1/1.2 era; the text of {runtime} was not read)"
            raise UsageError(
                f"unknown key {key!r}",
                where=where,
                fix=known + (unread if runtime in tables["unread"] else ""),
            )
        _check_value(f"{where}.{key}", fields[key], inner, runtime)
    for key, inner_row in fields.items():
        if inner_row.get("required", False) and key not in value:
            raise UsageError(f"{key} is missing", where=where, fix=f"pass {_expected(inner_row)}")


def _fields(where: str, row: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any] | None:
    """The fields that an object may have; None where any."""
    tables = table("llm_args")
    name = row.get("class")
    if "dispatch" in row:
        choice = tables["dispatch"][row["dispatch"]]
        kind = value.get(choice["key"])
        if isinstance(kind, str) and kind in choice["refused"]:
            raise UsageError(
                f"{choice['key']} is {kind!r}: {choice['refused'][kind]}",
                where=where,
                fix=f"pass one of {', '.join(sorted(choice['classes']))}",
            )
        name = choice["classes"].get(kind) if isinstance(kind, str) else None
        if name is None:
            raise UsageError(
                f"{choice['key']} is {kind!r}",
                where=where,
                fix=f"pass one of {', '.join(sorted(choice['classes']))}",
            )
    return None if name is None else dict(tables["classes"][name]["fields"])


def _fits(row: Mapping[str, Any], value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    number = whole or isinstance(value, float)
    least, most = row.get("least", value), row.get("most", value)
    kind = row["type"]
    if kind in ("int", "number"):
        return (whole if kind == "int" else number) and bool(least <= value <= most)
    if kind == "list":
        items = row.get("items")
        return (
            isinstance(value, list)
            and (bool(value) or not row.get("filled", False))
            and all(
                _fits({**row, "type": "int"}, item)
                if items == "int"
                else _fits({"type": "list", "items": "int"}, item)
                for item in value
            )
        )
    return {
        "bool": isinstance(value, bool),
        "string": isinstance(value, str),
        "enum": isinstance(value, str) and value in (row.get("choices") or ()),
        "object": isinstance(value, dict),
        "any": isinstance(value, (dict, str)),
    }[kind]


def _expected(row: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    if row["type"] == "enum":
        return ", ".join(row["choices"])
    limits = [f"at least {row['least']}"] if "least" in row else []
    limits += [f"at most {row['most']}"] if "most" in row else []
    names = {
        "int": "int: a whole number",
        "number": "number",
        "bool": "bool: true or false",
        "string": "a text",
        "object": "an object",
        "list": "a list of lists of whole numbers"
        if row.get("items") == "ints"
        else "a list of whole numbers",
        "any": "an object or a text",
    }
    return " ".join([names[row["type"]], *([", ".join(limits)] if limits else [])])


def describe(wanted: Wanted, model: Path, out: Path, *, link: bool) -> Manifest:
    """Writes the artefact; whole or absent.

    Raises:
        UsageError: a limit contradicts another or the model's context.
        ModelError: not a model, or one without a tokenizer.
    """
    facts = Checkpoint.of_model(model, wanted.tensor_parallel)
    limits: Limits = build_options.defaults(facts.context, wanted.limits, wanted.profile)
    chunked = wanted.arguments.get("enable_chunked_prefill")
    if longer := limits.maxInputLen > limits.maxNumTokens:
        # TensorRT-LLM refuses a prompt above max_num_tokens otherwise.
        if chunked is False:
            raise UsageError(
                f"maxInputLen {limits.maxInputLen} is more than maxNumTokens {limits.maxNumTokens}, and "
                "enable_chunked_prefill is false: such a prompt is refused",
                fix=f"leave enable_chunked_prefill out, or set maxInputLen to {limits.maxNumTokens}",
            )
        chunked = True
    names = table("llm_args")["limits"]
    arguments = {names[k]: v for k, v in asdict(limits).items()} | {
        "tensor_parallel_size": wanted.tensor_parallel,
        **wanted.arguments,
        **({"enable_chunked_prefill": chunked} if longer else {}),
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

"""Engines of kind ``llmapi``: a pinned model and the arguments of TensorRT-LLM's PyTorch backend, without a
compiled plan.

<engine>/
  enginix.json     manifest
  llm_args.yaml    for --extra_llm_api_options; JSON, which YAML reads
  model            link to the model, or a copy of its files
  tokenizer/       tokenizer, chat template, generation defaults
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from enginix import console
from enginix.digests import SourceWatch
from enginix.errors import ModelError, UsageError
from enginix.files import dump_json, write_text
from enginix.integrity import list_content
from enginix.kinds.tensorrt.build import options as build_options
from enginix.kinds.tensorrt.build.engine_checkpoint import BuildCheckpoint, compute_model_identity
from enginix.kinds.tensorrt.build.options import EngineLimits
from enginix.kinds.tensorrt.build.request import check_request_shape, find_profile, require_count
from enginix.machine.gpu_table import find_gpu
from enginix.machine.kind_support import is_release_at_least
from enginix.machine.target import Target, find_target
from enginix.manifest import Manifest, read_artefact_name
from enginix.model.attention_window import read_windows
from enginix.model.class_defaults import EXPERT_COUNT_KEYS
from enginix.model.context_length import explain_pytorch_context, read_pytorch_context
from enginix.model.end_tokens import END_TOKENS_KEY, read_end_tokens
from enginix.model.jsonfile import read_object, select_language_model
from enginix.model.llmapi_advice import NO_CLASS_FIX, explain_no_pytorch_class, is_in_listed_release
from enginix.model.number_formats import (
    describe_fallback,
    explain_no_llmapi,
    find_fallback,
    find_fallback_version,
    list_missing_formats,
    read_algorithms,
    runs_on_gpu,
)
from enginix.model.tokenizer_files import copy_tokenizer_files
from enginix.runtime import table as runtimes
from enginix.runtime.preflight import require_kind_support
from enginix.runtime.table import Runtime
from enginix.tables import load_table
from enginix.wording import list_known, suggest_name
from enginix.work_directory import new_directory

LLM_ARGUMENTS_FILE = "llm_args.yaml"


@dataclass(frozen=True)
class LlmApiRequest:
    """A request for an engine of kind ``llmapi``."""

    name: str | None
    target: Target | None
    runtime: Runtime
    limits: dict[str, int] = field(default_factory=dict)
    tensor_parallel: int = 1
    arguments: dict[str, Any] = field(default_factory=dict)
    profile: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def parse(request_fields: dict[str, Any]) -> LlmApiRequest:
        """Parse the JSON that Nix writes, or flags in the same shape.

        Raises:
            UsageError: a field is wrong, or an argument is unknown to the runtime.
        """
        check_request_shape(request_fields)
        if not request_fields.get("runtime"):
            raise UsageError(
                "--runtime is needed for this kind", fix="for instance --runtime trtllm-1.4.0rc1"
            )
        if request_fields.get("options"):
            raise UsageError("options of trtllm-build do not apply to the kind llmapi", fix="use --llm-arg")
        runtime = runtimes.find_runtime(request_fields["runtime"], "llmapi")
        target = find_target(str(request_fields["target"])) if request_fields.get("target") else None
        if target is not None:
            require_kind_support("llmapi", target, runtime.version)
        profile = find_profile(request_fields.get("profile"))
        return LlmApiRequest(
            name=request_fields.get("name"),
            target=target,
            runtime=runtime,
            limits={k: v for k, v in (request_fields.get("limits") or {}).items() if v is not None},
            profile=profile["limits"],
            tensor_parallel=require_count("tensorParallel", request_fields.get("tensorParallel")),
            arguments=check_llm_arguments(request_fields.get("llmArgs") or {}, runtime.id),
        )


def check_llm_arguments(arguments: dict[str, Any], runtime: str) -> dict[str, Any]:
    """Check names and types of LLM arguments, as the class refuses unknown names only at start.

    Where the text of the runtime's arguments was not read, what differs from the read texts is told in a
    warning and left to the runtime to judge.

    Raises:
        UsageError: an argument is set by enginix; or, where the text was read, it is unknown, of the TensorRT
            backend alone or of another type.
    """
    tables = load_table("llm_args")
    for name, value in arguments.items():
        where = f"argument {name}"
        if name in tables["own"]:
            raise UsageError("enginix writes it itself", where=where, fix=f"it is {tables['own'][name]}")
        try:
            _check_llm_argument(where, name, value, runtime)
        except UsageError as e:
            if runtime in tables["read"]:
                raise
            console.print_message(
                f"warning: {e.where}: {e.what} by the texts of {' and '.join(tables['read'])}"
                + (f" ({e.fix})" if e.fix else "")
                + f"; the text of {runtime} was not read, so it is passed on unchecked"
            )
    return arguments


def resolve_format_arguments(
    target: Target, runtime: Runtime, quantization: str | None, dtype: str | None, has_experts: bool
) -> dict[str, Any]:
    """Return the arguments that a number format needs on a target, as nix/check/target.nix checks them.

    Raises:
        UsageError: the target does not execute the format, or the runtime has no kernels for it there.
    """
    name, gpu = quantization or "NO_QUANT", find_gpu(target.name)
    row = read_algorithms().get(name)
    if row is None:
        return {}
    if row["llmapi"] is False:
        raise UsageError(explain_no_llmapi(name, row), where="model", fix=str(row["instead"]))
    if runs_on_gpu(row, gpu.sm, gpu.formats, is_compiled=False):
        return {}
    fallback = find_fallback(name, gpu.sm)
    if fallback is None:
        have = ", ".join(gpu.formats)
        raise UsageError(
            f"{name} needs SM {row['minSm']} or later; {gpu.name} is SM {gpu.sm}, which has {have}"
            if gpu.sm < (row["minSm"] or 0)
            else f"{name} computes with {' and '.join(list_missing_formats(row, gpu.formats))}; {gpu.name} "
            f"(SM {gpu.sm}) has {have}",
            where=f"target {gpu.name}",
            fix="use a model in another format, or another GPU (enginix compare lists them)",
        )
    first = find_fallback_version(fallback, gpu.sm)
    if runtime.version is None or not is_release_at_least(runtime.version, first):
        raise UsageError(
            f"{describe_fallback(name, fallback, gpu.sm)}; runtime {runtime.id} has {runtime.version}",
            where=f"target {gpu.name}",
            fix=f"use runtime trtllm-{first} or a later one, or a GPU with {name}",
        )
    if dtype not in (None, fallback["dtype"]):
        raise UsageError(
            f"{describe_fallback(name, fallback, gpu.sm)}; the model is in {dtype}",
            where=f"target {gpu.name}",
            fix=f"use a model in {fallback['dtype']}, or a GPU with {name}",
        )
    console.print_message(f"note: {describe_fallback(name, fallback, gpu.sm)}")
    return {**fallback["llmArgs"], **(fallback["expertArgs"] if has_experts else {})}


def _check_llm_argument(where: str, name: str, value: Any, runtime: str) -> None:
    tables = load_table("llm_args")
    rows = tables["arguments"]
    if name in tables["tensorrtOnly"]["names"]:
        fix = "leave it out for the kind llmapi"
        raise UsageError("belongs to the TensorRT backend alone", where=where, fix=fix)
    is_read = runtime in tables["read"]
    if name not in rows or (is_read and runtime not in rows[name]["runtimes"]):
        what = f"unknown to the runtime {runtime}" if is_read else "unknown"
        raise UsageError(what, where=where, fix=suggest_name(name, rows) or None)
    _check_argument_value(where, rows[name], value)


def _check_argument_value(where: str, row: Mapping[str, Any], value: Any) -> None:
    """Check a value down to the fields of its class, as nix/check/llmapi.nix does."""
    if value is None and row.get("null", False):
        return
    if not _fits_argument_row(row, value):
        raise UsageError(f"is {value!r}", where=where, fix=f"pass {_describe_expected_value(row)}")
    fields = _find_value_fields(where, row, value)
    if fields is None:
        return
    tables = load_table("llm_args")
    for key, inner in value.items():
        if key == tables["dispatch"].get(row.get("dispatch"), {}).get("key"):
            continue
        if key not in fields:
            hint = suggest_name(key, fields, f"known: {', '.join(sorted(fields))}")
            raise UsageError(f"unknown key {key!r}", where=where, fix=hint)
        _check_argument_value(f"{where}.{key}", fields[key], inner)
    for key, inner_row in fields.items():
        if inner_row.get("required", False) and key not in value:
            raise UsageError(
                f"{key} is missing", where=where, fix=f"pass {_describe_expected_value(inner_row)}"
            )


def _find_value_fields(where: str, row: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the fields that an object may have; None if any field is allowed."""
    tables = load_table("llm_args")
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
            known = list_known(str(kind), sorted(choice["classes"]))
            raise UsageError(f"{choice['key']} is {kind!r}", where=where, fix=known)
    return None if name is None else dict(tables["classes"][name]["fields"])


def _fits_argument_row(row: Mapping[str, Any], value: Any) -> bool:
    whole = type(value) is int
    number = whole or isinstance(value, float)
    least, most = row.get("least", value), row.get("most", value)
    kind = row["type"]
    if kind in ("int", "number"):
        return (whole if kind == "int" else number) and bool(least <= value <= most)
    if kind == "list":
        inner = {**row, "type": "int"} if row.get("items") == "int" else {"type": "list", "items": "int"}
        is_list = isinstance(value, list) and (bool(value) or not row.get("filled", False))
        return is_list and all(_fits_argument_row(inner, item) for item in value)
    return {
        "bool": isinstance(value, bool),
        "string": isinstance(value, str),
        "enum": isinstance(value, str) and value in (row.get("choices") or ()),
        "object": isinstance(value, dict),
        "any": isinstance(value, (dict, str)),
    }[kind]


def _describe_expected_value(row: Mapping[str, Any]) -> str:
    """Describe the values that a row allows."""
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
        "list": f"a list of {'lists of ' * (row.get('items') == 'ints')}whole numbers",
        "any": "an object or a text",
    }
    return " ".join([names[row["type"]], *([", ".join(limits)] if limits else [])])


def write_llmapi_engine(request: LlmApiRequest, model: Path, out: Path, *, link: bool) -> Manifest:
    """Write the engine; it is complete or absent.

    Raises:
        UsageError: a limit contradicts another or the model's context.
        ModelError: not a model, one without a tokenizer, or one that the runtime has no class for.
    """
    checkpoint = BuildCheckpoint.of_model(model, request.tensor_parallel)
    if missing := explain_no_pytorch_class(checkpoint.architecture):
        version = request.runtime.version
        if version is not None and is_in_listed_release(version):
            raise ModelError(missing, where=str(model), fix=NO_CLASS_FIX)
        console.print_message(f"note: {missing}; whether {request.runtime.id} has one is not known")
    config = select_language_model(read_object(model / "config.json"))
    context = read_pytorch_context(config)
    requested_length, whole_context = request.limits.get("maxSeqLen"), checkpoint.context
    if context and requested_length and whole_context and context < requested_length <= whole_context:
        raise UsageError(
            f"maxSeqLen {requested_length}: {explain_pytorch_context(context, whole_context)}",
            where=str(model / "config.json"),
            fix=f"do that, or use at most {context}",
        )
    limits: EngineLimits = build_options.resolve_limits(context, request.limits, request.profile)
    chunked = request.arguments.get("enable_chunked_prefill")
    if has_long_prompts := limits.maxInputLen > limits.maxNumTokens:
        # Without chunked prefill TensorRT-LLM refuses a prompt above max_num_tokens.
        if chunked is False:
            raise UsageError(
                f"maxInputLen {limits.maxInputLen} is more than maxNumTokens {limits.maxNumTokens}, and "
                "enable_chunked_prefill is false: such a prompt is refused",
                fix=f"leave enable_chunked_prefill out, or set maxInputLen to {limits.maxNumTokens}",
            )
        chunked = True
    requested = dict(request.arguments)
    if request.target is not None:
        has_experts = any(config.get(key) for key in EXPERT_COUNT_KEYS)
        format_arguments = resolve_format_arguments(
            request.target, request.runtime, checkpoint.quantization, checkpoint.dtype, has_experts
        )
        requested = {**format_arguments, **requested}
    names = load_table("llm_args")["limits"]
    arguments = {names[k]: v for k, v in asdict(limits).items()} | {
        "tensor_parallel_size": request.tensor_parallel,
        **requested,
        **({"enable_chunked_prefill": chunked} if has_long_prompts else {}),
    }
    watch, content = SourceWatch(model), list_content(model, "model/") if link else None
    with new_directory(out) as partial:
        write_text(partial / LLM_ARGUMENTS_FILE, dump_json(arguments))
        if link:
            (partial / "model").symlink_to(os.path.abspath(model), target_is_directory=True)
        else:
            shutil.copytree(model, partial / "model")
        copy_tokenizer_files(model, partial / "tokenizer")
        ends = list(read_end_tokens(model))
        gpu, ranks = request.target, request.tensor_parallel
        engine_manifest = Manifest(
            artefact="engine",
            name=request.name or read_artefact_name(model),
            kind="llmapi",
            model={**checkpoint.describe_model(), **read_windows(model), END_TOKENS_KEY: ends},
            inputs={"model": compute_model_identity(model)},
            options={"limits": asdict(limits), "llmArgs": requested, "tensorParallel": ranks},
            target={"name": gpu.name, "sm": gpu.sm, "count": ranks} if gpu else {},
            runtime=request.runtime.describe(),
            results={"gates": "not gated"},
        )
        watch.require_unchanged()
        engine_manifest = engine_manifest.write(partial, known=content)
    return engine_manifest

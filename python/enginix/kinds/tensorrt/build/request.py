"""A request for an engine as JSON: what Nix writes, and what the command line makes of its flags."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginix.errors import UsageError
from enginix.kinds.tensorrt.build import options as build_options
from enginix.kinds.tensorrt.build.effective_build import EffectiveBuild, predict_build
from enginix.kinds.tensorrt.build.engine_checkpoint import BuildCheckpoint
from enginix.kinds.tensorrt.build.option_rules import BuildFacts, resolve_options
from enginix.kinds.tensorrt.build.options import EngineLimits, OptionValue
from enginix.machine.target import Target, find_target
from enginix.manifest import read_artefact_name
from enginix.runtime import table as runtimes
from enginix.runtime.table import Runtime
from enginix.tables import load_table

STRATEGIES = ("checkpoint", "llm-api")
REQUEST_KEYS = {
    "acceptDriver",
    "gates",
    "kind",
    "limits",
    "llmArgs",
    "name",
    "named",
    "options",
    "pin",
    "plan",
    "profile",
    "runtime",
    "stallMinutes",
    "strategy",
    "target",
    "tensorParallel",
    "timingCache",
    "workers",
}

REQUEST_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    **{n: (str, "a text") for n in ("name", "target", "runtime", "strategy", "timingCache", "profile")},
    **{n: (str, "a path") for n in ("gates", "pin")},
    **{n: (dict, "an object") for n in ("limits", "options", "plan")},
    "named": (list, "a list of names"),
    "workers": (int, "a whole number"),
    "stallMinutes": ((int, float), "a number"),
    "acceptDriver": (bool, "true or false"),
    "tensorParallel": (int, "a whole number"),
    "llmArgs": (dict, "an object"),
}


@dataclass(frozen=True)
class BuildRequest:
    """An engine as it was asked for, every default written out.

    Attributes:
        named: options that somebody asked for by name; the others are a profile's, or enginix's own.
        strategy: ``checkpoint`` runs trtllm-build on our checkpoint; ``llm-api`` lets TensorRT-LLM load
        the model. workers: ranks built at once, a GPU each.
        timing_cache: tactics of an earlier build.
        stall: seconds without a sign of progress after which a stage counts as hung.
        plan: predicted memory, as the plan stage wrote it.
        gates: a reference engine of the same checkpoint, whose gates passed; None is recorded as "not gated".
    """

    name: str
    target: Target
    runtime: Runtime
    limits: EngineLimits
    options: dict[str, OptionValue] = field(default_factory=dict)
    named: frozenset[str] = frozenset()
    strategy: str = "checkpoint"
    workers: int = 1
    timing_cache: Path | None = None
    stall: float = 1800.0
    beat: float = 60.0
    accept_driver: bool = False
    plan: dict[str, Any] | None = None
    gates: Path | None = None


@dataclass(frozen=True)
class BuildPaths:
    """Where a build runs and writes.

    Attributes:
        rootfs: the runtime's root file system; None runs on the host's, as in a container of the image.
        driver: the GPU driver's root; None looks for it.
        in_place: write straight into ``out``, which is then removed on failure: for Nix, whose outputs are
        whole or
            absent by themselves, and whose store has no room beside them.
        timing: where the timing cache goes; None leaves it out.
    """

    out: Path
    rootfs: Path | None = None
    driver: Path | None = None
    in_place: bool = False
    timing: Path | None = None


def read_request(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UsageError: unreadable, or another value.
    """
    try:
        request_fields = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UsageError(f"unreadable: {e}", where=str(path)) from e
    if not isinstance(request_fields, dict):
        raise UsageError("not a JSON object", where=str(path))
    return request_fields


def check_request_shape(request_fields: dict[str, Any]) -> None:
    """Names and types of a request's fields.

    Raises:
        UsageError: a field is unknown or mistyped.
    """
    if unknown_keys := sorted(set(request_fields) - REQUEST_KEYS):
        raise UsageError(f"unknown keys {unknown_keys}", where="request")
    for name, (kind, description) in REQUEST_TYPES.items():
        if request_fields.get(name) is not None and not isinstance(request_fields[name], kind):
            raise UsageError(
                f"{name} is {request_fields[name]!r}", where="request", fix=f"pass {description}"
            )


def make_build_request(
    request_fields: dict[str, Any], checkpoint_dir: Path | None, model: Path
) -> BuildRequest:
    """A request from the JSON that Nix writes, or from flags in the same shape.

    Raises:
        UsageError: a field is missing, unknown or wrong.
    """
    check_request_shape(request_fields)
    for name in ("target", "runtime"):
        if not request_fields.get(name):
            raise UsageError(
                f"--{name} is needed for this kind",
                fix=f"for instance --{name} " + ("h200" if name == "target" else "trtllm-1.2.1"),
            )
    if (request_fields.get("strategy") or "checkpoint") == "checkpoint":
        if checkpoint_dir is None:
            raise UsageError(
                "CHECKPOINT is needed", fix="pass the output of enginix convert, or --strategy llm-api"
            )
        checkpoint = BuildCheckpoint.read(checkpoint_dir)
    else:
        checkpoint = BuildCheckpoint.of_model(model)
    build_target = find_target(str(request_fields["target"]))
    runtime = runtimes.find_runtime(
        str(request_fields["runtime"]),
        "tensorrt",
        Path(request_fields["pin"]) if request_fields.get("pin") else None,
    )
    profile = find_profile(request_fields.get("profile"))
    options = build_options.check_build_options(request_fields.get("options") or {}, runtime.id)
    strategy = str(request_fields.get("strategy") or "checkpoint")
    build_facts = BuildFacts(
        checkpoint.quantization,
        checkpoint.kv_cache,
        build_target.sm,
        checkpoint.architecture,
        checkpoint.tensor_parallel,
        checkpoint.subject(build_target.sm).num_eagle_layers,
        strategy,
    )
    cache = request_fields.get("timingCache")
    return BuildRequest(
        name=str(request_fields.get("name") or read_artefact_name(model)),
        target=build_target,
        runtime=runtime,
        limits=build_options.resolve_limits(
            checkpoint.context, request_fields.get("limits") or {}, profile["limits"]
        ),
        options=resolve_options(build_facts, profile["options"], options),
        named=frozenset(request_fields["named"] if request_fields.get("named") is not None else options),
        strategy=strategy,
        workers=require_count("workers", request_fields.get("workers")),
        timing_cache=Path(cache) if cache else None,
        stall=60.0 * _require_minutes(request_fields.get("stallMinutes")),
        accept_driver=bool(request_fields.get("acceptDriver", False)),
        plan=request_fields.get("plan"),
        gates=Path(request_fields["gates"]) if request_fields.get("gates") else None,
    )


def predict_effective_build(request: BuildRequest, checkpoint: BuildCheckpoint) -> EffectiveBuild:
    """Return what trtllm-build makes of a request.

    Raises:
        UsageError: the tool ends with an exception, or changes an option that was asked for by name.
    """
    options = dict(request.options)
    if request.strategy == "llm-api" and options.get("gemmPlugin") == "disable":
        # The LLM class has no way to say so: only the command line's "disable" is remembered.
        del options["gemmPlugin"]
    words = [*request.limits.flags(), *build_options.format_option_flags(options)]
    effective = predict_build(checkpoint.subject(request.target.sm), words)
    for name in sorted(request.named & set(request.options)):
        requested, effective_value = request.options[name], effective.option(name, request.options[name])
        # Tokens of a step are a limit: clipped, and said.
        if effective_value != requested and name not in ("optNumTokens", "maxDraftLen"):
            raise UsageError(
                f"is {requested!r}, but TensorRT-LLM makes {effective_value!r} of it for "
                f"{checkpoint.architecture} in {checkpoint.quantization or checkpoint.dtype} on SM "
                f"{request.target.sm}",
                where=f"option {name}",
                fix="leave it out",
            )
    return effective


def require_count(name: str, value: int | None) -> int:
    """A number of ranks; 1 where nobody said.

    Raises:
        UsageError: below 1, or true.
    """
    if value is not None and (isinstance(value, bool) or value < 1):
        raise UsageError(f"{name} is {value!r}", fix="pass a whole number of at least 1")
    return 1 if value is None else value


def _require_minutes(value: float | None) -> float:
    # NaN is below nothing and above nothing: a build would count as alive for ever.
    if value is not None and (isinstance(value, bool) or not value > 0):
        raise UsageError(f"stallMinutes is {value!r}", fix="pass a number of minutes above 0")
    return 30.0 if value is None else float(value)


def find_profile(name: str | None) -> dict[str, Any]:
    """Limits and options of a profile; none for none.

    Raises:
        UsageError: unknown.
    """
    profiles = load_table("build_options")["profiles"]
    if name is None:
        return {"limits": {}, "options": {}}
    if name not in profiles:
        raise UsageError(f"unknown profile {name!r}", fix=f"use one of {', '.join(sorted(profiles))}")
    return dict(profiles[name])

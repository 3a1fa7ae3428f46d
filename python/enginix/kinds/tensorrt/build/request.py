"""A request for an engine as JSON, written by Nix or made from the flags of the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginix.errors import UsageError
from enginix.files import read_json_object
from enginix.kinds.tensorrt.build import options as build_options
from enginix.kinds.tensorrt.build.effective_build import EffectiveBuild, predict_build
from enginix.kinds.tensorrt.build.engine_checkpoint import BuildCheckpoint
from enginix.kinds.tensorrt.build.option_rules import resolve_options
from enginix.kinds.tensorrt.build.options import EngineLimits, OptionValue
from enginix.machine.target import Target, find_target
from enginix.manifest import read_artefact_name
from enginix.runtime import table as runtimes
from enginix.runtime.table import Runtime
from enginix.tables import load_table
from enginix.wording import list_known

STRATEGIES = ("checkpoint", "llm-api")
REQUEST_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    **{n: (str, "a text") for n in ("name", "target", "strategy", "timingCache", "profile")},
    "runtime": ((str, dict), "a name, or a description: like, image, versions"),
    **{n: (str, "a path") for n in ("gates", "pin")},
    **{n: (dict, "an object") for n in ("limits", "options", "plan")},
    "named": (list, "a list of names"),
    "workers": (int, "a whole number"),
    "stallMinutes": ((int, float), "a number"),
    "acceptDriver": (bool, "true or false"),
    "tensorParallel": (int, "a whole number"),
    "llmArgs": (dict, "an object"),
}
REQUEST_KEYS = {*REQUEST_TYPES, "kind"}


@dataclass(frozen=True)
class BuildRequest:
    """A request for an engine, with every default written out.

    Attributes:
        named: options that the user requested by name; the others are a profile's, or enginix's own.
        strategy: ``checkpoint`` runs trtllm-build on our checkpoint; ``llm-api`` lets TensorRT-LLM load
            the model.
        workers: ranks built at once, one GPU each.
        timing_cache: timing cache of an earlier build.
        stall: seconds without a sign of progress after which a stage counts as hung.
        plan: memory plan of the plan stage.
        gates: a reference engine of the same checkpoint that passed its gates; None is recorded as
            "not gated".
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
    """Paths of a build.

    Attributes:
        rootfs: the runtime's root file system; None runs on the host's, as in a container of the image.
        driver: the GPU driver's root; None searches for it.
        in_place: write directly into ``out``, and remove it on failure: for Nix, which makes outputs complete
            or absent, and whose builders cannot write beside them.
        timing: file for the timing cache; None does not keep it.
    """

    out: Path
    rootfs: Path | None = None
    driver: Path | None = None
    in_place: bool = False
    timing: Path | None = None


def read_request(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        UsageError: the file is unreadable, or not a JSON object.
    """
    return read_json_object(path, UsageError)


def check_request_shape(request_fields: dict[str, Any]) -> None:
    """Check names and types of a request's fields.

    Raises:
        UsageError: a field is unknown or of another type.
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
    """Make a request from the JSON that Nix writes, or from flags in the same shape.

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
    strategy = str(request_fields.get("strategy") or "checkpoint")
    if strategy != "checkpoint":
        checkpoint = BuildCheckpoint.of_model(model)
    elif checkpoint_dir is not None:
        checkpoint = BuildCheckpoint.read(checkpoint_dir)
    else:
        fix = "pass the output of enginix convert, or --strategy llm-api"
        raise UsageError("CHECKPOINT is needed", fix=fix)
    build_target = find_target(str(request_fields["target"]))
    names = (request_fields.get(key) for key in ("pin", "timingCache", "gates"))
    pin, cache, gates = (Path(name) if name else None for name in names)
    runtime = runtimes.find_runtime(request_fields["runtime"], "tensorrt", pin)
    profile = find_profile(request_fields.get("profile"))
    options = build_options.check_build_options(request_fields.get("options") or {}, runtime.id)
    return BuildRequest(
        name=str(request_fields.get("name") or read_artefact_name(model)),
        target=build_target,
        runtime=runtime,
        limits=build_options.resolve_limits(
            checkpoint.context, request_fields.get("limits") or {}, profile["limits"]
        ),
        options=resolve_options(checkpoint.subject(build_target.sm), profile["options"], options, strategy),
        named=frozenset(request_fields["named"] if request_fields.get("named") is not None else options),
        strategy=strategy,
        workers=require_count("workers", request_fields.get("workers")),
        timing_cache=cache,
        stall=60.0 * _require_minutes(request_fields.get("stallMinutes")),
        accept_driver=bool(request_fields.get("acceptDriver", False)),
        plan=request_fields.get("plan"),
        gates=gates,
    )


def predict_effective_build(request: BuildRequest, checkpoint: BuildCheckpoint) -> EffectiveBuild:
    """Predict the settings with which trtllm-build builds a request.

    Raises:
        UsageError: trtllm-build ends with an exception, or changes an option that was requested by name.
    """
    options = dict(request.options)
    if request.strategy == "llm-api" and options.get("gemmPlugin") == "disable":
        # The LLM class cannot disable a plug-in; only the command line's "disable" is recorded.
        del options["gemmPlugin"]
    words = [*request.limits.flags(), *build_options.format_option_flags(options)]
    effective = predict_build(checkpoint.subject(request.target.sm), words)
    for name in sorted(request.named & set(request.options)):
        requested, effective_value = request.options[name], effective.option(name, request.options[name])
        # Tokens of a step are a limit: it is clipped, with a note.
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
    """Check a number of ranks; the default is 1.

    Raises:
        UsageError: not a whole number of at least 1.
    """
    if value is not None and (isinstance(value, bool) or value < 1):
        raise UsageError(f"{name} is {value!r}", fix="pass a whole number of at least 1")
    return 1 if value is None else value


def _require_minutes(value: float | None) -> float:
    # NaN compares false with every number: a hung build would never count as hung.
    if value is not None and (isinstance(value, bool) or not value > 0):
        raise UsageError(f"stallMinutes is {value!r}", fix="pass a number of minutes above 0")
    return 30.0 if value is None else float(value)


def find_profile(name: str | None) -> dict[str, Any]:
    """Return limits and options of a profile; empty for None.

    Raises:
        UsageError: the profile is unknown.
    """
    profiles = load_table("build_options")["profiles"]
    if name is None:
        return {"limits": {}, "options": {}}
    if name not in profiles:
        raise UsageError(f"unknown profile {name!r}", fix=list_known(name, sorted(profiles)))
    return dict(profiles[name])

"""A request for an engine as JSON: what Nix writes, and what the command line makes of its flags."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginix.engine import options as build_options
from enginix.engine.effective_build import EffectiveBuild, predict_build
from enginix.engine.options import Limits, Value
from enginix.engine.options_rules import Facts, resolve
from enginix.engine.target import Target, target
from enginix.engine.tensorrt_checkpoint import Checkpoint
from enginix.errors import UsageError
from enginix.manifest import name_of
from enginix.runtime import table as runtimes
from enginix.runtime.table import Runtime
from enginix.tables import table

STRATEGIES = ("checkpoint", "llm-api")
KEYS = {
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

TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
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
class Request:
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
    limits: Limits
    options: dict[str, Value] = field(default_factory=dict)
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
class Place:
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


def read(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UsageError: unreadable, or another value.
    """
    try:
        asked = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UsageError(f"unreadable: {e}", where=str(path)) from e
    if not isinstance(asked, dict):
        raise UsageError("not a JSON object", where=str(path))
    return asked


def check_shape(asked: dict[str, Any]) -> None:
    """Names and types of a request's fields.

    Raises:
        UsageError: a field is unknown or mistyped.
    """
    if strange := sorted(set(asked) - KEYS):
        raise UsageError(f"unknown keys {strange}", where="request")
    for name, (kind, said) in TYPES.items():
        if asked.get(name) is not None and not isinstance(asked[name], kind):
            raise UsageError(f"{name} is {asked[name]!r}", where="request", fix=f"pass {said}")


def request_of(asked: dict[str, Any], checkpoint_dir: Path | None, model: Path) -> Request:
    """A request from the JSON that Nix writes, or from flags in the same shape.

    Raises:
        UsageError: a field is missing, unknown or wrong.
    """
    check_shape(asked)
    for name in ("target", "runtime"):
        if not asked.get(name):
            raise UsageError(
                f"--{name} is needed for this kind",
                fix=f"for instance --{name} " + ("h200" if name == "target" else "trtllm-1.2.1"),
            )
    if (asked.get("strategy") or "checkpoint") == "checkpoint":
        if checkpoint_dir is None:
            raise UsageError(
                "CHECKPOINT is needed", fix="pass the output of enginix convert, or --strategy llm-api"
            )
        facts = Checkpoint.read(checkpoint_dir)
    else:
        facts = Checkpoint.of_model(model)
    wanted = target(str(asked["target"]))
    runtime = runtimes.find(
        str(asked["runtime"]), "tensorrt", Path(asked["pin"]) if asked.get("pin") else None
    )
    profile = profile_of(asked.get("profile"))
    options = build_options.check(asked.get("options") or {}, runtime.id)
    strategy = str(asked.get("strategy") or "checkpoint")
    known = Facts(
        facts.quantization,
        facts.kv_cache,
        wanted.sm,
        facts.architecture,
        facts.tensor_parallel,
        facts.subject(wanted.sm).num_eagle_layers,
        strategy,
    )
    cache = asked.get("timingCache")
    return Request(
        name=str(asked.get("name") or name_of(model)),
        target=wanted,
        runtime=runtime,
        limits=build_options.defaults(facts.context, asked.get("limits") or {}, profile["limits"]),
        options=resolve(known, profile["options"], options),
        named=frozenset(asked["named"] if asked.get("named") is not None else options),
        strategy=strategy,
        workers=count("workers", asked.get("workers")),
        timing_cache=Path(cache) if cache else None,
        stall=60.0 * _minutes(asked.get("stallMinutes")),
        accept_driver=bool(asked.get("acceptDriver", False)),
        plan=asked.get("plan"),
        gates=Path(asked["gates"]) if asked.get("gates") else None,
    )


def effective_build(request: Request, checkpoint: Checkpoint) -> EffectiveBuild:
    """Return what trtllm-build makes of a request.

    Raises:
        UsageError: the tool ends with an exception, or changes an option that was asked for by name.
    """
    options = dict(request.options)
    if request.strategy == "llm-api" and options.get("gemmPlugin") == "disable":
        # The LLM class has no way to say so: only the command line's "disable" is remembered.
        del options["gemmPlugin"]
    words = [*request.limits.flags(), *build_options.flags(options)]
    made = predict_build(checkpoint.subject(request.target.sm), words)
    for name in sorted(request.named & set(request.options)):
        asked, becomes = request.options[name], made.option(name, request.options[name])
        # Tokens of a step are a limit: clipped, and said.
        if becomes != asked and name not in ("optNumTokens", "maxDraftLen"):
            raise UsageError(
                f"is {asked!r}, but TensorRT-LLM makes {becomes!r} of it for {checkpoint.architecture} in "
                f"{checkpoint.quantization or checkpoint.dtype} on SM {request.target.sm}",
                where=f"option {name}",
                fix="leave it out",
            )
    return made


def count(name: str, value: int | None) -> int:
    """A number of ranks; 1 where nobody said.

    Raises:
        UsageError: below 1, or true.
    """
    if value is not None and (isinstance(value, bool) or value < 1):
        raise UsageError(f"{name} is {value!r}", fix="pass a whole number of at least 1")
    return 1 if value is None else value


def _minutes(value: float | None) -> float:
    # NaN is below nothing and above nothing: a build would count as alive for ever.
    if value is not None and (isinstance(value, bool) or not value > 0):
        raise UsageError(f"stallMinutes is {value!r}", fix="pass a number of minutes above 0")
    return 30.0 if value is None else float(value)


def profile_of(name: str | None) -> dict[str, Any]:
    """Limits and options of a profile; none for none.

    Raises:
        UsageError: unknown.
    """
    profiles = table("build_options")["profiles"]
    if name is None:
        return {"limits": {}, "options": {}}
    if name not in profiles:
        raise UsageError(f"unknown profile {name!r}", fix=f"use one of {', '.join(sorted(profiles))}")
    return dict(profiles[name])

"""Verify the output of a build, and describe it in its manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from enginix import manifest
from enginix.console import format_bytes
from enginix.errors import ManifestError
from enginix.files import sha256_file
from enginix.kinds.tensorrt.build.effective_build import EffectiveBuild
from enginix.kinds.tensorrt.build.engine_checkpoint import BuildCheckpoint
from enginix.kinds.tensorrt.build.lora_adapters import find_input_path, hash_adapters
from enginix.kinds.tensorrt.build.request import BuildPaths, BuildRequest
from enginix.kinds.tensorrt.build.stage import TIMING_OUT
from enginix.manifest import Manifest
from enginix.runtime import preflight
from enginix.runtime.failures import BuildError
from enginix.runtime.supervise import CommandOutcome
from enginix.tables import load_table


def verify_engine(
    engine: Path, request: BuildRequest, checkpoint: BuildCheckpoint, effective: EffectiveBuild
) -> tuple[dict[str, int], list[str]]:
    """Check that a directory is the requested engine; an exit status of 0 does not prove it.

    Args:
        effective: the build that trtllm-build makes of the request.

    Returns:
        Size of each rank's engine in bytes; and differences between config.json and the prediction, in
        settings that the request leaves alone.

    Raises:
        BuildError: a file is missing, too small for its weights, of another version, or has limits or
        options that do not follow from the request.
    """
    path = engine / "config.json"
    fix = "build again; if it repeats, report the runtime and the last lines of the build"
    try:
        config = json.loads(path.read_text("utf-8"))
        version, built = str(config["version"]), dict(config["build_config"])
        config["pretrained_config"]["architecture"]
    except FileNotFoundError as e:
        raise BuildError(
            "the build ended without an error, but wrote no engine", where="config.json", fix=fix
        ) from e
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise BuildError(f"unreadable: {e}", where="config.json", fix=fix) from e
    if version.split("+")[0] != request.runtime.version:
        raise BuildError(
            f"the engine says TensorRT-LLM {version}; runtime {request.runtime.id} is "
            f"{request.runtime.version}",
            where="config.json",
            fix="pass the runtime's own image",
        )
    differences = _compare_settings(built, request, effective)
    sizes = {}
    for rank in range(checkpoint.world_size):
        name = f"rank{rank}.engine"
        size = (engine / name).stat().st_size if (engine / name).is_file() else 0
        is_stripped = request.options.get("stripPlan") or request.options.get("fastBuild")
        weights = 0 if is_stripped else checkpoint.ranks.get(rank, 0)
        if size == 0:
            raise BuildError("missing or empty: a partial engine", where=name, fix=fix)
        if size < weights // 2:
            sizes_differ = f"{format_bytes(size)}, its weights alone take {format_bytes(weights)}"
            raise BuildError(f"{sizes_differ}: a partial engine", where=name, fix=fix)
        sizes[name] = size
    return sizes, differences


def _compare_settings(
    built: Mapping[str, Any], request: BuildRequest, effective: EffectiveBuild
) -> list[str]:
    """Compare config.json with the predicted settings, without those that a release lacks."""
    plugins = built.get("plugin_config")
    settings = {**built, **(plugins if isinstance(plugins, dict) else {})}
    rows = load_table("build_options")
    limits = {row["flag"][2:] for row in rows["limits"].values()}
    requested_keys = limits | {rows["options"][name]["flag"][2:] for name in request.options}
    # Some releases omit max_input_len, which they do not read.
    requested_keys -= {"max_input_len"}
    differences = []
    for key, expected in {**effective.build_config, **effective.plugin_config}.items():
        value, allowed = settings.get(key), (expected, effective.constructed.get(key, expected))
        if value in allowed or (key not in settings and key not in limits):
            continue
        message = f"{key} is {value!r}, but trtllm-build makes {expected!r} of this request"
        if key in requested_keys:
            raise BuildError(message, where="config.json", fix="report it with the runtime and the options")
        differences.append(f"config.json: {message}")
    return differences


def refuse_input_paths(engine: Path, inputs: list[Path]) -> None:
    """Refuse an engine with a small file that contains an input's path, which would add the weights to the
    closure of everything that serves the engine.
    """
    named_input = find_input_path(engine, inputs)
    if named_input is not None:
        raise BuildError(
            f"contains the path of an input, {named_input[1]}",
            where=str(named_input[0].relative_to(engine.parent)),
            fix="report it: the file must not keep the weights alive",
        )


def keep_timing_cache(work: Path, paths: BuildPaths) -> str | None:
    """Keep the timing cache; returns its digest."""
    # trtllm-build's own default, in its working directory, for a version that ignores the flag.
    path = next((work / n for n in (TIMING_OUT, "model.cache") if (work / n).is_file()), None)
    if path is None:
        if paths.timing is not None:
            raise BuildError("the build wrote no timing cache", where=str(paths.timing), fix="build again")
        return None
    if paths.timing is not None:
        shutil.copyfile(path, paths.timing)
    return sha256_file(path)


def read_gate_verdicts(request: BuildRequest, checkpoint: BuildCheckpoint) -> Any:
    """Read the gates' verdicts on the checkpoint's reference engine.

    Raises:
        ManifestError: not a reference engine, one of another checkpoint, or one that was not gated.
    """
    if request.gates is None:
        return "not gated"
    reference_manifest = manifest.read_manifest(request.gates, "engine")
    gated_checkpoint = reference_manifest.inputs.get("checkpoint")
    gated_digest = gated_checkpoint.get("manifestSha256") if isinstance(gated_checkpoint, dict) else None
    manifest_path = checkpoint.path and checkpoint.path / manifest.MANIFEST_FILE
    digest = sha256_file(manifest_path) if manifest_path and manifest_path.exists() else None
    is_same_checkpoint = digest is not None and gated_digest == digest
    if reference_manifest.kind != "reference" or not is_same_checkpoint:
        raise ManifestError(
            "is not a reference engine of this checkpoint",
            where=str(request.gates),
            fix="gate this checkpoint: enginix build CHECKPOINT --kind reference",
        )
    verdicts = reference_manifest.results.get("gates")
    if not isinstance(verdicts, dict) or not verdicts or any(v != "passed" for v in verdicts.values()):
        raise ManifestError("its gates did not pass", where=str(request.gates), fix="build it with gates")
    return {"checkpoint": verdicts, "manifestSha256": sha256_file(request.gates / manifest.MANIFEST_FILE)}


def describe_engine(
    request: BuildRequest,
    checkpoint: BuildCheckpoint,
    effective: EffectiveBuild,
    inputs: Mapping[str, Any],
    preflight_result: preflight.PreflightResult,
    outcome: CommandOutcome,
    ranks: dict[str, int],
    timing: str | None,
    nccl: Mapping[str, str],
) -> Manifest:
    """Return the manifest, with everything that another machine must know and without paths.

    Args:
        effective: the build that trtllm-build makes of the request. The manifest has its limits and plugins,
            and those of the request under ``asked``.
        inputs: identities of model and checkpoint.
        nccl: NCCL's version, and its source.
    """
    # By content, never by path.
    requested_options = {
        n: hash_adapters(v) if n == "loraDir" else v for n, v in sorted(request.options.items())
    }
    return Manifest(
        artefact="engine",
        name=request.name,
        kind="tensorrt",
        model=checkpoint.describe_model(),
        inputs=dict(inputs)
        | ({"timingCache": {"sha256": sha256_file(request.timing_cache)}} if request.timing_cache else {}),
        options={
            "strategy": request.strategy,
            "limits": effective.limits(),
            "plugins": {n: effective.option(n, v) for n, v in requested_options.items()},
            "asked": {"limits": asdict(request.limits), "plugins": requested_options},
            "tensorParallel": checkpoint.tensor_parallel,
            "pipelineParallel": checkpoint.pipeline_parallel,
            "workers": request.workers,
        },
        target={
            "name": request.target.name,
            "sm": request.target.sm,
            "gpu": preflight_result.gpu.name,
            "memory": preflight_result.gpu.total,
            "count": checkpoint.world_size,
        },
        runtime={**request.runtime.describe(), **nccl, "driver": preflight_result.machine.driver},
        results={
            "gates": read_gate_verdicts(request, checkpoint),
            "ranks": ranks,
            "timingCache": {"sha256": timing} if timing else None,
            "plan": {
                "predicted": request.plan,
                "measured": {"hostMemoryPeak": outcome.host_peak, "gpuMemoryPeak": outcome.gpu_peak},
            },
            "notes": list(preflight_result.notes),
        },
    )

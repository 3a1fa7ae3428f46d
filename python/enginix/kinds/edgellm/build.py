"""Export and model → engine, on the target's GPU: NVIDIA's builder inside a runtime that has TensorRT.

Two builders read different things:
  direct  tensorrt-edgellm-build reads the model itself. NVIDIA calls it experimental; its engines are the
          ones that tensorrt-edgellm-serve takes. Its graph is another than the export's. The gate ``export``
          executes both, this one as the builder defines it over a recorder in place of TensorRT.
  onnx    llm_build, from Edge-LLM's C++ sources, reads the export. NVIDIA's C++ runtime executes its
          engines.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginix import __version__, console, manifest, process
from enginix.digests import SourceWatch
from enginix.errors import MachineError, ManifestError, UsageError
from enginix.files import sha256_file
from enginix.integrity import require_unchanged
from enginix.kinds.edgellm import options
from enginix.kinds.edgellm.errors import ExportError, name_final_directory
from enginix.kinds.edgellm.export import make_private_environment, read_model_identity
from enginix.kinds.edgellm.runtime_config import compare_engine_config
from enginix.kinds.edgellm.source import ModelFacts, read_model_facts
from enginix.kinds.edgellm.unsupported_models import (
    note_head_size,
    require_covered_context,
    require_direct_reading,
)
from enginix.letter_case import to_snake_case
from enginix.machine.gpu_table import TargetGpu, find_gpu
from enginix.machine.kind_support import list_running_kinds
from enginix.manifest import Manifest
from enginix.model.identity import require_same_model
from enginix.model.jsonfile import read_object
from enginix.output_path import require_absent
from enginix.tables import load_table
from enginix.wording import list_known
from enginix.work_directory import new_directory

if TYPE_CHECKING:
    from enginix.machine.target import Machine, MachineGpu

TENSORRT_VERSION_CODE = "import importlib.metadata as m; print(m.version('tensorrt').split('.post')[0])"
BUILDERS = ("direct", "onnx")
LAUNCH_SCRIPT = Path(__file__).with_name("launch.py")
# Limits of an engine, and the flags of llm_build for them.
_LIMIT_FLAGS = {
    "maxInputLen": "--maxInputLen",
    "maxBatchSize": "--maxBatchSize",
    "maxKvCacheCapacity": "--maxKVCacheCapacity",
}


@dataclass(frozen=True)
class EdgellmBuildOptions:
    """Options of an engine build.

    Attributes:
        target: a GPU of gpus.json.
        name: name of the engine; None takes the export's.
        builder: ``direct`` or ``onnx``.
        python: the Python that has the wheel and TensorRT; None takes this one.
        llm_build: NVIDIA's C++ builder, for ``onnx``.
        plugin: Edge-LLM's plugin library in place of the wheel's payload.
        driver: directory of the GPU driver in place of the machine's.
        limits: options of edgellm.json's section build.
        plan: memory plan of the evaluation, for the manifest.
    """

    target: str
    name: str | None = None
    builder: str = "direct"
    python: Path | None = None
    llm_build: Path | None = None
    plugin: Path | None = None
    driver: Path | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] | None = None


def resolve_edgellm_limits(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all limits, with defaults filled in.

    Raises:
        UsageError: a limit is unknown or of another type, or the prompt is larger than the KV cache.
    """
    rows = load_table("edgellm")["build"]
    defaults = {name: row["default"] for name, row in rows.items()}
    full_limits = options.check_stage_options("build", {**defaults, **given})
    require_buildable_limits(*(int(full_limits[name]) for name in _LIMIT_FLAGS))
    return dict(full_limits)


def require_buildable_limits(
    max_input_len: int, max_batch_size: int, capacity: int, *, names: Sequence[str] = tuple(_LIMIT_FLAGS)
) -> None:
    """Refuse a prompt beyond the KV cache, and limits that overflow the 32 bits of the wheel's builder.

    Args:
        names: of the limits, as the user wrote them.

    Raises:
        UsageError: such a limit.
    """
    rows, tokens = load_table("edgellm")["memory"], max_batch_size * max_input_len
    page, pool, fix = rows["pageTokens"]["value"], rows["poolPages"]["most"], "lower one of the limits"
    if max_input_len > capacity:
        what = f"{names[0]} {max_input_len} is beyond {names[-1]} {capacity}"
        fix = f"raise {names[-1]}, which holds prompt and answer"
    elif tokens > rows["stepTokens"]["most"]:
        what = f"{tokens} tokens of a step are more than {rows['stepTokens']['most']}"
    elif capacity > rows["pagedTokens"]["most"]:
        what = f"a KV cache of {capacity} tokens is more than {rows['pagedTokens']['most']}"
    elif max_batch_size * -(-capacity // page) > pool:
        what = f"{max_batch_size} KV caches of {capacity} tokens are more than {pool} pages of {page}"
    else:
        return
    raise UsageError(what, fix=fix)


def explain_missing_payload(sm: int, target: str, system: str) -> str | None:
    """Explain why the wheel of a system (``x86_64-linux``) cannot serve a GPU; None if it can."""
    rows = load_table("edgellm")["payloads"]
    if any(row["sm"] == sm and row["system"] == system for row in rows):
        return None
    return (
        f"TensorRT Edge-LLM {load_table('edgellm')['version']} has no {format_cpu(system)} payload for "
        f"SM {sm} (target {target}); its wheels have them for {describe_payloads()}"
    )


def describe_other_ways(gpu: TargetGpu) -> str:
    """Return what to do where the wheel has no payload for a GPU."""
    others = " or ".join(f'"{kind}"' for kind in list_running_kinds(gpu) if kind != "edgellm")
    if gpu.sm in load_table("edgellm")["sourceSms"]["sms"]:
        return f"use kind {others}, or pass a plugin built for this GPU from Edge-LLM's sources"
    return f"use kind {others}: Edge-LLM's sources do not support SM {gpu.sm} either"


def format_cpu(system: str) -> str:
    """Return the CPU of a system: ``x86_64-linux`` → ``x86-64``."""
    return system.removesuffix("-linux").replace("_", "-")


def describe_payloads() -> str:
    """Describe the SMs that have a payload, by CPU."""
    sms: dict[str, set[int]] = {}
    for row in load_table("edgellm")["payloads"]:
        sms.setdefault(row["system"], set()).add(row["sm"])
    return " and ".join(
        f"SM {', '.join(map(str, sorted(sm_numbers)))} on {format_cpu(system)}"
        for system, sm_numbers in sorted(sms.items(), reverse=True)
    )


def _find_gpu(build_options: EdgellmBuildOptions) -> tuple[MachineGpu, Machine]:
    """Return a GPU of this machine with the target's SM."""
    from enginix.machine.driver import find_driver
    from enginix.machine.system import detect_system
    from enginix.machine.target import find_target, probe_machine

    build_target = find_target(build_options.target)
    if not build_options.plugin:
        refusal = explain_missing_payload(build_target.sm, build_options.target, detect_system())
        if refusal:
            raise UsageError(refusal, fix=describe_other_ways(find_gpu(build_options.target)))
    machine = probe_machine(find_driver(build_options.driver))
    fitting = [gpu for gpu in machine.gpus if gpu.sm == build_target.sm]
    if not fitting:
        gpu_names = ", ".join(sorted({f"{g.name} (SM {g.sm})" for g in machine.gpus}))
        raise MachineError(
            f"the engine is for SM {build_target.sm}, and this machine has {gpu_names}",
            where=build_options.target,
            fix="build on a machine with the target's GPU; an engine runs on no other",
        )
    return fitting[0], machine


def build_edgellm_engine(
    export: Path, model: Path, out: Path, build_options: EdgellmBuildOptions
) -> Manifest:
    """Build an engine directory; it is complete or absent.

    Raises:
        ManifestError: not an export, or one of another model.
        MachineError: the GPU or TensorRT is missing, the disk is full, or the builder failed.
        UsageError: invalid limits or target.
        ModelError: the direct builder would build another function than the model.
        ExportError: the builder reported success without an engine that fits the request.
    """
    require_absent(out)
    full_limits = resolve_edgellm_limits(build_options.limits)
    if build_options.builder not in BUILDERS:
        raise UsageError(
            f"builder {build_options.builder!r}", fix=list_known(build_options.builder, BUILDERS)
        )
    if (build_options.builder == "onnx") != (build_options.llm_build is not None):
        raise UsageError("llm_build belongs to builder onnx, which needs it", where=build_options.builder)
    export_manifest = manifest.read_manifest(export, "export")
    if export_manifest.kind != "edgellm":
        raise ManifestError(
            f"an export of kind {export_manifest.kind}", where=export, fix="run enginix edgellm-export"
        )
    watch = SourceWatch(export, model)
    require_unchanged(export)
    identity = read_model_identity(model)
    require_same_model(export_manifest.inputs.get("model"), identity, export, "export")
    facts = read_model_facts(model)
    config = facts.model
    if build_options.builder == "direct":
        require_direct_reading(config)
    graph = describe_built_graph(export_manifest, build_options.builder, export)
    require_covered_context(config, int(full_limits["maxKvCacheCapacity"]))
    if note := note_head_size(config):
        console.print_message(f"note: {note}")
    gpu, machine = _find_gpu(build_options)
    with new_directory(out) as partial, name_final_directory(partial, out, "engine"):
        engine = partial / "engine"
        engine.mkdir()
        peak = _run_builder(
            _make_builder_command(export, model, engine, build_options, full_limits),
            model,
            machine.only(gpu.sm),
        )
        _check_built_engine(engine, full_limits, build_options.builder, facts)
        engine_manifest = Manifest(
            artefact="engine",
            name=build_options.name or export_manifest.name,
            kind="edgellm",
            model=export_manifest.model,
            inputs={
                "model": identity,
                "export": {
                    "manifestSha256": sha256_file(export / manifest.MANIFEST_FILE),
                    "tools": export_manifest.tools,
                    "options": export_manifest.options,
                },
            },
            options={"builder": build_options.builder, "limits": full_limits},
            target={
                "name": find_gpu(build_options.target).name,
                "sm": gpu.sm,
                "gpu": gpu.name,
                "memory": gpu.total,
                "count": 1,
            },
            runtime={
                **export_manifest.runtime,
                "edgellm": load_table("edgellm")["version"],
                "driver": machine.driver,
                **_read_tensorrt_version(build_options),
            },
            tools={"enginix": __version__},
            results={
                "gates": "not gated",
                **graph,
                "plan": {"predicted": build_options.plan, "measured": {"hostMemoryPeak": peak}},
            },
        )
        watch.require_unchanged()
        engine_manifest = engine_manifest.write(partial)
    return engine_manifest


def describe_built_graph(export_manifest: Manifest, builder: str, export: Path) -> dict[str, str]:
    """Return which graph becomes an engine, and what the gate ``export`` says of it.

    Raises:
        ManifestError: the gate refused the graph of this builder.
    """
    results = export_manifest.results
    if builder == "onnx":
        passed = results.get("gates", {}).get("export", "not gated")
        return {"graph": "the export's, which the gate export executed", "exportGate": passed}
    graph = "the direct builder's own, from the model"
    evidence = results.get("directGate")
    if not isinstance(evidence, dict):
        return {"graph": f"{graph}; the gate export saw the export's alone", "exportGate": "not gated"}
    if "refused" in evidence:
        raise ManifestError(
            f"the gate export refused the direct builder's graph of this model: {evidence['refused']}",
            where=export,
            fix="build with builder onnx, of which the gate passed, or by another kind",
        )
    return {
        "graph": f"{graph}; the gate export executed it as the builder defines it, without TensorRT",
        "exportGate": "passed",
    }


def _make_builder_command(
    export: Path,
    model: Path,
    engine: Path,
    build_options: EdgellmBuildOptions,
    full_limits: Mapping[str, Any],
) -> list[str]:
    if build_options.builder == "onnx":
        assert build_options.llm_build is not None
        words = [os.path.abspath(build_options.llm_build), "--onnxDir", os.path.abspath(export / "llm")]
        words += ["--engineDir", str(engine)]
        for name, flag in _LIMIT_FLAGS.items():
            words += [flag, str(full_limits[name])]
        return words
    words = ["--model-dir", os.path.abspath(model), "--engine-dir", str(engine)]
    words += options.format_stage_flags("build", full_limits)
    if build_options.plugin:
        words += ["--plugin-path", os.path.abspath(build_options.plugin)]
    return [_find_python(build_options), str(LAUNCH_SCRIPT), "experimental.builder.cli", "-", *words]


def _find_python(build_options: EdgellmBuildOptions) -> str:
    """Return the Python's absolute path with links unresolved, as a virtual environment is at the link."""
    return os.path.abspath(build_options.python or sys.executable)


def _read_tensorrt_version(build_options: EdgellmBuildOptions) -> dict[str, str]:
    """Return TensorRT's version by its package in the runtime's Python; empty without the package."""
    words = [_find_python(build_options), "-c", TENSORRT_VERSION_CODE]
    done = process.run_program(words, cwd=Path("/"), check=False)
    lines = done.stdout.split()
    return {"tensorrt": lines[-1]} if done.returncode == 0 and lines else {}


def _run_builder(command: list[str], model: Path, gpus: Mapping[str, str]) -> int:
    """Run the builder; returns the peak memory of its largest process, in bytes."""
    with tempfile.TemporaryDirectory(prefix="enginix-build.") as work:
        env = {**make_private_environment(Path(work) / "p"), **gpus}
        done = process.run_program(command, env=env, cwd=Path(work), check=False)
    if done.returncode == 0:
        # Largest child of this process so far, which is the builder (getrusage(2): KiB).
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    text = done.stdout + done.stderr
    if "TensorRTDependencyError" in text:
        raise MachineError(
            "the runtime has no TensorRT",
            where=command[0],
            fix=f"install the TensorRT that Edge-LLM {load_table('edgellm')['version']} was qualified with: "
            + ", ".join(sorted({row["tensorrt"] for row in load_table("edgellm")["payloads"]})),
        )
    if "No space left on device" in text:
        raise MachineError("the disk is full", where=model, fix="free disk space, or choose another -o")
    if "out of memory" in text.lower():
        raise MachineError(
            "the builder ran out of memory", where=model, fix="lower maxBatchSize or maxKvCacheCapacity"
        )
    last = process.read_last_line(text).strip()
    raise MachineError(f"the builder ended with status {done.returncode}: {last[:400]}", where=model)


def _check_built_engine(
    engine: Path, full_limits: Mapping[str, Any], builder: str, facts: ModelFacts
) -> None:
    engine_file = engine / "llm.engine"
    if not engine_file.is_file() or engine_file.stat().st_size == 0:
        raise ExportError("the builder reported success without an llm.engine", where=engine)
    config = read_object(engine / "config.json")
    where, stated_limits = str(engine / "config.json"), config.get("builder_config")
    for name in _LIMIT_FLAGS:
        key = to_snake_case(name)
        value = stated_limits.get(key) if isinstance(stated_limits, dict) else None
        if value != full_limits[name]:
            raise ExportError(f"{key} is {value}, asked for {full_limits[name]}", where=where)
    if builder == "direct" and not isinstance(config.get("checkpoint_identity"), dict):
        raise ExportError(
            "checkpoint_identity is missing, so the server would build the engine again", where=where
        )
    compare_engine_config(config, facts, builder, where)
    for path in sorted(engine.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)

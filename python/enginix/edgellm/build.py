"""Export and model → engine, on the target's GPU: NVIDIA's builder inside a runtime that has TensorRT.

Two builders read different things:
  direct  tensorrt-edgellm-build reads the model itself. NVIDIA calls it experimental; its engines are the
          ones that tensorrt-edgellm-serve takes. The export proves beforehand, without a GPU, that the model
          is whole and expressible.
  onnx    llm_build, from Edge-LLM's C++ sources, reads the export. NVIDIA's C++ runtime executes what it
          builds.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginix import __version__, manifest, process
from enginix.edgellm import options
from enginix.edgellm.errors import ExportError
from enginix.edgellm.export import identity_of, private_environment
from enginix.errors import MachineError, ManifestError, UsageError
from enginix.files import check_free, new_directory
from enginix.manifest import Manifest
from enginix.model.jsonfile import read_object
from enginix.tables import table

if TYPE_CHECKING:
    from enginix.engine.target import Gpu, Machine

TENSORRT = "import importlib.metadata as m; print(m.version('tensorrt').split('.post')[0])"
BUILDERS = ("direct", "onnx")
LAUNCH = Path(__file__).with_name("launch.py")
_ONNX_FLAGS = {
    "maxInputLen": "--maxInputLen",
    "maxBatchSize": "--maxBatchSize",
    "maxKvCacheCapacity": "--maxKVCacheCapacity",
}
_WRITTEN = {
    "maxInputLen": "max_input_len",
    "maxBatchSize": "max_batch_size",
    "maxKvCacheCapacity": "max_kv_cache_capacity",
}


@dataclass(frozen=True)
class Options:
    """How an engine is built.

    Attributes:
        target: a GPU of gpus.json.
        name: of the engine; None takes the export's.
        builder: ``direct`` or ``onnx``.
        python: the Python that has the wheel and TensorRT; None takes this one.
        llm_build: NVIDIA's C++ builder, for ``onnx``.
        plugin: Edge-LLM's plugin library in place of the wheel's payload.
        driver: directory of the GPU driver in place of the machine's.
        limits: options of edgellm.json's section build.
        plan: memory that evaluation predicted, for the manifest.
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


def limits(given: Mapping[str, Any]) -> dict[str, Any]:
    """All limits, defaults filled in.

    Raises:
        UsageError: unknown, misshapen, or a prompt that no cache could hold.
    """
    rows = table("edgellm")["build"]
    full = options.checked("build", {**{name: row["default"] for name, row in rows.items()}, **given})
    if int(full["maxInputLen"]) > int(full["maxKvCacheCapacity"]):
        raise UsageError(
            f"maxInputLen {full['maxInputLen']} is beyond maxKvCacheCapacity {full['maxKvCacheCapacity']}",
            fix="raise maxKvCacheCapacity, which holds prompt and answer",
        )
    beyond = uncountable(int(full["maxInputLen"]), int(full["maxBatchSize"]), int(full["maxKvCacheCapacity"]))
    if beyond is not None:
        raise UsageError(beyond, fix="lower one of the limits")
    return dict(full)


def uncountable(max_input_len: int, max_batch_size: int, capacity: int) -> str | None:
    """What of some limits the wheel's builder would not count in its 32 bits; None where it does."""
    rows = table("edgellm")["memory"]
    tokens = max_batch_size * max_input_len
    page, pool = rows["pageTokens"]["value"], rows["poolPages"]["most"]
    if tokens > rows["stepTokens"]["most"]:
        return f"{tokens} tokens of a step are more than {rows['stepTokens']['most']}"
    if capacity > rows["pagedTokens"]["most"]:
        return f"a KV cache of {capacity} tokens is more than {rows['pagedTokens']['most']}"
    if max_batch_size * -(-capacity // page) > pool:
        return f"{max_batch_size} KV caches of {capacity} tokens are more than {pool} pages of {page}"
    return None


def payload_refusal(sm: int, target: str, system: str) -> str | None:
    """Why the wheel of a system (``x86_64-linux``) cannot serve a GPU; None where it can."""
    rows = table("edgellm")["payloads"]
    if any(row["sm"] == sm and row["system"] == system for row in rows):
        return None
    return (
        f"TensorRT Edge-LLM {table('edgellm')['version']} has no {cpu(system)} payload for SM {sm}"
        f" (target {target}); its wheels have them for {payloads()}"
    )


def cpu(system: str) -> str:
    """``x86_64-linux`` → ``x86-64``."""
    return system.removesuffix("-linux").replace("_", "-")


def payloads() -> str:
    """The SMs that have a payload, by CPU."""
    sms: dict[str, set[int]] = {}
    for row in table("edgellm")["payloads"]:
        sms.setdefault(row["system"], set()).add(row["sm"])
    return " and ".join(
        f"SM {', '.join(map(str, sorted(found)))} on {cpu(system)}"
        for system, found in sorted(sms.items(), reverse=True)
    )


def _gpu(options_: Options) -> tuple[Gpu, Machine]:
    """A GPU of the target's SM that this machine has."""
    from enginix.engine.target import probe, target
    from enginix.runtime.driver import find
    from enginix.runtime.table import system

    wanted = target(options_.target)
    refused = None if options_.plugin else payload_refusal(wanted.sm, options_.target, system())
    if refused:
        raise UsageError(
            refused, fix='serve it by kind "tensorrt" or "llmapi", or pass a plugin built for this GPU'
        )
    machine = probe(find(options_.driver))
    fitting = [gpu for gpu in machine.gpus if gpu.sm == wanted.sm]
    if not fitting:
        found = ", ".join(sorted({f"{g.name} (SM {g.sm})" for g in machine.gpus}))
        raise MachineError(
            f"the engine is for SM {wanted.sm}, and this machine has {found}",
            where=options_.target,
            fix="build on a machine with the target's GPU; an engine runs on no other",
        )
    return fitting[0], machine


def build(export: Path, model: Path, out: Path, wanted: Options) -> Manifest:
    """Builds an engine directory; whole or absent.

    Raises:
        ManifestError: not an export, or one of another model.
        MachineError: no such GPU, no TensorRT, no disk, or the builder failed.
        UsageError: limits or a target that cannot be.
        ExportError: the builder reported success without an engine that fits the request.
    """
    check_free(out)
    full = limits(wanted.limits)
    if wanted.builder not in BUILDERS:
        raise UsageError(f"builder {wanted.builder!r}", fix=f"one of: {', '.join(BUILDERS)}")
    if (wanted.builder == "onnx") != (wanted.llm_build is not None):
        raise UsageError("llm_build belongs to builder onnx, which needs it", where=wanted.builder)
    made = manifest.read(export, "export")
    if made.kind != "edgellm":
        raise ManifestError(
            f"an export of kind {made.kind}", where=str(export), fix="run enginix edgellm-export"
        )
    identity = identity_of(model)
    if made.inputs.get("model") != identity:
        raise ManifestError(
            "the export was made from another model than this one",
            where=str(export),
            fix="pass the model that was exported, or export this one",
        )
    gpu, machine = _gpu(wanted)
    with new_directory(out) as partial:
        engine = partial / "engine"
        engine.mkdir()
        peak = _run(_command(export, model, engine, wanted, full), model, machine.only(gpu.sm))
        _check(engine, full, wanted.builder)
        described = Manifest(
            artefact="engine",
            name=wanted.name or made.name,
            kind="edgellm",
            model=made.model,
            inputs={"model": identity, "export": {"tools": made.tools, "options": made.options}},
            options={"builder": wanted.builder, "limits": full},
            target={
                "name": wanted.target,
                "sm": gpu.sm,
                "gpu": gpu.name,
                "memory": gpu.total,
                "count": 1,
            },
            runtime={
                **made.runtime,
                "edgellm": table("edgellm")["version"],
                "driver": machine.driver,
                **_tensorrt(wanted),
            },
            tools={"enginix": __version__},
            results={
                "gates": "not gated",
                "plan": {"predicted": wanted.plan, "measured": {"hostMemoryPeak": peak}},
            },
        )
        described.write(partial)
    return described


def _command(export: Path, model: Path, engine: Path, wanted: Options, full: Mapping[str, Any]) -> list[str]:
    if wanted.builder == "onnx":
        assert wanted.llm_build is not None
        words = [
            os.path.abspath(wanted.llm_build),
            "--onnxDir",
            os.path.abspath(export / "llm"),
            "--engineDir",
            str(engine),
        ]
        for name, flag in _ONNX_FLAGS.items():
            words += [flag, str(full[name])]
        return words
    words = [
        "--model-dir",
        os.path.abspath(model),
        "--engine-dir",
        str(engine),
        *options.words("build", full),
    ]
    if wanted.plugin:
        words += ["--plugin-path", os.path.abspath(wanted.plugin)]
    return [_python(wanted), str(LAUNCH), "experimental.builder.cli", "-", *words]


def _python(wanted: Options) -> str:
    """Absolute, but no link followed: a virtual environment is known by the link's place."""
    return os.path.abspath(wanted.python or sys.executable)


def _tensorrt(wanted: Options) -> dict[str, str]:
    """TensorRT's version, as its package in the runtime's Python tells it; nothing where it does not."""
    words = [_python(wanted), "-c", TENSORRT]
    done = process.run(words, cwd=Path("/"), check=False)
    lines = done.stdout.split()
    return {"tensorrt": lines[-1]} if done.returncode == 0 and lines else {}


def _run(command: list[str], model: Path, gpus: Mapping[str, str]) -> int:
    """Runs the builder; returns the most memory that one of its processes had, in bytes."""
    with tempfile.TemporaryDirectory(prefix="enginix-build.") as work:
        env = {**private_environment(Path(work) / "p"), **gpus}
        done = process.run(command, env=env, cwd=Path(work), check=False)
    if done.returncode == 0:
        # Of every child of this process so far, of which the builder is the largest (getrusage(2): KiB).
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    text = done.stdout + done.stderr
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1][:400] if lines else "no output"
    if "TensorRTDependencyError" in text:
        raise MachineError(
            "the runtime has no TensorRT",
            where=command[0],
            fix=f"install the TensorRT that Edge-LLM {table('edgellm')['version']} was qualified with: "
            + ", ".join(sorted({row["tensorrt"] for row in table("edgellm")["payloads"]})),
        )
    if "No space left on device" in text:
        raise MachineError("the disk is full", where=str(model), fix="free disk space, or choose another -o")
    if "out of memory" in text.lower():
        raise MachineError(
            "the builder ran out of memory", where=str(model), fix="lower maxBatchSize or maxKvCacheCapacity"
        )
    raise MachineError(f"the builder ended with status {done.returncode}: {last}", where=str(model))


def _check(engine: Path, full: Mapping[str, Any], builder: str) -> None:
    plan = engine / "llm.engine"
    if not plan.is_file() or plan.stat().st_size == 0:
        raise ExportError("the builder reported success without an llm.engine", where=str(engine))
    config = read_object(engine / "config.json")
    stated = config.get("builder_config")
    for name, key in _WRITTEN.items():
        value = stated.get(key) if isinstance(stated, dict) else None
        if value != full[name]:
            raise ExportError(f"{key} is {value}, asked for {full[name]}", where=str(engine / "config.json"))
    if builder == "direct" and not isinstance(config.get("checkpoint_identity"), dict):
        raise ExportError(
            "no checkpoint_identity, without which the server would build the engine again",
            where=str(engine / "config.json"),
        )
    for path in sorted(engine.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)

"""The stage that compiles: its command line for either strategy, run and watched inside the runtime."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from enginix import console, process
from enginix.engine import options as build_options
from enginix.engine.failures import explain
from enginix.engine.lora_adapters import copy_adapters
from enginix.engine.options import Value
from enginix.engine.target import probe
from enginix.engine.tensorrt_checkpoint import Checkpoint
from enginix.engine.tensorrt_request import Request
from enginix.errors import MachineError, UsageError
from enginix.runtime import image
from enginix.runtime.driver import Driver
from enginix.runtime.sandbox import Room
from enginix.runtime.supervise import Outcome, Watch, supervise
from enginix.tables import table

SCRIPT = Path(__file__).with_name("tensorrt_llm_api.py")
TIMING_IN = "timing.in"
TIMING_OUT = "timing.cache"


def command(request: Request, checkpoint: Checkpoint, engine: Path, timing: Path, room: Room) -> list[str]:
    """The command line of a stage; nothing that the runtime's contract does not know."""
    cache = ["--input_timing_cache", str(room.inside / TIMING_IN)] if request.timing_cache else []
    if request.strategy == "llm-api":
        return [
            room.runtime.python if room.rootfs is not None else "python3",
            str(SCRIPT),
            str(room.inside / "request.json"),
        ]
    return [
        "trtllm-build",
        "--checkpoint_dir",
        str(checkpoint.path),
        "--output_dir",
        str(engine),
        "--output_timing_cache",
        str(timing),
        *cache,
        "--workers",
        str(request.workers),
        "--log_level",
        "info",
        *request.limits.flags(),
        *build_options.flags(request.options),
    ]


def run(request: Request, checkpoint: Checkpoint, model: Path, room: Room, engine: Path) -> Outcome:
    """Compiles into ``engine``.

    Raises:
        BuildError, MachineError: it failed, hung or was killed; the cause where it is known.
    """
    timing = room.inside / TIMING_OUT
    # TensorRT-LLM writes such paths into config.json: those of the work directory name nobody's files.
    if request.timing_cache is not None:
        shutil.copyfile(request.timing_cache, room.work / TIMING_IN)
    request = _with_adapters(request, room)
    words = command(request, checkpoint, engine, timing, room)
    if request.strategy == "llm-api":
        asked: dict[str, Any] = {
            "model": str(model),
            "output": str(engine),
            "tensor_parallel_size": checkpoint.tensor_parallel,
            "pipeline_parallel_size": checkpoint.pipeline_parallel,
            **llm_api_fields(request.options),
        }
        asked["build_config"] |= request.limits.as_build_config() | {
            "input_timing_cache": str(room.inside / TIMING_IN) if request.timing_cache else None,
            "output_timing_cache": str(timing),
        }
        (room.work / "request.json").write_text(json.dumps(asked), "utf-8")
    console.say(" ".join(words))
    watch = Watch(
        stall=request.stall,
        beat=request.beat,
        outputs=(engine, room.work / TIMING_OUT),
        gpu_memory=_gpu_memory(room.driver),
    )
    outcome = supervise(room, words, watch, stage="build")
    if outcome.status != 0 or outcome.stalled:
        raise explain(words[0], outcome, request.stall)
    return outcome


def nccl(room: Room) -> dict[str, str]:
    """NCCL's version, as the library inside the runtime tells it, else the image's files, else the table.

    Returns:
        ``nccl``, and in ``ncclSource`` who told it.
    """
    runtime = room.runtime
    python = runtime.python if room.rootfs is not None else "python3"
    words = [python, "-c", image.ASK_NCCL, runtime.site_packages or "/nonexistent"]
    with contextlib.suppress(MachineError):
        env = room.environment() if room.rootfs is None else {}
        done = process.run(room.command(words), env=env, cwd=room.work, check=False, timeout=60)
        if done.returncode == 0 and (version := image.from_code(done.stdout)) is not None:
            return {"nccl": version, "ncclSource": "ncclGetVersion in the runtime"}
    if room.rootfs is not None and (version := image.nccl(room.rootfs, runtime)) is not None:
        return {"nccl": version, "ncclSource": "the image's files"}
    told = runtime.row.get("nccl")
    return {"nccl": told, "ncclSource": "the table of runtimes, not the image"} if told else {}


def _with_adapters(request: Request, room: Room) -> Request:
    adapters = request.options.get("loraDir")
    if not isinstance(adapters, list):
        return request
    copied = copy_adapters(adapters, room.work, room.inside)
    return replace(request, options={**request.options, "loraDir": copied})


def llm_api_fields(options: dict[str, Value]) -> dict[str, dict[str, Value]]:
    """Options as fields of BuildConfig and PluginConfig."""
    rows = table("build_options")["options"]
    config: dict[str, Value] = {}
    plugins: dict[str, Value] = {}
    for name, value in options.items():
        field_name = rows[name]["llmApi"]
        if field_name == "plugin_config":
            plugins[build_options.snake(name)] = value
        elif field_name is not None:
            config[field_name] = value
        elif (name, value) != ("kvCacheType", "paged"):
            raise UsageError(
                f"the strategy llm-api has no {name}", fix="leave it out, or use the strategy checkpoint"
            )
    return {"build_config": config, "plugin_config": plugins}


def _gpu_memory(driver: Driver) -> Any:
    """Samples bytes in use on the GPUs, at most every five seconds."""
    last: list[float | int | None] = [0.0, None]

    def sample() -> int | None:
        now = time.monotonic()
        if now - float(last[0] or 0) >= 5:
            last[0] = now
            with contextlib.suppress(MachineError):
                last[1] = max(g.total - g.free for g in probe(driver).gpus)
        return None if last[1] is None else int(last[1])

    return sample

"""The build stage: its command line for either strategy, supervised inside the runtime."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from enginix import console, process
from enginix.errors import MachineError, UsageError
from enginix.kinds.tensorrt.build import options as build_options
from enginix.kinds.tensorrt.build.engine_checkpoint import BuildCheckpoint
from enginix.kinds.tensorrt.build.lora_adapters import copy_adapters
from enginix.kinds.tensorrt.build.options import OptionValue
from enginix.kinds.tensorrt.build.request import BuildRequest
from enginix.letter_case import to_snake_case
from enginix.machine.driver import Driver
from enginix.machine.target import probe_machine
from enginix.runtime import image
from enginix.runtime.failures import explain_build_failure
from enginix.runtime.sandbox import Sandbox
from enginix.runtime.supervise import CommandOutcome, Watch, supervise_command
from enginix.tables import load_table

LLM_API_SCRIPT = Path(__file__).with_name("tensorrt_llm_api.py")
TIMING_IN = "timing.in"
TIMING_OUT = "timing.cache"


def make_build_command(
    request: BuildRequest, checkpoint: BuildCheckpoint, engine: Path, timing: Path, sandbox: Sandbox
) -> list[str]:
    """Return the command line of the stage; it has only flags of the runtime's contract."""
    cache = ["--input_timing_cache", str(sandbox.inside / TIMING_IN)] if request.timing_cache else []
    if request.strategy == "llm-api":
        python = sandbox.runtime.python if sandbox.rootfs is not None else "python3"
        return [python, str(LLM_API_SCRIPT), str(sandbox.inside / "request.json")]
    words = ["trtllm-build", "--checkpoint_dir", str(checkpoint.path), "--output_dir", str(engine)]
    words += ["--output_timing_cache", str(timing), *cache]
    words += ["--workers", str(request.workers), "--log_level", "info"]
    return [*words, *request.limits.flags(), *build_options.format_option_flags(request.options)]


def run_build(
    request: BuildRequest, checkpoint: BuildCheckpoint, model: Path, sandbox: Sandbox, engine: Path
) -> CommandOutcome:
    """Build into ``engine``.

    Raises:
        BuildError, MachineError: the build failed, hung or was killed; has the cause if known.
    """
    timing = sandbox.inside / TIMING_OUT
    # TensorRT-LLM writes these paths into config.json: copies in the work directory keep inputs' paths out.
    if request.timing_cache is not None:
        shutil.copyfile(request.timing_cache, sandbox.work / TIMING_IN)
    if isinstance(adapters := request.options.get("loraDir"), list):
        copied = copy_adapters(adapters, sandbox.work, sandbox.inside)
        request = replace(request, options={**request.options, "loraDir": copied})
    words = make_build_command(request, checkpoint, engine, timing, sandbox)
    if request.strategy == "llm-api":
        llm_api_request: dict[str, Any] = {
            "model": str(model),
            "output": str(engine),
            "tensor_parallel_size": checkpoint.tensor_parallel,
            "pipeline_parallel_size": checkpoint.pipeline_parallel,
            **make_llm_api_fields(request.options),
        }
        llm_api_request["build_config"] |= request.limits.as_build_config() | {
            "input_timing_cache": str(sandbox.inside / TIMING_IN) if request.timing_cache else None,
            "output_timing_cache": str(timing),
        }
        (sandbox.work / "request.json").write_text(json.dumps(llm_api_request), "utf-8")
    console.print_message(" ".join(words))
    watch = Watch(
        stall=request.stall,
        beat=request.beat,
        outputs=(engine, sandbox.work / TIMING_OUT),
        gpu_memory=_make_memory_sampler(sandbox.driver),
    )
    outcome = supervise_command(sandbox, words, watch, stage="build")
    if outcome.status != 0 or outcome.stalled:
        raise explain_build_failure(words[0], outcome, request.stall)
    return outcome


def read_nccl_version(sandbox: Sandbox) -> dict[str, str]:
    """Read NCCL's version from the library inside the runtime, else from the image's files, else the table.

    Returns:
        ``nccl``, and its source in ``ncclSource``.
    """
    runtime = sandbox.runtime
    python = runtime.python if sandbox.rootfs is not None else "python3"
    words = [python, "-c", image.NCCL_VERSION_CODE, runtime.site_packages or "/nonexistent"]
    with contextlib.suppress(MachineError):
        env = sandbox.environment() if sandbox.rootfs is None else {}
        done = process.run_program(sandbox.command(words), env=env, cwd=sandbox.work, check=False, timeout=60)
        if done.returncode == 0 and (version := image.parse_nccl_code(done.stdout)) is not None:
            return {"nccl": version, "ncclSource": "ncclGetVersion in the runtime"}
    if sandbox.rootfs is not None and (version := image.find_image_nccl(sandbox.rootfs, runtime)) is not None:
        return {"nccl": version, "ncclSource": "the image's files"}
    if table_version := runtime.row.get("nccl"):
        return {"nccl": table_version, "ncclSource": "the table of runtimes, not the image"}
    return {}


def make_llm_api_fields(options: dict[str, OptionValue]) -> dict[str, dict[str, OptionValue]]:
    """Return options as fields of BuildConfig and PluginConfig."""
    rows = load_table("build_options")["options"]
    config: dict[str, OptionValue] = {}
    plugins: dict[str, OptionValue] = {}
    for name, value in options.items():
        field_name = rows[name]["llmApi"]
        if field_name == "plugin_config":
            plugins[to_snake_case(name)] = value
        elif field_name is not None:
            config[field_name] = value
        elif (name, value) != ("kvCacheType", "paged"):
            raise UsageError(
                f"the strategy llm-api has no {name}", fix="leave it out, or use the strategy checkpoint"
            )
    return {"build_config": config, "plugin_config": plugins}


def _make_memory_sampler(driver: Driver) -> Any:
    """Return a function that samples the bytes in use on the GPUs, at most every five seconds."""
    last: list[float | int | None] = [0.0, None]

    def sample() -> int | None:
        now = time.monotonic()
        if now - float(last[0] or 0) >= 5:
            last[0] = now
            with contextlib.suppress(MachineError):
                last[1] = max(g.total - g.free for g in probe_machine(driver).gpus)
        return None if last[1] is None else int(last[1])

    return sample

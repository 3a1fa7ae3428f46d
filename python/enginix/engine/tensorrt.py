"""Engine of kind ``tensorrt``: ``trtllm-build`` run inside a pinned runtime, on the target's GPU.

<engine>/
  enginix.json     manifest: what it is, from what, for which GPU and runtime
  engine/          config.json, rank{r}.engine: what TensorRT-LLM loads
  tokenizer/       tokenizer, chat template, generation defaults
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from enginix import console
from enginix.console import human_bytes
from enginix.engine import options as build_options
from enginix.engine import preflight
from enginix.engine import tensorrt_result as result
from enginix.engine import tensorrt_stage as stage
from enginix.engine.effective_build import EffectiveBuild
from enginix.engine.lora_adapters import check_adapters
from enginix.engine.target import probe
from enginix.engine.tensorrt_checkpoint import Checkpoint, model_identity
from enginix.engine.tensorrt_request import STRATEGIES, Place, Request, effective_build
from enginix.errors import UsageError
from enginix.files import new_directory
from enginix.manifest import Manifest
from enginix.model.attention_window import read_windows
from enginix.model.end_tokens import KEY, read_end_tokens
from enginix.model.tokenizer_files import copy_tokenizer_files
from enginix.runtime import driver as drivers
from enginix.runtime.driver import Driver
from enginix.runtime.sandbox import Bind, Room, check_namespaces, reading


def build(request: Request, checkpoint_dir: Path | None, model: Path, place: Place) -> Manifest:
    """Preflight, build, verification, tokenizer, manifest; ``place.out`` is whole at the end, or absent.

    Raises:
        UsageError: the request contradicts the checkpoint or the target.
        MachineError: this machine lacks something; said before a weight is read.
        BuildError: the build failed, hung, or delivered something else than the engine that was asked for.
    """
    phase("preflight")
    # The build runs in a directory of its own, and what it wrote is searched for its inputs' paths: "model"
    # would be in every config.json.
    model, place = Path(os.path.abspath(model)), replace(place, out=Path(os.path.abspath(place.out)))
    checkpoint_dir = None if checkpoint_dir is None else Path(os.path.abspath(checkpoint_dir))
    checkpoint = Checkpoint.read(checkpoint_dir) if checkpoint_dir is not None else Checkpoint.of_model(model)
    for warning in preflight.check_support(
        checkpoint.quantization, checkpoint.kv_cache, checkpoint.architecture, request.target
    ):
        console.say(f"warning: {warning}")
    preflight.check_pipeline(checkpoint.architecture, checkpoint.pipeline_parallel)
    made = _check_request(request, checkpoint)
    inputs = [p for p in (checkpoint_dir, model) if p is not None]
    check_adapters(request.options, inputs, str(model_identity(model).get("repo", request.name)))
    driver = drivers.find(place.driver)
    with _work() as work, _output(place) as out:
        room, found = _preflight(request, checkpoint, model, place, driver, work, out)
        phase("build")
        engine = out / "engine"
        engine.mkdir()
        outcome = stage.run(request, checkpoint, model, room, engine)
        phase("verify")
        ranks, differences = result.verify(engine, request, checkpoint, made)
        result.refuse_paths(engine, inputs)
        timing = result.keep_timing(work, place)
        copy_tokenizer_files(model, out / "tokenizer")
        nccl = stage.nccl(room)
        found = replace(found, notes=(*found.notes, *differences))
        described = result.describe(request, checkpoint, made, model, found, outcome, ranks, timing, nccl)
        known = {**described.model, **read_windows(model), KEY: list(read_end_tokens(model))}
        described = replace(described, model=known)
        described.write(out)
    return described


def phase(name: str) -> None:
    """Names the stage: to Nix, which shows it, and to people."""
    if os.environ.get("NIX_LOG_FD"):
        console.say("@nix " + json.dumps({"action": "setPhase", "phase": name}))
    console.say(f"stage: {name}")


def _check_request(request: Request, checkpoint: Checkpoint) -> EffectiveBuild:
    if request.strategy not in STRATEGIES:
        raise UsageError(f"unknown strategy {request.strategy!r}", fix=f"use one of {', '.join(STRATEGIES)}")
    if request.strategy == "checkpoint" and not checkpoint.ranks:
        raise UsageError("the strategy checkpoint needs a checkpoint", fix="pass one (enginix convert)")
    if checkpoint.context is not None and request.limits.maxSeqLen > checkpoint.context:
        raise UsageError(
            f"maxSeqLen {request.limits.maxSeqLen} is more than the model's context, {checkpoint.context}",
            fix=f"use at most {checkpoint.context}",
        )
    if request.workers > checkpoint.world_size:
        raise UsageError(
            f"{request.workers} workers for {checkpoint.world_size} rank(s)",
            fix=f"--workers {checkpoint.world_size}",
        )
    build_options.check(request.options, request.runtime.id)
    if request.strategy == "llm-api":
        stage.llm_api_fields(request.options)
    result.gates(request, checkpoint)
    made = effective_build(request, checkpoint)
    limits, paged = made.limits(), made.plugin_config["use_paged_context_fmha"]
    if limits["maxInputLen"] > limits["maxNumTokens"] and not paged:
        raise UsageError(
            f"maxInputLen {limits['maxInputLen']} is more than maxNumTokens {limits['maxNumTokens']}, and "
            f"without paged context attention a prompt is not taken in chunks",
            fix="raise maxNumTokens, lower maxInputLen, or --plugin use-paged-context-fmha=true",
        )
    for name, asked in asdict(request.limits).items():
        if limits[name] != asked:
            console.say(f"note: {name} {asked} becomes {limits[name]}: trtllm-build changes it")
    return made


def _preflight(
    request: Request, checkpoint: Checkpoint, model: Path, place: Place, driver: Driver, work: Path, out: Path
) -> tuple[Room, preflight.Found]:
    if place.rootfs is not None:
        check_namespaces()
    preflight.check_version(request.runtime, place.rootfs)
    machine = probe(driver)
    if not request.accept_driver:
        preflight.check_driver(request.runtime, machine)
    found = preflight.check_gpu(request.target, machine, workers=request.workers, weights=checkpoint.heaviest)
    preflight.check_disk(out, work, checkpoint.total, workspace=request.strategy == "llm-api")
    if request.timing_cache is not None and not request.timing_cache.is_file():
        raise UsageError("no such timing cache", where=str(request.timing_cache))
    reads = [p for p in (checkpoint.path, model, stage.SCRIPT) if p is not None]
    room = Room(
        request.runtime,
        place.rootfs,
        work,
        driver,
        binds=(*reading(reads), Bind(out, writable=True)),
        # One rank runs in process; more of them need the LLM API's own workers.
        extra={
            "TLLM_WORKER_USE_SINGLE_PROCESS": "1" if checkpoint.world_size == 1 else "0",
            **machine.only(request.target.sm),
        },
    )
    room.prepare()
    gpu = found.gpu
    console.say(
        f"{gpu.name}, SM {gpu.sm}, {human_bytes(gpu.free)} of {human_bytes(gpu.total)} free; driver "
        f"{machine.driver}; "
        f"runtime {request.runtime.id}; weights {human_bytes(checkpoint.total)} in "
        f"{checkpoint.world_size} rank(s)"
    )
    for note in found.notes:
        console.say(f"note: {note}")
    return room, found


@contextlib.contextmanager
def _work() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="enginix-", ignore_cleanup_errors=True) as name:
        yield Path(os.path.realpath(name))


@contextlib.contextmanager
def _output(place: Place) -> Iterator[Path]:
    if not place.in_place:
        with new_directory(place.out) as partial:
            yield partial
        return
    try:
        place.out.mkdir()
    except OSError as e:
        raise UsageError(f"cannot make: {e.strerror}", where=str(place.out)) from e
    try:
        yield place.out
    except BaseException:
        shutil.rmtree(place.out, ignore_errors=True)
        if place.timing is not None:
            place.timing.unlink(missing_ok=True)
        raise

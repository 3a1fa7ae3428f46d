"""Build engines of kind ``tensorrt``: ``trtllm-build`` inside a pinned runtime, on the target's GPU.

<engine>/
  enginix.json     manifest: inputs, GPU, runtime, limits
  engine/          config.json, rank{r}.engine: the files that TensorRT-LLM loads
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
from enginix.console import format_bytes
from enginix.digests import SourceWatch
from enginix.errors import UsageError
from enginix.kinds.tensorrt.build import options as build_options
from enginix.kinds.tensorrt.build import result as result
from enginix.kinds.tensorrt.build import stage as stage
from enginix.kinds.tensorrt.build.effective_build import EffectiveBuild
from enginix.kinds.tensorrt.build.engine_checkpoint import BuildCheckpoint, compute_model_identity
from enginix.kinds.tensorrt.build.lora_adapters import check_adapters
from enginix.kinds.tensorrt.build.request import STRATEGIES, BuildPaths, BuildRequest, predict_effective_build
from enginix.machine import driver as drivers
from enginix.machine.driver import Driver
from enginix.manifest import Manifest
from enginix.model.attention_window import read_windows
from enginix.model.end_tokens import END_TOKENS_KEY, read_end_tokens
from enginix.model.tokenizer_files import copy_tokenizer_files
from enginix.runtime import preflight
from enginix.runtime.sandbox import Bind, Sandbox, make_read_binds
from enginix.wording import list_known
from enginix.work_directory import new_directory


def build_tensorrt_engine(
    request: BuildRequest, checkpoint_dir: Path | None, model: Path, paths: BuildPaths
) -> Manifest:
    """Check, build, verify and describe an engine; the output is complete at the end, or absent.

    Raises:
        UsageError: the request contradicts the checkpoint or the target.
        MachineError: this machine lacks something; raised before a weight is read.
        BuildError: the build failed, hung, or its engine does not fit the request.
        ManifestError: an input is not what its manifest lists, not of this model, or changes meanwhile.
    """
    report_phase("preflight")
    # Absolute paths: the build runs in another directory, and its output is searched for its inputs' paths;
    # the relative path "model" would be in every config.json.
    model, paths = Path(os.path.abspath(model)), replace(paths, out=Path(os.path.abspath(paths.out)))
    checkpoint_dir = None if checkpoint_dir is None else Path(os.path.abspath(checkpoint_dir))
    checkpoint = BuildCheckpoint.read_input(checkpoint_dir, model)
    preflight.require_kind_support("tensorrt", request.target)
    for warning in preflight.check_support(
        checkpoint.quantization, checkpoint.kv_cache, checkpoint.architecture, request.target
    ):
        console.print_message(f"warning: {warning}")
    preflight.check_pipeline(checkpoint.architecture, checkpoint.pipeline_parallel)
    effective = _check_request(request, checkpoint)
    inputs = [p for p in (checkpoint_dir, model) if p is not None]
    check_adapters(request.options, inputs, str(compute_model_identity(model).get("repo", request.name)))
    watch, identity = SourceWatch(*inputs), checkpoint.identity(model)
    driver = drivers.find_driver(paths.driver)
    with (
        tempfile.TemporaryDirectory(prefix="enginix-", ignore_cleanup_errors=True) as name,
        _open_output(paths) as out,
    ):
        work = Path(os.path.realpath(name))
        sandbox, preflight_result = _run_preflight(request, checkpoint, model, paths, driver, work, out)
        report_phase("build")
        engine = out / "engine"
        engine.mkdir()
        outcome = stage.run_build(request, checkpoint, model, sandbox, engine)
        report_phase("verify")
        ranks, differences = result.verify_engine(engine, request, checkpoint, effective)
        result.refuse_input_paths(engine, inputs)
        timing = result.keep_timing_cache(work, paths)
        copy_tokenizer_files(model, out / "tokenizer")
        nccl = stage.read_nccl_version(sandbox)
        preflight_result = replace(preflight_result, notes=(*preflight_result.notes, *differences))
        engine_manifest = result.describe_engine(
            request, checkpoint, effective, identity, preflight_result, outcome, ranks, timing, nccl
        )
        more = {**read_windows(model), END_TOKENS_KEY: list(read_end_tokens(model))}
        watch.require_unchanged()
        engine_manifest = replace(engine_manifest, model=engine_manifest.model | more).write(out)
    return engine_manifest


def report_phase(name: str) -> None:
    """Print the name of a stage, for Nix and for people."""
    if os.environ.get("NIX_LOG_FD"):
        console.print_message("@nix " + json.dumps({"action": "setPhase", "phase": name}))
    console.print_message(f"stage: {name}")


def _check_request(request: BuildRequest, checkpoint: BuildCheckpoint) -> EffectiveBuild:
    if request.strategy not in STRATEGIES:
        known = list_known(request.strategy, STRATEGIES)
        raise UsageError(f"unknown strategy {request.strategy!r}", fix=known)
    if request.strategy == "checkpoint" and not checkpoint.ranks:
        raise UsageError("the strategy checkpoint needs a checkpoint", fix="pass one (enginix convert)")
    if checkpoint.context is not None and request.limits.maxSeqLen > checkpoint.context:
        raise UsageError(
            f"maxSeqLen {request.limits.maxSeqLen} is more than the model's context, {checkpoint.context}",
            fix=f"use at most {checkpoint.context}",
        )
    ranks = checkpoint.world_size
    if request.workers > ranks:
        raise UsageError(f"{request.workers} workers for {ranks} rank(s)", fix=f"--workers {ranks}")
    build_options.check_build_options(request.options, request.runtime.id)
    if request.strategy == "llm-api":
        stage.make_llm_api_fields(request.options)
    result.read_gate_verdicts(request, checkpoint)
    effective = predict_effective_build(request, checkpoint)
    limits, is_paged = effective.limits(), effective.plugin_config["use_paged_context_fmha"]
    if limits["maxInputLen"] > limits["maxNumTokens"] and not is_paged:
        raise UsageError(
            f"maxInputLen {limits['maxInputLen']} is more than maxNumTokens {limits['maxNumTokens']}, and "
            f"without paged context attention a prompt is not split into chunks",
            fix="raise maxNumTokens, lower maxInputLen, or --plugin use-paged-context-fmha=true",
        )
    for name, requested in asdict(request.limits).items():
        if limits[name] != requested:
            console.print_message(f"note: {name} {requested} becomes {limits[name]}: trtllm-build changes it")
    return effective


def _run_preflight(
    request: BuildRequest,
    checkpoint: BuildCheckpoint,
    model: Path,
    paths: BuildPaths,
    driver: Driver,
    work: Path,
    out: Path,
) -> tuple[Sandbox, preflight.PreflightResult]:
    machine = preflight.require_machine(
        request.runtime, paths.rootfs, driver, accept_driver=request.accept_driver
    )
    preflight_result = preflight.check_gpu(
        request.target, machine, workers=request.workers, weights=checkpoint.heaviest
    )
    preflight.check_disk(out, work, checkpoint.total, workspace=request.strategy == "llm-api")
    if request.timing_cache is not None and not request.timing_cache.is_file():
        raise UsageError("no such timing cache", where=str(request.timing_cache))
    reads = [p for p in (checkpoint.path, model, stage.LLM_API_SCRIPT) if p is not None]
    sandbox = Sandbox(
        request.runtime,
        paths.rootfs,
        work,
        driver,
        binds=(*make_read_binds(reads), Bind(out, writable=True)),
        # One rank runs in process; several ranks need the LLM API's own workers.
        extra={
            "TLLM_WORKER_USE_SINGLE_PROCESS": "1" if checkpoint.world_size == 1 else "0",
            **machine.only(request.target.sm),
        },
    )
    sandbox.prepare()
    gpu = preflight_result.gpu
    console.print_message(
        f"{gpu.name}, SM {gpu.sm}, {format_bytes(gpu.free)} of {format_bytes(gpu.total)} free; driver "
        f"{machine.driver}; runtime {request.runtime.id}; weights {format_bytes(checkpoint.total)} in "
        f"{checkpoint.world_size} rank(s)"
    )
    for note in preflight_result.notes:
        console.print_message(f"note: {note}")
    return sandbox, preflight_result


@contextlib.contextmanager
def _open_output(paths: BuildPaths) -> Iterator[Path]:
    if not paths.in_place:
        with new_directory(paths.out) as partial:
            yield partial
        return
    try:
        paths.out.mkdir()
    except OSError as e:
        raise UsageError(f"cannot make: {e.strerror}", where=str(paths.out)) from e
    try:
        yield paths.out
    except BaseException:
        shutil.rmtree(paths.out, ignore_errors=True)
        if paths.timing is not None:
            paths.timing.unlink(missing_ok=True)
        raise

"""Tells whether a model fits a GPU, the tightest resource, and the smallest change that would make it fit.

MODEL is a model directory, a lock file, or owner/name on the Hub; only headers are read. The weights of each
rank are the bytes that `enginix convert` writes; a step's workspace and a build's needs are estimates and
marked so (docs/reference/memory-plan.md has the formulas). Exit code 1: the model does not fit.

  enginix plan ./qwen2.5-7b-instruct --target rtx-4090
  enginix plan Qwen/Qwen3-0.6B                          for this machine's GPU
  enginix plan nvidia/Qwen3-32B-NVFP4 --target rtx-pro-6000 --max-seq-len 16384 --sequences 8
  enginix plan model.lock.json --target h200 --tensor-parallel 2 --offline
  enginix plan ./qwen3-0.6b --kind edgellm --target rtx-5090 --max-batch-size 4 --max-seq-len 4096
  enginix plan ./qwen3-0.6b --kind rtx --target rtx-4090 --max-batch-size 16
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from enginix import console
from enginix.cli.option_shapes import add_flag, add_number, fill_options
from enginix.errors import EXIT_CHECK_FAILED, EXIT_OK, MachineError, UsageError
from enginix.kinds.registry import KIND_NAMES
from enginix.model.number_formats import read_kv_cache_bits

if TYPE_CHECKING:
    from enginix.kinds.planning.plan_record import MemoryPlan, PlanRequest
    from enginix.machine.gpu_table import TargetGpu


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="directory, lock file, or owner/name")
    parser.add_argument(
        "--target", metavar="GPU", help="GPU: h200, 'RTX 4090', sm89-16gb (default: this machine's)"
    )
    add_number(
        parser,
        "--memory",
        "GPU memory in GB, for a GPU whose memory is not in the table",
        type=float,
        metavar="GB",
    )
    parser.add_argument(
        "--kind",
        choices=KIND_NAMES,
        help="kind of engine (default: tensorrt where it runs on the GPU, else llmapi, edgellm or reference)",
    )
    parser.add_argument(
        "--tensor-parallel", "--tp", type=int, default=1, metavar="N", help="tensor ranks (default: 1)"
    )
    parser.add_argument(
        "--pipeline-parallel", "--pp", type=int, default=1, metavar="N", help="pipeline stages (default: 1)"
    )
    add_number(parser, "--max-batch-size", "sequences of a step (default: 8; kind edgellm: 1)")
    add_number(parser, "--max-num-tokens", "tokens of a step (default: 8192)")
    parser.add_argument(
        "--max-seq-len",
        "--max-kv-cache-capacity",
        type=int,
        metavar="N",
        help="tokens of one sequence (default: the context; kind edgellm: 8192, rtx: 4096)",
    )
    add_number(parser, "--max-input-len", "longest prompt, kind edgellm (default: 4096)")
    add_number(parser, "--step-tokens", "tokens of each sequence in a step, kind rtx (default: 16)")
    add_number(
        parser, "--sequences", "full-length sequences that must fit at the same time (default: 1)", default=1
    )
    parser.add_argument(
        "--kv-cache",
        type=lambda word: word if word == "auto" else word.upper(),
        choices=("auto", *read_kv_cache_bits()),
        default="auto",
        help="format of the KV cache (default: the model's)",
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="dtype of everything unquantized (default: the model's)",
    )
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit (default: main)")
    add_flag(parser, "--offline", "plan from a lock file alone, as Nix does at evaluation")


def run(args: argparse.Namespace) -> int:
    from enginix.kinds.planning.plan_record import PlanRequest
    from enginix.kinds.planning.plan_text import render_plan

    gpu = _resolve_gpu(args)
    request = fill_options(PlanRequest, args, kind=args.kind or _choose_kind(gpu))
    memory_plan = _plan_memory(args, request, gpu)
    console.print_result(memory_plan.as_json(), render_plan(memory_plan))
    return EXIT_OK if memory_plan.fits else EXIT_CHECK_FAILED


def _choose_kind(gpu: TargetGpu) -> str:
    """Return the kind of a request without --kind; says so where it is not tensorrt."""
    from enginix.machine.kind_support import choose_planned_kind

    kind = choose_planned_kind(gpu)
    if kind != "tensorrt":
        console.print_message(f"note: planned for kind {kind}, as kind tensorrt does not run on {gpu.name}")
    return kind


def _resolve_gpu(args: argparse.Namespace) -> TargetGpu:
    from dataclasses import replace

    from enginix.machine.gpu_table import find_gpu
    from enginix.machine.kind_support import explain_unsupported_gpu

    gpu_row = find_gpu(args.target) if args.target is not None else _find_own_gpu()
    if args.memory is not None:
        if not 0 < args.memory < 1e6:
            raise UsageError(f"--memory is {args.memory}", fix="pass gigabytes above 0, for instance 24")
        return replace(gpu_row, memory=int(args.memory * 10**9))
    if not gpu_row.memory:
        # No memory makes a kind run on a GPU that it has no code for.
        unsupported = explain_unsupported_gpu(args.kind, gpu_row) if args.kind else None
        if unsupported is not None:
            raise UsageError(unsupported.why, fix=unsupported.fix)
        raise UsageError(
            f"the memory of {gpu_row.name} is not in the table of GPUs",
            fix="pass --memory GB, for instance 24",
        )
    return gpu_row


def _find_own_gpu() -> TargetGpu:
    """Return this machine's first GPU, with the memory that its driver reports."""
    from dataclasses import replace

    from enginix.machine.driver import find_driver
    from enginix.machine.gpu_table import find_gpu
    from enginix.machine.target import name_target, probe_machine

    try:
        gpu = probe_machine(find_driver(None)).gpus[0]
    except MachineError as e:
        raise UsageError(
            f"no --target is given, and this machine has no GPU: {e.what}",
            fix="--target GPU; enginix target lists the names",
        ) from e
    return replace(find_gpu(name_target(gpu)), memory=gpu.total)


def _plan_memory(args: argparse.Namespace, request: PlanRequest, gpu: TargetGpu) -> MemoryPlan:
    from pathlib import Path

    from enginix.inspect import open_model
    from enginix.kinds.planning import planner

    if args.offline:
        from enginix.hub import lock
        from enginix.kinds.planning.lock_plan import plan_from_lock

        if not Path(args.model).is_file() or args.dtype:
            raise UsageError("--offline takes a lock file, and no --dtype", where=args.model)
        pinned_lock = lock.read_lock(Path(args.model))
        return plan_from_lock(
            pinned_lock.model, {f.path: f.size for f in pinned_lock.files}, gpu, request, args.model
        )
    with open_model(args.model, args.revision) as model:
        return planner.plan_memory(model, gpu, request)

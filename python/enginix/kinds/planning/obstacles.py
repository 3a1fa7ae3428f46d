"""Reasons other than memory against a plan, and what a plan says beside its figures."""

from __future__ import annotations

from collections.abc import Sequence

from enginix.kinds.planning.plan_record import PlanRequest
from enginix.kinds.registry import find_kind, is_portable
from enginix.machine.gpu_table import TargetGpu
from enginix.machine.kind_support import explain_unsupported_gpu, find_first_version
from enginix.memory_plan.arithmetic import ModelSizes, PlanLimits
from enginix.model.number_formats import (
    describe_fallback,
    find_fallback,
    list_missing_formats,
    read_algorithms,
    runs_on_gpu,
)


def find_window_obstacles(request: PlanRequest, windows: Sequence[int] | None) -> list[str]:
    """List the window that sequences of a request exceed, for a kind that has none."""
    length = request.max_seq_len or 0
    if not windows or not is_portable(request.kind) or length <= min(windows):
        return []
    return [
        f"--max-seq-len {length} exceeds the model's sliding window of {min(windows)} tokens, and kind "
        f"{request.kind} attends beyond it (fix: --max-seq-len {min(windows)}, or another kind)"
    ]


def find_format_obstacles(sizes: ModelSizes, gpu: TargetGpu, kind: str) -> list[str]:
    """List reasons why the GPU, or the kind on it, does not support the model's format.

    A kind's ``judge_model`` lists the same GPUs.
    """
    row = read_algorithms().get(sizes.quantization)
    if is_portable(kind):
        return []
    if unsupported := explain_unsupported_gpu(kind, gpu):
        return [f"{unsupported.why} (fix: {unsupported.fix})"]
    if row is None or (kind == "llmapi" and find_fallback(sizes.quantization, gpu.sm)):
        return []
    name, least, refused = sizes.quantization, row["minSm"], row["refusedSm"]
    is_compiled = find_kind(kind).is_compiled
    if runs_on_gpu(row, gpu.sm, gpu.formats, is_compiled=is_compiled):
        return []
    have = f", which has {', '.join(gpu.formats)}" if gpu.formats else ""
    if least is not None and gpu.sm < least:
        return [f"{name} needs SM {least} or later; {gpu.name} is SM {gpu.sm}{have}"]
    if missing := list_missing_formats(row, gpu.formats):
        return [f"{name} computes with {' and '.join(missing)}; {gpu.name} is SM {gpu.sm}{have}"]
    return [
        f"TensorRT-LLM builds no {name} engine on SM {refused[0]} to {refused[1] - 1}; "
        f"{gpu.name} is SM {gpu.sm}"
    ]


def list_gpu_notes(sizes: ModelSizes, gpu: TargetGpu, kind: str) -> list[str]:
    """List what a GPU needs of a runtime to run a kind."""
    notes = []
    if first := find_first_version(kind, gpu.sm):
        notes.append(f"kind {kind} runs on SM {gpu.sm} from TensorRT-LLM {first} on")
    fallback = find_fallback(sizes.quantization, gpu.sm) if kind == "llmapi" else None
    if fallback is not None:
        notes.append(describe_fallback(sizes.quantization, fallback, gpu.sm))
    if not gpu.is_listed:
        notes.append(f"SM {gpu.sm} is not listed: whether the runtime has code for it is not known")
    return notes


def find_model_obstacles(
    kind: str, architecture: str | None, quantization: str, method: str | None = None
) -> list[str]:
    """List the reasons of the tables why a model cannot become a kind, as ``enginix compare`` gives them."""
    verdict = find_kind(kind).judge_model(architecture, quantization, method)
    return list(verdict.why) if verdict.takes is False else []


def list_changed_options(request: PlanRequest, limits: PlanLimits) -> list[str]:
    """List the options of a request that the plan does not take as they are."""
    changed = []
    if request.max_num_tokens and limits.max_num_tokens < request.max_num_tokens:
        changed.append(
            f"max_num_tokens {request.max_num_tokens} is clipped to {limits.max_num_tokens}: all sequences "
            "together have no more"
        )
    for name, ranks in (("tensor", request.tensor_parallel), ("pipeline", request.pipeline_parallel)):
        if ranks > 1 and not find_kind(request.kind).has_parallelism:
            changed.append(f"kind {request.kind} runs on one device: --{name}-parallel {ranks} is left out")
    return changed

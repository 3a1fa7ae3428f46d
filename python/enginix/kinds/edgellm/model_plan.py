"""The memory plan of an Edge-LLM engine: from a model's headers, and from a lock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from enginix.errors import UsageError
from enginix.inspect import InspectedModel, ModelDescription
from enginix.kinds.edgellm import memory_plan
from enginix.kinds.planning.plan_record import (
    BuildNeeds,
    Certainty,
    CountedModel,
    MemoryPlan,
    PlanCertainty,
    PlanRequest,
)
from enginix.kinds.planning.planner import read_kv_bits, require_one_gpu, resolve_sizes
from enginix.machine.gpu_table import TargetGpu
from enginix.memory_plan import arithmetic
from enginix.model import open_weights


def plan_model(
    model: InspectedModel, description: ModelDescription, gpu: TargetGpu, request: PlanRequest
) -> MemoryPlan:
    sizes = replace(resolve_sizes(description, None, request), element_bytes=2)
    limits = _resolve_limits(request)
    tensors = open_weights(model.directory).tensors
    total = sum(t.nbytes // (2 if t.dtype == "F32" else 1) for t in tensors.values())
    weights = arithmetic.estimate_weights(total, sizes, "lm_head.weight" not in tensors)
    notes = ["the CUDA context is not counted; what weights and workspace leave is the KV cache's"]
    if systems := memory_plan.list_payload_systems(gpu):
        notes.append(f"payloads for SM {gpu.sm} are in the wheel for {' and '.join(systems)}")
    if gpu.unified:
        notes.append(f"{gpu.name} shares its memory with the CPU: what programs hold is missing here")
    if limits.max_input_len > sizes.context:
        notes.append(f"max_input_len {limits.max_input_len} exceeds the model's context of {sizes.context}")
    if description.dtype not in (None, "float16"):
        notes.append("computed in float16: enginix edgellm-export refuses weights beyond 65504")
    counted = CountedModel(model.source, description.size, sizes, total, weights)
    return _make_plan(counted, description.architecture, gpu, limits, "estimate", notes)


def plan_lock(
    metadata: Mapping[str, Any], gpu: TargetGpu, request: PlanRequest, lock: CountedModel
) -> MemoryPlan:
    note = "from the lock alone: weights are the size of the files, a lower bound"
    limits = _resolve_limits(request)
    return _make_plan(lock, metadata.get("architecture"), gpu, limits, "lower bound", [note])


def _make_plan(
    model: CountedModel,
    architecture: str | None,
    gpu: TargetGpu,
    limits: memory_plan.EdgellmPlanLimits,
    weights_are: Certainty,
    notes: list[str],
) -> MemoryPlan:
    sizes, weights = model.sizes, model.rank_weights
    memory = memory_plan.compute_edgellm_memory(sizes, limits, gpu, weights)
    return MemoryPlan(
        source=model.source,
        kind="edgellm",
        gpu=gpu,
        sizes=sizes,
        limits=limits,
        memory=memory,
        certainty=PlanCertainty(weights_are, memory_plan.find_edgellm_certainty(architecture)),
        build=BuildNeeds(model.files, model.weight_bytes, 0, 0, memory.weights + memory.workspace, 0),
        obstacles=tuple(memory_plan.find_edgellm_obstacles(architecture, sizes.quantization, gpu)),
        changes=() if memory.fits else tuple(memory_plan.find_edgellm_changes(sizes, limits, gpu, weights)),
        notes=tuple(notes),
    )


def _resolve_limits(request: PlanRequest) -> memory_plan.EdgellmPlanLimits:
    """Return the limits of kind edgellm.

    Raises:
        UsageError: kind edgellm lacks an option, or the prompt is larger than the KV cache.
    """
    require_one_gpu(
        request,
        ("max_num_tokens", "sequences", "step_tokens"),
        "a step is --max-batch-size prompts of --max-input-len; the KV cache holds "
        "--max-batch-size sequences of --max-seq-len",
    )
    if request.dtype not in (None, "float16"):
        raise UsageError(f"kind edgellm computes in float16, not in {request.dtype}", fix="leave --dtype out")
    if request.kv_cache not in ("auto", "FP8"):
        raise UsageError(f"kind edgellm has no {request.kv_cache} KV cache", fix="--kv-cache fp8, or auto")
    limits = memory_plan.fill_edgellm_limits(
        request.max_batch_size, request.max_input_len, request.max_seq_len
    )
    return limits if request.kv_cache == "auto" else replace(limits, kv_bits=read_kv_bits(request))

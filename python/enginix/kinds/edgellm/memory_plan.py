"""The memory plan of a TensorRT Edge-LLM engine, in whole numbers: one GPU, float16.

``nix/check/edgellm-plan.nix`` computes the same figures at evaluation; tests/python/plan/test_twin.py
compares the two. The wheel fixes at build time (data/edgellm/edgellm.json, memory): a KV cache of
``max_batch_size`` sequences of ``max_kv_cache_capacity`` tokens, in pages, allocated from the start; a step
of ``max_batch_size`` prompts of ``max_input_len`` tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from enginix.errors import UsageError
from enginix.inspect import InspectedModel, ModelDescription
from enginix.kinds.edgellm.build import (
    describe_other_ways,
    describe_payloads,
    format_cpu,
    require_buildable_limits,
)
from enginix.kinds.planning.checkpoint_refusal import (
    LOCK_LACKS_VALUES,
    explain_config_refusal,
    explain_lock_refusal,
)
from enginix.kinds.planning.plan_record import (
    BuildNeeds,
    Certainty,
    CountedModel,
    MemoryPlan,
    PlanCertainty,
    PlanRequest,
    StaticLimits,
)
from enginix.kinds.planning.planner import read_kv_bits, require_one_gpu, resolve_sizes
from enginix.kinds.registry import find_kind
from enginix.machine.gpu_table import TargetGpu
from enginix.memory_plan import arithmetic
from enginix.memory_plan.arithmetic import (
    FEWEST_TOKENS,
    SHORTEST_SEQUENCE,
    Change,
    KvCachePaging,
    ModelSizes,
    RankMemory,
    RankWeights,
)
from enginix.model import open_weights
from enginix.model.number_formats import read_edgellm_formats
from enginix.tables import load_table


@dataclass(frozen=True)
class EdgellmPlanLimits(StaticLimits):
    """Limits of the requested engine.

    Attributes:
        kv_bits: bits of a number in the KV cache; None for the model's.
        quantization: number format of the weights; None for the model's.
    """

    max_input_len: int
    max_batch_size: int
    max_kv_cache_capacity: int
    kv_bits: int | None = None
    quantization: str | None = None

    @property
    def max_seq_len(self) -> int:
        """Return the tokens of prompt and answer of one sequence."""
        return self.max_kv_cache_capacity

    def describe(self) -> str:
        return (
            f"batch {self.max_batch_size}, prompts of {self.max_input_len}, "
            f"KV cache of {self.max_kv_cache_capacity} tokens a sequence, allocated from the start"
        )


def read_page_tokens() -> int:
    return int(load_table("edgellm")["memory"]["pageTokens"]["value"])


def compute_edgellm_memory(
    sizes: ModelSizes, limits: EdgellmPlanLimits, gpu: TargetGpu, weights: RankWeights
) -> RankMemory:
    plan_limits = limits.as_plan_limits(limits.max_input_len, limits.max_kv_cache_capacity)
    return arithmetic.compute_memory(sizes, plan_limits, gpu, weights, KvCachePaging(read_page_tokens(), 100))


def find_edgellm_changes(
    sizes: ModelSizes, limits: EdgellmPlanLimits, gpu: TargetGpu, weights: RankWeights
) -> list[Change]:
    """List the changes that would make the engine fit, the smallest first; empty if none would."""
    cached_tokens = compute_edgellm_memory(sizes, limits, gpu, weights).tokens
    shorter = cached_tokens // limits.max_batch_size // read_page_tokens() * read_page_tokens()
    least = max(SHORTEST_SEQUENCE, limits.max_input_len)
    kv = sizes.kv_bits if limits.kv_bits is None else limits.kv_bits
    small_kv = {"kv_bits": 8} if kv > 8 else {}
    rows = read_edgellm_formats()
    formats = arithmetic.list_lighter_formats(sizes, lambda f: f in rows and gpu.sm >= rows[f]["minSm"])
    halved = arithmetic.iterate_halved_pairs(limits.max_input_len, limits.max_batch_size)
    steps = [{"max_input_len": tokens, "max_batch_size": batch} for tokens, batch in halved]
    return arithmetic.search_changes(
        limits,
        lambda changed: compute_edgellm_memory(sizes, changed, gpu, weights),
        {
            "max_input_len": arithmetic.iterate_halvings(limits.max_input_len, FEWEST_TOKENS),
            "max_batch_size": arithmetic.iterate_halvings(limits.max_batch_size, 1),
            "kv_bits": small_kv.values(),
            "max_kv_cache_capacity": [shorter] if least <= shorter < limits.max_kv_cache_capacity else [],
            "quantization": formats,
        },
        [
            *steps,
            *({**step, **small_kv} for step in steps if small_kv),
            *({**small_kv, "quantization": name} for name in formats),
        ],
    )


def list_payload_systems(gpu: TargetGpu) -> tuple[str, ...]:
    """List the CPUs with a payload for a GPU in their wheel."""
    rows = (
        row
        for row in load_table("edgellm")["payloads"]
        if row["sm"] == gpu.sm and gpu.system in (None, row["system"])
    )
    return tuple(sorted({format_cpu(row["system"]) for row in rows}, reverse=True))


def find_edgellm_obstacles(architecture: str | None, quantization: str, gpu: TargetGpu) -> list[str]:
    """List the obstacles other than memory; nix/kinds/edgellm/checks.nix refuses the same."""
    rows = load_table("edgellm")
    reasons = []
    if not list_payload_systems(gpu):
        on = f" on {format_cpu(gpu.system)}" if gpu.system else ""
        reasons.append(
            f"Edge-LLM {rows['version']} has no payload for SM {gpu.sm}{on} ({gpu.name}); its wheels "
            f"have them for {describe_payloads()} (fix: {describe_other_ways(gpu)})"
        )
    if architecture not in rows["architectures"]:
        known = ", ".join(sorted(rows["architectures"]))
        reasons.append(f"architecture {architecture} is not supported; supported: {known}")
    if quantization != "NO_QUANT":
        formats = read_edgellm_formats()
        row = formats.get(quantization)
        if row is None:
            known = ", ".join(sorted(formats))
            reasons.append(f"quantization {quantization} is not supported; supported: {known}")
        elif gpu.sm < row["minSm"]:
            have = f", which has {', '.join(gpu.formats)}" if gpu.formats else ""
            reasons.append(
                f"{quantization} needs SM {row['minSm']} or later; {gpu.name} is SM {gpu.sm}{have}"
            )
    return reasons


def plan_model(
    model: InspectedModel, description: ModelDescription, gpu: TargetGpu, request: PlanRequest
) -> MemoryPlan:
    sizes = replace(resolve_sizes(description, None, request), element_bytes=2)
    limits = _resolve_limits(request)
    tensors = open_weights(model.directory).tensors
    total = sum(t.nbytes // (2 if t.dtype == "F32" else 1) for t in tensors.values())
    weights = arithmetic.estimate_weights(total, sizes, "lm_head.weight" not in tensors)
    notes = ["the CUDA context is not counted; what weights and workspace leave is the KV cache's"]
    if systems := list_payload_systems(gpu):
        notes.append(f"payloads for SM {gpu.sm} are in the wheel for {' and '.join(systems)}")
    if gpu.unified:
        notes.append(f"{gpu.name} shares its memory with the CPU: what programs hold is missing here")
    if limits.max_input_len > sizes.context:
        notes.append(f"max_input_len {limits.max_input_len} exceeds the model's context of {sizes.context}")
    if description.dtype not in (None, "float16"):
        notes.append("computed in float16: enginix edgellm-export refuses weights beyond 65504")
    counted = CountedModel(model.source, description.size, sizes, total, weights)
    obstacles = find_edgellm_obstacles(description.architecture, sizes.quantization, gpu)
    obstacles = obstacles or [*filter(None, [explain_config_refusal(find_kind("edgellm"), model.directory)])]
    return _make_plan(counted, description.architecture, gpu, limits, "estimate", obstacles, notes)


def plan_lock(
    metadata: Mapping[str, Any], gpu: TargetGpu, request: PlanRequest, lock: CountedModel
) -> MemoryPlan:
    notes = ["from the lock alone: weights are the size of the files, a lower bound", LOCK_LACKS_VALUES]
    architecture = metadata.get("architecture")
    refusal = explain_lock_refusal(find_kind("edgellm"), architecture, metadata.get("modelType"))
    obstacles = [
        *find_edgellm_obstacles(architecture, lock.sizes.quantization, gpu),
        *filter(None, [refusal]),
    ]
    limits = _resolve_limits(request)
    return _make_plan(lock, architecture, gpu, limits, "lower bound", obstacles, notes)


def _make_plan(
    model: CountedModel,
    architecture: str | None,
    gpu: TargetGpu,
    limits: EdgellmPlanLimits,
    weights_are: Certainty,
    obstacles: list[str],
    notes: list[str],
) -> MemoryPlan:
    sizes, weights = model.sizes, model.rank_weights
    # Architectures that Edge-LLM takes keep all of a token by heads.
    is_known = architecture in load_table("edgellm")["architectures"]
    memory = compute_edgellm_memory(sizes, limits, gpu, weights)
    return MemoryPlan(
        source=model.source,
        kind="edgellm",
        gpu=gpu,
        sizes=sizes,
        limits=limits,
        memory=memory,
        certainty=PlanCertainty(weights_are, "exact" if is_known else "estimate"),
        build=BuildNeeds(model.files, model.weight_bytes, 0, 0, memory.weights + memory.workspace, 0),
        obstacles=tuple(obstacles),
        changes=() if memory.fits else tuple(find_edgellm_changes(sizes, limits, gpu, weights)),
        notes=tuple(notes),
    )


def _resolve_limits(request: PlanRequest) -> EdgellmPlanLimits:
    """Return the limits of kind edgellm.

    Raises:
        UsageError: kind edgellm lacks an option, the prompt is larger than the KV cache, or the limits
            overflow the wheel's builder.
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
    rows = load_table("edgellm")["build"]
    limits = EdgellmPlanLimits(
        max_input_len=request.max_input_len or rows["maxInputLen"]["default"],
        max_batch_size=request.max_batch_size or rows["maxBatchSize"]["default"],
        max_kv_cache_capacity=request.max_seq_len or rows["maxKvCacheCapacity"]["default"],
        kv_bits=read_kv_bits(request),
    )
    names = ("--max-input-len", "--max-batch-size", "--max-seq-len")
    numbers = limits.max_input_len, limits.max_batch_size, limits.max_kv_cache_capacity
    require_buildable_limits(*numbers, names=names)
    return limits

"""The memory plan of an engine of TensorRT for RTX: one GPU, all sizes static.

``nix/check/rtx-plan.nix`` computes its memory at evaluation; tests/python/plan/test_twin.py compares the two.
The KV cache has a place for each token of each slot, from the start; a step takes ``step_tokens`` tokens of
each slot. A plan holds the weights once, a tied head as the embedding. What the library itself takes on a
GPU, kernels among it, is not known, and not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from enginix.checkpoint import convert
from enginix.checkpoint.config import FILE, parse_checkpoint_config
from enginix.errors import CheckpointError, EnginixError, UsageError
from enginix.inspect import InspectedModel, ModelDescription
from enginix.kinds.planning.checkpoint_refusal import describe_refusal, explain_kind_refusal
from enginix.kinds.planning.obstacles import find_format_obstacles, find_model_obstacles
from enginix.kinds.planning.plan_record import (
    BuildNeeds,
    Certainty,
    CountedModel,
    MemoryPlan,
    PlanCertainty,
    PlanRequest,
    StaticLimits,
)
from enginix.kinds.planning.planner import require_one_gpu, resolve_sizes
from enginix.kinds.registry import find_kind
from enginix.kinds.rtx.checkpoint_support import check_checkpoint_support, resolve_engine_shape
from enginix.kinds.rtx.engine_description import EngineShape
from enginix.machine.gpu_table import TargetGpu
from enginix.memory_plan import arithmetic
from enginix.memory_plan.arithmetic import (
    SHORTEST_SEQUENCE,
    Change,
    KvCachePaging,
    ModelSizes,
    RankMemory,
    RankWeights,
)
from enginix.model import open_weights
from enginix.model.rtx_limits import explain_unfused_heads
from enginix.tables import load_table

HEAD = "lm_head.weight"


@dataclass(frozen=True)
class RtxPlanLimits(StaticLimits):
    """Limits of the requested engine.

    Attributes:
        max_batch_size: slots.
        quantization: number format of the weights; None for the model's.
    """

    max_batch_size: int
    max_seq_len: int
    step_tokens: int
    quantization: str | None = None

    def describe(self) -> str:
        return (
            f"{self.max_batch_size} slots of {self.max_seq_len:,} tokens, {self.step_tokens} of each a step; "
            "the KV cache is allocated from the start"
        )


def compute_rtx_memory(
    sizes: ModelSizes, limits: RtxPlanLimits, gpu: TargetGpu, weights: RankWeights
) -> RankMemory:
    shape = EngineShape(limits.max_batch_size, limits.step_tokens, limits.max_seq_len)
    plan_limits = limits.as_plan_limits(limits.step_tokens, shape.cache_length)
    return arithmetic.compute_memory(sizes, plan_limits, gpu, weights, KvCachePaging(1, 100))


def find_rtx_changes(
    sizes: ModelSizes, limits: RtxPlanLimits, gpu: TargetGpu, weights: RankWeights
) -> list[Change]:
    """List the changes that would make the engine fit, the smallest first; empty if none would."""
    cached_tokens = compute_rtx_memory(sizes, limits, gpu, weights).tokens
    shorter = cached_tokens // limits.max_batch_size - (limits.step_tokens - 1)
    rows = load_table("rtx")["formats"]["taken"]
    formats = arithmetic.list_lighter_formats(sizes, lambda name: gpu.sm in rows.get(name, ()))
    return arithmetic.search_changes(
        limits,
        lambda changed: compute_rtx_memory(sizes, changed, gpu, weights),
        {
            "max_batch_size": arithmetic.iterate_halvings(limits.max_batch_size, 1),
            "max_seq_len": [shorter] if SHORTEST_SEQUENCE <= shorter < limits.max_seq_len else [],
            "quantization": formats,
        },
        [{"max_batch_size": 1, "quantization": name} for name in formats],
    )


def find_rtx_obstacles(architecture: str | None, sizes: ModelSizes, gpu: TargetGpu) -> list[str]:
    """List the obstacles other than memory; nix/kinds/rtx/checks.nix refuses the same."""
    table, name = load_table("rtx"), sizes.quantization
    obstacles = find_model_obstacles("rtx", architecture, name)
    obstacles += find_format_obstacles(sizes, gpu, "rtx")
    if not obstacles and gpu.sm not in table["formats"]["taken"][name]:
        sms = ", ".join(map(str, table["formats"]["taken"][name]))
        obstacles.append(f"kind rtx takes {name} for SM {sms} alone; {gpu.name} is SM {gpu.sm}")
    if sizes.kv_bits != 8 * sizes.element_bytes:
        obstacles.append(
            "TensorRT for RTX refuses a quantized KV cache (fix: quantize the model without one, or use kind "
            "tensorrt or llmapi)"
        )
    if why := explain_unfused_heads(sizes.head_size):
        obstacles.append(f"{why} (fix: use kind llmapi or reference)")
    return obstacles


def plan_model(
    model: InspectedModel, description: ModelDescription, gpu: TargetGpu, request: PlanRequest
) -> MemoryPlan:
    sizes = resolve_sizes(description, None, request)
    obstacles, is_tied, checkpoint_refusal = list[str](), False, list[str]()
    try:
        options = convert.ConvertOptions(request.dtype)
        spec = convert.derive_conversion_spec(model.directory, options, headers_only=True)
        is_tied = spec.model.tie_word_embeddings
        checkpoint_refusal = _list_checkpoint_refusal(spec)
    except EnginixError as e:
        obstacles.append(describe_refusal("no checkpoint", e))
    tensors = open_weights(model.directory).tensors
    bytes_of = {name: t.nbytes // (2 if t.dtype == "F32" else 1) for name, t in tensors.items()}
    total = sum(bytes_of.values())
    unique = total - (bytes_of.get(HEAD, 0) if is_tied else 0)
    weights = arithmetic.estimate_weights(unique, sizes, is_tied)
    return _make_plan(
        CountedModel(model.source, description.size, sizes, total, weights),
        unique,
        gpu,
        request,
        "estimate",
        # The converter's own reasons are exact: the tables' follow only where it has none.
        obstacles or find_rtx_obstacles(description.architecture, sizes, gpu) or checkpoint_refusal,
        [],
    )


def _list_checkpoint_refusal(spec: convert.ConversionSpec) -> list[str]:
    """List the reason, if any, for which ``enginix rtx-build`` would refuse the checkpoint."""
    if refusal := explain_kind_refusal(find_kind("rtx"), spec.model):
        return [refusal]
    config = parse_checkpoint_config(spec.config, FILE, spec.quant_cfg)
    try:
        check_checkpoint_support(config, spec.model.directory, spec.model.architecture)
    except CheckpointError as e:
        return [f"{e.what} (fix: {e.fix})"]
    return []


def plan_lock(
    metadata: Mapping[str, Any], gpu: TargetGpu, request: PlanRequest, lock: CountedModel
) -> MemoryPlan:
    sizes, is_tied = lock.sizes, metadata.get("tiedEmbeddings") is True
    # A lock does not tell whether the files hold a tied head, too.
    head = sizes.vocabulary * sizes.hidden_size * sizes.element_bytes if is_tied else 0
    unique = max(0, lock.weight_bytes - head)
    counted = replace(lock, rank_weights=arithmetic.estimate_weights(unique, sizes, is_tied))
    obstacles = find_rtx_obstacles(metadata.get("architecture"), sizes, gpu)
    note = "from the lock alone: weights are the size of the files without a tied head, a lower bound"
    return _make_plan(counted, unique, gpu, request, "lower bound", obstacles, [note])


def _make_plan(
    model: CountedModel,
    unique: int,
    gpu: TargetGpu,
    request: PlanRequest,
    weights_are: Certainty,
    obstacles: list[str],
    notes: list[str],
) -> MemoryPlan:
    """Return the plan of a model whose weights without a tied head are ``unique`` bytes."""
    sizes, weights = model.sizes, model.rank_weights
    limits = _resolve_limits(request, sizes.context)
    memory = compute_rtx_memory(sizes, limits, gpu, weights)
    row = load_table("rtx")["buildMemory"]
    build_memory = int(row["base"] + row["factor"] * model.weight_bytes)
    sms = load_table("rtx")["formats"]["taken"].get(sizes.quantization, ())
    if sms:
        notes.append(f"one engine is for SM {', '.join(map(str, sms))}; --sm and targets name fewer")
    notes.append("no engine of this kind was ever executed: what the library takes beside these is not known")
    if gpu.unified:
        notes.append(f"{gpu.name} shares its memory with the CPU: what programs hold is missing here")
    return MemoryPlan(
        source=model.source,
        kind="rtx",
        gpu=gpu,
        sizes=sizes,
        limits=limits,
        memory=memory,
        certainty=PlanCertainty(weights_are, "exact"),
        build=BuildNeeds(model.files, model.weight_bytes, unique, build_memory, 0, 0),
        obstacles=tuple(obstacles),
        changes=() if memory.fits else tuple(find_rtx_changes(sizes, limits, gpu, weights)),
        notes=tuple(notes),
    )


def _resolve_limits(request: PlanRequest, context: int) -> RtxPlanLimits:
    """Return the limits of kind rtx.

    Raises:
        UsageError: kind rtx lacks an option, or a limit is out of range.
    """
    require_one_gpu(
        request,
        ("max_num_tokens", "max_input_len", "sequences"),
        "a step is some tokens of each slot; the KV cache holds --max-batch-size sequences of --max-seq-len",
    )
    if request.dtype not in (None, *load_table("rtx")["dtypes"]["taken"]):
        raise UsageError(
            f"kind rtx does not compute in {request.dtype}", fix="--dtype bfloat16, or leave it out"
        )
    if request.kv_cache != "auto":
        raise UsageError(f"kind rtx has no {request.kv_cache} KV cache", fix="leave --kv-cache out")
    given = {
        "maxBatchSize": request.max_batch_size,
        "maxSeqLen": request.max_seq_len,
        "stepTokens": request.step_tokens,
    }
    shape = resolve_engine_shape(given, context)
    return RtxPlanLimits(shape.slots, shape.max_seq_len, shape.step_tokens)

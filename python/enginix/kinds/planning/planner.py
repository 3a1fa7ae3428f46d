"""Plan memory: model, target and limits → verdict, tightest resource, changes that help, build needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from enginix.checkpoint import convert
from enginix.errors import EnginixError, ModelError, UsageError
from enginix.inspect import InspectedModel, ModelDescription, describe_model
from enginix.kinds.planning.checkpoint_refusal import describe_refusal, explain_kind_refusal
from enginix.kinds.planning.obstacles import (
    find_format_obstacles,
    find_model_obstacles,
    find_window_obstacles,
    list_changed_options,
    list_gpu_notes,
)
from enginix.kinds.planning.plan_record import (
    BuildNeeds,
    Certainty,
    KindPlanner,
    MemoryPlan,
    PlanCertainty,
    PlanRequest,
)
from enginix.kinds.registry import find_kind, is_portable, load_hook
from enginix.machine.gpu_table import TargetGpu
from enginix.memory_plan import arithmetic
from enginix.memory_plan.arithmetic import ELEMENT_BYTES, ModelSizes, PlanLimits, RankMemory
from enginix.memory_plan.kv_layout import find_latent, find_recurrent_layers, is_counted_by_heads
from enginix.memory_plan.weights import CheckpointSizes, RankSizes, estimate_from_headers
from enginix.model import ModelConfig, open_weights
from enginix.model.attention_window import find_window_pattern
from enginix.model.config_rules import explain_contradictions
from enginix.model.context_length import explain_pytorch_context, read_pytorch_context
from enginix.model.jsonfile import read_object, select_language_model
from enginix.model.llmapi_advice import limited_llmapi_advice
from enginix.model.number_formats import read_kv_cache_bits
from enginix.runtime.preflight import check_pipeline


def plan_memory(model: InspectedModel, gpu: TargetGpu, request: PlanRequest) -> MemoryPlan:
    """Plan memory from a model's headers.

    Raises:
        ModelError: the model's files contradict each other, or its sizes are missing.
        UsageError: parallel sizes do not divide the model, or limits are invalid.
    """
    check_plan_request(request)
    kind = find_kind(request.kind)
    description = describe_model(model)
    if description.count is None:
        raise ModelError(
            f"the model has no weights that could be counted: {description.refusal}",
            where=model.source,
            fix="pass a model in safetensors, as save_pretrained of transformers writes it",
        )
    if kind.memory_plan is not None:
        kind_planner: KindPlanner = load_hook(kind.memory_plan)
        return kind_planner.plan_model(model, description, gpu, request)
    obstacles, notes = list[str](), list[str]()
    config = _read_convertible_config(model, request, obstacles)
    config_file = read_object(model.directory / "config.json")
    raw = select_language_model(config_file)
    sizes = resolve_sizes(description, config, request)
    if recurrent := find_recurrent_layers(raw, sizes.element_bytes):
        sizes = replace(sizes, cached_layers=recurrent.cached, state=recurrent.state)
        notes.append(
            f"{sizes.layers - recurrent.cached} of {sizes.layers} layers are recurrent: they keep "
            f"{recurrent.state} B of a sequence, whatever its length"
        )
    else:
        with limited_llmapi_advice(description.architecture):
            sizes = replace(sizes, latent=find_latent(raw, model.source))
    if sizes.latent:
        notes.append("multi-head latent attention: every rank keeps the whole latent vector of a token")
    if kind.built_from == "model":
        # Whatever its runtime reads, the gates compare with transformers.
        notes += [f"{what} (fix: {fix})" for what, fix in explain_contradictions(config_file, model.files)]
        sizes = replace(sizes, context=read_pytorch_context(raw) or sizes.context)
    windows = find_window_pattern(raw)
    if windows is None:
        notes.append("windows of its layers are not known: the KV cache is an upper bound")
    elif windows:
        notes.append("layers with a window are counted in full: the KV cache is an upper bound")
    limits = resolve_plan_limits(sizes, request, windows)
    weights, exact, ranks = _find_rank_weights(model, description, sizes, config, request)
    memory = arithmetic.compute_memory(sizes, limits, gpu, weights)
    # The converter's own reasons are exact: the tables' follow only where it has none.
    obstacles = obstacles or find_model_obstacles(request.kind, description.architecture, sizes.quantization)
    if not obstacles and config is not None:
        obstacles += filter(None, [explain_kind_refusal(kind, config)])
    obstacles += find_format_obstacles(sizes, gpu, request.kind)
    obstacles += find_window_obstacles(request, windows)
    if kind.has_pipeline:
        try:
            check_pipeline(description.architecture, request.pipeline_parallel)
        except UsageError as e:
            obstacles.append(f"{e.what} (fix: {e.fix})")
    notes += _list_plan_notes(description, sizes, limits, memory, request, gpu)
    useful_changes = [] if memory.fits else arithmetic.find_changes(sizes, limits, gpu, weights)
    if not kind.has_parallelism:  # one process on one device, its weights as they are
        useful_changes = [c for c in useful_changes if not {"tensor_parallel", "quantization"} & set(c)]
    return MemoryPlan(
        source=model.source,
        kind=request.kind,
        gpu=gpu,
        sizes=sizes,
        limits=limits,
        memory=memory,
        certainty=PlanCertainty(
            "exact" if exact else "estimate", find_kv_certainty(description.architecture, windows)
        ),
        build=estimate_build_needs(
            request.kind, description.size, 0 if ranks is None else ranks.files, memory, limits
        ),
        obstacles=tuple(obstacles),
        changes=tuple(useful_changes),
        notes=tuple(notes),
    )


def find_kv_certainty(architecture: str | None, windows: Sequence[int] | None) -> Certainty:
    """Return how far the KV cache of a token is known.

    Args:
        windows: tokens that each layer attends to; empty without windows, None where that is not known.
    """
    if not is_counted_by_heads(architecture):
        return "estimate"
    return "exact" if windows is not None and not windows else "upper bound"


def read_kv_bits(request: PlanRequest) -> int | None:
    """Return the bits of a KV cache number that a request asks for; None for the model's."""
    return None if request.kv_cache == "auto" else read_kv_cache_bits()[request.kv_cache]


def require_one_gpu(request: PlanRequest, absent: Sequence[str], fix: str) -> None:
    """Refuse options of several GPUs, and those that a kind of one GPU does not have.

    Args:
        absent: names of the request's fields.
        fix: what to do in place of one of them.

    Raises:
        UsageError: such an option is not its default.
    """
    if request.tensor_parallel != 1 or request.pipeline_parallel != 1:
        raise UsageError(
            f"kind {request.kind} runs on one GPU", fix="leave --tensor-parallel out, or another kind"
        )
    for name in absent:
        if getattr(request, name) != getattr(PlanRequest(), name):
            raise UsageError(f"kind {request.kind} has no --{name.replace('_', '-')}", fix=fix)


_COUNTS = (
    "tensor_parallel", "pipeline_parallel", "max_batch_size", "max_num_tokens", "max_seq_len",
    "max_input_len", "step_tokens", "sequences",
)  # fmt: skip


def check_plan_request(request: PlanRequest) -> None:
    """Refuse numbers below 1, naming the flag."""
    if request.max_input_len is not None and find_kind(request.kind).memory_plan is None:
        raise UsageError(
            "--max-input-len is for kind edgellm only", fix="leave it out; --max-seq-len includes the prompt"
        )
    if request.step_tokens is not None and find_kind(request.kind).memory_plan is None:
        raise UsageError("--step-tokens is for kind rtx only", fix="leave it out")
    for name in _COUNTS:
        flag, value = f"--{name.replace('_', '-')}", getattr(request, name)
        if value is not None and not 1 <= value < 1 << 31:
            raise UsageError(
                f"{flag} {value} is not a number from 1 to {(1 << 31) - 1}", fix=f"pass one to {flag}"
            )
    kind = find_kind(request.kind)
    if request.pipeline_parallel > 1 and kind.has_parallelism and not kind.has_pipeline:
        raise UsageError(
            f"--pipeline-parallel {request.pipeline_parallel}: kind {kind.name} has no pipeline stages",
            fix="leave it out, and raise --tensor-parallel",
        )


# Size → the description's name of it, and that of config.json.
_SIZE_KEYS = {
    "layers": ("layers", "num_hidden_layers"), "heads": ("heads", "num_attention_heads"),
    "kv_heads": ("kv_heads", "num_key_value_heads"), "head_size": ("head_size", "head_dim"),
    "hidden_size": ("hidden_size", "hidden_size"), "mlp_width": ("intermediate_size", "intermediate_size"),
    "vocabulary": ("vocabulary", "vocab_size"), "context": ("context", "max_position_embeddings"),
}  # fmt: skip


def resolve_sizes(
    description: ModelDescription, config: ModelConfig | None, request: PlanRequest
) -> ModelSizes:
    values = {size: getattr(description, name) for size, (name, _) in _SIZE_KEYS.items()}
    if keys := [key for size, (_, key) in _SIZE_KEYS.items() if values[size] is None]:
        raise ModelError(
            f"plan does not count {description.architecture or 'this model'}: its config.json has no "
            f"{' and no '.join(keys)}",
            where=description.source,
            fix=f"if the model has them under other names, plan a copy of it whose config.json has "
            f"{', '.join(keys)}, too",
        )
    if config is not None and (experts := config.experts) is not None:
        values["mlp_width"] = experts.top_k * experts.width + experts.shared_width
    dtype = request.dtype or description.dtype or "float16"
    if request.dtype is None and dtype == "float32" and not is_portable(request.kind):
        dtype = "float16"
    element = ELEMENT_BYTES.get(dtype, 2)
    algorithm = description.quantization.algorithm if description.quantization else None
    cache = (description.quantization.kv_cache if description.quantization else None) or ""
    cache_bits = read_kv_cache_bits()
    return ModelSizes(
        **values,
        element_bytes=element,
        quantization=algorithm or "NO_QUANT",
        kv_bits=cache_bits[cache] if cache in cache_bits and not is_portable(request.kind) else 8 * element,
    )


def resolve_plan_limits(
    sizes: ModelSizes, request: PlanRequest, windows: Sequence[int] | None = None
) -> PlanLimits:
    """Return the limits with TensorRT-LLM's defaults filled in; for ``reference`` those of one device.

    Args:
        windows: tokens that each layer attends to; the smallest bounds the context of kind reference.
    """
    kv = read_kv_bits(request)
    is_single = not find_kind(request.kind).has_parallelism
    context = min([sizes.context, *(windows or [])]) if is_portable(request.kind) else sizes.context
    length = request.max_seq_len or context
    batch = request.max_batch_size or (1 if is_single else arithmetic.read_default("maxBatchSize"))
    tokens = request.max_num_tokens or (length if is_single else arithmetic.read_default("maxNumTokens"))
    return PlanLimits(
        max_batch_size=batch,
        # As trtllm-build clips it: a step never takes more than all sequences hold together.
        max_num_tokens=min(tokens, batch * length),
        max_seq_len=length,
        sequences=request.sequences,
        tensor_parallel=1 if is_single else request.tensor_parallel,
        pipeline_parallel=1 if is_single else request.pipeline_parallel,
        kv_bits=kv,
    )


def _read_convertible_config(
    model: InspectedModel, request: PlanRequest, obstacles: list[str]
) -> ModelConfig | None:
    """Return the model as the converter reads it; None if it refuses, with the reason among the obstacles."""
    try:
        spec = convert.derive_conversion_spec(
            model.directory, convert.ConvertOptions(request.dtype), headers_only=True
        )
        CheckpointSizes(spec.model, open_weights(model.directory), request.dtype).heaviest(1, 1, None)
    except EnginixError as e:
        if find_kind(request.kind).built_from == "checkpoint":
            obstacles.append(describe_refusal("no checkpoint", e))
        return None
    return spec.model


def _find_rank_weights(
    model: InspectedModel,
    description: ModelDescription,
    sizes: ModelSizes,
    config: ModelConfig | None,
    request: PlanRequest,
) -> tuple[arithmetic.RankWeights, bool, RankSizes | None]:
    tensors = open_weights(model.directory)
    ranks = None
    if config is not None:
        checkpoint = CheckpointSizes(config, tensors, request.dtype)
        ranks = checkpoint.ranks(request.tensor_parallel, request.pipeline_parallel, None, None)
    if is_portable(request.kind):
        assert description.count is not None
        # A tied head is a matrix of its own in a checkpoint.
        copy = sizes.vocabulary * sizes.hidden_size if "lm_head.weight" not in tensors.tensors else 0
        whole = (description.count.parameters + copy) * sizes.element_bytes
        return (lambda tp, pp, quantization: whole), False, ranks
    if config is not None and ranks is not None:
        return checkpoint.heaviest, find_kind(request.kind).is_compiled, ranks
    return (lambda tp, pp, quantization: estimate_from_headers(tensors, tp, pp)), False, None


def _list_plan_notes(
    description: ModelDescription,
    sizes: ModelSizes,
    limits: PlanLimits,
    memory: RankMemory,
    request: PlanRequest,
    gpu: TargetGpu,
) -> list[str]:
    notes = list_gpu_notes(sizes, gpu, request.kind)
    if gpu.unified:
        notes.append(f"{gpu.name} shares its memory with the CPU: what programs hold is missing here")
    if limits.max_seq_len > sizes.context:
        notes.append(f"max_seq_len {limits.max_seq_len} exceeds the model's context of {sizes.context}")
    if find_kind(request.kind).built_from == "model" and (description.context or 0) > sizes.context:
        notes.append(explain_pytorch_context(sizes.context, description.context or 0))
    notes += list_changed_options(request, limits)
    each = memory.need_tokens // limits.sequences
    fitting_sequences = memory.tokens // each if each else 0
    if request.max_batch_size and memory.fits and fitting_sequences < request.max_batch_size:
        notes.append(
            f"room for {fitting_sequences} of {request.max_batch_size} sequences at full length; more wait, "
            "or run while they are shorter"
        )
    kv = description.quantization.kv_cache if description.quantization else None
    if find_kind(request.kind).is_compiled and limits.kv_bits == 8 and kv is None:
        notes.append("an FP8 KV cache is part of the checkpoint: quantize the model with one")
    if find_kind(request.kind).built_from == "model":
        notes.append("weights are those of the engine's layout; the PyTorch backend's own is not measured")
    return notes


def estimate_build_needs(
    kind: str, model: int, checkpoint: int, memory: RankMemory, limits: PlanLimits
) -> BuildNeeds:
    """Estimate the needs of a build; docs/reference/memory-plan.md has the source of each formula.

    Args:
        model, checkpoint: bytes of their files; of a kind that takes no checkpoint it counts for nothing.
    """
    checkpoint = checkpoint if find_kind(kind).built_from == "checkpoint" else 0
    if not find_kind(kind).is_compiled:
        return BuildNeeds(model, checkpoint, 0, 0, 0, 0)
    world = limits.tensor_parallel * limits.pipeline_parallel
    return BuildNeeds(
        model=model,
        checkpoint=checkpoint,
        engine=memory.weights * world,
        host_memory=4 * memory.weights,
        gpu_memory=memory.weights + memory.workspace,
        tmpdir=memory.weights,
    )

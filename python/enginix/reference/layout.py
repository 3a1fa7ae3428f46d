"""The tensors of a checkpoint: names, shapes, dtypes, and their cuts over ranks. Needs no torch.

The names and cuts are those of TensorRT-LLM's own converter, checked against its output
(docs/reference/reference-executor.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from enginix.errors import CheckpointError
from enginix.reference.executor_config import ExecutorConfig
from enginix.reference.quantization import REBUILD

BLOCK = 16  # columns that share a scale in NVFP4
SAFETENSORS_DTYPE = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Tables that TensorRT-LLM's converter writes and its loader drops.
IGNORED = frozenset(
    f"{prefix}{name}"
    for prefix in ("", "long_rope_")
    for name in ("embed_positions", "rotary_inv_freq", "embed_positions_for_gpt_attention")
)
# The scale's reciprocal, and ModelOpt's tensors beside the scale that the loader reads.
KV_EXTRAS = tuple(f"attention.{n}_scaling_factor" for n in ("kv_cache_rcp", "k_cache", "v_cache"))


class RankCut(Enum):
    """The division of a tensor among the ranks of one pipeline stage."""

    WHOLE = "on every rank"
    ROWS = "dim 0"
    COLUMNS = "dim 1"
    QKV = "dim 0 of each of q, k, v; key-value heads repeated where there are fewer than ranks"
    HALVES = "dim 0 of each of two halves"
    VOCABULARY = "dim 0 in equal parts, the last one padded with zeros"
    EXPERT_HALVES = "dim 0 by expert rank, then dim 1 of each of two halves"
    EXPERT_COLUMNS = "dim 0 by expert rank, then dim 2"
    RANK = "each rank has its own"
    FIRST = "on rank 0, zeros on the others"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the whole model.

    Attributes:
        name: with the global layer number.
        shape: whole shape, dim 0 of vocabulary tensors unpadded; with ``RankCut.RANK`` the shape on a rank.
        dtype: safetensors code.
        cut: its division over ranks.
        layer: global number of the layer whose pipeline stage has it: the first of embeddings, the last of
            the head.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    cut: RankCut
    layer: int = 0


@dataclass(frozen=True)
class LinearSpec:
    """One linear layer, or one stack of experts, of any number format.

    Attributes:
        name: module name with the global layer number, which ``exclude_modules`` patterns are matched with.
        rows: output features.
        columns: input features.
        cut: of the weight.
        bias: whether it has a bias vector.
        experts: number of experts stacked in dim 0, 0 for an ordinary layer.
    """

    name: str
    rows: int
    columns: int
    cut: RankCut
    layer: int
    bias: bool = False
    experts: int = 0


def layer_name(layer: int, suffix: str = "") -> str:
    """``transformer.layers.3.mlp``."""
    return f"transformer.layers.{layer}{'.' if suffix else ''}{suffix}"


def qkv_rows(config: ExecutorConfig) -> tuple[int, int, int]:
    """Return the rows of q, k and v in the whole fused matrix."""
    kv = config.kv_heads * config.head_size
    return config.heads * config.head_size, kv, kv


def attention_linears(config: ExecutorConfig, layer: int) -> tuple[LinearSpec, LinearSpec]:
    """Return the fused input projection and the output projection (``dense``)."""
    prefix, hidden = layer_name(layer, "attention"), config.hidden_size
    width = config.heads * config.head_size
    dense_bias = config.form.dense_bias or (config.attention_bias and config.family == "llama")
    return (
        LinearSpec(f"{prefix}.qkv", sum(qkv_rows(config)), hidden, RankCut.QKV, layer, config.attention_bias),
        LinearSpec(f"{prefix}.dense", hidden, width, RankCut.COLUMNS, layer, dense_bias),
    )


def mlp_linears(config: ExecutorConfig, layer: int) -> tuple[LinearSpec, ...]:
    """Return the MLP's linears: (fc, gate, proj), or (fused fc, proj), or (router, fc, proj, shared …)."""
    hidden, size, experts = config.hidden_size, config.intermediate_size, config.experts

    def linear(name: str, rows: int, columns: int, cut: RankCut, **more: Any) -> LinearSpec:
        return LinearSpec(layer_name(layer, f"mlp.{name}"), rows, columns, cut, layer, **more)

    if experts is not None:
        width, shared, count = experts.size, experts.shared_size, experts.count
        stack = (
            linear("fc", 2 * width, hidden, RankCut.EXPERT_HALVES, experts=count),
            linear("proj", hidden, width, RankCut.EXPERT_COLUMNS, experts=count),
        )
        if not shared:
            return stack
        fc = linear("shared_expert.fc", 2 * shared, hidden, RankCut.HALVES)
        return (*stack, fc, linear("shared_expert.proj", hidden, shared, RankCut.COLUMNS))
    proj = linear("proj", hidden, size, RankCut.COLUMNS, bias=config.mlp_bias)
    if config.family == "phi3":
        return linear("fc", 2 * size, hidden, RankCut.HALVES), proj
    names = ("fc", "gate") if config.form.gated else ("fc",)
    return (*(linear(n, size, hidden, RankCut.ROWS, bias=config.mlp_bias) for n in names), proj)


def module_in_file(config: ExecutorConfig, name: str, layer: int) -> str:
    """Return a name in its rank files, where layers count from 0 in each pipeline stage."""
    stages = (config.mapping.layers(rank, config.layers) for rank in range(config.mapping.pp))
    first = next(stage.start for stage in stages if layer in stage)
    return name.replace(layer_name(layer) + ".", layer_name(layer - first) + ".", 1)


def find_linear_algorithm(config: ExecutorConfig, linear: LinearSpec) -> str | None:
    """Return the number format of a linear, by TensorRT-LLM's name; ``None`` for unquantized."""
    return config.quantization.of(module_in_file(config, linear.name, linear.layer))


def make_weight_spec(config: ExecutorConfig, linear: LinearSpec) -> TensorSpec:
    """Return the specification of the unquantized matrix."""
    stack = (linear.experts,) if linear.experts else ()
    shape = (*stack, linear.rows, linear.columns)
    dtype = SAFETENSORS_DTYPE[config.dtype]
    return TensorSpec(f"{linear.name}.weight", shape, dtype, linear.cut, linear.layer)


def quantized_tensors(config: ExecutorConfig, linear: LinearSpec) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return a rank's tensors of a quantized linear without its bias: last name → dtype and shape.

    Raises:
        CheckpointError: the format cannot hold a matrix of this shape.
    """
    *stack, out, inp = local_shape(config, make_weight_spec(config, linear))
    module = module_in_file(config, linear.name, linear.layer)
    group = config.quantization.group(module)
    kind = config.quantization.of(module)
    column_group = {"FP8": 1, "NVFP4": BLOCK, "W4A16_AWQ": group, "W4A8_AWQ": group}.get(kind or "", 1)
    if inp % column_group or (kind in ("W4A16_AWQ", "W4A8_AWQ") and out % 2):
        raise CheckpointError(
            f"{out} x {inp} per rank cannot be {kind}: columns come in groups of {column_group}",
            where=linear.name,
            fix=REBUILD,
        )
    prequant = {"prequant_scaling_factor": (SAFETENSORS_DTYPE[config.dtype], (inp,))}
    scalar: tuple[str, tuple[int, ...]] = ("F32", (1,))
    match kind:
        case "FP8":
            return {
                "weight": ("F8_E4M3", (*stack, out, inp)),
                "weights_scaling_factor": ("F32", (*stack, 1)),
                "activation_scaling_factor": scalar,
            }
        case "FP8_PER_CHANNEL_PER_TOKEN":
            return {"weight": ("F8_E4M3", (*stack, out, inp)), "per_channel_scale": ("F32", (*stack, out))}
        case "NVFP4" if config.quantization.own_nvfp4:
            blocks = ("F8_E4M3", (*stack, out, inp // BLOCK))
            stored_tensors = {
                "weight": ("U8", (*stack, out, inp // 2)),
                "weights_block_scaling_factor": blocks,
                "weights_block_scaling_factor_interleaved": blocks,
                "activation_global_scaling_factor": scalar,
                "alpha": ("F32", (*stack,) or (1,)),
            }
            return stored_tensors if stack else stored_tensors | {"weights_global_scaling_factor": scalar}
        case "NVFP4":
            return {
                "weight": ("U8", (*stack, out, inp // 2)),
                "weights_scaling_factor": ("F8_E4M3", (*stack, out, inp // BLOCK)),
                "weights_scaling_factor_2": ("F32", ()),
                "activation_scaling_factor": ("F32", ()),
            }
        case "W4A16_AWQ" | "W4A8_AWQ":
            awq = {
                "weight": ("I8", (*stack, out // 2, inp)),
                "weights_scaling_factor": ("F32", (*stack, out, inp // group)),
            }
            extra = {"weights_scaling_factor_2": scalar, "activation_scaling_factor": scalar}
            return awq | prequant | (extra if kind == "W4A8_AWQ" else {})
        case "W8A8_SQ_PER_CHANNEL":
            return {
                "weight": ("I8", (*stack, out, inp)),
                "weights_scaling_factor": ("F32", (*stack, out)),
                "activation_scaling_factor": scalar,
            } | prequant
    raise CheckpointError(f"number format {kind} is unknown", where=linear.name, fix=REBUILD)


def linear_tensors(config: ExecutorConfig, linear: LinearSpec) -> Iterator[TensorSpec]:
    """Yield the tensors of one linear of any number format."""
    if find_linear_algorithm(config, linear) is None:
        yield make_weight_spec(config, linear)
    else:
        for leaf, (dtype, shape) in quantized_tensors(config, linear).items():
            yield TensorSpec(f"{linear.name}.{leaf}", shape, dtype, RankCut.RANK, linear.layer)
    if linear.bias:
        # A row-parallel layer adds its bias once, after the ranks' sum: every rank has all of it.
        cut = RankCut.WHOLE if linear.cut is RankCut.COLUMNS else linear.cut
        if config.form.bias_of_first_rank and linear.name.endswith("mlp.proj"):
            cut = RankCut.FIRST
        dtype = SAFETENSORS_DTYPE[config.dtype]
        yield TensorSpec(f"{linear.name}.bias", (linear.rows,), dtype, cut, linear.layer)


def list_norms(config: ExecutorConfig) -> tuple[str, ...]:
    """Return the names of a layer's norms."""
    names = ["input_layernorm", config.form.mlp_norm]
    if config.form.output_norms:
        names += ["post_layernorm", "post_feedforward_layernorm"]
    return tuple(dict.fromkeys(names))


def _layer_tensors(config: ExecutorConfig, layer: int) -> Iterator[TensorSpec]:
    dtype, hidden = SAFETENSORS_DTYPE[config.dtype], config.hidden_size

    def whole(suffix: str, *shape: int, dtype: str = dtype) -> TensorSpec:
        return TensorSpec(layer_name(layer, suffix), shape, dtype, RankCut.WHOLE, layer)

    for norm in list_norms(config):
        yield whole(f"{norm}.weight", hidden)
        if config.form.norm_bias:
            yield whole(f"{norm}.bias", hidden)
    if config.family == "qwen3":
        yield whole("attention.q_layernorm.weight", config.head_size)
        yield whole("attention.k_layernorm.weight", config.head_size)
    if config.quantization.kv_cache is not None:
        yield whole("attention.kv_cache_scaling_factor", 1, dtype="F32")
    if config.experts is not None:
        yield whole("mlp.router.weight", config.experts.count, hidden, dtype="F32")
        if config.experts.shared_size:
            yield whole("mlp.shared_expert_gate.weight", 1, hidden)
    for linear in (*attention_linears(config, layer), *mlp_linears(config, layer)):
        yield from linear_tensors(config, linear)


def iterate_tensor_specs(config: ExecutorConfig) -> Iterator[TensorSpec]:
    """Yield every tensor of the whole model."""
    dtype, vocab, hidden = SAFETENSORS_DTYPE[config.dtype], config.vocab_size, config.hidden_size
    embedding = {None: RankCut.WHOLE, 0: RankCut.VOCABULARY, 1: RankCut.COLUMNS}[config.embedding_shard_dim]
    yield TensorSpec("transformer.vocab_embedding.weight", (vocab, hidden), dtype, embedding)
    if config.form.positions == "learned":
        yield TensorSpec(
            "transformer.position_embedding.weight",
            (config.max_position_embeddings, hidden),
            dtype,
            embedding,
        )
    if config.form.embedding_norm:
        for leaf in ("weight", "bias"):
            name = f"transformer.ln_embed.{leaf}"
            yield TensorSpec(name, (hidden,), dtype, RankCut.WHOLE)
    for layer in range(config.layers):
        yield from _layer_tensors(config, layer)
    yield TensorSpec("transformer.ln_f.weight", (hidden,), dtype, RankCut.WHOLE, config.layers - 1)
    if config.form.norm_bias:
        yield TensorSpec("transformer.ln_f.bias", (hidden,), dtype, RankCut.WHOLE, config.layers - 1)
    head = RankCut.VOCABULARY if config.mapping.tp > 1 else RankCut.WHOLE
    yield TensorSpec("lm_head.weight", (vocab, hidden), dtype, head, config.layers - 1)
    if config.form.head_bias:
        yield TensorSpec("lm_head.bias", (vocab,), dtype, head, config.layers - 1)


def local_shape(config: ExecutorConfig, spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape of ``spec`` on each rank that holds it.

    Raises:
        CheckpointError: the sizes do not divide among the ranks.
    """
    mapping, shape = config.mapping, spec.shape

    def part(size: int, ranks: int) -> int:
        if size % ranks:
            raise CheckpointError(
                f"{ranks} ranks do not divide {size} of {list(shape)}", where=spec.name, fix=REBUILD
            )
        return size // ranks

    match spec.cut:
        case RankCut.WHOLE | RankCut.RANK | RankCut.FIRST:
            return shape
        case RankCut.ROWS | RankCut.HALVES:
            return (part(shape[0], mapping.tp), *shape[1:])
        case RankCut.COLUMNS:
            return (shape[0], part(shape[1], mapping.tp))
        case RankCut.QKV:
            heads = part(config.heads, mapping.tp) + 2 * max(1, config.kv_heads // mapping.tp)
            return (heads * config.head_size, *shape[1:])
        case RankCut.VOCABULARY:
            return (-(-shape[0] // mapping.tp), *shape[1:])
        case RankCut.EXPERT_HALVES:
            return (part(shape[0], mapping.ep), 2 * part(shape[1] // 2, mapping.moe_tp), *shape[2:])
        case RankCut.EXPERT_COLUMNS:
            return (part(shape[0], mapping.ep), shape[1], part(shape[2], mapping.moe_tp))


def pipeline_rank(config: ExecutorConfig, spec: TensorSpec) -> int:
    """Return the pipeline stage that holds ``spec``."""
    stages = (config.mapping.layers(rank, config.layers) for rank in range(config.mapping.pp))
    return next(rank for rank, stage in enumerate(stages) if spec.layer in stage)


def name_in_file(config: ExecutorConfig, spec: TensorSpec) -> str:
    """Return the tensor's name in its rank files, where layers count from 0 in each pipeline stage."""
    return module_in_file(config, spec.name, spec.layer)


def open_rank(stack: ExitStack, checkpoint: Path, rank: int, framework: str) -> Any:
    """Open ``rank{rank}.safetensors``.

    Raises:
        CheckpointError: missing, truncated or not a safetensors file.
    """
    path = checkpoint / f"rank{rank}.safetensors"
    if not path.is_file():
        raise CheckpointError(f"no rank{rank}.safetensors", where=str(checkpoint), fix=REBUILD)
    try:
        return stack.enter_context(safe_open(path, framework))
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"not a whole safetensors file: {e}", where=str(path), fix=REBUILD) from e


def check_rank_files(checkpoint: Path, config: ExecutorConfig) -> int:
    """Compare the headers of every rank file with the tensors that ``config`` requires; no weight is read.

    Returns:
        The number of tensors found.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape or dtype than expected (all named).
    """
    count = 0
    specs = list(iterate_tensor_specs(config))
    shapes = {spec.name: local_shape(config, spec) for spec in specs}
    with ExitStack() as stack:
        for rank in range(config.world_size):
            rank_file = open_rank(stack, checkpoint, rank, "numpy")
            where = str(checkpoint / f"rank{rank}.safetensors")
            names = set(rank_file.keys())
            for spec in specs:
                if pipeline_rank(config, spec) != rank // config.mapping.tp:
                    continue
                name, shape = name_in_file(config, spec), shapes[spec.name]
                expected = f"{spec.dtype} {list(shape)}"
                if name not in names:
                    raise CheckpointError(f"{name} is missing, expected {expected}", where=where, fix=REBUILD)
                view = rank_file.get_slice(name)
                actual = f"{view.get_dtype()} {list(view.get_shape())}"
                if actual != expected:
                    raise CheckpointError(
                        f"{name} is {actual}, expected {expected}", where=where, fix=REBUILD
                    )
                names.remove(name)
                count += 1
            unknown = sorted(names - IGNORED)
            if config.quantization.kv_cache is not None:
                unknown = [name for name in unknown if not name.endswith(KV_EXTRAS)]
            if unknown:
                raise CheckpointError(
                    f"{unknown[0]} is not a tensor of {config.architecture} as config.json describes it"
                    + (f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""),
                    where=where,
                    fix=REBUILD,
                )
    return count

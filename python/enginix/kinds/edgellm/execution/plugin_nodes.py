"""What the plugin nodes of an export compute, in NumPy: one definition a node, with its source.

A definition computes in float32 and returns its result in the type of its input. A node that asks for
something that its definition does not have is an error. The definitions say what a node means;
Edge-LLM's kernels, which no CPU executes, are not seen.

``rounded`` off replaces each quantizer by a smooth one (:func:`find_gain`): a value next to a boundary
between two codes would else make two equal models differ by a code, and depth amplifies that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from enginix.errors import GateError
from enginix.kinds.edgellm import int4_layouts
from enginix.kinds.edgellm.graph import PLUGIN_DOMAIN

Array = npt.NDArray[Any]
Attributes = Mapping[str, Any]
Compute = Callable[[Attributes, tuple[Array, ...], bool], tuple[Array, ...]]
FP4_BLOCK = 16
FLOAT8, FLOAT4 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float4_e2m1fn)
FLOAT8_MOST, FLOAT4_MOST = 448.0, 6.0
GAIN_EXPONENT = 0.125


@dataclass(frozen=True)
class PluginNode:
    """The definition of a node.

    Attributes:
        compute: (attributes, inputs, rounded) → outputs.
        source: where its meaning was read.
        required: attributes that must be there.
        allowed: further attributes → the only value that the definition has.
    """

    compute: Compute
    source: str
    required: frozenset[str] = frozenset()
    allowed: Mapping[str, Any] = field(default_factory=dict)

    def check_attributes(self, name: str, attributes: Attributes) -> None:
        """Refuse attributes that are missing or that the definition does not have.

        Raises:
            GateError: one of them, by name.
        """
        for key in sorted(self.required - set(attributes)):
            raise GateError(f"node {name} lacks the attribute {key}")
        for key, value in attributes.items():
            if key not in self.required and (key not in self.allowed or self.allowed[key] != value):
                raise GateError(f"node {name} has {key} = {value!r}, which its definition does not have")


def find_gain(scale: Array | np.float32) -> Array:
    """Return the factor of a smooth quantizer, which takes its scale's place in what it computes.

    A quantizer that does not round is x / scale, and its scale would cancel out. With this factor a scale of
    twice the size changes the result by 9 %, and one of 0 leaves nothing.
    """
    return np.asarray(np.abs(np.asarray(scale, np.float32)) ** np.float32(GAIN_EXPONENT))


def quantize_fp8(values: Array) -> Array:
    """Return the nearest FP8 E4M3 numbers; values beyond 448 saturate."""
    return np.clip(values, -FLOAT8_MOST, FLOAT8_MOST).astype(FLOAT8)


def normalize_heads(x: Array, weight: Array, epsilon: float) -> Array:
    """Return RMSNorm of each head of x [tokens, heads, size]."""
    mean = np.square(x).mean(-1, keepdims=True)
    scaled: Array = x / np.sqrt(mean + np.float32(epsilon)) * weight.astype(np.float32)
    return scaled


def rotate_halves(x: Array, table: Array) -> Array:
    """Rotate the first elements of each head by a table [tokens, rotated]: cosines, then sines."""
    half = table.shape[1] // 2
    cos, sin = table[:, None, :half], table[:, None, half:]
    first, second = x[..., :half], x[..., half : 2 * half]
    return np.concatenate(
        [first * cos - second * sin, second * cos + first * sin, x[..., 2 * half :]], axis=-1
    )


def attend(query: Array, key: Array, value: Array, past: int, scale: float, window: int) -> Array:
    """Return causal attention of query [n, heads, size] over key and value [past + n, kv heads, size].

    Args:
        past: positions before the first query.
        window: positions that a query sees, itself included; all if it is below 1.
    """
    n, heads, size = query.shape
    kv_heads = key.shape[1]
    grouped = query.reshape(n, kv_heads, heads // kv_heads, size)
    scores = np.einsum("qgrd,kgd->grqk", grouped, key, optimize=True) * np.float32(scale)
    rows, columns = np.arange(past, past + n)[:, None], np.arange(key.shape[0])[None, :]
    hidden = columns > rows
    if window > 0:
        hidden |= rows - columns >= window
    scores = np.where(hidden, np.float32(-np.inf), scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed: Array = np.einsum("grqk,kgd->qgrd", weights, value, optimize=True)
    return mixed.reshape(n, heads, size)


def _compute_attention(attributes: Attributes, inputs: tuple[Array, ...], rounded: bool) -> tuple[Array, ...]:
    heads, kv_heads, size = (attributes[key] for key in ("num_q_heads", "num_kv_heads", "head_size"))
    has_norms = bool(attributes["enable_qk_norm"])
    if len(inputs) != 10 + 2 * has_norms:
        raise GateError(f"AttentionPlugin has {len(inputs)} inputs, {10 + 2 * has_norms} expected")
    qkv, past_key_values, query_lengths, rope, past_lengths, pages = inputs[:6]
    starts, sequence_lengths = inputs[-4], inputs[-3]
    if qkv.shape[1] != (heads + 2 * kv_heads) * size or past_key_values.shape[3:] != (kv_heads, size):
        raise GateError(
            f"AttentionPlugin of {heads} and {kv_heads} heads of {size} reads rows of {qkv.shape[1]} and a "
            f"cache of {list(past_key_values.shape)}"
        )
    x = qkv.astype(np.float32).reshape(-1, heads + 2 * kv_heads, size)
    query, key, value = np.split(x, [heads, heads + kv_heads], axis=1)
    if has_norms:
        if inputs[6].shape != (size,) or inputs[7].shape != (size,):
            raise GateError("AttentionPlugin's norm weights are not of a head's size")
        query = normalize_heads(query, inputs[6], attributes["rms_norm_eps"])
        key = normalize_heads(key, inputs[7], attributes["rms_norm_eps"])
    query, key = rotate_halves(query, rope), rotate_halves(key, rope)
    is_fp8 = bool(attributes["enable_fp8_kv_cache"])
    query_scale, key_scale, value_scale = (np.float32(s) for s in attributes["qkv_scales"])
    if query_scale != 1 or (not is_fp8 and (key_scale != 1 or value_scale != 1)):
        raise GateError(f"AttentionPlugin has qkv_scales {attributes['qkv_scales']}: its cache is not FP8")
    present = past_key_values.copy()
    pool = present.reshape(-1, *present.shape[2:])  # pages of keys, then pages of values
    page_tokens = pool.shape[1]
    out = np.zeros((x.shape[0], heads, size), np.float32)
    for sequence, length in enumerate(query_lengths.tolist()):
        past, total = int(past_lengths[sequence]), int(sequence_lengths[sequence])
        begin = int(starts[sequence])
        tokens = slice(begin, begin + length)
        if past + length != total or begin + length > x.shape[0]:
            raise GateError("AttentionPlugin's sequence lengths do not add up")
        positions = np.arange(total)
        caches = []
        for kind, (new, scale) in enumerate(((key, key_scale), (value, value_scale))):
            page, slot = pages[sequence, kind][positions // page_tokens], positions % page_tokens
            stored = new[tokens] / scale
            if is_fp8:
                stored = quantize_fp8(stored) if rounded else stored * find_gain(scale)
            pool[page[past:], slot[past:]] = stored.astype(pool.dtype)
            caches.append(pool[page, slot].astype(np.float32) * scale)
        keys, values = caches
        out[tokens] = attend(
            query[tokens],
            keys,
            values,
            past,
            attributes["attention_scale"],
            attributes["sliding_window_size"],
        )
    return out.astype(qkv.dtype), present


def _quantize_fp4(attributes: Attributes, inputs: tuple[Array, ...], rounded: bool) -> tuple[Array, ...]:
    x, global_scale = inputs
    wide = np.float32(global_scale)
    blocks = x.astype(np.float32).reshape(*x.shape[:-1], -1, FP4_BLOCK)
    largest = np.abs(blocks).max(-1) / np.float32(FLOAT4_MOST)
    scale = np.divide(largest, wide, out=np.zeros_like(largest), where=wide > 0)
    if rounded:
        scale = quantize_fp8(scale)
    divisor = scale.astype(np.float32)[..., None] * wide
    codes = np.divide(blocks, divisor, out=np.zeros_like(blocks), where=divisor > 0)
    if not rounded:
        return (codes * find_gain(wide)).reshape(x.shape), scale
    return np.clip(codes, -FLOAT4_MOST, FLOAT4_MOST).astype(FLOAT4).reshape(x.shape), scale


def _dequantize_blocks(attributes: Attributes, inputs: tuple[Array, ...], rounded: bool) -> tuple[Array, ...]:
    codes, scale = inputs
    size = attributes.get("block_size", 0)
    factor = scale.astype(np.float32)
    if size:
        if scale.shape != (*codes.shape[:-1], codes.shape[-1] // size):
            raise GateError(f"scales {list(scale.shape)} of blocks of {size} in {list(codes.shape)}")
        factor = np.repeat(factor, size, axis=-1)
    elif factor.size != 1:
        raise GateError(f"one scale expected, {list(scale.shape)} given")
    return ((codes.astype(np.float32) * factor).astype(scale.dtype),)


def _make_int4_product(restore: Callable[[Array, int, int], int4_layouts.Codes | None]) -> Compute:
    def compute(attributes: Attributes, inputs: tuple[Array, ...], rounded: bool) -> tuple[Array, ...]:
        x, weight, scale = inputs
        n, k, group = (attributes[key] for key in ("gemm_n", "gemm_k", "group_size"))
        codes = restore(weight, n, k)
        if codes is None or scale.shape != (k // group, n) or x.shape[-1] != k:
            raise GateError(f"an INT4 product of {n} x {k} reads {list(weight.shape)}, {list(scale.shape)}")
        matrix = codes.astype(np.float32) - int4_layouts.BIAS
        matrix *= np.repeat(scale.astype(np.float32), group, axis=0).T
        return ((x.astype(np.float32) @ matrix.T).astype(x.dtype),)

    return compute


_GEMM = frozenset({"gemm_n", "gemm_k", "group_size"})
_SCHEMAS = "wheel: tensorrt_edgellm/onnx/onnx_custom_schemas.py"
PLUGIN_NODES: Mapping[tuple[str, str], PluginNode] = {
    (PLUGIN_DOMAIN, "AttentionPlugin"): PluginNode(
        _compute_attention,
        f"{_SCHEMAS} (inputs, attributes); models/ops.py, attention_plugin (packed QKV, norm before "
        "rotation, pages of keys, then of values); halves are rotated as in Hugging Face models",
        frozenset({"num_q_heads", "num_kv_heads", "head_size", "sliding_window_size", "qkv_scales",
                   "attention_scale", "rms_norm_eps", "enable_qk_norm", "enable_fp8_kv_cache"}),
        {"enable_tree_attention": 0, "enable_context_mask_selector": 0, "enable_vision_block_attention": 0,
         "skip_softmax_scale_factor": 0.0, "qk_norm_post_rope": 0, "enable_kv_shared": 0,
         "enable_attention_sink": 0, "enable_contiguous_query_swa": 0, "plugin_version": b"1", "_outputs": 2},
    ),
    (PLUGIN_DOMAIN, "QkvConcatPlugin"): PluginNode(
        lambda attributes, inputs, rounded: (np.concatenate(inputs, axis=-1),),
        f"{_SCHEMAS}: queries, keys and values, joined on the last axis",
    ),
    (PLUGIN_DOMAIN, "Int4GroupwiseGemmPlugin"): PluginNode(
        _make_int4_product(int4_layouts.restore_interleaved_order),
        "wheel: checkpoint/repacking.py, _pack_intweights: x times (code - 8) * scale of its group",
        _GEMM,
    ),
    (PLUGIN_DOMAIN, "Int4GroupwiseGemmPluginV2"): PluginNode(
        _make_int4_product(int4_layouts.restore_fragment_order),
        "wheel: checkpoint/repacking.py, repack_to_cutedsl_fragment: x times (code - 8) * scale of its group",
        _GEMM,
    ),
    ("trt", "TRT_FP4DynamicQuantize"): PluginNode(
        _quantize_fp4,
        f"{_SCHEMAS}; TensorRT, DynamicQuantize: a block's scale is its largest value / 6 / the global "
        "scale, in E4M3",
        allowed={"axis": -1, "block_size": FP4_BLOCK, "scale_type": 17, "_outputs": 2},
    ),
    ("trt", "DequantizeLinear"): PluginNode(
        _dequantize_blocks,
        f"{_SCHEMAS}: ONNX's DequantizeLinear with a scale a block of the last axis",
        allowed={"axis": -1, "block_size": FP4_BLOCK},
    ),
}  # fmt: skip

"""Check a model's tensors against its configuration, by headers, and their values against float16.

The exporter takes a tensor that is missing from uninitialized memory, and uses one that transformers does not
read (a bias beside ``attention_bias: false``, a norm of queries in a Llama), both with status 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from enginix.errors import ModelError
from enginix.kinds.edgellm.values import BLOCK_BYTES, FLOAT_DTYPES, Expected
from enginix.model import ModelConfig, ModelWeights, TensorInfo
from enginix.model.mapped_tensors import map_tensor
from enginix.tables import load_table

# Buffers that old exporters stored; every model computes them again.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)
SCALE_SUFFIXES = (
    "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale", "q_scale", "k_scale", "v_scale",
)  # fmt: skip
SCALE_ERROR = 0.01  # relative change of a scale through float16; that holds a normal number to 0.0005
# Type of quantized weights → the scales without which they are no numbers; NVFP4's are told by its second.
_CODE_SCALES: Mapping[str, tuple[str, ...]] = {
    "F8_E4M3": ("weight_scale", "input_scale"),
    "I8": ("weight_scale", "input_scale"),
    "U8": ("weight_scale",),
}
TABLE, HEAD, LAST_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_LAYER = re.compile(r"^model\.layers\.(\d+)\.")
_FIX = "fetch or quantize the model again"
# dtype → type of its bits, the smallest bits without sign that float16 cannot hold, and those of infinity.
# 65520 is the first value that rounds to float16's infinity.
_BITS: dict[str, tuple[Any, int, int]] = {
    "F32": (np.uint32, int(np.float32(65520).view(np.uint32)), 0x7F800000),
    "F16": (np.uint16, 0x7C00, 0x7C00),
    "BF16": (np.uint16, 0x4780, 0x7F80),
    "F8_E4M3": (np.uint8, 0x7F, 0x7F),
}


def list_model_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the tensors that the architecture has, by name with their shapes unquantized."""
    row = load_table("edgellm")["architectures"][config.architecture]
    hidden, head = config.hidden_size, config.head_dim
    queries, keys = config.num_heads * head, config.num_kv_heads * head
    inner = config.intermediate_size
    matrices = {
        "self_attn.q_proj": (queries, hidden), "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    layer: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in matrices.items()}
    for name, shape in matrices.items():
        part = "mlp" if name.startswith("mlp") else "o" if name.endswith("o_proj") else "qkv"
        rule = row["biases"][part]
        if rule is True or (isinstance(rule, str) and bool(config.raw.get(rule))):
            layer[f"{name}.bias"] = shape[:1]
    layer |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    if row["qkNorm"]:
        layer |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
    tensors = {
        f"model.layers.{index}.{name}": shape
        for index in range(config.num_layers)
        for name, shape in layer.items()
    }
    tensors |= {TABLE: (config.vocab_size, hidden), LAST_NORM: (hidden,)}
    if not config.tie_word_embeddings:
        tensors[HEAD] = (config.vocab_size, hidden)
    return tensors


def require_model_tensors(weights: ModelWeights, config: ModelConfig, *, quantized: bool) -> None:
    """Refuse tensors that are missing, of another shape, or unknown to the architecture.

    Raises:
        ModelError: names the first such tensor.
    """
    where = str(weights.directory)
    expected = list_model_tensors(config)
    layers = {int(m[1]) for m in map(_LAYER.match, weights.tensors) if m}
    if layers != set(range(config.num_layers)):
        numbers = sorted(layers ^ set(range(config.num_layers)))
        raise ModelError(
            f"config.json says {config.num_layers} layers, the weights have {len(layers)}: layer "
            f"{numbers[0]} is in {'the weights' if numbers[0] in layers else 'config.json'} alone",
            where=where,
            fix=_FIX,
        )
    for name, shape in expected.items():
        tensor = weights.tensors.get(name)
        if tensor is None:
            what = f"tensor {name} is missing"
            if _LAYER.match(name):
                what += "; the exporter would take its values from uninitialized memory, and report success"
            raise ModelError(what, where=where, fix=_explain_missing(name))
        if tensor.dtype not in (FLOAT_DTYPES if not quantized else (*FLOAT_DTYPES, *_CODE_SCALES)):
            stored = ", ".join(FLOAT_DTYPES)
            raise ModelError(
                f"tensor {name} is {tensor.dtype}, and a model that config.json describes so has {stored}",
                where=tensor.path,
                fix="fetch the model again, with hf_quant_config.json if it is quantized",
            )
        # Packed weights have other shapes, which the exporter's own loader checks.
        if tensor.dtype in FLOAT_DTYPES and tensor.shape != shape:
            raise ModelError(
                f"tensor {name} is {list(tensor.shape)}, and config.json makes it {list(shape)}",
                where=tensor.path,
                fix="correct config.json (head_dim, number of heads, sizes), or fetch the model again",
            )
    strange = [name for name in sorted(weights.tensors) if not _is_known(name, expected, config, quantized)]
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise ModelError(
            f"tensor {strange[0]}{more}: {config.architecture} as config.json describes it has none such; "
            "transformers would ignore it, and the exporter might not",
            where=where,
            fix="correct config.json if the model uses it (attention_bias, mlp_bias, architectures), or "
            "remove the tensor",
        )
    _compare_tied_head(weights, config)
    _require_scales(weights, expected)


def _require_scales(weights: ModelWeights, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse quantized weights without a scale, scales of a whole matrix that are 0, and negative divisors.

    A matrix of zeros, as expanded and pruned models have them, may have a scale of 0.
    """
    for name in expected:
        tensor, module = weights.tensors[name], name.removesuffix(".weight")
        needed: tuple[str, ...] = _CODE_SCALES.get(tensor.dtype, ())
        if tensor.dtype == "U8" and f"{module}.weight_scale_2" in weights.tensors:
            needed = ("weight_scale", "weight_scale_2", "input_scale")
        for leaf in needed:
            if f"{module}.{leaf}" not in weights.tensors:
                raise ModelError(
                    f"tensor {module}.{leaf} is missing: {name} is quantized",
                    where=weights.directory,
                    fix="quantize the model again",
                )
    for name, tensor in weights.tensors.items():
        if name.endswith(SCALE_SUFFIXES) and tensor.dtype in FLOAT_DTYPES:
            _require_usable_scale(tensor, weights.tensors.get(f"{name.rpartition('.')[0]}.weight"))


def _require_usable_scale(tensor: TensorInfo, codes: TensorInfo | None) -> None:
    values = map_tensor(tensor).reshape(-1).astype(np.float32)
    is_single, is_divisor = values.size == 1, tensor.name.endswith(".input_scale")
    is_zero = is_single and values[0] == 0
    if is_zero and not is_divisor and codes is not None:  # a matrix of zeros, of either sign, may have it
        is_zero = any((bits & 0x7F).any() for bits in _iterate_bits(codes, np.uint8))
    if is_zero or (is_divisor and (values < 0).any()):
        raise ModelError(
            f"the scale is {values.min():g}, which is no scale",
            where=f"{tensor.path}: {tensor.name}",
            fix="quantize the model again, with calibration texts that reach every layer"
            if is_divisor
            else "ModelOpt writes this for a matrix of zeros, with codes that are no numbers: quantize the "
            "model without that matrix",
        )
    # Numbers that float16 makes 0, or changes by more than SCALE_ERROR, in the formats that have them in it.
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float16).astype(np.float32)
    if is_single and is_divisor and abs(narrow[0] / values[0] - 1) > SCALE_ERROR:
        raise ModelError(
            f"the scale {values[0]:g} becomes {narrow[0]:g} in float16, which TensorRT Edge-LLM computes in",
            where=f"{tensor.path}: {tensor.name}",
            fix='quantize the model again with other calibration texts, or serve it by kind "tensorrt"',
        )


def _explain_missing(name: str) -> str:
    if name.endswith(".bias"):
        return "correct config.json (attention_bias, mlp_bias) if the model has no biases, or fetch it again"
    if name == HEAD:
        return f'{_FIX}; if the output layer is the embedding, write "tie_word_embeddings": true'
    return _FIX


def _is_known(
    name: str, expected: Mapping[str, tuple[int, ...]], config: ModelConfig, quantized: bool
) -> bool:
    if name in expected or name.endswith(IGNORED_SUFFIXES) or (name == HEAD and config.tie_word_embeddings):
        return True
    module, _, leaf = name.rpartition(".")
    return quantized and leaf in SCALE_SUFFIXES and f"{module}.weight" in {*expected, HEAD}


def _compare_tied_head(weights: ModelWeights, config: ModelConfig) -> None:
    """Refuse a stored output layer that is not the embedding it is tied to."""
    head, table = weights.tensors.get(HEAD), weights.tensors[TABLE]
    if not config.tie_word_embeddings or head is None or head.dtype not in FLOAT_DTYPES:
        return
    if not Expected(head, "FLOAT").equals(Expected(table, "FLOAT")):
        raise ModelError(
            "lm_head.weight is not the embedding, and config.json ties them (tie_word_embeddings)",
            where=head.path,
            fix='write "tie_word_embeddings": false if the model has an output layer of its own, or remove '
            "the tensor",
        )


def _iterate_bits(tensor: TensorInfo, kind: Any) -> Iterator[npt.NDArray[Any]]:
    data = map_tensor(tensor).reshape(-1)
    step = BLOCK_BYTES // data.itemsize
    return (data[begin : begin + step].view(kind) for begin in range(0, data.size, step))


def require_float16_values(weights: ModelWeights) -> None:
    """Refuse values that are no numbers, and those that become infinite in float16.

    Raises:
        ModelError: names the tensor and counts the values.
    """
    for tensor in sorted(weights.tensors.values(), key=lambda t: (str(t.path), t.begin)):
        if tensor.dtype not in _BITS or not tensor.nbytes or tensor.name.endswith(IGNORED_SUFFIXES):
            continue
        kind, first, infinity = _BITS[tensor.dtype]
        magnitude = kind(np.iinfo(kind).max >> 1)
        beyond = broken = 0
        for bits in _iterate_bits(tensor, kind):
            values = bits & magnitude
            if values.max() >= first:
                beyond += int((values >= first).sum())
                broken += int((values >= infinity).sum())
        if broken:
            raise ModelError(
                f"{broken} value{'s are' if broken > 1 else ' is'} NaN or infinite",
                where=f"{tensor.path}: {tensor.name}",
                fix="fetch the model again; if it is so in the repository, report it to the model's author",
            )
        if beyond:
            raise ModelError(
                f"{beyond} value{'s are' if beyond > 1 else ' is'} beyond float16's 65504, which TensorRT "
                "Edge-LLM computes in",
                where=f"{tensor.path}: {tensor.name}",
                fix='serve this model by a kind that computes in bfloat16: "tensorrt" or "llmapi"',
            )

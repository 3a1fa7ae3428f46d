"""Count parameters from safetensors headers; packed formats are unpacked, scales are not counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from enginix.model import TensorInfo

# Last part of the names of tensors that describe other numbers and are not parameters. Names are those of
# ModelOpt's unified export, AutoGPTQ and AutoAWQ (scales, qzeros, g_idx), compressed-tensors (weight_shape,
# weight_zero_point, *_global_scale), transformers' fp8 (weight_scale_inv) and mxfp4 (*_scales).
AUXILIARY = frozenset({
    "weight_scale", "weight_scale_2", "weight_scale_inv", "weight_global_scale", "input_scale",
    "input_global_scale", "output_scale", "k_scale", "v_scale", "q_scale", "pre_quant_scale", "scales",
    "qzeros", "g_idx", "weight_shape", "weight_zero_point", "input_zero_point", "inv_freq", "masked_bias",
    "gate_up_proj_scales", "down_proj_scales",
})  # fmt: skip
PACKED_WORDS = frozenset({"qweight", "weight_packed"})
PACKED_BLOCKS = frozenset({"gate_up_proj_blocks", "down_proj_blocks"})


@dataclass(frozen=True)
class ParameterCount:
    """The sums over all headers.

    Attributes:
        parameters: numbers that the model computes with; a packed 4-bit weight counts as it computes.
        weight_bytes: of all tensors.
        auxiliary: elements of scales, zero points and the like.
        bytes_by_dtype: safetensors dtype code → bytes.
        tensors: number of tensors.
    """

    parameters: int
    weight_bytes: int
    auxiliary: int
    bytes_by_dtype: Mapping[str, int]
    tensors: int


def _read_packed_bits(config: Mapping[str, Any]) -> int:
    """Return the bits of a packed weight by ``quantization_config``; 4 if it has no number."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict):
        return 4
    bits: Any = quantization.get("bits")
    groups = quantization.get("config_groups")
    if bits is None and isinstance(groups, dict):
        schemes = [g.get("weights") for g in groups.values() if isinstance(g, dict)]
        bits = next((s.get("num_bits") for s in schemes if isinstance(s, dict)), None)
    return bits if bits in (2, 3, 4, 8) else 4


def count_logical_elements(tensor: TensorInfo, names: Mapping[str, TensorInfo], bits: int = 4) -> int:
    """Return the number of parameters in one tensor; 0 for auxiliary ones."""
    module, _, leaf = tensor.name.rpartition(".")
    if leaf in AUXILIARY:
        return 0
    elements = prod(tensor.shape)
    if leaf in PACKED_WORDS or leaf in PACKED_BLOCKS:
        return elements * tensor.itemsize * 8 // bits
    # ModelOpt packs two 4-bit numbers in a byte, beside their scales (NVFP4, INT4 AWQ).
    if leaf == "weight" and tensor.dtype == "U8" and f"{module}.weight_scale" in names:
        return elements * 2
    return elements


def count_parameters(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> ParameterCount:
    """Count all tensors of a model; ``config`` is its parsed ``config.json``."""
    bits, by_dtype = _read_packed_bits(config), dict[str, int]()
    parameters = auxiliary = 0
    for tensor in tensors.values():
        by_dtype[tensor.dtype] = by_dtype.get(tensor.dtype, 0) + tensor.nbytes
        logical = count_logical_elements(tensor, tensors, bits)
        parameters += logical
        auxiliary += 0 if logical else prod(tensor.shape)
    return ParameterCount(
        parameters, sum(by_dtype.values()), auxiliary, dict(sorted(by_dtype.items())), len(tensors)
    )

"""Number formats of quantized matrices: dequantize stored codes, and round activations.

Weights become the numbers that the codes stand for. Activations become the rounded numbers that the kernels
multiply ("fake quantization"). All computation is in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from enginix.reference.layout import BLOCK

FP8_MOST = 448.0  # float8_e4m3fn
FP4_MOST = 6.0  # float4_e2m1
# By nibble; the fourth bit is the sign.
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
# Smallest scale of a row or token in per-channel-per-token FP8 (TensorRT-LLM's quantize-on-load).
LEAST_ROW_SCALE = 1 / (FP8_MOST * 512)

Tensors = Mapping[str, torch.Tensor]


def round_fp8(x: torch.Tensor) -> torch.Tensor:
    """Round to the nearest float8_e4m3fn number, saturating at ±448; float32."""
    return x.clamp(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn).float()


def round_fp4(x: torch.Tensor) -> torch.Tensor:
    """Round to the nearest float4_e2m1 number, ties to even, saturating at ±6; float32."""
    magnitude = x.abs().clamp(max=FP4_MOST)
    # Steps are 0.5 below 2, 1 below 4, 2 above; torch rounds halves to even, which is the even code, too.
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    return torch.copysign((magnitude / step).round() * step, x)


def fake_quantize_fp8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Round x to FP8 with a given scale."""
    return round_fp8(x.float() / scale) * scale


def fake_quantize_fp8_per_token(x: torch.Tensor, ranks: int) -> torch.Tensor:
    """Round x [N, columns] to FP8, each token scaled by its own largest magnitude.

    Args:
        ranks: a row-parallel matrix sees its columns cut over this many ranks, each scaling its own.
    """
    cut = x.float().reshape(x.shape[0], ranks, -1)
    scale = find_token_scales(cut)
    return (round_fp8(cut / scale) * scale).view(x.shape)


def find_token_scales(x: torch.Tensor) -> torch.Tensor:
    """Return float32 [..., 1], the scale of each last dimension of x by its largest magnitude."""
    return (x.abs().amax(-1, keepdim=True).float() / FP8_MOST).clamp(min=LEAST_ROW_SCALE)


def fake_quantize_nvfp4(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Round x [N, columns] to NVFP4: each 16 columns have an FP8 scale, in units of the global ``scale``."""
    blocks = x.float().reshape(x.shape[0], -1, BLOCK)
    block_scale = (blocks.abs().amax(-1, keepdim=True) / (FP4_MOST * scale)).clamp(2.0**-9, FP8_MOST)
    block_scale = round_fp8(block_scale) * scale
    return (round_fp4(blocks / block_scale) * block_scale).view(x.shape)


def fake_quantize_int8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Round x to int8 with a given scale."""
    return (x.float() / scale).round().clamp(-128, 127) * scale


def _fp4_values(packed: torch.Tensor) -> torch.Tensor:
    """Unpack uint8 [..., n] to float32 [..., 2n], the low nibble first."""
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2)
    return FP4[codes.long()]


def _int4_rows(packed: torch.Tensor) -> torch.Tensor:
    """Unpack int8 [rows / 2, columns] to float32 [rows, columns], even rows in the low nibble."""
    low = packed.bitwise_left_shift(4).bitwise_right_shift(4)  # arithmetic: the sign is kept
    return torch.stack([low, packed.bitwise_right_shift(4)], 1).flatten(0, 1).float()


def _per_expert(scale: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return scale.float().reshape(-1, 1, 1) if like.dim() == 3 else scale.float().reshape(1, 1)


def dequantize_weight(algorithm: str, tensors: Tensors) -> torch.Tensor:
    """Dequantize a rank's codes to float32 [experts,] rows, columns, without the pre-quant scale."""
    codes = tensors["weight"]
    match algorithm:
        case "FP8":
            return codes.float() * _per_expert(tensors["weights_scaling_factor"], codes)
        case "FP8_PER_CHANNEL_PER_TOKEN":
            return codes.float() * tensors["per_channel_scale"][..., None]
        case "W8A8_SQ_PER_CHANNEL":
            return codes.float() * tensors["weights_scaling_factor"][..., None]
        case "NVFP4":
            return _dequantize_nvfp4_weight(tensors)
    groups = tensors["weights_scaling_factor"]
    values = _int4_rows(codes)
    scaled = values * groups.repeat_interleave(values.shape[1] // groups.shape[1], 1)
    if algorithm == "W4A8_AWQ":
        # ModelOpt's definition: the int4 numbers are rounded to FP8 once more, with a scale of their own.
        return fake_quantize_fp8(scaled, tensors["weights_scaling_factor_2"])
    return scaled


def _dequantize_nvfp4_weight(tensors: Tensors) -> torch.Tensor:
    codes = tensors["weight"]
    if "weights_scaling_factor_2" in tensors:
        blocks, scale = tensors["weights_scaling_factor"], tensors["weights_scaling_factor_2"]
    else:
        blocks = tensors["weights_block_scaling_factor"]
        if "weights_global_scaling_factor" in tensors:
            scale = tensors["weights_global_scaling_factor"]
        else:  # experts: alpha is the weight's scale times the activation's
            scale = tensors["alpha"] / tensors["activation_global_scaling_factor"]
    block_scale = blocks.float() * _per_expert(scale, codes)
    return _fp4_values(codes) * block_scale.repeat_interleave(BLOCK, -1)

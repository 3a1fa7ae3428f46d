"""Linear layers by number format: the only place where quantized formats enter the executor.

Quantized matrices are held as the numbers that their codes stand for, in the compute dtype; activations are
rounded before the product. So a product differs from the kernels' by the order of float32 sums, and in 16-bit
compute dtypes by one more rounding of weights and activations.

As an option FP8 codes are multiplied as such (``torch._scaled_mm``), which shows how far a kernel is from the
yardstick.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from enginix.errors import CheckpointError
from enginix.reference import formats, layout
from enginix.reference.executor_config import ExecutorConfig
from enginix.reference.layout import LinearSpec, RankCut
from enginix.reference.quantization import MIXED, REBUILD
from enginix.reference.weights import MergedWeights


class LinearOperation(Protocol):
    """An operation y = x Wᵀ + b."""

    def __call__(self, x: torch.Tensor, expert: int | None = None) -> torch.Tensor:
        """[N, columns] → [N, rows] in the dtype of x; ``expert`` picks one of a stack."""
        ...


class PlainLinear:
    """A linear layer with weights in a floating-point dtype."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: torch.Tensor, expert: int | None = None) -> torch.Tensor:
        weight = self.weight if expert is None else self.weight[expert]
        return torch.nn.functional.linear(x, weight, self.bias)


def add_product(total: torch.Tensor, linear: LinearOperation, x: torch.Tensor) -> torch.Tensor:
    """Return total + linear(x); on a GPU an unquantized product is added to ``total`` itself."""
    if total.device.type != "cpu" and type(linear) is PlainLinear and linear.bias is None:
        return total.addmm_(x, linear.weight.t())
    return total + linear(x)


def join_linears(first: LinearOperation, second: LinearOperation) -> PlainLinear | None:
    """Join two unquantized matrices of the same input into one product; the two become views of it."""
    if type(first) is not PlainLinear or type(second) is not PlainLinear:
        return None
    bias = None
    if first.bias is not None and second.bias is not None:
        bias = torch.cat([first.bias, second.bias])
    both = PlainLinear(torch.cat([first.weight, second.weight]), bias)
    first.weight, second.weight = torch.split(both.weight, [len(first.weight), len(second.weight)])
    return both


class QuantizedLinear(PlainLinear):
    """Dequantized weights, and activations rounded to a number format.

    Args:
        rounding: (activations [N, columns], scale) → the activations as the kernels round them.
        scale: of the activations, float32 [1], or [experts].
        prequant: multiplies the activations first, [columns].
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        rounding: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None,
        scale: torch.Tensor | None,
        prequant: torch.Tensor | None,
    ) -> None:
        super().__init__(weight, bias)
        self.rounding, self.prequant = rounding, prequant
        self.scale = scale if scale is not None else weight.new_ones(1, dtype=torch.float32)

    def __call__(self, x: torch.Tensor, expert: int | None = None) -> torch.Tensor:
        dtype = x.dtype
        if self.prequant is not None:
            x = x * self.prequant
        if self.rounding is not None:
            x = self.rounding(x, self.scale if expert is None else self.scale[expert]).to(dtype)
        return super().__call__(x, expert)


class Fp8Linear:
    """FP8 codes [rows, columns] multiplied as such: float8 products, float32 sums.

    Codes have a scale a row, [rows], or one for all, [1]; activations one, [1], or ``None``: one a token.
    """

    def __init__(
        self,
        codes: torch.Tensor,
        row_scales: torch.Tensor,
        scale: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> None:
        self.codes, self.row_scales, self.scale, self.bias = codes, row_scales, scale, bias
        self.one = row_scales.new_ones(1)

    def __call__(self, x: torch.Tensor, expert: int | None = None) -> torch.Tensor:
        scale = formats.find_token_scales(x) if self.scale is None else self.scale
        codes = (x / scale).clamp_(-formats.FP8_MOST, formats.FP8_MOST).to(torch.float8_e4m3fn)
        y = torch._scaled_mm(codes, self.codes.t(), self.one, self.one, out_dtype=torch.float32)
        y = torch.mul(y, scale * self.row_scales, out=y.new_empty(y.shape, dtype=x.dtype))
        return y if self.bias is None else y + self.bias


# Tensors that hold an activation scale; a format has one of them.
_ACTIVATION = ("activation_scaling_factor", "activation_global_scaling_factor")
_ROUNDING: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None] = {
    "FP8": formats.fake_quantize_fp8,
    "FP8_PER_CHANNEL_PER_TOKEN": None,  # each token has its own scale, found while it is rounded
    "NVFP4": formats.fake_quantize_nvfp4,
    "W4A16_AWQ": None,
    "W4A8_AWQ": formats.fake_quantize_fp8,
    "W8A8_SQ_PER_CHANNEL": formats.fake_quantize_int8,
}
# Formats whose weights and activations are both FP8 → the tensor of the weights' scales.
FP8_PRODUCTS = {"FP8": "weights_scaling_factor", "FP8_PER_CHANNEL_PER_TOKEN": "per_channel_scale"}
FORMATS: tuple[str | None, ...] = (None, *_ROUNDING)
KV_CACHE: dict[str | None, Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None] = {
    None: None,
    "FP8": formats.fake_quantize_fp8,
    "INT8": formats.fake_quantize_int8,
}


def refuse_unknown_format(config: ExecutorConfig, where: str) -> None:
    """Refuse number formats that the executor does not support, before a header is read.

    Raises:
        CheckpointError: a module's or the KV cache's number format is not among those implemented.
    """
    quantization = config.quantization
    for what, algorithms, known in (
        ("weights", quantization.algorithms - {MIXED}, FORMATS),
        ("KV cache", {quantization.kv_cache}, tuple(KV_CACHE)),
    ):
        if unknown := sorted(str(a) for a in algorithms if a not in known):
            raise CheckpointError(
                f"{what} in {unknown[0]}: the reference executor runs "
                f"{', '.join(name or 'unquantized' for name in known)} only",
                where=where,
                fix="convert another quantization of the model, or build an engine of another kind",
            )


def _activation_scale(
    weights: MergedWeights, linear: LinearSpec, scales: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return float32 [1], or [experts] for experts, whose expert-parallel ranks have separate scales."""
    ep = weights.config.mapping.ep if linear.experts else 1
    for rank, scale in enumerate(scales):
        if not bool((scale > 0).all()) or not torch.equal(scale, scales[rank % ep]):
            raise CheckpointError(
                f"activation scale of rank {rank} is not positive, or not that of rank {rank % ep}",
                where=weights.where(linear.name),
                fix=REBUILD,
            )
    if not linear.experts:
        return scales[0].reshape(1)
    return torch.cat([s.reshape(1) for s in scales[:ep]]).repeat_interleave(linear.experts // ep)


def load_linear(
    linear: LinearSpec,
    weights: MergedWeights,
    device: torch.device,
    dtype: torch.dtype,
    *,
    fp8_products: bool = False,
) -> LinearOperation:
    """Return the operation for ``linear``, with its tensors on ``device`` in the compute ``dtype``.

    With ``fp8_products`` FP8 codes of one rank stay codes.

    Raises:
        CheckpointError: unreadable tensors, or ranks that contradict each other.
    """
    config, name = weights.config, linear.name
    bias = weights.get(f"{name}.bias").to(device, dtype) if linear.bias else None
    algorithm = layout.find_linear_algorithm(config, linear)
    if algorithm is None:
        return PlainLinear(weights.get(f"{name}.weight").to(device, dtype), bias)
    leaves = layout.quantized_tensors(config, linear)
    parts_by_leaf = {leaf: weights.parts(f"{name}.{leaf}") for leaf in leaves}
    rounding, scale, prequant = _ROUNDING[algorithm], None, None
    for leaf in _ACTIVATION:
        if leaf in parts_by_leaf:
            scale = _activation_scale(weights, linear, parts_by_leaf[leaf]).to(device)
    # Kernels take sixteen rows and columns at a time; ranks have scales of their own.
    is_one_product = config.mapping.tp == 1 and not (
        linear.experts or linear.rows % 16 or linear.columns % 16
    )
    if fp8_products and is_one_product and algorithm in FP8_PRODUCTS:
        ((codes,), (scales,)) = (parts_by_leaf[leaf] for leaf in ("weight", FP8_PRODUCTS[algorithm]))
        return Fp8Linear(codes.to(device), scales.float().to(device), scale, bias)
    ranks = [
        {leaf: parts[rank] for leaf, parts in parts_by_leaf.items()} for rank in range(config.mapping.tp)
    ]
    spec = layout.make_weight_spec(config, linear)
    matrix = weights.merge(
        f"{name}.weight", spec, [formats.dequantize_weight(algorithm, rank) for rank in ranks]
    )
    if algorithm == "FP8_PER_CHANNEL_PER_TOKEN":
        cuts = config.mapping.tp if linear.cut is RankCut.COLUMNS else 1

        def rounding(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return formats.fake_quantize_fp8_per_token(x, cuts)

    if (scales_by_rank := parts_by_leaf.get("prequant_scaling_factor")) is not None:
        is_cut = linear.cut is RankCut.COLUMNS
        prequant = torch.cat(scales_by_rank) if is_cut else weights.get(f"{name}.prequant_scaling_factor")
        prequant = prequant.to(device, dtype)
    return QuantizedLinear(matrix.to(device, dtype), bias, rounding, scale, prequant)

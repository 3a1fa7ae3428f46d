"""Checks of values: no NaN, scales positive and consistent, replicated tensors the same on every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from enginix.checkpoint.findings import Finding, Report
from enginix.checkpoint.layout import KvCache, Layout, Linear, Vector
from enginix.checkpoint.numbers import fp8_values, interleave_tiles, to_float32
from enginix.checkpoint.stored import mapped
from enginix.checkpoint.write import file_name
from enginix.model import TensorInfo

Array = npt.NDArray[Any]
BLOCK = 1 << 21  # elements looked at together

# dtype → mask of the exponent bits; a value with all of them set is infinite or NaN
_EXPONENT = {"F32": (np.uint32, 0x7F800000), "BF16": (np.uint16, 0x7F80), "F16": (np.uint16, 0x7C00)}


def _blocks(array: Array) -> Iterator[Array]:
    flat = array.reshape(-1)
    for at in range(0, flat.size, BLOCK):
        yield flat[at : at + BLOCK]


def not_finite(info: TensorInfo) -> bool:
    """Whether a float tensor holds NaN or an infinity; integers never do."""
    array = mapped(info)
    if info.dtype in _EXPONENT:
        kind, mask = _EXPONENT[info.dtype]
        limit = kind(mask)
        return any(((block.view(kind) & limit) == limit).any() for block in _blocks(array))
    if info.dtype == "F8_E4M3":
        return any(((block.view(np.uint8) & 0x7F) == 0x7F).any() for block in _blocks(array))
    return False


def _is_scale(name: str) -> bool:
    leaf = name.rsplit(".", 1)[-1]
    return "scal" in leaf or leaf == "alpha"


def bad_scale(info: TensorInfo) -> bool:
    """Whether a scale is not positive. Scales of blocks may be zero: a block of zeros has that."""
    array = mapped(info)
    if info.dtype == "F8_E4M3":
        return any((fp8_values()[block.view(np.uint8)] < 0).any() for block in _blocks(array))
    return any((to_float32(block, info.dtype) <= 0).any() for block in _blocks(array))


def check_values(
    layout: Layout, rank: int, path: Path, tensors: dict[str, TensorInfo], report: Report
) -> None:
    """Adds what is wrong with the values of one rank to ``report``."""

    def found(name: str, what: str) -> None:
        report.findings.append(Finding(f"{path.name}: {name}", what))

    for name, info in tensors.items():
        if not_finite(info):
            found(name, "holds NaN or an infinity")
        elif _is_scale(name) and bad_scale(info):
            found(name, "a scale is not positive")
    first = path.with_name(file_name(rank - layout.config.mapping.tp_rank(rank)))
    for module in layout.rank(rank):
        if isinstance(module, KvCache):
            _kv_cache(module, tensors, found, report)
        elif isinstance(module, Linear) and f"{module.name}.alpha" in tensors:
            _nvfp4(module.name, tensors, found)
        elif isinstance(module, Linear) and f"{module.name}.weights_scaling_factor_2" in tensors:
            leaves = [tensors.get(f"{module.name}.{leaf}") for leaf in ("weight", "weights_scaling_factor")]
            codes, scales = (mapped(leaf) if leaf is not None else None for leaf in leaves)
            _zero_blocks(f"{module.name}.weights_scaling_factor", codes, scales, found)
        elif _replicated(module, layout) and first != path:
            _equal(f"{module.name}.weight", tensors, first, found)


def _replicated(module: Linear | Vector, layout: Layout) -> bool:
    if isinstance(module, Vector):
        return True
    piece = module.groups[0][0]
    return module.name.endswith(("router", "shared_expert_gate")) and piece.rows == (0, piece.out)


def _equal(name: str, tensors: dict[str, TensorInfo], first: Path, found: Any) -> None:
    from enginix.checkpoint.stored import RankFile
    from enginix.errors import EnginixError

    try:
        other = RankFile(first).tensors.get(name)
    except EnginixError:
        return  # reported where that rank is checked
    if name in tensors and other is not None:
        digests = {hashlib.sha256(mapped(i).tobytes()).digest() for i in (tensors[name], other)}
        if len(digests) > 1:
            found(name, f"differs from {first.name}; every tensor-parallel rank holds the same")


def _kv_cache(module: KvCache, tensors: dict[str, TensorInfo], found: Any, report: Report) -> None:
    scale = tensors.get(f"{module.name}.kv_cache_scaling_factor")
    inverse = tensors.get(f"{module.name}.kv_cache_rcp_scaling_factor")
    if scale is None:
        return
    value = float(mapped(scale).reshape(-1)[0])
    if value == 1.0:
        note = "KV cache scales of 1.0: the model was not calibrated for it, or its scales were lost"
        if note not in report.notes:
            report.notes.append(note)
    if inverse is not None and not np.isclose(value * float(mapped(inverse).reshape(-1)[0]), 1, rtol=1e-5):
        found(inverse.name, "is not the reciprocal of the scale")


def _zero_blocks(name: str, weight: Array | None, scales: Array | None, found: Any) -> None:
    """A block scale of zero is right for a block of zeros alone: over other codes it erases weights."""
    if weight is None or scales is None or weight.size != scales.size * 8:
        return
    # Two codes a byte, 16 a scale; a code without its sign bit is zero for zero.
    codes, each = weight.reshape(-1, 8).view(np.uint8), scales.reshape(-1).view(np.uint8)
    count = 0
    for at in range(0, len(each), BLOCK // 8):
        zero = (each[at : at + BLOCK // 8] & 0x7F) == 0
        count += int((codes[at : at + BLOCK // 8][zero] & 0x77).any(axis=1).sum())
    if count:
        found(
            name,
            f"is zero over {count} blocks whose codes are not: their weights are lost",
        )


def _nvfp4(module: str, tensors: dict[str, TensorInfo], found: Any) -> None:
    def array(leaf: str) -> Array | None:
        info = tensors.get(f"{module}.{leaf}")
        return mapped(info) if info is not None else None

    alpha, scale = array("alpha"), array("weights_global_scaling_factor")
    activation = array("activation_global_scaling_factor")
    if alpha is not None and scale is not None and activation is not None:  # noqa: SIM102
        if not np.allclose(alpha, scale * activation, rtol=1e-5):
            found(f"{module}.alpha", "is not the product of the weight's and the activation's scale")
    name = "weights_block_scaling_factor"
    _zero_blocks(f"{module}.{name}", array("weight"), array(name), found)
    plain, tiled = array("weights_block_scaling_factor"), array("weights_block_scaling_factor_interleaved")
    if plain is None or tiled is None or plain.shape != tiled.shape or plain.ndim < 2:
        return
    rows, width = plain.shape[-2:]
    if rows % 128 == 0 and width % 4 == 0 and interleave_tiles(plain.tobytes(), width) != tiled.tobytes():
        found(f"{module}.weights_block_scaling_factor_interleaved", "is not the tiled form of the scales")

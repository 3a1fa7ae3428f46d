"""Check values: no NaN, scales positive and consistent, replicated tensors equal on every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from enginix.checkpoint.layout import CheckpointLayout
from enginix.checkpoint.mapped_tensors import RankFile
from enginix.checkpoint.numbers import (
    Array,
    are_any_non_finite,
    interleave_tiles,
    list_fp8_values,
    to_float32,
)
from enginix.checkpoint.rank_modules import KvCacheModule, LinearModule, SlicedTensor, VectorModule
from enginix.checkpoint.verification_report import VerificationReport
from enginix.checkpoint.write import rank_file_name
from enginix.errors import EnginixError
from enginix.model import TensorInfo
from enginix.model.mapped_tensors import map_tensor

BLOCK = 1 << 21  # elements checked at a time


def _iterate_blocks(array: Array) -> Iterator[Array]:
    flat = array.reshape(-1)
    for begin in range(0, flat.size, BLOCK):
        yield flat[begin : begin + BLOCK]


def holds_non_finite(info: TensorInfo) -> bool:
    """Return whether a tensor holds NaN or an infinity; integers never do."""
    return any(are_any_non_finite(block, info.dtype) for block in _iterate_blocks(map_tensor(info)))


def _is_scale(name: str) -> bool:
    leaf = name.rsplit(".", 1)[-1]
    return "scal" in leaf or leaf == "alpha"


def has_bad_scale(info: TensorInfo) -> bool:
    """Return whether a scale is not positive; block scales may be zero, as those of blocks of zeros are."""
    array = map_tensor(info)
    if info.dtype == "F8_E4M3":
        return any((list_fp8_values()[block.view(np.uint8)] < 0).any() for block in _iterate_blocks(array))
    return any((to_float32(block, info.dtype) <= 0).any() for block in _iterate_blocks(array))


def check_values(
    layout: CheckpointLayout,
    rank: int,
    path: Path,
    tensors: dict[str, TensorInfo],
    report: VerificationReport,
) -> None:
    """Check the values of one rank; add the findings to ``report``."""

    def add_finding(name: str, what: str) -> None:
        report.add(f"{path.name}: {name}", what)

    for name, info in tensors.items():
        if holds_non_finite(info):
            add_finding(
                name,
                "holds NaN or an infinity, and conversion refuses a model that does: compare the file with "
                "its manifest (enginix verify); if it is as it was written, report it to its author",
            )
        elif _is_scale(name) and has_bad_scale(info):
            add_finding(name, "a scale is not positive")
    first = path.with_name(rank_file_name(rank - layout.config.mapping.tp_rank(rank)))
    for module in layout.rank(rank):
        if isinstance(module, KvCacheModule):
            _check_kv_cache_scales(module, tensors, add_finding, report)
        elif isinstance(module, LinearModule) and f"{module.name}.alpha" in tensors:
            _check_nvfp4_scales(module.name, tensors, add_finding)
        elif isinstance(module, LinearModule) and f"{module.name}.weights_scaling_factor_2" in tensors:
            leaves = [tensors.get(f"{module.name}.{leaf}") for leaf in ("weight", "weights_scaling_factor")]
            codes, scales = (map_tensor(leaf) if leaf is not None else None for leaf in leaves)
            _check_zero_blocks(f"{module.name}.weights_scaling_factor", codes, scales, add_finding)
        elif not isinstance(module, SlicedTensor) and _is_replicated(module, layout) and first != path:
            name = module.tensor_name if isinstance(module, VectorModule) else f"{module.name}.weight"
            _check_replica(name, tensors, first, add_finding)


def _is_replicated(module: LinearModule | VectorModule, layout: CheckpointLayout) -> bool:
    if isinstance(module, VectorModule):
        return True
    piece = module.groups[0][0]
    return module.name.endswith(("router", "shared_expert_gate")) and piece.rows == (0, piece.out)


def _check_replica(name: str, tensors: dict[str, TensorInfo], first: Path, add_finding: Any) -> None:
    try:
        first_info = RankFile(first).tensors.get(name)
    except EnginixError:
        return  # reported where that rank is checked
    if name in tensors and first_info is not None:
        digests = {hashlib.sha256(map_tensor(i).tobytes()).digest() for i in (tensors[name], first_info)}
        if len(digests) > 1:
            add_finding(name, f"differs from {first.name}; every tensor-parallel rank holds the same")


def _check_kv_cache_scales(
    module: KvCacheModule, tensors: dict[str, TensorInfo], add_finding: Any, report: VerificationReport
) -> None:
    scale = tensors.get(f"{module.name}.kv_cache_scaling_factor")
    inverse = tensors.get(f"{module.name}.kv_cache_rcp_scaling_factor")
    if scale is None:
        return
    value = float(map_tensor(scale).reshape(-1)[0])
    if value == 1.0:
        note = "KV cache scales of 1.0: the model's KV cache was not calibrated, or its scales were lost"
        if note not in report.notes:
            report.notes.append(note)
    if inverse is not None and not np.isclose(
        value * float(map_tensor(inverse).reshape(-1)[0]), 1, rtol=1e-5
    ):
        add_finding(inverse.name, "is not the reciprocal of the scale")


def _check_zero_blocks(name: str, weight: Array | None, scales: Array | None, add_finding: Any) -> None:
    """Check that only blocks of zeros have a scale of zero: over other codes it erases weights."""
    if weight is None or scales is None or weight.size != scales.size * 8:
        return
    # A byte holds two codes, a scale belongs to 16; a code of zero is zero without its sign bit.
    codes, block_scales = weight.reshape(-1, 8).view(np.uint8), scales.reshape(-1).view(np.uint8)
    count = 0
    for begin in range(0, len(block_scales), BLOCK // 8):
        zero = (block_scales[begin : begin + BLOCK // 8] & 0x7F) == 0
        count += int((codes[begin : begin + BLOCK // 8][zero] & 0x77).any(axis=1).sum())
    if count:
        add_finding(
            name,
            f"is zero over {count} blocks with codes other than zero: their weights are lost",
        )


def _check_nvfp4_scales(module: str, tensors: dict[str, TensorInfo], add_finding: Any) -> None:
    def array(leaf: str) -> Array | None:
        info = tensors.get(f"{module}.{leaf}")
        return map_tensor(info) if info is not None else None

    alpha, scale = array("alpha"), array("weights_global_scaling_factor")
    activation = array("activation_global_scaling_factor")
    if alpha is not None and scale is not None and activation is not None:  # noqa: SIM102
        if not np.allclose(alpha, scale * activation, rtol=1e-5):
            add_finding(f"{module}.alpha", "is not the product of the weight's and the activation's scale")
    name = "weights_block_scaling_factor"
    _check_zero_blocks(f"{module}.{name}", array("weight"), array(name), add_finding)
    plain, tiled = array("weights_block_scaling_factor"), array("weights_block_scaling_factor_interleaved")
    if plain is None or tiled is None or plain.shape != tiled.shape or plain.ndim < 2:
        return
    rows, width = plain.shape[-2:]
    if rows % 128 == 0 and width % 4 == 0 and interleave_tiles(plain.tobytes(), width) != tiled.tobytes():
        add_finding(
            f"{module}.weights_block_scaling_factor_interleaved", "is not the tiled form of the scales"
        )

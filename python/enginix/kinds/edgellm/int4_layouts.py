"""The two orders in which Edge-LLM's plugins store INT4 weights, and their inverses.

Source: wheel, ``tensorrt_edgellm/checkpoint/repacking.py``: ``repack_to_cutedsl_fragment`` (version 2) and
``_pack_intweights`` (version 1). Both store ``value + 8`` of a weight N x K, N output channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint8]
BIAS = 8  # the plugins compute (code - 8) * scale
_TILE_N, _TILE_K = 128, 64


def split_nibbles(data: npt.NDArray[Any]) -> Codes:
    """Return the 4-bit codes of a buffer in their order, the low half of each byte first."""
    flat = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
    return np.asarray(np.stack([flat & 15, flat >> 4], axis=1).reshape(-1), np.uint8)


def restore_fragment_order(data: npt.NDArray[Any], n: int, k: int) -> Codes | None:
    """Return the codes N x K of a version 2 buffer; None if the size or the padding is not that of N x K."""
    blocks, tiles = -(-n // _TILE_N), -(-k // _TILE_K)
    codes = split_nibbles(data)
    if codes.size != blocks * tiles * _TILE_N * _TILE_K:
        return None
    # Axes of the buffer: block of N, tile of K, 16 of K, 64 of N, 1 of N, 2 of K, 1 of K, 32 of N, 8 of K.
    axes = codes.reshape(blocks, tiles, 4, 2, 32, 4, 2, 2, 2).transpose(0, 3, 7, 4, 1, 2, 8, 5, 6)
    padded = axes.reshape(blocks * _TILE_N, tiles * _TILE_K)
    if (padded[n:] != BIAS).any() or (padded[:, k:] != BIAS).any():
        return None
    return padded[:n, :k]


def restore_interleaved_order(data: npt.NDArray[Any], n: int, k: int) -> Codes | None:
    """Return the codes N x K of a version 1 buffer; None if the size is not that of N x K."""
    codes = split_nibbles(data)
    if codes.size != n * k or n % 4 or k % 64:
        return None
    rows = codes.reshape(n // 4, k // 64, 4, 64).transpose(0, 2, 1, 3).reshape(n, k // 32, 4, 2, 4)
    eights = rows.transpose(0, 1, 2, 4, 3).reshape(n, k // 32, 4, 4, 2)
    return eights.transpose(0, 1, 3, 2, 4).reshape(n, k)


def read_checkpoint_codes(data: npt.NDArray[np.uint8]) -> Codes:
    """Return the codes N x K, plus 8, of ModelOpt's bytes [N / 2, K]: two channels a byte, two's complement.

    Source: ``modelopt/torch/export/quant_utils.py``, ``pack_int4_in_uint8``.
    """
    codes = np.stack([data & 15, data >> 4], axis=1).reshape(-1, data.shape[1])
    return np.asarray((codes + BIAS) & 15, np.uint8)

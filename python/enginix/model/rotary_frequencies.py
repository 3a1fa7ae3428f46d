"""Scale the frequencies of a rotary embedding, in NumPy's float64.

Formulas: transformers 5.14.1, ``modeling_rope_utils.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def scale_frequencies(inverse: Array, kind: str | None, scaling: Mapping[str, Any], base: float) -> Array:
    """Return inverse frequencies [rotated / 2] with a scaling that does not depend on a sequence's length.

    Args:
        kind: ``linear``, ``llama3`` or ``yarn``; others leave the frequencies as they are.
        scaling: all of its parameters.
        base: of the unscaled frequencies.
    """
    if kind == "linear":
        return np.asarray(inverse / scaling["factor"])
    if kind not in ("llama3", "yarn"):
        return inverse
    original = float(scaling["original_max_position_embeddings"])
    if kind == "llama3":  # long wavelengths are divided by the factor, short ones stay
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        share_kept = np.clip((original * inverse / (2 * math.pi) - low) / (high - low), 0, 1)
        share_divided = 1 - share_kept
    else:  # arXiv 2309.00071: dimensions that turn fast stay, slow ones are interpolated
        rotated = 2 * len(inverse)

        def dimension_of(turns: float) -> float:
            return rotated * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

        low = max(math.floor(dimension_of(scaling["beta_fast"])), 0)
        high = min(math.ceil(dimension_of(scaling["beta_slow"])), rotated - 1)
        share_divided = np.clip((np.arange(rotated // 2) - low) / ((high - low) or 0.001), 0, 1)
        share_kept = 1 - share_divided
    return np.asarray(inverse / scaling["factor"] * share_divided + inverse * share_kept)

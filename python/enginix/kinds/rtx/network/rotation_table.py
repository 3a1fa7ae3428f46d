"""Rotary frequencies of a TensorRT-LLM checkpoint, in NumPy, by the parameters that its loader reads.

The tables have the same bytes on every machine: NumPy's powers, sines and cosines differ in their last bits
from CPU to CPU and from release to release. So they are computed here, by operations that IEEE 754 rounds in
one way, or by ``decimal``.

The judges of a network, transformers and the reference executor, have tables of their own.
"""

from __future__ import annotations

import decimal
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from enginix.checkpoint.config import CheckpointConfig
from enginix.model.rotary_frequencies import scale_frequencies

Array = npt.NDArray[Any]
# The other types depend on the length of the sequence, which is not known when an engine is built.
ROTATION_TYPES = (None, "linear", "llama3", "yarn")
# π / 2 in two parts: the first has 33 bits, so that its products with numbers below 2^20 are exact.
_HALF_PI = (1.57079632673412561417e00, 6.07710050650619224932e-11)
_SERIES_TERMS = 9  # the next is below 1e-18 where series are evaluated


def compute_rotation_frequencies(config: CheckpointConfig) -> tuple[Array, float]:
    """Return inverse frequencies float64 [rotary_embedding_dim / 2], and the factor on cosine and sine.

    Args:
        config: its type of scaling is one of :data:`ROTATION_TYPES`.
    """
    scaling, rotated = config.rotary_scaling or {}, config.rotary_embedding_dim
    with decimal.localcontext(decimal.Context(prec=40)):
        base = decimal.Decimal(config.rotary_base)
        powers = [base ** (decimal.Decimal(-i) / rotated) for i in range(0, rotated, 2)]
        inverse = np.array([float(power) for power in powers])
    kind, magnitude = scaling.get("rope_type"), 1.0
    assert kind in ROTATION_TYPES, kind
    if kind == "yarn":
        steepness = 0.1 * math.log(scaling["factor"]) if scaling["factor"] > 1 else 0.0
        one, every = (scaling[key] * steepness + 1 for key in ("mscale", "mscale_all_dim"))
        magnitude = one / every
    return scale_frequencies(inverse, kind, scaling, config.rotary_base), magnitude


def _sum_series(square: Array, first: int) -> Array:
    """Return 1 - s/(k(k+1)) × (1 - s/((k+2)(k+3)) × (…)) of squares s, from k = ``first`` on."""
    total = np.ones_like(square)
    for k in range(first + 2 * _SERIES_TERMS, first - 1, -2):
        total = 1 - square / (k * (k + 1)) * total
    return total


def compute_cosines_and_sines(angles: Array) -> tuple[Array, Array]:
    """Return cosines and sines of angles from 0 to 10^6, float64, within 3e-16."""
    quarters = np.rint(angles * (2 / math.pi))
    rest = (angles - quarters * _HALF_PI[0]) - quarters * _HALF_PI[1]
    square = rest * rest
    cosine, sine = _sum_series(square, 1), rest * _sum_series(square, 2)
    quadrant = quarters.astype(np.int64) % 4
    return (
        np.choose(quadrant, (cosine, -sine, -cosine, sine)),
        np.choose(quadrant, (sine, cosine, -sine, -cosine)),
    )


def make_rotation_tables(config: CheckpointConfig, positions: int) -> tuple[Array, Array]:
    """Return cosines and sines, each float32 [positions, rotary_embedding_dim / 2]."""
    frequencies, magnitude = compute_rotation_frequencies(config)
    cosines, sines = compute_cosines_and_sines(np.arange(positions)[:, None] * frequencies[None, :])
    return np.asarray(cosines * magnitude, np.float32), np.asarray(sines * magnitude, np.float32)

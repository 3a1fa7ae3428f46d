"""Casts, FP8 rescaling and the order of block scales, against others' arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.checkpoint.numbers import cast_floats, interleave_tiles, list_fp8_values, rescale_fp8


@settings(max_examples=60, deadline=None)
@given(
    st.floats(2**-20, 2**10, width=32), st.floats(2**-20, 2**10, width=32), st.binary(min_size=1, max_size=65)
)
def test_rescaling_is_the_formula(one: float, other: float, data: bytes) -> None:
    """fp8(value * scale / target) in float32, against ml_dtypes element by element."""
    import ml_dtypes

    codes = np.frombuffer(data, np.uint8) & np.uint8(0x7E)  # no NaN
    scale, target = np.float32(min(one, other)), np.float32(max(one, other))
    direct = ((list_fp8_values()[codes] * scale) / target).astype(ml_dtypes.float8_e4m3fn)
    assert np.array_equal(rescale_fp8(codes, float(scale), float(target)), direct.view(np.uint8))


@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("target", ["F32", "F16", "BF16"])
@settings(max_examples=40, deadline=None)
@given(data=st.binary(min_size=4, max_size=64).filter(lambda b: len(b) % 4 == 0))
def test_casts_equal_torchs(source: str, target: str, data: bytes) -> None:
    import torch

    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    from enginix.model.mapped_tensors import numpy_dtype

    array = np.frombuffer(data, numpy_dtype(source))
    theirs = torch.frombuffer(bytearray(data), dtype=names[source]).to(names[target])
    finite = torch.isfinite(torch.frombuffer(bytearray(data), dtype=names[source]).float())
    try:
        ours = cast_floats(array, source, target)
    except OverflowError:
        assert target == "F16" and (torch.isinf(theirs) & finite).any()
        return
    width = torch.int16 if theirs.element_size() == 2 else torch.int32
    bits = np.ascontiguousarray(ours).view(np.uint16 if theirs.element_size() == 2 else np.uint32)
    same = bits == theirs.view(width).numpy().view(bits.dtype)
    assert (same | np.isnan(theirs.float().numpy())).all()


LOWS = (0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 0x2FFF, 0x3000, 0x3001, 0x8000, 0xEFFF, 0xF000, 0xFFFF)


@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("target", ["F32", "F16", "BF16"])
def test_casts_equal_ml_dtypes_on_every_pattern(source: str, target: str) -> None:
    """Every 16-bit pattern; of float32 every upper half, with lower halves around each rounding."""
    from enginix.model.mapped_tensors import numpy_dtype

    every = np.arange(1 << 16, dtype=np.uint32)
    if source == "F32":
        every = np.concatenate([every << np.uint32(16) | np.uint32(low) for low in LOWS])
        values = every.view(np.float32)
    else:
        values = every.astype(np.uint16).view(numpy_dtype(source))
    with np.errstate(all="ignore"):
        theirs = values.astype(np.float32).astype(numpy_dtype(target))
        lost = np.isfinite(values.astype(np.float32)) & ~np.isfinite(theirs.astype(np.float32))
    if target != "F16":
        lost = np.zeros(lost.shape, np.bool_)
    ours = cast_floats(values[~lost], source, target)
    kept = theirs[~lost]
    width = np.uint32 if target == "F32" else np.uint16
    assert ((ours.view(width) == kept.view(width)) | np.isnan(kept.astype(np.float32))).all()
    for value in values[lost][:: max(1, lost.sum() // 50)]:
        with pytest.raises(OverflowError, match="does not fit"):
            cast_floats(np.array([1, value, 0], values.dtype), source, target)


def test_interleaving_is_the_documented_order() -> None:
    rows, width = 256, 8
    plain = np.random.default_rng(0).integers(0, 256, (rows, width), np.uint8)
    tiled = np.frombuffer(interleave_tiles(plain.tobytes(), width), np.uint8)
    for row in range(rows):
        for column in range(width):
            tile = row // 128 * (width // 4) + column // 4
            at = tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4
            assert tiled[at] == plain[row, column]

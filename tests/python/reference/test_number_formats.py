"""Values of FP8, FP4, NVFP4 and INT4: the nearest ones, as ModelOpt's and as torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.reference import formats

FLOATS = st.floats(-1e4, 1e4, width=32)


@settings(max_examples=200, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=20))
def test_fp8_is_the_nearest_value(values: list[float]) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    codes = codes[torch.isfinite(codes)]
    x = torch.tensor(values)
    found = formats.round_fp8(x)
    nearest = (x.clamp(-448, 448)[:, None] - codes).abs().amin(1)
    assert torch.equal((x.clamp(-448, 448) - found).abs(), nearest)


@settings(max_examples=200, deadline=None)
@given(st.lists(FLOATS.map(lambda f: f / 1000), min_size=1, max_size=20))
def test_fp4_is_the_nearest_value(values: list[float]) -> None:
    x = torch.tensor([*values, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -5.0])
    found = formats.round_fp4(x)
    nearest = (x.clamp(-6, 6)[:, None] - formats.FP4).abs().amin(1)
    assert torch.equal((x.clamp(-6, 6) - found).abs(), nearest)
    # Halfway goes to the even code.
    assert found[-9:].tolist() == [0, 1, 1, 2, 2, 4, 4, 0, -4]


@settings(max_examples=60, deadline=None)
@given(st.lists(FLOATS, min_size=32, max_size=32), st.floats(0.0009765625, 8, width=32))
def test_nvfp4_is_modelopts(values: list[float], top: float) -> None:
    qtensor = pytest.importorskip("modelopt.torch.quantization.qtensor")
    x, scale = torch.tensor([values]), torch.tensor(top / (6 * 448))
    held, blocks, _ = qtensor.NVFP4QTensor.quantize(x.clone(), 16, None, scale)
    expected = held.dequantize(dtype=torch.float32, scale=blocks, double_scale=scale, block_sizes={-1: 16})
    assert torch.allclose(formats.fake_quantize_nvfp4(x, scale), expected.view(1, -1), rtol=1e-5, atol=0)


def test_int4_rows_are_unpacked_by_sign() -> None:
    values = torch.arange(-8, 8).view(4, 4)
    packed = (values[0::2] & 15 | (values[1::2] & 15) << 4).to(torch.uint8).view(torch.int8)
    assert torch.equal(formats._int4_rows(packed), values.float())

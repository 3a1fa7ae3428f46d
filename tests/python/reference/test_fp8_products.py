"""FP8 codes multiplied as such are the products of their numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from enginix.evaluation.judgement.logits import relative_error
from enginix.reference import Executor, linear


@pytest.mark.parametrize(
    "case",
    [
        "llama-fp8/trtllm-tp1-bfloat16",
        "llama-fp8-pc-pt/trtllm-tp1-bfloat16",
        "qwen3-fp8-kvfp8/trtllm-tp1-bfloat16",
    ],
)
def test_products_of_fp8_codes_are_those_of_their_numbers(golden: Path, case: str) -> None:
    """In float32 they differ by the order of sums, and by what that does to later roundings."""
    emulated, multiplied = (Executor.load(golden / case, fp8_products=on) for on in (False, True))
    kinds = [type(layer.attention.qkv) for layer in multiplied.layers]
    assert kinds == [linear.Fp8Linear] * len(kinds) and type(emulated.layers[0].attention.qkv) is not kinds[0]
    (expected,), (found,) = (executor.forward([list(range(1, 40))]) for executor in (emulated, multiplied))
    error = relative_error(found, expected)
    assert 0 < float(error.median()) < 1e-6
    assert float(error.max()) < 1e-2, "an activation between two codes may become the other one"
    one, other = (executor.decode(_filled(executor), {0: 7})[0] for executor in (emulated, multiplied))
    assert float((other - one).norm() / one.norm()) < 1e-2


def _filled(executor: Executor) -> Any:
    cache = executor.new_cache(1)
    executor.prefill(cache, 0, [3, 1, 4])
    return cache


def test_ranks_of_fp8_codes_are_multiplied_as_numbers(golden: Path) -> None:
    executor = Executor.load(golden / "llama-fp8/trtllm-tp2-bfloat16", fp8_products=True)
    assert type(executor.layers[0].attention.qkv) is linear.QuantizedLinear

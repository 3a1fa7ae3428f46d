"""enginix's converter judged by the executor: its checkpoints compute what transformers computes.

The converter and the executor describe checkpoints independently of each other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.evaluation.judgement.logits import relative_error
from enginix.reference import Executor

DENSE = [(1, 1, 1), (2, 1, 1), (4, 1, 1), (1, 2, 1), (2, 2, 1)]
EXPERTS = [(1, 1, 1), (2, 1, 1), (2, 1, 2), (4, 1, 2), (2, 2, 2)]
CASES = {
    "llama-bf16": DENSE,
    "llama-bias": DENSE,
    "llama-odd-vocab": [(1, 1, 1), (2, 1, 1)],
    "llama-tied": DENSE[:4],
    "llama-rope-linear": DENSE[:2],
    "llama-rope-llama3": DENSE[:2],
    "llama-rope-dynamic": DENSE[:2],
    "mistral-bf16": DENSE,
    "mixtral-bf16": EXPERTS,
    "qwen2-bf16": DENSE,
    "qwen2-tied": DENSE[:4],
    "qwen2-rope-yarn": DENSE[:2],
    "qwen2moe-bf16": EXPERTS,
    "qwen3-bf16": DENSE,
    "qwen3-tied": DENSE[:4],
    "qwen3-rope-yarn": DENSE[:2],
    "qwen3-config-v5-style": DENSE[:2],
    "qwen3moe-bf16": EXPERTS,
    "phi3-bf16": [(1, 1, 1), (2, 1, 1), (1, 2, 1)],
    "phi3-longrope": [(1, 1, 1), (2, 1, 1)],
    "phi3-longrope-128k": [(1, 1, 1)],
    "phi3-tied-odd": [(1, 1, 1)],
}
SPLITS = [(case, split) for case, splits in CASES.items() for split in splits]
# Every split of a dense model and of one with experts, and the largest of each other.
CHOSEN = [(c, s) for c, s in SPLITS if c in ("qwen3-bf16", "mixtral-bf16") or s == CASES[c][-1]]


def _name(pair: tuple[str, tuple[int, int, int]]) -> str:
    return "{}-tp{}pp{}ep{}".format(pair[0], *pair[1])


@pytest.fixture(scope="module")
def expected_logits(golden: Path, hugging_face: Callable[..., Any]) -> Callable[[str], Any]:
    """Token ids of each length and transformers' logits of them, once for all splits of a model."""

    @functools.cache
    def compute(case: str) -> list[tuple[list[int], torch.Tensor]]:
        reference, found = hugging_face(golden / case / "hf"), []
        for count in (1, 30, 60):
            if case == "mistral-bf16" and count > 32:
                continue  # beyond the sliding window, which a checkpoint cannot say
            ids = [(13 * i + 5) % reference.config.vocab_size for i in range(count)]
            with torch.no_grad():
                found.append((ids, reference(torch.tensor([ids])).logits[0]))
        return found

    return compute


@pytest.mark.parametrize(
    "case,split",
    [pytest.param(*p, id=_name(p), marks=() if p in CHOSEN else pytest.mark.slow) for p in SPLITS],
)
def test_converted_equals_transformers(
    golden: Path,
    tmp_path: Path,
    expected_logits: Callable[[str], Any],
    case: str,
    split: tuple[int, int, int],
) -> None:
    convert_model(golden / case / "hf", tmp_path / "out", ConvertOptions(mapping=CheckpointMapping(*split)))
    executor = Executor.load(tmp_path / "out", dtype="float32")
    for ids, expected in expected_logits(case):
        assert float(relative_error(executor.forward([ids])[0], expected).max()) <= 1e-6

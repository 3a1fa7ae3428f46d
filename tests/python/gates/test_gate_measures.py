"""Bounds of the gates have reasons, and their measures are what they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from enginix.errors import UsageError
from enginix.evaluation.judgement import quality, suite
from enginix.evaluation.judgement.gate_names import list_gates
from enginix.evaluation.reference_answers import answers as kept_answers
from enginix.evaluation.reference_answers import exact_answers
from enginix.reference import config
from enginix.tables import load_table


@pytest.mark.parametrize(
    "wanted,says",
    [
        ({"speed": {}}, "no gate"),
        ({"perplexity": {"raito": 1.1}}, "no bound"),
        ({"perplexity": {"ratio": "1.1"}}, "is '1.1'"),
        ({"perplexity": {"ratio": float("nan")}}, "nan"),
        ({"perplexity": {"ratio": -1}}, "-1"),
        ({"perplexity": 3}, "an object"),
        ({"coverage": {"unquantized": "all"}}, "unquantized"),
    ],
)
def test_impossible_bounds_are_refused(checkpoint: Path, wanted: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        suite.resolve_checkpoint_bounds(config.read_executor_config(checkpoint), wanted)


def test_every_bound_has_a_reason() -> None:
    for name, row in load_table("gates")["formats"].items():
        assert len(row["reason"]) > 40, name
        assert set(row["bounds"]) == set(suite.GATES) - {suite.LOGITS}
    assert set(suite.GATES) <= set(load_table("gates")["gates"])


def test_what_a_loop_is() -> None:
    assert quality.ends_in_loop([1, 2, 3] + [4, 5] * 12) and quality.ends_in_loop([9] * 24)
    assert (
        not quality.ends_in_loop([9] * 20)
        and not quality.ends_in_loop(list(range(64)))
        and not quality.ends_in_loop([])
    )
    assert not quality.ends_in_loop([4, 5] * 12 + [6])


def test_what_a_right_answer_is() -> None:
    for reply, answer in (
        ("8", "8"), ("A byte has 8 bits.", "8"), ("Paris.", "paris"), ("法国的首都是巴黎。", "巴黎"),
    ):  # fmt: skip
        assert exact_answers.contains_answer(reply, answer)
    for reply, answer in (
        ("18", "8"),
        ("80", "8"),
        ("1.8", "8"),
        ("Parisian", "Paris"),
        ("", "8"),
        ("東", "東京"),
    ):
        assert not exact_answers.contains_answer(reply, answer)


def test_divergence_is_kullback_leiblers() -> None:
    generator = torch.Generator().manual_seed(0)
    q, p = (torch.randn(8, 64, generator=generator).log_softmax(-1) for _ in range(2))
    kept = kept_answers.build_passage(p, tuple(range(9)))
    exact = (p.exp() * (p - q)).sum(-1)
    assert torch.allclose(quality.compute_divergence(q, kept), exact.double(), atol=1e-5)
    # Of a larger vocabulary the rest is one: never more than the whole.
    q, p = (torch.randn(8, 500, generator=generator).log_softmax(-1) for _ in range(2))
    kept = kept_answers.build_passage(p, tuple(range(9)))
    found = quality.compute_divergence(q, kept)
    assert bool((found <= (p.exp() * (p - q)).sum(-1) + 1e-5).all()) and bool((found > 0).all())


@pytest.mark.parametrize("size", [300, 33_000, 33_077])
def test_the_most_likely_tokens_of_a_large_vocabulary(size: int) -> None:
    logs = torch.randn(5, size, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    values, ids = kept_answers.select_most_likely(logs, 64)
    expected = logs.topk(64, -1)
    assert torch.equal(values, expected.values) and torch.equal(ids, expected.indices)


def test_a_gate_judges_what_its_row_says() -> None:
    """Of every kind of subject there are gates, and every default of a kind is one of its own."""
    table = load_table("gates")
    for name, row in table["gates"].items():
        assert row["of"] and set(row["of"]) <= {"checkpoint", "engine", "export", "network"}, name
    for kind, row in table["kinds"].items():
        if kind != "about":
            assert {*row["default"], *row["withContextLogits"]} <= set(list_gates("engine")), kind

"""Gates of an engine in its own runtime: names, bounds, files and arithmetic, without an engine."""

from __future__ import annotations

import contextlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from enginix import manifest
from enginix.errors import GateError, UsageError
from enginix.evaluation.engine_judgement import answer_metrics, answer_record, judge_answers
from enginix.evaluation.engine_protocol import engine_questions
from enginix.evaluation.reference_answers.answers import build_passage

DEFAULT = {"files", "smoke", "greedy", "task", "invariance"}
MADE = manifest.Manifest("engine", "tiny", "tensorrt", options={"plugins": {"gatherContextLogits": True}})
SCORED = DEFAULT | {"agreement", "perplexity"}


@pytest.mark.parametrize(
    ("wanted", "says_so"),
    [
        ({"logits": {}}, "needs a checkpoint"),
        ({"greddy": {}}, "no gate"),
        ({"greedy": {"top": 1}}, "no bound"),
        ({"greedy": {"top1": -1}}, "positive"),
        ({"greedy": 3}, "an object"),
        ({"perplexity": {"ratio": True}}, "positive"),
    ],
)
def test_gates_that_do_not_exist(wanted: Any, says_so: str) -> None:
    with pytest.raises(UsageError, match=says_so):
        judge_answers.resolve_engine_bounds(MADE, wanted)


def test_kinds_and_formats() -> None:
    made = MADE
    assert (
        judge_answers.engine_format_row(made) == "NO_QUANT"
        and set(judge_answers.default_engine_gates(made)) == SCORED
    )
    mixed = replace(made, model={"quantization": "MIXED_PRECISION"}, options={})
    assert (
        judge_answers.engine_format_row(mixed) == "NVFP4"
        and set(judge_answers.default_engine_gates(mixed)) == DEFAULT
    )
    cache = replace(made, model={"quantization": None, "kvCacheQuantization": "FP8"})
    assert judge_answers.engine_format_row(cache) == "FP8"
    with pytest.raises(UsageError, match="cannot be judged"):
        judge_answers.default_engine_gates(replace(made, kind="reference"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ASKED = {
    "format": 1, "material": "0", "vocab_size": 9, "ends": [2], "golden": 0, "continued": 4, "answered": 4,
    "kept": 2, "next": 2, "prompts": [{"id": "a", "tokens": [1], "text": "x"}], "recalls": [], "passages": [],
    "questions": [{"id": "a", "tokens": [1], "text": None}],
}  # fmt: skip
SAID = {
    "format": 1, "material": "0", "kind": "tensorrt", "by": {}, "passages": [], "absent": {}, "misread": [],
    "limit": 9, "longest": 9,
    "runs": {run: [{"tokens": [1], "finish": "stop"}] for run in answer_record.RUNS},
}  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(ASKED)), JSON, st.sampled_from(sorted(SAID)), JSON)
def test_whatever_is_in_the_files_is_read_or_refused(asks: str, a: Any, says: str, b: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        at = Path(name)
        save_file({}, at / "said.safetensors")
        (at / "asked.json").write_text(json.dumps({**ASKED, asks: a}))
        (at / "said.json").write_text(json.dumps({**SAID, says: b}))
        asked, said = engine_questions.read_engine_questions, answer_record.read_engine_answers
        for read_one, path in ((asked, at / "asked.json"), (said, at)):
            with contextlib.suppress(GateError):
                read_one(path)
        (at / "asked.json").write_text(json.dumps(ASKED))
        (at / "said.json").write_text(json.dumps(SAID))
        assert said(at).runs["batch"][0] == answer_record.GreedyAnswer((1,), "stop") and asked(at).ends == (
            2,
        )


def test_divergence_is_a_lower_bound() -> None:
    """Of random distributions, against the divergence over the whole vocabulary."""
    torch.manual_seed(1)
    for scale in (0.01, 0.3, 3.0):
        p = torch.randn(40, 1000).mul(2)
        q = p + torch.randn(40, 1000) * scale
        logs_p, logs_q = p.log_softmax(-1), q.log_softmax(-1)
        full = (logs_p.exp() * (logs_p - logs_q)).sum(-1).double()
        tokens = tuple(torch.randint(1000, (41,)).tolist())
        found = answer_metrics.bound_divergence(build_passage(logs_q, tokens), build_passage(logs_p, tokens))
        assert bool((found <= full + 1e-4).all())
    # And it sees what is far off.
    assert found.mean() > 0.3
    # Where the tokens that are kept have all there is, it is the divergence.
    few, other = torch.randn(40, 60).log_softmax(-1), torch.randn(40, 60).log_softmax(-1)
    full = (few.exp() * (few - other)).sum(-1).double()
    tokens = tuple(torch.randint(60, (41,)).tolist())
    found = answer_metrics.bound_divergence(build_passage(other, tokens), build_passage(few, tokens))
    assert torch.allclose(found, full, atol=1e-4)

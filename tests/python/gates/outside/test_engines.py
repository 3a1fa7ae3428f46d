"""An engine of the stand-in passes, and each of its faults is rejected, in one process."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginix.evaluation.engine_judgement import judge_answers
from enginix.kinds.trtllm import trtllm_asker
from enginix.report import html

from .gated import SCORED, Gpu, failing

pytestmark = pytest.mark.usefixtures("little_material")


@pytest.fixture
def judged(
    says: Any, engine: Path, model: Path, answers: Path, questions: Path, gpu: Gpu, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    def run(fault: str = "", wanted: Any = None, at: str = "said", **changes: Any) -> dict[str, Any]:
        gpu(fault)
        said = says(tmp_path / at, **changes)
        case = judge_answers.AnswerGateInputs(engine, said, model, answers, wanted, questions)
        return judge_answers.judge_engine_answers(case)[1]

    return run


@pytest.mark.slow
def test_a_healthy_engine(judged: Any) -> None:
    told = judged()
    assert told["passed"] is True and set(told["gates"]) == SCORED, told["gates"]
    # Evidence names what executed it: here a stand-in.
    assert told["runtime"]["class"] == "tensorrt_llm.standin_llm.EngineLLM"
    assert told["gates"]["greedy"]["top1Found"] == 1 and told["gates"]["agreement"]["top1Found"] == 1
    assert told["gates"]["agreement"]["klFound"] < 1e-6 and told["gates"]["task"]["score"] >= 7
    assert "standin_llm.EngineLLM" in html.render_gate_report("tiny", told)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "gates"),
    [
        ("silent", {"smoke", "greedy", "task", "invariance"}),
        ("nan", {"agreement", "perplexity"}),
        ("crowded", {"invariance"}),
        ("fickle", {"invariance"}),
        ("loops", {"smoke", "greedy", "task"}),
    ],
)
def test_a_fault_is_rejected(fault: str, gates: set[str], judged: Any) -> None:
    told = judged(fault)
    assert told["passed"] is False and gates <= failing(told), told["gates"]


@pytest.mark.slow
def test_planted_facts_are_asked_for_where_that_is_wanted(judged: Any) -> None:
    told = judged(wanted={"context": {}, "smoke": {}})
    # tiny-qwen3 need not find any: then there is nothing to compare, and that is a no.
    found = told["gates"]["context"]
    assert found["passed"] or "answers none" in found["summary"]
    small = judged(wanted={"context": {}}, limit=160, longest=128, at="small")["gates"]["context"]
    assert not small["passed"] and "no text with a planted fact fits" in small["summary"]


@pytest.mark.slow
def test_a_text_that_nobody_scored_is_no_evidence(judged: Any) -> None:
    told = judged(wanted={"perplexity": {}, "smoke": {}}, contextLogits=trtllm_asker.NO_CONTEXT_LOGITS)
    assert failing(told) == {"perplexity"}
    assert "gatherContextLogits = true" in told["gates"]["perplexity"]["summary"]


@pytest.mark.slow
def test_a_small_engine_is_asked_what_fits(judged: Any) -> None:
    told = judged(limit=160, longest=128)
    assert told["passed"] is True, told["gates"]
    assert told["gates"]["agreement"]["positions"] < 4 * 128  # four texts


@pytest.mark.slow
def test_an_engine_that_takes_no_prompt_is_rejected(judged: Any) -> None:
    told = judged(limit=16, longest=16)
    assert {"smoke", "greedy", "task", "invariance"} <= failing(told)
    assert "do not fit" in told["gates"]["greedy"]["summary"]


@pytest.mark.slow
def test_a_cache_that_is_reused_hides_context_logits(judged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap that the program avoids: with block reuse fewer logits come back than tokens went in."""
    api = importlib.import_module("tensorrt_llm.llmapi")
    honest = api.KvCacheConfig.__init__

    def reusing(self: Any, **given: Any) -> None:
        honest(self, **{**given, "enable_block_reuse": True})

    monkeypatch.setattr(api.KvCacheConfig, "__init__", reusing)
    told = judged()
    assert failing(told) == {"agreement", "perplexity"}
    assert "context logits of" in told["gates"]["agreement"]["summary"]

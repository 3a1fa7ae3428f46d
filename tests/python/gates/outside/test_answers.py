"""Recorded answers that were damaged, or are another engine's, pass no gate."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from enginix import manifest
from enginix.evaluation.engine_judgement import gated_engine, judge_answers
from enginix.evaluation.reference_answers.answers import read_reference_answers
from enginix.files import sha256_file

from .gated import SCORED, failing

pytestmark = pytest.mark.usefixtures("little_material")


def damaged(said: Path, how: str) -> None:
    path = said / "said.json"
    raw = json.loads(path.read_text())
    if how == "other questions":
        raw["material"] = "0" * 64
    elif how == "another kind":
        raw["kind"] = "llmapi"
    elif how == "an answer is missing":
        raw["runs"]["again"].pop()
    elif how == "no numbers":
        raw["runs"]["batch"][0]["tokens"] = ["x"]
    elif how == "no format":
        del raw["format"]
    elif how == "a text too few":
        raw["passages"].pop()
    elif how == "misread":
        raw["misread"] = ["en-1: 4 tokens, 5 by the model's tokenizer"]
    elif how == "cut":
        path.write_text(path.read_text()[:-100])
        return
    elif how == "no tensors":
        (said / "said.safetensors").unlink()
        return
    elif how == "a NaN alone":
        held = load_file(said / "said.safetensors")
        held["3.text"][5] = float("nan")
        save_file(held, said / "said.safetensors")
        return
    path.write_text(json.dumps(raw))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "gates"),
    [
        *((how, SCORED) for how in ("other questions", "another kind", "an answer is missing", "no numbers")),
        *((how, SCORED) for how in ("no format", "misread", "cut", "no tensors")),
        ("a text too few", {"agreement", "perplexity"}),
        ("a NaN alone", {"agreement", "perplexity"}),
    ],
)
def test_damaged_answers_pass_no_gate(
    how: str,
    gates: set[str],
    healthy: Path,
    engine: Path,
    model: Path,
    answers: Path,
    questions: Path,
    tmp_path: Path,
) -> None:
    said = Path(shutil.copytree(healthy, tmp_path / "said"))
    damaged(said, how)
    told = judge_answers.judge_engine_answers(
        judge_answers.AnswerGateInputs(engine, said, model, answers, questions=questions)
    )[1]
    assert told["passed"] is False and failing(told) == gates, told["gates"]


@pytest.mark.parametrize("wanted", [None, {}])
def test_evidence_says_that_the_runtime_is_not_verified(
    wanted: Any, healthy: Path, engine: Path, model: Path, answers: Path, questions: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(engine, tmp_path / "other"))
    described = {"like": "trtllm-1.2.1", "image": "a.b/c:1.2.2", "versions": {"tensorrtLlm": "1.2.2"}}
    made = manifest.read_manifest(other, "engine")
    runtime = {**made.runtime, "id": "trtllm-1.2.2-unverified", "verified": False, **described}
    replace(made, runtime=runtime).write(other)
    for directory, told in ((other, True), (engine, False)):
        case = judge_answers.AnswerGateInputs(directory, healthy, model, answers, wanted, questions)
        evidence = judge_answers.judge_engine_answers(case)[1]
        assert ("is not verified by enginix" in evidence.get("warning", "")) is told


@pytest.mark.slow
def test_the_golden_answer_is_the_engines(
    healthy: Path, engine: Path, model: Path, answers: Path, questions: Path, tmp_path: Path
) -> None:
    said = healthy
    case = judge_answers.AnswerGateInputs(engine, said, model, answers, questions=questions)
    outcomes, told = judge_answers.judge_engine_answers(case)
    made = gated_engine.write_gated_engine(
        engine,
        tmp_path / "gated",
        outcomes,
        told,
        judge_answers.find_golden_answer(case),
        answers_directory=said,
    )
    assert made.results["gates"] == dict.fromkeys(SCORED, "passed")
    golden = made.results["golden"]
    length = len(golden["tokens"])
    assert 1 <= length <= 32 and golden["promptTokens"]
    theirs = read_reference_answers(answers).continuations
    assert any(tuple(golden["tokens"]) == c[:length] for c in theirs)
    assert (tmp_path / "gated/engine/rank0.engine").read_bytes()[:8] == b"STAND-IN"
    assert sorted(p.name for p in (tmp_path / "gated").iterdir()) == [
        "engine", "enginix.json", "gates.json", "report.html", "tokenizer",
    ]  # fmt: skip
    assert manifest.read_manifest(tmp_path / "gated", "engine").inputs["said"].keys() >= {"said.json"}


@pytest.mark.slow
def test_the_tokenizer_must_be_the_models(
    healthy: Path, engine: Path, model: Path, answers: Path, questions: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(engine, tmp_path / "other"))
    path = other / "tokenizer/tokenizer.json"
    held = json.loads(path.read_text())
    vocab = held["model"]["vocab"]
    names = sorted(vocab, key=vocab.__getitem__)[400:800]
    for a, b in zip(names[::2], names[1::2], strict=True):
        vocab[a], vocab[b] = vocab[b], vocab[a]
    path.write_text(json.dumps(held))
    told = judge_answers.judge_engine_answers(
        judge_answers.AnswerGateInputs(other, healthy, model, answers, questions=questions)
    )[1]
    assert failing(told) == SCORED
    assert "tokenizer is not the model's" in told["gates"]["smoke"]["summary"]


@pytest.mark.slow
def test_the_answers_are_the_engines_own(
    healthy: Path, engine: Path, model: Path, answers: Path, questions: Path, tmp_path: Path
) -> None:
    def judged(engine: Path, said: Path) -> dict[str, Any]:
        return judge_answers.judge_engine_answers(
            judge_answers.AnswerGateInputs(engine, said, model, answers, questions=questions)
        )[1]

    other = Path(shutil.copytree(engine, tmp_path / "other"))
    held = json.loads((other / "enginix.json").read_text())
    (other / "enginix.json").write_text(json.dumps({**held, "name": "another"}))
    told = judged(other, healthy)
    assert failing(told) == SCORED and "another engine's" in told["gates"]["smoke"]["summary"]
    # What the gates made of an engine is still that engine.
    inputs = {**held["inputs"], "engine": {"manifestSha256": sha256_file(engine / "enginix.json")}}
    (other / "enginix.json").write_text(json.dumps({**held, "name": "another", "inputs": inputs}))
    assert failing(judged(other, healthy)) == set()
    nobodys = Path(shutil.copytree(healthy, tmp_path / "nobodys"))
    (nobodys / "engine.json").unlink()
    assert failing(judged(engine, nobodys)) == SCORED

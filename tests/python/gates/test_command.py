"""``enginix reference``, ``enginix gate``, and gates in ``enginix build``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from enginix import manifest
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.cli import main
from enginix.evaluation.judgement import suite
from enginix.evaluation.reference_answers import answers as kept_answers
from enginix.evaluation.reference_answers.exact_answers import read_questions
from manifests import age_manifest

pytestmark = pytest.mark.usefixtures("little_material")


def enginix(*words: object) -> int:
    return main([*map(str, words)])


@pytest.fixture(scope="module")
def answers(recorded_answers: Path) -> Path:
    return recorded_answers


@pytest.fixture(scope="module")
def fp8(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quantized row by row while it is converted: no calibration."""
    out = tmp_path_factory.mktemp("fp8") / "out"
    convert_model(model, out, ConvertOptions(quantize="FP8_PER_CHANNEL_PER_TOKEN"))
    return out


@pytest.fixture(scope="module")
def engine(model: Path, fp8: Path, answers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engine") / "out"
    words = ("build", fp8, "--kind", "reference", "--model", model, "--reference", answers, "-o", out)
    assert enginix(*words) == 0
    return out


def test_a_quantized_engine_is_gated_by_quality(engine: Path) -> None:
    found = manifest.read_manifest(engine)
    names = {"coverage", "smoke", "agreement", "perplexity", "task", "invariance"}
    names |= {"files", "weights", "positions", "activations"}
    assert found.results["gates"] == dict.fromkeys(names, "passed")
    assert set(found.options["gates"]) == names and found.options["gates"]["perplexity"] == {"ratio": 1.03}
    told = json.loads((engine / "gates.json").read_text())
    assert told["passed"] is True and told["bounds"]["format"] == "FP8_PER_CHANNEL_PER_TOKEN"
    assert "finds none of the planted facts" in told["leftOut"]["context"], "tiny-qwen3 was asked for nothing"
    assert "all 10 gates passed" in (engine / "report.html").read_text()


def test_a_quantized_engine_needs_the_original(
    model: Path, fp8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("build", fp8, "--kind", "reference", "--model", model, "-o", tmp_path / "e")
    assert enginix(*words) == 2
    assert "--reference ORIGINAL_MODEL" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("words", [["--gates", "{}"], ["--no-gates"]])
def test_no_gates_are_recorded(model: Path, fp8: Path, tmp_path: Path, words: list[str]) -> None:
    out = tmp_path / "e"
    assert enginix("build", fp8, "--kind", "reference", "--model", model, "-o", out, *words) == 0
    assert manifest.read_manifest(out).results["gates"] == "not gated"
    assert json.loads((out / "gates.json").read_text())["passed"] is None
    assert "Not gated" in (out / "report.html").read_text()


def test_a_failed_gate_leaves_no_engine(
    model: Path, fp8: Path, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "e"
    gates = '{"smoke": {}, "agreement": {"kl": 0.0001}}'
    words = ("build", fp8, "--kind", "reference", "--model", model, "--reference", answers, "-o", out)
    assert enginix(*words, "--gates", gates) == 1
    assert "gate agreement failed: most likely token equal" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_gate_judges_engines_and_checkpoints(
    engine: Path, fp8: Path, model: Path, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Without two that take as long as the rest, which the engine above passed, and what it was not asked.
    left_out = ("logits", "invariance", "activations", "context")
    gates = ("--gates", json.dumps({gate: {} for gate in suite.GATES if gate not in left_out}))
    assert enginix("gate", engine, "--reference", model, "-o", tmp_path / "a", "--json", *gates) == 0
    assert json.loads(capsys.readouterr().out)["gates"]["perplexity"] == "passed"
    words = ("gate", fp8, "--reference", answers, "--model", model, *gates)
    assert enginix(*words, "-o", tmp_path / "b") == 0
    a, b = (json.loads((tmp_path / x / "gates.json").read_text()) for x in "ab")
    assert a == b, "the answers that were kept are the model's"
    assert (tmp_path / "a/report.html").is_file()
    # The answers have the model's small files, and not its weights.
    capsys.readouterr()
    words = ("gate", fp8, "--reference", answers, "--gates")
    assert enginix(*words, '{"files": {}}') == 0
    assert enginix(*words, '{"weights": {}}') == 1
    assert "fix: pass --model" in capsys.readouterr().err


def test_gate_writes_its_evidence_where_it_fails(
    engine: Path, model: Path, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(engine, tmp_path / "broken")
    path = broken / "checkpoint/rank0.safetensors"
    tensors = load_file(path)
    tensors["transformer.layers.1.mlp.fc.per_channel_scale"] *= 8
    save_file(tensors, path)
    words = ("gate", broken, "--reference", answers, "--model", model, "-o", tmp_path / "out")
    assert enginix(*words, "--gates", '{"weights": {}, "agreement": {}, "perplexity": {}}') == 1
    said = capsys.readouterr()
    assert "FAILED" in said.err + said.out and "fix: convert the model again" in said.err
    told = json.loads((tmp_path / "out/gates.json").read_text())
    assert told["passed"] is False
    assert "Rejected: " in (tmp_path / "out/report.html").read_text()


def test_gate_fails_closed_on_what_it_cannot_read(
    engine: Path, model: Path, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enginix("gate", engine, "--reference", tmp_path) == 3  # nothing there: no tokenizer
    holed = shutil.copytree(engine, tmp_path / "holed")
    (holed / "checkpoint/rank0.safetensors").write_bytes(b"")
    assert enginix("gate", holed, "--reference", answers, "--model", model) == 1
    assert "not a whole safetensors file" in capsys.readouterr().err
    for text in ("{", "[]", '{"speed": {}}', '{"task": {"share": "x"}}'):
        assert enginix("gate", engine, "--reference", model, "--gates", text) == 2


def test_users_own_questions(engine: Path, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "What is two plus two?", "answer": "4"}\n')
    words = ("gate", engine, "--reference", model, "--gates", '{"task": {}}', "--questions", path)
    assert enginix(*words) == 0
    for text in ("", "[1]\n", "{}\n", "x\n", '{"question": "\\ud800", "answer": "4"}\n'):
        path.write_text(text)
        assert enginix(*words) == 3


def _refuse_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """End the test where a gate is run, or the model is asked anything but the user's questions."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("questions that cannot judge cost work")

    for module, name in ((suite, "compare_model"), (suite, "run_gates"), (kept_answers, "score_texts")):
        monkeypatch.setattr(module, name, fail)


@pytest.mark.parametrize("how", ["gate", "build", "reference"])
def test_questions_that_the_model_cannot_answer_are_refused_first(
    how: str,
    engine: Path,
    model: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _refuse_long_work(monkeypatch)
    path, out = tmp_path / "questions.jsonl", tmp_path / "out"
    path.write_text('{"question": "What is two plus two?", "answer": "5"}\n')
    words = {
        "gate": ("gate", engine, "--reference", model),
        "build": ("build", checkpoint, "--kind", "reference", "--model", model, "--reference", model),
        "reference": ("reference", model),
    }[how]
    assert enginix(*words, "--questions", path, "-o", out) == 3
    error = capsys.readouterr().err
    assert "the model answers none of the 1" in error and "What is two plus two?" in error
    assert "fix: pass questions of which the model answers some" in error and not out.exists()


def test_kept_answers_to_other_questions_are_refused_first(
    engine: Path,
    model: Path,
    answers: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _refuse_long_work(monkeypatch)
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "What is two plus two?", "answer": "4"}\n')
    words = ("gate", engine, "--model", model, "--reference", answers, "--questions", path)
    assert enginix(*words) == 1
    assert "answers are to other questions" in capsys.readouterr().err


def test_a_question_that_is_too_long(
    engine: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"question": "two plus two " * 3000, "answer": "4"}) + "\n")
    assert enginix("gate", engine, "--reference", model, "--questions", path) == 3
    error = capsys.readouterr().err
    assert "question 1 is " in error and "fix: shorten it" in error


def test_questions_are_divided_by_newlines_alone(tmp_path: Path) -> None:
    """JSON holds U+2028 and U+0085 as they are, and Python counts both among the ends of lines."""
    rows = [{"question": "a\u2028b\x85c", "answer": "d"}, {"question": "e", "answer": "f"}]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    assert read_questions(path) == rows


def test_kept_answers_judge_an_unquantized_engine_as_the_model_does(
    checkpoint: Path, model: Path, answers: Path, tmp_path: Path
) -> None:
    words = ("gate", checkpoint, "--model", model, "--gates", '{"logits": {}}')
    assert enginix(*words, "--reference", model, "-o", tmp_path / "a") == 0
    assert enginix(*words, "--reference", answers, "-o", tmp_path / "b") == 0
    a, b = ((tmp_path / x / "gates.json").read_bytes() for x in "ab")
    assert a == b and b'"logits"' in a


@pytest.mark.parametrize("damage", ["missing", "truncated", "NaN", "fewer", "another model's", "dtype"])
def test_kept_logits_that_are_not_the_models_fail(
    checkpoint: Path, model: Path, answers: Path, tmp_path: Path, damage: str
) -> None:
    bad = shutil.copytree(answers, tmp_path / "bad")
    age_manifest(bad)
    path, described = bad / "logits.safetensors", json.loads((bad / "answers.json").read_text())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "dtype":
        described["dtype"] = "float99"
        (bad / "answers.json").write_text(json.dumps(described))
    elif damage == "another model's":
        described["material"] = "0" * 64
        (bad / "answers.json").write_text(json.dumps(described))
    else:
        tensors = load_file(path)
        tensors["3"][2, 5] = float("nan")
        if damage == "fewer":
            del tensors["3"]
        save_file(tensors, path)
    words = ("gate", checkpoint, "--model", model, "--gates", '{"logits": {}}', "--reference", bad)
    assert enginix(*words) == 1


@pytest.mark.parametrize("device", ["foo", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_no_fault_of_the_models(
    checkpoint: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    """The reference, the gates and the executor raise the same error."""
    said = []
    for words in (
        ("reference", model, "-o", tmp_path / "answers"),
        ("gate", checkpoint, "--reference", model, "--gates", '{"logits": {}}'),
        ("build", checkpoint, "--kind", "reference", "--model", model, "-o", tmp_path / "engine"),
    ):
        assert enginix(*words, "--device", device) == (5 if device.startswith("cuda") else 2)
        said.append(capsys.readouterr().err.splitlines()[-2:])
    assert said[0] == said[1] == said[2] and said[0][0].startswith(f"error: {device}: no "), said
    assert "fix: " in said[0][1] and "cpu" in said[0][1]
    assert list(tmp_path.iterdir()) == []

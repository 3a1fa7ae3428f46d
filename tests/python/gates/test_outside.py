"""Engines that their own runtime executes, asked and judged: on the stand-in of TensorRT-LLM (tests/standin).

The stand-in refuses what TensorRT-LLM documents that it refuses; what it answers is computed by the reference
executor from the weights that were built into the engine. Nothing here ran on TensorRT.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from enginix import manifest
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.cli import main
from enginix.evaluation.engine_judgement import gated_engine, judge_answers
from enginix.evaluation.engine_protocol import answers_origin, engine_questions
from enginix.evaluation.reference_answers import question_builder, recall
from enginix.evaluation.reference_answers.answers import read_reference_answers
from enginix.files import sha256_file
from enginix.kinds.trtllm import trtllm_asker, trtllm_script
from enginix.report import html
from enginix.tables import load_table

pytestmark = pytest.mark.usefixtures("little_material")
ROOT = Path(__file__).parents[3]
STANDIN = ROOT / "tests/standin"
DEFAULT = {"files", "smoke", "greedy", "task", "invariance"}
SCORED = DEFAULT | {"agreement", "perplexity"}


def enginix(*words: object) -> int:
    return main([*map(str, words)])


Gpu = Callable[..., Path]


def enter(site: Path) -> pytest.MonkeyPatch:
    """Makes this process one in a container of the runtime, which PATH is all there is of."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PATH", f"{site}/bin:{os.environ['PATH']}")
    # OpenMPI's sockets want a short work directory, and pytest's are long.
    patch.setenv("TMPDIR", "/tmp")
    patch.setattr("tempfile.tempdir", None)
    return patch


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """This Python with the stand-in package, its programs, and a driver."""
    out = tmp_path_factory.mktemp("standin")
    shutil.copytree(STANDIN / "tensorrt_llm", out / "site/tensorrt_llm")
    shutil.copytree(STANDIN / "contract", out / "site/tensorrt_llm/contract")
    (out / "site/tensorrt_llm/version.py").write_text('__version__ = "1.2.1"\n')
    (out / "bin").mkdir()
    for name, words in {"python3": "", "trtllm-build": "-m tensorrt_llm.standin_trtllm_build"}.items():
        env = f"OMP_NUM_THREADS=1 STANDIN_DRIVER={out}/driver PYTHONPATH={out}/site:{ROOT}/python"
        (out / "bin" / name).write_text(f'#!/bin/sh\n{env} exec {sys.executable} {words} "$@"\n')
        (out / "bin" / name).chmod(0o755)
    patch = enter(out)
    yield out
    patch.undo()


@pytest.fixture(scope="module")
def gpu(site: Path) -> Gpu:
    """A stand-in GPU, with a fault or none."""

    def make(fault: str = "", capability: str = "9.0") -> Path:
        shutil.rmtree(site / "driver", ignore_errors=True)
        words = ["NVIDIA H200", capability, "143771", "143000", "590.44.01", "1", fault]
        subprocess.run(["bash", STANDIN / "driver.sh", site / "driver", *words], check=True)
        return site / "driver"

    return make


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the pinned ones: what is tested here is not the model."""
    out = tmp_path_factory.mktemp("questions") / "some.jsonl"
    rows = load_table("gate_text")["questions"][:8]
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return out


@pytest.fixture(scope="module", autouse=True)
def few_long_texts() -> Iterator[None]:
    """The shortest of them: a long text on a CPU takes seconds."""
    patch = pytest.MonkeyPatch()
    texts = recall.build_recall_texts
    patch.setattr(recall, "build_recall_texts", lambda *args: texts(*args)[:2])
    yield
    patch.undo()


@pytest.fixture(scope="module")
def answers(model: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("answers") / "out"
    assert enginix("reference", model, "--questions", questions, "-o", out) == 0
    return out


def build(checkpoint: Path, model: Path, gpu: Gpu, out: Path, *more: object, fault: str = "") -> Path:
    words = ("--kind", "tensorrt", "--model", model, "--driver", gpu(fault), "--runtime", "trtllm-1.2.1")
    assert enginix("build", checkpoint, *words, "--target", "h200", *more, "-o", out) == 0
    return out


@pytest.fixture(scope="module")
def one(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one rank."""
    out = tmp_path_factory.mktemp("one") / "out"
    convert_model(model, out, ConvertOptions())
    return out


@pytest.fixture(scope="module")
def engine(one: Path, model: Path, gpu: Gpu, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine that scores texts."""
    out = tmp_path_factory.mktemp("engine") / "out"
    return build(one, model, gpu, out, "--plugin", "gather-context-logits=true")


@pytest.fixture
def gate(
    answers: Path, model: Path, questions: Path, gpu: Gpu, tmp_path: Path
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """``enginix gate`` on the stand-in: exit status, and gates.json where there is one."""

    def run(engine: Path, *more: object, fault: str = "") -> tuple[int, dict[str, Any]]:
        out = tmp_path / "evidence"
        words = ("--reference", answers, "--model", model, "--questions", questions, "--driver", gpu(fault))
        status = enginix("gate", engine, *words, "-o", out, *more)
        told = json.loads((out / "gates.json").read_text()) if (out / "gates.json").is_file() else {}
        return status, told

    return run


def failing(told: dict[str, Any]) -> set[str]:
    return {gate for gate, detail in told["gates"].items() if not detail["passed"]}


@pytest.fixture(scope="module")
def asked(model: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("asked")
    engine_questions.write_engine_questions(question_builder.build_engine_questions(model, questions), out)
    return out / "asked.json"


@pytest.fixture(scope="module")
def says(engine: Path, asked: Path, site: Path) -> Iterator[Callable[..., Path]]:
    """What the program of the runtime writes, in this process: one load of the stand-in's engine for all."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(site / "site"))
    patch.setenv("STANDIN_DRIVER", str(site / "driver"))
    patch.setenv("TLLM_WORKER_USE_SINGLE_PROCESS", "1")
    patch.setenv("FLASHINFER_WORKSPACE_BASE", str(site))
    from tensorrt_llm import standin, standin_llm  # type: ignore[import-not-found]

    patch.setattr(standin, "DRIVER", site / "driver")
    load = functools.cache(standin_llm.EngineLLM.load)
    known: dict[Any, Any] = {}

    def loaded(self: Any, path: Path) -> Any:
        self.built = json.loads((path / "config.json").read_text())["build_config"]
        self.gathers_generation = self.given["gather_generation_logits"]
        once.given = self.given
        return load(once, path)

    once = standin_llm.EngineLLM.__new__(standin_llm.EngineLLM)
    patch.setattr(standin_llm.EngineLLM, "load", loaded)
    init = standin_llm.StandInLLM.__init__

    def remembering(self: Any, model: str, **given: Any) -> None:
        init(self, model, **given)
        self.known = known

    patch.setattr(standin_llm.StandInLLM, "__init__", remembering)

    def run(out: Path, **changes: Any) -> Path:
        out.mkdir()
        wanted = {
            "kind": "tensorrt",
            "model": str(engine / "engine"),
            "arguments": {"tensor_parallel_size": 1, "pipeline_parallel_size": 1},
            "limit": 2048,
            "longest": 2048,
            "contextLogits": None,
            "asked": str(asked),
            "output": str(out),
            **changes,
        }
        (out / "request.json").write_text(json.dumps(wanted))
        trtllm_script.main(str(out / "request.json"))
        answers_origin.write_answers_origin(engine, out)
        return out

    yield run
    patch.undo()


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


@pytest.fixture(scope="module")
def healthy(says: Any, gpu: Gpu, tmp_path_factory: pytest.TempPathFactory) -> Path:
    gpu()
    out: Path = says(tmp_path_factory.mktemp("healthy") / "said")
    return out


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


# The command, with the runtime in a process of its own.


@pytest.mark.slow
def test_an_engine_built_wrong_is_rejected(
    gate: Any, one: Path, model: Path, gpu: Gpu, tmp_path: Path
) -> None:
    """One layer's weights shuffled: the builder says that all is well."""
    engine = build(one, model, gpu, tmp_path / "e", fault="shuffled")
    status, told = gate(engine)
    assert status == 1 and {"greedy", "task"} <= failing(told), told["gates"]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "said"), [("raises", "illegal memory access"), ("hangs", "it hangs")])
def test_an_engine_that_fails_leaves_no_answers(
    fault: str, said: str, gate: Any, engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = gate(engine, "--stall-minutes", "0.5" if fault == "hangs" else "10", fault=fault)
    assert status != 0 and not told
    assert said in capsys.readouterr().err


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
def test_the_pytorch_backend(gate: Any, model: Path, gpu: Gpu, tmp_path: Path) -> None:
    gpu()
    words = ("--runtime", "trtllm-1.2.1", "--target", "h200", "--llm-arg", "enable_chunked_prefill=true")
    assert enginix("build", "--kind", "llmapi", "--model", model, *words, "-o", tmp_path / "e") == 0
    status, told = gate(tmp_path / "e")
    assert status == 0 and set(told["gates"]) == SCORED, told["gates"]
    assert told["runtime"]["class"] == "tensorrt_llm.standin_llm.TorchLLM"


@pytest.mark.slow
def test_several_ranks(gate: Any, checkpoint: Path, model: Path, gpu: Gpu, tmp_path: Path) -> None:
    engine = build(checkpoint, model, gpu, tmp_path / "e")
    status, told = gate(engine, "--gates", '{"greedy": {"top1": 0.99}}')
    assert status == 0 and told["gates"]["greedy"]["top1"] == 0.99


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


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, -1, "two", None, True])
def test_ranks_that_are_none(ranks: Any, gate: Any, engine: Path, tmp_path: Path, capsys: Any) -> None:
    other = Path(shutil.copytree(engine, tmp_path / "other"))
    held = json.loads((other / "enginix.json").read_text())
    held["options"]["tensorParallel"] = ranks
    (other / "enginix.json").write_text(json.dumps(held))
    status, told = gate(other)
    assert status not in (0, 70) and not told
    assert "ranks are" in capsys.readouterr().err


@pytest.mark.slow
def test_elsewhere_it_says_where_to_run_it(
    engine: Path,
    answers: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert enginix("gate", engine, "--reference", answers, "--model", model) == 5
    told = capsys.readouterr().err
    assert "is executed by trtllm-1.2.1 on h200, which is not here" in told and "--rootfs" in told
    assert 'mkEngine { kind = "tensorrt"; }' in told and "Traceback" not in told

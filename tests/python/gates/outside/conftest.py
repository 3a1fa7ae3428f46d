"""Engines that their own runtime executes, asked and judged: on the stand-in of TensorRT-LLM (tests/standin).

The stand-in refuses what TensorRT-LLM documents that it refuses; what it answers is computed by the reference
executor from the weights that were built into the engine. Nothing here ran on TensorRT.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.evaluation.engine_protocol import answers_origin, engine_questions
from enginix.evaluation.reference_answers import question_builder, recall
from enginix.kinds.trtllm import trtllm_script
from enginix.tables import load_table

from .gated import Gpu, build, enginix

ROOT = Path(__file__).parents[4]
STANDIN = ROOT / "tests/standin"


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
def answers(model: Path, questions: Path, made_once: Callable[..., Path]) -> Path:
    def ask(out: Path) -> None:
        assert enginix("reference", model, "--questions", questions, "-o", out) == 0

    return made_once("outside-answers", ask)


@pytest.fixture(scope="module")
def one(model: Path, made_once: Callable[..., Path]) -> Path:
    """A checkpoint of one rank."""
    return made_once("outside-checkpoint", lambda out: convert_model(model, out, ConvertOptions()))


@pytest.fixture(scope="module")
def engine(one: Path, model: Path, gpu: Gpu, made_once: Callable[..., Path]) -> Path:
    """An engine that scores texts."""
    scores = ("--plugin", "gather-context-logits=true")
    return made_once("outside-engine", lambda out: build(one, model, gpu, out, *scores))


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


@pytest.fixture(scope="module")
def healthy(says: Any, gpu: Gpu, made_once: Callable[..., Path]) -> Path:
    gpu()
    return made_once("outside-said", lambda out: says(out))

"""Engine stage and server over the wheel's own code; a stand-in for what needs TensorRT and a GPU."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enginix.errors import GateError
from enginix.evaluation.engine_judgement import answer_metrics, answer_record
from enginix.evaluation.engine_protocol import engine_questions
from enginix.evaluation.reference_answers import question_builder
from manifests import age_manifest

from .conftest import HERE, ROOT, TINY, Run, environment

pytestmark = pytest.mark.slow
Make = Callable[..., Path]


@pytest.fixture
def export(exports: Callable[[str], Path]) -> Path:
    return exports("bf16")


@pytest.fixture
def build(
    enginix: Run, export: Path, driver: Make, runtime: Make, tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(
        *words: str | Path, target: str = "rtx-5090", misbehave: str = "", model: Path = TINY
    ) -> subprocess.CompletedProcess[str]:
        given = () if "--driver" in words else ("--driver", driver())
        return enginix(
            *("edgellm-build", export, "--model", model, "--target", target, "-o", tmp_path / "engine"),
            *("--python", os.path.relpath(runtime(misbehave)), *given, *words),
        )

    return run


@pytest.fixture
def engine(build: Run, made_once: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of an engine with default options, which is built once."""

    def make(out: Path) -> None:
        done = build()
        assert done.returncode == 0, done.stderr
        (tmp_path / "engine").rename(out)

    return Path(shutil.copytree(made_once("edgellm-engine", make), tmp_path / "engine", symlinks=True))


@pytest.fixture
def model_engine(
    enginix: Run, driver: Make, runtime: Make, tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Build an engine of the tiny model from a given export."""

    def run(export: Path, builder: str) -> subprocess.CompletedProcess[str]:
        words = ("--llm-build", HERE / "standin/llm_build") if builder == "onnx" else ()
        return enginix(
            *("edgellm-build", export, "--model", TINY, "--target", "rtx-5090", "-o", tmp_path / "engine"),
            *("--python", runtime(), "--driver", driver(), "--builder", builder, *words),
        )

    return run


def test_an_engine_says_what_it_is(build: Run, tmp_path: Path) -> None:
    done = build("--max-input-len", "64", "--max-kv-cache-capacity", "128", "--max-batch-size", "2")
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "engine/enginix.json").read_text())
    assert made["target"] == {
        "name": "rtx-5090",
        "sm": 120,
        "gpu": "NVIDIA GeForce RTX 5090",
        "memory": 32607 << 20,
        "count": 1,
    }
    assert made["options"]["limits"] == {"maxInputLen": 64, "maxKvCacheCapacity": 128, "maxBatchSize": 2}
    # Nothing was predicted on this command line; what the builder took was measured.
    assert made["results"]["plan"]["predicted"] is None
    assert made["results"]["plan"]["measured"]["hostMemoryPeak"] > 10 << 20
    # The gate saw both graphs; this builder made its own, and the command says so.
    assert made["results"]["exportGate"] == "passed"
    assert (
        made["results"]["graph"].startswith("the direct builder's own") and "graph: the direct" in done.stdout
    )
    # What the wheel's own builder made of it.
    built = json.loads((tmp_path / "engine/engine/config.json").read_text())
    limits = {"max_input_len": 64, "max_kv_cache_capacity": 128, "max_batch_size": 2}
    assert built["builder_config"].items() >= limits.items() and built["checkpoint_identity"]["sources"]


def test_the_onnx_builder_reads_the_export(build: Run, tmp_path: Path) -> None:
    # The builder runs in a directory of its own: a path from here must not be one from there.
    done = build("--builder", "onnx", "--llm-build", os.path.relpath(HERE / "standin/llm_build"))
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "engine/enginix.json").read_text())
    assert made["options"]["builder"] == "onnx"
    assert made["results"]["exportGate"] == "passed"
    assert made["results"]["graph"] == "the export's, which the gate export executed"


def rewrite_manifest(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = directory / "enginix.json"
    stored = json.loads(path.read_text())
    change(stored["results"])
    path.write_text(json.dumps(stored))
    age_manifest(directory)


@pytest.mark.parametrize(
    ("change", "builder", "says"),
    [
        (lambda r: r.update(directGate={"graph": "direct", "refused": "logits differ by 0.5"}), "direct",
         "refused the direct builder's graph of this model: logits differ by 0.5"),
        (lambda r: r.update(directGate={"graph": "direct", "refused": "logits differ by 0.5"}), "onnx", ""),
        (lambda r: r.pop("directGate"), "direct", ""),
    ],
)  # fmt: skip
def test_an_engine_is_of_a_graph_that_the_gate_passed(
    change: Any, builder: str, says: str, export: Path, model_engine: Any, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(export, tmp_path / "export"))
    rewrite_manifest(copy, change)
    done = model_engine(copy, builder)
    if says:
        assert done.returncode == 3 and says in done.stderr and "builder onnx" in done.stderr, done.stderr
        return
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "engine/enginix.json").read_text())["results"]
    # A manifest of an earlier version has no evidence of the direct graph, and the engine's says so.
    expected = "passed" if builder == "onnx" else "not gated"
    assert made["exportGate"] == expected and ("alone" in made["graph"]) == (builder == "direct")


@pytest.mark.parametrize(
    ("misbehave", "status", "says"),
    [
        ("oom", 5, "out of memory"),
        ("tensorrt", 5, "the runtime has no TensorRT"),
        ("nothing", 1, "without an llm.engine"),
        ("limits", 1, "max_kv_cache_capacity"),
        ("identity", 1, "checkpoint_identity"),
        ("theta", 1, "of the engine: engine/config.json: rope_theta is 20000.0, the model's is 10000.0"),
    ],
)
def test_a_builder_that_fails_leaves_nothing(
    misbehave: str,
    status: int,
    says: str,
    build: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    done = build(misbehave=misbehave)
    assert done.returncode == status and says in done.stderr, done.stderr
    assert not (tmp_path / "engine").exists() and not list(tmp_path.glob(".engine.*"))


def test_another_gpu_is_refused_before_the_build(build: Run, driver: Make) -> None:
    done = build("--driver", driver("NVIDIA A100", "8.0"))
    assert done.returncode == 5 and "SM 120" in done.stderr and "SM 80" in done.stderr, done.stderr


def test_a_gpu_without_payload_names_those_that_have_one(
    build: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = build(target="h200")
    assert (
        done.returncode == 2
        and "no x86-64 payload for SM 90" in done.stderr
        and "80, 86, 100, 120" in done.stderr
    )


def test_another_model_is_refused(
    build: Callable[..., subprocess.CompletedProcess[str]], models: Callable[[str], Path]
) -> None:
    done = build(model=models("fp8"))
    assert done.returncode == 3 and "the export was made from" in done.stderr


@contextmanager
def served(edge: Path, *words: str | Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    process = subprocess.Popen(
        [edge, "-m", "enginix", "edgellm-serve", *words, "--port", str(port)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        for _ in range(1800):
            if process.poll() is not None:
                assert process.stdout is not None
                raise AssertionError(process.stdout.read())
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield process, port
    finally:
        process.terminate()
        process.wait(300)


def ask(port: int, key: str | None) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/models")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, ""


def test_the_real_server_takes_the_engine_and_the_key(
    build: Run, edge: Path, runtime: Make, driver: Make, tmp_path: Path
) -> None:
    assert build("--max-kv-cache-capacity", "4500").returncode == 0
    engine, state, key = tmp_path / "engine", tmp_path / "state", tmp_path / "key"
    # Keys in base 64 for URLs begin with a dash now and then.
    key.write_text("-not-for-others\n")
    key.chmod(0o600)
    # As in the store: nothing of the engine can be written.
    subprocess.run(["chmod", "-R", "a-w", engine], check=True)
    words = [engine, "--model", TINY, "--state", state, "--api-key-file", key]
    words += ["--python", os.path.relpath(runtime()), "--driver", driver()]
    with served(edge, *words, "--served-model-name", "mine") as (process, port):
        assert ask(port, None)[0] == 401
        assert ask(port, "guessed")[0] == 401
        status, text = ask(port, "-not-for-others")
        assert status == 200 and json.loads(text)["data"][0]["id"] == "mine"
        assert json.loads(text)["data"][0]["max_model_len"] == 4500
        command = (
            Path(f"/proc/{process.pid}/cmdline").read_text()
            + Path(f"/proc/{process.pid}/environ").read_text()
        )
        assert "not-for-others" not in command
    # The server found the engine: it built none beside it.
    (bundle,) = [p for p in state.glob("cache/engines/*/*") if p.is_dir()]
    assert (bundle / "llm.engine").resolve() == engine / "engine/llm.engine"
    # And again over the same state.
    with served(edge, *words) as (_, port):
        assert ask(port, "-not-for-others")[0] == 200


def test_a_server_that_would_build_does_not(
    engine: Path, enginix: Run, runtime: Make, driver: Make, tmp_path: Path
) -> None:
    """The wheel's own readiness check refuses an engine of other limits; its builder then lacks TensorRT."""
    config = engine / "engine/config.json"
    config.write_text(config.read_text().replace('"max_batch_size": 1', '"max_batch_size": 2'))
    age_manifest(engine)
    done = enginix(
        *("edgellm-serve", engine, "--model", TINY, "--state", tmp_path / "s"),
        *("--python", runtime("tensorrt"), "--driver", driver()),
    )
    assert done.returncode != 0 and "TensorRT" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--host", "0.0.0.0"], "no API key"),
        (["--api-key-file", "{open}"], "everybody can read"),
        (["--api-key-file", "{empty}"], "does not hold one key"),
        (["--api-key-file", "{none}"], "cannot be read"),
        (["--port", "0"], "not a port"),
    ],
)
def test_what_serving_refuses(words: list[str], says: str, enginix: Run, tmp_path: Path) -> None:
    (tmp_path / "open").write_text("key")
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "empty").write_text("\n")
    given = [
        w.format(open=tmp_path / "open", empty=tmp_path / "empty", none=tmp_path / "none") for w in words
    ]
    done = enginix("edgellm-serve", tmp_path, "--model", TINY, "--state", tmp_path / "s", *given)
    assert done.returncode == 2 and says in done.stderr, done.stderr


def test_an_engine_for_the_cpp_runtime_is_not_served(build: Run, enginix: Run, tmp_path: Path) -> None:
    assert build("--builder", "onnx", "--llm-build", HERE / "standin/llm_build").returncode == 0
    done = enginix("edgellm-serve", tmp_path / "engine", "--model", TINY, "--state", tmp_path / "s")
    assert done.returncode == 3 and "C++ runtime" in done.stderr


def test_an_engine_of_another_model_is_not_served(engine: Path, enginix: Run, tmp_path: Path) -> None:
    other = Path(shutil.copytree(ROOT / "tests/models/tiny-qwen3", tmp_path / "other"))
    (other / "generation_config.json").write_text("{}")
    done = enginix("edgellm-serve", engine, "--model", other, "--state", tmp_path / "s")
    assert done.returncode == 3 and "the engine was made from" in done.stderr


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of what the gates ask."""
    out = tmp_path_factory.mktemp("asked")
    whole = question_builder.build_engine_questions(TINY)
    some = replace(whole, prompts=whole.prompts[:4], questions=whole.questions[:4], recalls=(), golden=0)
    engine_questions.write_engine_questions(some, out)
    return out / "asked.json"


@pytest.fixture
def says(
    engine: Path, edge: Path, runtime: Make, driver: Make, asked: Path, tmp_path: Path
) -> Callable[..., Path]:
    """Ask an engine by its own server: ``enginix answers`` as Nix builds run it."""

    def run(misbehave: str = "", *, stall: float = 5) -> Path:
        out = tmp_path / f"said-{misbehave}"
        program = "from enginix.kinds.asking.asker_main import main; raise SystemExit(main())"
        words = ["answers", "--engine", engine, "--model", TINY, "--asked", asked, "--out", out]
        words += ["--driver", driver(), "--python", runtime(misbehave), "--stall-minutes", str(stall)]
        done = subprocess.run(
            [edge, "-c", program, *words], env=environment(), capture_output=True, text=True, timeout=600
        )
        assert "Traceback (most recent call last):\n  File" not in done.stderr
        assert (done.returncode == 0) == out.exists(), done.stderr
        if not out.exists():
            raise RuntimeError(done.stderr)
        return out

    return run


def test_an_engine_is_asked_by_its_own_server(says: Any, asked: Path) -> None:
    said = answer_record.read_engine_answers(says())
    questions = engine_questions.read_engine_questions(asked)
    answer_record.require_same_questions(said, questions)
    assert said.by["server"] == "tensorrt-edgellm-serve" and said.by["tensorrt-edgellm"] == "0.11.0"
    assert said.runs["batch"] == said.runs["again"] == said.runs["alone"]
    assert set(said.next) == {0, 1, 2, 3} and said.next[0].ids.shape == (64, questions.next)
    # The server leaves end tokens out; the gates put them back where it says that it stopped.
    answers = [a for a in said.runs["replies"] if a is not None]
    assert {a.finish for a in answers} == {"stop"} and all(
        a.ended(frozenset({0, 2}))[-1] == 0 for a in answers
    )
    assert "log-probabilities of generated tokens alone" in said.absent["passages"]


@pytest.mark.parametrize(("misbehave", "why"), [("raises", "illegal memory access"), ("hangs", "it hangs")])
def test_an_engine_that_does_not_answer_leaves_nothing(misbehave: str, why: str, says: Any) -> None:
    with pytest.raises(RuntimeError, match=why):
        says(misbehave, stall=0.3 if misbehave == "hangs" else 10)


def test_what_an_engine_says_wrong_is_seen(says: Any, asked: Path) -> None:
    with pytest.raises(GateError, match="tokenizer is not the model's"):
        answer_record.require_same_questions(
            answer_record.read_engine_answers(says("misread")), engine_questions.read_engine_questions(asked)
        )
    silent = answer_record.read_engine_answers(says("silent"))
    assert all(a is not None and not a.tokens for a in silent.runs["batch"])
    found = answer_metrics.judge_recorded_invariance(
        silent, engine_questions.read_engine_questions(asked), frozenset({0, 2}), 0.05, {}
    )
    assert not found.passed

"""`enginix gate`, with the runtime in a process of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .gated import SCORED, Gpu, build, enginix, failing

pytestmark = pytest.mark.usefixtures("little_material")


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

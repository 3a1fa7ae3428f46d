"""``enginix build --kind reference``: the engine directory, its determinism, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginix import manifest
from enginix.checkpoint.convert import Options as ConvertOptions
from enginix.checkpoint.convert import convert
from enginix.cli import main
from enginix.engine.reference import Options, build
from enginix.reference import Executor


def enginix(*words: object) -> int:
    return main(["build", *map(str, words)])


def digests(directory: Path) -> dict[str, str]:
    return {
        str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def engine(checkpoint: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engine") / "out"
    build(checkpoint, model, out, Options(name="tiny-qwen3"))
    return out


def test_the_directory(engine: Path, checkpoint: Path, model: Path) -> None:
    assert digests(engine / "checkpoint") == digests(checkpoint)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (engine / "tokenizer" / name).read_bytes() == (model / name).read_bytes()
    found = manifest.read(engine, "engine")
    assert (found.name, found.kind) == ("tiny-qwen3", "reference")
    assert found.runtime == {"id": "reference", "requires": {"torch": ">=2.6"}}
    assert found.results["gates"] == {"logits": "passed"}
    assert found.options["limits"] == {"max_seq_len": 2048}
    assert found.inputs["model"] == manifest.read(checkpoint).inputs["model"]
    gates = json.loads((engine / "gates.json").read_text())
    assert gates["passed"] is True and gates["gates"]["logits"]["passed"] is True
    assert gates["promptSet"]["count"] == len(gates["gates"]["logits"]["prompts"]) >= 10


def test_golden_tokens_come_again(engine: Path) -> None:
    golden = manifest.read(engine).results["golden"]
    executor = Executor.load(engine / "checkpoint", dtype=golden["dtype"])
    assert (
        executor.greedy(golden["promptTokens"], len(golden["tokens"]), golden["endIds"]) == golden["tokens"]
    )
    assert golden["tokens"] and golden["text"].strip()


def test_the_same_inputs_give_the_same_bytes(
    engine: Path, checkpoint: Path, model: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(2)  # whatever the number of threads
    build(checkpoint, model, tmp_path / "again", Options(name="tiny-qwen3"))
    assert digests(tmp_path / "again") == digests(engine)


def test_links_instead_of_copies(checkpoint: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    assert enginix(checkpoint, "--kind", "reference", "--model", model, "-o", out, "--link-checkpoint") == 0
    assert os.readlink(out / "checkpoint") == str(checkpoint)


def test_not_gated_is_written_down(
    checkpoint: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "engine"
    assert enginix(checkpoint, "--kind", "reference", "--model", model, "-o", out, "--no-gates") == 0
    assert manifest.read(out).results["gates"] == "not gated"
    assert json.loads((out / "gates.json").read_text())["passed"] is None
    assert "not gated" in capsys.readouterr().out


def _rank0(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(checkpoint: Path) -> None:
        path = checkpoint / "rank0.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return apply


NAME = "transformer.layers.3.mlp.proj.weight"


@pytest.mark.parametrize(
    "damage,code,message",
    [
        (_rank0(lambda t: t.pop(NAME)), 3, f"{NAME} is missing, expected BF16 [128, 256]"),
        (
            _rank0(lambda t: t.update({NAME: t[NAME][:, :100].clone()})),
            3,
            f"{NAME} is BF16 [128, 100], expected BF16 [128, 256]",
        ),
        (_rank0(lambda t: t.update({NAME: -t[NAME]})), 1, "gate logits failed: relative error"),
        (_rank0(lambda t: t[NAME][0, 0].fill_(float("inf"))), 3, "holds NaN or infinity"),
        (lambda c: (c / "rank1.safetensors").unlink(), 3, "no rank1.safetensors"),
        (lambda c: (c / "rank1.safetensors").write_bytes(b"{}"), 3, "not a whole safetensors file"),
        (lambda c: (c / "config.json").write_text("[]"), 3, "not a JSON object"),
        (lambda c: (c / "enginix.json").write_text("{}"), 3, "not a manifest"),
    ],
)
def test_a_broken_checkpoint_is_refused_and_nothing_written(
    checkpoint: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    code: int,
    message: str,
) -> None:
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    damage(broken)
    assert enginix(broken, "--kind", "reference", "--model", model, "-o", tmp_path / "engine") == code
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken"]


def test_a_checkpoint_of_another_model_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rope_theta": 5000.0}))
    convert(other, tmp_path / "checkpoint", ConvertOptions())
    out = tmp_path / "engine"
    assert enginix(tmp_path / "checkpoint", "--kind", "reference", "--model", model, "-o", out) == 3
    assert "the checkpoint was made from" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("gone", ["tokenizer.json", "config.json"])
def test_a_model_without_its_files_is_refused(
    checkpoint: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], gone: str
) -> None:
    holed = shutil.copytree(model, tmp_path / "model")
    (holed / gone).unlink()
    assert enginix(checkpoint, "--kind", "reference", "--model", holed, "-o", tmp_path / "engine") == 3
    assert f"no {gone}" in capsys.readouterr().err


def test_a_kind_that_takes_no_checkpoint_says_what_it_takes(
    checkpoint: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        enginix(checkpoint, "--kind", "edgellm", "--model", model, "-o", tmp_path / "engine", "--json") == 2
    )
    said = capsys.readouterr()
    assert "enginix edgellm-export" in said.err and json.loads(said.out)["exitCode"] == 2


@pytest.mark.parametrize(
    "words", [("--tolerance", "0"), ("--tolerance", "nan"), ("--tolerance", "1", "--no-gates")]
)
def test_impossible_tolerances(checkpoint: Path, model: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    assert (
        enginix(checkpoint, "--kind", "reference", "--model", model, "-o", tmp_path / "engine", *words) == 2
    )


def test_a_tighter_bound_of_ones_own_fails(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "checkpoint", ConvertOptions(dtype="float16"))
    words = (tmp_path / "checkpoint", "--kind", "reference", "--model", model, "-o", tmp_path / "engine")
    assert enginix(*words, "--tolerance", "1e-12") == 1
    assert enginix(*words) == 0


def test_existing_output_is_kept(checkpoint: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine/mine").write_text("precious")
    assert enginix(checkpoint, "--kind", "reference", "--model", model, "-o", tmp_path / "engine") == 2
    assert (tmp_path / "engine/mine").read_text() == "precious"


def test_without_a_home_as_a_build_user(checkpoint: Path, model: Path, tmp_path: Path) -> None:
    """Nix builders have HOME=/homeless-shelter: nothing may want to write there."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": "/homeless-shelter",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(manifest.__file__).parents[1]),
    }
    words = [
        "-m",
        "enginix",
        "build",
        checkpoint,
        "--kind",
        "reference",
        "--model",
        model,
        "-o",
        tmp_path / "engine",
    ]
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("gate logits: passed")

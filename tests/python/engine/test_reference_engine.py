"""``enginix build --kind reference``: the engine directory, its determinism, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginix import manifest
from enginix.checkpoint.convert import ConvertOptions as ConvertOptions
from enginix.checkpoint.convert import convert_model
from enginix.cli import main
from enginix.device import ONE_THREAD_PARAMETERS, limit_threads
from enginix.errors import CheckpointError, UsageError
from enginix.evaluation.reference_answers.hf import load_hf_model
from enginix.kinds.reference.reference_build import ReferenceBuildOptions, build_reference_engine
from enginix.kinds.reference.served_engine import read_reference_engine
from enginix.reference import Executor
from enginix.tables import load_table
from enginix.triton.models.chat import Chat
from enginix.triton.models.chat import load_chat_template as load_templates
from enginix.triton.models.request import RequestError

pytestmark = pytest.mark.usefixtures("little_material")


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
    build_reference_engine(checkpoint, model, out, ReferenceBuildOptions(name="tiny-qwen3"))
    return out


def test_the_directory(engine: Path, checkpoint: Path, model: Path) -> None:
    assert digests(engine / "checkpoint") == digests(checkpoint)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (engine / "tokenizer" / name).read_bytes() == (model / name).read_bytes()
    found = manifest.read_manifest(engine, "engine")
    assert (found.name, found.kind) == ("tiny-qwen3", "reference")
    assert found.runtime == {"id": "reference", "requires": {"torch": ">=2.6"}}
    names = {"files", "weights", "logits", "smoke", "positions", "agreement", "perplexity", "task"}
    assert found.results["gates"] == dict.fromkeys(names, "passed")
    assert found.options["limits"] == {"max_seq_len": 2048}
    assert found.inputs["model"] == manifest.read_manifest(checkpoint).inputs["model"]
    gates = json.loads((engine / "gates.json").read_text())
    assert gates["passed"] is True and gates["gates"]["logits"]["passed"] is True
    count = len(load_table("gate_prompts")["prompts"])
    assert gates["promptSet"]["count"] == len(gates["gates"]["logits"]["prompts"]) == count


def test_golden_tokens_come_again(engine: Path) -> None:
    golden = manifest.read_manifest(engine).results["golden"]
    executor = Executor.load(engine / "checkpoint", dtype=golden["dtype"])
    assert (
        executor.greedy(golden["promptTokens"], len(golden["tokens"]), golden["endIds"]) == golden["tokens"]
    )
    assert golden["tokens"] and golden["text"].strip()


def test_the_same_inputs_give_the_same_bytes(
    engine: Path, checkpoint: Path, model: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(2)  # whatever the number of threads
    build_reference_engine(checkpoint, model, tmp_path / "again", ReferenceBuildOptions(name="tiny-qwen3"))
    assert digests(tmp_path / "again") == digests(engine)


def test_a_small_model_takes_one_thread(checkpoint: Path, model: Path) -> None:
    before = torch.get_num_threads()
    try:
        for load in (lambda: load_hf_model(model), lambda: Executor.load(checkpoint)):
            torch.set_num_threads(2)
            load()
            assert torch.get_num_threads() == 1
        torch.set_num_threads(2)
        limit_threads(ONE_THREAD_PARAMETERS, torch.device("cpu"))
        limit_threads(0, torch.device("cuda"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_links_instead_of_copies(checkpoint: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    words = (checkpoint, "--kind", "reference", "--model", model, "-o", out, "--link-checkpoint")
    assert enginix(*words, "--gates", '{"files": {}}') == 0
    assert os.readlink(out / "checkpoint") == str(checkpoint)


def test_not_gated_is_written_down(
    checkpoint: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "engine"
    assert enginix(checkpoint, "--kind", "reference", "--model", model, "-o", out, "--no-gates") == 0
    assert manifest.read_manifest(out).results["gates"] == "not gated"
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
        (_rank0(lambda t: t.update({NAME: -t[NAME]})), 1, "gate weights failed: 1 differ: rank0.safetensors"),
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
    words = (broken, "--kind", "reference", "--model", model, "-o", tmp_path / "engine")
    assert enginix(*words, "--gates", '{"weights": {}, "logits": {}}') == code
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken"]


def test_a_checkpoint_of_another_model_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    convert_model(other, tmp_path / "checkpoint", ConvertOptions())
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
    ("kind", "words", "said"),
    [
        ("reference", ("--max-seq-len", "512"), "kind reference reads no --max-seq-len"),
        (
            "reference",
            ("--max-batch-size", "2", "--max-beam-width", "1"),
            "--max-batch-size, --max-beam-width",
        ),
        ("reference", ("--profile", "latency", "--tensor-parallel", "2"), "--profile, --tensor-parallel"),
        ("llmapi", ("--workers", "2"), "kind llmapi reads no --workers"),
        ("llmapi", ("--request", "x.json", "--max-seq-len", "512"), "--max-seq-len beside --request"),
        ("tensorrt", ("--request", "x.json", "--max-num-tokens", "512"), "--max-num-tokens beside --request"),
        ("tensorrt", ("--llm-arg", "max_seq_len=512"), "kind tensorrt has no arguments of the LLM class"),
    ],
)
def test_an_option_that_a_kind_does_not_read_is_refused(
    checkpoint: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    kind: str, words: tuple[str, ...], said: str,
) -> None:  # fmt: skip
    assert enginix(checkpoint, "--kind", kind, "--model", model, "-o", tmp_path / "engine", *words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [("--tolerance", "0"), ("--tolerance", "nan"), ("--tolerance", "1", "--no-gates")]
)
def test_impossible_tolerances(checkpoint: Path, model: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    assert (
        enginix(checkpoint, "--kind", "reference", "--model", model, "-o", tmp_path / "engine", *words) == 2
    )


def test_a_tighter_bound_of_ones_own_fails(model: Path, tmp_path: Path) -> None:
    convert_model(model, tmp_path / "checkpoint", ConvertOptions(dtype="float16"))
    words = (tmp_path / "checkpoint", "--kind", "reference", "--model", model, "-o", tmp_path / "engine")
    words = (*words, "--gates", '{"logits": {}}')
    assert enginix(*words, "--tolerance", "1e-12") == 1
    assert enginix(*words) == 0


def test_existing_output_is_kept(checkpoint: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine/mine").write_text("precious")
    assert enginix(checkpoint, "--kind", "reference", "--model", model, "-o", tmp_path / "engine") == 2
    assert (tmp_path / "engine/mine").read_text() == "precious"


def variant(model: Path, out: Path, **keys: object) -> Path:
    """The tiny model with other keys in config.json."""
    shutil.copytree(model, out)
    raw = {**json.loads((model / "config.json").read_text()), **keys}
    (out / "config.json").write_text(json.dumps(raw))
    return out


@pytest.mark.parametrize("generation", [None, {"_from_model_config": True}, {"eos_token_id": [5, 2]}])
def test_end_tokens_are_one_fact(generation: object, model: Path, tmp_path: Path) -> None:
    """The golden answer, the manifest and the repository's parameters end at the same tokens."""
    changed = variant(model, tmp_path / "model", eos_token_id=2)
    (changed / "generation_config.json").unlink()
    settings = json.loads((changed / "tokenizer_config.json").read_text())
    settings.pop("eos_token", None)
    (changed / "tokenizer_config.json").write_text(json.dumps(settings))
    if generation is not None:
        (changed / "generation_config.json").write_text(json.dumps(generation))
    expected = [5, 2] if generation and "eos_token_id" in generation else [2]
    convert_model(changed, tmp_path / "checkpoint", ConvertOptions())
    build_reference_engine(
        tmp_path / "checkpoint", changed, tmp_path / "engine", ReferenceBuildOptions(gated=False)
    )
    found = manifest.read_manifest(tmp_path / "engine")
    assert found.model["endTokens"] == found.results["golden"]["endIds"] == expected
    assert list(read_reference_engine(tmp_path / "engine").end_ids) == expected


def test_named_chat_templates_reach_the_engine(model: Path, tmp_path: Path) -> None:
    changed = variant(model, tmp_path / "model")
    (changed / "additional_chat_templates").mkdir()
    (changed / "additional_chat_templates/tool_use.jinja").write_text("{{ tools }}{{ messages }}")
    convert_model(changed, tmp_path / "checkpoint", ConvertOptions())
    build_reference_engine(
        tmp_path / "checkpoint", changed, tmp_path / "engine", ReferenceBuildOptions(gated=False)
    )
    chat = Chat([{"role": "user", "content": "a"}], {"tools": [{"name": "weather"}]})
    for directory in (changed, tmp_path / "engine/tokenizer"):
        assert "weather" in load_templates(directory).render(chat)
    shutil.rmtree(tmp_path / "engine/tokenizer/additional_chat_templates")
    plain = tmp_path / "engine/tokenizer/chat_template.jinja"
    plain.write_text("{{ messages }}")
    with pytest.raises(RequestError, match="does not read tools"):
        load_templates(tmp_path / "engine/tokenizer").render(chat)


def test_a_window_bounds_every_later_stage(model: Path, tmp_path: Path) -> None:
    """Every layer attends to all tokens here: beyond the model's window another function is computed."""
    window = {"use_sliding_window": True, "sliding_window": 96, "max_window_layers": 2}
    changed = variant(model, tmp_path / "model", layer_types=None, **window)
    convert_model(changed, tmp_path / "checkpoint", ConvertOptions())
    build_reference_engine(
        tmp_path / "checkpoint", changed, tmp_path / "engine"
    )  # gated: with prompts inside the window
    found = manifest.read_manifest(tmp_path / "engine")
    layers = found.model["layers"]
    assert found.model["attentionWindow"] == [2048, 2048, *[96] * (layers - 2)]
    assert found.options["limits"] == {"max_seq_len": 96}
    assert read_reference_engine(tmp_path / "engine").max_seq_len == 96
    executor = Executor.load(tmp_path / "engine/checkpoint")
    with pytest.raises(UsageError, match="accepts at most 96"):
        executor.forward([[1] * 97])
    (tmp_path / "checkpoint/enginix.json").unlink()
    with pytest.raises(CheckpointError, match="sliding window"):
        build_reference_engine(tmp_path / "checkpoint", changed, tmp_path / "again")

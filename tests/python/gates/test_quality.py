"""Gates of quality on the trained tiny model: healthy number formats pass, damage is rejected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from checkpoint_judge import ENDS, NOT_ASKED, Judge
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.errors import CheckpointError, GateError
from enginix.evaluation.judgement import run, suite
from enginix.evaluation.reference_answers import answers as kept_answers
from enginix.evaluation.reference_answers import hf
from enginix.evaluation.reference_answers import material as materials
from enginix.evaluation.reference_answers.answers import ReferenceAnswers
from enginix.evaluation.reference_answers.material import Material
from enginix.evaluation.reference_answers.subject import TransformersSubject
from enginix.reference.executor import Executor
from tiny_model import Tensors, damaged, make_loud, quantize

FORMATS = ("FP8", "FP8_KV", "FP8_PC_PT", "INT8_SQ", "INT4_AWQ", "W4A8_AWQ", "NVFP4")


@pytest.fixture(scope="session")
def material(tokenizer: hf.TransformersTokenizer) -> Material:
    return materials.load_material(tokenizer, 2048, 2048)


@pytest.fixture(scope="session")
def answers(model: Path, material: Material, tokenizer: hf.TransformersTokenizer) -> ReferenceAnswers:
    torch.set_num_threads(1)
    subject = TransformersSubject(model)
    return kept_answers.ask_reference(subject, material, ENDS, {"name": "tiny-qwen3"}, tokenizer)


@pytest.fixture(scope="session")
def quantized(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            torch.set_num_threads(1)
            made[name] = quantize(model, name, tmp_path_factory.mktemp(name))
        return made[name]

    return make


@pytest.fixture(scope="session")
def judge(tokenizer: hf.TransformersTokenizer, material: Material, answers: ReferenceAnswers) -> Judge:
    return Judge(tokenizer, material, answers)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_healthy_formats_pass(
    judge: Judge, little_judge: Judge, quantized: Callable[[str], Path], name: str
) -> None:
    asked_little = ("invariance",)  # answers must be equal; of all prompts it takes most of the time
    expected = set(suite.GATES) - set(NOT_ASKED)
    found = judge(quantized(name), *expected.difference(asked_little))
    found |= little_judge(quantized(name), *asked_little)
    assert set(found) == expected
    for outcome in found.values():
        assert outcome.passed, f"{outcome.gate}: {outcome.summary}"
    run.require_gates_passed(tuple(found.values()))
    assert found["agreement"].detail["top1Found"] < 1, "quantization changed nothing"


def test_a_sound_checkpoint_passes_every_gate(little_judge: Judge, checkpoint: Path) -> None:
    for outcome in little_judge(checkpoint).values():
        assert outcome.passed, f"{outcome.gate}: {outcome.summary}"


FC = "transformer.layers.1.mlp.fc"
QKV = "transformer.layers.2.attention.qkv"


def _scales(factor: float, tensors: Tensors) -> None:
    for name in tensors:
        if name.endswith("weights_scaling_factor"):
            tensors[name] *= factor


def _shuffle(prefix: str, tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        if name.startswith(prefix) and tensor.dtype is torch.float8_e4m3fn:
            tensors[name] = tensor.view(torch.uint8).roll(7, 0).view(tensor.dtype)


DAMAGE: dict[str, Callable[[Tensors], object]] = {
    "one matrix's FP8 scale × 8": lambda t: t[f"{QKV}.weights_scaling_factor"].mul_(8),
    "all FP8 scales × 8": lambda t: _scales(8, t),
    "all FP8 scales ÷ 8": lambda t: _scales(1 / 8, t),
    "activation scales ÷ 8": lambda t: [
        t[n].div_(8) for n in t if n.endswith("activation_scaling_factor")
    ],
    "one layer's weights shuffled": lambda t: _shuffle("transformer.layers.1.", t),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights_fail(
    judge: Judge, quantized: Callable[[str], Path], tmp_path: Path, damage: str
) -> None:
    found = judge(damaged(quantized("FP8"), tmp_path / "c", DAMAGE[damage]), "agreement", "perplexity")
    assert not found["agreement"].passed or not found["perplexity"].passed, damage
    with pytest.raises(GateError, match="failed"):
        run.require_gates_passed(tuple(found.values()))


@pytest.mark.slow
def test_kv_scales_of_one_on_large_values_fail(judge: Judge, model: Path, tmp_path: Path) -> None:
    """With scales of their own, large keys do less harm; with 1.0 they saturate."""
    loud, one = make_loud(model, tmp_path / "loud"), tmp_path / "one"
    convert_model(loud, one, ConvertOptions(kv_cache="FP8"))
    executor = Executor.load(one, dtype="float32")
    assert float(executor.layers[0].attention.kv_scale) == 1.0
    found = judge(one, "agreement", "perplexity")
    assert not found["agreement"].passed and not found["perplexity"].passed

    def fit(tensors: Tensors) -> None:
        for name in tensors:
            if name.endswith("kv_cache_scaling_factor"):
                tensors[name].fill_(256 * 40 / 448)

    # Keys take all of the range, and values little of it: one scale for both is what the format has.
    healthy = judge(damaged(one, tmp_path / "fit", fit), "agreement", "perplexity")
    assert healthy["perplexity"].detail["ratioFound"] < found["perplexity"].detail["ratioFound"]


def swap_tokenizer(model: Path, swapped: Path) -> Path:
    """A tokenizer of the same size, 100 pieces exchanged."""
    shutil.copytree(model, swapped)
    raw = json.loads((swapped / "tokenizer.json").read_text("utf-8"))
    vocabulary = raw["model"]["vocab"]
    words = sorted(vocabulary, key=vocabulary.get)
    for a, b in zip(words[300:400:2], words[301:401:2], strict=True):
        vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (swapped / "tokenizer.json").write_text(json.dumps(raw), "utf-8")
    return swapped


def test_a_swapped_tokenizer_fails(
    little_judge: Judge, checkpoint: Path, model: Path, tmp_path: Path
) -> None:
    found = little_judge(
        checkpoint, tokenizer=hf.TransformersTokenizer(swap_tokenizer(model, tmp_path / "tokenizer"))
    )
    assert not any(outcome.passed for outcome in found.values())
    assert all("tokenizer is not the model's" in outcome.summary for outcome in found.values())


def spare_a_layer(checkpoint: Path, out: Path) -> Path:
    """One matrix in full precision, and in the list of those that are meant to be."""

    def plain(tensors: Tensors) -> None:
        scale = tensors.pop(f"{FC}.weights_scaling_factor")
        tensors.pop(f"{FC}.activation_scaling_factor")
        tensors[f"{FC}.weight"] = (tensors[f"{FC}.weight"].float() * scale).bfloat16()

    damaged(checkpoint, out, plain)
    with pytest.raises(CheckpointError, match="expected F8_E4M3"):
        Executor.load(out)  # the checkpoint says that it is quantized
    config = json.loads((out / "config.json").read_text())
    config["quantization"]["exclude_modules"] = ["*lm_head", FC]
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.slow
def test_a_silently_unquantized_layer_fails(
    judge: Judge, quantized: Callable[[str], Path], tmp_path: Path
) -> None:
    out = spare_a_layer(quantized("FP8"), tmp_path / "c")
    found = judge(out, "agreement", "coverage")
    assert not found["coverage"].passed and FC in found["coverage"].summary
    assert found["agreement"].passed, "no other gate can see it"
    assert judge(out, "coverage", coverage={"unquantized": [FC]})["coverage"].passed
